"""The plumbing: files, downloads, image files, checkpoints, signals, processes, command lines.

Nothing here knows of data sets, networks or heatmaps: arrays, paths, dictionaries and plain
functions go in and come out. So `support` imports nothing of the spine (`helpers/*.py`).
"""
