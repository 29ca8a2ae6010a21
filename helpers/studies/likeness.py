"""Are a mistake's two maps more alike, or less, than they would be by chance?

`python -m helpers.studies.likeness --networks cifar10 cifar10-narrow-0 cifar10-narrow-1` compares
maps of the same image with maps of other images, for mistakes and for right predictions that are as
close. A network of the size of the one that ships takes four minutes of two CPU cores. The network
that ships for Shapes-10, whose objects lie anywhere and not in the middle, is a positive control:
`--data shapes10 --test-size 40000`.

Likeness is the correlation of two maps over their cells. Each row names its null:

- "another image": the second map is that of another image of the group, in the same role.
- "same two classes": and the other image is one of the same two classes.
- "patchwork": an image's maps are taken from as many different images, each from the same role, and
  the mean of all is subtracted, so that they add up to zero, as those of one image do.
- "patchwork, same two classes": and these images are of the same two classes.
"""

import numpy as np
import pandas as pd
from torch import Tensor

from helpers.data import Dataset
from helpers.evaluation import predict
from helpers.gradcam import GradCAM
from helpers.model import PreActResNet
from helpers.similarity import all_maps, same_minus_other
from helpers.studies.covering import BLOCKS, logits_when_covered, mistakes_and_close_calls
from helpers.studies.networks import logits_of, network_parser, write_rows
from helpers.support.intervals import mean_intervals

PATCHWORKS = 30  # of each image, averaged
FEWEST = 3  # images of the same two classes, to make a patchwork of
GAIN = "top cell of {} class covered, rise of {} class less the others"
Rows = dict[tuple[str, str], dict[str, float]]  # {(comparison, null): {column: value}}


def occlusion_maps(model: PreActResNet, images: Tensor) -> Tensor:
    """By how much each class's logit falls when a block is covered: (N, num_classes, 4, 4)."""
    covered = logits_when_covered(model, images, model.mean.cpu())
    drops = logits_of(model, images)[:, :, None] - covered
    return drops.unflatten(2, (BLOCKS, BLOCKS))


def role_order(logits: np.ndarray, roles: np.ndarray) -> np.ndarray:
    """Each image's classes: its two (N, 2) first, then the others by their logit: (N, classes)."""
    hidden = logits.copy()
    np.put_along_axis(hidden, roles, -np.inf, axis=1)
    return np.concatenate([roles, np.argsort(-hidden, axis=1)[:, :-2]], axis=1)


def in_order(maps: Tensor, order: np.ndarray) -> np.ndarray:
    """Maps of all classes (N, classes, h, w) in an order for each image: (N, classes, cells)."""
    return np.take_along_axis(maps.flatten(2).double().numpy(), order[:, :, None], axis=1)


