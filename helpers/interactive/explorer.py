"""Explore predictions and their heatmaps in any browser, in a notebook or on a page."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torchvision.utils import make_grid

from helpers import plots
from helpers.data import Dataset
from helpers.evaluation import Predictions, require_source
from helpers.gradcam import GradCAM, as_heatmaps
from helpers.interactive.embed import embed, quantised, to_base64
from helpers.model import PreActResNet, dilated
from helpers.similarity import all_maps

IMAGES = 1024  # in an explorer; WALKTHROUGH_IMAGES in the environment sets another number
ALT = (
    "One image, bars of its probabilities, "
    "and on two grids the maps of two classes and their difference"
)
COLUMNS = 32  # images in a row of the sprite, the one picture that holds them all


def explore(
    model: PreActResNet, sets: Mapping[str, tuple[Dataset, Predictions]], count: int | None = None
) -> HTML:
    """Choose images by set, class and outcome; see each with its probabilities and maps.

    The maps are those of any two classes, and their difference. Each set gives its mistakes, to
    each a right prediction like it (see `match_mistakes`), and others if there is room left. The
    images are stored as JPEG, for the eye; the maps are those of the exact pixels, in steps of
    1/127 of an image's maximum.

    Args:
        model: of this project.
        sets: {name: (images, the model's predictions for them)}.
        count: images to hold, `IMAGES` by default; fewer of them where there are more than ten
            classes, whose maps are held, too.

    Returns:
        The explorer, to show in a notebook or on a page.

    Raises:
        ValueError: predictions of other images, or by another network; sets of different classes.
    """
    dataset, predictions = next(iter(sets.values()))
    classes = dataset.classes
    count = count or int(os.environ.get("WALKTHROUGH_IMAGES", IMAGES))
    count = min(count, 10 * IMAGES // len(classes)) // len(sets)

    rows: list[dict] = []
    parts = []
    for number, (images, answers) in enumerate(sets.values()):
        require_source(answers, model, images)
        if images.classes != classes:
            raise ValueError("these sets have different classes: make an explorer for each")
        chosen = choose_images(answers, count)
        rows.extend(_rows(number, answers, chosen))
        parts.append(images.subset(chosen))

    cams = cams_by_grid(model)
    tensor = torch.cat([part.tensor() for part in parts])
    data = {
        "classes": classes,
        "sets": list(sets),
        "images": rows,
        "grids": [quantised(all_maps(cam, tensor, len(classes))) for cam in cams.values()],
        "size": tensor.shape[-1],
        "columns": COLUMNS,
        "sprite": _sprite(np.concatenate([part.images for part in parts])),
    }
    still = still_figure(cams, dataset, predictions, rows[0]["index"])
    return embed("explorer", data, still, ALT)


def choose_images(predictions: Predictions, count: int) -> np.ndarray:
    """Choose images to hold: mistakes and their matches in turns, then others at random.

    Args:
        predictions: for N images.
        count: how many to choose.

    Returns:
        Indices, (count,), or fewer if there are no more.
    """
    rng = np.random.default_rng(0)
    matched = match_mistakes(predictions, count // 2, rng).ravel()
    others = np.setdiff1d(np.arange(len(predictions.labels)), matched)
    return np.concatenate([matched, rng.permutation(others)])[:count]


def match_mistakes(predictions: Predictions, count: int, rng: np.random.Generator) -> np.ndarray:
    """Match mistakes with right predictions, so that neither class nor confidence tells them apart.

    As many matches as possible are of the same predicted class, and as close in confidence as can
    be, over all matches. No image is taken twice.

    Args:
        predictions: for N images.
        count: largest number of mistakes, chosen at random.
        rng: for that choice.

    Returns:
        Indices (n, 2): a mistake and its match.
    """
    predicted, confidence = predictions.predicted, predictions.confidence
    wrong = rng.permutation(np.flatnonzero(~predictions.correct))[: max(0, count)]
    right = np.flatnonzero(predictions.correct)
    gaps = np.abs(confidence[wrong][:, None] - confidence[right])
    gaps += len(wrong) * (predicted[wrong][:, None] != predicted[right])  # above all, one class
    rows, matches = linear_sum_assignment(gaps)
    return np.stack([wrong[rows], right[matches]], axis=1)


def cams_by_grid(model: PreActResNet) -> dict[str, GradCAM]:
    """Grad-CAM at `layer4` on two grids: the network's own, and the finer one of its dilated form.

    Returns:
        {name of the grid: its Grad-CAM}.
    """
    return {"4 × 4 cells": GradCAM(model), "8 × 8 cells": GradCAM(dilated(model))}


def maps_by_grid(
    cams: Mapping[str, GradCAM], images: torch.Tensor, classes: Sequence[int] | torch.Tensor
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What `plots.explanation_card` draws of one image.

    Args:
        cams: {name of a grid: its Grad-CAM}.
        images: the image, (1, 3, H, W) in [0, 1].
        classes: two.

    Returns:
        {name of a grid: (raw, heatmaps)}. raw: the maps of the two classes and their difference,
        (3, h, w). heatmaps: those of the two classes, (2, H, W).
    """
    found = {}
    for name, cam in cams.items():
        maps = cam.evidence(images, torch.as_tensor(classes)[None])[0]
        raw = torch.cat([maps, maps[:1] - maps[1:]])
        found[name] = raw, as_heatmaps(maps[None], images.shape[-2:])[0]
    return found


def still_figure(
    cams: Mapping[str, GradCAM], dataset: Dataset, predictions: Predictions, index: int
) -> Figure:
    """Draw an image, its probabilities, and for every grid the maps of two classes.

    The classes are the predicted one and the actual one, or the runner-up where the prediction is
    right.

    Args:
        cams: {name of a grid: its Grad-CAM}, as of `cams_by_grid`.
        dataset: the images.
        predictions: for all of them.
        index: of the image.
    """
    said, runner_up = np.argsort(-predictions.logits[index])[:2]
    actual = predictions.labels[index]
    pair = [int(said), int(runner_up if predictions.correct[index] else actual)]
    title = f"said {dataset.classes[said]}\nis {dataset.classes[actual]}"
    images = dataset.tensor([index])
    names = [dataset.classes[number] for number in pair]
    maps = maps_by_grid(cams, images, pair)
    probabilities = predictions.probabilities[index]
    return plots.explanation_card(images[0], title, probabilities, dataset.classes, names, maps)


def _rows(set_number: int, predictions: Predictions, chosen: np.ndarray) -> Iterator[dict]:
    """What is known of each chosen image of a set."""
    for index in chosen:
        yield {
            "set": set_number,
            "index": int(index),
            "said": int(predictions.predicted[index]),
            "actual": int(predictions.labels[index]),
            "probabilities": predictions.probabilities[index].round(4).tolist(),
        }


def _sprite(images: np.ndarray) -> str:
    """All images (N, S, S, 3) in one picture, row by row, as a JPEG's address."""
    sheet = make_grid(torch.from_numpy(images).permute(0, 3, 1, 2), COLUMNS, padding=0)
    jpeg = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(jpeg, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{to_base64(jpeg.getvalue())}"
