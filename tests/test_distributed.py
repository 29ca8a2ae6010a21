"""Several processes train one network on CPUs, told what torchrun tells them, and by torchrun.

Starting processes takes longer than what they do, so a few groups of them do one thing after
another, each in a folder of its own; the tests look at what is in the folders.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tools import CPU, assert_same_weights, forkserver, shapes_dataset, small_net

from helpers import training
from helpers.augmentation import augmentation_steps, compose
from helpers.model import resnet18
from helpers.studies.train import main
from helpers.support.checkpoint import load_checkpoint, save_checkpoint
from helpers.support.distributed import process_group, rank_and_world_size
from helpers.support.loader import seed_epoch
from helpers.support.session import Session
from helpers.training import TrainConfig, TrainingState, fit, training_loader

SMALL = TrainConfig(epochs=3, batch_size=6, peak_lr=0.02, image_sizes=(16,), ema=0.9, seed=3)
STILL = {"padding": 0, "hole": 0, "degrees": 0, "flip": False, "mixed_precision": False}
PATIENCE_SECONDS = 300  # for what takes a few; a process that hangs is found by it


def draw(seed, size=26):
    return shapes_dataset(size, seed)


def one_image(_, size=24):
    data = draw(0)
    return replace(data, images=data.images[[0] * size], labels=np.arange(size) % 10)


def tiny_net(seed=0, exact=False):
    """A network.

    exact: in float64, for batch norm over three images and a few steps make much of what float32
    rounds off.
    """
    torch.manual_seed(seed)
    model = resnet18(width=16)
    if exact:
        model.double().register_forward_pre_hook(lambda _, images: images[0].double())
    return model


# ---- What each process does


def enrolled(rank, world_size, ports, tasks):
    """Do these tasks: (folder, function of it). Errors of all but the last are passed over."""
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world_size}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    for port, (folder, task) in zip(ports, tasks):
        os.environ["MASTER_PORT"] = f"{port}"
        folder.mkdir(exist_ok=True)
        passed_over = () if port == ports[-1] else (Exception, SystemExit)
        with suppress(*passed_over):
            task(folder)
        if torch.distributed.is_initialized():  # looked for among the files of one test
            (folder / "still connected").touch()


def start_together(world_size, tasks):
    """Some processes do these tasks together; returns the status with which each ended."""
    context = forkserver()
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in tasks]
    ports = [server.getsockname()[1] for server in servers]
    for server in servers:
        server.close()
    started = []
    for rank in range(world_size):
        arguments = (rank, world_size, ports, tasks)
        started.append(context.Process(target=enrolled, args=arguments))
        started[-1].start()
    for process in started:
        process.join(PATIENCE_SECONDS)
    statuses = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return statuses


def learn(
    folder,
    config=SMALL,
    path="run.pt",
    seeds=(0, 0, 0),
    change=draw,
    event=(None, 0, None),
    exact=False,
):
    """Call `fit`, and write down what came of it, or why nothing did.

    path, seeds: of its checkpoint and its data, by its number.
    event: (a process, a batch counted from 1, what is done then to the logits).
    """
    rank, (whose, batch, action) = int(os.environ["RANK"]), event
    inputs, rows = [], []
    model = tiny_net(rank, exact)  # all but the first start from weights that are to be replaced

    def before(module, images):
        if module.training:
            inputs.append(images[0])

    def after(module, images, logits):
        return action(logits) if rank == whose and len(inputs) == batch else None

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)
    checkpoint = folder / path.format(rank=rank)
    try:
        data = change(seeds[rank])
        history = fit(model, data, draw(1), config, CPU, checkpoint, log=rows.append)
    except (Exception, SystemExit) as error:
        (folder / f"ending-{rank}").write_text(f"{type(error).__name__}: {error}")
        if rank == 0 and checkpoint.exists():
            shutil.copy(checkpoint, folder / "stopped.pt")
        raise
    result = {"model": model.state_dict(), "history": history.to_dict("records")}
    torch.save(result | {"rows": rows, "inputs": inputs}, folder / f"result-{rank}.pt")


def train_by_command(folder):
    options = "--data shapes10 --train-size 24 --validation-size 6 --width 16 --epochs 1"
    options += " --batch-size 6 --image-sizes 16 --output"
    main([*options.split(), str(folder / os.environ["RANK"])])


def result(folder, rank=0):
    return torch.load(folder / f"result-{rank}.pt", weights_only=True)


def endings(folder, world_size):
    return [(folder / f"ending-{rank}").read_text() for rank in range(world_size)]


def send(number, _):
    signal.raise_signal(number)


def spoil(logits):
    return logits * float("nan")


def assert_same(first, second):
    first, second = result(first), result(second)
    assert_same_weights(first["model"], second["model"])
    for row, other in zip(first["history"], second["history"], strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


# ---- Two processes

HALVES = replace(SMALL, epochs=2, image_sizes=(32,), one_cycle=False, ema=0.0, **STILL)
PAIR = {
    "halves": partial(
        learn, config=HALVES, path="run-{rank}.pt", change=partial(draw, size=27), exact=True
    ),
    "one image": partial(
        learn, config=replace(SMALL, epochs=1, image_sizes=(32,)), change=one_image
    ),
    "command": train_by_command,
    "nan": partial(learn, config=replace(SMALL, batch_size=2), event=(1, 10, spoil)),
    "uneven": partial(learn, config=replace(SMALL, batch_size=7)),
    "other data": partial(learn, seeds=(0, 5)),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes leave in folders of these names, and the statuses with which they end."""
    folder = tmp_path_factory.mktemp("pair")
    tasks = [(folder / name, task) for name, task in PAIR.items()]
    return folder, start_together(2, tasks)


