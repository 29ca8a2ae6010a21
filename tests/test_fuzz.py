"""Inputs drawn by machine: whatever they are, each is taken as it is or refused in one line.

The draws are the same every time. Others, and more of them: `--hypothesis-profile=open`.
"""

import html
import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_files import KINDS, as_plain, checkpoint, table
from test_plots import HEAT, IMAGES, MATRIX, RAW
from tools import (
    CPU,
    as_bytes,
    assert_same_history,
    elements,
    embedded_data,
    shapes_dataset,
    small_net,
)

from helpers import plots
from helpers.data import Dataset, load_dataset
from helpers.evaluation import Predictions
from helpers.interactive import explorer, game, photo
from helpers.model import resnet18
from helpers.training import TrainConfig, fit

pytestmark = pytest.mark.filterwarnings(
    "ignore:Matplotlib has no font|constrained_layout|.* not support"
)
FEW = settings(max_examples=settings.default.max_examples // 5)


def assert_is_one_line(error):
    assert str(error).isprintable() and str(error), repr(str(error))


# ---- Configurations

FEW_IMAGES = shapes_dataset(7)
NUMBERS = st.one_of(
    st.integers(-2, 70),
    st.floats(-0.5, 1.5),
    st.sampled_from([0, 1, 1e-9, 1e9, 10**30, -(10**30), 2**32 - 1, 2**63, 2**64]),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 5e-324, 1.8e308]),
)
VALUES = st.one_of(
    NUMBERS,
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.sampled_from([(), [], {}, b"1", "ring", 1j, np.float32(0.5), np.arange(3), object]),
    st.lists(NUMBERS, max_size=11).map(tuple),
    st.sampled_from([("ring",), ("no class",), ("ring", "ring"), ((1,), 2)]),
)
SETTINGS = st.dictionaries(
    st.sampled_from([field.name for field in fields(TrainConfig)]), VALUES, max_size=4
)


@given(SETTINGS)
def test_a_configuration_is_refused_in_one_line_or_trains_and_resumes(values):
    try:
        config = TrainConfig(**{"epochs": 1} | values)
    except ValueError as error:
        assert_is_one_line(error)
        assert str(error).split()[0] in values
        return
    assume(config.epochs <= 2 and max(config.image_sizes) <= 40)  # others take too long
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.pt"
        try:
            history = fit(small_net(), FEW_IMAGES, FEW_IMAGES, config, CPU, path)
        except (ValueError, FloatingPointError) as error:
            assert_is_one_line(error)
            return
        assert len(history) == config.epochs and np.isfinite(history.train_loss).all()
        assert_same_history(fit(small_net(), FEW_IMAGES, FEW_IMAGES, config, CPU, path), history)


# ---- Names of classes, through every figure and page

