"""Play with augmentation: sliders, and what comes of them. Needs a kernel."""

from itertools import count
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure

from helpers import plots
from helpers.augmentation import augmentation_steps, compose
from helpers.interactive.widgets import as_png, has_front_end

DRAWS = 9


def augmentation_playground(image: np.ndarray) -> widgets.VBox | Figure:
    """Sliders for the strength of each augmentation step, and a button to draw anew.

    Args:
        image: (32, 32, 3) uint8.

    Returns:
        A widget with the sliders, the image and nine draws of it; where no widget can be shown, a
        figure of the image and nine draws.
    """
    seeds = count()

    def figure(**strengths: Any) -> Figure:
        pipeline = compose(augmentation_steps(**strengths), next(seeds))
        drawn = [pipeline(image=image)["image"] for _ in range(DRAWS)]
        titles = ["original", *["drawn"] * DRAWS]
        return plots.image_grid([image, *drawn], titles, columns=5)

    if not has_front_end():
        return figure()

    controls: dict[str, Any] = {}
    for name, value, most in (("padding", 4, 12), ("hole", 8, 24), ("degrees", 7, 90)):
        controls[name] = widgets.IntSlider(value=value, max=most, description=name)
    controls["flip"] = widgets.Checkbox(value=True, description="flip")
    again = widgets.Button(description="draw again")
    shown = widgets.Image(format="png")

    def draw(_: object = None) -> None:
        strengths = {name: control.value for name, control in controls.items()}
        shown.value = as_png(figure(**strengths))

    for control in controls.values():
        control.observe(draw, "value")
    again.on_click(draw)
    draw()
    return widgets.VBox([*controls.values(), again, shown])
