"""Tests, notebooks included, run on the generated data, without a network, and leave the working tree as it was."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["WALKTHROUGH_DATA"] = "shapes10"
os.environ["WALKTHROUGH_IMAGES"] = "100"  # in an explorer: as many as tests need
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without, and `nohup` ...
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ... without this one; tests send both, and Windows has one only


@pytest.fixture
def project() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """A folder with the pages, made of the notebooks as they are committed, without running them."""
    folder = tmp_path_factory.mktemp("html")
    command = f"from pathlib import Path; from helpers.interactive.pages import write_pages; write_pages(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[1])
    return folder


@pytest.fixture
def small_disk(request, tmp_path):
    """A folder on a disk of its own, as large as the test module's SMALL_DISK says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.module.SMALL_DISK}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
