"""Files as they are written and read: whole after a crash or a power cut, or refused."""

import errno
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.model import load_pretrained, resnet18, save_weights
from helpers.studies import runs
from helpers.support import files, image_folder
from helpers.support.checkpoint import load_checkpoint, save_checkpoint
from helpers.support.weights import WEIGHTS, load_checked, write_weights

STATE = {"weight": torch.arange(3.0), "bias": torch.tensor([7])}


# ---- Every bit of a small file of each kind


class Counter:
    """The smallest state that a checkpoint can hold."""

    def __init__(self, number=0):
        self.number = number

    def state_dict(self):
        return {"number": torch.tensor(self.number)}

    def load_state_dict(self, saved):
        self.number = int(saved["number"])


def weights(folder):
    write_weights(folder / "net.pt", STATE, "abc")
    return folder / "net.pt", lambda path: load_checked(path)


def checkpoint(folder):
    def read(path):
        state = Counter()
        load_checkpoint(path, {"setting": 1}, state)
        return state.number

    save_checkpoint(folder / "run.pt", {"setting": 1}, Counter(5))
    return folder / "run.pt", read


def cache(folder):
    def read(path):
        found = image_folder._read_cache(path, "the files")
        return found and tuple(map(as_plain, found))

    path, images = folder / "pets.cache.npz", np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    image_folder._write_cache(path, images=images, kept=np.arange(2), key="the files")
    return path, read


def table(folder):
    rows = {"variant": ['a "b"', "é"], "seed": [0, 1], "score": [0.5, None]}
    runs.write_table(folder / "t.csv", pd.DataFrame(rows))
    return folder / "t.csv", lambda path: pd.DataFrame(runs.read_rows(path)).to_csv()


KINDS = [weights, checkpoint, cache, table]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("read", [files.read_archive, runs.read_rows], ids=["archive", "rows"])
def test_named_pipe_in_place_of_a_file_is_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is no ordinary file: take it away"):
        read(tmp_path / "pipe")


def as_plain(found):
    """What was read, in a form that `==` compares, types and shapes included."""
    if isinstance(found, dict):
        return {name: as_plain(value) for name, value in found.items()}
    if isinstance(found, (torch.Tensor, np.ndarray)):
        return str(found.dtype), found.shape, found.tolist()
    return found


