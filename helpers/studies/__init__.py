"""Experiments of hours: commands that fill a table row by row, and go on where they were stopped.

`records` holds the tables of the runs on CIFAR-10 that the notebooks draw.
"""

from pathlib import Path

RECORDS = Path(__file__).parent / "records"
