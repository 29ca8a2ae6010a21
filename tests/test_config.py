"""The settings of a training run: their ranges, and what becomes of other values."""

from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from tools import CPU, shapes_dataset, small_net

from helpers.augmentation import AugmentedDataset
from helpers.config import TrainConfig
from helpers.training import fit

SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)


@pytest.fixture
def data():
    return shapes_dataset(13)


NAN, INFINITE = float("nan"), float("inf")
COUNTS = (0, -1, 2.5, "3", None, (1,), NAN)
POSITIVE = (0, -0.1, NAN, INFINITE, "0.1", None)
SHARES_BELOW_1 = (-0.1, 1, 1.5, NAN, "0.9", None)
REFUSED = {
    "epochs": COUNTS,
    "batch_size": COUNTS,
    "peak_lr": POSITIVE,
    "warmup": (-0.1, 1.1, NAN, "0.2"),
    "one_cycle": ("no", None, 2),
    "momentum": SHARES_BELOW_1,
    "weight_decay": (-1, NAN, INFINITE, None),
    "label_smoothing": SHARES_BELOW_1,
    "image_sizes": ((), 32, (15,), (65,), (24.5,), (32, NAN), ("32",), None),
    "padding": (-1, 33, 1.5, NAN, None),
    "hole": (-1, 33, 1.5, NAN, None),
    "degrees": (-1, 181, NAN, INFINITE, None),
    "flip": ("no", None, 2),
    "alternate_flip": ("no",),
    "trivial": ("no",),
    "stronger_classes": ("cat", (1,), None),
    "class_weights": ((0, 1), (1, -1), (NAN, 1), (INFINITE, 1), 2.0, ("1",)),
    "ema": SHARES_BELOW_1,
    "mixed_precision": ("no",),
    "seed": (-1, 2**32, 0.5, NAN, None),
}
SMALLEST = {"epochs": 1, "batch_size": 1, "peak_lr": 1e-12, "warmup": 0, "momentum": 0}
SMALLEST |= {"weight_decay": 0, "label_smoothing": 0, "image_sizes": (16,), "padding": 0, "hole": 0}
SMALLEST |= {"degrees": 0, "class_weights": (1e-3, *[1e-2] * 9), "ema": 0, "seed": 0}
LARGEST = SMALLEST | {"batch_size": 10**6, "peak_lr": 1e6, "warmup": 1, "momentum": 0.999}
LARGEST |= {"weight_decay": 1e6, "label_smoothing": 0.999, "image_sizes": (64,), "padding": 32}
LARGEST |= {"hole": 32, "degrees": 180, "ema": 0.999, "seed": 2**32 - 1}


def test_every_setting_has_values_that_are_refused():
    assert list(REFUSED) == [field.name for field in fields(TrainConfig)]


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in REFUSED.items() for value in values]
)
def test_value_outside_a_settings_range_is_refused_in_one_line(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got .*\Z"):
        TrainConfig(**{name: value})


def test_refusal_names_the_range_where_there_is_one():
    with pytest.raises(ValueError, match=r"^warmup must be a number >= 0 and <= 1, got 2\Z"):
        TrainConfig(warmup=2)
    with pytest.raises(ValueError, match=r"^flip must be True or False, got 'no'\Z"):
        TrainConfig(flip="no")


@pytest.mark.parametrize("values", [SMALLEST, LARGEST], ids=["smallest", "largest"])
def test_the_ends_of_all_ranges_train(data, values):
    config = TrainConfig(**values | {"stronger_classes": ("ring",)})
    train = AugmentedDataset(data, config)
    images = torch.stack([train[i][0] for i in range(len(train))])
    assert images.shape == (13, 3, 32, 32)
    gentle = replace(config, peak_lr=1e-3, weight_decay=0.0, batch_size=5)
    assert np.isfinite(fit(small_net(), data, None, gentle, CPU).train_loss[0])


def test_numbers_of_numpy_and_lists_become_what_a_checkpoint_can_hold(data, tmp_path):
    config = replace(
        SMALL,
        epochs=np.int64(1),
        peak_lr=np.float32(0.125),
        flip=np.bool_(False),
        image_sizes=[16],
        class_weights=np.arange(1, 11),
        stronger_classes=np.array(["ring"]),
    )
    plain = replace(SMALL, epochs=1, peak_lr=0.125, flip=False, image_sizes=(16,))
    plain = replace(plain, class_weights=(*range(1, 11),), stronger_classes=("ring",))
    assert repr(config) == repr(plain)
    first = fit(small_net(), data, None, config, CPU, tmp_path / "run.pt")
    assert list(fit(small_net(), data, None, plain, CPU, tmp_path / "run.pt").seconds) == list(
        first.seconds
    )


def test_a_configuration_is_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainConfig(epochs=1).epochs = 2
