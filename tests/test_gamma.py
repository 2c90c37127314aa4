"""Mixtures of gammas: SciPy's fit for one component, a stationary point for two, digits where densities are narrow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.special import digamma, polygamma

import jaxem
from jaxem import Status
from jaxem.families import gamma
from jaxem.families._gamma_function import concentration_of, inverse_digamma, log_less_digamma, rest

from cases import CASES, EPS, cast, tolerance

M = gamma.mixture
CASE = next(case for case in CASES if case.name == "gamma")


def draws(N=60):
    """Two groups of rows."""
    rng = np.random.default_rng(4)
    z = rng.random(N) < 0.4
    return np.where(z[:, None], rng.gamma(3.0, 0.5, (N, 2)), rng.gamma(8.0, 1.5, (N, 2)))


X = cast(draws())


@pytest.fixture(scope="module")
def fitted():
    return jaxem.check(jaxem.fit(M, X, jax.random.key(0), 2, starts=4, tol=tolerance(1e-12, 1e-8)))


def test_gammas_function_keeps_its_digits():
    a = np.geomspace(1e-3, 1e10, 60)
    found = np.asarray(rest(cast(a)), float)
    first = 1 / (12 * a) - 1 / (360 * a**3)
    with np.errstate(all="ignore"):
        by_scipy = st.gamma.logpdf(1.0, a)  # −1 − log Γ(a)
    direct = -by_scipy - 1 - (a - 0.5) * np.log(a) + a - np.log(2 * np.pi) / 2
    expected = np.where(a > 100, first, direct)
    assert np.allclose(found, expected, rtol=tolerance(1e-9, 1e-2), atol=tolerance(1e-14, 1e-5))
    found = np.asarray(log_less_digamma(cast(a)), float)
    expected = np.where(a > 100, 1 / (2 * a) + 1 / (12 * a**2) - 1 / (120 * a**4), np.log(a) - digamma(a))
    assert np.allclose(found, expected, rtol=tolerance(1e-12, 2e-5))


def test_the_concentration_is_the_root_with_its_derivative():
    a = cast(np.geomspace(1e-3, 1e8, 40))
    assert np.allclose(concentration_of(log_less_digamma(a)), a, rtol=64 * EPS)
    small = a[a < 1e3]
    assert np.allclose(inverse_digamma(cast(digamma(np.asarray(small, float)))), small, rtol=tolerance(1e-11, 1e-2))
    s = cast([0.01, 0.3, 5.0])
    found = np.asarray(concentration_of(s), float)
    slope = jax.vmap(jax.grad(concentration_of))(s)
    assert np.allclose(slope, 1 / (1 / found - polygamma(1, found)), rtol=tolerance(1e-9, 1e-2))
    assert np.isnan(concentration_of(cast(0.0)))


def test_one_component_is_scipys_fit():
    x = draws()[:, :1]
    theta = {"pi": [1.0], "concentration": [[1.0]], "rate": [[1.0]]}
    fit = jaxem.check(jaxem.em(M, theta, cast(x)))
    a, _, scale = st.gamma.fit(x[:, 0], floc=0)
    found = [float(fit.theta[name][0, 0]) for name in ("concentration", "rate")]
    assert np.allclose(found, [a, 1 / scale], rtol=tolerance(1e-5, 1e-4))  # of SciPy's own stopping rule
    L = st.gamma.logpdf(x[:, 0], a, scale=scale).sum()
    assert float(fit.free_energy) == pytest.approx(L, rel=tolerance(1e-10, 1e-5))


def test_a_fit_ends_where_the_likelihood_is_stationary(fitted):
    """By `jax.grad` of SciPy's formula, which shares no line with the kernel."""

    def L(u):
        theta = {name: jnp.exp(value) for name, value in u.items()}
        a, b = theta["concentration"][None], theta["rate"][None]
        log_p = a * jnp.log(b) - jax.scipy.special.gammaln(a) + (a - 1) * jnp.log(X)[:, None] - b * X[:, None]
        log_pi = jnp.log(theta["pi"] / jnp.sum(theta["pi"]))
        return jnp.sum(jax.nn.logsumexp(log_pi[None] + jnp.sum(log_p, axis=2), axis=1))

    gradient = jax.grad(L)({name: jnp.log(value) for name, value in fitted.theta.items()})
    assert all(float(jnp.abs(g).max()) < tolerance(1e-3, 0.3) for g in gradient.values())
    assert jaxem.num_parameters(M, fitted.theta) == 1 + 4 + 4
    assert jaxem.bic(M, fitted.theta, X) == pytest.approx(
        float(-2 * fitted.free_energy + 9 * np.log(len(X))), rel=tolerance(1e-12, 1e-5)
    )


