from itertools import combinations, product

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import LayerGradCam
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.signal.windows import gaussian
from scipy.special import expit
from scipy.stats import spearmanr
from torch import nn

from helpers import explanation, shapes
from helpers.data import MEAN, Dataset
from helpers.evaluation import Predictions, accuracy_interval, as_undecided
from helpers.explanation import (
    interval,
    log_softmax_maps,
    of_class,
    rank_correlation,
    same_minus_other,
    top_overlap,
    without_patterns,
)
from helpers.gradcam import GradCAM
from helpers.model import resnet18

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ALL = torch.arange(10).expand(2, 10)
PROPERTIES = settings(derandomize=True, max_examples=50, deadline=None, database=None)


@pytest.fixture
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


def test_rank_correlation_is_scipys_with_ties_and_without():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (2, 6, 4, 4)).astype(np.float32)
    second[3:] += rng.normal(size=(3, 4, 4)).astype(np.float32)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first, second)]
    got = rank_correlation(torch.from_numpy(first), torch.from_numpy(second))
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_rank_correlation_depends_on_order_alone():
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    np.testing.assert_allclose(rank_correlation(maps, maps.exp() * 7 - 3), 1)
    np.testing.assert_allclose(rank_correlation(maps, -(maps**3)), -1)


def test_constant_map_has_no_rank_correlation():
    maps = torch.arange(32.0).view(2, 4, 4)
    constant = torch.stack([torch.full((4, 4), 2.5), maps[1]])
    assert np.isnan(rank_correlation(maps, constant)).tolist() == [True, False]
    assert np.isnan(rank_correlation(constant, maps)).tolist() == [True, False]


def test_top_overlap_by_hand():
    first = torch.tensor([[[9.0, 8, 7], [1, 2, 3], [-5, -6, -7]]]).repeat(3, 1, 1)
    second = torch.stack([first[0], first[0].flip(0), -first[0]])
    # The three strongest of each: the same three; 9 8 7 against the last row; the first row against the last.
    np.testing.assert_allclose(top_overlap(first, second, count=3), [1, 0, 0])
    # The four strongest: 9 8 7 3 against the same cells turned over, which share the 3 alone, and against -7 -6 -5 1.
    np.testing.assert_allclose(top_overlap(first, second, count=4), [1, 1 / 7, 0])
    np.testing.assert_allclose(top_overlap(first[:1], torch.tensor([[[9.0, 8, 0], [7, 6, 0], [0, 0, 0]]])), [2 / 6])


def test_overlap_of_four_cells_by_chance_is_0_158():
    maps = torch.zeros(1820, 16)  # every choice of 4 of 16 cells, against one
    for row, cells in zip(maps, combinations(range(16), 4)):
        row[list(cells)] = 1.0
    maps = maps.view(-1, 4, 4)
    assert top_overlap(maps, maps[100].expand_as(maps)).mean() == pytest.approx(0.158, abs=5e-4)


@pytest.mark.parametrize("measure", [rank_correlation, top_overlap])
def test_every_map_against_every_other_is_the_measure_pair_by_pair(measure):
    first, second = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    second, table = second[:5], measure(first, second[:5], every=True)
    assert table.shape == (6, 5)
    for i, j in product(range(6), range(5)):
        assert table[i, j] == pytest.approx(measure(first[i : i + 1], second[j : j + 1])[0])


def planted(shared_pattern, shared_place, images=150, seed=0):
    """Two sets of maps of noise, with one pattern in all of them, and one of its own for each image in both of its maps."""
    generator = torch.Generator().manual_seed(seed)
    pattern, place = torch.randn(4, 4, generator=generator), torch.randn(images, 4, 4, generator=generator)
    noise = torch.randn(2, images, 4, 4, generator=generator)
    return noise + shared_pattern * pattern + shared_place * place


def difference(first, second):
    return same_minus_other(rank_correlation(first, second, every=True)).loc["difference"]


