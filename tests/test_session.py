"""What surrounds the loop: resumption, finite numbers, locks, and runs killed."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from tools import (
    CPU,
    SmallNet,
    assert_same_history,
    assert_same_weights,
    forkserver,
    in_batch,
    load_state,
    press_ctrl_c,
    shapes_dataset,
    small_net,
    tiny_net,
)

from helpers.studies.train import main
from helpers.support import files
from helpers.support.session import Session
from helpers.training import TrainConfig, TrainingState, fit

SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)
IDENTITY = {"setting": 1}


@pytest.fixture
def data():
    return shapes_dataset(13)  # the last of three batches of 5 is smaller


# ---- Going on where a run was stopped


def stop_at(epoch):
    def log(row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return log


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_interrupted_run_goes_on_as_if_nothing_had_happened(data, tmp_path, ema):
    config, path = replace(SMALL, epochs=3, ema=ema), tmp_path / "new folder" / "run.pt"
    whole, resumed = tiny_net(), tiny_net(seed=99)  # another start, to be overwritten
    expected = fit(whole, data, data, config, CPU)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_net(), data, data, config, CPU, path, log=stop_at(2))  # once epoch 2 is saved
    logged = []
    history = fit(resumed, data, data, config, CPU, path, log=logged.append)
    assert [row["epoch"] for row in logged] == [3]
    assert_same_weights(whole, resumed)
    assert_same_history(history, expected)
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["run.pt", "run.pt.lock", "run.pt.previous"]


# ---- Numbers that are not finite


def spoil(model, where, batch):
    """Make the loss of one batch NaN, or, from its gradient on, a weight.

    In the second case the batch's own loss is a number still.
    """
    seen = []

    def hook(*arguments):
        seen.append(None)
        return arguments[-1] * (float("nan") if len(seen) == batch else 1)

    owner = model.register_forward_hook if where == "loss" else model.fc.bias.register_hook
    owner(hook)


@pytest.mark.parametrize(
    ("where", "batch"), [("loss", 7), ("loss", 9), ("weight", 7), ("weight", 9)]
)
def test_nan_ends_the_run_and_leaves_the_last_finite_checkpoint(data, tmp_path, where, batch):
    path = tmp_path / "run.pt"
    for checkpoint in (path, None):
        model = small_net()
        spoil(model, where, batch)
        message = r"^diverged at a learning rate of \d\S*: lower peak_lr$"
        with pytest.raises(FloatingPointError, match=message):
            fit(model, data, None, SMALL, CPU, checkpoint)
    saved = [load_state(p) for p in (path, f"{path}.previous")]
    assert [len(state["history"]) for state in saved] == [2, 1]
    assert all(value.isfinite().all() for state in saved for value in state["model"].values())


def test_nan_of_a_weight_is_found_before_the_network_is_scored(data):
    model = small_net()
    spoil(model, "weight", 3)  # the last batch of an epoch
    with pytest.raises(FloatingPointError):
        fit(model, data, data, SMALL, CPU)


def test_nan_is_found_within_ten_batches():
    model, seen = small_net(), []
    model.register_forward_hook(lambda *_: seen.append(None))
    spoil(model, "loss", 2)
    with pytest.raises(FloatingPointError):
        fit(model, shapes_dataset(30), None, replace(SMALL, batch_size=2), CPU)
    assert len(seen) == 10


def test_nan_of_a_stopped_run_is_not_saved(data, tmp_path):
    model = small_net()
    model.register_forward_pre_hook(in_batch(1, press_ctrl_c))
    spoil(model, "loss", 1)
    with pytest.raises(FloatingPointError):
        fit(model, data, None, SMALL, CPU, tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


# ---- What a session shows


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_shows_a_bar_with_loss_and_accuracy_so_far(monkeypatch, rank):
    bars = []

    class Bar(list):
        def __init__(self, loader, **options):
            super().__init__(loader)
            self.options, self.shown = options, []
            bars.append(self)

        def set_postfix(self, text, **_):
            self.shown.append(text)

    monkeypatch.setattr("helpers.support.session.tqdm", Bar)
    monkeypatch.setattr("helpers.support.distributed.rank_and_world_size", lambda: (rank, 1))
    labels = torch.arange(12) % 3
    logits = torch.eye(3)[labels][:, [0, 1, 2]]
    state = TrainingState(small_net(), SMALL, 12, CPU)
    with Session(state, IDENTITY, CPU, None, None, False) as session:
        for label in session.batches(list(labels.split(1))):
            # Two of three are right, and their losses are 0, 1, 2, 0, 1, ...
            given = logits[:1] if label == 2 else logits[label]
            session.after_batch(label.float().mean(), given, label)
    (bar,) = bars
    assert bar.shown == [{"loss": "0.900", "accuracy": "0.700"}]
    # `disable=False` would undo TQDM_DISABLE.
    assert bar.options.get("disable") == (None if rank == 0 else True)


def test_losses_are_added_up_to_more_digits_than_those_of_a_batch():
    state = TrainingState(small_net(), SMALL, 2, CPU)
    logits, label = torch.eye(10)[:1], torch.tensor([0])
    with Session(state, IDENTITY, CPU, None, None, False) as session:
        for loss in (2.0**24, 1.0):  # float32 has no number for their sum
            session.after_batch(torch.tensor(loss), logits, label)
        assert session.mean_scores() == ((2**24 + 1) / 2, 1)


# ---- One run at a time, and runs that are killed


def command(folder, epochs=3):
    options = f"--data shapes10 --train-size 60 --width 16 --epochs {epochs} --batch-size 5"
    return [*options.split(), *"--image-sizes 16 --ema 0.9 --output".split(), str(folder)]


@pytest.fixture
def processes():
    """Start `main` in processes of their own, each from one that has imported PyTorch already."""
    context = forkserver()
    started = []

    def start(arguments):
        started.append(context.Process(target=main, args=(arguments,)))
        started[-1].start()
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for(path, process):
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.02)


def kill_somewhere(folder, start, number, delay):
    """Start the command and send it a signal after some seconds."""
    lock = folder / "checkpoint.pt.lock"
    lock.unlink(missing_ok=True)  # of the run before: to see when this one has begun
    process = start(command(folder))
    wait_for(lock, process)
    process.join(delay)
    with suppress(ProcessLookupError):  # it has ended by then on a fast machine
        os.kill(process.pid, number)
    process.join()
    # The signal came before the first batch, or in time, or after the last one.
    assert process.exitcode in (-number, 128 + number, 0)


@pytest.mark.process
def test_run_that_is_killed_again_and_again_ends_at_the_same_bits(tmp_path, processes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rng = np.random.default_rng(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        kill_somewhere(killed, processes, number, rng.uniform(0, 1.5))
    for folder in (killed, whole):
        main(command(folder))
    states = [load_state(folder / "checkpoint.pt") for folder in (whole, killed)]
    for part in ("model", "average"):
        assert_same_weights(states[0][part], states[1][part])
    weights = [(folder / "weights.pt").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    # What it was writing when it was killed is removed after a second: see test_files.py.
    names = [sorted(p.name for p in folder.glob("[!.]*")) for folder in (whole, killed)]
    assert names[0] == names[1]


@pytest.mark.process
def test_run_that_a_cluster_ends_shuts_a_second_one_out_until_then(tmp_path, project, capsys):
    arguments = [sys.executable, "-m", "helpers.training", *command(tmp_path, epochs=1000)]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(arguments, cwd=project, env=environment, **pipes)
    process.stdout.readline()  # an epoch is done
    with pytest.raises(SystemExit, match="2"):
        main(command(tmp_path, epochs=1000))
    refusal = r"another run is writing .*checkpoint\.pt: wait for its end, or name another place"
    assert re.fullmatch(refusal, capsys.readouterr().err.splitlines()[-1])
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143
    stopped = r"stopped after \d+ epochs and \d+ batches, saved in .*checkpoint\.pt: run this again"
    assert re.fullmatch(stopped + r" to go on\n", said)
    with pytest.raises(SystemExit, match="2"):
        main(command(tmp_path))
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert "epochs 1000 there, 3 here" in refusal  # not locked, though refused
    files_there = {p.name for p in tmp_path.iterdir()} - {"checkpoint.pt.previous"}
    assert files_there == {"checkpoint.pt", "checkpoint.pt.lock"}


@pytest.mark.process
def test_closed_terminal_stops_the_command_with_a_checkpoint(tmp_path, project):
    pty = pytest.importorskip("pty")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(project)
        os.environ.pop("TQDM_DISABLE", None)
        program = [sys.executable, "-m", "helpers.training"]
        os.execv(sys.executable, [*program, *command(tmp_path, epochs=1000)])
    while not (tmp_path / "checkpoint.pt").exists():
        os.read(terminal, 1000)
    os.close(terminal)  # from here on it cannot write a word
    _, status = os.waitpid(child, 0)
    # 120: Python could not flush its last words.
    assert os.waitstatus_to_exitcode(status) in (129, 120)
    assert 0 <= load_state(tmp_path / "checkpoint.pt")["step"] <= 12


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOTSUP, "Operation not supported"), NotImplementedError("no flock")]
)
def test_disk_without_locks_is_trained_on_all_the_same(data, tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    config = replace(SMALL, epochs=1)
    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    fit(small_net(), data, None, config, CPU, tmp_path / "run.pt")
    assert len(load_state(tmp_path / "run.pt")["history"]) == 1
    error.errno = errno.EROFS
    with pytest.raises(type(error)):  # before an epoch is lost
        fit(small_net(), data, None, config, CPU, tmp_path / "other.pt", log=pytest.fail)


def test_lock_is_released_where_a_checkpoint_is_refused(data, tmp_path):
    path, config = tmp_path / "run.pt", replace(SMALL, epochs=1)
    fit(small_net(), data, None, config, CPU, path)
    for _ in range(2):
        with pytest.raises(ValueError, match="is from another run"):
            fit(SmallNet(17), data, None, config, CPU, path)
    fit(small_net(), data, None, config, CPU, path)
