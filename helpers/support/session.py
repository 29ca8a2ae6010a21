"""What surrounds a training loop: locks, resumption, signals to stop, processes, checkpoints."""

import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ReduceOp
from torch.utils.data import DataLoader
from tqdm import tqdm

from helpers.support import distributed
from helpers.support.checkpoint import load_checkpoint, save_checkpoint
from helpers.support.device import compile_or_explain
from helpers.support.files import exclusive_lock
from helpers.support.image_files import SIZE
from helpers.support.signals import catch_stop_signals
from helpers.support.weights import all_finite

STEPS_PER_REPORT = 10  # steps between two looks at the loss: reading a number makes a GPU wait


class Session:
    """One run of a training loop, from the lock on its checkpoint to its last epoch.

    On entering: locks the checkpoint, listens for signals to stop, goes on where the checkpoint was
    written, and connects the network with those of the other processes.

    Args:
        state: all that changes while the network trains. It has `model`, `optimizer`, `scheduler`
            and `parts()`: {name: what has `state_dict` and `load_state_dict`}.
        identity: {setting: value} that tells this run from others; a checkpoint of another run is
            refused.
        device: that computes.
        checkpoint: a path; None writes nothing.
        log: called with the row of each finished epoch.
        compile: use torch.compile, if it works here.

    Attributes:
        network: what to call in the loop: the model, compiled or connected with other processes.
        is_main: whether this is the process that shows, logs and writes.
        history: a row (dict) for each finished epoch.
        step, seen: batches and images done in the epoch under way.
        totals: (2,) their summed loss and hits, over all processes.

    Raises:
        BlockingIOError: another run uses the checkpoint.
        ValueError: the checkpoint belongs to another run or cannot be read, or the processes were
            given different settings.
    """

    def __init__(
        self,
        state: Any,
        identity: dict,
        device: torch.device,
        checkpoint: str | os.PathLike | None,
        log: Callable[[dict], object] | None,
        compile: bool,
    ):
        self.state = state
        rank, self.world_size = distributed.rank_and_world_size()
        self.is_main = rank == 0
        # The layers, and which weights learn: a dilated or a frozen network has the same weights.
        weights = list(state.model.parameters())
        layers = f"{state.model}{[(weight.dtype, weight.requires_grad) for weight in weights]}"
        self.identity = identity | {
            "parameters": sum(weight.numel() for weight in weights),
            "processes": self.world_size,
            "network": hashlib.sha256(layers.encode()).hexdigest()[:16],
        }
        self.example = torch.zeros(2, 3, SIZE, SIZE, device=device)  # to try the network with
        self.checkpoint = Path(os.path.expanduser(checkpoint)) if checkpoint else None
        self.log = log
        self.compile = compile
        self.network = state.model
        self.network.unfinished = True  # until `__exit__` without an error: `save_weights` looks
        self.history: list[dict] = []
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin to count anew."""
        self.step = 0
        self.seen = 0
        device = self.example.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # Apple's has no float64
        self.totals = torch.zeros(2, dtype=dtype, device=device)

    def __enter__(self) -> "Session":
        with ExitStack() as stack:
            if self.checkpoint and self.is_main:
                stack.enter_context(exclusive_lock(self.checkpoint))
            self._stop = stack.enter_context(catch_stop_signals())
            if self.checkpoint:
                load_checkpoint(self.checkpoint, self.identity, self)
            if self.world_size > 1:
                progress = (len(self.history), self.step)
                distributed.require_same((self.identity, progress))
                self.network = distributed.wrap_in_ddp(self.state.model, self.example)
            if self.compile:
                self.network = compile_or_explain(self.network, self.example)
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, *error):
        self.state.model.unfinished = error[0] is not None
        return self._exit_stack.__exit__(*error)

    def batches(self, loader: DataLoader) -> Iterator:
        """The batches of an epoch that are not learned yet, under a progress bar.

        Raises:
            FloatingPointError: at the end, where a loss or a weight is NaN or infinite.
        """
        self._epoch_start = time.perf_counter()
        hidden = {} if self.is_main else {"disable": True}  # False would undo TQDM_DISABLE
        self._bar = tqdm(loader, leave=False, unit="batch", **hidden)
        already_learned = self.step
        for number, batch in enumerate(self._bar):
            # Those learned before the run was resumed are drawn again all the same, so that the
            # random draws that follow are those of a run that was never stopped.
            if number >= already_learned:
                yield batch
        self.require_finite()

    def after_batch(self, loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch; stop here if a signal asked for it.

        Args:
            loss: the batch's mean loss.
            logits: (N, num_classes).
            labels: (N,).

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            SystemExit: after another signal, with its status.
            FloatingPointError: the loss is NaN or infinite.
        """
        hits = (logits.argmax(1) == labels).sum()
        dtype = self.totals.dtype
        sums = torch.stack([loss.detach().to(dtype) * len(labels), hits.to(dtype)])
        self.totals += distributed.reduce(sums, ReduceOp.SUM)
        self.step += 1
        self.seen += len(labels) * self.world_size  # every process sees equally many images
        if self.step % STEPS_PER_REPORT == 0:
            loss_so_far, accuracy = self.mean_scores()
            text = {"loss": f"{loss_so_far:.3f}", "accuracy": f"{accuracy:.3f}"}
            self._bar.set_postfix(text, refresh=False)
        self._stop_if_asked()

    def after_epoch(self, image_size: int, validation: Any = None) -> None:
        """Add a finished epoch to the history, save and log it; stop if a signal asked for it.

        Args:
            image_size: side of the training images in pixels.
            validation: has `loss` and `accuracy`; None where nothing was scored.

        Raises: as `after_batch`.
        """
        loss, accuracy = self.mean_scores()
        row = {
            "epoch": len(self.history) + 1,
            "image_size": image_size,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "validation_loss": validation.loss if validation else float("nan"),
            "validation_accuracy": validation.accuracy if validation else float("nan"),
            "learning_rate": self.state.scheduler.get_last_lr()[0],
            "seconds": round(time.perf_counter() - self._epoch_start, 1),
        }
        self.history.append(row)
        self.start_epoch()
        self._save()
        if self.log and self.is_main:
            self.log(row)
        self._stop_if_asked()

    def history_table(self):
        """The history as a table of pandas."""
        import pandas as pd  # here, because importing it takes 0.4 seconds

        return pd.DataFrame(self.history)

    def mean_scores(self) -> tuple[float, float]:
        """Loss and accuracy per image in the epoch under way, as seen while learning.

        Raises:
            FloatingPointError: the loss is NaN or infinite.
        """
        loss, accuracy = (self.totals / self.seen).tolist()
        if not math.isfinite(loss):
            self.require_finite()
        return loss, accuracy

    def require_finite(self) -> None:
        """Raise FloatingPointError where a loss or a weight is NaN or infinite."""
        if not all_finite(self.state_dict()):
            rate = self.state.scheduler.get_last_lr()[0]
            raise FloatingPointError(f"diverged at a learning rate of {rate:.3g}: lower peak_lr")

    def state_dict(self) -> dict[str, Any]:
        """The states of all parts, and how far the run has come."""
        states = {name: part.state_dict() for name, part in self.state.parts().items()}
        progress = {name: getattr(self, name) for name in ("history", "step", "seen", "totals")}
        return states | progress | {"threads": torch.get_num_threads()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        for name, part in self.state.parts().items():
            part.load_state_dict(saved[name])
        self.history = saved["history"]
        self.step = saved["step"]
        self.seen = saved["seen"]
        self.totals.copy_(saved["totals"])
        there, here = saved["threads"], torch.get_num_threads()
        if there != here and self.is_main:  # sums are added up in another order
            print(f"resumed with {here} threads, not {there}: the last digits will differ")

    def _save(self) -> None:
        if self.checkpoint and self.is_main:
            save_checkpoint(self.checkpoint, self.identity, self)

    def _stop_if_asked(self) -> None:
        """End the run if a signal came: to any of the processes, since all must stop together.

        Ctrl-C interrupts; another signal ends the process with a shell's status for it.
        """
        number = int(distributed.reduce(torch.tensor(self._stop.number), ReduceOp.MAX))
        if not number:
            return
        if self.step:  # else the epoch is saved
            self.require_finite()
            self._save()
        if not self.is_main:  # the main process speaks for all
            sys.exit(128 + number)
        advice = "nothing is saved: give a checkpoint"
        if self.checkpoint:
            advice = f"saved in {self.checkpoint}: run this again to go on"
        message = f"stopped after {len(self.history)} epochs and {self.step} batches, {advice}"
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        with suppress(OSError):  # the terminal may be gone
            print(message, file=sys.stderr)
        sys.exit(128 + number)