def test_a_pattern_in_all_images_makes_maps_alike_but_not_those_of_one_image_more_than_others():
    found = same_minus_other(rank_correlation(*planted(shared_pattern=3, shared_place=0), every=True))
    assert found.loc["same", "mean"] > 0.7 and found.loc["other", "mean"] > 0.7
    assert found.loc["difference", "from"] < 0 < found.loc["difference", "to"]
    assert abs(found.loc["difference", "mean"]) < 0.02


@pytest.mark.parametrize("shared_pattern", [0, 3])
def test_a_place_of_the_images_own_is_found_below_a_pattern_in_all_of_them(shared_pattern):
    first, second = planted(shared_pattern, shared_place=2)
    raw = difference(first, second)
    left = difference(*(without_patterns(maps, first.mean(0), second.mean(0)) for maps in (first, second)))
    assert raw["from"] > 0
    assert left["mean"] == pytest.approx(4 / 5, abs=0.08)  # the correlation of place + noise twice, variances 4 and 1
    assert left["mean"] >= raw["mean"] - 0.02


def test_maps_without_a_shared_place_are_unrelated_once_the_pattern_is_out():
    first, second = planted(shared_pattern=3, shared_place=0)
    left = [without_patterns(maps, first.mean(0), second.mean(0)) for maps in (first, second)]
    assert abs(rank_correlation(*left).mean()) < 0.06 and difference(*left)["from"] < 0 < difference(*left)["to"]


def test_same_minus_other_by_hand():
    likeness = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.1], [0.0, 0.2, np.nan]])
    means = same_minus_other(likeness)["mean"]  # the third image has no map of its own to compare with
    assert means.to_dict() == pytest.approx({"same": 0.85, "other": (0.15 + 0.2) / 2, "difference": 0.85 - 0.175})
    kinds = np.array([0, 0, 1])
    alike = kinds[:, None] == kinds
    means = same_minus_other(likeness, alike & ~np.eye(3, dtype=bool), ~alike)["mean"]
    assert means.to_dict() == pytest.approx({"same": (0.1 + 0.3) / 2, "other": (0.2 + 0.1) / 2, "difference": 0.05})


def test_interval_of_same_minus_other_covers_the_truth_19_times_in_20():
    """Maps of noise but for a pattern whose strength is each image's own: likenesses of one image are not independent."""
    covered = 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        strength = 3 * torch.rand(2, 40, 1, 1, generator=generator)
        maps = torch.randn(2, 40, 4, 4, generator=generator) + strength * torch.arange(16.0).view(4, 4) / 5
        low, high = difference(*maps)[["from", "to"]]
        covered += low <= 0 <= high
    assert covered >= 88


