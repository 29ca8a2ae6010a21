"""The network in a page: paint on an image, and see its answer and its maps change at once.

`python -m helpers.interactive.live` writes the page, html/live.html, and the network beside it.
"""

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from helpers import shapes
from helpers.data import Dataset, load_dataset
from helpers.evaluation import predict
from helpers.interactive.cheat import CORNER, NAME, tagged
from helpers.interactive.embed import compressed, embed, in_eight_bits
from helpers.interactive.explorer import ALT, cams_by_grid, choose_images, still_figure
from helpers.model import PreActResNet, load_pretrained
from helpers.support.command import one_line_errors
from helpers.support.files import as_path, project_root

IMAGES = 60  # on the page
ASKED = 1000  # test images to choose them from
TAGGED = 20  # images for the cheat
COMMAND = "python -m helpers.interactive.live"
PAGE = Path(__file__).with_name("live_page.html")


def write_live(path: Path, data: str = "auto", network: str | None = None) -> None:
    """Write a page with a network in it, and beside it a script that holds the weights.

    Args:
        path: of the page, `x.html`; the script is `x-network.js`.
        data: the data set whose test images the page shows, as `load_dataset` takes it.
        network: name or path, as `load_pretrained` takes it; None: the one of the data set.

    Raises:
        FileNotFoundError, ValueError: as `load_dataset` and `load_pretrained` do.
        OSError: a file cannot be written.
    """
    pair = load_dataset(data, train_size=1, test_size=ASKED)
    model = load_pretrained(network or pair.name, pair.classes)
    predictions = predict(model, pair.test)
    chosen = choose_images(predictions, IMAGES)
    cheat, tags = load_pretrained(NAME), tagged(TAGGED, shapes.TEST_SEED)
    worlds = [_world(model, pair.test.subset(chosen)), _world(cheat, tags) | {"corner": CORNER}]
    networks = [packed(model), packed(cheat)]
    identity = zlib.adler32(str(networks).encode())
    script = path.with_name(f"{path.stem}-network.js")
    about = {"script": script.name, "id": identity, "command": COMMAND}
    still = still_figure(cams_by_grid(model), pair.test, predictions, int(chosen[0]))
    shown = embed("live", {"worlds": worlds, "network": about}, still, ALT)
    page = PAGE.read_text("utf-8").replace("{live}", shown.data)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"id": identity, "all": networks})
    script.write_text(f"liveNetworks({content});", encoding="utf-8")
    path.write_text(page, encoding="utf-8")
    print(path)


def _world(model: PreActResNet, dataset: Dataset) -> dict[str, Any]:
    """What the page knows of the images of a network."""
    said = predict(model, dataset).predicted
    return {
        "classes": dataset.classes,
        "rows": np.stack([dataset.labels, said], 1).tolist(),
        "mean": (255 * model.mean).round().flatten().int().tolist(),
        "images": compressed(dataset.images.transpose(0, 3, 1, 2).tobytes()),
    }


@torch.no_grad()
def packed(model: PreActResNet) -> dict[str, Any]:
    """A network for network.js: convolutions in 8 bits, with one scale for each output channel.

    The second batch norm of a block scales what the convolution before it gives, so that scale goes
    into the convolution's. The first one's cannot: a sum and a shortcut stand before it, and a ReLU
    behind it.

    Returns:
        {"width", "classes", "numbers": how many floats stand before the whole numbers, "weights":
        all of them, compressed, as text}.
    """
    floats: list[Tensor] = [1 / model.std, -model.mean / model.std]
    whole: list[Tensor] = []

    def add(conv: nn.Conv2d, factor: Tensor | float = 1.0) -> None:
        weights, scales = in_eight_bits(conv.weight)
        whole.append(weights)
        floats.append(scales * factor)

    add(model.stem)
    for block in (*model.layer1, *model.layer2, *model.layer3, *model.layer4):
        floats.extend(_affine(block.norm1))
        scale, shift = _affine(block.norm2)
        add(block.conv1, scale)
        floats.append(shift)
        add(block.conv2)
        if block.shortcut is not None:
            add(block.shortcut)
    floats += [model.fc.weight, model.fc.bias]
    numbers, weights = (torch.cat([part.flatten() for part in parts]) for parts in (floats, whole))
    return {
        "width": model.stem.out_channels,
        "classes": model.fc.out_features,
        "numbers": len(numbers),
        "weights": compressed(numbers.numpy().tobytes() + weights.numpy().tobytes()),
    }


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by, and what it adds then."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Write the page from the command line."""
    parser = argparse.ArgumentParser(COMMAND)
    parser.add_argument("--data", default="auto", help="cifar10, shapes10 or a folder's path")
    parser.add_argument("--network", help="name or path, as load_pretrained takes it; the data's")
    parser.add_argument("--output", type=as_path, default=project_root() / "html" / "live.html")
    args = parser.parse_args(argv)
    write_live(args.output, args.data, args.network)


if __name__ == "__main__":
    main()
