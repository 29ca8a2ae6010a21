import numpy as np
import pytest
import torch
from tools import embedded_data

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.interactive import game
from helpers.interactive.embed import quantised
from helpers.interactive.explorer import explore
from helpers.model import load_pretrained

DRAWN = Dataset(**shapes.generate(60, seed=9), classes=shapes.CLASSES)


@pytest.fixture(scope="module")
def model():
    return load_pretrained("shapes10")


@pytest.fixture
def predictions():
    """Every image in its own class with a confidence of its own, but for images 0 to 9.

    Each of these is taken for the next class.
    """
    said = DRAWN.labels.copy()
    said[:10] = (said[:10] + 1) % 10
    logits = np.zeros((60, 10), np.float32)
    logits[np.arange(60), said] = np.linspace(2, 5, 60)
    return Predictions(logits, DRAWN.labels, shapes.CLASSES)


@pytest.fixture
def asked(monkeypatch):
    """The indices that a game asks the data set for, one array for each game."""
    found = []
    tensor = Dataset.tensor

    def record(self, indices):
        found.append(indices)
        return tensor(self, indices)

    monkeypatch.setattr(Dataset, "tensor", record)
    return found


def test_half_of_the_rounds_are_mistakes_and_each_has_its_like(
    model, predictions, asked, monkeypatch
):
    """Images 10 to 19 are the closest in class and confidence to the mistakes, images 0 to 9."""
    shown = []

    def record(maps):
        shown.append(maps)
        return quantised(maps)

    monkeypatch.setattr(game, "quantised", record)
    data = embedded_data(game.play(model, DRAWN, predictions, rounds=12))
    (indices,) = asked
    wrong, right = indices[indices < 10], indices[indices >= 10]
    assert len(wrong) == len(right) == 6
    assert sorted((wrong + 1) % 10) == sorted(right - 10)
    assert data["answers"] == ["wrong" if index < 10 else "right" for index in indices]
    cam = GradCAM(load_pretrained("shapes10"))
    expected = cam.evidence(DRAWN.tensor(indices), predictions.predicted[indices])
    torch.testing.assert_close(shown[0], expected)


def test_like_in_confidence_is_the_nearest_above_or_below(model, asked):
    logits = np.zeros((60, 10), np.float32)
    said = DRAWN.labels.copy()
    said[0] = (said[0] + 1) % 10
    logits[np.arange(60), said] = 2  # far below the mistake's confidence ...
    members = [i for i in range(1, 60) if said[i] == said[0]]
    logits[0, said[0]] = 4
    logits[members[-1], said[0]] = 4.1  # ... but for one that is just above
    game.play(model, DRAWN, Predictions(logits, DRAWN.labels, shapes.CLASSES), rounds=2)
    assert len(members) > 1
    assert sorted(asked[0]) == [0, members[-1]]


def test_game_without_mistakes_is_refused(model, predictions):
    right = Predictions(predictions.logits[10:], DRAWN.labels[10:], shapes.CLASSES)
    with pytest.raises(ValueError, match="more images"):
        game.play(model, DRAWN, right)


def test_predictions_of_other_images_or_by_another_network_are_refused(model):
    other = Dataset(**shapes.generate(60, seed=10), classes=shapes.CLASSES)
    for show in (
        game.play,
        lambda model, images, answers: explore(model, {"a": (images, answers)}),
    ):
        with pytest.raises(ValueError, match="of other images or by another network"):
            show(model, other, predict(model, DRAWN))
