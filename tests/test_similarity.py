from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from torch.testing import assert_close

from helpers.gradcam import GradCAM
from helpers.model import resnet18
from helpers.similarity import all_maps, derangement, rank_correlation, same_minus_other


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = rand(2, 3, 32, 32)
ALL_CLASSES = torch.arange(10).expand(2, 10)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


# rank correlation


def test_rank_correlation_is_scipys_with_ties_and_without():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (2, 6, 4, 4)).astype(np.float32)
    second[3:] += rng.normal(size=(3, 4, 4)).astype(np.float32)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second)]
    found = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_rank_correlation_depends_on_order_alone():
    maps = rand(3, 4, 4).requires_grad_()
    np.testing.assert_allclose(rank_correlation(maps, maps.exp() * 7 - 3), 1)
    np.testing.assert_allclose(rank_correlation(maps, -(maps**3)), -1)


@pytest.mark.filterwarnings("error")
def test_constant_map_has_no_rank_correlation():
    maps = torch.arange(32.0).view(2, 4, 4)
    constant = torch.stack([torch.full((4, 4), 2.5), maps[1]])
    assert np.isnan(rank_correlation(maps, constant)).tolist() == [True, False]
    assert np.isnan(rank_correlation(constant, maps)).tolist() == [True, False]


def test_map_that_holds_nan_is_refused():
    maps = rand(2, 4, 4)
    maps[1, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="holds NaN"):
        rank_correlation(maps, maps)


def test_every_map_with_every_other_is_the_correlation_pair_by_pair():
    first, second = rand(6, 4, 4), rand(5, 4, 4, seed=1)
    table = rank_correlation(first, second, every=True)
    assert table.shape == (6, 5)
    for i, j in product(range(6), range(5)):
        (one,) = rank_correlation(first[i : i + 1], second[j : j + 1])
        assert table[i, j] == pytest.approx(one)


@st.composite
def some_maps(draw):
    count, side = draw(st.integers(1, 5)), draw(st.integers(2, 5))
    cells = draw(arrays(np.float32, (count, side, side), elements=st.floats(-9, 9, width=16)))
    return torch.from_numpy(cells)


@settings(derandomize=True, max_examples=50, deadline=None, database=None)
@given(some_maps(), st.randoms(use_true_random=False))
def test_rank_correlation_lies_in_its_bounds_is_symmetric_and_follows_the_batch(maps, random):
    first, second = maps, maps.flip(0, 1)
    found = rank_correlation(first, second)
    constant = (first.amax((1, 2)) == first.amin((1, 2))) | (
        second.amax((1, 2)) == second.amin((1, 2))
    )
    assert np.array_equal(np.isnan(found), constant.numpy())
    assert (np.abs(found[~np.isnan(found)]) <= 1 + 1e-12).all()
    np.testing.assert_allclose(rank_correlation(second, first), found, atol=1e-12)
    order = random.sample(range(len(maps)), len(maps))
    reordered = rank_correlation(first[order], second[order])
    np.testing.assert_allclose(reordered, found[order], atol=1e-12)
    rescaled = rank_correlation(first.double() * 2 + 1, second)
    np.testing.assert_allclose(rescaled, found, atol=1e-12)


# same image or another


def planted(shared_pattern, own_pattern, images=150, seed=0):
    """Two sets of noise maps. One pattern is in all of them; one of each image is in both its maps.

    shared_pattern, own_pattern: strength of either, where that of the noise is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4, 4, generator=generator)
    own = torch.randn(images, 4, 4, generator=generator)
    noise = torch.randn(2, images, 4, 4, generator=generator)
    return noise + shared_pattern * shared + own_pattern * own


def contrast(first, second):
    return same_minus_other(rank_correlation(first, second, every=True))


def difference(first, second):
    return contrast(first, second).loc["difference"]


def test_a_pattern_in_all_images_makes_maps_similar_but_not_those_of_one_image_more_than_others():
    found = contrast(*planted(shared_pattern=3, own_pattern=0))
    assert found.loc["same", "mean"] > 0.7 and found.loc["other", "mean"] > 0.7
    assert found.loc["difference", "from"] < 0 < found.loc["difference", "to"]
    assert abs(found.loc["difference", "mean"]) < 0.02


@pytest.mark.parametrize("shared_pattern", [0, 3])
def test_a_pattern_of_the_images_own_is_found_below_one_in_all_of_them(shared_pattern):
    found = difference(*planted(shared_pattern, own_pattern=2))
    assert found["from"] > 0
    if not shared_pattern:
        # The correlation of (own pattern + noise) twice, with variances of 4 and 1.
        assert found["mean"] == pytest.approx(4 / 5, abs=0.08)


@pytest.mark.filterwarnings("error")
def test_same_minus_other_by_hand():
    similarities = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, np.nan]])
    means = same_minus_other(similarities)["mean"]  # the third image has no partner of its own
    expected = {"same": 0.85, "other": (0.15 + 0.2) / 2, "difference": 0.85 - 0.175}
    assert means.to_dict() == pytest.approx(expected)


def test_same_minus_others_interval_lies_1_96_standard_errors_from_the_mean():
    ends = []
    for seed in range(20):
        own = np.random.default_rng(seed).normal(size=60)
        row = same_minus_other(np.diag(own)).loc["same"]
        error = own.std() / np.sqrt(60)
        assert row["mean"] == pytest.approx(own.mean())
        ends.append(((row["mean"] - row["from"]) / error, (row["to"] - row["mean"]) / error))
    assert np.mean(ends, axis=0) == pytest.approx(1.96, abs=0.08)


def test_same_minus_other_leaves_nans_out():
    similarities = np.array([[0.9, np.nan, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, 0.4]])
    means = same_minus_other(similarities)["mean"]
    expected = {"same": 0.7, "other": (0.2 + 0.2 + 0.1) / 3, "difference": 0.7 - 0.5 / 3}
    assert means.to_dict() == pytest.approx(expected)


def test_same_minus_other_of_given_pairs_by_hand():
    similarities = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, np.nan]])
    kinds = np.array([0, 0, 1])
    means = same_minus_other(similarities, other=kinds[:, None] != kinds)["mean"]
    expected = {"same": 0.85, "other": (0.2 + 0.1) / 2, "difference": 0.7}
    assert means.to_dict() == pytest.approx(expected)


def test_interval_of_same_minus_other_covers_the_truth_19_times_in_20():
    """Noise and one pattern, whose strength differs from map to map, so that pairs which share an
    image are not independent."""
    covered = 0
    pattern = torch.arange(16.0).view(4, 4) / 5
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        strength = 3 * torch.rand(2, 40, 1, 1, generator=generator)
        maps = torch.randn(2, 40, 4, 4, generator=generator) + strength * pattern
        low, high = difference(*maps)[["from", "to"]]
        covered += low <= 0 <= high
    assert covered >= 88


# maps of all classes


def test_all_maps_are_those_of_every_class_in_any_batch_size(model):
    expected = GradCAM(model).evidence(IMAGES, ALL_CLASSES)
    found = all_maps(GradCAM(model), IMAGES, 10, batch_size=1)
    assert_close(found, expected, rtol=1e-4, atol=1e-6)


# a null


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_gives_each_image_another_one_and_takes_each_once(count):
    for seed in range(20):
        others = derangement(count, np.random.default_rng(seed))
        assert sorted(others) == list(range(count))
        assert not (others == np.arange(count)).any()
