"""Can a heatmap be trusted? What notebook further/trust draws and cannot measure in seconds.

`python -m helpers.studies.trust deletion` (or `randomisation`) explains the test images by
`--networks`, names or files of weights. `... cheat` trains small networks on Shapes-10 that see a
mark which gives the class away, and asks them and the honest network the same. Each writes a table,
within minutes.

The records: `deletion --images 500` and `randomisation --images 100 --seeds 10`, both with
`--networks cifar10 cifar10-narrow-0 cifar10-narrow-1`, and `cheat --images 1000`. The networks
cifar10-seed-1 to -4 in them are those that `python -m helpers.studies.seeds` trains with these
seeds; their rows were made on a GPU, which draws other random weights than a CPU.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import predict
from helpers.model import STAGES, PreActResNet, activations, load_pretrained, resnet18
from helpers.similarity import derangement, rank_correlation
from helpers.studies.networks import cover_cells, logits_of, network_parser, write, write_rows
from helpers.support.command import one_line_errors
from helpers.support.device import default_device
from helpers.support.files import project_root
from helpers.support.intervals import mean_intervals
from helpers.support.precision import autocast
from helpers.training import TrainConfig, fit

LOOKS = (2, 4, 6, 8)  # cells of sixteen that are painted over
PARTS: dict[str, tuple[str, ...]] = {  # which get random weights
    "none": (),
    **{name: (name,) for name in ("fc", *reversed(STAGES))},
    "all": ("fc", *STAGES),
}
QUICK = TrainConfig(epochs=4, batch_size=50, peak_lr=0.05, padding=0, hole=0, degrees=0, flip=False)
TINT = 0.4  # share of the mark's colour in a tinted image


def right_predictions(model: PreActResNet, test: Dataset, count: int) -> tuple[Tensor, np.ndarray]:
    """So many test images at random that a network is right about.

    Returns:
        The images (count, 3, H, W) in [0, 1], and their classes (count,).
    """
    drawn = np.random.default_rng(0).permutation(len(test))[: 2 * count]
    right = drawn[predict(model, test.subset(drawn)).correct][:count]
    return test.tensor(right), test.labels[right]


@torch.inference_mode()
def maps_of(model: PreActResNet, images: Tensor, classes: np.ndarray) -> dict[str, Tensor]:
    """Raw maps at layer4: Grad-CAM's, and one that knows no class, the squared features added up.

    Args:
        model: in eval mode.
        images: (N, 3, H, W) in [0, 1].
        classes: (N,), that Grad-CAM explains.

    Returns:
        {"own map": (N, h, w), "class-free map": (N, h, w)}.
    """
    parts = [part.to(model.mean.device) for part in images.split(100)]
    features = torch.cat([activations(model, part)["layer4"].cpu() for part in parts])
    weights = model.fc.weight.cpu()[classes] / features[0, 0].numel()  # the gradient, at this layer
    own = torch.einsum("nc,nchw->nhw", weights, features)
    return {"own map": own, "class-free map": features.square().sum(1)}


# Deletion


def paints(images: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """What to paint a cell over with: the mean colour, the image itself blurred, or noise."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    blurred = avg_pool2d(images, 15, stride=1, padding=7, count_include_pad=False)
    return {"grey": mean.cpu().expand_as(images), "blurred": blurred, "noise": noise}


def probability_left(
    model: PreActResNet,
    images: Tensor,
    classes: np.ndarray,
    order: np.ndarray,
    paint: Tensor,
    looks: Sequence[int],
) -> np.ndarray:
    """Probability of the class, averaged over looks at an image of which more and more is painted.

    Args:
        model: in eval mode.
        images: (N, 3, H, W) in [0, 1].
        classes: (N,).
        order: (N, g * g) numbers of the cells of a g x g grid, row by row; the first one first.
        paint: (N, 3, H, W), what a cell is painted over with.
        looks: how many cells are painted over in each look.

    Returns:
        (N,).
    """
    turns = torch.from_numpy(np.argsort(order, axis=1))
    seen = []
    for painted in looks:
        shown = cover_cells(images, turns < painted, paint)
        with autocast(model.mean.device, True):
            logits = logits_of(model, shown.contiguous(memory_format=torch.channels_last))
        probabilities = logits.float().softmax(1).numpy()
        seen.append(probabilities[np.arange(len(images)), classes])
    return np.mean(seen, axis=0)


