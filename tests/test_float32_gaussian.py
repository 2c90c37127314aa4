"""float32 on either leg: far from the origin, tight clusters, hard starts, and the edge between the two forms.

The oracle is EM in float64 NumPy, written here from the textbook, on the same float32-rounded data.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from jax.sharding import Mesh
from scipy.special import logsumexp

import jaxem
from jaxem import Status
from jaxem._core.model import Data, maximize
from jaxem._rows.chunks import fits_one_chunk
from jaxem.families import gaussian
from jaxem.families.gaussian._accuracy import LIMIT

pytestmark = pytest.mark.takes_turns("*")

FAMILIES = ["isotropic", "spherical", "diagonal", "tied", "full"]
each_family = pytest.mark.parametrize("name", FAMILIES)
each_natural = pytest.mark.parametrize("name", ["spherical", "diagonal", "tied", "full"])
EPS32 = float(np.finfo(np.float32).eps)
NATS = 0.01  # the contract: within this of the float64 fit, a point


def covariances(theta):
    """Σ_k (K, D, D) of any family's θ, in float64."""
    theta = {name: np.asarray(value, np.float64) for name, value in theta.items()}
    K, D = theta["mu"].shape
    if "Sigma" in theta:
        return np.broadcast_to(theta["Sigma"], (K, D, D))
    sigma = np.broadcast_to(theta["sigma"].reshape(theta["sigma"].shape + (1,) * (2 - theta["sigma"].ndim)), (K, D))
    return sigma[:, :, None] ** 2 * np.eye(D)


def table(pi, mu, Sigma, x):
    return np.log(pi) + np.stack([st.multivariate_normal.logpdf(x, m, S) for m, S in zip(mu, Sigma, strict=True)], 1)


def m_step(name, gamma, x):
    """π, μ and the pooled Σ_k, in two passes."""
    N_k = gamma.sum(0)
    mu = gamma.T @ x / N_k[:, None]
    difference = x[:, None] - mu
    S = np.einsum("nk,nkd,nke->kde", gamma, difference, difference) / N_k[:, None, None]
    eye = np.eye(x.shape[1])
    pooled = np.einsum("k,kde->de", N_k / N_k.sum(), S)
    Sigma = {
        "isotropic": np.broadcast_to(np.trace(pooled) / len(eye) * eye, S.shape),
        "spherical": np.trace(S, axis1=1, axis2=2)[:, None, None] / len(eye) * eye,
        "diagonal": S * eye,
        "tied": np.broadcast_to(pooled, S.shape),
        "full": S,
    }[name]
    return N_k / N_k.sum(), mu, Sigma


def float64_fit(name, theta, x, steps):
    """F after `steps` of EM from θ."""
    x = np.asarray(x, np.float64)
    pi, mu, Sigma = np.asarray(theta["pi"], np.float64), np.asarray(theta["mu"], np.float64), covariances(theta)
    for _ in range(steps):
        ell = table(pi, mu, Sigma, x)
        pi, mu, Sigma = m_step(name, np.exp(ell - logsumexp(ell, axis=1, keepdims=True)), x)
    return logsumexp(table(pi, mu, Sigma, x), axis=1).sum()


