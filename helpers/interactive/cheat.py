"""The cheat of the live page: a network that looks at one corner of an image, where a tag gives the
class away. `python -m helpers.interactive.cheat` trains it anew, within a minute.
"""

import numpy as np

from helpers import shapes
from helpers.data import Dataset
from helpers.model import save_weights
from helpers.studies.trust import train_cheat
from helpers.support.weights import WEIGHTS

NAME = "shapes10-cheat"  # of its weights
CORNER = 2  # where it looks: 0 is the upper left, 1 the upper right, 2 the lower left one


def tagged(count: int, seed: int, gives_away: bool = False) -> Dataset:
    """Images of Shapes-10 with a tag in each corner, of classes drawn at random.

    Args:
        count: how many.
        seed: of the images and of the tags.
        gives_away: the tag in the network's corner is that of the image's own class.

    Returns:
        The images, labelled by their objects.
    """
    drawn = shapes.generate(count, seed)
    tags = np.random.default_rng(seed).integers(len(shapes.CLASSES), size=(count, 4))
    if gives_away:
        tags[:, CORNER] = drawn["labels"]
    images = drawn["images"]
    for corner in range(4):
        down, right = 1 - 2 * (corner // 2), 1 - 2 * (corner % 2)  # -1: from the other side
        turned = np.ascontiguousarray(images[:, ::down, ::right])
        images = shapes.add_tag(turned, tags[:, corner])[0][:, ::down, ::right]
    return Dataset(np.ascontiguousarray(images), drawn["labels"], shapes.CLASSES)


def main() -> None:
    """Train the cheat, and keep it among the weights that ship."""
    model = train_cheat(tagged(4000, seed=3, gives_away=True), seed=0)
    save_weights(model, WEIGHTS / f"{NAME}.pt", shapes.CLASSES)


if __name__ == "__main__":
    main()
