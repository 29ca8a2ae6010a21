"""What the studies that train share: their runs, the table of results, and their commands."""

import argparse
import csv
import hashlib
import io
import multiprocessing
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from helpers.data import Dataset, channel_statistics, load_dataset, split
from helpers.evaluation import predict
from helpers.model import PreActResNet, load_pretrained, resnet18, save_weights
from helpers.studies.cluster import WORKER_COMMAND, on_cluster
from helpers.support import files
from helpers.support.command import add_arguments, config_from_args, make_parser, one_line_errors
from helpers.support.loader import require_images
from helpers.support.weights import write_weights
from helpers.training import TrainConfig, fit

Run = tuple[int, str]  # seed and variant
Call = tuple[Any, ...]  # a function, and its arguments after the study
Variants = dict[str, dict[str, Any]]  # name -> what it changes in the recipe: {field: value}


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

    @property
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
                {column: number}; other processes must be able to import it.

        Returns:
            The table, numbers rounded to four digits. Its rows are in the order in which the runs
            ended.

        Raises:
            ValueError: the table holds runs with other settings or images.
            BlockingIOError: another study is writing the table.
            KeyboardInterrupt: after Ctrl-C; the message says how to go on.
        """
        settings = self.settings
        with files.exclusive_lock(self.path):
            rows = read_rows(self.path)
            _require_settings(rows, settings, self.path)
            done = {(row["seed"], row["variant"]) for row in rows}
            missing = [run for run in calls if run not in done]
            tasks = [delayed(_row)(self, *run, *calls[run]) for run in missing]
            # All are dispatched at once, so that a worker which joins a cluster late has runs to
            # take, and joblib does not put short runs together.
            parallel = Parallel(
                self.jobs, return_as="generator_unordered", pre_dispatch="all", max_nbytes=None
            )
            try:
                for row in tqdm(parallel(tasks), total=len(tasks), unit="run"):
                    rows.append(row | settings)
                    write_table(self.path, pd.DataFrame(rows))
                    tqdm.write(", ".join(f"{name} {value}" for name, value in row.items()))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"stopped; the runs that are done are in {self.path}: "
                    "run this again to go on from there"
                ) from None
        return pd.DataFrame(rows)


def _row(study: Study, seed: int, variant: str, function: Callable, *arguments: Any) -> dict:
    _end_if_orphaned()
    try:
        scores = function(study, *arguments)
    except SystemExit:  # by a signal: else this process would take the next run
        if multiprocessing.parent_process():
            os._exit(1)
        raise
    checkpoint = study.artifact_path(variant, seed, ".checkpoint")
    for leftover in checkpoint.parent.glob(f"{checkpoint.name}*"):
        leftover.unlink()
    rounded = {name: round(float(score), 4) for name, score in scores.items()}
    return {"variant": str(variant), "seed": seed, **rounded}


def _end_if_orphaned() -> None:
    """End a process of `--jobs` whose study was killed, after an epoch, which is saved.

    Nobody takes its result, and its lock on the checkpoint keeps the study from going on.
    """
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)


def short_digest(*facts: object) -> str:
    """Sixteen hexadecimal digits that tell these facts from others."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def read_rows(path: Path) -> list[dict]:
    """The rows of a table, {column: value} each; none where there is no file.

    A last row without a line end is dropped: a copy was cut short there.

    Raises:
        ValueError: a row is not as `write_table` wrote it.
    """
    content = files.read_file(path) if path.exists() else b""
    complete = content[: content.rfind(b"\n") + 1]
    if not complete:
        return []
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(complete.decode())), start=1):
            if row.pop("check") != short_digest(row):
                raise ValueError(f"the check of row {number} differs")
        return pd.read_csv(io.BytesIO(complete)).drop(columns="check").to_dict("records")
    except Exception as error:  # which one depends on where the file is damaged
        raise ValueError(
            f"{path} is damaged, or an older version's ({files.one_line(error)}): "
            "take such rows out, or name another file"
        ) from error


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, in one step, each row with a check. Errors: as `write_atomically`."""
    rows = csv.DictReader(io.StringIO(table.to_csv(index=False)))
    checked = table.assign(check=[short_digest(row) for row in rows])
    files.write_atomically(path, lambda file: checked.to_csv(file, index=False))


def _require_settings(rows: list[dict], settings: dict, path: Path) -> None:
    different = [
        name for name, value in settings.items() if any(row.get(name) != value for row in rows)
    ]
    if different:
        raise ValueError(
            f"{path} holds runs with other {', '.join(different)}: delete it, or name another file"
        )


def train(
    study: Study, variant: str, seed: int, changes: dict, last: Path | None = None
) -> tuple[PreActResNet, float]:
    """Train one network; a run that was killed goes on from its last whole epoch.

    Args:
        study: what the run has in common with others.
        variant: names its checkpoint.
        seed: of weights, order and augmentation.
        changes: {field: value}, to the recipe.
        last: where the weights of the last step go. (The network gets their average.)

    Returns:
        The network, and its accuracy on the images of the last epoch as they were augmented.
    """

    def after_epoch(row: dict) -> None:
        _end_if_orphaned()
        if last and row["epoch"] == config.epochs:
            write_weights(last, model.state_dict(), study.train.classes, ("mean", "std"))

    torch.manual_seed(seed)
    mean, std = channel_statistics(study.train.images)
    model = resnet18(len(study.train.classes), study.width, mean, std)
    config = replace(study.recipe, seed=seed, **changes)
    checkpoint = study.artifact_path(variant, seed, ".checkpoint")
    history = fit(model, study.train, None, config, checkpoint=checkpoint, log=after_epoch)
    return model, history["train_accuracy"].iloc[-1]


def train_once(
    study: Study, variant: str, seed: int, changes: dict, keep: Path | None = None
) -> dict[str, float]:
    """Train one network and score it on the validation images.

    Args:
        study: as the next three, as `train` takes it.
        variant: names its checkpoint.
        seed: of the run.
        changes: to the recipe.
        keep: where its weights go; None: nowhere.

    Raises:
        ValueError: there are no validation images.
    """
    require_images(len(study.validation))  # before hours of training
    model, accuracy = train(study, variant, seed, changes)
    predictions = predict(model, study.validation)
    if keep:
        save_weights(model, keep, study.train.classes)
    return {
        "train_accuracy": accuracy,
        "validation_loss": predictions.loss,
        "validation_accuracy": predictions.accuracy,
    }


def train_and_test(study: Study, variant: str, seed: int, changes: dict) -> dict[str, float]:
    """Train on all training images, keep last and averaged weights, and score both on test images.

    Args:
        study: as the others, as `train` takes it.
        variant: names the files of its networks.
        seed: of the run.
        changes: to the recipe.

    Returns:
        The accuracies of both networks.
    """
    path = study.artifact_path(variant, seed, ".pt")
    averaged, accuracy = train(study, variant, seed, changes, last=path)
    save_weights(averaged, path.with_suffix(".averaged.pt"), study.train.classes)
    last = load_pretrained(path).to(averaged.mean.device)
    return {
        "train_accuracy": accuracy,
        "test_accuracy": predict(last, study.test, batch_size=500).accuracy,
        "averaged_accuracy": predict(averaged, study.test, batch_size=500).accuracy,
    }


@one_line_errors()
def train_variants(
    argv: list[str] | None,
    study_name: str,
    recipe: TrainConfig,
    changes: Variants,
    function: Callable[[Study, str, int, dict], dict[str, float]],
    **defaults: Any,
) -> None:
    """The command of a study: train the variants that the table lacks; print mean and spread.

    An error ends it with one line.

    Args:
        argv: options.
        study_name: its module's.
        recipe: its values are the defaults.
        changes: the variants that there are.
        function: makes a row of study, variant, seed and changes.
        **defaults: of the options; `variants` are those to train.
    """
    parser = study_parser(study_name, recipe, ("epochs", "image_sizes"), **defaults)
    parser.add_argument(
        "--variants", nargs="+", choices=list(changes), metavar="NAME", help="which to train"
    )
    args = parser.parse_args(argv)
    study = study_from_args(args, study_name, recipe)
    calls: dict[Run, Call] = {}
    for seed, variant in product(range(study.seeds), args.variants):
        calls[seed, variant] = (function, variant, seed, changes[variant])
    with on_cluster(args.scheduler, study):
        table = study.run_missing(calls)
    print_scores(table)


def print_scores(table: pd.DataFrame) -> None:
    """Mean and standard deviation of each variant's accuracies, losses and errors."""
    scores = [name for name in table if name.endswith(("accuracy", "loss", "error"))]
    print(table.groupby("variant", sort=False)[scores].agg(["mean", "std"]).round(4).to_string())


def study_parser(
    name: str, recipe: TrainConfig, fields: Iterable[str], **defaults: Any
) -> argparse.ArgumentParser:
    """A parser with the options that the studies' commands share.

    Args:
        name: of the study's module.
        recipe: its values are the defaults.
        fields: of the recipe, to be options.
        **defaults: of the options: `width` and `seeds`, for example.
    """
    parser = make_parser(f"studies.{name}")
    add_arguments(parser, recipe, fields)
    parser.add_argument("--seeds", type=int, help="runs of each variant")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time; on a CPU as many as cores is fastest"
    )
    parser.add_argument(
        "--scheduler",
        help=f"address of a Dask scheduler, tcp://...: its workers, each `{WORKER_COMMAND}`, make "
        "the runs in place of --jobs; they must share the folder of --output",
    )
    parser.set_defaults(**{"validation_size": 5000, "seeds": 3, **defaults})
    return parser


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
    path = args.output or files.project_root() / "runs" / f"{data.name}-{name}.csv"
    path = path.absolute()  # a cluster's workers may have been started elsewhere
    config = config_from_args(args, recipe)
    return Study(train, validation, data.test, path, config, args.width, args.seeds, args.jobs)
