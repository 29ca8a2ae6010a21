import numpy as np
import pytest
import torch

from helpers.explanation import derangement, diagnose


@pytest.mark.parametrize("count", [2, 3, 50])
def test_derangement_gives_each_image_another_one_and_takes_each_once(count):
    for seed in range(20):
        others = derangement(count, np.random.default_rng(seed))
        assert sorted(others) == list(range(count))
        assert not (others == np.arange(count)).any()


def test_diagnosis_tells_the_three_kinds_of_map_apart():
    some, none, nothing = [[1, -2], [-1, -1]], [[-1, -2], [-1, -1.5]], [[0, 0], [0, 0]]
    first, second, third = diagnose(torch.tensor([some, none, nothing]))
    assert first == "25% of the cells speak for the class; evidence from -2.00 to +1.00 logit units"
    assert second.startswith("blank: no cell speaks for the class") and "-2.00 to -1.00" in second
    assert third.startswith("blank: the layer puts out nothing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_of_nan_is_called_that(value):
    maps = torch.rand(2, 4, 4)
    maps[1, 2, 2] = value
    first, second = diagnose(maps)
    assert first.startswith("100% of the cells")
    assert second.startswith("no map: a cell is NaN or infinite")
