"""Measure heatmaps: do they find the object, and does the network need what they mark?"""

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from helpers.data import Dataset, to_float
from helpers.gradcam import GradCAM
from helpers.similarity import flatten_maps, rank_correlation, same_minus_other
from helpers.support.device import to_device_of
from helpers.support.intervals import mean_intervals

Model = Callable[[Tensor], Tensor]  # images (N, 3, H, W) -> logits (N, num_classes)


def pointing_game(heatmaps: Tensor, masks: np.ndarray) -> np.ndarray:
    """Whether the peak of each heatmap lies on the object.

    Zhang et al. 2016, arXiv:1608.00507.

    Args:
        heatmaps: (N, H, W) in [0, 1].
        masks: (N, H, W) bool, True on the object.

    Returns:
        (N,) of 1 (hit) and 0 (miss); a blank heatmap is a miss.

    Raises:
        ValueError: a pixel of a heatmap is NaN.
    """
    pixels = flatten_maps(heatmaps)
    hits = masks.reshape(len(masks), -1)[np.arange(len(pixels)), pixels.argmax(1)]
    is_blank = pixels.max(1) <= 0
    return (hits & ~is_blank).astype(float)


def pointing_games(
    cams: dict[str, GradCAM], one: Dataset, two: dict[str, np.ndarray]
) -> dict[tuple[str, str], np.ndarray]:
    """Play the pointing game on images of one object, and on images of two objects.

    Args:
        cams: {name: what explains}.
        one: a data set with masks.
        two: as `shapes.generate_pairs` returns it.

    Returns:
        {(name, game): hits, as `pointing_game` returns them}. The games are "one object"; "its own
        of two", where the map of a class is scored on the object of that class; and "the other of
        two", where it is scored on the other object, which it should not point at.
    """
    assert one.masks is not None, "take a data set with masks, such as Shapes-10"
    images = to_float(torch.from_numpy(two["images"]).permute(0, 3, 1, 2))
    masks = two["masks"].reshape(
        -1, *two["masks"].shape[2:]
    )  # both objects of the first image, ...
    hits = {}
    for name, cam in cams.items():
        hits[name, "one object"] = pointing_game(cam(one.tensor()), one.masks)
        maps = cam(images, two["labels"])  # (N, 2, H, W)
        hits[name, "its own of two"] = pointing_game(maps.flatten(0, 1), masks)
        hits[name, "the other of two"] = pointing_game(maps.flip(1).flatten(0, 1), masks)
    return hits


def centred_gaussian(size: int) -> Tensor:
    """A heatmap that knows only that objects tend to be in the middle.

    Args:
        size: height and width in pixels.

    Returns:
        (size, size) in [0, 1]: a Gaussian whose standard deviation is a quarter of `size`.
    """
    distance = (torch.arange(size) - (size - 1) / 2) / (size / 4)
    bell = torch.exp(-(distance**2) / 2)
    return bell[:, None] * bell


