"""What to do about the mistakes: four remedies, each trained as long as the recipe and compared with it seed by seed.

`python -m helpers.studies.mistakes` trains, and chooses on validation images. At the end, once, `--open-test-set` scores what was
trained on the test images and asks how much the maps have changed. `--help` lists the options.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from scipy import stats

from helpers.data import Dataset, write_file
from helpers.evaluation import Predictions, calibration_error, error_weights, logit_shift, per_class, predict
from helpers.explanation import rank_correlation, same_minus_other
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained
from helpers.studies import ablation, runs
from helpers.training import augmented, default_device, in_one_line

WIDTH, EPOCHS, SIZES = 32, 14, (24,) * 11 + (32,)  # what eight hours of two cores have room for
SEEDS, WEIGHING_SEEDS = 5, 2  # runs of each arm, and those of the recipe whose errors make the class weights
WEAK = ("bird", "cat", "deer", "dog", "frog")  # the classes of CIFAR-10 that the older write-up found weak
RECIPE = replace(ablation.RECIPE, epochs=EPOCHS, image_sizes=SIZES, harder=WEAK)  # harder: in the arms that use it
ARMS = PLAIN, HEAVY, HARD, BOTH, SHIFT = "the recipe", "class weights", "stronger augmentation", "both", "logit shift"
MEASURES = ("accuracy", "recall of the weak", "precision of the weak", "calibration error")


def train(study: runs.Study) -> pd.DataFrame:
    """Train every arm with each seed, and write and return how it scores on the validation images. Errors: as `Study.fill`.

    The recipe's first runs come first: their errors make the class weights of all others, and of the logit shift, which is tuned
    on the images that it is scored on here (on test images it is not). The networks are kept, in half precision, in the folder of
    the table's name, and that is how they are scored.  `recipe.harder` names the classes to augment more strongly.
    """
    augmented(study.train, study.recipe)  # a name that is no class is refused now, not in hours
    changes = {PLAIN: {"harder": ()}}
    study.fill({(s, PLAIN): (_train, PLAIN, s, changes[PLAIN]) for s in range(WEIGHING_SEEDS)})
    heavy = {"class_weights": class_weights(study)}
    changes |= {HEAVY: changes[PLAIN] | heavy, HARD: {}, BOTH: heavy}
    study.fill({(s, arm): (_train, arm, s, changes[arm]) for s, arm in product(range(study.seeds), changes)})
    return study.fill({(s, SHIFT): (_score, SHIFT, s, study.validation) for s in range(study.seeds)})


def open_test_set(study: runs.Study, test: Dataset) -> pd.DataFrame:
    """Score every network on the test images; write and return the table, and write another one, of `changed_maps`.

    They lie beside the validation table, `-test` and `-maps` in their names; the logits (float16) lie beside the networks.
    Raises ValueError for a study that is not finished: who has seen test results has nothing left to choose.
    """
    done, runs_of_all = study.fill({}), list(product(range(study.seeds), ARMS))
    if missing := set(runs_of_all) - set(zip(done.get("seed", ()), done.get("variant", ()))):
        raise ValueError(f"{study.path} lacks {len(missing)} of {len(runs_of_all)} runs: make them, without --open-test-set")
    print("Opening the test images: from here on there is nothing left to choose.")
    tested = study.fill({(s, arm): (_score, arm, s, test, "test") for s, arm in runs_of_all}, "-test", test=test.digest)
    maps = study.path.with_stem(study.path.stem + "-maps")
    write_file(maps, lambda file: changed_maps(study, test).to_csv(file, index=False))
    return tested


def changed_maps(study: runs.Study, test: Dataset) -> pd.DataFrame:
    """How like each other are the maps before and after, of the test images that an arm corrects, and of those that it breaks?

    Before: by the recipe's network of a seed. After: by each arm's of this seed and, as a null, by the recipe's of the next seed.
    Columns: after, seed, group, images, and the difference of `same_minus_other` for the rank correlation of the actual class's
    maps at `layer4`. Groups of fewer than two images, which have no other, are left out.
    """
    rows = []
    for seed in range(study.seeds):
        cam, was = _answers(study, PLAIN, seed, test)
        for name, arm, other in [("another seed", PLAIN, (seed + 1) % study.seeds), *((arm, arm, seed) for arm in ARMS[1:])]:
            after, now = _answers(study, arm, other, test)
            for group, chosen in {"corrected": now.correct & ~was.correct, "broken": was.correct & ~now.correct}.items():
                if chosen.sum() > 1:
                    images = test.tensor(chosen).to(default_device())
                    maps = (by.evidence(images, test.labels[chosen]) for by in (cam, after))
                    found = same_minus_other(rank_correlation(*maps, every=True)).loc["difference"]
                    rows.append({"after": name, "seed": seed, "group": group, "images": chosen.sum(), **found})
    return pd.DataFrame(rows)


def class_weights(study: runs.Study) -> tuple:
    """The class weights of a study: `error_weights` of its recipe's first runs, from their rows."""
    rows = [row for row in runs.whole_rows(study.path) if row["variant"] == PLAIN and row["seed"] < WEIGHING_SEEDS]
    return error_weights(pd.DataFrame(rows)[[f"recall {name}" for name in study.train.classes]].mean())


def kept(study: runs.Study, arm: str, seed: int, kind: str = ".pt"):
    """Where a run's network is (a logit shift's is the recipe's), or, of the kind "-test.npz", its test logits."""
    name = PLAIN if arm == SHIFT and kind == ".pt" else arm
    return study.path.with_suffix("") / f"{name.replace(' ', '-')}-{seed}{kind}"


def _network(study, arm, seed):
    return load_pretrained(str(kept(study, arm, seed)), study.train.classes).to(default_device())


def _answers(study, arm, seed, test):
    logits = np.load(kept(study, arm, seed, "-test.npz"))["logits"].astype(np.float32)
    return GradCAM(_network(study, arm, seed)), Predictions(logits, test.labels, test.classes)


def _train(study, arm, seed, changes) -> dict:
    return runs.train_once(study, seed, changes, kept(study, arm, seed)) | _score(study, arm, seed, study.validation)


def _score(study, arm, seed, images, part="validation") -> dict:
    """Scores of a kept network on labelled images, from its logits, which are kept, too."""
    model = _network(study, arm, seed)
    shift = logit_shift(predict(model, study.validation), class_weights(study)) if arm == SHIFT else 0
    logits = (predict(model, images).logits + shift).astype(np.float16)
    write_file(kept(study, arm, seed, f"-{part}.npz"), lambda file: np.savez_compressed(file, logits=logits))
    found = Predictions(logits.astype(np.float32), images.labels, images.classes)
    by_class = {f"{score} {name}": value for (name, score), value in per_class(found)[["recall", "precision"]].stack().items()}
    scores = {"accuracy": found.accuracy, "calibration error": calibration_error(found), **by_class}
    return {name: round(float(score), 4) for name, score in scores.items()}


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
    study, test = runs.prepared(args, "mistakes")
    with runs.on_cluster(args.scheduler, study, study.validation, test):
        table = open_test_set(study, test) if args.open_test_set else train(study)
    print(summarise(table, study.recipe.harder).round(4).to_string())


if __name__ == "__main__":
    from helpers.studies.mistakes import main as run  # by a name that other processes can import, as `__main__` they cannot

    run()
