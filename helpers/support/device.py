"""Which device computes, how many processes load for it, and whether torch.compile works there."""

import copy
import os

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from helpers.support.distributed import rank_and_world_size


def default_device() -> torch.device:
    """The GPU where PyTorch finds one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def loader_workers(device: torch.device) -> int:
    """How many processes should load images for this device: none for a CPU, which is busy."""
    if device.type != "cuda":
        return 0
    _, world_size = rank_and_world_size()
    return min(8, max(1, (os.cpu_count() or 1) // world_size))


def unwrapped(model):
    """The network inside torch.compile, DataParallel, DistributedDataParallel or AveragedModel."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    inner = model.module if isinstance(model, wrappers) else getattr(model, "_orig_mod", model)
    return model if inner is model else unwrapped(inner)


def to_device_of(model, images: torch.Tensor) -> torch.Tensor:
    """The images on the device of the model's parameters; a plain function has none."""
    parameters = list(model.parameters()) if hasattr(model, "parameters") else []
    return images.to(parameters[0].device) if parameters else images


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
