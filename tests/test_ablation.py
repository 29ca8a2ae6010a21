import multiprocessing
import signal
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from filelock import FileLock

from helpers import training
from helpers.data import load_dataset
from helpers.model import load_pretrained
from helpers.studies import ablation, runs
from helpers.training import TrainConfig, sole_owner


def test_every_variant_changes_the_recipe_in_what_its_name_says():
    for name, changes in ablation.ALL.items():
        assert all(getattr(ablation.RECIPE, field) != value for field, value in changes.items()), name


def test_command_runs_every_variant_once_and_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    seen = []

    def fit(model, train, validation, config, device, checkpoint, log):
        seen.append((config, len(train), sum(p.numel() for p in model.parameters())))
        if len(seen) == 9:
            raise KeyboardInterrupt
        return pd.DataFrame({"train_accuracy": [0.1, 0.2]})

    def evaluate(model, loader, device):
        config = seen[-1][0]
        return {"loss": 0.3, "accuracy": 0.5 + 0.1 * config.flip + 0.01 * config.seed, "images": len(loader.dataset)}

    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(runs, "evaluate", evaluate)
    path = tmp_path / "shapes10-ablation.csv"
    options = f"--data shapes10 --train-size 60 --validation-size 20 --epochs 3 --width 16 --seeds 2 --output {path}".split()
    with pytest.raises(SystemExit, match=f"are in {path}: run this again to go on"):
        ablation.main(options)
    ablation.main(options)
    table = pd.read_csv(path)
    variants = list(ablation.VARIANTS)
    assert list(zip(table["seed"], table["variant"])) == [(s, v) for s in (0, 1) for v in variants]
    assert len(seen) == 2 * len(variants) + 1 and {row[1:] for row in seen} == {(40, seen[0][2])}
    assert set(table["validation_images"]) == {20} and set(table["train_accuracy"]) == {0.2}
    assert {config.epochs for config, *_ in seen} == {3} and {config.seed for config, *_ in seen} == {0, 1}
    table = ablation.summarise(table)
    assert list(table.index) == variants
    assert table.loc["without flip", "difference"] == pytest.approx(-0.1)
    assert table.loc["the recipe"].tolist() == pytest.approx([0.605, 0.01 / 2**0.5, 0, 0, 0, 0, 2])
    assert "without flip" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["shapes10-narrow-0.pt", "shapes10-narrow-1.pt"]
    twins = [load_pretrained(str(tmp_path / f"shapes10-narrow-{seed}.pt")) for seed in (0, 1)]
    assert not torch.equal(twins[0].fc.weight, twins[1].fc.weight)


def test_command_repeats_some_variants_at_another_width_and_length_in_a_table_of_its_own(tmp_path, capsys):
    path = tmp_path / "wider.csv"
    options = "--data shapes10 --train-size 60 --validation-size 20 --epochs 2 --image-sizes 16 20 --width 24 --seeds 1".split()
    options += ["--output", str(path), "--variants", "the recipe", "without flip"]
    ablation.main(options)
    table = pd.read_csv(path)
    assert table["variant"].tolist() == ["the recipe", "without flip"]
    assert table.loc[0, ["epochs", "sizes", "width"]].tolist() == [2, "(16, 20)", 24]
    assert load_pretrained(str(tmp_path / "wider-narrow-0.pt")).stem.out_channels == 24
    with pytest.raises(SystemExit, match="2"):
        ablation.main([*options, "--image-sizes", "16"])
    assert capsys.readouterr().err.splitlines()[-1].endswith("holds runs with other sizes: delete it, or name another file")


def test_rows_of_another_recipe_are_not_gone_on_with(tmp_path, capsys):
    path = tmp_path / "ablation.csv"
    pd.DataFrame([("the recipe", 0, 15, 16, 0.5)], columns=["variant", "seed", "epochs", "width", "validation_accuracy"]).to_csv(
        path
    )
    with pytest.raises(SystemExit, match="2"):
        ablation.main(f"--data shapes10 --train-size 60 --validation-size 20 --epochs 3 --output {path}".split())
    assert capsys.readouterr().err.strip().endswith("with other epochs, sizes, harder, data: delete it, or name another file")


def test_summary_by_hand():
    all_of_it, less = "the recipe", "without flip"
    rows = [(less, 0, 0.7), (all_of_it, 0, 0.8), (less, 1, 0.7), (all_of_it, 1, 0.6)]  # as runs end: not the recipe first
    table = ablation.summarise(pd.DataFrame(rows, columns=["variant", "seed", "validation_accuracy"]))
    # Differences -0.1 and +0.1: mean 0, standard deviation 0.1 * sqrt(2), divided by sqrt(2).
    half = 12.7062 * 0.1  # Student's t of a printed table: one degree of freedom, 95 %, both sides
    assert table.loc[less].tolist() == pytest.approx([0.7, 0, 0, 0.1, -half, half, 2], rel=1e-5)
    assert table.loc[all_of_it, "standard deviation"] == pytest.approx(0.2 / 2**0.5)


