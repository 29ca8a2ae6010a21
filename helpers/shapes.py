"""Shapes-10: a generated data set that needs no download, with a mask of the object in each image.

The outline alone carries the class. Colour, place, size, tilt and background are drawn
independently of it, and every outline covers the same share of the image on average. Every image
also holds a distractor, an ellipse, which is unrelated to the class. So it is known what an
explanation of a prediction should point at.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

CLASSES = tuple("arrow circle crescent cross heart hexagon ring square star triangle".split())
TRAIN_SEED, TEST_SEED = 0, 1

SIZE = 32  # pixels
ZOOM = 8  # outlines are drawn this much larger, then averaged, so that edges are smooth
AREA = (0.04, 0.1)  # share of the image that an object covers, smallest and largest
CONTRAST = 90  # smallest distance of an object's colour to the mean colour behind it, 0..255 RGB

Contours = Sequence[np.ndarray]  # closed polygons, (points, 2) each, of x and y; y points down
Layer = tuple[np.ndarray, np.ndarray]  # coverage (32, 32) in [0, 1], and a colour (3,) in 0..255


def _arc(
    first: float, last: float, points: int = 48, centre: float = 0.0, radius: float = 1.0
) -> np.ndarray:
    """Points of a circle around (centre, 0) from one angle to the other, in degrees."""
    is_open = last - first != 360
    angles = np.radians(np.linspace(first, last, points, endpoint=is_open))
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _crescent() -> np.ndarray:
    # The inner arc meets the outer one at its horns, 60 degrees up and down.
    outer = _arc(60, 300)
    inner = _arc(270, 90, centre=0.5, radius=np.sin(np.radians(60)))
    return np.concatenate([outer, inner])


def _cross() -> np.ndarray:
    arm = np.array([(10, -3), (10, 3), (3, 3)]) / 10
    quarter_turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16], axis=1)


ARROW = [(0, -1), (0.75, -0.1), (0.25, -0.1), (0.25, 1), (-0.25, 1), (-0.25, -0.1), (-0.75, -0.1)]

# Contours of each class around the origin. A second contour is a hole.
OUTLINES: dict[str, Contours] = {
    "arrow": [np.array(ARROW)],
    "circle": [_arc(0, 360)],
    "crescent": [_crescent()],
    "cross": [_cross()],
    "heart": [_heart()],
    "hexagon": [_arc(0, 360, 6)],
    "ring": [_arc(0, 360), _arc(0, 360, radius=0.55)],
    "square": [_arc(0, 360, 4)],
    "star": [_arc(0, 360, 10) * np.resize([1, 0.42], (10, 1))],
    "triangle": [_arc(0, 360, 3)],
}
DISTRACTOR: Contours = [_arc(0, 360) * (1, 0.5)]


def draw_background(generator: np.random.Generator) -> np.ndarray:
    """A smooth random colour field with noise in each pixel.

    Returns:
        (32, 32, 3) float32, about 0 to 255.
    """
    coarse = generator.uniform(30, 225, (4, 4, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    noise = generator.normal(0, 8, (SIZE, SIZE, 3)).astype(np.float32)
    return smooth + noise


def draw_coverage(contours: Contours, generator: np.random.Generator) -> np.ndarray:
    """Draw an outline at a random place, tilt and size, wholly inside the image.

    Args:
        contours: one of OUTLINES, or DISTRACTOR.
        generator: of the random draws.

    Returns:
        The share of each pixel that the outline covers, (32, 32) float32 in [0, 1].
    """
    outer, *holes = [abs(cv2.contourArea(part.astype(np.float32))) for part in contours]
    scale = SIZE * np.sqrt(generator.uniform(*AREA) / (outer - sum(holes)))
    angle = generator.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = scale * np.array([[cos, -sin], [sin, cos]])
    rotated = [contour @ rotation.T for contour in contours]
    low, high = rotated[0].min(0), rotated[0].max(0)
    shift = generator.uniform(1 - low, SIZE - 1 - high)

    # fillPoly takes whole numbers, here of sixteenths of a pixel, and 0 is the middle of the first
    # pixel. It fills by the even-odd rule, which leaves the holes.
    points = [((contour + shift) * ZOOM - 0.5) * 16 for contour in rotated]
    polygons = [np.round(polygon).astype(np.int32) for polygon in points]
    canvas = np.zeros((SIZE * ZOOM, SIZE * ZOOM), np.uint8)
    cv2.fillPoly(canvas, polygons, 255, shift=4)
    coverage = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return coverage.astype(np.float32) / 255


def draw_scene(
    labels: Iterable[int], generator: np.random.Generator
) -> tuple[np.ndarray, list[Layer]]:
    """Draw what an image is painted from.

    Args:
        labels: classes of the objects.
        generator: of the random draws.

    Returns:
        The background (32, 32, 3), and layers from back to front: first the distractor, an ellipse
        that belongs to no class but is sized, placed and coloured like an object, then an object of
        each label. The colour of a layer keeps CONTRAST from the mean colour of what it covers.
    """
    background = draw_background(generator)
    image = background
    layers: list[Layer] = []
    for contours in (DISTRACTOR, *(OUTLINES[CLASSES[label]] for label in labels)):
        coverage = draw_coverage(contours, generator)
        behind = np.average(image.reshape(-1, 3), axis=0, weights=coverage.ravel())
        colour = generator.uniform(0, 255, 3)
        while np.linalg.norm(colour - behind) < CONTRAST:
            colour = generator.uniform(0, 255, 3)
        layers.append((coverage, colour))
        image = paint(image, layers[-1:])
    return background, layers


def paint(background: np.ndarray, layers: Iterable[Layer]) -> np.ndarray:
    """Paint layers over a background, both as `draw_scene` returns them.

    Returns:
        (32, 32, 3) floats in 0..255.
    """
    image = background
    for coverage, colour in layers:
        share = coverage[..., None]
        image = image * (1 - share) + colour * share
    return image


def generate(size: int, seed: int) -> dict[str, np.ndarray]:
    """Images of the ten classes in turn.

    The same seed gives the same bytes, and a larger size only adds images.

    Args:
        size: number of images, at least 1.
        seed: of the random draws.

    Returns:
        "images": (size, 32, 32, 3) uint8. "labels": (size,) int64. "masks": (size, 32, 32) bool,
        True where the object covers at least half of a pixel.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(size) % len(CLASSES)
    drawn = []
    for label in labels.tolist():
        background, layers = draw_scene([label], generator)
        drawn.append((_to_uint8(paint(background, layers)), layers[-1][0] >= 0.5))
    images, masks = map(np.stack, zip(*drawn))
    return {"images": images, "labels": labels, "masks": masks}


