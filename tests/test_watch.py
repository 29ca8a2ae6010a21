"""What the README says of your machine: which files are written, and which address is asked for."""

import os
import socket
import tempfile

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tiny import RECIPE
from watch import Watch

from helpers import plots
from helpers.data import load_dataset
from helpers.evaluation import predict
from helpers.gradcam import GradCAM
from helpers.interactive import explorer, game, pages
from helpers.model import load_pretrained, resnet18, save_weights
from helpers.support.downloads import URL
from helpers.training import fit

WATCH = Watch()  # a process never gets rid of it, so there is one


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """Listens while a test runs, which may write its project's and temporary files only."""
    root, temporary = tmp_path / "project", tmp_path / "temporary"
    root.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(root))
    monkeypatch.delenv("WALKTHROUGH_DATA", raising=False)
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    WATCH.written.clear()
    WATCH.hosts.clear()
    WATCH.folders = [root, temporary]
    yield WATCH
    WATCH.folders = None


def test_the_series_writes_into_the_project_and_asks_for_one_address(watch, tmp_path, monkeypatch):
    root = tmp_path / "project"
    data = load_dataset("auto", train_size=60, test_size=60)  # asks for the download, in vain
    network = resnet18(width=16)
    fit(network, data.train, data.test, RECIPE, torch.device("cpu"), root / "runs" / "run.pt")
    save_weights(network, root / "runs" / f"{data.name}.pt", data.classes)
    network = load_pretrained(root / "runs" / f"{data.name}.pt", data.classes)
    predictions = predict(network, data.test)
    page = explorer.explore(network, {"test": (data.test, predictions)}, count=4)
    assert game.play(network, data.test, predictions, rounds=2).data != page.data
    figure = plots.heatmaps(GradCAM(network)(data.test.tensor([0])), ["a"])
    plots.save_readme_figure(figure, "figure.png", "cifar10")
    pages.write_page(pages.notebooks()[0], root / "html")
    assert (watch.written, set(watch.hosts)) == ([], {URL.split("/")[2]})
    made = {path.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file()}
    assert made == {"data", "runs", "images", "html"}


@pytest.mark.parametrize(
    "act",
    [
        lambda place: place.write_text("let out"),
        lambda place: os.open(place, os.O_CREAT | os.O_RDWR),
        lambda place: place.mkdir(),
        lambda place: place.symlink_to("x"),
        lambda place: (place.parent / "project").rename(place),
        lambda place: socket.create_connection(("192.0.2.1", 80)),
        lambda place: socket.getaddrinfo(b"example.invalid", 80),
    ],
)
def test_what_goes_elsewhere_is_heard_and_does_not_happen(watch, tmp_path, act):
    with pytest.raises(OSError):
        act(tmp_path / "elsewhere")
    assert len(watch.written + watch.hosts) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"project", "temporary"}


@pytest.mark.process
@pytest.mark.parametrize(
    "code", ["open(Path.home() / 'x', 'w')", "socket.create_connection(('192.0.2.1', 80))"]
)
def test_the_kernel_of_a_notebook_is_watched(code):
    source = f"import socket; from pathlib import Path; {code}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    with pytest.raises(CellExecutionError, match="not among|was asked for"):
        NotebookClient(notebook).execute()
