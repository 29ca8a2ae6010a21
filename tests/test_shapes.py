from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes, center_of_mass, label
from scipy.stats import f_oneway

from helpers.shapes import (
    AREA,
    CLASSES,
    CONTRAST,
    DISTRACTOR,
    OUTLINES,
    add_tag,
    draw_coverage,
    draw_scene,
    generate,
    generate_pairs,
    paint,
)

SIZE, SEED = 200, 7  # of `drawn`


class Drawn(NamedTuple):
    """One image, and what it was painted from."""

    class_number: int
    image: np.ndarray
    mask: np.ndarray
    behind: np.ndarray  # the background with the distractor
    coverage: np.ndarray  # of the object

    @property
    def colour(self):
        """Of the object, as the image shows it."""
        return self.image[self.coverage == 1][0]


@pytest.fixture(scope="module")
def drawn():
    found, generator = generate(SIZE, SEED), np.random.default_rng(SEED)
    rows = []
    for n, (image, mask) in enumerate(zip(found["images"], found["masks"])):
        background, (distractor, (coverage, _)) = draw_scene([n % 10], generator)
        rows.append(Drawn(n % 10, image, mask, paint(background, [distractor]), coverage))
    return rows


def test_same_seed_gives_the_same_bytes_and_a_larger_size_only_adds():
    small, again, large, other = generate(12, 3), generate(12, 3), generate(25, 3), generate(12, 4)
    for key in ("images", "labels", "masks"):
        assert small[key].tobytes() == again[key].tobytes() == large[key][:12].tobytes()
    assert not (small["images"] == other["images"]).all((1, 2, 3)).any()
    assert large["labels"].tolist() == [*range(10), *range(10), *range(5)]


def test_background_is_untouched_outside_and_one_colour_fills_the_inside(drawn):
    for row in drawn:
        inside, outside = row.coverage == 1, row.coverage == 0
        bare = np.clip(np.round(row.behind), 0, 255)
        assert np.array_equal(row.image[outside], bare[outside])
        assert np.ptp(row.image[inside], axis=0).max() == 0
        assert row.mask[inside].all() and not row.mask[outside].any()


def test_mask_is_where_the_image_shows_at_least_half_of_the_object(drawn):
    for row in drawn:
        step = row.colour - row.behind  # from what lies behind to the object's colour
        share = ((row.image - row.behind) * step).sum(-1) / (step**2).sum(-1)
        clear = np.linalg.norm(step, axis=-1) > 50  # elsewhere both have nearly the same colour
        assert row.mask[clear & (share > 0.53)].all()
        assert not row.mask[clear & (share < 0.47)].any()


def test_object_stands_out_from_the_mean_colour_behind_it(drawn):
    for row in drawn:
        behind = np.average(row.behind.reshape(-1, 3), axis=0, weights=row.coverage.ravel())
        distance = np.linalg.norm(row.colour - behind)
        assert distance > CONTRAST - 1  # the image is rounded


def test_object_is_wholly_inside_and_anywhere_there(drawn):
    for row in drawn:
        border = np.concatenate([row.coverage[[0, -1]].ravel(), row.coverage[:, [0, -1]].ravel()])
        assert border.max() < 0.3  # an object that is cut off fills its border pixels
    centres = np.array([center_of_mass(row.coverage) for row in drawn])
    assert (centres.min(0) < 9).all() and (centres.max(0) > 22).all()


def test_class_is_independent_of_colour_place_and_background(drawn):
    features = np.array(
        [[*row.colour, *row.behind.mean((0, 1)), *center_of_mass(row.coverage)] for row in drawn]
    )
    by_class = [features[number::10] for number in range(10)]
    # The least of eight p-values; a colour or a place tied to the class gives a far smaller one.
    assert f_oneway(*by_class).pvalue.min() > 1e-4


def test_objects_are_in_one_piece_and_the_ring_alone_has_a_hole(drawn):
    touching = np.ones((3, 3))  # pixels that meet at a corner, as at the tips of a star
    for row in drawn:
        pieces = label(row.mask, touching)[1]
        has_hole = binary_fill_holes(row.mask, touching).sum() > row.mask.sum()
        assert pieces == 1
        assert has_hole == (CLASSES[row.class_number] == "ring")


