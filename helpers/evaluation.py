"""Score a network: predict once, then derive everything else from the arrays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
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
    source: Dataset | None = None

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
        return float(F.cross_entropy(*as_tensors(self)))


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


def as_tensors(predictions: Predictions) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits in float64, and labels, as PyTorch's losses take them."""
    logits = torch.tensor(predictions.logits, dtype=torch.float64)
    return logits, torch.tensor(predictions.labels, dtype=torch.int64)
