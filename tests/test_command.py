"""Options made from a configuration, errors of one line, and the command that trains."""

import argparse
import io
import math
import os
import re
import tokenize
from dataclasses import dataclass, fields, replace
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from tools import code_cells, shapes_dataset

from helpers import shapes
from helpers.augmentation import AugmentedDataset
from helpers.data import SIZE, DatasetPair
from helpers.model import load_pretrained
from helpers.studies import RECORDS, train
from helpers.studies.train import main
from helpers.support import command
from helpers.support.command import (
    add_arguments,
    config_from_args,
    field_comments,
    make_parser,
    one_line_errors,
)
from helpers.support.weights import WEIGHTS
from helpers.training import TrainConfig, make_optimizer, make_scheduler

SMALL_DISK = "2m"  # no room for a checkpoint of the command
TINY = "--data shapes10 --width 16 --epochs 1 --image-sizes 16".split()


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    monkeypatch.setattr("helpers.data.SHAPES_TEST_SIZE", 10)  # the command looks at none


# ---- Help that is the source's own comments


@dataclass(frozen=True)
class Settings:
    """A configuration: of which words: in a docstring are no fields."""

    rate: float = 0.5  # per step
    # of no field
    sizes: tuple[int, ...] = (1, 2)  # in pixels
    shares: tuple[float, ...] = ()  # 100 % of them
    names: tuple[str, ...] = ("a",)  # in order

    is_on: bool = True  # on: or off
    count: int = 3  # of what # with a sign

    def method(self) -> None:
        """Neither is this."""
        result: int = 1
        # result: of no field
        assert result


COMMENTS = {
    "rate": "per step",
    "sizes": "in pixels",
    "shares": "100 % of them",
    "names": "in order",
    "is_on": "on: or off",
    "count": "of what # with a sign",
}


def settings_parser(names=tuple(COMMENTS), **values):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_arguments(parser, Settings(**values), names)
    return parser


def test_comments_behind_fields_are_found():
    assert field_comments(Settings) == COMMENTS


def test_options_have_the_fields_types_defaults_and_comments():
    parser = settings_parser(rate=0.25)
    assert vars(parser.parse_args([])) == vars(Settings(rate=0.25))
    given = "--rate 2 --sizes 3 4 --shares 1 2 --names b c --no-is-on --count 9".split()
    args = parser.parse_args(given)
    config = config_from_args(args, Settings())
    assert config == Settings(2.0, (3, 4), (1.0, 2.0), ("b", "c"), False, 9)
    assert [type(value) for value in (config.rate, *config.shares)] == [float] * 3
    helps = {action.dest: action.help for action in parser._actions}
    assert {name: helps[name].replace("%%", "%") for name in COMMENTS} == COMMENTS
    assert "100 % of them" in parser.format_help()


def test_fields_without_an_option_keep_the_configurations_value(capsys):
    parser = settings_parser(("rate", "is_on"))
    config = config_from_args(parser.parse_args(["--rate", "2"]), Settings(count=7))
    assert config == Settings(rate=2.0, count=7)
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(["--count", "2"])
    assert "unrecognized arguments: --count 2" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--count 1.5", "--rate high", "--sizes 1 b", "--shares x"])
def test_values_of_another_kind_are_refused(capsys, option):
    with pytest.raises(SystemExit, match="2"):
        settings_parser().parse_args(option.split())
    assert "invalid" in capsys.readouterr().err


def source_comments(config_class, project):
    """The comment behind each field, as Python's own tokenizer reads the source."""
    source = (project / f"{config_class.__module__.replace('.', '/')}.py").read_text()
    lines = source[source.index(f"class {config_class.__name__}") :].splitlines(keepends=True)
    names, found = {field.name for field in fields(config_class)}, {}
    for line in lines:
        name = line.strip().partition(":")[0]
        if name in names and name not in found:
            tokens = tokenize.generate_tokens(io.StringIO(line.strip()).readline)
            found[name] = next(t.string for t in tokens if t.type == tokenize.COMMENT)
    return {name: comment.lstrip("# ") for name, comment in found.items()}


def test_help_of_each_setting_is_the_comment_in_the_source(capsys, monkeypatch, project):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out.split("options:")[1]
    described = {}
    for option in re.split(r"\n  (?=--)", shown)[1:]:
        text = " ".join(option.split())
        described[re.match(r"--([\w-]+)", text)[1].replace("-", "_")] = text
    comments = source_comments(TrainConfig, project)
    assert len(comments) == len(fields(TrainConfig)) and all(comments.values())
    assert field_comments(TrainConfig) | comments == field_comments(TrainConfig)
    for field in fields(TrainConfig):
        default = f"(default: {field.default})"
        expected = f"{comments[field.name]} {default}"
        signature, _, text = described[field.name].partition(comments[field.name])
        assert described[field.name].endswith(expected), field.name
        words = set(re.findall(r"\w[\w-]*", signature.lower()))
        option = field.name.replace("_", "-")
        assert words <= {option, f"no-{option}", field.name}, f"more than the comment: {signature}"


