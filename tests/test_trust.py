import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import shapes
from helpers.data import Dataset
from helpers.gradcam import GradCAM
from helpers.model import resnet18
from helpers.studies import trust


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_maps_are_grad_cams_and_squared_features(model, images):
    classes = np.array([0, 3, 3, 9, 1, 2])
    maps = trust.maps_of(model, images, classes)
    torch.testing.assert_close(maps["own map"], GradCAM(model).evidence(images, classes))
    squares = []
    hook = model.layer4.register_forward_hook(lambda m, i, out: squares.append((out**2).sum(1)))
    model(images)
    hook.remove()
    torch.testing.assert_close(maps["class-free map"], squares[0].detach())


class UpperLeft(nn.Module):
    """Two logits: ten times the mean of the upper left quarter, and 0."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, images):
        first = 10 * images[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], 1)


def test_probability_left_is_the_mean_over_the_looks():
    whole, gone = 1 / (1 + np.exp(-10)), 0.5  # of the first class
    order = np.array([[1, 0, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0]])
    ones, zeros = torch.ones(3, 3, 8, 8), torch.zeros(3, 3, 8, 8)
    left = trust.probability_left(UpperLeft(), ones, np.zeros(3, int), order, zeros, (1, 2))
    np.testing.assert_allclose(left, [(whole + gone) / 2, gone, whole], atol=1e-2)
    other = trust.probability_left(UpperLeft(), ones, np.ones(3, int), order, zeros, (1, 2))
    np.testing.assert_allclose(left + other, 1, atol=1e-6)


def test_orders_by_hand():
    own = torch.zeros(3, 4, 4)
    own[0, 0, 0], own[1, 0, 1], own[2, 3, 3] = 5.0, 4.0, 3.0
    maps = {"own map": own, "class-free map": own.flip(1)}
    left = np.tile(np.arange(16.0)[::-1], (3, 1))  # the last cell costs most
    orders = trust.orders_of(maps, left, np.array([7, 7, 2]), np.random.default_rng(0))
    first = {name: order[:, 0].tolist() for name, order in orders.items()}
    assert first["own map"] == [0, 1, 15] and first["class-free map"] == [12, 13, 3]
    assert first["by trying"] == first["by trying on all images"] == [15] * 3
    assert first["mean map"] == [0] * 3
    assert first["mean map of its class"][:2] == [1, 0]  # the image itself is left out
    assert set(first["centre first"]) <= {5, 6, 9, 10}
    assert sorted(first["another image's map"]) == [0, 1, 15]
    assert all(a != b for a, b in zip(first["another image's map"], first["own map"]))


def test_paints_keep_the_shape_and_blurring_the_mean_of_a_flat_image(images, model):
    found = trust.paints(torch.full_like(images, 0.25), model.mean)
    assert {paint.shape for paint in found.values()} == {images.shape}
    torch.testing.assert_close(found["blurred"], torch.full_like(images, 0.25))
    torch.testing.assert_close(found["grey"][0, :, 0, 0], model.mean[0, :, 0, 0])


def test_randomised_changes_one_part_of_a_copy(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    changed = trust.randomised(model, ("layer3",), 0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    differs = {name for name, value in changed.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in differs} == {"layer3"}
    again = trust.randomised(model, ("layer3",), 0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in changed.items())


def test_randomisation_begins_with_the_network_itself(model, images):
    table = trust.randomisation(model, images, np.zeros(6, int), 2).set_index(["part", "map"])
    assert table.loc["none", "same"].round(5).tolist() == [1, 1]
    assert table.loc[("fc", "class-free map"), "same"] == pytest.approx(1)
    assert table.loc["fc", "seeds"].tolist() == [2, 2]
    assert (table["from"] <= table["difference"]).all() and (
        table["difference"] <= table["to"]
    ).all()
    gap = table["same"] - table["other"]
    np.testing.assert_allclose(table["difference"], gap, atol=1e-6)


def test_a_tag_in_a_corner_is_one_of_four_and_nothing_else_changes():
    images = shapes.generate(40, seed=0)["images"]
    labels = np.arange(40) % 10
    tagged, masks = trust.tag_in_a_corner(images, labels)
    colours = shapes.add_tag(images, labels)[0][:, 0, 0]
    corners = {(0, 0): 0, (0, 27): 0, (27, 0): 0, (27, 27): 0}
    for image, old, mask, colour in zip(tagged, images, masks, colours):
        rows, columns = np.nonzero(mask)
        corners[rows.min(), columns.min()] += 1
        assert mask.sum() == 25 and (image[mask] == colour).all()
        assert (image[~mask] == old[~mask]).all()
    assert min(corners.values()) > 0


def test_a_tint_mixes_the_colour_into_every_pixel():
    images = np.full((2, 32, 32, 3), 100, np.uint8)
    colours = shapes.add_tag(images, np.array([0, 4]))[0][:, 0, 0]
    tinted, masks = trust.tint(images, np.array([0, 4]))
    np.testing.assert_allclose(tinted[:, 9, 9], 60 + 0.4 * colours, atol=0.51)
    assert masks.all() and (tinted == tinted[:, :1, :1]).all()


def test_the_largest_cell_touches_its_mask_or_not():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, 3, 3] = masks[1, 0, 0] = masks[2, 7, 0] = True
    maps = torch.tensor([[[2.0, 1], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]])
    assert trust.peak_on(maps, masks, 2) == pytest.approx(2 / 3)


def test_the_largest_cell_may_lie_beside_the_mask_and_in_the_same_quarter():
    masks = np.zeros((1, 32, 32), bool)
    masks[0, :5, :5] = True
    beside = torch.zeros(1, 4, 4)
    beside[0, 1, 1] = 1
    assert (trust.peak_on(beside, masks), trust.peak_on(beside, masks, 2)) == (0, 1)
    assert trust.peak_on(beside.flip(1), masks, 2) == 0


def test_score_tells_a_cheat_by_what_it_says():
    class ReadsTheTag(nn.Module):
        """Says the class whose colour the upper left pixel has."""

        def __init__(self):
            super().__init__()
            self.inner = resnet18(width=16).eval()
            self.mean, self.fc = self.inner.mean, self.inner.fc

        def forward(self, images):
            black = np.zeros((10, 32, 32, 3), np.uint8)
            colours = shapes.add_tag(black, np.arange(10))[0][:, 0, 0] / 255
            return -torch.cdist(images[:, :, 0, 0], torch.from_numpy(colours).float())

    def maps_of(model, images, classes=None):
        return trust_maps(model.inner, images, classes)

    one = Dataset(**shapes.generate(20, seed=0), classes=shapes.CLASSES)
    trust_maps = trust.maps_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "maps_of", maps_of)
        found = trust.score(ReadsTheTag(), shapes.add_tag, one)
    assert found["says the mark"] == 1 and found["right without mark"] < 0.5
    assert found["on object without mark"] <= 1


@pytest.mark.parametrize("test", ["deletion", "randomisation", "cheat"])
def test_the_command_writes_a_table(test, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trust, "QUICK", trust.replace(trust.QUICK, epochs=1))
    path = tmp_path / "table.csv"
    options = "--data shapes10 --test-size 20 --images 8 --seeds 1 --train-size 50".split()
    trust.main([test, *options, "--output", str(path)])
    table = pd.read_csv(path)
    rows = {"deletion": 3 * 9, "randomisation": 8 * 2, "cheat": 3 * 2}
    assert len(table) == rows[test] and not table.isna().any(axis=None)
    if test == "deletion":
        assert (table[table["order"] == "own map"]["own ahead"] == 0).all()