SMALL = TrainConfig(epochs=1, batch_size=20, image_sizes=(16,))


def study(path, images=60, jobs=1):
    data = load_dataset("shapes10", train_size=60, test_size=20)
    return runs.Study(data.train.subset(slice(images)), data.test, data.test, path, SMALL, 16, 1, jobs)


def test_a_real_run_learns_on_generated_images(tmp_path):
    table = ablation.ablation(study(tmp_path / "ablation.csv"), ["the recipe"])
    assert table.loc[0, ["variant", "seed", "epochs", "width"]].tolist() == ["the recipe", 0, 1, 16]
    assert 0 <= table.loc[0, "validation_accuracy"] <= 1
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "ablation.csv"), table)


def test_run_that_was_killed_goes_on_from_its_last_epoch(tmp_path, monkeypatch):
    longer, epochs = replace(study(tmp_path / "a.csv"), recipe=replace(SMALL, epochs=3)), []
    whole = runs.train_once(longer, "without flip", 0, {"flip": False})

    def killed(*args):
        def log(row):
            epochs.append(row["epoch"])
            if epochs == [1, 2]:
                raise KeyboardInterrupt

        return training.fit(*args[:-1], log=log)

    monkeypatch.setattr(runs, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        runs.train_once(longer, "without flip", 0, {"flip": False})
    assert runs.train_once(longer, "without flip", 0, {"flip": False}) == whole
    assert epochs == [1, 2, 3] and list((tmp_path / "a").iterdir()) == []


def study_of_two_at_a_time(path):
    ablation.ablation(replace(study(path, jobs=2), recipe=replace(SMALL, epochs=2_000)))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill")
def test_processes_of_a_killed_study_end_with_their_checkpoint_and_leave_it_to_the_next(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=study_of_two_at_a_time, args=(tmp_path / "a.csv",))
    process.start()
    while len(checkpoints := list((tmp_path / "a").glob("*.checkpoint"))) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(BlockingIOError), sole_owner(checkpoints[0]):
        pass
    process.kill()
    process.join()
    for checkpoint in checkpoints:
        with FileLock(f"{checkpoint}.lock", timeout=20):
            assert checkpoint.exists()


def test_runs_side_by_side_give_the_rows_of_runs_one_by_one(tmp_path):
    tables = []
    for jobs in (1, 2):
        table = ablation.ablation(study(tmp_path / f"{jobs}-ablation.csv", jobs=jobs))
        tables.append(table.sort_values("variant", ignore_index=True))
    # Another number of threads adds up in another order, so a few of the twenty predictions may differ.
    pd.testing.assert_frame_equal(*tables, atol=0.1)
    assert len(tables[0]) == len(ablation.VARIANTS)


@pytest.mark.parametrize(("cut", "lost"), [(0, 0), (1, 1), (9, 1), (120, 2), (10_000, 7)], ids="{} characters".format)
def test_row_cut_in_its_middle_is_run_again(tmp_path, monkeypatch, cut, lost):
    seen = []

    def fit(model, train, validation, config, device, checkpoint, log):
        seen.append(config)
        return pd.DataFrame({"train_accuracy": [0.5 + len(seen) / 100]})

    monkeypatch.setattr(runs, "fit", fit)
    path = tmp_path / "ablation.csv"
    ablation.ablation(study(path))
    path.write_bytes(path.read_bytes()[: -cut or None])
    ablation.ablation(study(path))
    table, kept = pd.read_csv(path), 7 - lost
    assert list(table["variant"]) == list(ablation.VARIANTS) and not table.isna().any(axis=None)
    expected = [0.5 + number / 100 for number in (*range(1, kept + 1), *range(8, 8 + lost))]
    assert table["train_accuracy"].tolist() == pytest.approx(expected)


def test_rows_of_other_images_are_not_gone_on_with_and_two_ablations_do_not_write_one_table(tmp_path):
    path = tmp_path / "ablation.csv"
    with sole_owner(path), pytest.raises(BlockingIOError, match="another run is writing"):
        ablation.ablation(study(path), ["the recipe"])
    ablation.ablation(study(path), ["the recipe"])
    with pytest.raises(ValueError, match="with other data"):
        ablation.ablation(study(path, images=59), ["the recipe"])
