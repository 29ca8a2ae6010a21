"""Draw: arrays in, a matplotlib Figure out. Figures stand apart from pyplot: a notebook shows one only where it ends a cell."""

import io
import warnings

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from PIL import Image

from helpers.data import project_root, write_file

HEAT = "viridis"  # heatmaps: even steps of brightness, safe for the colour-blind
SIGNED = "RdBu_r"  # signed maps: red for, blue against, white at zero
COLOURS = sns.color_palette("colorblind")  # ten
HEAT_LABEL, SIGNED_LABEL = "share of the\nmap's maximum", "evidence\n(logit units)"


def save(figure: Figure, name: str, dataset_name: str) -> Figure:
    """Write a figure to `images/` in the project's root, if it was drawn from CIFAR-10, and return it.

    Where that cannot be written to, a warning says so.
    """
    if dataset_name == "cifar10":
        _write(name, lambda file: figure.savefig(file, dpi=110, format=name.split(".")[-1]))
    return figure


def save_animation(figures: list, name: str, dataset_name: str, seconds: float = 2.0) -> Figure:
    """Write figures of one size to `images/` as a GIF that shows each for so long, as `save` does, and return the last."""
    if dataset_name == "cifar10":
        frames = []
        for figure in figures:
            png = io.BytesIO()
            figure.savefig(png, dpi=80)
            frames.append(Image.open(png).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE))
        options = {"save_all": True, "append_images": frames[1:], "duration": 1000 * seconds, "loop": 0}
        _write(name, lambda file: frames[0].save(file, "GIF", **options))
    return figures[-1]


def _write(name, write):
    try:
        write_file(project_root() / "images" / name, write)
    except OSError as error:
        warnings.warn(str(error), stacklevel=3)


def image_grid(images, titles=None, columns: int = 8, row_labels=None, scale: float = 1.2) -> Figure:
    """Images (N, 3, H, W) in [0, 1] or (N, H, W, 3) uint8, row by row, each under its title; row_labels on the left."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = scale * (1 if titles is None else 1 + 0.18 * (1 + max(t.count("\n") for t in titles)))
    figure = Figure(figsize=(columns * scale + (1 if row_labels else 0), rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        _bare(ax)
        ax.set_frame_on(False)
    for i, (ax, image) in enumerate(zip(axes.flat, images)):
        ax.imshow(_pixels(image))
        if titles is not None:
            ax.set_title(titles[i], fontsize=10)
    for ax, label in zip(axes[:, 0], row_labels or []):
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    return figure


def class_counts(counts: dict, classes) -> Figure:
    """Bars of the number of images of each class; counts: {"training set": (num_classes,), ...}."""
    figure, ax = _single(8, 3)
    width = 0.8 / len(counts)
    for i, ((name, values), colour) in enumerate(zip(counts.items(), COLOURS)):
        ax.bar(np.arange(len(classes)) + (i - (len(counts) - 1) / 2) * width, values, width, label=name, color=colour)
    ax.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    ax.set(ylabel="images")
    figure.legend(loc="outside upper center", ncols=len(counts))
    return figure


def lines(x, series: dict, xlabel: str, ylabel: str, references: dict | None = None, ylim=None) -> Figure:
    """Curves over x, {label: (n,)}; references: {label: value} as dashed horizontal lines."""
    figure, ax = _single(6.5 if len(series) <= 4 else 9, 3.8)
    for (label, values), colour in zip(series.items(), COLOURS):
        ax.plot(x, values, label=label, color=colour, marker="o" if len(x) <= 60 else None, markersize=4)
    for (label, value), style in zip((references or {}).items(), ("--", ":", "-.")):
        ax.axhline(value, label=label, color="0.35", linestyle=style)
    ax.set(xlabel=xlabel, ylabel=ylabel, ylim=ylim)
    ax.grid(alpha=0.3)
    if len(series) > 4:
        figure.legend(loc="outside right upper")
    elif list(series) != [ylabel] or references:
        ax.legend()
    return figure


def training_curves(history) -> Figure:
    """Loss and accuracy, of training and of validation, epoch by epoch; history: a table as `training.fit` returns it."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for ax, name in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        for part, marker, colour in zip(("train", "validation"), "os", COLOURS):
            ax.plot(history["epoch"], history[f"{part}_{name}"], marker=marker, markersize=4, label=part, color=colour)
        ax.set(xlabel="epoch", ylabel=name, ylim=(0, 1) if name == "accuracy" else None)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    ax.legend()
    return figure


