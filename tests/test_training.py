import errno
import io
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from helpers import shapes, training
from helpers.augmentation import augmentation_steps, compose
from helpers.data import Dataset, make_loader
from helpers.model import load_pretrained, resnet18
from helpers.training import (
    Run,
    TrainConfig,
    augmented,
    compiled,
    evaluate,
    fit,
    load_checkpoint,
    main,
    make_criterion,
    make_optimizer,
    resize,
    save_checkpoint,
    seed_epoch,
    train_one_epoch,
    train_step,
)

SMALL_DISK = "8m"  # room for one checkpoint of `tiny_net`, not for two
CPU = torch.device("cpu")
SMALL = TrainConfig(epochs=4, batch_size=5, image_sizes=(16, 16, 24), seed=3)


@pytest.fixture
def data():
    return Dataset(**shapes.generate(13, seed=0), classes=shapes.CLASSES)  # 13: the last of three batches of 5 is smaller


def tiny_net(seed=0):
    torch.manual_seed(seed)
    return resnet18(width=16)  # the least: oneDNN corrupts memory in narrower channels_last nets


def run_of(model, config=SMALL, steps_per_epoch=3):
    return Run(model, config, steps_per_epoch, CPU)


def test_two_epochs_are_sgd_nesterov_on_the_smoothed_loss_computed_in_numpy():
    config = TrainConfig(momentum=0.8, weight_decay=0.3, label_smoothing=0.2, peak_lr=0.5, mixed_precision=False)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (7, 3, 2, 2), dtype=np.uint8), rng.integers(0, 3, 7)
    batches = [slice(0, 4), slice(4, 7)]  # of unequal size: a mean over batches is not the mean over images
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    weight, bias = (p.detach().double().numpy().copy() for p in model.parameters())
    run = run_of(model, config)
    run.optimizer = make_optimizer(model, config)  # without the schedule that the run has put on its own
    run.scheduler = torch.optim.lr_scheduler.LambdaLR(run.optimizer, lambda step: 1.0)
    loader = [(torch.from_numpy(images[b]), torch.from_numpy(labels[b])) for b in batches]
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    velocity_w, velocity_b = 0.0, 0.0
    for _ in range(2):
        got = train_one_epoch(run, model, loader, criterion, 2, CPU)
        losses, hits = [], []
        for b in batches:
            x = images[b].reshape(-1, 12) / 255
            e = np.exp(x @ weight.T + bias)
            p, target = e / e.sum(1, keepdims=True), 0.8 * np.eye(3)[labels[b]] + 0.2 / 3
            losses += list(-(target * np.log(p)).sum(1))
            hits += list(p.argmax(1) == labels[b])
            gradient_w = (p - target).T @ x / len(x) + 0.3 * weight  # weight decay: on the matrix, not on the bias
            gradient_b = (p - target).mean(0)
            velocity_w, velocity_b = 0.8 * velocity_w + gradient_w, 0.8 * velocity_b + gradient_b
            weight = weight - 0.5 * (gradient_w + 0.8 * velocity_w)
            bias = bias - 0.5 * (gradient_b + 0.8 * velocity_b)
        assert got["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        assert got["accuracy"] == pytest.approx(np.mean(hits))
    np.testing.assert_allclose(model[1].weight.detach().numpy(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model[1].bias.detach().numpy(), bias, rtol=1e-4, atol=1e-6)


def test_class_weights_make_a_mean_over_images_of_the_smoothed_loss_times_their_share_computed_in_numpy(data):
    rng, labels = np.random.default_rng(0), np.array([0, 0, 0, 1, 2, 2])
    few = replace(data.subset(np.arange(6)), labels=labels, classes=("a", "b", "c"))
    config = replace(SMALL, class_weights=(1.0, 2.0, 6.0), label_smoothing=0.3, peak_lr=1e-12, mixed_precision=False)
    model, criterion = nn.Linear(4, 3), make_criterion(few, config)
    images, order = rng.integers(0, 256, (6, 4, 1, 1), dtype=np.uint8), [[5, 0, 1, 3], [2, 4]]  # of unequal size
    forward = lambda x: model(x.flatten(1))  # noqa: E731
    loader = [(torch.from_numpy(images[batch]), torch.from_numpy(labels[batch])) for batch in order]
    weight, bias = (p.detach().double().numpy() for p in model.parameters())
    z = images.reshape(6, 4) / 255 @ weight.T + bias
    target = 0.7 * np.eye(3)[labels] + 0.1
    each = -(target * (z - np.log(np.exp(z).sum(1, keepdims=True)))).sum(1)
    share = np.array([1, 1, 1, 2, 6, 6]) * 6 / 17  # their mean over the training images is 1
    got = train_one_epoch(run_of(model, config), forward, loader, criterion, 1, CPU)
    assert got["loss"] == pytest.approx((share * each).mean(), rel=1e-5)  # over images, not over batches


@pytest.mark.parametrize("weight", [1.0, 0.7])
def test_equal_class_weights_train_to_the_same_bits_as_none_and_unequal_ones_do_not(data, weight):
    nets = tiny_net(), tiny_net(), tiny_net()
    config = replace(SMALL, epochs=1)
    unequal = (2.0, *[1.0] * 9)
    histories = [
        fit(net, data, None, replace(config, class_weights=w), CPU) for net, w in zip(nets, ((), (weight,) * 10, unequal))
    ]
    assert histories[0].train_loss[0] == histories[1].train_loss[0] != histories[2].train_loss[0]
    assert torch.equal(nets[0].fc.weight, nets[1].fc.weight) and not torch.equal(nets[0].fc.weight, nets[2].fc.weight)


def test_nearly_equal_class_weights_give_nearly_the_same_loss_and_gradient(data):
    logits, labels = torch.randn(13, 10, generator=torch.Generator().manual_seed(0)), torch.from_numpy(data.labels)
    found = []
    for weights in ((), (*[1.0] * 9, 1 + 1e-7)):
        leaf = logits.clone().requires_grad_()
        loss = make_criterion(data, replace(SMALL, class_weights=weights))(leaf, labels)
        loss.backward()
        found.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*found)


def test_named_classes_are_augmented_more_strongly_and_the_others_as_without(data):
    plain, mixed = augmented(data, SMALL), augmented(data, replace(SMALL, harder=("ring", "star")))
    assert plain.harder == {} and set(mixed.harder) == {data.classes.index("ring"), data.classes.index("star")}
    steps, stronger = mixed.transform.transforms, mixed.harder[data.classes.index("ring")].transforms
    assert [type(step) for step in stronger] == [type(step) for step in steps] == [type(s) for s in plain.transform.transforms]
    assert (steps[0].padding, steps[2].hole_height_range, steps[3].limit) == (4, (8, 8), (-7, 7))
    assert (stronger[0].padding, stronger[2].hole_height_range, stronger[3].limit) == (6, (12, 12), (-22, 22))
    assert data.harder == {} and data.transform is None


def test_only_tensors_of_two_dimensions_decay():
    model = tiny_net()
    decay = {id(p): group["weight_decay"] for group in make_optimizer(model, SMALL).param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, module in model.named_modules():
        expected = SMALL.weight_decay if isinstance(module, (nn.Conv2d, nn.Linear)) else 0.0
        assert all(decay[id(p)] == (0.0 if n == "bias" else expected) for n, p in module.named_parameters(recurse=False)), name


def test_evaluate_is_the_unsmoothed_loss_per_image_in_eval_mode(data):
    model = tiny_net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    got = evaluate(model, make_loader(data, 5), CPU)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    p = model.eval()(data.tensor()).double().softmax(1).detach().numpy()
    assert got["loss"] == pytest.approx(log_loss(data.labels, p, labels=range(10)), rel=1e-5)
    assert got["accuracy"] == pytest.approx(accuracy_score(data.labels, p.argmax(1)))


def learning_rates(config, steps_per_epoch):
    run = run_of(nn.Linear(2, 2), config, steps_per_epoch)
    optimizer, scheduler = run.optimizer, run.scheduler
    rates = []
    for _ in range(config.epochs * steps_per_epoch):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert [group["momentum"] for group in optimizer.param_groups] == [config.momentum] * 2
    return np.array(rates), scheduler.get_last_lr()[0]


def test_learning_rate_rises_to_its_peak_and_falls_to_about_zero_in_straight_lines():
    rates, last = learning_rates(TrainConfig(epochs=3, peak_lr=0.4, warmup=0.2), 13)  # the peak is at step 0.2 * 40 - 1 = 7
    expected = np.concatenate([np.linspace(0.4 / 25, 0.4, 8), np.linspace(0.4, 0, 33)[1:-1]])
    np.testing.assert_allclose(rates, np.stack([expected] * 2, axis=1), atol=1e-5)
    assert last < 1e-5


def test_without_the_cycle_the_learning_rate_stays():
    rates, last = learning_rates(TrainConfig(epochs=3, peak_lr=0.3, one_cycle=False), 5)
    np.testing.assert_allclose(rates, 0.3)
    assert last == pytest.approx(0.3)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 1), (1, 2), (1, 4), (2, 2), (4, 1), (1, 5)])
