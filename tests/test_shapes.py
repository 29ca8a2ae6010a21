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


@pytest.fixture(scope="module")
def drawn():
    """Rows of (class, image, mask, what lies behind the object, its coverage): 400 images and what they were painted from."""
    found, rows, generator = generate(400, 7), [], np.random.default_rng(7)
    for n, (image, mask) in enumerate(zip(found["images"], found["masks"])):
        background, (distractor, (coverage, _)) = draw_scene([n % 10], generator)
        rows.append((n % 10, image, mask, paint(background, [distractor]), coverage))
    return rows


def test_same_seed_gives_the_same_bytes_and_a_larger_size_only_adds():
    small, again, large, other = generate(12, 3), generate(12, 3), generate(25, 3), generate(12, 4)
    for key in ("images", "labels", "masks"):
        assert small[key].tobytes() == again[key].tobytes() == large[key][:12].tobytes()
    assert not (small["images"] == other["images"]).all((1, 2, 3)).any()
    assert large["labels"].tolist() == [*range(10), *range(10), *range(5)]


def test_background_is_untouched_outside_and_one_colour_fills_the_inside(drawn):
    for _, image, mask, background, coverage in drawn:
        bare = np.clip(np.round(background), 0, 255)
        assert np.array_equal(image[coverage == 0], bare[coverage == 0])
        assert np.ptp(image[coverage == 1], axis=0).max() == 0
        assert not mask[coverage == 0].any() and mask[coverage == 1].all()


def test_mask_is_where_the_image_shows_at_least_half_of_the_object(drawn):
    for _, image, mask, background, coverage in drawn:
        step = image[coverage == 1][0] - background
        clear = np.linalg.norm(step, axis=-1) > 50  # elsewhere the background happens to look like the object
        share = ((image - background) * step).sum(-1) / (step**2).sum(-1)  # of the way from background to object
        assert mask[clear & (share > 0.53)].all() and not mask[clear & (share < 0.47)].any()


def test_object_stands_out_from_the_mean_colour_behind_it(drawn):
    for _, image, _, background, coverage in drawn:
        behind = np.average(background.reshape(-1, 3), axis=0, weights=coverage.ravel())
        assert np.linalg.norm(image[coverage == 1][0] - behind) > CONTRAST - 1  # the image is rounded


def test_object_is_wholly_inside_and_anywhere_there(drawn):
    for _, _, _, _, coverage in drawn:
        assert max(coverage[[0, -1]].max(), coverage[:, [0, -1]].max()) < 0.3  # one that is cut off fills its border pixels
    centres = np.array([center_of_mass(coverage) for _, _, _, _, coverage in drawn])
    assert (centres.min(0) < 9).all() and (centres.max(0) > 22).all()


@pytest.mark.parametrize("seed", range(10))
def test_every_outline_covers_the_area_that_was_drawn(seed):
    area = np.random.default_rng(seed).uniform(*AREA)
    ratios = [draw_coverage(c, np.random.default_rng(seed)).mean() / area for c in (*OUTLINES.values(), DISTRACTOR)]
    assert 1 < min(ratios) and max(ratios) < 1.06  # the polygon's edge pixels are filled as well
    assert max(ratios) / min(ratios) < 1.04


def test_classes_cover_the_same_area_on_average():
    seeds = range(40)  # the same ones, so the same areas
    means = [np.mean([draw_coverage(c, np.random.default_rng(s)).mean() for s in seeds]) for c in OUTLINES.values()]
    assert max(means) / min(means) < 1.03


def test_class_is_independent_of_colour_place_and_background(drawn):
    features = [
        [*image[coverage == 1][0], *background.mean((0, 1)), *center_of_mass(coverage)]
        for _, image, _, background, coverage in drawn
    ]
    by_class = [np.array(features)[n::10] for n in range(10)]
    assert f_oneway(*by_class).pvalue.min() > 1e-4  # of eight features; a colour or place tied to the class gives far less


def test_outlines_have_the_areas_that_geometry_gives():
    disc, sine = np.pi, np.sin(np.radians([36, 60, 120]))
    expected = {
        "arrow": 1.5 * 0.9 / 2 + 0.5 * 1.1,
        "circle": disc,
        "crescent": disc - (2 * np.pi / 3 - sine[2]) / 2 - disc * sine[1] ** 2 / 2,  # less a segment and half a smaller disc
        "cross": 2 * 2 * 0.6 - 0.6**2,
        "heart": 180 * np.pi / 16**2,  # of the curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t
        "hexagon": 6 * sine[1] / 2,
        "ring": disc * (1 - 0.55**2),
        "square": 2,
        "star": 10 * 0.42 * sine[0] / 2,
        "triangle": 3 * sine[1] / 2,
    }
    assert tuple(expected) == CLASSES
    for name, area in expected.items():
        outer, *holes = [abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2 for x, y in (c.T for c in OUTLINES[name])]
        assert outer - sum(holes) == pytest.approx(area, rel=0.01)


def test_objects_are_in_one_piece_and_the_ring_alone_has_a_hole(drawn):
    touching = np.ones((3, 3))  # pixels that meet at a corner, as at the tips of a star
    for class_index, _, mask, _, _ in drawn:
        assert label(mask, touching)[1] == 1
        assert (binary_fill_holes(mask, touching).sum() > mask.sum()) == (CLASSES[class_index] == "ring")


def test_leaving_a_part_out_changes_its_own_pixels_alone(drawn):
    full, bare, alone = (generate(400, 7, without)["images"] for without in (None, "object", "distractor"))
    for n, (_, image, _, behind, coverage) in enumerate(drawn):
        assert np.array_equal(bare[n], np.clip(np.round(behind), 0, 255))
        assert np.array_equal(alone[n][coverage == 1], image[coverage == 1])
    changed = (full != alone).any(-1)
    assert 0.04 < changed.mean() < 0.16  # the part of the distractor that the object does not cover
    assert changed.any((1, 2)).mean() > 0.95


def test_pairs_are_of_two_classes_apart_from_each_other():
    found = generate_pairs(60, 0)
    assert (found["labels"][:, 0] != found["labels"][:, 1]).all()
    assert not (found["masks"][:, 0] & found["masks"][:, 1]).any()
    assert np.bincount(found["labels"].ravel(), minlength=10).min() > 0
    colours = [[np.median(image[mask], axis=0) for mask in masks] for image, masks in zip(found["images"], found["masks"])]
    inside = [
        (image[mask] == colour).all(-1).mean()
        for image, masks, two in zip(found["images"], found["masks"], colours)
        for mask, colour in zip(masks, two)
    ]
    assert np.median(inside) > 0.5  # each object has one colour, but for its smooth edge
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
    np.testing.assert_array_equal(tagged[:, :4, :4], np.broadcast_to(colours[:, None, None], (20, 4, 4, 3)))
    np.testing.assert_array_equal(colours[:10], colours[10:])
    assert len({tuple(colour) for colour in colours}) == 10
    assert colours[0].tolist() == [255, 0, 0]  # hue 0 is red: RGB, not BGR
