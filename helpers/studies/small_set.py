"""What augmentation, and each guard against overfitting, buys where there are few images.

`python -m helpers.studies.small_set --data cifar10 --jobs 2`: 5,000 training images, a network of
16 channels, 40 epochs. With `--train-size 55000 --width 64` it is the same question on all of them.
"""

from helpers.studies import runs
from helpers.training import TrainConfig

TRAIN_SIZE = 10_000  # 5,000 of them are held out to score on
RECIPE = TrainConfig(epochs=40, hole=0, degrees=0)
STEPS: runs.Variants = {
    "padding, crop and flip": {},
    "no augmentation": {"padding": 0, "flip": False},
    "padding and crop": {"flip": False},
    "flip": {"padding": 0},
}
GUARDS: runs.Variants = {
    "with cutout": {"hole": 8},
    "with rotation": {"degrees": 7.0},
    "without label smoothing": {"label_smoothing": 0.0},
    "without weight decay": {"weight_decay": 0.0},
}
VARIANTS = STEPS | GUARDS


def main(argv: list[str] | None = None) -> None:
    """Train what the table lacks, and print mean and spread."""
    defaults = {"variants": list(STEPS), "width": 16, "train_size": TRAIN_SIZE}
    runs.train_variants(argv, "small_set", RECIPE, VARIANTS, runs.train_once, **defaults)


if __name__ == "__main__":
    main()
