"""Put something interactive into a notebook or a page: a still figure, data, and a script.

It needs no kernel, library or network. The scripts are maps.js, which all share, and those of the
explorer, the game or the live page; what they fill is explorer.html, game.html or live.html, in the
style of explorer.css.
"""

import base64
import html
import json
import zlib
from pathlib import Path
from typing import Any

import matplotlib
import torch
from IPython.display import HTML
from matplotlib.figure import Figure

from helpers import plots
from helpers.interactive.widgets import as_png

FOLDER = Path(__file__).parent
SCRIPTS = {"explorer": ["explorer.js"], "game": ["game.js"], "live": ["network.js", "live.js"]}


def embed(kind: str, data: dict[str, Any], still: Figure, alt: str) -> HTML:
    """Show a still figure, and let a script put something interactive in its place.

    Where no script runs (on GitHub, in a notebook that is not trusted) the figure stays.

    Args:
        kind: "explorer", "game" or "live".
        data: what the script of that kind takes; texts in it are never markup.
        still: the figure.
        alt: its alternative text.
    """
    content = data | {
        "kind": kind,
        "style": _read("explorer.css"),
        "markup": _read(f"{kind}.html"),
        "palettes": [_palette(plots.HEATMAP_COLOURS), _palette(plots.SIGNED_COLOURS)],
    }
    as_json = json.dumps(content, separators=(",", ":"))
    as_json = as_json.replace("<", "\\u003c")  # or a class called </script> would end the data
    script = "".join(map(_read, ["maps.js", *SCRIPTS[kind]]))
    source = f"data:image/png;base64,{to_base64(as_png(still))}"
    return HTML(
        '<div class="alive" data-lm-suppress-shortcuts="true">'
        f'<img alt="{html.escape(alt)}" src="{source}" style="max-width: 100%">'
        f'<script type="application/json">{as_json}</script>'
        "</div>"
        f'<script>(() => {{\n"use strict";\n{script}}})();</script>'
    )


def quantised(maps: torch.Tensor) -> dict[str, Any]:
    """Maps in 8 bits: whole numbers from -127 to 127, and for each image what to multiply them by.

    Args:
        maps: (N, ..., h, h).

    Returns:
        {"side": h, "scales": N numbers, "cells": the whole numbers, compressed, as text}.
    """
    whole, scales = in_eight_bits(maps)
    return {
        "side": maps.shape[-1],
        "scales": [float(f"{scale:.6g}") for scale in scales],
        "cells": compressed(whole.numpy().tobytes()),
    }


def in_eight_bits(numbers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers from -127 to 127, and for each row what to multiply them by.

    Args:
        numbers: maps (N, ..., h, h), or the weights of a convolution (outputs, inputs, k, k).

    Returns:
        (int8 of that shape, scales (N,)).
    """
    scales = numbers.detach().flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    one_for_each_row = scales.view(-1, *[1] * (numbers.ndim - 1))
    return (numbers.detach() / one_for_each_row).round().to(torch.int8), scales


def compressed(content: bytes) -> str:
    """Bytes as text that `inflate` in maps.js reads."""
    return to_base64(zlib.compress(content, 9))


def to_base64(content: bytes) -> str:
    """Bytes as text that a page can hold."""
    return base64.b64encode(content).decode()


def _read(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _palette(name: str) -> str:
    """The 256 colours of a colour map of matplotlib, three bytes each."""
    colours = matplotlib.colormaps[name](range(256), bytes=True)
    return to_base64(colours[:, :3].tobytes())