def test_projection_leaves_nothing_of_a_constant_and_the_patterns_and_all_of_the_rest():
    first, second, rest = torch.linalg.qr(torch.randn(16, 5, generator=torch.Generator().manual_seed(0)).double())[0].T[:3]
    rest = rest - rest.mean() - 0  # orthogonal to a constant ...
    basis = torch.stack([torch.ones(16).double(), first, second])
    rest = rest - rest @ torch.linalg.pinv(basis) @ basis  # ... and to both patterns
    maps = torch.stack([2 + 3 * first - second, rest + 5 * second, rest]).view(-1, 4, 4)
    left = without_patterns(maps, first.view(4, 4), second.view(4, 4))
    torch.testing.assert_close(left, torch.stack([0 * rest, rest, rest]).view(-1, 4, 4), atol=1e-9, rtol=0)
    torch.testing.assert_close(without_patterns(maps, maps[0], maps[0])[0], torch.zeros(4, 4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(without_patterns(maps)[0], maps[0] - maps[0].mean(), atol=1e-9, rtol=0)


def test_all_maps_are_those_of_every_class_in_any_batch_size(model):
    expected = GradCAM(model).evidence(IMAGES, ALL)
    torch.testing.assert_close(explanation.all_maps(GradCAM(model), IMAGES, 10, batch_size=1), expected, rtol=1e-4, atol=1e-6)


def test_log_softmax_maps_are_grad_cam_of_the_log_probabilities(model):
    with torch.no_grad():
        model.fc.weight.mul_(5)  # so that the probabilities differ
        probabilities = model(IMAGES).softmax(1)
    got = log_softmax_maps(GradCAM(model, "layer3").evidence(IMAGES, ALL), probabilities.numpy())
    normalised = nn.Sequential(model, nn.LogSoftmax(1))
    for c in range(10):
        expected = LayerGradCam(normalised, model.layer3).attribute(IMAGES, c, relu_attributions=False)[:, 0]
        torch.testing.assert_close(got[:, c], expected.detach(), rtol=1e-3, atol=1e-5)


def test_log_softmax_maps_weighted_by_probability_cancel():
    generator = torch.Generator().manual_seed(0)
    maps, p = torch.randn(5, 3, 4, 4, generator=generator), torch.rand(5, 3, generator=generator)
    p = p / p.sum(1, keepdim=True)
    shifted = log_softmax_maps(maps, p)
    torch.testing.assert_close((p[:, :, None, None] * shifted).sum(1), torch.zeros(5, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(shifted[:, 0] - shifted[:, 2], maps[:, 0] - maps[:, 2], atol=1e-5, rtol=1e-5)


def test_two_classes_with_all_the_probability_have_opposite_log_softmax_maps():
    maps = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    got = log_softmax_maps(maps, np.tile([0.6, 0.4, 0.0], (4, 1)))
    np.testing.assert_allclose(rank_correlation(got[:, 0], got[:, 1]), -1)


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor], ids=["list", "array", "tensor"])
def test_of_class_picks_each_images_own_class(convert):
    maps = torch.arange(24.0).view(3, 4, 1, 2)
    assert of_class(maps, convert([2, 0, 3])).tolist() == [[[4, 5]], [[8, 9]], [[22, 23]]]


def test_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, 400)
    half = 1.96 * values.std() / 20
    assert interval(values, np.mean) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_interval_covers_the_true_median_19_times_in_20():
    samples = np.random.default_rng(0).normal(size=(200, 40))
    limits = np.array([interval(sample) for sample in samples])
    assert 0.90 <= ((limits[:, 0] <= 0) & (0 <= limits[:, 1])).mean() <= 0.99


def test_interval_leaves_nans_out_and_repeats_itself():
    values = np.random.default_rng(0).normal(size=30)
    assert interval(np.r_[np.nan, values, np.nan]) == interval(values)
    assert interval(values, seed=1) != interval(values)
    assert np.isnan(interval(np.full(3, np.nan))).all()


def test_pointing_game_by_hand():
    heat = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.25]]])
    masks = np.array([[[0, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 1]]], dtype=bool)
    assert explanation.pointing_game(heat, masks).tolist() == [1, 0, 0]  # the second is blank: a miss, whatever the mask


def test_a_map_of_one_pixel_drawn_at_random_scores_the_masks_area():
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(4000, 8, 8, generator=generator)
    masks = np.zeros((4000, 8, 8), dtype=bool)
    masks[:, :2, :4] = True  # an eighth
    assert explanation.pointing_game(heat, masks).mean() == pytest.approx(1 / 8, abs=0.02)


def test_oracle_hits_a_mask_that_fills_a_cell_and_beats_the_gaussian_off_the_middle():
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, 8:16, 24:32] = masks[1, 0:8, 0:8] = True
    assert explanation.pointing_game(explanation.oracle(masks), masks).tolist() == [1, 1]
    centred = explanation.centred_gaussian(32)
    np.testing.assert_allclose(centred, np.outer(*[gaussian(32, std=8)] * 2), rtol=1e-5)
    assert explanation.pointing_game(centred.expand(2, -1, -1), masks).tolist() == [0, 0]


