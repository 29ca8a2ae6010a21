"""Serve a data set in batches, by several processes where that is faster."""

import sys
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, get_worker_info


def make_loader(
    dataset: Dataset,
    batch_size: int,
    generator: torch.Generator | None = None,
    num_workers: int = 0,
    sampler: Sampler | None = None,
) -> DataLoader:
    """Batches of uint8 images (B, 3, 32, 32) and labels (B,).

    Args:
        dataset: if it has a method `seed`, the workers call it anew in each epoch.
        batch_size: images in a batch; the last one may be smaller.
        generator: shuffles the images and seeds the workers; None keeps the order.
        num_workers: processes that load; 0: this one.
        sampler: gives the images' indices instead, such as a `DistributedSampler`.

    Raises:
        ValueError: there are no images.
    """
    source: Any = dataset if sampler is None else sampler
    require_images(len(source))
    # Forked, workers share the images. "fork" is named because in processes of joblib, whose
    # default is another way, none would start.
    use_fork = num_workers and sys.platform == "linux"
    return DataLoader(
        dataset,
        batch_size,
        shuffle=generator is not None and sampler is None,
        sampler=sampler,
        generator=generator,
        num_workers=num_workers,
        multiprocessing_context="fork" if use_fork else None,
        worker_init_fn=_seed_worker,
        pin_memory=torch.cuda.is_available(),
    )


def seed_epoch(loader: DataLoader, seed: int, epoch: int) -> None:
    """Make an epoch's order and augmentation a function of the run's seed and the epoch alone.

    So a resumed run draws what an uninterrupted one would have drawn, and a checkpoint needs to
    hold no random state.

    Args:
        loader: of a data set with the methods `seed` and `mirror_alternately`, with a generator. A
            `DistributedSampler` gives this process its share of one order, the same in all; their
            augmentation differs.
        seed: of the run.
        epoch: counted from 0.
    """
    sampler: Any = loader.sampler
    dataset: Any = loader.dataset
    is_distributed = isinstance(sampler, DistributedSampler)
    rank = sampler.rank if is_distributed else 0
    order_seed, *augmentation_seeds = np.random.SeedSequence([seed, epoch]).generate_state(2 + rank)
    loader.generator.manual_seed(int(order_seed) + rank)  # of the order, and of the workers' seeds
    dataset.seed(int(augmentation_seeds[-1]))
    dataset.mirror_alternately(seed, epoch)
    if is_distributed:
        sampler.set_epoch(int(order_seed))


def require_images(count: int) -> None:
    """Raise ValueError where there are none."""
    if count == 0:
        raise ValueError("there are no images in this data set: take one image or more")


def require_labels(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    """Raise ValueError where an image lacks a label, or one is not the index of a class."""
    if len(labels) != len(images) or not set(labels.tolist()) <= set(range(num_classes)):
        raise ValueError(
            f"{len(labels)} labels from {labels.min()} to {labels.max()} do not fit {len(images)} "
            f"images of {num_classes} classes: give each image its class, 0 to {num_classes - 1}"
        )


def _seed_worker(_: int) -> None:
    # Albumentations 2.0.8 seeds all workers alike; torch's seed differs by worker and by epoch.
    worker: Any = get_worker_info()
    if hasattr(worker.dataset, "seed"):
        worker.dataset.seed(torch.initial_seed())
