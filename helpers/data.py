"""Load CIFAR-10, a folder of images or the generated Shapes-10 as arrays, and serve them in batches."""

import errno
import hashlib
import io
import multiprocessing.pool
import os
import shutil
import sys
import tempfile
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, get_worker_info
from torchvision.datasets import CIFAR10
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from helpers import shapes
from helpers.pictures import SIZE as SIZE
from helpers.pictures import one_line, read, to_size

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Mean and standard deviation of each channel over all 50,000 x 32 x 32 training pixels of CIFAR-10, scaled to [0, 1].
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

DOWNLOAD_TIMEOUT = 10  # seconds without a byte before a download counts as stalled
SLOWEST = 20_000  # bytes a second that a download must bring, or it is ended
PATIENCE = 30  # seconds for which it may bring fewer
RETRY_AFTER = 24 * 3600  # seconds for which "auto" remembers that the download failed
SHAPES_SIZES = (10000, 2000)  # training and test images of Shapes-10 unless asked otherwise
EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".heic", ".heif", ".avif")  # the last three are refused, not passed over
HIDDEN = (".", "__MACOSX")  # how names begin that are neither classes nor images
LOCK = ".walkthrough-lock"  # lies in every unfinished folder, locked while its process lives
REMEDIES = (
    "check the network and call load_dataset('cifar10') again, or set CIFAR10_URL to a mirror of cifar-10-python.tar.gz, "
    "or unpack images into data/cifar10/{train,test}/<class>/, or set WALKTHROUGH_ROOT to a folder with room to write, "
    "or use load_dataset('shapes10')"
)


@dataclass(frozen=True)
class Dataset(torch.utils.data.Dataset):
    """Labelled images in memory.

    images: (N, 32, 32, 3) uint8, RGB.  labels: (N,) int64, indices into `classes`.
    masks: (N, 32, 32) bool, True on the object, for Shapes-10; None elsewhere.
    transform: an Albumentations pipeline that `__getitem__` applies, or None.
    harder: {label: another pipeline, for the images of that class}.
    mirrored: (N,) bool, the images to mirror before that, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    masks: np.ndarray | None = None
    transform: Callable | None = None
    harder: dict = field(default_factory=dict)
    mirrored: np.ndarray | None = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        """One image as uint8 (3, 32, 32), transformed, and its label."""
        image = self.images[index]
        if self.mirrored is not None and self.mirrored[index]:
            image = np.ascontiguousarray(image[:, ::-1])
        transform = self.harder.get(self.labels[index], self.transform)
        if transform is not None:
            image = transform(image=image)["image"]
        return torch.from_numpy(image).permute(2, 0, 1), self.labels[index]

    def subset(self, indices) -> "Dataset":
        """The images with these indices, in this order."""
        also = {k: part[indices] for k in ("masks", "mirrored") if (part := getattr(self, k)) is not None}
        return replace(self, images=self.images[indices], labels=self.labels[indices], **also)

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
    return Path(os.path.expanduser(os.environ.get("WALKTHROUGH_ROOT") or Path(__file__).resolve().parents[1]))


def load_dataset(name="auto", root=None, train_size=None, test_size=None) -> DatasetPair:
    """Load a training and a test set.

    name: "cifar10" (downloaded when absent), "shapes10" (generated), the path of a folder `{train,test}/<class>/*.png|jpg`,
    or "auto": a CIFAR-10 on disk, else its download, else Shapes-10. WALKTHROUGH_DATA in the environment overrides "auto".
    root: where data sets are kept; `data/` of the project by default.
    train_size, test_size: use so many images, a fixed random choice (all by default; 10,000 and 2,000 for Shapes-10).
    Raises ValueError for an unknown name or a malformed folder, FileNotFoundError for a missing folder, RuntimeError for
    a failed download; each message is one line that names the remedy.
    """
    root = Path(os.path.expanduser(root)) if root else project_root() / "data"
    _sweep(root)
    if any(size is not None and size < 1 for size in (train_size, test_size)):
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


def make_loader(
    dataset: Dataset, batch_size: int, generator: torch.Generator | None = None, num_workers: int = 0, sampler=None
) -> DataLoader:
    """Batches of uint8 images (B, 3, 32, 32) and labels (B,).

    generator: shuffles the images and, with workers, seeds their augmentation (without, `seed_transform` does); None keeps
    the order. The same generator state and worker count give the same batches; every epoch draws anew.
    sampler: hands out the images' indices instead, a `DistributedSampler` those of one process.
    Raises ValueError for a data set, or a share of one, without images.
    """
    if len(dataset if sampler is None else sampler) == 0:
        raise ValueError("there are no images in this data set: take one image or more")
    return DataLoader(
        dataset,
        batch_size,
        shuffle=generator is not None and sampler is None,
        sampler=sampler,
        generator=generator,
        num_workers=num_workers,
        # Forked, workers share the images; by its name, since in processes of joblib, whose default is another, none would start.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
        worker_init_fn=_seed_worker,
        pin_memory=torch.cuda.is_available(),
    )


def seed_transform(dataset: Dataset, seed: int) -> None:
    """Set the random state of a data set's augmentation (32 bits of `seed`); its pipelines draw apart from one another."""
    for number, transform in enumerate(dict.fromkeys([dataset.transform, *dataset.harder.values()])):
        if transform is not None:
            transform.set_random_seed((seed + number * 2**31) % 2**32)  # workers' seeds differ by ones


