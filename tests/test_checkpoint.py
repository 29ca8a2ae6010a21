"""Checkpoints as files: what they hold, and which are refused."""

import io
import pickle
import subprocess
import zipfile
from dataclasses import fields, replace

import pytest
import torch
from tools import CPU, assert_same_weights, load_state, shapes_dataset, small_net, tiny_net

from helpers.support.checkpoint import load_checkpoint, save_checkpoint
from helpers.support.session import Session
from helpers.training import TrainConfig, TrainingState, fit, run_identity

SMALL_DISK = "8m"  # room for one checkpoint of `tiny_net`, not for two
SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)
IDENTITY = {"setting": 1}


@pytest.fixture
def data():
    return shapes_dataset(13)  # the last of three batches of 5 is smaller


def session_of(seed=0, epochs=0, config=SMALL):
    """A session that has come so far, or looks so."""
    state = TrainingState(small_net(seed), config, 3, CPU)
    session = Session(state, IDENTITY, CPU, None, None, False)
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


def test_run_without_an_average_keeps_none():
    assert session_of().state.parts().keys() == {"model", "optimizer", "scheduler", "scaler"}


def test_absent_checkpoint_is_an_empty_history_and_leaves_the_model(tmp_path):
    session = session_of()
    load_checkpoint(tmp_path / "none.pt", IDENTITY, session)
    assert session.history == []
    assert_same_weights(session.state.model, small_net())


def test_checkpoint_before_stays_as_the_previous_one(checkpoint):
    first = checkpoint.read_bytes()
    save_checkpoint(checkpoint, IDENTITY, session_of(1, epochs=2))
    assert checkpoint.with_name("run.pt.previous").read_bytes() == first != checkpoint.read_bytes()


def another(field, value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, {"stronger_classes": "ring", "class_weights": 0.5}.get(field, 16))
    return value + 1 if isinstance(value, int) else value / 2 + 0.25


@pytest.mark.parametrize("field", [field.name for field in fields(TrainConfig)])
def test_checkpoint_of_another_configuration_is_refused_by_name(data, tmp_path, field):
    path, old = tmp_path / "run.pt", getattr(SMALL, field)
    new = another(field, old)
    config = replace(SMALL, **{field: new})
    save_checkpoint(path, run_identity(data, None, SMALL), session_of())
    session = session_of(1)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path, run_identity(data, None, config), session)
    expected = f"{path} is from another run ({field} {old} there, {new} here): delete it"
    assert str(caught.value).startswith(f"{expected} or name another file; to train longer")
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


def frozen(model):
    model.norm.requires_grad_(False)
    return model


def strided(model):
    """The same weights, and another network, as a dilated one is."""
    model.conv.stride = (3, 3)
    return model


OTHER_RUNS = {
    "another image": lambda data: (small_net(), replace(data, images=255 - data.images), None),
    "another label": lambda data: (small_net(), replace(data, labels=data.labels[::-1]), None),
    "another order of images": lambda data: (small_net(), data.subset(slice(None, None, -1)), None),
    "fewer images": lambda data: (small_net(), data.subset(slice(12)), None),
    "another class": lambda data: (small_net(), renamed(data), None),
    "a validation set": lambda data: (small_net(), data, data),
    "a frozen part": lambda data: (frozen(small_net()), data, None),
    "other steps of the convolution": lambda data: (strided(small_net()), data, None),
    "a wider network": lambda data: (small_net(channels=17), data, None),
}


@pytest.mark.parametrize("other", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_checkpoint_of_another_network_or_other_data_is_refused_in_one_line(data, tmp_path, other):
    config, path = replace(SMALL, epochs=1), tmp_path / "run.pt"
    fit(small_net(), data, None, config, CPU, path)
    before, (model, *parts) = path.read_bytes(), other(data)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    names = "(images|classes|parameters|network)"
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
    assert len(load_state(path)["history"]) == 1
    assert sorted(p.name for p in small_disk.iterdir()) == ["run.pt", "run.pt.lock"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    fit(resumed, data, None, config, CPU, path)  # now that there is room
    fit(whole, data, None, config, CPU)
    assert_same_weights(whole, resumed)


def test_other_number_of_threads_is_told(checkpoint, capsys):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        load_checkpoint(checkpoint, IDENTITY, session_of())
    finally:
        torch.set_num_threads(threads)
    said = f"resumed with {threads + 1} threads, not {threads}: the last digits will differ\n"
    assert capsys.readouterr().out == said
    load_checkpoint(checkpoint, IDENTITY, session_of())
    assert capsys.readouterr().out == ""
