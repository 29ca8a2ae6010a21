"""Studies that take seconds: Shapes-10 with few images, a narrow network, one epoch."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from helpers.data import DatasetPair, load_dataset
from helpers.studies import runs
from helpers.training import TrainConfig

RECIPE = TrainConfig(epochs=1, batch_size=20, image_sizes=(16,))


def load_few_test_images(name: str, train_size: int | None = None) -> DatasetPair:
    """As `load_dataset`, with twenty test images in place of two thousand."""
    return load_dataset(name, train_size=train_size, test_size=20)


def make_study(
    path: Path, images: int = 60, jobs: int = 1, recipe: TrainConfig = RECIPE
) -> runs.Study:
    """A study of one seed with so many training images."""
    data = load_few_test_images("shapes10", train_size=60)
    train = data.train.subset(slice(images))
    return runs.Study(train, data.test, data.test, path, recipe, 16, 1, jobs)


@contextmanager
def one_thread():
    """Compute with one thread, here and in processes to come, so that all add up in one order."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
