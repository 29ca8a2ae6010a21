"""Train the network: one plain loop, its configuration, and checkpoints it resumes from.

For runs of hours: `python -m helpers.training --help`; on several devices, or by several processes on CPUs,
`torchrun --nproc-per-node 4 -m helpers.training` with the same options.
"""

import argparse
import copy
import errno
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, DistributedSampler
from tqdm import tqdm

from helpers.augmentation import HARDER, augmentation_steps, compose
from helpers.data import SIZE, Dataset, channel_statistics, load_dataset, make_loader, seed_transform, split, to_float, write_file
from helpers.model import all_finite, read_file, resnet18, save_weights
from helpers.pictures import one_line


@dataclass(frozen=True)
class TrainConfig:
    """One training run; with the same data, machine and PyTorch it repeats exactly."""

    epochs: int = 40  # passes over the training set
    batch_size: int = 128  # images a step, of all processes together
    peak_lr: float = 0.1  # learning rate at the top of the one-cycle schedule
    warmup: float = 0.2  # share of all steps in which the learning rate rises; then it falls, both linearly
    one_cycle: bool = True  # False: peak_lr throughout
    momentum: float = 0.9  # Nesterov momentum, per step
    weight_decay: float = 5e-4  # on convolutions and the linear layer, not on norms and biases
    label_smoothing: float = 0.1  # probability spread evenly over all classes
    image_sizes: tuple[int, ...] = (32,)  # pixels, epoch by epoch; the last one holds for the rest
    padding: int = 4  # pixels of reflected border before the random crop
    hole: int = 8  # side of the dropped square in pixels
    degrees: float = 7.0  # largest rotation
    flip: bool = True  # mirror half of the images
    alternate_flip: bool = False  # which half: at random in the first epoch, the other one in each that follows
    trivial: bool = False  # change each image in one more way, by TrivialAugment
    harder: tuple[str, ...] = ()  # names of classes whose images are augmented more strongly, by `augmentation.HARDER`
    class_weights: tuple[float, ...] = ()  # how much an image of each class counts in the loss, in their order; (): all alike
    ema: float = 0.0  # share that an averaged copy of the weights keeps at each step; 0: no such copy
    mixed_precision: bool = True  # 16-bit arithmetic where the machine is faster with it
    seed: int = 0  # of the order of images and of their augmentation

    def __post_init__(self):
        if self.epochs < 1:  # of other settings PyTorch says so itself
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")

    def image_size(self, epoch: int) -> int:
        """Side of the training images in this epoch (counted from 0), in pixels."""
        return self.image_sizes[min(epoch, len(self.image_sizes) - 1)]


SETTINGS = [field.name for field in fields(TrainConfig)]
NOT_SCORED = {"loss": float("nan"), "accuracy": float("nan")}


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place() -> tuple[int, int]:
    """This process's number, and how many train one network together: (0, 1) alone.

    torchrun, and accelerate's `notebook_launcher`, tell each of the processes that they start in its environment.
    """
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined():
    """Connect this process with the others of its run, if there are any, for as long as this lasts."""
    joins = place()[1] > 1 and not dist.is_initialized()
    if joins and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if joins:  # gloo everywhere: it passes on who was told to stop without making a GPU wait
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if joins:
            dist.destroy_process_group()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only where a weight multiplies (tensors of two dimensions or more)."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=True)


def make_scheduler(optimizer, config: TrainConfig, steps_per_epoch: int):
    """One-cycle learning rate (Smith & Topin 2018, arXiv:1708.07120), set at every step, momentum left alone."""
    total_steps = config.epochs * steps_per_epoch + 1  # the step after the last is never taken
    flat = {} if config.one_cycle else {"div_factor": 1, "final_div_factor": 1}
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.peak_lr,
        total_steps=total_steps,
        pct_start=max(config.warmup, 1.5 / total_steps),  # where their product is 1, OneCycleLR divides by zero
        anneal_strategy="linear",
        cycle_momentum=False,
        **flat,
    )


