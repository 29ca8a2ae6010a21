"""Score a network: predict once, derive everything else from the arrays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment, minimize, minimize_scalar
from scipy.special import log_softmax
from sklearn import metrics
from tqdm import tqdm

from helpers.data import Dataset


@dataclass(frozen=True)
class Predictions:
    """A network's answers to N labelled images. logits: (N, num_classes) float32; labels: (N,) int64.

    Raises ValueError for logits that are not finite, or not one for each class, and for labels of no class.
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: tuple

    def __post_init__(self):
        n, k = len(self.labels), len(self.classes)
        if self.logits.shape != (n, k) or not set(self.labels) <= set(range(k)):
            raise ValueError(f"logits {self.logits.shape} or labels do not fit {n} images of {k} classes: take another network")
        if not np.isfinite(self.logits).all():
            raise ValueError("the network puts out logits that are not finite: load other weights, or train with a lower peak_lr")

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (N, num_classes); each row sums to 1."""
        return torch.from_numpy(self.logits).double().softmax(1).numpy()

    @cached_property
    def predicted(self) -> np.ndarray:
        return self.logits.argmax(1)

    @cached_property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, (N,)."""
        return self.probabilities.max(1)

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


@torch.inference_mode()
def predict(model, dataset: Dataset, batch_size: int = 100, flip: bool = False) -> Predictions:
    """Run a model over a data set in eval mode, on the model's device; its mode is restored afterwards.

    flip: average the logits over each image and its mirror image (test-time augmentation, two forward passes).
    Raises ValueError for a data set without images, or of other than uint8 images, or of another number of classes.
    """
    if len(dataset) == 0:
        raise ValueError("there are no images to predict: take a data set of one or more")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    logits = []
    for start in tqdm(range(0, len(dataset), batch_size), leave=False, unit="batch", desc="predicting"):
        images = dataset.tensor(slice(start, start + batch_size)).to(device, memory_format=torch.channels_last)
        out = model(images)
        logits.append((out + model(images.flip(-1))) / 2 if flip else out)
    model.train(was_training)
    return Predictions(torch.cat(logits).float().cpu().numpy(), dataset.labels, tuple(dataset.classes))


def as_undecided(predictions: Predictions) -> np.ndarray:
    """Right predictions that were as close a call as the mistakes, one for each where there are enough: indices, sorted.

    Their margins, the best logit less the second, are matched with the mistakes' so that the sum of the gaps is the smallest
    possible, and no image is taken twice.
    """
    second, best = np.sort(predictions.logits, axis=1)[:, -2:].T
    margin, right = best - second, np.flatnonzero(predictions.correct)
    gaps = np.abs(margin[~predictions.correct][:, None] - margin[right])
    return np.sort(right[linear_sum_assignment(gaps)[1]])


