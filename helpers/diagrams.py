"""Diagrams that the notebooks show, drawn by code in the colours of `plots`."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from helpers.plots import COLOURS, HEATMAP_COLOURS, SIGNED_COLOURS, Array

PALE = 0.18  # opacity of a box

Point: TypeAlias = tuple[float, float]  # (x, y) in inches from a canvas's lower left corner
Patch: TypeAlias = FancyBboxPatch | Rectangle


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure, whose coordinates are inches from its lower left corner."""
    figure = Figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def box(
    ax: Axes, centre: Point, text: str, width: float = 1.3, height: float = 0.6, colour: int = 0
) -> Patch:
    """A rounded box with a text in its middle.

    Args:
        ax: of `canvas`.
        centre: of the box.
        text: may have several lines.
        width: in inches.
        height: in inches.
        colour: which of `plots.COLOURS`.
    """
    corner = (centre[0] - width / 2, centre[1] - height / 2)
    style: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.08", "linewidth": 1.5}
    edge, face = COLOURS[colour], (*COLOURS[colour], PALE)
    patch = FancyBboxPatch(corner, width, height, edgecolor=edge, facecolor=face, **style)
    ax.add_patch(patch)
    ax.text(*centre, text, ha="center", va="center")
    return patch


def arrows(ax: Axes, *patches: Patch, **style: Any) -> None:
    """An arrow from each of these boxes and pictures to the next.

    Args:
        ax: of `canvas`.
        patches: what `box` and `picture` returned.
        style: of the arrows.
    """
    style = {"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.5} | style
    middle = (0.5, 0.5)  # of a patch; the arrow is cut off at its edge
    for start, end in pairwise(patches):
        edges = {"patchA": start, "patchB": end, "shrinkA": 0, "shrinkB": 0}
        places: dict[str, Any] = {"xycoords": end, "textcoords": start}
        ax.annotate("", middle, middle, arrowprops=style | edges, zorder=0.5, **places)


def picture(ax: Axes, centre: Point, pixels: Array, title: str = "", **style: Any) -> Patch:
    """A picture of one inch, its title below it.

    Args:
        ax: of `canvas`.
        centre: of the picture.
        pixels: (H, W, 3) in [0, 1], or (H, W), drawn by `style`.
        title: of the picture.
        style: of `Axes.imshow`.
    """
    (x, y), half = centre, 0.5
    ax.imshow(np.asarray(pixels), extent=(x - half, x + half, y - half, y + half), **style)
    frame = Rectangle((x - half, y - half), 1, 1, fill=False, edgecolor="0.25", zorder=0)
    ax.add_patch(frame)
    ax.text(x, y - half - 0.08, title, ha="center", va="top")
    return frame


def augmentation(steps: Mapping[str, float]) -> Figure:
    """Steps in a row, each under what it is called and above how often it changes an image.

    Args:
        steps: {name: probability that it changes an image}, in the order of application.
    """
    figure, ax = canvas(8.9, 1.3)
    names = ["image\nand label", *steps, "new image,\nsame label"]
    boxes = []
    for i, name in enumerate(names):
        x = 0.585 + 1.285 * i
        words = re.sub("(?<=[a-z])(?=[A-Z])", "\n", name)  # of a transform's class
        boxes.append(box(ax, (x, 0.85), words, 1.07, colour=0 if name in steps else 2))
        if name in steps:
            share = round(100 * steps[name])
            often = "every\nimage" if steps[name] == 1 else f"{share} % of the\nimages"
            ax.text(x, 0.27, often, ha="center", va="center")
    arrows(ax, *boxes)
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
    whole = picture(ax, (0.75, 3.2), photo, "image")
    stages = box(ax, (2.5, 3.2), "stem, layer1,\nlayer2, layer3,\nlayer4", height=0.8)
    for i, channel in enumerate(channels):
        picture(ax, (4.05 + 0.2 * i, 3.35 - 0.15 * i), channel, norm=one_scale, **signed)
    stack = Rectangle((3.5, 2.55), 1.5, 1.3, visible=False)
    ax.add_patch(stack)
    ax.text(4.25, 4.1, f"channels of {len(raw)} × {len(raw)} cells", ha="center")
    average = box(ax, (6.2, 3.2), "average of each\nchannel, times the\nclass's weights", 1.4, 0.8)
    score = box(ax, (8.2, 3.2), f"logit of\nthe class\n{logit:.2f}", 1.1, 0.8, colour=2)
    arrows(ax, whole, stages, stack, average, score)

    weights = "gradient,\naveraged: one\nweight for each\nchannel"
    gradient = box(ax, (8.2, 1.1), weights, 1.25, 1, colour=1)
    weighted = box(ax, (6.2, 1.1), "channels\ntimes weights,\nadded up", 1.4, 0.8, colour=1)
    signed["norm"] = CenteredNorm()
    evidence = picture(ax, (4.25, 1.1), raw, "evidence, cell by cell", **signed)
    scaled = box(ax, (2.5, 1.1), "ReLU, enlarge,\ndivide by the\nmaximum", 1.3, 0.8, colour=1)
    picture(ax, (0.75, 1.1), photo.mean(2), "heatmap", cmap="gray", vmin=0, vmax=1)
    overlay = picture(ax, (0.75, 1.1), heat, cmap=HEATMAP_COLOURS, vmin=0, vmax=1, alpha=0.6)
    arrows(ax, score, gradient, weighted, evidence, scaled, overlay)
    arrows(ax, stack, weighted)
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
        ax.text(0.05, y, name, va="center")
    for left, title, kept in (
        (1.3, "original: every other position is skipped", range(0, 8, 2)),
        (5.35, "dilated: all are kept, neighbours are two apart", range(8)),
    ):
        ax.text(left + 1.7, 2.98, title, ha="center", va="top")
        x = left + 0.48 * np.arange(8)
        for i in range(8):
            _number(ax, (x[i], 2.45), row[i], (0.35, 0.35, 0.35))
        for i in kept:
            colour = COLOURS[i % 2]
            for y, values, apart in ((1.45, first, 1), (0.45, second, 2)):
                for neighbour in {i - apart, i, i + apart} & set(range(8)):
                    ax.plot((x[neighbour], x[i]), (y + 1, y), color=colour, linewidth=1, zorder=1)
                _number(ax, (x[i], y), values[i], colour)
    return figure


def _number(ax: Axes, centre: tuple[float, float], value: float, colour: tuple[float, ...]) -> None:
    ax.plot(*centre, "o", markersize=22, markerfacecolor="white", color=colour, markeredgewidth=2)
    ax.text(*centre, f"{value:g}", ha="center", va="center")


def residual_block() -> Figure:
    """What one block computes: six steps to what it adds, and the way around them."""
    figure, ax = canvas(8.8, 1.9)
    widths = {"batch\nnorm": 0.7, "ReLU": 0.7, "3 × 3\nconvolution": 1.05, "x + added": 0.9}
    *steps, end = widths
    boxes = []
    right = -0.1
    for text in ["x", *steps, *steps, "+", end]:
        width = widths.get(text, 0.5)
        right += 0.2 + width
        colour = {"x": 2, "+": 1, end: 2}.get(text, 0)
        boxes.append(box(ax, (right - width / 2, 0.55), text, width, colour=colour))
    arrows(ax, *boxes)
    arrows(ax, boxes[0], boxes[-2], color=COLOURS[1], connectionstyle="bar,fraction=-0.12")
    ax.text(4, 1.5, "the shortcut: x as it is", ha="center", va="bottom")
    ax.text(right - 1.7, 0.9, "added", ha="center", va="bottom")
    return figure


def network(shapes: Mapping[str, tuple[int, int]], classes: int) -> Figure:
    """The network from image to logits: squares as large as the grids, their shapes above.

    Args:
        shapes: {part: (channels, cells on a side of its grid)}, from the image to the last stage.
        classes: how many logits.
    """
    figure, ax = canvas(8.9, 2.5)
    middle, step, x = 1.3, 1.12, 0.57
    parts: list[Patch] = []
    for part, (channels, side) in shapes.items():
        half = 0.1 + side / 110
        colour = np.array(COLOURS[0 if parts else 2])
        face = 1 - PALE * (1 - colour)
        for shift in (0.1, 0.05, 0):  # channels, one behind the other
            corner = (x - half + shift, middle - half + shift)
            square = Rectangle(corner, 2 * half, 2 * half, facecolor=face, edgecolor=colour)
            ax.add_patch(square)
        parts.append(square)
        texts = {2.2: f"{channels} channels\n{side} × {side}", 0.5: part}
        for y, text in texts.items():
            ax.text(x, y, text, ha="center", va="center")
        x += step
    ends = {
        "average of\neach channel": f"{channels}\nnumbers",
        "linear layer\n(fc)": f"{classes}\nlogits",
    }
    for name, text in ends.items():
        parts.append(box(ax, (x, middle), text, 0.8, colour=1))
        ax.text(x, 0.5, name, ha="center", va="center")
        x += step
    arrows(ax, *parts)
    return figure


def fair_comparison() -> Figure:
    """The claim and, below it, its null: the map is exchanged for that of another mistake."""
    figure, ax = canvas(8.7, 2.2)
    rows = {1.65: ("the claim", "image i", 0), 0.55: ("the null", "another\nmistake, j", 1)}
    for y, (name, owner, colour) in rows.items():
        ax.text(0.05, y, name, va="center", style="italic")
        steps = {f"difference map\nof {owner}": colour, "its top cell": colour}
        steps |= {"cover this cell\nof image i": 7, "does it say the\nactual class?": 2}
        boxes = [
            box(ax, (1.75 + 2 * i, y), step, 1.55, 0.75, steps[step])
            for i, step in enumerate(steps)
        ]
        arrows(ax, *boxes)
    return figure
