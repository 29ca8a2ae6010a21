"""Tests run on the generated data, without a network, and leave the working tree as it was.

The notebooks do so too. WALKTHROUGH_NOTEBOOK_DATA and WALKTHROUGH_NOTEBOOK_ROOT, if set, have
notebooks 3 to 5 run on other data and write elsewhere: continuous integration sets them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

settings.register_profile(
    "fixed", max_examples=30, derandomize=True, database=None, deadline=None, print_blob=True
)
settings.register_profile(
    "open", settings.get_profile("fixed"), max_examples=1000, derandomize=False
)
settings.load_profile("fixed")

os.environ["WALKTHROUGH_DATA"] = "shapes10"
os.environ["WALKTHROUGH_IMAGES"] = "100"  # in an explorer: as many as tests need
os.environ.setdefault("TQDM_DISABLE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore Ctrl-C, and `nohup` ignores SIGHUP; tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # Windows lacks it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


def is_notebook(item) -> bool:
    return item.path.suffix == ".ipynb"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if is_notebook(item):
            item.add_marker(pytest.mark.notebooks)


# Tests with these marks slow each other down: one worker runs all of a group, after each other.
GROUPS = {"browser": "alone", "wallclock": "alone", "process": "process"}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_finish(session):
    """Tell pytest-xdist which tests must follow each other in one worker.

    With `--dist loadfile` those are the tests whose ids have the same text before the first `::`: a
    file's, which share its fixtures, and a notebook's cells. Where a worker sends its ids to the
    scheduler, a group's name is put in front; the tests keep their ids. `--dist loadgroup` of
    pytest-xdist 3.8 changes the ids themselves, and pytest 9.2 takes no notice.
    """
    items = session.items
    if hasattr(session.config, "workerinput"):
        session.items = [SimpleNamespace(nodeid=id_with_group(item)) for item in items]
    try:
        return (yield)
    finally:
        session.items = items


def id_with_group(item) -> str:
    """A test's id, behind the name of its group if it is in one."""
    if item.get_closest_marker("apart"):
        return f"{item.name}::{item.nodeid}"
    groups = [group for mark, group in GROUPS.items() if item.get_closest_marker(mark)]
    if "pages" in getattr(item, "fixturenames", ()):  # written once, where the browser reads them
        groups.append("alone")
    return "::".join([*groups[:1], item.nodeid])


class NotebookRuns:
    """Hooks for notebooks, which a conftest does not reach: they lie outside its folder."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item):
        """Start the kernels of notebooks 3 to 5 on the data that the environment names for them."""
        with pytest.MonkeyPatch.context() as patch:
            if is_notebook(item) and item.path.name[:2] in ("03", "04", "05"):
                for name, value in notebook_environment().items():
                    patch.setenv(name, value)
            return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        """Run a notebook once: leave out those that test_browser.py runs in JupyterLab."""
        if CHROMIUM is None:
            return
        of_browser = [item for item in items if item.name.startswith("test_notebook[")]
        names = {item.callspec.params["name"] for item in of_browser}
        twice = [item for item in items if is_notebook(item) and item.path.stem in names]
        if twice:
            config.hook.pytest_deselected(items=twice)
            items[:] = [item for item in items if item not in twice]


def notebook_environment() -> dict[str, str]:
    """What WALKTHROUGH_NOTEBOOK_DATA and _ROOT ask for, if they are set."""
    values = {name: os.environ.get(f"WALKTHROUGH_NOTEBOOK_{name}") for name in ("DATA", "ROOT")}
    return {f"WALKTHROUGH_{name}": value for name, value in values.items() if value}


def pytest_configure(config):
    config.pluginmanager.register(NotebookRuns())
    if not hasattr(config, "workerinput"):  # workers have the environment of their parent
        watch_kernels(config)


# Notebook 02 trains on two fifths of them, and needs a minute more for all.
FEW_SHAPES = """import sys
sys.path.insert(0, {project!r})
from helpers import data
data.SHAPES_TRAIN_SIZE = 1000
del sys.path[0], sys, data
"""


def watch_kernels(config):
    """Let the kernel of every notebook run watch.py first, and draw fewer training images."""
    folder = tempfile.mkdtemp(prefix="ipython-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    startup = Path(folder, "profile_default", "startup")
    startup.mkdir(parents=True)
    script = Path(__file__).with_name("watch.py")
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    (startup / "watch.py").write_text(code, encoding="utf-8")
    few = FEW_SHAPES.format(project=str(script.parents[1]))
    (startup / "few_shapes.py").write_text(few, encoding="utf-8")
    os.environ["IPYTHONDIR"] = folder


@pytest.fixture
def project() -> Path:
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def pages(tmp_path_factory) -> Path:
    """A folder with the pages, made of the committed notebooks without running them."""
    folder = tmp_path_factory.mktemp("html")
    command = "from pathlib import Path; from helpers.interactive.pages import write_pages; "
    command += f"write_pages(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=Path(__file__).parents[1])
    return folder


@pytest.fixture
def small_disk(request, tmp_path):
    """A folder on a disk of its own, as large as the test module's SMALL_DISK says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = f"size={request.module.SMALL_DISK}"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
