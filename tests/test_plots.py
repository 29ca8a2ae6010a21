import subprocess
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from PIL import Image
from tools import smallest_type

from helpers import plots

RNG = np.random.default_rng(0)
IMAGES = torch.from_numpy(RNG.random((3, 3, 6, 6), dtype=np.float32))
HEAT = torch.from_numpy(RNG.random((3, 6, 6), dtype=np.float32))
RAW = torch.from_numpy(RNG.normal(size=(3, 2, 2)).astype(np.float32))
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2],
        "train_loss": [2.0, 1.5],
        "train_accuracy": [0.2, 0.4],
        "validation_loss": [1.9, 1.4],
        "validation_accuracy": [0.3, 0.5],
    }
)
CONTRAST = pd.DataFrame(
    {"mean": [0.5, 0.2, 0.3], "from": [0.4, 0.1, 0.25], "to": [0.7, 0.3, 0.4]},
    ["same", "other", "difference"],
)
CARD = (IMAGES[0], "said b", [0.2, 0.5, 0.3], ("a", "b", "c"), ("b", "c"))
PHOTO = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8))
MATRIX = np.array([[8, 1, 1], [0, 5, 0], [30, 0, 10]])


def channels_last(image):
    return image.permute(1, 2, 0).numpy()


def shown(ax):
    """What an axes' images hold, bottom up."""
    return [np.asarray(image.get_array()) for image in ax.get_images()]


def label_texts(legend):
    return [text.get_text() for text in legend.get_texts()]


DRAWN = {
    "image_grid": lambda: plots.image_grid(IMAGES, ["a"] * 3),
    "lines": lambda: plots.lines([1, 2], {"a": [0, 1]}, "x", "y"),
    "confusion_matrix": lambda: plots.confusion_matrix(MATRIX, ("a", "b", "c")),
    "feature_maps": lambda: plots.feature_maps({"stem": RAW}, IMAGES[0]),
    "schedule": lambda: plots.schedule(HISTORY.assign(learning_rate=[0.1, 0.0])),
    "heatmap_rows": lambda: plots.heatmap_rows(IMAGES, ["a"] * 3, {"heat": HEAT}, {"raw": RAW}),
    "heatmaps": lambda: plots.heatmaps(HEAT, ["a"] * 3),
    "explanation_card": lambda: plots.explanation_card(*CARD, {"2 x 2": (RAW, HEAT[:2])}),
    "explanation_card of a photo": lambda: plots.explanation_card(
        *CARD, {"2 x 2": (RAW, HEAT[:2])}, photo=PHOTO
    ),
    "cells": lambda: plots.cells(IMAGES[0], RAW[0], "raw"),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_nothing_is_cut_off_at_an_edge(draw):
    figure = draw()
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()  # in inches
    width, height = figure.get_size_inches()
    assert min(drawn.x0, drawn.y0) > -0.02
    assert drawn.x1 < width + 0.02
    assert drawn.y1 < height + 0.02


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_type_can_be_read_from_the_back_row(draw):
    figure = draw()
    assert figure.get_figwidth() <= plots.WIDEST
    assert smallest_type(figure) >= 12


def test_texts_are_drawn_as_they_stand_and_never_as_formulas(tmp_path):
    names = [r"$\frac$", "$a_b$", r"\$5"]
    figure = plots.confusion_matrix(MATRIX, names)
    figure.savefig(tmp_path / "plain.png", dpi=60)
    escaped = [name.replace("$", r"\$") for name in names[:2]]  # as matplotlib asks for
    with_formulas = Figure(figsize=(3, 1))
    for row, (name, same) in enumerate(zip(names, escaped)):
        with_formulas.clear()
        with_formulas.text(0, 0.5, same)
        with_formulas.savefig(tmp_path / "escaped.png", dpi=60)
        plain = plots.PlainFigure(figsize=(3, 1))
        plain.text(0, 0.5, name)
        plain.savefig(tmp_path / f"{row}.png", dpi=60)
        drawn = imread(tmp_path / f"{row}.png")
        assert drawn.min() < 1 and np.array_equal(drawn, imread(tmp_path / "escaped.png"))


@pytest.mark.parametrize("box", [None, "tight"])
def test_signs_that_no_font_has_are_named_once(tmp_path, monkeypatch, box):
    monkeypatch.setattr(plots, "NAMED", set())
    for fonts, lost in {("STIXGeneral",): "猫", ("no such font",): "⌚"}.items():
        monkeypatch.setattr(plots, "MORE_FONTS", fonts)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                figure = plots.image_grid(IMAGES, ["⌚ cat", "猫", "猫\n⌚"])
                figure.savefig(tmp_path / "signs.png", bbox_inches=box)
        said = [str(warning.message).partition(": ")[0] for warning in caught]
        assert said == [f"Matplotlib has no font for {sign}" for sign in lost]


@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize(
    "draw",
    [
        plots.image_grid,
        lambda images, titles: plots.heatmap_rows(images, titles, {"a": images[:, 0]}),
    ],
    ids=["grid", "rows"],
)
def test_long_names_leave_their_neighbours_in_peace(draw, count):
    figure = draw(IMAGES[[0] * count], ["said n02099601-golden_retriever\nis automobile"] * count)
    figure.draw_without_rendering()
    titles = [text for text in figure.findobj(Text) if text.get_text().startswith("said n02")]
    boxes = [title.get_window_extent() for title in titles]
    assert len(boxes) == count and not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:]))
    assert titles[0].get_text().endswith("iever\nis automobile")


