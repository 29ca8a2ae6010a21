import numpy as np
import pandas as pd
import pytest
import torch

from helpers.evaluation import Predictions
from helpers.model import resnet18
from helpers.studies import finer_maps, trust
from helpers.studies.covering import close_calls
from helpers.support.intervals import wilson_interval


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    return resnet18(width=16).eval()


def test_answers_by_hand():
    labels, classes = np.array([0, 0, 1, 1]), ("a", "b")
    logits = np.float32([[3, 0], [0, 1], [2, 0], [0, 5]])  # right, wrong, wrong, right
    original = Predictions(logits, labels, classes)
    fine = Predictions(np.float32([[3, 0], [1, 0], [2, 0], [1, 0]]), labels, classes)
    table = finer_maps.answers(original, fine).set_index("group")
    assert table.loc["all", ["images", "same"]].tolist() == [4, 0.5]
    assert table.loc["wrong", ["images", "same", "dilated right"]].tolist() == [2, 0.5, 0.5]
    columns = ["images", "same", "original right", "dilated right"]
    assert table.loc["right", columns].tolist() == [2, 0.5, 1, 0.5]
    assert table.loc["all", ["from", "to"]].tolist() == list(wilson_interval(2, 4))
    groups = table.index[table.index.str.startswith("confidence")]
    assert table.loc[groups, "images"].sum() == 4


def test_maps_on_64_cells_are_the_dilated_networks_and_every_other_cell_is_the_originals(model):
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    maps = finer_maps.maps_on_64_cells(model, images, np.zeros(4, int), np.random.default_rng(0))
    assert {tuple(of.shape) for of in maps.values()} == {(4, 8, 8)}
    coarse = trust.maps_of(model, images, np.zeros(4, int))["own map"]
    torch.testing.assert_close(4 * maps["8 x 8, dilated"][:, ::2, ::2], coarse)
    blocks = maps["8 x 8, dilated"].reshape(4, 4, 2, 4, 2).mean((2, 4))
    averaged = maps["8 x 8, averaged to 4 x 4"]
    torch.testing.assert_close(averaged[:, 0, 0], blocks[:, 0, 0])  # a corner is not interpolated


def test_between_old_cells_are_the_means_of_their_neighbours_and_at_the_edge_the_last_again():
    old = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    fine = finer_maps.interpolated(old)
    torch.testing.assert_close(fine[:, ::2, ::2], old)
    torch.testing.assert_close(fine[:, 2, 1], (old[:, 1, 0] + old[:, 1, 1]) / 2)
    torch.testing.assert_close(fine[:, 5, 3], old[:, 2:4, 1:3].mean((1, 2)))
    torch.testing.assert_close(fine[:, 7, 2], old[:, 3, 1])


@pytest.mark.parametrize(("test", "rows"), [("answers", None), ("deletion", 6)])
def test_the_command_writes_a_table(test, rows, tmp_path, capsys):
    path = tmp_path / "table.csv"
    options = "--data shapes10 --test-size 20 --images 10".split()
    finer_maps.main([test, *options, "--output", str(path)])
    table = pd.read_csv(path)
    assert set(table["network"]) == {"shapes10"}
    if rows:
        ahead = table.set_index("map").filter(like="own ahead").loc["8 x 8, dilated"]
        assert len(table) == rows and ahead.tolist() == [0, 0, 0]


def test_correct_predictions_are_matched_with_the_mistakes_by_their_margins():
    margins = np.array([1.0, 5.0, 0.9, 1.2, 4.0, 9.0, 5.6, 0.95])
    logits = np.stack([margins + 3, np.full(8, 3.0), np.zeros(8)], axis=1)
    labels = [1, 2, 0, 0, 0, 0, 0, 1]  # mistakes: the first, the second and the last
    # Their margins are 1.0, 5.0 and 0.95. The correct predictions nearest to them have 0.9, 5.6 and
    # again 0.9, but none is taken twice: the third partner is the one with 1.2.
    answers = Predictions(np.float32(logits), np.array(labels), ("a", "b", "c"))
    close, _ = close_calls(answers, np.array([0, 1, 7]), np.array([[0, 1]] * 3))
    assert sorted(close) == [2, 3, 6]
