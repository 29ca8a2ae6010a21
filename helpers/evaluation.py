"""Score a network: predict once, then derive everything else from the arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
import scipy  # loads scipy.optimize at its first use, because that takes a tenth of a second
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import nn
from tqdm import tqdm

from helpers.data import Dataset
from helpers.support.device import eval_mode


@dataclass(frozen=True)
class Predictions:
    """What a network answers to N labelled images.

    Attributes:
        logits: (N, num_classes) float32.
        labels: (N,) int64, indices into `classes`.
        classes: names, in the order of the logits.
        source: the images that `predict` was given; None of predictions that it did not make.

    Raises:
        ValueError: a logit is not finite, there is not one logit for each class, or a label is not
            the index of a class.
    """

    logits: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    source: Dataset | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        count, num_classes = len(self.labels), len(self.classes)
        fits = self.logits.shape == (count, num_classes)
        if not fits or not set(self.labels) <= set(range(num_classes)):
            raise ValueError(
                f"logits {self.logits.shape} or labels do not fit "
                f"{count} images of {num_classes} classes: take another network"
            )
        if not np.isfinite(self.logits).all():
            raise ValueError(
                "the network puts out logits that are not finite: "
                "load other weights, or train with a lower peak_lr"
            )

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits, (N, num_classes) float64; each row sums to 1."""
        return torch.from_numpy(self.logits).double().softmax(1).numpy()

    @cached_property
    def predicted(self) -> np.ndarray:
        """The class with the largest logit, (N,) int64."""
        return self.logits.argmax(1)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the predicted class is the label, (N,) bool."""
        return self.predicted == self.labels

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, (N,) in [0, 1]."""
        return self.probabilities.max(1)

    @property
    def accuracy(self) -> float:
        """Share of the images that are predicted correctly, 0 to 1."""
        return float(self.correct.mean())

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy per image, without label smoothing."""
        return float(F.cross_entropy(*_as_tensors(self)))


@torch.inference_mode()
def predict(
    model: nn.Module, dataset: Dataset, batch_size: int = 100, flip: bool = False
) -> Predictions:
    """Run a model on a data set in eval mode, on the model's device; then restore its parts' modes.

    Args:
        model: maps images (N, 3, 32, 32) in [0, 1] to logits (N, num_classes).
        dataset: at least one image.
        batch_size: images in a forward pass.
        flip: average the logits of each image and of its mirror image (test-time augmentation),
            which costs two forward passes.

    Raises:
        ValueError: there are no images, they are not uint8, or the model has another number of
            classes.
    """
    if len(dataset) == 0:
        raise ValueError("there are no images to predict: take a data set of one or more")
    device = next(model.parameters()).device
    batches = []
    starts = range(0, len(dataset), batch_size)
    with eval_mode(model):
        for start in tqdm(starts, leave=False, unit="batch", desc="predicting"):
            images = dataset.tensor(slice(start, start + batch_size))
            images = images.to(device, memory_format=torch.channels_last)
            logits = model(images)
            if flip:
                logits = (logits + model(images.flip(-1))) / 2
            batches.append(logits)
    all_logits = torch.cat(batches).float().cpu().numpy()
    return Predictions(all_logits, dataset.labels, tuple(dataset.classes), dataset)


def require_source(predictions: Predictions, model: nn.Module, dataset: Dataset) -> None:
    """Refuse predictions that `predict` made of other images, or by another network.

    Raises:
        ValueError: the images, labels or classes differ, or the logits of the first images are not
            this network's.
    """
    if predictions.source is None:
        return
    if predictions.source.digest == dataset.digest:
        found, expected = predict(model, dataset.subset(slice(20))).logits, predictions.logits
        # On another device the same network's logits differ by a thousandth of their size.
        if np.abs(found - expected[:20]).max() < 0.02 * np.abs(expected).max():
            return
    raise ValueError(
        "these predictions are of other images or by another network: "
        "make them by predict(model, dataset) of what is shown"
    )


def margin_matched_correct(predictions: Predictions) -> np.ndarray:
    """Correct predictions that were as close a call as the mistakes: one for each mistake.

    How close a call was is its margin: the largest logit minus the second largest. The images are
    chosen so that the differences between the margins of mistakes and of their partners have the
    smallest possible sum. No image is taken twice.

    Returns:
        Sorted indices of images: as many as there are mistakes, or all correct predictions if there
        are fewer of those.
    """
    second, largest = np.sort(predictions.logits, axis=1)[:, -2:].T
    margins = largest - second
    correct = np.flatnonzero(predictions.correct)
    wrong = np.flatnonzero(~predictions.correct)
    differences = np.abs(margins[wrong][:, None] - margins[correct])
    _, partners = scipy.optimize.linear_sum_assignment(differences)
    return np.sort(correct[partners])


def per_class(predictions: Predictions) -> pd.DataFrame:
    """Recall and precision of every class, 0 to 1, a row each.

    NaN is the recall of a class without images, and the precision of one that nothing is called.
    """
    size = len(predictions.classes)
    right = predictions.labels[predictions.correct]
    found, images, called = (
        np.bincount(labels, minlength=size)
        for labels in (right, predictions.labels, predictions.predicted)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
        scores = {"recall": found / images, "precision": found / called}
    return pd.DataFrame(scores, index=list(predictions.classes))


def calibration_error(predictions: Predictions, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599).

    Images are grouped by confidence, in groups of equal width from 0 to 1. The error is the
    difference between accuracy and confidence of a group, without its sign, averaged over images.
    """
    group = np.minimum((predictions.confidence * bins).astype(int), bins - 1)
    surplus = np.bincount(group, predictions.correct - predictions.confidence)
    return float(np.abs(surplus).sum() / len(group))


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that minimises the cross-entropy of the logits divided by it.

    Guo et al. 2017, arXiv:1706.04599.

    Returns:
        From 0.05 to 20: above 1 if the network is too confident, below 1 if it is not confident
        enough.
    """
    logits, labels = _as_tensors(predictions)

    def loss(log_temperature: float) -> float:
        """Cross-entropy at a temperature, which is given by its logarithm."""
        return float(F.cross_entropy(logits / np.exp(log_temperature), labels))

    found = scipy.optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))


def weights_from_recall(recall: ArrayLike, minimum: float = 0.25) -> tuple[float, ...]:
    """Class weights for training, `TrainConfig.class_weights`, in proportion to the errors.

    Args:
        recall: (num_classes,) in [0, 1], or NaN for a class without images.
        minimum: the smallest weight. A class that happens to have no errors among the images scored
            would be given a weight of 0, and training would ignore it.

    Returns:
        For each class, its error (1 - recall) divided by the mean error, or `minimum`; 1 where its
        error is not known, and everywhere if there are no errors.
    """
    error = 1 - np.asarray(recall, dtype=float)
    known = ~np.isnan(error)
    weights = np.ones(len(error))
    if error[known].any():
        weights[known] = np.maximum(error[known] / error[known].mean(), minimum)
    return tuple(weights.round(3).tolist())


def fit_logit_shift(predictions: Predictions, weights: Sequence[float]) -> np.ndarray:
    """Numbers to add to the logits that minimise the cross-entropy with class weights.

    They do after training what class weights do in training, as far as that is a matter of moving
    the threshold between classes. They change no Grad-CAM map. The loss is convex, so there is one
    solution and nothing to tune. For a calibrated network it is about the logarithm of the weights.

    Args:
        predictions: of the images to fit on.
        weights: (num_classes,) class weights of the loss.

    Returns:
        (num_classes,) float32, mean 0: one number for each class, the same for all images.
    """
    logits, labels = _as_tensors(predictions)
    class_weights = torch.tensor(weights, dtype=torch.float64)

    def loss(shift: np.ndarray) -> float:
        """Weighted cross-entropy of the shifted logits."""
        return float(F.cross_entropy(logits + torch.from_numpy(shift), labels, class_weights))

    found = scipy.optimize.minimize(loss, np.zeros(len(predictions.classes)))
    return (found.x - found.x.mean()).astype(np.float32)


def _as_tensors(predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64, and labels, as PyTorch's losses take them."""
    logits = torch.tensor(predictions.logits, dtype=torch.float64)
    return logits, torch.tensor(predictions.labels, dtype=torch.int64)