def test_learning_rate_of_a_very_short_run_stays_between_zero_and_its_peak(epochs, steps):
    rates, last = learning_rates(TrainConfig(epochs=epochs), steps)
    assert rates.shape == (epochs * steps, 2)
    assert (0 < rates).all() and (rates <= 0.1 + 1e-9).all() and last < 1e-5


def test_image_sizes_apply_epoch_by_epoch_and_validation_keeps_the_full_size(data):
    seen = []
    model = tiny_net()
    model.register_forward_pre_hook(lambda module, inputs: seen.append((module.training, tuple(inputs[0].shape[2:]))))
    history = fit(model, data, data, replace(SMALL, epochs=3, image_sizes=(16, 24)), CPU)
    full = [(False, (32, 32))]
    assert seen == [(True, (16, 16))] * 3 + full + [(True, (24, 24))] * 3 + full + [(True, (24, 24))] * 3 + full
    assert list(history.image_size) == [16, 24, 24]


def test_history_names_every_epoch_and_scores_the_validation_set(data):
    model, rows = tiny_net(), []
    history = fit(model, data, data, replace(SMALL, epochs=2), CPU, log=rows.append)
    assert list(history) == [
        *("epoch", "image_size", "train_loss", "train_accuracy"),
        *("validation_loss", "validation_accuracy", "learning_rate", "seconds"),
    ]
    assert rows == history.to_dict("records")
    assert list(history.epoch) == [1, 2]
    assert not any(module.training for module in model.modules())
    scores = evaluate(model, make_loader(data, 4), CPU)
    assert history.validation_loss.iloc[-1] == pytest.approx(scores["loss"], rel=1e-5)
    assert history.validation_accuracy.iloc[-1] == pytest.approx(scores["accuracy"])
    without = fit(tiny_net(), data, None, replace(SMALL, epochs=2), CPU)
    assert without[["validation_loss", "validation_accuracy"]].isna().all(axis=None)
    assert list(without.train_loss) == list(history.train_loss)


