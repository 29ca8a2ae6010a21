"""Read a folder `{train,test}/<class>/*.png`, or `<class>/*.png`, and cache it as arrays."""

import hashlib
import os
import re
import unicodedata
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from helpers.support import files
from helpers.support.files import one_line
from helpers.support.image_files import crop_and_shrink, read_image

# Kinds of images. Some are not read, but named in an error: an image that was passed over in
# silence would be missing from its class.
IMAGE = re.compile(r".*\.(jpe?g|jfif|png|p[gp]m|bmp|tiff?|webp|gif|hei[cf]|avif)", re.I | re.S)
# How names begin that are neither classes nor images: thumbnails, waste baskets and such.
IGNORED = re.compile(
    r"\.|__MACOSX|@eaDir|@__thumb|[@#$]recycle|#snapshot|System Volume|lost\+found", re.I
)
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # of the folder of test images
REMEDY = ": save it as JPEG or PNG, or remove it"  # how an error of `read_image` ends

ClassFolders = dict[str, list[str]]  # {class: the paths of its images}
Sample = tuple[str, int]  # the path of an image, and the number of its class
Part = tuple[np.ndarray, np.ndarray]  # images and labels


def find_image_folder(name: str | os.PathLike) -> Path:
    """The folder of that name, from where you stand or from the project.

    Raises:
        ValueError: there is none, and the name is one word, so that a data set may be meant.
        FileNotFoundError: there is none.
    """
    folder = files.find_folder(name)
    if os.path.isdir(folder):
        return folder
    path = files.as_path(name)
    places = dict.fromkeys(one_line(place / path) for place in files.standing_places())
    is_word = isinstance(name, str) and len(path.parts) == 1
    raise (ValueError if is_word else FileNotFoundError)(
        f"no data set '{one_line(name)}', and no folder {' or '.join(places)}: choose "
        "'auto', 'cifar10', 'shapes10' or the path of a folder that holds train/<class>/ and "
        "test/<class>/"
    )


def read_image_folder(folder: Path, skip_damaged: bool) -> tuple[tuple[str, ...], Part, Part]:
    """Read `{train,test}/<class>/**`; the arrays are cached in `<folder>.cache.npz`.

    The test images may be called one of `TEST_NAMES`. A folder of class folders alone is split at
    random, which is said. Either may have one more folder around it. Test images that are training
    images, too, are counted in a line that is printed.

    Args:
        folder: holds `train` and `test`, each with one folder for every class.
        skip_damaged: go on without the images that cannot be read, and say how many.

    Returns:
        The names of the classes, sorted; and for the training and for the test images (N, 32, 32,
        3) uint8, RGB, and their labels (N,) int64, indices into the classes.

    Raises:
        ValueError: the two parts have different classes, there are fewer than two, a class has no
            image, or files cannot be read; one line that names the files or the class.
        OSError: a folder cannot be looked into.
    """
    files.remove_stale_temporaries(folder.parent)
    visited: set[str] = set()  # shared by both: test images must not be training images via a link
    parts = [_list_images(part, visited) for part in _find_parts(folder)]
    _check_classes(folder, parts[0], parts[-1])
    if len(parts) == 1:
        parts = _split_at_random(folder, *parts)
    train, test = map(_in_order, parts)
    images, kept = _load(folder, train + test, skip_damaged)
    classes = tuple(parts[0])
    labels = np.array([label for _, label in train + test])[kept]
    size = int((kept < len(train)).sum())
    for number, name in enumerate(classes):
        if number not in labels[:size] or number not in labels[size:]:
            raise ValueError(
                f"{one_line(folder)}: no image of class {name!r} can be read: add some"
            )
    _report_copies(images[:size], images[size:])
    return classes, (images[:size], labels[:size]), (images[size:], labels[size:])


def _report_copies(train: np.ndarray, test: np.ndarray) -> None:
    learned = {hash(image.tobytes()) for image in train}
    copies = sum(hash(image.tobytes()) in learned for image in test)
    if copies:
        print(
            f"{copies} of {len(test)} test images are copies of training images, or links to them: "
            "remove them, since the network knows them by heart"
        )


def folder_id(folder: Path) -> str:
    """A name for a folder: its own, and eight digits that tell it from others of that name."""
    path = folder.resolve()
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    return f"folder-{path.name}-{digest[:8]}"


