"""Guess from heatmaps alone whether the network was right: a game in any browser."""

import numpy as np
from IPython.display import HTML

from helpers import plots
from helpers.data import Dataset
from helpers.evaluation import Predictions, require_source
from helpers.gradcam import GradCAM, as_heatmaps
from helpers.interactive.embed import embed, quantised
from helpers.interactive.explorer import match_mistakes
from helpers.model import PreActResNet


def play(model: PreActResNet, dataset: Dataset, predictions: Predictions, rounds: int = 20) -> HTML:
    """Was the network right? The player sees heatmaps of predicted classes, and plays a coin.

    Half of the rounds are mistakes, half right predictions that are like them (see
    `explorer.match_mistakes`), in random order.

    Args:
        model: of this project.
        dataset: the images to choose from.
        predictions: the model's, for all of them.
        rounds: how many, if there are enough mistakes.

    Returns:
        The game, to show in a notebook or on a page.

    Raises:
        ValueError: there are no mistakes, or no right predictions, or the predictions are of other
            images or by another network.
    """
    require_source(predictions, model, dataset)
    rng = np.random.default_rng(0)
    indices = rng.permutation(match_mistakes(predictions, rounds // 2, rng).ravel())
    if not len(indices):
        raise ValueError("a game needs mistakes, right predictions, two rounds: take more images")
    maps = GradCAM(model).evidence(dataset.tensor(indices), predictions.predicted[indices])
    answers = ["right" if is_right else "wrong" for is_right in predictions.correct[indices]]

    still = plots.heatmaps(as_heatmaps(maps, dataset.images.shape[1:3]), answers)
    alt = "Heatmaps without their images, each labelled right or wrong"
    return embed("game", quantised(maps) | {"answers": answers}, still, alt)
