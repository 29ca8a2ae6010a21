import base64
import io
import re
import zlib

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tools import elements, embedded_data

from helpers import plots, shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.interactive import explorer
from helpers.model import dilated, load_pretrained, resnet18

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><b>bold</b>", "a'\"&<!--")


@pytest.fixture(scope="module")
def model():
    return load_pretrained("shapes10")


@pytest.fixture(scope="module")
def sets(model):
    """Thirty test images and twenty others.

    Of the first, 3 are given another class's logits, as if they had been mistaken.
    """
    parts = []
    for size, seed in ((30, 7), (20, 8)):
        parts.append(Dataset(**shapes.generate(size, seed), classes=shapes.CLASSES))
    found = [predict(model, part) for part in parts]
    logits = found[0].logits.copy()
    logits[[4, 5, 6]] = logits[[5, 6, 7]]
    mistaken = Predictions(logits, parts[0].labels, shapes.CLASSES)
    return {"test": (parts[0], mistaken), "training": (parts[1], found[1])}


@pytest.fixture(scope="module")
def page(model, sets):
    """An explorer of both sets, large enough for all images."""
    return explorer.explore(model, sets)


@pytest.fixture(scope="module")
def data(page):
    """The data of this explorer."""
    return embedded_data(page)


@pytest.fixture(scope="module")
def held(data, sets):
    """The images that it should hold, in its order."""
    parts = list(sets.values())
    rows = [parts[image["set"]][0].subset([image["index"]]) for image in data["images"]]
    images, labels = (
        np.concatenate([getattr(row, name) for row in rows]) for name in ("images", "labels")
    )
    return Dataset(images, labels, shapes.CLASSES)


def maps(data, grid):
    """Its maps in logit units, (N, num_classes, h, h)."""
    grid = data["grids"][grid]
    content = zlib.decompress(base64.b64decode(grid["cells"]))
    whole = np.frombuffer(content, np.int8).astype(float)
    shape = (len(data["images"]), len(data["classes"]), grid["side"], grid["side"])
    return whole.reshape(shape) * np.array(grid["scales"])[:, None, None, None]


def test_it_holds_mistakes_in_turns_with_right_predictions_then_the_others_of_every_set(data, sets):
    first = data["images"][:6]
    assert [image["said"] == image["actual"] for image in first] == [False, True] * 3
    assert sorted(image["index"] for image in first[::2]) == [4, 5, 6]
    numbers = [(image["set"], image["index"]) for image in data["images"]]
    assert sorted(numbers) == [(0, i) for i in range(30)] + [(1, i) for i in range(20)]
    assert data["sets"] == ["test", "training"]
    for image in data["images"]:
        predictions = list(sets.values())[image["set"]][1]
        index = image["index"]
        assert image["said"] == predictions.predicted[index]
        assert image["actual"] == predictions.labels[index]
        expected = predictions.probabilities[index]
        np.testing.assert_allclose(image["probabilities"], expected, atol=5e-5)


@pytest.mark.parametrize(
    "grid, explain", [(0, GradCAM), (1, lambda model: GradCAM(dilated(model)))]
)
def test_its_maps_are_grad_cams_to_half_a_step(model, data, held, grid, explain):
    every = torch.arange(10).expand(len(held), -1)
    expected = explain(model).evidence(held.tensor(), every).numpy()
    step = np.abs(expected).max((1, 2, 3), keepdims=True) / 127
    assert (np.abs(maps(data, grid) - expected) <= 0.501 * step).all()


def test_its_sprite_holds_the_images_in_their_order(data, held):
    content = base64.b64decode(data["sprite"].split(",")[1])
    sheet = np.asarray(Image.open(io.BytesIO(content)))
    for i in range(len(held)):
        row, column = divmod(i, data["columns"])
        tile = sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32].astype(float)
        distances = [np.abs(tile - other).mean() for other in held.images]
        assert np.argmin(distances) == i
        assert min(distances) < 10


def test_palettes_are_those_of_the_figures(data):
    names = (plots.HEATMAP_COLOURS, plots.SIGNED_COLOURS)
    for palette, name in zip(data["palettes"], names, strict=True):
        colours = np.frombuffer(base64.b64decode(palette), np.uint8).reshape(256, 3)
        shares = np.linspace(0, 0.999, 50)
        expected = matplotlib.colormaps[name](shares, bytes=True)[:, :3]
        assert (colours[(256 * shares).astype(int)] == expected).all()


