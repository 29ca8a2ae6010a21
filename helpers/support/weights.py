"""Files of weights and checkpoints: written in half precision, checked before they are believed."""

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers.support.files import write_atomically

Network = TypeVar("Network", bound=nn.Module)


def all_finite(state: object) -> bool:
    """Whether each number is finite in all tensors of a dictionary, nested or not."""
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def load_checked(path: str | os.PathLike) -> dict:
    """Read what `torch.save` wrote, onto the CPU. Nothing in the file is executed.

    The checksums (CRC-32) are compared first, because `torch.load` does not: it would read a
    flipped bit as another weight.

    Raises:
        Exception: of any kind, for a damaged file; ValueError for a number that is not finite.
    """
    if zipfile.ZipFile(path).testzip() is not None:
        raise ValueError("its checksum differs")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not all_finite(state):
        raise ValueError("a number in it is NaN or infinite")
    return state


def write_weights(
    path: str | os.PathLike,
    state: dict[str, torch.Tensor],
    classes: Iterable[str],
    full_precision: Iterable[str] = (),
) -> None:
    """Write a network's state in half precision, with the names of its classes.

    Args:
        path: replaced in one step, as `write_atomically` does.
        state: {name: tensor}.
        classes: in the order of the logits.
        full_precision: names of tensors that stay as they are.

    Raises:
        ValueError: a weight is NaN, or beyond half precision.
        OSError: the file cannot be written.
    """
    small = {}
    for name, tensor in state.items():
        halve = tensor.is_floating_point() and name not in full_precision
        small[name] = (tensor.half() if halve else tensor).cpu().contiguous()
    if not all_finite(small):
        raise ValueError(
            f"weights that are NaN, or beyond half precision, are not written to {path}: "
            "train with a lower peak_lr"
        )
    content = small | {"classes": tuple(classes)}
    write_atomically(path, lambda file: torch.save(content, file))


def find_weights(name: str | os.PathLike, shipped: Path, root: Path) -> Path:
    """The file of weights that a name stands for.

    Args:
        name: of shipped weights, of weights in `runs/`, or a path from here or from `root`.
        shipped: the folder of the weights that ship.
        root: the project's folder.

    Raises:
        FileNotFoundError: there is none; the message lists what ships.
    """
    candidates = [
        shipped / f"{name}.pt",
        root / "runs" / f"{name}.pt",
        Path(name),
        root / name,
    ]
    for path in candidates:
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.pt")))
    raise FileNotFoundError(
        f"no weights for {str(name)!r}: shipped are {known}; notebook 02 trains and saves others"
    )


def load_network(
    path: Path,
    build: Callable[[dict[str, torch.Tensor]], Network],
    classes: Iterable[str] | None = None,
) -> Network:
    """Read a file that `write_weights` wrote, and make a network of it.

    Args:
        path: of the file. Nothing in it is executed.
        build: makes the network, untrained, of the state that it is about to load.
        classes: that the network must have been trained on, in this order; None: any.

    Raises:
        ValueError: the file is damaged, or holds another network or other classes.
    """
    try:
        state = load_checked(path)
        known = state.pop("classes", None)
        model = build(state)
        model.load_state_dict(state)
    except Exception as error:  # which one depends on where the file is damaged
        reason = error if type(error) is ValueError else type(error).__name__
        raise ValueError(
            f"{path} holds no weights of this network ({reason}): delete it or train again"
        ) from error
    if classes is not None and known != tuple(classes):
        raise ValueError(
            f"{path} knows the classes {known}, the data have {tuple(classes)}: "
            "train on them with notebook 02"
        )
    return model