def test_small_type_and_wide_figures_are_found():
    figure = Figure(figsize=(plots.WIDEST, 2))
    text = figure.text(0, 0, "small", fontsize=plots.SMALLEST_TYPE)
    assert smallest_type(figure) == pytest.approx(12.03, abs=0.01)
    text.set_fontsize(8.5)
    assert smallest_type(figure) < 12
    text.set_fontsize(9)
    figure.set_figwidth(10)
    assert smallest_type(figure) < 12


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_figures_stand_apart_from_pyplot_and_change_no_setting(draw, tmp_path):
    settings = dict(plt.rcParams)
    figure = draw()
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert plt.get_fignums() == [] and dict(plt.rcParams) == settings
    assert imread(tmp_path / "figure.png")[..., :3].std() > 0, "the figure is blank"


def test_a_readme_figure_is_written_for_cifar10_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path))
    figure = plots.lines([1, 2], {"a": [0, 1]}, "x", "y")
    assert plots.save_readme_figure(figure, "lines.png", "shapes10") is figure
    assert not (tmp_path / "images").exists()
    assert plots.save_readme_figure(figure, "lines.png", "cifar10") is figure
    width, height = figure.get_size_inches()
    expected = (round(110 * height), round(110 * width))
    assert imread(tmp_path / "images" / "lines.png").shape[:2] == expected


def test_image_grid_shows_each_image_under_its_title():
    figure = plots.image_grid(IMAGES, ["one", "two", "three"], columns=2, row_labels=["up", "down"])
    axes = figure.axes
    assert [ax.get_title() for ax in axes] == ["one", "two", "three", ""]
    assert [ax.get_ylabel() for ax in axes] == ["up", "", "down", ""]
    for ax, image in zip(axes, IMAGES):
        np.testing.assert_array_equal(shown(ax)[0], channels_last(image))
    assert shown(axes[3]) == []


def test_image_grid_takes_uint8_and_keeps_its_values():
    images = RNG.integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)
    for ax, image in zip(plots.image_grid(images).axes, images):
        np.testing.assert_array_equal(shown(ax)[0], image)


