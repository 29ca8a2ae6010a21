from itertools import combinations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from scipy.stats import spearmanr
from torch import nn

from helpers import explanation
from helpers.data import MEAN
from helpers.explanation import centred, interval, log_softmax_maps, of_class, rank_correlation, top_overlap
from helpers.gradcam import GradCAM
from helpers.model import resnet18

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ALL = torch.arange(10).expand(2, 10)


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


def test_compare_summarises_both_measures():
    first, second = torch.rand(2, 40, 4, 4, generator=torch.Generator().manual_seed(0))
    first[0] = 1.0  # a constant map: no correlation, but an overlap
    got = list(explanation.compare(first, second).values())
    correlations = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(first[1:], second[1:])]
    assert got[0] == pytest.approx(np.median(correlations))
    assert got[1] < got[0] < got[2]
    assert got[3] == pytest.approx(top_overlap(first, second).mean())


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


def test_centred_maps_ignore_one_vector_added_to_the_weights_of_all_classes(model):
    before, probabilities = GradCAM(model).evidence(IMAGES, ALL), model(IMAGES).softmax(1)
    with torch.no_grad():
        model.fc.weight.add_(torch.randn(1, 128, generator=torch.Generator().manual_seed(0)))
    after = GradCAM(model).evidence(IMAGES, ALL)
    torch.testing.assert_close(model(IMAGES).softmax(1), probabilities, rtol=1e-4, atol=1e-6)
    assert (after - before).abs().max() > 10 * (centred(after) - centred(before)).abs().max()
    torch.testing.assert_close(centred(after), centred(before), rtol=1e-3, atol=1e-5)


def test_centred_by_hand():
    maps = torch.tensor([[1.0, 2.0, 6.0]])[:, :, None, None]
    assert centred(maps).flatten().tolist() == [-2, -1, 3]


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


def test_pointing_game_and_energy_by_hand():
    heat = torch.tensor([[[0.0, 1.0], [0.5, 0.5]], [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.25]]])
    masks = np.array([[[0, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 1]]], dtype=bool)
    assert explanation.pointing_game(heat, masks).tolist() == [1, 0, 0]  # the second is blank: a miss, whatever the mask
    assert explanation.energy_inside(heat, masks).tolist() == pytest.approx([0.75, 0, 0.2])


def test_a_map_of_one_pixel_drawn_at_random_scores_the_masks_area():
    generator = torch.Generator().manual_seed(0)
    heat = torch.rand(4000, 8, 8, generator=generator)
    masks = np.zeros((4000, 8, 8), dtype=bool)
    masks[:, :2, :4] = True  # an eighth
    assert explanation.pointing_game(heat, masks).mean() == pytest.approx(1 / 8, abs=0.02)
    assert explanation.energy_inside(heat, masks).mean() == pytest.approx(1 / 8, abs=0.01)


def test_oracle_hits_a_mask_that_fills_a_cell_and_beats_the_gaussian_off_the_middle():
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, 8:16, 24:32] = masks[1, 0:8, 0:8] = True
    assert explanation.pointing_game(explanation.oracle(masks), masks).tolist() == [1, 1]
    gaussian = explanation.centred_gaussian(32)
    assert gaussian.argmax() in (15 * 33, 15 * 33 + 1, 15 * 33 + 32, 16 * 33)
    assert torch.equal(gaussian, gaussian.flip(0)) and torch.equal(gaussian, gaussian.T)
    assert explanation.pointing_game(gaussian.expand(2, -1, -1), masks).tolist() == [0, 0]


class QuadrantSum(torch.nn.Module):
    """Two classes; the logit of the first is the sum of the image's upper left quarter, that of the second is 0."""

    def forward(self, images):
        first = images[:, :, :4, :4].sum((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def test_deletion_follows_the_order_and_leaves_the_images():
    images = torch.ones(2, 3, 8, 8)
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    curves = explanation.deletion(QuadrantSum(), images, [0, 1], order)
    p_whole = torch.sigmoid(torch.tensor(48.0)).item()
    p_grey = torch.sigmoid(torch.tensor(16 * sum(MEAN))).item()
    np.testing.assert_allclose(curves[0], [p_whole, p_grey, p_grey, p_grey, p_grey], rtol=1e-5)
    np.testing.assert_allclose(curves[1], 1 - np.array([p_whole] * 4 + [p_grey]), atol=1e-6)
    assert (images == 1).all()


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
