"""Several processes train one network on CPUs: told what torchrun tells them, and once started by torchrun itself."""

import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DistributedSampler

from helpers import shapes, training
from helpers.augmentation import augmentation_steps, compose
from helpers.data import Dataset, make_loader
from helpers.model import resnet18
from helpers.training import Run, TrainConfig, fit, in_one_line, load_checkpoint, main, save_checkpoint, seed_epoch

CPU = torch.device("cpu")
SMALL = TrainConfig(epochs=3, batch_size=6, peak_lr=0.02, image_sizes=(16,), ema=0.9, seed=3)
PATIENCE = 60  # seconds for what takes a few


def draw(seed, size=26):
    return Dataset(**shapes.generate(size, seed), classes=shapes.CLASSES)


def tiny_net(seed=0, exact=False):
    """exact: in float64, for batch norm over three images and a few steps make much of what float32 rounds off."""
    torch.manual_seed(seed)
    model = resnet18(width=16)
    if exact:
        model.double().register_forward_pre_hook(lambda _, images: images[0].double())
    return model


def enrolled(rank, world, port, function, *arguments):
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "TQDM_DISABLE": "1"}
    torch.set_num_threads(1)
    function(*arguments)


@pytest.fixture(scope="module")
def together():
    """Call a function in some processes that find each other; returns the status with which each of them ended."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("Windows can neither fork nor kill")
    context, started = multiprocessing.get_context("forkserver"), []
    context.set_forkserver_preload(["helpers.training"])

    def call(world, function, *arguments, **options):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank in range(world):
            started.append(context.Process(target=enrolled, args=(rank, world, port, partial(function, *arguments, **options))))
            started[-1].start()
        for process in started[-world:]:
            process.join(PATIENCE)
        return [process.exitcode for process in started[-world:]]

    yield call
    for process in started:
        process.kill()


def learn(folder, config, path="run.pt", seeds=(0, 0, 0), change=draw, event=(None, 0, None), exact=False):
    """What each process does: `fit`, and write down what came of it, or why nothing did.

    path, seeds: of its checkpoint and its data, by its number.  event: (a process, a batch counted from 1, what is done then to
    the logits).
    """
    rank, inputs, rows, (whose, batch, action) = int(os.environ["RANK"]), [], [], event
    model = tiny_net(rank, exact)  # all but the first start from weights that are to be replaced
    model.register_forward_pre_hook(lambda module, images: inputs.append(images[0]) if module.training else None)
    model.register_forward_hook(lambda _, __, logits: action(logits) if rank == whose and len(inputs) == batch else None)
    try:
        history = fit(model, change(seeds[rank]), draw(1), config, CPU, folder / path.format(rank=rank), log=rows.append)
    except Exception as error:
        (folder / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
        raise
    result = {"model": model.state_dict(), "history": history.to_dict("records"), "rows": rows, "inputs": inputs}
    torch.save(result, folder / f"result-{rank}.pt")


def result(folder, rank=0):
    return torch.load(folder / f"result-{rank}.pt", weights_only=True)


def send(number, _):
    signal.raise_signal(number)


def spoil(logits):
    return logits * float("nan")


def assert_same(first, second):
    (first, second) = (result(folder) for folder in (first, second))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    for row, other in zip(first["history"], second["history"], strict=True):
        assert row | {"seconds": 0} == other | {"seconds": 0}


def taken_by_halves(model, config, data):
    """One process that takes the halves of each batch forward one after the other; yields loss and accuracy of each epoch."""
    wide, flat = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": wide, "weight_decay": config.weight_decay}, {"params": flat}]
    optimizer = torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=True)
    for epoch in range(config.epochs):
        order = int(np.random.SeedSequence([config.seed, epoch]).generate_state(1)[0])
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(order))[: len(data) // 2 * 2]
        losses, right = [], 0
        for batch in map(torch.Tensor.numpy, order.split(config.batch_size)):
            optimizer.zero_grad()
            for half in (batch[1::2], batch[0::2]):
                first = {name: value.clone() for name, value in model.named_buffers()} if half[0] == batch[1] else None
                labels, logits = torch.from_numpy(data.labels[half]), model.train()(data.tensor(half)).float()
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                (loss / 2).backward()
                losses.append(loss.item() * len(half))
                right += (logits.argmax(1) == labels).sum().item()
                if first:  # the averages of batch norm are those of the first process, which took the other half
                    for name, value in model.named_buffers():
                        value.copy_(first[name])
            optimizer.step()
        yield sum(losses) / len(order), right / len(order)


def test_two_processes_learn_what_one_learns_from_the_added_gradients_of_half_batches(together, tmp_path):
    still = dict(padding=0, hole=0, degrees=0, flip=False, mixed_precision=False, one_cycle=False, ema=0.0)
    config, data, model = (
        replace(SMALL, epochs=2, image_sizes=(32,), **still),
        draw(0, 27),
        tiny_net(exact=True),
    )  # 27: one is left
    assert together(2, learn, tmp_path, config, "run-{rank}.pt", change=partial(draw, size=27), exact=True) == [0, 0]
    found = result(tmp_path)
    scores = []
    for loss, accuracy in taken_by_halves(model, config, data):
        logits, labels = model.eval()(draw(1).tensor()).float(), torch.from_numpy(draw(1).labels)
        scores.append(
            [loss, accuracy, F.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).double().mean().item()]
        )
    for name, value in model.state_dict().items():
        torch.testing.assert_close(found["model"][name], value, rtol=1e-9, atol=1e-12)
    names = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    np.testing.assert_allclose([[row[name] for name in names] for row in found["history"]], scores, rtol=1e-4)
    other = result(tmp_path, rank=1)
    assert all(torch.equal(other["model"][name], found["model"][name]) for name, _ in model.named_parameters())
    assert found["rows"] == found["history"] and other["rows"] == []  # one process logs, scores and writes
    assert all(np.isnan(row["validation_loss"]) for row in other["history"])
    written = {"run-0.pt", "run-0.pt.lock", "run-0.pt.previous"}
    assert {file.name for file in tmp_path.iterdir()} == {"result-0.pt", "result-1.pt", *written}


def one_image(_, size=24):
    data = draw(0)
    return replace(data, images=data.images[[0] * size], labels=np.arange(size) % 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_one_order_and_draw_their_augmentation_apart(workers):
    images, labels, data = [], [], replace(one_image(0), labels=np.arange(24))
    for rank in (0, 1, 2):
        train, generator = replace(data, transform=compose(augmentation_steps())), torch.Generator()
        sampler = DistributedSampler(train, 3, rank, drop_last=True)
        loader = make_loader(train, 2, generator, workers, sampler)
        for epoch in (0, 1):
            seed_epoch(generator, train, 7, epoch, sampler)
            found = list(loader)
            images += [batch[0] for batch in found]
            labels.append(torch.cat([batch[1] for batch in found]))
    assert len(torch.cat(images).unique(dim=0)) > 0.9 * 3 * 2 * 8  # of one image: two in a hundred or so are changed alike
    orders = [torch.stack(labels[epoch::2], 1).flatten() for epoch in (0, 1)]
    assert all(torch.equal(order.sort()[0], torch.arange(24)) for order in orders) and not torch.equal(*orders)


def test_one_process_of_several_draws_what_it_would_draw_alone():
    data, drawn = replace(one_image(0), labels=np.arange(24)), []
    for sampler in (None, DistributedSampler(data, 2, 0, drop_last=True)):
        train = replace(data, transform=compose(augmentation_steps()))
        seed_epoch(torch.Generator(), train, 7, 1, sampler)
        drawn.append(train[0][0])
    assert torch.equal(*drawn)


def test_processes_that_fit_one_image_see_it_changed_apart(together, tmp_path):
    assert together(2, learn, tmp_path, replace(SMALL, epochs=1, image_sizes=(32,)), change=one_image) == [0, 0]
    seen = torch.cat([image for rank in (0, 1) for image in result(tmp_path, rank)["inputs"]])
    assert len(seen) == 24 and len(seen.unique(dim=0)) > 0.9 * 24


@pytest.fixture(scope="module")
def whole(together, tmp_path_factory):
    """What three processes write that nothing disturbs: of three, unlike two, the order of their sums tells."""
    folder = tmp_path_factory.mktemp("whole")
    assert together(3, learn, folder, SMALL) == [0, 0, 0]
    return folder


@pytest.mark.parametrize("whose", [0, 1])
@pytest.mark.parametrize("batch", [4, 6], ids=["the last of an epoch", "within one"])
def test_signal_to_one_process_ends_all_after_the_batch_and_they_go_on_to_the_same_bits(together, tmp_path, whole, whose, batch):
    assert together(3, learn, tmp_path, SMALL, event=(whose, batch, partial(send, signal.SIGTERM))) == [143] * 3
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert (len(state["history"]), state["step"]) == ((0, 4) if batch == 4 else (1, 2))
    assert together(3, learn, tmp_path, SMALL) == [0, 0, 0]
    assert_same(whole, tmp_path)


@pytest.mark.parametrize("whose", [0, 1])
def test_process_that_is_killed_ends_the_run_which_goes_on_to_the_same_bits(together, tmp_path, whole, whose):
    start = time.monotonic()
    expected = [1] * 3
    expected[whose] = -signal.SIGKILL
    assert together(3, learn, tmp_path, SMALL, event=(whose, 6, partial(send, signal.SIGKILL))) == expected
    assert time.monotonic() - start < 20
    assert len(torch.load(tmp_path / "run.pt", weights_only=True)["history"]) == 1
    assert together(3, learn, tmp_path, SMALL) == [0, 0, 0]
    assert_same(whole, tmp_path)


def test_loss_that_is_nan_in_one_process_ends_all_alike(together, tmp_path):
    assert together(2, learn, tmp_path, replace(SMALL, batch_size=2), event=(1, 10, spoil)) == [1, 1]
    assert all((tmp_path / f"error-{rank}").read_text().startswith("FloatingPointError: diverged") for rank in (0, 1))
    assert not (tmp_path / "run.pt").exists()


def test_processes_with_different_data_are_refused(together, tmp_path):
    assert together(2, learn, tmp_path, SMALL, seeds=(0, 5)) == [1, 1]
    messages = [(tmp_path / f"error-{rank}").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1] and re.fullmatch("ValueError: .*give all of them the same data.*", messages[0])


def test_batch_that_cannot_be_shared_evenly_is_refused(together, tmp_path):
    assert together(2, learn, tmp_path, replace(SMALL, batch_size=7)) == [1, 1]
    assert "batch_size must be a multiple of 2, the number of processes: got 7" in (tmp_path / "error-0").read_text()


@pytest.mark.parametrize("there", [1, 2])
@pytest.mark.parametrize("here", [1, 2])
def test_checkpoint_of_another_number_of_processes_is_refused(tmp_path, there, here):
    saved, resumed = (Run(tiny_net(), SMALL, 4, CPU, where=(0, world)) for world in (there, here))
    if there == 1:  # as it was written before there could be more
        del saved.origin["processes"]
    save_checkpoint(tmp_path / "run.pt", SMALL, saved)
    if there == here:
        return load_checkpoint(tmp_path / "run.pt", SMALL, resumed)
    with pytest.raises(ValueError, match=f"processes {there} there, {here} here.*delete it or name another file") as caught:
        load_checkpoint(tmp_path / "run.pt", SMALL, resumed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("world", "rank", "error", "waits"),
    [(2, 0, ValueError, False), (2, 1, ValueError, True), (2, 0, RuntimeError, True), (1, 0, RuntimeError, False)],
)
def test_error_that_another_process_may_report_or_have_caused_waits_for_its_end(monkeypatch, capsys, world, rank, error, waits):
    slept = []
    monkeypatch.setattr(training.time, "sleep", slept.append)
    monkeypatch.setenv("WORLD_SIZE", f"{world}")
    monkeypatch.setenv("RANK", f"{rank}")
    with pytest.raises(SystemExit, match="2"), in_one_line():
        raise error("make room")
    assert bool(slept) == waits and capsys.readouterr().err == "make room\n"


def train_by_command(folder):
    options = "--data shapes10 --train-size 24 --validation-size 6 --width 16 --epochs 1 --batch-size 6 --image-sizes 16".split()
    main([*options, "--output", str(folder / os.environ["RANK"])])


def test_command_in_several_processes_is_written_down_by_one(together, tmp_path):
    assert together(2, train_by_command, tmp_path) == [0, 0]
    assert [folder.name for folder in tmp_path.iterdir()] == ["0"]
    assert {"checkpoint.pt", "history.csv", "weights.pt"} < {file.name for file in (tmp_path / "0").iterdir()}


def test_torchrun_ends_with_a_checkpoint_and_one_line_and_another_number_of_processes_is_refused(tmp_path, project, capsys):
    if sys.platform == "win32":
        pytest.skip("Windows cannot send SIGTERM")
    options = "--data shapes10 --train-size 60 --width 16 --epochs 1000 --batch-size 6 --image-sizes 16".split()
    options += ["--output", str(tmp_path / "out")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen([*torchrun, "-m", "helpers.training", *options], cwd=project, env=environment, **pipes)
    process.stdout.readline()  # an epoch is done
    process.terminate()
    _, said = process.communicate(timeout=PATIENCE)
    lines = re.findall(r"stopped after (\d+) epochs and (\d+) batches, saved in \S*checkpoint\.pt: run this again", said)
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert lines == [(f"{len(state['history'])}", f"{state['step']}")] and not (tmp_path / "out" / "weights.pt").exists()
    with pytest.raises(SystemExit, match="2"):
        main(options)
    assert "processes 2 there, 1 here" in capsys.readouterr().err
