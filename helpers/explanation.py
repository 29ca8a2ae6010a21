"""Measure heatmaps: do they find the object, does the network need what they mark, how alike are two of them?"""

import copy

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import rankdata

from helpers.data import MEAN, to_float
from helpers.evaluation import accuracy_interval, as_undecided
from helpers.gradcam import GradCAM, beside


def pointing_game(heatmaps: torch.Tensor, masks: np.ndarray) -> np.ndarray:
    """Whether each map's peak lies on its object (Zhang et al. 2016, arXiv:1608.00507), 0 or 1; a blank map is a miss.

    heatmaps: (N, H, W) in [0, 1].  masks: (N, H, W) bool.  Returns (N,).
    """
    flat = _cells(heatmaps)
    hits = masks.reshape(len(masks), -1)[np.arange(len(flat)), flat.argmax(1)]
    return (hits & (flat.max(1) > 0)).astype(float)


def pointing_games(cams: dict, one, two: dict) -> dict[tuple, np.ndarray]:
    """Play the pointing game on images of one object and on images of two: {(name, game): hits} for cams {name: a `GradCAM`}.

    one: a data set with masks.  two: as `shapes.generate_pairs` makes them; the map of each object's class is scored on that
    object, and on the other one, which it should leave alone.
    """
    images, hits = to_float(torch.from_numpy(two["images"]).permute(0, 3, 1, 2)), {}
    masks = two["masks"].reshape(-1, *two["masks"].shape[2:])
    for name, cam in cams.items():
        hits[name, "one object"] = pointing_game(cam(one.tensor()), one.masks)
        maps = cam(images, two["labels"])
        hits[name, "its own of two"] = pointing_game(maps.flatten(0, 1), masks)
        hits[name, "the other of two"] = pointing_game(maps.flip(1).flatten(0, 1), masks)
    return hits


def hit_rates(hits: dict) -> pd.DataFrame:
    """Share of hits in each array of 0s and 1s and its 95 % Wilson interval, a row each: the columns mean, from and to."""
    rows = {key: (hit.mean(), *accuracy_interval(hit.sum(), len(hit))) for key, hit in hits.items()}
    return pd.DataFrame(rows, ["mean", "from", "to"]).T


def centred_gaussian(size: int) -> torch.Tensor:
    """A heatmap (size, size) that knows only that objects tend to be in the middle; its spread is a quarter of the side."""
    distance = (torch.arange(size) - (size - 1) / 2) / (size / 4)
    bell = torch.exp(-(distance**2) / 2)
    return bell[:, None] * bell


