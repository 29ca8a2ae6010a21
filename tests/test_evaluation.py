import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import classification_report

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import (
    Predictions,
    calibration_error,
    fit_logit_shift,
    fit_temperature,
    margin_matched_correct,
    per_class,
    predict,
    require_source,
    weights_from_recall,
)
from helpers.model import dilated, resnet18


def answers_of(logits, labels) -> Predictions:
    """Predictions from any numbers; the classes are called a, b, c, ..."""
    logits = np.asarray(logits, dtype=np.float32)
    return Predictions(logits, np.asarray(labels), tuple("abcdefghij"[: logits.shape[1]]))


def random_answers(size, num_classes, scale=1.0, seed=0) -> Predictions:
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(size, num_classes))
    return answers_of(logits, rng.integers(0, num_classes, size))


def answers_of_confidence(confidences, right) -> Predictions:
    """The answer is always class 0, with these confidences; the label is 0 where it is right."""
    confidences = np.array(confidences)
    logits = np.log(np.stack([confidences, 1 - confidences], axis=1))
    return answers_of(logits, np.where(right, 0, 1))


@pytest.fixture(scope="module")
def data():
    return Dataset(**shapes.generate(7, seed=0), classes=shapes.CLASSES)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet18(width=16)


@pytest.fixture(scope="module")
def six():
    """Labels 0 0 0 1 1 2, predicted 0 1 1 1 0 1: nothing is called 2, and class 3 has no image."""
    predicted = np.array([0, 1, 1, 1, 0, 1])
    return answers_of(predicted[:, None] == np.arange(4), [0, 0, 0, 1, 1, 2])


# predict


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_predict_is_a_forward_pass_in_eval_mode_for_any_batch_size(
    model, data, batch_size, training
):
    with torch.no_grad():
        expected = model.eval()(data.tensor())
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answers = predict(model, data, batch_size=batch_size)
    np.testing.assert_allclose(answers.logits, expected, rtol=1e-4, atol=1e-6)
    assert answers.logits.dtype == np.float32
    assert (answers.labels == data.labels).all()
    assert answers.classes == shapes.CLASSES
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("fails", [False, True])
def test_predict_gives_each_part_its_mode_back_after_an_error_too(model, data, fails):
    model.train()
    model.layer2.eval()  # as someone freezes a part
    before = {name: module.training for name, module in model.named_modules()}
    if fails:
        handle = model.fc.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(model, data)
        handle.remove()
    else:
        predict(model, data)
    assert {name: module.training for name, module in model.named_modules()} == before


def test_predictions_belong_to_their_images_and_network(model, data):
    answers = predict(model, data)
    same = replace(data, images=data.images.copy())
    for network in (model, copy.deepcopy(model).half().float()):  # as a file holds it
        require_source(answers, network, same)
    made_up = Predictions(answers.logits[::-1], data.labels, data.classes)
    require_source(made_up, model, data)
    torch.manual_seed(1)
    others = {
        "images": (model, replace(data, images=data.images[::-1])),
        "labels": (model, replace(data, labels=data.labels[::-1])),
        "classes": (model, replace(data, classes=data.classes[::-1])),
        "network": (resnet18(width=16), data),
        "order of its logits": (reordered(model), data),
        "grid": (dilated(model), data),
    }
    for network, dataset in others.values():
        with pytest.raises(ValueError, match=r"other images or by another network: make them by"):
            require_source(answers, network, dataset)


def reordered(model):
    """A copy that has learned the classes in another order."""
    other = copy.deepcopy(model)
    other.fc.weight.data = model.fc.weight.data.flip(0)
    return other