def make_criterion(train: Dataset, config: TrainConfig):
    """Smoothed cross-entropy of logits and labels, a mean over images; with class weights each counts as its class does.

    The weights are scaled to a mean of 1 over the training images, so that a learning rate means what it does without them.
    Not `cross_entropy(weight=...)`: that divides by the weights of the batch at hand, so that what an image counts depends on its
    neighbours, and weighs the share that smoothing gives to every class, too.  Raises ValueError for weights of another number.
    """
    smoothed = partial(F.cross_entropy, label_smoothing=config.label_smoothing)
    weights = np.array(config.class_weights)
    if len(set(config.class_weights)) < 2:  # equal weights are none
        return smoothed
    if len(weights) != len(train.classes) or not (weights > 0).all():
        raise ValueError(f"class_weights must be {len(train.classes)} numbers above 0, one for each class: got {weights}")
    scaled = torch.from_numpy(weights / weights[train.labels].mean()).float()
    return lambda logits, labels: (scaled.to(labels.device)[labels] * smoothed(logits, labels, reduction="none")).mean()


def augmented(train: Dataset, config: TrainConfig) -> Dataset:
    """The training set with its pipelines: one for all classes, and a stronger one for those in `harder`, if any are.

    Raises ValueError for a name there that is no class.
    """
    if unknown := [name for name in config.harder if name not in train.classes]:
        raise ValueError(f"no class {one_line(unknown[0])!r} in these data: choose among {', '.join(train.classes)}")
    strengths = {name: getattr(config, name) for name in ("padding", "hole", "degrees", "trivial")}
    strengths["flip"] = config.flip and not config.alternate_flip
    mirrored = np.zeros(len(train), bool) if config.flip and config.alternate_flip else None
    stronger = compose(augmentation_steps(**strengths | {name: strengths[name] + more for name, more in HARDER.items()}))
    harder = {train.classes.index(name): stronger for name in config.harder}
    return replace(train, transform=compose(augmentation_steps(**strengths)), harder=harder, mirrored=mirrored)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, 3, H, W) -> (N, 3, size, size), bilinear with antialiasing; the same tensor where they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def autocast(device: torch.device, wanted: bool = True) -> torch.autocast:
    """Mixed precision where it pays: bfloat16 on a GPU or CPU with units for it, float16 on an older GPU; else float32."""
    if device.type == "cuda":
        kind = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.autocast("cuda", kind, wanted)
    units = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # without either, bfloat16 is no faster
    faster = any(getattr(torch.cpu, name, lambda: False)() for name in units)
    return torch.autocast("cpu", torch.bfloat16, wanted and faster)


class Run:
    """All that changes while a network trains, and so all that a checkpoint holds; and its `origin`, which tells runs apart.

    model, optimizer, scheduler, autocast, scaler: as PyTorch has them.  average: the averaged copy of the model, or None.
    history: a row for each finished epoch.  step, seen, sums: batches and images done of the epoch under way, and their
    summed loss and right answers, of all processes.  rank, world: this process's number, and how many train together.
    There is no random state: `seed_epoch` makes it from the seed and the epoch's number.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, steps_per_epoch: int, device: torch.device, data=(), where=(0, 1)):
        parameters = sum(p.numel() for p in model.parameters())
        self.model, self.average, (self.rank, self.world) = model, None, where
        self.origin = {"parameters": parameters, "steps": config.epochs * steps_per_epoch, "processes": self.world, **dict(data)}
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
        self.optimizer = make_optimizer(model, config)
        self.scheduler = make_scheduler(self.optimizer, config, steps_per_epoch)
        self.autocast = autocast(device, config.mixed_precision)
        needs_scaler = config.mixed_precision and self.autocast.fast_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=needs_scaler)
        self.history, self.step, self.seen, self.sums = [], 0, 0, torch.zeros(2, dtype=torch.float64, device=device)

    @property
    def scored(self) -> nn.Module:
        """The network that validation and the final weights are of: the average where there is one."""
        return self.average.module if self.average else self.model

    def parts(self) -> dict:
        """What has a state of its own, by name."""
        parts = {name: getattr(self, name) for name in ("model", "average", "optimizer", "scheduler", "scaler")}
        return {name: part for name, part in parts.items() if part is not None}

    def state(self) -> dict:
        """The states of its parts and how far it has come."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        return states | {"history": self.history, "step": self.step, "seen": self.seen, "sums": self.sums}

    def means(self) -> tuple:
        """Loss and accuracy so far in the epoch under way, per image. Raises FloatingPointError for a loss that is not finite."""
        loss, accuracy = (self.sums / self.seen).tolist()
        self.require(np.isfinite(loss))
        return loss, accuracy

    def require(self, finite: bool) -> None:
        """Raise FloatingPointError, with the learning rate, where something is not."""
        if not finite:
            raise FloatingPointError(f"diverged at a learning rate of {self.scheduler.get_last_lr()[0]:.3g}: lower peak_lr")


