import re
from types import SimpleNamespace

import pandas as pd
import pytest
import tiny
import torch

from helpers.model import load_pretrained
from helpers.studies import RECORDS, ablation, runs
from helpers.support.files import exclusive_lock

CALLS = {(0, "the recipe"): (ablation.train_variant, "the recipe", 0, {})}
OPTIONS = "--data shapes10 --train-size 60 --validation-size 20".split()


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    monkeypatch.setattr(runs, "load_dataset", tiny.load_few_test_images)


def test_every_variant_changes_the_recipe_in_what_its_name_says():
    for name, changes in ablation.ALL_VARIANTS.items():
        for field, value in changes.items():
            assert getattr(ablation.RECIPE, field) != value, name


def test_command_runs_every_variant_once_and_goes_on_where_it_was_stopped(
    tmp_path, capsys, monkeypatch
):
    seen, scored_on = [], []

    def fit(model, train, validation, config, checkpoint, log):
        seen.append((config, len(train), sum(p.numel() for p in model.parameters())))
        if len(seen) == 9:
            raise KeyboardInterrupt
        return pd.DataFrame({"train_accuracy": [0.1, 0.2]})

    def predict(model, dataset):
        config = seen[-1][0]
        scored_on.append(len(dataset))
        accuracy = 0.5 + 0.1 * config.flip + 0.01 * config.seed
        return SimpleNamespace(loss=0.3, accuracy=accuracy)

    monkeypatch.setattr(runs, "fit", fit)
    monkeypatch.setattr(runs, "predict", predict)
    path = tmp_path / "shapes10-ablation.csv"
    options = [*OPTIONS, *f"--epochs 3 --width 16 --seeds 2 --output {path}".split()]
    with pytest.raises(SystemExit, match=f"are in {path}: run this again to go on"):
        ablation.main(options)
    ablation.main(options)
    table = pd.read_csv(path)
    variants = list(ablation.VARIANTS)
    assert list(zip(table["seed"], table["variant"])) == [(s, v) for s in (0, 1) for v in variants]
    assert len(seen) == 2 * len(variants) + 1 and {row[1:] for row in seen} == {(40, seen[0][2])}
    assert scored_on == [20] * 2 * len(variants)
    assert set(table["train_accuracy"]) == {0.2} and set(table["validation_loss"]) == {0.3}
    assert {config.epochs for config, *_ in seen} == {3}
    assert {config.seed for config, *_ in seen} == {0, 1}
    # Mean and standard deviation over the seeds; those of the loss stand before.
    assert re.search(r"\nthe recipe .* 0\.605 +0\.0071\n", capsys.readouterr().out)
    networks = ["shapes10-narrow-0.pt", "shapes10-narrow-1.pt"]
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == networks
    twins = [load_pretrained(str(tmp_path / name)) for name in networks]
    assert not torch.equal(twins[0].fc.weight, twins[1].fc.weight)


def test_command_repeats_some_variants_at_another_width_and_length_in_a_table_of_its_own(
    tmp_path, capsys
):
    path = tmp_path / "wider.csv"
    options = [*OPTIONS, *"--epochs 2 --image-sizes 16 20 --width 24 --seeds 1".split()]
    options += ["--output", str(path), "--variants", "the recipe", "without flip"]
    ablation.main(options)
    table = pd.read_csv(path)
    assert table["variant"].tolist() == ["the recipe", "without flip"]
    assert table.loc[0, ["epochs", "sizes", "width"]].tolist() == [2, "(16, 20)", 24]
    assert load_pretrained(str(tmp_path / "wider-narrow-0.pt")).stem.out_channels == 24
    with pytest.raises(SystemExit, match="2"):
        ablation.main([*options, "--image-sizes", "16"])
    message = "holds runs with other sizes: delete it, or name another file"
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


def test_the_recipes_networks_of_two_seeds_are_kept_and_no_others(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(runs, "train_once", lambda *given: kept.append(given[-1]))
    for seed in range(3):
        for changes in ({}, {"hole": 0}):
            ablation.train_variant(tiny.make_study(tmp_path / "x-ablation.csv"), "v", seed, changes)
    twins = [tmp_path / f"x-narrow-{seed}.pt" for seed in (0, 1)]
    assert kept == [twins[0], None, twins[1], None, None, None]


def test_rows_of_another_recipe_are_not_gone_on_with(tmp_path, capsys):
    path = tmp_path / "ablation.csv"
    columns = ["variant", "seed", "epochs", "width", "validation_accuracy"]
    runs.write_table(path, pd.DataFrame([("the recipe", 0, 15, 16, 0.5)], columns=columns))
    with pytest.raises(SystemExit, match="2"):
        ablation.main([*OPTIONS, "--epochs", "3", "--output", str(path)])
    message = (
        "with other epochs, sizes, stronger_classes, data, recipe: delete it, or name another file"
    )
    assert capsys.readouterr().err.strip().endswith(message)


def test_a_real_run_learns_on_generated_images_and_its_rows_belong_to_these_images(tmp_path):
    path = tmp_path / "ablation.csv"
    with exclusive_lock(path), pytest.raises(BlockingIOError, match="another run is writing"):
        tiny.make_study(path).run_missing(CALLS)
    table = tiny.make_study(path).run_missing(CALLS)
    columns = ["variant", "seed", "epochs", "width"]
    assert table.loc[0, columns].tolist() == ["the recipe", 0, 1, 16]
    assert 0 <= table.loc[0, "validation_accuracy"] <= 1
    pd.testing.assert_frame_equal(pd.read_csv(path).drop(columns="check"), table)
    with pytest.raises(ValueError, match="with other data"):
        tiny.make_study(path, images=59).run_missing(CALLS)


@pytest.mark.parametrize("name", ["cifar10-ablation", "cifar10-ablation-24", "cifar10-candidates"])
def test_committed_records_hold_known_variants(name):
    table = pd.read_csv(RECORDS / f"{name}.csv")
    assert {"the recipe"} < set(table["variant"]) <= set(ablation.ALL_VARIANTS)
    assert table["validation_accuracy"].between(0.7, 1).all()