def confusion_heatmap(matrix: np.ndarray, classes) -> Figure:
    """Counts (num_classes, num_classes), row = actual class, as numbers; colour: share of the row, stretched at its low end."""
    figure, ax = _single(8, 6.6)
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    bar = {"label": "share of the actual class", "ticks": [0, 0.01, 0.05, 0.2, 0.5, 1]}
    labels = {"xticklabels": classes, "yticklabels": classes}
    norm = PowerNorm(0.4, vmin=0, vmax=1)
    sns.heatmap(share, ax=ax, annot=matrix, fmt="d", cmap="cividis", norm=norm, square=True, cbar_kws=bar, **labels)
    ax.set(xlabel="predicted class", ylabel="actual class")
    ax.tick_params(axis="x", rotation=45)
    ax.tick_params(axis="y", rotation=0)
    return figure


def feature_maps(rows: dict, image=None, one_scale: bool = False) -> Figure:
    """Rows of a network's feature maps, {label: (C, h, w)}, below the image (3, H, W) in [0, 1] that they came from, if given.

    Red is positive, blue negative, white zero. A row's colours end at its largest absolute value; with one_scale, at that of all.
    """
    columns, count = max(len(maps) for maps in rows.values()), len(rows) + (image is not None)
    figure = Figure(figsize=(1.15 * columns + 2.2, 1.2 * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False)
    for ax in axes.flat:
        _bare(ax)
        ax.set_frame_on(False)
    if image is not None:
        axes[0, 0].imshow(_pixels(image))
    limits = [float(np.abs(_array(maps)).max()) for maps in rows.values()]
    for row, maps, limit in zip(axes[count - len(rows) :], rows.values(), limits):
        limit = max(limits) if one_scale else limit
        for ax, values in zip(row, _array(maps)):
            ax.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit)
    for ax, label in zip(axes[:, 0], [*(["image"] if image is not None else []), *rows]):
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    return figure