def best_possible_heatmaps(masks: np.ndarray, cells: int = 4) -> Tensor:
    """The best heatmaps that a coarse grid allows: masks averaged over its cells and upsampled.

    Args:
        masks: (N, H, W) bool, True on the object.
        cells: height and width of the grid.

    Returns:
        (N, H, W) in [0, 1].
    """
    grid = F.adaptive_avg_pool2d(torch.from_numpy(masks).float()[:, None], cells)
    heat = F.interpolate(grid, masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


@torch.inference_mode()
def deletion(
    model: Model,
    images: Tensor,
    classes: ArrayLike | Tensor,
    order: np.ndarray,
    at_once: int = 1,
    batch_size: int = 100,
) -> np.ndarray:
    """Probability of a class while the cells of an image are painted over, one after the other.

    Samek et al. 2017, arXiv:1509.06321.

    Args:
        model: takes images and returns logits. Its buffer `mean` (1, 3, 1, 1) is the colour to
            paint with; without one, it is the mean colour of the images.
        images: (N, 3, H, W) in [0, 1].
        classes: (N,) integers.
        order: (N, g * g) numbers of the cells of a g x g grid, counted row by row; the first one is
            painted over first.
        at_once: cells painted over in one step.
        batch_size: images in a forward pass.

    Returns:
        (N, g * g / at_once + 1): before the first step, and after each step.
    """
    images = to_device_of(model, images)
    classes = torch.as_tensor(classes, device=images.device)
    num_cells = order.shape[1]
    side = math.isqrt(num_cells)
    turns = torch.from_numpy(np.argsort(order, axis=1)).float()  # when each cell is painted over
    turns = turns.reshape(-1, 1, side, side).to(images.device)
    turns = F.interpolate(turns, images.shape[-2:], mode="nearest")
    colour = getattr(model, "mean", None)
    if colour is None:
        colour = images.mean((0, 2, 3), keepdim=True)
    curves = []
    for deleted in range(0, num_cells + 1, at_once):
        painted = torch.where(turns < deleted, colour, images)
        logits = torch.cat([model(part).float() for part in painted.split(batch_size)])
        probabilities = logits.softmax(1).gather(1, classes[:, None])
        curves.append(probabilities[:, 0].cpu().numpy())
    return np.stack(curves, axis=1)


def deletion_order(maps: Tensor) -> np.ndarray:
    """Cells of each map from the strongest to the weakest, as `deletion` takes them.

    Args:
        maps: (N, g, g).

    Returns:
        (N, g * g) numbers of cells; equal cells keep their order.

    Raises:
        ValueError: a cell is NaN.
    """
    return np.argsort(-flatten_maps(maps), axis=1, kind="stable")


def derangement(count: int, rng: np.random.Generator) -> np.ndarray:
    """Assign to each of `count` images another one, so that each is assigned once.

    Args:
        count: at least 2.
        rng: of the random draws.

    Returns:
        (count,) indices, none at its own place.
    """
    shuffled = rng.permutation(count)
    others = np.empty_like(shuffled)
    others[shuffled] = np.roll(shuffled, 1)
    return others


def deletion_orders(maps: Tensor, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Orders in which to delete an image's cells: by its own map, and for comparison without it.

    Args:
        maps: (N, g, g), of N images that play the same part, such as all mistakes.
        rng: of the random draws.

    Returns:
        {name: order (N, g * g) as `deletion` takes it}: strongest cell first by "own map", by
        "another image's map" and by "mean map"; "centre first"; and "random order".
    """
    centre = centred_gaussian(maps.shape[-1])
    orders = {
        "own map": deletion_order(maps),
        "another image's map": deletion_order(maps[derangement(len(maps), rng)]),
        "mean map": deletion_order(maps.mean(0).expand_as(maps)),
        "centre first": deletion_order(centre.expand_as(maps)),
    }
    orders["random order"] = rng.permuted(orders["own map"], axis=1)
    return orders


def deletion_gains(
    model: Model,
    images: Tensor,
    classes: ArrayLike | Tensor,
    orders: dict[str, np.ndarray],
    at_once: int = 1,
) -> dict[str, np.ndarray]:
    """How much further each order lowers the probability than random order does.

    Args:
        model, images, classes, at_once: as `deletion` takes them.
        orders: {name: order as `deletion` takes it}, "random order" among them.

    Returns:
        {name: (N,)} for the other orders: differences of probabilities, averaged over the steps of
        `deletion`; 0 is no better than chance.
    """
    means = {
        name: deletion(model, images, classes, order, at_once).mean(1)
        for name, order in orders.items()
    }
    chance = means.pop("random order")
    return {name: chance - mean for name, mean in means.items()}


def deletion_tables(
    gains: dict[str, dict[str, np.ndarray]], own: str = "own map"
) -> dict[str, pd.DataFrame]:
    """What each order gains over random order, and what one of them gains over each order.

    Args:
        gains: {group of images: gains as `deletion_gains` returns them}.
        own: the order that is compared with the others, image by image.

    Returns:
        {title: table} of two tables; their rows are (order, group), their columns mean, from and to
        (the ends of the mean's 95 % interval).
    """
    over_random, over_order = {}, {}
    for group, by_order in gains.items():
        for order, gain in by_order.items():
            over_random[order, group] = gain
            over_order[order, group] = by_order[own] - gain
    return {
        "gain over random order": mean_intervals(over_random),
        f"{own} less this one": mean_intervals(over_order),
    }


def reset_layers(model: nn.Module, layers: Sequence[str], seed: int = 0) -> nn.Module:
    """A copy of the model in which these layers have fresh random weights.

    Args:
        model: left as it is.
        layers: names of modules; all modules inside them are reset.
        seed: of the weights. The global random state is left as it is.
    """
    changed = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in layers:
            for module in changed.get_submodule(name).modules():
                reset = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
    return changed


def randomisation_test(
    model: nn.Module,
    images: Tensor,
    classes: ArrayLike | Tensor,
    layers: Sequence[str] = ("fc", "layer4", "layer3", "layer2", "layer1"),
) -> dict[str, pd.DataFrame]:
    """Similarity to the original maps as one layer after the other is re-initialised.

    Adebayo et al. 2018, arXiv:1810.03292. A map that depends on what the network has learned
    becomes unlike the original.

    Args:
        model: the trained network.
        images: (N, 3, H, W) in [0, 1].
        classes: as `GradCAM.evidence` takes them, one for each image.
        layers: names of modules, the first one is reset first.

    Returns:
        {step: table as `similarity.same_minus_other` returns it}: is a map more similar to its own
        image's original map than to another image's? The first step is the network as it is.
    """
    original = GradCAM(model).evidence(images, classes)
    found = {}
    for count in range(len(layers) + 1):
        changed = reset_layers(model, layers[:count])
        maps = GradCAM(changed).evidence(images, classes)
        step = f"and {layers[count - 1]}" if count else "as trained"
        found[step] = same_minus_other(rank_correlation(maps, original, every=True))
    return found


def diagnose(evidence: Tensor) -> list[str]:
    """Say of each raw map how much of it speaks for the class, and why it is blank if it is.

    Args:
        evidence: (N, h, w), as `GradCAM.evidence` returns it.

    Returns:
        A sentence for each map.
    """
    maps = evidence.detach().float().cpu().flatten(1).numpy()
    return [_diagnose(cells) for cells in maps]


def _diagnose(cells: np.ndarray) -> str:
    if not np.isfinite(cells).all():
        return "no map: a cell is NaN or infinite, as the network's weights or the image must be"
    positive = (cells > 0).mean()
    verdict = f"{positive:.0%} of the cells speak for the class"
    if positive == 0:
        verdict = "blank: no cell speaks for the class"
    if not cells.any():
        verdict = "blank: the layer puts out nothing that the class depends on"
    return f"{verdict}; evidence from {cells.min():+.2f} to {cells.max():+.2f} logit units"
