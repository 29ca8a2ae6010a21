"""Change training images at random, anew in every epoch, with Albumentations."""

from typing import Any

import albumentations as A
import cv2
import numpy as np
import torch

from helpers.config import TrainConfig
from helpers.data import MEAN, SIZE, Dataset, channel_statistics
from helpers.support.files import one_line

Colour = tuple[int, ...]  # red, green, blue, 0 to 255

CIFAR10_MEAN_COLOUR: Colour = tuple(round(255 * mean) for mean in MEAN)
STRONGER = {"padding": 2, "hole": 4, "degrees": 15}  # what `stronger_classes` get on top


def augmentation_steps(
    padding: int = 4,
    hole: int = 8,
    degrees: float = 7,
    flip: bool = True,
    trivial: bool = False,
    fill: Colour = CIFAR10_MEAN_COLOUR,
) -> dict[str, A.BasicTransform]:
    """The steps by name, in the order in which they are applied.

    Args:
        padding: pixels mirrored around the image before a window of the old size is cropped, so
            that it moves by up to `padding` pixels; 0 leaves the step out, here and below.
        hole: side in pixels of one square of a single colour, in half of the images (cutout).
        degrees: largest rotation to either side, in 30 % of the images; corners are mirrored.
        flip: mirror half of the images left to right.
        trivial: first change each image in one way of fourteen (TrivialAugment).
        fill: colour of the hole. The mean colour becomes zero when the network normalises.

    Returns:
        {name: transform}.

    Raises:
        RuntimeError: AlbumentationsX is installed, which takes no notice of some strengths.
    """
    if not hasattr(A.Rotate(), "limit"):
        raise RuntimeError(
            "AlbumentationsX takes no notice of some settings: pip uninstall albumentationsx "
            "albumentations, then pip install albumentations"
        )
    steps: dict[str, A.BasicTransform] = {}
    if trivial:
        steps["TrivialAugment"] = trivial_augment(fill)
    if padding:
        steps["Padding"] = A.Pad(padding, border_mode=cv2.BORDER_REFLECT_101)
        steps["RandomCrop"] = A.RandomCrop(SIZE, SIZE)
    if hole:
        steps["CoarseDropout"] = A.CoarseDropout(
            num_holes_range=(1, 1),
            hole_height_range=(hole, hole),
            hole_width_range=(hole, hole),
            fill=fill,
            p=0.5,
        )
    if degrees:
        steps["Rotate"] = A.Rotate(limit=degrees, border_mode=cv2.BORDER_REFLECT_101, p=0.3)
    if flip:
        steps["HorizontalFlip"] = A.HorizontalFlip(p=0.5)
    return steps


def trivial_augment(fill: Colour = CIFAR10_MEAN_COLOUR) -> A.OneOf:
    """TrivialAugment with its wide ranges, in Albumentations' nearest steps.

    Müller & Hutter 2021, arXiv:2103.10158, table 1.

    Args:
        fill: colour of what a moved image uncovers.
    """
    border = {"border_mode": cv2.BORDER_CONSTANT, "fill": fill, "p": 1}
    unchanged = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "p": 1}
    ways = [A.NoOp(p=1), A.Rotate(limit=135, **border)]
    for axis in "xy":
        ways.append(A.Affine(shear={"x": 0, "y": 0, axis: (-45, 45)}, **border))
        ways.append(A.Affine(translate_px={axis: (-SIZE, SIZE)}, **border))
    for quality in ("brightness", "contrast", "saturation"):
        ways.append(A.ColorJitter(**{**unchanged, quality: (0.01, 1.99)}))
    ways += [
        A.Sharpen(alpha=(0, 1), lightness=(1, 1), p=1),
        A.Posterize(num_bits=(2, 8), p=1),
        A.Solarize(threshold_range=(0, 1), p=1),
        A.AutoContrast(p=1),
        A.Equalize(p=1),
    ]
    return A.OneOf(ways, p=1)


def compose(steps: dict[str, A.BasicTransform], seed: int | None = None) -> A.Compose:
    """One pipeline of these steps: `compose(steps)(image=image)["image"]`.

    Args:
        steps: as `augmentation_steps` returns them.
        seed: of its random draws; None seeds it at random.

    Returns:
        A pipeline that takes and gives uint8 images (32, 32, 3).

    Raises:
        ValueError: a step was given a strength that its version of Albumentations does not have.
    """
    return A.Compose(list(steps.values()), seed=seed, strict=True)


class AugmentedDataset(torch.utils.data.Dataset):
    """A data set whose images are changed at random each time they are taken.

    Where `alternate_flip` is on, one half of them is mirrored in even epochs, the other half in odd
    ones, instead of by chance. So any two epochs in a row show every image both ways (Jordan 2024,
    arXiv:2404.00498).

    Args:
        dataset: left as it is; here `.dataset`.
        config: its settings of the augmentation, from `padding` to `stronger_classes`; the latter
            get STRONGER on top. Holes have the mean colour of these images.

    Raises:
        ValueError: a name in `stronger_classes` is no class.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig):
        for name in config.stronger_classes:
            if name not in dataset.classes:
                known = ", ".join(dataset.classes)
                raise ValueError(f"no class {one_line(name)!r} in these data: choose among {known}")
        means, _ = channel_statistics(dataset.images)
        usual: dict[str, Any] = {
            "padding": config.padding,
            "hole": config.hole,
            "degrees": config.degrees,
            "flip": config.flip and not config.alternate_flip,
            "trivial": config.trivial,
            "fill": tuple(round(255 * mean) for mean in means),
        }
        stronger = usual | {name: usual[name] + more for name, more in STRONGER.items()}
        stronger["hole"] = min(stronger["hole"], SIZE)
        self.dataset = dataset
        self.alternate_flip = config.flip and config.alternate_flip
        self.pipeline = compose(augmentation_steps(**usual))
        self.stronger_pipeline = compose(augmentation_steps(**stronger))
        self.stronger_labels = {dataset.classes.index(name) for name in config.stronger_classes}
        self.is_mirrored = np.zeros(len(dataset), dtype=bool)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One image, changed, as uint8 (3, 32, 32), and its label."""
        image, label = self.dataset.images[index], self.dataset.labels[index]
        if self.is_mirrored[index]:
            image = np.ascontiguousarray(image[:, ::-1])
        pipeline = self.stronger_pipeline if label in self.stronger_labels else self.pipeline
        return torch.from_numpy(pipeline(image=image)["image"]).permute(2, 0, 1), label

    def seed(self, seed: int) -> None:
        """Set the state of the random draws (32 bits of `seed`)."""
        self.pipeline.set_random_seed(seed % 2**32)
        # Far away, because the seeds of a loader's workers differ by ones.
        self.stronger_pipeline.set_random_seed((seed + 2**31) % 2**32)

    def mirror_alternately(self, seed: int, epoch: int) -> None:
        """Choose the images that are mirrored in this epoch, where `alternate_flip` is on."""
        if self.alternate_flip:
            first_half = np.random.default_rng(seed).random(len(self)) < 0.5
            self.is_mirrored[:] = first_half ^ (epoch % 2 == 1)
