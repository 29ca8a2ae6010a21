"""Load CIFAR-10, a folder of images or the generated Shapes-10 as arrays, and serve them in batches."""

import errno
import hashlib
import io
import os
import shutil
import tarfile
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, get_worker_info
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from helpers import shapes

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Mean and standard deviation of each channel over all 50,000 x 32 x 32 training pixels of CIFAR-10, scaled to [0, 1].
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

SIZE = 32
DOWNLOAD_TIMEOUT = 10  # seconds without a byte before a download counts as stalled
RETRY_AFTER = 24 * 3600  # seconds for which "auto" remembers that the download failed
SHAPES_SIZES = (10000, 2000)  # training and test images of Shapes-10 unless asked otherwise
REMEDIES = (
    "check the network and call load_dataset('cifar10') again, or set CIFAR10_URL to a mirror of cifar-10-python.tar.gz, "
    "or unpack images into data/cifar10/{train,test}/<class>/, or use load_dataset('shapes10')"
)


@dataclass(frozen=True)
class Dataset(torch.utils.data.Dataset):
    """Labelled images in memory.

    images: (N, 32, 32, 3) uint8, RGB.  labels: (N,) int64, indices into `classes`.
    masks: (N, 32, 32) bool, True on the object, for Shapes-10; None elsewhere.
    transform: an Albumentations pipeline that `__getitem__` applies, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    masks: np.ndarray | None = None
    transform: Callable | None = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        """One image as uint8 (3, 32, 32), transformed, and its label."""
        image = self.images[index]
        if self.transform is not None:
            image = self.transform(image=image)["image"]
        return torch.from_numpy(image).permute(2, 0, 1), self.labels[index]

    def subset(self, indices) -> "Dataset":
        """The images with these indices, in this order."""
        masks = None if self.masks is None else self.masks[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], masks=masks)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that any other image, label, class name or order would change (masks would not)."""
        digest = hashlib.blake2b(repr((self.images.shape, tuple(self.classes))).encode(), digest_size=8)
        for array in (self.images, self.labels):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def tensor(self, indices=slice(None)) -> torch.Tensor:
        """Images as floats in [0, 1], (n, 3, 32, 32): what the network takes."""
        return to_float(torch.from_numpy(self.images[indices]).permute(0, 3, 1, 2))


class DatasetPair(NamedTuple):
    """Training and test set with the same classes; `name` says which weights belong to them."""

    train: Dataset
    test: Dataset
    name: str

    @property
    def classes(self) -> tuple:
        return self.train.classes


def project_root() -> Path:
    """The folder that holds `data/` and `runs/`: WALKTHROUGH_ROOT in the environment, else the project's own."""
    return Path(os.environ.get("WALKTHROUGH_ROOT") or Path(__file__).resolve().parents[1])


def load_dataset(name="auto", root=None, train_size=None, test_size=None) -> DatasetPair:
    """Load a training and a test set.

    name: "cifar10" (downloaded when absent), "shapes10" (generated), the path of a folder `{train,test}/<class>/*.png|jpg`,
    or "auto": a CIFAR-10 on disk, else its download, else Shapes-10. WALKTHROUGH_DATA in the environment overrides "auto".
    root: where data sets are kept; `data/` of the project by default.
    train_size, test_size: use so many images, a fixed random choice (all by default; 10,000 and 2,000 for Shapes-10).
    Raises ValueError for an unknown name or a malformed folder, FileNotFoundError for a missing folder, RuntimeError for
    a failed download; each message is one line that names the remedy.
    """
    root = Path(root) if root else project_root() / "data"
    if 0 in (train_size, test_size):
        raise ValueError("train_size and test_size must be at least 1")
    if name == "auto":
        name = os.environ.get("WALKTHROUGH_DATA") or "auto"
    if name == "auto":
        name = _choose(root)
    if name == "shapes10":
        return _load_shapes(train_size or SHAPES_SIZES[0], test_size or SHAPES_SIZES[1])
    pair = _load_cifar10(root) if name == "cifar10" else _load_folder(_as_folder(name))
    return pair._replace(train=_choose_images(pair.train, train_size), test=_choose_images(pair.test, test_size))