def test_image_grid_draws_a_padded_image_larger_by_its_padding():
    small, large = plots.image_grid([IMAGES[0], np.zeros((3, 10, 10))]).axes
    assert small.get_xlim() == (-2.5, 7.5) and small.get_ylim() == (7.5, -2.5)
    assert large.get_xlim() == (-0.5, 9.5) and large.get_ylim() == (9.5, -0.5)


def test_lines_draws_every_curve_and_reference():
    series = {"a": [1.0, 2.0, 3.0], "b": [3.0, 2.0, 1.0], "c": [0.0, 0.0, 1.0]}
    (ax,) = plots.lines([1, 2, 3], series, "epoch", "loss", {"best": 0.5}, ylim=(0, 4)).axes
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_ylim()) == ("epoch", "loss", (0, 4))
    assert label_texts(ax.get_legend()) == ["a", "b", "c", "best"]
    curves = {line.get_label(): line for line in ax.lines}
    assert all(
        list(curves[name].get_ydata()) == values and list(curves[name].get_xdata()) == [1, 2, 3]
        for name, values in series.items()
    )
    assert set(curves["best"].get_ydata()) == {0.5}
    assert len({to_rgba(line.get_color()) for line in ax.lines}) == 4


def test_a_legend_leaves_out_no_name():
    figure = plots.lines([1, 2], {"_cat": [0, 1], "": [1, 2]}, "x", "y", {"_mean": 0.5})
    assert label_texts(figure.axes[0].get_legend()) == ["_cat", "", "_mean"]


def test_no_series_is_dropped_in_silence():
    figure = plots.lines([1, 2, 3], {name: np.arange(3.0) for name in "abcde"}, "x", "y")
    assert label_texts(figure.axes[0].get_legend() or figure.legends[0]) == list("abcde")


def test_confusion_matrix_writes_and_colours_the_mistakes_and_leaves_the_diagonal_blank():
    figure = plots.confusion_matrix(MATRIX, ("a", "b", "c"))
    ax = figure.axes[0]
    assert [text.get_text() for text in ax.texts] == ["1", "1", "0", "0", "30", "0"]
    mesh = ax.collections[0]
    drawn = mesh.get_array().reshape(3, 3)
    np.testing.assert_array_equal(drawn.mask, np.eye(3, dtype=bool))
    np.testing.assert_array_equal(drawn.compressed(), [1, 1, 0, 0, 30, 0])
    assert mesh.get_clim() == (0, 30)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "actual class")
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b", "c"]
    assert ax.yaxis_inverted()  # the first class on top, as in the matrix


@pytest.mark.parametrize("classes, numbers", [(2, 2), (20, 380), (21, 0), (40, 0), (200, 0)])
def test_confusion_matrix_of_many_classes_has_no_numbers_and_names_that_do_not_touch(
    classes, numbers
):
    figure = plots.confusion_matrix(np.eye(classes, dtype=int), [f"c{i}" for i in range(classes)])
    ax = figure.axes[0]
    assert len(ax.texts) == numbers
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert len(boxes) >= min(classes, 25)
    assert all(above.y0 >= below.y1 - 1 for above, below in zip(boxes, boxes[1:]))


MANY = [f"class {i:03}" for i in range(100)]


