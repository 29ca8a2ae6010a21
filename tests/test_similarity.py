from itertools import product

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr
from torch import nn
from torch.testing import assert_close

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, margin_matched_correct
from helpers.gradcam import GradCAM
from helpers.model import resnet18
from helpers.similarity import (
    all_maps,
    contrast_tables,
    contrasts,
    log_softmax_maps,
    pairs_of_maps,
    rank_correlation,
    rescale,
    same_minus_other,
    select_class,
    without_patterns,
    without_shared,
)


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
    first, second = planted(shared_pattern, own_pattern=2)
    raw = difference(first, second)
    left = difference(*without_shared(first, second))
    assert raw["from"] > 0
    # The correlation of (own pattern + noise) twice, with variances of 4 and 1.
    assert left["mean"] == pytest.approx(4 / 5, abs=0.08)
    assert left["mean"] >= raw["mean"] - 0.02


def test_maps_without_a_pattern_of_their_own_are_unrelated_once_the_shared_one_is_out():
    left = without_shared(*planted(shared_pattern=3, own_pattern=0))
    assert abs(rank_correlation(*left).mean()) < 0.06
    assert difference(*left)["from"] < 0 < difference(*left)["to"]


def test_same_minus_other_by_hand():
    similarities = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, np.nan]])
    means = same_minus_other(similarities)["mean"]  # the third image has no partner of its own
    expected = {"same": 0.85, "other": (0.15 + 0.2) / 2, "difference": 0.85 - 0.175}
    assert means.to_dict() == pytest.approx(expected)


def test_same_minus_other_leaves_nans_out():
    similarities = np.array([[0.9, np.nan, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, 0.4]])
    means = same_minus_other(similarities)["mean"]
    expected = {"same": 0.7, "other": (0.2 + 0.2 + 0.1) / 3, "difference": 0.7 - 0.5 / 3}
    assert means.to_dict() == pytest.approx(expected)


def test_same_minus_other_of_given_pairs_by_hand():
    similarities = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, np.nan]])
    kinds = np.array([0, 0, 1])
    one_kind = kinds[:, None] == kinds
    means = same_minus_other(similarities, one_kind & ~np.eye(3, dtype=bool), ~one_kind)["mean"]
    expected = {"same": (0.1 + 0.3) / 2, "other": (0.2 + 0.1) / 2, "difference": 0.05}
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


def test_contrasts_and_their_tables_are_the_differences_with_and_without_the_shared_pattern():
    pairs = {"similar": planted(1, 1, images=20), "unrelated": planted(1, 0, images=20)}
    found = contrasts(pairs)
    raw, left = contrast_tables({"4 x 4": pairs}).values()
    assert list(found) == list(pairs)
    for name, pair in pairs.items():
        assert found[name].equals(contrast(*pair))
        row = name, "4 x 4"
        assert raw.loc[row].tolist() == difference(*pair).tolist()
        assert left.loc[row].tolist() == difference(*without_shared(*pair)).tolist()


# patterns taken out


def test_projection_leaves_nothing_of_a_constant_and_the_patterns_and_all_of_the_rest():
    orthonormal, _ = torch.linalg.qr(randn(16, 5).double())
    first, second, rest = orthonormal.T[:3]
    basis = torch.stack([torch.ones(16).double(), first, second])
    rest = rest - rest @ torch.linalg.pinv(basis) @ basis  # orthogonal to a constant, too
    maps = torch.stack([2 + 3 * first - second, rest + 5 * second, rest]).view(-1, 4, 4)

    left = without_patterns(maps, first.view(4, 4), second.view(4, 4))
    expected = torch.stack([0 * rest, rest, rest]).view(-1, 4, 4)
    assert_close(left, expected, atol=1e-9, rtol=0)
    left = without_patterns(maps, maps[0], maps[0])
    assert_close(left[0], torch.zeros(4, 4).double(), atol=1e-9, rtol=0)
    left = without_patterns(maps)
    assert_close(left[0], maps[0] - maps[0].mean(), atol=1e-9, rtol=0)


def test_without_shared_takes_both_mean_maps_and_a_constant_out_of_both_sets():
    first, second = randn(2, 30, 4, 4) + 2
    for left in without_shared(first, second):
        for pattern in (first.mean(0), second.mean(0), torch.ones(4, 4)):
            product_with = (left * pattern).sum((1, 2))
            assert_close(product_with, torch.zeros(30).double(), atol=1e-5, rtol=0)


# maps of all classes, and of log-softmax


def test_all_maps_are_those_of_every_class_in_any_batch_size(model):
    expected = GradCAM(model).evidence(IMAGES, ALL_CLASSES)
    found = all_maps(GradCAM(model), IMAGES, 10, batch_size=1)
    assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_select_class_picks_each_images_own_class(convert):
    maps = torch.arange(24.0).view(3, 4, 1, 2)
    assert select_class(maps, convert([2, 0, 3])).tolist() == [[[4, 5]], [[8, 9]], [[22, 23]]]


def test_log_softmax_maps_are_grad_cam_of_the_log_probabilities(model):
    with torch.no_grad():
        model.fc.weight.mul_(5)  # so that the probabilities differ
        probabilities = model(IMAGES).softmax(1)
    maps = GradCAM(model, "layer3").evidence(IMAGES, ALL_CLASSES)
    found = log_softmax_maps(maps, probabilities.numpy())
    reference = LayerGradCam(nn.Sequential(model, nn.LogSoftmax(1)), model.layer3)
    for c in range(10):
        expected = reference.attribute(IMAGES, c, relu_attributions=False)[:, 0].detach()
        assert_close(found[:, c], expected, rtol=1e-3, atol=1e-5)