def test_fit_hands_its_settings_on(data):
    unchanged = dict(padding=0, hole=0, degrees=0, flip=False, mixed_precision=False)
    still = TrainConfig(epochs=1, batch_size=13, peak_lr=1e-9, label_smoothing=0.4, **unchanged)
    model, twin = tiny_net(), tiny_net()
    for net in (model, twin):
        net.fc.weight.data *= 20  # far from even probabilities, which smoothing would not change
    history = fit(model, data, None, still, CPU)
    assert not any(module.training for module in model.modules())
    log_p = twin.train()(data.tensor()).log_softmax(1)  # batch norm sees the whole batch, in whatever order
    expected = -(0.6 * log_p[range(13), data.labels] + 0.4 * log_p.mean(1)).mean().item()
    assert history.train_loss[0] == pytest.approx(expected, rel=1e-4)


def stop_at(epoch):
    def log(row):
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    return log


def test_interrupted_run_goes_on_as_if_nothing_had_happened(data, tmp_path):
    whole, resumed, path = tiny_net(), tiny_net(), tmp_path / "new folder" / "run.pt"
    expected = fit(whole, data, data, SMALL, CPU)
    with pytest.raises(KeyboardInterrupt):
        fit(resumed, data, data, SMALL, CPU, path, log=stop_at(3))  # once epoch 3 is saved: one of four remains
    resumed = tiny_net(seed=99)  # another start, to be overwritten
    logged = []
    history = fit(resumed, data, data, SMALL, CPU, path, log=logged.append)
    assert [row["epoch"] for row in logged] == [4]
    for (name, value), other in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(value, other), name
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), expected.drop(columns="seconds"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.pt", "run.pt.lock", "run.pt.previous"]


def interrupt_in_batch(number):
    """A hook that presses Ctrl-C during the forward pass of that number."""
    seen = []

    def hook(module, inputs):
        seen.append(None)
        if len(seen) == number:
            signal.raise_signal(signal.SIGINT)

    return hook


@pytest.mark.parametrize("batch", [2, 6, 7], ids=["within an epoch", "in its last batch", "in the first of the next"])
def test_ctrl_c_ends_after_the_batch_and_the_run_goes_on_to_the_same_bits(data, tmp_path, batch):
    config = replace(SMALL, ema=0.9)
    whole, resumed, path = tiny_net(), tiny_net(), tmp_path / "run.pt"
    expected = fit(whole, data, None, config, CPU)
    hook = resumed.register_forward_pre_hook(interrupt_in_batch(batch))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"saved in .*run\.pt: run this again"):
        fit(resumed, data, None, config, CPU, path)
    assert signal.getsignal(signal.SIGINT) is before
    hook.remove()
    saved = torch.load(path, weights_only=True)
    assert (len(saved["history"]), saved["step"]) == divmod(batch, 3) if batch % 3 else (batch // 3 - 1, 3)
    history = fit(tiny_net(seed=99), data, None, config, CPU, path)
    again = tiny_net(seed=98)  # a finished run loads its result
    assert fit(again, data, None, config, CPU, path).equals(history)
    for (name, value), other in zip(whole.state_dict().items(), again.state_dict().values()):
        assert torch.equal(value, other), name
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), expected.drop(columns="seconds"))


def test_ctrl_c_without_a_checkpoint_says_that_nothing_is_saved(data):
    model = tiny_net()
    model.register_forward_pre_hook(interrupt_in_batch(1))
    with pytest.raises(KeyboardInterrupt, match="nothing is saved: give a checkpoint"):
        fit(model, data, None, SMALL, CPU)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_end_the_process_after_the_batch_with_a_checkpoint(data, tmp_path, capsys, name):
    if not hasattr(signal, name):
        pytest.skip("Windows has no such signal")
    number, model, path = getattr(signal, name), tiny_net(), tmp_path / "run.pt"
    for _ in range(2):  # a closed terminal may send two
        model.register_forward_pre_hook(lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        fit(model, data, None, SMALL, CPU, path)
    assert ended.value.code == 128 + number and signal.getsignal(number) is before
    assert f"stopped after 0 epochs and 1 batches, saved in {path}" in capsys.readouterr().err
    assert torch.load(path, weights_only=True)["step"] == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_signal_that_is_ignored_stays_so_as_under_nohup(data):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = tiny_net()
        model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGHUP))
        assert len(fit(model, data, None, replace(SMALL, epochs=1), CPU)) == 1
    finally:
        signal.signal(signal.SIGHUP, before)


