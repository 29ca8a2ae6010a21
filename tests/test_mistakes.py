from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import stats
from sklearn.metrics import precision_score, recall_score

from helpers import shapes, training
from helpers.data import CLASSES, channel_statistics, split
from helpers.evaluation import Predictions
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained, resnet18, save_weights
from helpers.studies import RECORDS, mistakes, runs
from helpers.studies.calibration import fit_logit_shift, fit_temperature
from helpers.studies.mistakes_summary import TRAINED, Arm, Outcomes, changed_maps

WEAK = ("star", "ring")
OPTIONS = "--data shapes10 --train-size 40 --validation-size 20 --epochs 1 --image-sizes 16".split()
OPTIONS += ["--width", "16", "--seeds", "2", "--stronger-classes", *WEAK]


@pytest.fixture
def small(monkeypatch):
    """Shapes-10 with twenty test images in place of two thousand."""
    monkeypatch.setattr(runs, "load_dataset", tiny.load_few_test_images)
    return tiny.load_few_test_images("shapes10", train_size=40)


def call(options):
    """What the command prints, the messages of its error apart, and its status."""
    out, err, status = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            mistakes.main(options)
        except SystemExit as end:
            status = end.code
    return SimpleNamespace(out=out.getvalue(), err=err.getvalue(), status=status)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study that was stopped in its fourth run, gone on with, and scored on the test images.

    configs: of all runs, in their order; the fourth comes twice.
    """
    folder, configs = tmp_path_factory.mktemp("study"), []
    path = folder / "mistakes.csv"
    options = [*OPTIONS, "--output", str(path)]

    def fit(model, train, validation, config, **more):
        configs.append(config)
        if len(configs) == 4:
            raise KeyboardInterrupt
        return training.fit(model, train, validation, config, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "load_dataset", tiny.load_few_test_images)
        patch.setattr(runs, "fit", fit)
        stopped = call(options)
        before = pd.read_csv(path)
        networks = sorted(path.with_suffix("").glob("*.pt"))
        written = {network: network.stat().st_mtime_ns for network in networks}
        too_early = call([*options, "--open-test-set"])
        trained = call(options)
        opened_unasked = (folder / "mistakes-test.csv").exists()
        opened = call([*options, "--open-test-set"])
    table = pd.read_csv(path)
    return SimpleNamespace(**locals())


def test_study_that_was_stopped_goes_on_without_repeating_a_run(finished):
    assert "run this again to go on from there" in finished.stopped.status
    table, before = finished.table, finished.before
    assert len(before) == 3 and len(finished.written) == 3
    pd.testing.assert_frame_equal(table.head(3)[list(before)], before)
    for network, when in finished.written.items():
        assert network.stat().st_mtime_ns == when
    assert finished.trained.status == 0 and "both" in finished.trained.out
    assert len(table) == 12
    assert set(zip(table["seed"], table["variant"])) == set(product((0, 1), Arm))
    assert table["variant"].tolist()[:2] == ["the recipe"] * 2
    assert len(finished.configs) == 11 and finished.configs[3] == finished.configs[4]
    assert (finished.folder / "mistakes-maps.csv").exists()


def test_arms_differ_in_what_their_names_say_and_are_trained_alike(finished):
    table = finished.table
    classes = shapes.CLASSES
    of_recipe = table[table["variant"] == "the recipe"]
    errors = 1 - of_recipe[[f"recall {name}" for name in classes]].mean().to_numpy()
    weights = np.maximum(errors / np.nanmean(errors), 0.25).round(3)
    weights = tuple(np.nan_to_num(weights, nan=1))  # of a class without images
    expected = set(product((0, 1), ((), WEAK), ((), weights)))
    expected |= {(seed, classes, ()) for seed in (0, 1)}
    configs = finished.configs
    found = {(c.seed, c.stronger_classes, c.class_weights) for c in configs}
    assert found == expected
    lengths = {(c.epochs, c.image_sizes, c.batch_size, c.peak_lr) for c in configs}
    assert lengths == {(1, (16,), 128, 0.1)}


def test_test_images_are_opened_when_the_study_is_finished_and_not_unasked(finished):
    assert finished.too_early.status == 2
    assert "lacks 9 of 12 runs: make them, without" in finished.too_early.err
    assert not finished.opened_unasked
    assert finished.opened.out.startswith("Opening the test images")
    assert "accuracy" in finished.opened.out


def make_study(finished, small):
    train, validation = split(small.train, 20)
    recipe = replace(mistakes.RECIPE, epochs=1, image_sizes=(16,), stronger_classes=WEAK)
    return runs.Study(train, validation, small.test, finished.path, recipe, 16, 2)


def scores_by_hand(predicted, labels, classes):
    found = {"accuracy": (predicted == labels).mean()}
    for name, score in {"recall": recall_score, "precision": precision_score}.items():
        values = score(labels, predicted, average=None, labels=range(10), zero_division=np.nan)
        found |= {f"{name} {c}": value for c, value in zip(classes, values)}
    return found


@pytest.mark.parametrize("arm", [arm.value for arm in Arm])
def test_test_scores_are_those_of_the_networks_calibrated_on_validation_images(
    finished, small, arm
):
    tested = pd.read_csv(finished.folder / "mistakes-test.csv").set_index(["seed", "variant"])
    study = make_study(finished, small)
    validation, classes = study.validation, small.classes
    for seed in (0, 1):
        name = "the-recipe" if arm == "logit shift" else arm.replace(" ", "-")
        model = load_pretrained(str(finished.folder / "mistakes" / f"{name}-{seed}.pt"))
        with torch.inference_mode():
            logits, held_out = (model(part.tensor()).numpy() for part in (small.test, validation))
        held_out = held_out.astype(np.float16).astype(np.float32)  # as it is kept
        temperature = fit_temperature(Predictions(held_out, validation.labels, classes))
        logits, held_out = logits / temperature, held_out / temperature
        if arm == "logit shift":
            weights = next(c.class_weights for c in finished.configs if c.class_weights)
            held_out = Predictions(held_out, validation.labels, classes)
            logits = logits + fit_logit_shift(held_out, weights)
        found = mistakes.calibrated_predictions(study, Arm(arm), seed, "test").logits
        np.testing.assert_allclose(found, logits, atol=0.05)
        by_hand = scores_by_hand(found.argmax(1), small.test.labels, classes)
        for score, value in by_hand.items():
            assert tested.loc[(seed, arm), score] == pytest.approx(value, abs=6e-5, nan_ok=True)


def test_committed_records_have_the_columns_of_a_new_study(finished):
    classes = dict(zip(shapes.CLASSES, CLASSES))

    def renamed(column):
        score, _, name = column.partition(" ")
        return f"{score} {classes[name]}" if name in classes else column

    for kind in ("", "-test"):
        ours = pd.read_csv(finished.folder / f"mistakes{kind}.csv").columns.map(renamed)
        record = pd.read_csv(RECORDS / f"cifar10-mistakes{kind}.csv")  # older: without digests
        assert sorted(set(ours) - {"recipe", "check"}) == sorted(record.columns)
        assert set(record["variant"]) == {arm.value for arm in Arm}


def test_name_that_is_no_class_is_refused_before_anything_is_trained(tmp_path, small):
    options = [*OPTIONS, "--output", str(tmp_path / "m.csv"), "--stronger-classes", "unicorn"]
    refused = call(options)
    assert refused.status == 2
    assert "no class 'unicorn' in these data: choose among arrow, circle" in refused.err
    assert list(tmp_path.iterdir()) == []


def test_outcomes_are_those_of_the_networks_on_the_validation_images(finished, small):
    _, validation = split(small.train, 20)
    study = make_study(finished, small)
    found = mistakes.outcomes(study)
    assert found.labels.tolist() == validation.labels.tolist()
    for arm, seed in product(TRAINED, (0, 1)):
        name = str(arm).replace(" ", "-")
        model = load_pretrained(finished.folder / "mistakes" / f"{name}-{seed}.pt")
        maps = GradCAM(model).evidence(validation.tensor(), torch.from_numpy(validation.labels))
        torch.testing.assert_close(found.maps[arm][seed], maps, atol=1e-3, rtol=1e-3)
        with torch.inference_mode():
            predicted = model(validation.tensor()).argmax(1).numpy()
        assert found.correct[arm][seed].tolist() == (predicted == validation.labels).tolist()
    for seed in (0, 1):
        said = mistakes.calibrated_predictions(study, Arm.RECIPE, seed, "validation")
        actual = said.probabilities[np.arange(20), validation.labels]
        np.testing.assert_allclose(found.log_probabilities[seed], np.log(actual))


def test_network_that_is_gone_or_damaged_is_named_with_its_remedy(tmp_path):
    study = tiny.make_study(tmp_path / "m.csv", images=1)
    path = study.artifact_path(Arm.BOTH, 0, ".pt")
    message = r"both-0\.pt does not hold this run's network .*: take its row out of m.csv, and run"
    with pytest.raises(ValueError, match=message):
        mistakes.load_network(study, Arm.BOTH, 0)
    save_weights(resnet18(width=16), path, study.train.classes)
    assert mistakes.load_network(study, Arm.BOTH, 0).stem.out_channels == 16
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=message):
        mistakes.load_network(study, Arm.BOTH, 0)


class SeesTheHole(torch.nn.Module):
    """Says star where a square of 12 pixels has the colour of holes, and arrow where not."""

    def __init__(self, dataset):
        super().__init__()
        self.classes = dataset.classes
        means, _ = channel_statistics(dataset.images)
        colour = [round(255 * mean) for mean in means]
        self.fill = torch.nn.Parameter(torch.tensor(colour)[:, None, None] / 255)

    def forward(self, images):
        inside = (images - self.fill).abs().amax(1, keepdim=True) < 0.5 / 255
        hole = torch.nn.functional.avg_pool2d(inside.float(), 12, 1).amax((1, 2, 3)) > 0.999
        logits = torch.zeros(len(images), 10)
        logits[:, self.classes.index("arrow")] = 1
        logits[hole, self.classes.index("star")] = 2
        return logits


def test_network_that_tells_classes_by_their_augmentation_is_found_out(tmp_path, small):
    recipe = replace(mistakes.RECIPE, stronger_classes=WEAK)
    path = tmp_path / "m.csv"
    study = runs.Study(small.train, small.train, small.test, path, recipe, 16, 2)
    model = SeesTheHole(small.train)
    share = mistakes.taken_for_weak(study, model)
    others = (~np.isin(small.train.labels, [small.classes.index(name) for name in WEAK])).sum()
    # A hole of 12 in half of the images.
    assert share == pytest.approx(0.5, abs=3 * (0.25 / others) ** 0.5)
    milder = replace(study, recipe=replace(recipe, hole=0))  # holes of four
    assert mistakes.taken_for_weak(milder, model) == 0
    everyone = replace(study, recipe=replace(recipe, stronger_classes=small.classes))
    assert np.isnan(mistakes.taken_for_weak(everyone, model))


def spearman(first, second):
    """Of each map of the first set with each of the second, pair by pair."""
    pairs = product(first.reshape(len(first), -1), second.reshape(len(second), -1))
    return np.array([stats.spearmanr(*pair).statistic for pair in pairs]).reshape(len(first), -1)


@pytest.fixture
def made_up():
    """Outcomes of three seeds at random, on twenty images of two classes.

    All is right in images 0, 1 and 2, but for two runs with class weights.
    """
    right = {key: [0, 1, 2] for key in product(TRAINED, range(3))}
    right[Arm.CLASS_WEIGHTS, 0] = [2, 3, 4, 5]
    right[Arm.CLASS_WEIGHTS, 2] = [0, 1, 2, 3, 4]
    rng = np.random.default_rng(0)
    images = np.arange(20)
    correct = {arm: np.stack([np.isin(images, right[arm, s]) for s in range(3)]) for arm in TRAINED}
    cells = np.tile(np.arange(16.0), (3, 20, 1))
    maps = {arm: rng.permuted(cells, axis=2).reshape(3, 20, 4, 4) for arm in TRAINED}
    tensors = {arm: torch.from_numpy(of_arm) for arm, of_arm in maps.items()}
    chances = np.log(rng.uniform(0.1, 0.9, (3, 20)))
    return Outcomes(images % 2, correct, chances, tensors), right, maps


def test_maps_before_and_after_by_hand(made_up):
    outcomes, right, maps = made_up
    labels = outcomes.labels
    found = changed_maps(outcomes)

    # The networks of seed 0 alone choose the images for seeds 1 and 2: 3, 4, 5 are corrected, 0 and
    # 1 are broken. Those of seed 2 choose 3 and 4, for seeds 0 and 1. In those of seed 1 nothing
    # has changed.
    names = ["before", "after", "group"]
    expected = {
        (1, 2, "corrected"): [3, 4, 5],
        (1, 2, "broken"): [0, 1],
        (2, 1, "corrected"): [3, 4, 5],
        (2, 1, "broken"): [0, 1],
        (0, 1, "corrected"): [3, 4],
        (1, 0, "corrected"): [3, 4],
    }
    assert set(found["arm"]) == {"class weights"}
    assert set(found[names].itertuples(index=False, name=None)) == set(expected)
    found = found.set_index(names)
    for (before, after, group), chosen in expected.items():
        row = found.loc[(before, after, group)]
        assert row["images"] == len(chosen)
        hits = [np.isin(chosen, right[arm, after]) for arm in (Arm.CLASS_WEIGHTS, Arm.RECIPE)]
        assert row["gain"] == pytest.approx(hits[0].mean() - hits[1].mean())
        of_arm = spearman(maps[Arm.RECIPE][before], maps[Arm.CLASS_WEIGHTS][after])
        of_null = spearman(maps[Arm.RECIPE][before], maps[Arm.RECIPE][after])
        moved = np.diag(of_arm) - np.diag(of_null)
        assert row["moved"] == pytest.approx(moved[chosen].mean(), abs=1e-5)
        # Images that were chosen in neither group, of the same class, nearest in the probabilities
        # of the recipe's two networks.
        chances = outcomes.log_probabilities[[before, after]]
        changed = set()
        for (first, second, _), images in expected.items():
            if (first, second) == (before, after):
                changed |= set(images)
        matched, planted = [], moved[chosen]
        for i, image in enumerate(chosen):
            calm = [k for k in range(20) if k not in changed and labels[k] == labels[image]]
            distances = [np.linalg.norm(chances[:, k] - chances[:, image]) for k in calm]
            nearest = [calm[k] for k in np.argsort(distances)]
            matched += nearest[:5]
            if i % 2 == 0:
                planted[i] = of_arm[image, nearest[0]] - of_null[image, image]
        assert row["matched"] == pytest.approx(moved[matched].mean(), abs=1e-5)
        assert row["planted"] == pytest.approx(planted.mean(), abs=1e-5)
