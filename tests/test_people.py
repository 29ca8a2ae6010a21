import numpy as np
import pandas as pd
import pytest
from tiny import load_few_test_images

from helpers.studies import people
from helpers.support.intervals import wilson_interval

LABELS = np.array([0, 0, 1, 1, 2, 2])
COUNTS = np.array([[9, 1, 0], [4, 5, 1], [0, 10, 0], [5, 5, 0], [0, 8, 2], [0, 0, 10]])
PREDICTED = np.array([0, 1, 0, 1, 2, 1])  # the second, the third and the last are wrong


def test_shares_of_six_images_by_hand():
    table = people.shares(COUNTS, LABELS, PREDICTED).set_index("question")
    assert table["value"]["one person is right"] == pytest.approx((9 + 4 + 10 + 5 + 2 + 10) / 60)
    assert table["count"]["one person is right"] == 4
    expected = [  # a tie, in the fourth, is no other class
        ("the network is right", 3, 6),
        ("people's commonest answer is not the label", 2, 6),
        ("there, the network errs", 1, 2),
        ("there, it gives people's commonest answer", 1, 2),
        ("elsewhere, the network errs", 2, 4),
        ("mistakes where nine in ten people name the label", 2, 3),
        ("right answers where nine in ten people do, too", 1, 3),
    ]
    for question, count, of in expected:
        row = table.loc[question]
        assert (row["count"], row["of"], row["value"]) == (count, of, count / of)
        assert (row["from"], row["to"]) == wilson_interval(count, of)
    assert (table["from"] <= table["value"]).all() and (table["value"] <= table["to"]).all()


def test_confusions_hold_a_row_for_each_pair_of_classes():
    named = {"people": COUNTS, "network": np.eye(3, dtype=int)[PREDICTED]}
    table = people.confusions(LABELS, named, ("a", "b", "c")).set_index(["actual", "named"])
    assert table["people"].tolist() == [13, 6, 1, 5, 15, 0, 0, 8, 12]
    assert table["network"].tolist() == [1, 1, 0, 1, 1, 0, 0, 1, 1]


def confused(pairs, images=400):
    """Labels of four classes, and answers: most are right, the others are `pairs[label]`."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, images)
    answers = np.where(rng.random(images) < 0.7, labels, np.array(pairs)[labels])
    return labels, np.eye(4, dtype=int)[answers]


def test_likeness_tells_the_same_pairs_from_other_pairs():
    labels, first = confused([1, 0, 3, 2])
    others = {"same": confused([1, 0, 3, 2])[1], "other": confused([2, 3, 0, 1])[1]}
    table = people.likeness(labels, {"first": first} | others).set_index(["first", "second"])
    same, other = table.loc["first", "same"], table.loc["first", "other"]
    assert same[["value", "from", "to"]].tolist() == pytest.approx([1, 1, 1])
    assert same["shuffled to"] < 0.95
    matrices = [np.array([[(named[labels == i, j]).sum() for j in range(4)] for i in range(4)])
                for named in (first, others["other"])]  # fmt: skip
    cells = [[matrix[i, j] for i in range(4) for j in range(4) if i != j] for matrix in matrices]
    assert other["value"] == pytest.approx(np.corrcoef(*cells)[0, 1])
    assert other["from"] < other["value"] < other["to"] < 0
    assert (table["shuffled from"] < 0.2).all() and (table["shuffled to"] > 0.2).all()


@pytest.mark.parametrize(
    ("counts", "message"), [(COUNTS[:5], "other images"), (COUNTS[::-1], "different orders")]
)
def test_counts_of_other_images_are_refused(tmp_path, counts, message):
    np.save(tmp_path / "counts.npy", counts)
    with pytest.raises(ValueError, match=message):
        people.load_counts(tmp_path / "counts.npy", LABELS, 3)


def test_the_command_writes_three_tables_without_a_row_for_each_image(tmp_path, monkeypatch):
    monkeypatch.setattr(people, "RESAMPLES", 20)
    data = load_few_test_images("shapes10", train_size=1)
    np.save(tmp_path / "counts.npy", 9 * np.eye(10, dtype=int)[data.test.labels] + 1)
    options = ["--counts", str(tmp_path / "counts.npy"), "--data", "shapes10"]
    options += ["--test-size", "20", "--networks", "shapes10"]
    people.main([*options, "--output", str(tmp_path)])
    tables = {p.stem: pd.read_csv(p) for p in tmp_path.glob("*.csv")}
    assert {name: len(table) for name, table in tables.items()} == {
        "shapes10-people": 8,
        "shapes10-people-likeness": 1,
        "shapes10-people-confusions": 100,
    }
    assert tables["shapes10-people-confusions"]["people"].sum() == 20 * 19
