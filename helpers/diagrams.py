"""Diagrams that the notebooks show, drawn by code in the colours of `plots`."""

import re
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from helpers.plots import COLOURS

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


def augmentation(steps: Mapping[str, float]) -> Figure:
    """Steps in a row, each under what it is called and above how often it changes an image.

    Args:
        steps: {name: probability that it changes an image}, in the order of application.
    """
    names = ["image\nand label", *steps, "new image,\nsame label"]
    figure, ax = canvas(9, 1.3)
    width, gap = 1.08, 0.225
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
