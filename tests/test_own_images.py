"""Images of one's own: seven data sets through all notebooks, each to its end or to one sentence.

The folders are generated, and a network that was never trained stands in for the trained one: its
last layer is solved for by least squares, so that it is right where a data set wants it to be.
"""

import ast
import re
import sys
from dataclasses import dataclass, field
from functools import cache

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from tools import PIXELS_PER_INCH, code_cells

from helpers import shapes
from helpers.data import load_dataset
from helpers.interactive import pages
from helpers.model import resnet18, save_weights


@dataclass(frozen=True)
class Own:
    """A data set of one's own: how many images of each class, and what the network makes of them.

    missing: what a notebook says where it cannot go on, {its name: part of the sentence}.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]
    mixed: float = 0.9  # the largest share of another class's picture in an image
    turned: int = 0  # by how many classes its answers are wrong
    never: int | None = None  # a class that it never says
    missing: dict[str, str] = field(default_factory=dict)

    def is_first_to_train_on(self) -> bool:
        """Whether no other data set before it has training images like these."""
        return self is next(other for other in SETS.values() if other.train == self.train)


FEW_MISTAKES = dict.fromkeys(
    ("05_gradcam_incorrect", "further/fair_comparison"), "too few mistakes to explain: take more"
)
NONE_RIGHT = {
    "04_gradcam_correct": "no right prediction to explain: train longer, or take more",
    "05_gradcam_incorrect": "a game needs mistakes, right predictions",
}
NO_OTHERS = {"further/fair_comparison": "no others to compare with: take data of three or more"}
SETS = {
    "two classes": Own((40, 40), (30, 30), missing=NO_OTHERS),
    "100 classes": Own((2,) * 100, (2,) * 100),
    "5 images a class": Own((5,) * 3, (5,) * 3),
    "200, 12 and 3 images": Own((200, 12, 3), (90, 12, 3)),
    "all right": Own((20,) * 4, (10,) * 4, mixed=0, missing=FEW_MISTAKES),
    "all wrong": Own((20,) * 4, (10,) * 4, mixed=0, turned=1, missing=NONE_RIGHT),
    "one class never predicted": Own((20,) * 4, (20,) * 4, never=2),
}

DRAWN_ONCE = {name: cache(getattr(shapes, name)) for name in ("generate", "generate_pairs")}


def write_folder(folder, own, seed=0):
    """Each class has a picture of its own, and its images hold something of another's."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (len(own.train), 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    for part, sizes in (("train", own.train), ("test", own.test)):
        for label, count in enumerate(sizes):
            place = folder / part / rf"{label:03} $\frac"  # two of them make no formula
            place.mkdir(parents=True)
            for n in range(count):
                other = pictures[rng.integers(len(pictures))]
                mixed = pictures[label] + rng.uniform(0, own.mixed) * (other - pictures[label])
                pixels = (mixed + rng.normal(0, 5, mixed.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{n}.png")


@torch.inference_mode()
def stand_in(data, own):
    """A network whose last layer is solved for, on the training images."""
    torch.manual_seed(0)
    model = resnet18(len(data.classes), width=16).eval()
    last = {}
    model.fc.register_forward_pre_hook(lambda module, inputs: last.update(features=inputs[0]))
    model(data.train.tensor())
    features = last["features"].double()
    mean, size = features.mean(0), features.std(0) + 1e-9
    ones = torch.ones(len(features), 1, dtype=torch.double)
    rows = torch.cat([(features - mean) / size, ones], 1)
    labels = torch.tensor((data.train.labels + own.turned) % len(data.classes))
    targets = 8 * torch.nn.functional.one_hot(labels, len(data.classes)).double()
    penalty = 0.01 * len(rows) * torch.eye(rows.shape[1], dtype=torch.double)
    solved = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ targets)
    weight = (solved[:-1] / size[:, None]).T
    model.fc.weight.copy_(weight)
    model.fc.bias.copy_(solved[-1] - weight @ mean)
    if own.never is not None:
        model.fc.bias[own.never] -= 1000
    return model


def run(path):
    """Run a notebook's cells here, and draw what they show."""
    space = {"display": lambda *shown: None}
    for cell in code_cells(path):
        tree = ast.parse(re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE))
        is_value = isinstance(tree.body[-1], ast.Expr)
        last = ast.Expression(tree.body.pop().value if is_value else ast.Constant(None))
        exec(compile(tree, cell.source, "exec"), space)
        shown = eval(compile(ast.fix_missing_locations(last), cell.source, "eval"), space)
        for figure in [shown, *map(plt.figure, plt.get_fignums())]:
            if isinstance(figure, Figure):
                figure.draw_without_rendering()
                assert PIXELS_PER_INCH * figure.get_figheight() <= 3000, cell.source
        plt.close("all")


@pytest.fixture(params=SETS)
def own(request, tmp_path, monkeypatch):
    """A data set, chosen by the environment, with its stand-in among the weights."""
    chosen = SETS[request.param]
    write_folder(tmp_path / "pets", chosen)
    monkeypatch.setenv("WALKTHROUGH_DATA", str(tmp_path / "pets"))
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path))
    data = load_dataset()
    save_weights(stand_in(data, chosen), tmp_path / "runs" / f"{data.name}.pt", data.classes)
    for name, drawn_once in DRAWN_ONCE.items():  # what notebooks show of Shapes-10
        monkeypatch.setattr(shapes, name, drawn_once)
    monkeypatch.setattr(sys, "path", list(sys.path))
    plt.switch_backend("agg")
    yield chosen
    torch.set_printoptions(profile="default")


def is_training(path):
    return "training" in path.name


@pytest.mark.apart
@pytest.mark.notebooks
def test_every_notebook_runs_to_its_end_or_says_what_is_missing(own, monkeypatch):
    ended = {}
    for path in sorted(pages.notebooks(), key=is_training):
        if is_training(path) and not own.is_first_to_train_on():
            continue
        monkeypatch.chdir(path.parent)
        try:
            run(path)
        except (AssertionError, ValueError) as error:
            ended[pages.name_of(path)] = str(error)
    assert ended.keys() == own.missing.keys(), ended
    for name, sentence in own.missing.items():
        assert sentence in ended[name] and len(ended[name].splitlines()) == 1
