"""What each ingredient of the recipe buys: train a narrow network without it. `python -m helpers.studies.ablation --help`."""

from itertools import product

import pandas as pd

from helpers.studies import runs
from helpers.training import TrainConfig, in_one_line

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
CANDIDATES = {  # what might improve on the recipe: `--variants "the recipe" "averaged weights" ...`, with `--width 64`
    "averaged weights": {"ema": 0.999},
    "alternating flip": {"alternate_flip": True},
    "hole 12": {"hole": 12},
    "hole 16": {"hole": 16},
    "label smoothing 0.2": {"label_smoothing": 0.2},
    "half the weight decay": {"weight_decay": 2.5e-4},
    "twice the weight decay": {"weight_decay": 1e-3},
    "half the peak rate": {"peak_lr": 0.05},
    "twice the peak rate": {"peak_lr": 0.2},
    "TrivialAugment": {"trivial": True},
}
ALL = VARIANTS | CANDIDATES


def ablation(study: runs.Study, names=tuple(VARIANTS)) -> pd.DataFrame:
    """Train these variants with each seed; write and return their validation accuracy at the end. Errors: as `Study.fill`.

    The networks that the unchanged recipe makes of the first two seeds are kept beside `<data>-ablation.csv` as
    `<data>-narrow-0.pt` and `<data>-narrow-1.pt`: two that differ in nothing but their seed.
    """
    calls, twins = {}, study.path.stem.removesuffix("-ablation") + "-narrow"
    for seed, name in product(range(study.seeds), names):
        keep = study.path.with_name(f"{twins}-{seed}.pt") if seed < 2 and not ALL[name] else None
        calls[seed, name] = runs.train_once, name, seed, ALL[name], keep
    return study.fill(calls)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of each variant and how far it lies from the recipe's: see `runs.paired`."""
    return runs.paired(table, "validation_accuracy", ALL).rename(columns={"mean": "accuracy"})


@in_one_line()
def main(argv=None) -> None:
    parser = runs.options("ablation", RECIPE, seeds=3, width=16)
    parser.add_argument("--variants", nargs="+", choices=ALL, default=list(VARIANTS), metavar="NAME", help="which to train")
    args = parser.parse_args(argv)
    study = runs.prepared(args, "ablation")
    with runs.on_cluster(args.scheduler, study):
        table = ablation(study, args.variants)
    print(summarise(table).round(4).to_string())


if __name__ == "__main__":
    main()
