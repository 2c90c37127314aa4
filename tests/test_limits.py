"""C7–C11 and C13–C15: EM's limit is k-means, with bounds; and the bounds can be broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy.spatial.distance import pdist
from scipy.special import logsumexp

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from cases import EPS, FLOAT, cast, clumps, tolerance

SIGMAS = [3.0, 1.0, 0.3, 0.1, 0.03]
M = gaussian.isotropic.hold("pi", "sigma")


def data(seed=0, N=60, D=2, K=3):
    rng = np.random.default_rng(seed)
    x = clumps(rng, N, D)
    return cast(x), cast(x[:K] + 0.1)


def distances(x, mu):
    return ((np.asarray(x, float)[:, None] - np.asarray(mu, float)[None]) ** 2).sum(-1)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_C7_the_posterior_hardens(sigma):
    x, mu = data()
    assert bool(limits.assignment_gap(x, mu, sigma).holds)
    d = distances(x, mu)
    gamma = np.exp(-d / (2 * sigma**2) - logsumexp(-d / (2 * sigma**2), axis=1, keepdims=True))
    r = np.eye(3)[d.argmin(1)]
    gap = np.diff(np.sort(d, axis=1)[:, :2])[:, 0]
    assert (np.abs(gamma - r).max(1) <= 2 * np.exp(-gap / (2 * sigma**2)) * (1 + 1e-9)).all()  # SciPy agrees


@settings(max_examples=25, deadline=None)
@given(hs.integers(0, 10**6), hs.floats(0.02, 5.0))
def test_every_bound_holds_at_random(seed, sigma):
    x, mu = data(seed, N=20)
    assert bool(limits.assignment_gap(x, mu, sigma).holds)
    assert bool(limits.objective_bound(x, mu, sigma).holds)
    assert bool(limits.scaled_expectation(x, mu, sigma).check.holds)
    assert bool(limits.centre_gap(x, mu, sigma).holds)
    assert bool(limits.temperature_is_variance(x, mu, sigma, 0.3).holds)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_C8_the_objectives_differ_by_at_most_2_sigma2_N_log_K(sigma):
    x, mu = data()
    v = float(limits.objective_gap(x, mu, sigma))
    d = distances(x, mu)
    J = d.min(1).sum()
    G = -2 * sigma**2 * (logsumexp(-d / (2 * sigma**2), axis=1) - np.log(3)).sum()
    assert v == pytest.approx((G - J) / (2 * sigma**2 * len(d)), abs=tolerance(1e-9, 1e-4))
    assert -64 * EPS <= v <= np.log(3) + 64 * EPS
    # and G is the negated log-likelihood in the units of J
    theta = {"pi": np.full(3, 1 / 3), "mu": mu, "sigma": sigma}
    L = float(jaxem.log_likelihood(gaussian.isotropic, theta, x))
    normaliser = -len(d) * np.log(2 * np.pi * sigma**2)  # D = 2
    assert -2 * sigma**2 * (L - normaliser) == pytest.approx(G, rel=tolerance(1e-9, 1e-3))


def test_C9_the_rescaled_Q_converges_and_Q_diverges():
    """Errata 2 and 3: ε·Q → −J/2, and without the ε there is no limit."""
    x, mu = data()
    measured = [limits.scaled_expectation(x, mu, sigma) for sigma in SIGMAS]
    assert all(bool(one.check.holds) for one in measured)
    assert abs(float(measured[-1].residual)) < tolerance(1e-2, 1e-1)
    assert float(measured[-1].Q) < -1e4 < float(measured[1].Q)
    J = float(jaxem.distortion(x, mu))
    sigma = SIGMAS[-1]
    C = len(x) * (-np.log(3) - np.log(2 * np.pi * sigma**2))
    half = sigma**2 * (float(measured[-1].Q) - C)
    assert half == pytest.approx(-J / 2, rel=1e-3)  # the limit is −J/2, not −J: the sources drop the ½


@pytest.mark.parametrize("sigma", SIGMAS)
def test_C10_the_m_steps_meet(sigma):
    x, mu = data()
    assert bool(limits.centre_gap(x, mu, sigma).holds)
    assert bool(limits.centre_gap(x, mu, sigma, diam=limits.diameter(x)).holds)


def test_diameter_is_the_largest_pairwise_distance():
    x, _ = data()
    assert float(limits.diameter(x)) == pytest.approx(pdist(np.asarray(x)).max(), rel=8 * EPS)


def test_C11_em_is_lloyd_below_the_sigma_of_the_least_gap():
    x, mu = data()
    delta = limits.least_gap(x, mu, num_steps=20)
    assert float(delta) > 0
    sigma = 0.999 * limits.one_hot_sigma(delta)
    bound = limits.iterates_gap(x, mu, sigma, num_steps=20)
    assert bool(bound.holds)
    assert float(bound.value) == 0  # γ is exactly one-hot, so the iterates agree to the bit
    assert not bool(limits.iterates_gap(x, mu, 1.0, num_steps=20).holds)


def test_C11_a_tie_has_no_gap():
    x = cast([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert float(limits.least_gap(x, x[jnp.array([0, 2])], num_steps=1)) == 0


@pytest.mark.parametrize("pi", [np.array([0.2, 0.3, 0.5]), np.full(3, 1 / 3)], ids=["unequal", "equal"])
@pytest.mark.parametrize("sigma", [2.0, 0.7])
def test_C13_the_spectrum_at_the_coincident_point(pi, sigma):
    x, _ = data()
    assert bool(limits.coincident_bound(x, pi, sigma).holds)
    measured, theorem = limits.coincident_spectrum(x, pi, sigma)
    eigenvalues = np.linalg.eigvalsh(np.cov(np.asarray(x, float).T, bias=True))
    expected = np.sort(np.concatenate([np.zeros(2), np.repeat(eigenvalues / sigma**2, 2)]))
    assert np.allclose(theorem, expected, atol=tolerance(1e-12, 1e-5))
    assert np.allclose(measured, expected, atol=tolerance(1e-12, 1e-4))


def test_C13_it_is_stable_above_sigma_c_and_unstable_below():
    x, _ = data()
    critical = float(limits.critical_sigma(x))
    mean = jnp.mean(x, axis=0)
    nudged = cast(np.array([[1e-3, 0], [-1e-3, 1e-3], [0, -1e-3]])) + mean[None]
    above = jaxem.em_path(M, limits.parameters(nudged, 1.05 * critical), x, num_steps=400).theta["mu"][-1]
    below = jaxem.em_path(M, limits.parameters(nudged, 0.9 * critical), x, num_steps=400).theta["mu"][-1]
    assert float(jnp.max(jnp.abs(above - mean[None]))) < 1e-4
    assert float(jnp.max(jnp.abs(below - mean[None]))) > 0.1


def test_C13_above_the_diameter_all_centres_coincide():
    x, mu = data()
    assert bool(limits.coincidence(x, mu, 1.01 * limits.diameter(x)).holds)
    assert not bool(limits.coincidence(x, mu, 0.3).holds)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_C14_temperature_is_variance_for_equal_weights_only(temperature):
    x, mu = data()
    assert bool(limits.temperature_is_variance(x, mu, 0.8, temperature).holds)
    unequal = limits.temperature_is_variance(x, mu, 0.8, temperature, pi=np.array([0.2, 0.3, 0.5]))
    assert bool(unequal.holds) == (temperature == 1.0)


def test_C14_along_whole_paths():
    x, mu = data()
    T, s = 0.3, 0.8
    cooled = jaxem.em_path(M, limits.parameters(mu, s), x, num_steps=10, temperature=T)
    narrowed = jaxem.em_path(M, limits.parameters(mu, s * np.sqrt(T)), x, num_steps=10)
    assert np.allclose(cooled.theta["mu"], narrowed.theta["mu"], atol=tolerance(1e-11, 1e-4))


@pytest.mark.parametrize("sigma", [10.0, 1.0, 0.01])
def test_C15_hard_em_is_kmeans_at_any_sigma(sigma):
    x, mu = data()
    assert bool(limits.hard_em_is_kmeans(x, mu, sigma, num_steps=12).holds)


def test_C15_fails_with_unequal_weights():
    x, mu = data()
    theta = limits.parameters(mu, 1.5) | {"pi": cast([0.98, 0.01, 0.01])}
    hard = jaxem.em_path(M, theta, x, num_steps=5, temperature=0.0).theta["mu"]
    lloyd = jaxem.em_path(M, limits.parameters(mu, 1.5), x, num_steps=5, temperature=0.0).theta["mu"]
    assert not np.allclose(hard, lloyd)


def test_erratum_6_a_tie_splits_by_the_weights():
    """γ → one-hot needs no tie; at a tie the limit is π_k / Σ_tied π."""
    x = cast([[0.0]])
    theta = {"pi": [0.2, 0.6, 0.2], "mu": [[-1.0], [1.0], [5.0]], "sigma": 0.1}
    gamma = jaxem.responsibilities(gaussian.isotropic, theta, x)
    assert np.allclose(gamma, [[0.25, 0.75, 0.0]], atol=tolerance(1e-9, 1e-4))


def test_limits_run_inside_jit_and_vmap_over_sigma():
    x, mu = data()
    sigmas = cast(SIGMAS)
    checks = jax.jit(jax.vmap(lambda sigma: limits.centre_gap(x, mu, sigma)))(sigmas)
    assert checks.value.shape == (5,)
    assert bool(jnp.all(checks.holds))
    assert checks.value.dtype == FLOAT
