import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import Parallel, delayed

from helpers import augmentation
from helpers.augmentation import (
    CIFAR10_MEAN_COLOUR,
    AugmentedDataset,
    augmentation_steps,
    compose,
)
from helpers.config import TrainConfig
from helpers.data import CLASSES, Dataset, make_loader

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
MEAN_COLOUR = tuple(round(mean) for mean in IMAGE.mean((0, 1)).tolist())
LEVELS = 16 + 7 * np.arange(32, dtype=np.uint8)
RAMP = LEVELS[None, :, None].repeat(32, axis=0).repeat(3, axis=2)  # brighter to the right
WAYS = augmentation.trivial_augment().transforms
NAMES = ["Padding", "RandomCrop", "CoarseDropout", "Rotate", "HorizontalFlip"]


def draw(name, count, image=IMAGE, **strengths):
    """So many draws of one step alone."""
    pipeline = compose({name: augmentation_steps(**strengths)[name]}, seed=0)
    return [pipeline(image=image)["image"] for _ in range(count)]


@pytest.mark.parametrize("padding", [1, 4])
def test_padding_mirrors_the_border(padding):
    (padded,) = draw("Padding", 1, padding=padding)
    assert np.array_equal(
        padded, np.pad(IMAGE, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    )


def test_crop_is_every_window_of_the_padded_image():
    padded = np.pad(IMAGE, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    windows = {padded[y : y + 32, x : x + 32].tobytes(): (y, x) for y in range(9) for x in range(9)}
    assert {windows[crop.tobytes()] for crop in draw("RandomCrop", 1000, padded)} == set(
        windows.values()
    )


def test_hole_is_one_square_of_the_mean_colour_in_half_of_the_images():
    holes = 0
    for image in draw("CoarseDropout", 300, image=np.zeros_like(IMAGE)):
        ys, xs = np.nonzero(image.any(-1))
        if len(ys):
            holes += 1
            assert np.ptp(ys) == np.ptp(xs) == 7 and len(ys) == 64
            # 255 x (0.4914, 0.4822, 0.4465)
            assert np.unique(image[ys, xs], axis=0).tolist() == [[125, 123, 114]]
    assert CIFAR10_MEAN_COLOUR == (125, 123, 114) and 120 < holes < 180


def test_hole_leaves_the_rest_and_has_the_side_that_was_asked():
    changed = [(image != IMAGE).any(-1) for image in draw("CoarseDropout", 50, hole=12)]
    assert (
        {np.count_nonzero(c.any(1)) for c in changed}
        == {np.count_nonzero(c.any(0)) for c in changed}
        == {0, 12}
    )


def test_flip_mirrors_half_of_the_images():
    flipped = [np.array_equal(image, IMAGE[:, ::-1]) for image in draw("HorizontalFlip", 300)]
    kept = [np.array_equal(image, IMAGE) for image in draw("HorizontalFlip", 300)]
    assert all(f != k for f, k in zip(flipped, kept)) and 120 < sum(flipped) < 180


def ramp_angle(image):
    """The direction in which an image of a ramp gets brighter, in degrees.

    It is that of a plane fitted to the image's middle.
    """
    y, x = np.mgrid[8:24, 8:24].reshape(2, -1)
    coordinates = np.stack([x, y, np.ones_like(x)], 1)
    levels = image[8:24, 8:24, 0].ravel()
    slope_x, slope_y, _ = np.linalg.lstsq(coordinates, levels, rcond=None)[0]
    return np.degrees(np.arctan2(slope_y, slope_x))


@pytest.mark.parametrize("degrees", [7, 3])
def test_rotation_is_up_to_the_limit_either_way_in_three_of_ten_images(degrees):
    images = draw("Rotate", 400, RAMP, degrees=degrees)
    rotated = [image for image in images if not np.array_equal(image, RAMP)]
    angles = np.array([ramp_angle(image) for image in rotated])
    assert 90 < len(angles) < 150
    assert -degrees - 0.1 < angles.min() < -0.9 * degrees
    assert 0.9 * degrees < angles.max() < degrees + 0.1
    assert abs(angles.mean()) < degrees / 5


def test_rotation_mirrors_corners_and_tiny_angles_change_nothing():
    white = np.full_like(IMAGE, 200)
    assert all(np.array_equal(image, white) for image in draw("Rotate", 50, white, degrees=45))
    assert all(np.array_equal(image, IMAGE) for image in draw("Rotate", 50, degrees=1e-6))


def test_trivial_augment_takes_one_of_fourteen_ways_at_a_strength_drawn_anew():
    (step,) = augmentation_steps(padding=0, hole=0, degrees=0, flip=False, trivial=True).values()
    assert step.transforms_ps == pytest.approx([1 / 14] * 14)
    drawn = draw("TrivialAugment", 1400, trivial=True)
    assert {(image.shape, image.dtype.name) for image in drawn} == {((32, 32, 3), "uint8")}
    same = sum(np.array_equal(image, IMAGE) for image in drawn)
    # No change is one of the ways, about a hundred times; some others have a strength of nought.
    assert 70 < same < 180
    assert len({image.tobytes() for image in drawn}) > 700
    again = draw("TrivialAugment", 1400, trivial=True)
    assert all(np.array_equal(*pair) for pair in zip(drawn, again))
    assert [name for name in augmentation_steps(trivial=True)] == ["TrivialAugment", *NAMES]


# The wide ranges of arXiv:2103.10158, table 1: shear by up to 0.99, which is 45 degrees.
STILL, FACTOR = {"x": (0, 0), "y": (0, 0)}, (0.01, 1.99)
WIDE = [
    *({"limit": (-135, 135)}, {"num_bits": (2, 8)}, {"threshold_range": (0, 1)}),
    {"alpha": (0, 1), "lightness": (1, 1)},
    *({"shear": STILL | {axis: (-45, 45)}, "translate_px": STILL} for axis in "xy"),
    *({"shear": STILL, "translate_px": STILL | {axis: (-32, 32)}} for axis in "xy"),
    {"brightness": FACTOR, "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)},
    {"brightness": (1, 1), "contrast": FACTOR, "saturation": (1, 1), "hue": (0, 0)},
    {"brightness": (1, 1), "contrast": (1, 1), "saturation": FACTOR, "hue": (0, 0)},
]


@pytest.mark.parametrize("strengths", WIDE, ids=str)
def test_strengths_of_trivial_augment_are_those_of_its_paper(strengths):
    ways = [{name: getattr(way, name, None) for name in strengths} for way in WAYS]
    assert ways.count(strengths) == 1


def test_steps_are_composed_in_the_order_of_their_names():
    steps = augmentation_steps()
    assert list(steps) == NAMES
    assert [type(t).__name__ for t in compose(steps).transforms] == ["Pad", *NAMES[1:]]
    assert compose(steps, seed=0)(image=IMAGE)["image"].shape == IMAGE.shape


@pytest.mark.parametrize(
    "strength, dropped",
    [
        ({"padding": 0}, NAMES[:2]),
        ({"hole": 0}, NAMES[2:3]),
        ({"degrees": 0}, NAMES[3:4]),
        ({"flip": False}, NAMES[4:]),
    ],
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
    draws = [
        [pipeline(image=IMAGE)["image"].tobytes() for _ in range(10)] for pipeline in pipelines
    ]
    assert draws[0] == draws[1] and len(set(draws[0])) == 10 and not set(draws[0]) & set(draws[2])


def test_update_check_is_off_before_albumentations_is_imported(project, tmp_path):
    # A stand-in that tells what it would have seen, found first.
    (tmp_path / "albumentations.py").write_text(
        "import os\nprint(os.environ.get('NO_ALBUMENTATIONS_UPDATE'))\nraise SystemExit"
    )
    path = os.pathsep.join([str(tmp_path), str(project)])
    environment = {k: v for k, v in os.environ.items() if k != "NO_ALBUMENTATIONS_UPDATE"} | {
        "PYTHONPATH": path
    }
    command = [sys.executable, "-B", "-c", "import helpers.augmentation"]
    assert subprocess.run(
        command, env=environment, capture_output=True, text=True, cwd=tmp_path
    ).stdout.split() == ["1"]


def test_albumentations_x_is_refused_in_one_line(monkeypatch):
    class Rotate(augmentation.A.Rotate):
        """As AlbumentationsX 2.5 has it: `limit` is passed over, and images turn by 90 degrees."""

        def __init__(self, angle_range=(-90, 90), limit=None, **options):
            super().__init__(limit=angle_range, **options)
            self.angle_range = angle_range
            del self.limit

    monkeypatch.setattr(augmentation.A, "Rotate", Rotate)
    with pytest.raises(RuntimeError, match=r"^AlbumentationsX takes no notice.* install .*\Z"):
        augmentation_steps()


@pytest.mark.filterwarnings("ignore:Argument")
def test_strength_that_a_step_does_not_take_is_refused_when_the_pipeline_is_built():
    step = augmentation.A.Rotate(angle_range=(-7, 7))
    for steps in (step, augmentation.A.OneOf([step])):
        with pytest.raises(ValueError, match="'angle_range' are not valid for transform Rotate"):
            compose({"Rotate": steps})


STRENGTHS = {
    "padding": st.integers(0, 8),
    "hole": st.integers(0, 16),
    "degrees": st.floats(0, 45),
    "flip": st.booleans(),
}


@given(st.fixed_dictionaries(STRENGTHS), st.integers(0, 2**32 - 1))
@settings(max_examples=50, derandomize=True, database=None, deadline=None)
def test_any_strengths_keep_shape_kind_and_the_image_given(strengths, seed):
    image = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    before = image.copy()
    first, again = (
        compose(augmentation_steps(**strengths), seed)(image=image)["image"] for _ in range(2)
    )
    assert first.shape == (32, 32, 3) and first.dtype == np.uint8 and np.array_equal(first, again)
    assert np.array_equal(image, before)
    without = compose(augmentation_steps(**{name: 0 for name in strengths}), seed)(image=image)[
        "image"
    ]
    assert np.array_equal(without, before)
    mirrored = compose(augmentation_steps(padding=0, hole=0, degrees=0), seed)(image=image)["image"]
    assert np.array_equal(mirrored, before) or np.array_equal(mirrored, before[:, ::-1])


def crops(seed, num_workers, augmentation_seed=None):
    """The batches of two epochs, as bytes: random crops of 64 copies of one image."""
    copies = Dataset(IMAGE[None].repeat(64, 0), np.zeros(64, int), CLASSES)
    dataset = AugmentedDataset(copies, TrainConfig(hole=0, degrees=0, flip=False))
    if augmentation_seed is not None:
        dataset.seed(augmentation_seed)
    loader = make_loader(dataset, 16, torch.Generator().manual_seed(seed), num_workers)
    return [images.numpy().tobytes() for _ in range(2) for images, _ in loader]


def test_crops_differ_between_workers_and_epochs_and_repeat_with_the_generator():
    batches = crops(seed=0, num_workers=2)
    assert len(set(batches)) == len(batches) == 8
    assert crops(seed=0, num_workers=2) == batches
    assert not set(crops(seed=1, num_workers=2)) & set(batches)


def test_crops_without_workers_repeat_with_the_seed_of_the_augmentation():
    batches = crops(0, 0, augmentation_seed=5)
    assert len(set(batches)) == 8
    assert crops(0, 0, augmentation_seed=5 + 2**32) == batches  # 32 bits of the seed count
    assert not set(crops(0, 0, augmentation_seed=6)) & set(batches)


@pytest.mark.process
def test_workers_start_in_a_process_of_joblib_too():  # `--jobs` on a machine with a GPU
    both = Parallel(2)(delayed(crops)(0, num_workers=2) for _ in range(2))
    assert both == [crops(0, num_workers=2)] * 2


class OnePipeline(torch.utils.data.Dataset):
    """Images with one pipeline for all of them, in a few lines of its own."""

    def __init__(self, pipeline):
        self.pipeline = pipeline

    def __len__(self):
        return 64

    def __getitem__(self, index):
        image = self.pipeline(image=IMAGE)["image"]
        return torch.from_numpy(image).permute(2, 0, 1), index % 3


def seed_one_pipeline(_):
    dataset = torch.utils.data.get_worker_info().dataset
    dataset.pipeline.set_random_seed(torch.initial_seed() % 2**32)


def two_epochs(dataset, num_workers, **options):
    generator = torch.Generator().manual_seed(0)
    if isinstance(dataset, AugmentedDataset):
        loader = make_loader(dataset, 16, generator, num_workers)
    else:
        loader = torch.utils.data.DataLoader(
            dataset,
            16,
            shuffle=True,
            generator=generator,
            num_workers=num_workers,
            worker_init_fn=seed_one_pipeline,
        )
    return [batch for _ in range(2) for batch in loader]


def copies_in_three_classes():
    return Dataset(IMAGE[None].repeat(64, 0), np.arange(64) % 3, CLASSES)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_draws_are_those_of_one_pipeline_where_no_class_has_another(num_workers):
    augmented = AugmentedDataset(copies_in_three_classes(), TrainConfig())
    augmented.seed(5)
    found = two_epochs(augmented, num_workers)
    pipeline = compose(augmentation_steps(fill=MEAN_COLOUR), seed=5)
    expected = two_epochs(OnePipeline(pipeline), num_workers)
    for (images, labels), (images_of_one, labels_of_one) in zip(found, expected, strict=True):
        assert torch.equal(images, images_of_one) and torch.equal(labels, labels_of_one)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_both_pipelines_are_seeded_and_serve_their_own_classes(num_workers, monkeypatch):
    # The stronger pipeline drops the whole image, in half of the cases.
    monkeypatch.setattr(augmentation, "STRONGER", {"padding": 0, "hole": 32, "degrees": 0})

    def once():
        stronger = (CLASSES[0], CLASSES[2])
        config = TrainConfig(padding=0, hole=0, degrees=0, stronger_classes=stronger)
        dataset = AugmentedDataset(copies_in_three_classes(), config)
        dataset.seed(5)
        return two_epochs(dataset, num_workers)

    first, again = once(), once()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again))
    images, labels = (torch.cat(parts).numpy() for parts in zip(*first))
    is_blank = (images == np.array(MEAN_COLOUR)[:, None, None]).all((1, 2, 3))
    whole = [IMAGE, IMAGE[:, ::-1]]  # mirrored or not
    is_whole = np.any([(images == w.transpose(2, 0, 1)).all((1, 2, 3)) for w in whole], axis=0)
    assert not is_blank[labels == 1].any() and 0.3 < is_blank[labels != 1].mean() < 0.7
    assert (is_blank | is_whole).all()
    per_epoch = is_blank.reshape(2, 64)
    assert (per_epoch[0] != per_epoch[1]).any()


def test_stronger_classes_get_more_of_each_strength_and_nothing_else_changes():
    dataset = copies_in_three_classes()
    augmented = AugmentedDataset(dataset, TrainConfig(stronger_classes=CLASSES[1:2]))
    plain, stronger = augmented.pipeline.transforms, augmented.stronger_pipeline.transforms
    assert [type(step) for step in plain] == [type(step) for step in stronger]
    assert (plain[0].padding, plain[2].hole_height_range, plain[3].limit) == (4, (8, 8), (-7, 7))
    assert (stronger[0].padding, stronger[2].hole_height_range) == (6, (12, 12))
    assert stronger[3].limit == (-22, 22) and stronger[2].fill == plain[2].fill == MEAN_COLOUR
    assert augmented.stronger_labels == {1}
    with pytest.raises(ValueError, match="no class 'unicorn' in these data: choose among airpl"):
        AugmentedDataset(dataset, TrainConfig(stronger_classes=("unicorn",)))


def test_hole_has_the_mean_colour_of_the_data_at_hand():
    images = np.full((4, 32, 32, 3), (10, 20, 30), np.uint8)
    images[0] = 50, 60, 70
    augmented = AugmentedDataset(Dataset(images, np.zeros(4, int), CLASSES), TrainConfig(hole=32))
    for pipeline in (augmented.pipeline, augmented.stronger_pipeline):
        assert pipeline.transforms[2].fill == (20, 30, 40)


def test_alternating_flip_mirrors_one_half_and_then_the_other():
    config = TrainConfig(padding=0, hole=0, degrees=0, alternate_flip=True)
    augmented = AugmentedDataset(copies_in_three_classes(), config)
    seen = []
    for epoch in range(4):
        augmented.mirror_alternately(seed=7, epoch=epoch)
        images = np.stack([image.permute(1, 2, 0) for image, _ in augmented])
        is_mirrored = (images == IMAGE[:, ::-1]).all((1, 2, 3))
        assert (is_mirrored | (images == IMAGE).all((1, 2, 3))).all()
        seen.append(is_mirrored)
    assert 16 < seen[0].sum() < 48
    assert (seen[0] != seen[1]).all() and (seen[0] == seen[2]).all() and (seen[1] == seen[3]).all()
    augmented.mirror_alternately(seed=8, epoch=0)
    assert (augmented.is_mirrored != seen[0]).any()


@pytest.mark.parametrize("options", [{}, {"flip": False, "alternate_flip": True}])
def test_without_alternating_flip_no_image_is_mirrored_by_the_epoch(options):
    augmented = AugmentedDataset(copies_in_three_classes(), TrainConfig(**options))
    augmented.mirror_alternately(seed=0, epoch=1)
    assert not augmented.is_mirrored.any()
