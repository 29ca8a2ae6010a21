import multiprocessing
import os
import signal
import time
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import precision_score, recall_score

from helpers import training
from helpers.data import load_dataset, split
from helpers.evaluation import Predictions, logit_shift
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
    assert f"lacks {10 - len(before)} of 10 runs: make them, without" in capsys.readouterr().err

    def fit(model, train, validation, config, device, checkpoint):
        configs.append(config)
        return training.fit(model, train, validation, config, device, checkpoint)

    monkeypatch.setattr(runs, "fit", fit)
    mistakes.main(options)
    assert not (tmp_path / "mistakes-test.csv").exists()
    table = pd.read_csv(path)
    pd.testing.assert_frame_equal(table.head(len(before))[list(before)], before)
    assert all(file.stat().st_mtime_ns == time for file, time in networks.items())
    assert len(table) == 10 and set(zip(table["seed"], table["variant"])) == set(product((0, 1), mistakes.ARMS))
    assert table["variant"].tolist()[:2] == ["the recipe"] * 2 and len(configs) == 8 - len(before)

    errors = 1 - table[table["variant"] == "the recipe"][[f"recall {c}" for c in small.classes]].mean().to_numpy()
    weights = tuple(np.maximum(errors / errors.mean(), 0.25).round(3))
    expected = {(s, h, w) for s in (0, 1) for h in ((), WEAK) for w in ((), weights)}
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
        if arm == "logit shift":
            held_out = held_out.astype(np.float16).astype(np.float32)  # as it is kept
            logits = logits + logit_shift(Predictions(held_out, validation.labels, small.classes), weights)
        found = mistakes.answers(study, arm, seed, "test").logits
        np.testing.assert_allclose(found, logits, atol=0.01)
        for score, value in scores_by_hand(found.argmax(1), small.test.labels, small.classes).items():
            assert tested.loc[(seed, arm), score] == pytest.approx(value, abs=6e-5)
    maps = pd.read_csv(tmp_path / "mistakes-maps.csv")
    columns = ["before", "after", "arm", "group", "images", "mean", "from", "to"]
    assert maps.columns.tolist() == columns and (maps["images"] > 1).all()


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


def test_maps_before_and_after_by_hand(tmp_path, small):
    held_out = small.test.subset(slice(6))
    study = runs.Study(small.train, held_out, small.test, tmp_path / "m.csv", TrainConfig(), 16, 2)
    right = {("the recipe", 0): [0, 1, 2], ("the recipe", 1): [0, 3, 4, 5], ("class weights", 0): [2, 3, 4, 5]}
    maps, rng = {}, np.random.default_rng(0)
    recall = {f"recall {name}": 0.9 for name in held_out.classes}
    pd.DataFrame([{"variant": "the recipe", "seed": 0, **recall}]).to_csv(study.path)  # equal weights: the shift is none
    (tmp_path / "m").mkdir()
    for arm, seed in product(set(mistakes.ARMS) - {"logit shift"}, (0, 1)):
        hit = np.isin(np.arange(6), right.get((arm, seed), [0, 1, 2]))
        logits = 9 * np.eye(10)[np.where(hit, held_out.labels, (held_out.labels + 1) % 10)]
        maps[arm, seed] = rng.permuted(np.tile(np.arange(16), (6, 1)), axis=1).reshape(6, 4, 4)
        np.savez(study.place(arm, seed, ".npz"), validation=logits, maps=maps[arm, seed].astype(np.float16))
    found = mistakes.changed_maps(study).set_index(["before", "after", "arm", "group"])

    def likeness(one, two):
        like = np.array([[stats.spearmanr(a.ravel(), b.ravel()).statistic for b in two] for a in one])
        return np.diag(like).mean() - like[~np.eye(len(like), dtype=bool)].mean()

    by_hand = {  # run after that of the recipe with seed 0: images corrected, images broken
        ("the recipe", 1): ([3, 4, 5], [1, 2]),
        ("class weights", 0): ([3, 4, 5], [0, 1]),
        ("logit shift", 1): ([3, 4, 5], [1, 2]),  # whose maps are the recipe's
    }
    for (arm, after), groups in by_hand.items():
        for group, chosen in zip(("corrected", "broken"), groups):
            row = found.loc[(0, after, arm, group)]
            assert row["images"] == len(chosen)
            second = maps["the recipe" if arm == "logit shift" else arm, after][chosen]
            assert row["mean"] == pytest.approx(likeness(maps["the recipe", 0][chosen], second), abs=1e-5)
    assert (0, 0, "both", "corrected") not in found.index  # it answers as the recipe does
    assert (0, 0, "the recipe", "broken") not in found.index  # it is itself


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


def test_summary_is_the_paired_t_test_with_holms_correction_and_says_so_when_there_is_nothing():
    table = made_up(dict.fromkeys(mistakes.ARMS, 0) | {"both": 0.02, "class weights": -0.02})
    found = mistakes.summarise(table)
    assert len(found) == 16 and "the recipe" not in found.index.get_level_values(1)
    by_seed = table.assign(recall=table[[f"recall {c}" for c in mistakes.WEAK]].mean(axis=1)).pivot(
        index="seed", columns="variant"
    )
    for (measure, arm), row in found.iterrows():
        column = {"accuracy": "accuracy", "recall of the weak": "recall"}.get(measure)
        if column:
            test = stats.ttest_rel(by_seed[column, arm], by_seed[column, "the recipe"])
            assert row["p"] == pytest.approx(test.pvalue)
            assert (row["from"], row["to"]) == pytest.approx(tuple(test.confidence_interval()))
        word = {"both": "higher", "class weights": "lower"}.get(arm, "no difference found")
        assert row["finding"] == word, (measure, arm)
    np.testing.assert_allclose(found["corrected"], mistakes.holm(found["p"]))


def test_nothing_is_found_where_the_arms_are_the_recipe_to_the_digit():
    found = mistakes.summarise(made_up(dict.fromkeys(mistakes.ARMS, 0), noise=0))
    assert set(found["finding"]) == {"no difference found"} and (found["corrected"] == 1).all()


def test_uncorrected_finding_among_sixteen_is_none():
    found = mistakes.summarise(made_up(dict.fromkeys(mistakes.ARMS, 0) | {"both": 0.0015}, noise=0.001))
    assert (found["p"] < 0.05).any() and set(found["finding"]) == {"no difference found"}


def test_holms_correction_by_hand():
    p = pd.Series([0.01, 0.04, 0.03, 0.005], index=list("abcd"))
    # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert mistakes.holm(p).to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert mistakes.holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]