def test_the_readmes_command_is_the_run_whose_record_ships(monkeypatch, project):
    readme = (project / "README.md").read_text(encoding="utf-8")
    options = re.search(r"(--data cifar10 .*) --output runs/shipped", readme)[1].split()
    started, data = [], shapes_dataset(10)
    monkeypatch.setattr(train, "load_dataset", lambda *_, **__: DatasetPair(data, data, "cifar10"))
    monkeypatch.setattr(train, "fit", lambda *given, **_: started.append(given) or 1 / 0)
    with torch.device("meta"), pytest.raises(ZeroDivisionError):  # weights without numbers
        main(options)
    ((model, images, validation, config, *_),) = started
    assert sum(weights.numel() for weights in model.parameters()) == 11_171_146
    assert images is data and validation is None
    record = pd.read_csv(WEIGHTS / "cifar10.csv")
    sizes = [config.image_size(epoch) for epoch in range(config.epochs)]
    assert list(record.image_size) == sizes
    steps = math.ceil(50_000 / config.batch_size)  # of an epoch
    (rate, _) = make_scheduler(make_optimizer(model, config), config, steps).lr_lambdas
    rates = [config.peak_lr * rate(steps * epoch) for epoch in record.epoch]
    assert list(record.learning_rate) == pytest.approx(rates)
    seeds = pd.read_csv(RECORDS / "cifar10-seeds.csv").query("variant == 'the recipe'")
    (accuracy,) = seeds.test_accuracy[seeds.seed == config.seed]
    assert f"| 40 | {100 * accuracy:.2f} %" in readme


def test_settings_are_those_that_the_glossary_states(project):
    readme = (project / "README.md").read_text(encoding="utf-8")
    share = re.search(r"In this project the share is ([\d.]+) times the learning rate", readme)[1]
    probabilities = r"a probability of ([\d.]+) for the right class and ([\d.]+) for each other one"
    right, wrong = map(float, re.search(probabilities, readme).groups())
    config = TrainConfig()
    assert config.weight_decay == float(share) and config.image_sizes == (SIZE,)
    assert config.label_smoothing == pytest.approx(1 - right + wrong)


def test_training_changes_images_as_notebook_1_does(project):
    data = shapes_dataset(10)
    pipeline = AugmentedDataset(data, TrainConfig()).pipeline
    mean_colour = tuple(data.images.mean(axis=(0, 1, 2)).round().astype(int).tolist())
    space = {"A": A, "cv2": cv2, "mean_colour": mean_colour}
    for cell in code_cells(project / "notebooks" / "01_data_augmentation.ipynb"):
        for name in ("pad", "crop", "side", "hole", "rotate", "flip"):
            for line in re.findall(rf"^{name} = .*(?:\n .*|\n\))*", cell.source, re.MULTILINE):
                exec(line, space)
    steps = [space[name] for name in ("pad", "crop", "hole", "rotate", "flip")]
    assert list(map(repr, pipeline.transforms)) == list(map(repr, steps))


def test_parser_has_the_options_that_all_commands_share(monkeypatch):
    parser = make_parser("some.command", width=7, output=Path("there"), validation_size=5)
    assert parser.prog == "python -m helpers.some.command"
    assert vars(parser.parse_args([])) == {
        "data": "auto",
        "train_size": None,
        "validation_size": 5,
        "width": 7,
        "output": Path("there"),
        "device": None,
    }
    monkeypatch.setenv("WALKTHROUGH_DEVICE", "")
    given = "--data shapes10 --train-size 1 --validation-size 2 --width 3 --output out".split()
    args = parser.parse_args([*given, "--device", "cpu"])
    assert vars(args) == {
        "data": "shapes10",
        "train_size": 1,
        "validation_size": 2,
        "width": 3,
        "output": Path("out"),
        "device": "cpu",
    }
    assert os.environ["WALKTHROUGH_DEVICE"] == "cpu"


# ---- Errors of one line


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, FloatingPointError])
def test_error_ends_a_command_with_its_first_line_and_status_2(capsys, error):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error("make room\nin the house")
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", "make room\n")


