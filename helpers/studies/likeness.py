"""Are a mistake's two maps more alike, or less, than chance would have it?

`python -m helpers.studies.likeness cifar10 cifar10-narrow-0 cifar10-narrow-1` compares maps on the
same image with maps on another image in the same role, for mistakes and for right predictions that
are as close. What the table has already is not made again. A network of the size of the one that
ships takes four minutes of two CPU cores.
"""

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers.data import Dataset, load_dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.model import PreActResNet, dilated, load_pretrained
from helpers.similarity import (
    all_maps,
    rank_correlation,
    same_minus_other,
    select_class,
    without_shared,
)
from helpers.studies.covering import BLOCKS, groups, with_block_covered
from helpers.studies.runs import read_rows, write_table
from helpers.support.command import one_line_errors
from helpers.support.device import default_device, to_device_of
from helpers.support.files import project_root

OCCLUDED = 200  # images of a group whose blocks are covered
PROBABILITIES = (0, 0.05, 0.2, 1)  # of the actual class: ends of the groups of mistakes
TWINS = ("narrow-0", "narrow-1")  # other trainings on the same data: the positive control


@torch.inference_mode()
def occlusion_maps(model: PreActResNet, images: Tensor) -> Tensor:
    """By how much each class's logit falls when a block is covered: (N, num_classes, 4, 4)."""

    def logits(pictures: Tensor) -> Tensor:
        parts = [model(to_device_of(model, part)).cpu() for part in pictures.split(100)]
        return torch.cat(parts)

    paint = model.mean.cpu()
    covered = [logits(with_block_covered(images, block, paint)) for block in range(BLOCKS**2)]
    drops = logits(images)[:, :, None] - torch.stack(covered, dim=2)
    return drops.unflatten(2, (BLOCKS, BLOCKS))


def of_eight_others(maps: Tensor, roles: np.ndarray) -> Tensor:
    """The mean map of an image's classes that are neither of its two: (N, h, w)."""
    others = maps.clone()
    others[torch.arange(len(maps))[:, None], torch.as_tensor(roles)] = torch.nan
    return others.nanmean(1)


def pairs_of_group(
    model: PreActResNet, images: Tensor, roles: np.ndarray, third: np.ndarray
) -> dict[str, tuple[Tensor, Tensor]]:
    """Two sets of maps (N, h, w) for each question, of one group of images.

    Args:
        model: explained.
        images: (N, 3, H, W) in [0, 1].
        roles: (N, 2), the two classes of each image.
        third: (N,), the most probable class that is neither.
    """
    count = int(model.fc.out_features)
    maps = all_maps(GradCAM(model), images, count)
    fine = all_maps(GradCAM(dilated(model)), images, count)
    first, second = (select_class(maps, roles[:, i]) for i in (0, 1))
    fine_first, fine_second = (select_class(fine, roles[:, i]) for i in (0, 1))
    logits = maps.sum((2, 3)) + model.fc.bias.detach().cpu()
    average = (logits.softmax(1)[:, :, None, None] * maps).sum(1)
    others = of_eight_others(maps, roles)
    some = slice(OCCLUDED)
    drops = occlusion_maps(model, images[some])
    drop, other_drop = (select_class(drops, roles[some, i]) for i in (0, 1))
    return {
        "its two classes": (first, second),
        "its two classes, 8 x 8": (
            select_class(fine, roles[:, 0]),
            select_class(fine, roles[:, 1]),
        ),
        "its first and a third class": (first, select_class(maps, third)),
        "its two classes, log p": (first - average, second - average),
        "its two classes, another zero": (first - others, second - others),
        "its two classes, occlusion": (drop, other_drop),
        "difference map, occlusion's": ((first - second)[some], drop - other_drop),
    }


def compare(first: Tensor, second: Tensor) -> dict[str, dict[str, float]]:
    """Same image against another image: rank correlations, as they are and less what all share."""
    treated = {
        "as it is": (first, second),
        "shared pattern out": without_shared(first, second),
    }
    return {name: summary(rank_correlation(*pair, every=True)) for name, pair in treated.items()}


def summary(
    likeness: np.ndarray, same: np.ndarray | None = None, other: np.ndarray | None = None
) -> dict[str, float]:
    """`same_minus_other` in a row: means on the same image and on another, and their difference."""
    table = same_minus_other(likeness, same, other)
    means = {"same": table["mean"]["same"], "other": table["mean"]["other"]}
    found = means | table.loc["difference"].rename({"mean": "difference"}).to_dict()
    return {name: round(value, 4) for name, value in found.items()}


