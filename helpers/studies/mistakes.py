"""What to do about the mistakes: five remedies, each compared with the recipe seed by seed.

Each is trained as long as the recipe. `python -m helpers.studies.mistakes` trains, scores the
validation images, and asks how much the heatmaps have changed. At the end, once, `--open-test-set`
scores the test images. `--help` lists the options.

The 25 runs on CIFAR-10 are kept in `records/cifar10-mistakes.csv` (validation images), `-test.csv`
(test images) and `-maps.csv` (how far the maps moved); their networks are left out for their size.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from helpers import evaluation
from helpers.augmentation import AugmentedDataset
from helpers.data import Dataset
from helpers.evaluation import Predictions
from helpers.model import PreActResNet, load_pretrained
from helpers.studies import ablation, calibration, mistakes_summary, runs
from helpers.studies.cluster import on_cluster
from helpers.studies.mistakes_summary import TAKEN_FOR_WEAK, TRAINED, WEAK, Arm, Outcomes
from helpers.studies.trust import maps_of
from helpers.support.command import one_line_errors
from helpers.support.device import default_device
from helpers.support.files import one_line

WEIGHING_SEEDS = 2  # runs of the recipe whose errors make the class weights
RECIPE = replace(
    ablation.RECIPE,
    epochs=12,  # what some hours of two cores allow; 20 reach two points more
    image_sizes=(24,) * 9 + (32,),
    stronger_classes=WEAK,  # in the arms that augment the weak classes more
)


def train(study: runs.Study) -> pd.DataFrame:
    """Train every arm with each seed, and score it on the validation images.

    The recipe's first runs come first: their errors make the class weights of all others, and of
    the logit shift, which is fitted on the images that it is scored on here (on test images it is
    not). A run leaves its network in the folder of the table's name; the table of `changed_maps` is
    written beside it, `-maps` in its name.

    Args:
        study: `recipe.stronger_classes` names the weak classes.

    Returns:
        The table, one row a run. Errors: as `Study.run_missing`, and ValueError for a weak class
        that is none.
    """
    # Refuses a name that is no class now, not in hours.
    AugmentedDataset(study.train, study.recipe)
    unweighted: dict[str, Any] = {"stronger_classes": ()}
    _train_arms(study, range(WEIGHING_SEEDS), {Arm.RECIPE: unweighted})
    weighted = {"class_weights": class_weights(study)}
    changes = {
        Arm.RECIPE: unweighted,
        Arm.CLASS_WEIGHTS: unweighted | weighted,
        Arm.STRONGER_FOR_WEAK: {},
        Arm.BOTH: weighted,
        Arm.STRONGER_FOR_ALL: {"stronger_classes": study.train.classes},
    }
    _train_arms(study, range(study.seeds), changes)
    shift = Arm.LOGIT_SHIFT
    table = study.run_missing(
        {(seed, shift): (score, shift, seed, "validation") for seed in range(study.seeds)}
    )
    _write(study, "-maps", mistakes_summary.changed_maps(outcomes(study)))
    return table


def _train_arms(study: runs.Study, seeds: range, changes: dict[Arm, dict[str, Any]]) -> None:
    study.run_missing(
        {(seed, arm): (train_arm, arm, seed, changes[arm]) for seed, arm in product(seeds, changes)}
    )


def train_arm(study: runs.Study, arm: Arm, seed: int, changes: dict) -> dict[str, float]:
    """Train and score one network, and keep it.

    Args:
        study: what it has in common with the other runs.
        arm: names its files.
        seed: of the run.
        changes: {field: value}, to the recipe.

    Returns:
        The columns of `runs.train_once`, TAKEN_FOR_WEAK and the columns of `score`.
    """
    row = runs.train_once(study, arm, seed, changes, study.artifact_path(arm, seed, ".pt"))
    row[TAKEN_FOR_WEAK] = taken_for_weak(study, load_network(study, arm, seed))
    return row | score(study, arm, seed, "validation")


def load_network(study: runs.Study, arm: Arm, seed: int) -> PreActResNet:
    """The network that a run left; the logit shift's is the recipe's.

    Raises:
        ValueError: it is gone, or damaged.
    """
    trained = Arm.RECIPE if arm == Arm.LOGIT_SHIFT else arm
    path = study.artifact_path(trained, seed, ".pt")
    try:
        return load_pretrained(path, study.train.classes).to(default_device())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold this run's network ({one_line(error)}): take its row out of "
            f"{study.path.name}, and run this again"
        ) from error


def calibrated_predictions(study: runs.Study, arm: Arm, seed: int, part: str) -> Predictions:
    """A run's predictions at the temperature that fits its validation images.

    Label smoothing makes every network underconfident; a logit shift is fitted to calibrated ones.

    Args:
        study: whose networks are asked.
        arm: the logit shift's predictions are the recipe's, shifted.
        seed: of the run.
        part: "validation" or "test".
    """
    network = load_network(study, arm, seed)
    held_out = _predict(network, study.validation)
    temperature = calibration.fit_temperature(held_out)
    shift: np.ndarray | float = 0.0
    if arm == Arm.LOGIT_SHIFT:
        calibrated = replace(held_out, logits=held_out.logits / temperature)
        shift = calibration.fit_logit_shift(calibrated, class_weights(study))
    asked = held_out if part == "validation" else _predict(network, study.test)
    return replace(asked, logits=asked.logits / temperature + shift)


def _predict(network: PreActResNet, dataset: Dataset) -> Predictions:
    """Predictions in half precision: so the records were made."""
    predictions = evaluation.predict(network, dataset)
    return replace(predictions, logits=predictions.logits.astype(np.float16).astype(np.float32))


def class_weights(study: runs.Study) -> tuple[float, ...]:
    """Class weights by the errors of the recipe's first runs, from their rows of the table."""
    table = pd.DataFrame(runs.read_rows(study.path))
    table = table[(table["variant"] == Arm.RECIPE) & (table["seed"] < WEIGHING_SEEDS)]
    recalls = table[[f"recall {name}" for name in study.train.classes]]
    return calibration.weights_from_recall(recalls.mean())


