"""Which device computes, who loads for it, and what torch.compile does where it does not work."""

import pytest
import torch
from tools import CPU, assert_same_weights, shapes_dataset, small_net

from helpers.support.device import (
    compile_or_explain,
    default_device,
    loader_workers,
    to_device_of,
)
from helpers.training import TrainConfig, fit

EXAMPLE = torch.zeros(2, 3, 32, 32)
SMALL = TrainConfig(epochs=1, batch_size=5, image_sizes=(16,))


@pytest.mark.parametrize(("is_there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_default_device_is_the_gpu_where_there_is_one(monkeypatch, is_there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
    assert default_device() == torch.device(expected)


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [
        ("cpu", 16, 1, 0),
        ("cuda", 4, 1, 4),
        ("cuda", 32, 1, 8),
        ("cuda", 8, 4, 2),
        ("cuda", 2, 4, 1),
        ("cuda", None, 1, 1),
    ],
)
def test_cores_are_shared_among_the_loaders_of_all_processes(
    monkeypatch, device, cores, processes, expected
):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setenv("WORLD_SIZE", f"{processes}")
    assert loader_workers(torch.device(device)) == expected


def test_images_go_to_the_device_of_the_network():
    model = small_net().to("meta")
    assert to_device_of(model, EXAMPLE).device.type == "meta"
    assert to_device_of(small_net(), EXAMPLE) is EXAMPLE
    assert to_device_of(lambda images: images, EXAMPLE) is EXAMPLE


@pytest.mark.parametrize("fails", ["at once", "in a pass"])
def test_compile_falls_back_and_says_so(monkeypatch, capsys, fails):
    def compile(model):
        return 1 / 0 if fails == "at once" else lambda images: 1 / 0

    monkeypatch.setattr(torch, "compile", compile)
    model = small_net()
    assert compile_or_explain(model, EXAMPLE) is model
    said = capsys.readouterr().out
    assert said == "training without torch.compile, which does not work here (ZeroDivisionError)\n"
    fit(model, shapes_dataset(10), None, SMALL, CPU, compile=True)
    assert capsys.readouterr().out == said


def test_compiled_network_is_tried_on_a_copy_and_then_trained(monkeypatch, capsys):
    given = []

    def compile(model):
        given.append((model, model.training))
        return lambda images: calls.append(tuple(images.shape)) or model(images)

    monkeypatch.setattr(torch, "compile", compile)
    calls, model, plain = [], small_net(), small_net()
    before = small_net().eval()
    compile_or_explain(before, EXAMPLE)
    assert_same_weights(before, small_net())
    assert not before.training and all(p.grad is None for p in before.parameters())
    (trial, was_training), (compiled, _) = given
    assert trial is not before and was_training and compiled is before
    calls.clear()
    data = shapes_dataset(10)
    fit(model, data, None, SMALL, CPU, compile=True)
    assert calls == [(2, 3, 32, 32), *[(5, 3, 16, 16)] * 2]
    fit(plain, data, None, SMALL, CPU)
    assert_same_weights(model, plain)
    assert capsys.readouterr().out == "" and len(calls) == 3