def schedule(history) -> Figure:
    """The learning rate at the end of each epoch, above the training loss; history: a table as `training.fit` returns it."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panels = {"learning_rate": "learning rate", "train_loss": "training loss"}
    for ax, (column, ylabel), colour in zip(figure.subplots(2, 1, sharex=True), panels.items(), COLOURS):
        ax.plot(history["epoch"], history[column], marker="o", markersize=4, color=colour)
        ax.set(ylabel=ylabel, ylim=(0, None))
        ax.grid(alpha=0.3)
    ax.set(xlabel="epoch")
    return figure


def one_number(accuracy: float, misses: pd.Series) -> Figure:
    """An accuracy in large figures beside a bar for each class: the share of its images that are missed, in [0, 1], by class."""
    figure = Figure(figsize=(10, 0.9 + 0.32 * len(misses)), layout="constrained")
    number, bars = figure.subplots(1, 2, width_ratios=[2, 3])
    number.axis("off")
    number.text(0.5, 0.5, f"{accuracy:.2%}", fontsize=44, ha="center", va="center")
    number.text(0.5, 0.22, "right, over all classes", fontsize=12, ha="center", va="center")
    bars.barh(misses.index, misses, color=COLOURS[0])
    bars.axvline(1 - accuracy, color=COLOURS[1], linestyle="--", label="all classes together")
    bars.invert_yaxis()
    bars.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bars.set(xlabel="share of the class that is missed")
    bars.legend(loc="lower right")
    return figure


def reliability(table) -> Figure:
    """How often a network is right over how sure it is: a dot with its interval for each row of a table by `calibration`."""
    figure, ax = _single(6, 4.6)
    ends = [table["accuracy"] - table["from"], table["to"] - table["accuracy"]]
    ax.plot([0, 1], [0, 1], color="0.35", linestyle="--", label="as often right as it is sure")
    ax.errorbar(table["confidence"], table["accuracy"], yerr=ends, fmt="o-", color=COLOURS[0], linewidth=2, label="the network")
    ax.set(xlabel="mean confidence of the group", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left")
    return figure


def histogram(groups: dict, xlabel: str, bins=30, range=None, ylabel: str = "share of the group", reference=None) -> Figure:
    """Outlined histograms of {label: (n,)}, each scaled to its own group; reference: (label, x) as a dashed line."""
    figure, ax = _single(7, 3.5)
    for (label, values), colour in zip(groups.items(), COLOURS):
        values = np.asarray(values)[~np.isnan(values)]
        weights = np.full(len(values), 1 / max(len(values), 1))
        ax.hist(values, bins, range=range, weights=weights, histtype="stepfilled", alpha=0.25, color=colour)
        ax.hist(values, bins, range=range, weights=weights, histtype="step", linewidth=1.8, color=colour, label=label)
    if reference:
        ax.axvline(reference[1], color="0.3", linestyle="--", label=reference[0])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return figure


def intervals(panels: dict) -> Figure:
    """Means as dots with a bar from the low to the high end of their interval, a panel for each table, side by side.

    panels: {x label: table}, the tables of the same lines: their columns are mean, from and to, their index holds the lines, or
    (line, mark). Each mark has a colour and a shape of its own; the dashed line is at zero.
    """
    panels = {label: table if table.index.nlevels > 1 else pd.concat({"": table}).swaplevel() for label, table in panels.items()}
    lines = list(dict.fromkeys(line for table in panels.values() for line, _ in table.index))
    figure = Figure(figsize=(11 if len(panels) > 1 else 8.5, 1.1 + 0.5 * len(lines)), layout="constrained")
    marked = {}
    for ax, (xlabel, table) in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels.items()):
        marks = list(dict.fromkeys(mark for _, mark in table.index))
        for i, mark in enumerate(marks):
            rows = table.xs(mark, level=1)
            y = [lines.index(line) + 0.11 * (2 * i + 1 - len(marks)) for line in rows.index]
            number = list(marked).index(mark) if mark in marked else len(marked)
            ends = [rows["mean"] - rows["from"], rows["to"] - rows["mean"]]
            style = {"color": COLOURS[number], "markerfacecolor": "white" if number % 2 else None, "linewidth": 2}
            marked[mark] = ax.errorbar(rows["mean"], y, xerr=ends, fmt="osD^v"[number % 5], label=mark, **style)
        ax.axvline(0, color="0.35", linestyle="--", linewidth=1)
        ax.set(xlabel=xlabel, yticks=range(len(lines)), yticklabels=lines, ylim=(len(lines) - 0.5, -0.5))
        ax.grid(axis="x", alpha=0.3)
    if len(marked) > 1:
        figure.legend(marked.values(), marked, loc="outside upper center", ncols=len(marked))
    return figure


def contrast(found: dict, xlabel: str) -> Figure:
    """Same image against other image, and their difference: {line: table as `explanation.same_minus_other` returns it}."""
    table = pd.concat(found)
    sides, gap = table.drop("difference", level=1), table.drop(["same", "other"], level=1)
    return intervals({xlabel: sides.rename({"same": "same image", "other": "another image"}, level=1), "same minus other": gap})


def folded(table: pd.DataFrame, summary: str = "The numbers") -> HTML:
    """A table with three decimals, behind a line to click on."""
    return HTML(f"<details><summary>{summary}</summary>{table.to_html(float_format='{:.3f}'.format)}</details>")


def heatmaps(maps, titles, columns: int = 10) -> Figure:
    """Heatmaps (N, H, W) in [0, 1] without their images, row by row, each under its title."""
    columns = min(columns, len(maps))
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(max(1.3 * columns, 3), (3 if len(maps) == 1 else 1.5) * rows), layout="constrained")
    for ax in figure.subplots(rows, columns, squeeze=False).flat:
        _bare(ax)
        ax.set_frame_on(False)
    for ax, heat, title in zip(figure.axes, maps, titles):
        ax.imshow(_array(heat), cmap=HEAT, vmin=0, vmax=1)
        ax.set_title(title, fontsize=10)
    return figure


def explanations(images, titles, overlays=None, signed=None, scale: float = 1.25) -> Figure:
    """A row of images and, below each, its maps: one row for every entry.

    images: (N, 3, H, W) in [0, 1].  overlays: {label: heatmaps (N, H, W) in [0, 1]}, drawn over the images in grey.
    signed: {label: raw maps (N, h, w)}, drawn cell by cell on one scale from minus to plus the largest absolute value of all.
    """
    overlays, signed = overlays or {}, signed or {}
    rows, columns = 1 + len(overlays) + len(signed), len(images)
    figure = Figure(figsize=(scale * columns + 2.2, scale * rows + 0.4), layout="constrained")
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[1] * columns + [0.12])
    axes = np.array([[figure.add_subplot(grid[r, c]) for c in range(columns)] for r in range(rows)])
    for ax, label in zip(axes[:, 0], ["image", *overlays, *signed]):
        ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=10)
    for ax, image, title in zip(axes[0], images, titles):
        _panel(ax, title, 9.5).imshow(_pixels(image))
    for row, maps in zip(axes[1:], overlays.values()):
        for ax, image, heat in zip(row, images, maps):
            shown = _overlay(_panel(ax), image, heat)
    if overlays:
        figure.colorbar(shown, cax=figure.add_subplot(grid[1 : 1 + len(overlays), -1]), label=HEAT_LABEL)
    limit = max((_limit(cells) for maps in signed.values() for cells in maps), default=1)
    for row, maps in zip(axes[1 + len(overlays) :], signed.values()):
        for ax, cells in zip(row, maps):
            shown = _signed(_panel(ax), cells, limit)
    if signed:
        figure.colorbar(shown, cax=figure.add_subplot(grid[1 + len(overlays) :, -1]), label=SIGNED_LABEL)
    return figure


def gradcam_steps(image, channels, weights, raw, heat) -> Figure:
    """Grad-CAM as one row: the image, some channels under their weights, the weighted sum of all channels, its ReLU, enlarged.

    image: (3, H, W) in [0, 1].  channels: {name: activations (h, w)}, each drawn on a scale of its own.  weights: as many.
    raw: the weighted sum of all channels, (h, w).  heat: (H, W) in [0, 1].
    """
    figure = Figure(figsize=(1.65 * (len(channels) + 4), 2.5), layout="constrained")
    axes = figure.subplots(1, len(channels) + 4)
    _panel(axes[0], "the image").imshow(_pixels(image))
    for ax, (name, cells), weight in zip(axes[1:], channels.items(), weights):
        _signed(_panel(ax, f"{name}\n× {weight:+.3f}"), cells, _limit(cells))
    axes[1].set_ylabel("channels that\ncontribute most", fontsize=10)
    _signed(_panel(axes[-3], "+ … all channels\n= raw map"), raw, _limit(raw))
    _signed(_panel(axes[-2], "ReLU"), _array(raw).clip(0), _limit(raw))
    _overlay(_panel(axes[-1], "enlarged,\n÷ its maximum"), image, heat)
    return figure


def explanation(image, title, probabilities, classes, labels, maps: dict, strength=0.6, photo=None) -> Figure:
    """One image, its probabilities, and row by row the maps of two classes and their difference. Drawn without a layout engine,
    for speed.

    image: (3, H, W) in [0, 1].  probabilities: (num_classes,).  labels: the names of the two classes.
    maps: {row label: (raw, heatmaps)}: the raw maps of both classes and their difference, (3, h, w), drawn cell by cell on one
    scale for the row; and heatmaps (2, H, W) in [0, 1] to draw over the image in place of the first two, or None.
    strength: opacity of the heatmaps.  photo: what the image was cropped and shrunk from.
    """
    wider = 0 if photo is None else 2.4  # inches
    width, height = 12.8 + wider, 0.45 + 2.5 * len(maps)
    figure = Figure(figsize=(width, height))

    def place(left, top, width_=2.07, height_=2.07):  # inches, from the left and from the upper edge
        return figure.add_axes([(left + wider) / width, 1 - (top + height_) / height, width_ / width, height_ / height])

    middle = (height - 2.07) / 2 + 0.1
    _panel(place(0.05, middle), title).imshow(_pixels(image))
    _probability_bars(place(3.04, middle), probabilities, classes, labels)
    for row, (name, (raw, heat)) in enumerate(maps.items()):
        axes = [place(left, 0.35 + 2.5 * row) for left in (5.5, 7.6, 9.7)]
        for i, (ax, label) in enumerate(zip(axes, (*labels, f"{labels[0]} - {labels[1]}"))):
            if heat is not None and i < 2:
                _overlay(_panel(ax, label), image, heat[i], strength)
            else:
                shown = _signed(_panel(ax, label), raw[i], _limit(raw))
        axes[0].set_ylabel(name, fontsize=11)
        figure.colorbar(shown, cax=place(11.87, 0.35 + 2.5 * row, 0.1), label=SIGNED_LABEL.replace("\n", " "))
    if photo is not None:
        ax = _panel(place(0.05 - wider, middle, 2.2), "photo")
        ax.imshow(photo)
        side = min(photo.size)
        corner = [(length - side) / 2 - 0.5 for length in photo.size]
        ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linestyle="--"))
    return figure


def _probability_bars(ax, probabilities, classes, marked):
    ax.barh(range(len(classes)), probabilities, color=[COLOURS[1 if name in marked else 0] for name in classes])
    _panel(ax, "probability").set(xlim=(0, 1), xticks=[0, 0.5, 1])
    ax.set_yticks(range(len(classes)), classes, fontsize=9)
    ax.invert_yaxis()


def cells(image, values, title: str, heat=None) -> Figure:
    """One image (3, H, W), its heatmap (H, W) in [0, 1] if there is one, and its raw map (h, w) with every cell's number."""
    figure = Figure(figsize=(7.5 if heat is None else 10.5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if heat is None else 3)
    _panel(axes[0], "image").imshow(_pixels(image))
    if heat is not None:
        figure.colorbar(_overlay(_panel(axes[1], "heatmap"), image, heat), ax=axes[1], label=HEAT_LABEL)
    limit, bar = _limit(values), {"label": SIGNED_LABEL}
    sns.heatmap(
        _array(values), ax=axes[-1], annot=True, fmt=".2f", cmap=SIGNED, vmin=-limit, vmax=limit, square=True, cbar_kws=bar
    )
    _panel(axes[-1], title)
    return figure


def _panel(ax, title: str = "", size: float = 11):
    """A panel for a picture: without ticks, under its title."""
    _bare(ax)
    ax.set_title(title, fontsize=size)
    return ax


def _overlay(ax, image, heat, strength: float = 0.6):
    """A heatmap (H, W) in [0, 1] over its image in grey."""
    ax.imshow(_pixels(image).mean(-1), cmap="gray", vmin=0, vmax=1)
    return ax.imshow(_array(heat), cmap=HEAT, vmin=0, vmax=1, alpha=strength)


def _signed(ax, values, limit: float):
    """A raw map (h, w) cell by cell, white at zero."""
    return ax.imshow(_array(values), cmap=SIGNED, vmin=-limit, vmax=limit)


def _limit(values) -> float:
    """The largest absolute value, or 1 where all are zero."""
    return float(np.abs(_array(values)).max()) or 1.0


def _single(width, height):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _bare(ax):
    ax.set_xticks([])
    ax.set_yticks([])


def _array(values) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _pixels(image) -> np.ndarray:
    image = _array(image)
    return image if image.dtype == np.uint8 else np.clip(np.moveaxis(image, 0, -1), 0, 1)
