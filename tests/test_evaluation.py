from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import classification_report

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import (
    Predictions,
    accuracy_interval,
    as_undecided,
    calibration,
    calibration_error,
    confusion,
    error_weights,
    logit_shift,
    most_confused,
    per_class,
    predict,
    recall_intervals,
    right_of_each_class,
    temperature,
)
from helpers.model import resnet18


@pytest.fixture
def data():
    return Dataset(**shapes.generate(7, seed=0), classes=shapes.CLASSES)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet18(width=16)


@pytest.fixture
def six():
    """Labels 0 0 0 1 1 2, predicted 0 1 1 1 0 1: nothing is called 2, and class 3 has no image."""
    logits = np.array([[0, 1, 1, 1, 0, 1]]).T == np.arange(4)
    return Predictions(logits.astype(np.float32), np.array([0, 0, 0, 1, 1, 2]), ("a", "b", "c", "d"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_predict_is_a_plain_forward_in_eval_mode_for_any_batch_size(model, data, batch_size, training):
    expected = model.eval()(data.tensor())
    model.train(training)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    got = predict(model, data, batch_size=batch_size)
    np.testing.assert_allclose(got.logits, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert got.logits.dtype == np.float32
    assert (got.labels == data.labels).all() and got.classes == shapes.CLASSES
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_flip_averages_the_logits_of_both_views(model, data):
    model.eval()
    mirrored = torch.from_numpy(data.images[:, :, ::-1].copy()).permute(0, 3, 1, 2) / 255
    expected = (model(data.tensor()) + model(mirrored)) / 2
    np.testing.assert_allclose(predict(model, data, 3, flip=True).logits, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    assert not np.allclose(predict(model, data, 3).logits, expected.detach().numpy(), atol=1e-4)


WRONG_DATA = {
    "floats": (lambda data: replace(data, images=(data.images / 255).astype(np.float32)), "uint8.*float"),
    "one channel": (lambda data: replace(data, images=data.images[..., :1]), r"\(N, 3, H, W\).*\(7, 1, 32, 32\)"),
    "no images": (lambda data: data.subset(slice(0)), "no images"),
    "four classes": (lambda data: replace(data, classes=tuple("abcd")), r"\(7, 10\) .*7 images of 4 classes"),
    "eleven classes": (lambda data: replace(data, classes=tuple("abcdefghijk")), r"\(7, 10\) .*7 images of 11 classes"),
    "labels of no class": (lambda data: replace(data, labels=data.labels + 9), "or labels do not fit"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data_are_refused_with_what_was_expected_and_given(model, data, change, message):
    with pytest.raises(ValueError, match=message):
        predict(model, change(data))


def test_network_that_diverged_predicts_nothing(model, data):
    model.fc.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        predict(model, data)


def test_right_predictions_as_undecided_as_the_mistakes_by_hand():
    margins = np.array([1.0, 5.0, 0.9, 1.2, 4.0, 9.0, 5.6, 0.95])
    logits = np.stack([margins + 3, np.full(8, 3.0), np.zeros(8)], axis=1)
    labels = np.array([1, 2, 0, 0, 0, 0, 0, 1])  # mistakes: the first, the second and the last
    # Margins 1.0, 5.0 and 0.95: the right predictions with 0.9 and 1.2, and 5.6; with 0.9 for both, their mean would be lower.
    assert as_undecided(Predictions(logits, labels, ("a", "b", "c"))).tolist() == [2, 3, 6]


def test_one_right_prediction_of_each_class_by_hand():
    sure = np.array([0.9, 0.6, 0.7, 0.8, 0.95, 0.99, 0.5])
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    logits = np.full((7, 4), -20.0, dtype=np.float32)
    logits[np.arange(7), labels] = np.log(sure / (1 - sure))
    logits[np.arange(7), 3] = 0  # so that class 3 has the rest; it has no image of its own
    logits[5, 3] = 9  # a mistake
    # Of four classes the first gives its least sure image, the second the one a quarter up, the third the one half up.
    assert right_of_each_class(Predictions(logits, labels, ("a", "b", "c", "d"))).tolist() == [6, 1, 2]


def test_what_follows_from_the_logits_by_hand():
    logits = np.log(np.array([[1, 3], [9, 1], [2, 2], [1, 4]], dtype=np.float32))
    answers = Predictions(logits, np.array([1, 1, 0, 1]), ("a", "b"))
    np.testing.assert_allclose(answers.probabilities, [[0.25, 0.75], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]], atol=1e-6)
    np.testing.assert_allclose(answers.confidence, [0.75, 0.9, 0.5, 0.8], atol=1e-6)
    assert list(answers.predicted) == [1, 0, 0, 1]
    assert list(answers.correct) == [True, False, True, True]
    assert answers.accuracy == 0.75


def test_probabilities_of_huge_logits_sum_to_one():
    answers = Predictions(np.array([[1e4, 1e4, -1e4]], dtype=np.float32), np.array([0]), ("a", "b", "c"))
    np.testing.assert_allclose(answers.probabilities, [[0.5, 0.5, 0]])


@pytest.mark.parametrize(("correct", "total"), [(9200, 10000), (1, 7), (0, 20), (20, 20), (851, 10000)])
def test_accuracy_interval_is_wilsons(correct, total):
    expected = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    got = accuracy_interval(correct, total)
    np.testing.assert_allclose(got, (expected.low, expected.high), atol=2e-5)  # 1.96 is rounded
    assert -1e-12 <= got[0] <= correct / total <= got[1] <= 1 + 1e-12


def test_accuracy_interval_of_known_numbers():
    assert accuracy_interval(9200, 10000) == pytest.approx((0.9145, 0.9252), abs=5e-5)
    # Its ends solve (p - x)^2 = z^2 x (1 - x) / n, here with z = 3.
    assert all((0.5 - x) ** 2 == pytest.approx(9 * x * (1 - x) / 40) for x in accuracy_interval(20, 40, z=3))


def test_confusion_of_six_images_by_hand(six):
    assert confusion(six).tolist() == [[1, 2, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_scores_per_class_of_six_images_by_hand(six):
    table = per_class(six)
    assert list(table.index) == ["a", "b", "c", "d"]
    np.testing.assert_allclose(table.precision, [1 / 2, 1 / 4, 0, 0])
    np.testing.assert_allclose(table.recall, [1 / 3, 1 / 2, 0, 0])
    np.testing.assert_allclose(table.f1, [2 / 5, 1 / 3, 0, 0])
    assert list(table.images) == [3, 2, 1, 0]


def test_scores_per_class_agree_with_sklearns_report():
    rng = np.random.default_rng(0)
    answers = Predictions(rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 3, 60), ("x", "y", "z"))
    report = classification_report(answers.labels, answers.predicted, target_names=answers.classes, output_dict=True)
    for name, row in per_class(answers).iterrows():
        expected = [report[name][k] for k in ("precision", "recall", "f1-score", "support")]
        assert list(row[["precision", "recall", "f1", "images"]]) == pytest.approx(expected)


def test_recall_intervals_are_wilsons_of_every_class_and_of_all():
    rng = np.random.default_rng(0)
    answers = Predictions(rng.normal(size=(60, 3)).astype(np.float32), rng.integers(0, 3, 60), ("x", "y", "z"))
    table = recall_intervals(answers)
    assert list(table.index) == ["all classes", "x", "y", "z"] and list(table.columns) == ["mean", "from", "to"]
    parts = [answers.correct, *(answers.correct[answers.labels == number] for number in range(3))]
    for row, part in zip(table.to_numpy(), parts):
        expected = binomtest(int(part.sum()), len(part)).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(row, (part.mean(), expected.low, expected.high), atol=2e-5)


def sure_by(confidences, right):
    """Answers of two classes with these confidences in class 0, whose label it is where the answer is right."""
    confidences = np.array(confidences)
    logits = np.log(np.stack([confidences, 1 - confidences], axis=1)).astype(np.float32)
    return Predictions(logits, np.where(right, 0, 1), ("a", "b"))


def test_calibration_by_hand():
    answers = sure_by([0.55, 0.57, 0.9, 0.94, 0.92, 0.96], [True, False, True, True, True, False])
    table = calibration(answers, bins=4)  # 0.5 to 0.75, and 0.75 to 1; the two below are empty
    np.testing.assert_allclose(table[["confidence", "accuracy", "images"]], [[0.56, 0.5, 2], [0.93, 0.75, 4]], rtol=1e-6)
    np.testing.assert_allclose(table[["from", "to"]], [accuracy_interval(1, 2), accuracy_interval(3, 4)])
    assert calibration_error(answers, bins=4) == pytest.approx((2 * 0.06 + 4 * 0.18) / 6)


def test_calibration_agrees_with_sklearns_curve_and_takes_a_confidence_of_one():
    rng = np.random.default_rng(0)
    answers = Predictions(rng.normal(scale=3, size=(400, 5)).astype(np.float32), rng.integers(0, 5, 400), tuple("abcde"))
    accuracy, confidence = calibration_curve(answers.correct, answers.confidence, n_bins=10)
    table = calibration(answers)
    np.testing.assert_allclose(table[["accuracy", "confidence"]], np.stack([accuracy, confidence], axis=1))
    assert table["images"].sum() == 400
    assert calibration_error(answers) == pytest.approx(np.average(np.abs(accuracy - confidence), weights=table["images"]))
    certain = Predictions(np.array([[200.0, 0.0]], dtype=np.float32), np.array([0]), ("a", "b"))
    assert calibration(certain)["images"].tolist() == [1] and calibration_error(certain) == pytest.approx(0)


def test_commonest_mistakes_come_first_with_their_share(six):
    table = most_confused(six)
    assert list(table.columns) == ["actual", "predicted", "images", "share of actual"]
    assert list(table.itertuples(index=False, name=None)) == [
        ("a", "b", 2, pytest.approx(2 / 3)),
        ("b", "a", 1, pytest.approx(1 / 2)),  # equal numbers stay in the matrix's order
        ("c", "b", 1, pytest.approx(1.0)),
    ]
    assert list(most_confused(six, count=1).actual) == ["a"]


def test_flawless_network_confuses_nothing():
    answers = Predictions(np.eye(3, dtype=np.float32), np.arange(3), ("a", "b", "c"))
    assert len(most_confused(answers)) == 0


def test_error_weights_are_in_proportion_to_the_error_with_a_floor():
    assert error_weights([0.9, 0.8, 0.7, 0.6]) == (0.4, 0.8, 1.2, 1.6)  # errors of 0.1 to 0.4, 0.25 on average
    assert error_weights([1.0, 0.8]) == (0.25, 2.0)


def test_logit_shift_of_a_network_that_knows_nothing_is_the_log_of_what_each_class_weighs():
    answers = Predictions(np.zeros((8, 3), np.float32), np.array([0] * 5 + [1] * 2 + [2]), tuple("abc"))
    expected = np.log([5 * 1, 2 * 3, 1 * 4])
    np.testing.assert_allclose(logit_shift(answers, (1, 3, 4)), expected - expected.mean(), atol=1e-4)


def test_logit_shift_makes_the_mean_probability_of_each_class_its_weighted_share():
    rng, weights = np.random.default_rng(0), np.array([0.5, 1, 2, 1])
    labels = rng.integers(0, 4, 300)
    answers = Predictions((rng.normal(size=(300, 4)) + 2 * np.eye(4)[labels]).astype(np.float32), labels, tuple("abcd"))
    each = weights[labels] / weights[labels].sum()
    p = softmax(answers.logits + logit_shift(answers, weights), axis=1)
    np.testing.assert_allclose(each @ p, np.bincount(labels, each), atol=1e-4)  # the derivative of the weighted loss is zero
    assert np.abs(each @ answers.probabilities - np.bincount(labels, each)).max() > 0.02  # it is not without the shift


def test_temperature_finds_by_how_much_a_network_is_too_sure_or_too_modest():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 10)).astype(np.float32)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from the softmax of the logits
    assert temperature(Predictions(logits, labels, shapes.CLASSES)) == pytest.approx(1, abs=0.03)
    for factor in (0.3, 3):
        scaled = Predictions(logits * np.float32(factor), labels, shapes.CLASSES)
        assert temperature(scaled) == pytest.approx(factor * temperature(Predictions(logits, labels, shapes.CLASSES)), rel=1e-3)