def two_maps(maps: np.ndarray, other_zero: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image's first two maps (N, cells), or both less the mean of its others.

    Args:
        maps: (N, classes, cells), in the order of `role_order`.
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


def in_a_row(table: pd.DataFrame, images: np.integer) -> dict[str, float]:
    """The means and the interval of a table like `same_minus_other`'s, over so many images."""
    ends = table.loc["difference", ["from", "to"]]
    return {"images": int(images), **table["mean"], **ends}


def against_patchworks(maps: np.ndarray, kinds: np.ndarray, other_zero: bool) -> dict[str, float]:
    """How alike an image's first two maps are, and how alike those of patchworks."""

    def likeness(of: np.ndarray) -> np.ndarray:
        first, second = (one - one.mean(1, keepdims=True) for one in two_maps(of, other_zero))
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
        return (first * second).sum(1) / lengths

    rng = np.random.default_rng(0)
    other = np.mean([likeness(patchwork(maps, kinds, rng)) for _ in range(PATCHWORKS)], axis=0)
    same = np.where(np.isnan(other), np.nan, likeness(maps))
    table = mean_intervals({"same": same, "other": other, "difference": same - other})
    return in_a_row(table, (~np.isnan(other)).sum())


def against_others(values: np.ndarray, partners: np.ndarray) -> dict[str, float]:
    """Values of the same image (the diagonal), and those of its partners.

    Args:
        values: (N, N), of each image with each.
        partners: (N, N) bool.
    """
    return in_a_row(same_minus_other(values, other=partners), partners.any(1).sum())


def same_kind(kinds: np.ndarray) -> np.ndarray:
    """Which pairs of two different images are of one kind: (N, N) bool."""
    return (kinds[:, None] == kinds) & ~np.eye(len(kinds), dtype=bool)


def against_all_nulls(name: str, maps: np.ndarray, kinds: np.ndarray) -> Rows:
    """An image's two maps against each null, for both zeros.

    Args:
        name: of the comparison.
        maps: (N, classes, cells), in the order of `role_order`.
        kinds: (N,), the same for images of the same two classes.
    """
    rows: Rows = {}
    anything = np.zeros_like(kinds)
    for other_zero, ending in ((False, ""), (True, ", less the eight others")):
        first, second = two_maps(maps, other_zero)
        likeness = np.corrcoef(first, second)[: len(first), len(first) :]
        of_nulls = {
            "another image": against_others(likeness, same_kind(anything)),
            "same two classes": against_others(likeness, same_kind(kinds)),
            "patchwork": against_patchworks(maps, anything, other_zero),
            "patchwork, same two classes": against_patchworks(maps, kinds, other_zero),
        }
        rows |= {(name + ending, null): row for null, row in of_nulls.items()}
    return rows


def top_cells(drops: np.ndarray) -> np.ndarray:
    """The cell that holds most for each of an image's two classes: (2, N).

    That is where this class falls most behind the mean of the image's eight others.

    Args:
        drops: (N, classes, 16) occlusion maps, as `in_order` returns them.
    """
    return (drops[:, :2] - drops[:, 2:].mean(1, keepdims=True)).argmax(2).T


def gain_at_top_cell(drops: np.ndarray, of: int) -> dict[str, float]:
    """What a class gains over the eight others when the top cell of the other class is covered.

    The null covers another image's cell.

    Args:
        drops: as `top_cells` takes them.
        of: whose cell is covered, the first class's (0) or the second's (1).
    """
    gain = drops[:, 2:].mean(1) - drops[:, 1 - of]
    return against_others(gain[:, top_cells(drops)[of]], same_kind(np.zeros(len(drops))))


def by_most_frequent_pair(maps: np.ndarray, roles: np.ndarray) -> Rows:
    """How alike the maps of the two classes are that are most often an image's two.

    Args:
        maps: (N, classes, cells), in the order of the classes.
        roles: (N, 2) classes.
    """
    pairs, counts = np.unique(np.sort(roles, axis=1), axis=0, return_counts=True)
    pair = pairs[counts.argmax()]
    likeness = np.array([np.corrcoef(of_image[pair])[0, 1] for of_image in maps])
    of_pair = np.isin(roles, pair).sum(1)
    rows: Rows = {}
    for number, name in ((2, "both"), (1, "one"), (0, "neither")):
        some = likeness[of_pair == number]
        found = mean_intervals({"same": some}).loc["same"].rename({"mean": "same"})
        rows[f"the pair confused most, images of {name}", ""] = {"images": len(some), **found}
    return rows


def rows_of_group(
    model: PreActResNet, images: Tensor, logits: np.ndarray, roles: np.ndarray
) -> pd.DataFrame:
    """The rows of one group of images.

    Args:
        model: whose maps are compared.
        images: (N, 3, H, W) in [0, 1].
        logits: (N, classes), the model's.
        roles: (N, 2), the two classes of each image.
    """
    order, kinds = role_order(logits, roles), roles @ [1, 1000]
    of_classes = all_maps(GradCAM(model), images, len(logits[0]))
    drops = in_order(occlusion_maps(model, images), order)
    first, second = top_cells(drops)
    same_cell = (first[:, None] == second).astype(float)
    others = "another image"
    rows = {
        **against_all_nulls("its two classes", in_order(of_classes, order), kinds),
        **against_all_nulls("its two classes, occlusion", drops, kinds),
        (GAIN.format("first", "second"), others): gain_at_top_cell(drops, of=0),
        (GAIN.format("second", "first"), others): gain_at_top_cell(drops, of=1),
        ("its two top cells are the same", others): against_others(same_cell, same_kind(0 * kinds)),
        **by_most_frequent_pair(of_classes.flatten(2).numpy(), roles),
    }
    return pd.DataFrame(rows).T.rename_axis(["comparison", "null"]).reset_index()


def compare(model: PreActResNet, test: Dataset) -> pd.DataFrame:
    """The rows of one network, for its mistakes and for right predictions that are as close."""
    predictions = predict(model, test)
    tables = {
        group: rows_of_group(model, test.tensor(indices), predictions.logits[indices], roles)
        for group, (indices, roles) in mistakes_and_close_calls(predictions).items()
    }
    table = pd.concat(tables, names=["group"]).reset_index("group")
    return table.astype({"images": int})


def main(argv: list[str] | None = None) -> None:
    """Compare the maps of each network, and write the table."""
    write_rows(network_parser("likeness").parse_args(argv), "likeness", compare)


if __name__ == "__main__":
    main()
