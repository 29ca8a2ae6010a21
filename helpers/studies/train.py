"""Train the network from the command line: `python -m helpers.training --help`."""

from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import torch

from helpers.data import channel_statistics, load_dataset, split
from helpers.model import load_pretrained, resnet18, save_weights
from helpers.support.command import add_arguments, config_from_args, make_parser, one_line_errors
from helpers.support.distributed import rank_and_world_size
from helpers.support.files import write_atomically
from helpers.training import TrainConfig, fit


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Train; with the same options again, go on from the last checkpoint."""
    parser = make_parser("training", validation_size=0, width=64, output=Path("runs/training"))
    add_arguments(parser, TrainConfig(), [field.name for field in fields(TrainConfig)])
    parser.add_argument("--compile", action="store_true", help="use torch.compile, if it works")
    parser.add_argument(
        "--init", help="begin with these weights, of a finished run, at their width: weights.pt"
    )
    args = parser.parse_args(argv)
    config = config_from_args(args, TrainConfig())
    data = load_dataset(args.data, train_size=args.train_size, test_size=1)
    train, validation = data.train, None
    if args.validation_size:
        train, validation = split(data.train, args.validation_size)
    torch.manual_seed(config.seed)
    if args.init:
        model = load_pretrained(args.init, data.classes)
    else:
        model = resnet18(len(data.classes), args.width, *channel_statistics(train.images))
    checkpoint = args.output / "checkpoint.pt"
    history = fit(
        model, train, validation, config, None, checkpoint, _print_row, compile=args.compile
    )
    rank, _ = rank_and_world_size()
    if rank == 0:
        table = args.output / "history.csv"
        write_atomically(table, lambda file: history.to_csv(file, index=False))
        save_weights(model, args.output / "weights.pt", data.classes)
        print(f"weights and history are in {args.output}")


def _print_row(row: dict) -> None:
    with suppress(OSError):  # the terminal may be gone: SIGHUP will stop the run, with a checkpoint
        print(", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
