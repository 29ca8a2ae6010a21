"""Several processes that train one network together, as torchrun starts them.

`torchrun --standalone --nproc-per-node 4 -m helpers.training --data cifar10 --output runs/x` uses
four GPUs of a machine, or four processes on its CPUs, with as many threads each as OMP_NUM_THREADS
says, or one. They share out each batch, so that `--batch-size` still counts the images of a step,
and average their gradients; batch norm takes its statistics over the whole batch on GPUs, over each
process's own share on CPUs. To go on, start as many processes again. From a notebook, give a
function that calls `fit` to `notebook_launcher` of the package accelerate, before anything has used
a GPU. Tried on CPUs only: there was no machine with two GPUs.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset, DistributedSampler


def rank_and_world_size() -> tuple[int, int]:
    """This process's number, and how many train one network together: (0, 1) alone.

    torchrun, and accelerate's `notebook_launcher`, set both in each process's environment.

    Raises:
        ValueError: they set one of them, or numbers that do not go together.
    """
    rank, world_size = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    if not rank and not world_size:
        return 0, 1
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise ValueError(
            f"RANK={rank} and WORLD_SIZE={world_size} in the environment do not go together: "
            "start with torchrun, or unset both"
        )
    return int(rank), int(world_size)


@contextmanager
def process_group() -> Iterator[None]:
    """Connect this process with the others of its run, if there are any, while this lasts."""
    _, world_size = rank_and_world_size()
    if world_size == 1 or dist.is_initialized():
        yield
        return
    backend = "gloo"
    wanted = os.environ.get("WALKTHROUGH_DEVICE") or "cuda"
    if torch.cuda.is_available() and wanted.startswith("cuda"):
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"  # gloo tells who was stopped without making a GPU wait
    dist.init_process_group(backend)
    try:
        yield
    finally:
        dist.destroy_process_group()


def share_batches(dataset: Dataset, batch_size: int) -> tuple[int, DistributedSampler | None]:
    """This process's share of each batch.

    Returns:
        How many images it takes of a batch, and what draws them; None alone.

    Raises:
        ValueError: the processes cannot share a batch evenly.
    """
    rank, world_size = rank_and_world_size()
    if batch_size % world_size:
        raise ValueError(
            f"batch_size must be a multiple of {world_size}, the number of processes: "
            f"got {batch_size}"
        )
    if world_size == 1:
        return batch_size, None
    sampler: DistributedSampler = DistributedSampler(dataset, world_size, rank, drop_last=True)
    return batch_size // world_size, sampler


def reduce(values: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> torch.Tensor:
    """Combine a tensor over all processes, in place; alone it is left as it is.

    Args:
        values: of one shape in all processes.
        operation: `dist.ReduceOp.SUM`, or another.
    """
    _, world_size = rank_and_world_size()
    if world_size > 1:
        dist.all_reduce(values, operation)
    return values


def require_same(facts: object) -> None:
    """Compare what each process was given.

    Raises:
        ValueError: in every process, where they differ.
    """
    found: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(found, facts)
    if any(other != facts for other in found):
        raise ValueError(
            "these processes are not of one run: give all of them the same data, settings and "
            "checkpoint"
        )


def wrap_in_ddp(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Wrap a model so that its gradients are means over all processes.

    All start from the weights of process 0. On GPUs batch norm uses the statistics of all
    processes; on CPUs each uses its own, and the running averages of process 0 are kept.

    Args:
        model: changed in place on GPUs.
        example: a batch of inputs on the model's device.
    """
    if example.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    wrapped = DistributedDataParallel(model.eval())
    # After its first pass DDP sums gradients in another order, to other bits. The first pass must
    # not be a training batch, or a resumed run would differ from one that was never stopped.
    wrapped(example).sum().backward()
    return wrapped
