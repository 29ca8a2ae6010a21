"""Play with augmentation, with widgets, and guess from heatmaps, in any browser."""

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML

from helpers import plots
from helpers.augmentation import augmentation_steps, compose
from helpers.data import Dataset
from helpers.evaluation import Predictions
from helpers.gradcam import GradCAM, as_heatmaps
from helpers.interactive.explorer import alive, pairs, quantised
from helpers.interactive.front_end import as_png, has_front_end


def augmentation_playground(image: np.ndarray):
    """Sliders for the strength of each augmentation step, a button to draw anew, the image (32, 32, 3) uint8 and eight draws."""
    seeds = iter(range(10**9))

    def figure(**strengths):
        pipeline = compose(augmentation_steps(**strengths), next(seeds))
        drawn = [pipeline(image=image)["image"] for _ in range(8)]
        return plots.image_grid([image, *drawn], ["original"] + ["drawn"] * 8, columns=9)

    if not has_front_end():
        return figure()
    controls = {
        "padding": widgets.IntSlider(value=4, max=12, description="padding"),
        "hole": widgets.IntSlider(value=8, max=24, description="hole"),
        "degrees": widgets.IntSlider(value=7, max=90, description="degrees"),
        "flip": widgets.Checkbox(value=True, description="flip"),
    }
    again, picture = widgets.Button(description="draw again"), widgets.Image(format="png")

    def draw(_=None):
        picture.value = as_png(figure(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(draw, "value")
    again.on_click(draw)
    draw()
    return widgets.VBox([*controls.values(), again, picture])


def play(model, dataset: Dataset, predictions: Predictions, rounds: int = 20, seed: int = 0) -> HTML:
    """Was the network right? The player sees the heatmap of the predicted class alone, and is scored against a coin.

    Half of the rounds are mistakes, half right predictions that are like them (see `explorer.pairs`), in random order.
    """
    rng = np.random.default_rng(seed)
    indices = rng.permutation(pairs(predictions, rounds // 2, rng).ravel())
    if not len(indices):
        raise ValueError("a game needs mistakes and right predictions: take more images")
    maps = GradCAM(model).evidence(dataset.tensor(indices), predictions.predicted[indices])
    answers = ["right" if is_right else "wrong" for is_right in predictions.correct[indices]]
    still = plots.heatmaps(as_heatmaps(maps, dataset.images.shape[1:3]), answers)
    return alive(
        "game", quantised(maps) | {"answers": answers}, still, "Heatmaps without their images, each labelled right or wrong"
    )
