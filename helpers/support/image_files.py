"""Read image files of any kind as RGB, crop them to a square, and shrink them."""

import io
import os
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from helpers.support.files import one_line

SIZE = 32  # pixels, side of the images that the network takes
MAX_PIXELS = 89_000_000  # Pillow warns from about here: the file may be made to fill the memory
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # EPS would start another program


def read_image(source: str | os.PathLike | bytes) -> Image.Image:
    """Read an image file as RGB, turned upright as its EXIF data ask; transparent parts are white.

    Args:
        source: a path, or the bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, too large, or of a kind that is not read. Each is one line
            that names the file and the remedy.
    """
    file: Any
    if isinstance(source, (str, os.PathLike)):
        name, file = one_line(source), os.path.expanduser(source)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"no file {name}: give the path of a JPEG or PNG")
    else:
        name, file = "this file", io.BytesIO(source)
    try:
        open_again = partial(Image.open, file, formats=FORMATS)
        open_again().verify()  # compares a PNG's checksums, as open() does not
        with open_again() as image:
            return to_rgb(image)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        reason = one_line(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "it is not an image, or of a kind that is not read here, such as HEIC"
        raise ValueError(
            f"cannot read {name} ({reason}): save it as JPEG or PNG, or remove it"
        ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, turned upright and on white.

    Raises:
        ValueError: it is too large, or its pixels do not say which value is white.
    """
    if image.width * image.height > MAX_PIXELS:
        megapixels = image.width * image.height / 1e6
        raise ValueError(f"{megapixels:.0f} megapixels are more than {MAX_PIXELS // 10**6}")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("its pixels are floats or 32-bit integers, which do not say what is white")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey: convert() would clip them at 255
        grey = np.asarray(image)
        if 0 < grey.max() < 2**12:  # as microscopes write it
            raise ValueError("its 16-bit pixels use 12 bits or fewer, which would come out black")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def crop_and_shrink(image: Image.Image) -> np.ndarray:
    """Crop an RGB image to its central square and shrink (or enlarge) that.

    Args:
        image: RGB.

    Returns:
        (32, 32, 3) uint8; the very same pixels where the image has that size already.
    """
    if image.size != (SIZE, SIZE):
        image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.array(image)
