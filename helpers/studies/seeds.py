"""How much a run's result depends on its seed: the recipe of the network that ships, several times.

`python -m helpers.studies.seeds --data cifar10 --jobs 5`, on a GPU: half an hour of an H200 for
one run after the other, seven minutes for all at once. An averaged copy of the weights is scored
beside the last ones. The test images are used for scores alone: nothing is chosen by them.
"""

from helpers.studies import runs
from helpers.training import TrainConfig

RECIPE = TrainConfig(epochs=40, hole=12, degrees=0, alternate_flip=True, ema=0.999)
VARIANTS: runs.Variants = {
    "the recipe": {},
    "no augmentation": {"padding": 0, "hole": 0, "flip": False},
}


def main(argv: list[str] | None = None) -> None:
    """Train what the table lacks, and print mean and spread."""
    defaults = {"variants": ["the recipe"], "width": 64, "seeds": 5, "validation_size": 0}
    runs.train_variants(argv, "seeds", RECIPE, VARIANTS, runs.train_and_test, **defaults)


if __name__ == "__main__":
    main()
