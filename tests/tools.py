"""What several test modules need."""

import io
import json
import multiprocessing
import signal
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
import pytest
import torch
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import nn

from helpers import shapes
from helpers.data import Dataset
from helpers.model import resnet18

# ---- Pictures


def as_bytes(image: Image.Image, form: str = "PNG", **options) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


# ---- What `embed` puts into notebooks and pages


class Element(NamedTuple):
    tag: str
    attributes: dict
    text: str


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[Element] = []

    def handle_starttag(self, tag, attributes):
        self.found.append(Element(tag, dict(attributes), ""))

    def handle_data(self, data):
        last = self.found[-1]
        self.found[-1] = last._replace(text=last.text + data)


def elements(text: str) -> list[Element]:
    """The elements of a piece of HTML, in the order of their start tags."""
    parser = _Parser()
    parser.feed(text)
    return parser.found


def embedded_data(shown: HTML) -> dict:
    """The data of an explorer or of a game."""
    data = [element.text for element in elements(shown.data) if element.attributes.get("type")]
    return json.loads(data[0])


# ---- Notebooks as files


def code_cells(path: Path) -> list:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def is_figure(shown: dict) -> bool:
    """Whether an output's data show a figure, still or interactive."""
    return "image/png" in shown or 'class="alive"' in shown.get("text/html", "")


def figures(path: Path) -> list[tuple]:
    """Pairs of a code cell that shows a figure, and the next text after it."""
    cells = nbformat.read(path, as_version=4).cells
    found = []
    for i, cell in enumerate(cells):
        if any(is_figure(output.get("data", {})) for output in cell.get("outputs", [])):
            text = next((after for after in cells[i:] if after.cell_type == "markdown"), None)
            found.append((cell, text))
    return found


# ---- Figures, as a page shows them

# Where a page is 1,000 pixels wide, its column is that wide: test_browser.py measures it.
COLUMN = 878
PIXELS_PER_INCH = 100  # of a figure in a notebook
BORDER = 12  # pixels that a notebook adds to a figure's width


def smallest_type(figure: Figure) -> float:
    """The smallest type of a figure, on a page that is 1,000 pixels wide, in pixels."""
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    width = PIXELS_PER_INCH * figure.get_figwidth() + BORDER
    shrunk = min(1, COLUMN / width)
    return min(text.get_fontsize() for text in texts) / 72 * PIXELS_PER_INCH * shrunk


# ---- Training

CPU = torch.device("cpu")


class SmallNet(nn.Module):
    """A convolution, a batch norm and a linear layer: trains a batch in milliseconds."""

    def __init__(self, channels=16):  # oneDNN corrupts memory in narrower channels_last nets
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, 10)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


def small_net(seed=0, channels=16):
    torch.manual_seed(seed)
    return SmallNet(channels)


def tiny_net(seed=0):
    torch.manual_seed(seed)
    return resnet18(width=16)


def shapes_dataset(count, seed=0):
    return Dataset(**shapes.generate(count, seed), classes=shapes.CLASSES)


def states_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_weights(first, second):
    """Every bit of two networks, or of two dictionaries of tensors, is the same."""
    first, second = (
        part.state_dict() if isinstance(part, nn.Module) else part for part in (first, second)
    )
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def assert_same_history(first, second):
    """Two histories of `fit` differ at most in the seconds."""
    pd.testing.assert_frame_equal(first.drop(columns="seconds"), second.drop(columns="seconds"))


def require_main_thread():
    """Signals come to the main thread alone: tests of them would wait for ever elsewhere."""
    assert threading.current_thread() is threading.main_thread()


def forkserver():
    """What starts processes that have imported already what tests of training import."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("Windows can neither fork nor kill")
    context = multiprocessing.get_context("forkserver")
    modules = ["helpers.studies.train", "helpers.augmentation", "pandas"]
    context.set_forkserver_preload([*modules, "IPython.display", "nbformat"])
    return context


def load_state(path):
    """The content of a checkpoint."""
    return torch.load(path, weights_only=True)


def in_batch(number, action):
    """A hook that does something during the forward pass of that number, counted from 1."""
    seen = []

    def hook(module, inputs):
        seen.append(None)
        if len(seen) == number:
            action()

    return hook


def press_ctrl_c():
    require_main_thread()
    signal.raise_signal(signal.SIGINT)


def resnet_with_lively_norms():
    """A small network whose batch norms do something: fresh ones are nearly the identity."""
    torch.manual_seed(0)
    model = resnet18(width=16)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model
