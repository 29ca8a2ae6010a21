"""Tests, notebooks included, run on the generated data, without a network, and leave the working tree as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["WALKTHROUGH_DATA"] = "shapes10"
os.environ["WALKTHROUGH_IMAGES"] = "100"  # in an explorer: as many as tests need


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
