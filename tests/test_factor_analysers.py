"""Mixtures of factor analysers: SciPy's optimum for one, a stationary point for two, C1–C5, and where it ends."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as st

import jaxem
from jaxem import Status
from jaxem.families import factor_analysers, gaussian
from jaxem.families._factor_analysis import floor, given_loadings, profile

from cases import FLOAT, cast, tolerance

K, D, N = 2, 4, 60
M = factor_analysers.mixture(1)


def draws(seed=0):
    """Two groups of rows with one factor each."""
    rng = np.random.default_rng(seed)
    z = np.arange(N) % K
    loadings = np.array([[1.0, 1.0, 0.5, -1.0], [1.0, -0.5, 1.0, 0.5]])
    return 4.0 * z[:, None] + rng.normal(size=(N, 1)) * loadings[z] + 0.6 * rng.normal(size=(N, D))


def thetas(seed=1):
    rng = np.random.default_rng(seed)
    scales = {"loadings": 0.5 * rng.normal(size=(K, D, 1)), "sigma": rng.uniform(0.6, 1.2, (K, D))}
    return cast({"pi": np.array([0.4, 0.6]), "mu": np.array([[0.5] * D, [3.5] * D])} | scales)


X, THETA = cast(draws()), thetas()


def covariance(theta, k):
    loadings, sigma = (np.asarray(theta[name][k], float) for name in ("loadings", "sigma"))
    return loadings @ loadings.T + np.diag(sigma**2)


@pytest.fixture(scope="module")
def fitted():
    return jaxem.check(jaxem.em(M, THETA, X, tol=tolerance(1e-13, 1e-8)))


def test_the_table_is_scipys_and_the_programs():
    laws = [st.multivariate_normal(np.asarray(THETA["mu"][k], float), covariance(THETA, k)) for k in range(K)]
    expected = np.stack([np.log(float(THETA["pi"][k])) + laws[k].logpdf(np.asarray(X)) for k in range(K)])
    assert np.allclose(M.table(THETA, X), expected, rtol=tolerance(1e-12, 1e-5))
    with jax.numpy_rank_promotion("allow"):
        assert np.allclose(M.traced_table(THETA, X), expected, rtol=tolerance(1e-12, 1e-5))
    assert np.allclose(jaxem.covariances(M, THETA)[1], covariance(THETA, 1), rtol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("held", [(), ("loadings", "mu")], ids=str)
def test_the_certificates_hold_at_a_random_theta(held):
    """C3 of the likelihood itself: the M-step has no latent factors in it."""
    certificate = jaxem.certify(M.hold(*held), THETA, X)
    assert bool(certificate.holds(tolerance(1e-12, 1e-4))), certificate
    assert np.isfinite([certificate.C1, certificate.C2, certificate.C3, certificate.C4, certificate.C5]).all()


@pytest.mark.parametrize("value", ["profile", "given_loadings"])
def test_the_derivatives_in_log_psi(value):
    """Against central differences, at a covariance of rows that have two factors."""
    rng = np.random.default_rng(0)
    S = np.corrcoef((rng.normal(size=(40, 5)) + rng.normal(size=(40, 2)) @ rng.normal(size=(2, 5))).T)
    at, loadings, step = rng.normal(size=5) / 2 - 1, rng.normal(size=(5, 2)), tolerance(1e-5, 1e-2)
    f = {"profile": lambda u: profile(cast(S), cast(u), 2)}.get(
        value, lambda u: given_loadings(cast(S), cast(u), cast(loadings))
    )
    either = [(f(at + step * e), f(at - step * e)) for e in np.eye(5)]
    here, within = f(at), tolerance(1e-8, 5e-2)
    assert np.allclose([(a.f - b.f) / (2 * step) for a, b in either], here.g, atol=within)
    assert np.allclose([(a.g - b.g) / (2 * step) for a, b in either], here.H, atol=within)


def test_one_component_is_scipys_optimum():
    x = draws()[::2]
    S = np.cov(x.T, bias=True)

    def loss(u):
        Sigma = np.outer(u[:D], u[:D]) + np.diag(np.exp(2 * u[D:]))
        return len(x) / 2 * (np.linalg.slogdet(2 * np.pi * Sigma)[1] + np.trace(np.linalg.solve(Sigma, S)))

    found = so.minimize(loss, np.r_[1, 1, 0.5, -1, np.zeros(D)], options={"gtol": 1e-7})
    theta = {"pi": np.ones(1), "mu": np.zeros((1, D)), "loadings": np.full((1, D, 1), 0.1), "sigma": np.ones((1, D))}
    fit = jaxem.check(jaxem.em(M, cast(theta), cast(x)))
    assert float(fit.free_energy) == pytest.approx(-found.fun, rel=tolerance(1e-10, 1e-5))
    assert int(fit.num_steps) <= 3  # its M-step is the maximum: nothing is left for a second
    assert np.allclose(np.abs(fit.theta["loadings"][0, :, 0]), np.abs(found.x[:D]), atol=tolerance(1e-4, 1e-2))


def test_a_fit_ends_where_the_likelihood_is_stationary_and_loadings_are_canonical(fitted):
    """By `jax.grad` of the density's formula with D × D matrices."""

    def L(theta):
        loadings, z = theta["loadings"], X[:, None] - theta["mu"][None]
        Sigma = jnp.einsum("kdq,keq->kde", loadings, loadings) + theta["sigma"][:, :, None] ** 2 * jnp.eye(D)[None]
        delta = jnp.einsum("nkd,kde,nke->nk", z, jnp.linalg.inv(Sigma), z)
        log_p = -(delta + jnp.linalg.slogdet(2 * jnp.pi * Sigma)[1][None]) / 2
        return jnp.sum(jax.nn.logsumexp(jnp.log(theta["pi"])[None] + log_p, axis=1))

    gradient = jax.jit(jax.grad(L))(fitted.theta)
    for name in ("mu", "loadings", "sigma"):
        assert float(jnp.abs(gradient[name]).max()) < tolerance(2e-4, 0.1), name
    largest = np.take_along_axis(fitted.theta["loadings"], np.abs(fitted.theta["loadings"]).argmax(1)[:, None], 1)
    assert (largest > 0).all()
    assert jaxem.num_parameters(M, fitted.theta) == 1 + K * (D + D + D)


