"""Mixed precision: 16-bit arithmetic where a machine is faster with it."""

import torch


def autocast(device: torch.device, wanted: bool) -> torch.autocast:
    """A context in which PyTorch computes in 16 bits where that pays, else in float32.

    Args:
        device: bfloat16 on a CUDA GPU or CPU with units for it, float16 on an older such GPU.
        wanted: False gives float32 everywhere.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.autocast("cuda", torch.bfloat16 if has_bfloat16 else torch.float16, wanted)
    # Without either of these units bfloat16 is emulated, and no faster than float32.
    queries = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    has_units = any(getattr(torch.cpu, query, lambda: False)() for query in queries)
    is_worth_it = device.type == "cpu" and has_units
    return torch.autocast("cpu", torch.bfloat16, wanted and is_worth_it)


def grad_scaler(device: torch.device, wanted: bool) -> torch.amp.GradScaler:
    """Scales losses up so that small gradients survive float16; does nothing elsewhere.

    Micikevicius et al. 2018, arXiv:1710.03740.

    Args:
        device: as for `autocast`.
        wanted: as for `autocast`.
    """
    in_float16 = autocast(device, wanted).fast_dtype == torch.float16
    return torch.amp.GradScaler(device.type, enabled=wanted and in_float16)