def _seed_worker(_):
    # Albumentations 2.0.8 seeds every worker alike; torch's worker seed differs by worker and by epoch.
    seed_transform(get_worker_info().dataset, torch.initial_seed())


def _choose(root: Path) -> str:
    """What "auto" means here: "cifar10", or "shapes10" after saying why."""
    if (root / CIFAR10.base_folder).is_dir() or (root / "cifar10").is_dir():
        return "cifar10"
    failed = root / ".download-failed"
    try:
        reason = _remembered(failed) or _download(root)
    except RuntimeError as error:
        reason = str(error)
        with suppress(OSError):
            failed.write_text(reason)
    if not reason:
        return "cifar10"
    print(f"*** Using Shapes-10, generated images, because {reason}. ***")
    return "shapes10"


def _remembered(failed: Path) -> str:
    """Why the download from this address failed less than RETRY_AFTER ago, or ""; the file may hold, or be, anything."""
    with suppress(OSError):
        reason = failed.read_text("ascii", "replace")
        if reason.startswith(_failure()) and abs(time.time() - failed.stat().st_mtime) < RETRY_AFTER:
            return reason
    return ""


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


def _url() -> str:
    return os.environ.get("CIFAR10_URL") or CIFAR10.url


def _failure() -> str:
    return f"CIFAR-10 could not be downloaded from {one_line(_url(), 'ascii')} ("


def _download(root: Path) -> None:
    """Fetch, verify and unpack CIFAR-10's archive; nothing stays behind when any of it fails."""
    target = root / CIFAR10.base_folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _unfinished(root, ".download-") as folder:
            archive = folder / CIFAR10.filename
            _fetch(_url(), archive)
            if not check_integrity(archive, CIFAR10.tgz_md5):
                raise OSError(f"the {archive.stat().st_size:,} bytes that arrived are not CIFAR-10's archive: their MD5 differs")
            shutil.unpack_archive(archive, folder)  # of files that are known, as its MD5 is
            (folder / CIFAR10.base_folder).rename(target)
    except (OSError, ValueError, HTTPException) as error:
        if not target.is_dir():  # else another process was faster
            raise RuntimeError(f"{_failure()}{one_line(error, 'ascii')}); {REMEDIES}") from error


def _open(url):
    """Open a connection, or give up after DOWNLOAD_TIMEOUT in all: looking a name up has no time limit of its own."""
    try:
        with multiprocessing.pool.ThreadPool(1) as pool:
            return pool.apply_async(urllib.request.urlopen, (url, None, DOWNLOAD_TIMEOUT)).get(DOWNLOAD_TIMEOUT)
    except multiprocessing.TimeoutError:
        raise OSError(f"no answer within {DOWNLOAD_TIMEOUT} seconds") from None


def _fetch(url, path):
    with _open(url) as response, open(path, "wb") as out:
        size, deadline = int(response.headers.get("Content-Length") or 0) or None, time.monotonic() + PATIENCE
        with tqdm.wrapattr(out, "write", size, desc="CIFAR-10") as file:
            while chunk := response.read1(1 << 16):  # what is there; read() would wait for all 64 kB
                file.write(chunk)
                deadline = min(deadline + len(chunk) / SLOWEST, time.monotonic() + PATIENCE)
                if time.monotonic() > deadline:
                    raise OSError(f"it came at less than {SLOWEST // 1000} kB a second")


