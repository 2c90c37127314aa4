"""Where EM's fixed point lies near k-means', certified and true, and what else is proved of it: C17–C21."""

from _sigma_shadow import draw as draw

RESULTS = "sigma_sweep"
CONFIG = {"data": "old_faithful", "components": 2, "restarts": 8, "precision": 64}
DATA = ("experiments/data/old_faithful.csv",)