def test_narrow_densities_keep_their_digits_in_float32():
    """α = 10⁶: rows that differ by a thousandth, whose log-densities cancel to a millionth of their terms."""
    rng = np.random.default_rng(0)
    x = rng.gamma(1e6, 1e-4, (200, 1)).astype(np.float32)
    theta = {"pi": np.ones(1, np.float32), "concentration": np.float32([[1e6]]), "rate": np.float32([[1e4]])}
    table = np.asarray(jaxem.log_joint(M, theta, x), float)[:, 0]
    assert np.abs(table - st.gamma.logpdf(x[:, 0].astype(float), 1e6, scale=1e-4)).max() < 1e-3
    fit = jaxem.em(M, theta, x, max_steps=5)
    expected = 1 / np.var(x[:, 0].astype(float) / x.mean())
    assert float(fit.theta["concentration"][0, 0]) == pytest.approx(expected, rel=1e-2)


def test_equal_rows_are_a_collapse():
    x = cast([[1.7], [1.7], [1.7], [5.0], [9.0], [7.0]])
    theta = {"pi": [0.5, 0.5], "concentration": [[50.0], [9.0]], "rate": [[30.0], [1.3]]}
    fit = jaxem.em(M, theta, x)
    assert int(fit.status) == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.theta))
    with pytest.raises(ValueError, match=r"labels: .*no maximum in 'concentration'.*merge"):
        jaxem.inits.from_labels(M, x, np.array([0, 0, 0, 1, 1, 1]))


@pytest.mark.parametrize(
    ("bad", "message"),
    [(0.0, "has 0.0 in row 1, column 0; .*values > 0"), (-2.0, "has -2.0 in row 1"), (np.nan, "has NaN or infinity")],
)
def test_rows_outside_the_support_are_named(bad, message):
    x = np.array([[1.0, 2.0], [bad, 1.0]])
    with pytest.raises(ValueError, match=f"^x: {message}"):
        jaxem.em(M, CASE.theta(), x)
    assert int(jax.jit(lambda x: jaxem.em(M, CASE.theta(), x, max_steps=2).status)(cast(x))) == Status.NONFINITE


def test_a_missing_cell_drops_its_term(fitted):
    holes = np.where(np.random.default_rng(1).random(X.shape) < 0.3, np.nan, X)
    table = np.log(np.asarray(fitted.theta["pi"], float))[None]
    for d in range(2):
        a, b = (np.asarray(fitted.theta[name], float)[:, d] for name in ("concentration", "rate"))
        log_p = st.gamma.logpdf(np.nan_to_num(holes[:, d : d + 1], nan=1.0), a[None], scale=1 / b[None])
        table = table + np.where(np.isnan(holes[:, d : d + 1]), 0, log_p)
    m = M.with_missing()
    assert np.allclose(jaxem.log_joint(m, fitted.theta, cast(holes)), table, rtol=tolerance(1e-11, 1e-4))
    fit = jaxem.em(M, fitted.theta, cast(holes), missing=True, max_steps=5)
    assert float(fit.gain) > -tolerance(1e-10, 1e-4)


def test_it_is_saved_by_name_and_stays_inside_from_any_start(fitted, tmp_path):
    jaxem.save(tmp_path / "fit.npz", M.hold("rate"), fitted)
    m, back = jaxem.load(tmp_path / "fit.npz")
    assert m == M.hold("rate")
    assert all(np.array_equal(back.theta[name], fitted.theta[name]) for name in fitted.theta)
    start = jaxem.inits.kmeans_plus_plus(M, jax.random.key(1), cast(np.full((5, 1), 3.0) + np.eye(5)[:, :1] / 1e6), 2)
    assert all(bool(jnp.all((v > 0) & jnp.isfinite(v))) for v in start.values())
