"""Tests, notebooks included, run on the generated data, without a network, and leave the working tree as it was."""

import os
from pathlib import Path

import pytest

os.environ["WALKTHROUGH_DATA"] = "shapes10"


@pytest.fixture
def project() -> Path:
    return Path(__file__).resolve().parents[1]
