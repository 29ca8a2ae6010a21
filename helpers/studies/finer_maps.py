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
from helpers.evaluation import Predictions, margin_matched_correct
from helpers.explanation import derangement
from helpers.gradcam import GradCAM
from helpers.model import PreActResNet, activations, dilated
from helpers.studies.networks import network_parser, write_rows
from helpers.studies.trust import (
    compare_orders,
    maps_of,
    paints,
    probability_left,
    right_predictions,
)
from helpers.support.command import one_line_errors
from helpers.support.intervals import wilson_interval

CONFIDENCES = (0, 0.5, 0.7, 0.85, 1)  # ends of the groups
LOOKS = (4, 8, 12, 16, 20, 24, 28, 32)  # cells of 64 that are painted over
OWN = "8 x 8, dilated"


@torch.inference_mode()
def four_answers(model: PreActResNet, images: Tensor) -> np.ndarray:
    """The logits of the four coarse maps that a dilated network's map is woven of.

    Args:
        model: the original.
        images: (N, 3, H, W) in [0, 1].

    Returns:
        (N, 4, num_classes). The first are the original's logits; their mean is the dilated
        network's.
    """
    fine = dilated(model)
    found = []
    for part in images.split(100):
        features = activations(fine, part.to(model.mean.device))["layer4"]
        parts = [features[:, :, i::2, j::2].mean((2, 3)) for i in (0, 1) for j in (0, 1)]
        found.append(fine.fc(torch.stack(parts, 1)).cpu())
    return torch.cat(found).numpy()


def answers(logits: np.ndarray, test: Dataset) -> pd.DataFrame:
    """Where the dilated network's answer differs from the original's.

    Args:
        logits: as `four_answers` returns them.
        test: the images.

    Returns:
        One row for each group of images. same: the share with the same answer, with its 95 %
        interval; the shares that either network gets right; the share on which the four coarse
        maps do not all name one class; and the mean spread (standard deviation) of their four
        logits of the original's answer.
    """
    original = Predictions(logits[:, 0], test.labels, test.classes)
    fine = Predictions(logits.mean(1), test.labels, test.classes)
    four = logits.argmax(2)
    of_answer = logits[np.arange(len(test)), :, original.predicted]
    rows = []
    for name, some in groups_of(original).items():
        same = (fine.predicted == original.predicted)[some]
        low, high = wilson_interval(same.sum(), len(same))
        row = {"group": name, "images": len(same), "same": same.mean(), "from": low, "to": high}
        row["original right"] = original.correct[some].mean()
        row["dilated right"] = fine.correct[some].mean()
        row["four differ"] = (four[some] != four[some][:, :1]).any(1).mean()
        rows.append(row | {"spread": of_answer[some].std(1).mean()})
    return pd.DataFrame(rows)


def groups_of(original: Predictions) -> dict[str, np.ndarray]:
    """Names and numbers of images; groups without images are left out."""
    confidence = original.confidence
    groups = {
        "all": np.arange(len(confidence)),
        "right": np.flatnonzero(original.correct),
        "wrong": np.flatnonzero(~original.correct),
        "right, as close": margin_matched_correct(original),
    }
    for low, high in zip(CONFIDENCES, CONFIDENCES[1:]):
        inside = (confidence > low) & (confidence <= high)
        groups[f"confidence {low:.0%} to {high:.0%}"] = np.flatnonzero(inside)
    return {name: some for name, some in groups.items() if len(some)}


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
    coarse, fine = maps_of(model, images, classes), maps_of(dilated(model), images, classes)
    own = fine["own map"]
    middle = torch.from_numpy(np.indices((8, 8)) - 3.5).square().sum(0)
    of_layer3 = [
        GradCAM(model, "layer3").evidence(images[i : i + 100], classes[i : i + 100])
        for i in range(0, len(images), 100)
    ]

    def enlarge(maps: Tensor) -> Tensor:
        return interpolate(maps, (8, 8), mode="bilinear")[:, 0]

    return {
        "4 x 4, enlarged": enlarge(coarse["own map"][:, None]),
        "4 x 4, interpolated": interpolated(coarse["own map"]),
        OWN: own,
        "8 x 8, averaged to 4 x 4": enlarge(avg_pool2d(own[:, None], 2)),
        "8 x 8, layer3": torch.cat(of_layer3),
        "8 x 8, class-free": fine["class-free map"],
        "8 x 8, another image's": own[derangement(len(own), rng)],
        "8 x 8, mean map": own.mean(0).expand_as(own),
        "centre first": -middle.expand_as(own),
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
    paint = paints(images, model.mean)["grey"]
    left = {}
    for name, maps in maps_on_64_cells(model, images, classes, np.random.default_rng(0)).items():
        order = np.argsort(-maps.flatten(1).numpy(), axis=1, kind="stable")
        left[name] = probability_left(model, images, classes, order, paint, LOOKS)
    return compare_orders(left, OWN).rename_axis("map").reset_index()


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Make one of the two tables."""
    parser = network_parser("finer_maps")
    parser.add_argument("test", choices=("answers", "deletion"))
    parser.add_argument("--images", type=int, default=200, help="images that deletion explains")
    args = parser.parse_args(argv)

    def measure(model: PreActResNet, test: Dataset) -> pd.DataFrame:
        if args.test == "answers":
            return answers(four_answers(model, test.tensor()), test)
        return deletion(model, *right_predictions(model, test, args.images))

    write_rows(args, f"finer-{args.test}", measure)


if __name__ == "__main__":
    main()
