"""What the studies share: their runs, the table of results, and the options of their commands."""

import argparse
import csv
import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed
from torch import nn
from tqdm import tqdm

from helpers.data import Dataset, channel_statistics, load_dataset, split
from helpers.evaluation import predict
from helpers.model import load_pretrained, resnet18, save_weights
from helpers.studies.cluster import WORKER_COMMAND
from helpers.support.command import add_arguments, config_from_args, make_parser
from helpers.support.files import exclusive_lock, one_line, project_root, write_atomically
from helpers.support.intervals import student_half_width
from helpers.support.loader import require_images
from helpers.support.weights import write_weights
from helpers.training import TrainConfig, fit

Run = tuple[int, str]  # seed and variant
Call = tuple[Any, ...]  # a function, and its arguments after the study


@dataclass(frozen=True)
class Study:
    """What all runs of a study have in common. A run is one variant, trained with one seed.

    Attributes:
        train: images to learn from.
        validation: images to score every run on; may be empty, where a study scores none.
        test: images to score a finished study on.
        path: the CSV of the results, one row a run.
        recipe: the settings that variants change.
        width: channels of the network's first stage.
        seeds: runs of each variant; a seed fixes weights, order of images and augmentation.
        jobs: runs at a time, each in a process of its own with its share of the cores.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    path: Path
    recipe: TrainConfig
    width: int
    seeds: int
    jobs: int = 1

    @cached_property
    def settings(self) -> dict[str, int | str]:
        """What must be the same for all rows of a table, as its columns hold it."""
        named: dict[str, Any] = {"epochs": 1, "image_sizes": (32,), "stronger_classes": ()}
        return {
            "epochs": self.recipe.epochs,
            "sizes": str(self.recipe.image_sizes),
            "width": self.width,
            "stronger_classes": str(self.recipe.stronger_classes),
            "data": self.train.digest + self.validation.digest + self.test.digest,
            "recipe": short_digest(replace(self.recipe, **named)),
        }

    def artifact_path(self, variant: str, seed: int, suffix: str) -> Path:
        """The path of a file that a run leaves, in a folder named like the table."""
        return self.path.with_suffix("") / f"{variant.replace(' ', '-')}-{seed}{suffix}"

    def run_missing(self, calls: dict[Run, Call]) -> pd.DataFrame:
        """Make the runs that the table lacks, and write each row as its run ends.

        Rows that are there are not made again, so a stopped study goes on.

        Args:
            calls: {(seed, variant): (function, arguments after the study)}. The function returns
                {column: value}; other processes must be able to import it.

        Returns:
            The table. Its rows are in the order in which the runs ended.

        Raises:
            ValueError: the table holds runs with other settings or images.
            BlockingIOError: another study is writing the table.
            KeyboardInterrupt: after Ctrl-C; the message says how to go on.
        """
        settings = self.settings
        with exclusive_lock(self.path):
            rows = read_rows(self.path)
            _require_settings(rows, settings, self.path)
            done = {(row["seed"], row["variant"]) for row in rows}
            missing = {run: call for run, call in calls.items() if run not in done}
            try:
                for row in tqdm(self._make(missing), total=len(missing), unit="run"):
                    rows.append(row | settings)
                    write_table(self.path, pd.DataFrame(rows))
                    tqdm.write(", ".join(f"{name} {value}" for name, value in row.items()))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped; the runs that are done are in {self.path}: "
                    "run this again to go on from there"
                ) from None
        return pd.DataFrame(rows)

    def _make(self, calls: dict[Run, Call]) -> Iterator[dict]:
        """Make these runs; rows come as runs end."""
        tasks = [delayed(_row)(self, *run, *call) for run, call in calls.items()]
        # All are dispatched at once, so that a worker which joins a cluster late has runs to take,
        # and joblib does not put short runs together.
        parallel = Parallel(
            self.jobs, return_as="generator_unordered", pre_dispatch="all", max_nbytes=None
        )
        return parallel(tasks)


def _row(study: Study, seed: int, variant: str, function: Callable, *arguments: Any) -> dict:
    _end_if_orphaned({})
    try:
        return {"variant": str(variant), "seed": seed, **function(study, *arguments)}
    except SystemExit:  # by a signal: else this process would take the next run
        if multiprocessing.parent_process():
            os._exit(1)
        raise


def short_digest(*facts: object) -> str:
    """Sixteen hexadecimal digits that tell these facts from others."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def read_rows(path: Path) -> list[dict]:
    """The rows of a table, {column: value} each; none where there is no file.

    A last row without a line end is dropped: a copy was cut short there.

    Raises:
        ValueError: a row is not as `write_table` wrote it.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    try:
        complete = content[: content.rfind(b"\n") + 1].decode()
        if not complete:
            return []
        for number, row in enumerate(csv.DictReader(io.StringIO(complete)), start=1):
            if row.pop("check") != short_digest(row):
                raise ValueError(f"the check of row {number} differs")
        return pd.read_csv(io.StringIO(complete)).drop(columns="check").to_dict("records")
    except Exception as error:  # which one depends on where the file is damaged
        raise ValueError(
            f"{path} is damaged, or an older version's ({one_line(error)}): "
            "take such rows out, or name another file"
        ) from error


def lacks(rows: list[dict], origin: dict[str, str], path: Path) -> bool:
    """Whether a table has no rows of a network.

    Args:
        rows: of the table.
        origin: as `origin_of` returns it.
        path: of the table.

    Raises:
        ValueError: it has rows of other weights of this name, or on other images.
    """
    of_name = [row for row in rows if row["network"] == origin["network"]]
    _require_settings(of_name, origin, path)
    return not of_name


def origin_of(name: str, model: nn.Module, dataset: Dataset) -> dict[str, str]:
    """What a row depends on: the network's name, digests of its weights and of the images."""
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.cpu().numpy().tobytes())
    return {"network": name, "weights": weights.hexdigest()[:16], "data": dataset.digest}


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, in one step, each row with a check. Errors: as `write_atomically`."""
    rows = csv.DictReader(io.StringIO(table.to_csv(index=False)))
    checked = table.assign(check=[short_digest(row) for row in rows])
    write_atomically(path, lambda file: checked.to_csv(file, index=False))


def _require_settings(rows: list[dict], settings: dict, path: Path) -> None:
    different = [
        name for name, value in settings.items() if any(row.get(name) != value for row in rows)
    ]
    if different:
        raise ValueError(
            f"{path} holds runs with other {', '.join(different)}: delete it, or name another file"
        )


def train_once(
    study: Study, variant: str, seed: int, changes: dict, keep: Path | None = None
) -> dict[str, float]:
    """Train one network and score it on the validation images.

    A run that was killed goes on from its last whole epoch.

    Args:
        study: what it has in common with the other runs.
        variant: names its checkpoint.
        seed: of weights, order and augmentation.
        changes: {field: value}, to the recipe.
        keep: where its weights go; None: nowhere.

    Raises:
        ValueError: there are no validation images.

    Returns:
        train_accuracy of the last epoch, validation_loss and validation_accuracy, to four digits.
    """
    require_images(len(study.validation))  # before hours of training
    torch.manual_seed(seed)
    mean, std = channel_statistics(study.train.images)
    model = resnet18(len(study.train.classes), study.width, mean, std)
    config = replace(study.recipe, seed=seed, **changes)
    checkpoint = study.artifact_path(variant, seed, ".checkpoint")
    history = fit(model, study.train, None, config, checkpoint=checkpoint, log=_end_if_orphaned)
    predictions = predict(model, study.validation)
    if keep:
        save_weights(model, keep, study.train.classes)
    _remove_checkpoints(checkpoint)
    scores = {
        "train_accuracy": history["train_accuracy"].iloc[-1],
        "validation_loss": predictions.loss,
        "validation_accuracy": predictions.accuracy,
    }
    return {name: round(float(score), 4) for name, score in scores.items()}


def train_and_test(study: Study, variant: str, seed: int, changes: dict) -> dict[str, float]:
    """Train on all training images, keep last and averaged weights, and score both on test images.

    A run that was killed goes on from its last whole epoch.

    Args:
        study: says how long, and on which images.
        variant: names the file of its network.
        seed: of weights, order and augmentation.
        changes: {field: value}, to the recipe.

    Returns:
        train_accuracy of the last epoch (of the images as they were augmented), and the shares of
        test images that are predicted correctly, to four digits: test_accuracy and, with the logits
        of an image and its mirror image averaged, flip_accuracy; the same for the averaged weights,
        averaged_accuracy and averaged_flip_accuracy.
    """
    torch.manual_seed(seed)
    mean, std = channel_statistics(study.train.images)
    model = resnet18(len(study.train.classes), study.width, mean, std)
    config = replace(study.recipe, seed=seed, **changes)
    path = study.artifact_path(variant, seed, ".pt")

    def keep_last(row: dict) -> None:
        """The weights of the last step: after it `fit` puts their average into the model."""
        _end_if_orphaned(row)
        if row["epoch"] == config.epochs:
            write_weights(path, model.state_dict(), study.train.classes, ("mean", "std"))

    checkpoint = study.artifact_path(variant, seed, ".checkpoint")
    history = fit(model, study.train, None, config, checkpoint=checkpoint, log=keep_last)
    save_weights(model, path.with_suffix(".averaged.pt"), study.train.classes)
    last = load_pretrained(path).to(next(model.parameters()).device)
    scores = {"train_accuracy": history["train_accuracy"].iloc[-1]}
    for name, network in {"": last, "averaged_": model}.items():
        for view, flip in {"test_": False, "flip_": True}.items():
            key = f"{name}{view}accuracy".replace("averaged_test_", "averaged_")
            scores[key] = predict(network, study.test, batch_size=500, flip=flip).accuracy
    _remove_checkpoints(checkpoint)
    return {name: round(float(value), 4) for name, value in scores.items()}


def _remove_checkpoints(path: Path) -> None:
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()


def _end_if_orphaned(_: dict) -> None:
    """End a process of `--jobs` whose study was killed, after an epoch, which is saved.

    Nobody takes its result, and its lock on the checkpoint keeps the study from going on.
    """
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)


def paired(table: pd.DataFrame, measure: str, variants: Iterable[str]) -> pd.DataFrame:
    """Compare each variant with the first one, seed by seed.

    Args:
        table: rows of runs, with the columns seed, variant and `measure`.
        measure: the column to compare.
        variants: names in the order of the result's rows; those without runs are left out. The
            first one must have runs.

    Returns:
        One row a variant. Columns: mean and standard deviation over its seeds; difference, the mean
        of its differences from the first variant; their standard error; from and to, their 95 %
        interval by Student's t; seeds, their number.
    """
    by_seed = table.pivot(index="seed", columns="variant", values=measure)
    first, *others = variants
    by_seed = by_seed[[first, *(name for name in others if name in by_seed)]]
    differences = by_seed.sub(by_seed[first], axis=0)
    mean, error, seeds = differences.mean(), differences.sem(), differences.count()
    half_width = student_half_width(error, seeds - 1)
    columns = {
        "mean": by_seed.mean(),
        "standard deviation": by_seed.std(),
        "difference": mean,
        "standard error": error,
        "from": mean - half_width,
        "to": mean + half_width,
        "seeds": seeds,
    }
    return pd.DataFrame(columns)


def study_parser(
    name: str, recipe: TrainConfig, fields: Iterable[str], seeds: int, width: int
) -> argparse.ArgumentParser:
    """A parser with the options that the studies' commands share.

    Args:
        name: of the study's module.
        recipe: its values are the defaults.
        fields: of the recipe, to be options.
        seeds: default of `--seeds`.
        width: default of `--width`.
    """
    parser = make_parser(f"studies.{name}", validation_size=5000, width=width)
    add_arguments(parser, recipe, fields)
    parser.add_argument("--seeds", type=int, default=seeds, help="runs of each variant")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; on a CPU as many as cores is fastest"
    )
    parser.add_argument(
        "--scheduler",
        help=f"address of a Dask scheduler, tcp://...: its workers, each `{WORKER_COMMAND}`, make "
        "the runs in place of --jobs; they must share the folder of --output",
    )
    return parser


def add_variants(
    parser: argparse.ArgumentParser, variants: Iterable[str], default: Iterable[str]
) -> None:
    """Add `--variants`: names, of those that a study knows."""
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(variants),
        default=list(default),
        metavar="NAME",
        help="which to train",
    )


def study_from_args(args: argparse.Namespace, name: str, recipe: TrainConfig) -> Study:
    """The study that was asked for by the options of `study_parser`.

    Raises:
        ValueError: an option has a value that will not do.
    """
    if args.seeds < 1 or args.jobs < 1:
        raise ValueError("--seeds and --jobs must be at least 1")
    if args.output and args.output.suffix != ".csv":
        raise ValueError(f"--output {args.output} is to be a table: let its name end in .csv")
    data = load_dataset(args.data, train_size=args.train_size)
    train, validation = data.train, data.train.subset([])
    if args.validation_size:
        train, validation = split(data.train, args.validation_size)
    if args.jobs > 1:
        # In the processes to come: their bars would write over one another.
        os.environ["TQDM_DISABLE"] = "1"
    path = args.output or project_root() / "runs" / f"{data.name}-{name}.csv"
    path = path.absolute()  # a cluster's workers may have been started elsewhere
    config = config_from_args(args, recipe)
    return Study(train, validation, data.test, path, config, args.width, args.seeds, args.jobs)
