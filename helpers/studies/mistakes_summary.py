"""What the study of the mistakes compares, and how far its arms move the heatmaps."""

from dataclasses import dataclass
from enum import Enum
from itertools import permutations, product

import numpy as np
import pandas as pd
import torch
from scipy import stats

from helpers.similarity import rank_correlation
from helpers.support.intervals import holm, student_half_width

# The classes of CIFAR-10 that the older write-up found weak.
WEAK = ("bird", "cat", "deer", "dog", "frog")


class Arm(str, Enum):  # noqa: UP042 (Python 3.10 has no StrEnum)
    """The recipe and what is compared with it, as the tables' column `variant` names them."""

    RECIPE = "the recipe"
    CLASS_WEIGHTS = "class weights"
    STRONGER_FOR_WEAK = "stronger for the weak"
    BOTH = "both"
    STRONGER_FOR_ALL = "stronger for all"
    LOGIT_SHIFT = "logit shift"

    def __str__(self) -> str:
        return self.value


# A logit shift has no network of its own: it is added to what the recipe's puts out.
TRAINED: list[Arm] = [arm for arm in Arm if arm is not Arm.LOGIT_SHIFT]
TAKEN_FOR_WEAK = "others taken for the weak"  # the column of `mistakes.taken_for_weak`

NEIGHBOURS = 5  # images of the same class that an image is compared with


@dataclass(frozen=True)
class Outcomes:
    """What the networks of S seeds of each trained arm say of the same N validation images.

    Attributes:
        labels: (N,) actual classes.
        correct: {arm: (S, N) bool}, which images are right.
        log_probabilities: (S, N), of the actual class, by the recipe's networks.
        maps: {arm: (S, N, h, w)}, raw maps of the actual class.
    """

    labels: np.ndarray
    correct: dict[Arm, np.ndarray]
    log_probabilities: np.ndarray
    maps: dict[Arm, torch.Tensor]


def changed_maps(outcomes: Outcomes) -> pd.DataFrame:
    """How far do the maps move of images that an arm corrects, or breaks, and of others like them?

    Before: the recipe's network of one seed. After: the arm's network of another seed; and, as the
    null, the recipe's network of that seed. Which images an arm corrects is decided by the networks
    of the remaining seeds, so that chance in the networks compared does not choose the images:
    those that at least half of the seeds get right with the arm and not with the recipe, on
    balance; broken are the reverse. An arm moves the maps of all images, so these are compared with
    others of their class, right equally often with arm and recipe, that are nearest in the actual
    class's probability before and in the null.

    Args:
        outcomes: of at least three seeds; of fewer there is no remaining seed, and no row.

    Returns:
        A row for each arm, before, after and group. Columns:

        - before, after (seeds), arm, group ("corrected" or "broken"), images (their number);
        - gain: share right with the arm less that with the recipe, of the seed after;
        - moved: how much more like the map before the arm's map is than the null's, below 0 where
          it is less like it;
        - matched: the same for the images like these, at most NEIGHBOURS for each;
        - planted: `moved` where every second image has the map after of the nearest image like it:
          a change that is known to be there.

        Groups of fewer than two images are left out, because they have no other image, and so are
        groups of which a class has no image to match.
    """
    seeds = range(len(outcomes.log_probabilities))
    rows = []
    for arm, (before, after) in product(TRAINED[1:], permutations(seeds, 2)):
        gained = _gained(outcomes, arm, (before, after))
        unchanged = np.flatnonzero(gained == 0)
        points = outcomes.log_probabilities[[before, after]].T
        groups = {"corrected": gained >= 0.5, "broken": gained <= -0.5}
        for group, is_chosen in groups.items():
            chosen = np.flatnonzero(is_chosen)
            matched = nearest_of_class(points, outcomes.labels, chosen, unchanged)
            if len(chosen) > 1 and matched.size:
                row = {"before": before, "after": after, "arm": str(arm), "group": group}
                rows.append(row | _map_scores(outcomes, arm, (before, after), chosen, matched))
    return pd.DataFrame(rows)


