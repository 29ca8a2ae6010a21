"""Read pictures of any kind as RGB, and shrink them to what the network takes."""

import io
import os
import re

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIZE = 32
MAX_PIXELS = 89_000_000  # about where Pillow begins to warn that a picture may have been made to fill the memory
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # not EPS, for which Pillow starts another program


def read(source) -> Image.Image:
    """A picture as RGB, turned upright as its EXIF data ask; transparent parts become white.

    source: a path, or the bytes of a file.
    Raises FileNotFoundError, or ValueError for what is not read; each is one line that names the file and the remedy.
    """
    path = os.path.expanduser(source) if isinstance(source, (str, os.PathLike)) else None
    name = "this file" if path is None else one_line(source)
    if path is not None and not os.path.isfile(path):
        raise FileNotFoundError(f"no file {name}: give the path of a JPEG or PNG")
    try:
        file = io.BytesIO(source) if path is None else path
        Image.open(file, formats=FORMATS).verify()  # the checksums of a PNG, which nothing else looks at
        with Image.open(file, formats=FORMATS) as image:
            return to_rgb(image)
    except Exception as error:  # Pillow raises errors of many kinds for damaged files
        unknown = "it is not an image, or of a kind that is not read here, such as HEIC"
        reason = unknown if isinstance(error, UnidentifiedImageError) else one_line(error)
        raise ValueError(f"cannot read {name} ({reason}): save it as JPEG or PNG, or remove it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as RGB, turned upright and on white; ValueError for one that is too large or whose white is unknown."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width * image.height / 1e6:.0f} megapixels are more than {MAX_PIXELS // 10**6}")
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError("its pixels are floats or 32-bit integers, which do not say what is white")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        grey = np.asarray(image)
        if 0 < grey.max() < 2**12:  # as microscopes write it
            raise ValueError("its 16-bit pixels use 12 bits or fewer, which would come out black")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_size(image: Image.Image) -> np.ndarray:
    """The central square of an RGB picture, shrunk (or enlarged) to (32, 32, 3) uint8; the same pixels where it has that size."""
    return np.array(image if image.size == (SIZE, SIZE) else ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC))


def one_line(text, encoding: str = "utf-8") -> str:
    """An error, path or other text as one line that can be printed, its middle left out where it is long."""
    text = (str(text) or repr(text)).encode(encoding, "backslashreplace").decode(encoding)
    text = re.sub(r"[\s\0-\x1f\x7f]+", " ", text).strip()  # neither new lines nor what steers a terminal
    return text if len(text) <= 300 else f"{text[:150]} ... {text[-145:]}"
