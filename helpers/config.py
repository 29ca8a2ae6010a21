"""The settings of a training run, each with its unit and its range."""

import math
from dataclasses import dataclass, fields

from helpers.data import SIZE
from helpers.support.checks import checked


@dataclass(frozen=True)
class TrainConfig:
    """One training run; with the same data, machine and PyTorch it repeats exactly."""

    epochs: int = 40  # passes over the training set
    batch_size: int = 128  # images in a step, of all processes together
    peak_lr: float = 0.1  # highest learning rate
    warmup: float = 0.2  # share of all steps in which the learning rate rises; then it falls
    one_cycle: bool = True  # let the learning rate rise and fall; otherwise it stays at peak_lr
    momentum: float = 0.9  # Nesterov momentum
    weight_decay: float = 5e-4  # on convolutions and the linear layer, not on norms and biases
    label_smoothing: float = 0.1  # probability spread evenly over all classes
    image_sizes: tuple[int, ...] = (32,)  # pixels, epoch by epoch; the last holds for the rest
    padding: int = 4  # pixels of mirrored border before the random crop
    hole: int = 8  # side in pixels of the square that half of the images lose (cutout)
    degrees: float = 7.0  # largest rotation
    flip: bool = True  # mirror half of the images left to right
    alternate_flip: bool = False  # mirror the one half in even epochs, the other half in odd ones
    trivial: bool = False  # change each image in one more way, by TrivialAugment
    stronger_classes: tuple[str, ...] = ()  # classes whose images are augmented more strongly
    class_weights: tuple[float, ...] = ()  # what an image of each class counts in the loss
    ema: float = 0.0  # decay of a moving average of the weights, such as 0.999; 0: none
    mixed_precision: bool = True  # 16-bit arithmetic where the machine is faster with it
    seed: int = 0  # of the order of images and of their augmentation

    def __post_init__(self) -> None:
        for field in fields(self):
            value = checked(field, getattr(self, field.name), RANGES.get(field.name, {}))
            object.__setattr__(self, field.name, value)

    def image_size(self, epoch: int) -> int:
        """Side of the training images in this epoch (counted from 0), in pixels."""
        return self.image_sizes[min(epoch, len(self.image_sizes) - 1)]


# What a setting may be; of several numbers, each one.
RANGES: dict[str, dict[str, float]] = {
    "epochs": {">=": 1},
    "batch_size": {">=": 1},
    "peak_lr": {">": 0, "<": math.inf},
    "warmup": {">=": 0, "<=": 1},
    "momentum": {">=": 0, "<": 1},
    "weight_decay": {">=": 0, "<": math.inf},
    "label_smoothing": {">=": 0, "<": 1},
    "image_sizes": {">=": 16, "<=": 64},
    "padding": {">=": 0, "<=": SIZE},
    "hole": {">=": 0, "<=": SIZE},
    "degrees": {">=": 0, "<=": 180},
    "class_weights": {">": 0, "<": math.inf},
    "ema": {">=": 0, "<": 1},
    "seed": {">=": 0, "<": 2**32},
}
