"""Does covering the cell that a heatmap marks undo the mistake?

`python -m helpers.studies.covering cifar10 cifar10-narrow-0` covers each of the sixteen
blocks of an image, one at a time, and asks the network again: of its mistakes, and of right
predictions that are as close. Networks are named as `load_pretrained` takes them. What the table
has already is not made again. A network of the size of the one that ships takes five minutes of two
CPU cores, or half a minute of a GPU. The network that ships for Shapes-10, where an object fills a
tenth of the image, is the positive control: `... shapes10 --data shapes10 --test-size 40000`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from helpers.data import Dataset, load_dataset
from helpers.evaluation import Predictions, predict
from helpers.explanation import derangement
from helpers.gradcam import GradCAM
from helpers.model import PreActResNet, load_pretrained
from helpers.studies.runs import lacks, origin_of, read_rows, write_table
from helpers.support.command import one_line_errors
from helpers.support.device import default_device, to_device_of
from helpers.support.files import as_path, project_root
from helpers.support.intervals import mean_intervals

BLOCKS = 4  # in a row: as many as the last grid has cells
MOST = 500  # mistakes of a network, chosen at random where there are more
OWN = "own map"
LESS = "mistakes less right"
SECOND = ", actual class second"


def with_block_covered(images: Tensor, block: int, paint: Tensor) -> Tensor:
    """The images with one of their sixteen blocks covered.

    Args:
        images: (N, 3, H, W) in [0, 1].
        block: 0 to 15, counted row by row.
        paint: what is seen in its place, (1 or N, 3, 1 or H, 1 or W).
    """
    side = images.shape[-1] // BLOCKS
    top, left = side * (block // BLOCKS), side * (block % BLOCKS)
    is_covered = torch.zeros(images.shape[-2:], dtype=torch.bool)
    is_covered[top : top + side, left : left + side] = True
    return torch.where(is_covered, paint, images)


@torch.inference_mode()
def answers_when_covered(model: nn.Module, images: Tensor, paint: Tensor) -> np.ndarray:
    """What a network says of images of which one block is covered.

    Args:
        model: takes images and returns logits.
        images: (N, 3, H, W) in [0, 1].
        paint: as `with_block_covered` takes it.

    Returns:
        (N, 16) classes: a column for each block, counted row by row.
    """
    answers = np.empty((len(images), BLOCKS**2), dtype=int)
    for block in range(BLOCKS**2):
        parts = with_block_covered(images, block, paint).split(100)
        said = torch.cat([model(to_device_of(model, part)).argmax(1) for part in parts])
        answers[:, block] = said.cpu().numpy()
    return answers


def turned_by_rule(
    turned: np.ndarray, marks: Mapping[str, np.ndarray], roles: np.ndarray
) -> dict[str, np.ndarray]:
    """Whether covering turns an answer, for each rule that chooses the block.

    Args:
        turned: (N, 16), whether the answer turned when this block was covered.
        marks: {name of a rule: (N, 16) values}: it chooses the block of the largest; OWN is one.
        roles: (N, 2), the two classes of each image's own map.

    Returns:
        {rule: (N,) in [0, 1]}. Beside the rules given: the own map's weakest block; the block that
        another image's own map marks, averaged over all other images, and over those of the same
        two classes (NaN where there is none); any block, averaged; and the best of all.
    """
    rows = np.arange(len(turned))
    top = marks[OWN].argmax(1)
    by_other = turned[:, top].astype(float)  # row: whose image, column: whose map
    np.fill_diagonal(by_other, np.nan)
    alike = np.where((roles[:, None] == roles).all(2), by_other, np.nan)
    counts = (~np.isnan(alike)).sum(1)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no other image of these two classes
        of_alike = np.nansum(alike, axis=1) / counts
    found = {
        **{name: turned[rows, values.argmax(1)] for name, values in marks.items()},
        "map of another image": np.nanmean(by_other, axis=1),
        "map of another image, same two classes": of_alike,
        "any block": turned.mean(1),
        "own map, weakest block": turned[rows, marks[OWN].argmin(1)],
        "best of sixteen": turned.any(1),
    }
    return {name: np.asarray(values, dtype=float) for name, values in found.items()}


def class_free_map(model: nn.Module, images: Tensor) -> Tensor:
    """Where the last layer is active at all: its squared channels added up, (N, h, w)."""
    kept: list[Tensor] = []
    handle = model.get_submodule("layer4").register_forward_hook(
        lambda module, inputs, output: kept.append(output.square().sum(1).cpu())
    )
    with torch.inference_mode():
        for part in images.split(100):
            model(to_device_of(model, part))
    handle.remove()
    return torch.cat(kept)


def groups(predictions: Predictions) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mistakes, and right predictions that are as close.

    How close a call is: the logit of the first of its two classes less that of the second. Each
    mistake is matched with a right prediction, and the differences have the smallest possible sum.

    Returns:
        {name: (indices (n,), classes (n, 2))}. The classes: what the network says, and what it
        would have to turn to: the actual class of a mistake, and the second most probable one of a
        right prediction.
    """
    logits, said = predictions.logits, predictions.predicted
    rng = np.random.default_rng(0)
    wrong = np.sort(rng.permutation(np.flatnonzero(~predictions.correct))[:MOST])
    right = np.flatnonzero(predictions.correct)
    of_wrong = np.stack([said[wrong], predictions.labels[wrong]], axis=1)
    of_right = np.argsort(-logits[right], axis=1)[:, :2]
    margins = [
        -np.diff(np.take_along_axis(logits[indices], roles, axis=1), axis=1)
        for indices, roles in ((wrong, of_wrong), (right, of_right))
    ]
    _, close = linear_sum_assignment(np.abs(margins[0] - margins[1].T))
    return {"mistakes": (wrong, of_wrong), "right, as close": (right[close], of_right[close])}


