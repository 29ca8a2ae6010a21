"""Compare maps with maps: how similar are two, and is that due to the image or to all images?

`derangement` deals maps out to other images, as a null.
"""

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor

from helpers.gradcam import GradCAM


def rank_correlation(first: Tensor, second: Tensor, every: bool = False) -> np.ndarray:
    """Spearman's rank correlation of two maps over their cells.

    Args:
        first: (N, h, w).
        second: (N, h, w); with `every`, (M, h, w).
        every: compare each map of the first set with each of the second, instead of the maps of the
            same number.

    Returns:
        (N,), or (N, M) with `every`, in [-1, 1]. 1: the cells have the same order, -1: the opposite
        order, 0: the orders are unrelated. NaN where a map is constant and so has no order.

    Raises:
        ValueError: a cell is NaN.
    """
    first_ranks, second_ranks = _unit_ranks(first), _unit_ranks(second)
    if every:
        return first_ranks @ second_ranks.T
    return (first_ranks * second_ranks).sum(1)


def _unit_ranks(maps: Tensor) -> np.ndarray:
    """Ranks of each map's cells, centred and scaled to length 1: (N, h, w) -> (N, h * w)."""
    cells = maps.detach().float().cpu().flatten(1).numpy()
    if np.isnan(cells).any():
        raise ValueError(
            "a map holds NaN, which would be ranked like a number: look for NaNs in the network's "
            "weights and in the image"
        )
    ranks = rankdata(cells, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a constant map: 0 / 0 is NaN
        return ranks / np.linalg.norm(ranks, axis=1, keepdims=True)


def same_minus_other(similarities: np.ndarray, other: np.ndarray | None = None) -> pd.DataFrame:
    """Are two maps of the same image more similar than two maps of different images?

    Maps of different images may be similar too, since all images may share a pattern. What the
    image itself contributes is the difference between the two.

    The intervals are the bootstrap's: percentiles of 1,000 resamples of the images. A resample
    takes an image for both places of a pair, the row and the column, because pairs that share an
    image are not independent.

    Args:
        similarities: (N, N), of each map of one set with each map of another, as
            `rank_correlation(..., every=True)` returns them. NaNs are left out.
        other: (N, N) bool, which pairs count as "other"; by default all but the diagonal, which
            counts as "same".

    Returns:
        The rows "same", "other" and "difference"; the columns mean, from and to (the ends of the
        mean's 95 % interval). A mean is taken over the partners of each image, then over the images
        that have partners of both kinds.
    """
    count = len(similarities)
    is_known = ~np.isnan(similarities)
    values = np.nan_to_num(similarities)
    is_same = is_known & np.eye(count, dtype=bool)
    is_other = is_known & (~np.eye(count, dtype=bool) if other is None else other)
    # How often each image occurs: once in the sample itself, the first row, then in each resample.
    resamples = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 1000)
    times = np.vstack([np.ones(count), resamples])

    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: an image without partners
        same_means = _partner_means(values, is_same, times)
        other_means = _partner_means(values, is_other, times)
        times = np.where(np.isnan(same_means + other_means), 0, times)
        means = {
            "same": np.nansum(times * same_means, axis=1) / times.sum(1),
            "other": np.nansum(times * other_means, axis=1) / times.sum(1),
        }
    means["difference"] = means["same"] - means["other"]
    rows = {name: (x[0], *np.nanpercentile(x[1:], (2.5, 97.5))) for name, x in means.items()}
    return pd.DataFrame(rows, ["mean", "from", "to"]).T


def _partner_means(values: np.ndarray, pairs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean value of each image over its partners, in each resample.

    Args:
        values: (N, N).
        pairs: (N, N) bool, which pairs are partners.
        times: (resamples, N), how often each image occurs.

    Returns:
        (resamples, N); NaN for an image without partners.
    """
    return times @ (pairs * values).T / (times @ pairs.T)


def all_maps(explain: GradCAM, images: Tensor, num_classes: int, batch_size: int = 100) -> Tensor:
    """Raw maps of every class, in batches that fit in memory.

    Args:
        explain: computes the maps.
        images: (N, 3, H, W) in [0, 1].
        num_classes: of the network.
        batch_size: images explained at once.

    Returns:
        (N, num_classes, h, w).
    """
    classes = torch.arange(num_classes)
    batches = images.split(batch_size)
    return torch.cat([explain.evidence(part, classes.expand(len(part), -1)) for part in batches])


def derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """Assign to each of `count` images another one, so that each is assigned once.

    Args:
        count: at least 2.
        rng: of the random draws.

    Returns:
        (count,) indices, none at its own place.
    """
    shuffled = rng.permutation(count)
    others = np.empty_like(shuffled)
    others[shuffled] = np.roll(shuffled, 1)
    return others