def test_of_a_hundred_rows_twenty_are_drawn_and_it_is_said():
    levels = (np.arange(500) // 5).astype(np.uint8)
    pictures = np.broadcast_to(levels[:, None, None, None], (500, 4, 4, 3))
    figure = plots.image_grid(pictures, MANY * 5, row_labels=MANY, scale=1.1)
    rows = [ax.get_ylabel() for ax in figure.axes if ax.get_ylabel()]
    assert (len(rows), rows[0], rows[-1]) == (20, MANY[0], MANY[-1])
    drawn = [f"class {shown(ax)[0][0, 0, 0]:03}" for ax in figure.axes[::5]]
    assert drawn == rows and figure.get_figheight() <= 30
    assert figure.get_suptitle() == "20 of 100 rows"
    assert figure.axes[-1].get_title() == (MANY * 5)[-1]


def test_of_a_hundred_intervals_twenty_are_drawn_and_it_is_said():
    table = pd.DataFrame({"mean": np.arange(100), "from": -1, "to": 101}, MANY)
    (ax,) = plots.intervals({"recall": table}).axes
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert (len(names), names[0], names[-1]) == (20, MANY[0], MANY[-1])
    assert ax.get_xlabel() == "recall\n(20 of 100)"
    assert [f"class {x:03.0f}" for x in ax.lines[0].get_xdata()] == names


def test_a_hundred_probabilities_have_twelve_bars_the_two_classes_among_them():
    probabilities = np.linspace(0, 0.02, 100)
    maps = {"4 × 4": (RAW, HEAT[:2])}
    figure = plots.explanation_card(IMAGES[0], "title", probabilities, MANY, MANY[3:5], maps)
    ax = next(ax for ax in figure.axes if ax.get_title() == "probability")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [*MANY[3:5], *MANY[90:]]
    assert [bar.get_width() for bar in ax.patches] == [probabilities[MANY.index(n)] for n in names]


def test_long_names_lose_their_middle_and_leave_room_for_the_figure():
    names = ["a" * 40, "b" * 40 + "c" * 40]
    table = pd.DataFrame({"mean": [0.4, 0.5], "from": 0, "to": 1}, names)
    pictures = np.zeros((10, 4, 4, 3), np.uint8)
    for figure in (
        plots.confusion_matrix(np.eye(2, dtype=int), names),
        plots.intervals({"recall": table}),
        plots.image_grid(pictures, row_labels=names, scale=1.1),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of panels that have no room left
            figure.draw_without_rendering()
        texts = {text.get_text() for text in figure.findobj(Text)}
        assert {names[0], "b" * 25 + "…" + "c" * 14} <= texts


def test_no_image_is_said():
    figure = plots.image_grid(np.zeros((0, 4, 4, 3), np.uint8), [])
    assert [text.get_text() for text in figure.texts] == ["no image to show"]


def test_feature_maps_are_drawn_row_by_row_on_symmetric_scales():
    maps = RAW / RAW.abs().max()
    figure = plots.feature_maps({"stem": maps, "layer1": -4 * maps}, IMAGES[0])
    axes = np.array(figure.axes).reshape(3, 3)
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["image", "stem", "layer1"]
    np.testing.assert_array_equal(shown(axes[0, 0])[0], channels_last(IMAGES[0]))
    assert not shown(axes[0, 1]) and not shown(axes[0, 2])
    for row, sign, limit in zip(axes[1:], (1, -4), (1, 4)):
        for ax, values in zip(row, maps):
            np.testing.assert_allclose(shown(ax)[0], sign * values)
            assert ax.get_images()[0].get_clim() == pytest.approx((-limit, limit))


def test_feature_maps_of_unequal_numbers():
    figure = plots.feature_maps({"three": RAW, "two": RAW[:2]}, IMAGES[0])
    assert [len(shown(ax)) for ax in figure.axes] == [1, 0, 0, 1, 1, 1, 1, 1, 0]


def test_schedule_draws_the_rate_above_the_loss_on_the_same_epochs():
    rate, loss = plots.schedule(HISTORY.assign(learning_rate=[0.1, 0.0])).axes
    np.testing.assert_array_equal(rate.lines[0].get_xydata(), [[1, 0.1], [2, 0.0]])
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.5]])
    assert (rate.get_ylabel(), loss.get_ylabel(), loss.get_xlabel()) == (
        "learning rate",
        "training loss",
        "epoch",
    )
    assert (
        rate.get_shared_x_axes().joined(rate, loss)
        and rate.get_ylim()[0] == loss.get_ylim()[0] == 0
    )