def states_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_network_that_fit_returns_is_the_average_of_weights_and_statistics_over_all_steps(data):
    config, model, steps = replace(SMALL, epochs=2, ema=0.75), tiny_net(), []
    model.register_forward_pre_hook(lambda module, inputs: steps.append(states_of(module)))
    fit(model, data, None, config, CPU, log=lambda row: steps.append(states_of(model)))
    steps = steps[1:4] + steps[5:]  # the states after each of the six steps; the first is the start, the fifth the fourth again
    assert len(steps) == 6
    averaged = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    for name, value in averaged.items():
        expected = steps[0][name]
        for state in steps[1:]:
            expected = 0.75 * expected + 0.25 * state[name]
        torch.testing.assert_close(value, expected, msg=name)
    for name in ("fc.weight", "layer1.0.norm1.running_mean", "layer4.1.norm2.running_var"):
        assert not torch.allclose(model.state_dict()[name], steps[-1][name]), f"{name} is the last step's, not the average"


def test_average_is_the_exponential_one_and_what_is_scored(data):
    config, model = replace(SMALL, epochs=1, ema=0.75), tiny_net()
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(module.fc.weight.detach().clone()))
    run = run_of(model, config)
    loader = make_loader(data, 5)
    train_one_epoch(run, model, loader, nn.CrossEntropyLoss(), 16, CPU)
    steps = [*seen[1:], model.fc.weight.detach()]  # the weights after each of the three steps
    expected = steps[0]  # the first update copies
    for weight in steps[1:]:
        expected = 0.75 * expected + 0.25 * weight
    torch.testing.assert_close(run.scored.fc.weight, expected)
    assert not torch.allclose(run.scored.fc.weight, model.fc.weight)


def test_step_leaves_no_tensor_on_another_device():
    """On PyTorch's meta device every operation checks devices and shapes, as on a GPU, without one."""
    with torch.device("meta"):
        model = resnet18(width=16)
        images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    run = Run(model, replace(SMALL, ema=0.9), 3, torch.device("meta"))
    sums = train_step(run, model, images, labels, nn.CrossEntropyLoss(label_smoothing=0.1), 24)
    run.sums += sums
    assert {sums.device.type} | {p.grad.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "wanted", "dtype"),
    [
        (True, True, True, torch.bfloat16),
        (False, True, True, torch.bfloat16),
        (True, True, False, torch.float32),
        (False, False, True, torch.float32),
    ],
)
def test_mixed_precision_is_used_where_the_cpu_is_faster_with_it(monkeypatch, amx, avx512_bf16, wanted, dtype):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    run = run_of(tiny_net(), replace(SMALL, mixed_precision=wanted))
    dtypes = []
    run.model.register_forward_hook(lambda module, inputs, logits: dtypes.append(logits.dtype))
    images, labels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    train_step(run, run.model, images, labels, nn.CrossEntropyLoss(), 16)
    assert dtypes == [dtype]
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("generation", "dtype"), [(7, torch.float16), (8, torch.bfloat16)], ids=["Turing", "Ampere"])
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # where there is none
def test_gpu_without_units_for_bfloat16_computes_in_float16(monkeypatch, generation, dtype):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: type("GPU", (), {"major": generation}))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)  # it can, slowly
    assert training.autocast(torch.device("cuda")).fast_dtype == dtype


def test_compile_falls_back_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda model: 1 / 0)
    model = tiny_net()
    assert compiled(model, CPU) is model
    assert "without torch.compile" in capsys.readouterr().out


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    run = run_of(tiny_net())
    run.history = [{"epoch": 1}]
    save_checkpoint(path, SMALL, run)
    return path


def test_absent_checkpoint_is_an_empty_history_and_leaves_the_model(tmp_path):
    run = run_of(tiny_net())
    load_checkpoint(tmp_path / "none.pt", SMALL, run)
    assert run.history == []
    assert torch.equal(run.model.fc.weight, tiny_net().fc.weight)


@pytest.mark.parametrize(("field", "value"), [("peak_lr", 0.7), ("epochs", 5), ("image_sizes", (16,)), ("flip", False)])
def test_checkpoint_of_another_configuration_is_refused_by_name(checkpoint, field, value):
    config = replace(SMALL, **{field: value})
    with pytest.raises(ValueError, match=rf"run\.pt .*{field}.*delete it") as caught:
        load_checkpoint(checkpoint, config, run_of(tiny_net(), config))
    assert "\n" not in str(caught.value)
    assert str(value) in str(caught.value) and str(getattr(SMALL, field)) in str(caught.value)


