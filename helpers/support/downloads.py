"""Fetch CIFAR-10's archive once, verify it, and remember for a day that it could not be had.

It is the one address that the notebooks ask for, and only when no copy lies in `data/`, unpacked or
not. Nothing is sent anywhere. CIFAR10_URL may name a mirror of `cifar-10-python.tar.gz`, or its
path on this machine; its MD5 is checked either way. What follows a `?` in it may be secret, so
messages and files name its host and path only.

After a failed download the notebooks keep to Shapes-10 for a day, unless CIFAR10_URL or the proxies
change; `load_dataset("cifar10")` tries again at once.
"""

import hashlib
import multiprocessing.pool
import os
import re
import shutil
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from tqdm import tqdm

from helpers.support import files

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SIZE = 170_498_071  # bytes of the archive; a download that goes on for longer is stopped
MD5 = "c58f30108f718f92721af3b95e74349a"  # of the archive, as published beside it
ARCHIVE = "cifar-10-python.tar.gz"
UNPACKED = "cifar-10-batches-py"  # the folder in it

CONNECT_TIMEOUT = 10  # seconds without a byte before a download counts as stalled
MIN_BYTES_PER_SECOND = 20_000  # minimum download speed
SLOW_GRACE_SECONDS = 30  # how long a download may be slower than that
RETRY_AFTER_SECONDS = 24 * 3600  # how long `download_or_reason` remembers a failure

REMEDIES = (
    "check the network and call load_dataset('cifar10') again, or set CIFAR10_URL to a mirror of "
    "cifar-10-python.tar.gz, or unpack images into data/cifar10/{train,test}/<class>/, or set "
    "WALKTHROUGH_ROOT to a folder with room to write, or use load_dataset('shapes10')"
)


def cifar10_or_shapes10(root: Path) -> str:
    """What "auto" means here: "cifar10", or "shapes10" after printing why.

    Args:
        root: the folder for data sets.
    """
    is_here = (root / UNPACKED).is_dir() or (root / "cifar10").is_dir()
    reason = "" if is_here else download_or_reason(root)
    if not reason:
        return "cifar10"
    print(f"*** Using Shapes-10, generated images, because {reason}. ***")
    return "shapes10"


def download_or_reason(root: Path) -> str:
    """Download CIFAR-10, unless that failed less than a day ago.

    Args:
        root: where the archive is unpacked.

    Returns:
        Why there is no CIFAR-10, in one line; "" where it was downloaded.
    """
    note = root / ".download-failed"
    # What the attempt depends on. Only its digest is kept: it may hold passwords.
    place = _source(root), sorted(urllib.request.getproxies().items())
    key = hashlib.blake2b(repr(place).encode(), digest_size=8).hexdigest()
    with suppress(OSError, ValueError):  # the note may hold anything, or be a folder
        known_key, reason = files.read_file(note).decode("ascii").split("\n")
        age = abs(time.time() - note.stat().st_mtime)
        if known_key == key and reason and age < RETRY_AFTER_SECONDS:
            return reason
    try:
        download_cifar10(root)
    except RuntimeError as error:
        reason = str(error)
        with suppress(OSError):
            files.write_atomically(note, lambda file: file.write(f"{key}\n{reason}".encode()))
        return reason
    return ""


def download_cifar10(root: Path) -> None:
    """Fetch, verify and unpack CIFAR-10's archive; a failure leaves nothing behind.

    Args:
        root: the archive's folder is unpacked here. CIFAR10_URL in the environment names a mirror.

    Raises:
        RuntimeError: there is no network, no room, or what came is not the archive; one line that
            names the remedies.
    """
    target = root / UNPACKED
    try:
        root.mkdir(parents=True, exist_ok=True)
        files.remove_stale_temporaries(root)
        with files.temporary_sibling(root, ".download-") as folder:
            archive = folder / ARCHIVE
            _fetch(_source(root), archive)
            _verify(archive)
            shutil.unpack_archive(archive, folder)  # safe: its checksum says which files it holds
            (folder / UNPACKED).rename(target)
    except (OSError, ValueError, HTTPException) as error:
        if not target.is_dir():  # else another process was faster
            reason = files.one_line(_without_secrets(str(error) or repr(error)), "ascii")
            # Without `from error`: a traceback would show what the message leaves out.
            address = files.one_line(_shown(_url()), "ascii")
            raise RuntimeError(
                f"CIFAR-10 could not be downloaded from {address} ({reason}); {REMEDIES}"
            ) from None


