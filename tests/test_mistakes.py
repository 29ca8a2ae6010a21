import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import precision_score, recall_score

from helpers import training
from helpers.augmentation import FILL
from helpers.data import load_dataset, split
from helpers.evaluation import Predictions, calibration_error, logit_shift, temperature
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained, resnet18, save_weights
from helpers.studies import mistakes, runs
from helpers.training import TrainConfig

WEAK = ("star", "ring")
OPTIONS = "--data shapes10 --train-size 40 --validation-size 20 --epochs 1 --image-sizes 16 --width 16 --seeds 2".split()
OPTIONS += ["--harder", *WEAK]


def twenty_test_images(name, train_size=None):
    return load_dataset(name, train_size=train_size, test_size=20)


@pytest.fixture
def small(monkeypatch):
    """Shapes-10 with twenty test images in place of two thousand."""
    monkeypatch.setattr(runs, "load_dataset", twenty_test_images)
    return twenty_test_images("shapes10", train_size=40)


def command_on_twenty_test_images(options):
    runs.load_dataset = twenty_test_images
    mistakes.main(options)


def killed_after_a_run(path, options):
    """Start the command in a process of its own, and kill it as soon as its table has a row."""
    process = multiprocessing.get_context("spawn").Process(target=command_on_twenty_test_images, args=(options,))
    process.start()
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def scores_by_hand(predicted, labels, classes):
    found = {"accuracy": (predicted == labels).mean()}
    for name, score in {"recall": recall_score, "precision": precision_score}.items():
        values = score(labels, predicted, average=None, labels=range(10), zero_division=0)
        found |= {f"{name} {c}": value for c, value in zip(classes, values)}
    return found


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill")
def test_study_is_killed_goes_on_without_repeating_a_run_opens_the_test_set_and_sums_up(tmp_path, small, monkeypatch, capsys):
    path, configs = tmp_path / "mistakes.csv", []
    options = [*OPTIONS, "--output", str(path)]
    killed_after_a_run(path, options)
    before = pd.read_csv(path)
    networks = {file: file.stat().st_mtime_ns for file in (tmp_path / "mistakes").glob("the-recipe-0.pt")}
    assert len(networks) == 1
    with pytest.raises(SystemExit, match="2"):
        mistakes.main([*options, "--open-test-set"])
    assert f"lacks {12 - len(before)} of 12 runs: make them, without" in capsys.readouterr().err

    def fit(model, train, validation, config, device, checkpoint, log):
        configs.append(config)
        return training.fit(model, train, validation, config, device, checkpoint, log)

    monkeypatch.setattr(runs, "fit", fit)
    mistakes.main(options)
    assert not (tmp_path / "mistakes-test.csv").exists()
    table = pd.read_csv(path)
    pd.testing.assert_frame_equal(table.head(len(before))[list(before)], before)
    assert all(file.stat().st_mtime_ns == time for file, time in networks.items())
    assert len(table) == 12 and set(zip(table["seed"], table["variant"])) == set(product((0, 1), mistakes.ARMS))
    assert table["variant"].tolist()[:2] == ["the recipe"] * 2 and len(configs) == 10 - len(before)

    errors = 1 - table[table["variant"] == "the recipe"][[f"recall {c}" for c in small.classes]].mean().to_numpy()
    weights = tuple(np.maximum(errors / errors.mean(), 0.25).round(3))
    expected = {(s, h, w) for s in (0, 1) for h in ((), WEAK) for w in ((), weights)}
    expected |= {(s, small.classes, ()) for s in (0, 1)}
    assert {(c.seed, c.harder, c.class_weights) for c in configs} | {(0, (), ()), (1, (), ())} == expected
    assert {(c.epochs, c.image_sizes, c.batch_size, c.peak_lr) for c in configs} == {(1, (16,), 128, 0.1)}  # equal compute

    capsys.readouterr()
    mistakes.main([*options, "--open-test-set"])
    said = capsys.readouterr().out
    assert said.startswith("Opening the test images") and "no difference found" in said
    tested = pd.read_csv(tmp_path / "mistakes-test.csv").set_index(["seed", "variant"])
    train, validation = split(small.train, 20)
    study = runs.Study(train, validation, small.test, path, TrainConfig(), 16, 2)
    for seed, arm in product((0, 1), mistakes.ARMS):
        name = "the-recipe" if arm == "logit shift" else arm.replace(" ", "-")
        model = load_pretrained(str(tmp_path / "mistakes" / f"{name}-{seed}.pt"))
        with torch.inference_mode():
            logits, held_out = (model(part.tensor()).numpy() for part in (small.test, validation))
        held_out = Predictions(held_out.astype(np.float16).astype(np.float32), validation.labels, small.classes)  # as it is kept
        logits, held_out = (array / temperature(held_out) for array in (logits, held_out.logits))
        if arm == "logit shift":
            logits = logits + logit_shift(Predictions(held_out, validation.labels, small.classes), weights)
        found = mistakes.answers(study, arm, seed, "test").logits
        np.testing.assert_allclose(found, logits, atol=0.05)
        error = calibration_error(Predictions(found, small.test.labels, small.classes))
        assert tested.loc[(seed, arm), "calibration error"] == pytest.approx(error, abs=6e-5)
        for score, value in scores_by_hand(found.argmax(1), small.test.labels, small.classes).items():
            assert tested.loc[(seed, arm), score] == pytest.approx(value, abs=6e-5)
    assert (tmp_path / "mistakes-maps.csv").exists()