def flip_bits(path, stride):
    """Flip one bit of a file after the other, in its place, and yield each time."""
    with open(path, "r+b", buffering=0) as file:
        for place in range(0, 8 * path.stat().st_size, stride):
            (byte,) = os.pread(file.fileno(), 1, place // 8)
            os.pwrite(file.fileno(), bytes([byte ^ 1 << place % 8]), place // 8)
            yield
            os.pwrite(file.fileno(), bytes([byte]), place // 8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_file_with_a_flipped_bit_is_refused_or_read_as_it_was_written(tmp_path, capsys, kind):
    path, read = kind(tmp_path)
    expected, found = as_plain(read(path)), []
    assert expected is not None
    # Each entry of an archive is unpacked and packed again, which takes a millisecond.
    for _ in flip_bits(path, 1 if kind is table else 23):
        try:
            found.append(as_plain(read(path)))
        except Exception as error:
            assert type(error) is ValueError or kind not in (checkpoint, table)
            found.append(None)
        if kind is table and path.read_bytes()[-1:] != b"\n":  # the last row is run again
            assert found.pop().splitlines() == expected.splitlines()[:-1]
    assert {str(content) for content in found} <= {"None", str(expected)}
    # Much of a small archive is what nobody reads: padding, dates, rights.
    assert found.count(None) > (0.99 if kind is table else 0.4) * len(found)
    capsys.readouterr()


@pytest.mark.parametrize("damage", [lambda b: b[5:], lambda b: bytes(len(b)), lambda b: b"\xff\n"])
def test_damaged_table_is_named_in_one_line(tmp_path, damage):
    path, read = table(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    if b"\n" not in path.read_bytes():
        path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_pytorch_would_leave_uninitialised_are_read(tmp_path):
    """A bit of the archive's directory makes PyTorch take an entry for a folder."""
    whole = (WEIGHTS / "shapes10.pt").read_bytes()
    expected = load_pretrained("shapes10").state_dict()
    content = bytearray(whole)
    place = whole.index(b"PK\1\2") + 38  # the external attributes of the directory's first entry
    for _ in range(40):
        content[place] ^= 0x10
        place = whole.find(b"PK\1\2", place) + 38
    (tmp_path / "shapes10.pt").write_bytes(content)
    state = load_pretrained(tmp_path / "shapes10.pt").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    content[1000] ^= 0x10
    (tmp_path / "shapes10.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"shapes10\.pt is damaged"):
        load_pretrained(tmp_path / "shapes10.pt")


def test_weights_are_those_that_pytorch_and_a_copy_alone_give(tmp_path):
    save_weights(resnet18(width=16), tmp_path / "net.pt", "abcdefghij")
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(tmp_path / "net.pt", tmp_path / "elsewhere")
    plain, ours = torch.load(copy, weights_only=True), load_pretrained(copy).state_dict()
    assert all(torch.equal(value.to(ours[name].dtype), ours[name]) for name, value in plain.items()
               if name != "classes")  # fmt: skip


@pytest.mark.parametrize("kind", [weights, checkpoint, cache], ids=lambda kind: kind.__name__)
def test_file_with_a_digest_at_its_end_is_read_as_earlier_versions_wrote_it(tmp_path, kind):
    path, read = kind(tmp_path)
    expected = as_plain(read(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_bytes(path.read_bytes() + f"\nsha256 {digest}".encode())
    assert as_plain(read(path)) == expected


# ---- What is left after a crash


def test_file_is_on_the_disk_before_it_has_its_name_and_then_its_name_is(tmp_path, monkeypatch):
    path, calls = tmp_path / "runs" / "run.pt", []
    path.parent.mkdir()
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        calls.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        assert calls[-1][1] == "runs" or os.fstat(descriptor).st_size == 5
        fsync(descriptor)

    def note_replace(old, new):
        calls.append(("replace", Path(old).name, Path(new).name))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    for _ in range(2):
        files.write_atomically(path, lambda file: file.write(b"12345"), keep_previous=True)
    once = [("fsync", "run.pt"), ("replace", "run.pt", "run.pt"), ("fsync", "runs")]
    renamed = ("replace", "run.pt", "run.pt.previous")
    assert calls == [*once, once[0], renamed, *once[1:]]


@pytest.fixture
def disk(tmp_path):
    """A folder on a disk of its own that can lose its power: `cut_power(folder)`."""
    image, folder = tmp_path / "disk.img", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(1 << 24)
    make = ["mkfs.ext4", "-q", "-F", image]
    mount = ["mount", "-o", "loop,noauto_da_alloc", image, folder]  # no guess at what is meant
    for command in (make, mount):
        if not shutil.which(command[0]) or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root can mount a disk and shut it down")

    def cut_power():
        descriptor = os.open(folder, os.O_RDONLY)
        without_flushing = (2).to_bytes(4, sys.byteorder)
        fcntl.ioctl(descriptor, 0x8004587D, without_flushing)  # EXT4_IOC_SHUTDOWN
        os.close(descriptor)
        subprocess.run(["umount", folder], check=True)
        subprocess.run(mount, check=True)

    yield folder, cut_power
    subprocess.run(["umount", folder], check=True)


@pytest.mark.process
def test_power_cut_leaves_whole_files(disk):
    folder, cut_power = disk
    (folder / "careless.pt").write_bytes(b"12345")
    written = {}
    for number in range(3):
        save_checkpoint(folder / "runs" / "run.pt", {}, Counter(number))
        write_weights(folder / "runs" / "net.pt", STATE, "abc")
        written = {p.name: p.read_bytes() for p in (folder / "runs").glob("*.p*")}
    cut_power()
    careless = folder / "careless.pt"
    assert not careless.exists() or careless.stat().st_size == 0  # the power was cut indeed
    found = {p.name: p.read_bytes() for p in (folder / "runs").glob("*.p*")}
    assert len(found) == 3 and found == written


def die_while_writing(path):
    def write(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    files.os.fsync = write
    files.write_atomically(path, lambda file: file.write(b"half of it"))


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill")
def test_what_a_killed_process_had_begun_to_write_is_removed_by_the_next_write(tmp_path):
    child = os.fork()
    if child == 0:
        die_while_writing(tmp_path / "history.csv")
    os.waitpid(child, 0)
    (lock,) = tmp_path.glob(f".write-*/{files.FOLDER_LOCK}")
    os.utime(lock, (10**9, 10**9))
    files.write_atomically(tmp_path / "weights.pt", lambda file: file.write(b"all"))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]


def test_folder_that_cannot_be_removed_does_not_undo_a_write(tmp_path, monkeypatch):
    def refuse(*_, **__):  # as a network disk does while a file in it is open elsewhere
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", refuse)
        files.write_atomically(tmp_path / "a", lambda file: file.write(b"all"))
    assert (tmp_path / "a").read_bytes() == b"all"


def test_home_is_where_it_always_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_weights(resnet18(width=16), "~/new/nets/net.pt", "abcdefghij")
    assert load_pretrained("~/new/nets/net.pt").fc.out_features == 10
    assert (tmp_path / "new" / "nets" / "net.pt").is_file() and not Path("~").exists()
