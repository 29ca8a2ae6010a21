"""What to do about the mistakes: five remedies, each trained as long as the recipe and compared with it seed by seed.

`python -m helpers.studies.mistakes` trains, chooses on validation images, and asks how much the maps have changed. At the end,
once, `--open-test-set` scores what was trained on the test images. `--help` lists the options.
"""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.spatial import cKDTree

from helpers.data import seed_transform, write_file
from helpers.evaluation import Predictions, calibration_error, error_weights, logit_shift, per_class, predict, temperature
from helpers.explanation import rank_correlation
from helpers.gradcam import GradCAM
from helpers.model import load_pretrained
from helpers.studies import ablation, runs
from helpers.training import augmented, default_device, in_one_line

WIDTH, EPOCHS, SIZES = 24, 12, (24,) * 9 + (32,)  # what some hours of two cores allow; 20 epochs reach two points more
SEEDS, WEIGHING_SEEDS = 5, 2  # runs of each arm, and those of the recipe whose errors make the class weights
WEAK = ("bird", "cat", "deer", "dog", "frog")  # the classes of CIFAR-10 that the older write-up found weak
RECIPE = replace(ablation.RECIPE, epochs=EPOCHS, image_sizes=SIZES, harder=WEAK)  # harder: in the arms that use it
TRAINED = PLAIN, HEAVY, HARD, BOTH, ALIKE = (
    "the recipe",
    "class weights",
    "stronger for the weak",
    "both",
    "stronger for all",
)
ARMS = *TRAINED, SHIFT = *TRAINED, "logit shift"
CONTRASTS = (HEAVY, PLAIN), (HARD, PLAIN), (BOTH, PLAIN), (ALIKE, PLAIN), (SHIFT, PLAIN), (HEAVY, SHIFT)
TAKEN = "others taken for the weak"
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
    changes |= {HEAVY: changes[PLAIN] | heavy, HARD: {}, BOTH: heavy, ALIKE: {"harder": study.train.classes}}
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
    """How far do the maps of validation images move that an arm corrects, or breaks, and those of like images that it does not?

    Before: the recipe's network of one seed. After: the arm's of another seed; and, the null, the recipe's of that seed.
    The images: those that the networks of the other seeds get right with the arm more often than with the recipe (or less often),
    by half of the seeds or more, so that chance in the networks compared does not choose the images.  A logit shift moves no map.
    Columns: before and after (seeds), arm, group, images; gain, the share right with the arm less that with the recipe, of the
    seed after; same and other of the null, mean rank correlations of the actual class's maps at `layer4`, of one image or two;
    moved, how much more like the map before is the arm's than the null's, below 0 where it is less; matched, the same for the
    five images nearest to each in the actual class's probability before and in the null, of its class and right equally often
    with arm and recipe, because an arm moves the maps of all images; planted, `moved` where the nearest of the five lends every
    second image its map after, a change that is known to be there.  Groups of fewer than two images, which have no other, are
    left out: all, without a third seed.
    """
    seeds, labels, rows = range(study.seeds), study.validation.labels, []
    found = {arm: [answers(study, arm, s, "validation") for s in seeds] for arm in TRAINED}
    right = {arm: np.array([each.correct for each in found[arm]]) for arm in TRAINED}
    maps = {arm: [torch.from_numpy(kept(study, arm, s)["maps"]).float() for s in seeds] for arm in TRAINED}
    chances = [np.log(each.probabilities[np.arange(len(labels)), labels]) for each in found[PLAIN]]
    for arm, (before, after) in product(TRAINED[1:], permutations(seeds, 2)):
        others = [s for s in seeds if s not in (before, after)]
        more = (right[arm][others].astype(int) - right[PLAIN][others]).sum(0) / max(len(others), 1)
        null = rank_correlation(maps[PLAIN][before], maps[PLAIN][after])
        moved = rank_correlation(maps[PLAIN][before], maps[arm][after]) - null
        like, same = np.stack([1e6 * labels, chances[before], chances[after]], axis=1), np.flatnonzero(more == 0)
        for group, chosen in {"corrected": more >= 0.5, "broken": more <= -0.5}.items():
            if chosen.sum() > 1 and len(same):
                matched = same[cKDTree(like[same]).query(like[chosen], np.arange(min(5, len(same))) + 1)[1]]
                lent = rank_correlation(maps[PLAIN][before][chosen], maps[arm][after][matched[:, 0]]) - null[chosen]
                every = rank_correlation(maps[PLAIN][before][chosen], maps[PLAIN][after][chosen], every=True)
                gain = right[arm][after][chosen].mean() - right[PLAIN][after][chosen].mean()
                row = {"before": before, "after": after, "arm": arm, "group": group, "images": chosen.sum(), "gain": gain}
                other = every[~np.eye(len(every), dtype=bool)]
                likeness = {"same of the null": null[chosen], "other of the null": other}
                planted = np.where(np.arange(chosen.sum()) % 2, moved[chosen], lent)
                likeness |= {"moved": moved[chosen], "matched": moved[matched], "planted": planted}
                rows.append(row | {name: np.nanmean(values) for name, values in likeness.items()})
    return pd.DataFrame(rows)


