"""Which device computes, who loads for it, and what torch.compile does where it does not work."""

import pytest
import torch
from played_gpu import played_gpu
from tools import CPU, assert_same_weights, shapes_dataset, small_net

from helpers.support import device as device_module
from helpers.support.device import (
    compile_or_explain,
    default_device,
    loader_workers,
    to_device_of,
)
from helpers.training import TrainConfig, fit

EXAMPLE = torch.zeros(2, 3, 32, 32)
SMALL = TrainConfig(epochs=1, batch_size=5, image_sizes=(16,))


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """As in a new process in which the environment names no device."""
    monkeypatch.delenv("WALKTHROUGH_DEVICE", raising=False)
    remembered = device_module._accelerator, device_module._failure
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


def play(monkeypatch, kind):
    """Have PyTorch, which was built for CUDA, find this GPU."""

    def find(check_available=False):
        return kind and torch.device(kind) if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", find)


@pytest.mark.parametrize("kind", [None, "cuda", "xpu", "mps"])
def test_default_device_is_the_gpu_where_there_is_one_that_works(monkeypatch, kind):
    play(monkeypatch, kind)
    with played_gpu(kind or "cuda"), torch.inference_mode():
        assert default_device() == torch.device(kind or "cpu")


NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


def _without_kernels(device):
    if device.type == "cpu":
        return torch.ones(3)
    raise RuntimeError(f"{NO_KERNEL}\nCUDA kernel errors might be asynchronously reported")


def _wrong(device):  # by a tenth of a gradient that is small in itself
    return torch.tensor([0.1, 0.1, 0.1 if device.type == "cpu" else 0.08])


def _not_a_number(device):
    return torch.tensor([1.0, 1.0, 1.0 if device.type == "cpu" else float("nan")])


FAULTS = {_without_kernels: NO_KERNEL, _wrong: "not the CPU's", _not_a_number: "not the CPU's"}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.items(), ids=lambda part: str(part)[:20])
def test_gpu_that_does_not_compute_is_left_alone_with_one_line(monkeypatch, capsys, fault, reason):
    play(monkeypatch, "cuda")
    monkeypatch.setattr(device_module, "_gradient", fault)
    assert [default_device(), default_device()] == [CPU, CPU]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("cuda is left alone, because it does not compute here: ")
    assert reason in line
    monkeypatch.setenv("WALKTHROUGH_DEVICE", "cuda")
    with pytest.raises(ValueError, match=f"WALKTHROUGH_DEVICE is 'cuda'.*{reason}.*choose cpu"):
        default_device()


def test_environment_chooses_the_device(monkeypatch):
    play(monkeypatch, "cuda")
    monkeypatch.setenv("WALKTHROUGH_DEVICE", "cpu")
    assert default_device() == CPU
    for name in ("mps", "cuda:1"):
        monkeypatch.setenv("WALKTHROUGH_DEVICE", name)
        with played_gpu(name.partition(":")[0]):
            assert default_device() == torch.device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("name", ["cuda", "mps", "xpu", "gpu", "TPU please"])
def test_device_that_is_not_here_is_refused_in_one_line(monkeypatch, name):
    monkeypatch.setenv("WALKTHROUGH_DEVICE", name)
    with pytest.raises(ValueError, match=rf"^WALKTHROUGH_DEVICE is '{name}'.* unset it\Z"):
        default_device()


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [
        ("cpu", 16, 1, 0),
        ("mps", 16, 1, 0),
        ("xpu", 4, 1, 4),
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
    monkeypatch.setenv("RANK", "0")
    assert loader_workers(torch.device(device)) == expected


def test_images_go_to_the_device_of_the_network():
    model = small_net().to("meta")
    assert to_device_of(model, EXAMPLE).device.type == "meta"
    assert to_device_of(small_net(), EXAMPLE) is EXAMPLE
    assert to_device_of(torch.nn.ReLU(), EXAMPLE) is EXAMPLE


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
