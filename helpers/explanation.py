"""Measure heatmaps: how alike two maps are, and what other scores than the logit would have shown."""

import numpy as np
import torch
from scipy.stats import rankdata


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Spearman's correlation of two maps over their cells, image by image: (N, h, w) twice -> (N,) in [-1, 1].

    1: the same order of cells, -1: the opposite one, 0: unrelated. A constant map has no order and gives NaN.
    """
    ranks = [rankdata(_cells(maps), axis=1) for maps in (first, second)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def top_overlap(first: torch.Tensor, second: torch.Tensor, count: int = 4) -> np.ndarray:
    """Intersection over union of the `count` strongest cells of two maps: (N, h, w) twice -> (N,) in [0, 1].

    Two independent maps of 16 cells score 0.158 on average with four cells each.
    """
    a, b = (np.argsort(np.argsort(-_cells(maps), axis=1, kind="stable"), axis=1) < count for maps in (first, second))
    return (a & b).sum(1) / (a | b).sum(1)


def compare(first: torch.Tensor, second: torch.Tensor) -> dict[str, float]:
    """How alike the maps of two sets are, (N, h, w) twice: median rank correlation, its 95 % interval, mean top-4 overlap."""
    correlation = rank_correlation(first, second)
    low, high = interval(correlation)
    overlap = float(top_overlap(first, second).mean())
    return {"Spearman, median": float(np.nanmedian(correlation)), "95 % from": low, "to": high, "top-4 overlap, mean": overlap}


def centred(maps: torch.Tensor) -> torch.Tensor:
    """Maps of all classes (N, num_classes, h, w) less their mean over classes.

    Adding one vector to the weights of every class changes no prediction but moves every map; this takes it out again.
    """
    return maps - maps.mean(dim=1, keepdim=True)


def log_softmax_maps(maps: torch.Tensor, probabilities) -> torch.Tensor:
    """Grad-CAM maps of the log-probabilities, from those of all logits (N, num_classes, h, w).

    d log p_c = d z_c - sum_k p_k d z_k, and a map is linear in the gradient. So sum_c p_c map_c is 0 in every cell, whatever the
    network: where two classes share the probability, the map of one is the negative of the other's, scaled.
    """
    p = torch.as_tensor(probabilities, dtype=maps.dtype)[:, :, None, None]
    return maps - (p * maps).sum(dim=1, keepdim=True)


def of_class(maps: torch.Tensor, classes) -> torch.Tensor:
    """Pick one class's map for each image: (N, num_classes, h, w) and (N,) -> (N, h, w)."""
    return maps[torch.arange(len(maps)), torch.as_tensor(classes)]


def interval(values: np.ndarray, statistic=np.median, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentile method, 1,000 resamples of the images) of a statistic; NaNs are left out."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    resampled = np.random.default_rng(seed).choice(values, (1000, len(values)))
    low, high = np.percentile(statistic(resampled, axis=1), (2.5, 97.5))
    return float(low), float(high)


def _cells(maps: torch.Tensor) -> np.ndarray:
    return maps.detach().float().cpu().flatten(1).numpy()