def test_ctrl_c_ends_a_command_with_its_message_and_status_1(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise KeyboardInterrupt("saved: run this again")
    assert ended.value.code == "saved: run this again"  # Python prints it, and ends with status 1


def test_ctrl_c_before_there_is_anything_to_say_is_no_empty_line():
    with pytest.raises(SystemExit, match="^stopped$"), one_line_errors():
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("rank", "world_size"), [("0", None), (None, "2"), ("2", "2"), ("-1", "2"), ("one", "2")]
)
def test_environment_that_contradicts_itself_is_refused_before_any_work(
    monkeypatch, capsys, rank, world_size
):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit, match="2"), one_line_errors():
        pytest.fail("it began")
    message = r"RANK=\S* and WORLD_SIZE=\S* .* do not go together: start with torchrun, .*"
    assert re.fullmatch(message + "\n", capsys.readouterr().err)


def test_home_in_an_option_is_where_it_always_is(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    args = make_parser("training").parse_args(["--output=~/x"])
    assert args.output == Path("/somewhere/x")


def test_error_of_the_program_itself_is_not_hidden():
    with pytest.raises(KeyError), one_line_errors():
        raise KeyError("a mistake in the code")


@pytest.mark.parametrize(
    ("world_size", "rank", "error", "waits"),
    [
        (2, 0, ValueError, False),
        (2, 1, ValueError, True),
        (2, 0, RuntimeError, True),
        (1, 0, RuntimeError, False),
    ],
)
def test_error_that_another_process_may_report_or_have_caused_waits_for_its_end(
    monkeypatch, capsys, world_size, rank, error, waits
):
    slept = []
    monkeypatch.setattr(command.time, "sleep", slept.append)
    monkeypatch.setenv("WORLD_SIZE", f"{world_size}")
    monkeypatch.setenv("RANK", f"{rank}")
    with pytest.raises(SystemExit, match="2"), one_line_errors():
        raise error("make room")
    assert bool(slept) == waits and capsys.readouterr().err == "make room\n"


# ---- The command that trains

REFUSED = {  # options -> what the line says
    "--epochs 0": "epochs must be a whole number >= 1, got 0",
    "--warmup 2": "warmup must be a number >= 0 and <= 1, got 2",
    "--batch-size 0": "batch_size must be a whole number >= 1, got 0",
    "--peak-lr nan": "peak_lr must be a number > 0 and < inf, got nan",
    "--ema 2": "ema must be a number >= 0 and < 1, got 2",
    "--device nowhere": "WALKTHROUGH_DEVICE is 'nowhere', which does not compute here",
    "--width 8": "width must be at least 16",
    "--data nowhere": "no data set 'nowhere'",
    "--data no/where": "no data set 'no/where'",
    "--validation-size 40": "cannot split 40 of 40 images",
    "--momentum -1": "momentum must be .*, got -1",
    "--seed -1": "seed must be .*, got -1",
    "--degrees nan": "degrees must be .*, got nan",
    "--padding -1": "padding must be .*, got -1",
    "--init nowhere.pt": "no weights for 'nowhere.pt'",
    "--init cifar10": "knows the classes .*airplane.* train on them",
    "--stronger-classes circle unicorn": "^no class 'unicorn' in these data: choose among arrow, c",
    "--class-weights 1 2": "class_weights must be 10 numbers, one for each class",
    "--class-weights 1 1 1 1 1 1 1 1 1 0": "class_weights must be .*, each part a number > 0 and",
    "--peak-lr 1e6": "diverged at a learning rate of .*lower peak_lr",
}


@pytest.mark.parametrize(("options", "message"), REFUSED.items(), ids=REFUSED)
def test_command_says_what_it_refuses_in_one_line_with_status_2(
    tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("WALKTHROUGH_DEVICE", "")
    start = [*TINY, *"--train-size 40 --batch-size 4 --output".split(), str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([*start, *options.split()])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "out" / "weights.pt").exists()


def test_full_disk_ends_the_command_with_one_line(small_disk, capsys, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    start = [*TINY, *"--train-size 20 --batch-size 20 --output".split(), str(small_disk / "out")]
    with pytest.raises(SystemExit, match="2"):
        main(start)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"cannot write .*checkpoint\.pt \(the disk is full\): make room, .*", line)


def test_command_on_other_data_leaves_the_result_as_it_was(tmp_path, capsys):
    start = [*TINY, *"--batch-size 20 --output".split(), str(tmp_path), "--train-size"]
    main([*start, "40"])
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match="2"):
        main([*start, "39"])  # the same number of steps
    assert "is from another run (images" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_command_trains_and_writes_weights_history_and_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WALKTHROUGH_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    options = [*TINY, "24", *"--train-size 40 --validation-size 8 --batch-size 10".split()]
    options += "--warmup 0.5 --no-flip --peak-lr 0.05 --stronger-classes ring".split()
    options += "--seed 7 --class-weights 2 1 1 1 1 1 1 1 1 1 --output out".split()
    main(options)
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"epoch 1, image_size 16, train_loss \d\.\d+, .*, seconds \S+", said[0])
    assert said[1:] == ["weights and history are in out"]
    history = pd.read_csv(tmp_path / "out" / "history.csv")
    assert list(history.epoch) == [1] and list(history.image_size) == [16]
    for part, count in (("train", 32), ("validation", 8)):  # 40 less 8 images
        hits = history[f"{part}_accuracy"][0] * count
        assert hits == pytest.approx(round(hits))
    saved = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    config = TrainConfig(epochs=1, batch_size=10, warmup=0.5, image_sizes=(16, 24), flip=False)
    config = replace(config, peak_lr=0.05, seed=7, stronger_classes=("ring",))
    config = replace(config, class_weights=(2.0, *[1.0] * 9))
    names = {field.name for field in fields(TrainConfig)}
    of_config = {name: value for name, value in saved["identity"].items() if name in names}
    assert TrainConfig(**of_config) == config
    assert saved["identity"].keys() - names == {
        *("classes", "images", "network", "parameters", "processes")
    }
    assert saved["identity"]["classes"] == shapes.CLASSES and len(saved["identity"]["images"]) == 2
    loaded = load_pretrained(tmp_path / "out" / "weights.pt", shapes.CLASSES)
    assert loaded.stem.out_channels == 16
    weight = saved["model"]["layer3.0.conv1.weight"]
    assert torch.equal(loaded.layer3[0].conv1.weight, weight.half().float())
    # The network normalises with the statistics of its 32 training images, near those of all 40.
    drawn = shapes.generate(40, shapes.TRAIN_SEED)["images"] / 255
    np.testing.assert_allclose(loaded.mean.flatten(), drawn.mean((0, 1, 2)), atol=0.02)
    np.testing.assert_allclose(loaded.std.flatten(), drawn.std((0, 1, 2)), atol=0.02)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_command_builds_its_network_from_the_seed_and_holds_out_nothing_by_default(tmp_path):
    nets = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        output = ["--seed", f"{seed}", "--output", str(tmp_path / name)]
        main([*TINY, *"--train-size 20 --batch-size 20 --peak-lr 1e-9".split(), *output])
        nets.append(load_pretrained(tmp_path / name / "weights.pt").fc.weight)
    assert torch.equal(nets[0], nets[1]) and not torch.allclose(nets[0], nets[2])
    assert pd.read_csv(tmp_path / "a" / "history.csv").validation_loss.isna().all()