def test_count_is_set_by_the_caller_or_the_environment_and_less_with_many_classes(
    model, sets, monkeypatch
):
    def number_held(model, part, **count):
        return len(embedded_data(explorer.explore(model, {"test": part}, **count))["images"])

    assert number_held(model, sets["test"], count=8) == 8
    monkeypatch.setenv("WALKTHROUGH_IMAGES", "12")
    assert number_held(model, sets["test"]) == 12
    monkeypatch.setattr(explorer, "IMAGES", 70)
    images = sets["test"][0]
    names = tuple(f"class {n}" for n in range(100))
    dataset = Dataset(images.images, images.labels, names)
    wide = resnet18(100, width=16)
    assert number_held(wide, (dataset, predict(wide, dataset))) == 7  # 10 * 70 maps of 100 classes


def test_matches_are_alike_in_class_and_confidence_and_each_used_once():
    said = np.tile([0, 1], 20)
    logits = np.zeros((40, 3), np.float32)
    logits[np.arange(40), said] = np.linspace(2, 5, 40)
    labels = said.copy()
    labels[[10, 11, 30]] = 2
    predictions = Predictions(logits, labels, ("a", "b", "c"))
    found = explorer.match_mistakes(predictions, 9, np.random.default_rng(0))
    assert sorted(wrong for wrong, _ in found) == [10, 11, 30]
    assert all(right in (wrong - 2, wrong + 2) for wrong, right in found)
    assert len({right for _, right in found}) == 3


def test_without_mistakes_or_without_right_predictions_there_are_no_matches_but_images():
    said = np.tile([0, 1], 20)
    logits = np.eye(3, dtype=np.float32)[said]
    none = Predictions(logits, said, ("a", "b", "c"))
    assert explorer.match_mistakes(none, 9, np.random.default_rng(0)).shape == (0, 2)
    all_wrong = Predictions(logits, 1 - said, ("a", "b", "c"))
    for predictions in (none, all_wrong):
        assert sorted(explorer.choose_images(predictions, 100)) == list(range(40))


@pytest.mark.parametrize("count", [0, -3])
def test_no_pairs_are_made_where_none_are_asked_for(sets, count):
    found = explorer.match_mistakes(sets["test"][1], count, np.random.default_rng(0))
    assert found.shape == (0, 2)


def test_sets_of_different_classes_are_refused(model, sets):
    images, _ = sets["training"]
    turned = Dataset(images.images, images.labels, tuple(reversed(images.classes)))
    different = sets | {"turned": (turned, predict(model, turned))}
    with pytest.raises(ValueError, match="different classes: make an explorer for each"):
        explorer.explore(model, different)


def test_a_still_figure_has_both_grids(model, sets, monkeypatch):
    shown = {}

    def record(*args):
        shown.update(zip(("image", "title", "probabilities", "classes", "labels", "maps"), args))
        return Figure()

    monkeypatch.setattr(plots, "explanation_card", record)
    dataset, predictions = sets["test"]
    explorer.still_figure(explorer.cams_by_grid(model), dataset, predictions, 4)
    pair = [predictions.predicted[4], predictions.labels[4]]
    said, actual = (shapes.CLASSES[number] for number in pair)
    assert shown["title"] == f"said {said}\nis {actual}"
    assert shown["labels"] == [said, actual]
    sizes = {name: raw.shape for name, (raw, _) in shown["maps"].items()}
    assert sizes == {"4 × 4 cells": (3, 4, 4), "8 × 8 cells": (3, 8, 8)}
    cam = GradCAM(dilated(model))
    raw, heat = shown["maps"]["8 × 8 cells"]
    expected = cam.evidence(dataset.tensor([4]), [pair])[0]
    torch.testing.assert_close(raw[:2], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw[2], expected[0] - expected[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(heat, cam(dataset.tensor([4]), [pair])[0], rtol=1e-4, atol=1e-5)


def test_without_its_scripts_a_still_figure_is_left_and_nothing_else(page):
    rest = re.sub(r"<script.*?</script>", "", page.data, flags=re.DOTALL)
    div, image = elements(rest)
    assert (div.tag, image.tag, div.text + image.text) == ("div", "img", "")
    assert "maps" in image.attributes["alt"]
    png = base64.b64decode(image.attributes["src"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(png)).size > (800, 300)


def test_names_of_classes_are_data(sets):
    images = sets["test"][0]
    dataset = Dataset(images.images, images.labels % 3, HOSTILE)
    model = resnet18(3, width=16)
    shown = explorer.explore(model, {"</script>": (dataset, predict(model, dataset))})
    assert [element.tag for element in elements(shown.data)] == ["div", "img", "script", "script"]
    assert embedded_data(shown)["classes"] == list(HOSTILE)
    assert embedded_data(shown)["sets"] == ["</script>"]