def test_a_rotation_of_the_factors_is_no_parameter_and_changes_nothing():
    two, rng = factor_analysers.mixture(2), np.random.default_rng(0)
    theta = THETA | {"loadings": cast(rng.normal(size=(K, D, 2)))}
    turn = cast(np.array([[0.6, 0.8], [-0.8, 0.6]]))
    turned = theta | {"loadings": theta["loadings"] @ turn}
    assert jaxem.num_parameters(two, theta) == 1 + K * (D + 2 * D - 1 + D)
    free, of_turned = two.coordinates(theta).unconstrain(theta), two.coordinates(turned).unconstrain(turned)
    assert np.allclose(free["loadings"], of_turned["loadings"], atol=tolerance(1e-12, 1e-5))
    assert np.allclose(
        two.coordinates(theta).constrain(free)["loadings"], theta["loadings"], atol=tolerance(1e-12, 1e-5)
    )
    assert np.allclose(two.table(theta, X), two.table(turned, X), rtol=tolerance(1e-11, 1e-4))
    sums = two.statistics(theta, X, jnp.full((K, N), 0.5, FLOAT))
    update = jax.jit(lambda theta: two.update(sums, theta, frozenset()))
    new, again = update(theta), update(turned)
    inner = np.einsum("kdq,kdr->kqr", new["loadings"] / new["sigma"][:, :, None] ** 2, new["loadings"])
    assert np.allclose(inner[:, 0, 1], 0, atol=tolerance(1e-8, 1e-2))
    assert (inner[:, 0, 0] >= inner[:, 1, 1]).all()
    assert np.allclose(new["loadings"], again["loadings"], atol=tolerance(1e-12, 1e-5))