def test_a_distractor_is_in_view_beside_nearly_every_object():
    generator = np.random.default_rng(SEED)
    scenes = [draw_scene([n % 10], generator)[1] for n in range(SIZE)]
    in_view = np.array([ellipse * (1 - target) for (ellipse, _), (target, _) in scenes])
    assert 0.03 < in_view.mean() < 0.1  # the object covers a little of it
    assert (in_view.max((1, 2)) == 1).mean() > 0.95


@pytest.mark.parametrize("seed", range(10))
def test_every_outline_covers_the_area_that_was_drawn(seed):
    area = np.random.default_rng(seed).uniform(*AREA)
    ratios = []
    for contours in (*OUTLINES.values(), DISTRACTOR):
        coverage = draw_coverage(contours, np.random.default_rng(seed))
        ratios.append(coverage.mean() / area)
    assert 1 < min(ratios) and max(ratios) < 1.06  # the polygon's edge pixels are filled as well
    assert max(ratios) / min(ratios) < 1.04


def test_classes_cover_the_same_area_on_average():
    means = []
    for contours in OUTLINES.values():  # with the same seeds, so the same areas
        coverages = [draw_coverage(contours, np.random.default_rng(seed)) for seed in range(40)]
        means.append(np.mean(coverages))
    assert max(means) / min(means) < 1.03


def polygon_area(contour):
    """By the shoelace formula."""
    x, y = contour.T
    return abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2


def test_outlines_have_the_areas_that_geometry_gives():
    disc, sine = np.pi, np.sin(np.radians([36, 60, 120]))
    segment = (2 * np.pi / 3 - sine[2]) / 2
    smaller_disc = disc * sine[1] ** 2
    expected = {
        "arrow": 1.5 * 0.9 / 2 + 0.5 * 1.1,
        "circle": disc,
        "crescent": disc - segment - smaller_disc / 2,
        "cross": 2 * 2 * 0.6 - 0.6**2,
        # Of the curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t.
        "heart": 180 * np.pi / 16**2,
        "hexagon": 6 * sine[1] / 2,
        "ring": disc * (1 - 0.55**2),
        "square": 2,
        "star": 10 * 0.42 * sine[0] / 2,
        "triangle": 3 * sine[1] / 2,
    }
    assert tuple(expected) == CLASSES
    for name, area in expected.items():
        outer, *holes = [polygon_area(contour) for contour in OUTLINES[name]]
        assert outer - sum(holes) == pytest.approx(area, rel=0.01)


def test_pairs_are_of_two_classes_apart_from_each_other():
    found = generate_pairs(60, 0)
    labels, masks = found["labels"], found["masks"]
    assert (labels[:, 0] != labels[:, 1]).all()
    assert not (masks[:, 0] & masks[:, 1]).any()
    assert np.bincount(labels.ravel(), minlength=10).min() > 0
    of_one_colour = []
    for image, two_masks in zip(found["images"], masks):
        for mask in two_masks:
            pixels = image[mask]
            of_one_colour.append((pixels == np.median(pixels, axis=0)).all(-1).mean())
    assert np.median(of_one_colour) > 0.5  # each object has one colour, but for its smooth edge
    again = generate_pairs(60, 0)
    assert all(np.array_equal(found[key], again[key]) for key in found)


def test_tag_tells_the_class_in_one_corner_and_leaves_the_rest():
    drawn = generate(20, seed=0)
    before = drawn["images"].copy()
    tagged, masks = add_tag(drawn["images"], drawn["labels"], side=4)
    np.testing.assert_array_equal(drawn["images"], before)
    assert masks.sum((1, 2)).tolist() == [16] * 20 and masks[:, :4, :4].all()
    np.testing.assert_array_equal(tagged[~masks], before[~masks])
    colours = tagged[:, 3, 3]
    of_one_colour = np.broadcast_to(colours[:, None, None], (20, 4, 4, 3))
    np.testing.assert_array_equal(tagged[:, :4, :4], of_one_colour)
    np.testing.assert_array_equal(colours[:10], colours[10:])
    assert len({tuple(colour) for colour in colours}) == 10
    assert colours[0].tolist() == [255, 0, 0]  # hue 0 is red: RGB, not BGR