def test_name_that_is_no_class_is_refused_before_anything_is_trained(tmp_path, small, capsys):
    with pytest.raises(SystemExit, match="2"):
        mistakes.main([*OPTIONS, "--output", str(tmp_path / "m.csv"), "--harder", "unicorn"])
    assert "no class 'unicorn' in these data: choose among arrow, circle" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_run_leaves_what_its_network_says_of_the_images(tmp_path, small, monkeypatch):
    model = resnet18(width=16)
    save_weights(model, tmp_path / "m" / "both-3.pt", small.classes)
    monkeypatch.setattr(runs, "train_once", lambda *_: {"train_accuracy": 0.5})
    study = runs.Study(small.train, small.train, small.test, tmp_path / "m.csv", TrainConfig(), 16, 4)
    row = mistakes._train(study, "both", 3, {})
    model = load_pretrained(str(tmp_path / "m" / "both-3.pt"))
    maps = GradCAM(model).evidence(small.train.tensor(), torch.from_numpy(small.train.labels)).numpy()
    found = mistakes.kept(study, "both", 3)
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(("validation", "test", "maps"), np.float16)
    np.testing.assert_allclose(found["maps"], maps, atol=0.01)
    with torch.inference_mode():
        logits = model(small.train.tensor()).numpy()
    np.testing.assert_allclose(found["validation"], logits, atol=0.01)
    assert row["train_accuracy"] == 0.5
    assert row["accuracy"] == pytest.approx((found["validation"].argmax(1) == small.train.labels).mean())


def test_network_that_tells_classes_by_their_augmentation_is_found_out(tmp_path, small):
    recipe = replace(mistakes.RECIPE, harder=WEAK)
    study = runs.Study(small.train, small.train, small.test, tmp_path / "m.csv", recipe, 16, 2)

    class SeesTheHole(torch.nn.Module):
        """Says star where a square of 12 pixels has the colour of holes, and arrow where not."""

        def __init__(self):
            super().__init__()
            self.fill = torch.nn.Parameter(torch.tensor(FILL)[:, None, None] / 255)

        def forward(self, images):
            inside = (images - self.fill).abs().amax(1, keepdim=True) < 0.5 / 255
            hole = torch.nn.functional.avg_pool2d(inside.float(), 12, 1).amax((1, 2, 3)) > 0.999
            logits = torch.zeros(len(images), 10)
            logits[:, small.classes.index("arrow")] = 1
            logits[hole, small.classes.index("star")] = 2
            return logits

    share = mistakes.taken_for_weak(study, SeesTheHole())
    others = (~np.isin(small.train.labels, [small.classes.index(name) for name in WEAK])).sum()
    assert share == pytest.approx(0.5, abs=3 * (0.25 / others) ** 0.5)  # a hole of 12 in half of the images
    milder = replace(study, recipe=replace(recipe, hole=0))  # holes of four
    assert mistakes.taken_for_weak(milder, SeesTheHole()) == 0
    everyone = replace(study, recipe=replace(recipe, harder=small.classes))
    assert np.isnan(mistakes.taken_for_weak(everyone, SeesTheHole()))


