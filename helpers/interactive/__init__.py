"""Interactive elements for notebooks and pages.

explorer.py: browse predictions and their maps; game.py: guess from heatmaps. Both run in any
browser, through embed.py and the scripts. live.py: a page that has the network in it (network.js),
and a second one, of cheat.py. playground.py and photo.py are widgets, which need a notebook's
kernel. pages.py writes the notebooks as pages, picture.py the first picture of the README.
"""
