"""Which machines compute in 16 bits, and where losses are scaled for it."""

import pytest
import torch

from helpers.support.precision import autocast, grad_scaler

GPU = torch.device("cuda")


@pytest.fixture(params=[7, 8], ids=["Turing", "Ampere"])
def generation(request, monkeypatch):
    """The older of these GPUs has no units for bfloat16; it can compute with it, slowly."""
    properties = type("GPU", (), {"major": request.param})
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    return request.param


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")  # where there is none
def test_gpu_without_units_for_bfloat16_computes_in_float16(generation):
    assert autocast(GPU, True).fast_dtype == {7: torch.float16, 8: torch.bfloat16}[generation]


@pytest.mark.filterwarnings("ignore")  # there may be no GPU
def test_losses_are_scaled_for_float16_alone(generation, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *given, **more: asked.append((given, more)))
    for device, wanted in ((GPU, True), (GPU, False), (torch.device("cpu"), True)):
        grad_scaler(device, wanted)
    enabled = [options["enabled"] for _, options in asked]
    assert enabled == [generation == 7, False, False]
    assert [given for given, _ in asked] == [("cuda",), ("cuda",), ("cpu",)]


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "wanted", "enabled"),
    [
        (True, False, True, True),
        (False, True, True, True),
        (True, True, False, False),
        (False, False, True, False),
    ],
)
def test_cpu_computes_in_bfloat16_where_it_has_units_for_it(
    monkeypatch, amx, avx512_bf16, wanted, enabled
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16, raising=False)
    factors = torch.ones(2, 2), torch.ones(2, 2)
    with autocast(torch.device("cpu"), wanted):
        assert torch.matmul(*factors).dtype == (torch.bfloat16 if enabled else torch.float32)


def test_cpu_of_a_pytorch_without_these_questions_computes_in_float32(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    with autocast(torch.device("cpu"), True):
        assert torch.matmul(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32