def test_maps_before_and_after_by_hand(tmp_path, small):
    held_out = replace(small.test, labels=np.arange(20) % 2)
    study = runs.Study(small.train, held_out, small.test, tmp_path / "m.csv", TrainConfig(), 16, 3)
    right = {("the recipe", 0): [0, 1, 2], ("class weights", 0): [2, 3, 4, 5], ("class weights", 2): [0, 1, 2, 3, 4]}
    maps, rng = {}, np.random.default_rng(0)
    (tmp_path / "m").mkdir()
    for arm, seed in product(mistakes.TRAINED, range(3)):
        hit = np.isin(np.arange(20), right.get((arm, seed), [0, 1, 2]))
        logits = 9 * np.eye(10)[np.where(hit, held_out.labels, (held_out.labels + 1) % 10)] + rng.random((20, 10))
        maps[arm, seed] = rng.permuted(np.tile(np.arange(16), (20, 1)), axis=1).reshape(20, 4, 4)
        np.savez(study.place(arm, seed, ".npz"), validation=logits, maps=maps[arm, seed].astype(np.float16))
    found = mistakes.changed_maps(study)

    # The networks of seed 0 alone choose the images for seeds 1 and 2: 3, 4, 5 are corrected, 0 and 1 are broken. Those of
    # seed 2 choose 3 and 4, for seeds 0 and 1. In those of seed 1 nothing has changed.
    names = ["before", "after", "group"]
    expected = {
        (1, 2, "corrected"): [3, 4, 5],
        (1, 2, "broken"): [0, 1],
        (2, 1, "corrected"): [3, 4, 5],
        (2, 1, "broken"): [0, 1],
    }
    expected |= {(0, 1, "corrected"): [3, 4], (1, 0, "corrected"): [3, 4]}
    assert set(found["arm"]) == {"class weights"} and set(found[names].itertuples(index=False, name=None)) == set(expected)
    found = found.set_index(names)
    for (before, after, group), chosen in expected.items():
        row = found.loc[(before, after, group)]
        assert row["images"] == len(chosen)
        hits = [np.isin(chosen, right.get((arm, after), [0, 1, 2])) for arm in ("class weights", "the recipe")]
        assert row["gain"] == pytest.approx(hits[0].mean() - hits[1].mean())
        of_arm, of_null = (spearman(maps["the recipe", before], maps[arm, after]) for arm in ("class weights", "the recipe"))
        like = of_null[np.ix_(chosen, chosen)]
        assert row["same of the null"] == pytest.approx(np.diag(like).mean(), abs=1e-5)
        assert row["other of the null"] == pytest.approx(like[~np.eye(len(like), dtype=bool)].mean(), abs=1e-5)
        moved = np.diag(of_arm) - np.diag(of_null)
        assert row["moved"] == pytest.approx(moved[chosen].mean(), abs=1e-5)
        # Images that were chosen in neither group, of the same class, nearest in the probabilities of the recipe's two networks.
        chances = [mistakes.answers(study, "the recipe", s, "validation").probabilities for s in (before, after)]
        chances = np.log([each[np.arange(20), held_out.labels] for each in chances])
        changed = {image for (b, a, _), images in expected.items() if (b, a) == (before, after) for image in images}
        matched, planted = [], moved[chosen]
        for i, image in enumerate(chosen):
            calm = [k for k in range(20) if k not in changed and held_out.labels[k] == held_out.labels[image]]
            nearest = sorted(calm, key=lambda k: np.linalg.norm(chances[:, k] - chances[:, image]))
            matched += nearest[:5]
            planted[i] = planted[i] if i % 2 else of_arm[image, nearest[0]] - of_null[image, image]
        assert row["matched"] == pytest.approx(moved[matched].mean(), abs=1e-5)
        assert row["planted"] == pytest.approx(planted.mean(), abs=1e-5)


def spearman(first, second):
    pairs = product(first.reshape(len(first), -1), second.reshape(len(second), -1))
    return np.array([stats.spearmanr(*pair).statistic for pair in pairs]).reshape(len(first), -1)


