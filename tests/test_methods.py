import copy

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import LayerActivation, LayerGradientXActivation, Occlusion
from tools import resnet_with_lively_norms
from torch.testing import assert_close

from helpers.methods import explainers, occlusion

IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([4, 0, 9])
LAYERS = ["layer2", "layer4"]


@pytest.fixture(scope="module")
def model():
    model = resnet_with_lively_norms()
    model.fc.weight.data *= 30  # gradients as large as a trained network's
    return model.eval()


def of_captum(model, layer):
    """Activations of a layer, and gradients of the classes' logits for them: (N, C, h, w) each."""
    module = model.get_submodule(layer)
    activations = LayerActivation(model, module).attribute(IMAGES)
    product = LayerGradientXActivation(model, module, multiply_by_inputs=False)
    return activations.detach(), product.attribute(IMAGES, CLASSES).detach()


def plus_plus(activations, gradients):
    """Equations 5 and 19 of the paper, cell by cell, with pytorch-grad-cam's 1e-6."""
    maps = []
    for a, g in zip(activations.double().numpy(), gradients.double().numpy()):
        alpha = np.zeros_like(g)
        for k, i, j in np.ndindex(*g.shape):
            alpha[k, i, j] = g[k, i, j] ** 2 / (
                2 * g[k, i, j] ** 2 + a[k].sum() * g[k, i, j] ** 3 + 1e-6
            )
        weights = (alpha * np.maximum(g, 0)).sum((1, 2))
        maps.append(sum(w * channel for w, channel in zip(weights, a)))
    return torch.from_numpy(np.stack(maps)).float()


BY_HAND = {
    "Grad-CAM": lambda a, g: (a * g.mean((2, 3), keepdim=True)).sum(1),
    "HiResCAM": lambda a, g: (a * g).sum(1),
    "LayerCAM": lambda a, g: (a * g.clamp(min=0)).sum(1),
    "Grad-CAM++": plus_plus,
    "class-free map": lambda a, g: (a * a).sum(1),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", BY_HAND)
def test_each_method_equals_its_formula_on_what_captum_finds(model, name, layer):
    expected = BY_HAND[name](*of_captum(model, layer))
    maps = explainers(model, layer)[name](IMAGES, CLASSES)
    assert_close(maps / expected.abs().max(), expected / expected.abs().max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 4), (24, 48, 3)])
def test_occlusion_equals_captum(model, height, width, side):
    images = torch.nn.functional.interpolate(IMAGES, (height, width))
    window = (3, height // side, width // side)
    colours = images.mean((2, 3), keepdim=True).expand_as(images)
    expected = Occlusion(model).attribute(
        images, window, strides=window, baselines=colours, target=CLASSES
    )
    expected = expected[:, 0, :: height // side, :: width // side].detach()
    assert_close(occlusion(model, images, CLASSES, side), expected, rtol=0, atol=1e-5)


def test_before_the_average_every_cell_has_the_same_gradient(model):
    maps = {name: explain(IMAGES, CLASSES) for name, explain in explainers(model).items()}
    assert_close(maps["HiResCAM"], maps["Grad-CAM"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(maps["LayerCAM"], maps["Grad-CAM"], rtol=0.1)


def test_every_method_takes_classes_as_evidence_does_and_any_network(model):
    torch.manual_seed(0)
    other = torchvision.models.resnet18(num_classes=10)  # in training mode
    pairs = torch.stack([CLASSES, CLASSES.roll(1)], 1)
    for network in (model, other):
        predicted = copy.deepcopy(network).eval()(IMAGES).argmax(1)
        for name, explain in explainers(network).items():
            both = explain(IMAGES, pairs)
            assert both.shape[:2] == (3, 2), name
            assert_close(both[:, 0], explain(IMAGES, CLASSES), rtol=1e-4, atol=1e-6)
            assert torch.equal(explain(IMAGES, None), explain(IMAGES, predicted)), name
            with pytest.raises(ValueError, match="classes must"):
                explain(IMAGES, 10)
    assert other.training
