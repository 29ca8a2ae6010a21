"""Does covering the cell that a heatmap marks undo the mistake?

`python -m helpers.studies.covering --networks cifar10 cifar10-narrow-0` covers each of the sixteen
blocks of an image, one at a time, and asks the network again: of its mistakes, and of right
predictions that are as close. Networks are named as `load_pretrained` takes them. One of the size
of the one that ships takes five minutes of two CPU cores, or half a minute of a GPU. The network
that ships for Shapes-10, where an object fills a tenth of the image, is the positive control:
`--data shapes10 --test-size 40000`.
"""

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from helpers.data import Dataset
from helpers.evaluation import Predictions, predict
from helpers.gradcam import GradCAM
from helpers.model import PreActResNet
from helpers.similarity import derangement
from helpers.studies.networks import cover_cells, logits_of, network_parser, write_rows
from helpers.studies.trust import maps_of
from helpers.support.intervals import mean_intervals

BLOCKS = 4  # in a row: as many as the last grid has cells
MOST = 500  # mistakes of a network, chosen at random where there are more
OWN = "own map"


def logits_when_covered(model: nn.Module, images: Tensor, paint: Tensor) -> Tensor:
    """What a network says of images of which one block is covered.

    Args:
        model: takes images and returns logits.
        images: (N, 3, H, W) in [0, 1].
        paint: as `cover_cells` takes it.

    Returns:
        (N, num_classes, 16): a column for each block, counted row by row.
    """
    blocks = torch.eye(BLOCKS**2).split(1)
    covered = [logits_of(model, cover_cells(images, block, paint)) for block in blocks]
    return torch.stack(covered, dim=2)


def turned_by_rule(
    turned: np.ndarray, marks: dict[str, np.ndarray], roles: np.ndarray
) -> pd.DataFrame:
    """Whether covering turns an answer, for each rule that chooses the block.

    Args:
        turned: (N, 16), whether the answer turned when this block was covered.
        marks: {name of a rule: (N, 16) values}: it chooses the block of the largest; OWN is one.
        roles: (N, 2), the two classes of each image's own map.

    Returns:
        A row for each image and a column for each rule, in [0, 1]. Beside the rules given: the
        block that another image's own map marks, averaged over all other images, and over those of
        the same two classes (NaN where there is none); any block, averaged; and the best of all.
    """
    rows = np.arange(len(turned))
    # Row: whose image, column: whose map.
    by_other = pd.DataFrame(turned[:, marks[OWN].argmax(1)]).mask(np.eye(len(turned), dtype=bool))
    same_classes = (roles[:, None] == roles).all(2)
    found = {
        **{rule: turned[rows, values.argmax(1)] for rule, values in marks.items()},
        "map of another image": by_other.mean(axis=1),
        "map of another image, same two classes": by_other.where(same_classes).mean(axis=1),
        "any block": turned.mean(1),
        "best of sixteen": turned.any(1),
    }
    return pd.DataFrame(found).astype(float)


def mistakes_and_close_calls(predictions: Predictions) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The mistakes, and right predictions that are as close.

    Returns:
        {name: (indices (n,), classes (n, 2))}. The classes: what the network says, and what it
        would have to turn to: the actual class of a mistake, and the second most probable one of a
        right prediction.

    Raises:
        ValueError: there are fewer than two mistakes.
    """
    rng = np.random.default_rng(0)
    wrong = np.sort(rng.permutation(np.flatnonzero(~predictions.correct))[:MOST])
    if len(wrong) < 2:
        raise ValueError(f"the network makes {len(wrong)} mistakes on these images: take more")
    roles = np.stack([predictions.predicted[wrong], predictions.labels[wrong]], axis=1)
    as_close = close_calls(predictions, wrong, roles)
    return {"mistakes": (wrong, roles), "right, as close": as_close}


def close_calls(
    predictions: Predictions, chosen: np.ndarray, roles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Right predictions that are as close as the chosen images, one for each.

    How close a call is: its margin, the logit of the first of its two classes less that of the
    second. The differences of the margins have the smallest possible sum. No image is taken twice.

    Args:
        predictions: of N images.
        chosen: (n,) indices of images.
        roles: (n, 2), the two classes of each.

    Returns:
        Indices (n,), or all right predictions if these are fewer; and the two most probable
        classes of each.
    """
    logits = predictions.logits
    right = np.flatnonzero(predictions.correct)
    top_two = np.argsort(-logits[right], axis=1)[:, :2]
    margins = -np.diff(np.take_along_axis(logits[chosen], roles, axis=1))
    right_margins = -np.diff(np.take_along_axis(logits[right], top_two, axis=1))
    _, partners = linear_sum_assignment(np.abs(margins - right_margins.T))
    return right[partners], top_two[partners]


def turned_by_paint(
    model: PreActResNet, images: Tensor, roles: np.ndarray
) -> dict[str, pd.DataFrame]:
    """`turned_by_rule` for each way of covering."""
    maps = GradCAM(model).evidence(images, roles)
    marks = {
        OWN: maps[:, 0] - maps[:, 1],
        "map of the class it says": maps[:, 0],
        "class-free map": maps_of(model, images, roles[:, 0])["class-free map"],
    }
    flat = {rule: values.flatten(1).numpy() for rule, values in marks.items()}
    others = images[derangement(len(images), np.random.default_rng(0))]
    found = {}
    for paint, colours in {"mean colour": model.mean.cpu(), "another image": others}.items():
        said = logits_when_covered(model, images, colours).argmax(1).numpy()
        found[paint] = turned_by_rule(said == roles[:, 1:], flat, roles)
    return found


def rates(turned: pd.DataFrame) -> pd.DataFrame:
    """A row for each rule: how often it turns the answer, and by how much the own map leads it.

    The intervals are the bootstrap's over images, of the lead image by image.
    """
    leads = mean_intervals({rule: turned[OWN] - turned[rule] for rule in turned})
    table = mean_intervals(dict(turned)).join(leads.add_prefix("lead "))
    return table.assign(images=len(turned))


def cover(model: PreActResNet, dataset: Dataset) -> pd.DataFrame:
    """The rows of one network: one for each group of images, paint and rule."""
    predictions = predict(model, dataset)
    found = mistakes_and_close_calls(predictions)
    turned = {
        group: turned_by_paint(model, dataset.tensor(indices), roles)
        for group, (indices, roles) in found.items()
    }
    wrong, roles = found["mistakes"]
    # A right prediction is always asked for its second class, a mistake only here.
    is_second = np.argsort(-predictions.logits[wrong], axis=1)[:, 1] == roles[:, 1]
    tables: dict[tuple[str, str], pd.DataFrame] = {}
    for paint, mistakes in turned["mistakes"].items():
        right = turned["right, as close"][paint]
        less = mistakes - right  # pair by pair
        tables[paint, "mistakes"] = rates(mistakes)
        tables[paint, "right, as close"] = rates(right)
        tables[paint, "mistakes less right"] = rates(less)
        tables[paint, "mistakes less right, actual class second"] = rates(less[is_second])
    table = pd.concat(tables, names=["paint", "group", "rule"]).reset_index()
    return table.assign(accuracy=predictions.accuracy)


def main(argv: list[str] | None = None) -> None:
    """Cover the blocks of each network's mistakes, and write the table."""
    write_rows(network_parser("covering").parse_args(argv), "covering", cover)


if __name__ == "__main__":
    main()
