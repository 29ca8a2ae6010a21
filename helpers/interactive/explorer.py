"""Explore predictions and their heatmaps: widgets in a notebook, a static figure on a page that nobody can click on."""

import html
import io
import os
import sys
from contextlib import contextmanager

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure

from helpers import plots
from helpers.data import Dataset
from helpers.evaluation import Predictions, confusion
from helpers.explanation import all_maps
from helpers.gradcam import GradCAM, as_heatmaps
from helpers.interactive.photo import explain_photo, grids, rows

FINER_LAYERS = ("layer3", "layer2", "layer1")
MATRIX_LIMIT = 12  # classes up to which the confusion matrix is shown as buttons


def has_front_end() -> bool:
    """Whether the notebook is open somewhere that can show widgets: Jupyter's server, VS Code or Colab started its kernel."""
    return "google.colab" in sys.modules or any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID"))


def explore(model, sets: dict[str, tuple[Dataset, Predictions]]):
    """Show an `Explorer` where its widgets work, else the figure that it would begin with."""
    if has_front_end():
        return Explorer(model, sets).box
    return picture(grids(model), *next(iter(sets.values())), 0)


def picture(cams: dict[str, GradCAM], dataset: Dataset, predictions: Predictions, index: int) -> Figure:
    """An image, its probabilities, and a row for each of these grids: the maps of two classes and their difference."""
    two = _two_classes(predictions, index)
    return _figure(dataset, predictions, index, two, rows(cams, dataset.tensor([index]), two))


def _two_classes(predictions, index):
    """The predicted class and the actual one, or the runner-up where the prediction is right."""
    said, second = np.argsort(-predictions.logits[index])[:2]
    return [int(said), int(second if predictions.correct[index] else predictions.labels[index])]


def _figure(dataset, predictions, index, two, maps, strength=0.6):
    title = f"said {dataset.classes[predictions.predicted[index]]}\nis {dataset.classes[dataset.labels[index]]}"
    names = [dataset.classes[number] for number in two]
    shown = dataset.tensor([index])[0], title, predictions.probabilities[index], dataset.classes, names, maps, strength
    return plots.explanation(*shown)


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


def as_png(figure: Figure) -> bytes:
    """What a widget shows of a figure."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    return png.getvalue()


class Explorer:
    """Choose images by split, class and outcome; see each with its probabilities, two classes' maps and their difference.

    model: of this project.  sets: {name: (images, the model's predictions for them)}.
    The maps of all classes are computed once an image and grid.
    """

    def __init__(self, model, sets: dict[str, tuple[Dataset, Predictions]]):
        self.sets, self.kept, self.quiet = sets, (None, None), False
        self.cams = grids(model) | {layer: GradCAM(model, layer) for layer in FINER_LAYERS}
        classes = next(iter(sets.values()))[0].classes
        numbered = [(name, number) for number, name in enumerate(classes)]
        self.split = widgets.ToggleButtons(options=list(sets), description="images")
        self.actual = widgets.Dropdown(options=[("any class", None), *numbered], description="is")
        self.said = widgets.Dropdown(options=[("any class", None), *numbered], description="said")
        self.outcome = widgets.ToggleButtons(options=["all", "right", "wrong"], description="outcome")
        self.position = widgets.IntSlider(min=1, max=1, description="image")
        self.first = widgets.Dropdown(options=numbered, description="map of")
        self.second = widgets.Dropdown(options=numbered, description="and of")
        self.grid = widgets.Dropdown(options=list(self.cams), description="grid")
        self.view = widgets.ToggleButtons(options=["smooth", "cells"], description="view")
        self.strength = widgets.FloatSlider(value=0.6, min=0, max=1, step=0.1, description="strength")
        self.picture, self.note = widgets.Image(format="png"), widgets.HTML()
        filters, looks = (self.split, self.actual, self.said, self.outcome), (self.grid, self.view, self.strength)
        for control in filters:
            control.observe(self._filter, "value")
        self.position.observe(self._choose, "value")
        for control in (self.first, self.second, *looks):
            control.observe(self._draw, "value")
        lines = [filters[:1] + filters[3:], filters[1:3], [self.position, *looks[:1]], [self.first, self.second], looks[1:]]
        self.box = widgets.VBox([*map(widgets.HBox, lines), self.note, self.picture, *self._matrix(classes)])
        self._filter()

    def figure(self) -> Figure:
        """What the widgets show now."""
        dataset, predictions = self.sets[self.split.value]
        index = self.chosen[self.position.value - 1]
        key = (self.split.value, index, self.grid.value)
        if self.kept[0] != key:
            cam = self.cams[self.grid.value]
            self.kept = key, all_maps(cam, dataset.tensor([index]), len(dataset.classes))[0]
        two = [self.first.value, self.second.value]
        maps = self.kept[1][two]
        heatmaps = as_heatmaps(maps[None], dataset.images.shape[1:3])[0] if self.view.value == "smooth" else None
        row = {self.grid.value: (torch.cat([maps, maps[:1] - maps[1:]]), heatmaps)}
        return _figure(dataset, predictions, index, two, row, self.strength.value)

    def _filter(self, change=None):
        """Find the images that the filters leave and show the first of them."""
        if self.quiet:
            return
        predictions = self.sets[self.split.value][1]
        keep = np.ones(len(predictions.labels), dtype=bool)
        if self.outcome.value != "all":
            keep &= predictions.correct == (self.outcome.value == "right")
        for control, numbers in ((self.actual, predictions.labels), (self.said, predictions.predicted)):
            if control.value is not None:
                keep &= numbers == control.value
        self.chosen = np.flatnonzero(keep)
        self.note.value = f"{len(self.chosen):,} images"
        with self._together():
            self.position.max = max(len(self.chosen), 1)
            self.position.value = 1
        self._choose()

    def _choose(self, change=None):
        """Show the image that the slider stands at."""
        if self.quiet:
            return
        if len(self.chosen):
            index = self.chosen[self.position.value - 1]
            with self._together():
                self.first.value, self.second.value = _two_classes(self.sets[self.split.value][1], index)
        self._draw()

    def _draw(self, change=None):
        if self.quiet:
            return
        self.picture.value = as_png(self.figure()) if len(self.chosen) else b""

    @contextmanager
    def _together(self):
        """Change several controls and draw once, afterwards."""
        before, self.quiet = self.quiet, True
        yield
        self.quiet = before

    def _matrix(self, classes):
        """The confusion matrix as buttons, row = actual class: a click shows the images of a cell."""
        if len(classes) > MATRIX_LIMIT:
            return []
        counts = confusion(self.sets[self.split.value][1])
        cells = [widgets.HTML("is \\ said"), *(widgets.HTML(name) for name in classes)]
        for a, name in enumerate(classes):
            cells.append(widgets.HTML(name))
            for p in range(len(classes)):
                button = widgets.Button(description=str(counts[a, p]), layout=widgets.Layout(width="auto"))
                button.tooltip = f"is {name}, said {classes[p]}"
                button.on_click(lambda _, a=a, p=p: self.show_cell(a, p))
                cells.append(button)
        columns = f"6em repeat({len(classes)}, minmax(2.5em, 5em))"
        return [widgets.GridBox(cells, layout=widgets.Layout(grid_template_columns=columns))]

    def show_cell(self, actual: int, said: int) -> None:
        """Show the images of one cell of the confusion matrix."""
        with self._together():
            self.outcome.value, self.actual.value, self.said.value = "all", actual, said
        self._filter()
