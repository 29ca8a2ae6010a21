"""Read a folder `{train,test}/<class>/*.png`, or `<class>/*.png`, and cache it as arrays."""

import hashlib
import io
import os
import re
import unicodedata
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
# Prefixes of files and folders to ignore: thumbnails, waste baskets and such.
IGNORED_PREFIXES = (
    *(".", "__MACOSX", "@eaDir", "@__thumb", "@Recycle", "#recycle", "#snapshot"),
    *("$RECYCLE.BIN", "System Volume Information", "lost+found"),
)
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # of the folder of test images
REMEDY = ": save it as JPEG or PNG, or remove it"  # how an error of `read_image` ends

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


def read_image_folder(folder: Path, skip_damaged: bool = False) -> FolderContent:
    """Read `{train,test}/<class>/**`; the arrays are cached in `<folder>.cache.npz`.

    The test images may be called one of `TEST_NAMES`. A folder of class folders alone is split at
    random, which is said. Either may have one more folder around it.

    Args:
        folder: holds `train` and `test`, each with one folder for every class.
        skip_damaged: go on without the images that cannot be read, and say how many.

    Raises:
        ValueError: the two parts have different classes, there are fewer than two, a class has no
            image, or files cannot be read; one line that names the files or the class.
        OSError: a folder cannot be looked into.
    """
    remove_stale_temporaries(folder.parent)
    visited: set[str] = set()  # shared by both: test images must not be training images via a link
    train_folder, test_folder = _find_parts(folder)
    classes, train = _list_images(train_folder, visited)
    if test_folder:
        test_classes, test = _list_images(test_folder, visited)
        _check_classes(folder, classes, test_classes)
    else:
        _check_classes(folder, classes, classes)
        train, test = _split_at_random(train, folder)
    samples = train + test
    cache = folder.parent / f"{folder.name}.cache.npz"
    fingerprint = _fingerprint(samples)
    images, kept = _read_cache(cache, fingerprint, len(samples))
    if len(kept) < (1 if skip_damaged else len(samples)):
        images, kept = _decode(samples, folder.name, skip_damaged)
        _write_cache(cache, images=images, kept=kept, key=fingerprint)
    if len(kept) < len(samples):
        lost = len(samples) - len(kept)
        print(f"left out: {lost} images of {one_line(folder.name)} that cannot be read")
    labels = np.array([label for _, label in samples])[kept]
    for part in (labels[kept < len(train)], labels[kept >= len(train)]):
        if len(np.unique(part)) < len(classes):
            missing = min(set(range(len(classes))) - set(part))
            raise ValueError(
                f"{one_line(folder)}: no image of class {classes[missing]!r} can be read: add some"
            )
    return FolderContent(classes, images, labels, int((kept < len(train)).sum()))


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


def _find_parts(folder: Path) -> tuple[Path, Path | None]:
    """The folders of training and of test images; the second is None where there is no split."""
    inside = {name.lower(): folder / name for name in _folders(folder)}
    train = inside.get("train")
    test = next((inside[name] for name in TEST_NAMES if name in inside), None)
    # A class may be called "train", or "valid".
    if train and (test or len(inside) == 1 or _folders(train)):
        return train, test or folder / "test"
    if test and len(inside) == 1:
        return folder / "train", test
    if len(inside) == 1:
        (only,) = inside.values()
        if _folders(only):
            return _find_parts(only)
    return folder, None


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        _raise_unreadable(error)
    visible = [name for name in names if not name.startswith(IGNORED_PREFIXES)]
    return [name for name in visible if os.path.isdir(folder / name)]