def read_cifar10(root: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Read CIFAR-10's archive, which is downloaded and unpacked first if it is not there.

    Args:
        root: holds the archive's folder.

    Returns:
        For the training and for the test images (N, 32, 32, 3) uint8 and (N,) labels.

    Raises:
        RuntimeError: as `download_cifar10`, or a file is damaged.
    """
    if not (root / UNPACKED).is_dir():
        download_cifar10(root)
    from torchvision.datasets import CIFAR10  # here, because importing it takes a second

    try:
        parts = [CIFAR10(root, train=is_train) for is_train in (True, False)]
    except RuntimeError as error:
        message = f"{root / UNPACKED} is damaged: delete that folder and load again"
        raise RuntimeError(message) from error
    return [(part.data, np.array(part.targets)) for part in parts]


def _url() -> str:
    """The address in CIFAR10_URL, which may be a path, or else the archive's own."""
    url = os.environ.get("CIFAR10_URL") or URL
    copies = [place / files.as_path(url) for place in files.standing_places()]
    return next((copy.as_uri() for copy in copies if os.path.isfile(copy)), url)


def _source(root: Path) -> str:
    """The address of the archive that lies in `root` already, or else that of `_url`."""
    with suppress(OSError):
        _verify(root / ARCHIVE)
        return (root / ARCHIVE).absolute().as_uri()
    return _url()


def _shown(url: str) -> str:
    """An address without user, password, query and fragment, which may be secret."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # part of a password may stand where the port should
        return "the address in CIFAR10_URL"
    host = f"{parts.scheme}://" + parts.netloc.rpartition("@")[2] if parts.netloc else ""
    return host + re.sub(".*@|;.*", "...", parts.path)


def _without_secrets(text: str) -> str:
    """A text without the words that `_shown` leaves out of this address, or of any other."""
    text = re.sub(r"(?<=//)\S+@|\?\S+", "...", text)
    address = _url().split("://", 1)[-1]
    words = re.findall(r"\w{3,}", f"{address} {unquote(address)}")
    hidden = set(words) - set(re.findall(r"\w+", _shown(_url())))
    for word in sorted(hidden, key=len, reverse=True):
        text = text.replace(word, "...")
    return text


def _open(url: str):
    """Connect, or give up after CONNECT_TIMEOUT: looking up a name has no time limit of its own."""
    try:
        with multiprocessing.pool.ThreadPool(1) as pool:
            connect = urllib.request.build_opener().open  # `urlopen` remembers the first proxies
            call = pool.apply_async(connect, (url, None, CONNECT_TIMEOUT))
            return call.get(CONNECT_TIMEOUT)
    except multiprocessing.TimeoutError:
        raise OSError(f"no answer within {CONNECT_TIMEOUT} seconds") from None


def _fetch(url: str, path: Path) -> None:
    """Download a file, with a progress bar.

    Raises:
        OSError: no answer, more bytes than SIZE, slower than MIN_BYTES_PER_SECOND for
            SLOW_GRACE_SECONDS, or an address with a user's name, which is not sent.
    """
    if "@" in urlsplit(url).netloc:
        raise OSError("it holds a user's name: fetch the archive by hand and put it into data/")
    with _open(url) as response, open(path, "wb") as out:
        size = int(response.headers.get("Content-Length") or 0) or None
        deadline = time.monotonic() + SLOW_GRACE_SECONDS
        with tqdm.wrapattr(out, "write", size, desc="CIFAR-10") as file:
            while chunk := response.read1(1 << 16):  # read() would wait for all 64 kB
                file.write(chunk)
                if out.tell() > SIZE:
                    raise OSError(f"more came than the archive's {SIZE:,} bytes")
                earned = len(chunk) / MIN_BYTES_PER_SECOND
                deadline = min(deadline + earned, time.monotonic() + SLOW_GRACE_SECONDS)
                if time.monotonic() > deadline:
                    speed = MIN_BYTES_PER_SECOND // 1000
                    raise OSError(f"it came at less than {speed} kB a second")


def _verify(archive: Path) -> None:
    content = archive.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5:
        raise OSError(
            f"the {len(content):,} bytes that arrived are not CIFAR-10's archive: their MD5 differs"
        )
