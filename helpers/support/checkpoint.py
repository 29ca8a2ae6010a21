"""Write a checkpoint so that one whole file is always there, and resume from it."""

from pathlib import Path
from typing import Any

import torch

from helpers.support.files import write_atomically
from helpers.support.weights import load_checked


def save_checkpoint(path: Path, identity: dict, state: Any) -> None:
    """Write all that `load_checkpoint` needs; the checkpoint before stays as `<path>.previous`.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    content = state.state_dict() | {"identity": identity}
    write_atomically(path, lambda file: torch.save(content, file), keep_previous=True)


def load_checkpoint(path: Path, identity: dict, state: Any) -> None:
    """Bring a fresh state to where its checkpoint was written; without one, leave it as it is.

    A damaged file is named, and the previous one used. Nothing in a file is executed.

    Raises:
        ValueError: no file can be read, or it belongs to a run with another identity.
    """
    candidates = [p for p in (Path(path), Path(f"{path}.previous")) if p.exists()]
    if not candidates:
        return
    for used in candidates:
        try:
            saved = load_checked(used)
            there = dict(saved.pop("identity"))
            break
        except Exception:  # which one depends on where the file is damaged
            print(f"{used} is not a checkpoint of this project, or is damaged")
    else:
        raise ValueError(
            f"no checkpoint at {path} can be read: delete it to start anew, or name another file"
        )
    changed = [
        f"{name} {there.get(name)} there, {here} here"
        for name, here in identity.items()
        if there.get(name) != here
    ]
    if changed:
        raise ValueError(
            f"{used} is from another run ({'; '.join(changed)}): delete it or name another file; "
            "to train longer, begin a new run from its weights (--init weights.pt)"
        )
    state.load_state_dict(saved)