def test_a_finished_run_is_not_extended_but_a_new_one_begins_with_its_weights(tmp_path, capsys):
    run = [*TINY, *"--train-size 20 --batch-size 20 --peak-lr 1e-9 --output".split()]
    main([*run, str(tmp_path / "a")])
    with pytest.raises(SystemExit, match="2"):
        main([*run, str(tmp_path / "a"), "--epochs", "2"])
    line = capsys.readouterr().err
    assert "epochs 1 there, 2 here" in line and "begin a new run from its weights (--init" in line
    weights = tmp_path / "a" / "weights.pt"
    options = ["--epochs", "2", "--init", str(weights), "--width", "64", "--seed", "5"]
    main([*run, str(tmp_path / "b"), *options])
    first, second = load_pretrained(weights), load_pretrained(tmp_path / "b" / "weights.pt")
    assert torch.equal(first.fc.weight, second.fc.weight)  # learned at a rate of almost nought
    assert not torch.equal(first.layer4[1].norm1.running_mean, second.layer4[1].norm1.running_mean)
    assert torch.equal(first.mean, second.mean)
    assert list(pd.read_csv(tmp_path / "b" / "history.csv").epoch) == [1, 2]


@pytest.mark.parametrize("compile", [False, True])
def test_command_compiles_where_it_is_asked_to(tmp_path, monkeypatch, compile):
    found = {}

    class Stop(Exception):
        pass

    def fit(*_, **options):
        found.update(options)
        raise Stop

    monkeypatch.setattr("helpers.studies.train.fit", fit)
    options = [*TINY, "--train-size", "20", "--output", str(tmp_path)]
    with pytest.raises(Stop):
        main([*options, *(["--compile"] if compile else [])])
    assert found["compile"] is compile
