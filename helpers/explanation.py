"""Say why a map is blank, and deal maps out to other images, as a null."""

import numpy as np
from torch import Tensor


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