PARTS = [*"<>&'\"$\\_^{}%#` a", "</script>", "<!--", "\\frac", "&lt;", "${", "猫", "é", "\u200c"]
NAMES = st.one_of(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map("".join),
    st.text(st.characters(max_codepoint=0x24F, exclude_categories=["Cc"]), min_size=1, max_size=30),
)
THREE = st.lists(NAMES, min_size=3, max_size=3, unique=True).map(tuple)
SCORES = pd.DataFrame({"mean": [0.5] * 3, "from": [0.4] * 3, "to": [0.7] * 3})
FIGURES = {
    "image_grid": lambda a: plots.image_grid(IMAGES, a, row_labels=a),
    "lines": lambda a: plots.lines([1, 2], dict.fromkeys(a, [0, 1]), a[0], a[1], {a[2]: 0.5}),
    "confusion_matrix": lambda a: plots.confusion_matrix(MATRIX, a),
    "intervals": lambda a: plots.intervals(
        {a[0]: SCORES.set_axis(a), a[1]: SCORES.set_axis([(a[0], n) for n in a])}
    ),
    "feature_maps": lambda a: plots.feature_maps(dict.fromkeys(a, RAW), IMAGES[0]),
    "heatmap_rows": lambda a: plots.heatmap_rows(IMAGES, a, {a[0]: HEAT}, {a[1]: RAW}),
    "heatmaps": lambda a: plots.heatmaps(HEAT, a),
    "explanation_card": lambda a: plots.explanation_card(
        IMAGES[0], a[0], [0.2, 0.5, 0.3], a, a[:2], {a[2]: (RAW, HEAT[:2])}
    ),
    "cells": lambda a: plots.cells(IMAGES[0], RAW[0], a[0]),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
@FEW
@given(names=THREE)
def test_names_of_classes_are_drawn_as_they_stand(draw, names):
    figure = draw(names)
    figure.draw_without_rendering()
    texts = {text.get_text(): text for text in figure.findobj(plots.Text) if text.get_visible()}
    assert names[0] in texts or any("…" in text for text in texts)  # a long one was cut
    assert not any(texts[name].get_parse_math() for name in names if name in texts)


NETWORK = resnet18(3, width=16).eval()
TWELVE = shapes_dataset(12)
PHOTO = as_bytes(Image.fromarray(TWELVE.images[0]))


@FEW
@given(names=THREE)
def test_names_of_classes_are_data_on_every_page(names):
    images = Dataset(TWELVE.images, TWELVE.labels % 3, names)
    logits = np.eye(3, dtype=np.float32)[(images.labels + (np.arange(12) < 4)) % 3]
    predictions = Predictions(logits, images.labels, names)
    explored = explorer.explore(NETWORK, {names[0]: (images, predictions)}, 4)
    played = game.play(NETWORK, images, predictions, 4)
    for page in (explored, played):
        assert [part.tag for part in elements(page.data)] == ["div", "img", "script", "script"]
    data = embedded_data(explored)
    assert (data["classes"], data["sets"]) == (list(names), [names[0]])
    assert images.digest


@FEW
@given(names=THREE)
def test_names_of_classes_are_no_markup_beside_an_upload(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo, "has_front_end", lambda: True)
        button, note, _ = photo.upload(NETWORK, names).children
    file = {"name": names[0], "type": "", "size": 1, "content": PHOTO}
    button.notify_change({"name": "value", "type": "change", "old": (), "new": (file,)})
    assert [part.tag for part in elements(f"<p>{note.value}")] == ["p"]
    assert ", ".join(names) in html.unescape(note.value)


# ---- Folders of images

PNG = as_bytes(Image.fromarray(TWELVE.images[1]))
FILE_NAMES = ["1.png", "2.PNG", ".3.png", "4.txt", "5", "é.jpg", "a\nb.png", "\x1b[2J.png", "6.png"]
FOLDERS = ["cat", "dog", "dog ", ".git", "__MACOSX", "a\nb", "\x1b[2J", "$a$", "<b>", "train", "1"]
CONTENTS = st.sampled_from([PNG, PNG, PNG, PNG, PNG, b"", b"no image", PNG[:60]])
CLASS = st.lists(st.tuples(st.sampled_from(FILE_NAMES), CONTENTS), max_size=3)
PART = st.dictionaries(st.sampled_from(FOLDERS), CLASS, max_size=3)


def is_hidden(path):
    return any(name.startswith((".", "__MACOSX")) for name in path.parts)


@given(train=PART, test=st.one_of(st.none(), PART))
def test_a_folder_is_refused_in_one_line_or_read_to_the_last_image(train, test):
    with tempfile.TemporaryDirectory() as root:
        for part, classes in (("train", train), ("test", train if test is None else test)):
            for name, files in classes.items():
                (Path(root) / "pets" / part / name / "more").mkdir(parents=True)
                for i, (file, content) in enumerate(files):
                    place = Path(root) / "pets" / part / name / ("more" if i else ".")
                    (place / file).write_bytes(content)
        try:
            pair = load_dataset(Path(root) / "pets")
        except (ValueError, OSError) as error:
            assert_is_one_line(error)
            return
        for part, images in (("train", pair.train), ("test", pair.test)):
            folder = Path(root) / "pets" / part
            found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
            found = [path for path in found if not is_hidden(path)]
            counted = [p.parts[0] for p in found if p.suffix.lower() in (".png", ".jpg")]
            assert sorted(counted) == sorted(pair.classes[k] for k in images.labels)
            assert (images.images == TWELVE.images[1]).all()


# ---- Bytes of files

EDITS = {
    "overwrite": lambda content, place, other: other,
    "insert": lambda content, place, other: other + content[place : place + len(other)],
    "cut": lambda content, place, other: b"",
    "repeat": lambda content, place, other: content[place : place + 60] * 2,
    "zeros": lambda content, place, other: bytes(len(other)),
}
EDIT = st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 2**20), st.binary(max_size=60))


def damaged(content, edits):
    """Content with some of its parts changed; a place beyond its end is counted from its start."""
    for name, place, other in edits:
        place %= len(content) + 1
        part = EDITS[name](content, place, other)
        content = content[:place] + part + content[place + len(other) :]
    return content


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(
    edits=st.lists(EDIT, min_size=1, max_size=3), size=st.one_of(st.none(), st.integers(0, 9999))
)
def test_a_damaged_file_is_refused_or_read_as_it_was_written(kind, edits, size):
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        path, read = kind(Path(folder))
        expected = as_plain(read(path))
        path.write_bytes(damaged(path.read_bytes(), edits)[:size])
        try:
            found = as_plain(read(path))
        except Exception as error:
            assert type(error) is ValueError or kind not in (checkpoint, table)
            return
        if kind is table:  # rows that it lost are run again
            assert set(found.splitlines()[1:]) <= set(expected.splitlines()[1:])
        else:
            assert found in (expected, None)
