"""What each ingredient of the recipe buys: train a narrow network without it. `python -m helpers.studies.ablation --help`."""

import argparse
import io
import os
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy import stats
from tqdm import tqdm

from helpers.data import Dataset, channel_statistics, load_dataset, project_root, split, write_file
from helpers.model import resnet18, save_weights
from helpers.training import TrainConfig, default_device, fit, in_one_line, sole_owner

RECIPE = TrainConfig(epochs=10, image_sizes=(16,) * 4 + (24,) * 3 + (32,), hole=8, degrees=0)
VARIANTS = {  # name -> what it changes
    "the recipe": {},
    "without label smoothing": {"label_smoothing": 0.0},
    "without cutout": {"hole": 0},
    "without flip": {"flip": False},
    "constant learning rate": {"one_cycle": False, "peak_lr": 0.02},
    "32 x 32 from the start": {"image_sizes": (32,)},
    "the older write-up's steps": {"degrees": 7.0, "flip": False, "label_smoothing": 0.0},
}


def ablation(
    train: Dataset,
    validation: Dataset,
    path: Path,
    recipe: TrainConfig = RECIPE,
    seeds: int = 3,
    width: int = 16,
    keep: str | None = None,
    jobs: int = 1,
) -> None:
    """Train every variant with each seed (of weights, order and augmentation) and write its last validation accuracy.

    path: a CSV of one row a run; rows that it holds already are not run again, so a stopped ablation goes on.  Raises
    ValueError when they are of runs with another number of epochs, another width or other images, BlockingIOError when another
    ablation is writing it.
    keep: a name; the networks that the unchanged recipe makes of the first two seeds are kept beside the table as
    `<keep>-narrow-0.pt` and `<keep>-narrow-1.pt`: two that differ in nothing but their seed.
    jobs: runs at a time, each in a process of its own with its share of the processor's cores.
    """
    same = {"epochs": recipe.epochs, "width": width, "data": train.digest + validation.digest}
    with sole_owner(path):
        done = _whole_rows(path)
        if any(row.get(name) != value for row in done for name, value in same.items()):
            raise ValueError(f"{path} holds runs of other epochs, width or data: delete it, or name another file")
        had = {(row["seed"], row["variant"]) for row in done}
        todo = [(seed, name) for seed in range(seeds) for name in VARIANTS if (seed, name) not in had]
        pair = path.with_name(f"{keep}-narrow") if keep else None
        calls = (delayed(_one_run)(train, validation, recipe, width, seed, name, pair) for seed, name in todo)
        rows = Parallel(n_jobs=jobs, return_as="generator_unordered", max_nbytes=None)(calls)
        for row in tqdm(rows, total=len(todo), unit="run"):
            done.append(row | same)
            write_file(path, lambda file: pd.DataFrame(done).to_csv(file, index=False))
            tqdm.write(", ".join(f"{k} {v}" for k, v in row.items()))


def _whole_rows(path) -> list[dict]:
    """The rows of a table, less a last one without its end, as a full disk or a copy cut short leaves it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    return pd.read_csv(io.StringIO(whole)).to_dict("records") if whole else []


def _one_run(train, validation, recipe, width, seed, name, pair) -> dict:
    """Train one variant with one seed and return what it scored. pair: where the two networks to keep go, if at all."""
    torch.manual_seed(seed)
    model = resnet18(len(train.classes), width, *channel_statistics(train.images))
    history = fit(model, train, validation, replace(recipe, seed=seed, **VARIANTS[name]), default_device())
    last = history.iloc[-1][["train_accuracy", "validation_accuracy", "validation_loss"]]
    if pair and seed < 2 and not VARIANTS[name]:
        save_weights(model, f"{pair}-{seed}.pt", train.classes)
    return {"variant": name, "seed": seed, **last.round(4)}


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of each variant, mean and standard deviation over its seeds, and how far it lies from the recipe's.

    The difference is taken seed by seed; its standard error is their standard deviation by the root of their number; from and to
    are the ends of its 95 % interval (Student's t).
    """
    table = runs.pivot(index="seed", columns="variant", values="validation_accuracy")
    table = table[[name for name in VARIANTS if name in table]]  # rows come in the order in which runs ended
    difference = table.sub(table.iloc[:, 0], axis=0)
    mean, error = difference.mean(), difference.sem()
    half = stats.t.ppf(0.975, table.count() - 1) * error
    scores = {"accuracy": table.mean(), "standard deviation": table.std(), "difference": mean, "standard error": error}
    return pd.DataFrame({**scores, "from": mean - half, "to": mean + half, "seeds": table.count()})


@in_one_line()
def main(argv=None) -> None:
    parser = argparse.ArgumentParser("python -m helpers.studies.ablation", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="auto", help="as load_dataset's name")
    parser.add_argument("--train-size", type=int, help="use so many training images (all)")
    parser.add_argument("--validation-size", type=int, default=5000, help="training images held out to score on")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs, help="passes over the training images, each run")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; on a CPU as many as cores is fastest")
    parser.add_argument("--output", type=Path, help="table to write, or to go on with (runs/<data>-ablation.csv)")
    args = parser.parse_args(argv)
    data = load_dataset(args.data, train_size=args.train_size)
    train, validation = split(data.train, args.validation_size)
    path = args.output or project_root() / "runs" / f"{data.name}-ablation.csv"
    if args.jobs > 1:
        os.environ["TQDM_DISABLE"] = "1"  # in the processes to come: their bars would write over one another
    try:
        recipe = replace(RECIPE, epochs=args.epochs)
        ablation(train, validation, path, recipe, args.seeds, args.width, data.name, args.jobs)
    except KeyboardInterrupt:
        sys.exit(f"stopped; the runs that are done are in {path}: run this again to go on from there")
    print(summarise(pd.read_csv(path)).round(4).to_string())


if __name__ == "__main__":
    from helpers.studies.ablation import main as run  # by a name that other processes can import, as `__main__` they cannot

    run()
