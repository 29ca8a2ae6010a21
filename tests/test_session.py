"""What surrounds the loop: checkpoints and resumption, signals to stop, locks, and runs killed."""

import errno
import io
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from tools import (
    CPU,
    SmallNet,
    assert_same_history,
    assert_same_weights,
    forkserver,
    require_main_thread,
    shapes_dataset,
    small_net,
)

from helpers.model import resnet18
from helpers.studies.train import main
from helpers.support import files
from helpers.support.checkpoint import load_checkpoint, save_checkpoint
from helpers.support.session import Session
from helpers.training import TrainConfig, TrainingState, fit, run_identity

SMALL_DISK = "8m"  # room for one checkpoint of `tiny_net`, not for two
SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)
IDENTITY = {"setting": 1}


@pytest.fixture
def data():
    return shapes_dataset(13)  # the last of three batches of 5 is smaller


def tiny_net(seed=0):
    torch.manual_seed(seed)
    return resnet18(width=16)


def load(path):
    return torch.load(path, weights_only=True)


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


def in_batch(number, action):
    """A hook that does something during the forward pass of that number, counted from 1."""
    seen = []

    def hook(module, inputs):
        seen.append(None)
        if len(seen) == number:
            action()

    return hook


def press_ctrl_c():
    require_main_thread()
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "batch", [2, 6, 7], ids=["within an epoch", "in its last batch", "in the first of the next"]
)
def test_ctrl_c_ends_after_the_batch_and_the_run_goes_on_to_the_same_bits(data, tmp_path, batch):
    config, path = replace(SMALL, ema=0.9), tmp_path / "run.pt"
    whole, stopped = small_net(), small_net()
    expected = fit(whole, data, None, config, CPU)
    stopped.register_forward_pre_hook(in_batch(batch, press_ctrl_c))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"saved in .*run\.pt: run this again") as caught:
        fit(stopped, data, None, config, CPU, path)
    assert signal.getsignal(signal.SIGINT) is before
    epochs, step = divmod(batch, 3) if batch % 3 else (batch // 3 - 1, 3)
    assert f"stopped after {epochs} epochs and {step} batches, " in str(caught.value)
    saved = load(path)
    assert (len(saved["history"]), saved["step"]) == (epochs, step)
    history = fit(small_net(seed=99), data, None, config, CPU, path)
    again = small_net(seed=98)  # a finished run loads its result
    assert fit(again, data, None, config, CPU, path).equals(history)
    assert_same_weights(whole, again)
    assert_same_history(history, expected)


def test_ctrl_c_without_a_checkpoint_says_that_nothing_is_saved(data):
    model = small_net()
    model.register_forward_pre_hook(in_batch(1, press_ctrl_c))
    with pytest.raises(KeyboardInterrupt, match="nothing is saved: give a checkpoint"):
        fit(model, data, None, SMALL, CPU)


def test_second_ctrl_c_interrupts_at_once(data, tmp_path):
    model = small_net()
    for _ in range(2):
        model.register_forward_pre_hook(in_batch(1, press_ctrl_c))
    model.register_forward_hook(lambda *_: pytest.fail("it went on"))
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, data, None, SMALL, CPU, tmp_path / "run.pt")
    assert not str(caught.value) and not (tmp_path / "run.pt").exists()


