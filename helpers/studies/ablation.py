"""What each ingredient of the recipe buys: train a narrow network without it, several times.

`python -m helpers.studies.ablation --data cifar10 --jobs 2` takes about two hours on two CPU cores.
Its record is `records/cifar10-ablation.csv`. `cifar10-ablation-24.csv` repeats three variants wider
and longer, in some four hours more on two cores without units for bfloat16, by the options
`--width 24 --epochs 12 --image-sizes 24 24 24 24 24 24 24 24 24 32 --variants "the recipe"
"without label smoothing" "without cutout" "without flip" --output runs/wider.csv`; its rows of the
recipe are those of the study of the mistakes, trained in bfloat16. `cifar10-candidates.csv` holds
ten passes of the whole network with one seed, by which the recipe of the weights was looked for.
"""

from helpers.studies import runs
from helpers.training import TrainConfig

RECIPE = TrainConfig(epochs=10, image_sizes=(16,) * 4 + (24,) * 3 + (32,), hole=8, degrees=0)
VARIANTS: runs.Variants = {
    "the recipe": {},
    "without label smoothing": {"label_smoothing": 0.0},
    "without cutout": {"hole": 0},
    "without flip": {"flip": False},
    "constant learning rate": {"one_cycle": False, "peak_lr": 0.02},
    "32 x 32 from the start": {"image_sizes": (32,)},
    "the older write-up's steps": {"degrees": 7.0, "flip": False, "label_smoothing": 0.0},
}
# What might improve on the recipe: `--variants "the recipe" "hole 12" --width 64`.
CANDIDATES: runs.Variants = {
    "alternating flip": {"alternate_flip": True},
    "hole 12": {"hole": 12},
    "hole 16": {"hole": 16},
    "TrivialAugment": {"trivial": True},
}
ALL_VARIANTS = VARIANTS | CANDIDATES
TWIN_SEEDS = 2  # networks of the unchanged recipe that are kept: they differ in their seed alone


def train_variant(study: runs.Study, variant: str, seed: int, changes: dict) -> dict[str, float]:
    """As `runs.train_once`; the recipe's networks of the first two seeds are kept.

    They lie beside the table `<data>-ablation.csv`, as `<data>-narrow-0.pt` and
    `<data>-narrow-1.pt`.
    """
    network_name = study.path.stem.removesuffix("-ablation") + f"-narrow-{seed}.pt"
    is_kept = seed < TWIN_SEEDS and not changes
    keep = study.path.with_name(network_name) if is_kept else None
    return runs.train_once(study, variant, seed, changes, keep)


def main(argv: list[str] | None = None) -> None:
    """Train what the table lacks, and print mean and spread."""
    runs.train_variants(
        argv, "ablation", RECIPE, ALL_VARIANTS, train_variant, variants=list(VARIANTS), width=16
    )


if __name__ == "__main__":
    main()
