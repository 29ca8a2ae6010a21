"""What each ingredient of the recipe buys: train a narrow network without it, several times.

`python -m helpers.studies.ablation --data cifar10 --jobs 2` takes about two hours on two CPU cores.
Its record is `records/cifar10-ablation.csv`. `cifar10-ablation-24.csv` repeats three variants wider
and longer, in some four hours more on two cores without units for bfloat16, by the options
`--width 24 --epochs 12 --image-sizes 24 24 24 24 24 24 24 24 24 32 --variants "the recipe"
"without label smoothing" "without cutout" "without flip" --output runs/wider.csv`; its rows of the
recipe are those of the study of the mistakes, trained in bfloat16. `cifar10-candidates.csv` holds
ten passes of the whole network with one seed, by which the recipe of the weights was looked for.
"""

from collections.abc import Iterable
from itertools import product
from typing import Any

import pandas as pd

from helpers.studies import runs
from helpers.studies.cluster import on_cluster
from helpers.support.command import one_line_errors
from helpers.training import TrainConfig

WIDTH, SEEDS = 16, 3
RECIPE = TrainConfig(epochs=10, image_sizes=(16,) * 4 + (24,) * 3 + (32,), hole=8, degrees=0)
VARIANTS: dict[str, dict[str, Any]] = {  # name -> what it changes
    "the recipe": {},
    "without label smoothing": {"label_smoothing": 0.0},
    "without cutout": {"hole": 0},
    "without flip": {"flip": False},
    "constant learning rate": {"one_cycle": False, "peak_lr": 0.02},
    "32 x 32 from the start": {"image_sizes": (32,)},
    "the older write-up's steps": {"degrees": 7.0, "flip": False, "label_smoothing": 0.0},
}
# What might improve on the recipe: `--variants "the recipe" "averaged weights" --width 64`.
CANDIDATES: dict[str, dict[str, Any]] = {
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
ALL_VARIANTS = VARIANTS | CANDIDATES
TWIN_SEEDS = 2  # networks of the unchanged recipe that are kept: they differ in their seed alone


def ablation(
    study: runs.Study,
    names: Iterable[str] = tuple(VARIANTS),
    variants: dict[str, dict[str, Any]] = ALL_VARIANTS,
) -> pd.DataFrame:
    """Train these variants with each seed.

    The recipe's networks of the first two seeds are kept beside the table `<data>-ablation.csv`, as
    `<data>-narrow-0.pt` and `<data>-narrow-1.pt`.

    Args:
        study: says how often, how long and on which images.
        names: of variants.
        variants: {name: what it changes}; an empty one is the recipe. All are compared with the
            first one, so that must be among the names, or in the table.

    Returns:
        The table, one row a run. Errors: as `Study.run_missing`.
    """
    first = next(iter(variants))
    if first not in {*names, *(row["variant"] for row in runs.read_rows(study.path))}:
        raise ValueError(f"the others are compared with {first!r}: name it in --variants, too")
    network_name = study.path.stem.removesuffix("-ablation") + "-narrow"
    calls: dict[runs.Run, runs.Call] = {}
    for seed, name in product(range(study.seeds), names):
        changes = variants[name]
        keep = None
        if seed < TWIN_SEEDS and not changes:
            keep = study.path.with_name(f"{network_name}-{seed}.pt")
        calls[seed, name] = (runs.train_once, name, seed, changes, keep)
    return study.run_missing(calls)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Validation accuracy of each variant, and its difference from the recipe's.

    Args:
        table: as `ablation` returns it.

    Returns:
        As `runs.paired`, with the mean in the column accuracy.
    """
    compared = runs.paired(table, "validation_accuracy", ALL_VARIANTS)
    return compared.rename(columns={"mean": "accuracy"})


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Train what the table lacks, and print the summary."""
    parser = runs.study_parser("ablation", RECIPE, ("epochs", "image_sizes"), SEEDS, WIDTH)
    runs.add_variants(parser, ALL_VARIANTS, VARIANTS)
    args = parser.parse_args(argv)
    study = runs.study_from_args(args, "ablation", RECIPE)
    with on_cluster(args.scheduler, study):
        table = ablation(study, args.variants)
    print(summarise(table).round(4).to_string())


if __name__ == "__main__":
    main()
