"""EM for σ²I Gaussians becomes k-means as σ falls: the eight panels that `experiments/sigma_sweep.py` also draws."""

from _sigma_figure import draw as draw

RESULTS = "sigma_sweep"
CONFIG = {"data": "old_faithful", "components": 2, "restarts": 8, "precision": 64}
DATA = ("experiments/data/old_faithful.csv",)