@pytest.mark.parametrize(("width", "steps_per_epoch"), [(17, 3), (16, 5)], ids=["another width", "another number of images"])
def test_checkpoint_of_another_network_or_data_set_is_refused(checkpoint, width, steps_per_epoch):
    with pytest.raises(ValueError, match=r"run\.pt .*delete it") as caught:
        load_checkpoint(checkpoint, SMALL, run_of(resnet18(width=width), SMALL, steps_per_epoch))
    assert "\n" not in str(caught.value)


def renamed(data):
    return replace(data, classes=(*data.classes[:-1], "hat"))


OTHER_DATA = {
    "another image": lambda data: (replace(data, images=255 - data.images), None),
    "another label": lambda data: (replace(data, labels=np.roll(data.labels, 1)), None),
    "another order of images": lambda data: (data.subset(np.arange(13)[::-1]), None),
    "another class": lambda data: (renamed(data), None),
    "a validation set": lambda data: (data, data),
}


@pytest.mark.parametrize("other", OTHER_DATA.values(), ids=OTHER_DATA)
def test_checkpoint_of_other_data_is_refused_in_one_line(data, tmp_path, other):
    config, path = replace(SMALL, epochs=1), tmp_path / "run.pt"
    fit(tiny_net(), data, None, config, CPU, path)
    before, model = path.read_bytes(), tiny_net(5)
    with pytest.raises(ValueError, match=r"run\.pt is from another run .*(images|classes) .* there, .* here.*delete") as caught:
        fit(model, *other(data), config, CPU, path)
    assert "\n" not in str(caught.value) and path.read_bytes() == before
    assert torch.equal(model.fc.weight, tiny_net(5).fc.weight)


def is_finite(state):
    return all(v.isfinite().all() for v in state["model"].values())


def spoil(model, where, batch):
    """Make the loss of one batch NaN, or, from its gradient on, a weight: the batch's own loss is then a number still."""
    seen = []

    def hook(*arguments):
        seen.append(None)
        return arguments[-1] * (float("nan") if len(seen) == batch else 1)

    return model.register_forward_hook(hook) if where == "loss" else model.fc.bias.register_hook(hook)


@pytest.mark.parametrize(("where", "batch"), [("loss", 7), ("loss", 9), ("weight", 7), ("weight", 9)])
def test_nan_ends_the_run_and_leaves_the_last_finite_checkpoint(data, tmp_path, where, batch):
    path, model = tmp_path / "run.pt", tiny_net()
    spoil(model, where, batch)
    with pytest.raises(FloatingPointError, match=r"diverged at a learning rate of \d.*lower peak_lr"):
        fit(model, data, None, SMALL, CPU, path)
    saved = [torch.load(p, weights_only=True) for p in (path, f"{path}.previous")]
    assert [len(state["history"]) for state in saved] == [2, 1] and all(map(is_finite, saved))
    with pytest.raises(FloatingPointError):
        model = tiny_net()
        spoil(model, where, batch)
        fit(model, data, None, SMALL, CPU)  # without a checkpoint too


def test_nan_is_found_within_ten_batches(data):
    model, seen = tiny_net(), []
    model.register_forward_hook(lambda *_: seen.append(None))
    spoil(model, "loss", 2)
    with pytest.raises(FloatingPointError):
        fit(model, Dataset(**shapes.generate(30, seed=0), classes=shapes.CLASSES), None, replace(SMALL, batch_size=2), CPU)
    assert len(seen) == 10


def test_nan_of_a_stopped_run_is_not_saved(data, tmp_path):
    model = tiny_net()
    model.register_forward_pre_hook(interrupt_in_batch(1))
    spoil(model, "loss", 1)
    with pytest.raises(FloatingPointError):
        fit(model, data, None, SMALL, CPU, tmp_path / "run.pt")
    assert not (tmp_path / "run.pt").exists()


def test_checkpoint_that_holds_nan_is_passed_over(checkpoint):
    run = run_of(tiny_net(1))
    run.model.layer1[0].norm1.running_var[3] = float("nan")
    save_checkpoint(checkpoint, SMALL, run)
    resumed = run_of(tiny_net(2))
    load_checkpoint(checkpoint, SMALL, resumed)
    assert torch.equal(resumed.model.fc.weight, tiny_net().fc.weight)


@pytest.mark.parametrize("part", ["train", "validation"])
def test_no_images_are_refused(data, part):
    nothing = data.subset(slice(0))
    with pytest.raises(ValueError, match="no images"):
        fit(tiny_net(), *((nothing, data) if part == "train" else (data, nothing)), SMALL, CPU)
    with pytest.raises(ValueError, match="no images"):
        evaluate(tiny_net(), make_loader(nothing, 5), CPU)


def test_images_of_floats_are_refused(data):
    floats = replace(data, images=(data.images / 255).astype(np.float32))
    with pytest.raises(ValueError, match="uint8.*float32"):
        fit(tiny_net(), floats, None, replace(SMALL, hole=0, degrees=0), CPU)
    with pytest.raises(ValueError, match="uint8.*float32"):
        evaluate(tiny_net(), make_loader(floats, 5), CPU)


