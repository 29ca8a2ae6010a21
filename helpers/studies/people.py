"""How do people see the test images, and do they err where a network errs?

`python -m helpers.studies.people --counts FILE --output helpers/studies/records`. FILE is
cifar10h-counts.npy of github.com/jcpeterson/cifar-10h: how many of about fifty people named each
class, for each test image of CIFAR-10 (CIFAR-10H, Peterson and others 2019, arXiv:1908.07086). It
is free for non-commercial use and no part of this project; the tables are results over all images.
"""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.data import load_dataset
from helpers.evaluation import predict
from helpers.studies.networks import load_networks, network_parser, write
from helpers.support.command import one_line_errors
from helpers.support.files import as_path, project_root
from helpers.support.intervals import bootstrap_interval, wilson_interval

RESAMPLES = 1000


def load_counts(path: Path, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """How many people named each class, (N, num_classes).

    Raises:
        ValueError: the file does not belong to these images, or their order is another.
    """
    counts = np.load(path)
    if counts.shape != (len(labels), num_classes):
        raise ValueError(f"{path} has the shape {counts.shape}: it belongs to other images")
    if agreement(counts, labels).mean() < 0.5:
        raise ValueError(f"{path} and the images are in different orders: most labels disagree")
    return counts


def agreement(counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of the people who named the label, (N,)."""
    return counts[np.arange(len(labels)), labels] / counts.sum(1)


def shares(counts: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> pd.DataFrame:
    """How often people and network agree with the label and with each other.

    Args:
        counts: (N, num_classes), people.
        labels: (N,).
        predicted: (N,), the network's answers.

    Returns:
        The columns question, count, of, value (their ratio), from and to (its 95 % interval).
    """
    named = agreement(counts, labels)
    wrong = predicted != labels
    others = counts.max(1) > counts[np.arange(len(labels)), labels]
    agreed = 10 * counts[np.arange(len(labels)), labels] >= 9 * counts.sum(1)
    groups = {
        "the network is right": ~wrong,
        "people's commonest answer is not the label": others,
        "there, the network errs": wrong[others],
        "there, it gives people's commonest answer": (predicted == counts.argmax(1))[others],
        "elsewhere, the network errs": wrong[~others],
        "mistakes where nine in ten people name the label": agreed[wrong],
        "right answers where nine in ten people do, too": agreed[~wrong],
    }
    low, high = bootstrap_interval(named)
    rows: list[tuple] = [("one person is right", named.sum(), len(labels), named.mean(), low, high)]
    for question, hits in groups.items():
        ends = wilson_interval(hits.sum(), len(hits))
        rows.append((question, hits.sum(), len(hits), hits.sum() / max(len(hits), 1), *ends))
    table = pd.DataFrame(rows, columns=["question", "count", "of", "value", "from", "to"])
    return table.round({"count": 0}).astype({"count": int})


def likeness(labels: np.ndarray, answers: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """How alike are the confusions of each two observers?

    Args:
        labels: (N,).
        answers: {observer: (N, num_classes), how often each class was named}.

    Returns:
        "value": the correlation over the cells off the diagonal. "from", "to": its 95 % interval,
        1.96 standard deviations of the bootstrap over images to either side. "shuffled from",
        "shuffled to": where 95 % of the correlations lie once each row's cells are shuffled, so
        that how hard each class is stays.
    """
    rng = np.random.default_rng(0)
    actual = np.eye(answers[next(iter(answers))].shape[1])[labels]
    off_diagonal = ~np.eye(actual.shape[1], dtype=bool)
    together = np.concatenate(list(answers.values()), axis=1)

    def mistakes(weights: np.ndarray | float = 1.0) -> np.ndarray:
        """Each observer's cells off the diagonal, (observers, num_classes, num_classes - 1)."""
        matrices = np.split((actual.T * weights) @ together, len(answers), axis=1)
        return np.stack(matrices)[:, off_diagonal].reshape(len(answers), len(off_diagonal), -1)

    def correlations(cells: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # who makes no mistakes is like nobody: NaN
            return np.corrcoef(cells.reshape(len(cells), -1))

    count = len(labels)
    draws = (rng.multinomial(count, np.full(count, 1 / count)) for _ in range(RESAMPLES))
    resampled = [correlations(mistakes(draw)) for draw in draws]
    shuffled = [correlations(rng.permuted(mistakes(), axis=2)) for _ in range(RESAMPLES)]
    value, half = correlations(mistakes()), 1.96 * np.std(resampled, axis=0)
    chance = np.percentile(shuffled, (2.5, 97.5), axis=0)
    found = [value, value - half, np.minimum(value + half, 1), *chance]
    columns = ["first", "second", "value", "from", "to", "shuffled from", "shuffled to"]
    pairs = combinations(enumerate(answers), 2)
    rows = [(a, b, *(numbers[i, j] for numbers in found)) for (i, a), (j, b) in pairs]
    return pd.DataFrame(rows, columns=columns)


def confusions(
    labels: np.ndarray, answers: Mapping[str, np.ndarray], classes: tuple[str, ...]
) -> pd.DataFrame:
    """Each observer's confusion matrix: a row for each pair of actual and named class."""
    actual = np.eye(len(classes), dtype=int)[labels]
    table = pd.DataFrame({name: (actual.T @ named).ravel() for name, named in answers.items()})
    pairs = pd.MultiIndex.from_product([classes, classes], names=["actual", "named"])
    return table.set_index(pairs).reset_index()


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Compare people with networks, and write three small tables."""
    parser = network_parser("people")
    parser.add_argument(
        "--counts",
        type=as_path,
        required=True,
        help="cifar10h-counts.npy of github.com/jcpeterson/cifar-10h: (10000, 10)",
    )
    parser.set_defaults(networks=["cifar10", "cifar10-narrow-0", "cifar10-narrow-1"])
    args = parser.parse_args(argv)
    data = load_dataset(args.data, train_size=1, test_size=args.test_size)
    labels, classes = data.test.labels, data.classes
    answers = {"people": load_counts(args.counts, labels, len(classes))}
    for name, model in load_networks(args, data).items():
        answers[name] = np.eye(len(classes), dtype=int)[predict(model, data.test).predicted]
    first = answers[Path(args.networks[0]).stem].argmax(1)
    tables = {
        "": shares(answers["people"], labels, first),
        "-likeness": likeness(labels, answers).round(3),
        "-confusions": confusions(labels, answers, classes),
    }
    folder = args.output or project_root() / "runs"
    for name, table in tables.items():
        write(table, folder / f"{data.name}-people{name}.csv")


if __name__ == "__main__":
    main()
