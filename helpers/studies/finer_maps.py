"""How fine can a map be? What notebook further/finer_maps draws and cannot measure in seconds.

`python -m helpers.studies.finer_maps answers` asks where the dilated network, whose map has four
times as many cells, gives another answer than the original; `... deletion` whether its map ranks
the cells of an image better. Each writes a table for `--networks`, names or files of weights.

The records: `answers` on all images and `deletion --images 500`, with `--networks cifar10
cifar10-narrow-0 cifar10-narrow-1`, and `deletion --data shapes10 --images 500`.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.model import PreActResNet, dilated
from helpers.similarity import derangement
from helpers.studies import trust
from helpers.studies.covering import close_calls
from helpers.studies.networks import network_parser, write_rows
from helpers.support.intervals import hit_rates

CONFIDENCES = (0, 0.5, 0.7, 0.85, 1)  # ends of the groups
LOOKS = (4, 8, 12, 16, 20, 24, 28, 32)  # cells of 64 that are painted over
OWN = "8 x 8, dilated"


def answers(original: Predictions, fine: Predictions) -> pd.DataFrame:
    """Where the dilated network's answer differs from the original's.

    Returns:
        One row for each group of images; a group without images has none. same: the share with the
        same answer, with its 95 % interval; and the shares that either network gets right.
    """
    wrong = np.flatnonzero(~original.correct)
    top_two = np.argsort(-original.logits[wrong], axis=1)[:, :2]
    groups = {
        "all": np.arange(len(original.labels)),
        "right": np.flatnonzero(original.correct),
        "wrong": wrong,
        "right, as close": close_calls(original, wrong, top_two)[0],
    }
    confidence = original.confidence
    for low, high in zip(CONFIDENCES, CONFIDENCES[1:]):
        inside = (confidence > low) & (confidence <= high)
        groups[f"confidence {low:.0%} to {high:.0%}"] = np.flatnonzero(inside)
    groups = {name: some for name, some in groups.items() if len(some)}
    same = fine.predicted == original.predicted
    table = hit_rates({name: same[some] for name, some in groups.items()})
    table["images"] = [len(some) for some in groups.values()]
    table["original right"] = [original.correct[some].mean() for some in groups.values()]
    table["dilated right"] = [fine.correct[some].mean() for some in groups.values()]
    return table.rename(columns={"mean": "same"}).rename_axis("group").reset_index()


def interpolated(coarse: Tensor) -> Tensor:
    """Maps (N, 8, 8) whose every other cell is one of the coarse maps' (N, 4, 4).

    The cells in between are the means of their old neighbours. They have the places of a dilated
    map's cells, and have seen nothing of the image that the coarse maps have not.
    """
    repeated = pad(coarse[:, None], (0, 1, 0, 1), mode="replicate")  # beyond the last: the last
    return interpolate(repeated, (9, 9), mode="bilinear", align_corners=True)[:, 0, :8, :8]


def maps_on_64_cells(
    model: PreActResNet, images: Tensor, classes: np.ndarray, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Maps of 8 x 8 cells, each (N, 8, 8): coarse ones enlarged, and fine ones.

    "averaged to 4 x 4" has seen all that the dilated map has, but is no finer than the coarse one.

    Args:
        model: the original.
        images: (N, 3, 32, 32) in [0, 1].
        classes: (N,), that are explained.
        rng: of the random map, and of which image is "another".
    """
    coarse = trust.maps_of(model, images, classes)["own map"]
    own = trust.maps_of(dilated(model), images, classes)["own map"]

    def enlarge(maps: Tensor) -> Tensor:
        return interpolate(maps[:, None], (8, 8), mode="bilinear")[:, 0]

    return {
        "4 x 4, enlarged": enlarge(coarse),
        "4 x 4, interpolated": interpolated(coarse),
        OWN: own,
        "8 x 8, averaged to 4 x 4": enlarge(avg_pool2d(own, 2)),
        "8 x 8, another image's": own[derangement(len(own), rng)],
        "random order": torch.from_numpy(rng.random(own.shape)),
    }


def deletion(model: PreActResNet, images: Tensor, classes: np.ndarray) -> pd.DataFrame:
    """How far each map's order lowers the probability, painted grey, averaged over the LOOKS.

    Args:
        model: the original, in eval mode.
        images: (N, 3, 32, 32), of right predictions.
        classes: (N,), predicted.

    Returns:
        One row for each map, as `compare_orders`; the own map is the dilated one.
    """
    paint = trust.paints(images, model.mean)["grey"]
    left = {}
    for name, maps in maps_on_64_cells(model, images, classes, np.random.default_rng(0)).items():
        order = np.argsort(-maps.flatten(1).numpy(), axis=1, kind="stable")
        left[name] = trust.probability_left(model, images, classes, order, paint, LOOKS)
    return trust.compare_orders(left, OWN).rename_axis("map").reset_index()


def main(argv: list[str] | None = None) -> None:
    """Make one of the two tables."""
    parser = network_parser("finer_maps")
    parser.add_argument("test", choices=("answers", "deletion"))
    parser.add_argument("--images", type=int, default=200, help="images that deletion explains")
    args = parser.parse_args(argv)

    def measure(model: PreActResNet, test: Dataset) -> pd.DataFrame:
        if args.test == "answers":
            return answers(predict(model, test), predict(dilated(model), test))
        return deletion(model, *trust.right_predictions(model, test, args.images))

    write_rows(args, f"finer-{args.test}", measure)


if __name__ == "__main__":
    main()
