"""Bring a photograph to what the network takes, and show what it makes of it."""

import html
import os
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from PIL import Image

from helpers import plots
from helpers.data import to_float
from helpers.gradcam import GradCAM
from helpers.interactive.explorer import maps_by_grid
from helpers.interactive.widgets import as_png, has_front_end
from helpers.model import PreActResNet
from helpers.support.device import eval_mode, to_device_of
from helpers.support.image_files import crop_and_shrink, read_image

LOW_CONFIDENCE = 0.6  # probability of the best class below which `explain_photo` calls it unsure


def to_network(photo: Image.Image) -> torch.Tensor:
    """Crop a photograph to its central square and shrink that.

    Args:
        photo: RGB.

    Returns:
        What the network takes, (1, 3, 32, 32) in [0, 1].
    """
    pixels = torch.from_numpy(crop_and_shrink(photo))
    return to_float(pixels.permute(2, 0, 1)[None])


@torch.inference_mode()
def explain_photo(
    model: PreActResNet, source: str | os.PathLike | bytes, classes: Sequence[str]
) -> tuple[Figure, str]:
    """What the network sees of a photograph, and the maps of its two likeliest classes.

    Args:
        model: of this project, in eval mode.
        source: a path, or the bytes of a file.
        classes: names, in the order of the logits.

    Returns:
        A figure with the photograph, the probabilities and the maps of 4 x 4 cells; and a sentence
        on how far to believe it.

    Raises:
        FileNotFoundError, ValueError: as `image_files.read_image` does.
    """
    photo = read_image(source)
    images = to_network(photo)
    with eval_mode(model):
        probabilities = model(to_device_of(model, images)).softmax(1)[0].cpu()
    best = probabilities.topk(2).indices
    names = [classes[number] for number in best]
    maps = maps_by_grid({"4 × 4 cells": GradCAM(model)}, images, best)
    figure = plots.explanation_card(
        images[0], "what it sees", probabilities, classes, names, maps, photo=photo
    )
    share = float(probabilities.max())
    trust = f"{share:.0%} sure"
    if share < LOW_CONFIDENCE:
        trust = f"only {trust}, so do not rely on it"
    known = ", ".join(classes)
    limit = f"The network can answer nothing but {known}, whatever the picture shows."
    return figure, f"{names[0]}, {trust}. {limit}"


def upload(model: PreActResNet, classes: Sequence[str]) -> widgets.VBox | None:
    """A button to upload a photograph with, and what the network makes of it.

    Args:
        model: of this project, in eval mode.
        classes: names, in the order of the logits.

    Returns:
        The widget; None, after printing a sentence on how to get one, where none can be shown.
    """
    if not has_front_end():
        print("JupyterLab, VS Code, Colab and Kaggle show a button here to upload a photograph")
        return None
    button = widgets.FileUpload(accept="image/*")
    note = widgets.HTML()
    shown = widgets.Image(format="png")

    def show(change: dict[str, Any]) -> None:
        shown.value = b""
        note.value = ""
        files = change["new"]
        if not files:  # the upload was cleared
            return
        # ipywidgets 8 gives a tuple of files, 7 a dictionary.
        first = files[0] if isinstance(files, tuple) else next(iter(files.values()))
        try:
            figure, verdict = explain_photo(model, first["content"], classes)
        except ValueError as error:
            note.value = f"<b>{html.escape(str(error))}</b>"
        else:
            shown.value = as_png(figure)
            note.value = html.escape(verdict)

    button.observe(show, "value")
    return widgets.VBox([button, note, shown])