def taken_by_halves(model, config, data):
    """One process that takes the halves of each batch forward one after the other.

    Yields loss and accuracy of each epoch.
    """
    wide = [p for p in model.parameters() if p.ndim > 1]
    flat = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": wide, "weight_decay": config.weight_decay}, {"params": flat}]
    optimizer = torch.optim.SGD(groups, config.peak_lr, momentum=config.momentum, nesterov=True)
    for epoch in range(config.epochs):
        seed = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
        order = order[: len(data) // 2 * 2]
        losses, right = [], 0
        for batch in map(torch.Tensor.numpy, order.split(config.batch_size)):
            optimizer.zero_grad()
            before = {name: value.clone() for name, value in model.named_buffers()}
            for half in (batch[1::2], batch[0::2]):
                # The averages of batch norm are those of the first process alone, which takes
                # the half that comes second here.
                for name, value in model.named_buffers():
                    value.copy_(before[name])
                labels, logits = (
                    torch.from_numpy(data.labels[half]),
                    model.train()(data.tensor(half)),
                )
                loss = F.cross_entropy(
                    logits.float(), labels, label_smoothing=config.label_smoothing
                )
                (loss / 2).backward()
                losses.append(loss.item() * len(half))
                right += (logits.argmax(1) == labels).sum().item()
            optimizer.step()
        yield sum(losses) / len(order), right / len(order)


@pytest.mark.process
def test_two_processes_learn_what_one_learns_from_the_added_gradients_of_half_batches(pair):
    folder, data, model = pair[0] / "halves", draw(0, 27), tiny_net(exact=True)  # 27: one is left
    found, other, scores = result(folder), result(folder, rank=1), []
    labels = torch.from_numpy(draw(1).labels)
    for loss, accuracy in taken_by_halves(model, HALVES, data):
        logits = model.eval()(draw(1).tensor()).float()
        hits = (logits.argmax(1) == labels).double()
        scores.append([loss, accuracy, F.cross_entropy(logits, labels).item(), hits.mean().item()])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-9, atol=1e-12)
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    history = [[row[name] for name in names] for row in found["history"]]
    np.testing.assert_allclose(history, scores, rtol=1e-4)
    for name, _ in model.named_parameters():
        assert torch.equal(other["model"][name], found["model"][name])
    # One process logs, scores and writes.
    assert found["rows"] == found["history"] and other["rows"] == []
    assert all(np.isnan(row["validation_loss"]) for row in other["history"])
    written = {"run-0.pt", "run-0.pt.lock", "run-0.pt.previous"}
    assert {file.name for file in folder.iterdir()} == {"result-0.pt", "result-1.pt", *written}


@pytest.mark.process
def test_processes_that_fit_one_image_see_it_changed_apart(pair):
    folder = pair[0] / "one image"
    seen = torch.cat([image for rank in (0, 1) for image in result(folder, rank)["inputs"]])
    assert len(seen) == 24 and len(seen.unique(dim=0)) > 0.9 * 24


@pytest.mark.process
def test_command_in_several_processes_is_written_down_by_one(pair):
    folder = pair[0] / "command"
    assert [there.name for there in folder.iterdir()] == ["0"]
    written = {file.name for file in (folder / "0").iterdir()}
    assert {"checkpoint.pt", "history.csv", "weights.pt"} < written


@pytest.mark.process
def test_loss_that_is_nan_in_one_process_ends_all_alike(pair):
    folder = pair[0] / "nan"
    first, second = endings(folder, 2)
    assert first == second and first.startswith("FloatingPointError: diverged")
    assert not (folder / "run.pt").exists()


