"""F: the bound it obeys, the KL gap it leaves, and its exactness at the corners."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy.special import logsumexp, rel_entr

import jaxem
from jaxem._core.objective import assign, log

from cases import CASES, EPS, FLOAT, cast, tolerance

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def random_gamma(rng, N, K):
    return cast(rng.dirichlet(np.ones(K), size=N))


@each_case
def test_log_likelihood_is_the_sum_over_every_assignment(case):
    """p(x) = Σ over all K^N assignments of p(x, z): brute force against the sum of log-sum-exps."""
    K, N = 3, 5
    theta, x = case.theta(K=K), case.x(N=N)
    table = case.log_joint(theta, x)
    totals = [
        sum(table[n, z] for n, z in enumerate(assignment)) for assignment in itertools.product(range(K), repeat=N)
    ]
    expected = logsumexp(totals)
    measured = float(jaxem.log_likelihood(case.m, theta, x))
    assert measured == pytest.approx(expected, rel=tolerance(1e-13, 2e-6))  # a few eps of Σ|F_n|


@each_case
@pytest.mark.parametrize("T", [0.3, 1.0, 2.5])
def test_free_energy_falls_short_of_its_bound_by_the_kl(case, T):
    """C1: T Σ log Σ e^{ℓ/T} − F_T(θ, γ) = T Σ_n KL(γ_n ‖ softmax(ℓ/T)) for any γ; SciPy's KL."""
    theta, x = case.theta(), case.x()
    table = case.log_joint(theta, x)
    gamma = random_gamma(np.random.default_rng(0), *table.shape)
    bound = T * logsumexp(table / T, axis=1).sum()
    posterior = np.exp(table / T - logsumexp(table / T, axis=1, keepdims=True))
    kl = T * rel_entr(np.asarray(gamma, float), posterior).sum()
    measured = float(jaxem.free_energy(jaxem.log_joint(case.m, theta, x), gamma, T))
    assert measured == pytest.approx(bound - kl, rel=tolerance(1e-12, 1e-5))


@each_case
def test_free_energy_at_the_posterior_is_the_log_likelihood(case):
    theta, x = case.theta(), case.x()
    gamma = jaxem.responsibilities(case.m, theta, x)
    F = jaxem.free_energy(jaxem.log_joint(case.m, theta, x), gamma)
    assert float(F) == pytest.approx(float(jaxem.log_likelihood(case.m, theta, x)), rel=8 * EPS)


def test_free_energy_is_exact_at_the_corners():
    """0·log 0 = 0 and 0·(−∞) = 0, and a positive γ on an impossible component costs everything."""
    table = jnp.array([[0.0, -jnp.inf], [-1.0, -2.0]], FLOAT)
    corner = jnp.array([[1.0, 0.0], [0.0, 1.0]], FLOAT)
    for T in (0.0, 1.0, 3.0):
        assert float(jaxem.free_energy(table, corner, T)) == -2.0
    assert float(jaxem.free_energy(table, jnp.full((2, 2), 0.5, FLOAT))) == -np.inf


def test_the_gradient_at_a_corner_is_finite_where_the_log_joint_is():
    """At T = 0 ∂F/∂γ = ℓ, also at γ = 0."""
    table = jnp.array([[-1.0, -2.0]], FLOAT)
    gradient = jax.grad(lambda gamma: jaxem.free_energy(table, gamma, 0.0))(jnp.array([[1.0, 0.0]], FLOAT))
    assert gradient.tolist() == [[-1.0, -2.0]]


def test_assignment_at_zero_temperature_is_one_hot_with_the_lowest_index_at_ties():
    table = jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-jnp.inf, -5.0, -jnp.inf]], FLOAT)
    gamma, rows = assign(table, 0.0, axis=-1)
    assert gamma.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    assert rows.tolist() == [3.0, 2.0, -5.0]


def test_an_impossible_row_is_uniform_and_worth_minus_infinity():
    gamma, rows = assign(jnp.full((1, 4), -jnp.inf, FLOAT), 1.0, axis=-1)
    assert gamma.tolist() == [[0.25] * 4]
    assert rows.tolist() == [-np.inf]


def test_temperature_is_data_and_does_not_retrace():
    traces = []

    @jax.jit
    def f(T):
        traces.append(T)
        return assign(jnp.array([[-1.0, -2.0]], FLOAT), T, axis=-1)[0]

    outcomes = [f(T)[0, 0] for T in (0.0, 0.1, 1.0, 10.0)]
    assert len(traces) == 1
    assert outcomes[0] == 1
    assert outcomes == sorted(outcomes, reverse=True)


