"""Measure a GPU: images a second of loader, network and both; memory; Grad-CAM in forward passes.

`python tests/gpu_speed.py FILE.csv [--tiny]` writes a table, row by row.
"""

import argparse
import csv
import itertools
import os
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import shapes, training
from helpers.data import Dataset, make_loader
from helpers.gradcam import GradCAM
from helpers.model import resnet18
from helpers.support.device import loader_workers
from helpers.training import TrainConfig, fit


class OneBatch:
    """A loader that draws one batch, and gives it again and again."""

    def __init__(self, loader):
        self.dataset, self.generator, self.sampler = loader.dataset, loader.generator, None
        self.count, self.batch = len(loader), next(iter(loader))

    def __len__(self):
        return self.count

    def __iter__(self):
        return itertools.repeat(self.batch, self.count)


def random_data(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return Dataset(images, rng.integers(0, 10, count), shapes.CLASSES)


def of_loader(data, batch_size, device):
    """Images a second over all batches but the first, in which workers start."""
    config = TrainConfig(batch_size=batch_size, degrees=0)
    loader = training.training_loader(data, config, device)
    batches, seen = iter(loader), 0
    next(batches)
    start = time.perf_counter()
    for images, _ in batches:
        seen += len(images)
    return seen / (time.perf_counter() - start)


def of_fit(data, batch_size, device, one_batch=False, compile=False):
    """Images a second of `fit` in all epochs but the first, in which kernels are chosen.

    `one_batch`: the network alone, which is given the same batch all the time.
    """
    wrap = OneBatch if one_batch else lambda loader: loader
    config = TrainConfig(epochs=3, degrees=0, batch_size=batch_size, peak_lr=0.01)
    with mock.patch.object(training, "make_loader", lambda *args: wrap(make_loader(*args))):
        history = fit(resnet18(), data, None, config, device, compile=compile)
    return len(data) / history["seconds"].iloc[1:].mean()


def seconds(function, device, repeats=20):
    """Median time of a call, after three calls to warm up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:]))


def of_gradcam(device, layer, repeats):
    """Forward passes that the maps of 64 images cost: {number of classes: passes}."""
    model = resnet18().to(device).eval()
    images = torch.rand(64, 3, 32, 32, device=device)
    with torch.inference_mode():
        forward = seconds(lambda: model(images), device, repeats)
    passes = {}
    cam = GradCAM(model, layer)
    for count in (1, 10):
        classes = torch.arange(count, device=device).expand(64, count)
        explain = partial(cam.evidence, images, classes)
        passes[count] = seconds(explain, device, repeats) / forward
    return passes


def measure(device, tiny):
    """Rows (what, value, unit), as they are measured; what may take long comes last."""
    data, batch_sizes = random_data(256 if tiny else 40_000), (64,) if tiny else (128, 512)
    for batch_size in batch_sizes:
        yield f"loader, batches of {batch_size}", of_loader(data, batch_size, device), "images/s"
    for compile in (False, True):
        for batch_size in batch_sizes:
            name = f"batches of {batch_size}{', compiled' if compile else ''}"
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            for what, one_batch in {"network": True, "epoch": False}.items():
                speed = of_fit(data, batch_size, device, one_batch, compile)
                yield f"{what}, {name}", speed, "images/s"
            if device.type == "cuda":
                memory = torch.cuda.max_memory_allocated() / 2**20
                yield f"memory, {name}", memory, "MiB"
        if not compile:
            yield from explaining(device, tiny)


def explaining(device, tiny):
    """Rows as `measure`, of Grad-CAM."""
    for layer in ("layer4", "layer3"):
        for count, passes in of_gradcam(device, layer, 1 if tiny else 20).items():
            yield f"Grad-CAM at {layer}, classes: {count}", passes, "forward passes"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="the table to write")
    parser.add_argument("--tiny", action="store_true", help="to try the script itself")
    args = parser.parse_args()
    device = training.default_device()
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    machine = f"{name}, {os.cpu_count()} cores, {loader_workers(device)} workers"
    with args.file.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["what", "value", "unit"])
        writer.writerow(["machine", f"{machine}, PyTorch {torch.__version__}", ""])
        for what, value, unit in measure(device, args.tiny):
            writer.writerow([what, f"{value:.4g}", unit])
            file.flush()


if __name__ == "__main__":
    main()
