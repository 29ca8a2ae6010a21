import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch
from filelock import FileLock

from helpers import training
from helpers.data import channel_statistics
from helpers.evaluation import predict
from helpers.model import load_pretrained, resnet18
from helpers.studies import ablation, runs
from helpers.studies.ablation import VARIANTS
from helpers.support.files import exclusive_lock


def test_run_that_was_killed_goes_on_from_its_last_epoch(tmp_path, monkeypatch):
    study = tiny.make_study(tmp_path / "a.csv", recipe=replace(tiny.RECIPE, epochs=3))
    calls = {(0, "without flip"): (runs.train_once, "without flip", 0, {"flip": False})}
    whole = study.run_missing(calls)
    study.path.unlink()
    epochs = []

    def killed(*args, checkpoint, log):
        def note(row):
            epochs.append(row["epoch"])
            if epochs == [1, 2]:
                raise KeyboardInterrupt

        return training.fit(*args, checkpoint=checkpoint, log=note)

    monkeypatch.setattr(runs, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run_missing(calls)
    pd.testing.assert_frame_equal(study.run_missing(calls), whole)
    assert epochs == [1, 2, 3] and list((tmp_path / "a").iterdir()) == []


def test_network_of_each_seed_is_kept_and_scored_beside_its_average(tmp_path):
    recipe = replace(tiny.RECIPE, epochs=2, ema=0.9)
    study = tiny.make_study(tmp_path / "seeds.csv", recipe=recipe)
    scores = runs.train_and_test(study, "the recipe", 1, {})
    path, *_ = sorted((tmp_path / "seeds").glob("*[0-9].pt"))
    assert path.name == "the-recipe-1.pt"
    network = load_pretrained(path)
    torch.manual_seed(1)
    averaged = resnet18(10, 16, *channel_statistics(study.train.images))
    training.fit(averaged, study.train, None, replace(recipe, seed=1))
    for key, model in {"test_accuracy": network, "averaged_accuracy": averaged}.items():
        assert scores[key] == pytest.approx(predict(model, study.test).accuracy)
    assert not torch.allclose(network.fc.weight, averaged.fc.weight, atol=1e-3)
    torch.manual_seed(1)
    last = resnet18(10, 16, *channel_statistics(study.train.images))
    training.fit(last, study.train, None, replace(recipe, seed=1, ema=0.0))
    torch.testing.assert_close(network.fc.weight, last.fc.weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("cut", "lost"),
    [(0, 0), (1, 1), (9, 1), (240, 2), (10_000, 7)],
    ids="{} characters".format,
)
def test_row_cut_in_its_middle_is_run_again(tmp_path, monkeypatch, cut, lost):
    seen = []

    def fit(*args, **kwargs):
        seen.append(args)
        return pd.DataFrame({"train_accuracy": [0.5 + len(seen) / 100]})

    monkeypatch.setattr(runs, "fit", fit)
    study = tiny.make_study(tmp_path / "ablation.csv")
    calls = {(0, name): (runs.train_once, name, 0, {}) for name in VARIANTS}
    study.run_missing(calls)
    study.path.write_bytes(study.path.read_bytes()[: -cut or None])
    study.run_missing(calls)
    table, kept = pd.read_csv(study.path), 7 - lost
    assert list(table["variant"]) == list(VARIANTS)
    assert not table.isna().any(axis=None)
    expected = [0.5 + number / 100 for number in (*range(1, kept + 1), *range(8, 8 + lost))]
    assert table["train_accuracy"].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output runs/x", "let its name end in .csv"),
        ("--seeds 0", "--seeds and --jobs must be at least 1"),
        ("--jobs 0", "--seeds and --jobs must be at least 1"),
        ("--validation-size 0", "no images"),
        ("--variants hole~13", "invalid choice: 'hole 13'"),
    ],
)
def test_options_that_will_not_do_are_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, options, message
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "load_dataset", tiny.load_few_test_images)
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pytest.fail("it trained"))
    given = "--data shapes10 --train-size 60 --validation-size 20 --output m.csv".split()
    with pytest.raises(SystemExit, match="2"):
        ablation.main(given + [option.replace("~", " ") for option in options.split()])
    assert message in capsys.readouterr().err


