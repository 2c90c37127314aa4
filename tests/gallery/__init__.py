"""The gallery of the field: programs that people publish, each in a transcription of its own on a few rows.

`registry.ENTRIES` holds them by name; `page.py` writes them down; `tests/test_gallery.py` holds each to NumPyro's own
density at every assignment of its latents.
"""

from gallery import (
    annotation,
    bounds,
    ecology,
    formulas,
    handled,
    hidden_markov,
    idioms,
    mixtures,
    music,
    refused,
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
    music,
    hidden_markov,
    sequences,
    idioms,
    handled,
    refused,
]

# Entries that a fault still stands against, by the fault. An entry is deleted from here when it passes; then the page
# is to be written anew.
FAULTS = {
    "W1 a prior that depends on a latent": "spike_and_slab_normal spike_and_slab_laplace prior_scale_by_a_latent",
    "W2 0·log 0 in a prior": "multinomial_annotation dawid_skene features_with_vindex exponential_prior_and_zeros "
    "regimes_of_counts",
    "W3 a gradient that is NaN": "rate_times_latent",
    "W4 a name decides what is data": "sites_named_observed_and_unobserved",
    "W5 the missing half of obs_mask": "labels_by_obs_mask continuous_imputation autoregression_over_gaps",
    "W6 sample_shape": "sample_shape",
    "W7 a component's mask": "masked_component",
    "W8 a prior switched off": "music_1_without_prior music_2_without_prior",
    "W9 covariances in a scan": "hmm_covariance_matrix hmm_precision_matrix",
    "W10 constraints": "ordered_means positive_means means_in_an_interval means_that_sum_to_zero floored_scales "
    "capped_probabilities capped_rates positive_slopes",
    "W11 Beta below one": "beta_below_one beta_below_one_at_its_edge beta_below_one_of_no_rows",
    "C1 indexed by plate, latent or time": "data_by_plate_index table_by_latent argument_updated_in_place time_indexed "
    "weights_by_row length_alone partly_masked_prior",
    "C2 batch shapes without a plate": "expanded_latent_used_in_a_plate reparameterised_components expanded_priors",
    "C3 one component": "one_component",
    "C4 improper priors, reparameterisation": "flat_prior circular_reparameterisation",
    "C5 Delta": "point_and_poisson",
    "C7 arguments, infer, samplers": "namespace settings_of_a_dataclass shared_infer density_without_sampler "
    "obs_forgotten",
    "C8 raw errors": "latent_used_outside_of_its_plate scan_without_init carry_that_collects_states",
    "R1 a latent of a group of rows": "item_difficulty random_effects_of_items topics ability_of_each_person "
    "n_mixture_of_species",
    "R2 cond": "branches",
    "R3 constant bounds": "bounds_of_jax bounds_computed",
    "scales: two in one sum": "two_scales_in_one_sum",
    "R5 mixtures without a plate": "without_a_plate expanded_priors_without_a_plate one_latent_for_all_rows "
    "zero_inflated_poisson zero_inflated_negative_binomial mixtures_as_emissions",
    "A1 formulas": "scales_by_where rates_by_where rates_stacked rates_times_exposure probability_times_latent "
    "probability_of_failure both_probabilities probability_by_logit scale_by_logarithm rate_by_logarithm "
    "precision_with_gamma variance_with_inverse_gamma mean_with_uniform_prior probability_with_uniform_prior "
    "rate_with_exponential_prior vector_with_normal_prior vector_with_vector_prior masked_within_an_event "
    "vector_regression_in_a_chain semi_markov",
    "A5 no maximum": "mace_unbounded jeffreys scale_of_random_effects",
    "masks: what is masked counts nothing": "music_masked_states unlike_components_and_a_mask",
    "factor in a scan": "factor_in_a_scan",
}
PENDING = {name: fault for fault, names in FAULTS.items() for name in names.split()}
