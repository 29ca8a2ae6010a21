"""One layer of a network: found by its name, its output kept, and gradients taken down to it."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from helpers.support.device import eval_mode, plain_name

_LOCK = threading.RLock()  # one explanation at a time: each puts a hook into its model for a moment


def find_layer(model: nn.Module, layer: Any) -> nn.Module:
    """The module of the model that is meant: itself, its name, or a list of one of these.

    Raises:
        ValueError: the model is traced, or has no such layer; the message lists those there are.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a traced or scripted model hides its layers: give what it was made of")
    if isinstance(layer, list | tuple) and len(layer) == 1:
        layer = layer[0]
    if isinstance(layer, nn.Module) and any(layer is part for part in list(model.modules())[1:]):
        return layer
    known = ", ".join(name for name, _ in model.named_modules() if name and name.count(".") < 2)
    if not isinstance(layer, str):
        raise ValueError(f"give one layer of this model: its name or the module; there are {known}")
    for name in filter(None, (layer, plain_name(layer))):
        with suppress(AttributeError):
            return model.get_submodule(name)
    raise ValueError(f"no layer {layer!r} in this model: choose one of {known}")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, without gradients, and to this thread alone."""
    with _LOCK, eval_mode(model), torch.inference_mode(False), torch.no_grad():
        yield


def run_keeping_output(model: nn.Module, layer: nn.Module, images: Tensor) -> tuple[Tensor, Any]:
    """Run a model, and differentiate nothing below one of its layers.

    Args:
        model: within `undisturbed`.
        layer: of the model.
        images: what the model takes.

    Returns:
        The output of the layer, a tensor that gradients can be taken for, and what the model
        returned, computed from it.

    Raises:
        ValueError: the layer did not run, or not once, or put out something else than a tensor.
    """
    kept: list[Tensor] = []
    thread = threading.get_ident()
    modes = _GradientModes()

    def keep_output(module: nn.Module, inputs: Any, output: Any) -> Any:
        if threading.get_ident() != thread:
            return output  # somebody else's forward pass
        if kept or not isinstance(output, Tensor):
            raise ValueError("the layer must run once and give one tensor (N, channels, h, w)")
        kept.append(output.detach().requires_grad_())
        modes.above_layer = True
        return kept[0].clone()  # the next module may change it in place

    handle = layer.register_forward_hook(keep_output)
    try:
        with modes, _without_compilation():
            returned = model(images)
    finally:
        handle.remove()
    if not kept:
        raise ValueError("the model does not call this layer, or hides it: choose another")
    return kept[0], returned


def gradient(score: Tensor, kept: Tensor) -> Tensor:
    """The gradient of a score for the output of the layer that was kept.

    Raises:
        ValueError: none leads from the one to the other.
    """
    try:
        return torch.autograd.grad(score, kept, retain_graph=True)[0]
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            "no gradient leads from the logits to the layer: switch off what detaches or "
            f"checkpoints it in the model, or choose another layer ({reason})"
        ) from error


def may_have_channels_last(output: Tensor, images: Tensor, model: nn.Module) -> bool:
    """Whether axes 1 and 2 of a layer's output have the images' proportions, and 2 and 3 do not."""
    height, width = images.shape[2:]
    fits = [  # but for rounding
        abs(rows * width - columns * height) < max(height, width)
        for rows, columns in (output.shape[1:3], output.shape[2:])
    ]
    # If as many channels as rows leave it open: who puts channels last norms them with LayerNorm.
    return fits[0] and (
        not fits[1] or any(isinstance(part, nn.LayerNorm) for part in model.modules())
    )


class _GradientModes(TorchFunctionMode):
    """Gradients above the layer, whatever gradient mode a forward pass opens itself."""

    above_layer = False

    def __torch_function__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch._C._set_grad_enabled and self.above_layer:
            args = (True,)
        if not torch.is_inference_mode_enabled():
            if self.above_layer:
                torch._C._set_grad_enabled(True)
            return function(*args, **(kwargs or {}))
        with torch.inference_mode(False), torch.set_grad_enabled(self.above_layer):
            return function(*args, **(kwargs or {}))


def _without_compilation() -> AbstractContextManager:
    """Run what torch.compile has compiled as it was before: its code does not call hooks."""
    compiler = sys.modules.get("torch._dynamo")  # not imported: nothing has been compiled
    return compiler.set_stance("force_eager") if compiler else nullcontext()
