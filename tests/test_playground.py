import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions
from helpers.gradcam import GradCAM
from helpers.interactive import playground
from helpers.interactive.explorer import quantised
from helpers.model import load_pretrained

DRAWN = Dataset(**shapes.generate(60, seed=9), classes=shapes.CLASSES)


@pytest.fixture
def predictions():
    """Every image in its own class with a confidence of its own, but for images 0 to 9, each taken for the next class."""
    said = DRAWN.labels.copy()
    said[:10] = (said[:10] + 1) % 10
    logits = np.zeros((60, 10), np.float32)
    logits[np.arange(60), said] = np.linspace(2, 5, 60)
    return Predictions(logits, DRAWN.labels, shapes.CLASSES)


def contents(shown) -> dict:
    return json.loads(re.search(r"json\">(.*?)</script>", shown.data).group(1))


def test_half_of_the_rounds_are_mistakes_and_each_has_its_like(predictions, monkeypatch):
    """Images 10 to 19 are the surest of no class: the closest in class and confidence to the mistakes, images 0 to 9."""
    shown, asked = [], []
    monkeypatch.setattr(playground, "quantised", lambda maps: shown.append(maps) or quantised(maps))
    tensor = Dataset.tensor
    monkeypatch.setattr(Dataset, "tensor", lambda self, indices: asked.append(indices) or tensor(self, indices))
    data = contents(playground.play(load_pretrained("shapes10"), DRAWN, predictions, rounds=12))
    (indices,) = asked
    wrong, right = indices[indices < 10], indices[indices >= 10]
    assert len(wrong) == len(right) == 6 and sorted((wrong + 1) % 10) == sorted(right - 10)
    assert data["answers"] == ["wrong" if index < 10 else "right" for index in indices]
    expected = GradCAM(load_pretrained("shapes10")).evidence(tensor(DRAWN, indices), predictions.predicted[indices])
    torch.testing.assert_close(shown[0], expected)


def test_like_in_confidence_is_the_nearest_above_or_below(monkeypatch):
    logits = np.zeros((60, 10), np.float32)
    said = DRAWN.labels.copy()
    said[0] = (said[0] + 1) % 10
    logits[np.arange(60), said] = 2  # far below the mistake's confidence ...
    members = [i for i in range(1, 60) if said[i] == said[0]]
    logits[0, said[0]], logits[members[-1], said[0]] = 4, 4.1  # ... but for one that is just above
    asked, tensor = [], Dataset.tensor
    monkeypatch.setattr(Dataset, "tensor", lambda self, indices: asked.append(indices) or tensor(self, indices))
    playground.play(load_pretrained("shapes10"), DRAWN, Predictions(logits, DRAWN.labels, shapes.CLASSES), rounds=2)
    assert len(members) > 1 and sorted(asked[0]) == [0, members[-1]]


def test_game_without_mistakes_is_refused(predictions):
    with pytest.raises(ValueError, match="more images"):
        right = Predictions(predictions.logits[10:], DRAWN.labels[10:], shapes.CLASSES)
        playground.play(load_pretrained("shapes10"), DRAWN, right)


@pytest.mark.parametrize("front_end", [True, False], ids=["widgets", "page"])
def test_playground_draws_anew_and_follows_its_sliders(front_end, monkeypatch):
    monkeypatch.setattr(playground, "has_front_end", lambda: front_end)
    shown = []
    draw = playground.plots.image_grid
    monkeypatch.setattr(
        playground.plots, "image_grid", lambda images, *args, **kwargs: shown.append(images) or draw(images, *args, **kwargs)
    )
    image = DRAWN.images[0]
    box = playground.augmentation_playground(image)
    assert len(shown[-1]) == 9 and (shown[-1][0] == image).all()
    if not front_end:
        assert isinstance(box, Figure)
        return
    *strengths, again, picture = box.children
    before = picture.value
    again.click()
    assert picture.value != before and not all((a == b).all() for a, b in zip(*shown[-2:]))
    for control in strengths:
        control.value = 0
    assert all((drawn == image).all() for drawn in shown[-1]), "with no step left, every draw is the image"
