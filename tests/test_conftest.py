import shutil
import subprocess
import sys

import pytest

MODULE = """
import os
import time
from pathlib import Path
import pytest

def note():
    time.sleep(0.05)  # long enough for the other worker to take a test
    name = os.environ["PYTEST_CURRENT_TEST"].split()[0].replace("::", "-")
    Path(name).write_text(os.environ["PYTEST_XDIST_WORKER"])

@pytest.mark.process
def test_process(): note()

@pytest.mark.browser
def test_browser(): note()

@pytest.mark.wallclock
@pytest.mark.parametrize("text", ["a::b@c"])
def test_wallclock(text): note()

def test_first(): note()

def test_second(): note()
"""


@pytest.mark.process
def test_tests_that_slow_each_other_down_follow_each_other_in_one_worker(project, tmp_path):
    shutil.copy(project / "tests" / "conftest.py", tmp_path)
    shutil.copy(project / ".pytest.ini", tmp_path)
    for name in "abcdef":
        (tmp_path / f"test_{name}.py").write_text(MODULE)
    command = [sys.executable, "-m", "pytest", "-n", "2", "."]
    subprocess.run(command, cwd=tmp_path, check=True)

    def workers(pattern):
        return {file.read_text() for file in tmp_path.glob(pattern)}

    assert len(workers("test_?.py-test_process")) == 1
    assert len(workers("test_?.py-test_browser") | workers("test_?.py-test_wallclock*")) == 1
    for name in "abcdef":  # they share the fixtures of their module
        assert len(workers(f"test_{name}.py-test_*[td]")) == 1
    assert len(workers("*-test_*")) == 2
