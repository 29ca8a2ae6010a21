import time
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from helpers import plots, shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.interactive import explorer
from helpers.model import dilated, load_pretrained, resnet18


@pytest.fixture(scope="module")
def model():
    return load_pretrained("shapes10")


@pytest.fixture(scope="module")
def sets(model):
    """Thirty test images and twenty others; of the first, 3 are given another class's logits, as if they had been mistaken."""
    parts = [Dataset(**shapes.generate(size, seed), classes=shapes.CLASSES) for size, seed in ((30, 7), (20, 8))]
    found = [predict(model, part) for part in parts]
    logits = found[0].logits.copy()
    logits[[4, 5, 6]] = logits[[5, 6, 7]]
    return {"test": (parts[0], Predictions(logits, parts[0].labels, shapes.CLASSES)), "training": (parts[1], found[1])}


@pytest.fixture
def explore(model, sets):
    return explorer.Explorer(model, sets)


def test_it_begins_with_all_images_and_the_predicted_class_against_the_runner_up(explore, sets):
    predictions = sets["test"][1]
    assert explore.chosen.tolist() == list(range(30)) and explore.position.max == 30
    assert [explore.first.value, explore.second.value] == np.argsort(-predictions.logits[0])[:2].tolist()


def test_filters_leave_the_images_they_name(explore, sets):
    predictions = sets["test"][1]
    explore.outcome.value = "wrong"
    assert explore.chosen.tolist() == np.flatnonzero(~predictions.correct).tolist() != []
    index = explore.chosen[0]
    assert (explore.first.value, explore.second.value) == (predictions.predicted[index], predictions.labels[index])
    explore.split.value = "training"
    explore.outcome.value = "right"
    explore.actual.value = 2
    expected = (sets["training"][1].labels == 2) & sets["training"][1].correct
    assert explore.chosen.tolist() == np.flatnonzero(expected).tolist()


def test_a_cell_of_the_confusion_matrix_is_one_click(explore, sets):
    button = next(cell for cell in explore.box.children[-1].children if getattr(cell, "tooltip", "") == "is heart, said hexagon")
    assert button.description == "1"
    button.click()
    assert explore.chosen.tolist() == [4] and explore.note.value == "1 images"
    explore.show_cell(0, 9)
    assert len(explore.chosen) == 0 and explore.picture.value == b""
    explore.actual.value = None
    explore.said.value = None
    assert len(explore.chosen) == 30 and explore.picture.value


def draw(monkeypatch):
    """What is handed to `plots.explanation`, by the first letters of its parameters' names."""
    shown = {}
    monkeypatch.setattr(plots, "explanation", lambda *args, **photo: shown.update(zip("itpclms", args)) or Figure())
    return shown


@pytest.mark.parametrize("grid", ["8 × 8 cells", "layer3"])
def test_maps_are_grad_cams_of_the_two_chosen_classes(explore, model, sets, monkeypatch, grid):
    shown = draw(monkeypatch)
    explore.position.value, explore.grid.value = 9, grid
    explore.first.value, explore.second.value, explore.strength.value = 3, 8, 0.2
    image = sets["test"][0].tensor([8])
    cam = GradCAM(model, "layer3") if grid == "layer3" else GradCAM(dilated(model))
    ((name, (raw, heat)),) = shown["m"].items()
    expected = cam.evidence(image, [[3, 8]])[0]
    torch.testing.assert_close(raw, torch.cat([expected, expected[:1] - expected[1:]]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heat, cam(image, [[3, 8]])[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(shown["i"], image[0]) and shown["s"] == 0.2 and name == grid
    assert shown["t"] == f"said {shapes.CLASSES[sets['test'][1].predicted[8]]}\nis {shapes.CLASSES[8]}"


def test_a_picture_has_both_grids(model, sets, monkeypatch):
    shown = draw(monkeypatch)
    explorer.picture(explorer.grids(model), *sets["test"], 4)
    two = [sets["test"][1].predicted[4], sets["test"][1].labels[4]]
    assert {name: raw.shape for name, (raw, _) in shown["m"].items()} == {"4 × 4 cells": (3, 4, 4), "8 × 8 cells": (3, 8, 8)}
    expected = GradCAM(dilated(model)).evidence(sets["test"][0].tensor([4]), [two])[0]
    torch.testing.assert_close(shown["m"]["8 × 8 cells"][0][:2], expected, rtol=1e-4, atol=1e-5)


def test_every_change_draws_once_and_another_picture(explore, monkeypatch):
    explanation, calls = plots.explanation, []
    monkeypatch.setattr(plots, "explanation", lambda *args: calls.append(args) or explanation(*args))
    changes = dict(position=4, grid="layer2", view="cells", first=1, second=2, outcome="wrong", split="training", actual=1)
    pictures = {explore.picture.value}
    for name, value in changes.items():
        calls.clear()
        getattr(explore, name).value = value
        assert len(calls) == (0 if len(explore.chosen) == 0 else 1), name
        pictures.add(explore.picture.value)
    assert len(pictures) >= len(changes)
    explore.outcome.value = "all"
    assert imread(BytesIO(explore.picture.value)).shape[2] == 4


def test_a_change_shows_quickly(explore):
    seconds = []
    for position in range(2, 12):
        start = time.perf_counter()
        explore.position.value = position
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.5  # 0.15 on two idle cores; this leaves room for a busy machine


def test_many_classes_have_no_matrix_of_buttons(sets):
    names, images = tuple(f"class {n}" for n in range(13)), sets["test"][0]
    dataset, model = Dataset(images.images, images.labels, names), resnet18(13, width=16)
    box = explorer.Explorer(model, {"test": (dataset, predict(model, dataset))}).box
    assert not any(isinstance(child, explorer.widgets.GridBox) for child in box.children)


@pytest.mark.parametrize("front_end", [True, False])
def test_without_a_front_end_it_is_a_figure(model, sets, monkeypatch, front_end):
    monkeypatch.delenv("VSCODE_PID", raising=False)
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    if front_end:
        monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")
    shown = explorer.explore(model, sets)
    assert isinstance(shown, explorer.widgets.VBox if front_end else Figure)
