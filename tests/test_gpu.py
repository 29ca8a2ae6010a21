"""What only a GPU shows: `pytest -m gpu`.

TEST_DEVICE=cpu runs these tests on a CPU, to try the tests themselves.
"""

import os
import subprocess
import sys

import gpu_speed
import pytest
import torch
from tools import shapes_dataset

from helpers.gradcam import GradCAM
from helpers.model import load_pretrained, resnet18
from helpers.support.device import default_device
from helpers.training import TrainConfig, TrainingState, fit

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cuda"))
if DEVICE.type == "cuda" and not torch.cuda.is_available():
    pytest.skip("no GPU here: what only a GPU shows is not tested", allow_module_level=True)
pytestmark = pytest.mark.gpu

SMALL = TrainConfig(epochs=4, batch_size=32, image_sizes=(24, 32), degrees=0)
KINDS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.fixture
def data():
    return shapes_dataset(320)


@pytest.fixture
def exact(monkeypatch):
    """Full float32: where the GPU is faster with TF32, convolutions round factors to ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def trained(data, config=SMALL, **options):
    torch.manual_seed(0)
    history = fit(resnet18(width=16), data, None, config, DEVICE, **options)
    return history["train_loss"].tolist()


def test_the_device_of_training_is_this_one(monkeypatch):
    monkeypatch.delenv("WALKTHROUGH_DEVICE", raising=False)
    assert default_device().type == DEVICE.type


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

    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        trained(data, config, compile=compile, checkpoint=checkpoint, log=stop)
    resumed = trained(data, config, compile=compile, checkpoint=checkpoint)
    assert resumed == pytest.approx(whole, rel=0.02)  # a GPU adds up in no fixed order


@pytest.mark.parametrize("kind", KINDS)
def test_forward_pass_has_the_precision_that_is_asked_for(monkeypatch, data, kind):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: kind == "bfloat16")
    model, kinds = resnet18(width=16).to(DEVICE), []
    config = TrainConfig(epochs=1, batch_size=8, mixed_precision=kind != "float32")
    scaler = TrainingState(model, config, 10, DEVICE).scaler
    assert scaler.is_enabled() == (kind == "float16") or DEVICE.type == "cpu"
    model.layer1.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    fit(model, data.subset(slice(8)), None, config, DEVICE)
    assert DEVICE.type == "cpu" or kinds == [KINDS[kind]]


def test_logits_in_float32_are_those_of_the_cpu(data, exact):
    model, images = load_pretrained("shapes10"), data.tensor(slice(64))
    with torch.inference_mode():
        here = model(images)
        there = model.to(DEVICE)(images.to(DEVICE)).cpu()
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layer", ["layer3", "layer4"])
def test_maps_are_those_of_the_cpu(data, exact, layer):
    model, images = load_pretrained("shapes10"), data.tensor(slice(64))
    classes = torch.arange(10).expand(64, 10)
    here = GradCAM(model, layer)
    expected, heat = here.evidence(images, classes), here(images, classes)
    there = GradCAM(model.to(DEVICE), layer)
    found = there.evidence(images.to(DEVICE), classes)
    assert found.device.type == DEVICE.type
    assert there.evidence(images[:2], classes[:2]).device == images.device
    tolerance = 1e-4 * expected.abs().max().item()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=tolerance)
    heat_there = there(images.to(DEVICE), classes).cpu()
    torch.testing.assert_close(heat_there, heat, rtol=1e-3, atol=1e-3)


@pytest.mark.process
def test_notebooks_run(tmp_path, project):
    command = "import sys; from pathlib import Path; "
    command += "from helpers.interactive.pages import write_pages; "
    command += "write_pages(Path(sys.argv[1]), execute=True)"
    environment = os.environ | {"WALKTHROUGH_DATA": "shapes10", "WALKTHROUGH_ROOT": str(tmp_path)}
    environment |= {"TQDM_DISABLE": "1"}
    program = [sys.executable, "-c", command, str(tmp_path / "html")]
    subprocess.run(program, check=True, cwd=project, env=environment)
    assert len(list((tmp_path / "html").glob("0*.html"))) == 5


@pytest.mark.wallclock
def test_loader_keeps_up_with_the_device(capsys):
    """Prints what loader and device manage alone, and what an epoch of `fit` makes of the two."""
    data = gpu_speed.random_data(50_000 if DEVICE.type == "cuda" else 256)
    loader = gpu_speed.of_loader(data, 128, DEVICE)
    network = gpu_speed.of_fit(data, 128, DEVICE, one_batch=True)
    epoch = gpu_speed.of_fit(data, 128, DEVICE)
    rates = f"loader {loader:,.0f}, network {network:,.0f}, epoch {epoch:,.0f} images/s"
    with capsys.disabled():
        print(f"\n{rates}: {os.cpu_count()} cores, PyTorch {torch.__version__}")
    # Less, and neither would have worked while the other did.
    assert epoch > 0.5 * min(loader, network), rates