def test_of_three_columns_one_factor_says_all():
    """DQ + D = D(D + 1)/2 = 6."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 1)) * np.array([1.0, 0.7, -0.9]) + 0.7 * rng.normal(size=(40, 3))
    theta = {"pi": np.ones(1), "mu": np.zeros((1, 3)), "loadings": np.ones((1, 3, 1)), "sigma": np.ones((1, 3))}
    fit = jaxem.check(jaxem.em(M, cast(theta), cast(x)))
    S = np.cov(x.T, bias=True)
    full = -len(x) / 2 * (np.linalg.slogdet(2 * np.pi * S)[1] + 3)  # of `gaussian.full`
    assert float(fit.free_energy) == pytest.approx(full, rel=tolerance(1e-11, 1e-5))
    assert np.allclose(covariance(fit.theta, 0), S, atol=tolerance(1e-7, 1e-3))


def test_a_heywood_case_ends_on_the_floor_and_rows_on_a_line_as_a_collapse():
    """Correlations 0.9, 0.9, 0.3: one factor would want a variance below 0 for the first column."""
    rng = np.random.default_rng(0)
    C = np.array([[1, 0.9, 0.9, 0], [0.9, 1, 0.65, 0], [0.9, 0.65, 1, 0], [0, 0, 0, 1]])
    noise = rng.normal(size=(30, 4))
    white = np.linalg.svd(noise - noise.mean(0), full_matrices=False)[0] * np.sqrt(30)
    theta = {"pi": np.ones(1), "mu": np.zeros((1, 4)), "loadings": np.ones((1, 4, 1)), "sigma": np.ones((1, 4))}
    fit = jaxem.check(jaxem.em(M, cast(theta), cast(white @ np.linalg.cholesky(C).T)))
    share = np.asarray(fit.theta["sigma"][0], float) ** 2
    assert share[0] == pytest.approx(floor(np.dtype(FLOAT)), rel=tolerance(1e-6, 1e-2))
    assert (share[1:] > 0.1).all()
    line = jaxem.em(M, cast(theta), cast(np.arange(30.0)[:, None] * np.array([1.0, 2, -1, 3])))
    point = jaxem.em(M, cast(theta), cast(np.ones((30, 4))))
    assert int(line.status) == int(point.status) == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((line.theta, point.theta)))


def test_a_row_with_missing_cells(fitted):
    holes = np.array(X)
    holes[[3, 8, 9], [2, 0, 1]] = np.nan
    fit = jaxem.check(jaxem.em(M, fitted.theta, holes, missing=True))
    assert float(fit.free_energy) > float(jaxem.log_likelihood(M, fitted.theta, holes, missing=True))


def test_a_mixture_is_what_its_number_says(tmp_path, fitted):
    again = factor_analysers.mixture(1)
    assert M == again == copy.deepcopy(M) == pickle.loads(pickle.dumps(M))
    assert hash(M) == hash(again)
    assert again != factor_analysers.mixture(2)
    held = M.hold("sigma")
    assert repr(held) == "factor_analysers.mixture(1).hold('sigma')"
    jaxem.save(tmp_path / "fit.npz", held, fitted)
    m, fit = jaxem.load(tmp_path / "fit.npz")
    assert m == held
    assert np.array_equal(fit.theta["loadings"], fitted.theta["loadings"])


def test_what_cannot_be():
    for wrong in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="num_factors: must be"):
            factor_analysers.mixture(wrong)
    four = factor_analysers.mixture(4)
    with pytest.raises(ValueError, match=r"x: has 4 column\(s\), and 4 factors need at least 5"):
        jaxem.em(four, THETA | {"loadings": jnp.ones((K, D, 4), FLOAT)}, X)
    with pytest.raises(ValueError, match=r"has a floor of its own"):
        gaussian.with_floor(M, 0.1)
    start = jaxem.inits.random_points(M, jax.random.key(0), X, 2)
    assert start["loadings"].shape == (2, 4, 1)
    assert (np.asarray(start["sigma"]) > 0).all()


@pytest.mark.skipif(FLOAT is np.float32, reason="differences need digits")
@pytest.mark.parametrize("held", [(), ("loadings",)], ids=str)
def test_the_derivative_of_an_m_step(held):
    """That of the maximum, in both modes, whatever turns led there: in one row of x, against differences."""
    direction = jnp.zeros_like(X).at[5].set(1.0)
    gamma = jnp.asarray(np.random.default_rng(0).dirichlet([3, 3], N).T)

    @jax.jit
    def at(t):
        new = M.update(M.statistics(THETA, X + t * direction, gamma), THETA, frozenset(held))
        return jnp.concatenate([new["sigma"], new["loadings"][:, :, 0]])

    zero, eps = jnp.zeros(()), jnp.asarray(1e-5)
    _, tangent = jax.jvp(at, (zero,), (jnp.ones(()),))
    expected = (at(eps) - at(-eps)) / (2 * eps)
    assert np.abs(expected[:2]).max() > 1e-3
    assert np.allclose(tangent, expected, atol=1e-8)
    assert np.allclose(jax.grad(lambda t: jnp.sum(at(t) ** 2))(zero), 2 * jnp.sum(at(zero) * expected), atol=1e-7)
