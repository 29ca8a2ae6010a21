"""The network: a pre-activation ResNet-18 for 32x32 images, and a copy of it with a finer grid."""

import copy
import os
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from helpers.data import MEAN, STD
from helpers.support.device import unwrapped
from helpers.support.weights import load_network, write_weights

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
STRIDED_STAGES = STAGES[2:]  # those that halve the grid


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, added to a shortcut.

    He et al. 2016, arXiv:1603.05027, figure 4e.

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: of the first convolution; 2 halves height and width.
    """

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        residual = self.conv1(activated)
        residual = self.conv2(F.relu(self.norm2(residual)))
        return residual + shortcut


class PreActResNet(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes); H and W from 16 to 64.

    The first step normalises: it subtracts `mean` and divides by `std`, per channel, so no one else
    has to. Global average pooling and one linear layer follow `layer4` directly: that is what makes
    Grad-CAM there an exact account of a logit.

    Args:
        num_classes: how many logits.
        width: channels of the first stage, at least 16.
        mean: of each channel of the training images, in [0, 1].
        std: standard deviation of each channel.

    Raises:
        ValueError: `width` is too small; in calls, images of another shape or of whole numbers.
    """

    def __init__(self, num_classes: int, width: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        if width < 16:
            raise ValueError(
                f"width must be at least 16, got {width}: narrower nets crash PyTorch on some CPUs"
            )
        self.mean = nn.Buffer(torch.tensor(mean).view(1, 3, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, 2 * width, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, stride=2)
        self.layer4 = _stage(4 * width, 8 * width, stride=2)
        self.fc = nn.Linear(8 * width, num_classes)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Images with mean 0 and standard deviation 1 per channel over the training set."""
        return (images.to(self.mean.dtype) - self.mean) / self.std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            found = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images must be floats (N, 3, H, W) in [0, 1], got {found}")
        x = self.stem(self.normalise(images))
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        pooled = x.mean(dim=(2, 3))
        return self.fc(pooled)


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    first = PreActBlock(in_channels, channels, stride)
    second = PreActBlock(channels, channels, stride=1)
    return nn.Sequential(first, second)


def resnet18(
    num_classes: int = 10,
    width: int = 64,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> PreActResNet:
    """Build the network with fresh random weights: 11,171,146 parameters at the defaults.

    Args:
        num_classes: how many logits.
        width: channels of the first stage (64, 128, 256, 512 for 64); 16 makes a network of 0.7
            million parameters.
        mean: of each channel of the training images, in [0, 1]; by default CIFAR-10's.
        std: standard deviation of each channel.
    """
    return PreActResNet(num_classes, width, mean, std)


def dilated(model: PreActResNet, stages: Sequence[str] = ("layer4",)) -> PreActResNet:
    """A copy on the same weights whose last grid is twice as fine for each of these stages.

    The first block of such a stage keeps all positions instead of skipping every other one. To see
    the same neighbours as before, all later 3x3 convolutions reach twice as far. This is the
    "algorithme à trous" (Holschneider et al. 1989), as in dilated residual networks (Yu et al.
    2017, arXiv:1705.09914). Every second cell of its maps, in both directions and from the first
    on, is a cell of the original network's. Its logits are means over more cells, so they are close
    to the original's, not equal.

    Args:
        model: left as it is.
        stages: any of "layer2", "layer3", "layer4"; ("layer4",) makes 8 x 8 cells of 32 x 32
            pixels, ("layer3", "layer4") 16 x 16.

    Raises:
        ValueError: another stage, or another kind of network.
    """
    for name in stages:
        if name not in STRIDED_STAGES:
            raise ValueError(f"cannot dilate {name!r}: choose among {', '.join(STRIDED_STAGES)}")
    original = unwrapped(model)
    if not isinstance(original, PreActResNet):
        name = type(original).__name__
        raise ValueError(f"cannot dilate a {name}: give a network that resnet18() builds")
    with torch.inference_mode(False):  # else the copy's weights could have no gradients
        fine = copy.deepcopy(original)
    spacing = 1  # cells of the finer grid from one cell of the original grid to the next
    for name in STRIDED_STAGES:
        first, second = unwrapped(getattr(fine, name))
        stride = 1 if name in stages else 2
        first.conv1.stride = first.shortcut.stride = (stride, stride)
        first.conv1.dilation = first.conv1.padding = (spacing, spacing)
        spacing = 2 * spacing // stride
        for conv in (first.conv2, second.conv1, second.conv2):
            conv.dilation = conv.padding = (spacing, spacing)
    return fine


@torch.inference_mode()
def activations(model: PreActResNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The outputs of the stem and of each stage.

    Args:
        model: used in the mode it is in: in training mode batch norm uses these images' statistics.
        images: (N, 3, H, W) in [0, 1].

    Returns:
        {"stem": (N, width, H, W), ..., "layer4": (N, 8 * width, H / 8, W / 8)}.
    """
    model = unwrapped(model)
    x = model.normalise(images)
    found = {}
    for name in STAGES:
        x = model.get_submodule(name)(x)
        found[name] = x
    return found


def save_weights(model: PreActResNet, path: str | os.PathLike, classes: Iterable[str]) -> None:
    """Write a model's weights and batch-norm statistics in half precision, with its classes.

    Args:
        model: `mean` and `std` stay in full precision. Wrappers such as torch.compile's are taken
            off.
        path: replaced in one step.
        classes: names, in the order of the logits.

    Raises:
        ValueError: a weight is NaN, or beyond half precision; the training was stopped; the network
            is a dilated one, which the file could not tell from the one that it was made of.
        OSError: the file cannot be written.
    """
    network = unwrapped(model)
    if vars(network).get("unfinished"):
        raise ValueError(f"this network's training was stopped: let `fit` end, then write {path}")
    if network.get_submodule("layer4.1.conv1").dilation != (1, 1):
        raise ValueError("a dilated network is not written: write the one that it was made of")
    write_weights(path, network.state_dict(), classes, full_precision=("mean", "std"))


def load_pretrained(
    name: str | os.PathLike = "cifar10", classes: Iterable[str] | None = None
) -> PreActResNet:
    """Load a trained network in eval mode, on the CPU, in float32.

    Args:
        name: "cifar10" or "shapes10" (shipped in `helpers/weights`), the name of an image folder
            that notebook 02 has trained on (`runs/<name>.pt`), or the path of a file that
            `save_weights` wrote, from here or from the project's folder.
        classes: of the data it is to be used on, in order: the network must have been trained on
            these. None: any will do.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: the file does not hold this network, is damaged, or knows other classes. Nothing
            in it is executed.
    """
    model = load_network(name, _untrained, classes)
    return model.eval().to(memory_format=torch.channels_last)


def _untrained(state: dict[str, torch.Tensor]) -> PreActResNet:
    """The network that a state belongs to, by the shape of its last layer."""
    num_classes, features = state["fc.weight"].shape
    return resnet18(num_classes, width=features // 8)