@pytest.mark.process
def test_batch_that_cannot_be_shared_evenly_is_refused(pair):
    said = "ValueError: batch_size must be a multiple of 2, the number of processes: got 7"
    assert endings(pair[0] / "uneven", 2) == [said] * 2


@pytest.mark.process
def test_processes_with_different_data_are_refused(pair):
    folder, statuses = pair
    first, second = endings(folder / "other data", 2)
    assert first == second and re.fullmatch("ValueError: .*give all of them the same data.*", first)
    assert statuses == [1, 1]


# ---- Three processes: of three, unlike two, the order of their sums tells

STOPS = [(0, 4), (1, 6)]  # a process, and a batch; the 4th is an epoch's last
KILLS = [0, 1]


def stop_name(whose, batch):
    return f"stop {whose} {batch}"


@pytest.fixture(scope="module")
def trio(tmp_path_factory):
    """A folder for each way to end a run, in which it has gone on to its end; and the statuses.

    One group of processes makes a whole run, and is stopped again and again, the last time for
    good; two more are killed. What they left is gone on with by fresh processes.
    """
    folder = tmp_path_factory.mktemp("trio")
    tasks = [(folder / "whole", learn)]
    for whose, batch in STOPS:
        event = (whose, batch, partial(send, signal.SIGTERM))
        tasks += [(folder / stop_name(whose, batch), partial(learn, event=event))]
        tasks += [(folder / stop_name(whose, batch), learn)]
    *tasks, to_go_on_with = tasks
    statuses = {"stopped": start_together(3, tasks)}
    left = [to_go_on_with]
    for whose in KILLS:
        event = (whose, 6, partial(send, signal.SIGKILL))
        task = (folder / f"kill {whose}", partial(learn, event=event))
        statuses[f"kill {whose}"] = start_together(3, [task])
        shutil.copy(folder / f"kill {whose}" / "run.pt", folder / f"kill {whose}" / "stopped.pt")
        left.append((folder / f"kill {whose}", learn))
    statuses["gone on"] = start_together(3, left)
    return folder, statuses


@pytest.mark.process
@pytest.mark.parametrize(("whose", "batch"), STOPS)
def test_signal_to_one_process_ends_all_after_the_batch_and_they_go_on_to_the_same_bits(
    trio, whose, batch
):
    folder, statuses = trio
    assert endings(folder / stop_name(whose, batch), 3) == ["SystemExit: 143"] * 3
    assert statuses["stopped"] == [143] * 3 and statuses["gone on"] == [0] * 3
    state = torch.load(folder / stop_name(whose, batch) / "stopped.pt", weights_only=True)
    expected = (0, 4) if batch == 4 else (1, 2)  # of finished epochs, and batches after them
    assert (len(state["history"]), state["step"]) == expected
    assert_same(folder / "whole", folder / stop_name(whose, batch))


@pytest.mark.process
@pytest.mark.parametrize("whose", KILLS)
def test_process_that_is_killed_ends_the_run_which_goes_on_to_the_same_bits(trio, whose):
    folder, statuses = trio
    expected = [1] * 3
    expected[whose] = -signal.SIGKILL
    assert statuses[f"kill {whose}"] == expected and statuses["gone on"] == [0] * 3
    state = torch.load(folder / f"kill {whose}" / "stopped.pt", weights_only=True)
    assert len(state["history"]) == 1
    assert_same(folder / "whole", folder / f"kill {whose}")


@pytest.mark.process
def test_torchrun_ends_with_a_checkpoint_and_one_line_and_fewer_processes_are_refused(
    tmp_path, project, capsys
):
    if sys.platform == "win32":
        pytest.skip("Windows cannot send SIGTERM")
    options = "--data shapes10 --train-size 60 --width 16 --epochs 1000 --batch-size 6".split()
    options += ["--image-sizes", "16", "--output", str(tmp_path / "out")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "-m", "helpers.training", *options]
    environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(torchrun, cwd=project, env=environment, **pipes)
    next(line for line in process.stdout if line.startswith("epoch"))  # one is done
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    stopped = r"stopped after (\d+) epochs and (\d+) batches, saved in \S*checkpoint\.pt: run this"
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert re.findall(stopped, said) == [(f"{len(state['history'])}", f"{state['step']}")]
    assert not (tmp_path / "out" / "weights.pt").exists()
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert "processes 2 there, 1 here" in capsys.readouterr().err


# ---- One process that is told that it is one of several


