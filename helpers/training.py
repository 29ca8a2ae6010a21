"""Train the network: one plain loop, its configuration, and checkpoints it resumes from.

For runs of hours: `python -m helpers.training --help`.
"""

import argparse
import os
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from helpers.augmentation import augmentation_steps, compose
from helpers.data import Dataset, channel_statistics, load_dataset, make_loader, seed_transform, split, to_float
from helpers.model import resnet18, save_weights


@dataclass(frozen=True)
class TrainConfig:
    """One training run; with the same data, machine and PyTorch it repeats exactly."""

    epochs: int = 40  # passes over the training set
    batch_size: int = 128  # images a step
    peak_lr: float = 0.1  # learning rate at the top of the one-cycle schedule
    warmup: float = 0.2  # share of all steps in which the learning rate rises; then it falls, both linearly
    momentum: float = 0.9  # Nesterov momentum, per step
    weight_decay: float = 5e-4  # on convolutions and the linear layer, not on norms and biases
    label_smoothing: float = 0.1  # probability spread evenly over all classes
    image_sizes: tuple = (32,)  # pixels, epoch by epoch; the last one holds for the rest
    padding: int = 4  # pixels of reflected border before the random crop
    hole: int = 8  # side of the dropped square in pixels
    degrees: float = 7.0  # largest rotation
    flip: bool = True  # mirror half of the images
    seed: int = 0  # of the order of images and of their augmentation

    def image_size(self, epoch: int) -> int:
        """Side of the training images in this epoch (counted from 0), in pixels."""
        return self.image_sizes[min(epoch, len(self.image_sizes) - 1)]


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only where a weight multiplies (tensors of two dimensions or more)."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.peak_lr, momentum=config.momentum, nesterov=True)


def make_scheduler(optimizer, config: TrainConfig, steps_per_epoch: int):
    """One-cycle learning rate (Smith & Topin 2018, arXiv:1708.07120), set at every step, momentum left alone."""
    total_steps = config.epochs * steps_per_epoch + 1  # the step after the last is never taken
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.peak_lr,
        total_steps=total_steps,
        pct_start=max(config.warmup, 1.5 / total_steps),  # where their product is 1, OneCycleLR divides by zero
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (N, 3, H, W) -> (N, 3, size, size), bilinear with antialiasing; the same tensor where they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def autocast(device: torch.device) -> torch.autocast:
    """Mixed precision on a GPU (bfloat16 where it has it, else float16); float32 on a CPU."""
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu and not torch.cuda.is_bf16_supported() else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=on_gpu)


