"""What takes too long for a notebook: commands, each of which makes a table.

`records` holds the tables that the notebooks draw; the docstring of each study names its command
and its records. Some measure trained networks within minutes, and share `networks`. Others train
for hours, and share `runs`: killed, they go on from the last epoch of each run. With `--scheduler
tcp://...` in place of `--jobs` these hand their runs to a Dask cluster
(`pip install "dask[distributed]"`), whose workers need this project and the folder of `--output`.
"""

from pathlib import Path

RECORDS = Path(__file__).parent / "records"