def test_vmap_over_temperature_mixes_soft_and_hard():
    """Under vmap the branches of `cond` become a select: T = 0 must stay exact beside T = 1."""
    table = jnp.array([[-1.0, -2.0]], FLOAT)
    temperatures = jnp.array([0.0, 1.0, 0.0], FLOAT)
    batched = jax.vmap(lambda T: assign(table, T, axis=-1)[0])(temperatures)
    assert (batched == jnp.stack([assign(table, T, axis=-1)[0] for T in temperatures])).all()


@settings(max_examples=50, deadline=None)
@given(
    hs.lists(hs.lists(hs.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=4),
    hs.floats(1e-3, 1e3),
)
def test_no_assignment_beats_the_e_step(table, T):
    """C1 as an inequality: γ = softmax(ℓ/T) against random γ, the corners and the uniform."""
    table = cast(np.array(table))
    gamma, rows = assign(table, T, axis=-1)
    assert np.allclose(gamma.sum(axis=-1), 1, atol=8 * EPS)
    best = float(rows.sum())
    allowance = 64 * EPS * (1 + float(np.abs(table).max()) * table.shape[0] + 2 * T * table.shape[0])
    assert float(jaxem.free_energy(table, gamma, T)) == pytest.approx(best, abs=allowance)
    N, K = table.shape
    rivals = [random_gamma(np.random.default_rng(0), N, K), jnp.full((N, K), 1 / K, FLOAT)]
    rivals += [jnp.tile(row, (N, 1)) for row in jnp.eye(K, dtype=FLOAT)]
    for rival in rivals:
        assert float(jaxem.free_energy(table, rival, T)) <= best + allowance


def test_the_sources_free_energy_is_rejected_and_ours_accepted():
    """Erratum 1: −Σγd − σ²Σγ log γ is maximal at softmax(−d/σ²), the posterior at *half* the variance.

    The μ-update is the same for both, so only the check on γ (C4) can tell them apart.
    """
    case = CASES[0]
    x = case.x()
    theta = case.theta() | {"pi": jnp.full(3, 1 / 3, FLOAT), "sigma": jnp.asarray(1.5, FLOAT)}
    ell = jaxem.log_joint(case.m, theta, x)
    d = ((x[:, None] - theta["mu"][None]) ** 2).sum(-1)
    ours, theirs = jax.nn.softmax(-d / (2 * theta["sigma"] ** 2)), jax.nn.softmax(-d / theta["sigma"] ** 2)
    each_row = jax.vmap(lambda table, gamma: jaxem.e_step_residual(table[None], gamma[None])[0])
    accepted, rejected = np.asarray(each_row(ell, ours)), np.asarray(each_row(ell, theirs))
    assert int(jaxem.e_step_residual(ell, ours)[1]) == len(x)
    assert accepted.max() < 64 * EPS
    two = np.sort(np.asarray(theirs), axis=1)[:, -2] > 1e-3
    tie = np.ptp(np.asarray(d), axis=1) < 1e-2  # equal distances: every variance gives the same γ
    assert two.sum() > 10
    assert (rejected > 1e-4)[two & ~tie].all()


def test_one_hot_rows_are_counted_not_passed():
    table = jnp.array([[0.0, -1e6], [-1.0, -1.1]], FLOAT)
    residual, rows = jaxem.e_step_residual(table, assign(table, 1.0, axis=-1)[0])
    assert int(rows) == 1
    residual, rows = jaxem.e_step_residual(table[:1], assign(table[:1], 1.0, axis=-1)[0])
    assert int(rows) == 0
    assert np.isnan(residual)


def test_a_row_with_a_nan_has_no_responsibilities():
    """Nor a value; the rows beside it do not notice."""
    gamma, rows = assign(jnp.array([[jnp.nan, 0.0], [0.0, 0.0], [-jnp.inf, -jnp.inf]]), 1.0, axis=1)
    assert np.isnan(gamma[0]).all()
    assert np.isnan(rows[0])
    assert np.array_equal(gamma[1:], np.full((2, 2), 0.5))
    assert np.allclose(rows[1:], [np.log(2), -np.inf])


def test_the_logarithm_of_a_total_is_the_logarithm():
    """z from 1, where log z is as small as z − 1, to beyond any K; and its derivatives, those of log to all digits."""
    z = cast(np.concatenate([1 + np.logspace(-16, 0, 2_001), np.logspace(0, 9, 20_001)]))
    assert np.all(np.abs(log(z) - np.log(z)) <= 2 * EPS * (1 + np.log(z)))
    assert log(cast(1.0)) == 0
    assert np.isnan(log(cast(np.nan)))
    for derivative, exact in ((jax.grad(log), 1 / z), (jax.grad(jax.grad(log)), -1 / z**2)):
        assert np.allclose(jax.vmap(derivative)(z), exact, rtol=4 * EPS, atol=0)
