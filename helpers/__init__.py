"""What the notebooks import, in the order in which one batch of images travels through it.

data, shapes    images and labels as arrays; generated images with masks
config          the settings of a training run, each with its unit and its range
augmentation    changes images at random, with Albumentations
model           the network, and a copy of it with a finer grid
training        optimiser, learning rate, loss, the loop (`fit`)
evaluation      predict once; accuracy, loss and confidence from the arrays
gradcam         Grad-CAM: heatmaps and signed evidence
methods         five other methods, called as Grad-CAM is
similarity      compares one heatmap with another; deals maps out to other images
plots           every figure, and its colours
diagrams        drawings of how something works

support         plumbing: files, downloads, checkpoints, processes, intervals, cropped photographs
interactive     explorer, game, photograph, live page, pages of the notebooks
studies         commands that run for minutes or hours, and the tables that they made
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its update check stalls without a network
