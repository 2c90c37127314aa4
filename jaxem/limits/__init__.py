"""Limits of EM, as statements with bounds: where it is k-means, and how far from the best there is.

C7–C11 and C13–C15, one step at a time; C16, what a step gains; C17–C21, fixed points and global optimality.
"""

from jaxem.limits._bound import ROUNDING, Bound, tightest
from jaxem.limits._dirichlet import dpmeans_choice
from jaxem.limits._gain import gain_identity
from jaxem.limits._kmeans_bound import Dual, likelihood_ceiling, lower_bound
from jaxem.limits._mixture import (
    assignment_gap,
    centre_gap,
    coincidence,
    coincident_bound,
    coincident_spectrum,
    critical_sigma,
    diameter,
    gaps,
    hard_em_is_kmeans,
    iterates_gap,
    least_gap,
    objective_bound,
    objective_gap,
    one_hot_sigma,
    parameters,
    scaled_expectation,
    temperature_is_variance,
)
from jaxem.limits._rate_bound import perron_bound, rate_bound, rate_matrix
from jaxem.limits._shadow import Shadow, shadow
from jaxem.limits._split import Split, before_the_split, critical_sigmas, split

__all__ = [
    "ROUNDING",
    "Bound",
    "Dual",
    "Shadow",
    "Split",
    "assignment_gap",
    "before_the_split",
    "centre_gap",
    "coincidence",
    "coincident_bound",
    "coincident_spectrum",
    "critical_sigma",
    "critical_sigmas",
    "diameter",
    "dpmeans_choice",
    "gain_identity",
    "gaps",
    "hard_em_is_kmeans",
    "iterates_gap",
    "least_gap",
    "likelihood_ceiling",
    "lower_bound",
    "objective_bound",
    "objective_gap",
    "one_hot_sigma",
    "parameters",
    "perron_bound",
    "rate_bound",
    "rate_matrix",
    "scaled_expectation",
    "shadow",
    "split",
    "temperature_is_variance",
    "tightest",
]
