"""Where files lie, and how one is written: whole, and on the disk before it has its name.

Data sets are kept in `data/`, the decoded images of a folder beside it (`<folder>.cache.npz`),
weights, checkpoints and tables in `runs/`, CIFAR-10's figures in `images/`, pages in `html/`.
WALKTHROUGH_ROOT puts `data/`, `runs/` and `images/` elsewhere. A relative path starts from where
you stand, else from the project.
"""

import errno
import io
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

PROJECT = Path(__file__).resolve().parents[2]
AROUND = " \t\r\n\"'"  # what is shed around a path
FOLDER_LOCK = ".walkthrough-lock"  # lies in a temporary folder, locked while its process lives
CONTROLS = r"\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069"  # characters that a terminal obeys
NO_LOCKS_HERE = (errno.ENOTSUP, errno.ENOLCK)  # what a disk without locks answers


def project_root() -> Path:
    """The folder that holds `data/`, `runs/` and `images/`.

    Returns:
        WALKTHROUGH_ROOT of the environment where it is set, else the project's own folder.
    """
    return find_folder(os.environ.get("WALKTHROUGH_ROOT") or PROJECT)


def as_path(name: str | os.PathLike) -> Path:
    """A path as people write it: with `~`, environment variables, spaces or quotes around it."""
    return Path(os.path.expandvars(os.path.expanduser(os.fspath(name).strip(AROUND))))


def standing_places() -> list[Path]:
    """The folders that a relative path may start from: where the person stands, then the project.

    A notebook's kernel stands in `notebooks/`; the shell that it was started from is in PWD.
    """
    places = [Path.cwd(), Path.cwd() / os.environ.get("PWD", ""), PROJECT]
    return list(dict.fromkeys(places))


def find_folder(name: str | os.PathLike) -> Path:
    """The folder of that name in the first of `standing_places` that has one.

    Where none has, it is to be made where the person stands, or in the project from inside of it.
    """
    path, places = as_path(name), standing_places()
    for place in places:
        if os.path.isdir(place / path):
            return place / path
    return (PROJECT if PROJECT in places[0].parents else places[0]) / path


def one_line(text: object, encoding: str = "utf-8") -> str:
    """Make one printable line of an error, a path or any other text.

    Args:
        text: anything that `str` takes.
        encoding: characters that it lacks are written as escapes.

    Returns:
        The text without line breaks or control characters, its middle left out beyond 300
        characters.
    """
    line = (str(text) or repr(text)).encode(encoding, "backslashreplace").decode(encoding)
    line = re.sub(rf"[\s{CONTROLS}]+", " ", line).strip()
    return line if len(line) <= 300 else f"{line[:150]} ... {line[-145:]}"


def write_atomically(
    path: str | os.PathLike,
    write: Callable[[BinaryIO], object],
    keep_previous: bool = False,
) -> None:
    """Write a file in one step: the old file stays until the new one is complete, and on the disk.

    So a process that is killed, and a power cut, leave one of the two. What a killed process had
    begun to write in this folder is removed.

    Args:
        path: where to write, `~` for one's home; missing folders are made.
        write: called with a binary file in memory. (In memory because `torch.save` reports a full
            disk as "unexpected pos".)
        keep_previous: rename the old file to `<path>.previous` instead of replacing it.

    Raises:
        OSError: the disk is full or cannot be written to; one line that names the path. What was
            there before is still there.
    """
    content = io.BytesIO()
    write(content)
    path = Path(os.path.expanduser(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(path.parent)
        with temporary_sibling(path.parent, ".write-") as folder:
            temporary = folder / path.name
            with open(temporary, "wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            if keep_previous and path.exists():
                os.replace(path, f"{path}.previous")
            os.replace(temporary, path)
            _keep_names(path.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise OSError(f"cannot write {path} ({reason}): make room, or write elsewhere") from error


def _keep_names(folder: Path) -> None:
    """Have the disk keep the names in a folder; Windows and some network disks cannot."""
    with suppress(OSError), ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a file; OSError for a named pipe, at which a reader would wait for ever."""
    if Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{path} is no ordinary file: take it away, or name another")
    return Path(path).read_bytes()


def read_archive(path: str | os.PathLike) -> io.BytesIO:
    """Read what `torch.save` or `np.savez` wrote: a zip file, each entry with its CRC-32.

    PyTorch compares no checksums, NumPy only that of an entry which it reads to its end, and both
    believe the archive's directory. Here all are compared, and of the directory only the names are
    kept.

    Returns:
        The same entries in a new archive.

    Raises:
        OSError: the file cannot be read.
        Exception: of any kind, for a damaged file.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(read_file(path))) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    copy.seek(0)
    return copy


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Keep other processes away from a file for as long as this lasts.

    The operating system releases the lock on `<path>.lock` however its process ends; the empty
    lock file stays. On a disk without locks there is no protection.

    Args:
        path: the file to protect; missing folders are made.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(f"{path}.lock", timeout=0))
        except Timeout:
            raise BlockingIOError(
                f"another run is writing {path}: wait for its end, or name another place"
            ) from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOTSUP) not in NO_LOCKS_HERE:
                raise
        yield


@contextmanager
def temporary_sibling(parent: Path, prefix: str) -> Iterator[Path]:
    """A temporary folder in `parent`, removed at the end.

    It is on the same disk as what it will become, so that a rename is one step. It is locked for as
    long as it is in use, so that `remove_stale_temporaries` leaves it alone.
    """
    folder = tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True)
    with folder as name, ExitStack() as held:
        with suppress(OSError, NotImplementedError):  # no locks on this disk: nothing is swept
            held.enter_context(FileLock(Path(name) / FOLDER_LOCK))
        yield Path(name)


def remove_stale_temporaries(parent: Path) -> None:
    """Remove temporary folders whose process was killed: nobody holds their lock any more."""
    for lock in parent.glob(f".*-*/{FOLDER_LOCK}"):
        with suppress(OSError, NotImplementedError):
            if time.time() - lock.stat().st_mtime > 1:  # a new one may be about to be locked
                with FileLock(lock, timeout=0):
                    pass
                shutil.rmtree(lock.parent)