def test_flip_averages_the_logits_of_both_views(model, data):
    mirrored = torch.from_numpy(data.images[:, :, ::-1].copy()).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = (model.eval()(data.tensor()) + model(mirrored)) / 2
    averaged = predict(model, data, 3, flip=True).logits
    np.testing.assert_allclose(averaged, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(predict(model, data, 3).logits, expected, atol=1e-4)


WRONG_DATA = {
    "floats": (
        lambda data: replace(data, images=(data.images / 255).astype(np.float32)),
        "uint8.*float",
    ),
    "one channel": (
        lambda data: replace(data, images=data.images[..., :1]),
        r"\(N, 3, H, W\).*\(7, 1, 32, 32\)",
    ),
    "no images": (lambda data: data.subset(slice(0)), "no images"),
    "four classes": (
        lambda data: replace(data, classes=tuple("abcd")),
        r"\(7, 10\) .*7 images of 4 classes",
    ),
    "eleven classes": (
        lambda data: replace(data, classes=tuple("abcdefghijk")),
        r"\(7, 10\) .*7 images of 11 classes",
    ),
    "labels of no class": (
        lambda data: replace(data, labels=data.labels + 9),
        "or labels do not fit",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_DATA.values(), ids=WRONG_DATA)
def test_wrong_data_are_refused_with_what_was_expected_and_given(model, data, change, message):
    with pytest.raises(ValueError, match=message):
        predict(model, change(data))


def test_network_that_diverged_predicts_nothing(model, data):
    model.fc.bias.data[3] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        predict(model, data)


# what follows from the logits


def test_what_follows_from_the_logits_by_hand():
    answers = answers_of(np.log([[1, 3], [9, 1], [2, 2], [1, 4]]), [1, 1, 0, 1])
    expected = [[0.25, 0.75], [0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]
    np.testing.assert_allclose(answers.probabilities, expected, atol=1e-6)
    np.testing.assert_allclose(answers.confidence, [0.75, 0.9, 0.5, 0.8], atol=1e-6)
    assert answers.predicted.tolist() == [1, 0, 0, 1]
    assert answers.correct.tolist() == [True, False, True, True]
    assert answers.accuracy == 0.75
    assert answers.loss == pytest.approx(-np.log([0.75, 0.1, 0.5, 0.8]).mean(), rel=1e-6)


def test_loss_is_a_mean_over_images_in_double_precision():
    answers = random_answers(5000, 10, scale=9)
    log_probabilities = log_softmax(answers.logits.astype(np.float64), axis=1)
    expected = -log_probabilities[np.arange(5000), answers.labels].mean()
    assert answers.loss == pytest.approx(expected, rel=1e-12)
    assert type(answers.loss) is float


def test_huge_logits_have_probabilities_and_a_loss():
    answers = answers_of([[1e4, 1e4, -1e4]], [2])
    np.testing.assert_allclose(answers.probabilities, [[0.5, 0.5, 0]])
    assert answers.loss == pytest.approx(2e4, rel=1e-3)


# images chosen by what was predicted


def test_correct_predictions_are_matched_with_the_mistakes_by_their_margins():
    margins = np.array([1.0, 5.0, 0.9, 1.2, 4.0, 9.0, 5.6, 0.95])
    logits = np.stack([margins + 3, np.full(8, 3.0), np.zeros(8)], axis=1)
    labels = [1, 2, 0, 0, 0, 0, 0, 1]  # mistakes: the first, the second and the last
    # Their margins are 1.0, 5.0 and 0.95. The correct predictions nearest to them have 0.9, 5.6 and
    # again 0.9, but none is taken twice: the third partner is the one with 1.2.
    assert margin_matched_correct(answers_of(logits, labels)).tolist() == [2, 3, 6]


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


def test_calibration_error_by_hand():
    confidences = [0.55, 0.57, 0.9, 0.94, 0.92, 0.96]
    answers = answers_of_confidence(confidences, [True, False, True, True, True, False])
    # From 0.5 to 0.75: 0.56 and 1 of 2. From 0.75 to 1: 0.93 and 3 of 4. The two below are empty.
    assert calibration_error(answers, bins=4) == pytest.approx((2 * 0.06 + 4 * 0.18) / 6)


def test_calibration_error_agrees_with_sklearns_curve():
    answers = random_answers(400, 5, scale=3)
    accuracy, confidence = calibration_curve(answers.correct, answers.confidence, n_bins=10)
    images = np.histogram(answers.confidence, 10, (0, 1))[0]
    error = np.average(np.abs(accuracy - confidence), weights=images[images > 0])
    assert calibration_error(answers) == pytest.approx(error)


def test_calibration_error_takes_a_confidence_of_one():
    assert calibration_error(answers_of([[200.0, 0.0]], [0])) == pytest.approx(0)


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
