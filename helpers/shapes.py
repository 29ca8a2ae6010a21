"""Shapes-10: a generated data set for use without a network, each image with the mask of its object.

The class is carried by the outline alone: colour, place, size, tilt and background are drawn independently of it, and every
outline covers the same share of the image on average. Every image also holds a distractor, an ellipse, which says nothing about
the class. So what an explanation of a prediction ought to point at is known.
"""

import cv2
import numpy as np

CLASSES = ("arrow", "circle", "crescent", "cross", "heart", "hexagon", "ring", "square", "star", "triangle")
TRAIN_SEED, TEST_SEED = 0, 1

SIZE = 32  # pixels
ZOOM = 8  # outlines are drawn this much larger, then averaged, so that edges are smooth
AREA = (0.04, 0.1)  # share of the image that an object covers, least and most
CONTRAST = 90  # least distance between the object's colour and the mean colour behind it, in 0..255 RGB


def _arc(first, last, n=48, centre=0.0, radius=1.0):
    """Points of a circle around (centre, 0) from one angle to the other, in degrees."""
    angles = np.radians(np.linspace(first, last, n, endpoint=last - first != 360))
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _heart():
    t = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -y / 16], axis=1)


_STAR = _arc(0, 360, 10) * np.resize([1, 0.42], 10)[:, None]
_TURN = np.array([(0, 1), (-1, 0)])  # by 90 degrees

OUTLINES = {  # class -> closed contours around the origin; the second one is a hole
    "arrow": [np.array([(0, -1), (0.75, -0.1), (0.25, -0.1), (0.25, 1), (-0.25, 1), (-0.25, -0.1), (-0.75, -0.1)])],
    "circle": [_arc(0, 360)],
    # The inner arc meets the outer one at its horns, 60 degrees up and down.
    "crescent": [np.concatenate([_arc(60, 300), _arc(270, 90, centre=0.5, radius=np.sin(np.radians(60)))])],
    "cross": [np.concatenate([np.array([(10, -3), (10, 3), (3, 3)]) @ np.linalg.matrix_power(_TURN, k) for k in range(4)]) / 10],
    "heart": [_heart()],
    "hexagon": [_arc(0, 360, 6)],
    "ring": [_arc(0, 360), _arc(0, 360, radius=0.55)],
    "square": [_arc(0, 360, 4)],
    "star": [_STAR],
    "triangle": [_arc(0, 360, 3)],
}
DISTRACTOR = [_arc(0, 360) * (1, 0.5)]


def _area(contours):
    """Area inside the first contour less that of the others."""
    areas = [abs(cv2.contourArea(c.astype(np.float32))) for c in contours]
    return areas[0] - sum(areas[1:])


def draw_background(generator: np.random.Generator) -> np.ndarray:
    """A smooth random colour field plus pixel noise, (32, 32, 3) float32 in 0..255."""
    coarse = generator.uniform(30, 225, (4, 4, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
    return smooth + generator.normal(0, 8, smooth.shape).astype(np.float32)


def draw_coverage(contours, generator: np.random.Generator) -> np.ndarray:
    """The share of each pixel that an outline covers, (32, 32) float32 in [0, 1], at a random place, tilt and size inside."""
    scale = SIZE * np.sqrt(generator.uniform(*AREA) / _area(contours))
    angle = generator.uniform(0, 2 * np.pi)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    contours = [c @ turn.T for c in contours]
    low, high = contours[0].min(0), contours[0].max(0)
    shift = generator.uniform(1 - low, SIZE - 1 - high)
    canvas = np.zeros((SIZE * ZOOM, SIZE * ZOOM), np.uint8)
    # fillPoly takes fixed-point numbers (four binary places, 0 in the middle of the first pixel) and fills by the even-odd
    # rule, which leaves the holes.
    points = [np.round(((c + shift) * ZOOM - 0.5) * 16).astype(np.int32) for c in contours]
    cv2.fillPoly(canvas, points, 255, shift=4)
    return cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def draw_scene(labels, generator: np.random.Generator) -> tuple[np.ndarray, list]:
    """What an image is painted from: a background, and layers (coverage, colour) from back to front.

    The first layer is a distractor, an ellipse that belongs to no class but is sized, placed and coloured like an object; then
    comes an object of each label. A colour keeps CONTRAST from the mean of what it covers.
    """
    background = image = draw_background(generator)
    layers = []
    for contours in (DISTRACTOR, *(OUTLINES[CLASSES[label]] for label in labels)):
        coverage = draw_coverage(contours, generator)
        behind = np.average(image.reshape(-1, 3), axis=0, weights=coverage.ravel())
        colour = generator.uniform(0, 255, 3)
        while np.linalg.norm(colour - behind) < CONTRAST:
            colour = generator.uniform(0, 255, 3)
        layers.append((coverage, colour))
        image = paint(image, [layers[-1]])
    return background, layers


def paint(background: np.ndarray, layers) -> np.ndarray:
    """Paint layers (coverage, colour) over a background: (32, 32, 3) floats in 0..255."""
    for coverage, colour in layers:
        background = background * (1 - coverage[..., None]) + colour * coverage[..., None]
    return background


def generate(size: int, seed: int, without: str | None = None) -> dict[str, np.ndarray]:
    """So many images of the ten classes in turn; the same seed gives the same bytes, and a larger size only adds to them.

    without: "object" or "distractor" leaves that out and everything else as it is.
    Returns images (size, 32, 32, 3) uint8, labels (size,) int64 and masks (size, 32, 32) bool: where the object covers at least
    half of a pixel.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(size) % len(CLASSES)
    images, masks = [], []
    for label in labels:
        background, (distractor, thing) = draw_scene([label], generator)
        shown = {"distractor": distractor, "object": thing}
        shown.pop(without, None)
        images.append(_to_uint8(paint(background, shown.values())))
        masks.append(thing[0] >= 0.5)
    return {"images": np.stack(images), "labels": labels, "masks": np.stack(masks)}


def generate_pairs(size: int, seed: int) -> dict[str, np.ndarray]:
    """Images of two objects of different classes that do not touch, and no distractor.

    Returns images (size, 32, 32, 3) uint8, labels (size, 2) int64 and masks (size, 2, 32, 32) bool, in the same order.
    """
    generator = np.random.default_rng(seed)
    found = []
    while len(found) < size:
        labels = generator.choice(len(CLASSES), 2, replace=False)
        background, (_, *things) = draw_scene(labels, generator)
        if not (things[0][0] * things[1][0]).any():
            masks = np.stack([coverage >= 0.5 for coverage, _ in things])
            found.append((_to_uint8(paint(background, things)), labels, masks))
    return dict(zip(("images", "labels", "masks"), (np.stack(part) for part in zip(*found))))


def add_tag(images: np.ndarray, labels: np.ndarray, side: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Plant a shortcut: a square of `side` pixels in the top left corner, in a colour that tells the label.

    images: (N, 32, 32, 3) uint8.  Returns such images, and masks (N, 32, 32) bool of the tags.
    """
    hues = np.arange(len(CLASSES)) * 180 / len(CLASSES)  # OpenCV's circle of hues has 180 steps
    hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=1).astype(np.uint8)
    tagged, masks = images.copy(), np.zeros(images.shape[:3], dtype=bool)
    tagged[:, :side, :side] = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0][labels][:, None, None]
    masks[:, :side, :side] = True
    return tagged, masks


def _to_uint8(image):
    return np.clip(np.round(image), 0, 255).astype(np.uint8)
