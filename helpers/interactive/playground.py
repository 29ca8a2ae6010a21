"""Play with augmentation, and guess from heatmaps; like the explorer, a still figure where there are no widgets."""

import ipywidgets as widgets
import numpy as np
from scipy.stats import binomtest

from helpers import plots
from helpers.augmentation import augmentation_steps, compose
from helpers.data import Dataset
from helpers.evaluation import Predictions
from helpers.gradcam import GradCAM
from helpers.interactive.explorer import as_png, has_front_end


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


class GuessGame:
    """Was the network right? The player sees the heatmap of the predicted class alone, and is scored against chance.

    Every round is a mistake or a right prediction, evenly; to each mistake belongs a right prediction of the same predicted
    class (where there is one), as close in confidence as there is, so that neither class nor confidence gives the answer away.
    """

    def __init__(self, model, dataset: Dataset, predictions: Predictions, rounds: int = 20, seed: int = 0):
        rng = np.random.default_rng(seed)
        wrong, right = np.flatnonzero(~predictions.correct), np.flatnonzero(predictions.correct)
        pairs = []
        for index in rng.permutation(wrong)[: rounds // 2]:
            free = np.setdiff1d(right, [pair[1] for pair in pairs])
            same = free[predictions.predicted[free] == predictions.predicted[index]]
            alike = same if len(same) else free
            if len(alike):
                pairs.append((index, alike[np.abs(predictions.confidence[alike] - predictions.confidence[index]).argmin()]))
        if not pairs:
            raise ValueError("a game needs mistakes and right predictions: take more images")
        self.indices = rng.permutation(np.ravel(pairs))
        self.truth, self.guesses = predictions.correct[self.indices], []
        self.heatmaps = GradCAM(model)(dataset.tensor(self.indices), predictions.predicted[self.indices])

    def figure(self):
        """The heatmap to guess from now; when all are guessed, all of them with the answers."""
        if len(self.guesses) < len(self.truth):
            return plots.heatmaps(self.heatmaps[len(self.guesses)][None], [f"{len(self.guesses) + 1} of {len(self.truth)}"])
        return plots.heatmaps(self.heatmaps, ["right" if is_right else "wrong" for is_right in self.truth])

    def guess(self, is_right: bool) -> None:
        self.guesses.append(is_right)

    def verdict(self) -> str:
        """The score so far, and how likely guessing blindly is to do as well."""
        hits, rounds = int(np.sum(np.array(self.guesses) == self.truth[: len(self.guesses)])), len(self.guesses)
        if rounds == 0:
            return "Was the network right or wrong? You see nothing but where its evidence lies."
        luck = binomtest(hits, rounds, alternative="greater").pvalue
        return f"{hits} of {rounds} guessed; a coin does as well or better in {luck:.0%} of such games."


def play(game: GuessGame):
    """Show a game with its two buttons, or, without widgets, its heatmaps with their answers."""
    if not has_front_end():
        game.guesses = list(game.truth)
        return game.figure()
    note, picture = widgets.HTML(game.verdict()), widgets.Image(format="png", value=as_png(game.figure()))
    buttons = [widgets.Button(description=name) for name in ("it was right", "it was wrong")]

    def click(is_right):
        game.guess(is_right)
        note.value, picture.value = game.verdict(), as_png(game.figure())
        for button in buttons:
            button.disabled = len(game.guesses) == len(game.truth)

    for button, is_right in zip(buttons, (True, False)):
        button.on_click(lambda _, is_right=is_right: click(is_right))
    return widgets.VBox([widgets.HBox(buttons), note, picture])
