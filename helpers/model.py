"""The network: a pre-activation ResNet-18 for 32x32 images, its dilated form, and the weights that ship with the project."""

import copy
import zipfile
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers import shapes
from helpers.data import CLASSES, MEAN, STD, project_root, write_file

WEIGHTS = Path(__file__).parent / "weights"
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")
SHIPPED = {"cifar10": CLASSES, "shapes10": shapes.CLASSES}  # classes of the older files there, which do not name them


class _Windows(torch.autograd.Function):
    """Cells (N, C, H, W) in channels-last order -> all 3x3 windows of them (N, h, w, 9 * C), as a matrix product takes them."""

    @staticmethod
    def forward(ctx, x, stride):
        ctx.stride, ctx.shape = stride, x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = padded.unfold(1, 3, stride).unfold(2, 3, stride)
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    def backward(ctx, gradient):
        (n, channels, height, width), step = ctx.shape, ctx.stride
        _, h, w, _ = gradient.shape
        padded = gradient.new_zeros(n, height + 2, width + 2, channels)
        for place, part in enumerate(gradient.split(channels, dim=3)):
            y, x = divmod(place, 3)
            padded[:, y : y + step * h : step, x : x + step * w : step] += part
        return padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2), None


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with faster gradients on CPUs: where there are few cells, oneDNN's backward pass takes the longer way.

    Where gradients are wanted, up to 4 x 4 cells that are wide (or in bfloat16) are one matrix product of all windows and the
    weights, the same to rounding: a layer4 of 512 channels and 3 x 3 cells takes 0.2 times as long in bfloat16, 0.6 in float32.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__(in_channels, out_channels, 3, stride, padding=1, bias=False)

    def forward(self, x):
        stride = self.stride[0]
        few = x.shape[2] * x.shape[3] <= 16 * stride**2
        wide = self.out_channels >= 512 or torch.is_autocast_enabled("cpu")
        wanted = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # which would take minutes over the windows
        if not (wanted and few and wide and x.device.type == "cpu" and self.dilation == (1, 1)):
            return super().forward(x)
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(_Windows.apply(x, stride), weight).permute(0, 3, 1, 2)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU, added to a shortcut (He et al. 2016, arXiv:1603.05027, fig. 4e)."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv3x3(in_channels, channels, stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv2 = Conv3x3(channels, channels)
        changes_shape = stride != 1 or in_channels != channels
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False) if changes_shape else None

    def forward(self, x):
        activated = F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.norm2(self.conv1(activated)))) + shortcut


