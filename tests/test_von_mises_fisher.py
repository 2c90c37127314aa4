"""Directions: the normaliser by SciPy's Bessel functions and exact sums, SciPy's fit, a stationary point, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as ss
import scipy.stats as st

import jaxem
from jaxem import Status
from jaxem.families import von_mises_fisher
from jaxem.families._bessel import height, spread
from jaxem.families._sphere import Stereographic, VonMisesFisher
from jaxem.families.von_mises_fisher import concentration

from cases import CASES, EPS, FLOAT, cast, tolerance

M = von_mises_fisher.mixture
CASE = next(case for case in CASES if case.name == "von_mises_fisher")
X = CASE.x(N=60, D=3)
KAPPAS = np.array([0, 1e-6, 1e-2, 0.7, 5, 20, 39.99, 40.01, 100, 3e3, 1e5])


@pytest.fixture(scope="module")
def fitted():
    return jaxem.check(jaxem.fit(M, X, jax.random.key(0), 2, starts=4, tol=tolerance(1e-12, 1e-8)))


@pytest.mark.parametrize("D", [2, 3, 100])
def test_the_normaliser_and_its_slope_keep_their_digits(D):
    """Against SciPy's scaled Bessel functions, the power series near 0, and the finite sum at D = 3."""
    kappa = np.asarray(cast(KAPPAS), float)
    nu = D / 2 - 1
    area = np.log(2) + D / 2 * np.log(np.pi) - ss.gammaln(D / 2)
    with np.errstate(all="ignore"):
        by_bessel = nu * np.log(kappa) - D / 2 * np.log(2 * np.pi) - np.log(ss.ive(nu, kappa))
        slope = 1 - ss.ive(nu + 1, kappa) / ss.ive(nu, kappa)
    small = kappa < 1e-4
    expected = np.where(small, kappa - area - kappa**2 / (2 * D), by_bessel)
    slope = np.where(small, 1 - kappa / D, slope)
    if D == 3:
        above = kappa[~small]
        expected[~small] = np.log(above) - np.log(2 * np.pi) - np.log1p(-np.exp(-2 * above))
        slope[~small] = 1 / above - 2 / np.expm1(2 * above)  # 1 − coth κ + 1/κ
    found, rises = (np.asarray(f(cast(KAPPAS), D), float) for f in (height, spread))
    usable = np.isfinite(expected)
    assert np.allclose(found[usable], expected[usable], rtol=tolerance(1e-12, 1e-6), atol=tolerance(1e-12, 1e-5))
    within = tolerance(1e-11, 1e-5) if D == 3 else tolerance(1e-9, 1e-5)  # SciPy's ratio cancels for large κ
    assert np.allclose(rises[usable], slope[usable], rtol=within, atol=tolerance(1e-12, 1e-7))
    again = concentration(spread(cast(KAPPAS[3:]), D), D)
    assert np.allclose(again, KAPPAS[3:], rtol=tolerance(1e-11, 1e-4))


def test_coordinates_are_about_a_point():
    rng = np.random.default_rng(0)
    origin, other = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(2, 6, 4)))
    chart = Stereographic(cast(origin))
    with jax.numpy_rank_promotion("allow"):
        assert np.allclose(chart.inv(cast(origin)), 0, atol=8 * EPS)
        assert np.allclose(chart(chart.inv(cast(other))), other, atol=64 * EPS)
        assert np.allclose(jnp.linalg.norm(chart(cast(rng.normal(size=(6, 3)))), axis=1), 1, atol=8 * EPS)


def test_one_component_is_scipys_fit():
    x = np.asarray(X, float)[np.asarray(X)[:, 0] > 0]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    mu, kappa = st.vonmises_fisher.fit(x)
    theta = {"pi": cast([1.0]), "mu": cast([[1.0, 0.0, 0.0]]), "kappa": cast([1.0])}
    fit = jaxem.em(M, theta, cast(x))
    assert int(fit.status) == Status.CONVERGED
    assert np.allclose(fit.theta["mu"][0], mu, atol=tolerance(1e-9, 1e-5))
    assert float(fit.theta["kappa"][0]) == pytest.approx(kappa, rel=tolerance(1e-6, 1e-4))
    assert float(fit.free_energy) == pytest.approx(
        st.vonmises_fisher(mu, kappa).logpdf(x).sum(), rel=tolerance(1e-9, 1e-5)
    )


def test_a_fit_ends_where_the_likelihood_is_stationary(fitted):
    """By `jax.grad` of D = 3's normaliser, κ/4π sinh κ, along the sphere."""

    def L(theta):
        kappa, mu = theta["kappa"], theta["mu"] / jnp.linalg.norm(theta["mu"], axis=1, keepdims=True)
        peak = jnp.log(kappa) - jnp.log(2 * jnp.pi) - jnp.log(-jnp.expm1(-2 * kappa)) - kappa
        log_pi = jnp.log(theta["pi"] / jnp.sum(theta["pi"]))
        return jnp.sum(jax.nn.logsumexp((log_pi + peak)[None] + (X @ mu.T) * kappa[None], axis=1))

    gradient = jax.grad(L)(fitted.theta)
    assert all(float(jnp.abs(g).max()) < tolerance(2e-3, 0.3) for g in gradient.values())
    assert jaxem.num_parameters(M, fitted.theta) == 1 + 2 * 2 + 2
    assert np.allclose(jnp.linalg.norm(fitted.theta["mu"], axis=1), 1, atol=8 * EPS)


@pytest.mark.parametrize(("D", "kappa"), [(2, 0.0), (3, 2.0), (10, 300.0)])
def test_draws_have_the_laws_mean(D, kappa):
    mu = cast(np.eye(D)[1])
    law = VonMisesFisher(mu, cast(kappa))
    x = law.sample(jax.random.key(2), (4000,))
    assert x.dtype == FLOAT
    assert np.allclose(jnp.linalg.norm(x, axis=1), 1, atol=16 * EPS)
    assert np.abs(jnp.mean(x, axis=0) - law.mean).max() < 5 / np.sqrt(4000)
    away = 1 - np.asarray(x, float) @ np.asarray(mu, float)
    assert away.mean() == pytest.approx(float(spread(cast(kappa), D)), abs=5 * away.std() / np.sqrt(4000))


def test_rows_that_are_no_directions_are_named():
    theta = CASE.theta(D=3)
    x = np.asarray(X).copy()
    x[4] *= 2
    with pytest.raises(ValueError, match=r"^x: has 1 row\(s\) that are not of norm 1, first row 4, of norm 2; divide"):
        jaxem.em(M, theta, x)
    assert int(jax.jit(lambda x: jaxem.em(M, theta, x, max_steps=2).status)(cast(x))) == Status.NONFINITE
    with pytest.raises(ValueError, match=r"missing: .*does not say"):
        jaxem.em(M, theta, np.where(np.arange(180).reshape(60, 3) == 7, np.nan, X), missing=True)
    with pytest.raises(ValueError, match="of norm 1 along the last axis"):
        jaxem.em(M, theta | {"mu": 2 * theta["mu"]}, X)


def test_equal_rows_are_a_collapse():
    x = jnp.concatenate([jnp.tile(X[:1], (5, 1)), X[1:20]])
    theta = {"pi": cast([0.5, 0.5]), "mu": jnp.stack([X[0], -X[0]]), "kappa": cast([500.0, 1.0])}
    fit = jaxem.em(M, theta, x)
    assert int(fit.status) == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.theta))
