"""The experiments on NumPyro programs run end to end, and what they check with is itself checked."""

import itertools

import _hidden_markov as hmm
import _svi_programs
import bayesian_view
import em_vs_svi
import hmm_sigma_sweep
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

CLAIMS = {
    "em_vs_svi": {"start", "ELBO", "funsor", "C2", "top", "same"},
    "hmm_sigma_sweep": {
        *("C2", "H7", "H8", "H9", "H10", "HV", "H11", "H13", "even"),
        *("path", "F_T", "M", "γ_T", "slope", "hard", "cold", "end"),
    },
    "bayesian_view": {"F", "MAP", "max", "r_hat", "n_eff", "NUTS", "labels", "mode", "mean", "SE"},
}
MODULES = (em_vs_svi, hmm_sigma_sweep, bayesian_view)


@pytest.mark.takes_turns("experiment")
@pytest.mark.parametrize("experiment", CLAIMS)
def test_the_claims_and_what_was_measured(experiment, measured):
    SHOWS[experiment](*measured(experiment, CLAIMS[experiment]))


def shows_em_vs_svi(summary, arrays):
    for name, case in summary["cases"].items():
        chosen = [row["method"] for row in case["rows"] if row["chosen"]]
        assert [method.split(",")[0] for method in chosen] == ["EM", "SVI", "L-BFGS"]
        for method in chosen:
            row = next(row for row in case["rows"] if row["method"] == method)
            steps, seconds = np.array(row["timed_steps"]), np.array(row["timed_seconds"])
            assert (np.diff(steps) > 0).all()
            assert seconds[0] > 0
            assert (np.diff(seconds) >= 0).all()  # time does not run backwards
            passes = arrays[f"{name} | {method} | passes"]
            assert passes[0] == 1  # L at the start
            assert (np.diff(passes) >= 1).all()
            assert method.startswith("L-BFGS") or (passes == 1 + np.arange(len(passes))).all()


def shows_hmm_sigma_sweep(summary, arrays):
    first, last = summary["rows"][0], summary["rows"][-1]
    assert first["distinct"] == 1  # hot: all means at x̄
    assert last["distinct"] == hmm.NUM_STATES
    assert last["apart"] == last["undecided"] == 0  # cold: A decides nothing
    assert summary["apart"] > 0  # at σ = 1 it does
    assert summary["temperature_rows"][0]["gap"] > 0.1 > 1e-12 > summary["temperature_rows"][-1]["gap"]


def shows_bayesian_view(summary, arrays):
    assert arrays["samples"].shape[-1] == len(summary["rows"]) == 9
    assert summary["status"] == "CONVERGED"


SHOWS = {
    "em_vs_svi": shows_em_vs_svi,
    "hmm_sigma_sweep": shows_hmm_sigma_sweep,
    "bayesian_view": shows_bayesian_view,
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--components", "3")], ids=" ".join)
def test_bad_arguments_end_in_one_line_and_code_2(module, arguments, refuses):
    refuses(module, arguments)


# ---- the checks' own tools


def every_path(num_times):
    return np.array(list(itertools.product(range(hmm.NUM_STATES), repeat=num_times)))


def log_prior(A, path):
    return np.log(A[-1][path[0]]) + np.log(A[path[:-1], path[1:]]).sum()


@pytest.mark.parametrize("seed", range(5))
def test_two_best_paths_against_every_path(seed):
    x, _ = hmm.draw_chain(seed, 6)
    theta = hmm.parameters(hmm.MEANS[:, None], 1.3)
    paths = every_path(6)
    A, d = hmm.transitions(), hmm.squared(x, hmm.MEANS[:, None])
    energy = d[np.arange(6), paths].sum(axis=1) / (2 * 1.3**2) + 3 * np.log(2 * np.pi * 1.3**2)
    log_density = np.array([log_prior(A, path) for path in paths]) - energy
    order = np.argsort(-log_density)
    best = hmm.best_path(x, theta)
    np.testing.assert_array_equal(best.assignment["z"], paths[order[0]])
    assert float(best.value) == pytest.approx(log_density[order[0]], abs=1e-12)
    assert float(best.lead) == pytest.approx(log_density[order[0]] - log_density[order[1]], abs=1e-12)


def test_the_ratio_of_priors_is_the_largest_over_all_neighbours():
    A = np.random.default_rng(0).dirichlet(np.ones(3), 4)
    nearest = np.array([2, 0, 1, 1])
    ratio = jaxem.limits.chain_log_ratios(A[:-1], A[-1], nearest)
    for t, k in itertools.product(range(4), range(3)):
        gains = []
        for path in every_path(4):
            at_k, at_l = path.copy(), path.copy()
            at_k[t], at_l[t] = k, nearest[t]
            gains.append(log_prior(A, at_k) - log_prior(A, at_l))
        assert float(ratio[t, k]) == pytest.approx(max(gains), abs=1e-12)


def test_without_the_ratio_the_bounds_fail():
    """H7 and HV are of the chain, not of the mixture: R = 1, which a uniform A has, is not enough."""
    x, _ = hmm.draw_chain(0, 60)
    theta = hmm.parameters(hmm.MEANS[:, None], 0.5)
    found, _ = hmm_sigma_sweep.sigma_checks(x, theta)
    assert all(bool(getattr(found, field).holds) for field in hmm_sigma_sweep.FIELDS.values())
    found, _ = hmm_sigma_sweep.sigma_checks(x, theta, np.full_like(hmm.transitions(), 1 / hmm.NUM_STATES))
    assert not bool(found.assignment.holds)
    assert not bool(found.path.holds)


@jax.numpy_rank_promotion("allow")  # NumPyro's distributions broadcast freely
def test_the_likelihood_along_a_scan_is_that_of_numpyros_enumeration():
    x = _svi_programs.chain_sample(jax.random.key(0), 8)
    theta = {"A": jnp.asarray(hmm.transitions()), "mu": jnp.arange(3.0), "sigma": jnp.ones(3)}
    program = _svi_programs.hidden_markov(theta)
    wanted = float(jaxem.log_likelihood(jaxem.from_numpyro(program), theta, x))
    assert float(_svi_programs.numpyro_log_likelihood(program, theta, x)) == pytest.approx(wanted, rel=1e-12)
    loss = _svi_programs.Enumerated().loss(jax.random.key(0), theta, program, lambda x: None, x)
    assert float(loss) == pytest.approx(-wanted, rel=1e-12)
    problem = _svi_programs.Problem(program, x, theta, has_scan=True)
    assert np.isfinite(_svi_programs.trace_enum_error(problem, wanted))


def test_labels_do_not_count_in_the_distance_of_two_optima():
    rng = np.random.default_rng(0)
    A = rng.dirichlet(np.ones(3), 4)
    theta = {"A": A, "mu": np.array([0.3, -1.0, 2.0]), "sigma": np.array([1.0, 2.0, 3.0])}
    order = [2, 0, 1]
    other = {"A": A[[*order, 3]][:, order], "mu": theta["mu"][order], "sigma": theta["sigma"][order]}
    assert em_vs_svi.distance(theta, other) == 0
    assert em_vs_svi.distance(theta, other | {"sigma": other["sigma"] + 0.1}) == pytest.approx(0.1)