def enrol(monkeypatch, rank, world_size):
    monkeypatch.setenv("RANK", f"{rank}")
    monkeypatch.setenv("WORLD_SIZE", f"{world_size}")


def test_a_process_alone_is_the_first_of_one(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert rank_and_world_size() == (0, 1)
    with process_group():
        assert not torch.distributed.is_initialized()
    enrol(monkeypatch, 2, 3)
    assert rank_and_world_size() == (2, 3)


GPU_OF_ITS_OWN = (1, "cpu:gloo,cuda:nccl")  # nccl alone would make a GPU wait for who was stopped


@pytest.mark.parametrize(
    ("has_gpu", "wanted", "expected"),
    [
        (True, "", GPU_OF_ITS_OWN),
        (True, "cuda", GPU_OF_ITS_OWN),
        (True, "cpu", (None, "gloo")),
        (False, "", (None, "gloo")),
    ],
)
def test_each_process_has_a_gpu_of_its_own_unless_the_environment_says_cpu(
    monkeypatch, has_gpu, wanted, expected
):
    enrol(monkeypatch, 3, 4)
    monkeypatch.setenv("LOCAL_RANK", "1")  # of the second machine
    monkeypatch.setenv("WALKTHROUGH_DEVICE", wanted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    chosen, connected = [], []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", connected.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", connected.clear)
    with process_group():
        gpu, backend = expected
        assert chosen == [gpu] * (gpu is not None) and connected == [backend]
    assert connected == []


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_one_order_and_draw_their_augmentation_apart(monkeypatch, workers):
    images, labels = [], []
    data = replace(one_image(0, 25), labels=np.arange(25))  # 25: one is left
    monkeypatch.setattr(training, "loader_workers", lambda device: workers)
    for rank in (0, 1, 2):
        enrol(monkeypatch, rank, 3)
        loader = training_loader(data, SMALL, CPU)
        for epoch in (0, 1):
            seed_epoch(loader, 7, epoch)
            found = list(loader)
            assert [len(batch[1]) for batch in found] == [2] * 4
            images += [batch[0] for batch in found]
            labels.append(torch.cat([batch[1] for batch in found]))
    # Of one image: two in a hundred or so are changed alike.
    assert len(torch.cat(images).unique(dim=0)) > 0.9 * 3 * 2 * 8
    orders = [torch.stack(labels[epoch::2], 1).flatten() for epoch in (0, 1)]
    assert all(len(order.unique()) == 24 for order in orders)
    assert not torch.equal(*orders)
    order_seed = int(np.random.SeedSequence([7, 0]).generate_state(1)[0])
    alone = torch.randperm(25, generator=torch.Generator().manual_seed(order_seed))
    assert torch.equal(orders[0], alone[:24])


def test_fewer_images_than_processes_are_refused(monkeypatch):
    enrol(monkeypatch, 0, 3)
    with pytest.raises(ValueError, match="no images"):
        training_loader(draw(0, 2), SMALL, CPU)


def test_one_process_of_several_draws_what_it_would_draw_alone(monkeypatch):
    data, drawn = replace(one_image(0), labels=np.arange(24)), []
    for world_size in (1, 2):
        enrol(monkeypatch, 0, world_size)
        loader = training_loader(data, SMALL, CPU)
        seed_epoch(loader, 7, 1)
        drawn.append(loader.dataset[0][0])
    assert torch.equal(*drawn)
    seed = int(np.random.SeedSequence([7, 1]).generate_state(2)[1])
    pipeline = compose(augmentation_steps(fill=loader.dataset.pipeline.transforms[2].fill), seed)
    expected = torch.from_numpy(pipeline(image=data.images[0])["image"]).permute(2, 0, 1)
    assert torch.equal(drawn[0], expected)


@pytest.mark.parametrize("there", [1, 2])
@pytest.mark.parametrize("here", [1, 2])
def test_checkpoint_of_another_number_of_processes_is_refused(monkeypatch, tmp_path, there, here):
    sessions, path = [], tmp_path / "run.pt"
    for world_size in (there, here):
        enrol(monkeypatch, 0, world_size)
        state = TrainingState(small_net(), SMALL, 4, CPU)
        sessions.append(Session(state, {"setting": 1}, CPU, None, None, False))
    saved, resumed = sessions
    save_checkpoint(path, saved.identity, saved)
    if there == here:
        load_checkpoint(path, resumed.identity, resumed)
        return
    refusal = f"\\(processes {there} there, {here} here\\): delete it or name another file"
    with pytest.raises(ValueError, match=refusal) as caught:
        load_checkpoint(path, resumed.identity, resumed)
    assert "\n" not in str(caught.value)