def right_of_each_class(predictions: Predictions) -> np.ndarray:
    """One right prediction of each class that has any, from little confidence to much: indices, the least confident first."""
    chosen = []
    right = np.flatnonzero(predictions.correct)
    right = right[np.argsort(predictions.confidence[right])]
    for number in range(len(predictions.classes)):
        members = right[predictions.labels[right] == number]
        if len(members):
            chosen.append(members[len(members) * number // len(predictions.classes)])
    return np.array(sorted(chosen, key=predictions.confidence.__getitem__))


def accuracy_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927); z = 1.96 gives 95 %."""
    p, n = correct / total, total
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return float(centre - half), float(centre + half)


def per_class(predictions: Predictions) -> pd.DataFrame:
    """Precision, recall, F1 (each 0..1) and number of images of every class, one row a class."""
    numbers = range(len(predictions.classes))
    scores = metrics.precision_recall_fscore_support(predictions.labels, predictions.predicted, labels=numbers, zero_division=0)
    return pd.DataFrame(dict(zip(("precision", "recall", "f1", "images"), scores)), index=list(predictions.classes))


def recall_intervals(predictions: Predictions) -> pd.DataFrame:
    """Recall over all images and of every class, with its 95 % Wilson interval: columns mean, from and to."""
    rows = {"all classes": (predictions.accuracy, *accuracy_interval(int(predictions.correct.sum()), len(predictions.labels)))}
    for name, right, total in zip(predictions.classes, np.diag(confusion(predictions)), confusion(predictions).sum(1)):
        rows[name] = (right / total, *accuracy_interval(right, total))
    return pd.DataFrame.from_dict(rows, "index", columns=["mean", "from", "to"])


def calibration(predictions: Predictions, bins: int = 10) -> pd.DataFrame:
    """Images in groups of like confidence (bins of equal width from 0 to 1, empty ones left out), least sure first.

    Columns: confidence (mean), accuracy, from and to (its 95 % Wilson interval), images.
    """
    group = np.minimum((predictions.confidence * bins).astype(int), bins - 1)
    rows = []
    for number in np.unique(group):
        confidence, correct = predictions.confidence[group == number], predictions.correct[group == number]
        interval = accuracy_interval(int(correct.sum()), len(correct))
        rows.append((confidence.mean(), correct.mean(), *interval, len(correct)))
    return pd.DataFrame(rows, columns=["confidence", "accuracy", "from", "to", "images"])


def calibration_error(predictions: Predictions, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): a group's |accuracy - confidence|, averaged over images."""
    table = calibration(predictions, bins)
    return float(np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["images"]))


def temperature(predictions: Predictions) -> float:
    """What to divide the logits by to make their cross-entropy least (Guo et al. 2017): below 1 if a network is too modest."""
    actual = np.arange(len(predictions.labels)), predictions.labels
    loss = minimize_scalar(
        lambda log_t: -log_softmax(predictions.logits / np.exp(log_t), axis=1)[actual].mean(), bounds=(-3, 3), method="bounded"
    )
    return float(np.exp(loss.x))


def confusion(predictions: Predictions) -> np.ndarray:
    """Counts (num_classes, num_classes): row = actual class, column = predicted class."""
    return metrics.confusion_matrix(predictions.labels, predictions.predicted, labels=range(len(predictions.classes)))


def most_confused(predictions: Predictions, count: int = 10) -> pd.DataFrame:
    """The commonest mistakes, most frequent first: actual class, predicted class, images, share of the actual class."""
    matrix = confusion(predictions)
    errors = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-errors, axis=None, kind="stable")[:count]
    rows = [(a, p) for a, p in zip(*np.unravel_index(order, errors.shape)) if errors[a, p]]
    names = predictions.classes
    return pd.DataFrame(
        [(names[a], names[p], errors[a, p], errors[a, p] / matrix[a].sum()) for a, p in rows],
        columns=["actual", "predicted", "images", "share of actual"],
    )


def error_weights(recall, least: float = 0.25) -> tuple:
    """Weights for `TrainConfig.class_weights`: each class in proportion to its error (1 - recall; their mean is 1), or `least`.

    The floor is for classes that happen to have no errors among the images scored: a weight of 0 would drop them.
    """
    error = 1 - np.asarray(recall, dtype=float)
    return tuple(np.maximum(error / error.mean(), least).round(3).tolist())


def logit_shift(predictions: Predictions, weights) -> np.ndarray:
    """What to add to the logit of each class to make the cross-entropy with these class weights least: (num_classes,), mean 0.

    So ten numbers, set after training, pursue what class weights in training pursue, and move no map: what the latter do beyond
    this is not the threshold. The loss is convex, so there is one answer and nothing to tune. For a calibrated network it is
    about the logarithm of the weights.
    """
    each = np.asarray(weights)[predictions.labels] / np.sum(np.asarray(weights)[predictions.labels])
    actual = np.eye(len(predictions.classes))[predictions.labels] * each[:, None]
    loss = minimize(lambda shift: -(actual * log_softmax(predictions.logits + shift, axis=1)).sum(), np.zeros(actual.shape[1]))
    return (loss.x - loss.x.mean()).astype(np.float32)
