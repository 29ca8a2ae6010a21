import base64
import io
import json
import re
import zlib
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from helpers import plots, shapes
from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.interactive import explorer
from helpers.interactive.photo import grids
from helpers.model import dilated, load_pretrained, resnet18

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><b>bold</b>", "a'\"&<!--")


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


class Tags(HTMLParser):
    """Collects the elements of a piece of HTML: [(tag, attributes, text)]."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append([tag, dict(attributes), ""])

    def handle_data(self, data):
        self.found[-1][2] += data


def contents(shown) -> dict:
    """The data of an explorer."""
    return next(json.loads(text) for tag, attributes, text in Tags(shown.data).found if attributes.get("type"))


def maps(data, grid):
    """Its maps in logit units, (N, num_classes, h, h)."""
    grid = data["grids"][grid]
    cells = np.frombuffer(zlib.decompress(base64.b64decode(grid["cells"])), np.int8).astype(float)
    return (
        cells.reshape(len(data["images"]), len(data["classes"]), grid["side"], -1) * np.array(grid["scales"])[:, None, None, None]
    )


def test_it_holds_mistakes_in_turns_with_right_predictions_then_the_others_of_every_set(model, sets):
    data = contents(explorer.explore(model, sets))
    first = data["images"][:6]
    assert [image["said"] == image["actual"] for image in first] == [False, True] * 3
    assert sorted(image["index"] for image in first[::2]) == [4, 5, 6]
    held = [(image["set"], image["index"]) for image in data["images"]]
    assert sorted(held) == [(0, i) for i in range(30)] + [(1, i) for i in range(20)] and data["sets"] == ["test", "training"]
    for image in data["images"]:
        predictions = list(sets.values())[image["set"]][1]
        assert image["said"] == predictions.predicted[image["index"]] and image["actual"] == predictions.labels[image["index"]]
        np.testing.assert_allclose(image["probabilities"], predictions.probabilities[image["index"]], atol=5e-5)


@pytest.mark.parametrize("grid, explain", [(0, GradCAM), (1, lambda model: GradCAM(dilated(model)))])
def test_its_maps_are_grad_cams_to_half_a_step(model, sets, grid, explain):
    data = contents(explorer.explore(model, {"test": sets["test"]}))
    indices = [image["index"] for image in data["images"]]
    every = torch.arange(10).expand(len(indices), -1)
    expected = explain(model).evidence(sets["test"][0].tensor(indices), every).numpy()
    step = np.abs(expected).max((1, 2, 3), keepdims=True) / 127
    assert (np.abs(maps(data, grid) - expected) <= 0.501 * step).all()


def test_its_sprite_holds_the_images_in_their_order(model, sets):
    data = contents(explorer.explore(model, {"test": sets["test"]}))
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["sprite"].split(",")[1]))))
    for i, image in enumerate(data["images"]):
        row, column = divmod(i, data["columns"])
        tile = sheet[32 * row : 32 * row + 32, 32 * column : 32 * column + 32].astype(float)
        distances = [np.abs(tile - other).mean() for other in sets["test"][0].images]
        assert np.argmin(distances) == image["index"] and min(distances) < 10


def test_palettes_are_those_of_the_figures(model, sets):
    data = contents(explorer.explore(model, {"test": sets["test"]}))
    for palette, name in zip(data["palettes"], (plots.HEAT, plots.SIGNED)):
        colours = np.frombuffer(base64.b64decode(palette), np.uint8).reshape(256, 3)
        shares = np.linspace(0, 0.999, 50)
        expected = matplotlib.colormaps[name](shares, bytes=True)[:, :3]
        assert (colours[(256 * shares).astype(int)] == expected).all()


def test_count_is_set_by_the_caller_or_the_environment_and_less_with_many_classes(model, sets, monkeypatch):
    def held(**count):
        return len(contents(explorer.explore(model, {"test": sets["test"]}, **count))["images"])

    assert held(count=8) == 8
    monkeypatch.setenv("WALKTHROUGH_IMAGES", "12")
    assert held() == 12
    monkeypatch.setattr(explorer, "IMAGES", 70)
    images, names = sets["test"][0], tuple(f"class {n}" for n in range(100))
    dataset, wide = Dataset(images.images, images.labels, names), resnet18(100, width=16)
    shown = explorer.explore(wide, {"test": (dataset, predict(wide, dataset))})
    assert len(contents(shown)["images"]) == 7  # 10 * 70 maps of 100 classes


def test_pairs_are_alike_in_class_and_confidence_and_each_used_once():
    said = np.tile([0, 1], 20)
    logits = np.zeros((40, 3), np.float32)
    logits[np.arange(40), said] = np.linspace(2, 5, 40)
    labels = said.copy()
    labels[[10, 11, 30]] = 2
    found = explorer.pairs(Predictions(logits, labels, ("a", "b", "c")), 9, np.random.default_rng(0))
    assert {wrong: right in (wrong - 2, wrong + 2) for wrong, right in found} == {10: True, 11: True, 30: True}
    none = explorer.pairs(Predictions(logits, said, ("a", "b", "c")), 9, np.random.default_rng(0))
    assert none.shape == (0, 2)
    all_wrong = Predictions(logits, 1 - said, ("a", "b", "c"))
    assert sorted(explorer.choose(all_wrong, 100)) == list(range(40)), "with nothing right there are no pairs, but images"


def test_a_picture_has_both_grids(model, sets, monkeypatch):
    shown = {}
    monkeypatch.setattr(plots, "explanation", lambda *args: shown.update(zip("itpclm", args)) or Figure())
    explorer.picture(grids(model), *sets["test"], 4)
    two = [sets["test"][1].predicted[4], sets["test"][1].labels[4]]
    assert shown["t"] == f"said {shapes.CLASSES[two[0]]}\nis {shapes.CLASSES[two[1]]}"
    assert {name: raw.shape for name, (raw, _) in shown["m"].items()} == {"4 × 4 cells": (3, 4, 4), "8 × 8 cells": (3, 8, 8)}
    expected = GradCAM(dilated(model)).evidence(sets["test"][0].tensor([4]), [two])[0]
    torch.testing.assert_close(shown["m"]["8 × 8 cells"][0][:2], expected, rtol=1e-4, atol=1e-5)


def test_without_its_scripts_a_still_figure_is_left_and_nothing_else(model, sets):
    shown = explorer.explore(model, {"test": sets["test"]}).data
    rest = re.sub(r"<script.*?</script>", "", shown, flags=re.DOTALL)
    (div, _, text), (img, attributes, more) = Tags(rest).found
    assert (div, img, text + more) == ("div", "img", "") and "maps" in attributes["alt"]
    png = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(png)).size > (800, 300)


def test_names_of_classes_are_data(sets):
    images = sets["test"][0]
    dataset, model = Dataset(images.images, images.labels % 3, HOSTILE), resnet18(3, width=16)
    shown = explorer.explore(model, {"</script>": (dataset, predict(model, dataset))})
    assert [tag for tag, *_ in Tags(shown.data).found] == ["div", "img", "script", "script"]
    assert contents(shown)["classes"] == list(HOSTILE) and contents(shown)["sets"] == ["</script>"]
