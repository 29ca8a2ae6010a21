"""Explore predictions and their heatmaps: in a notebook or on a page, without a kernel, a library or a network."""

import base64
import html
import io
import json
import os
import zlib
from pathlib import Path

import matplotlib
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image

from helpers import plots
from helpers.data import Dataset
from helpers.evaluation import Predictions
from helpers.explanation import all_maps
from helpers.gradcam import GradCAM
from helpers.interactive.front_end import as_png
from helpers.interactive.photo import grids, rows

IMAGES = 1024  # held by an explorer; WALKTHROUGH_IMAGES in the environment sets another number, for smaller notebooks
COLUMNS = 32  # of the sprite


def explore(model, sets: dict[str, tuple[Dataset, Predictions]], count: int | None = None) -> HTML:
    """Choose images by set, class and outcome; see each with its probabilities, two classes' maps and their difference.

    model: of this project.  sets: {name: (images, the model's predictions for them)}.
    count: images to hold, `IMAGES` by default; fewer of them where there are more than ten classes, whose maps are held, too.
    Each set gives its mistakes, to each a right prediction like it (see `pairs`), and others if there is room left.
    The images are stored as JPEG, for the eye; the maps are those of the exact pixels, in steps of 1/127 of an image's maximum.
    """
    (dataset, predictions), *_ = sets.values()
    count = count or int(os.environ.get("WALKTHROUGH_IMAGES", IMAGES))
    count = min(count, 10 * IMAGES // len(dataset.classes)) // len(sets)
    chosen = [choose(predictions, count) for _, predictions in sets.values()]
    held = [dataset.subset(indices) for (dataset, _), indices in zip(sets.values(), chosen)]
    cams, tensor = grids(model), torch.cat([part.tensor() for part in held])
    data = {
        "classes": dataset.classes,
        "sets": list(sets),
        "images": [row for i, (_, answers) in enumerate(sets.values()) for row in _rows(i, answers, chosen[i])],
        "grids": [quantised(all_maps(cam, tensor, len(dataset.classes))) for cam in cams.values()],
        "size": tensor.shape[-1],
        "columns": COLUMNS,
        "sprite": _sprite(np.concatenate([part.images for part in held])),
    }
    alt = "One image, bars of its probabilities, and on two grids the maps of two classes and their difference"
    return alive("explorer", data, picture(cams, dataset, predictions, chosen[0][0]), alt)


def alive(kind: str, data: dict, still: Figure, alt: str) -> HTML:
    """Something to play with in a browser: a still figure with data, and the script that puts a live one in its place.

    Where no script runs (on GitHub, in a notebook that is not trusted) the figure stays; its alternative text is alt.
    kind: "explorer" or "game", a function of explorer.js.  data: whatever that takes; texts in it are never markup.
    """
    folder = Path(__file__).parent
    script, style, markup = ((folder / name).read_text("utf-8") for name in ("explorer.js", "explorer.css", f"{kind}.html"))
    palettes = [
        _base64(matplotlib.colormaps[name](range(256), bytes=True)[:, :3].tobytes()) for name in (plots.HEAT, plots.SIGNED)
    ]
    data = data | {"kind": kind, "style": style, "markup": markup, "palettes": palettes}
    figure = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{_base64(as_png(still))}" style="max-width: 100%">'
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # or a class called </script> would end it
    return HTML(
        f'<div class="alive" data-lm-suppress-shortcuts="true">{figure}<script type="application/json">{content}</script></div>'
        f"<script>{script}</script>"
    )


def quantised(maps: torch.Tensor) -> dict:
    """Maps (N, ..., h, h) in 8 bits: a scale for each image, by which its whole numbers from -127 to 127 are multiplied."""
    scales = maps.flatten(1).abs().amax(1).clamp_min(1e-12) / 127
    whole = (maps / scales.view(-1, *[1] * (maps.ndim - 1))).round().to(torch.int8)
    return {
        "side": maps.shape[-1],
        "scales": [float(f"{s:.6g}") for s in scales],
        "cells": _base64(zlib.compress(whole.numpy(), 9)),
    }


def choose(predictions: Predictions, count: int) -> np.ndarray:
    """So many images to hold: each mistake and the right prediction that is its pair in turns, then others, at random."""
    rng = np.random.default_rng(0)
    alike = pairs(predictions, count // 2, rng).ravel()
    others = np.setdiff1d(np.arange(len(predictions.labels)), alike)
    return np.concatenate([alike, rng.permutation(others)])[:count]


def pairs(predictions: Predictions, count: int, rng: np.random.Generator) -> np.ndarray:
    """Mistakes, at most count, and to each a right prediction of its own: (n, 2) indices.

    It is of the same predicted class (where one is left), and as close in confidence as there is, so that neither class nor
    confidence tells the two apart.
    """
    wrong, right = np.flatnonzero(~predictions.correct), np.flatnonzero(predictions.correct)
    found = []
    for index in rng.permutation(wrong)[: min(count, len(right))]:
        free = np.setdiff1d(right, [pair[1] for pair in found])
        same = free[predictions.predicted[free] == predictions.predicted[index]]
        alike = same if len(same) else free
        found.append((index, alike[np.abs(predictions.confidence[alike] - predictions.confidence[index]).argmin()]))
    return np.array(found, dtype=int).reshape(-1, 2)


def picture(cams: dict[str, GradCAM], dataset: Dataset, predictions: Predictions, index: int) -> Figure:
    """An image, its probabilities, and a row for each of these grids: the maps of two classes and their difference.

    The classes are the predicted one and the actual one, or the runner-up where the prediction is right.
    """
    said, second = np.argsort(-predictions.logits[index])[:2]
    two = [int(said), int(second if predictions.correct[index] else predictions.labels[index])]
    title = f"said {dataset.classes[said]}\nis {dataset.classes[dataset.labels[index]]}"
    image, names = dataset.tensor([index]), [dataset.classes[number] for number in two]
    maps = rows(cams, image, two)
    return plots.explanation(image[0], title, predictions.probabilities[index], dataset.classes, names, maps)


def _rows(number, predictions, chosen):
    """What is known of each chosen image of this set."""
    for index in chosen:
        said, actual = int(predictions.predicted[index]), int(predictions.labels[index])
        shares = predictions.probabilities[index].round(4).tolist()
        yield {"set": number, "index": int(index), "said": said, "actual": actual, "probabilities": shares}


def _sprite(images):
    """All images (N, S, S, 3) in one picture, row by row."""
    size = images.shape[1]
    images = np.concatenate([images, np.zeros((-len(images) % COLUMNS, size, size, 3), np.uint8)])
    sheet = images.reshape(-1, COLUMNS, size, size, 3).swapaxes(1, 2).reshape(-1, COLUMNS * size, 3)
    jpeg = io.BytesIO()
    Image.fromarray(sheet).save(jpeg, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{_base64(jpeg.getvalue())}"


def _base64(content) -> str:
    return base64.b64encode(content).decode()
