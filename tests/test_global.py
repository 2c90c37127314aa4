"""C19: Lindsay's gradient bounds what any mixture of any number of components could gain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import jaxem
from jaxem.families import gaussian

from cases import EPS, FLOAT, cast, clumps, tolerance

M = gaussian.isotropic.hold("sigma")


def likelihood(x, w, pi, mu, sigma):
    d = ((x[:, None] - mu[None]) ** 2).sum(-1)
    with np.errstate(divide="ignore"):
        table = np.log(pi)[None] - d / (2 * sigma**2)
    return w @ (logsumexp(table, axis=1) - x.shape[1] / 2 * np.log(2 * np.pi * sigma**2))


def gradient(x, w, pi, mu, sigma, at):
    """D by SciPy."""
    d = ((x[:, None] - mu[None]) ** 2).sum(-1)
    log_p = logsumexp(np.log(pi)[None] - d / (2 * sigma**2), axis=1)
    e = -((x[None] - at[:, None]) ** 2).sum(-1) / (2 * sigma**2) - log_p[None]
    return np.exp(e) @ w - w.sum()


def problem(seed):
    """Clumps with duplicates, an outlier, weights; D 1 to 2."""
    rng = np.random.default_rng(seed)
    D = 1 + seed % 2
    x = clumps(rng, 30, D)
    x[:3] = x[3]
    if seed % 3 == 0:
        x[4] = 15.0
    w = rng.uniform(0.2, 2, 30) if seed % 2 else np.ones(30)
    pi, mu, sigma = rng.dirichlet(np.ones(2)), rng.normal(size=(2, D)), rng.uniform(0.5, 1.5)
    return rng, np.asarray(cast(x), float), np.asarray(cast(w), float), pi, mu, float(cast(np.asarray(sigma)))


def test_C19_the_gradient_is_the_slope_towards_an_atom():
    _, x, w, pi, mu, sigma = problem(1)
    theta = cast({"pi": pi, "mu": mu, "sigma": np.asarray(sigma)})
    at = np.array([[0.3], [1.0]]) * np.ones((2, x.shape[1]))
    measured = jaxem.gradient_function(M, theta, cast(x), cast(at), weights=cast(w))
    assert np.allclose(measured, gradient(x, w, pi, mu, sigma, at), rtol=tolerance(1e-10, 1e-3), atol=1e4 * EPS)
    h = 1e-6
    before = likelihood(x, w, pi, mu, sigma)
    after = likelihood(x, w, np.append((1 - h) * pi, h), np.concatenate([mu, at[:1]]), sigma)
    assert (after - before) / h == pytest.approx(float(measured[0]), rel=1e-2, abs=1e-2)


def test_C19_at_the_atoms_of_a_fixed_point_it_is_zero_if_pi_is_free():
    _, x, _, _, mu, _ = problem(1)
    theta = cast({"pi": np.full(2, 0.5), "mu": mu, "sigma": np.asarray(0.8)})
    fit = jaxem.em(M, theta, cast(x), tol=0.0, max_steps=5000)
    slopes = jaxem.gradient_function(M, fit.theta, cast(x), fit.theta["mu"])
    assert np.abs(slopes).max() < tolerance(1e-4, 5e-2)
    held = jaxem.em(M.hold("pi"), theta | {"pi": cast([0.9, 0.1])}, cast(x), tol=0.0, max_steps=2000)
    assert np.abs(jaxem.gradient_function(M, held.theta, cast(x), held.theta["mu"])).max() > 0.1  # never for held π


def test_C19_no_rival_gains_more_than_the_bound():
    for seed in range(12):
        rng, x, w, pi, mu, sigma = problem(seed)
        theta = cast({"pi": pi, "mu": mu, "sigma": np.asarray(sigma)})
        if seed % 2:
            theta = jaxem.em(M, theta, cast(x), weights=cast(w)).theta
        given = [np.asarray(theta[name], float) for name in ("pi", "mu")]
        gap = jaxem.global_gap(M, theta, cast(x), weights=cast(w), tol=0.05)
        assert bool(gap.is_bound)
        here = likelihood(x, w, *given, sigma)
        points = np.concatenate([x, np.asarray(gap.at, float)[None]])
        for _ in range(6):
            rival = rng.dirichlet(np.full(len(points), rng.choice([0.1, 1.0])))
            gain = likelihood(x, w, rival, points, sigma) - here
            assert gain <= float(gap.nats) + 1e3 * EPS * abs(here)
        # the supremum itself: a fine grid finds no more, and the best place found has nearly as much
        grid = np.stack(np.meshgrid(*[np.linspace(x.min(), x.max(), 200 if x.shape[1] == 1 else 60)] * x.shape[1]), -1)
        top = gradient(x, w, *given, sigma, np.concatenate([grid.reshape(-1, x.shape[1]), points])).max()
        W = w.sum()
        assert W * np.log1p(max(top, 0) / W) <= float(gap.nats) + tolerance(1e-9, 0.02)
        found = gradient(x, w, *given, sigma, np.asarray(gap.at, float)[None])[0]
        assert W * np.log1p(max(found, 0) / W) >= float(gap.nats) - 0.05 - tolerance(1e-6, 0.02)


def test_C19_old_faithful(old_faithful):
    """sup D in [33.03, 33.33] at K = 2 and σ = ½: 31.4 nats allowed, where 0.118 are there. A bound, no forecast."""
    x, mu = old_faithful
    theta = {"pi": cast([0.5, 0.5]), "mu": mu, "sigma": cast(0.5)}
    fit = jaxem.em(M, theta, x, tol=1e-12)
    assert float(fit.free_energy) == pytest.approx(-457.79208, abs=tolerance(1e-4, 2e-2))
    gap = jaxem.global_gap(M, fit.theta, x)
    N = len(x)
    assert 33.03 - tolerance(0, 0.1) <= N * np.expm1(float(gap.nats) / N) <= 33.33 + tolerance(0, 0.1)
    at = jaxem.gradient_function(M, fit.theta, x, gap.at)
    assert float(at) == pytest.approx(33.03, abs=tolerance(0.02, 0.1))


def test_C19_one_component_is_best_above_some_sigma(old_faithful):
    x, _ = old_faithful
    sups = []
    for sigma in (1.38, 1.40, 1.45):
        theta = {"pi": cast([1.0]), "mu": jnp.mean(x, axis=0)[None], "sigma": cast(sigma)}
        sups.append(len(x) * np.expm1(float(jaxem.global_gap(M, theta, x, tol=0.01).nats) / len(x)))
    assert sups == pytest.approx([2.61, 0.526, 0.0], abs=tolerance(0.02, 0.1))


def test_C19_is_broken_by_a_smaller_bound_and_says_what_is_no_bound():
    """Half of sup D does not bound; and beyond D = 3 the number is called an estimate."""
    rng, x, w, pi, mu, sigma = problem(2)
    theta = cast({"pi": pi, "mu": mu, "sigma": np.asarray(sigma)})
    gap = jaxem.global_gap(M, theta, cast(x), weights=cast(w))
    many = cast({"pi": np.full(8, 1 / 8), "mu": x[:24:3], "sigma": np.asarray(sigma)})
    best = jaxem.em(M, many, cast(x), weights=cast(w))
    gain = float(best.free_energy) - likelihood(x, w, pi, mu, sigma)
    assert 0.2 * float(gap.nats) < gain <= float(gap.nats)  # it is not slack by much here
    wide = cast(np.concatenate([x, rng.normal(size=(len(x), 4 - x.shape[1]))], axis=1))
    theta = {"pi": cast([1.0]), "mu": jnp.mean(wide, axis=0)[None], "sigma": cast(0.7)}
    estimate = jaxem.global_gap(M, theta, wide)
    assert not bool(estimate.is_bound)
    assert float(estimate.nats) > 0
    assert estimate.nats.dtype == FLOAT


def test_C19_a_box_outliers_and_bad_input():
    x = cast(np.array([[-1.0], [1.0], [1e3]]))
    theta = {"pi": cast([1.0]), "mu": cast([[0.0]]), "sigma": cast(1.0)}
    gap = jaxem.global_gap(M, theta, x)
    assert float(gap.nats) == pytest.approx(3 * (0.5e6 - np.log(3)), rel=1e-5)  # e^500000, by logarithms
    assert float(jaxem.gradient_function(M, theta, x, [1e3])) == np.inf
    near = jaxem.global_gap(M, theta, x, box=([-2.0], [2.0]), tol=1e-3)
    assert float(near.nats) == pytest.approx(3 * ((1000**2 - 998**2) / 2 - np.log(3)), rel=1e-5)
    for call, name in (
        (lambda: jaxem.global_gap(gaussian.full, theta, x), "m"),
        (lambda: jaxem.global_gap(M, theta, x, tol=0.0), "tol"),
        (lambda: jaxem.global_gap(M, theta, x, box=([0.0, 1.0], [1.0, 2.0])), "box"),
        (lambda: jax.jit(lambda x: jaxem.global_gap(M, theta, x))(x), "x"),
        (lambda: jaxem.gradient_function(M, theta, x, [1.0, 2.0]), "at"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()
    slopes = jax.jit(jax.vmap(lambda s: jaxem.gradient_function(M, theta | {"sigma": s}, x, [0.5])))(cast([1.0, 2.0]))
    assert slopes.shape == (2,)