def summarise_maps(table: pd.DataFrame) -> pd.DataFrame:
    """`changed_maps` in a row for each arm and group: means over pairs of seeds, weighed by their images.

    excess: moved less matched, below 0 where the arm moves the evidence of these images further than that of like ones; from and
    to: its 95 % interval, by the jackknife over the seeds (Student's t), because pairs share networks; p: of no excess;
    corrected: by Holm's method, over all rows.  All of it holds for these images: they are not drawn again.
    """
    table, rows = table.assign(excess=table["moved"] - table["matched"]), {}
    scores = ["gain", "same of the null", "other of the null", "moved", "matched", "excess"]
    for name, pairs in table.groupby(["arm", "group"]):
        seeds = pairs["before"].unique()
        some = [pairs[(pairs[["before", "after"]] != seed).all(axis=1)] for seed in seeds]
        mean, *without = [np.average(p[scores], axis=0, weights=p["images"]) for p in (pairs, *some) if len(p)]
        free = len(without) - 1
        error = free * stats.sem(np.array(without)[:, -1])
        half, p = stats.t.ppf(0.975, free) * error, 2 * stats.t.sf(abs(mean[-1]) / error, free)
        ends = {"from": mean[-1] - half, "to": mean[-1] + half, "p": p}
        rows[name] = {"images": pairs["images"].mean(), **dict(zip(scores, mean)), **ends}
    found = pd.DataFrame(rows).T
    return found.assign(corrected=holm(found["p"]))


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
    """A run's predictions of the images of a part, "validation" or "test", at the temperature that suits its validation images.

    Label smoothing makes every network too modest, so that its raw calibration error is little but accuracy less confidence.
    """
    found, images = kept(study, arm, seed), study.validation
    held_out = Predictions(found["validation"].astype(np.float32), images.labels, images.classes)
    scale, shift, images = temperature(held_out), 0, getattr(study, part)
    if arm == SHIFT:
        shift = logit_shift(replace(held_out, logits=held_out.logits / scale), class_weights(study))
    return Predictions(found[part].astype(np.float32) / scale + shift, images.labels, images.classes)


def _train(study, arm, seed, changes) -> dict:
    network = study.place(arm, seed, ".pt")
    found = runs.train_once(study, arm, seed, changes, network)
    model = load_pretrained(str(network), study.train.classes).to(default_device())
    arrays = {part: predict(model, getattr(study, part)).logits for part in ("validation", "test")}
    images, labels = study.validation.tensor(), torch.from_numpy(study.validation.labels)
    parts = zip(images.split(100), labels.split(100))
    arrays["maps"] = torch.cat([GradCAM(model).evidence(x, y) for x, y in parts]).numpy()
    small = {name: array.astype(np.float16) for name, array in arrays.items()}
    write_file(study.place(arm, seed, ".npz"), lambda file: np.savez_compressed(file, **small))
    return found | {TAKEN: round(taken_for_weak(study, model), 4)} | _scores(study, arm, seed, "validation")