class QuadrantMean(torch.nn.Module):
    """Two classes; the logit of the first is the mean of the image's upper left quarter, that of the second is 0."""

    def forward(self, images):
        first = images[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_deletion_follows_the_order_and_leaves_the_images():
    images = torch.ones(2, 3, 8, 8)
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    curves = explanation.deletion(QuadrantMean(), images, [0, 1], order)
    p_whole, p_grey = expit(1), expit(np.mean(MEAN))
    np.testing.assert_allclose(curves[0], [p_whole, p_grey, p_grey, p_grey, p_grey], rtol=1e-5)
    np.testing.assert_allclose(curves[1], 1 - np.array([p_whole] * 4 + [p_grey]), atol=1e-6)
    assert (images == 1).all()


def test_deletion_of_several_cells_at_once_skips_the_looks_between():
    images, order = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), np.tile(np.arange(64), (3, 1))
    one_by_one = explanation.deletion(QuadrantMean(), images, [0, 0, 1], order)
    np.testing.assert_allclose(explanation.deletion(QuadrantMean(), images, [0, 0, 1], order, at_once=4), one_by_one[:, ::4])


def test_deletion_paints_whole_cells_and_each_at_its_turn():
    """The grey pixels that the model is shown, step by step: none, then 4 x 4 of them for each cell of a 2 x 2 grid."""
    seen = []

    def model(images):
        seen.append((images == torch.tensor(MEAN).view(1, 3, 1, 1)).all(1)[0])
        return torch.zeros(len(images), 2)

    explanation.deletion(model, torch.ones(1, 3, 8, 8), [0], np.array([[3, 0, 2, 1]]))
    corners = [(4, 4), (0, 0), (4, 0), (0, 4)]
    for count, grey in enumerate(seen):
        expected = torch.zeros(8, 8, dtype=torch.bool)
        for row, column in corners[:count]:
            expected[row : row + 4, column : column + 4] = True
        assert torch.equal(grey, expected)


def test_deletion_orders_by_hand():
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[1, 0, 1], maps[2, 3, 3] = 5.0, 4.0, 3.0
    orders = explanation.deletion_orders(maps, np.random.default_rng(0))
    assert all(np.array_equal(np.sort(order, axis=1), np.tile(np.arange(16), (3, 1))) for order in orders.values())
    assert orders["own map"][:, 0].tolist() == [0, 1, 15]
    another = orders["another image's map"][:, 0].tolist()
    assert sorted(another) == [0, 1, 15] and all(a != b for a, b in zip(another, [0, 1, 15]))
    assert orders["mean map"][:, :3].tolist() == [[0, 1, 15]] * 3
    assert all(set(row[:4]) == {5, 6, 9, 10} and set(row[-4:]) == {0, 3, 12, 15} for row in orders["centre first"].tolist())
    assert not np.array_equal(*orders["random order"][:2])


def test_gain_is_the_area_between_an_order_and_random_order():
    images = torch.ones(2, 3, 8, 8)
    orders = {
        "first": np.array([[0, 1, 2, 3]] * 2),
        "last": np.array([[1, 2, 3, 0]] * 2),
        "random order": np.array([[1, 0, 2, 3]] * 2),
    }
    gains = explanation.deletion_gains(QuadrantMean(), images, [0, 0], orders)
    drop = expit(1) - expit(np.mean(MEAN))
    assert list(gains) == ["first", "last"]  # of five looks, "first" is one sooner than random order, "last" two later
    np.testing.assert_allclose(gains["first"], drop / 5, rtol=1e-3)
    np.testing.assert_allclose(gains["last"], -2 * drop / 5, rtol=1e-3)


def test_mean_intervals_are_means_with_the_bootstraps_interval_under_the_given_keys():
    values = {("a", "x"): np.random.default_rng(0).normal(size=50), ("a", "y"): np.r_[np.nan, 1.0, 3.0]}
    table = explanation.mean_intervals(values)
    assert list(table.columns) == ["mean", "from", "to"] and list(table.index) == list(values)
    assert table.loc[("a", "y"), "mean"] == 2
    assert tuple(table.loc[("a", "x"), ["from", "to"]]) == interval(values["a", "x"], np.mean)