def turned_by_paint(
    model: PreActResNet, images: Tensor, roles: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """`turned_by_rule` for each way of covering: {paint: {rule: (N,)}}."""
    maps = GradCAM(model).evidence(images, roles)
    marks = {
        OWN: maps[:, 0] - maps[:, 1],
        "map of the class it says": maps[:, 0],
        "class-free map": class_free_map(model, images),
    }
    flat = {rule: values.flatten(1).numpy() for rule, values in marks.items()}
    others = images[derangement(len(images), np.random.default_rng(0))]
    return {
        paint: turned_by_rule(
            answers_when_covered(model, images, colours) == roles[:, 1:], flat, roles
        )
        for paint, colours in {"mean colour": model.mean.cpu(), "another image": others}.items()
    }


def compared(
    mistakes: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], is_second: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Mistakes less the right predictions that they are matched with, pair by pair.

    Args:
        mistakes: {rule: (N,)}.
        right: {rule: (N,)}, in the same order.
        is_second: (N,), whether the actual class has the second largest logit of a mistake. A right
            prediction is always asked for its second class, a mistake only if this holds.

    Returns:
        {name of a group: {rule: values}}.
    """
    less = {rule: values - right[rule] for rule, values in mistakes.items()}
    return {
        LESS: less,
        f"mistakes{SECOND}": {rule: values[is_second] for rule, values in mistakes.items()},
        f"{LESS}{SECOND}": {rule: values[is_second] for rule, values in less.items()},
    }


def cover(name: str, model: PreActResNet, dataset: Dataset) -> list[dict]:
    """The rows of one network: one for each group of images, paint and rule."""
    predictions = predict(model, dataset)
    found = groups(predictions)
    turned = {
        group: turned_by_paint(model, dataset.tensor(indices), roles)
        for group, (indices, roles) in found.items()
    }
    wrong, roles = found["mistakes"]
    is_second = np.argsort(-predictions.logits[wrong], axis=1)[:, 1] == roles[:, 1]
    tables = {(group, paint): turned[group][paint] for group in turned for paint in turned[group]}
    for paint in turned["mistakes"]:
        right = turned["right, as close"][paint]
        parts = compared(turned["mistakes"][paint], right, is_second)
        tables |= {(group, paint): values for group, values in parts.items()}
    rows = []
    for (group, paint), rules in tables.items():
        start = {"network": name, "accuracy": round(predictions.accuracy, 4), "paint": paint}
        start |= {"group": group, "images": len(rules[OWN])}
        rows += [start | row for row in rates(rules)]
    return rows


def rates(found: dict[str, np.ndarray]) -> list[dict]:
    """A row for each rule: how often it turns the answer, and by how much the own map leads it.

    The intervals are the bootstrap's over images, of the lead image by image.
    """
    means = mean_intervals(found)
    leads = mean_intervals({rule: found[OWN] - values for rule, values in found.items()})
    table = means.join(leads.add_prefix("lead ")).round(4)
    return table.rename_axis("rule").reset_index().to_dict("records")


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Cover the blocks for the networks that the table lacks, and print the table."""
    parser = argparse.ArgumentParser("python -m helpers.studies.covering")
    parser.add_argument("--data", default="auto", help="cifar10, shapes10 or a folder's path")
    parser.add_argument("--test-size", type=int, help="test images to use; all, if not given")
    parser.add_argument("--output", type=as_path, help="the table, to write and to go on from")
    parser.add_argument("networks", nargs="+", help="names or paths, as load_pretrained takes them")
    args = parser.parse_args(argv)
    data = load_dataset(args.data, train_size=1, test_size=args.test_size)
    path = args.output or project_root() / "runs" / f"{data.name}-covering.csv"
    rows = read_rows(path)
    for network in args.networks:
        name = Path(network).stem
        model = load_pretrained(network, data.classes).to(default_device())
        origin = origin_of(name, model, data.test)
        if lacks(rows, origin, path):
            rows += [row | origin for row in cover(name, model, data.test)]
            write_table(path, pd.DataFrame(rows))
    print(pd.DataFrame(rows).to_string())


if __name__ == "__main__":
    main()
