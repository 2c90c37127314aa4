"""Limits of EM, as statements with bounds: where it is k-means, and how far from the best there is.

C7–C11 and C13–C15, one step at a time; H7–H13, the same of a hidden Markov model; T → 0 of every family and program;
C16, what a step gains; C17–C21, fixed points and global optimality.
"""

from jaxem.limits._bound import ROUNDING, UNDERFLOW, Bound, tightest
from jaxem.limits._chain import (
    ChainLimit,
    ChainStep,
    chain_limit,
    chain_log_ratios,
    chain_step,
)
from jaxem.limits._chain_path import (
    chain_critical_sigma,
    chain_iterates_gap,
    chain_one_hot_sigma,
    chain_spectrum,
    chain_spectrum_bound,
)
from jaxem.limits._dirichlet import dpmeans_choice
from jaxem.limits._gain import gain_identity
from jaxem.limits._kmeans_bound import Dual, likelihood_ceiling, lower_bound
from jaxem.limits._lead import Freezing, Lead, freezing, lead
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
from jaxem.limits._temperature import (
    MeansGap,
    cooling,
    cooling_gap,
    hardening,
    leads,
    means_gap,
    one_hot_temperature,
)

__all__ = [
    "ROUNDING",
    "UNDERFLOW",
    "Bound",
    "ChainLimit",
    "ChainStep",
    "Dual",
    "Freezing",
    "Lead",
    "MeansGap",
    "Shadow",
    "Split",
    "assignment_gap",
    "before_the_split",
    "centre_gap",
    "chain_critical_sigma",
    "chain_iterates_gap",
    "chain_limit",
    "chain_log_ratios",
    "chain_one_hot_sigma",
    "chain_spectrum",
    "chain_spectrum_bound",
    "chain_step",
    "coincidence",
    "coincident_bound",
    "coincident_spectrum",
    "cooling",
    "cooling_gap",
    "critical_sigma",
    "critical_sigmas",
    "diameter",
    "dpmeans_choice",
    "freezing",
    "gain_identity",
    "gaps",
    "hard_em_is_kmeans",
    "hardening",
    "iterates_gap",
    "lead",
    "leads",
    "least_gap",
    "likelihood_ceiling",
    "lower_bound",
    "means_gap",
    "objective_bound",
    "objective_gap",
    "one_hot_sigma",
    "one_hot_temperature",
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