def train_one_epoch(model, loader, optimizer, scheduler, scaler, criterion, image_size, device) -> dict:
    """One pass over the loader's images. Returns their mean loss and accuracy, per image, as seen while learning."""
    model.train()
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    bar = tqdm(loader, leave=False, unit="batch")
    for step, (images, labels) in enumerate(bar):
        images = to_float(images.to(device, memory_format=torch.channels_last, non_blocking=True))
        labels = labels.to(device, non_blocking=True)
        with autocast(device):
            logits = model(resize(images, image_size))
            loss = criterion(logits, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        seen += len(labels)
        if step % 10 == 0:
            bar.set_postfix(loss=f"{loss_sum.item() / seen:.3f}", accuracy=f"{correct.item() / seen:.3f}")
    return {"loss": loss_sum.item() / seen, "accuracy": correct.item() / seen}


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


def fit(
    model: nn.Module,
    train: Dataset,
    validation: Dataset | None,
    config: TrainConfig,
    device: torch.device | None = None,
    checkpoint=None,
    log=None,
) -> pd.DataFrame:
    """Train the model in place and return its history, one row an epoch.

    validation: scored after every epoch; None leaves those columns empty.
    checkpoint: a path; written after every epoch, and resumed from when it exists.
    log: called with the row of each finished epoch.  (The progress bar is tqdm's: TQDM_DISABLE=1 silences it.)
    Columns: epoch, image_size, train_loss, train_accuracy, validation_loss, validation_accuracy, learning_rate, seconds.
    """
    device = device or default_device()
    model.to(device, memory_format=torch.channels_last)
    steps = augmentation_steps(config.padding, config.hole, config.degrees, config.flip)
    train = replace(train, transform=compose(steps))
    generator = torch.Generator()
    workers = min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
    loader = make_loader(train, config.batch_size, generator, workers)
    optimizer = make_optimizer(model, config)
    scheduler = make_scheduler(optimizer, config, len(loader))
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda" and not torch.cuda.is_bf16_supported())
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    history = load_checkpoint(checkpoint, config, model, optimizer, scheduler, scaler) if checkpoint else []
    for epoch in range(len(history), config.epochs):
        start = time.perf_counter()
        seed_epoch(generator, train, config.seed, epoch)
        scores = {
            "train": train_one_epoch(model, loader, optimizer, scheduler, scaler, criterion, config.image_size(epoch), device)
        }
        if validation is not None:
            scores["validation"] = evaluate(model, make_loader(validation, 500), device)
        history.append(_row(epoch, config, scores, scheduler, time.perf_counter() - start))
        if log:
            log(history[-1])
        if checkpoint:
            save_checkpoint(checkpoint, config, model, optimizer, scheduler, scaler, history)
    model.eval()
    return pd.DataFrame(history)


def seed_epoch(generator: torch.Generator, train: Dataset, seed: int, epoch: int) -> None:
    """Make an epoch's shuffling and augmentation a function of the run's seed and the epoch's number alone.

    So a resumed run draws what an uninterrupted one would have drawn, and a checkpoint needs no random state.
    """
    order, augmentation = np.random.SeedSequence([seed, epoch]).generate_state(2)
    generator.manual_seed(int(order))
    seed_transform(train, int(augmentation))


def save_checkpoint(path, config, model, optimizer, scheduler, scaler, history) -> None:
    """Write all that `load_checkpoint` needs, in one step: a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    state = {name: part.state_dict() for name, part in parts.items()}
    temporary = path.with_name(f"{path.name}.tmp")
    torch.save({**state, "config": asdict(config), "history": history}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path, config, model, optimizer, scheduler, scaler) -> list[dict]:
    """Restore a run in place and return its history so far; an absent file gives an empty history.

    Raises ValueError when the file is damaged or belongs to a run with another configuration. Nothing in it is executed.
    """
    if not Path(path).exists():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["config"] | _extent(state["model"], state["scheduler"])
    except Exception as error:  # which one depends on where the file is damaged
        raise ValueError(f"{path} is not a checkpoint of this project, or is damaged: delete it to start anew") from error
    here = asdict(config) | _extent(model.state_dict(), scheduler.state_dict())
    changed = [f"{k} {saved.get(k)} there, {v} here" for k, v in here.items() if saved.get(k) != v]
    if changed:
        raise ValueError(f"{path} is from another run ({'; '.join(changed)}): delete it or name another file")
    for name, part in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)):
        part.load_state_dict(state[name])
    return state["history"]


def _extent(model_state, scheduler_state):
    """What else tells two runs apart: the size of the network, and of the data set."""
    return {"parameters": sum(v.numel() for v in model_state.values()), "steps": scheduler_state["total_steps"] - 1}


def _row(epoch, config, scores, scheduler, seconds):
    empty = {"loss": float("nan"), "accuracy": float("nan")}
    return {
        "epoch": epoch + 1,
        "image_size": config.image_size(epoch),
        **{f"{part}_{name}": scores.get(part, empty)[name] for part in ("train", "validation") for name in empty},
        "learning_rate": scheduler.get_last_lr()[0],
        "seconds": round(seconds, 1),
    }


def _parse(argv):
    parser = argparse.ArgumentParser("python -m helpers.training", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", default="auto", help="as load_dataset's name")
    parser.add_argument("--train-size", type=int, help="use so many training images (all)")
    parser.add_argument("--validation-size", type=int, default=0, help="training images held out to choose by; 0: none")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--output", type=Path, default=Path("runs/training"), help="folder for checkpoint, history and weights")
    for field in fields(TrainConfig):
        kind = {bool: {"action": argparse.BooleanOptionalAction}, tuple: {"type": int, "nargs": "+"}}
        options = kind.get(field.type, {"type": field.type})
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help="as in TrainConfig", **options)
    return parser.parse_args(argv)


def main(argv=None) -> None:
    """Train from the command line; started again with the same options, it goes on after the last finished epoch."""
    args = _parse(argv)
    config = TrainConfig(**{f.name: getattr(args, f.name) for f in fields(TrainConfig)})
    config = replace(config, image_sizes=tuple(config.image_sizes))
    data = load_dataset(args.data, train_size=args.train_size)
    train, validation = split(data.train, args.validation_size) if args.validation_size else (data.train, None)
    torch.manual_seed(config.seed)
    model = resnet18(len(data.classes), args.width, *channel_statistics(train.images))
    log = lambda row: print(", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)  # noqa: E731
    history = fit(model, train, validation, config, checkpoint=args.output / "checkpoint.pt", log=log)
    history.to_csv(args.output / "history.csv", index=False)
    save_weights(model, args.output / "weights.pt")
    print(f"weights and history are in {args.output}")


if __name__ == "__main__":
    main()