def test_ctrl_c_while_an_epoch_is_scored_or_logged_ends_after_it(data, tmp_path):
    logged = []
    with pytest.raises(KeyboardInterrupt, match="stopped after 1 epochs and 0 batches"):
        log = lambda row: logged.append(row) or press_ctrl_c()  # noqa: E731
        fit(small_net(), data, None, SMALL, CPU, tmp_path / "run.pt", log=log)
    assert len(logged) == 1 and len(load(tmp_path / "run.pt")["history"]) == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_the_process_after_the_batch_with_a_checkpoint(
    data, tmp_path, capsys, name
):
    if not hasattr(signal, name):
        pytest.skip("Windows has no such signal")
    require_main_thread()
    number, model, path = getattr(signal, name), small_net(), tmp_path / "run.pt"
    for _ in range(2):  # a closed terminal may send two
        model.register_forward_pre_hook(lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        fit(model, data, None, SMALL, CPU, path)
    assert ended.value.code == 128 + number and signal.getsignal(number) is before
    expected = f"stopped after 0 epochs and 1 batches, saved in {path}: run this again to go on\n"
    assert capsys.readouterr().err.endswith(expected)
    assert load(path)["step"] == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_signal_that_is_ignored_stays_so_as_under_nohup(data):
    require_main_thread()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = small_net()
        model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGHUP))
        assert len(fit(model, data, None, replace(SMALL, epochs=1), CPU)) == 1
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_training_in_another_thread_leaves_signals_alone(data):
    seen, ended, before = [], [], signal.getsignal(signal.SIGINT)
    model = small_net()
    model.register_forward_pre_hook(lambda *_: seen.append(signal.getsignal(signal.SIGINT)))

    def train():
        ended.append(fit(model, data, None, replace(SMALL, epochs=1), CPU))

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert len(ended[0]) == 1 and set(seen) == {before}


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
    saved = [load(p) for p in (path, f"{path}.previous")]
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


# ---- Checkpoints as files


def session_of(seed=0, epochs=0, config=SMALL):
    """A session that has come so far, or looks so."""
    session = Session(TrainingState(small_net(seed), config, 3, CPU), IDENTITY, CPU)
    session.history = [{"epoch": number + 1} for number in range(epochs)]
    return session


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    save_checkpoint(path, IDENTITY, session_of(epochs=1))
    return path


def assert_is_the_checkpoints(session):
    assert session.history == [{"epoch": 1}]
    assert_same_weights(session.state.model, small_net())


def test_checkpoint_holds_all_that_changes(tmp_path):
    config = replace(SMALL, ema=0.9)
    session = session_of(epochs=2, config=config)
    for _ in range(3):
        session.network(torch.rand(2, 3, 32, 32)).square().sum().backward()
        session.state.optimizer.step()
        session.state.scheduler.step()
        session.state.average.update_parameters(session.state.model)
    session.step, session.seen = 2, 10
    session.totals += torch.tensor([3.5, 4.0])
    save_checkpoint(tmp_path / "run.pt", IDENTITY, session)
    other = session_of(seed=5, config=config)
    load_checkpoint(tmp_path / "run.pt", IDENTITY, other)
    assert other.history == [{"epoch": 1}, {"epoch": 2}]
    assert (other.step, other.seen, other.totals.tolist()) == (2, 10, [3.5, 4.0])
    parts, others = session.state.parts(), other.state.parts()
    assert {"model", "optimizer", "scheduler", "scaler", "average"} == parts.keys()
    for name in ("model", "average"):
        assert_same_weights(parts[name], others[name])
    assert parts["scheduler"].state_dict() == others["scheduler"].state_dict()
    momenta = [part["optimizer"].state_dict()["state"] for part in (parts, others)]
    assert len(momenta[0]) == 6
    for number, state in momenta[0].items():
        assert torch.equal(state["momentum_buffer"], momenta[1][number]["momentum_buffer"])


def test_absent_checkpoint_is_an_empty_history_and_leaves_the_model(tmp_path):
    session = session_of()
    load_checkpoint(tmp_path / "none.pt", IDENTITY, session)
    assert session.history == []
    assert_same_weights(session.state.model, small_net())


def test_checkpoint_before_stays_as_the_previous_one(checkpoint):
    first = checkpoint.read_bytes()
    save_checkpoint(checkpoint, IDENTITY, session_of(1, epochs=2))
    assert checkpoint.with_name("run.pt.previous").read_bytes() == first != checkpoint.read_bytes()


def another(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, 7)
    return value + 1 if isinstance(value, int) else value / 2 + 0.25


@pytest.mark.parametrize("field", [field.name for field in fields(TrainConfig)])
def test_checkpoint_of_another_configuration_is_refused_by_name(data, tmp_path, field):
    path, old = tmp_path / "run.pt", getattr(SMALL, field)
    config = replace(SMALL, **{field: another(old)})
    save_checkpoint(path, run_identity(data, None, SMALL), session_of())
    session = session_of(1)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path, run_identity(data, None, config), session)
    expected = f"{path} is from another run ({field} {old} there, {another(old)} here): delete it"
    assert str(caught.value) == f"{expected} or name another file"
    assert_same_weights(session.state.model, small_net(1))


