"""Train the network: its configuration, its optimiser, and the loop.

For runs of hours: `python -m helpers.training --help`; on several GPUs, or by several processes on
CPUs, `torchrun --nproc-per-node 4 -m helpers.training` with the same options. A finished run is not
extended: `--init runs/training/weights.pt` begins a new one with its weights.

On an H200 with 16 CPU cores (`python tests/gpu_speed.py`) eight processes draw and change 34,000
images a second. The network learns from 11,000 a second in batches of 128, from 40,000 in batches
of 512: with small batches the GPU waits for Python.
"""

import os
import runpy
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from helpers.config import TrainConfig
from helpers.data import Dataset, make_loader, to_float
from helpers.evaluation import Predictions, predict
from helpers.support.device import default_device, loader_workers
from helpers.support.distributed import process_group, share_batches
from helpers.support.loader import require_images, require_labels, seed_epoch
from helpers.support.precision import autocast, grad_scaler
from helpers.support.session import Session

if TYPE_CHECKING:
    import pandas as pd  # loaded by `history_table`, because importing it takes 0.4 seconds


class TrainingState:
    """What changes while a network trains. A checkpoint holds it, and how far the run has come.

    It holds no random state: `seed_epoch` makes that from the seed and the epoch's number.

    Args:
        model: moved to `device`.
        config: of the run.
        steps_per_epoch: batches in an epoch.
        device: that computes.

    Attributes:
        model, optimizer, scheduler, scaler: as PyTorch has them.
        average: the averaged copy of the model, or None.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, steps_per_epoch: int, device: torch.device
    ):
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(model, config)
        self.scheduler = make_scheduler(self.optimizer, config, steps_per_epoch)
        self.scaler = grad_scaler(device, config.mixed_precision)
        self.average: AveragedModel | None = None
        if config.ema:
            update = get_ema_multi_avg_fn(config.ema)
            self.average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is scored and returned: the average where there is one."""
        return self.average.module if self.average else self.model

    def update_average(self) -> None:
        """Move the averaged weights, if there are any, a step towards the present ones."""
        if self.average:
            self.average.update_parameters(self.model)

    def parts(self) -> dict[str, Any]:
        """All that has a state of its own, by name."""
        names = ("model", "optimizer", "scheduler", "scaler", "average")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on tensors of two dimensions or more."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    momentum = config.momentum
    return torch.optim.SGD(groups, config.peak_lr, momentum=momentum, nesterov=momentum > 0)


def make_scheduler(
    optimizer: torch.optim.Optimizer, config: TrainConfig, steps_per_epoch: int
) -> LambdaLR:
    """A learning rate that rises in a straight line, then falls to about zero, set at every step.

    Smith & Topin 2018, arXiv:1708.07120; the values are those of PyTorch's OneCycleLR.
    """
    last_step = config.epochs * steps_per_epoch
    top_step = max(config.warmup * (last_step + 1), 1.5) - 1  # three points in order
    steps = [0, top_step, last_step]
    factors = [1 / 25, 1, 1 / 25e4] if config.one_cycle else [1, 1, 1]
    return LambdaLR(optimizer, lambda step: float(np.interp(step, steps, factors)))


def make_criterion(train: Dataset, config: TrainConfig) -> Callable:
    """Smoothed cross-entropy of logits and labels, a mean over images.

    With class weights, an image counts as its class does. The weights are scaled to a mean of 1
    over the training images, so that a learning rate means what it does without them. PyTorch's
    `cross_entropy(weight=...)` divides by the weights of the batch instead, so that what an image
    counts would depend on its neighbours.

    Raises:
        ValueError: class_weights has not one number for each class; where the criterion is called,
            the logits have not one column for each class.
    """
    num_classes = len(train.classes)
    weights = np.array(config.class_weights or [1.0] * num_classes)
    if len(weights) != num_classes:
        raise ValueError(
            f"class_weights must be {num_classes} numbers, one for each class: got {weights}"
        )
    scaled = torch.from_numpy(weights / weights[train.labels].mean()).float()
    smoothing = config.label_smoothing

    def criterion(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.shape != (len(labels), num_classes):
            raise ValueError(
                f"logits {tuple(logits.shape)} do not fit {len(labels)} images of {num_classes} "
                "classes: take another network"
            )
        if len(set(weights)) == 1:  # equal weights change nothing
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        return (scaled.to(labels.device)[labels] * losses).mean()

    return criterion


def training_loader(train: Dataset, config: TrainConfig, device: torch.device) -> DataLoader:
    """Augmented images in random order; of several processes, each gets its share of every batch.

    Raises:
        ValueError: a name in `stronger_classes` is no class, or the processes cannot share a batch
            evenly.
    """
    # Here, because importing Albumentations takes half a second.
    from helpers.augmentation import AugmentedDataset

    augmented = AugmentedDataset(train, config)
    batch_size, sampler = share_batches(augmented, config.batch_size)
    return make_loader(augmented, batch_size, torch.Generator(), loader_workers(device), sampler)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, 3, H, W) -> (N, 3, size, size), bilinear with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


