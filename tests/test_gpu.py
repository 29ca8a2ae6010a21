"""What only a GPU shows: `pytest -m gpu`. (TEST_DEVICE=cpu runs these tests on a CPU, to try the tests themselves.)"""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from helpers import shapes, training
from helpers.data import Dataset, make_loader
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained, resnet18
from helpers.training import Run, TrainConfig, fit, make_criterion, train_step

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU here: what only a GPU shows is not tested", allow_module_level=True)
pytestmark = pytest.mark.gpu

SMALL = TrainConfig(epochs=4, batch_size=32, image_sizes=(24, 32), degrees=0)
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def data():
    return Dataset(**shapes.generate(320, seed=0), classes=shapes.CLASSES)


@pytest.fixture
def exact(monkeypatch):
    """Full float32: convolutions would round their factors to ten bits (TF32) where the GPU is faster with them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def trained(data, config=SMALL, **options):
    torch.manual_seed(0)
    return fit(resnet18(width=16), data, None, config, DEVICE, **options)["train_loss"].tolist()


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("kind", KINDS)
def test_short_run_learns_and_resumes_to_the_same_loss(tmp_path, monkeypatch, data, kind, compile):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: kind == "bfloat16")
    config = SMALL if kind != "float32" else TrainConfig(**vars(SMALL) | {"mixed_precision": False})
    whole = trained(data, config, compile=compile)
    assert whole[-1] < whole[0] - 0.05

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(data, config, compile=compile, checkpoint=tmp_path / "checkpoint.pt", log=stop)
    resumed = trained(data, config, compile=compile, checkpoint=tmp_path / "checkpoint.pt")
    assert resumed == pytest.approx(whole, rel=0.02)  # a GPU adds up in no fixed order


@pytest.mark.parametrize("kind", KINDS)
def test_forward_pass_has_the_precision_that_is_asked_for(monkeypatch, data, kind):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: kind == "bfloat16")
    model = resnet18(width=16).to(DEVICE)
    run, kinds = Run(model, TrainConfig(mixed_precision=kind != "float32"), 10, DEVICE), []
    model.layer1.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    images, labels = next(iter(make_loader(data, 8)))
    train_step(run, model, images.to(DEVICE), labels.to(DEVICE), make_criterion(data, SMALL), 32)
    assert DEVICE.type == "cpu" or kinds == [KINDS[kind]]
    assert run.scaler.is_enabled() == (kind == "float16") or DEVICE.type == "cpu"


def test_logits_in_float32_are_those_of_the_cpu(data, exact):
    model, images = load_pretrained("shapes10"), data.tensor(slice(64))
    with torch.inference_mode():
        here, there = model(images), model.to(DEVICE)(images.to(DEVICE)).cpu()
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_maps_are_those_of_the_cpu(data, exact, layer):
    model, images, classes = load_pretrained("shapes10"), data.tensor(slice(64)), torch.arange(10).expand(64, 10)
    here = GradCAM(model, layer)
    expected, heat = here.evidence(images, classes), here(images, classes)
    there = GradCAM(model.to(DEVICE), layer)
    found = there.evidence(images.to(DEVICE), classes)
    assert found.device.type == DEVICE.type and there.evidence(images[:2], classes[:2]).device == images.device
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    torch.testing.assert_close(there(images.to(DEVICE), classes).cpu(), heat, rtol=1e-3, atol=1e-3)


def test_notebooks_run(tmp_path, project):
    command = "import sys; from pathlib import Path; from helpers.interactive.pages import write_pages; "
    command += "write_pages(Path(sys.argv[1]), '--execute')"
    environment = os.environ | {"WALKTHROUGH_DATA": "shapes10", "WALKTHROUGH_ROOT": str(tmp_path), "TQDM_DISABLE": "1"}
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "html")], check=True, cwd=project, env=environment)
    assert len(list((tmp_path / "html").glob("0*.html"))) == 5


def images_a_second(batches, do=lambda images: None):
    """Over all batches but the first, in which workers start and kernels are chosen; and the images among them."""
    batches, seen = iter(batches), 0
    do(next(batches)[0])
    start = time.perf_counter()
    for images, _ in batches:
        do(images)
        seen += len(images)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return seen / (time.perf_counter() - start)


def test_loader_keeps_up_with_the_device(monkeypatch, capsys):
    """Prints what the loader gives by itself, what the device takes by itself, and what an epoch of `fit` makes of the two."""
    size, rng, loaders = 50_000 if DEVICE.type == "cuda" else 256, np.random.default_rng(0), []
    data = Dataset(rng.integers(0, 256, (size, 32, 32, 3), np.uint8), rng.integers(0, 10, size), shapes.CLASSES)
    monkeypatch.setattr(training, "make_loader", lambda *args: loaders.append(make_loader(*args)) or loaders[-1])
    config, model = TrainConfig(epochs=3, degrees=0), resnet18()
    history = fit(model, data, None, config, DEVICE)  # the first epoch chooses kernels
    run = Run(model.train(), config, 1000, DEVICE)
    batch = [part.to(DEVICE) for part in next(iter(loaders[0]))]
    batch[0] = batch[0].contiguous(memory_format=torch.channels_last)
    step = lambda images: train_step(run, model, images, batch[1], make_criterion(data, config), 32)  # noqa: E731
    loader, device = images_a_second(loaders[0]), images_a_second([batch] * (size // len(batch[1])), step)
    epoch = size / history["seconds"].iloc[1:].mean()
    rates = f"loader {loader:,.0f}, device {device:,.0f}, epoch {epoch:,.0f} images/s"
    with capsys.disabled():
        print(f"\n{rates}: {loaders[0].num_workers} workers, {os.cpu_count()} cores, PyTorch {torch.__version__}")
    assert epoch > 0.5 * min(loader, device), rates  # less, and neither would have worked while the other did
