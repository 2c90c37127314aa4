"""Mixtures of multivariate t: SciPy's optimum for one component, a stationary point for two, in few steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as st

import jaxem
from jaxem import Status
from jaxem.families import gaussian, student_t
from jaxem.families._gamma_function import concentration_of, log_less_digamma

from cases import CASES, EPS, cast, tolerance

M = student_t.mixture
CASE = next(case for case in CASES if case.name == "student_t")


def draws(N=60):
    """Two groups of rows with heavy tails."""
    rng = np.random.default_rng(3)
    heavy = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], N) / np.sqrt(rng.chisquare(2, N) / 2)[:, None]
    return heavy + 9 * (np.arange(N) % 2)[:, None]


X = cast(draws())


@pytest.fixture(scope="module")
def fitted():
    """Of one start, to the last digits."""
    start = jaxem.inits.kmeans_plus_plus(M, jax.random.key(0), X, 2)
    return jaxem.check(jaxem.em(M, start, X, tol=tolerance(1e-12, 1e-8)))


def test_one_component_is_scipys_optimum():
    x = draws(80)[::2]

    def loss(u):
        L = np.array([[np.exp(u[2]), 0], [u[3], np.exp(u[4])]])
        return -st.multivariate_t.logpdf(x, u[:2], L @ L.T, df=np.exp(u[5])).sum()

    found = so.minimize(loss, np.r_[x.mean(0), 0.5, 0.5, 0.5, 1.0], options={"gtol": 1e-9})
    theta = {"pi": [1.0], "mu": x.mean(0, keepdims=True), "Sigma": np.cov(x.T)[None], "df": [10.0]}
    fit = jaxem.check(jaxem.em(M, cast({k: np.asarray(v) for k, v in theta.items()}), cast(x)))
    assert float(fit.free_energy) == pytest.approx(-found.fun, rel=tolerance(1e-9, 1e-5))
    assert np.allclose(fit.theta["mu"][0], found.x[:2], atol=tolerance(1e-3, 1e-2))


def test_a_fit_ends_where_the_likelihood_is_stationary(fitted):
    """By `jax.grad` of the density's formula in other terms than the kernel's."""

    def L(theta):
        df, z = theta["df"], X[:, None] - theta["mu"][None]
        delta = jnp.einsum("nkd,kde,nke->nk", z, jnp.linalg.inv(theta["Sigma"]), z)
        log_p = jax.scipy.special.gammaln((df + 2) / 2) - jax.scipy.special.gammaln(df / 2) - jnp.log(jnp.pi * df)
        log_p = (log_p - jnp.linalg.slogdet(theta["Sigma"])[1] / 2)[None] - ((df + 2) / 2)[None] * jnp.log1p(delta / df)
        return jnp.sum(jax.nn.logsumexp(jnp.log(theta["pi"])[None] + log_p, axis=1))

    with jax.numpy_rank_promotion("allow"):
        gradient = jax.grad(L)(fitted.theta)
    assert float(jnp.abs(gradient["mu"]).max()) < tolerance(1e-4, 0.1)
    assert float(jnp.abs(gradient["Sigma"]).max()) < tolerance(1e-3, 0.3)
    assert float(jnp.abs(gradient["df"] * fitted.theta["df"]).max()) < tolerance(1e-4, 0.1)
    assert jaxem.num_parameters(M, fitted.theta) == 1 + 4 + 6 + 2


def plain_em(theta, x, tol, most=5000):
    """EM with the latents (z, u) and nothing else, df by E[log u] (Peel & McLachlan 2000): its number of steps."""

    @jax.jit
    def step(theta):
        gamma = jaxem.responsibilities(M, theta, x).T
        sums = M.statistics(theta, x, gamma)
        delta, _ = student_t.squares(theta, x)
        A, B = (theta["df"] + 2)[:, None] / 2, (theta["df"][:, None] + delta) / 2
        excess = jnp.sum(gamma * (A / B - 1 - jnp.log(A / B) + log_less_digamma(A)), axis=1) / sums.N_k
        new = M.update(sums, theta, frozenset())
        Sigma = new["Sigma"] * (sums.weight / sums.N_k)[:, None, None]
        new = new | {"Sigma": Sigma, "df": 2 * concentration_of(excess)}
        return new, jaxem.log_likelihood(M, new, x)

    F = float(jaxem.log_likelihood(M, theta, x))
    for count in range(1, most):
        theta, new = step(theta)
        if float(new) - F < tol * len(x):
            return count, float(new)
        F = float(new)
    return most, F


def test_it_takes_a_fraction_of_plain_ems_steps():
    x = cast(draws(80)[::2])
    theta = {"pi": [1.0], "mu": [[0.0, 0.0]], "Sigma": [[[1.0, 0.0], [0.0, 1.0]]], "df": [50.0]}
    theta = cast({name: np.asarray(value) for name, value in theta.items()})
    fit = jaxem.check(jaxem.em(M, theta, x, tol=tolerance(1e-9, 1e-7)))
    steps, F = plain_em(theta, x, tolerance(1e-9, 1e-7))
    assert int(fit.num_steps) * 3 < steps
    assert float(fit.free_energy) > F - tolerance(1e-5, 1e-2)


def test_rows_without_tails_end_at_the_gaussian():
    rng = np.random.default_rng(0)
    x = cast(rng.uniform(-1, 1, size=(40, 2)))
    theta = {"pi": [1.0], "mu": [[0.0, 0.0]], "Sigma": [[[1.0, 0.0], [0.0, 1.0]]], "df": [5.0]}
    theta = cast({name: np.asarray(value) for name, value in theta.items()})
    fit = jaxem.check(jaxem.em(M, theta, x))
    del theta["df"]
    normal = jaxem.em(gaussian.full, theta, x)
    assert float(fit.theta["df"][0]) > 1e5
    assert float(fit.free_energy) == pytest.approx(float(normal.free_energy), rel=tolerance(1e-10, 1e-5))
    assert np.allclose(fit.theta["Sigma"], normal.theta["Sigma"], rtol=tolerance(1e-6, 1e-3))


def test_held_df_needs_no_rows_and_streams_say_so(fitted):
    def batches():
        return iter((X[:25], X[25:]))

    with pytest.raises(ValueError, match=r"m: em_stream needs an M-step from sums alone, .* hold 'df'"):
        jaxem.em_stream(M, fitted.theta, batches)
    held = M.hold("df")
    assert not held.asks_rows
    stream = jaxem.em_stream(held, fitted.theta, batches, max_steps=2)
    assert float(stream.free_energy) == pytest.approx(float(fitted.free_energy), rel=tolerance(1e-9, 1e-4))
    with pytest.raises(ValueError, match=r"missing: student_t.mixture does not say"):
        jaxem.em(M, fitted.theta, np.where(np.arange(120).reshape(60, 2) == 7, np.nan, X), missing=True)


def test_a_component_on_one_point_is_a_collapse():
    x = cast(np.r_[np.full((6, 2), 3.0), draws(20)])
    theta = {
        "pi": [0.3, 0.7],
        "mu": [[3.0, 3.0], [2.0, 2.0]],
        "Sigma": [np.eye(2) / 100, 9 * np.eye(2)],
        "df": [5.0, 5.0],
    }
    fit = jaxem.em(M, cast({k: np.asarray(v) for k, v in theta.items()}), x)
    assert int(fit.status) == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.theta))


@pytest.mark.parametrize("df", [1e-2, 0.3, 5.0, 1e4])
def test_the_slope_in_the_degrees_of_freedom_has_its_digits_at_rows_far_out(df):
    """Against the same in long double: a component that collapses has rows at δ of 1e16 and more."""
    delta, D = np.logspace(-12, 24, 73), 3
    a, h, d = np.longdouble(df) / 2, np.longdouble(D) / 2, delta.astype(np.longdouble) / 2
    t = d / a
    far = 2 * a * (a * np.log1p(t) - (a + h) * t / (1 + t))
    near = 2 * (d * (d - h) / (1 + t) - a**2 * (t - np.log1p(t)))
    size = 2 * np.where(t < 1, d**2 + d * h, a**2 * np.log1p(t) + a * (a + h))  # of its terms
    found = student_t.slope_of_rows(jnp.asarray(delta), jnp.asarray(1 / df), D)
    error = np.abs(np.asarray(found, np.longdouble) - np.where(t < 1e-3, near, far))
    assert (error <= 512 * EPS * size).all()  # t − log(1 + t) is rounded to eps/t of itself from t = 1e-3 on
