"""Are a mistake's two maps more alike, or less, than they would be by chance?

`python -m helpers.studies.likeness cifar10 cifar10-narrow-0 cifar10-narrow-1` compares maps of the
same image with maps of other images, for mistakes and for right predictions that are as close.
What the table has already is not made again. A network of the size of the one that ships takes
four minutes of two CPU cores. The network that ships for Shapes-10, whose objects lie anywhere and
not in the middle, is a positive control: `... shapes10 --data shapes10 --test-size 40000`.

Likeness is the correlation of two maps over their cells. Each row names its null:

- "another image": the second map is that of another image of the group, in the same role.
- "same two classes": and the other image is one of the same two classes.
- "patchwork": an image's maps are taken from as many different images, each from the same role, and
  the mean of all is subtracted, so that they add up to zero, as those of one image do.
- "patchwork, same two classes": and these images are of the same two classes.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from helpers.data import Dataset, load_dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.model import PreActResNet, dilated, load_pretrained
from helpers.similarity import all_maps, same_minus_other
from helpers.studies.covering import BLOCKS, groups, with_block_covered
from helpers.studies.runs import lacks, origin_of, read_rows, write_table
from helpers.support.command import one_line_errors
from helpers.support.device import default_device, to_device_of
from helpers.support.files import as_path, project_root
from helpers.support.intervals import mean_intervals

PATCHWORKS = 30  # of each image, averaged
FEWEST = 3  # images of the same two classes, to make a patchwork of
ROLES = ("first class", "second class")
TWINS = ("narrow-0", "narrow-1")  # other trainings on the same data: the positive control
KIND = np.array([1, 1000])  # makes one number of two classes
OTHER_ZERO = ", less the eight others"


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


def role_order(logits: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Each image's classes: its two (N, 2) first, then the others by their logit: (N, classes)."""
    hidden = logits.copy()
    np.put_along_axis(hidden, roles, -np.inf, axis=1)
    return np.concatenate([roles, np.argsort(-hidden, axis=1)[:, :-2]], axis=1)


def in_order(maps: Tensor, order: np.ndarray) -> np.ndarray:
    """Maps of all classes (N, classes, h, w) in an order for each image: (N, classes, cells)."""
    return np.take_along_axis(maps.flatten(2).double().numpy(), order[:, :, None], axis=1)


def correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each map of one set (N, cells) with each of the other (M, cells): (N, M)."""
    return np.corrcoef(first, second)[: len(first), len(first) :]


def two_maps(maps: np.ndarray, other_zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image's first two maps (N, cells), or both less the mean of its others.

    Args:
        maps: (N, classes, cells), as `in_roles` returns them.
        other_zero: whether to subtract.
    """
    zero = maps[:, 2:].mean(1) if other_zero else 0
    return maps[:, 0] - zero, maps[:, 1] - zero


