"""Files of weights and checkpoints: written in half precision, checked before they are believed."""

import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from helpers.support.device import plain_name
from helpers.support.files import as_path, one_line, project_root, read_archive, write_atomically

# The networks that ship, and how they were trained.
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"

Network = TypeVar("Network", bound=nn.Module)


def all_finite(state: object) -> bool:
    """Whether each number is finite in all tensors of a dictionary, nested or not."""
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def load_checked(path: str | os.PathLike) -> dict:
    """Read what `torch.save` wrote, onto the CPU. Nothing in the file is executed.

    Raises:
        Exception: of any kind, for a damaged file; ValueError for a number that is not finite.
    """
    state = torch.load(read_archive(path), map_location="cpu", weights_only=True)
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
    for wrapped_name, tensor in state.items():
        name = plain_name(wrapped_name)
        halve = tensor.is_floating_point() and name not in full_precision
        small[name] = (tensor.half() if halve else tensor).cpu().contiguous()
    if not all_finite(small):
        raise ValueError(
            f"weights that are NaN, or beyond half precision, are not written to {path}: "
            "train with a lower peak_lr"
        )
    content = small | {"classes": tuple(map(str, classes))}
    write_atomically(path, lambda file: torch.save(content, file))


def find_weights(name: str | os.PathLike, classes: Iterable[str] | None) -> Path:
    """The file of weights that a name stands for.

    Args:
        name: of shipped weights, of weights in `runs/`, or a path from here or from the project.
        classes: of the data.

    Raises:
        FileNotFoundError: there is none; the message lists what ships, and what knows the classes.
    """
    root = project_root()
    runs = root / "runs"
    new = runs / f"{name}.pt"
    for path in (WEIGHTS / f"{name}.pt", new, as_path(name), root / name):
        if path.is_file():
            return path
    # A folder's weights are named after its path: it may have been moved.
    moved = [path for path in runs.glob("*.pt") if _knows(path, classes)]
    hints = [f"; if {path} was trained on these images, copy it to {new}" for path in moved]
    known = ", ".join(sorted(path.stem for path in WEIGHTS.glob("*.pt")))
    raise FileNotFoundError(
        f"no weights for {str(name)!r}: shipped are {known}; "
        f"notebook 02 trains and saves others{''.join(hints)}"
    )


def _knows(path: Path, classes: Iterable[str] | None) -> bool:
    """Whether a file holds weights for exactly these classes."""
    with suppress(Exception):  # which one depends on what the file holds
        return classes is not None and load_checked(path)["classes"] == tuple(classes)
    return False


def load_network(
    name: str | os.PathLike,
    build: Callable[[dict[str, torch.Tensor]], Network],
    classes: Iterable[str] | None,
) -> Network:
    """Read a file that `write_weights` wrote, and make a network of it.

    Args:
        name: of the file, as `find_weights` takes it. Nothing in it is executed.
        build: makes the network, untrained, of the state that it is about to load.
        classes: that the network must have been trained on, in this order; None: any.

    Raises:
        FileNotFoundError: as `find_weights`.
        ValueError: the file is damaged, or holds something else, another network or other classes.
    """
    path = find_weights(name, classes)
    state: Any = None
    try:
        state = load_checked(path)
        known = state.pop("classes", None)
        weights = {plain_name(name): tensor for name, tensor in state.items()}
        model = build(weights)
        model.load_state_dict(weights)
    except Exception as error:  # which one depends on what the file holds, and where it is damaged
        raise ValueError(f"{path} {_what_is_wrong(path, state, error)}") from error
    if classes is not None and tuple(known or ()) != tuple(classes):
        remedy = "train on them" if known else "save_weights adds them, or train on them"
        raise ValueError(
            f"{path} knows the classes {one_line(known)}, the data have "
            f"{one_line(tuple(classes))}: {remedy} with notebook 02"
        )
    return model


def _what_is_wrong(path: Path, state: Any, error: Exception) -> str:
    """What a file holds in place of the weights of this network, and what to do."""
    is_old = path.read_bytes()[:1] == b"\x80"  # written before PyTorch 1.6, or by pickle itself
    if is_old or isinstance(error, pickle.UnpicklingError):
        return (
            "holds a pickled model or other objects, and to read those can run code: if you trust "
            "it, torch.load(path, weights_only=False), and write the model with save_weights"
        )
    if state is None:
        in_words = isinstance(error, ValueError | zipfile.BadZipFile)
        reason = error if in_words else type(error).__name__
        return f"is damaged or no file of weights ({reason}): copy it again, or train another"
    parts = state if isinstance(state, dict) else {type(state).__name__: state}
    names = ", ".join(map(str, list(parts)[:4]))
    for name, part in parts.items():
        if isinstance(part, dict) and any(map(torch.is_tensor, part.values())):
            return f"is a checkpoint ({names}): load {name!r} into its network, then save_weights"
    return f"holds no weights of this network ({names}): load them into their own, or train another"
