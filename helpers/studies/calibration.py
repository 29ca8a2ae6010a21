"""Scores of each class, calibration, and what makes up for weak classes: weights, a logit shift.

The table behind the reliability diagram is made in notebook 3.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy  # loads scipy.optimize at its first use, because that takes a tenth of a second
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from sklearn.metrics import precision_recall_fscore_support

from helpers.evaluation import Predictions, as_tensors


def per_class(predictions: Predictions) -> pd.DataFrame:
    """Recall and precision of every class, 0 to 1, a row each.

    NaN is the recall of a class without images, and the precision of one that nothing is called.
    """
    labels, predicted, classes = predictions.labels, predictions.predicted, predictions.classes
    precision, recall, _, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=np.nan
    )
    return pd.DataFrame({"recall": recall, "precision": precision}, index=list(classes))


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that minimises the cross-entropy of the logits divided by it.

    Guo et al. 2017, arXiv:1706.04599.

    Returns:
        From 0.05 to 20: above 1 if the network is too confident, below 1 if it is not confident
        enough.
    """
    logits, labels = as_tensors(predictions)

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
    logits, labels = as_tensors(predictions)
    class_weights = torch.tensor(weights, dtype=torch.float64)

    def loss(shift: np.ndarray) -> float:
        """Weighted cross-entropy of the shifted logits."""
        return float(F.cross_entropy(logits + torch.from_numpy(shift), labels, class_weights))

    found = scipy.optimize.minimize(loss, np.zeros(len(predictions.classes)))
    return (found.x - found.x.mean()).astype(np.float32)
