"""What each ingredient of the recipe buys: train a narrow network without it. `python -m helpers.experiments --help`."""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from helpers.data import Dataset, channel_statistics, load_dataset, split
from helpers.model import WEIGHTS, resnet18, save_weights
from helpers.training import TrainConfig, default_device, fit

RECIPE = TrainConfig(epochs=15, image_sizes=(16,) * 5 + (24,) * 4 + (32,), hole=8, degrees=0)
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
    train: Dataset, validation: Dataset, path: Path, recipe: TrainConfig = RECIPE, seeds: int = 3, width: int = 16, keep=None
) -> None:
    """Train every variant with each seed (of weights, order and augmentation) and write its last validation accuracy.

    path: a CSV of one row a run; rows that it holds already are not run again, so a stopped ablation goes on.
    keep: a name; the networks that the unchanged recipe makes of the first two seeds are kept beside the table as
    `<keep>-narrow-0.pt` and `<keep>-narrow-1.pt`: two that differ in nothing but their seed.
    """
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["variant", "seed"])
    for seed in range(seeds):
        for name, changes in VARIANTS.items():
            if ((done["variant"] == name) & (done["seed"] == seed)).any():
                continue
            torch.manual_seed(seed)
            model = resnet18(len(train.classes), width, *channel_statistics(train.images))
            history = fit(model, train, validation, replace(recipe, seed=seed, **changes), default_device())
            last = history.iloc[-1][["train_accuracy", "validation_accuracy", "validation_loss"]]
            row = {"variant": name, "seed": seed, "epochs": recipe.epochs, "width": width, **last.round(4)}
            if keep and not changes and seed < 2:
                save_weights(model, path.with_name(f"{keep}-narrow-{seed}.pt"))
            pd.DataFrame([row]).to_csv(path, mode="a", header=not path.exists(), index=False)
            print(", ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of each variant, mean and standard deviation over its seeds, and how far it lies from the recipe's.

    The difference is taken seed by seed; its standard error is their standard deviation by the root of their number.
    """
    table = runs.pivot(index="seed", columns="variant", values="validation_accuracy")[list(dict.fromkeys(runs["variant"]))]
    difference = table.sub(table.iloc[:, 0], axis=0)
    columns = {"accuracy": table.mean(), "standard deviation": table.std(), "difference": difference.mean()}
    return pd.DataFrame({**columns, "standard error": difference.sem(), "seeds": table.count()})


def main(argv=None) -> None:
    parser = argparse.ArgumentParser("python -m helpers.experiments", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="auto", help="as load_dataset's name")
    parser.add_argument("--train-size", type=int, help="use so many training images (all)")
    parser.add_argument("--validation-size", type=int, default=5000, help="training images held out to score on")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs, help="passes over the training images, each run")
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant")
    parser.add_argument("--output", type=Path, default=WEIGHTS / "ablation.csv", help="table to write, or to go on with")
    args = parser.parse_args(argv)
    data = load_dataset(args.data, train_size=args.train_size)
    train, validation = split(data.train, args.validation_size)
    ablation(train, validation, args.output, replace(RECIPE, epochs=args.epochs), args.seeds, args.width, data.name)
    print(summarise(pd.read_csv(args.output)).round(4).to_string())


if __name__ == "__main__":
    main()