def _find_parts(folder: Path) -> list[Path]:
    """The folders of training and of test images, or one folder that is to be split."""
    inside = {name.lower(): folder / name for name in _folders(folder)}
    train = inside.get("train")
    tests = [inside[name] for name in TEST_NAMES if name in inside]
    # A class may be called "train", or "valid".
    if train and (tests or len(inside) == 1 or _folders(train)):
        return [train, tests[0] if tests else folder / "test"]
    if len(inside) == 1 and _folders(*inside.values()):
        return _find_parts(*inside.values())
    return [folder]


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder."""
    _, names, _ = next(os.walk(folder, onerror=_raise_unreadable))
    return [name for name in names if not IGNORED.match(name)]


def _raise_unreadable(error: OSError) -> None:
    raise type(error)(
        f"cannot look into {one_line(error.filename)} ({error.strerror}): "
        "it should hold a folder for each class"
    )


def _list_images(folder: Path, visited: set[str]) -> ClassFolders:
    """The images of `folder/<class>/**`, by class, sorted."""
    found: ClassFolders = {}
    for path, subfolders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        real_path = os.path.realpath(path)
        if real_path in visited:
            link = one_line(path)
            raise ValueError(f"{link} is a link to a folder that is read anyway: remove it")
        visited.add(real_path)
        subfolders[:] = sorted(name for name in subfolders if not IGNORED.match(name))
        inside = [os.path.join(path, name) for name in names if not IGNORED.match(name)]
        for file in inside:
            if not os.path.exists(file):
                raise ValueError(f"{one_line(file)} is a link that leads nowhere: remove it")
        if path != os.fspath(folder):
            # macOS writes an accent as a character of its own: é is one name, not two.
            name = unicodedata.normalize("NFC", Path(path).relative_to(folder).parts[0])
            found.setdefault(name, []).extend(filter(IMAGE.fullmatch, inside))
    if not found:
        raise ValueError(
            f"{one_line(folder)} holds no folder for each class: put the images of each into "
            f"{one_line(folder.name)}/<class>/ (a table beside them, or torchvision for an "
            "archive, says which), or load the folder of the training images alone, which is "
            "then split"
        )
    for name, images in sorted(found.items()):
        if not images:
            raise ValueError(
                f"{one_line(folder / name)} holds no image: add some, or remove the folder"
            )
    return dict(sorted(found.items()))


def _check_classes(folder: Path, train: ClassFolders, test: ClassFolders) -> None:
    place = one_line(folder)
    unpaired = sorted(train.keys() ^ test.keys())
    if unpaired:
        raise ValueError(
            f"{place}: class {unpaired[0]!r} is in only one of train/ and test/: "
            "give every class both"
        )
    if len(train) < 2:
        raise ValueError(
            f"{place}: found the classes {list(train)}: a classifier needs two or more"
        )
    for name in train:
        if re.search(rf"[{files.CONTROLS}\ud800-\udfff]|\$.*\$", name):
            raise ValueError(
                f"{place}: the name of class {one_line(name)} is not plain text (UTF-8 without "
                "control characters, one $ at most): rename its folders"
            )


def _split_at_random(folder: Path, images: ClassFolders) -> list[ClassFolders]:
    """Training and test images: a fifth of each class, at least one image, is for the test."""
    train, test = {}, {}
    rng = np.random.default_rng(0)
    for name, paths in images.items():
        if len(paths) < 2:
            only = one_line(paths[0])
            raise ValueError(f"{only} is the only image of its class: add another, for the test")
        mixed = [sorted(paths)[i] for i in rng.permutation(len(paths))]
        size = max(1, len(paths) // 5)
        test[name], train[name] = mixed[:size], mixed[size:]
    total, chosen = (sum(map(len, part.values())) for part in (images, test))
    print(
        f"{one_line(folder.name)} has no train/ and test/: {chosen} of its {total} images, a fifth "
        "of each class drawn at random with a fixed seed, are the test images"
    )
    return [train, test]


def _in_order(images: ClassFolders) -> list[Sample]:
    """Images by file name, or at random with a fixed seed where their names sort them by class.

    CIFAR-10's files are numbered in their original order, which mixes the classes. The first images
    of `cat.0.jpg`, ..., `dog.0.jpg` would all be cats.
    """
    samples = [(path, label) for label, paths in enumerate(images.values()) for path in paths]
    samples.sort(key=lambda s: (os.path.basename(s[0]), s[1], s[0]))
    labels = np.array([label for _, label in samples])
    shares = np.bincount(labels) / len(labels)
    changes = (labels[1:] != labels[:-1]).sum()
    if changes < len(labels) * (1 - (shares**2).sum()) / 2:  # half as many as if they were mixed
        samples = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    return samples


def _load(folder: Path, samples: list[Sample], skip_damaged: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all images that can be read, and their numbers; from the cache if it holds."""
    cache = folder.parent / f"{folder.name}.cache.npz"
    key = _fingerprint(samples) + skip_damaged * " that can be read"
    cached = _read_cache(cache, key)
    images, kept = cached or _decode(samples, one_line(folder.name), skip_damaged)
    if not cached:
        _write_cache(cache, images=images, kept=kept, key=key)
    if len(kept) < len(samples):
        lost = len(samples) - len(kept)
        print(f"left out: {lost} images of {one_line(folder.name)} that cannot be read")
    return images, kept


def _fingerprint(samples: list[Sample]) -> str:
    """Digits that change when a file is added, removed, renamed or written to."""
    facts = []
    for path, label in samples:
        status = os.stat(path)
        facts.append((path, label, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read_cache(path: Path, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The cached images and their numbers; None where they are damaged, or those of other files."""
    # Which exception it is depends on where the file is damaged.
    with suppress(Exception), np.load(files.read_archive(path)) as file:
        if str(file["key"]) == key:
            return file["images"], file["kept"]
    return None


def _write_cache(path: Path, **arrays: Any) -> None:
    """Write a cache file in one step; a folder that cannot be written to goes without."""
    try:
        files.write_atomically(path, lambda file: np.savez(file, **arrays))
    except OSError as error:
        warnings.warn(f"the images will be decoded again: {one_line(error)}", stacklevel=2)


def _decode(samples: list[Sample], name: str, skip_damaged: bool) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of all images that can be read, and their numbers."""
    images, kept, damaged = [], [], []
    for number, (path, _) in enumerate(tqdm(samples, desc=f"decoding {name}")):
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
