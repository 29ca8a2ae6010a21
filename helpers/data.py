"""Load CIFAR-10, a folder of images or the generated Shapes-10 as arrays, and serve batches."""

import hashlib
import os
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from helpers import shapes
from helpers.support import downloads, files
from helpers.support.image_files import SIZE as SIZE
from helpers.support.image_folder import find_image_folder, folder_id, read_image_folder
from helpers.support.loader import make_loader as make_loader
from helpers.support.loader import require_images

CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
# Mean and standard deviation of each channel over all 50,000 x 32 x 32 training pixels of CIFAR-10.
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

CIFAR10_DIGESTS = ("1085012ef6993d4d", "93cf8fe661143939")  # of its training and test images

SHAPES_TRAIN_SIZE = 10_000  # images of Shapes-10, unless asked otherwise
SHAPES_TEST_SIZE = 2_000


@dataclass(frozen=True)
class Dataset(torch.utils.data.Dataset):
    """Labelled images in memory.

    Attributes:
        images: (N, 32, 32, 3) uint8, RGB.
        labels: (N,) int64, indices into `classes`.
        classes: names, in the order of the labels.
        masks: (N, 32, 32) bool, True on the object, for Shapes-10; None elsewhere.

    Raises:
        ValueError: labels that are no whole numbers.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels)
        if labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels must be whole numbers, got {labels.dtype}: give indices into the classes"
            )
        # Windows makes them of 32 bits with NumPy 1; a loss takes 64, and `digest` counts bits.
        object.__setattr__(self, "labels", labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image as uint8 (3, 32, 32), and its label."""
        return torch.from_numpy(self.images[index]).permute(2, 0, 1), self.labels[index]

    def subset(self, indices: Any) -> "Dataset":
        """The images with these indices (integers, booleans or a slice), in this order."""
        masks = None if self.masks is None else self.masks[indices]
        images, labels = self.images[indices], self.labels[indices]
        return replace(self, images=images, labels=labels, masks=masks)

    def tensor(self, indices: Any = slice(None)) -> torch.Tensor:
        """Images as floats in [0, 1], (n, 3, 32, 32): what the network takes."""
        return to_float(torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2))

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits; another image, label, class name or order gives others."""
        header = repr((self.images.shape, tuple(self.classes))).encode()
        digest = hashlib.blake2b(header, digest_size=8)
        digest.update(np.ascontiguousarray(self.images).data)
        digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()


class DatasetPair(NamedTuple):
    """Training and test set with the same classes; `name` says which weights belong to them."""

    train: Dataset
    test: Dataset
    name: str

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


def load_dataset(
    name: str | os.PathLike = "auto",
    root: str | os.PathLike | None = None,
    train_size: int | None = None,
    test_size: int | None = None,
    skip_damaged: bool = False,
) -> DatasetPair:
    """Load a training and a test set.

    Args:
        name: "cifar10" (downloaded if it is not there), "shapes10" (generated), the path of a
            folder `{train,test}/<class>/*.png|jpg` (from here, else from the project), or "auto":
            CIFAR-10 from the disk, else its download, else Shapes-10. WALKTHROUGH_DATA in the
            environment overrides "auto".
        root: the folder for data sets; `data/` of the project by default.
        train_size: how many training images, chosen at random with a fixed seed; all by default.
        test_size: the same for test images.
        skip_damaged: go on without the images of a folder that cannot be read, and say how many;
            WALKTHROUGH_SKIP_DAMAGED=1 in the environment asks for it, too.

    Raises:
        ValueError: an unknown name, a size that is no whole number from 1, or a malformed folder.
        FileNotFoundError: there is no such folder.
        RuntimeError: CIFAR-10 cannot be downloaded, or is damaged. Each message is one line that
            names the remedy.
    """
    for argument, size in {"train_size": train_size, "test_size": test_size}.items():
        if size is not None and not (isinstance(size, Integral) and size >= 1):
            raise ValueError(f"{argument} must be a whole number of at least 1, or None: {size!r}")
    root = files.find_folder(root) if root else files.project_root() / "data"
    skip_damaged = skip_damaged or os.environ.get("WALKTHROUGH_SKIP_DAMAGED", "0") not in ("", "0")
    if name == "auto":
        name = os.environ.get("WALKTHROUGH_DATA", "").strip(files.AROUND) or "auto"
    if name == "auto":
        name = downloads.cifar10_or_shapes10(root)
    if name == "shapes10":
        return _load_shapes(train_size or SHAPES_TRAIN_SIZE, test_size or SHAPES_TEST_SIZE)
    if name == "cifar10":
        pair = _load_cifar10(root, skip_damaged)
    else:
        pair = _load_folder(find_image_folder(name), root, skip_damaged)
    train = _random_subset(pair.train, train_size)
    test = _random_subset(pair.test, test_size)
    return pair._replace(train=train, test=test)


def split(dataset: Dataset, size: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off `size` images at random, the same ones for the same seed.

    Returns:
        The rest, and those images; each in their old order.

    Raises:
        ValueError: `size` leaves one of the two parts empty.
    """
    if not 0 < size < len(dataset):
        raise ValueError(
            f"cannot split {size} of {len(dataset)} images off: "
            f"choose between 1 and {len(dataset) - 1}"
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(np.sort(order[size:])), dataset.subset(np.sort(order[:size]))


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, by which a network normalises.

    Args:
        images: (N, H, W, 3) uint8.

    Returns:
        (means, standard deviations), three numbers each, of values in [0, 1].

    Raises:
        ValueError: there are no images, or they are not uint8.
    """
    require_images(len(images))
    _require_uint8(images.dtype)
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(images[..., k].ravel(), minlength=256) for k in range(3)])
    shares = counts / counts.sum(1, keepdims=True)  # (3, 256)
    means = shares @ levels
    deviations = np.sqrt((shares * (levels - means[:, None]) ** 2).sum(1))
    return tuple(means.tolist()), tuple(deviations.tolist())


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images, 0 to 255, as float32 in [0, 1].

    Raises:
        ValueError: another type, whose range would have to be guessed.
    """
    _require_uint8(images.dtype)
    return images.float() / 255


def _require_uint8(dtype: np.dtype | torch.dtype) -> None:
    if dtype not in (np.uint8, torch.uint8):
        raise ValueError(
            f"images must be uint8, 0 to 255, got {dtype}: floats in [0, 1] times 255, rounded, are"
        )


def _random_subset(dataset: Dataset, size: int | None) -> Dataset:
    return dataset if size is None or size >= len(dataset) else split(dataset, size)[1]


def _load_shapes(train_size: int, test_size: int) -> DatasetPair:
    train = Dataset(**shapes.generate(train_size, shapes.TRAIN_SEED), classes=shapes.CLASSES)
    test = Dataset(**shapes.generate(test_size, shapes.TEST_SEED), classes=shapes.CLASSES)
    return DatasetPair(train, test, "shapes10")


def _load_cifar10(root: Path, skip_damaged: bool) -> DatasetPair:
    folder = root / "cifar10"
    if folder.is_dir() and not (root / downloads.UNPACKED).is_dir():
        return _load_folder(folder, root, skip_damaged)
    train, test = (Dataset(*part, CLASSES) for part in downloads.read_cifar10(root))
    return DatasetPair(train, test, "cifar10")


def _load_folder(folder: Path, root: Path, skip_damaged: bool) -> DatasetPair:
    classes, *parts = read_image_folder(folder, skip_damaged)
    train, test = (Dataset(*part, classes) for part in parts)
    # Own images may have CIFAR-10's ten classes: its weights and figures are not theirs.
    is_in_place = folder.resolve() == (root / "cifar10").resolve()
    if classes == CLASSES and (is_in_place or (train.digest, test.digest) == CIFAR10_DIGESTS):
        return DatasetPair(train, test, "cifar10")
    return DatasetPair(train, test, folder_id(folder))