def test_summary_of_maps_weighs_by_images_and_takes_the_jackknife_over_seeds():
    rows = [
        {"before": i, "after": j, "arm": arm, "group": "broken", "images": 2 + i, "gain": -0.1, "moved": -0.1 - i * j / 10}
        for i, j in permutations(range(3), 2)
        for arm in ("both", "class weights")
    ]
    table = pd.DataFrame(rows).assign(**{"same of the null": 0.5, "other of the null": 0.1, "matched": -0.1})
    found = mistakes.summarise_maps(table)
    row = found.loc[("both", "broken")]
    # Images 2, 2, 3, 3, 4, 4; excess 0, 0, 0, -0.2, 0, -0.2.
    assert row["excess"] == pytest.approx(-0.2 * 7 / 18) and row["moved"] == pytest.approx(-0.1 + row["excess"])
    assert (row["images"], row["gain"], row["other of the null"]) == pytest.approx((3, -0.1, 0.1))
    # Without seed 0 all of the rest lies lower by 0.2; without seed 1, or seed 2, nothing does.
    error = np.sqrt(2 / 3 * np.sum((np.array([-0.2, 0, 0]) - -0.2 / 3) ** 2))
    half = stats.t.ppf(0.975, 2) * error
    assert (row["from"], row["to"]) == pytest.approx((row["excess"] - half, row["excess"] + half))
    assert row["p"] == pytest.approx(2 * stats.t.sf(-row["excess"] / error, 2))
    assert row["corrected"] == pytest.approx(min(2 * row["p"], 1)) and len(found) == 2


def made_up(effects, seeds=5, noise=0.001):
    """A table of results in which each arm differs by its effect, give or take some noise, in every score."""
    rng = np.random.default_rng(0)
    scores = ["accuracy", "calibration error", *(f"{m} {c}" for m in ("recall", "precision") for c in mistakes.WEAK)]
    rows = [
        {"variant": arm, "seed": seed} | {score: 0.9 + seed / 100 + effect + noise * rng.standard_normal() for score in scores}
        for seed in range(seeds)
        for arm, effect in effects.items()
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_summary_is_analysis_of_variance_with_holms_correction_and_says_so_when_there_is_nothing():
    table = made_up(dict.fromkeys(mistakes.ARMS, 0) | {"both": 0.02, "class weights": -0.02})
    found = mistakes.summarise(table)
    assert len(found) == 24
    table = table.assign(recall=table[[f"recall {c}" for c in mistakes.WEAK]].mean(axis=1))
    for measure, column in {"accuracy": "accuracy", "recall of the weak": "recall"}.items():
        by_seed = table.pivot(index="seed", columns="variant", values=column)
        # The same by least squares: a column for each seed and each trained arm but one.
        stacked = by_seed[list(mistakes.TRAINED)].stack().reset_index()
        columns = (
            pd.get_dummies(stacked["seed"]).join(pd.get_dummies(stacked["variant"]).drop(columns="the recipe")).astype(float)
        )
        effects, (left,), *_ = np.linalg.lstsq(columns, stacked[0], rcond=None)
        covariance = left / 16 * np.linalg.inv(columns.T @ columns)
        for arm in mistakes.TRAINED[1:]:
            row, number = found.loc[(measure, arm)], list(columns).index(arm)
            error = np.sqrt(covariance[number, number])
            assert row["difference"] == pytest.approx(effects[number])
            assert row["to"] - row["difference"] == pytest.approx(stats.t.ppf(0.975, 16) * error)
            assert row["p"] == pytest.approx(2 * stats.t.sf(abs(effects[number]) / error, 16))
        names = {
            "logit shift": ("logit shift", "the recipe"),
            "class weights, less logit shift": ("class weights", "logit shift"),
        }
        for name, (arm, other) in names.items():
            row, test = found.loc[(measure, name)], stats.ttest_rel(by_seed[arm], by_seed[other])
            assert row["p"] == pytest.approx(test.pvalue)
            assert (row["from"], row["to"]) == pytest.approx(tuple(test.confidence_interval()))
    words = {
        "both": "higher",
        "class weights": "lower",
        "class weights, less logit shift": "lower",
    }
    for (_, contrast), row in found.iterrows():
        assert row["finding"] == words.get(contrast, "no difference found"), contrast
    np.testing.assert_allclose(found["corrected"], mistakes.holm(found["p"]))


def test_nothing_is_found_where_the_arms_are_the_recipe_to_the_digit():
    found = mistakes.summarise(made_up(dict.fromkeys(mistakes.ARMS, 0), noise=0))
    assert set(found["finding"]) == {"no difference found"} and (found["corrected"] == 1).all()


def test_uncorrected_finding_among_many_is_none():
    found = mistakes.summarise(made_up(dict.fromkeys(mistakes.ARMS, 0) | {"both": 0.0006}, noise=0.001))
    assert (found["p"] < 0.05).any() and set(found["finding"]) == {"no difference found"}


def test_holms_correction_by_hand():
    p = pd.Series([0.01, 0.04, 0.03, 0.005], index=list("abcd"))
    # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert mistakes.holm(p).to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert mistakes.holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]