class PreActResNet(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> logits (N, num_classes); H and W from 16 to 64.

    The first step subtracts `mean` and divides by `std` (per channel, buffers), so no one else has to. Global average
    pooling and one linear layer follow `layer4` directly: that is what makes Grad-CAM there an exact account of a logit.
    Raises ValueError for images of another shape, or of whole numbers.
    """

    def __init__(self, num_classes: int = 10, width: int = 64, mean=MEAN, std=STD):
        super().__init__()
        if width < 16:
            raise ValueError(f"width must be at least 16, got {width}: PyTorch crashes when it trains narrower nets on some CPUs")
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layer1 = self._stage(width, width, stride=1)
        self.layer2 = self._stage(width, 2 * width, stride=2)
        self.layer3 = self._stage(2 * width, 4 * width, stride=2)
        self.layer4 = self._stage(4 * width, 8 * width, stride=2)
        self.fc = nn.Linear(8 * width, num_classes)

    @staticmethod
    def _stage(in_channels, channels, stride):
        return nn.Sequential(PreActBlock(in_channels, channels, stride), PreActBlock(channels, channels, 1))

    def forward(self, images):
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be floats (N, 3, H, W) in [0, 1], got {images.dtype} {tuple(images.shape)}")
        x = self.stem((images.to(self.mean.dtype) - self.mean) / self.std)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


def resnet18(num_classes: int = 10, width: int = 64, mean=MEAN, std=STD) -> PreActResNet:
    """Build the network with fresh random weights: 11,171,146 parameters at the defaults.

    width: channels of the first stage (64, 128, 256, 512 for 64); 16 makes a net of 0.7 M parameters.
    mean, std: per-channel statistics of the training images in [0, 1]; the defaults are CIFAR-10's.
    """
    return PreActResNet(num_classes, width, mean, std)


def dilated(model: PreActResNet, stages: tuple = ("layer4",)) -> PreActResNet:
    """A copy on the same weights that skips no position in these stages: each of them doubles the last grid's height and width.

    stages: any of "layer2", "layer3", "layer4"; ("layer4",) makes 8 x 8 cells of 32 x 32 pixels, ("layer3", "layer4") 16 x 16.
    The first block of a stage takes every cell instead of every second one, and all 3x3 convolutions after it take neighbours
    twice as far apart, so that each sees what it saw before: the "algorithme a trous" (Holschneider et al. 1989), as in dilated
    residual networks (Yu et al. 2017, arXiv:1705.09914). Every second cell of its maps, in both directions and from the first
    on, is the strided network's. Its logits are means over more cells, so they are close to the strided network's, not equal.
    Raises ValueError for another stage.
    """
    strided = ("layer2", "layer3", "layer4")
    if unknown := [name for name in stages if name not in strided]:
        raise ValueError(f"cannot dilate {unknown[0]!r}: choose among {', '.join(strided)}")
    with torch.inference_mode(False):  # or the copy's weights could not take part in a backward pass
        fine = copy.deepcopy(getattr(model, "_orig_mod", model))  # the model itself where it is torch.compile's
    spacing = 1  # cells of the finer grid from one cell to the next of the strided network's
    for name in strided:
        first, second = fine.get_submodule(name)
        stride = 1 if name in stages else 2
        first.conv1.stride = first.shortcut.stride = (stride, stride)
        first.conv1.dilation = first.conv1.padding = (spacing, spacing)
        spacing = 2 * spacing // stride
        for conv in (first.conv2, second.conv1, second.conv2):
            conv.dilation = conv.padding = (spacing, spacing)
    return fine


@torch.inference_mode()
def activations(model: PreActResNet, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the stem and each stage make of images (N, 3, H, W) in [0, 1]: {"stem": (N, width, H, W), ..., "layer4": ...}.

    As the model is: in training mode batch norm takes the statistics of these images.
    """
    x, found = (images - model.mean) / model.std, {}
    for name in STAGES:
        x = found[name] = model.get_submodule(name)(x)
    return found


def describe_stages(model: PreActResNet, size: int = 32) -> pd.DataFrame:
    """Output shape and receptive field of the stem and each stage for images of this size in pixels, one row a stage.

    receptive_field: side in pixels of the square of input that one cell depends on, borders aside: a convolution adds
    (kernel - 1) x the product of the strides before it.  stride: that product, pixels from one cell to the next.
    """
    rows, field, stride = [], 1, 1
    with torch.device("meta"):
        x, fresh = torch.zeros(1, 3, size, size), resnet18(model.fc.out_features, model.stem.out_channels)
    for name in STAGES:
        stage = fresh.get_submodule(name)
        for part, module in stage.named_modules():
            if isinstance(module, nn.Conv2d) and not part.endswith("shortcut"):
                field += (module.kernel_size[0] - 1) * stride
                stride *= module.stride[0]
        x = stage(x)
        rows.append((name, *x.shape[1:], field, stride))
    return pd.DataFrame(rows, columns=["stage", "channels", "height", "width", "receptive_field", "stride"])


def save_weights(model: PreActResNet, path, classes) -> None:
    """Write a model's parameters and batch-norm statistics in half precision (mean and std stay float32), and its classes' names.

    In one step: see `write_file`, for its errors too. Raises ValueError where half precision cannot hold a weight.
    """
    state = {k: v.half() if v.is_floating_point() and k not in ("mean", "std") else v for k, v in model.state_dict().items()}
    if not all_finite(state):
        raise ValueError(f"weights that are NaN, or beyond half precision, are not written to {path}: train with a lower peak_lr")
    state = {k: v.cpu().contiguous() for k, v in state.items()} | {"classes": tuple(classes)}
    write_file(path, lambda file: torch.save(state, file))


def read_file(path) -> dict:
    """What `torch.save` wrote to a file, on the CPU; nothing in it is executed. Raises an Exception for a damaged file.

    Its checksums (CRC-32) are compared first, since `torch.load` does not: it would read a flipped bit as another weight.
    """
    if zipfile.ZipFile(path).testzip() is not None:
        raise ValueError("its checksum differs")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not all_finite(state):
        raise ValueError("a number in it is NaN or infinite")
    return state


def all_finite(state) -> bool:
    """Whether each number is finite in all tensors of a dictionary, nested or not."""
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


def load_pretrained(name: str = "cifar10", classes: tuple | None = None) -> PreActResNet:
    """Load a trained network in eval mode, on the CPU, in float32.

    name: "cifar10" or "shapes10" (shipped in `helpers/weights`), the name of an image folder that notebook 02 has
    trained on (`runs/<name>.pt`), or the path of a file that `save_weights` wrote, from here or from the project's folder.
    classes: those of the data it is to be used on, in order; the network must have been trained on these. None: any will do.
    Raises FileNotFoundError when there are no such weights, ValueError when the file does not hold this network, is damaged, or
    knows other classes.  The file is read with `weights_only=True`: nothing in it is executed.
    """
    root = project_root()
    candidates = [WEIGHTS / f"{name}.pt", root / "runs" / f"{name}.pt", Path(name), root / name]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        shipped = ", ".join(sorted(p.stem for p in WEIGHTS.glob("*.pt")))
        raise FileNotFoundError(f"no weights for {str(name)!r}: shipped are {shipped}; notebook 02 trains and saves others")
    try:
        state = read_file(path)
        known = state.pop("classes", SHIPPED.get(path.stem.split("-")[0]) if path.parent == WEIGHTS else None)
        num_classes, features = state["fc.weight"].shape
        model = resnet18(num_classes, width=features // 8)
        model.load_state_dict(state)
    except Exception as error:  # which one depends on where the file is damaged
        reason = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{path} holds no weights of this network ({reason}): delete it or train again") from error
    if classes is not None and known != tuple(classes):
        raise ValueError(f"{path} knows the classes {known}, the data have {tuple(classes)}: train on them with notebook 02")
    return model.eval().to(memory_format=torch.channels_last)
