"""The derivative of a fit is that of EM's fixed point: of fits made anew, of unrolled steps, in both modes, or NaN."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist

import jaxem
from jaxem.families import gaussian

from cases import FLOAT, afresh, cast, tolerance

double = pytest.mark.skipif(np.float64 != FLOAT, reason="differences of fits need digits; float32 has the first tests")
RNG = np.random.default_rng(0)
X = cast(np.concatenate([RNG.normal(size=(20, 2)), RNG.normal([4.0, 1.0], size=(20, 2))]))
W = cast(RNG.uniform(0.5, 1.5, size=40))
THETA = cast({"pi": np.array([0.4, 0.6]), "mu": np.array([[0.0, 0.0], [3.0, 1.0]]), "sigma": np.array([1.0, 1.0])})
C = cast(RNG.normal(size=(2, 2)))
M = gaussian.spherical.hold("sigma")
ONE = cast(np.array(1.0))


def score(theta):
    """A number of every free entry of θ, linear, so that its own slope does not depend on where a fit stopped."""
    return jnp.sum(C * theta["mu"]) + 3 * theta["pi"][0]


def fitted(x, w, T, sigma, *, tol=1e-10, m=M, accelerate=None):
    fit = jaxem.em(m, THETA | {"sigma": sigma}, x, weights=w, temperature=T, tol=tol, accelerate=accelerate)
    return score(fit.theta)


def unrolled(x, w, T, sigma):
    path = jaxem.em_path(M, THETA | {"sigma": sigma}, x, weights=w, temperature=T, num_steps=250)
    return score(jax.tree.map(lambda leaf: leaf[-1], path.theta))


ARGUMENTS = (X, W, ONE, cast([1.0, 0.8]))
MOVES = tuple(cast(RNG.normal(size=np.shape(a))) for a in ARGUMENTS)
CLOSE = tolerance(1e-8, 2e-3)


@pytest.fixture(scope="module")
def reverse():
    return jax.jit(jax.grad(fitted, argnums=(0, 1, 2, 3)))(*ARGUMENTS)


def test_it_is_that_of_many_unrolled_steps(reverse):
    """In x, weights, T and a held σ, entry by entry."""
    exact = jax.jit(jax.grad(unrolled, argnums=(0, 1, 2, 3)))(*ARGUMENTS)
    for implicit, slow in zip(reverse, exact, strict=True):
        assert np.allclose(implicit, slow, rtol=CLOSE, atol=CLOSE)
        assert float(jnp.max(jnp.abs(slow))) > 1e-3


def test_forward_mode_is_the_same_number(reverse):
    _, forward = jax.jit(lambda at, along: jax.jvp(fitted, at, along))(ARGUMENTS, MOVES)
    assert float(forward) == pytest.approx(
        sum(float(jnp.sum(g * d)) for g, d in zip(reverse, MOVES, strict=True)), rel=CLOSE
    )


@double
def test_it_is_that_of_fits_made_anew(reverse):
    for i in range(4):

        def along(h, i=i):
            moved = [a + h * MOVES[i] if j == i else a for j, a in enumerate(ARGUMENTS)]
            return unrolled(*moved)

        difference = (jax.jit(along)(1e-5) - jax.jit(along)(-1e-5)) / 2e-5
        assert float(jnp.sum(reverse[i] * MOVES[i])) == pytest.approx(float(difference), rel=1e-6, abs=1e-7)


@double
@pytest.mark.parametrize("options", [{"tol": 1e-4}, {"tol": 1e-6}, {"accelerate": jaxem.anderson(3)}], ids=str)
def test_it_does_not_depend_on_where_the_fit_stopped(reverse, options):
    early = jax.jit(jax.grad(partial(fitted, **options), argnums=(0, 3)))(*ARGUMENTS)
    assert np.allclose(early[0], reverse[0], rtol=1e-6, atol=1e-7)
    assert np.allclose(early[1], reverse[3], rtol=1e-6, atol=1e-7)


def test_the_start_has_derivative_zero_and_f_that_of_the_envelope():
    def value(theta, x):
        return jaxem.em(M, theta, x).free_energy

    of_start, of_x = jax.jit(jax.grad(value, (0, 1)))(THETA, X)
    at = jax.tree.map(lambda leaf: leaf[-1], jaxem.em_path(M, THETA, X, num_steps=250).theta)
    likelihood = jax.jit(jax.grad(lambda theta, x: jaxem.log_likelihood(M, theta, x), (0, 1)))(at, X)
    assert not np.any(of_start["pi"])
    assert not np.any(of_start["mu"])
    assert np.allclose(of_start["sigma"], likelihood[0]["sigma"], rtol=CLOSE, atol=CLOSE)
    assert np.allclose(of_x, likelihood[1], rtol=CLOSE, atol=CLOSE)


@double
def test_vmap_and_lanes_are_the_loop():
    sigmas = cast([[1.0, 0.8], [0.9, 0.9], [1.2, 1.0]])
    one = jax.jit(jax.grad(fitted, argnums=3))
    loop = jnp.stack([one(*ARGUMENTS[:3], sigma) for sigma in sigmas])
    mapped = jax.jit(jax.vmap(jax.grad(fitted, argnums=3), (None, None, None, 0)))(*ARGUMENTS[:3], sigmas)

    def lanes(sigmas):
        thetas = {name: jnp.stack([THETA[name]] * 3) for name in ("pi", "mu")} | {"sigma": sigmas}
        return jnp.sum(jax.vmap(score)(jaxem.em_batch(M, thetas, X, weights=W).theta))

    for many in (mapped, jax.jit(jax.grad(lanes))(sigmas)):
        assert np.allclose(many, loop, rtol=CLOSE, atol=CLOSE)


@double
def test_the_second_derivative_is_the_firsts():
    def at(s):
        return fitted(X, W, ONE, s * ARGUMENTS[3])

    first, second = (jax.jit(f) for f in (jax.grad(at), jax.grad(jax.grad(at))))
    h = 1e-5
    assert float(second(1.0)) == pytest.approx(float((first(1 + h) - first(1 - h)) / (2 * h)), rel=1e-5)


@double
def test_a_fit_that_did_not_converge_or_is_singular_has_none():
    early = jax.jit(jax.grad(lambda x: score(jaxem.em(M, THETA, x, max_steps=2).theta)))(X)
    assert np.isnan(early).all()
    same = cast({"pi": np.full(2, 0.5), "mu": np.zeros((2, 2)) + 0.5, "sigma": np.array([1.0, 1.0])})

    def twins(x):
        fit = jaxem.em(M, same, x)  # equal components: π is not identified, and stays where it is
        return fit.theta["pi"][0], fit

    gradient, fit = jax.jit(jax.grad(twins, has_aux=True))(X)
    assert fit.status == jaxem.Status.CONVERGED
    assert np.isnan(gradient).all()
    forward = jax.jit(lambda x: jax.jvp(lambda x: twins(x)[0], (x,), (jnp.ones_like(x),)))(X)[1]
    assert np.isnan(forward)


@double
def test_an_argument_of_a_program():
    """Two scales that the program is given: the fit of its means moves with them as fits made anew do."""

    def program(x, scale):
        pi = numpyro.param("pi", jnp.array([0.4, 0.6]), constraint=dist.constraints.simplex)
        mu = numpyro.param("mu", jnp.array([0.0, 2.0]))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("x", dist.Normal(mu[z], scale), obs=x)

    m, x = jaxem.from_numpyro(program), X[:, 0]
    theta = m.init(jax.random.key(0), (x, ONE))

    def value(scale):
        fit = jaxem.em(m, theta, (x, scale))
        return fit.theta["mu"][0] + fit.theta["pi"][1]

    def slow(scale):
        path = jaxem.em_path(m, theta, (x, scale), num_steps=400)
        return path.theta["mu"][-1, 0] + path.theta["pi"][-1, 1]

    again = jax.jit(slow)
    difference = (again(ONE + 1e-5) - again(ONE - 1e-5)) / 2e-5
    assert float(jax.jit(jax.grad(value))(ONE)) == pytest.approx(float(difference), rel=1e-6)


@double
def test_many_entries_by_gmres(reverse, monkeypatch):
    monkeypatch.setattr("jaxem._fit.implicit.DENSE", 0)
    many = jax.jit(jax.grad(partial(fitted, m=afresh(M)), argnums=(0, 3)))(*ARGUMENTS)
    assert np.allclose(many[0], reverse[0], rtol=CLOSE, atol=CLOSE)
    assert np.allclose(many[1], reverse[3], rtol=CLOSE, atol=CLOSE)


@double
def test_kmeans_moves_with_the_means_of_its_clusters():
    def value(x, mu):
        return jnp.sum(C * jaxem.kmeans(x, mu).theta["mu"])

    in_x, in_mu = jax.jit(jax.grad(value, (0, 1)))(X, THETA["mu"])
    labels = np.argmin(
        np.sum((np.asarray(X)[:, None] - np.asarray(jaxem.kmeans(X, THETA["mu"]).theta["mu"])) ** 2, -1), 1
    )
    counts = np.bincount(labels)
    assert np.allclose(in_x, np.asarray(C)[labels] / counts[labels][:, None], atol=CLOSE)
    assert not np.any(in_mu)
