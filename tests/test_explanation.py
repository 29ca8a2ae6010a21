from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.signal.windows import gaussian
from scipy.special import expit
from torch import nn

from helpers import shapes
from helpers.data import MEAN, Dataset
from helpers.explanation import (
    best_possible_heatmaps,
    centred_gaussian,
    deletion,
    deletion_gains,
    deletion_order,
    deletion_orders,
    deletion_tables,
    derangement,
    diagnose,
    pointing_game,
    pointing_games,
    randomisation_test,
    reset_layers,
)
from helpers.gradcam import GradCAM
from helpers.model import resnet18
from helpers.similarity import rank_correlation, same_minus_other


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


# pointing game


def test_pointing_game_by_hand():
    heat = torch.tensor([[[0, 1], [0.5, 0.5]], [[0, 0], [0, 0]], [[1, 0], [0, 0.25]]])
    masks = np.array([[[0, 1], [1, 0]], [[1, 1], [1, 1]], [[0, 0], [0, 1]]], dtype=bool)
    # The second map is blank: a miss, whatever the mask.
    assert pointing_game(heat, masks).tolist() == [1, 0, 0]


def test_a_map_with_a_random_peak_scores_the_share_of_the_mask():
    masks = np.zeros((4000, 8, 8), dtype=bool)
    masks[:, :2, :4] = True  # an eighth
    assert pointing_game(rand(4000, 8, 8), masks).mean() == pytest.approx(1 / 8, abs=0.02)


class MasksAsMaps:
    """Stands in for a `GradCAM`: the map of an image, or of each class asked for, is given."""

    def __init__(self, of_one, of_two, images_of_one, images_of_two):
        self.of_one = torch.from_numpy(of_one).float()
        self.of_two = torch.from_numpy(of_two).float()
        self.images_of_one, self.images_of_two = images_of_one, images_of_two

    def __call__(self, images, classes=None):
        expected = self.images_of_one if classes is None else self.images_of_two
        np.testing.assert_allclose(images, np.moveaxis(expected, 3, 1) / 255, rtol=1e-6)
        return self.of_one if classes is None else self.of_two


def test_maps_that_are_the_masks_win_every_pointing_game_and_mixed_up_ones_none():
    one = Dataset(**shapes.generate(5, seed=0), classes=shapes.CLASSES)
    two = shapes.generate_pairs(4, seed=0)
    swapped = two["masks"][:, ::-1].copy()
    cams = {
        "truth": MasksAsMaps(one.masks, two["masks"], one.images, two["images"]),
        "mixed up": MasksAsMaps(~one.masks, swapped, one.images, two["images"]),
    }
    hits = pointing_games(cams, one, two)
    games = ("one object", "its own of two", "the other of two")
    won = {key: hit.mean() for key, hit in hits.items()}
    assert won == dict(zip(product(cams, games), (1, 1, 0, 0, 0, 1)))
    assert [len(hit) for hit in hits.values()] == [5, 8, 8] * 2


def test_best_possible_heatmap_hits_a_mask_that_fills_a_cell_and_the_gaussian_only_the_middle():
    masks = np.zeros((2, 32, 32), dtype=bool)
    masks[0, 8:16, 24:32] = True
    masks[1, 0:8, 0:8] = True
    assert pointing_game(best_possible_heatmaps(masks), masks).tolist() == [1, 1]
    centred = centred_gaussian(32)
    bell = gaussian(32, std=8)
    np.testing.assert_allclose(centred, np.outer(bell, bell), rtol=1e-5)
    assert pointing_game(centred.expand(2, -1, -1), masks).tolist() == [0, 0]


# deletion


class QuadrantMean(nn.Module):
    """Two logits: the mean of the upper left 4 x 4 pixels, and 0."""

    def __init__(self, mean=MEAN):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))

    def forward(self, images):
        first = images[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], dim=1)


WHOLE, PAINTED = expit(1), expit(np.mean(MEAN))  # probabilities of the first class, image all 1


