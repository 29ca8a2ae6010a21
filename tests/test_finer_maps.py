import numpy as np
import pandas as pd
import pytest
import torch

from helpers.data import Dataset
from helpers.model import dilated, resnet18
from helpers.studies import finer_maps


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


def test_the_four_answers_begin_with_the_networks_and_average_to_the_dilated_ones(model):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    four = finer_maps.four_answers(model, images)
    assert four.shape == (3, 4, 10)
    with torch.no_grad():
        np.testing.assert_allclose(four[:, 0], model(images), atol=1e-5)
        np.testing.assert_allclose(four.mean(1), dilated(model)(images), atol=1e-5)


def test_answers_by_hand():
    test = Dataset(np.zeros((3, 32, 32, 3), np.uint8), np.array([0, 0, 1]), ("a", "b"))
    logits = np.zeros((3, 4, 2), np.float32)
    logits[0, :, 0] = 3  # right, and all four agree
    logits[1, :, 1] = (1, -2, -2, -2)  # wrong, and the other three correct it
    logits[2, :, 0] = 2  # wrong, and all four agree
    table = finer_maps.answers(logits, test).set_index("group")
    assert table.loc["all", "same"] == pytest.approx(2 / 3)
    assert table.loc["wrong", ["images", "same", "dilated right"]].tolist() == [2, 0.5, 0.5]
    assert table.loc["wrong", "four differ"] == 0.5
    assert table.loc["wrong", "spread"] == pytest.approx(np.std([1, -2, -2, -2]) / 2)
    assert table.loc["right", ["images", "same", "original right"]].tolist() == [1, 1, 1]
    groups = table.index[table.index.str.startswith("confidence")]
    assert table.loc[groups, "images"].sum() == 3


def test_maps_on_64_cells_are_the_dilated_networks_and_every_other_cell_is_the_originals(model):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = finer_maps.maps_on_64_cells(model, images, np.zeros(4, int), np.random.default_rng(0))
    assert {tuple(of.shape) for of in maps.values()} == {(4, 8, 8)}
    coarse = finer_maps.maps_of(model, images, np.zeros(4, int))["own map"]
    torch.testing.assert_close(4 * maps["8 x 8, dilated"][:, ::2, ::2], coarse)
    blocks = maps["8 x 8, dilated"].reshape(4, 4, 2, 4, 2).mean((2, 4))
    averaged = maps["8 x 8, averaged to 4 x 4"]
    torch.testing.assert_close(averaged[:, 0, 0], blocks[:, 0, 0])  # a corner is not interpolated
    assert maps["centre first"][0].argmax() in (27, 28, 35, 36)


def test_between_old_cells_are_the_means_of_their_neighbours_and_at_the_edge_the_last_again():
    old = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    fine = finer_maps.interpolated(old)
    torch.testing.assert_close(fine[:, ::2, ::2], old)
    torch.testing.assert_close(fine[:, 2, 1], (old[:, 1, 0] + old[:, 1, 1]) / 2)
    torch.testing.assert_close(fine[:, 5, 3], old[:, 2:4, 1:3].mean((1, 2)))
    torch.testing.assert_close(fine[:, 7, 2], old[:, 3, 1])


@pytest.mark.parametrize(("test", "rows"), [("answers", None), ("deletion", 10)])
def test_the_command_writes_a_table(test, rows, tmp_path, capsys):
    path = tmp_path / "table.csv"
    options = "--data shapes10 --test-size 20 --images 10".split()
    finer_maps.main([test, *options, "--output", str(path)])
    table = pd.read_csv(path)
    assert set(table["network"]) == {"shapes10"}
    if rows:
        ahead = table.set_index("map").filter(like="own ahead").loc["8 x 8, dilated"]
        assert len(table) == rows and ahead.tolist() == [0, 0, 0]