def test_without_shared_takes_both_mean_maps_and_a_constant_out_of_both_sets():
    first, second = torch.randn(2, 30, 4, 4, generator=torch.Generator().manual_seed(0)) + 2
    for left in explanation.without_shared(first, second):
        for pattern in (first.mean(0), second.mean(0), torch.ones(4, 4)):
            torch.testing.assert_close((left * pattern).sum((1, 2)), torch.zeros(30).double(), atol=1e-5, rtol=0)


def test_stretched_goes_from_the_least_cell_to_the_greatest_without_a_relu():
    maps = torch.tensor([[[-3.0, -1.0], [-2.0, -3.0]], [[0.0, 4.0], [1.0, 2.0]]])
    expected = torch.tensor([[[0, 1], [0.5, 0]], [[0, 1], [0.25, 0.5]]])
    torch.testing.assert_close(explanation.stretched(maps, (2, 2)), expected)
    assert explanation.stretched(maps, (8, 8)).shape == (2, 8, 8)
    assert (explanation.stretched(torch.ones(1, 2, 2), (4, 4)) == 0).all()


def test_randomised_changes_the_named_parts_of_a_copy_alone():
    model = resnet18(width=16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    changed = explanation.randomised(model, ["fc", "layer4"])
    assert torch.equal(drawn, torch.rand(1)), "the caller's random state was used up"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    differs = {name.split(".")[0] for name, value in changed.state_dict().items() if not torch.equal(value, before[name])}
    assert differs == {"fc", "layer4"}
    again = explanation.randomised(model, ["fc", "layer4"])
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in changed.state_dict().items())


def test_diagnosis_tells_the_three_kinds_of_map_apart():
    maps = torch.tensor([[[1.0, -2.0], [-1.0, -1.0]], [[-1.0, -2.0], [-1.0, -1.5]], [[0.0, 0.0], [0.0, 0.0]]])
    first, second, third = explanation.diagnose(maps)
    assert first == "25% of the cells speak for the class; evidence from -2.00 to +1.00 logit units"
    assert second.startswith("blank: no cell speaks for the class") and "-2.00 to -1.00" in second
    assert third.startswith("blank: the layer puts out nothing")


class MasksOf:
    """Stands in for a `GradCAM`: the map of an image, or of each class asked for, is a mask that it was given."""

    def __init__(self, one, two, shown):
        self.one, self.two, self.shown = torch.from_numpy(one).float(), torch.from_numpy(two).float(), shown

    def __call__(self, images, classes=None):
        np.testing.assert_allclose(images, np.moveaxis(self.shown[classes is not None], 3, 1) / 255, rtol=1e-6)
        return self.one if classes is None else self.two


def test_maps_that_are_the_masks_win_every_pointing_game_and_mixed_up_ones_none():
    one = Dataset(**shapes.generate(5, seed=0), classes=shapes.CLASSES)
    two = shapes.generate_pairs(4, seed=0)
    shown = one.images, two["images"]
    cams = {
        "truth": MasksOf(one.masks, two["masks"], shown),
        "mixed up": MasksOf(~one.masks, two["masks"][:, ::-1].copy(), shown),
    }
    hits = explanation.pointing_games(cams, one, two)
    won = {key: hit.mean() for key, hit in hits.items()}
    games = ("one object", "its own of two", "the other of two")
    assert won == dict(zip(product(cams, games), (1, 1, 0, 0, 0, 1)))
    assert [len(hit) for hit in hits.values()] == [5, 8, 8] * 2


def test_hit_rates_are_wilsons_intervals_under_the_given_keys():
    table = explanation.hit_rates({("a", "x"): np.array([1.0, 0, 1, 1]), ("b", "x"): np.zeros(3)})
    assert list(table.columns) == ["mean", "from", "to"]
    assert table.loc[("a", "x")].tolist() == [0.75, *accuracy_interval(3, 4)]
    assert table.loc[("b", "x")].tolist() == [0, *accuracy_interval(0, 3)]