@process_group()
def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset | None,
    config: TrainConfig,
    device: torch.device | None = None,
    checkpoint: str | os.PathLike | None = None,
    log: Callable[[dict], object] | None = None,
    compile: bool = False,
) -> "pd.DataFrame":
    """Train a model in place.

    Where torchrun or a notebook's launcher started several processes, each calls this with the same
    arguments and learns from its share of every batch. Process 0 alone shows a bar, scores, logs
    and writes: its history and its model are those that count.

    Args:
        model: images in [0, 1] to logits.
        train: images to learn from.
        validation: images to score after every epoch; None leaves those columns empty.
        config: of the run.
        device: `default_device()` if not given.
        checkpoint: a path. It is written after every epoch and when interrupted. Where it exists,
            the run resumes from it; with the same number of threads the result is identical to
            the last bit. One run at a time may use it.
        log: called with the row of each finished epoch. (TQDM_DISABLE=1 silences the progress bar.)
        compile: use torch.compile, if it works here.

    Returns:
        One row an epoch, with the columns epoch, image_size, train_loss, train_accuracy,
        validation_loss, validation_accuracy, learning_rate (at its end) and seconds. Losses and
        accuracies are means over images; the training loss is the smoothed one.

    Raises:
        KeyboardInterrupt: after the batch in which Ctrl-C or a notebook's stop button was pressed.
        SystemExit: after the batch in which SIGTERM (143) or SIGHUP (129) came.
        ValueError: no images, labels or logits that do not fit the classes, a batch that the
            processes cannot share evenly, or a checkpoint of another run or another number of
            processes.
        BlockingIOError: another run uses the checkpoint.
        FloatingPointError: a loss or weight is NaN or infinite; the checkpoint is the one before.
    """
    device = device or default_device()
    identity = run_identity(train, validation, config)
    loader = training_loader(train, config, device)
    loss_of = make_criterion(train, config)
    state = TrainingState(model, config, len(loader), device)
    with Session(state, identity, device, checkpoint, log, compile) as session:
        for epoch in range(len(session.history), config.epochs):
            model.train()
            seed_epoch(loader, config.seed, epoch)
            for images, labels in session.batches(loader):
                images, labels = images.to(device), labels.to(device)
                with autocast(device, config.mixed_precision):
                    logits = session.network(resize(to_float(images), config.image_size(epoch)))
                    loss = loss_of(logits.float(), labels)
                state.optimizer.zero_grad()
                state.scaler.scale(loss).backward()
                state.scaler.step(state.optimizer)
                state.scaler.update()
                state.scheduler.step()
                state.update_average()
                session.after_batch(loss, logits, labels)
            scores = score(state.evaluated_model, validation if session.is_main else None)
            session.after_epoch(config.image_size(epoch), scores)
    model.eval().load_state_dict(state.evaluated_model.state_dict())
    return session.history_table()


def score(model: nn.Module, validation: Dataset | None) -> Predictions | None:
    """The model's predictions of the validation images, if there are any."""
    return None if validation is None else predict(model, validation, batch_size=500)


def run_identity(train: Dataset, validation: Dataset | None, config: TrainConfig) -> dict[str, Any]:
    """What tells a run from others: its settings, its classes and its images.

    Raises:
        ValueError: a part has no images, or labels that do not fit them.
    """
    parts = [part for part in (train, validation) if part is not None]
    for part in parts:
        require_images(len(part))
        require_labels(part.images, part.labels, len(train.classes))
    digests = [part.digest for part in parts]
    return asdict(config) | {"classes": tuple(train.classes), "images": digests}


if __name__ == "__main__":  # the command stands with the other commands
    runpy.run_module("helpers.studies.train", run_name="__main__")