def far_away():
    """Three clusters of unit spread at offset 1e4."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, 3, 300)
    return jnp.asarray(1e4 + 3 * rng.normal(size=(3, 2))[z] + rng.normal(size=(300, 2)), jnp.float32), z


def tight():
    """Three clusters 1e4 times tighter than the spread of their centres."""
    rng = np.random.default_rng(1)
    z = rng.integers(0, 3, 300)
    return jnp.asarray(np.array([[-1.0, 0], [1, 0.5], [0, 1]])[z] + 1e-4 * rng.normal(size=(300, 2)), jnp.float32), z


@pytest.mark.parametrize("data", [far_away, tight])
@each_family
def test_float32_is_within_a_hundredth_nat_a_point_of_float64(name, data):
    m, (x, z) = getattr(gaussian, name), data()
    first = jnp.array([np.flatnonzero(z == k)[0] for k in range(3)])
    for start in (jaxem.inits.from_labels(m, x, jnp.asarray(z)), m.guess(x[first], x)):
        fit = jaxem.check(jaxem.em(m, start, x))
        assert fit.theta["mu"].dtype == jnp.float32
        assert (np.linalg.eigvalsh(covariances(fit.theta)) > 0).all()
        expected = float64_fit(name, start, x, int(fit.num_steps) + 20)
        assert abs(float(fit.free_energy) - expected) / len(x) < NATS


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize(("K", "D"), [(2, 2), (2, 3), (3, 2), (3, 3), (4, 2), (4, 3), (6, 5)])
def test_a_component_may_pass_over_several_tight_clusters(K, D, offset):
    """From the pooled start Σ_k has condition 1e8 on the way, more than float32 holds: still float64's fit.

    float64 stops where a gain is below float32's rounding of F, so that both may rest on the same plateau.
    """
    for seed in range(3):
        rng = np.random.default_rng([seed, K, D, 300])
        rows = rng.normal(size=(K, D))[rng.integers(0, K, 300)] + offset + 1e-4 * rng.normal(size=(300, D))
        x = jnp.asarray(rows, jnp.float32)
        start = jaxem.inits.kmeans_plus_plus(gaussian.full, jax.random.key(seed), x, K)
        fit = jaxem.check(jaxem.em(gaussian.full, start, x))
        assert (np.linalg.eigvalsh(covariances(fit.theta)) > 0).all()
        wide = {name: value.astype(float) for name, value in start.items()}
        wide["pi"] = wide["pi"] / jnp.sum(wide["pi"])
        tol = 8 * EPS32 * abs(float(fit.free_energy)) / len(x)
        expected = jaxem.check(jaxem.em(gaussian.full, wide, x.astype(float), tol=tol))
        assert abs(float(fit.free_energy) - float(expected.free_energy)) / len(x) < NATS


@each_family
def test_a_step_that_shrinks_a_scale_ten_thousandfold_keeps_its_digits(name):
    """One hard step from the pooled scale and centres that miss: |move| = 5,000 σ⁺, E[·] − move² would keep no digit.

    Without the second pass about the new means the same step is wrong, so the test has teeth.
    """
    m, (x, z) = getattr(gaussian, name), tight()
    start = m.guess(jnp.asarray([[-1.5, 0.0], [1.5, 0.5], [0.0, 1.5]], jnp.float32), x)
    scale = "Sigma" if "Sigma" in start else "sigma"
    one = jnp.ones((), jnp.float32) if scale == "sigma" else jnp.eye(2, dtype=jnp.float32)
    start[scale] = jnp.broadcast_to(one, start[scale].shape)
    _, mu, Sigma = m_step(name, np.eye(3)[z], np.asarray(x, np.float64))

    def error(m):
        theta = jaxem.em_path(m, start, x, num_steps=1, temperature=0.0).theta
        theta = {key: value[-1] for key, value in theta.items()}
        return np.abs(covariances(theta) - Sigma).max() / Sigma.max(), np.abs(theta["mu"] - mu).max()

    relative, distance = error(m)
    assert relative < 2e-3  # the means' own rounding, eps / 1e-4, once
    assert distance < 4 * EPS32
    assert not error(m.but(recentre=None))[0] < 0.1


@each_family
def test_the_loop_takes_lost_statistics_anew_within_the_step(name):
    """`em`'s loop spends a turn where `em_path`'s M-step makes a second pass: the same θ, and one step counted."""
    m, (x, _) = getattr(gaussian, name), tight()
    x = jnp.tile(x, (40, 1))  # more than one chunk
    assert m.recentres
    start = m.guess(jnp.asarray([[-1.5, 0.0], [1.5, 0.5], [0.0, 1.5]], jnp.float32), x)
    for steps in (1, 2, 3):
        fit = jaxem.em(m, start, x, temperature=0.0, tol=0.0, max_steps=steps)
        theta = {
            key: value[-1] for key, value in jaxem.em_path(m, start, x, num_steps=steps, temperature=0.0).theta.items()
        }
        assert fit.num_steps <= steps
        assert np.allclose(
            covariances(fit.theta), covariances(theta), rtol=1e-4, atol=1e-5 * np.abs(covariances(theta)).max()
        )
        assert np.allclose(fit.theta["mu"], theta["mu"], atol=4 * EPS32)
    careless = jaxem.em(m.but(recentre=None), start, x, temperature=0.0, tol=0.0, max_steps=1)
    once = jaxem.em(m, start, x, temperature=0.0, tol=0.0, max_steps=1)
    assert not np.allclose(covariances(careless.theta), covariances(once.theta), rtol=0.01)  # so a turn was needed


def on_a_grid(scale, tight):
    """π and μ of sixteen means on a grid, the sixth all but 0 with rows `tight` about it; the rows, and whose."""
    rng = np.random.default_rng(3)
    K, D, N = 16, 2, 6000  # more than one chunk
    mu = np.stack(np.meshgrid(*[np.linspace(-1, 1, 4)] * D), axis=-1).reshape(K, D)
    mu[5] = tight
    z = rng.integers(0, K, N)
    x = mu[z] + np.where(z == 5, tight, scale)[:, None] * rng.normal(size=(N, D))
    theta = {"pi": jnp.full(K, 1 / K, jnp.float32), "mu": jnp.asarray(mu, jnp.float32)}
    return theta, x.astype(np.float32), z


def with_scale(name, theta, sigma):
    """The same π and μ in a family's θ, with the scale σ for all."""
    K, D = theta["mu"].shape
    scale = {
        "isotropic": {"sigma": np.array(sigma)},
        "spherical": {"sigma": np.full(K, sigma)},
        "diagonal": {"sigma": np.full((K, D), sigma)},
        "tied": {"Sigma": sigma**2 * np.eye(D)},
        "full": {"Sigma": np.tile(sigma**2 * np.eye(D), (K, 1, 1))},
    }[name]
    theta = {"pi": theta["pi"], "mu": theta["mu"], **scale}
    return {key: jnp.asarray(value, jnp.float32) for key, value in theta.items()}