def test_each_setting_that_differs_is_named(checkpoint):
    with pytest.raises(ValueError, match=r"\(setting 1 there, 2 here; other None there, 3 here\)"):
        load_checkpoint(checkpoint, {"setting": 2, "other": 3}, session_of())


def test_checkpoint_from_before_a_setting_existed_is_refused_by_name(data, tmp_path):
    path, identity = tmp_path / "run.pt", run_identity(data, None, SMALL)
    older = {name: value for name, value in identity.items() if name != "alternate_flip"}
    save_checkpoint(path, older, session_of())
    with pytest.raises(ValueError, match=r"\(alternate_flip None there, False here\): delete it"):
        load_checkpoint(path, identity, session_of())


def renamed(data):
    return replace(data, classes=(*data.classes[:-1], "hat"))


OTHER_RUNS = {
    "another image": lambda data: (small_net(), replace(data, images=255 - data.images), None),
    "another label": lambda data: (small_net(), replace(data, labels=data.labels[::-1]), None),
    "another order of images": lambda data: (small_net(), data.subset(slice(None, None, -1)), None),
    "fewer images": lambda data: (small_net(), data.subset(slice(12)), None),
    "another class": lambda data: (small_net(), renamed(data), None),
    "a validation set": lambda data: (small_net(), data, data),
    "a wider network": lambda data: (small_net(channels=17), data, None),
}


@pytest.mark.parametrize("other", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_checkpoint_of_another_network_or_other_data_is_refused_in_one_line(data, tmp_path, other):
    config, path = replace(SMALL, epochs=1), tmp_path / "run.pt"
    fit(small_net(), data, None, config, CPU, path)
    before, (model, *parts) = path.read_bytes(), other(data)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    names = "(images|classes|parameters)"
    message = rf"run\.pt is from another run .*{names} .* there, .* here.*delete"
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, *parts, config, CPU, path)
    assert "\n" not in str(caught.value) and path.read_bytes() == before
    assert_same_weights(model, start)


def test_checkpoint_that_holds_nan_is_passed_over(checkpoint):
    session = session_of(1)
    session.state.model.norm.running_var[3] = float("nan")
    save_checkpoint(checkpoint, IDENTITY, session)
    resumed = session_of(2)
    load_checkpoint(checkpoint, IDENTITY, resumed)
    assert_is_the_checkpoints(resumed)


FOREIGN = {
    "model only": {"model": 1},
    "list": [1],
    "tensor": torch.zeros(3),
    "other identity": {"identity": "resnet"},
    "of an older version": {"config": {"epochs": 4}, "origin": {"steps": 12}, "history": []},
    "empty file": b"",
    "text": b"hello\n",
    "table": b"epoch,loss\n1,2\n",
}


def assert_refused(path):
    session = session_of()
    with pytest.raises(
        ValueError, match=r"^no checkpoint at .*run\.pt can be read: delete it"
    ) as caught:
        load_checkpoint(path, IDENTITY, session)
    assert "\n" not in str(caught.value)
    assert_same_weights(session.state.model, small_net())


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert_refused(path)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_truncated_checkpoint_is_refused_in_one_line(checkpoint, share):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    assert_refused(checkpoint)


@pytest.mark.parametrize("damage", ["cut", "one bit", "gone"])
def test_damaged_checkpoint_is_named_and_the_previous_one_used(checkpoint, capsys, damage):
    save_checkpoint(checkpoint, IDENTITY, session_of(1, epochs=2))
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content[:1000] if damage == "cut" else content)
    if damage == "gone":
        checkpoint.unlink()
    resumed = session_of(2)
    load_checkpoint(checkpoint, IDENTITY, resumed)
    said = f"{checkpoint} is not a checkpoint of this project, or is damaged\n"
    assert capsys.readouterr().out == ("" if damage == "gone" else said)
    assert_is_the_checkpoints(resumed)


