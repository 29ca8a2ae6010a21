"""Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391): where in the image a class's logit comes from."""

from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn


class GradCAM:
    """Grad-CAM of a classifier's logits at one of its layers.

    model: maps images (N, C, H, W) to logits (N, num_classes).  layer: the name of a module whose output is (N, channels, h, w).
    The model is left as it was found: its mode, `requires_grad`, `.grad` and hooks, after an exception too.
    Raises ValueError for an unknown layer, and in calls for images or classes of a wrong shape, type or range.
    """

    def __init__(self, model: nn.Module, layer: str = "layer4"):
        model = getattr(model, "_orig_mod", model)  # torch.compile's result would not run the hook
        modules = dict(model.named_modules())
        if layer not in modules or not layer:
            known = ", ".join(name for name in modules if 0 < len(name) and name.count(".") < 2)
            raise ValueError(f"no layer {layer!r} in this model: choose one of {known}")
        self.model, self.layer = model, modules[layer]

    def __call__(self, images: torch.Tensor, classes=None) -> torch.Tensor:
        """Heatmaps in [0, 1] at the images' size: (N, H, W), or (N, K, H, W) for classes (N, K).

        `as_heatmaps` of `evidence`.
        """
        return as_heatmaps(self.evidence(images, classes), images.shape[-2:])

    def evidence(self, images: torch.Tensor, classes=None) -> torch.Tensor:
        """Raw signed maps at the layer's own resolution, in units of the logit, float32: (N, h, w), or (N, K, h, w).

        images: (N, C, H, W) floats as the model takes them; the maps lie on their device, wherever the model is.
        classes: the class to explain: None (the predicted one), an int, or integers (N,) or (N, K). K classes cost one forward
        pass and one backward pass from the logits to the layer, and the memory of K such gradients.
        The channels' mean gradients weigh the channels' activations (eqs. 1 and 2, before the ReLU). Where global average
        pooling and one linear layer follow, a map's cells sum to the logit less its bias.
        """
        _check_images(images)
        with _undisturbed(self.model), torch.inference_mode(False), torch.no_grad():
            there = beside(self.model, images)
            activations, logits = self._forward(there.clone() if there.is_inference() else there)
            classes = _as_classes(classes, logits)
            scores = logits.gather(1, classes.reshape(len(logits), -1)).sum(0)
            weights = _gradients(scores, activations).float().mean(dim=(3, 4))
            maps = torch.einsum("knc,nchw->nkhw", weights, activations.detach().float()).to(images.device)
        return maps[:, 0] if classes.ndim == 1 else maps

    def _forward(self, images):
        """The layer's output, as the only tensor that gradients are taken for, and the logits that follow from it."""
        kept = []

        def cut(module, inputs, output):
            if kept or not isinstance(output, torch.Tensor) or output.ndim != 4:
                raise ValueError("the layer must run once and put out one tensor (N, channels, h, w)")
            kept.append(output.detach().requires_grad_())
            torch.set_grad_enabled(True)
            return kept[0].clone()  # a copy, so that an in-place operation that follows spares the original

        handle = self.layer.register_forward_hook(cut)
        try:
            logits = self.model(images)
        finally:
            handle.remove()
        if not kept:
            raise ValueError("the model does not call this layer: choose one that it runs")
        if logits.ndim != 2 or len(logits) != len(images):
            raise ValueError(f"the model must return logits (N, num_classes), got {tuple(logits.shape)}")
        return kept[0], logits


def beside(model, images: torch.Tensor) -> torch.Tensor:
    """The images on the device of the model's parameters, if it has any (a plain function has none)."""
    parameters = getattr(model, "parameters", list)()
    return images.to(next((parameter.device for parameter in parameters), images.device))


def as_heatmaps(maps: torch.Tensor, size) -> torch.Tensor:
    """Raw maps (N, h, w) or (N, K, h, w) as heatmaps in [0, 1] of this size (H, W).

    Negative cells are set to 0, the grid is upsampled bilinearly and divided by its maximum; a map without positive evidence is
    0 everywhere, and one that holds NaN is NaN.
    """
    grid = maps.relu().reshape(len(maps), -1, *maps.shape[-2:])
    heat = F.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    peak = heat.amax(dim=(-2, -1), keepdim=True)
    heat = torch.where(peak == 0, torch.zeros_like(heat), heat / peak)
    return heat.reshape(*maps.shape[:-2], *size)


def _gradients(scores, activations):
    """Gradients of K scores with respect to activations (N, C, h, w), in one backward pass: (K, N, C, h, w)."""
    if len(scores) == 1:
        return torch.stack(torch.autograd.grad(scores[0], activations))
    (gradients,) = torch.autograd.grad(scores, activations, torch.eye(len(scores)).to(scores), is_grads_batched=True)
    return gradients


@contextmanager
def _undisturbed(model):
    """Run the model in eval mode and give every module its own mode back."""
    training = [module for module in model.modules() if module.training]
    grad_enabled = torch.is_grad_enabled()
    model.eval()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad_enabled)
        for module in training:
            module.training = True


def _check_images(images):
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        raise ValueError(f"images must be a tensor of floats in [0, 1], got {getattr(images, 'dtype', type(images).__name__)}")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must have the shape (N, 3, H, W) with N at least 1, got {tuple(images.shape)}")
    low, high = images.aminmax()
    if not (low >= -0.01 and high <= 1.01):  # room for what resampling may round; NaN is neither
        raise ValueError(f"images must lie in [0, 1], got {low:.3g} to {high:.3g}: neither 0 to 255 nor normalised")


def _as_classes(classes, logits):
    """Class numbers as an int64 tensor (N,) or (N, K) on the logits' device, checked."""
    n, num_classes = logits.shape
    if classes is None:
        return logits.detach().argmax(1)
    try:
        classes = torch.as_tensor(classes, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"classes must be integers, got {classes!r}") from error
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise ValueError(f"classes must be integers, got {classes.dtype}")
    if classes.ndim == 0:
        classes = classes.expand(n)
    if classes.ndim not in (1, 2) or len(classes) != n or classes.numel() == 0:
        raise ValueError(f"classes must be one for each of the {n} images, (N,) or (N, K), got the shape {tuple(classes.shape)}")
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(f"classes must lie between 0 and {num_classes - 1}, got {classes.min()} to {classes.max()}")
    return classes.long().clone()  # a tensor made in inference mode could not take part in the backward pass