def train_step(run: Run, forward, images, labels, criterion, image_size: int) -> torch.Tensor:
    """Learn from one batch of uint8 images; returns its summed loss and right answers as a tensor (2,) on their device."""
    with run.autocast:
        logits = forward(resize(to_float(images), image_size)).float()
        loss = criterion(logits, labels)
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.scheduler.step()
    if run.average:
        run.average.update_parameters(run.model)
    return torch.stack([loss.detach().double() * len(labels), (logits.argmax(1) == labels).sum().double()])


def train_one_epoch(run: Run, forward, loader, criterion, image_size, device, stop=None) -> dict | None:
    """One pass over the loader's images. Returns their mean loss and accuracy, per image, as seen while learning.

    forward: the model, compiled or shared out, or not.  stop: as `interruptible` gives it; after a signal the epoch breaks off
    and returns None.
    """
    run.model.train()
    bar = tqdm(loader, leave=False, unit="batch", **({"disable": True} if run.rank > 0 else {}))  # False would undo TQDM_DISABLE
    for step, (images, labels) in enumerate(bar):
        if step < run.step:
            continue  # learned before the run was resumed; drawn again so that the draws that follow are the same
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        sums = train_step(run, forward, images, labels, criterion, image_size)
        if run.world > 1:
            dist.all_reduce(sums)
        run.sums += sums
        run.step, run.seen = run.step + 1, run.seen + len(labels) * run.world  # all have as many
        if run.step % 10 == 0:  # not oftener: reading a number makes a GPU wait
            loss, accuracy = run.means()
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.3f}", refresh=False)
        if stop is not None and signalled(run, stop):
            return None
    loss, accuracy = run.means()
    run.step, run.seen, run.sums = 0, 0, torch.zeros_like(run.sums)
    return {"loss": loss, "accuracy": accuracy}


@torch.inference_mode()
def evaluate(model, loader, device) -> dict:
    """Mean cross-entropy (no smoothing) and accuracy, per image, of the model in eval mode."""
    model.eval()
    loss_sum, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        logits = model(to_float(images.to(device, memory_format=torch.channels_last))).float()
        labels = labels.to(device)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
        seen += len(labels)
    return {"loss": loss_sum / seen, "accuracy": correct / seen}


