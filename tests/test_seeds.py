"""Two studies of variants: of seeds, and of a small training set."""

import pandas as pd
import pytest
import tiny

from helpers.studies import runs, seeds, small_set

OPTIONS = "--data shapes10 --width 16 --epochs 1 --seeds 1".split()


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    monkeypatch.setattr(runs, "load_dataset", tiny.load_few_test_images)


def test_seeds_command_scores_all_training_images_and_keeps_each_network(tmp_path, capsys):
    path = tmp_path / "seeds.csv"
    options = [*OPTIONS, "--train-size", "60", "--output", str(path)]
    seeds.main([*options, "--variants", "the recipe", "no augmentation"])
    table = pd.read_csv(path).set_index("variant")
    assert list(table.index) == ["the recipe", "no augmentation"]
    scores = ["test_accuracy", "averaged_accuracy"]
    assert ((table[scores] * 20) % 1 < 1e-9).all(axis=None)  # shares of twenty test images
    names = sorted(file.name for file in path.with_suffix("").iterdir())
    networks = ["no-augmentation-0", "the-recipe-0"]
    assert names == [f"{name}{of}.pt" for name in networks for of in (".averaged", "")]
    assert "test_accuracy" in capsys.readouterr().out


def test_small_set_command_holds_half_of_its_images_out_and_compares_with_the_first(
    tmp_path, monkeypatch
):
    seen = []

    def train_once(study, variant, seed, changes):
        seen.append((len(study.train), len(study.validation), changes))
        return {"validation_accuracy": 0.5}

    monkeypatch.setattr(runs, "train_once", train_once)
    path = tmp_path / "small.csv"
    options = [*OPTIONS, "--train-size", "60", "--validation-size", "20", "--output", str(path)]
    small_set.main([*options, "--variants", *small_set.VARIANTS])
    assert seen == [(40, 20, changes) for changes in small_set.VARIANTS.values()]
    for changes in small_set.VARIANTS.values():
        for field, value in changes.items():
            assert getattr(small_set.RECIPE, field) != value
