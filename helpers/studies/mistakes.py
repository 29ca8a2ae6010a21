"""What to do about the mistakes: four remedies, each trained as long as the recipe and compared with it seed by seed.

`python -m helpers.studies.mistakes` trains, chooses on validation images, and asks how much the maps have changed. At the end,
once, `--open-test-set` scores what was trained on the test images. `--help` lists the options.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy import stats

from helpers.data import write_file
from helpers.evaluation import Predictions, calibration_error, error_weights, logit_shift, per_class, predict
from helpers.explanation import rank_correlation, same_minus_other
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained
from helpers.studies import ablation, runs
from helpers.training import augmented, default_device, in_one_line

WIDTH, EPOCHS, SIZES = 24, 20, (24,) * 16 + (32,)  # of two that cost the same, the better on validation
SEEDS, WEIGHING_SEEDS = 5, 2  # runs of each arm, and those of the recipe whose errors make the class weights
WEAK = ("bird", "cat", "deer", "dog", "frog")  # the classes of CIFAR-10 that the older write-up found weak
RECIPE = replace(ablation.RECIPE, epochs=EPOCHS, image_sizes=SIZES, harder=WEAK)  # harder: in the arms that use it
ARMS = PLAIN, HEAVY, HARD, BOTH, SHIFT = "the recipe", "class weights", "stronger augmentation", "both", "logit shift"
MEASURES = ("accuracy", "recall of the weak", "precision of the weak", "calibration error")


def train(study: runs.Study) -> pd.DataFrame:
    """Train every arm with each seed, and write and return how it scores on the validation images. Errors: as `Study.fill`.

    The recipe's first runs come first: their errors make the class weights of all others, and of the logit shift, which is tuned
    on the images that it is scored on here (on test images it is not).  `recipe.harder` names the classes to augment more
    strongly.  A run leaves its network, in half precision, and what `kept` reads in the folder of the table's name; the table of
    `changed_maps` is written beside it, `-maps` in its name.
    """
    augmented(study.train, study.recipe)  # a name that is no class is refused now, not in hours
    changes = {PLAIN: {"harder": ()}}
    study.fill({(s, PLAIN): (_train, PLAIN, s, changes[PLAIN]) for s in range(WEIGHING_SEEDS)})
    heavy = {"class_weights": class_weights(study)}
    changes |= {HEAVY: changes[PLAIN] | heavy, HARD: {}, BOTH: heavy}
    study.fill({(s, arm): (_train, arm, s, changes[arm]) for s, arm in product(range(study.seeds), changes)})
    table = study.fill({(s, SHIFT): (_scores, SHIFT, s, "validation") for s in range(study.seeds)})
    _write(study, "-maps", changed_maps(study))
    return table


def open_test_set(study: runs.Study) -> pd.DataFrame:
    """Score every run on the test images, from the logits it left; write (`-test` in the name) and return the table.

    Raises ValueError for a study that is not finished: who has seen test results has nothing left to choose.
    """
    done, runs_of_all = study.fill({}), list(product(range(study.seeds), ARMS))
    if missing := set(runs_of_all) - set(zip(done.get("seed", ()), done.get("variant", ()))):
        raise ValueError(f"{study.path} lacks {len(missing)} of {len(runs_of_all)} runs: make them, without --open-test-set")
    print("Opening the test images: from here on there is nothing left to choose.")
    rows = [{"variant": arm, "seed": seed} | _scores(study, arm, seed, "test") for seed, arm in runs_of_all]
    return _write(study, "-test", pd.DataFrame(rows).assign(data=study.test.digest))


def changed_maps(study: runs.Study) -> pd.DataFrame:
    """How like each other are the maps before and after, of the validation images that an arm corrects, and that it breaks?

    Before: by the recipe's network of a seed. After: by an arm's, of this seed or of the next one. The null of the latter is the
    recipe's own of the next seed, for they share all but the arm.  Columns: before and after (seeds), arm, group, images, and the
    difference of `same_minus_other` for the rank correlation of the actual class's maps at `layer4`. Groups of fewer than two
    images, which have no other, are left out.
    """
    rows = []
    for seed, arm, step in product(range(study.seeds), ARMS, (0, 1)):
        runs_of_both = (PLAIN, seed), (arm, (seed + step) % study.seeds)
        right = [answers(study, *run, "validation").correct for run in runs_of_both]
        maps = [torch.from_numpy(kept(study, *run)["maps"]).float() for run in runs_of_both]
        for group, chosen in {"corrected": right[1] & ~right[0], "broken": right[0] & ~right[1]}.items():
            if chosen.sum() > 1:
                likeness = rank_correlation(maps[0][chosen], maps[1][chosen], every=True)
                names = {"before": seed, "after": runs_of_both[1][1], "arm": arm, "group": group, "images": chosen.sum()}
                rows.append(names | dict(same_minus_other(likeness).loc["difference"]))
    return pd.DataFrame(rows)


def class_weights(study: runs.Study) -> tuple:
    """The class weights of a study: `error_weights` of its recipe's first runs, from their rows."""
    rows = [row for row in runs.whole_rows(study.path) if row["variant"] == PLAIN and row["seed"] < WEIGHING_SEEDS]
    return error_weights(pd.DataFrame(rows)[[f"recall {name}" for name in study.train.classes]].mean())