def test_heatmap_rows_lay_heatmaps_over_grey_images_and_share_one_signed_scale():
    signed = {"for": RAW, "against": -3 * RAW}
    figure = plots.heatmap_rows(IMAGES, ["x", "y", "z"], {"heat": HEAT}, signed)
    axes = np.array(figure.axes[:12]).reshape(4, 3)
    assert [ax.get_title() for ax in axes[0]] == ["x", "y", "z"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["image", "heat", "for", "against"]
    limit = 3 * float(RAW.abs().max())
    for n in range(3):
        np.testing.assert_array_equal(shown(axes[0, n])[0], channels_last(IMAGES[n]))
        grey, heat = axes[1, n].get_images()
        np.testing.assert_allclose(grey.get_array(), IMAGES[n].mean(0), rtol=1e-5)
        assert grey.get_clim() == (0, 1), "a dark image must stay dark"
        np.testing.assert_array_equal(heat.get_array(), HEAT[n])
        assert heat.get_clim() == (0, 1)
        for row, maps in zip(axes[2:], signed.values()):
            (cells,) = row[n].get_images()
            np.testing.assert_array_equal(cells.get_array(), maps[n])
            assert cells.get_clim() == pytest.approx((-limit, limit))
            np.testing.assert_allclose(
                cells.to_rgba(0.0)[:3], (0.97,) * 3, atol=0.01
            )  # white at zero
    assert len(figure.axes) == 14  # and two colour bars


def test_more_than_five_images_go_on_below():
    images, raw = IMAGES[[0, 1, 2] * 2 + [0]], torch.arange(28.0).reshape(7, 2, 2)
    figure = plots.heatmap_rows(images, "abcdefg", signed={"raw": raw})
    axes = np.array(figure.axes[:20]).reshape(4, 5)
    assert [ax.get_title() for ax in axes[[0, 2]].flat] == [*"abcdefg", "", "", ""]
    np.testing.assert_array_equal(axes[3, 1].get_images()[0].get_array(), raw[6])
    assert axes[1, 0].get_images()[0].get_clim() == axes[3, 1].get_images()[0].get_clim()
    assert [ax.get_visible() for ax in axes[2]] == [True, True, False, False, False]


def test_heatmap_rows_of_nothing_but_zeros_keep_a_scale():
    figure = plots.heatmap_rows(IMAGES, "abc", signed={"zero": torch.zeros(3, 2, 2)})
    assert figure.axes[3].get_images()[0].get_clim() == (-1, 1)


def test_cells_writes_every_number_on_a_symmetric_scale():
    figure = plots.cells(IMAGES[0], RAW[0], "evidence for a cat")
    image, raw = figure.axes[:2]
    np.testing.assert_array_equal(shown(image)[0], channels_last(IMAGES[0]))
    assert raw.get_title() == "evidence for a cat"
    assert [text.get_text() for text in raw.texts] == [
        f"{value:.2f}" for value in RAW[0].ravel().tolist()
    ]
    np.testing.assert_array_equal(raw.collections[0].get_array().reshape(2, 2), RAW[0])
    limit = float(RAW[0].abs().max())
    assert raw.collections[0].get_clim() == pytest.approx((-limit, limit))


def test_an_explanation_card_has_a_row_for_each_grid_on_a_scale_of_its_own():
    fine = torch.arange(27.0).view(3, 3, 3).flip(0)  # the difference is not the largest
    maps = {"2 x 2": (RAW, HEAT[:2]), "3 x 3": (fine, HEAT[1:])}
    figure = plots.explanation_card(*CARD, maps)
    titled = [ax for ax in figure.axes if ax.get_title() in ("b", "c", "b - c")]
    assert [ax.get_title() for ax in titled] == ["b", "c", "b - c"] * 2
    assert [ax.get_ylabel() for ax in titled if ax.get_ylabel()] == ["2 x 2", "3 x 3"]
    rows = titled[:3], titled[3:]
    for row, (raw, heat) in zip(rows, maps.values()):
        for ax, values in zip(row, heat):
            grey, coloured = ax.get_images()
            np.testing.assert_allclose(grey.get_array(), IMAGES[0].mean(0), rtol=1e-5)
            np.testing.assert_allclose(coloured.get_array(), values)
            assert coloured.get_clim() == (0, 1)
            assert 0 < coloured.get_alpha() < 1
        np.testing.assert_allclose(shown(row[2])[0], raw[2])
        limit = raw.abs().max().item()
        assert row[2].get_images()[0].get_clim() == (-limit, limit)


def test_an_explanation_card_has_a_bar_for_each_class_and_marks_the_two_explained():
    figure = plots.explanation_card(*CARD, {"2 x 2": (RAW, HEAT[:2])})
    (bars,) = [ax for ax in figure.axes if ax.get_title() == "probability"]
    assert [bar.get_width() for bar in bars.patches] == CARD[2]
    assert [label.get_text() for label in bars.get_yticklabels()] == list(CARD[3])
    assert bars.yaxis_inverted()
    other, *marked = [bar.get_facecolor() for bar in bars.patches]
    assert marked[0] == marked[1] != other


def test_an_explanation_card_frames_the_square_that_a_photo_is_cropped_to():
    figure = plots.explanation_card(*CARD, {"2 x 2": (RAW, HEAT[:2])}, photo=PHOTO)
    (ax,) = [ax for ax in figure.axes if ax.get_title() == "photo"]
    np.testing.assert_array_equal(shown(ax)[0], PHOTO)
    (frame,) = ax.patches
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (4.5, -0.5, 20, 20)


def test_heatmaps_stand_under_their_titles_on_one_scale():
    axes = plots.heatmaps(HEAT, ["one", "two", "three"]).axes
    assert [ax.get_title() for ax in axes] == ["one", "two", "three"]
    for ax, heat in zip(axes, HEAT, strict=True):
        colours = plots.colormaps["viridis"](heat.numpy())[..., :3]
        np.testing.assert_allclose(shown(ax)[0] / 255, colours, atol=1 / 255)


def test_a_mark_of_an_interval_keeps_its_colour_from_panel_to_panel():
    both, one = pd.concat({"x": CONTRAST, "y": CONTRAST}), pd.concat({"y": CONTRAST[1:2]})
    figure = plots.intervals({"left": both, "right": one})
    left, right = figure.axes
    names = [label.get_text() for label in left.get_yticklabels()]
    assert names == ["x", "y"]
    marks = {container.get_label(): container for container in left.containers}
    assert label_texts(figure.legends[0]) == list(marks) == ["same", "other", "difference"]
    (alone,) = right.containers
    assert alone.get_label() == "other"
    assert alone.lines[0].get_color() == marks["other"].lines[0].get_color()
    assert alone.lines[0].get_marker() == marks["other"].lines[0].get_marker()
    assert list(alone.lines[0].get_ydata()) == [1], "on the line of its name"


def test_intervals_take_tables_without_marks():
    figure = plots.intervals({"gain": CONTRAST})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "same",
        "other",
        "difference",
    ]
    assert not figure.legends and figure.axes[0].get_xlabel() == "gain"


@pytest.mark.parametrize("root", ["a file", "read only"])
def test_root_that_cannot_be_written_to_gets_a_warning_and_the_figure(tmp_path, monkeypatch, root):
    folder = tmp_path / "root"
    if root == "a file":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True
        ).returncode:
            pytest.skip("only root can mount a disk")
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(folder))
    figure = plots.lines([0, 1], {"a": [0, 1]}, "x", "y")
    try:
        with pytest.warns(UserWarning, match=r"cannot write .*a\.png \(.+\): make room"):
            assert plots.save_readme_figure(figure, "a.png", "cifar10") is figure
    finally:
        if root == "read only":
            subprocess.run(["umount", str(folder)], check=True)