def oracle(masks: np.ndarray, cells: int = 4) -> torch.Tensor:
    """The best heatmaps that a grid of cells x cells can give: each mask averaged over the cells and upsampled; (N, H, W)."""
    grid = F.adaptive_avg_pool2d(torch.from_numpy(masks).float()[:, None], cells)
    heat = F.interpolate(grid, size=masks.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(1e-12)


@torch.inference_mode()
def deletion(model, images: torch.Tensor, classes, order: np.ndarray, at_once: int = 1, batch_size: int = 100) -> np.ndarray:
    """Probability of a class as the image's cells are painted over, one after the other (Samek et al. 2017, arXiv:1509.06321).

    images: (N, 3, S, S) in [0, 1].  order: (N, g * g) cell numbers of a g x g grid, row by row, the first one deleted first.
    A deleted cell takes the mean colour of CIFAR-10.  Returns (N, g * g / at_once + 1): before, and after each `at_once` cells.
    """
    g = int(order.shape[1] ** 0.5)
    images, rank = beside(model, images), np.argsort(order, axis=1).reshape(-1, 1, g, g)  # when each cell goes
    rank = F.interpolate(torch.from_numpy(rank).float(), size=images.shape[-2:], mode="nearest").to(images.device)
    grey = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    classes, curves = torch.as_tensor(classes, device=images.device), []
    for deleted in range(0, g * g + 1, at_once):
        painted = torch.where(rank < deleted, grey, images)
        p = torch.cat([model(part).float().softmax(1) for part in painted.split(batch_size)])
        curves.append(p.gather(1, classes[:, None])[:, 0].cpu().numpy())
    return np.stack(curves, axis=1)


def strongest_first(maps: torch.Tensor) -> np.ndarray:
    """The cells of each map (N, h, h) from the strongest to the weakest, (N, h * h), as `deletion` takes them."""
    return np.argsort(-_cells(maps), axis=1, kind="stable")


def another(count: int, rng: np.random.Generator) -> np.ndarray:
    """For each of `count` images the index of another one, each taken once."""
    shuffled = rng.permutation(count)
    others = np.empty_like(shuffled)
    others[shuffled] = np.roll(shuffled, 1)
    return others


def deletion_orders(maps: torch.Tensor, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Orders in which to delete an image's cells: by its own map, and by what knows nothing of this image.

    maps: (N, h, h), of N images that play the same part.  Returns orders as `deletion` takes them, (N, h * h) each: strongest
    cell first by the image's own map, by the map of another of the N images and by the mean map; the centre first; at random.
    """
    orders = {
        "own map": strongest_first(maps),
        "another image's map": strongest_first(maps[another(len(maps), rng)]),
        "mean map": strongest_first(maps.mean(0).expand_as(maps)),
        "centre first": strongest_first(centred_gaussian(maps.shape[-1]).expand_as(maps)),
    }
    return orders | {"random order": rng.permuted(orders["own map"], axis=1)}


def deletion_gains(model, images: torch.Tensor, classes, orders: dict, at_once: int = 1) -> dict[str, np.ndarray]:
    """By how much each order lowers the probability more than "random order", on average over the steps of `deletion`.

    orders: {name: order}, "random order" among them.  Returns {name: (N,)} for the others; 0: no better than chance.
    """
    areas = {name: deletion(model, images, classes, order, at_once).mean(1) for name, order in orders.items()}
    return {name: areas["random order"] - area for name, area in areas.items() if name != "random order"}


def deletion_panels(gains: dict[str, dict[str, np.ndarray]], own: str = "own map") -> dict[str, pd.DataFrame]:
    """Two tables to draw side by side: what each order gains over random order, and what the map `own` gains over each order.

    gains: {group of images: as `deletion_gains` returns it}.  The rows are (order, group); see `mean_intervals`.
    """
    by_order = {(order, group): gain for group, found in gains.items() for order, gain in found.items()}
    ahead = {(order, group): gains[group][own] - gain for (order, group), gain in by_order.items()}
    return {"gain over random order (dashed)": mean_intervals(by_order), f"{own} less this one": mean_intervals(ahead)}


def randomised(model, stages, seed: int = 0):
    """A copy of the model in which these parts have fresh random weights (Adebayo et al. 2018, arXiv:1810.03292)."""
    changed = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in [m for name in stages for m in changed.get_submodule(name).modules()]:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return changed


def randomisation(model, images: torch.Tensor, classes, parts=("fc", "layer4", "layer3", "layer2", "layer1")) -> dict:
    """How like its own image's map, and how like another's, a map remains as the network is randomised part after part.

    Returns {step: table as `same_minus_other` returns it}, the first step being the network as it is.
    """
    original, found = GradCAM(model).evidence(images, classes), {}
    for count in range(len(parts) + 1):
        maps = GradCAM(randomised(model, parts[:count])).evidence(images, classes)
        step = f"and {parts[count - 1]}" if count else "as trained"
        found[step] = same_minus_other(rank_correlation(maps, original, every=True))
    return found


def diagnose(evidence: torch.Tensor) -> list[str]:
    """Say of each raw map (N, h, w) how much of it speaks for the class, and why it is blank if it is, or that it is no map."""
    sentences = []
    for cells in evidence.detach().float().cpu().flatten(1).numpy():
        if not np.isfinite(cells).all():
            sentences.append("no map: a cell is NaN or infinite, as the network's weights or the image must be")
            continue
        positive = (cells > 0).mean()
        verdict = "blank: no cell speaks for the class" if positive == 0 else f"{positive:.0%} of the cells speak for the class"
        if not cells.any():
            verdict = "blank: the layer puts out nothing that the class depends on"
        sentences.append(f"{verdict}; evidence from {cells.min():+.2f} to {cells.max():+.2f} logit units")
    return sentences


def rank_correlation(first: torch.Tensor, second: torch.Tensor, every: bool = False) -> np.ndarray:
    """Spearman's correlation of two maps over their cells, image by image: (N, h, w) twice -> (N,) in [-1, 1].

    1: the same order of cells, -1: the opposite one, 0: unrelated. A constant map has no order and gives NaN.
    every: compare every map of the first set with every one of the second instead: (N, h, w) and (M, h, w) -> (N, M).
    """
    a, b = (_unit_ranks(maps) for maps in (first, second))
    return a @ b.T if every else (a * b).sum(1)


def _unit_ranks(maps):
    """The ranks of a map's cells less their mean, as a vector of length 1: (N, h, w) -> (N, h * w)."""
    ranks = rankdata(_cells(maps), axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ranks / np.linalg.norm(ranks, axis=1, keepdims=True)


def top_overlap(first: torch.Tensor, second: torch.Tensor, count: int = 4, every: bool = False) -> np.ndarray:
    """Intersection over union of the `count` strongest cells of two maps: (N, h, w) twice -> (N,) in [0, 1].

    Two independent maps of 16 cells score 0.158 on average with four cells each.  every: as in `rank_correlation`.
    """
    a, b = (np.argsort(np.argsort(-_cells(maps), axis=1, kind="stable"), axis=1) < count for maps in (first, second))
    shared = a.astype(float) @ b.T if every else (a & b).sum(1)
    return shared / (2 * count - shared)


def same_minus_other(likeness: np.ndarray, same=None, other=None, seed: int = 0) -> pd.DataFrame:
    """Is a map more like one of the same image than like one of another image, which may share everything else with it?

    likeness: (N, N), of each map of one set and each of another, as `rank_correlation(..., every=True)` returns it; NaNs are
    left out.  same, other: (N, N) bool, the pairs to take; by default those of one image, i = j, and all others.
    Returns the rows "same", "other" and "difference" with their mean and its 95 % interval: for each image the mean over its
    partners, then the mean over the images that have partners of both sorts. The interval is the bootstrap's (percentiles of
    1,000 resamples of the images, in both places of a pair at once, so that images which are like many others count as such).
    """
    n = len(likeness)
    itself, known, likeness = np.eye(n, dtype=bool), ~np.isnan(likeness), np.nan_to_num(likeness)
    resampled = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), 1000)
    times = np.vstack([np.ones(n), resampled])  # how often each image is in the sample, which comes first, and in each resample
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: an image without partners, a resample without images
        means = []
        for pairs in (itself if same is None else same, ~itself if other is None else other):
            pairs = pairs & known
            means.append(times @ (pairs * likeness).T / (times @ pairs.T))
        times = np.where(np.isnan(means[0] + means[1]), 0, times)
        same, other = (np.nansum(times * mean, axis=1) / times.sum(1) for mean in means)
    rows = {"same": same, "other": other, "difference": same - other}
    return pd.DataFrame({k: (x[0], *np.nanpercentile(x[1:], (2.5, 97.5))) for k, x in rows.items()}, ["mean", "from", "to"]).T


def contrasts(pairs: dict) -> dict[str, pd.DataFrame]:
    """`same_minus_other` of the rank correlation of each pair of sets of maps: {name: (first, second)}, (N, h, w) each."""
    return {name: same_minus_other(rank_correlation(*pair, every=True)) for name, pair in pairs.items()}


def contrast_panels(grids: dict[str, dict]) -> dict[str, pd.DataFrame]:
    """Same minus other for pairs of maps on several grids, as they are and without what all images share: two tables to draw.

    grids: {grid: pairs as `contrasts` takes them}.  The rows are (pair, grid), the columns mean, from and to.
    """
    raw, left = {}, {}
    for grid, pairs in grids.items():
        for name, pair in pairs.items():
            for found, maps in ((raw, pair), (left, without_shared(*pair))):
                found[name, grid] = same_minus_other(rank_correlation(*maps, every=True)).loc["difference"]
    return {"same minus other": pd.DataFrame(raw).T, "same minus other, shared pattern taken out": pd.DataFrame(left).T}


def pairs_of_maps(explain, dataset, predictions, twins=()) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of raw maps that might share a place, {what they are of: (first, second)}, (N, h, w) each.

    Of mistakes: the predicted and the actual class, and the predicted class and the likeliest that is neither; of right
    predictions that were as close a call: the best class and the second; both for log-softmax, too.
    explain: a `GradCAM` at the layer before average and linear layer `fc`.  twins: two GradCAMs of other networks, for a
    positive control: the actual class by one and by the other.
    """
    ranked, num_classes = np.argsort(-predictions.logits, axis=1), len(dataset.classes)
    wrong, close = np.flatnonzero(~predictions.correct), as_undecided(predictions)
    said, actual = predictions.predicted[wrong], predictions.labels[wrong]
    third = np.where(ranked[wrong, 1] == actual, ranked[wrong, min(2, num_classes - 1)], ranked[wrong, 1])
    of_mistakes, of_close = (all_maps(explain, dataset.tensor(indices), num_classes) for indices in (wrong, close))
    pairs = {
        "mistakes: predicted, actual": (of_class(of_mistakes, said), of_class(of_mistakes, actual)),
        "right, as close: best, second": (of_class(of_close, ranked[close, 0]), of_class(of_close, ranked[close, 1])),
        "mistakes: predicted, a third class": (of_class(of_mistakes, said), of_class(of_mistakes, third)),
    }
    bias = explain.model.fc.bias.detach().cpu()
    of_mistakes, of_close = (log_softmax_maps(m, (m.sum((2, 3)) + bias).softmax(1)) for m in (of_mistakes, of_close))
    pairs["log-softmax, mistakes"] = of_class(of_mistakes, said), of_class(of_mistakes, actual)
    pairs["log-softmax, right"] = of_class(of_close, ranked[close, 0]), of_class(of_close, ranked[close, 1])
    if twins:
        pairs["one class, two trainings"] = tuple(twin.evidence(dataset.tensor(wrong), actual) for twin in twins)
    return pairs


def without_patterns(maps: torch.Tensor, *patterns: torch.Tensor) -> torch.Tensor:
    """What is left of each map (N, h, w) when a constant and these patterns (h, w) are projected out, by least squares."""
    basis = torch.stack([torch.ones_like(maps[0]), *patterns]).flatten(1).double()
    flat = maps.flatten(1).double()
    return (flat - flat @ torch.linalg.pinv(basis) @ basis).reshape(maps.shape)


def without_shared(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of maps (N, h, w), each less what all images share: a constant, and the mean map of either set."""
    patterns = first.mean(0), second.mean(0)
    return without_patterns(first, *patterns), without_patterns(second, *patterns)


def log_softmax_maps(maps: torch.Tensor, probabilities) -> torch.Tensor:
    """Grad-CAM maps of the log-probabilities, from those of all logits (N, num_classes, h, w).

    d log p_c = d z_c - sum_k p_k d z_k, and a map is linear in the gradient. So sum_c p_c map_c is 0 in every cell, whatever the
    network: where two classes share the probability, the map of one is the negative of the other's, scaled.
    """
    p = torch.as_tensor(probabilities, dtype=maps.dtype)[:, :, None, None]
    return maps - (p * maps).sum(dim=1, keepdim=True)


def all_maps(explain, images: torch.Tensor, num_classes: int, batch_size: int = 100) -> torch.Tensor:
    """Raw maps of every class by a `GradCAM`, (N, num_classes, h, w), in batches that fit in memory."""
    classes = torch.arange(num_classes)
    return torch.cat([explain.evidence(part, classes.expand(len(part), -1)) for part in images.split(batch_size)])


def stretched(maps: torch.Tensor, size) -> torch.Tensor:
    """Raw maps (N, h, w) enlarged to this size (H, W), each from its least cell (0) to its greatest (1), without a ReLU."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    grid = (maps - low) / (high - low).clamp_min(torch.finfo(maps.dtype).tiny)
    return F.interpolate(grid[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def of_class(maps: torch.Tensor, classes) -> torch.Tensor:
    """Pick one class's map for each image: (N, num_classes, h, w) and (N,) -> (N, h, w)."""
    return maps[torch.arange(len(maps)), torch.as_tensor(classes)]


def interval(values: np.ndarray, statistic=np.median, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentile method, 1,000 resamples of the images) of a statistic; NaNs are left out."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return float("nan"), float("nan")
    resampled = np.random.default_rng(seed).choice(values, (1000, len(values)))
    low, high = np.percentile(statistic(resampled, axis=1), (2.5, 97.5))
    return float(low), float(high)


def mean_intervals(values: dict) -> pd.DataFrame:
    """Mean and 95 % bootstrap interval of each array (N,), a row each under its key: the columns mean, from and to."""
    rows = {key: (np.nanmean(array), *interval(array, np.mean)) for key, array in values.items()}
    return pd.DataFrame(rows, ["mean", "from", "to"]).T


def _cells(maps: torch.Tensor) -> np.ndarray:
    cells = maps.detach().float().cpu().flatten(1).numpy()
    if np.isnan(cells).any():
        raise ValueError("a map holds NaN, which would be ranked and summed like a number: see `diagnose`")
    return cells