FOREIGN = {"model only": {"model": 1}, "list": [1], "tensor": torch.zeros(3), "other config": {"config": "resnet"}}
FOREIGN |= {"empty file": b"", "text": b"hello\n", "table": b"epoch,loss\n1,2\n"}


def assert_refused(path):
    model = tiny_net()
    with pytest.raises(ValueError, match=r"run\.pt .*delete it") as caught:
        load_checkpoint(path, SMALL, run_of(model))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_net().parameters()))


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_foreign_checkpoint_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert_refused(path)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_truncated_checkpoint_is_refused_in_one_line(checkpoint, share):
    checkpoint.write_bytes(checkpoint.read_bytes()[: int(share * checkpoint.stat().st_size)])
    assert_refused(checkpoint)


@pytest.mark.parametrize("damage", ["cut", "one bit"])
def test_damaged_checkpoint_is_named_and_the_previous_one_used(checkpoint, capsys, damage):
    run = run_of(tiny_net(1))
    run.history = [{"epoch": 1}, {"epoch": 2}]
    save_checkpoint(checkpoint, SMALL, run)
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content[:1000] if damage == "cut" else content)
    resumed = run_of(tiny_net(2))
    load_checkpoint(checkpoint, SMALL, resumed)
    assert capsys.readouterr().out == f"{checkpoint} is not a checkpoint of this project, or is damaged\n"
    assert resumed.history == [{"epoch": 1}]
    assert torch.equal(resumed.model.fc.weight, tiny_net().fc.weight)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    path, target = tmp_path / "run.pt", tmp_path / "made_by_the_pickle"
    path.write_bytes(f"cos\nmkdir\n(V{target.as_posix()}\ntR.".encode())
    assert_refused(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # the same bytes do run where nothing stops them
    assert target.exists()


def test_checkpoint_written_on_a_gpu_loads_without_one(checkpoint):
    old, new = zipfile.ZipFile(io.BytesIO(checkpoint.read_bytes())), zipfile.ZipFile(checkpoint, "w")
    with old, new:
        for name in old.namelist():  # "cpu" as the pickle spells it becomes "cuda:0"
            new.writestr(name, old.read(name).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0"))
    run = run_of(tiny_net(seed=5))
    load_checkpoint(checkpoint, SMALL, run)
    assert run.history == [{"epoch": 1}]
    assert torch.equal(run.model.fc.weight, tiny_net().fc.weight)


def test_full_disk_is_named_and_leaves_the_checkpoint_there_is(data, small_disk, capsys):
    path, whole = small_disk / "run.pt", tiny_net()
    with pytest.raises(OSError, match=r"cannot write .*run\.pt \(the disk is full\): make room") as caught:
        fit(tiny_net(), data, None, SMALL, CPU, path)
    assert "\n" not in str(caught.value)
    assert len(torch.load(path, weights_only=True)["history"]) == 1
    assert sorted(p.name for p in small_disk.iterdir()) == ["run.pt", "run.pt.lock"]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)  # room is made
    resumed = tiny_net(5)
    fit(resumed, data, None, SMALL, CPU, path)
    fit(whole, data, None, SMALL, CPU)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    with pytest.raises(SystemExit, match="2"):
        subprocess.run(["mount", "-o", "remount,size=14m", str(small_disk)], check=True)
        main(f"--data shapes10 --train-size 20 --width 16 --epochs 2 --image-sizes 16 --output {small_disk / 'out'}".split())
    assert re.fullmatch(r"cannot write .*checkpoint\.pt \(the disk is full\).*", capsys.readouterr().err.splitlines()[-1])


REFUSED = {  # options -> what the line says
    "--epochs 0": "epochs must be at least 1, got 0",
    "--batch-size 0": "batch_size should be a positive integer",
    "--peak-lr nan": "learning rate of nan: lower peak_lr",
    "--ema 2": "decay value 2",
    "--width 8": "width must be at least 16",
    "--data nowhere": "unknown data set 'nowhere'",
    "--data no/where": "no folder no/where",
    "--validation-size 40": "cannot split 40 of 40 images",
    "--momentum -1": "momentum",
    "--seed -1": "non-negative",
    "--harder circle unicorn": "^no class 'unicorn' in these data: choose among arrow, circle, ",
    "--class-weights 1 2": "class_weights must be 10 numbers above 0, one for each class",
    "--class-weights 1 1 1 1 1 1 1 1 1 0": "class_weights must be 10 numbers above 0, one for each class",
    "--peak-lr 1e6": "diverged at a learning rate of .*lower peak_lr",
}


@pytest.mark.parametrize(("options", "message"), REFUSED.items(), ids=REFUSED)
def test_command_says_what_it_refuses_in_one_line_with_status_2(tmp_path, capsys, options, message):
    start = f"--data shapes10 --train-size 40 --width 16 --epochs 1 --batch-size 4 --image-sizes 16 --output {tmp_path / 'out'}"
    with pytest.raises(SystemExit) as ended:
        main([*start.split(), *options.split()])
    assert ended.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "\r" not in line and line.strip() and "batch/s" not in line]
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert not (tmp_path / "out" / "weights.pt").exists()


