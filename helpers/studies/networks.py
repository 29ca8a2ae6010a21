"""What the studies of trained networks share: their options, and a table with rows of each."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from helpers.data import Dataset, DatasetPair, load_dataset
from helpers.model import PreActResNet, load_pretrained
from helpers.support.command import one_line_errors
from helpers.support.device import default_device, to_device_of
from helpers.support.files import as_path, project_root, write_atomically


def network_parser(study: str) -> argparse.ArgumentParser:
    """A parser with the options that these studies share."""
    parser = argparse.ArgumentParser(f"python -m helpers.studies.{study}")
    parser.add_argument("--data", default="auto", help="cifar10, shapes10, or a folder's path")
    parser.add_argument("--test-size", type=int, help="test images to use; all, if not given")
    parser.add_argument("--networks", nargs="+", help="names or files; else the one that ships")
    parser.add_argument("--output", type=as_path, help="where to write; in runs, if not given")
    return parser


def load_networks(args: argparse.Namespace, data: DatasetPair) -> dict[str, PreActResNet]:
    """The networks that were asked for, by name.

    Raises:
        ValueError: two have the same name; else as `load_pretrained`.
    """
    paths = args.networks or [data.name]
    device = default_device()
    networks = {Path(path).stem: load_pretrained(path, data.classes).to(device) for path in paths}
    if len(networks) < len(paths):
        raise ValueError("two networks have the same name, which names their rows: rename a file")
    return networks


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """What a network says of images (N, 3, H, W) in [0, 1]: (N, num_classes), on the CPU."""
    return torch.cat([model(to_device_of(model, part)).cpu() for part in images.split(100)])


def cover_cells(images: Tensor, cells: Tensor, paint: Tensor) -> Tensor:
    """The images with some cells of a square grid covered.

    Args:
        images: (N, 3, H, W) in [0, 1].
        cells: (1 or N, g * g) bool, which cells of a g x g grid, row by row.
        paint: what is seen in their place, (1 or N, 3, 1 or H, 1 or W).
    """
    side = int(cells.shape[1] ** 0.5)
    grid = cells.float().view(-1, 1, side, side)
    return torch.where(interpolate(grid, images.shape[-2:]) > 0, paint, images)


@one_line_errors()
def write_rows(
    args: argparse.Namespace, study: str, measure: Callable[[PreActResNet, Dataset], pd.DataFrame]
) -> None:
    """Measure each network on the test images, and write the rows of all as one table.

    An error ends the command with one line.
    """
    data = load_dataset(args.data, train_size=1, test_size=args.test_size)
    networks = load_networks(args, data)
    tables = {name: measure(model, data.test) for name, model in networks.items()}
    table = pd.concat(tables, names=["network"]).reset_index("network")
    write(table, args.output or project_root() / "runs" / f"{data.name}-{study}.csv")


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table, its numbers rounded to four digits, and print it."""
    table = table.round(4)
    write_atomically(path, lambda file: table.to_csv(file, index=False))
    print(table.to_string())