def kept(study: runs.Study, arm: str, seed: int):
    """What a run's network says of the images, float16, so that it is needed no more: a mapping of three arrays.

    "validation" and "test": logits (N, num_classes), unshifted.  "maps": of the validation images' actual classes, at `layer4`
    (N, h, w).  The logit shift's are the recipe's: it has no network of its own.
    """
    return np.load(study.place(PLAIN if arm == SHIFT else arm, seed, ".npz"))


def answers(study: runs.Study, arm: str, seed: int, part: str) -> Predictions:
    """A run's predictions of the images of a part, "validation" or "test"."""
    images, shift = getattr(study, part), 0
    if arm == SHIFT:
        shift = logit_shift(answers(study, PLAIN, seed, "validation"), class_weights(study))
    return Predictions(kept(study, arm, seed)[part].astype(np.float32) + shift, images.labels, images.classes)


def _train(study, arm, seed, changes) -> dict:
    network = study.place(arm, seed, ".pt")
    found = runs.train_once(study, arm, seed, changes, network)
    model = load_pretrained(str(network), study.train.classes).to(default_device())
    arrays = {part: predict(model, getattr(study, part)).logits for part in ("validation", "test")}
    images, labels = study.validation.tensor(), torch.from_numpy(study.validation.labels)
    parts = zip(images.split(100), labels.split(100))
    arrays["maps"] = torch.cat([GradCAM(model).evidence(x.to(default_device()), y).cpu() for x, y in parts]).numpy()
    small = {name: array.astype(np.float16) for name, array in arrays.items()}
    write_file(study.place(arm, seed, ".npz"), lambda file: np.savez_compressed(file, **small))
    return found | _scores(study, arm, seed, "validation")


def _scores(study, arm, seed, part) -> dict:
    found = answers(study, arm, seed, part)
    by_class = {f"{score} {name}": value for (name, score), value in per_class(found)[["recall", "precision"]].stack().items()}
    scores = {"accuracy": found.accuracy, "calibration error": calibration_error(found), **by_class}
    return {name: round(float(score), 4) for name, score in scores.items()}


def _write(study, kind, table):
    write_file(study.path.with_stem(study.path.stem + kind), lambda file: table.round(6).to_csv(file, index=False))
    return table


def summarise(table: pd.DataFrame, weak: tuple = WEAK) -> pd.DataFrame:
    """How far each arm lies from the recipe in each of MEASURES: see `runs.paired`, less the recipe's own rows.

    from and to are the ends of the 95 % interval of one comparison.  p: of a paired t test; corrected: by Holm's method, over all
    comparisons of the table, so that the chance of one false finding among them is 5 % at most.  finding: in words.
    """
    for score in ("recall", "precision"):
        table = table.assign(**{f"{score} of the weak": table[[f"{score} {name}" for name in weak]].mean(axis=1)})
    found = pd.concat({measure: runs.paired(table, measure, ARMS).drop(PLAIN) for measure in MEASURES})
    t = (found["difference"] / found["standard error"]).fillna(0)  # 0 / 0: no difference in any seed
    p = pd.Series(2 * stats.t.sf(t.abs(), found["seeds"] - 1), found.index)
    words = np.where(holm(p) < 0.05, np.where(t > 0, "higher", "lower"), "no difference found")
    return found.assign(p=p, corrected=holm(p), finding=words)


def holm(p: pd.Series) -> pd.Series:
    """p-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    ordered = p.sort_values()
    return (ordered * np.arange(len(p), 0, -1)).cummax().clip(upper=1).reindex(p.index)


@in_one_line()
def main(argv=None) -> None:
    parser = runs.options("mistakes", RECIPE, SEEDS, ("harder",), width=WIDTH)
    parser.add_argument("--open-test-set", action="store_true", help="score a finished study on test images: once, at the end")
    args = parser.parse_args(argv)
    study = runs.prepared(args, "mistakes")
    with runs.on_cluster(args.scheduler, study):
        table = open_test_set(study) if args.open_test_set else train(study)
    print(summarise(table, study.recipe.harder).round(4).to_string())


if __name__ == "__main__":
    from helpers.studies.mistakes import main as run  # by a name that other processes can import, as `__main__` they cannot

    run()