def test_command_on_other_data_leaves_the_result_as_it_was(tmp_path, capsys):
    start = f"--data shapes10 --width 16 --epochs 1 --batch-size 20 --image-sizes 16 --output {tmp_path} --train-size".split()
    main([*start, "40"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="2"):
        main([*start, "39"])  # the same number of steps
    assert "is from another run (images" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_order_and_augmentation_depend_on_seed_and_epoch_alone(data):
    train = replace(data, transform=compose(augmentation_steps()))
    generator = torch.Generator()
    loader = make_loader(train, 13, generator)

    def draw(seed, epoch):
        seed_epoch(generator, train, seed, epoch)
        return next(iter(loader))

    first, second = draw(0, 0), draw(0, 1)
    fresh = replace(data, transform=compose(augmentation_steps()))
    seed_epoch(generator, fresh, 0, 1)
    alone = next(iter(make_loader(fresh, 13, generator)))
    assert torch.equal(alone[0], second[0]) and torch.equal(alone[1], second[1])
    assert not torch.equal(first[0].sort(0)[0], second[0].sort(0)[0]), "the augmentation repeats itself"
    assert not torch.equal(first[1], second[1]), "the order repeats itself"
    assert not torch.equal(first[0], draw(1, 0)[0]), "the seed changes nothing"


@pytest.mark.parametrize("size", [16, 24, 48])
def test_resize_is_torchvisions_antialiased_one(size):
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resize(images, size), tv.resize(images, [size, size], antialias=True))
    assert resize(images, 32) is images


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for field in fields(TrainConfig):
        described = shown.split(f"  --{field.name.replace('_', '-')}")[-1].split("\n  --")[0]
        assert f"(default: {field.default})" in " ".join(described.split()), field.name


def test_command_trains_and_writes_weights_history_and_checkpoint(tmp_path, project):
    options = "--data shapes10 --train-size 40 --validation-size 8 --width 16 --epochs 1 --batch-size 10 --warmup 0.5"
    options += " --image-sizes 16 24 --no-flip --peak-lr 0.05 --harder ring --class-weights 2 1 1 1 1 1 1 1 1 1"
    command = [sys.executable, "-m", "helpers.training", *options.split(), "--output", str(tmp_path / "out")]
    environment = os.environ | {"WALKTHROUGH_ROOT": str(tmp_path)}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history.epoch) == [1] and list(history.image_size) == [16]
    assert history.train_accuracy[0] * 32 == pytest.approx(round(history.train_accuracy[0] * 32))  # 40 less 8 images
    assert history.validation_accuracy[0] * 8 == pytest.approx(round(history.validation_accuracy[0] * 8))
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    config = TrainConfig(epochs=1, batch_size=10, warmup=0.5, image_sizes=(16, 24), flip=False, peak_lr=0.05)
    config = replace(config, harder=("ring",), class_weights=(2.0, *[1.0] * 9))
    assert TrainConfig(**saved["config"]) == config
    loaded = load_pretrained(tmp_path / "out" / "weights.pt")
    assert loaded.stem.out_channels == 16
    assert torch.equal(loaded.layer3[0].conv1.weight, saved["model"]["layer3.0.conv1.weight"].half().float())
    # The network normalises with the statistics of its own 32 training images, near those of all 40.
    drawn = shapes.generate(40, shapes.TRAIN_SEED)["images"] / 255
    np.testing.assert_allclose(loaded.mean.flatten(), drawn.mean((0, 1, 2)), atol=0.02)
    np.testing.assert_allclose(loaded.std.flatten(), drawn.std((0, 1, 2)), atol=0.02)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def command(folder, epochs=3):
    options = f"--data shapes10 --train-size 60 --width 16 --epochs {epochs} --batch-size 5 --image-sizes 16 --ema 0.9"
    return [*options.split(), "--output", str(folder)]


