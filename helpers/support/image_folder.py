"""Read a folder `{train,test}/<class>/*.png` as arrays, and cache them beside it."""

import hashlib
import io
import os
import re
import warnings
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from helpers.support.files import (
    CONTROLS,
    one_line,
    read_sealed,
    remove_stale_temporaries,
    write_atomically,
)
from helpers.support.image_files import SIZE, crop_and_shrink, read_image

# Files that count as images. The last three kinds are not read, but named in an error: an image
# that was passed over in silence would be missing from its class.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".gif", ".jfif", ".heic", ".heif", ".avif"),
)
IGNORED_PREFIXES = (".", "__MACOSX")  # prefixes of files and folders to ignore

Sample = tuple[str, int]  # the path of an image, and the number of its class


class FolderContent(NamedTuple):
    """What a folder of images holds.

    classes: the names of its class folders, sorted.
    images: (N, 32, 32, 3) uint8, RGB, the training images first.
    labels: (N,) int64, indices into `classes`.
    train_size: how many of them are training images.
    """

    classes: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    train_size: int


def read_image_folder(folder: Path) -> FolderContent:
    """Read `{train,test}/<class>/**`; the arrays are cached in `<folder>.cache.npz`.

    Args:
        folder: holds `train` and `test`, each with one folder for every class.

    Raises:
        ValueError: the two parts have different classes, there are fewer than two, a class has no
            image, or a file cannot be read; one line that names the file or class.
        OSError: a folder cannot be looked into.
    """
    remove_stale_temporaries(folder.parent)
    visited: set[str] = set()  # shared by both: test images must not be training images via a link
    classes, train = _list_images(folder / "train", visited)
    test_classes, test = _list_images(folder / "test", visited)
    _check_classes(folder, classes, test_classes)
    samples = train + test
    cache = folder.parent / f"{folder.name}.cache.npz"
    fingerprint = _fingerprint(samples)
    images = _read_cache(cache, fingerprint, len(samples))
    if images is None:
        progress = tqdm(samples, desc=f"decoding {one_line(folder.name)}")
        images = np.stack([crop_and_shrink(read_image(path)) for path, _ in progress])
        _write_cache(cache, images=images, key=fingerprint)
    labels = np.array([label for _, label in samples])
    return FolderContent(classes, images, labels, len(train))


def folder_id(folder: Path) -> str:
    """A name for a folder: its own, and eight digits that tell it from others of that name."""
    path = folder.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    return f"folder-{path.name}-{digest[:8]}"


def _check_classes(folder: Path, classes: tuple, test_classes: tuple) -> None:
    place = one_line(folder)
    if classes != test_classes:
        unpaired = sorted(set(classes) ^ set(test_classes))
        raise ValueError(
            f"{place}: class {unpaired[0]!r} is in only one of train/ and test/: "
            "give every class both"
        )
    if len(classes) < 2:
        raise ValueError(
            f"{place}: found the classes {list(classes)}: a classifier needs two or more"
        )
    for name in classes:
        if re.search(rf"[{CONTROLS}\ud800-\udfff]|\$.*\$", name):
            raise ValueError(
                f"{place}: the name of class {one_line(name)} is not plain text (UTF-8 without "
                "control characters, one $ at most): rename its folders"
            )


def _list_images(folder: Path, visited: set[str]) -> tuple[tuple[str, ...], list[Sample]]:
    """The classes of `folder/<class>/**`, and the images of all classes by file name."""
    classes: tuple[str, ...] | None = None
    samples: list[Sample] = []
    for path, subfolders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        _check_not_visited(path, visited)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(IGNORED_PREFIXES))
        files = [os.path.join(path, n) for n in names if not n.startswith(IGNORED_PREFIXES)]
        _check_links(files)
        if classes is None:  # the first folder of the walk is the one that holds the classes
            classes = tuple(subfolders)
        else:
            label = classes.index(Path(path).relative_to(folder).parts[0])
            samples += [(file, label) for file in files if file.lower().endswith(EXTENSIONS)]
    assert classes is not None  # os.walk yields `folder` first, or has raised
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        name = one_line(folder / classes[min(empty)])
        raise ValueError(f"{name} holds no image: add some, or remove the folder")
    # By file name: CIFAR-10's files are numbered in their original order, which mixes the classes.
    return classes, sorted(samples, key=lambda s: (os.path.basename(s[0]), s[1], s[0]))


def _check_not_visited(path: str, visited: set[str]) -> None:
    real_path = os.path.realpath(path)
    if real_path in visited:
        raise ValueError(f"{one_line(path)} is a link to a folder that is read anyway: remove it")
    visited.add(real_path)


def _check_links(files: list[str]) -> None:
    for file in files:
        if not os.path.exists(file):
            raise ValueError(f"{one_line(file)} is a link that leads nowhere: remove it")


def _raise_unreadable(error: OSError) -> None:
    raise type(error)(
        f"cannot look into {one_line(error.filename)} ({error.strerror}): "
        "it should hold a folder for each class"
    )


def _fingerprint(samples: list[Sample]) -> str:
    """Digits that change when a file is added, removed, renamed or written to."""
    facts = []
    for path, label in samples:
        status = os.stat(path)
        facts.append((path, label, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read_cache(path: Path, key: str, count: int) -> np.ndarray | None:
    """The cached images, or None where there are none, or damaged ones, or those of other files."""
    with suppress(Exception):  # which one depends on where the file is damaged
        content, has_digest = read_sealed(path)
        with np.load(io.BytesIO(content)) as file:
            images = file["images"]
            fits = images.shape == (count, SIZE, SIZE, 3) and images.dtype == np.uint8
            if has_digest and fits and str(file["key"]) == key:
                return images
    return None


def _write_cache(path: Path, **arrays) -> None:
    """Write a cache file in one step; a folder that cannot be written to goes without."""
    try:
        write_atomically(path, lambda file: np.savez(file, **arrays), seal=True)
    except OSError as error:
        warnings.warn(
            f"the images will be decoded again: {one_line(error)}",
            stacklevel=2,
        )