def generate_pairs(size: int, seed: int) -> dict[str, np.ndarray]:
    """Images of two objects of different classes that do not touch, without a distractor.

    Args:
        size: number of images, at least 1.
        seed: of the random draws.

    Returns:
        "images": (size, 32, 32, 3) uint8. "labels": (size, 2) int64. "masks": (size, 2, 32, 32)
        bool, in the order of the labels.
    """
    generator = np.random.default_rng(seed)
    drawn: list[tuple[np.ndarray, ...]] = []
    while len(drawn) < size:
        pair = generator.choice(len(CLASSES), 2, replace=False)
        background, (_, *objects) = draw_scene(pair, generator)
        coverages = np.stack([coverage for coverage, _ in objects])
        if not coverages.prod(axis=0).any():
            drawn.append((_to_uint8(paint(background, objects)), pair, coverages >= 0.5))
    images, labels, masks = map(np.stack, zip(*drawn))
    return {"images": images, "labels": labels, "masks": masks}


def add_tag(images: np.ndarray, labels: np.ndarray, side: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Plant a shortcut: a square in the top left corner, in a colour that gives the label away.

    Args:
        images: (N, 32, 32, 3) uint8; left as they are.
        labels: (N,) the class that the colour stands for.
        side: of the square, in pixels.

    Returns:
        Such images with the square, and masks (N, 32, 32) bool of the square.
    """
    hsv = np.full((1, len(CLASSES), 3), 255, np.uint8)
    hsv[..., 0] = np.arange(len(CLASSES)) * 180 / len(CLASSES)  # OpenCV's hues go from 0 to 179
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    tagged = images.copy()
    tagged[:, :side, :side] = colours[labels][:, None, None]
    masks = np.zeros(images.shape[:3], dtype=bool)
    masks[:, :side, :side] = True
    return tagged, masks


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