def test_log_softmax_maps_weighted_by_probability_cancel():
    maps, p = randn(5, 3, 4, 4), rand(5, 3)
    p = p / p.sum(1, keepdim=True)
    found = log_softmax_maps(maps, p)
    weighted = (p[:, :, None, None] * found).sum(1)
    assert_close(weighted, torch.zeros(5, 4, 4), atol=1e-5, rtol=0)
    assert_close(found[:, 0] - found[:, 2], maps[:, 0] - maps[:, 2], atol=1e-5, rtol=1e-5)


def test_two_classes_with_all_the_probability_have_opposite_log_softmax_maps():
    found = log_softmax_maps(randn(4, 3, 4, 4), np.tile([0.6, 0.4, 0.0], (4, 1)))
    np.testing.assert_allclose(rank_correlation(found[:, 0], found[:, 1]), -1)


def test_rescale_goes_from_the_smallest_cell_to_the_largest_without_a_relu():
    maps = torch.tensor([[[-3.0, -1.0], [-2.0, -3.0]], [[0.0, 4.0], [1.0, 2.0]]])
    expected = torch.tensor([[[0, 1], [0.5, 0]], [[0, 1], [0.25, 0.5]]])
    assert_close(rescale(maps, (2, 2)), expected)
    assert rescale(maps, (8, 8)).shape == (2, 8, 8)
    assert (rescale(torch.ones(1, 2, 2), (4, 4)) == 0).all()


# pairs of maps


@pytest.fixture(scope="module")
def eight():
    """A network, eight images of which it gets two wrong, and its predictions."""
    torch.manual_seed(1)
    model = resnet18(width=16).eval()
    data = Dataset(**shapes.generate(8, seed=0), classes=shapes.CLASSES)
    with torch.no_grad():
        logits = model(data.tensor()).numpy()
    ranked = np.argsort(-logits, axis=1)
    labels = ranked[:, 0].copy()
    labels[0], labels[1] = ranked[0, 1], ranked[1, 5]  # the runner-up is right, and the sixth
    return model, data, Predictions(logits, labels, shapes.CLASSES)


@pytest.fixture(scope="module")
def eights_pairs(eight):
    model, data, answers = eight
    twins = [GradCAM(model), GradCAM(resnet18(width=16))]
    return pairs_of_maps(GradCAM(model), data, answers, twins)


def test_pairs_of_maps_take_the_classes_that_they_name(eight, eights_pairs):
    model, data, answers = eight
    ranked = np.argsort(-answers.logits, axis=1)
    close = margin_matched_correct(answers)
    predicted, actual = ranked[:2, 0], answers.labels[:2]
    neither = [ranked[0, 2], ranked[1, 1]]

    def maps(indices, classes):
        return GradCAM(model).evidence(data.tensor(indices), classes)

    expected = {
        "mistakes: predicted, actual": (maps([0, 1], predicted), maps([0, 1], actual)),
        "right, as close: best, second": (
            maps(close, ranked[close, 0]),
            maps(close, ranked[close, 1]),
        ),
        "mistakes: predicted, a third class": (maps([0, 1], predicted), maps([0, 1], neither)),
    }
    for name, pair in expected.items():
        assert_close(eights_pairs[name], pair, atol=1e-6, rtol=1e-4)
    by_first_twin, _ = eights_pairs["one class, two trainings"]
    assert_close(by_first_twin, maps([0, 1], actual), atol=1e-6, rtol=1e-4)
    others = {"log-softmax, mistakes", "log-softmax, right", "one class, two trainings"}
    assert set(eights_pairs) == {*expected, *others}


def test_pairs_of_log_softmax_maps_by_hand(eight, eights_pairs):
    model, data, answers = eight
    cam, image = GradCAM(model), data.tensor([0])
    p = answers.probabilities[0]
    weighted = sum(float(p[c]) * cam.evidence(image, c) for c in range(10))
    by_hand = cam.evidence(image, int(answers.labels[0])) - weighted
    _, actual = eights_pairs["log-softmax, mistakes"]
    assert_close(actual[:1], by_hand, atol=1e-6, rtol=1e-4)
    # What log-softmax takes off is the same for both classes.
    best, second = eights_pairs["right, as close: best, second"]
    log_best, log_second = eights_pairs["log-softmax, right"]
    assert_close(log_best - log_second, best - second, atol=1e-6, rtol=1e-4)


def test_of_two_classes_the_actual_one_stands_in_for_a_third():
    model, images = resnet18(2, width=16).eval(), shapes.generate(4, seed=0)["images"]
    data = Dataset(images, np.zeros(4, dtype=int), ("a", "b"))
    with torch.no_grad():
        logits = model(data.tensor()).numpy()
    labels = logits.argmax(1) ^ [1, 0, 0, 0]  # one mistake
    pairs = pairs_of_maps(GradCAM(model), data, Predictions(logits, labels, data.classes))
    _, third = pairs["mistakes: predicted, a third class"]
    _, actual = pairs["mistakes: predicted, actual"]
    assert torch.equal(third, actual)