def test_previous_checkpoint_is_the_one_that_is_named_where_it_is_of_another_run(checkpoint):
    save_checkpoint(checkpoint, IDENTITY, session_of())
    checkpoint.write_bytes(b"")
    with pytest.raises(ValueError, match=r"run\.pt\.previous is from another run"):
        load_checkpoint(checkpoint, {"setting": 2}, session_of())


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, target = tmp_path / "run.pt", tmp_path / "made_by_the_pickle"
    path.write_bytes(f"cos\nmkdir\n(V{target.as_posix()}\ntR.".encode())
    assert_refused(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the same bytes do run where nothing stops them
    assert target.exists()


def test_checkpoint_written_on_a_gpu_loads_without_one(checkpoint):
    old = zipfile.ZipFile(io.BytesIO(checkpoint.read_bytes()))
    new = zipfile.ZipFile(checkpoint, "w")
    with old, new:
        for name in old.namelist():  # "cpu" as the pickle spells it becomes "cuda:0"
            spelled = old.read(name).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            new.writestr(name, spelled)
    assert b"cuda:0" in checkpoint.read_bytes()
    session = session_of(seed=5)
    load_checkpoint(checkpoint, IDENTITY, session)
    assert_is_the_checkpoints(session)


def test_full_disk_is_named_and_leaves_the_checkpoint_there_is(data, small_disk):
    path, whole, resumed = small_disk / "run.pt", tiny_net(), tiny_net(5)
    config = replace(SMALL, epochs=2, image_sizes=(16,))
    message = r"cannot write .*run\.pt \(the disk is full\): make room"
    with pytest.raises(OSError, match=message) as caught:
        fit(tiny_net(), data, None, config, CPU, path)
    assert "\n" not in str(caught.value)
    assert len(load(path)["history"]) == 1
    assert sorted(p.name for p in small_disk.iterdir()) == ["run.pt", "run.pt.lock"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    fit(resumed, data, None, config, CPU, path)  # now that there is room
    fit(whole, data, None, config, CPU)
    assert_same_weights(whole, resumed)


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
    monkeypatch.setenv("RANK", f"{rank}")
    labels = torch.arange(12) % 3
    logits = torch.eye(3)[labels][:, [0, 1, 2]]
    state = TrainingState(small_net(), SMALL, 12, CPU)
    with Session(state, IDENTITY, CPU) as session:
        for label in session.batches(list(labels.split(1))):
            # Two of three are right, and their losses are 0, 1, 2, 0, 1, ...
            given = logits[:1] if label == 2 else logits[label]
            session.after_batch(label.float().mean(), given, label)
    (bar,) = bars
    assert bar.shown == [{"loss": "0.900", "accuracy": "0.700"}]
    # `disable=False` would undo TQDM_DISABLE.
    assert bar.options.get("disable") == (None if rank == 0 else True)


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
    """Start the command and send it a signal after some seconds; returns the process's number."""
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
    return process.pid


@pytest.mark.process
def test_run_that_is_killed_again_and_again_ends_at_the_same_bits(tmp_path, processes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rng = np.random.default_rng(0)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        pid = kill_somewhere(killed, processes, number, rng.uniform(0, 1.5))
    leftover = killed / f"checkpoint.pt.{pid}.tmp"
    leftover.write_bytes(b"half a checkpoint")  # as if it had been writing when it was killed
    for folder in (killed, whole):
        main(command(folder))
    states = [load(folder / "checkpoint.pt") for folder in (whole, killed)]
    for part in ("model", "average"):
        assert_same_weights(states[0][part], states[1][part])
    weights = [(folder / "weights.pt").read_bytes() for folder in (whole, killed)]
    assert weights[0] == weights[1]
    names = [sorted(p.name for p in folder.iterdir()) for folder in (whole, killed)]
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
    assert 0 <= load(tmp_path / "checkpoint.pt")["step"] <= 12


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOTSUP, "Operation not supported"), NotImplementedError("no flock")]
)
def test_disk_without_locks_is_trained_on_all_the_same(data, tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    config = replace(SMALL, epochs=1)
    monkeypatch.setattr(files.FileLock, "acquire", refuse)
    fit(small_net(), data, None, config, CPU, tmp_path / "run.pt")
    assert len(load(tmp_path / "run.pt")["history"]) == 1
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
