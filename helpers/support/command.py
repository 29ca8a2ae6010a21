"""Command lines: options made from the fields of a configuration, and errors of one line."""

import argparse
import inspect
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any, get_args

from helpers.support.distributed import rank_and_world_size
from helpers.support.files import as_path


def field_comments(config_class: type) -> dict[str, str]:
    """What the source of a dataclass says behind each field: {name: its comment}."""
    return dict(re.findall(r"^ +(\w+):[^#\n]+#\s*(.*)$", inspect.getsource(config_class), re.M))


def make_parser(command: str, **defaults) -> argparse.ArgumentParser:
    """A parser with the options that all commands share.

    Args:
        command: the module that is run, without `helpers.`.
        **defaults: of these options, by name.
    """
    parser = argparse.ArgumentParser(
        f"python -m helpers.{command}", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data", default="auto", help="auto, cifar10, shapes10, or the path of a folder"
    )
    parser.add_argument("--train-size", type=int, help="training images to use; all, if not given")
    parser.add_argument(
        "--validation-size", type=int, help="training images held out to choose by; 0: none"
    )
    parser.add_argument("--width", type=int, help="channels of the first stage")
    parser.add_argument("--output", type=as_path, help="where to write, and to go on from")
    parser.add_argument(
        "--device", type=_choose_device, help="cpu, cuda, xpu or mps; a GPU that works if not given"
    )
    parser.set_defaults(**defaults)
    return parser


def _choose_device(name: str) -> str:
    """Have `default_device` return this device, here and in processes that begin here."""
    os.environ["WALKTHROUGH_DEVICE"] = name
    return name


def add_arguments(parser: argparse.ArgumentParser, config: Any, names: Iterable[str]) -> None:
    """Add an option for each of these fields of a configuration; its help is the field's comment.

    Args:
        parser: gets `--weight-decay` for the field `weight_decay`.
        config: a dataclass; its values are the defaults.
        names: of fields.
    """
    comments = field_comments(type(config))
    for field in fields(config):
        if field.name not in names:
            continue
        parts = get_args(field.type)  # of tuple[int, ...]
        option: dict[str, Any] = {"type": parts[0], "nargs": "+"} if parts else {"type": field.type}
        if field.type is bool:
            option = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=getattr(config, field.name),
            help=comments[field.name].replace("%", "%%"),
            **option,
        )


def config_from_args(args: argparse.Namespace, config: Any) -> Any:
    """The configuration with the values that `add_arguments` read."""
    given = {f.name: getattr(args, f.name) for f in fields(config) if hasattr(args, f.name)}
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return replace(config, **values)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command that is stopped, or cannot do what it was asked to, with one line.

    Its status is 2 for an error, 1 for Ctrl-C.
    """
    rank, world_size = 0, 1
    try:
        rank, world_size = rank_and_world_size()
        yield
    except KeyboardInterrupt as stopped:
        sys.exit(str(stopped) or "stopped")
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        # Other processes may say the same, or have caused this error by their own end. torchrun
        # ends this process once the first has ended: so wait, and only one line is printed.
        if world_size > 1 and (rank > 0 or isinstance(error, RuntimeError)):
            time.sleep(3)
        print(str(error).partition("\n")[0], file=sys.stderr)
        sys.exit(2)
