"""Uncertainty: Wilson's interval of a share, the bootstrap's of a mean, Student's t, Holm."""

from statistics import NormalDist

import numpy as np
import pandas as pd
import scipy  # loads scipy.stats at its first use, because that takes half a second
from numpy.typing import ArrayLike


def wilson_interval(correct: ArrayLike, total: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of a share (Wilson 1927), for one share or for many.

    Args:
        correct: hits, 0 to `total`.
        total: tries.

    Returns:
        Low and high end, 0 <= low <= correct / total <= high <= 1; NaN where there were no tries.
    """
    hits, tries = np.asarray(correct), np.asarray(total)
    z = NormalDist().inv_cdf(0.975)
    with np.errstate(invalid="ignore"):  # 0 / 0
        share = hits / tries
        centre = (hits + z**2 / 2) / (tries + z**2)
        half = z / (tries + z**2) * np.sqrt(share * (tries - hits) + z**2 / 4)
    # Rounding must not leave the share out: an error bar would be negative.
    return np.minimum(centre - half, share).clip(0), np.maximum(centre + half, share).clip(max=1)


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean, by the bootstrap's percentiles over 1,000 resamples.

    Args:
        values: (N,) one value for each image; NaNs are left out.

    Returns:
        Low and high end; NaN twice where no value is left.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    resampled = np.random.default_rng(0).choice(values, (1000, len(values)))
    low, high = np.percentile(resampled.mean(1), (2.5, 97.5))
    return float(low), float(high)


def mean_intervals(values: dict) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of each array, a row each.

    Args:
        values: {key: (N,)}; NaNs are left out.

    Returns:
        The columns mean, from and to; the index holds the keys.
    """
    rows = {key: (np.nanmean(array), *bootstrap_interval(array)) for key, array in values.items()}
    return pd.DataFrame(rows, ["mean", "from", "to"]).T


def hit_rates(hits: dict) -> pd.DataFrame:
    """Share of hits and its 95 % Wilson interval, a row each.

    Args:
        hits: {key: (N,) of 0s and 1s}.

    Returns:
        The columns mean, from and to; the index holds the keys.
    """
    rows = {key: (hit.mean(), *wilson_interval(hit.sum(), len(hit))) for key, hit in hits.items()}
    return pd.DataFrame(rows, ["mean", "from", "to"]).T


def student_half_width(standard_error, degrees_of_freedom):
    """Half the width of a 95 % interval by Student's t: scalars or arrays in, the same out."""
    return scipy.stats.t.ppf(0.975, degrees_of_freedom) * standard_error


def holm(p_values: pd.Series) -> pd.Series:
    """p-values corrected for their number.

    Holm 1979, Scandinavian Journal of Statistics 6, 65-70.
    """
    ordered = p_values.sort_values()
    factors = np.arange(len(p_values), 0, -1)
    return (ordered * factors).cummax().clip(upper=1).reindex(p_values.index)
