"""Draw: arrays in, a matplotlib Figure out.

Figures stand apart from pyplot, so a notebook shows one only where it ends a cell. They are at most
`WIDEST` inches wide, and their type is `SMALLEST_TYPE` points or more: on a page 1,000 pixels wide
that is 12 pixels. Five pictures in a row are enough.
"""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib import colormaps, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font, get_font_names
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from helpers.support.files import project_root, write_atomically

Array: TypeAlias = np.ndarray | torch.Tensor
Numbers: TypeAlias = Sequence[float] | Array | pd.Series

HEATMAP_COLOURS = "viridis"  # even steps of brightness, safe for the colour-blind
SIGNED_COLOURS = "RdBu_r"  # signed maps: red is for the class, blue against it, white is zero
COLOURS = sns.color_palette("colorblind")  # ten, for series
HEATMAP_LABEL = "share of the\nmap's maximum"
SIGNED_LABEL = "evidence\n(logit units)"
LINE_STYLES = ("--", ":", "-.")
MARKERS = "osD^v"
WIDEST = 9  # inches
MOST_COLUMNS = 5  # pictures in a row
MOST_ROWS = 20  # of a figure, with labels; of more, some are drawn
MOST_BARS = 12  # of probabilities: of more classes, the likeliest have one
SMALLEST_TYPE = 9  # points
MORE_FONTS = (  # where they are installed, they draw what Matplotlib's own lacks
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("Arial Unicode MS", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Segoe UI"),
)
NAMED: set[str] = set()  # signs without a font that a warning has named already


def save_readme_figure(figure: Figure, name: str, dataset_name: str) -> Figure:
    """Write a figure to `images/` in the project's root, if it was drawn from CIFAR-10.

    Where that cannot be written to, a warning says so.

    Args:
        figure: what to write.
        name: of the file; its ending says which format.
        dataset_name: only "cifar10" is written.

    Returns:
        The figure.
    """
    if dataset_name == "cifar10":
        path = project_root() / "images" / name
        try:
            write_atomically(path, partial(figure.savefig, dpi=110, format=path.suffix[1:]))
        except OSError as error:
            warnings.warn(str(error), stacklevel=2)
    return figure


def image_grid(
    images: Array | Sequence[Array],
    titles: Sequence[str] | None = None,
    columns: int = 5,
    row_labels: Sequence[str] | None = None,
    scale: float = 1.5,
) -> Figure:
    """Images row by row, each under its title; all of them on one scale.

    Args:
        images: (N, 3, H, W) in [0, 1], or (N, H, W, 3) uint8, or a list of images of several sizes.
        titles: one for each image.
        columns: images in a row.
        row_labels: one for each row, on its left. Of more than `MOST_ROWS` such rows, that many are
            drawn.
        scale: side of an image in inches, less where a row would be wider than `WIDEST`.
    """
    if len(images) == 0:
        figure = _figure(4, 1)
        figure.text(0.5, 0.5, "no image to show", ha="center", va="center")
        return figure
    columns = min(columns, len(images))
    rows = range(-(-len(images) // columns))
    kept = _some(rows) if row_labels else rows
    numbers = [number for number in range(len(images)) if number // columns in kept]
    margin = 1 if row_labels else 0
    scale = min(scale, (WIDEST - margin) / columns)
    title_lines = 0 if titles is None else 1 + max(title.count("\n") for title in titles)
    figure = _figure(columns * scale + margin, len(kept) * (scale + 0.21 * title_lines))
    labels = [row_labels[row] for row in kept] if row_labels else []
    axes = _panel_grid(figure, len(kept), columns, labels)
    pictures = [_pixels(images[number]) for number in numbers]
    largest = max(max(picture.shape[:2]) for picture in pictures)
    for ax, number, picture in zip(axes.flat, numbers, pictures):
        _draw_in_frame(ax, picture, largest)
        if titles is not None:
            ax.set_title(_short(titles[number], int(12 * scale)), fontsize=10)
    if len(kept) < len(rows):
        figure.suptitle(f"{len(kept)} of {len(rows)} rows", fontsize=10)
    return figure


def lines(
    x: Numbers,
    series: Mapping[str, Numbers],
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    ylim: tuple[float, float] | None = None,
) -> Figure:
    """Curves over x.

    Args:
        x: (n,).
        series: {label: (n,)}.
        xlabel: what x is.
        ylabel: what the curves are; a single curve of that name needs no legend.
        references: {label: value}, drawn as dashed horizontal lines.
        ylim: ends of the vertical axis.
    """
    figure = _figure(6.5 if len(series) <= 4 else 9, 3.8)
    ax = figure.subplots()
    references = references or {}
    drawn: list[Any] = []
    for (label, values), colour in zip(series.items(), COLOURS):
        marker = "o" if len(x) <= 60 else None
        drawn += ax.plot(x, values, label=label, color=colour, marker=marker, markersize=4)
    for (label, value), style in zip(references.items(), LINE_STYLES):
        drawn.append(ax.axhline(value, label=label, color="0.35", linestyle=style))
    labels = [*series, *references]  # named, because matplotlib would leave out one like "_cat"
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=ylim)
    ax.grid(alpha=0.3)
    if len(series) > 4:
        figure.legend(drawn, labels, loc="outside right upper")
    elif list(series) != [ylabel] or references:
        ax.legend(drawn, labels)
    return figure


def schedule(history: pd.DataFrame) -> Figure:
    """The learning rate at the end of each epoch, above the training loss.

    Args:
        history: a table as `training.fit` returns it.
    """
    figure = _figure(8, 5)
    panels = {"learning_rate": "learning rate", "train_loss": "training loss"}
    axes = figure.subplots(2, 1, sharex=True)
    for ax, (column, ylabel), colour in zip(axes, panels.items(), COLOURS):
        ax.plot(history["epoch"], history[column], marker="o", markersize=4, color=colour)
        ax.set(ylabel=ylabel, ylim=(0, None))
        ax.grid(alpha=0.3)
    ax.set(xlabel="epoch")
    return figure


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """The mistakes of a confusion matrix as numbers and colours; the diagonal is left blank.

    More than `MOST_ROWS` classes have colours without numbers, and names as far as they fit.

    Args:
        matrix: counts (num_classes, num_classes), row = actual class.
        classes: names.
    """
    figure = _figure(8, 6.6)
    ax = figure.subplots()
    is_right = np.eye(len(matrix), dtype=bool)  # would outshine the mistakes
    sns.heatmap(
        matrix,
        ax=ax,
        mask=is_right,
        annot=len(matrix) <= MOST_ROWS,
        fmt="d",
        cmap="cividis",
        vmin=0,
        vmax=max(1, matrix[~is_right].max()),
        square=True,
        cbar_kws={"label": "images"},
        xticklabels=False,  # seaborn would take a class called `$a_b$` for a formula
        yticklabels=False,
    )
    named = range(0, len(classes), -(-len(classes) // (2 * MOST_ROWS)))  # as many as fit
    places, names = np.array(named) + 0.5, [_short(classes[number]) for number in named]
    ax.set_xticks(places, names, rotation=45)
    ax.set_yticks(places, names, va="center")
    ax.set(xlabel="predicted class", ylabel="actual class")
    return figure


def intervals(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Means as dots with their intervals as bars, a panel for each table, side by side.

    The dashed line is at zero. Of more than `MOST_ROWS` lines, that many are drawn, at even steps.

    Args:
        panels: {x label: table} with the columns mean, from and to. The index holds the names of
            the lines, or pairs (line, mark); each mark has a colour and a shape of its own.
    """
    tables = {label: _with_marks(table) for label, table in panels.items()}
    index = pd.concat(tables).index
    names, marks = list(index.unique(level=1)), list(index.unique(level=2))
    kept = _some(names)
    note = f"\n({len(kept)} of {len(names)})" if len(kept) < len(names) else ""
    figure = _figure(WIDEST, 1.1 + 0.5 * len(kept))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    drawn: dict[str, Any] = {}
    for ax, (xlabel, table) in zip(axes, tables.items()):
        shown = table[table.index.isin(kept, level=0)]
        drawn |= _marked_intervals(ax, shown, kept, marks)
        ax.axvline(0, color="0.35", linestyle="--", linewidth=1)
        ax.set(xlabel=xlabel + note, ylim=(len(kept) - 0.5, -0.5))
        ax.set_yticks(range(len(kept)), map(_short, kept))
        ax.grid(axis="x", alpha=0.3)
    if len(marks) > 1:
        figure.legend(drawn.values(), drawn, loc="outside upper center", ncols=len(marks))
    return figure


def _with_marks(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose index holds pairs (line, mark); the mark is empty where there was none."""
    return table if table.index.nlevels > 1 else pd.concat({"": table}).swaplevel()


def _marked_intervals(
    ax: Axes, table: pd.DataFrame, names: list[str], marks: list[str]
) -> dict[str, Any]:
    """The dots and bars of one panel, the marks of a line a little above each other."""
    here = list(table.index.unique(level=1))
    drawn = {}
    for i, mark in enumerate(here):
        rows = table.xs(mark, level=1)
        offset = 0.11 * (2 * i + 1 - len(here))
        heights = [names.index(line) + offset for line in rows.index]
        number = marks.index(mark)
        style = {
            "fmt": MARKERS[number % len(MARKERS)],
            "color": COLOURS[number],
            "markerfacecolor": "white" if number % 2 else None,
        }
        ends = [rows["mean"] - rows["from"], rows["to"] - rows["mean"]]
        drawn[mark] = ax.errorbar(
            rows["mean"], heights, xerr=ends, linewidth=2, label=mark, **style
        )
    return drawn


def feature_maps(rows: Mapping[str, Array], image: Array) -> Figure:
    """Rows of a network's feature maps, each on its own scale: red is positive, blue negative.

    Args:
        rows: {label: (C, h, w)}.
        image: (3, H, W) in [0, 1], drawn above them.
    """
    columns = max(len(maps) for maps in rows.values())
    labels = ["image", *rows]
    figure = _figure(min(1.4 * columns + 1.8, WIDEST), 1.4 * len(labels))
    axes = _panel_grid(figure, len(labels), columns, labels)
    axes[0, 0].imshow(_pixels(image))
    for row, maps in zip(axes[1:], rows.values()):
        for ax, values in zip(row, maps):
            _draw_signed(ax, values, _limit(maps))
    return figure


def heatmaps(maps: Array, titles: Sequence[str]) -> Figure:
    """Heatmaps without their images, five in a row, each under its title.

    Args:
        maps: (N, H, W) in [0, 1].
        titles: one for each map.
    """
    pictures = colormaps[HEATMAP_COLOURS](_array(maps), bytes=True)[..., :3]
    return image_grid(pictures, titles)


def heatmap_rows(
    images: Array,
    titles: Sequence[str],
    overlays: Mapping[str, Array] | None = None,
    signed: Mapping[str, Array] | None = None,
) -> Figure:
    """A row of images and, below each, its maps: one row for every entry.

    More than five images go on below, with rows of their own.

    Args:
        images: (N, 3, H, W) in [0, 1].
        titles: one for each image.
        overlays: {label: heatmaps (N, H, W) in [0, 1]}, drawn over the images in grey.
        signed: {label: raw maps (N, h, w)}, drawn cell by cell on one scale, from minus to plus the
            largest absolute value of all.
    """
    overlays, signed = overlays or {}, signed or {}
    labels = ["image", *overlays, *signed]
    columns = min(len(images), MOST_COLUMNS)
    blocks = -(-len(images) // columns)
    figure = _figure(min(1.4 * columns + 2, WIDEST), (1.35 * len(labels) + 0.5) * blocks)
    axes = _panel_grid(figure, blocks * len(labels), columns, labels * blocks, framed=True)
    limit = max((_limit(maps) for maps in signed.values()), default=1)
    # The panels of each image, from the top.
    panels = axes.reshape(blocks, len(labels), columns).swapaxes(1, 2).reshape(-1, len(labels))
    for ax in panels[len(images) :].flat:
        ax.set_visible(False)
    for number, (panel, image, title) in enumerate(zip(panels, images, titles)):
        panel[0].imshow(_pixels(image))
        panel[0].set_title(_short(title, 17), fontsize=10)
        for ax, maps in zip(panel[1:], overlays.values()):
            heat = _draw_overlay(ax, image, maps[number])
        for ax, maps in zip(panel[1 + len(overlays) :], signed.values()):
            raw = _draw_signed(ax, maps[number], limit)
    for rows in np.split(axes, blocks):
        _, with_heat, with_raw = np.split(rows, [1, 1 + len(overlays)])
        if overlays:
            _bar_beside(with_heat, heat, HEATMAP_LABEL)
        if signed:
            _bar_beside(with_raw, raw, SIGNED_LABEL)
    return figure


def explanation_card(
    image: Array,
    title: str,
    probabilities: Numbers,
    classes: Sequence[str],
    labels: Sequence[str],
    maps: Mapping[str, tuple[Array, Array]],
    photo: Image.Image | None = None,
) -> Figure:
    """One image, its probabilities, and row by row the maps of two classes and their difference.

    Args:
        image: (3, H, W) in [0, 1].
        title: of the image.
        probabilities: (num_classes,).
        classes: names.
        labels: the names of the two classes.
        maps: {row label: (raw, heatmaps)}. raw: the maps of both classes and their difference,
            (3, h, w). heatmaps: (2, H, W) in [0, 1], drawn over the image; the difference is drawn
            cell by cell, on a scale that fits all three raw maps.
        photo: what the image was cropped and shrunk from.
    """
    figure = _figure(WIDEST, 2.6 * (1 + len(maps)))
    top, *rows = _panel_grid(figure, 1 + len(maps), 3, ["", *maps], framed=True)
    if photo is not None:
        _draw_crop(top[0], photo)
        top = top[1:]
    _titled(top[0], title).imshow(_pixels(image))
    _probability_bars(top[1], probabilities, classes, labels)
    for ax in top[2:]:
        ax.set_visible(False)
    titles = (*labels, f"{labels[0]} - {labels[1]}")
    for row, (raw, heat) in zip(rows, maps.values()):
        for ax, panel_title in zip(row, titles):
            _titled(ax, panel_title)
        for ax, of_class in zip(row, heat):
            _draw_overlay(ax, image, of_class)
        shown = _draw_signed(row[2], raw[2], _limit(raw))
        _bar_beside(row, shown, SIGNED_LABEL)
    return figure


def _draw_crop(ax: Axes, photo: Image.Image) -> None:
    """A photo, with a dashed frame around its central square."""
    _titled(ax, "photo").imshow(photo)
    side = min(photo.size)
    left, top = [(length - side) / 2 - 0.5 for length in photo.size]
    style: dict[str, Any] = {"fill": False, "edgecolor": "white", "linestyle": "--"}
    ax.add_patch(Rectangle((left, top), side, side, **style))


def _probability_bars(
    ax: Axes, probabilities: Numbers, classes: Sequence[str], marked: Sequence[str]
) -> None:
    values = _array(probabilities)
    likeliest = sorted(range(len(classes)), key=lambda n: (classes[n] not in marked, -values[n]))
    shown = sorted(likeliest[:MOST_BARS])
    names = [classes[number] for number in shown]
    colours = [COLOURS[1 if name in marked else 0] for name in names]
    ax.barh(range(len(names)), values[shown], color=colours)
    _titled(ax, "probability").set(xlim=(0, 1), xticks=[0, 0.5, 1])
    ax.set_yticks(range(len(names)), map(_short, names), fontsize=9)
    ax.invert_yaxis()


def cells(image: Array, values: Array, title: str) -> Figure:
    """One image, and beside it its raw map with the number of every cell.

    Args:
        image: (3, H, W) in [0, 1].
        values: the raw map, (h, w).
        title: of the raw map.
    """
    figure = _figure(7.5, 3.4)
    left, right = figure.subplots(1, 2)
    _titled(left, "image").imshow(_pixels(image))
    scale = {"cmap": SIGNED_COLOURS, "vmin": -_limit(values), "vmax": _limit(values)}
    bar = {"label": SIGNED_LABEL}
    numbers = _array(values)
    sns.heatmap(numbers, ax=right, annot=True, fmt=".2f", square=True, cbar_kws=bar, **scale)
    _titled(right, title)
    return figure


# What the figures above are made of


class PlainFigure(Figure):
    """A figure that shows each text as it stands: of a class called `$a_b$` it makes no formula.

    What no font has is drawn as boxes, and a warning says so in one line.
    """

    def __init__(self, *args: Any, layout: Any = "constrained", **settings: Any) -> None:
        super().__init__(*args, layout=layout, **settings)

    def draw(self, renderer: Any) -> None:
        """Draw it, as matplotlib asks for."""
        installed = [name for name in MORE_FONTS if name in get_font_names()]
        families, texts = [*rcParams["font.family"], *installed], self.findobj(Text)
        for text in texts:
            text.set_parse_math(False)
            text.set_fontfamily(families)
        fonts = [get_font(findfont(FontProperties(family=[name]))) for name in families]
        signs = set("".join(text.get_text() for text in texts if text.get_visible()))
        lacking = {s for s in signs if not any(font.get_char_index(ord(s)) for font in fonts)}
        if missing := "".join(filter(str.isprintable, sorted(lacking - NAMED))):
            NAMED.update(missing)
            remedy = "boxes are drawn; install one, for example fonts-noto-cjk"
            warnings.warn(f"Matplotlib has no font for {missing}: {remedy}", stacklevel=2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            super().draw(renderer)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return PlainFigure(figsize=(width, height))


def _short(label: str, most: int = 40) -> str:
    """A label without the middle of a line of more than `most` letters: it would crowd a figure."""
    end = -(-most // 3)
    return re.sub(f"(.{{{most - 1 - end}}}).{{2,}}(.{{{end}}})", r"\1…\2", str(label))


def _some(of: Sequence) -> list:
    """All of a sequence, or `MOST_ROWS` of it at even steps."""
    places = np.linspace(0, len(of) - 1, min(len(of), MOST_ROWS))
    return [of[int(place)] for place in places]


def _panel_grid(
    figure: Figure, rows: int, columns: int, row_labels: Iterable[str] = (), framed: bool = False
) -> np.ndarray:
    """Rows of panels for pictures, without ticks; each row's label stands on its left.

    Args:
        figure: empty.
        rows: how many.
        columns: how many.
        row_labels: from the top.
        framed: draw a line around each panel.

    Returns:
        Axes, (rows, columns).
    """
    panel = {"xticks": [], "yticks": [], "frame_on": framed}
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw=panel)
    for ax, label in zip(axes[:, 0], row_labels):
        ax.set_ylabel(_short(label), rotation=0, ha="right", va="center", fontsize=10)
    return axes


def _bar_beside(axes: np.ndarray, shown: AxesImage, label: str) -> None:
    """A colour bar to the right of panels, which stay in line with those that have none."""
    rows = len(np.atleast_2d(axes))
    figure = axes.flat[0].figure
    figure.colorbar(shown, ax=axes, label=label, pad=0.01, panchor=False, aspect=10 * rows)


def _titled(ax: Axes, title: str) -> Axes:
    """A panel for a picture: without ticks, under its title."""
    ax.set(xticks=[], yticks=[])
    ax.set_title(_short(title, 27), fontsize=11)
    return ax


def _draw_in_frame(ax: Axes, picture: np.ndarray, side: int) -> None:
    """A picture (H, W, 3) in the middle of a square of so many pixels."""
    ax.imshow(picture)
    height, width = picture.shape[:2]
    right, bottom = (width + side) / 2 - 0.5, (height + side) / 2 - 0.5
    ax.set(xlim=(right - side, right), ylim=(bottom, bottom - side))


def _draw_overlay(ax: Axes, image: Array, heat: Array) -> AxesImage:
    """A heatmap (H, W) in [0, 1] over its image in grey."""
    ax.imshow(_pixels(image).mean(-1), cmap="gray", vmin=0, vmax=1)
    return ax.imshow(_array(heat), cmap=HEATMAP_COLOURS, vmin=0, vmax=1, alpha=0.6)


def _draw_signed(ax: Axes, values: Array, limit: float) -> AxesImage:
    """A raw map (h, w) cell by cell, white at zero."""
    return ax.imshow(_array(values), cmap=SIGNED_COLOURS, vmin=-limit, vmax=limit)


def _limit(values: Array) -> float:
    """The largest absolute value, or 1 where all are zero."""
    return float(np.abs(_array(values)).max()) or 1.0


def _array(values: Numbers) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values)


def _pixels(image: Array) -> np.ndarray:
    """An image as (H, W, 3): floats in [0, 1], or uint8 as it is."""
    pixels = _array(image)
    if pixels.dtype == np.uint8:
        return pixels
    return np.clip(np.moveaxis(pixels, 0, -1), 0, 1)