def test_variants_may_be_added_to_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "load_dataset", tiny.load_few_test_images)
    monkeypatch.setattr(runs, "fit", lambda *_, **__: pd.DataFrame({"train_accuracy": [0.5]}))
    options = "--data shapes10 --train-size 60 --validation-size 20 --seeds 1 --output".split()
    for name in ("the recipe", "hole 12"):
        ablation.main([*options, str(tmp_path / "t.csv"), "--variants", name])
    assert pd.read_csv(tmp_path / "t.csv")["variant"].tolist() == ["the recipe", "hole 12"]


OTHER_STUDIES = {
    "test images": lambda s: replace(s, test=s.test.subset(slice(19))),
    "order of test images": lambda s: replace(s, test=s.test.subset(slice(None, None, -1))),
    "recipe": lambda s: replace(s, recipe=replace(s.recipe, hole=9)),
}


@pytest.mark.parametrize("other", OTHER_STUDIES.values(), ids=OTHER_STUDIES)
def test_rows_of_a_study_that_differs_in_anything_are_refused(tmp_path, other):
    study = tiny.make_study(tmp_path / "m.csv")
    table = study.run_missing({(0, "quick"): (lambda study: {"score": 1.23456},)})
    assert table["score"].tolist() == [1.2346]
    with pytest.raises(ValueError, match="m.csv holds runs with other (data|recipe): delete"):
        other(study).run_missing({})


@pytest.mark.process
def test_runs_side_by_side_give_the_rows_of_runs_one_by_one(tmp_path):
    names = ["the recipe", "without flip", "constant learning rate"]
    tables = []
    with tiny.one_thread():
        for jobs in (1, 2):
            study = tiny.make_study(tmp_path / f"{jobs}-ablation.csv", jobs=jobs)
            calls = {(0, name): (runs.train_once, name, 0, VARIANTS[name]) for name in names}
            table = study.run_missing(calls)
            tables.append(table.sort_values("variant", ignore_index=True))
    pd.testing.assert_frame_equal(*tables)
    assert sorted(tables[0]["variant"]) == sorted(names)


def run_two_at_a_time(path):
    """One run that ends at once, then two that would take hours, side by side."""
    study = tiny.make_study(path, jobs=2)
    calls = {(0, "short"): (runs.train_once, "short", 0, {}, path.with_name("short.pt"))}
    for seed in (0, 1):
        calls[seed, "long"] = (runs.train_once, "long", seed, {"epochs": 5_000})
    study.run_missing(calls)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill")
def test_killed_study_keeps_its_rows_and_its_processes_leave_their_checkpoints_to_the_next(
    tmp_path, monkeypatch
):
    path = tmp_path / "a.csv"
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=run_two_at_a_time, args=(path,))
    process.start()
    checkpoints = [tmp_path / "a" / f"long-{seed}.checkpoint" for seed in (0, 1)]
    while not all(checkpoint.exists() for checkpoint in checkpoints):
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(BlockingIOError), exclusive_lock(checkpoints[0]):
        pass
    process.kill()
    process.join()
    for checkpoint in checkpoints:
        with FileLock(f"{checkpoint}.lock", timeout=60):
            assert checkpoint.exists()

    before = pd.read_csv(path)
    assert before["variant"].tolist() == ["short"]
    written, started = (tmp_path / "short.pt").stat().st_mtime_ns, []

    def fit(*args, checkpoint, log):
        started.append(checkpoint.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "fit", fit)
    calls = {(0, name): (runs.train_once, name, 0, {}) for name in ("short", "long")}
    with pytest.raises(KeyboardInterrupt, match="run this again to go on"):
        tiny.make_study(path).run_missing(calls)
    assert started == ["long-0.checkpoint"]
    pd.testing.assert_frame_equal(pd.read_csv(path), before)
    assert (tmp_path / "short.pt").stat().st_mtime_ns == written


def lead_a_group(path):
    os.setsid()
    run_two_at_a_time(path)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no groups of processes")
def test_signal_to_a_studys_whole_group_ends_its_processes_at_once(tmp_path):
    process = multiprocessing.get_context("spawn").Process(
        target=lead_a_group, args=(tmp_path / "a.csv",)
    )
    process.start()
    checkpoints = [tmp_path / "a" / f"long-{seed}.checkpoint" for seed in (0, 1)]
    while not all(checkpoint.exists() for checkpoint in checkpoints):
        assert process.is_alive()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    deadline = time.monotonic() + 30  # without an end of their own they take the next run
    while True:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