def likeness_of_classes(maps: Tensor) -> np.ndarray:
    """Mean rank correlation of two classes' maps of an image, for each pair of classes (pairs,)."""
    pairs = combinations(range(maps.shape[1]), 2)
    return np.array([np.nanmean(rank_correlation(maps[:, a], maps[:, b])) for a, b in pairs])


def likeness_of_weights(model: PreActResNet) -> np.ndarray:
    """Correlation of two classes' weights in `fc`, for each pair of classes (pairs,)."""
    return np.corrcoef(model.fc.weight.detach().cpu())[np.triu_indices(model.fc.out_features, 1)]


def rows_of(
    model: PreActResNet, dataset: Dataset, predictions: Predictions, twin: PreActResNet | None
) -> list[dict]:
    """The rows of one network.

    Args:
        model: whose maps are compared.
        dataset: the images.
        predictions: the model's, for them.
        twin: another training, for the positive control.
    """
    rows = []
    for group, (indices, roles) in groups(predictions).items():
        images = dataset.tensor(indices)
        hidden = predictions.logits[indices].copy()
        np.put_along_axis(hidden, roles, -np.inf, axis=1)
        pairs = pairs_of_group(model, images, roles, hidden.argmax(1))
        if twin is not None:
            of_class = [GradCAM(net).evidence(images, roles[:, 1]) for net in (model, twin)]
            pairs["one class, two trainings"] = (of_class[0], of_class[1])
        for name, pair in pairs.items():
            start = {"group": group, "comparison": name, "images": len(pair[0])}
            for treatment, found in compare(*pair).items():
                rows.append(start | {"treatment": treatment} | found)
        maps = all_maps(GradCAM(model), images, len(dataset.classes))
        r = np.corrcoef(likeness_of_classes(maps), likeness_of_weights(model))[0, 1]
        start = {"group": group, "images": len(images), "treatment": "as it is"}
        rows.append(
            start | {"comparison": "pairs of classes: maps and weights", "same": round(r, 4)}
        )
        if group == "mistakes":
            probability = predictions.probabilities[indices, roles[:, 1]]
            rows += [
                start | row
                for row in parts_of_mistakes(*pairs["its two classes"], probability, roles)
            ]
    return rows


def parts_of_mistakes(
    first: Tensor, second: Tensor, probability: np.ndarray, roles: np.ndarray
) -> list[dict]:
    """Mistakes by their actual class's probability, and two mistakes of one kind.

    Args:
        first: (N, h, w), maps of the class that the network says.
        second: (N, h, w), of the actual class.
        probability: (N,), of the actual class.
        roles: (N, 2), both classes.
    """
    rows = []
    for low, high in zip(PROBABILITIES, PROBABILITIES[1:]):
        some = (probability > low) & (probability <= high)
        found = compare(first[some], second[some])["as it is"]
        name = f"its two classes, actual one {low} to {high}"
        rows.append({"comparison": name} | found | {"images": int(some.sum())})
    difference = first - second
    likeness = rank_correlation(difference, difference, every=True)
    one_kind = (roles[:, None] == roles).all(2)
    found = summary(likeness, one_kind & ~np.eye(len(roles), dtype=bool), ~one_kind)
    return [*rows, {"comparison": "difference maps: one kind, two kinds"} | found]


def load_twin(name: str, data: str, load: Callable[[str], PreActResNet]) -> PreActResNet | None:
    """Another training on the same data, where there is one."""
    twin = f"{data}-{TWINS[1] if name.endswith(TWINS[0]) else TWINS[0]}"
    try:
        return load(twin)
    except FileNotFoundError:
        return None


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Compare the maps of the networks that the table lacks, and print the table."""
    parser = argparse.ArgumentParser("python -m helpers.studies.likeness")
    parser.add_argument("networks", nargs="+", help="names or paths, as load_pretrained takes them")
    parser.add_argument("--data", default="auto", help="cifar10, shapes10 or a folder's path")
    parser.add_argument("--output", type=Path, help="the table, to write and to go on from")
    args = parser.parse_args(argv)
    data = load_dataset(args.data, train_size=1)

    def load(name: str) -> PreActResNet:
        return load_pretrained(name, data.classes).to(default_device())

    path = args.output or project_root() / "runs" / f"{data.name}-likeness.csv"
    rows = read_rows(path)
    for network in args.networks:
        name = Path(network).stem
        if name not in {row["network"] for row in rows}:
            model = load(network)
            found = rows_of(
                model, data.test, predict(model, data.test), load_twin(name, data.name, load)
            )
            rows += [{"network": name} | row for row in found]
            write_table(path, pd.DataFrame(rows))
    print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