def _split_at_random(samples: list[Sample], folder: Path) -> tuple[list[Sample], list[Sample]]:
    """Training and test images: a fifth of each class, at least one image, is for the test."""
    labels = np.array([label for _, label in samples])
    is_test = np.zeros(len(samples), dtype=bool)
    rng = np.random.default_rng(0)
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        if len(own) < 2:
            path = one_line(samples[own[0]][0])
            raise ValueError(
                f"{path} is the only image of its class: add another one, for the test"
            )
        is_test[own[: max(1, len(own) // 5)]] = True
    print(
        f"{one_line(folder.name)} has no train/ and test/: {is_test.sum()} of its {len(samples)} "
        "images, a fifth of each class drawn at random with a fixed seed, are the test images"
    )
    train, test = ([samples[i] for i in np.flatnonzero(part)] for part in (~is_test, is_test))
    return train, test


def _list_images(folder: Path, visited: set[str]) -> tuple[tuple[str, ...], list[Sample]]:
    """The classes of `folder/<class>/**`, and the images of all classes in order."""
    classes: tuple[str, ...] | None = None
    samples: list[Sample] = []
    for path, subfolders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        _check_not_visited(path, visited)
        subfolders[:] = sorted(n for n in subfolders if not n.startswith(IGNORED_PREFIXES))
        files = [os.path.join(path, n) for n in names if not n.startswith(IGNORED_PREFIXES)]
        _check_links(files)
        if classes is None:  # the first folder of the walk is the one that holds the classes
            classes = tuple(sorted({_composed(name) for name in subfolders}))
            _check_class_folders(folder, classes, files)
        else:
            label = classes.index(_composed(Path(path).relative_to(folder).parts[0]))
            samples += [(file, label) for file in files if file.lower().endswith(EXTENSIONS)]
    assert classes is not None  # os.walk yields `folder` first, or has raised
    empty = set(range(len(classes))) - {label for _, label in samples}
    if empty:
        name = one_line(folder / classes[min(empty)])
        raise ValueError(f"{name} holds no image: add some, or remove the folder")
    return classes, _in_order(samples)


def _composed(name: str) -> str:
    """A name with é as one character: macOS writes it as two in names of files."""
    return unicodedata.normalize("NFC", name)


def _check_class_folders(folder: Path, classes: tuple[str, ...], files: list[str]) -> None:
    if classes:
        return
    remedy = "give each class a folder of its own in it, or load a folder that holds such"
    if any(file.lower().endswith(EXTENSIONS) for file in files):
        remedy = (
            f"move each of its images into {one_line(folder.name)}/<class>/, as their table says"
        )
        if folder.name.lower() in TEST_NAMES:
            remedy += ", or load the folder of training images alone, which is then split"
    elif (folder / "meta").is_file() or (folder / "batches.meta").is_file():
        remedy = "save the images of this archive (torchvision reads it) as train/<class>/*.png"
    raise ValueError(f"{one_line(folder)} holds no folder for each class: {remedy}")


def _in_order(samples: list[Sample]) -> list[Sample]:
    """Images by file name, or at random with a fixed seed where their names sort them by class.

    CIFAR-10's files are numbered in their original order, which mixes the classes. The first images
    of `cat.0.jpg`, ..., `dog.0.jpg` would all be cats.
    """
    samples = sorted(samples, key=lambda s: (os.path.basename(s[0]), s[1], s[0]))
    labels = np.array([label for _, label in samples])
    shares = np.bincount(labels) / len(labels)
    changes = (labels[1:] != labels[:-1]).sum()
    if changes < len(labels) * (1 - (shares**2).sum()) / 2:  # half as many as if they were mixed
        samples = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    return samples


def _decode(samples: list[Sample], name: str, skip_damaged: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all images that can be read, and their numbers."""
    images, kept, damaged = [], [], []
    for number, (path, _) in enumerate(tqdm(samples, desc=f"decoding {one_line(name)}")):
        try:
            images.append(crop_and_shrink(read_image(path)))
            kept.append(number)
        except ValueError as error:
            damaged.append(str(error).removesuffix(REMEDY))
    if damaged and not (skip_damaged and kept):
        raise ValueError(
            f"{'; '.join(damaged)}{REMEDY}, or go on without: "
            "load_dataset(skip_damaged=True), or WALKTHROUGH_SKIP_DAMAGED=1 in the environment"
        )
    return np.stack(images), np.array(kept)


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


def _read_cache(path: Path, key: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The cached images and their numbers; none where they are damaged, or those of other files."""
    with suppress(Exception):  # which one depends on where the file is damaged
        content, has_digest = read_sealed(path)
        with np.load(io.BytesIO(content)) as file:
            images, kept = file["images"], file["kept"]
            fits = images.shape == (len(kept), SIZE, SIZE, 3) and images.dtype == np.uint8
            fits = fits and np.array_equal(kept, np.unique(kept)) and set(kept) <= set(range(count))
            if has_digest and fits and str(file["key"]) == key:
                return images, kept
    return np.empty(0), np.empty(0)


def _write_cache(path: Path, **arrays) -> None:
    """Write a cache file in one step; a folder that cannot be written to goes without."""
    try:
        write_atomically(path, lambda file: np.savez(file, **arrays), seal=True)
    except OSError as error:
        warnings.warn(
            f"the images will be decoded again: {one_line(error)}",
            stacklevel=2,
        )
