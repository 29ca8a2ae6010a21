"""Uncertainty: Wilson's interval of a share, the bootstrap's of a mean, Student's t, Holm."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy  # loads scipy.stats at its first use, because that takes half a second


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a proportion (Wilson 1927), by `scipy.stats.binomtest`.

    Args:
        correct: hits, 0 to `total`.
        total: tries, at least 1.
        confidence: 0 to 1.

    Returns:
        Low and high end, both in [0, 1].
    """
    found = scipy.stats.binomtest(int(correct), int(total)).proportion_ci(confidence, "wilson")
    share = correct / total  # rounding must not leave it out: an error bar would be negative
    return min(float(found.low), share), max(float(found.high), share)


def bootstrap_interval(
    values: np.ndarray, statistic: Callable = np.median, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a statistic, by the bootstrap's percentiles over 1,000 resamples.

    Args:
        values: (N,) one value for each image; NaNs are left out.
        statistic: takes an array and `axis`, as `np.mean` does.
        seed: of the resampling.

    Returns:
        Low and high end; NaN twice where no value is left.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    resampled = np.random.default_rng(seed).choice(values, (1000, len(values)))
    low, high = np.percentile(statistic(resampled, axis=1), (2.5, 97.5))
    return float(low), float(high)


def mean_intervals(values: dict) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of each array, a row each.

    Args:
        values: {key: (N,)}; NaNs are left out.

    Returns:
        The columns mean, from and to; the index holds the keys.
    """
    rows = {
        key: (np.nanmean(array), *bootstrap_interval(array, np.mean))
        for key, array in values.items()
    }
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