@joined()
def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset | None,
    config: TrainConfig,
    device: torch.device | None = None,
    checkpoint=None,
    log=None,
    compile: bool = False,
) -> pd.DataFrame:
    """Train the model in place and return its history, one row an epoch.

    Where torchrun or a notebook's launcher started several processes, each calls this with the same arguments and learns from its
    share of every batch. Process 0 alone shows a bar, scores, logs and writes: its history and its model are those that count.
    validation: scored after every epoch; None leaves those columns empty.
    checkpoint: a path; written after every epoch and when interrupted, and resumed from when it exists, to the bit. One run at a
    time may use it: another one is refused with a BlockingIOError.
    log: called with the row of each finished epoch.  (The progress bar is tqdm's: TQDM_DISABLE=1 silences it.)
    compile: use torch.compile, if it works here.
    Columns: epoch, image_size, train_loss, train_accuracy, validation_loss, validation_accuracy, learning_rate, seconds.
    Raises KeyboardInterrupt after the batch in which Ctrl-C, or a notebook's stop button, was pressed, and SystemExit
    (143 or 129) after the one in which SIGTERM or SIGHUP came; ValueError for no images, a batch that the processes cannot share
    evenly, or a checkpoint of another run, which one of another number of processes is;
    FloatingPointError when a loss or a weight is NaN or infinite: the checkpoint is then the one before.
    """
    device = device or default_device()
    rank, world = place()
    model.to(device, memory_format=torch.channels_last)
    loader = training_loader(augmented(train, config), config, device)
    scored_on = None if validation is None else make_loader(validation, 500)
    digests = [part.digest for part in (train, validation) if part is not None]
    run = Run(model, config, len(loader), device, {"classes": tuple(train.classes), "images": digests}, (rank, world))
    criterion = make_criterion(train, config)
    with sole_owner(checkpoint) if checkpoint and rank == 0 else nullcontext(), interruptible() as stop:
        if checkpoint:
            load_checkpoint(checkpoint, config, run)
        forward = shared_out(run, config, device) if world > 1 else model
        forward = compiled(forward, device) if compile else forward
        for epoch in range(len(run.history), config.epochs):
            start = time.perf_counter()
            seed_epoch(loader.generator, loader.dataset, config.seed, epoch, loader.sampler if world > 1 else None)
            learned = train_one_epoch(run, forward, loader, criterion, config.image_size(epoch), device, stop)
            if learned is not None:
                scored = evaluate(run.scored, scored_on, device) if scored_on and rank == 0 else NOT_SCORED
                run.history.append(_row(epoch, config, {"train": learned, "validation": scored}, run.scheduler, start))
            run.require(all_finite(run.state()))
            if checkpoint and rank == 0:
                save_checkpoint(checkpoint, config, run)
            if log and learned is not None and rank == 0:
                log(run.history[-1])
            if number := signalled(run, stop):
                end(number, run, checkpoint)
    model.eval().load_state_dict(run.scored.state_dict())
    return pd.DataFrame(run.history)


