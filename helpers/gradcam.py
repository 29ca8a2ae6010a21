"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): which parts of an image speak for a class."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from helpers.support import layers
from helpers.support.device import to_device_of, unwrapped

ClassNumbers = ArrayLike | Tensor | None


def weigh_channels(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM's map: the channels added up, each weighted by its mean gradient.

    Equations 1 and 2 of the paper, before the ReLU.

    Args:
        activations: (N, C, h, w), the output of a layer.
        gradients: (N, C, h, w), of one logit of each image for that output.

    Returns:
        (N, h, w).
    """
    return torch.einsum("nc,nchw->nhw", gradients.mean((2, 3)), activations)


class GradCAM:
    """Grad-CAM of a classifier's logits at one of its layers.

    The model is left as it was found: its mode, `requires_grad`, `.grad` and hooks, also when a
    call raises an exception.

    Args:
        model: maps images (N, C, H, W) to logits (N, num_classes). The wrappers of torch.compile,
            DataParallel, DistributedDataParallel and AveragedModel are taken off.
        layer: a module of the model, or its name, whose output is one tensor (N, channels, h, w).
        output: takes the logits out of what the model returns, where that is no tensor:
            `lambda returned: returned.logits`.
        reshape: makes (N, channels, h, w) of a layer's output that is arranged in another way:
            `lambda out: out.permute(0, 3, 1, 2)` if the channels come last (Swin),
            `lambda out: out[:, 1:].mT.unflatten(2, (14, 14))` for tokens after a class token (ViT).
        method: makes maps (N, h, w) of activations and gradients, both (N, C, h, w).
        scale_checked: refuse images beyond [0, 1]. False: for a network that wants another range.

    Raises:
        ValueError: the model has no such layer, or is traced.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module | Sequence[str | nn.Module] = "layer4",
        *,
        output: Callable[[Any], Tensor] | None = None,
        reshape: Callable[[Tensor], Tensor] | None = None,
        method: Callable[[Tensor, Tensor], Tensor] = weigh_channels,
        scale_checked: bool = True,
    ) -> None:
        self.model = unwrapped(model)
        self.layer = layers.find_layer(self.model, layer)
        self.output = output
        self.reshape = reshape
        self.method = method
        self.scale_checked = scale_checked

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
            ValueError: images or classes have a wrong shape, type or range; the model returns no
                logits, or the layer's output is not one tensor (N, channels, h, w), or no gradient
                leads from the one to the other.
        """
        _check_images(images, self.scale_checked)
        with layers.undisturbed(self.model):
            inputs = to_device_of(self.model, images)
            if inputs.is_inference():  # such a tensor cannot take part in a backward pass
                inputs = inputs.clone()
            kept, returned = layers.run_keeping_output(self.model, self.layer, inputs)
            logits = self._logits(returned, len(images))
            numbers = as_class_numbers(classes, logits)
            maps = self._maps(kept, logits, numbers, inputs).to(images.device)
        return maps[:, 0] if numbers.ndim == 1 else maps

    def _logits(self, returned: Any, count: int) -> Tensor:
        """The logits (N, num_classes) in what the model returned for so many images."""
        with torch.enable_grad():
            logits = returned if self.output is None else self.output(returned)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != count:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"the model must return logits (N, num_classes), got {found}: "
                "take them out of it with output=, a function"
            )
        return logits

    def _maps(self, kept: Tensor, logits: Tensor, numbers: Tensor, images: Tensor) -> Tensor:
        """Maps (N, K, h, w) of the classes with these numbers, (N,) or (N, K)."""
        activations = self._arranged(kept.detach(), images)
        # Images do not influence each other's logits, so one gradient of their sum serves all.
        with torch.enable_grad():
            scores = logits.gather(1, numbers.reshape(len(logits), -1)).sum(0).unbind()
        maps = []
        with torch.autocast(kept.device.type, enabled=False):
            for score in scores:
                # One by one: for batches on a CPU this is no slower than batched gradients (vmap).
                gradients = self._arranged(layers.gradient(score, kept), images)
                maps.append(self.method(activations, gradients))
        return torch.stack(maps, dim=1)

    def _arranged(self, output: Tensor, images: Tensor) -> Tensor:
        """Make (N, channels, h, w) in float32 of the layer's output, or of its gradient."""
        arranged = output if self.reshape is None else self.reshape(output)
        if arranged.ndim != 4 or len(arranged) != len(images):
            raise ValueError(
                f"the layer must give (N, channels, h, w), got {tuple(arranged.shape)}: "
                "choose another, or arrange its output with reshape=, a function"
            )
        if self.reshape is None and layers.may_have_channels_last(arranged, images, self.model):
            raise ValueError(
                f"the layer's output {tuple(arranged.shape)} may have its channels last: say so "
                "with reshape=lambda out: out.permute(0, 3, 1, 2), or lambda out: out if not"
            )
        return arranged.float()


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


def _check_images(images: Tensor, scale_checked: bool) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"images must be a tensor of floats in [0, 1], got {found}")
    if images.ndim != 4 or len(images) == 0:
        shape = tuple(images.shape)
        raise ValueError(f"images must have the shape (N, 3, H, W) with N at least 1, got {shape}")
    low, high = images.aminmax()
    in_range = low >= -0.01 and high <= 1.01  # tolerates rounding after resizing, but not NaN
    if scale_checked and not in_range:
        limits = f"{low:.3g} to {high:.3g}"
        raise ValueError(
            f"images must lie in [0, 1], got {limits}: neither 0 to 255 nor normalised "
            "(scale_checked=False for a network that wants that)"
        )


def as_class_numbers(classes: ClassNumbers, logits: Tensor) -> Tensor:
    """Check the classes that are asked for.

    Args:
        classes: as `GradCAM.evidence` takes them.
        logits: (N, num_classes), of the images that are asked about.

    Returns:
        int64, (N,) or (N, K), on the device of the logits.

    Raises:
        ValueError: they have a wrong shape, type or range.
    """
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
