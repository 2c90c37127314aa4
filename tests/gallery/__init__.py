"""The gallery of the field: programs that people publish, each in a transcription of its own on a few rows.

`registry.ENTRIES` holds them by name; `page.py` writes them down; `tests/test_gallery.py` holds each to NumPyro's own
density at every assignment of its latents.
"""

from gallery import (
    annotation,
    bounds,
    ecology,
    formulas,
    hidden_markov,
    idioms,
    mixtures,
    sequences,
    shapes,
    structures,
    zero_inflated,
)
from gallery.registry import ENTRIES

__all__ = ["ENTRIES", "PENDING"]

THEMES = [
    mixtures,
    shapes,
    zero_inflated,
    formulas,
    bounds,
    annotation,
    ecology,
    structures,
    hidden_markov,
    sequences,
    idioms,
]

# entries that a fault still stands against, with the kind of fault; an entry is deleted when it passes
PENDING = {
    "sites_named_observed_and_unobserved": "W4: a name decides what is data",
    "labels_by_obs_mask": "W5: the missing half of an obs_mask is used",
    "sample_shape": "W6: read as one latent",
    "one_component": "C3: K = 1",
    "flat_prior": "C4: ImproperUniform",
    "multinomial_annotation": "W2: a flat Dirichlet and a count of zero",
    "dawid_skene": "W2",
    "mace_unbounded": "A5: an unbounded posterior is called converged",
    "ability_of_each_person": "R1: a continuous latent of a group of rows",
    "topics": "R1",
}
