"""What the studies share: their runs, the table that a killed study goes on with, differences by seed, and the command."""

import argparse
import io
import multiprocessing
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config
from scipy import stats
from tqdm import tqdm

from helpers import training
from helpers.data import Dataset, channel_statistics, load_dataset, make_loader, project_root, split, write_file
from helpers.model import resnet18, save_weights
from helpers.pictures import one_line
from helpers.training import TrainConfig, default_device, evaluate, fit, sole_owner

PATIENCE = 10  # seconds for which a cluster may let one wait
# Dask's "nanny" has its workers hand memory back at once (a run took 1.7 times as long) and forbids processes to load images.
WORKER = "OMP_NUM_THREADS=1 PYTHONPATH=. dask worker ADDRESS --nthreads 1 --no-nanny"
START = f'pip install "dask[distributed]", then `PYTHONPATH=. dask scheduler` and, for each core, `{WORKER}`'


@dataclass(frozen=True)
class Study:
    """What all runs of a study have in common, with so many seeds (of weights, order and augmentation) for each variant.

    path: the CSV of their results, one row a run.  jobs: runs at a time, each in a process of its own with its share of the
    processor's cores.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    path: Path
    recipe: TrainConfig
    width: int
    seeds: int
    jobs: int = 1

    def place(self, variant: str, seed: int, kind: str) -> Path:
        """The path of what a run leaves, in the folder of the table's name: `kind` says what and how the name ends."""
        return self.path.with_suffix("") / f"{variant.replace(' ', '-')}-{seed}{kind}"

    def fill(self, calls: dict) -> pd.DataFrame:
        """Make those rows of the table that it lacks, each written as it ends, and return the table.

        calls: {(seed, variant): (function, arguments after the study)}; the function, which other processes can import, returns
        a row's values.
        Rows that are there are not made again, so a stopped study goes on. Raises ValueError when they are of runs with other
        settings or images, BlockingIOError when another study is writing the table, KeyboardInterrupt with what to do.
        """
        path, images = self.path, self.train.digest + self.validation.digest
        lengths = {"epochs": self.recipe.epochs, "sizes": str(self.recipe.image_sizes), "width": self.width}
        same = lengths | {"harder": str(self.recipe.harder), "data": images}
        with sole_owner(path):
            done = whole_rows(path)
            if other := [name for name, value in same.items() if any(row.get(name) != value for row in done)]:
                raise ValueError(f"{path} holds runs with other {', '.join(other)}: delete it, or name another file")
            had = {(row["seed"], row["variant"]) for row in done}
            todo = [delayed(_row)(self, key, *call) for key, call in calls.items() if key not in had]
            # All at once, so that a worker which joins a cluster late has runs to take, and short ones are not put together.
            rows = Parallel(n_jobs=self.jobs, return_as="generator_unordered", pre_dispatch="all", max_nbytes=None)(todo)
            try:
                for row in tqdm(rows, total=len(todo), unit="run"):
                    done.append(row | same)
                    write_file(path, lambda file: pd.DataFrame(done).to_csv(file, index=False))
                    tqdm.write(", ".join(f"{k} {v}" for k, v in row.items()))
            except KeyboardInterrupt:
                message = f"stopped; the runs that are done are in {path}: run this again to go on from there"
                raise KeyboardInterrupt(message) from None
        return pd.DataFrame(done)


@contextmanager
def on_cluster(scheduler: str | None, study: Study):
    """Have runs made by the workers of the Dask scheduler at this address, by joblib's backend for it; None: by processes here.

    The study, with its images, goes to each worker once.  When a worker dies, another one goes on with its run, from the
    last epoch; a run under way at Ctrl-C ends on its worker, for nothing.
    Raises OSError where there is no cluster that will do (or no Dask), RuntimeError where it is lost on the way.
    """
    if scheduler is None:
        yield
        return
    with ExitStack() as stack:
        try:
            from dask.distributed import CancelledError, Client, KilledWorker

            where = urlsplit(scheduler)
            socket.create_connection((where.hostname, where.port), timeout=5).close()  # Dask itself would try for long, or hang
            client = stack.enter_context(Client(scheduler, timeout=PATIENCE))
            client.run_on_scheduler(one_line, "")  # where it cannot import that, joblib would wait forever
            client.wait_for_workers(2, PATIENCE)  # for a single one, joblib would make the runs here
            if max(client.nthreads().values()) > 1:
                raise ValueError("workers of one thread each are needed: a process has one seed")
            stack.enter_context(parallel_config(backend="dask", client=client, scatter=[study]))
        except Exception as error:
            raise OSError(f"no cluster to use at {scheduler} ({one_line(error)}): {START}") from None
        try:
            yield
        except (CancelledError, KilledWorker) as error:
            raise RuntimeError(f"{one_line(error)}; what was done is in the table: run this again to go on from there") from None


