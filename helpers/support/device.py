"""Which device computes, how many processes load for it, and whether torch.compile works there."""

import copy
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers.support.distributed import rank_and_world_size


def default_device() -> torch.device:
    """The GPU of Nvidia, AMD, Intel or Apple where one computes what the CPU does, else the CPU.

    WALKTHROUGH_DEVICE in the environment names another: cpu, cuda, cuda:1, xpu, mps.

    Raises:
        ValueError: what it names does not compute here.
    """
    wanted = os.environ.get("WALKTHROUGH_DEVICE")
    if not wanted:
        return torch.device(_accelerator())
    if _failure(wanted):
        raise ValueError(
            f"WALKTHROUGH_DEVICE is {wanted!r}, which does not compute here "
            f"({_failure(wanted)}): choose cpu, cuda, xpu or mps, or unset it"
        )
    return torch.device(wanted)


@functools.cache
def _accelerator() -> str:
    """The GPU that PyTorch finds, or the CPU; it is said once why a GPU is left alone."""
    found = torch.accelerator.current_accelerator(check_available=True)
    name = found.type if found else "cpu"
    if not _failure(name):
        return name
    print(f"{name} is left alone, because it does not compute here: {_failure(name)}")
    return "cpu"


@functools.cache
def _failure(name: str) -> str:
    """Why a device cannot be used, in one line; "" where it computes what the CPU does."""
    try:
        expected, found = (_gradient(torch.device(place)) for place in ("cpu", name))
    except Exception as error:  # drivers fail in many ways
        return str(error).partition("\n")[0] or type(error).__name__
    is_close = (found - expected).norm() < 0.05 * expected.norm()
    return "" if is_close else "its results are not the CPU's"


def _gradient(device: torch.device) -> torch.Tensor:
    """A gradient of a small convolution, computed with what the network and its training use."""
    with torch.inference_mode(False), torch.enable_grad():
        images = torch.arange(2 * 3 * 32 * 32.0).sin().view(2, 3, 32, 32)
        images = images.to(device, memory_format=torch.channels_last)
        kernels = torch.arange(16 * 3 * 3 * 3.0).cos().view(16, 3, 3, 3).to(device).requires_grad_()
        resized = F.interpolate(images, (24, 24), mode="bilinear", antialias=True)
        maps = F.conv2d(resized, kernels, stride=2, padding=1)
        maps = F.batch_norm(maps, None, None, training=True).relu()
        loss = F.cross_entropy(maps.mean((2, 3)), torch.tensor([1, 3], device=device))
        return torch.autograd.grad(loss, kernels)[0].cpu()


def loader_workers(device: torch.device) -> int:
    """How many processes should load images for this device.

    None for a CPU, which is busy, and for a Mac, where processes start slowly.
    """
    if device.type in ("cpu", "mps"):
        return 0
    _, world_size = rank_and_world_size()
    return min(8, max(1, (os.cpu_count() or 1) // world_size))


def unwrapped(model):
    """The network inside torch.compile, DataParallel, DistributedDataParallel or AveragedModel."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", model)
    return model if inner is model else unwrapped(inner)


def plain_name(name: str) -> str:
    """The name of a part or a weight without what such wrappers put before it or into it."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", name).replace("_orig_mod.", "")


def to_device_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """The images on the device of the model's parameters, if it has any."""
    return images.to(next(model.parameters(), images).device)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch the model to eval mode, and give every module its own mode back at the end."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def compile_or_explain(model: nn.Module, example: torch.Tensor):
    """Compile a model with torch.compile, after a trial on a copy.

    Args:
        model: trained with gradients afterwards.
        example: a batch of inputs on the model's device.

    Returns:
        The compiled model; the model itself, after printing why, where that does not work.
    """
    try:
        trial = torch.compile(copy.deepcopy(model).train())
        trial(example).sum().backward()
        return torch.compile(model)
    except Exception as error:  # compilers fail in many ways
        name = type(error).__name__
        print(f"training without torch.compile, which does not work here ({name})")
        return model
