"""The Albumentations steps: each by name, and composed."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its update check stalls without a network

import albumentations as A  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402

from helpers.data import MEAN, SIZE  # noqa: E402

FILL = tuple(round(255 * m) for m in MEAN)  # a hole of the mean colour is zero after the network's normalisation
HARDER = {"padding": 2, "hole": 4, "degrees": 15}  # what stronger augmentation adds to the strengths of `augmentation_steps`


def augmentation_steps(
    padding: int = 4, hole: int = 8, degrees: float = 7, flip: bool = True, trivial: bool = False
) -> dict[str, A.BasicTransform]:
    """The steps by name, in the order in which they are applied; a strength of 0 (or False) leaves a step out.

    padding: pixels mirrored around the image, from which a window of the old size is cropped (up to `padding` pixels of shift).
    hole: side in pixels of one square of the mean colour, in half of the images.
    degrees: largest rotation to either side, in 30 % of the images; corners are mirrored.
    flip: mirror half of the images left to right.
    trivial: change each image in one way of fourteen, at a strength drawn anew (TrivialAugment, Müller & Hutter 2021).
    """
    steps = {}
    if padding:
        steps["Padding"] = A.Pad(padding, border_mode=cv2.BORDER_REFLECT_101)
        steps["RandomCrop"] = A.RandomCrop(SIZE, SIZE)
    if hole:
        side = (hole, hole)
        steps["CoarseDropout"] = A.CoarseDropout(
            num_holes_range=(1, 1), hole_height_range=side, hole_width_range=side, fill=FILL, p=0.5
        )
    if degrees:
        steps["Rotate"] = A.Rotate(limit=degrees, border_mode=cv2.BORDER_REFLECT_101, p=0.3)
    if flip:
        steps["HorizontalFlip"] = A.HorizontalFlip(p=0.5)
    return ({"TrivialAugment": trivial_augment()} if trivial else {}) | steps


def trivial_augment() -> A.OneOf:
    """TrivialAugment with the wide ranges of arXiv:2103.10158, table 1, in Albumentations' nearest steps."""
    border, to_both = {"border_mode": cv2.BORDER_CONSTANT, "fill": FILL, "p": 1}, (0.01, 1.99)
    none = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "p": 1}
    shifts = [{"shear": {axis: (-45, 45)}} for axis in "xy"] + [{"translate_px": {axis: (-SIZE, SIZE)}} for axis in "xy"]
    ways = [A.Affine(**shift, **border) for shift in shifts] + [A.Rotate(limit=135, **border), A.NoOp(p=1)]
    ways += [A.ColorJitter(**none | {what: to_both}) for what in ("brightness", "contrast", "saturation")]
    ways += [A.Sharpen(alpha=(0, 1), lightness=(1, 1), p=1), A.Posterize(num_bits=(2, 8), p=1)]
    return A.OneOf(ways + [A.Solarize(threshold_range=(0, 1), p=1), A.AutoContrast(p=1), A.Equalize(p=1)], p=1)


def compose(steps: dict[str, A.BasicTransform], seed: int | None = None) -> A.Compose:
    """One pipeline of these steps: `compose(steps)(image=image)["image"]`, uint8 (32, 32, 3) in and out."""
    return A.Compose(list(steps.values()), seed=seed)


def variants(image: np.ndarray, names: list, count: int = 6, seed: int = 0) -> list[np.ndarray]:
    """Draw variants of one image (32, 32, 3) uint8 with the steps of these names alone, each applied every time."""
    steps = augmentation_steps()
    for step in steps.values():
        step.p = 1
    pipeline = compose({name: steps[name] for name in names}, seed)
    return [pipeline(image=image)["image"] for _ in range(count)]
