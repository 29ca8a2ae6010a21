"""Bring a photograph to what the network takes, and show what it makes of it."""

import html

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from PIL import Image

from helpers import plots
from helpers.data import to_float
from helpers.gradcam import GradCAM, as_heatmaps, beside
from helpers.interactive.front_end import as_png, has_front_end
from helpers.model import dilated
from helpers.pictures import read, to_size

LOW_CONFIDENCE = 0.6  # probability of the best class below which `explain_photo` calls it unsure


def to_network(photo: Image.Image) -> torch.Tensor:
    """The central square of an RGB photograph, shrunk: (1, 3, 32, 32) in [0, 1]."""
    return to_float(torch.from_numpy(to_size(photo)).permute(2, 0, 1)[None])


def grids(model) -> dict[str, GradCAM]:
    """Grad-CAM on the two grids of `layer4`, by name: the network's own, and the finer one of its dilated form."""
    return {"4 × 4 cells": GradCAM(model), "8 × 8 cells": GradCAM(dilated(model))}


def rows(cams: dict[str, GradCAM], images: torch.Tensor, two) -> dict[str, tuple]:
    """What `plots.explanation` draws of images (1, 3, H, W): for every grid the raw maps of two classes and their difference,
    (3, h, w), and the heatmaps of the two, (2, H, W)."""
    found = {}
    for name, cam in cams.items():
        maps = cam.evidence(images, torch.as_tensor(two)[None])[0]
        found[name] = torch.cat([maps, maps[:1] - maps[1:]]), as_heatmaps(maps[None], images.shape[-2:])[0]
    return found


@torch.inference_mode()
def explain_photo(model, source, classes) -> tuple[Figure, str]:
    """What the network sees of a photograph, its probabilities, and the maps of its two likeliest classes on both grids.

    source: a path, or the bytes of a file.  Returns the figure and a sentence on how far to believe it.
    """
    photo = read(source)
    images = to_network(photo)
    probabilities = model(beside(model, images)).softmax(1)[0].cpu()
    best = probabilities.topk(2).indices
    names, share = [classes[i] for i in best], float(probabilities.max())
    maps = rows(grids(model), images, best)
    figure = plots.explanation(images[0], "what it sees", probabilities, classes, names, maps, photo=photo)
    trust = f"only {share:.0%} sure, so do not rely on it" if share < LOW_CONFIDENCE else f"{share:.0%} sure"
    return figure, f"{names[0]}, {trust}. The network can answer nothing but {', '.join(classes)}, whatever the picture shows."


def upload(model, classes: tuple):
    """A button to upload a photograph with, and what the network makes of it; without widgets, a sentence on how to do it."""
    if not has_front_end():
        print("here you could upload a photograph, if the notebook were open in JupyterLab or Colab")
        return None
    button, note, picture = widgets.FileUpload(accept="image/*"), widgets.HTML(), widgets.Image(format="png")

    def show(change):
        files = change["new"]  # a tuple of files in ipywidgets 8, a dictionary in 7
        content = (files[0] if isinstance(files, tuple) else next(iter(files.values())))["content"]
        try:
            figure, note.value = explain_photo(model, content, classes)
            picture.value = as_png(figure)
        except ValueError as error:
            picture.value, note.value = b"", f"<b>{html.escape(str(error))}</b>"

    button.observe(show, "value")
    return widgets.VBox([button, note, picture])
