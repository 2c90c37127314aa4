"""Mixtures of negative binomials: SciPy's optimum for one component, a stationary point for two, digits at any r."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as st

import jaxem
from jaxem import Status
from jaxem.families import negative_binomial
from jaxem.families.negative_binomial import heads_and_tails

from cases import CASES, cast, tolerance

M = negative_binomial.mixture
CASE = next(case for case in CASES if case.name == "negative_binomial")
X = CASE.x(N=60)


def log_density(x, m, r):
    return st.nbinom.logpmf(x, r, 1 / (1 + m / r))


@pytest.fixture(scope="module")
def fitted():
    return jaxem.check(jaxem.fit(M, X, jax.random.key(0), 2, starts=4, tol=tolerance(1e-12, 1e-8)))


def test_one_component_is_scipys_optimum():
    x = np.asarray(X)[:, :1]
    theta = {"pi": [1.0], "mean": [[1.0]], "concentration": [[1.0]]}
    fit = jaxem.check(jaxem.em(M, theta, X[:, :1], tol=tolerance(1e-13, 1e-8)))
    found = so.minimize_scalar(lambda u: -log_density(x, x.mean(), np.exp(u)).sum(), bounds=(-5, 8))
    assert float(fit.free_energy) == pytest.approx(-found.fun, rel=tolerance(1e-10, 1e-5))
    assert float(fit.theta["mean"][0, 0]) == pytest.approx(x.mean(), rel=tolerance(1e-12, 1e-5))
    assert float(fit.theta["concentration"][0, 0]) == pytest.approx(np.exp(found.x), rel=tolerance(1e-4, 1e-2))


def test_counts_below_the_limit_are_fitted_in_one_step():
    """And where they vary no more than Poisson's, r ends where the law is Poisson's."""
    x = cast(np.minimum(np.asarray(X), negative_binomial.J))[:, :1]
    theta = {"pi": [1.0], "mean": [[3.0]], "concentration": [[40.0]]}
    one, two = (jaxem.em(M, theta, x, tol=0, max_steps=steps) for steps in (1, 2))
    assert float(two.free_energy - one.free_energy) < tolerance(1e-11, 1e-3)
    narrow = cast(np.array([[3], [4], [4], [5]]))
    fit = jaxem.em(M, theta, narrow, max_steps=5)
    assert int(fit.status) == Status.CONVERGED
    assert float(fit.theta["concentration"][0, 0]) > 1e5
    assert float(fit.free_energy) == pytest.approx(st.poisson.logpmf([3, 4, 4, 5], 4).sum(), rel=tolerance(1e-12, 1e-5))


def test_a_fit_ends_where_the_likelihood_is_stationary(fitted):
    """By `jax.grad` of the textbook formula, which shares no line with the kernel."""

    def L(u):
        theta = {name: jnp.exp(value) for name, value in u.items()}
        m, r, x = theta["mean"][None], theta["concentration"][None], X[:, None].astype(theta["mean"].dtype)
        log_p = jax.scipy.special.gammaln(x + r) - jax.scipy.special.gammaln(r) - jax.scipy.special.gammaln(x + 1)
        log_p = log_p - r * jnp.log1p(m / r) - x * jnp.log1p(r / m)
        log_pi = jnp.log(theta["pi"] / jnp.sum(theta["pi"]))
        return jnp.sum(jax.nn.logsumexp(log_pi[None] + jnp.sum(log_p, axis=2), axis=1))

    gradient = jax.grad(L)({name: jnp.log(value) for name, value in fitted.theta.items()})
    assert all(float(jnp.abs(g).max()) < tolerance(2e-3, 0.3) for g in gradient.values())
    assert jaxem.num_parameters(M, fitted.theta) == 1 + 4 + 4


@pytest.mark.parametrize(("m", "r"), [(3.0, 1e12), (1e6, 0.5), (1e6, 1e6), (0.1, 1e-3), (40.0, 7.0)])
def test_the_density_keeps_its_digits(m, r):
    """In float32 too: against SciPy's in float64, which near Poisson is Poisson's."""
    x = np.unique(np.round(m + np.sqrt(m + m**2 / r) * np.linspace(-1.0, 4, 9)).clip(0)).astype(np.float32)[:, None]
    theta = {"pi": np.ones(1, np.float32), "mean": np.float32([[m]]), "concentration": np.float32([[r]])}
    found = np.asarray(jaxem.log_joint(M, theta, x), float)
    m, r = (float(theta[name][0, 0]) for name in ("mean", "concentration"))
    expected = st.poisson.logpmf(x.astype(float), m) if r > 1e10 else log_density(x.astype(float), m, r)
    assert np.allclose(found, expected, rtol=2e-6, atol=2e-5)


def test_coins_by_the_sum_they_stand_for():
    x, r, J = np.array([0, 5, 32, 33, 100, 5000]), 2.7, negative_binomial.J
    heads, tails = heads_and_tails(cast(x.astype(float)), cast(r))
    sums = [np.sum((r + J) / (r + np.arange(J, max(n, J)))) for n in x]
    assert np.allclose(heads, sums, rtol=tolerance(1e-11, 1e-4))
    assert np.allclose(tails, np.maximum(x - J, 0) - sums, rtol=tolerance(1e-9, 1e-4), atol=tolerance(1e-12, 1e-5))


def test_zeros_bad_rows_and_missing_cells(fitted):
    x = cast(np.array([[0, 3], [0, 9], [0, 1], [0, 30]]))
    theta = {"pi": [1.0], "mean": [[1.0, 1.0]], "concentration": [[2.0, 2.0]]}
    fit = jaxem.em(M, theta, x, max_steps=3)
    assert np.isfinite(fit.free_energy)
    assert float(fit.theta["mean"][0, 0]) == 0
    with pytest.raises(ValueError, match=r"^x: has 2.5 in row 1, column 0; .*counts"):
        jaxem.em(M, theta, np.array([[1, 2], [2.5, 1]]))
    holes = np.where(np.random.default_rng(1).random(X.shape) < 0.3, np.nan, X)
    table = np.log(np.asarray(fitted.theta["pi"], float))[None]
    for d in range(2):
        m, r = (np.asarray(fitted.theta[name], float)[:, d] for name in ("mean", "concentration"))
        log_p = log_density(np.nan_to_num(holes[:, d : d + 1]), m[None], r[None])
        table = table + np.where(np.isnan(holes[:, d : d + 1]), 0, log_p)
    m = M.with_missing()
    assert np.allclose(jaxem.log_joint(m, fitted.theta, cast(holes)), table, rtol=tolerance(1e-11, 1e-4))


def test_streams_are_the_same_fit_and_online_is_refused(fitted):
    """Sums are additive; but those of coins, expected at one θ, are not to be added to another's."""

    def batches():
        return iter((X[:25], X[25:]))

    stream = jaxem.em_stream(M, fitted.theta, batches, max_steps=2)
    assert float(stream.free_energy) == pytest.approx(float(fitted.free_energy), rel=tolerance(1e-9, 1e-4))
    with pytest.raises(ValueError, match=r"m: em_online .*latents of its own"):
        jaxem.em_online(M, fitted.theta, batches)
