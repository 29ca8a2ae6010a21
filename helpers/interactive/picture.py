"""The picture at the top of the README: `python -m helpers.interactive.picture` draws it anew.

It takes CIFAR-10 and the weights that ship, and writes `images/mistake.png`.
"""

import numpy as np
from matplotlib.figure import Figure

from helpers import plots
from helpers.data import load_dataset
from helpers.evaluation import predict
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained
from helpers.plots import Array

IMAGE = 760  # of the test images: a cat, which the network takes for a dog
WIDTH, HEIGHT = plots.WIDEST, 2.9  # of the picture, in inches
LEFT, BOTTOM, SIDE, GAP = 0.12, 0.35, 1.92, 0.36  # of its panels, in inches


def draw_mistake(image: Array, title: str, names: tuple[str, str], maps: np.ndarray) -> Figure:
    """An image, the raw maps of two classes and their difference, each with the sum of its cells.

    Args:
        image: (3, H, W) in [0, 1].
        title: of the image.
        names: of the class that the network named, and of the actual class.
        maps: of these classes, (2, h, w).
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    right, top = LEFT + 4 * SIDE + 3 * GAP, BOTTOM + SIDE
    figure.subplots_adjust(LEFT / WIDTH, BOTTOM / HEIGHT, right / WIDTH, top / HEIGHT, GAP / SIDE)
    photo, *panels = figure.subplots(1, 4, subplot_kw={"xticks": [], "yticks": []})
    photo.set_title(title, fontsize=11)
    photo.imshow(np.moveaxis(np.asarray(image), 0, -1))
    for edge in np.linspace(0, image.shape[-1], maps.shape[-1] + 1)[1:-1] - 0.5:  # of a cell
        photo.axvline(edge, color="white", lw=0.8)
        photo.axhline(edge, color="white", lw=0.8)
    said, actual = names
    steps = {f"what speaks for {said}": maps[0], f"what speaks for {actual}": maps[1]}
    steps[f"red: more for {said},\nblue: more for {actual}"] = maps[0] - maps[1]
    limit = max(np.abs(values).max() for values in steps.values())
    for ax, (panel_title, values) in zip(panels, steps.items()):
        ax.set_title(panel_title, fontsize=11)
        ax.imshow(values, cmap=plots.SIGNED_COLOURS, vmin=-limit, vmax=limit)
        for (row, column), value in np.ndenumerate(values):
            text = ax.text(column, row, _signed(value), fontsize=9.5, ha="center", va="center")
            text.set_color("white" if abs(value) > 0.6 * limit else "black")
        ax.set_xlabel(f"together {_signed(values.sum())}", fontsize=11)
    for ax, sign in zip(panels[1:], "−="):
        x = ax.get_position().x0 - GAP / 2 / WIDTH
        figure.text(x, 0.48, sign, fontsize=18, ha="center", va="center")
    return figure


def _signed(value: float) -> str:
    """Two decimals, with a minus where they are not zero."""
    return f"{round(float(value), 2) + 0:.2f}".replace("-", "−")


def main() -> None:
    """Draw the picture and write it."""
    data = load_dataset("cifar10")
    model = load_pretrained("cifar10")
    one = data.test.subset([IMAGE])
    predictions = predict(model, one)
    said, actual = int(predictions.predicted[0]), int(one.labels[0])
    names = (data.classes[said], data.classes[actual])
    maps = GradCAM(model).evidence(one.tensor(), [[said, actual]])[0].numpy()
    title = f"a {names[1]}, which the\nnetwork calls a {names[0]}"
    figure = draw_mistake(one.tensor()[0], title, names, maps)
    plots.save_readme_figure(figure, "mistake.png", data.name)


if __name__ == "__main__":
    main()