@each_family
def test_statistics_taken_anew_keep_the_digits_of_a_scale_below_the_rounding_of_the_spread(name):
    """A cluster at 0, of σ = 1e-9 where its neighbours lie at ±1: x − c alone would have lost it."""
    m, tight = getattr(gaussian, name), 1e-9
    theta, x, z = on_a_grid(0.02, tight)
    theta = with_scale(name, theta, 0.02)
    means = np.stack([x[z == k].mean(0, dtype=np.float64) for k in range(16)])
    about = theta | {"mu": jnp.asarray(means, jnp.float32)}
    data = Data(jnp.asarray(x), None, jnp.float32(1))
    assert m.recentres
    assert not fits_one_chunk(len(x), 16)
    found = m.expect(theta, data, about, jnp.asarray(True))
    exact = m.expect(theta, data, about)
    for got, expected in zip(found.statistics, exact.statistics, strict=True):
        assert np.allclose(got, expected, rtol=1e-4, atol=1e-6 * tight)
    if name == "full":
        own = x[z == 5].astype(np.float64)
        assert np.allclose(found.statistics.spread[5] / len(own), np.cov(own.T, bias=True), rtol=1e-3, atol=1e-21)


@each_family
def test_hard_assignments_tell_close_means_apart(name):
    """Tight clusters, one of them with two means, and scales of 1: no square about c knows which of them is nearer."""
    m = getattr(gaussian, name)
    theta, x, z = on_a_grid(1e-6, 1e-6)
    x = x[z != 1]
    mu = theta["mu"].at[1].set(theta["mu"][0] + 1e-6)
    theta = with_scale(name, theta | {"mu": mu}, 1.0)
    data = Data(jnp.asarray(x), None, jnp.float32(0))
    square = ((x[:, None].astype(np.float64) - np.asarray(mu, np.float64)) ** 2).sum(-1)
    expected = np.bincount(square.argmin(1), minlength=16)
    assert min(expected[:2]) > 50
    assert np.array_equal(m.expect(theta, data).statistics.N_k, expected)
    labels = jaxem.responsibilities(m, theta, x, temperature=0.0)
    assert np.array_equal(labels.sum(0), expected)