def score(study: runs.Study, arm: Arm, seed: int, part: str) -> dict[str, float]:
    """Score a run on "validation" or "test" images, by the network that it left.

    Returns:
        accuracy, and recall and precision of each class.
    """
    predictions = calibrated_predictions(study, arm, seed, part)
    scores = {"accuracy": predictions.accuracy}
    for name, of_class in calibration.per_class(predictions).iterrows():
        scores[f"recall {name}"] = of_class["recall"]
        scores[f"precision {name}"] = of_class["precision"]
    return scores


def taken_for_weak(study: runs.Study, model: nn.Module) -> float:
    """Has a network learned the stronger augmentation as a mark of the weak classes?

    Returns:
        The share of the validation images of other classes that are taken for a weak one when they
        are augmented as the weak ones are in training; NaN where there is no other class.
    """
    weak = np.flatnonzero(np.isin(study.validation.classes, study.recipe.stronger_classes))
    others = study.validation.subset(~np.isin(study.validation.labels, weak))
    if len(others) == 0:
        return float("nan")
    # Of the training images: holes in their colour.
    augmented = AugmentedDataset(study.train, study.recipe)
    augmented.seed(0)
    images = [augmented.stronger_pipeline(image=image)["image"] for image in others.images]
    predictions = evaluation.predict(model, replace(others, images=np.stack(images)))
    return float(np.isin(predictions.predicted, weak).mean())


def outcomes(study: runs.Study) -> Outcomes:
    """What all trained networks say of the validation images."""
    images, labels = study.validation.tensor(), study.validation.labels
    correct: dict[Arm, np.ndarray] = {}
    maps: dict[Arm, torch.Tensor] = {}
    probabilities: dict[Arm, np.ndarray] = {}
    for arm in TRAINED:
        found = [calibrated_predictions(study, arm, s, "validation") for s in range(study.seeds)]
        networks = [load_network(study, arm, seed) for seed in range(study.seeds)]
        of_seeds = [maps_of(network, images, labels)["own map"] for network in networks]
        maps[arm] = torch.stack(of_seeds).half().float()  # so the records were made
        correct[arm] = np.stack([said.correct for said in found])
        probabilities[arm] = np.stack([said.probabilities for said in found])
    of_labels = probabilities[Arm.RECIPE][:, np.arange(len(labels)), labels]
    return Outcomes(labels, correct, np.log(of_labels), maps)


def open_test_set(study: runs.Study) -> pd.DataFrame:
    """Score every run on the test images; the table is written with `-test` in its name.

    Returns:
        One row a run: the columns of `score`, and the test images' digest.

    Raises:
        ValueError: the study is not finished. Who has seen test results has nothing left to choose.
    """
    rows = study.run_missing({}).to_dict("records")  # refuses a table of another study
    done = {(row["seed"], row["variant"]) for row in rows}
    wanted = list(product(range(study.seeds), Arm))
    missing = set(wanted) - done
    if missing:
        raise ValueError(
            f"{study.path} lacks {len(missing)} of {len(wanted)} runs: "
            "make them, without --open-test-set"
        )
    print("Opening the test images: from here on there is nothing left to choose.")
    rows = []
    for seed, arm in wanted:
        rows.append({"variant": str(arm), "seed": seed, **score(study, arm, seed, "test")})
    table = pd.DataFrame(rows).round(4).assign(data=study.test.digest)
    _write(study, "-test", table)
    return table


def _write(study: runs.Study, suffix: str, table: pd.DataFrame) -> None:
    path = study.path.with_stem(study.path.stem + suffix)
    runs.write_table(path, table.round(6))


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Train what the table lacks, or open the test set; print the summary."""
    fields = ("epochs", "image_sizes", "stronger_classes")
    parser = runs.study_parser("mistakes", RECIPE, fields, width=24, seeds=5)
    parser.add_argument(
        "--open-test-set",
        action="store_true",
        help="score a finished study on test images: once, at the end",
    )
    args = parser.parse_args(argv)
    study = runs.study_from_args(args, "mistakes", RECIPE)
    with on_cluster(args.scheduler, study):
        table = open_test_set(study) if args.open_test_set else train(study)
    runs.print_scores(table)


if __name__ == "__main__":
    main()