@pytest.mark.parametrize("count", [2, 3, 50])
def test_another_image_is_never_the_same_and_each_is_taken_once(count):
    for seed in range(20):
        others = explanation.another(count, np.random.default_rng(seed))
        assert sorted(others) == list(range(count)) and not (others == np.arange(count)).any()


def test_strongest_cell_comes_first():
    maps = torch.tensor([[[0.0, 3.0], [-1.0, 2.0]], [[5.0, 5.0], [6.0, 1.0]]])
    assert explanation.strongest_first(maps).tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]
    stripes = (torch.arange(64.0) % 2).view(1, 8, 8)
    assert explanation.strongest_first(stripes).tolist() == [[*range(1, 64, 2), *range(0, 64, 2)]]  # ties by place


def test_deletion_panels_hold_each_order_against_random_order_and_against_the_own_map():
    gains = {
        "right": {"own map": np.array([3.0, 5.0]), "centre": np.array([1.0, 1.0])},
        "wrong": {"own map": np.r_[1.0], "centre": np.r_[2.0]},
    }
    first, second = explanation.deletion_panels(gains).values()
    assert first["mean"].to_dict() == {
        ("own map", "right"): 4,
        ("centre", "right"): 1,
        ("own map", "wrong"): 1,
        ("centre", "wrong"): 2,
    }
    assert second["mean"].to_dict() == {
        ("own map", "right"): 0,
        ("centre", "right"): 3,
        ("own map", "wrong"): 0,
        ("centre", "wrong"): -1,
    }
    assert second.loc[("centre", "right"), "from"] >= 2  # paired: image by image


def test_randomisation_begins_with_the_network_itself_and_goes_from_the_top_down(model):
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    found = explanation.randomisation(model, images, 3)
    assert list(found) == ["as trained", "and fc", "and layer4", "and layer3", "and layer2", "and layer1"]
    assert found["as trained"].loc["same"].round(6).tolist() == [1, 1, 1]
    original, changed = (GradCAM(m).evidence(images, 3) for m in (model, explanation.randomised(model, ["fc", "layer4"])))
    expected = same_minus_other(rank_correlation(changed, original, every=True))
    pd.testing.assert_frame_equal(found["and layer4"], expected)


def test_contrast_panels_are_the_differences_with_and_without_the_shared_pattern():
    pairs = {"alike": planted(1, 1, images=20), "unrelated": planted(1, 0, images=20)}
    raw, left = explanation.contrast_panels({"4 x 4": pairs}).values()
    for name, pair in pairs.items():
        contrast = explanation.contrasts(pairs)[name]
        assert raw.loc[(name, "4 x 4")].tolist() == contrast.loc["difference"].tolist()
        expected = same_minus_other(rank_correlation(*explanation.without_shared(*pair), every=True)).loc["difference"]
        assert left.loc[(name, "4 x 4")].tolist() == expected.tolist()