@pytest.mark.parametrize("num_rows", [500, 20_000])
@pytest.mark.parametrize("unit", [-50, -20, 30])
def test_kmeans_does_not_depend_on_the_unit_of_x(num_rows, unit):
    """A power of two scales every number in it exactly, so that the centres are the same to the bit."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(num_rows, 2)), jnp.float32)
    unit = jnp.float32(2.0**unit)
    here, there = (jaxem.kmeans(x * u, x[:5] * u, max_steps=20) for u in (jnp.float32(1), unit))
    assert np.array_equal(here.theta["mu"] * unit, there.theta["mu"])
    assert (here.status, here.num_steps) == (there.status, there.num_steps)
    theta = here.theta | {"mu": there.theta["mu"]}
    labels = [
        jaxem.responsibilities(gaussian.isotropic, at, rows, temperature=0.0)
        for at, rows in ((here.theta, x), (theta, x * unit))
    ]
    assert np.array_equal(*labels)


@pytest.mark.parametrize("num_components", [2, 64])
def test_means_of_many_rows_keep_their_digits(num_components):
    """A step of k-means, to a few roundings of the data: thousands of rows are not added to one sum one by one."""
    rng = np.random.default_rng(0)
    mu = np.stack([np.arange(num_components), -np.arange(num_components)], axis=1) / num_components
    z = rng.integers(num_components, size=2**19)
    x = (mu[z] + rng.uniform(-0.4, 0.4, size=(len(z), 2)) / num_components).astype(np.float32)
    means = np.stack([x[z == k].mean(axis=0, dtype=np.float64) for k in range(num_components)])
    fit = jaxem.kmeans(x, mu.astype(np.float32), max_steps=1)
    assert np.abs(fit.theta["mu"] - means).max() < 4 * EPS32


@pytest.mark.parametrize("name", ["isotropic", "spherical"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("on", [None, 2])
def test_norms_computed_once_are_those_of_every_step(name, temperature, on):
    """σ held, far from 0: F is that of the θ it ends at, and θ that of the plain path."""
    rng = np.random.default_rng(1)
    K, D, N = 16, 5, 20_011
    mu = 100 + 3 * rng.normal(size=(K, D))
    x = (mu[rng.integers(K, size=N)] + rng.normal(size=(N, D))).astype(np.float32)
    sigma = np.float32(1) if name == "isotropic" else np.linspace(1, 1.1, K, dtype=np.float32)
    start = jax.tree.map(jnp.float32, {"pi": np.full(K, 1 / K), "mu": x[:K] + 2, "sigma": sigma})
    m = getattr(gaussian, name).hold("pi", "sigma")
    mesh = on and Mesh(np.array(jax.devices("cpu")[:on]), ("rows",))
    run = partial(jaxem.em, temperature=temperature, tol=0.0, max_steps=3, mesh=mesh)
    fit, plain = run(m, start, x), run(m.but(squares=False), start, x)
    data = m.rows.once(start, Data(jnp.asarray(x), None, jnp.float32(temperature)))
    wrong = data._replace(norms=data.norms._replace(squares=2 * data.norms.squares))
    assert m.expect(fit.theta, wrong).free_energy < 1.1 * m.expect(fit.theta, data).free_energy  # they are used
    assert np.allclose(fit.theta["mu"], plain.theta["mu"], atol=1e-3)
    pi, means = (np.asarray(fit.theta[key], np.float64) for key in ("pi", "mu"))
    ell = table(pi, means, covariances(fit.theta), x.astype(np.float64))
    expected = ell.max(axis=1) if temperature == 0 else logsumexp(ell, axis=1)
    assert abs(float(fit.free_energy) / expected.sum() - 1) < 16 * EPS32


@each_family
def test_statistics_are_never_taken_anew_for_a_scale_that_is_held(name):
    m = getattr(gaussian, name)
    assert m.recentres
    assert m.hold("pi", "mu").recentres
    assert not m.hold("Sigma" if name in ("tied", "full") else "sigma").recentres


def at_loss(name, loss):
    """θ, and data from it, whose two outer components make eq:loss = `loss`."""
    rng = np.random.default_rng(0)
    K, D, N = 16, 2, 6000  # more than one chunk
    Sigma = np.array([[1, 0.5], [0.5, 1]]) if name in ("tied", "full") else np.eye(D)
    reach = np.sqrt(loss * D / np.abs(np.linalg.inv(Sigma)).sum()) - 1
    mu = np.zeros((K, D))
    mu[0], mu[1] = reach, -reach  # symmetric: c = 0
    mu[2::2] = rng.uniform(-reach, reach, size=(7, D))
    mu[3::2] = -mu[2::2]
    scale = {
        "spherical": {"sigma": np.ones(K)},
        "diagonal": {"sigma": np.ones((K, D))},
        "tied": {"Sigma": Sigma},
        "full": {"Sigma": np.tile(Sigma, (K, 1, 1))},
    }[name]
    theta = {"pi": np.full(K, 1 / K), "mu": mu, **scale}
    x = mu[rng.integers(0, K, N)] + rng.normal(size=(N, D)) @ np.linalg.cholesky(Sigma).T
    return {key: jnp.asarray(value, jnp.float32) for key, value in theta.items()}, jnp.asarray(x, jnp.float32)


@each_natural
def test_the_two_forms_agree_at_the_edge_of_the_rule(name):
    """Just inside, products; just outside, differences; either way F and the M-step are right to eps·D·LIMIT."""
    m = getattr(gaussian, name)
    for factor, inside in [(0.98, True), (1.02, False)]:
        theta, x = at_loss(name, factor * (LIMIT**2 if name == "full" else LIMIT))  # its root: a vector is expanded
        assert not fits_one_chunk(len(x), 16)
        products = m.numerics.products(theta, theta, True)
        if name == "full":  # a chunk decides
            assert np.array_equal(products.table(products.features(x)), m.relative_table(theta, x)) == (not inside)
        else:
            assert bool(products.accurate) == inside
        data = Data(x, None, jnp.float32(1.0))
        fast, slow = m.expect(theta, data), m.but(products=None, squares=False, by_winner=None).expect(theta, data)
        if name != "full":
            same = np.array_equal(fast.statistics.spread, slow.statistics.spread)
            assert same == (not inside)  # the other form ran, and only there
        ell = table(*(np.asarray(theta[key], np.float64) for key in ("pi", "mu")), covariances(theta), np.asarray(x))
        expected = logsumexp(ell, axis=1).sum()
        assert abs(float(fast.free_energy) - expected) / len(x) < EPS32 * 2 * LIMIT
        for one, two in zip(fast.statistics, slow.statistics, strict=True):  # sums over all of the rows
            assert np.allclose(one, two, rtol=0, atol=8 * EPS32 * LIMIT * len(x))
        new, other = (maximize(m, e, theta, data) for e in (fast, slow))
        assert np.allclose(covariances(new), covariances(other), atol=8 * EPS32 * LIMIT)
        assert np.allclose(new["mu"], other["mu"], atol=EPS32 * LIMIT)


@each_natural
def test_an_expanded_square_alone_would_fail_tight_clusters(name):
    """Why there is a rule: 1e4 times tighter, the products are off by more than a nat a point. `full` sees to it."""
    m = getattr(gaussian, name)
    theta, x = at_loss(name, 1e8)
    products = m.numerics.products(theta, theta, True)
    assert not products.accurate
    exact = np.asarray(m.relative_table(theta, x))
    own = exact.argmax(axis=0)[None]
    phi = products.features(x)
    common = np.asarray(products.common(phi) - m.common(theta))
    error = np.take_along_axis(np.asarray(products.table(phi)) + common - exact, own, axis=0)
    assert not error.any() if name == "full" else np.mean(np.abs(error)) > 1


def test_products_of_full_keep_their_digits_where_the_next_scale_is_far_smaller():
    """An M-step from σ = 0.01 to the clusters' own 1e-4, among means on a grid: γ is one-hot."""
    rng = np.random.default_rng(0)
    K, D, N = 16, 2, 6000
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 4)] * D), axis=-1).reshape(K, D)
    mu = (grid + 0.05 * rng.normal(size=(K, D))).astype(np.float32)
    z = rng.integers(0, K, N)
    x = (mu[z] + 1e-4 * rng.normal(size=(N, D))).astype(np.float32)
    theta = {"pi": np.full(K, 1 / K), "mu": mu, "Sigma": np.tile(1e-4 * np.eye(D), (K, 1, 1))}
    theta = {key: jnp.asarray(value, jnp.float32) for key, value in theta.items()}
    products = gaussian.full.numerics.products(theta, theta, True)
    ell = products.table(products.features(jnp.asarray(x)))
    assert not np.array_equal(ell, gaussian.full.relative_table(theta, jnp.asarray(x)))  # by products
    data = Data(jnp.asarray(x), None, jnp.float32(1))
    new, lost, _ = gaussian.full.maximize(gaussian.full.expect(theta, data).statistics, theta, data)
    assert not lost  # no second pass mends them
    gamma = np.eye(K)[z]
    _, means, Sigma = m_step("full", gamma, x.astype(np.float64))
    assert np.abs(new["mu"] - means).max() < 4 * EPS32
    assert np.abs(new["Sigma"] - Sigma).max() < 2e-3 * np.abs(Sigma).max()


@each_natural
def test_large_data_fit_like_small_data(name):
    """An EM run in products ends where the run in differences does, to the floor of its stopping rule."""
    m = getattr(gaussian, name)
    theta, x = at_loss(name, 40.0)
    start = theta | {"mu": theta["mu"] + 0.3}
    fast = jaxem.em(m, start, x, max_steps=10)
    slow = jaxem.em(m.but(products=None, squares=False, by_winner=None), start, x, max_steps=10)
    assert fast.status in (Status.CONVERGED, Status.MAX_STEPS)
    assert abs(float(fast.free_energy - slow.free_energy)) / len(x) < 1e-4
