"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): which parts of an image speak for a class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from helpers.support.device import to_device_of

ClassNumbers = ArrayLike | Tensor | None


class GradCAM:
    """Grad-CAM of a classifier's logits at one of its layers.

    The model is left as it was found: its mode, `requires_grad`, `.grad` and hooks, also when a
    call raises an exception.

    Args:
        model: maps images (N, C, H, W) to logits (N, num_classes).
        layer: name of a module whose output is one tensor (N, channels, h, w).

    Raises:
        ValueError: the model has no layer of this name.
    """

    def __init__(self, model: nn.Module, layer: str = "layer4") -> None:
        # What torch.compile returns would not run the hook on the layer, so take what it wraps.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        modules = dict(self.model.named_modules())
        if layer not in modules or not layer:
            known = ", ".join(name for name in modules if name and name.count(".") < 2)
            raise ValueError(f"no layer {layer!r} in this model: choose one of {known}")
        self.layer = modules[layer]

    def __call__(self, images: Tensor, classes: ClassNumbers = None) -> Tensor:
        """Heatmaps at the size of the images: `as_heatmaps` of `evidence`.

        Args:
            images: as `evidence` takes them.
            classes: as `evidence` takes them.

        Returns:
            (N, H, W) in [0, 1], or (N, K, H, W) for classes (N, K).

        Raises:
            ValueError: as `evidence`.
        """
        return as_heatmaps(self.evidence(images, classes), images.shape[-2:])

    def evidence(self, images: Tensor, classes: ClassNumbers = None) -> Tensor:
        """Raw maps with a sign, at the resolution of the layer.

        The layer's channels are added up, each weighted by its mean gradient (equations 1 and 2 of
        the paper, before the ReLU). If global average pooling and one linear layer follow the
        layer, the cells of a map sum to the logit minus its bias.

        Args:
            images: (N, C, H, W) floats in [0, 1], on any device.
            classes: the class to explain: None for the predicted one, an int, or integers (N,), or
                (N, K) for K classes of each image. K classes cost one forward pass and K backward
                passes from the logits down to the layer.

        Returns:
            (N, h, w), or (N, K, h, w) for classes (N, K); float32, in units of the logit, on the
            device of the images.

        Raises:
            ValueError: images or classes have a wrong shape, type or range, or the layer's output
                is not one tensor (N, channels, h, w).
        """
        _check_images(images)
        with _eval_mode(self.model), torch.inference_mode(False), torch.no_grad():
            inputs = to_device_of(self.model, images)
            if inputs.is_inference():  # such a tensor cannot take part in a backward pass
                inputs = inputs.clone()
            activations, logits = self._forward(inputs)
            numbers = _as_classes(classes, logits)
            # Images do not influence each other's logits, so one gradient of their sum serves all.
            scores = logits.gather(1, numbers.reshape(len(logits), -1)).sum(0)
            weights = _channel_weights(scores, activations)
            maps = torch.einsum("nkc,nchw->nkhw", weights, activations.detach().float())
            maps = maps.to(images.device)
        return maps[:, 0] if numbers.ndim == 1 else maps

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the model, and differentiate nothing below the layer.

        Returns:
            The output of the layer (N, channels, h, w), a tensor that gradients can be taken for,
            and the logits (N, num_classes) computed from it.
        """
        kept: list[Tensor] = []

        def keep_output(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if kept or not isinstance(output, Tensor) or output.ndim != 4:
                raise ValueError("the layer must run once and give one tensor (N, channels, h, w)")
            kept.append(output.detach().requires_grad_())
            torch.set_grad_enabled(True)
            return kept[0].clone()  # the next module may change it in place

        handle = self.layer.register_forward_hook(keep_output)
        try:
            logits = self.model(images)
        finally:
            handle.remove()
        if not kept:
            raise ValueError("the model does not call this layer: choose one that it runs")
        if logits.ndim != 2 or len(logits) != len(images):
            shape = tuple(logits.shape)
            raise ValueError(f"the model must return logits (N, num_classes), got {shape}")
        return kept[0], logits


def as_heatmaps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Heatmaps of raw maps: negative cells set to 0, upsampled bilinearly, divided by the maximum.

    Args:
        maps: (N, h, w) or (N, K, h, w).
        size: height and width of the heatmaps in pixels.

    Returns:
        (N, H, W) or (N, K, H, W) in [0, 1]. A map without a positive cell gives 0 everywhere, a map
        with a NaN gives NaN everywhere.
    """
    positive = maps.relu().reshape(len(maps), -1, *maps.shape[-2:])  # (N, K, h, w)
    heat = F.interpolate(positive, size, mode="bilinear", align_corners=False)
    peak = heat.amax(dim=(-2, -1), keepdim=True)
    heat = torch.where(peak == 0, torch.zeros_like(heat), heat / peak)
    return heat.reshape(*maps.shape[:-2], *size)


def _channel_weights(scores: Tensor, activations: Tensor) -> Tensor:
    """Mean gradients of K scores for each channel of activations (N, C, h, w): (N, K, C)."""
    weights = []
    for score in scores:
        # One by one: for batches on a CPU this is no slower than batched gradients (vmap).
        (gradient,) = torch.autograd.grad(score, activations, retain_graph=True)
        weights.append(gradient.float().mean(dim=(2, 3)))
    return torch.stack(weights, dim=1)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch the model to eval mode, and give every module its own mode back at the end."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images must be a tensor of floats in [0, 1], got {found}")
    if images.ndim != 4 or len(images) == 0:
        shape = tuple(images.shape)
        raise ValueError(f"images must have the shape (N, 3, H, W) with N at least 1, got {shape}")
    low, high = images.aminmax()
    if not (low >= -0.01 and high <= 1.01):  # tolerates rounding after resizing, but not NaN
        limits = f"{low:.3g} to {high:.3g}"
        raise ValueError(
            f"images must lie in [0, 1], got {limits}: neither 0 to 255 nor normalised"
        )


def _as_classes(classes: ClassNumbers, logits: Tensor) -> Tensor:
    """Check class numbers: int64, (N,) or (N, K), on the device of the logits (N, num_classes)."""
    count, num_classes = logits.shape
    if classes is None:
        return logits.detach().argmax(1)
    try:
        numbers = torch.as_tensor(classes, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"classes must be integers, got {classes!r}") from error
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise ValueError(f"classes must be integers, got {numbers.dtype}")
    if numbers.ndim == 0:
        numbers = numbers.expand(count)
    if numbers.ndim not in (1, 2) or len(numbers) != count or numbers.numel() == 0:
        message = f"classes must be one for each of the {count} images, (N,) or (N, K)"
        raise ValueError(f"{message}, got the shape {tuple(numbers.shape)}")
    if numbers.min() < 0 or numbers.max() >= num_classes:
        limits = f"{numbers.min()} to {numbers.max()}"
        raise ValueError(f"classes must lie between 0 and {num_classes - 1}, got {limits}")
    return numbers.long().clone()  # one made in inference mode cannot take part in a backward pass