def training_loader(train: Dataset, config: TrainConfig, device: torch.device) -> DataLoader:
    """This process's share of each batch of images and labels. Raises ValueError for a batch that cannot be shared evenly."""
    rank, world = place()
    if config.batch_size % world:
        raise ValueError(f"batch_size must be a multiple of {world}, the number of processes: got {config.batch_size}")
    sampler = DistributedSampler(train, world, rank, drop_last=True) if world > 1 else None
    workers = min(8, max(1, (os.cpu_count() or 1) // world)) if device.type == "cuda" else 0
    return make_loader(train, config.batch_size // world, torch.Generator(), workers, sampler)


def shared_out(run: Run, config: TrainConfig, device: torch.device) -> nn.Module:
    """The model in a form whose gradients are means over all processes, which start from the weights of process 0.

    Raises ValueError, in every process, where they were given different data, settings or checkpoints.
    """
    mine, theirs = (asdict(config) | run.origin, len(run.history), run.step), [None] * run.world
    dist.all_gather_object(theirs, mine)
    if any(other != mine for other in theirs):
        raise ValueError("these processes are not of one run: give all of them the same data, settings and checkpoint")
    if device.type == "cuda":  # nothing synchronises them on CPUs
        nn.SyncBatchNorm.convert_sync_batchnorm(run.model)  # in place, but for its root
    forward = DistributedDataParallel(run.model.eval())  # of batch norms' averages, it hands those of process 0 on
    # After its first pass DDP sums gradients in another order, to other bits; in a resumed run that must not be a batch's.
    forward(torch.zeros(1, 3, SIZE, SIZE, device=device)).sum().backward()
    run.optimizer.zero_grad()
    return forward


def seed_epoch(generator: torch.Generator, train: Dataset, seed: int, epoch: int, sampler: DistributedSampler | None = None):
    """Make an epoch's shuffling and augmentation a function of the run's seed and the epoch's number alone.

    So a resumed run draws what an uninterrupted one would have drawn, and a checkpoint needs no random state.
    sampler: hands a process its share of one order, which is the same in all of them; their augmentation is not.
    """
    rank = 0 if sampler is None else sampler.rank
    order, *augmentation = np.random.SeedSequence([seed, epoch]).generate_state(2 + rank)
    generator.manual_seed(int(order) + rank)  # seeds the workers' augmentation, and without a sampler the order
    seed_transform(train, int(augmentation[-1]))
    if train.mirrored is not None:  # so two epochs in a row show every image both ways (Jordan 2024, arXiv:2404.00498)
        train.mirrored[:] = (np.random.default_rng(seed).random(len(train)) < 0.5) ^ (epoch % 2)
    if sampler is not None:
        sampler.set_epoch(int(order))


@contextmanager
def interruptible():
    """Turn a signal to stop into an event to look at between two batches, its number along; a second Ctrl-C interrupts at once.

    Signals: Ctrl-C or a notebook's stop button, SIGTERM (a cluster's time is up), SIGHUP (the terminal was closed; it may come
    twice). One that is ignored, as SIGHUP is under nohup, stays so.
    """
    stop = threading.Event()
    stop.number = 0

    def handle(number, frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.number = number
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # only the main one can handle signals
        yield stop
        return
    known = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]  # Windows lacks the last
    numbers = [number for number in known if number and signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def signalled(run: Run, stop) -> int:
    """The number of the signal to stop that came to this process or another, 0 for none: all learn of it after the same batch."""
    number = torch.tensor(stop.number)
    if run.world > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)
    return int(number)


def end(number: int, run: Run, checkpoint) -> None:
    """Interrupt for Ctrl-C; for another signal end the process, with the status that a shell gives it."""
    if run.rank > 0:  # process 0 speaks for all
        sys.exit(128 + number)
    saved = f"saved in {checkpoint}: run this again to go on" if checkpoint else "nothing is saved: give a checkpoint"
    message = f"stopped after {len(run.history)} epochs and {run.step} batches, {saved}"
    if number == signal.SIGINT:
        raise KeyboardInterrupt(message)
    with suppress(OSError):  # the terminal may be gone
        print(message, file=sys.stderr)
    sys.exit(128 + number)


@contextmanager
def sole_owner(path):
    """Keep other runs away from a file. Raises BlockingIOError when one is at it already.

    The operating system takes the lock on `<path>.lock` back however its process ends; the empty file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(f"{path}.lock", timeout=0))
            for left in path.parent.glob(f"{path.name}.*.tmp"):  # of a run that was killed while it wrote
                left.unlink()
        except Timeout:
            raise BlockingIOError(f"another run is writing {path}: wait for its end, or name another place") from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOTSUP) not in (errno.ENOTSUP, errno.ENOLCK):
                raise  # a disk without locks does without, one that cannot be written to does not
        yield


def compiled(model: nn.Module, device: torch.device):
    """The model through torch.compile, or the model itself, after saying why, where that does not work."""
    try:
        trial = torch.compile(copy.deepcopy(model).train())
        trial(torch.zeros(2, 3, SIZE, SIZE, device=device)).sum().backward()
        return torch.compile(model)
    except Exception as error:
        print(f"training without torch.compile, which does not work here ({type(error).__name__})")
        return model


def save_checkpoint(path, config: TrainConfig, run: Run) -> None:
    """Write all that `load_checkpoint` needs. The file before it stays as `<path>.previous`; a kill leaves one of them whole.

    Errors: as `write_file`.
    """
    state = run.state() | {"config": asdict(config), "origin": run.origin}
    write_file(path, lambda file: torch.save(state, file), keep=True)


def load_checkpoint(path, config: TrainConfig, run: Run) -> None:
    """Bring a fresh run to where its checkpoint was written; without a checkpoint, leave it as it is.

    A damaged or foreign file is named and the previous one used. Raises ValueError when there is no whole one, or when it
    belongs to a run with another configuration, network, data or number of processes. Nothing in a file is executed.
    """
    found = [p for p in (Path(path), Path(f"{path}.previous")) if p.exists()]
    for candidate in found:
        try:
            state = read_file(candidate)
            there = asdict(TrainConfig()) | {"processes": 1} | state["config"] | state.get("origin", {})  # older ones lack some
            break
        except Exception:  # which one depends on where the file is damaged
            print(f"{candidate} is not a checkpoint of this project, or is damaged")
    else:
        if found:
            raise ValueError(f"no checkpoint at {path} can be read: delete it to start anew, or name another file")
        return
    here = asdict(config) | run.origin
    changed = [f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]
    if changed:
        raise ValueError(f"{candidate} is from another run ({'; '.join(changed)}): delete it or name another file")
    for name, part in run.parts().items():
        part.load_state_dict(state[name])
    run.history, run.step, run.seen = state["history"], state["step"], state["seen"]
    run.sums.copy_(state["sums"])


def _row(epoch, config, scores, scheduler, start):
    return {
        "epoch": epoch + 1,
        "image_size": config.image_size(epoch),
        **{f"{part}_{name}": value for part, found in scores.items() for name, value in found.items()},
        "learning_rate": scheduler.get_last_lr()[0],
        "seconds": round(time.perf_counter() - start, 1),
    }


def options(command: str, config: TrainConfig, names, **defaults) -> argparse.ArgumentParser:
    """A command's options for data, network and output, and for these settings, whose defaults are the configuration's."""
    parser = argparse.ArgumentParser(f"python -m helpers.{command}", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="auto", help="as load_dataset's name")
    parser.add_argument("--train-size", type=int, help="use so many training images (all)")
    parser.add_argument("--validation-size", type=int, help="training images held out to choose by; 0: none")
    parser.add_argument("--width", type=int, help="channels of the first stage")
    parser.add_argument("--output", type=Path, help="where to write, and what to go on with")
    kind = {tuple[of, ...]: {"type": of, "nargs": "+"} for of in (int, float, str)}
    kind[bool] = {"action": argparse.BooleanOptionalAction}
    for name in names:
        of = TrainConfig.__annotations__[name]
        default, more = getattr(config, name), kind.get(of, {"type": of})
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help="as in TrainConfig", **more)
    parser.set_defaults(config=config, **defaults)
    return parser


def configured(args: argparse.Namespace) -> TrainConfig:
    """The configuration that was asked for by `options`."""
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    return replace(args.config, **{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})


@contextmanager
def in_one_line():
    """End a command that is stopped, or cannot do what it was asked to (status 2), with one line that says why."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        sys.exit(f"{stopped}")
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        rank, world = place()
        if world > 1 and (rank or isinstance(error, RuntimeError)):  # others may say the same, or have caused this by their end:
            time.sleep(3)  # torchrun ends this process once the first has ended, so that one line is printed
        print(str(error).partition("\n")[0], file=sys.stderr)
        sys.exit(2)


@in_one_line()
def main(argv=None) -> None:
    """Train from the command line; started again with the same options, it goes on from its last checkpoint."""
    parser = options("training", TrainConfig(), SETTINGS, validation_size=0, width=64, output=Path("runs/training"))
    parser.add_argument("--compile", action="store_true", help="use torch.compile, if it works here")
    args = parser.parse_args(argv)
    config = configured(args)
    data = load_dataset(args.data, train_size=args.train_size)
    train, validation = split(data.train, args.validation_size) if args.validation_size else (data.train, None)
    torch.manual_seed(config.seed)
    model = resnet18(len(data.classes), args.width, *channel_statistics(train.images))
    log = lambda row: print(", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)  # noqa: E731
    checkpoint = args.output / "checkpoint.pt"
    history = fit(model, train, validation, config, checkpoint=checkpoint, log=log, compile=args.compile)
    if place()[0] > 0:
        return
    write_file(args.output / "history.csv", lambda file: history.to_csv(file, index=False))
    save_weights(model, args.output / "weights.pt", data.classes)
    print(f"weights and history are in {args.output}")


if __name__ == "__main__":
    main()
