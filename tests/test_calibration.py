"""Scores of each class, calibration, class weights and the logit shift."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import classification_report
from test_evaluation import answers_of, random_answers

from helpers.studies.calibration import (
    fit_logit_shift,
    fit_temperature,
    per_class,
    weights_from_recall,
)


@pytest.fixture(scope="module")
def six():
    """Labels 0 0 0 1 1 2, predicted 0 1 1 1 0 1: nothing is called 2, and class 3 has no image."""
    predicted = np.array([0, 1, 1, 1, 0, 1])
    return answers_of(predicted[:, None] == np.arange(4), [0, 0, 0, 1, 1, 2])


# scores per class


def test_scores_per_class_of_six_images_by_hand(six):
    table = per_class(six)
    assert list(table.index) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(table["recall"], [1 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(table["precision"], [1 / 2, 1 / 4, np.nan, np.nan])


def test_scores_per_class_agree_with_sklearns_report():
    answers = random_answers(60, 3)
    actual, predicted, names = answers.labels, answers.predicted, answers.classes
    report = classification_report(actual, predicted, target_names=names, output_dict=True)
    for name, row in per_class(answers).iterrows():
        expected = [report[name][key] for key in ("recall", "precision")]
        assert list(row[["recall", "precision"]]) == pytest.approx(expected)


# calibration


def test_temperature_finds_by_what_factor_the_logits_are_too_large_or_too_small():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 10))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from the logits' softmax
    original = fit_temperature(answers_of(logits, labels))
    assert original == pytest.approx(1, abs=0.03)
    for factor in (0.3, 3):
        scaled = fit_temperature(answers_of(logits * factor, labels))
        assert scaled == pytest.approx(factor * original, rel=1e-3)


# class weights, and the shift of the logits that stands in for them


def test_weights_are_in_proportion_to_the_errors_with_a_minimum():
    recall = [0.9, 0.8, 0.7, 0.6]  # errors of 0.1 to 0.4, 0.25 on average
    assert weights_from_recall(recall) == (0.4, 0.8, 1.2, 1.6)
    assert weights_from_recall([1.0, 0.8]) == (0.25, 2.0)


def test_a_class_without_images_weighs_one_and_counts_for_no_mean():
    assert weights_from_recall([0.9, np.nan, 0.7]) == (0.5, 1.0, 1.5)
    assert weights_from_recall([1.0, 1.0, np.nan]) == (1.0, 1.0, 1.0)


def test_logit_shift_of_a_network_that_knows_nothing_is_the_log_of_what_each_class_weighs():
    answers = answers_of(np.zeros((8, 3)), [0] * 5 + [1] * 2 + [2])
    shift = fit_logit_shift(answers, (1, 3, 4))
    expected = np.log([5 * 1, 2 * 3, 1 * 4])
    np.testing.assert_allclose(shift, expected - expected.mean(), atol=1e-4)
    assert shift.dtype == np.float32


def test_logit_shift_makes_the_mean_probability_of_each_class_its_weighted_share():
    """There the derivative of the weighted loss is zero. Without the shift it is not."""
    rng, weights = np.random.default_rng(0), np.array([0.5, 1, 2, 1])
    labels = rng.integers(0, 4, 300)
    answers = answers_of(rng.normal(size=(300, 4)) + 2 * np.eye(4)[labels], labels)
    each = weights[labels] / weights[labels].sum()
    share = np.bincount(labels, each)
    shifted = softmax(answers.logits + fit_logit_shift(answers, weights), axis=1)
    np.testing.assert_allclose(each @ shifted, share, atol=1e-4)
    assert np.abs(each @ answers.probabilities - share).max() > 0.02