def test_pairs_of_maps_take_the_classes_that_they_name(model):
    data = Dataset(**shapes.generate(8, seed=0), classes=shapes.CLASSES)
    logits = model(data.tensor()).detach()
    ranked = logits.argsort(1, descending=True).numpy()
    labels = ranked[:, 0].copy()
    labels[0], labels[1] = ranked[0, 1], ranked[1, 5]  # two mistakes: the runner-up is right, and the sixth
    answers = Predictions(logits.numpy(), labels, shapes.CLASSES)
    close, explain = as_undecided(answers), GradCAM(model)

    def maps(indices, classes):
        return explain.evidence(data.tensor(indices), torch.as_tensor(classes))

    pairs = explanation.pairs_of_maps(explain, data, answers, [explain, GradCAM(resnet18(width=16))])
    expected = {
        "mistakes: predicted, actual": (maps([0, 1], ranked[:2, 0]), maps([0, 1], labels[:2])),
        "right, as close: best, second": (maps(close, ranked[close, 0]), maps(close, ranked[close, 1])),
        "mistakes: predicted, a third class": (maps([0, 1], ranked[:2, 0]), maps([0, 1], [ranked[0, 2], ranked[1, 1]])),
    }
    for name, pair in expected.items():
        torch.testing.assert_close(pairs[name], pair, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(pairs["one class, two trainings"][0], maps([0, 1], labels[:2]), atol=1e-6, rtol=1e-4)
    p = logits[0].softmax(0)
    by_hand = maps([0], [labels[0]]) - sum(p[c] * maps([0], [c]) for c in range(10))
    torch.testing.assert_close(pairs["log-softmax, mistakes"][1][:1], by_hand, atol=1e-6, rtol=1e-4)
    best, second = (maps(close, ranked[close, rank]) for rank in (0, 1))
    first, other = pairs["log-softmax, right"]
    torch.testing.assert_close(first - other, best - second, atol=1e-6, rtol=1e-4)
    assert set(pairs) == {*expected, "log-softmax, mistakes", "log-softmax, right", "one class, two trainings"}


def test_of_two_classes_the_actual_one_stands_in_for_a_third():
    model, images = resnet18(2, width=16).eval(), shapes.generate(4, seed=0)["images"]
    data = Dataset(images, np.zeros(4, dtype=int), ("a", "b"))
    logits = model(data.tensor()).detach().numpy()
    labels = logits.argmax(1) ^ [1, 0, 0, 0]  # one mistake
    pairs = explanation.pairs_of_maps(GradCAM(model), data, Predictions(logits, labels, data.classes))
    assert torch.equal(pairs["mistakes: predicted, a third class"][1], pairs["mistakes: predicted, actual"][1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_of_nan_is_called_that_and_not_measured(value):
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    maps[1, 2, 2] = value
    first, second = explanation.diagnose(maps)
    assert first.startswith("100% of the cells") and second.startswith("no map: a cell is NaN or infinite")
    maps[1, 2, 2] = float("nan")
    for measure in (rank_correlation, top_overlap):
        with pytest.raises(ValueError, match="holds NaN"):
            measure(maps, maps)


MAPS = st.integers(2, 5).flatmap(
    lambda side: arrays(
        np.float32, st.tuples(st.integers(1, 5), st.just(side), st.just(side)), elements=st.floats(-9, 9, width=16)
    )
)


@PROPERTIES
@given(MAPS, st.randoms(use_true_random=False))
def test_rank_correlation_lies_in_its_bounds_is_symmetric_and_follows_the_batch(maps, random):
    first, second = torch.from_numpy(maps), torch.from_numpy(maps).flip(0, 1)
    found, order = rank_correlation(first, second), random.sample(range(len(maps)), len(maps))
    constant = (first == first[:, :1, :1]).all((1, 2)) | (second == second[:, :1, :1]).all((1, 2))
    assert np.array_equal(np.isnan(found), constant.numpy())
    assert (np.abs(found[~np.isnan(found)]) <= 1 + 1e-12).all()
    np.testing.assert_allclose(rank_correlation(second, first), found, atol=1e-12)
    np.testing.assert_allclose(rank_correlation(first[order], second[order]), found[order], atol=1e-12)
    np.testing.assert_allclose(rank_correlation(first.double() * 2 + 1, second), found, atol=1e-12)


@PROPERTIES
@given(MAPS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_top_overlap_lies_in_its_bounds_is_symmetric_and_follows_the_batch(maps, count, random):
    first, second = torch.from_numpy(maps), torch.from_numpy(maps).flip(0, 1)
    found, order = top_overlap(first, second, count), random.sample(range(len(maps)), len(maps))
    shared = found * 2 * count / (1 + found)  # cells: a whole number
    assert ((0 <= found) & (found <= 1)).all() and np.allclose(shared, shared.round())
    assert np.array_equal(top_overlap(second, first, count), found)
    assert np.array_equal(top_overlap(first[order], second[order], count), found[order])
    assert (top_overlap(first, first, count) == 1).all()