def _row(study, key, function, *arguments) -> dict:
    return {"variant": key[1], "seed": key[0], **function(study, *arguments)}


def whole_rows(path: Path) -> list[dict]:
    """The rows of a table, less a last one without its end, as a full disk or a copy cut short leaves it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return pd.read_csv(io.StringIO(whole)).to_dict("records") if whole else []


def train_once(study: Study, variant: str, seed: int, changes: dict, keep: Path | None = None) -> dict:
    """Train a network with these changes to the recipe and return how it scores. keep: where its weights go, if anywhere.

    A run that was killed goes on from its last whole epoch.
    """
    torch.manual_seed(seed)
    model, device = resnet18(len(study.train.classes), study.width, *channel_statistics(study.train.images)), default_device()
    checkpoint = study.place(variant, seed, ".checkpoint")
    history = fit(model, study.train, None, replace(study.recipe, seed=seed, **changes), device, checkpoint, _end_if_orphaned)
    scored = evaluate(model, make_loader(study.validation, 500), device)
    if keep:
        save_weights(model, keep, study.train.classes)
    for left in checkpoint.parent.glob(f"{checkpoint.name}*"):
        left.unlink()
    scores = {"train_accuracy": history["train_accuracy"].iloc[-1]} | {f"validation_{k}": v for k, v in scored.items()}
    return {name: round(float(score), 4) for name, score in scores.items()}


def _end_if_orphaned(row) -> None:
    """End a process of `--jobs` whose study was killed: nobody takes its result, and it keeps the study from going on."""
    parent = multiprocessing.parent_process()
    if parent and os.getppid() != parent.pid:
        os._exit(1)  # the epoch is saved


def paired(runs: pd.DataFrame, measure: str, names: Iterable) -> pd.DataFrame:
    """A measure of each variant, mean and standard deviation over seeds, and how far it lies from that of the first one named.

    The difference is taken seed by seed; its standard error is their standard deviation by the root of their number; from and to
    are the ends of its 95 % interval (Student's t).
    """
    table = runs.pivot(index="seed", columns="variant", values=measure)
    table = table[[name for name in names if name in table]]  # rows come in the order in which runs ended
    difference = table.sub(table.iloc[:, 0], axis=0)
    mean, error, seeds = difference.mean(), difference.sem(), difference.count()
    half = stats.t.ppf(0.975, seeds - 1) * error
    scores = {"mean": table.mean(), "standard deviation": table.std(), "difference": mean, "standard error": error}
    return pd.DataFrame({**scores, "from": mean - half, "to": mean + half, "seeds": seeds})


def options(name: str, recipe: TrainConfig, seeds: int, settings: tuple = (), **defaults) -> argparse.ArgumentParser:
    """The options that the studies' commands share, and those for these settings of the recipe."""
    parser = training.options(f"studies.{name}", recipe, ("epochs", "image_sizes", *settings), validation_size=5000, **defaults)
    parser.add_argument("--seeds", type=int, default=seeds, help="runs of each variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; on a CPU as many as cores is fastest")
    where = f"address of a Dask scheduler, tcp://...: its workers, each `{WORKER}`, make the runs in place of --jobs; "
    parser.add_argument("--scheduler", help=where + "they must share the folder of --output")
    return parser


def prepared(args: argparse.Namespace, name: str) -> Study:
    """The study that is asked for."""
    data = load_dataset(args.data, train_size=args.train_size)
    if args.jobs > 1:
        os.environ["TQDM_DISABLE"] = "1"  # in the processes to come: their bars would write over one another
    path, recipe = args.output or project_root() / "runs" / f"{data.name}-{name}.csv", training.configured(args)
    path = path.absolute()  # a cluster's workers may have been started elsewhere
    return Study(*split(data.train, args.validation_size), data.test, path, recipe, args.width, args.seeds, args.jobs)
