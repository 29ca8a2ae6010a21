import numpy as np
import pytest
from scipy.stats import binomtest, norm

from helpers.support.intervals import (
    bootstrap_interval,
    hit_rates,
    mean_intervals,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total"), [(9200, 10000), (1, 7), (0, 20), (20, 20), (851, 10000)]
)
def test_ends_of_wilsons_interval_solve_wilsons_equation(correct, total):
    """(p - x)^2 = z^2 x (1 - x) / n, one root on either side of p."""
    share, z = correct / total, norm.ppf(0.975)
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / total, abs=1e-12)


def test_wilsons_interval_holds_its_own_share_whatever_is_counted():
    for total in range(1, 301):
        correct = np.arange(total + 1)
        low, high = wilson_interval(correct, total)
        assert ((0 <= low) & (low <= correct / total)).all(), total
        assert ((correct / total <= high) & (high <= 1)).all(), total


@pytest.mark.parametrize("correct", [0, 3, 17, 99, 100])
def test_wilsons_interval_is_scipys(correct):
    found = binomtest(correct, 100).proportion_ci(0.95, "wilson")
    assert wilson_interval(correct, 100) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_wilsons_interval_of_nothing_is_nan_without_a_warning():
    low, high = wilson_interval([0, 1], [0, 2])
    assert np.isnan(low[0]) and np.isnan(high[0]) and low[1] < 0.5 < high[1]


def test_wilsons_interval_of_known_numbers():
    assert wilson_interval(9200, 10000) == pytest.approx((0.9145, 0.9252), abs=5e-5)


def test_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, 400)
    half = 1.96 * values.std() / 20
    expected = (values.mean() - half, values.mean() + half)
    assert bootstrap_interval(values) == pytest.approx(expected, abs=0.1 * half)


def test_ends_of_bootstrap_intervals_lie_1_96_standard_errors_from_the_mean():
    samples = np.random.default_rng(2).normal(size=(40, 300))
    errors = samples.std(axis=1) / np.sqrt(300)
    low, high = np.array([bootstrap_interval(sample) for sample in samples]).T
    means = samples.mean(axis=1)
    assert ((means - low) / errors).mean() == pytest.approx(1.96, abs=0.06)
    assert ((high - means) / errors).mean() == pytest.approx(1.96, abs=0.06)


def test_bootstrap_interval_covers_the_true_mean_19_times_in_20():
    samples = np.random.default_rng(0).normal(size=(200, 40))
    low, high = np.array([bootstrap_interval(sample) for sample in samples]).T
    assert 0.90 <= ((low <= 0) & (0 <= high)).mean() <= 0.99


def test_bootstrap_interval_leaves_nans_out_and_repeats_itself():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(np.r_[np.nan, values, np.nan]) == bootstrap_interval(values)
    assert np.isnan(bootstrap_interval(np.full(3, np.nan))).all()


def test_mean_intervals_are_means_with_the_bootstraps_interval_under_the_given_keys():
    values = {
        ("a", "x"): np.random.default_rng(0).normal(size=50),
        ("a", "y"): np.r_[np.nan, 1.0, 3.0],
    }
    table = mean_intervals(values)
    assert list(table.columns) == ["mean", "from", "to"] and list(table.index) == list(values)
    assert table.loc[("a", "y"), "mean"] == 2
    ends = bootstrap_interval(values["a", "x"])
    assert tuple(table.loc[("a", "x"), ["from", "to"]]) == ends


def test_hit_rates_are_shares_with_wilsons_interval_under_the_given_keys():
    table = hit_rates({("a", "x"): np.array([1.0, 0, 1, 1]), ("b", "x"): np.zeros(3)})
    assert list(table.columns) == ["mean", "from", "to"]
    assert table.loc[("a", "x")].tolist() == [0.75, *wilson_interval(3, 4)]
    assert table.loc[("b", "x")].tolist() == [0, *wilson_interval(0, 3)]
