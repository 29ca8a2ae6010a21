"""Other methods beside Grad-CAM, and one dictionary of them all.

The first four make maps (N, h, w) of a layer's activations and of the gradients of a logit for
them, both (N, C, h, w): `GradCAM(model, layer, method=hires_cam)`.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.gradcam import ClassNumbers, GradCAM, as_class_numbers, weigh_channels
from helpers.support.device import eval_mode, to_device_of


def hires_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM (Draelos and Carin 2020, arXiv:2011.08891): a cell's own gradients weigh it."""
    return (gradients * activations).sum(1)


def layer_cam(activations: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM (Jiang et al. 2021, 10.1109/TIP.2021.3089943): those of them that are positive."""
    return (gradients.relu() * activations).sum(1)


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018, arXiv:1710.11063): equations 5 and 19.

    It is made for the output of a ReLU: elsewhere the denominator can come near zero. The 1e-6 is
    pytorch-grad-cam's; where gradients are that small, it changes their weights.
    """
    sums = activations.sum((2, 3), keepdim=True)
    shares = gradients**2 / (2 * gradients**2 + sums * gradients**3 + 1e-6)
    weights = (shares * gradients.relu()).sum((2, 3), keepdim=True)
    return (weights * activations).sum(1)


def class_free(activations: Tensor, gradients: Tensor) -> Tensor:
    """Where the layer is active, whatever the class: the squared activations added up."""
    return activations.square().sum(1)


def occlusion(
    model: nn.Module, images: Tensor, classes: ClassNumbers = None, side: int = 4
) -> Tensor:
    """By how much a logit falls when a cell is painted over with the image's mean colour.

    Zeiler and Fergus 2014, arXiv:1311.2901. It costs a forward pass for each cell.

    Args:
        model: maps images to logits (N, num_classes).
        images: (N, C, H, W), on any device.
        classes: as `GradCAM.evidence` takes them.
        side: the image is divided into side x side cells.

    Returns:
        (N, side, side), or (N, K, side, side) for classes (N, K), on the device of the images.
    """
    with eval_mode(model), torch.inference_mode():
        inputs = to_device_of(model, images)
        logits = model(inputs)
        numbers = as_class_numbers(classes, logits)
        colour = inputs.mean((2, 3), keepdim=True)
        cells = torch.eye(side**2, device=inputs.device).view(-1, 1, side, side)
        falls = []
        for cell in F.interpolate(cells, inputs.shape[2:]).bool():  # (1, H, W)
            fall = logits - model(torch.where(cell, colour, inputs))
            falls.append(fall.gather(1, numbers.reshape(len(inputs), -1)))  # (N, K)
        maps = torch.stack(falls, 2).unflatten(2, (side, side)).to(images.device)
    return maps[:, 0] if numbers.ndim == 1 else maps


def explainers(model: nn.Module, layer: str = "layer4") -> dict[str, Callable[..., Tensor]]:
    """All methods by name; each is called as `GradCAM.evidence`, with images and classes.

    Args:
        model: maps images (N, 3, H, W) in [0, 1] to logits (N, num_classes).
        layer: whose activations and gradients are used; occlusion needs none.
    """
    methods = {
        "Grad-CAM": weigh_channels,
        "HiResCAM": hires_cam,
        "LayerCAM": layer_cam,
        "Grad-CAM++": grad_cam_plus_plus,
        "class-free map": class_free,
    }
    found = {name: GradCAM(model, layer, method=each).evidence for name, each in methods.items()}
    return {**found, "occlusion": partial(occlusion, model)}