def test_deletion_follows_the_order_and_leaves_the_images():
    images = torch.ones(2, 3, 8, 8)
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    curves = deletion(QuadrantMean(), images, [0, 1], order)
    np.testing.assert_allclose(curves[0], [WHOLE] + [PAINTED] * 4, rtol=1e-5)
    np.testing.assert_allclose(curves[1], 1 - np.array([WHOLE] * 4 + [PAINTED]), atol=1e-6)
    assert (images == 1).all()


def test_deletion_of_several_cells_at_once_skips_the_looks_between():
    images, order = rand(3, 3, 8, 8), np.tile(np.arange(64), (3, 1))
    one_by_one = deletion(QuadrantMean(), images, [0, 0, 1], order)
    four_at_once = deletion(QuadrantMean(), images, [0, 0, 1], order, at_once=4)
    np.testing.assert_allclose(four_at_once, one_by_one[:, ::4])


def test_deletion_in_small_batches_is_the_same():
    images, order = rand(3, 3, 8, 8), np.tile(np.arange(4), (3, 1))
    expected = deletion(QuadrantMean(), images, [0, 0, 1], order)
    found = deletion(QuadrantMean(), images, [0, 0, 1], order, batch_size=2)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


class Recorder(nn.Module):
    """Keeps the images that it is shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images):
        self.shown.append(images.clone())
        return torch.zeros(len(images), 2)


@pytest.mark.parametrize("mean", [(0.1, 0.2, 0.3), None])
def test_deletion_paints_whole_cells_each_at_its_turn_in_the_networks_mean_or_the_images(mean):
    """Cells are 4 x 4 pixels of a 2 x 2 grid; the first look is at the whole images."""
    recorder, images = Recorder(), rand(2, 3, 8, 8)
    colour = images.transpose(0, 1).flatten(1).mean(1).view(3, 1, 1)
    if mean is not None:
        colour = torch.tensor(mean).view(3, 1, 1)
        recorder.register_buffer("mean", colour[None])
    deletion(recorder, images, [0, 0], np.array([[3, 0, 2, 1], [0, 1, 2, 3]]))
    corners = [[(4, 4), (0, 0), (4, 0), (0, 4)], [(0, 0), (0, 4), (4, 0), (4, 4)]]
    assert len(recorder.shown) == 5
    for count, shown in enumerate(recorder.shown):
        expected = images.clone()
        for image, places in zip(expected, corners):
            for row, column in places[:count]:
                image[:, row : row + 4, column : column + 4] = colour
        torch.testing.assert_close(shown, expected)


def test_deletion_takes_a_function_for_a_model():
    images, order = rand(2, 3, 8, 8), np.array([[3, 0, 2, 1]] * 2)
    expected = deletion(QuadrantMean(images.mean((0, 2, 3)).tolist()), images, [0, 0], order)
    found = deletion(lambda images: QuadrantMean()(images), images, [0, 0], order)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_gives_each_image_another_one_and_takes_each_once(count):
    for seed in range(20):
        others = derangement(count, np.random.default_rng(seed))
        assert sorted(others) == list(range(count))
        assert not (others == np.arange(count)).any()


def test_strongest_cell_is_deleted_first():
    maps = torch.tensor([[[0.0, 3.0], [-1.0, 2.0]], [[5.0, 5.0], [6.0, 1.0]]])
    assert deletion_order(maps).tolist() == [[1, 3, 0, 2], [2, 0, 1, 3]]
    stripes = (torch.arange(64.0) % 2).view(1, 8, 8)  # ties by place
    assert deletion_order(stripes).tolist() == [[*range(1, 64, 2), *range(0, 64, 2)]]


def test_deletion_orders_by_hand():
    maps = torch.zeros(3, 4, 4)
    maps[0, 0, 0], maps[1, 0, 1], maps[2, 3, 3] = 5.0, 4.0, 3.0
    orders = deletion_orders(maps, np.random.default_rng(0))
    for order in orders.values():
        assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(16), (3, 1)))
    own = orders["own map"][:, 0].tolist()
    assert own == [0, 1, 15]
    others = orders["another image's map"][:, 0].tolist()
    assert sorted(others) == own and all(a != b for a, b in zip(others, own))
    assert orders["mean map"][:, :3].tolist() == [[0, 1, 15]] * 3
    for row in orders["centre first"].tolist():
        assert set(row[:4]) == {5, 6, 9, 10} and set(row[-4:]) == {0, 3, 12, 15}
    assert not np.array_equal(*orders["random order"][:2])


def test_gain_is_the_area_between_an_order_and_random_order():
    orders = {
        "first": np.array([[0, 1, 2, 3]] * 2),
        "last": np.array([[1, 2, 3, 0]] * 2),
        "random order": np.array([[1, 0, 2, 3]] * 2),
    }
    gains = deletion_gains(QuadrantMean(), torch.ones(2, 3, 8, 8), [0, 0], orders)
    assert list(gains) == ["first", "last"]
    # Of five looks, "first" deletes the cell that counts one sooner than random order does, "last"
    # two later.
    np.testing.assert_allclose(gains["first"], (WHOLE - PAINTED) / 5, rtol=1e-3)
    np.testing.assert_allclose(gains["last"], -2 * (WHOLE - PAINTED) / 5, rtol=1e-3)


def test_deletion_tables_hold_each_order_against_random_order_and_the_own_map_against_each():
    gains = {
        "right": {"own map": np.array([3.0, 5.0]), "centre": np.array([1.0, 1.0])},
        "wrong": {"own map": np.array([1.0]), "centre": np.array([2.0])},
    }
    tables = deletion_tables(gains)
    assert list(tables) == ["gain over random order", "own map less this one"]
    first, second = tables.values()
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
    assert second.loc[("centre", "right"), "from"] >= 2  # paired, image by image


# randomisation


def test_reset_layers_changes_the_named_layers_of_a_copy_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    changed = reset_layers(model, ["fc", "layer4"]).state_dict()
    assert torch.equal(drawn, torch.rand(1)), "the caller's random state was used up"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    differs = {name for name, value in changed.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in differs} == {"fc", "layer4"}
    again = reset_layers(model, ["fc", "layer4"]).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in changed.items())


def test_randomisation_begins_with_the_network_itself_and_goes_from_the_top_down(model):
    images = rand(6, 3, 32, 32, seed=2)
    found = randomisation_test(model, images, 3)
    steps = ["as trained", "and fc", "and layer4", "and layer3", "and layer2", "and layer1"]
    assert list(found) == steps
    assert found["as trained"].loc["same"].round(6).tolist() == [1, 1, 1]
    original = GradCAM(model).evidence(images, 3)
    changed = GradCAM(reset_layers(model, ["fc", "layer4"])).evidence(images, 3)
    expected = same_minus_other(rank_correlation(changed, original, every=True))
    pd.testing.assert_frame_equal(found["and layer4"], expected)


# diagnosis


def test_diagnosis_tells_the_three_kinds_of_map_apart():
    some, none, nothing = [[1, -2], [-1, -1]], [[-1, -2], [-1, -1.5]], [[0, 0], [0, 0]]
    first, second, third = diagnose(torch.tensor([some, none, nothing]))
    assert first == "25% of the cells speak for the class; evidence from -2.00 to +1.00 logit units"
    assert second.startswith("blank: no cell speaks for the class") and "-2.00 to -1.00" in second
    assert third.startswith("blank: the layer puts out nothing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_of_nan_is_called_that(value):
    maps = rand(2, 4, 4)
    maps[1, 2, 2] = value
    first, second = diagnose(maps)
    assert first.startswith("100% of the cells")
    assert second.startswith("no map: a cell is NaN or infinite")


def test_a_map_of_nan_is_not_measured():
    maps = rand(2, 4, 4)
    maps[1, 2, 2] = float("nan")
    with pytest.raises(ValueError, match="holds NaN"):
        pointing_game(maps, np.ones((2, 4, 4), dtype=bool))
    with pytest.raises(ValueError, match="holds NaN"):
        deletion_order(maps)
