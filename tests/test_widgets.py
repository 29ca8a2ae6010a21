import io
import sys
from types import ModuleType, SimpleNamespace

import pytest
from matplotlib.figure import Figure
from PIL import Image

from helpers.interactive import widgets
from helpers.interactive.widgets import as_png, has_front_end

VARIABLES = ("JPY_SESSION_NAME", "VSCODE_PID", "KAGGLE_KERNEL_RUN_TYPE")


@pytest.fixture
def nowhere(monkeypatch):
    """As in a kernel that no front end has started."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)


def test_a_kernel_without_a_front_end_shows_no_widgets(nowhere):
    assert not has_front_end()


@pytest.mark.parametrize("name", VARIABLES)
def test_jupyter_vs_code_and_kaggle_show_widgets(nowhere, monkeypatch, name):
    monkeypatch.setenv(name, "Interactive")
    assert has_front_end()


def test_a_run_that_kaggle_saves_shows_none(nowhere, monkeypatch):
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert not has_front_end()


def test_vs_code_shows_widgets_on_a_remote_machine_too(nowhere, monkeypatch):
    shell = SimpleNamespace(user_ns={"__vsc_ipynb_file__": "/home/me/04_gradcam_correct.ipynb"})
    monkeypatch.setattr(widgets, "get_ipython", lambda: shell)
    assert has_front_end()
    shell.user_ns.clear()
    assert not has_front_end()


def test_colab_shows_widgets(nowhere, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    assert has_front_end()


def test_a_figure_becomes_a_png_of_its_size():
    png = as_png(Figure(figsize=(3, 2)))
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.size) == ("PNG", (270, 180))  # 90 pixels an inch
