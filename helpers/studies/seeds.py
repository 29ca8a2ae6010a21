"""How much a run's result depends on its seed: the recipe of the network that ships, several times.

`python -m helpers.studies.seeds --data cifar10 --jobs 5`, on a GPU: half an hour of an H200 for
one run after the other, seven minutes for all at once. An averaged copy of the weights is scored
beside the last ones. The test images are used for scores alone: nothing is chosen by them.
"""

from typing import Any

from helpers.studies import runs
from helpers.studies.cluster import on_cluster
from helpers.support.command import one_line_errors
from helpers.training import TrainConfig

WIDTH, SEEDS = 64, 5
RECIPE = TrainConfig(epochs=40, hole=12, degrees=0, alternate_flip=True, ema=0.999)
VARIANTS: dict[str, dict[str, Any]] = {  # name -> what it changes
    "the recipe": {},
    "no augmentation": {"padding": 0, "hole": 0, "flip": False},
}


@one_line_errors()
def main(argv: list[str] | None = None) -> None:
    """Train what the table lacks, and print mean and spread."""
    parser = runs.study_parser("seeds", RECIPE, ("epochs", "image_sizes"), SEEDS, WIDTH)
    parser.set_defaults(validation_size=0)
    runs.add_variants(parser, VARIANTS, ["the recipe"])
    args = parser.parse_args(argv)
    study = runs.study_from_args(args, "seeds", RECIPE)
    calls: dict[runs.Run, runs.Call] = {
        (seed, name): (runs.train_and_test, name, seed, VARIANTS[name])
        for name in args.variants
        for seed in range(study.seeds)
    }
    with on_cluster(args.scheduler, study):
        table = study.run_missing(calls)
    scores = [name for name in table if name.endswith("accuracy")]
    print(table.groupby("variant")[scores].agg(["mean", "std"]).T.round(4).to_string())


if __name__ == "__main__":
    main()
