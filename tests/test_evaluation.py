import copy
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from helpers import shapes
from helpers.data import Dataset
from helpers.evaluation import (
    Predictions,
    predict,
    require_source,
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


@pytest.fixture(scope="module")
def data():
    return Dataset(**shapes.generate(7, seed=0), classes=shapes.CLASSES)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet18(width=16)


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


def test_predictions_cannot_be_changed_under_what_was_derived_from_them(model, data):
    answers = predict(model, data)
    for part in (answers, answers.source):
        with pytest.raises(FrozenInstanceError):
            part.labels = data.labels[::-1]


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