@pytest.fixture(scope="module")
def processes():
    """Start `main` in processes of their own, each from one that has imported PyTorch already."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("Windows can neither fork nor kill")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.training"])
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


def killed(folder, start, signals, rng):
    """Run the command again and again, with one of these signals each time, somewhere; then to its end."""
    for number in signals:
        (folder / "checkpoint.pt.lock").unlink(missing_ok=True)  # of the run before: to see when this one has begun
        process = start(command(folder))
        wait_for(folder / "checkpoint.pt.lock", process)
        process.join(rng.uniform(0, 1.5))
        with suppress(ProcessLookupError):  # it has ended by then on a fast machine
            os.kill(process.pid, number)
        process.join()
        # The signal came before the first batch, or in time, or after the last one.
        assert process.exitcode in (-number, 128 + number, 0)
        if process.exitcode == 0:
            break
    start(command(folder)).join()


def assert_same(first, second):
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (first, second)]
    for part in ("model", "average"):
        assert all(torch.equal(value, states[1][part][name]) for name, value in states[0][part].items())
    assert (first / "weights.pt").read_bytes() == (second / "weights.pt").read_bytes()
    assert sorted(p.name for p in first.iterdir()) == sorted(p.name for p in second.iterdir())


def test_run_that_is_killed_again_and_again_ends_at_the_same_bits(tmp_path, processes):
    processes(command(tmp_path / "whole")).join()
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
    killed(tmp_path / "killed", processes, signals, np.random.default_rng(0))
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_second_run_on_one_output_is_refused_until_the_first_is_dead(tmp_path, processes, capsys):
    process = processes(command(tmp_path, epochs=1000))
    wait_for(tmp_path / "checkpoint.pt", process)
    with pytest.raises(SystemExit, match="2"):
        main(command(tmp_path, epochs=1000))
    assert re.search(r"another run is writing .*checkpoint\.pt: wait", capsys.readouterr().err.splitlines()[-1])
    (tmp_path / f"checkpoint.pt.{process.pid}.tmp").write_bytes(b"half a checkpoint")  # as if it was writing when it is killed
    process.kill()
    process.join()
    with pytest.raises(SystemExit, match="2"):
        main(command(tmp_path))
    assert "epochs 1000 there, 3 here" in capsys.readouterr().err.splitlines()[-1]  # not locked, though refused
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "checkpoint.pt.lock",
        *(["checkpoint.pt.previous"] if (tmp_path / "checkpoint.pt.previous").exists() else []),
    ]


@pytest.mark.parametrize("error", [OSError(95, "Operation not supported"), NotImplementedError("no flock here")])
def test_disk_without_locks_is_trained_on_all_the_same(data, tmp_path, monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(training.FileLock, "acquire", refuse)
    fit(tiny_net(), data, None, replace(SMALL, epochs=1), CPU, tmp_path / "run.pt")
    assert len(torch.load(tmp_path / "run.pt", weights_only=True)["history"]) == 1
    error.errno = errno.EROFS
    with pytest.raises(type(error)):  # before an epoch is lost
        fit(tiny_net(), data, None, replace(SMALL, epochs=1), CPU, tmp_path / "other.pt", log=pytest.fail)


def test_closed_terminal_stops_the_command_with_a_checkpoint(tmp_path, project):
    pty = pytest.importorskip("pty")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(project)
        os.execv(sys.executable, [sys.executable, "-m", "helpers.training", *command(tmp_path, epochs=1000)])
    while not (tmp_path / "checkpoint.pt").exists():
        os.read(terminal, 1000)
    os.close(terminal)  # from here on it cannot write a word
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (129, 120)  # 120: Python could not flush its last words
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] <= 12


def test_cluster_that_ends_the_command_gets_status_143_and_finds_a_checkpoint(tmp_path, project):
    arguments = [sys.executable, "-m", "helpers.training", *command(tmp_path, epochs=1000)]
    environment = os.environ | {"TQDM_DISABLE": "1"}
    process = subprocess.Popen(arguments, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()  # an epoch is done
    process.terminate()
    _, said = process.communicate()
    assert process.returncode == 143
    assert re.fullmatch(r"stopped after \d+ epochs and \d+ batches, saved in .*checkpoint\.pt: run this again .*\n", said)


def test_alternating_flip_mirrors_about_half_of_the_images_and_the_others_in_the_next_epoch():
    data = Dataset(**shapes.generate(200, seed=0), classes=shapes.CLASSES)
    config = TrainConfig(padding=0, hole=0, degrees=0, alternate_flip=True)
    train, generator, epochs = augmented(data, config), torch.Generator(), []
    for epoch in range(3):
        seed_epoch(generator, train, config.seed, epoch)
        drawn = np.stack([train[i][0].permute(1, 2, 0).numpy() for i in range(len(train))])
        mirrored = (drawn == data.images[:, :, ::-1]).all((1, 2, 3))
        np.testing.assert_array_equal(drawn[~mirrored], data.images[~mirrored])
        epochs.append(mirrored)
    assert 70 < epochs[0].sum() < 130
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])
    seed_epoch(generator, train, 1, 0)
    assert (train.mirrored != epochs[0]).any()
    some = train.subset([3, 1])
    np.testing.assert_array_equal(some.mirrored, train.mirrored[[3, 1]])
    assert augmented(data, TrainConfig(flip=False, alternate_flip=True)).mirrored is None


def test_checkpoint_from_before_a_setting_existed_is_gone_on_with(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    del state["config"]["alternate_flip"], state["origin"]["processes"]
    torch.save(state, checkpoint)
    resumed = run_of(tiny_net(2))
    load_checkpoint(checkpoint, SMALL, resumed)
    assert torch.equal(resumed.model.fc.weight, tiny_net().fc.weight)
    changed = replace(SMALL, alternate_flip=True)
    with pytest.raises(ValueError, match="alternate_flip False there, True here"):
        load_checkpoint(checkpoint, changed, run_of(tiny_net(), changed))