def _gained(outcomes: Outcomes, arm: Arm, without: tuple[int, int]) -> np.ndarray:
    """Share of seeds, less these two, in which the arm and not the recipe is right, on balance."""
    seeds = range(len(outcomes.log_probabilities))
    others = [seed for seed in seeds if seed not in without]
    with_arm = outcomes.correct[arm][others].astype(int)
    with_recipe = outcomes.correct[Arm.RECIPE][others]
    return (with_arm - with_recipe).sum(axis=0) / max(len(others), 1)


def nearest_of_class(
    points: np.ndarray, labels: np.ndarray, chosen: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    """For each chosen image the nearest candidates of its class.

    Args:
        points: (N, dimensions), where the images lie.
        labels: (N,) classes.
        chosen: (n,) indices of images.
        candidates: (m,) indices of images.

    Returns:
        (n, k) indices, the nearest first. k is NEIGHBOURS, or the fewest candidates that any class
        among the chosen has.
    """
    distances = np.linalg.norm(points[chosen][:, None] - points[candidates], axis=2)
    distances[labels[chosen][:, None] != labels[candidates]] = np.inf
    count = np.isfinite(distances).sum(axis=1).min(initial=NEIGHBOURS)
    return candidates[distances.argsort(axis=1, kind="stable")[:, :count]]


def _map_scores(
    outcomes: Outcomes, arm: Arm, pair: tuple[int, int], chosen: np.ndarray, matched: np.ndarray
) -> dict[str, float]:
    """The columns of `changed_maps` from images on; of images (n,) and their matches (n, k)."""
    before, after = pair
    maps_before = outcomes.maps[Arm.RECIPE][before]
    maps_of_null = outcomes.maps[Arm.RECIPE][after]
    maps_of_arm = outcomes.maps[arm][after]
    null = rank_correlation(maps_before, maps_of_null)
    moved = rank_correlation(maps_before, maps_of_arm) - null
    nearest = matched[:, 0]
    swapped = rank_correlation(maps_before[chosen], maps_of_arm[nearest]) - null[chosen]
    is_swapped = np.arange(len(chosen)) % 2 == 0
    right_with_arm = outcomes.correct[arm][after, chosen]
    right_with_recipe = outcomes.correct[Arm.RECIPE][after, chosen]
    return {
        "images": len(chosen),
        "gain": right_with_arm.mean() - right_with_recipe.mean(),
        "moved": np.nanmean(moved[chosen]),
        "matched": np.nanmean(moved[matched]),
        "planted": np.nanmean(np.where(is_swapped, swapped, moved[chosen])),
    }


def summarise_maps(table: pd.DataFrame) -> pd.DataFrame:
    """`changed_maps` in a row for each arm and group.

    All of it holds for these images: they are not drawn again.

    Args:
        table: as `changed_maps` returns it.

    Returns:
        The rows (arm, group). Columns: images, their mean number; gain, moved, matched and excess,
        means over pairs of seeds, weighed by their images; from and to, the 95 % interval of
        excess; p, of no excess; corrected, p by Holm's method over all rows. excess is moved less
        matched, below 0 where the arm moves the evidence of these images further than that of like
        ones.
    """
    table = table.assign(excess=table["moved"] - table["matched"])
    scores = ["gain", "moved", "matched", "excess"]
    rows = {}
    for name, pairs in table.groupby(["arm", "group"]):
        means = _weighted_means(pairs, scores)
        excess = means["excess"]
        # Over seeds, and not over pairs, because pairs share networks.
        seeds = pairs["before"].unique()
        parts = [pairs[(pairs[["before", "after"]] != seed).all(axis=1)] for seed in seeds]
        jackknifed = [_weighted_means(part, scores)["excess"] for part in parts if len(part)]
        degrees_of_freedom = len(jackknifed) - 1
        error = degrees_of_freedom * stats.sem(jackknifed)
        half_width = student_half_width(error, degrees_of_freedom)
        rows[name] = {
            "images": pairs["images"].mean(),
            **means,
            "from": excess - half_width,
            "to": excess + half_width,
            "p": 2 * stats.t.sf(abs(excess / error), degrees_of_freedom),
        }
    found = pd.DataFrame(rows).T
    return found.assign(corrected=holm(found["p"]))


def _weighted_means(pairs: pd.DataFrame, scores: list[str]) -> dict[str, float]:
    means = np.average(pairs[scores], axis=0, weights=pairs["images"])
    return dict(zip(scores, means))
