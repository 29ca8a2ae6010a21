"""Experiments of hours: commands that fill a table row by row, and go on where they were stopped.

`records` holds the tables of the runs on CIFAR-10 that the notebooks draw; the docstring of each
study names its command and its records. Killed, a study goes on from the last epoch of each run.
With `--scheduler tcp://...` in place of `--jobs` a study hands its runs to a Dask cluster
(`pip install "dask[distributed]"`), whose workers need this project and the folder of `--output`.
"""

from pathlib import Path

RECORDS = Path(__file__).parent / "records"