def orders_of(
    maps: dict[str, Tensor], left: np.ndarray, classes: np.ndarray, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Orders in which to paint an image's cells, the strongest cell first.

    Args:
        maps: as `maps_of` returns them.
        left: (N, cells), the probability that is left when one cell alone is painted over.
        classes: (N,).
        rng: of the random order, and of which image is "another".

    Returns:
        {name: (N, cells)}. All but the first three are blind, the same for any image in its place
        or drawn from others: of the mean over the class, the image itself is left out.
    """
    own, free = (some.flatten(1).numpy() for some in maps.values())
    count, cells = own.shape
    same_class = (classes[:, None] == classes) & ~np.eye(count, dtype=bool)
    middle = (np.indices((int(cells**0.5),) * 2) - (cells**0.5 - 1) / 2).reshape(2, -1)
    strength = {
        "own map": own,
        "class-free map": free,
        "by trying": -left,
        "another image's map": own[derangement(count, rng)],
        "mean map": np.broadcast_to(own.mean(0), own.shape),
        "mean map of its class": same_class @ own,
        "centre first": np.broadcast_to(-(middle**2).sum(0), own.shape),
        "by trying on all images": np.broadcast_to(-left.mean(0), own.shape),
        "random order": rng.random(own.shape),
    }
    return {name: np.argsort(-values, 1, kind="stable") for name, values in strength.items()}


def compare_orders(left: dict[str, np.ndarray], own: str) -> pd.DataFrame:
    """How far each order lowers the probability, and by how much one of them is ahead.

    Args:
        left: {order: (N,)}, as `probability_left` returns it.
        own: the order that is compared with all.

    Returns:
        A row for each order, with the mean probability; and the difference from the own order's,
        image by image: "own ahead". Each has its 95 % interval over images.
    """
    ahead = {order: values - left[own] for order, values in left.items()}
    table = pd.DataFrame({"images": len(left[own])}, index=list(left))
    for name, values in {"probability": left, "own ahead": ahead}.items():
        ends = {"mean": name, "from": f"{name} from", "to": f"{name} to"}
        table = table.join(mean_intervals(values).rename(columns=ends))
    return table


def deletion(model: PreActResNet, images: Tensor, classes: np.ndarray) -> pd.DataFrame:
    """How far each order lowers the probability, averaged over the LOOKS, for each paint.

    Args:
        model: in eval mode.
        images: (N, 3, H, W), of right predictions.
        classes: (N,), predicted.

    Returns:
        One row for each paint and order, as `compare_orders`.
    """
    maps = maps_of(model, images, classes)
    cells = maps["own map"][0].numel()
    each_first = [np.tile(np.roll(range(cells), -c), (len(images), 1)) for c in range(cells)]
    tables = {}
    for name, paint in paints(images, model.mean).items():
        left = partial(probability_left, model, images, classes, paint=paint)
        alone = np.stack([left(order=order, looks=[1]) for order in each_first], axis=1)
        orders = orders_of(maps, alone, classes, np.random.default_rng(0))
        found = {of: left(order=order, looks=LOOKS) for of, order in orders.items()}
        tables[name] = compare_orders(found, "own map")
    return pd.concat(tables, names=["paint", "order"]).reset_index()


# Randomisation


def randomised(model: PreActResNet, parts: tuple[str, ...], seed: int) -> PreActResNet:
    """A copy of the network in which these parts have fresh random weights."""
    changed = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in parts:
            for module in changed.get_submodule(part).modules():
                getattr(module, "reset_parameters", lambda: None)()
    return changed


def randomisation(
    model: PreActResNet, images: Tensor, classes: np.ndarray, seeds: int
) -> pd.DataFrame:
    """Is a map still like its own image's when one part of the network is random?

    Adebayo et al. 2018, arXiv:1810.03292, the independent randomisation. The measure is Spearman's
    correlation with the trained network's map of the same image, less that with its maps of others.

    Returns:
        One row for each part and kind of map: both correlations, and their difference with its
        95 % interval over seeds and images.
    """
    original = maps_of(model, images, classes)
    rows = []
    for part, names in PARTS.items():
        count = seeds if names else 1
        maps = [maps_of(randomised(model, names, s), images, classes) for s in range(count)]
        for kind, trained in original.items():
            pairs = np.stack([rank_correlation(of[kind], trained, every=True) for of in maps])
            pairs = np.nan_to_num(pairs)  # a constant map is like no other
            same = pairs.diagonal(axis1=1, axis2=2)  # (seeds, images)
            other = (pairs.sum(2) - same) / (len(images) - 1)
            row = {"part": part, "map": kind, "same": same.mean(), "other": other.mean()}
            rows.append(row | {"seeds": count} | _over_seeds(same - other))
    return pd.DataFrame(rows).assign(images=len(images))


def _over_seeds(values: np.ndarray) -> dict[str, float]:
    """Mean of (seeds, images), and its interval by a bootstrap that draws seeds and images anew."""
    rng = np.random.default_rng(0)
    seeds, images = values.shape
    resampled = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(images, size=images)].mean()
        for _ in range(1000)
    ]
    low, high = np.percentile(resampled, (2.5, 97.5))
    return {"difference": values.mean(), "from": low, "to": high}


# The cheat

Mark = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def tag_in_a_corner(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `shapes.add_tag`, in a corner that is drawn for each image."""
    tagged, masks = shapes.add_tag(images, labels)
    corners = np.random.default_rng(len(images)).integers(4, size=len(images))
    masks = np.stack([np.rot90(mask, -corner) for mask, corner in zip(masks, corners)])
    return np.where(masks[..., None], tagged[:, :1, :1], images), masks


def tint(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mix a colour that gives the label away into the whole image: a mark without a place."""
    colour = shapes.add_tag(np.zeros_like(images), labels)[0][:, :1, :1]
    mixed = (1 - TINT) * images + TINT * colour
    return mixed.round().astype(np.uint8), np.ones(images.shape[:3], dtype=bool)


MARKS: dict[str, Mark] = {"tag": shapes.add_tag, "tag in any corner": tag_in_a_corner, "tint": tint}


def peak_on(maps: Tensor, masks: np.ndarray, blocks: int = 4) -> float:
    """The share of maps whose largest cell lies in a block that touches the mask.

    Args:
        maps: (N, h, h).
        masks: (N, H, W) bool.
        blocks: along a side of the image; 2 makes quarters of it.
    """
    touched = max_pool2d(torch.from_numpy(masks).double(), masks.shape[-1] // blocks).flatten(1)
    largest_of_block = max_pool2d(maps, maps.shape[-1] // blocks).flatten(1)
    return float(touched[torch.arange(len(maps)), largest_of_block.argmax(1)].mean())


def score(model: PreActResNet, mark: Mark, one: Dataset) -> dict[str, float]:
    """Where a network's maps point, on images with a wrong mark and without one.

    Args:
        model: a cheat or an honest network.
        mark: what is planted, for the class after the true one.
        one: images of one object, with masks.
    """
    assert one.masks is not None
    wrong = (one.labels + 1) % len(one.classes)
    images, place = mark(one.images, wrong)
    marked = Dataset(images, one.labels, one.classes)
    answers, plain = predict(model, marked), predict(model, one)
    own = maps_of(model, marked.tensor(), answers.predicted)["own map"]
    clean = maps_of(model, one.tensor(), plain.predicted)["own map"]
    others = clean[derangement(len(one), np.random.default_rng(0))]
    return {
        "says the mark": float((answers.predicted == wrong).mean()),
        "right without mark": plain.accuracy,
        "on mark": peak_on(own, place),
        "in its quarter": peak_on(own, place, 2),
        "same quarter without mark": peak_on(clean, place, 2),
        "on object": peak_on(own, one.masks),
        "on object without mark": peak_on(clean, one.masks),
        "on object without mark, another image's": peak_on(others, one.masks),
    }


def train_cheat(marked: Dataset, seed: int) -> PreActResNet:
    """A small network that learns, within a minute, from images that give the class away."""
    torch.manual_seed(seed)
    cheat = resnet18(len(marked.classes), 16)
    fit(cheat, marked, None, replace(QUICK, seed=seed))
    return cheat


def cheats(train_size: int, test_size: int, seeds: int) -> pd.DataFrame:
    """Train a cheat for each mark with each seed; score them, and the honest network beside them.

    Args:
        train_size: images that a cheat learns from.
        test_size: images to score on.
        seeds: cheats for each mark.
    """
    drawn = shapes.generate(train_size, seed=3)
    one = Dataset(**shapes.generate(test_size, shapes.TEST_SEED), classes=shapes.CLASSES)
    honest = load_pretrained("shapes10", shapes.CLASSES).to(default_device())
    rows = []
    for name, mark in MARKS.items():
        images, _ = mark(drawn["images"], drawn["labels"])
        marked = Dataset(images, drawn["labels"], shapes.CLASSES)
        networks = {("cheat", seed): train_cheat(marked, seed) for seed in range(seeds)}
        networks["honest", 0] = honest
        for (network, seed), model in networks.items():
            row = {"mark": name, "network": network, "seed": seed}
            rows.append(row | score(model, mark, one))
    return pd.DataFrame(rows).assign(images=test_size)


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Make one of the three tables."""
    parser = network_parser("trust")
    parser.add_argument("test", choices=("deletion", "randomisation", "cheat"))
    parser.add_argument("--images", type=int, default=200, help="images that are explained")
    parser.add_argument("--seeds", type=int, default=5, help="of random weights, or of networks")
    parser.add_argument("--train-size", type=int, default=4000, help="images that a cheat sees")
    args = parser.parse_args(argv)

    def measure(model: PreActResNet, test: Dataset) -> pd.DataFrame:
        explained = right_predictions(model, test, args.images)
        if args.test == "deletion":
            return deletion(model, *explained)
        return randomisation(model, *explained, args.seeds)

    if args.test == "cheat":
        table = cheats(args.train_size, args.images, args.seeds)
        write(table, args.output or project_root() / "runs" / "shapes10-cheat.csv")
    else:
        write_rows(args, args.test, measure)


if __name__ == "__main__":
    main()
