from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers.studies import RECORDS, mistakes_summary
from helpers.studies.mistakes_summary import NEIGHBOURS, TRAINED, Arm, nearest_of_class
from helpers.support.intervals import holm


@pytest.mark.parametrize("candidates", [60, 12, 1])
def test_neighbours_are_the_nearest_of_the_same_class(candidates):
    """By hand, image by image; classes lie on top of each other, so that most nearest are not."""
    rng = np.random.default_rng(0)
    points, labels = rng.random((100, 2)), np.arange(100) % 3
    chosen, allowed = np.arange(90, 100), np.arange(3 * candidates)[: min(3 * candidates, 90)]
    found = nearest_of_class(points, labels, chosen, allowed)
    assert found.shape == (10, min(candidates, NEIGHBOURS))
    for image, neighbours in zip(chosen, found):
        of_class = [other for other in allowed if labels[other] == labels[image]]
        distance = np.linalg.norm(points[of_class] - points[image], axis=1)
        expected = np.array(of_class)[np.argsort(distance)]
        assert neighbours.tolist() == expected[: len(neighbours)].tolist()


def test_no_neighbours_where_a_class_has_no_candidate_or_nothing_is_chosen():
    points, labels = np.zeros((6, 2)), np.array([0, 0, 1, 0, 1, 2])
    assert nearest_of_class(points, labels, np.array([0, 5]), np.array([1, 2])).size == 0
    assert nearest_of_class(points, labels, np.array([], dtype=int), np.array([1])).size == 0


def test_arms_are_the_names_in_the_committed_records():
    names = set(pd.read_csv(RECORDS / "cifar10-mistakes.csv")["variant"])
    assert names == set(Arm) == {arm.value for arm in Arm}
    assert [f"{arm}" for arm in TRAINED] == [arm.value for arm in Arm if arm != "logit shift"]
    maps = pd.read_csv(RECORDS / "cifar10-mistakes-maps.csv")
    assert set(maps["arm"]) == set(TRAINED[1:])
    assert len(mistakes_summary.summarise_maps(maps)) == 2 * len(TRAINED[1:])


def test_summary_of_maps_weighs_by_images_and_takes_the_jackknife_over_seeds():
    rows = [
        {
            "before": i,
            "after": j,
            "arm": arm,
            "group": "broken",
            "images": 2 + i,
            "gain": -0.1,
            "moved": -0.1 - i * j / 10,
        }
        for i, j in permutations(range(3), 2)
        for arm in ("both", "class weights")
    ]
    table = pd.DataFrame(rows).assign(matched=-0.1)
    found = mistakes_summary.summarise_maps(table)
    row = found.loc[("both", "broken")]
    # Images 2, 2, 3, 3, 4, 4; excess 0, 0, 0, -0.2, 0, -0.2.
    assert row["excess"] == pytest.approx(-0.2 * 7 / 18)
    assert row["moved"] == pytest.approx(-0.1 + row["excess"])
    assert (row["images"], row["gain"]) == pytest.approx((3, -0.1))
    # Without seed 0 all of the rest lies lower by 0.2; without seed 1, or seed 2, nothing does.
    error = np.sqrt(2 / 3 * np.sum((np.array([-0.2, 0, 0]) - -0.2 / 3) ** 2))
    half = stats.t.ppf(0.975, 2) * error
    assert (row["from"], row["to"]) == pytest.approx((row["excess"] - half, row["excess"] + half))
    assert row["p"] == pytest.approx(2 * stats.t.sf(-row["excess"] / error, 2))
    assert row["corrected"] == pytest.approx(min(2 * row["p"], 1)) and len(found) == 2


def test_holms_correction_by_hand():
    p = pd.Series([0.01, 0.04, 0.03, 0.005], index=list("abcd"))
    # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be below the one before.
    assert holm(p).to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm(pd.Series([0.6, 0.7])).tolist() == [1, 1]
