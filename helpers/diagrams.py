"""Diagrams that the notebooks show, drawn by code in the colours of `plots`."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from helpers.plots import COLOURS, HEATMAP_COLOURS, SIGNED_COLOURS, Array

FONT_SIZE = 10
PALE = 0.18  # opacity of a box


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, whose coordinates are inches from its lower left corner."""
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(
    ax: Axes,
    centre: tuple[float, float],
    text: str,
    width: float = 1.3,
    height: float = 0.6,
    colour: int = 0,
) -> None:
    """A rounded box with a text in its middle.

    Args:
        ax: of `canvas`.
        centre: (x, y) in inches.
        text: may have several lines.
        width: in inches.
        height: in inches.
        colour: which of `plots.COLOURS`.
    """
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    style: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 1.5}
    edge, face = COLOURS[colour], (*COLOURS[colour], PALE)
    ax.add_patch(FancyBboxPatch(corner, width, height, edgecolor=edge, facecolor=face, **style))
    ax.text(*centre, text, ha="center", va="center", fontsize=FONT_SIZE)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow between two points (x, y), in inches."""
    style = {"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)


def picture(
    ax: Axes, centre: tuple[float, float], pixels: Array, title: str = "", **style: Any
) -> None:
    """A picture of one inch, its title below it.

    Args:
        ax: of `canvas`.
        centre: (x, y) in inches.
        pixels: (H, W, 3) in [0, 1], or (H, W), drawn by `style`.
        title: of the picture.
        style: of `Axes.imshow`.
    """
    (x, y), half = centre, 0.5
    limits = ax.axis()
    ax.imshow(np.asarray(pixels), extent=(x - half, x + half, y - half, y + half), **style)
    ax.add_patch(Rectangle((x - half, y - half), 1, 1, fill=False, edgecolor="0.25", zorder=0))
    ax.axis(limits)
    ax.text(x, y - half - 0.08, title, ha="center", va="top", fontsize=FONT_SIZE)


def augmentation(steps: Mapping[str, float]) -> Figure:
    """Steps in a row, each under what it is called and above how often it changes an image.

    Args:
        steps: {name: probability that it changes an image}, in the order of application.
    """
    names = ["image\nand label", *steps, "new image,\nsame label"]
    figure, ax = canvas(8.9, 1.3)
    width, gap = 1.07, 0.215
    for i, name in enumerate(names):
        x = 0.05 + width / 2 + i * (width + gap)
        words = re.sub("(?<=[a-z])(?=[A-Z])", "\n", name)  # of a transform's class
        box(ax, (x, 0.85), words, width, colour=0 if name in steps else 2)
        if i:
            arrow(ax, (x - width / 2 - gap, 0.85), (x - width / 2, 0.85))
        if name in steps:
            often = "every\nimage"
            if steps[name] < 1:
                often = f"{100 * steps[name]:.0f} % of the\nimages"
            ax.text(x, 0.27, often, ha="center", va="center", fontsize=FONT_SIZE)
    return figure


def gradcam(image: Array, channels: Array, logit: float, raw: Array, heat: Array) -> Figure:
    """Grad-CAM's way: to the right from an image to a logit, to the left from there to a map.

    Args:
        image: (3, H, W) in [0, 1].
        channels: three of the last stage, (3, h, w), drawn on one scale.
        logit: of the class.
        raw: the weighted sum of all channels, (h, w).
        heat: the heatmap, (H, W) in [0, 1].
    """
    figure, ax = canvas(8.9, 4.3)
    photo = np.asarray(image).transpose(1, 2, 0)
    signed: dict[str, Any] = {"cmap": SIGNED_COLOURS}
    one_scale = CenteredNorm(halfrange=float(np.abs(channels).max()))
    picture(ax, (0.75, 3.2), photo, "image")
    box(ax, (2.5, 3.2), "stem, layer1,\nlayer2, layer3,\nlayer4", height=0.8)
    for i, channel in enumerate(channels):
        picture(ax, (4.05 + 0.2 * i, 3.35 - 0.15 * i), channel, norm=one_scale, **signed)
    ax.text(4.25, 4.1, f"channels of {len(raw)} × {len(raw)} cells", ha="center", fontsize=10)
    box(ax, (6.2, 3.2), "average of each\nchannel, times the\nclass's weights", 1.4, 0.8)
    box(ax, (8.2, 3.2), f"logit of\nthe class\n{logit:.2f}", 1.1, 0.8, colour=2)
    for start, end in ((1.25, 1.85), (3.15, 3.5), (5.0, 5.5), (6.9, 7.65)):
        arrow(ax, (start, 3.2), (end, 3.2))

    box(ax, (8.2, 1.1), "gradient,\naveraged: one\nweight for each\nchannel", 1.25, 1, colour=1)
    box(ax, (6.2, 1.1), "channels\ntimes weights,\nadded up", 1.4, 0.8, colour=1)
    picture(ax, (4.25, 1.1), raw, "evidence, cell by cell", norm=CenteredNorm(), **signed)
    box(ax, (2.5, 1.1), "ReLU, enlarge,\ndivide by the\nmaximum", 1.3, 0.8, colour=1)
    picture(ax, (0.75, 1.1), photo.mean(2), "heatmap", cmap="gray", vmin=0, vmax=1)
    picture(ax, (0.75, 1.1), heat, cmap=HEATMAP_COLOURS, vmin=0, vmax=1, alpha=0.6)
    arrow(ax, (8.2, 2.8), (8.2, 1.6))
    arrow(ax, (4.9, 2.6), (5.8, 1.5))
    for start, end in ((7.57, 6.9), (5.5, 4.75), (3.75, 3.15), (1.85, 1.25)):
        arrow(ax, (start, 1.1), (end, 1.1))
    return figure


def dilation(row: np.ndarray, first: np.ndarray, second: np.ndarray) -> Figure:
    """Two filters over a row of eight numbers: with a stride of two, and with all positions kept.

    What both ways have in common is drawn in one colour, what only the second one has in another.

    Args:
        row: the numbers, (8,).
        first: what the first filter makes of it at all eight positions.
        second: what the second filter, its neighbours two apart, makes of that.
    """
    figure, ax = canvas(8.9, 3.1)
    heights = {2.45: "row", 1.45: "after the\nfirst filter", 0.45: "after the\nsecond filter"}
    for y, name in heights.items():
        ax.text(0.05, y, name, va="center", fontsize=FONT_SIZE)
    for left, title, kept in (
        (1.3, "original: every other position is skipped", range(0, 8, 2)),
        (5.35, "dilated: all are kept, neighbours are two apart", range(8)),
    ):
        ax.text(left + 1.7, 2.98, title, ha="center", va="top", fontsize=FONT_SIZE)
        x = left + 0.48 * np.arange(8)
        for i in kept:
            for y, apart in ((2.45, 1), (1.45, 2)):
                _links(ax, x, i, apart, y, COLOURS[i % 2])
        for i in range(8):
            _number(ax, (x[i], 2.45), row[i], (0.35, 0.35, 0.35))
        for i in kept:
            _number(ax, (x[i], 1.45), first[i], COLOURS[i % 2])
            _number(ax, (x[i], 0.45), second[i], COLOURS[i % 2])
    return figure


def _links(
    ax: Axes, x: np.ndarray, number: int, apart: int, top: float, colour: tuple[float, ...]
) -> None:
    """Lines to a position one inch below `top` from itself and its neighbours there."""
    for neighbour in (number - apart, number, number + apart):
        if 0 <= neighbour < len(x):
            ax.plot((x[neighbour], x[number]), (top, top - 1), color=colour, linewidth=1)


def residual_block() -> Figure:
    """What one block computes: six steps to what it adds, and the way around them."""
    figure, ax = canvas(8.8, 1.9)
    steps = ("batch\nnorm", "ReLU", "3 × 3\nconvolution") * 2
    height, gap, right = 0.55, 0.2, 0.6
    box(ax, (0.35, height), "x", 0.5, colour=2)
    for step in steps:
        width = 1.05 if "convolution" in step else 0.7
        arrow(ax, (right, height), (right + gap, height))
        box(ax, (right + gap + width / 2, height), step, width)
        right += gap + width
    centre = right + 0.8
    arrow(ax, (right, height), (centre - 0.2, height))
    box(ax, (centre, height), "+", 0.4, 0.4, colour=1)
    arrow(ax, (centre + 0.2, height), (centre + 0.45, height))
    ax.plot([0.35, 0.35, centre], [height + 0.3, 1.45, 1.45], color=COLOURS[1], linewidth=2)
    arrow(ax, (centre, 1.45), (centre, height + 0.2))
    label = "the shortcut: x as it is"
    ax.text(centre / 2, 1.5, label, ha="center", va="bottom", fontsize=FONT_SIZE)
    ax.text(right + 0.28, height + 0.05, "added", ha="center", va="bottom", fontsize=FONT_SIZE)
    ax.text(centre + 0.5, height, "x + added", va="center", fontsize=FONT_SIZE)
    return figure


def network(shapes: Mapping[str, tuple[int, int]], classes: int) -> Figure:
    """The network from image to logits: squares as large as the grids, their shapes above.

    Args:
        shapes: {part: (channels, cells on a side of its grid)}, from the image to the last stage.
        classes: how many logits.
    """
    figure, ax = canvas(8.9, 2.5)
    middle, step, x = 1.3, 1.12, 0.57
    for i, (part, (channels, side)) in enumerate(shapes.items()):
        half = 0.1 + side / 110
        for shift in (0.1, 0.05, 0):  # channels, one behind the other
            corner = (x - half + shift, middle - half + shift)
            colour = COLOURS[0 if i else 2]
            ax.add_patch(Rectangle(corner, 2 * half, 2 * half, facecolor="white"))
            style = {"facecolor": (*colour, PALE), "edgecolor": colour}
            ax.add_patch(Rectangle(corner, 2 * half, 2 * half, **style))
        texts = {2.2: f"{channels} channels\n{side} × {side}", 0.5: part}
        for y, text in texts.items():
            ax.text(x, y, text, ha="center", va="center", fontsize=FONT_SIZE)
        x += step
        arrow(ax, (x - step + half + 0.13, middle), (x - 0.45, middle))
    ends = {
        "average of\neach channel": f"{channels}\nnumbers",
        "linear layer\n(fc)": f"{classes}\nlogits",
    }
    for name, text in ends.items():
        box(ax, (x, middle), text, 0.8, colour=1)
        ax.text(x, 0.5, name, ha="center", va="center", fontsize=FONT_SIZE)
        x += step
    arrow(ax, (x - 2 * step + 0.4, middle), (x - step - 0.4, middle))
    return figure


def _number(ax: Axes, centre: tuple[float, float], value: float, colour: tuple[float, ...]) -> None:
    ax.plot(*centre, "o", markersize=22, markerfacecolor="white", color=colour, markeredgewidth=2)
    ax.text(*centre, f"{value:g}", ha="center", va="center", fontsize=FONT_SIZE)


def fair_comparison() -> Figure:
    """The claim and, below it, its null: the map is exchanged for that of another mistake."""
    figure, ax = canvas(8.7, 2.2)
    rows = {1.65: ("the claim", "image i", 0), 0.55: ("the null", "another\nmistake, j", 1)}
    for y, (name, owner, colour) in rows.items():
        ax.text(0.05, y, name, va="center", fontsize=FONT_SIZE, style="italic")
        steps = [f"difference map\nof {owner}", "its top cell", "cover this cell\nof image i"]
        for i, step in enumerate(steps):
            x = 1.75 + 2.0 * i
            box(ax, (x, y), step, 1.55, 0.75, colour if i < 2 else 7)
            arrow(ax, (x + 0.775, y), (x + 1.225, y))
        box(ax, (7.75, y), "does it say the\nactual class?", 1.55, 0.75, 2)
    return figure