def split(dataset: Dataset, size: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split off `size` images at random, a fixed choice for each seed: returns (the rest, those)."""
    if not 0 < size < len(dataset):
        raise ValueError(f"cannot split {size} of {len(dataset)} images off: choose between 1 and {len(dataset) - 1}")
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(np.sort(order[size:])), dataset.subset(np.sort(order[:size]))


def channel_statistics(images: np.ndarray) -> tuple[tuple, tuple]:
    """Mean and standard deviation of each channel, in [0, 1], over all pixels of (N, H, W, 3) uint8 images."""
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]
    levels = np.arange(256) / 255
    means = [float(np.average(levels, weights=n)) for n in counts]
    stds = [float(np.average((levels - m) ** 2, weights=n) ** 0.5) for n, m in zip(counts, means)]
    return tuple(means), tuple(stds)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images 0..255 as float32 in [0, 1]. Raises ValueError for another type: its range would have to be guessed."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, 0 to 255, got {images.dtype}: floats in [0, 1] times 255, rounded, are")
    return images.float() / 255


def make_loader(dataset: Dataset, batch_size: int, generator: torch.Generator | None = None, num_workers: int = 0) -> DataLoader:
    """Batches of uint8 images (B, 3, 32, 32) and labels (B,).

    generator: shuffles the images and, with workers, seeds their augmentation (without, `seed_transform` does); None keeps
    the order. The same generator state and worker count give the same batches; every epoch draws anew.
    Raises ValueError for a data set without images.
    """
    if len(dataset) == 0:
        raise ValueError("there are no images in this data set: take one image or more")
    return DataLoader(
        dataset,
        batch_size,
        shuffle=generator is not None,
        generator=generator,
        num_workers=num_workers,
        worker_init_fn=_seed_worker,
        pin_memory=torch.cuda.is_available(),
    )


def seed_transform(dataset: Dataset, seed: int) -> None:
    """Set the random state of a data set's augmentation (32 bits of `seed`)."""
    if dataset.transform is not None:
        dataset.transform.set_random_seed(seed % 2**32)


def _seed_worker(_):
    # Albumentations 2.0.8 seeds every worker alike; torch's worker seed differs by worker and by epoch.
    seed_transform(get_worker_info().dataset, torch.initial_seed())


def _choose(root: Path) -> str:
    """What "auto" means here: "cifar10", or "shapes10" after saying why."""
    if (root / CIFAR10.base_folder).is_dir() or (root / "cifar10").is_dir():
        return "cifar10"
    failed = root / ".download-failed"
    if failed.exists() and time.time() - failed.stat().st_mtime < RETRY_AFTER:
        reason = failed.read_text()
    else:
        try:
            _download(root)
            return "cifar10"
        except RuntimeError as error:
            reason = str(error).split("; ")[0]
            with suppress(OSError):
                failed.write_text(reason)
    print(f"*** Using Shapes-10, generated images, because {reason}. To get CIFAR-10: {REMEDIES}. ***")
    return "shapes10"


def _choose_images(dataset, size):
    return dataset if size is None or size >= len(dataset) else split(dataset, size)[1]


def _load_shapes(train_size, test_size):
    parts = (shapes.generate(train_size, shapes.TRAIN_SEED), shapes.generate(test_size, shapes.TEST_SEED))
    return DatasetPair(*(Dataset(**part, classes=shapes.CLASSES) for part in parts), "shapes10")


def _load_cifar10(root):
    if not (root / CIFAR10.base_folder).is_dir() and (root / "cifar10").is_dir():
        return _load_folder(root / "cifar10")
    if not (root / CIFAR10.base_folder).is_dir():
        _download(root)
    try:
        sets = [CIFAR10(root, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise RuntimeError(f"{root / CIFAR10.base_folder} is damaged: delete that folder and load again") from error
    return DatasetPair(*(Dataset(s.data, np.array(s.targets), CLASSES) for s in sets), "cifar10")


def _download(root: Path) -> None:
    """Fetch, verify and unpack CIFAR-10's archive; nothing stays behind when any of it fails."""
    url = os.environ.get("CIFAR10_URL") or CIFAR10.url
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            archive = Path(folder) / CIFAR10.filename
            _fetch(url, archive)
            if not check_integrity(archive, CIFAR10.tgz_md5):
                raise OSError("the file that arrived is not CIFAR-10's archive (its MD5 differs)")
            with tarfile.open(archive) as tar:
                tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
            shutil.move(Path(folder) / CIFAR10.base_folder, root / CIFAR10.base_folder)
    except (OSError, ValueError, HTTPException, tarfile.TarError) as error:
        raise RuntimeError(f"CIFAR-10 could not be downloaded from {url} ({error}); {REMEDIES}") from error


def _open(url):
    """Open a connection, or give up after DOWNLOAD_TIMEOUT in all: looking a name up has no time limit of its own."""
    future = Future()

    def connect():
        try:
            future.set_result(urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return future.result(DOWNLOAD_TIMEOUT)
    except FutureTimeout:
        raise OSError(f"no answer within {DOWNLOAD_TIMEOUT} seconds") from None


def _fetch(url, path):
    with _open(url) as response, open(path, "wb") as file:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc="CIFAR-10") as bar:
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
    if total and path.stat().st_size < total:
        raise OSError(f"the connection closed after {path.stat().st_size:,} of {total:,} bytes")


def _as_folder(name) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(name, str) and len(folder.parts) == 1:
        raise ValueError(f"unknown data set {name!r}: choose 'auto', 'cifar10', 'shapes10' or the path of an image folder")
    raise FileNotFoundError(f"no folder {folder}: give the path of a folder that holds train/<class>/ and test/<class>/")


def _load_folder(folder: Path) -> DatasetPair:
    """Read `{train,test}/<class>/*`; arrays are cached in `<folder>.cache.npz` until a file changes."""
    train, test = (_list_split(folder / part) for part in ("train", "test"))
    if train.classes != test.classes:
        alone = sorted(set(train.classes) ^ set(test.classes))
        raise ValueError(f"{folder}: class {alone[0]!r} is in only one of train/ and test/: give every class both")
    if len(train.classes) < 2:
        raise ValueError(f"{folder}: found one class, {train.classes[0]!r}: a classifier needs two or more")
    cache = folder.parent / f"{folder.name}.cache.npz"
    key = _fingerprint(train.samples + test.samples)
    images = _read_cache(cache, key)
    if images is None:
        images = np.stack([_decode(path) for path, _ in tqdm(train.samples + test.samples, desc=f"decoding {folder.name}")])
        _write_cache(cache, images=images, key=key)
    classes, n = tuple(train.classes), len(train.samples)
    labels = np.array(train.targets + test.targets)
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]  # tells two folders of one name apart
    name = "cifar10" if classes == CLASSES else f"folder-{folder.resolve().name}-{place}"
    halves = (Dataset(images[part], labels[part], classes) for part in (slice(n), slice(n, None)))
    return DatasetPair(*halves, name)


def _list_split(folder):
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: an image folder holds train/<class>/ and test/<class>/")
    try:
        found = ImageFolder(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {str(error).splitlines()[0]}") from error
    # By file name: CIFAR-10's files are numbered in their original order, which mixes the classes.
    found.samples.sort(key=lambda sample: (Path(sample[0]).name, sample[1]))
    found.targets = [target for _, target in found.samples]
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB, turned upright as its EXIF data ask; transparent parts become white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_size(image: Image.Image) -> np.ndarray:
    """The central square of an RGB picture, shrunk (or enlarged) to (32, 32, 3) uint8; the same pixels where it has that size."""
    return np.array(image if image.size == (SIZE, SIZE) else ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC))


def _decode(path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return to_size(to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {path} ({error}): replace or remove it") from error


def _fingerprint(samples) -> str:
    digest = hashlib.sha256()
    for path, target in samples:
        status = os.stat(path)
        digest.update(f"{path}|{target}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _read_cache(path, key):
    """The images in a cache file, or None if there is none, it is damaged, or it was made from other files."""
    try:
        with np.load(path) as file:
            if str(file["key"]) == key:
                return file["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def _write_cache(path, **arrays):
    """Write a cache file in one step; a folder that cannot be written to goes without."""
    with suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent, prefix=".cache-") as folder:
        np.savez(Path(folder) / path.name, **arrays)
        os.replace(Path(folder) / path.name, path)


def write_file(path, write, keep: bool = False) -> None:
    """Write a file in one step: what was there stays until the new one is whole, and is all that a failure leaves.

    write: called with a binary file in memory (told of a full disk, `torch.save` would say no more than "unexpected pos").
    keep: what was there stays as `<path>.previous`.  Raises OSError, in one line, where the disk is full or not to be written to.
    """
    write(content := io.BytesIO())
    path, temporary = Path(path), Path(f"{path}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.getbuffer())
        if keep and path.exists():
            os.replace(path, f"{path}.previous")
        os.replace(temporary, path)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OSError(f"cannot write {path} ({reason}): make room, or write elsewhere") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