@contextmanager
def _unfinished(parent: Path, prefix: str):
    """A folder beside what it is to become, removed at the end, and locked until then so that no `_sweep` removes it."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        with suppress(OSError, NotImplementedError):  # of a disk without locks, where nothing is swept either
            stack.enter_context(FileLock(Path(folder, LOCK)))
        yield Path(folder)


def _sweep(parent: Path) -> None:
    """Remove the unfinished folders of processes that were killed: their locks are free."""
    for lock in parent.glob(f".*-*/{LOCK}"):
        with suppress(OSError, NotImplementedError):
            if time.time() - lock.stat().st_mtime > 1:  # else its owner may be about to take it
                with FileLock(lock, timeout=0):
                    pass
                shutil.rmtree(lock.parent)


def _as_folder(name) -> Path:
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        return folder
    if isinstance(name, str) and len(folder.parts) == 1:
        raise ValueError(f"unknown data set '{one_line(name)}': choose 'auto', 'cifar10', 'shapes10' or the path of a folder")
    raise FileNotFoundError(f"no folder {one_line(name)}: give the path of one that holds train/<class>/ and test/<class>/")


def _load_folder(folder: Path) -> DatasetPair:
    """Read `{train,test}/<class>/**`; arrays are cached in `<folder>.cache.npz` until a file changes."""
    _sweep(folder.parent)
    seen = set()  # shared, so that test images are not training images by way of a link
    (classes, train), (also, test) = (_list_split(folder / part, seen) for part in ("train", "test"))
    if classes != also:
        alone = sorted(set(classes) ^ set(also))
        raise ValueError(f"{folder}: class {alone[0]!r} is in only one of train/ and test/: give every class both")
    if len(classes) < 2:
        raise ValueError(f"{folder}: found the classes {list(classes)}: a classifier needs two or more")
    if odd := [name for name in classes if name != name.encode("utf-8", "replace").decode()]:
        raise ValueError(f"{folder}: the name of class {one_line(odd[0])} is not UTF-8: rename its folders")
    cache = folder.parent / f"{folder.name}.cache.npz"
    key = _fingerprint(train + test)
    images = _read_cache(cache, key)
    if images is None:
        images = np.stack([to_size(read(path)) for path, _ in tqdm(train + test, desc=f"decoding {folder.name}")])
        _write_cache(cache, images=images, key=key)
    labels, n = np.array([label for _, label in train + test]), len(train)
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]  # tells two folders of one name apart
    name = "cifar10" if classes == CLASSES else f"folder-{folder.resolve().name}-{place}"
    halves = (Dataset(images[part], labels[part], classes) for part in (slice(n), slice(n, None)))
    return DatasetPair(*halves, name)


def _list_split(folder: Path, seen: set) -> tuple[tuple, list]:
    """The classes of `folder/<class>/**`, and (path, class index) of every image by file name; what is hidden does not count."""
    classes, samples = None, []
    for place, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        if os.path.realpath(place) in seen:
            raise ValueError(f"{one_line(place)} is a link to a folder that is read anyway: remove it")
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        paths = [os.path.join(place, name) for name in files if not name.startswith(HIDDEN)]
        if lost := [path for path in paths if not os.path.exists(path)]:
            raise ValueError(f"{one_line(lost[0])} is a link that leads nowhere: remove it")
        if classes is None:
            classes = tuple(folders)
        else:
            label = classes.index(Path(place).relative_to(folder).parts[0])
            samples += [(path, label) for path in paths if path.lower().endswith(EXTENSIONS)]
    if empty := set(range(len(classes))) - {label for _, label in samples}:
        raise ValueError(f"{one_line(folder / classes[min(empty)])} holds no image: add some, or remove the folder")
    # By file name: CIFAR-10's files are numbered in their original order, which mixes the classes.
    return classes, sorted(samples, key=lambda sample: (os.path.basename(sample[0]), sample[1], sample[0]))


def _refuse(error):
    raise type(error)(f"cannot look into {one_line(error.filename)} ({error.strerror}): it should hold a folder for each class")


def _fingerprint(samples) -> str:
    status = [os.stat(path) for path, _ in samples]
    facts = [(*sample, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for sample, s in zip(samples, status)]
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _read_cache(path, key):
    """The images in a cache file, or None if there is none, it is damaged, or it was made from other files."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(path) as file:
        if str(file["key"]) == key:
            return file["images"]
    return None


def _write_cache(path, **arrays):
    """Write a cache file in one step; a folder that cannot be written to goes without."""
    try:
        with _unfinished(path.parent, ".cache-") as folder:
            np.savez(folder / path.name, **arrays)
            os.replace(folder / path.name, path)
    except OSError as error:
        warnings.warn(f"the images will be decoded again: {path} cannot be written ({one_line(error)})", stacklevel=2)


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
