"""Limits of EM, as statements with bounds: where it is k-means, C7–C11 and C13–C15."""

from jaxem.limits._bound import ROUNDING, Bound, tightest
from jaxem.limits._gain import gain_identity
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
from jaxem.limits._shadow import Shadow, shadow

__all__ = [
    "ROUNDING",
    "Bound",
    "Shadow",
    "assignment_gap",
    "centre_gap",
    "coincidence",
    "coincident_bound",
    "coincident_spectrum",
    "critical_sigma",
    "diameter",
    "gain_identity",
    "gaps",
    "hard_em_is_kmeans",
    "iterates_gap",
    "least_gap",
    "objective_bound",
    "objective_gap",
    "one_hot_sigma",
    "parameters",
    "scaled_expectation",
    "shadow",
    "temperature_is_variance",
    "tightest",
]