def taken_for_weak(study: runs.Study, model) -> float:
    """The share of the validation images of classes that are not in `recipe.harder` that are taken for one that is, where they
    are augmented as in training only those are: whether the network has learned the augmentation for a mark of the class. NaN
    where no other class is left.
    """
    weak = np.flatnonzero(np.isin(study.validation.classes, study.recipe.harder))
    others = study.validation.subset(~np.isin(study.validation.labels, weak))
    if len(others) == 0:
        return float("nan")
    others = augmented(others, replace(study.recipe, harder=others.classes))
    seed_transform(others, 0)
    images = np.stack([image.permute(1, 2, 0) for image, _ in others])
    return float(np.isin(predict(model, replace(others, images=images)).predicted, weak).mean())


def _scores(study, arm, seed, part) -> dict:
    found = answers(study, arm, seed, part)
    by_class = {f"{score} {name}": value for (name, score), value in per_class(found)[["recall", "precision"]].stack().items()}
    scores = {"accuracy": found.accuracy, "calibration error": calibration_error(found), **by_class}
    return {name: round(float(score), 4) for name, score in scores.items()}


def _write(study, kind, table):
    write_file(study.path.with_stem(study.path.stem + kind), lambda file: table.round(6).to_csv(file, index=False))
    return table


def summarise(table: pd.DataFrame, weak: tuple = WEAK) -> pd.DataFrame:
    """How far the first of each of CONTRASTS lies from the second, the recipe where none is named, in each of MEASURES.

    difference: the mean over seeds of the differences, each of one seed.  from and to: the ends of its 95 % interval (Student's
    t). Its error is that of two-way analysis of variance, seeds by trained arms; with the logit shift, which shares the recipe's
    networks, that of the paired differences.  p: of no difference; corrected: by Holm's method, over all comparisons, so that the
    chance of one false finding among them is 5 % at most.  finding: in words.
    """
    for score in ("recall", "precision"):
        table = table.assign(**{f"{score} of the weak": table[[f"{score} {name}" for name in weak]].mean(axis=1)})
    rows = {}
    for measure, (arm, other) in product(MEASURES, CONTRASTS):
        by_seed = table.pivot(index="seed", columns="variant", values=measure)
        difference = by_seed[arm] - by_seed[other]
        mean, error, free = difference.mean(), difference.sem(), len(difference) - 1
        if SHIFT not in (arm, other):
            noise = by_seed[list(TRAINED)].sub(by_seed[list(TRAINED)].mean(axis=1), axis=0)
            free *= len(TRAINED) - 1
            error = np.sqrt(2 * ((noise - noise.mean()) ** 2).to_numpy().sum() / free / len(difference))
        half = stats.t.ppf(0.975, free) * error
        p = 2 * stats.t.sf(abs(mean / error), free) if abs(mean) > 1e-12 else 1.0  # 0 / 0: no difference in any seed
        name = arm if other == PLAIN else f"{arm}, less {other}"
        rows[measure, name] = {"difference": mean, "from": mean - half, "to": mean + half, "p": p}
    found = pd.DataFrame(rows).T
    found["corrected"] = holm(found["p"])
    words = np.where(found["difference"] > 0, "higher", "lower")
    return found.assign(finding=np.where(found["corrected"] < 0.05, words, "no difference found"))


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
        if args.open_test_set:
            print(summarise(open_test_set(study), study.recipe.harder).round(4).to_string())
        else:
            print(train(study).groupby("variant")[["accuracy", "calibration error"]].agg(["mean", "std"]).round(4).to_string())


if __name__ == "__main__":
    from helpers.studies.mistakes import main as run  # by a name that other processes can import, as `__main__` they cannot

    run()