def patchwork(maps: np.ndarray, kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image's maps but its first, exchanged for those of other images, and the mean taken off.

    Args:
        maps: (N, classes, cells).
        kinds: (N,): an image's maps come from images of its kind.
        rng: chooses the other images.

    Returns:
        (N, classes, cells); NaN where a kind has fewer than `FEWEST` images.
    """
    patched = np.full_like(maps, np.nan)
    for kind in np.unique(kinds):
        images = rng.permutation(np.flatnonzero(kinds == kind))
        if len(images) >= FEWEST:
            steps = [0, *rng.integers(1, len(images), maps.shape[1] - 1)]
            for place, step in enumerate(steps):
                patched[images, place] = maps[np.roll(images, step), place]
    return patched - patched.mean(1, keepdims=True)


def against_patchworks(maps: np.ndarray, kinds: np.ndarray, other_zero: bool) -> dict[str, float]:
    """How alike an image's first two maps are, and how alike those of patchworks."""

    def likeness(of: np.ndarray) -> np.ndarray:
        first, second = (one - one.mean(1, keepdims=True) for one in two_maps(of, other_zero))
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return (first * second).sum(1) / lengths

    rng = np.random.default_rng(0)
    other = np.mean([likeness(patchwork(maps, kinds, rng)) for _ in range(PATCHWORKS)], axis=0)
    same = np.where(np.isnan(other), np.nan, likeness(maps))
    found = mean_intervals({"difference": same - other}).loc["difference"]
    means = {"images": int((~np.isnan(other)).sum()), "same": np.nanmean(same)}
    return rounded(means | {"other": np.nanmean(other)} | summary_of(found))


def summary_of(row: pd.Series) -> dict[str, float]:
    """A row of a table of intervals, its mean named difference."""
    return row.rename({"mean": "difference"}).to_dict()


def rounded(found: dict) -> dict[str, float]:
    """The numbers of a row to four digits."""
    return {name: round(value, 4) for name, value in found.items()}


def against_others(values: np.ndarray, other: np.ndarray | None = None, **masks) -> dict:
    """`same_minus_other` in a row: means on the same image and on another, and their difference."""
    partners = ~np.eye(len(values), dtype=bool) if other is None else other
    table = same_minus_other(values, other=partners, **masks)
    means = {"same": table["mean"]["same"], "other": table["mean"]["other"]}
    counted = {"images": int(partners.any(1).sum())}
    return rounded(counted | means | summary_of(table.loc["difference"]))


def against_all_nulls(name: str, maps: np.ndarray, roles: np.ndarray) -> list[dict]:
    """An image's two maps against each null, for both zeros.

    Args:
        name: of the comparison.
        maps: (N, classes, cells), as `in_roles` returns them.
        roles: (N, 2) classes.
    """
    rows = []
    kinds = roles @ KIND
    for other_zero, ending in ((False, ""), (True, OTHER_ZERO)):
        likeness = correlation(*two_maps(maps, other_zero))
        found = {
            "another image": against_others(likeness),
            "same two classes": against_others(likeness, same_kind(kinds)),
            "patchwork": against_patchworks(maps, 0 * kinds, other_zero),
            "patchwork, same two classes": against_patchworks(maps, kinds, other_zero),
        }
        rows += [{"comparison": name + ending, "null": null} | of for null, of in found.items()]
    return rows


def against_others_in(
    name: str, first: np.ndarray, second: np.ndarray, roles: np.ndarray
) -> list[dict]:
    """One set of maps (N, cells) with another: any other image, or one whose classes are the same.

    Args:
        name: of the comparison.
        first: maps (N, cells).
        second: maps (N, cells).
        roles: (N, 2) classes.
    """
    nulls = {
        "another image": None,
        "same two classes": same_kind(roles @ KIND),
        "same second class": same_kind(roles[:, 1]),
    }
    likeness = correlation(first, second)
    return [
        {"comparison": name, "null": null} | against_others(likeness, other)
        for null, other in nulls.items()
    ]


def same_kind(kinds: np.ndarray) -> np.ndarray:
    """Which pairs of two different images are of one kind: (N, N) bool."""
    return (kinds[:, None] == kinds) & ~np.eye(len(kinds), dtype=bool)


def top_cells(drops: np.ndarray) -> np.ndarray:
    """The cell that holds most for each of an image's two classes: (2, N).

    That is where this class falls most behind the mean of the image's eight others.

    Args:
        drops: (N, classes, 16) occlusion maps, as `in_order` returns them.
    """
    return (drops[:, :2] - drops[:, 2:].mean(1, keepdims=True)).argmax(2).T


def beneath_the_top_cell(drops: np.ndarray, roles: np.ndarray, of: int = 0) -> list[dict]:
    """What covering the top cell of one of the two classes does to the logits.

    The null covers another image's cell.

    Args:
        drops: as `top_cells` takes them.
        roles: (N, 2) classes.
        of: whose cell is covered, the first class's (0) or the second's (1).
    """
    others = drops[:, 2:].mean(1)
    top = top_cells(drops)[of]
    rises = {name: -drops[:, i] for i, name in enumerate(ROLES)} | {"eight others": -others}
    rises[f"{ROLES[1 - of]} less the others"] = others - drops[:, 1 - of]
    nulls = {"another image": None, "same two classes": same_kind(roles @ KIND)}
    return [
        {"comparison": f"top cell of {ROLES[of]} covered, rise of {name}", "null": null}
        | against_others(rise[:, top], other)
        for name, rise in rises.items()
        for null, other in nulls.items()
    ]


def likeness_of_classes(maps: np.ndarray) -> np.ndarray:
    """Mean correlation of the maps (N, classes, cells) of each pair of classes: (pairs,)."""
    pairs = np.triu_indices(maps.shape[1], 1)
    return np.mean([np.corrcoef(of_image)[pairs] for of_image in maps], axis=0)


def likeness_of_weights(model: PreActResNet) -> np.ndarray:
    """Correlation of two classes' weights in `fc`, for each pair of classes (pairs,)."""
    return np.corrcoef(model.fc.weight.detach().cpu())[np.triu_indices(model.fc.out_features, 1)]


def by_most_frequent_pair(maps: np.ndarray, roles: np.ndarray) -> list[dict]:
    """How alike the maps of the two classes are that are most often an image's two.

    Args:
        maps: (N, classes, cells), in the order of the classes.
        roles: (N, 2) classes.
    """
    pairs, counts = np.unique(np.sort(roles, axis=1), axis=0, return_counts=True)
    pair = pairs[counts.argmax()]
    likeness = np.array([np.corrcoef(of_image[pair])[0, 1] for of_image in maps])
    of_pair = np.isin(roles, pair).sum(1)
    rows = []
    for number, name in ((2, "both"), (1, "one"), (0, "neither")):
        some = likeness[of_pair == number]
        found = mean_intervals({"same": some}).loc["same"].rename({"mean": "same"})
        name = f"the pair confused most, images of {name}"
        rows.append({"comparison": name, "images": len(some)} | rounded(found.to_dict()))
    return rows


def rows_of_group(
    model: PreActResNet,
    images: Tensor,
    logits: np.ndarray,
    roles: np.ndarray,
    twin: PreActResNet | None,
) -> list[dict]:
    """The rows of one group of images.

    Args:
        model: whose maps are compared.
        images: (N, 3, H, W) in [0, 1].
        logits: (N, classes), the model's.
        roles: (N, 2), the two classes of each image.
        twin: another training, for the positive control.
    """
    order = role_order(logits, roles)
    of_classes = all_maps(GradCAM(model), images, len(logits[0]))
    maps = in_order(of_classes, order)
    fine = in_order(all_maps(GradCAM(dilated(model)), images, len(logits[0])), order)
    drops = in_order(occlusion_maps(model, images), order)
    rows = against_all_nulls("its two classes", maps, roles)
    rows += against_all_nulls("its two classes, occlusion", drops, roles)
    rows += against_all_nulls("its two classes, 8 x 8", fine, roles)
    rows += beneath_the_top_cell(drops, roles) + beneath_the_top_cell(drops, roles, of=1)
    first, second = top_cells(drops)
    row = {"comparison": "its two top cells are the same", "null": "another image"}
    rows.append(row | against_others((first[:, None] == second).astype(float)))
    differences = maps[:, 0] - maps[:, 1], drops[:, 0] - drops[:, 1]
    rows += against_others_in("difference map and occlusion's", *differences, roles)
    if twin is not None:
        one, other = (GradCAM(net).evidence(images, roles[:, 1]) for net in (model, twin))
        of_class = one.flatten(1).numpy(), other.flatten(1).numpy()
        rows += against_others_in("one class, two trainings", *of_class, roles)
    unordered = of_classes.flatten(2).numpy()
    r = np.corrcoef(likeness_of_classes(unordered), likeness_of_weights(model))[0, 1]
    rows.append({"comparison": "pairs of classes: maps and weights", "same": round(r, 4)})
    return rows + by_most_frequent_pair(unordered, roles)


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
        images, logits = dataset.tensor(indices), predictions.logits[indices]
        found = rows_of_group(model, images, logits, roles, twin)
        rows += [{"group": group, "images": len(images)} | row for row in found]
    return rows


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
    parser.add_argument("--test-size", type=int, help="test images to use; all, if not given")
    parser.add_argument("--output", type=as_path, help="the table, to write and to go on from")
    args = parser.parse_args(argv)
    data = load_dataset(args.data, train_size=1, test_size=args.test_size)

    def load(name: str) -> PreActResNet:
        return load_pretrained(name, data.classes).to(default_device())

    path = args.output or project_root() / "runs" / f"{data.name}-likeness.csv"
    rows = read_rows(path)
    for network in args.networks:
        name = Path(network).stem
        model = load(network)
        origin = origin_of(name, model, data.test)
        if lacks(rows, origin, path):
            found = rows_of(
                model, data.test, predict(model, data.test), load_twin(name, data.name, load)
            )
            rows += [origin | row for row in found]
            write_table(path, pd.DataFrame(rows))
    print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
