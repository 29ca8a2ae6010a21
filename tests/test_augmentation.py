import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.augmentation import FILL, augmentation_steps, compose, variants

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
RAMP = np.repeat((16 + 7 * np.arange(32, dtype=np.uint8))[None, :, None], 32, axis=0).repeat(3, axis=2)  # brighter to the right
NAMES = ["Padding", "RandomCrop", "CoarseDropout", "Rotate", "HorizontalFlip"]


def draw(name, count, image=IMAGE, **strengths):
    """So many draws of one step alone."""
    pipeline = compose({name: augmentation_steps(**strengths)[name]}, seed=0)
    return [pipeline(image=image)["image"] for _ in range(count)]


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_mirrors_the_border(padding):
    (padded,) = draw("Padding", 1, padding=padding)
    assert np.array_equal(padded, np.pad(IMAGE, ((padding, padding), (padding, padding), (0, 0)), mode="reflect"))


def test_crop_is_every_window_of_the_padded_image():
    padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {padded[y : y + 32, x : x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
    assert {windows[crop.tobytes()] for crop in draw("RandomCrop", 1000, padded)} == set(windows.values())


def test_hole_is_one_square_of_the_mean_colour_in_half_of_the_images():
    holes = 0
    for image in draw("CoarseDropout", 300, image=np.zeros_like(IMAGE)):
        ys, xs = np.nonzero(image.any(-1))
        if len(ys):
            holes += 1
            assert np.ptp(ys) == np.ptp(xs) == 7 and len(ys) == 64
            assert np.unique(image[ys, xs], axis=0).tolist() == [[125, 123, 114]]  # 255 x (0.4914, 0.4822, 0.4465)
    assert FILL == (125, 123, 114) and 120 < holes < 180


def test_hole_leaves_the_rest_and_has_the_side_that_was_asked():
    changed = [(image != IMAGE).any(-1) for image in draw("CoarseDropout", 50, hole=12)]
    assert {np.count_nonzero(c.any(1)) for c in changed} == {np.count_nonzero(c.any(0)) for c in changed} == {0, 12}


def test_flip_mirrors_half_of_the_images():
    flipped = [np.array_equal(image, IMAGE[:, ::-1]) for image in draw("HorizontalFlip", 300)]
    kept = [np.array_equal(image, IMAGE) for image in draw("HorizontalFlip", 300)]
    assert all(f != k for f, k in zip(flipped, kept)) and 120 < sum(flipped) < 180


def tilt(image):
    """The direction in which an image of a ramp gets brighter, in degrees, from a plane fitted to its middle."""
    y, x = np.mgrid[8:24, 8:24].reshape(2, -1)
    slope_x, slope_y, _ = np.linalg.lstsq(np.stack([x, y, np.ones_like(x)], 1), image[8:24, 8:24, 0].ravel(), rcond=None)[0]
    return np.degrees(np.arctan2(slope_y, slope_x))


@pytest.mark.parametrize("degrees", [7, 3])
def test_rotation_is_up_to_the_limit_either_way_in_three_of_ten_images(degrees):
    angles = np.array([tilt(image) for image in draw("Rotate", 400, RAMP, degrees=degrees) if not np.array_equal(image, RAMP)])
    assert 90 < len(angles) < 150
    assert -degrees - 0.1 < angles.min() < -0.9 * degrees and 0.9 * degrees < angles.max() < degrees + 0.1
    assert abs(angles.mean()) < degrees / 5


def test_rotation_mirrors_corners_and_tiny_angles_change_nothing():
    white = np.full_like(IMAGE, 200)
    assert all(np.array_equal(image, white) for image in draw("Rotate", 50, white, degrees=45))
    assert all(np.array_equal(image, IMAGE) for image in draw("Rotate", 50, degrees=1e-6))


def test_trivial_augment_takes_one_of_fourteen_ways_at_a_strength_drawn_anew():
    (step,) = augmentation_steps(padding=0, hole=0, degrees=0, flip=False, trivial=True).values()
    assert step.transforms_ps == pytest.approx([1 / 14] * 14)  # as arXiv:2103.10158, table 1, has them
    drawn = draw("TrivialAugment", 1400, trivial=True)
    assert {(image.shape, image.dtype.name) for image in drawn} == {((32, 32, 3), "uint8")}
    same = sum(np.array_equal(image, IMAGE) for image in drawn)
    assert 70 < same < 180  # no change is one of the ways, about a hundred times; some others have a strength of nought
    assert len({image.tobytes() for image in drawn}) > 700
    assert all(np.array_equal(*pair) for pair in zip(drawn, draw("TrivialAugment", 1400, trivial=True)))
    assert [name for name in augmentation_steps(trivial=True)] == ["TrivialAugment", *NAMES]


def test_steps_are_composed_in_the_order_of_their_names():
    steps = augmentation_steps()
    assert list(steps) == NAMES
    assert [type(t).__name__ for t in compose(steps).transforms] == ["Pad", *NAMES[1:]]
    assert compose(steps, seed=0)(image=IMAGE)["image"].shape == IMAGE.shape


@pytest.mark.parametrize(
    "strength, dropped",
    [({"padding": 0}, NAMES[:2]), ({"hole": 0}, NAMES[2:3]), ({"degrees": 0}, NAMES[3:4]), ({"flip": False}, NAMES[4:])],
)
def test_strength_of_zero_leaves_its_step_out(strength, dropped):
    assert list(augmentation_steps(**strength)) == [name for name in NAMES if name not in dropped]


def test_no_steps_change_nothing():
    assert np.array_equal(compose(augmentation_steps(0, 0, 0, False))(image=IMAGE)["image"], IMAGE)


@pytest.mark.parametrize("names", [[name] for name in NAMES] + [NAMES])
def test_input_image_is_not_changed(names):
    steps, image = augmentation_steps(degrees=7), IMAGE.copy()
    pipeline = compose({name: steps[name] for name in names}, seed=0)
    for _ in range(30):
        pipeline(image=image)
    assert np.array_equal(image, IMAGE)


def test_same_seed_repeats_all_draws():
    pipelines = [compose(augmentation_steps(), seed) for seed in (3, 3, 4)]
    draws = [[pipeline(image=IMAGE)["image"].tobytes() for _ in range(10)] for pipeline in pipelines]
    assert draws[0] == draws[1] and len(set(draws[0])) == 10 and not set(draws[0]) & set(draws[2])


def test_variants_apply_the_named_steps_alone_and_every_time():
    assert all(np.array_equal(mirrored, IMAGE[:, ::-1]) for mirrored in variants(IMAGE, ["HorizontalFlip"], count=8))
    assert [padded.shape for padded in variants(IMAGE, ["Padding"], count=2)] == [(40, 40, 3)] * 2
    with_hole = variants(IMAGE, ["CoarseDropout"], count=8)
    assert [int((image != IMAGE).any(2).sum()) for image in with_hole] == [64] * 8
    again, other = variants(IMAGE, ["CoarseDropout"], count=8), variants(IMAGE, ["CoarseDropout"], count=8, seed=1)
    assert np.array_equal(again, with_hole) and not np.array_equal(other, with_hole)


def test_update_check_is_off_before_albumentations_is_imported(project, tmp_path):
    # A stand-in that tells what it would have seen, found first.
    (tmp_path / "albumentations.py").write_text("import os\nprint(os.environ.get('NO_ALBUMENTATIONS_UPDATE'))\nraise SystemExit")
    path = os.pathsep.join([str(tmp_path), str(project)])
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"} | {"PYTHONPATH": path}
    command = [sys.executable, "-B", "-c", "import helpers.augmentation"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path).stdout.split() == ["1"]


STRENGTHS = {"padding": st.integers(0, 8), "hole": st.integers(0, 16), "degrees": st.floats(0, 45), "flip": st.booleans()}


@given(st.fixed_dictionaries(STRENGTHS), st.integers(0, 2**32 - 1))
@settings(max_examples=50, derandomize=True, database=None, deadline=None)
def test_any_strengths_keep_shape_kind_and_the_image_given(strengths, seed):
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = image.copy()
    first, again = (compose(augmentation_steps(**strengths), seed)(image=image)["image"] for _ in range(2))
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and np.array_equal(first, again)
    assert np.array_equal(image, before)
    without = compose(augmentation_steps(**{name: 0 for name in strengths}), seed)(image=image)["image"]
    assert np.array_equal(without, before)
    mirrored = compose(augmentation_steps(padding=0, hole=0, degrees=0), seed)(image=image)["image"]
    assert np.array_equal(mirrored, before) or np.array_equal(mirrored, before[:, ::-1])
