"""Bregman divergences: −log p is one, and hard EM of each family is k-means with its own (Banerjee et al. 2005)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs
from scipy.special import rel_entr, xlogy

import jaxem
from jaxem import bregman

from cases import CASES, CATEGORIES, EPS, FLOAT, cast, tolerance


def numpy_itakura_saito(x, m):
    return x / m - np.log(x / m) - 1


# family -> (divergence, the same in NumPy entry by entry, x as a point, θ's parameter as means)
FAMILIES = {
    "isotropic": (bregman.squared_euclidean, lambda x, m: (x - m) ** 2, np.asarray, lambda p: p),
    "bernoulli": (
        bregman.logistic_loss,
        lambda x, m: rel_entr(x, m) + rel_entr(1 - x, 1 - m),
        np.asarray,
        lambda p: p,
    ),
    "categorical": (bregman.kullback_leibler, rel_entr, lambda x: np.eye(CATEGORIES)[np.asarray(x)], lambda p: p),
    "poisson": (bregman.i_divergence, lambda x, m: rel_entr(x, m) - x + m, np.asarray, lambda p: p),
    "exponential": (bregman.itakura_saito, numpy_itakura_saito, np.asarray, lambda rate: 1 / rate),
}
each_family = pytest.mark.parametrize("case", [c for c in CASES if c.name in FAMILIES], ids=lambda c: c.name)


def points_and_means(case, theta, x):
    _, _, as_point, as_mean = FAMILIES[case.name]
    name = case.m.parameters[1]
    return as_point(x).astype(float), as_mean(np.asarray(theta[name], float))


@each_family
def test_minus_log_p_is_the_divergence_up_to_terms_free_of_the_mean(case):
    """Differences over k of −log p(x_n | k) are differences of D(x_n, m_k); for σ²I, of D/2σ²."""
    theta, x = case.theta(), case.x(N=20)
    points, means = points_and_means(case, theta, x)
    divergence = FAMILIES[case.name][0]
    D = jax.vmap(lambda p: jax.vmap(lambda m: divergence(p, m))(cast(means)))(cast(points))
    scale = 2 * float(theta["sigma"]) ** 2 if case.name == "isotropic" else 1.0
    surprise = np.log(np.asarray(theta["pi"], float))[None] - case.log_joint(theta, x)
    leftover = surprise - np.asarray(D, float) / scale
    assert np.ptp(leftover, axis=1).max() < tolerance(1e-12, 1e-4)


@each_family
def test_hard_em_is_bregman_kmeans(case):
    """T = 0 with equal π held: NumPy's assign-to-least-divergence and average, the same path step by step."""
    K, num_steps = 3, 6
    x, name = case.x(N=60, D=3), case.m.parameters[1]
    theta = case.theta(D=3) | {"pi": jnp.full(K, 1 / K, FLOAT)}
    m = case.m.hold(*(p for p in case.m.parameters if p != name))
    path = jaxem.em_path(m, theta, x, num_steps=num_steps, temperature=0.0)
    points, means = points_and_means(case, theta, x)
    _, entries, _, as_mean = FAMILIES[case.name]
    losses = []
    for t in range(num_steps):
        D = entries(points[:, None], means[None]).reshape(len(points), K, -1).sum(-1)
        labels = D.argmin(axis=1)
        theta_t = theta if t == 0 else theta | {name: path.theta[name][t - 1]}
        assert np.array_equal(labels, jaxem.responsibilities(case.m, theta_t, x, temperature=0.0).argmax(axis=1))
        means = np.stack([points[labels == k].mean(axis=0) if (labels == k).any() else means[k] for k in range(K)])
        assert np.allclose(as_mean(np.asarray(path.theta[name][t])), means, rtol=tolerance(1e-12, 1e-5), atol=EPS)
        losses.append(D.min(axis=1).sum())
    assert (np.diff(losses) <= 1e-9).all()
    assert losses[-1] < losses[0]


@each_family
def test_the_mean_minimises_the_average_divergence(case):
    """Σ D(x_n, m) is least at the mean, whatever the divergence: the M-step (Banerjee et al., proposition 1)."""
    points, _ = points_and_means(case, case.theta(), case.x(N=20))
    points, divergence = cast(points), FAMILIES[case.name][0]

    def total(m):
        return jnp.sum(jax.vmap(lambda p: divergence(p, m))(points))

    mean = jnp.mean(points, axis=0)
    gradient = jax.grad(total)(mean)
    if case.name == "categorical":
        gradient = jnp.where(mean > 0, gradient - 1, 0)  # on the simplex: constant along it; Σm carries the 1
        gradient = gradient - gradient[:, :1]
    assert np.abs(gradient).max() < tolerance(1e-11, 1e-3)


def defined(name, points):
    """Random points in the interior of each divergence's domain."""
    points = np.abs(points) + 0.1
    if name == "logistic_loss":
        return points / (1 + points)
    return points / points.sum(-1, keepdims=True) if name == "kullback_leibler" else points


POTENTIALS = {
    "squared_euclidean": lambda x: jnp.sum(x**2),
    "logistic_loss": lambda x: jnp.sum(x * jnp.log(x) + (1 - x) * jnp.log1p(-x)),
    "kullback_leibler": lambda x: jnp.sum(x * jnp.log(x)),
    "i_divergence": lambda x: jnp.sum(x * jnp.log(x) - x),
    "itakura_saito": lambda x: -jnp.sum(jnp.log(x)),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_each_is_the_bregman_divergence_of_its_potential(name):
    """D = φ(x) − φ(m) − ⟨∇φ(m), x − m⟩, with ∇φ by jax.grad; ≥ 0, and 0 at x = m."""
    rng = np.random.default_rng(0)
    x, m = (cast(defined(name, rng.normal(size=(10, 4)))) for _ in range(2))
    phi, divergence = POTENTIALS[name], getattr(bregman, name)
    expected = jax.vmap(lambda x, m: phi(x) - phi(m) - jnp.dot(jax.grad(phi)(m), x - m))(x, m)
    measured = jax.vmap(divergence)(x, m)
    assert np.allclose(measured, expected, rtol=tolerance(1e-12, 1e-4), atol=tolerance(1e-13, 1e-5))
    assert (measured > 0).all()
    assert np.abs(jax.vmap(divergence)(x, x)).max() == 0


def test_edges_are_exact():
    """0 log 0 = 0, impossible is ∞, nothing is NaN."""
    zero, one = cast([0.0]), cast([1.0])
    assert float(bregman.logistic_loss(zero, zero)) == float(bregman.logistic_loss(one, one)) == 0
    assert float(bregman.logistic_loss(one, zero)) == float(bregman.logistic_loss(zero, one)) == np.inf
    assert float(bregman.kullback_leibler(cast([0.0, 1.0]), cast([0.0, 1.0]))) == 0
    assert float(bregman.kullback_leibler(cast([0.5, 0.5]), cast([0.0, 1.0]))) == np.inf
    assert float(bregman.i_divergence(zero, zero)) == 0
    assert float(bregman.i_divergence(zero, cast([3.0]))) == 3
    assert float(bregman.i_divergence(cast([3.0]), zero)) == np.inf
    assert float(bregman.itakura_saito(zero, one)) == np.inf
    tiny = cast([np.finfo(FLOAT).tiny])
    assert float(bregman.i_divergence(tiny, cast([4.0]))) == 4  # x/m underflows
    assert np.isfinite(bregman.i_divergence(cast([8.0]), tiny))  # and overflows
    assert float(bregman.i_divergence(np.array([2]), np.array([1]))) == pytest.approx(2 * np.log(2) - 1, rel=1e-6)


I_DIVERGENCES = jax.jit(jax.vmap(bregman.i_divergence_terms))


@settings(max_examples=100, deadline=None)
@given(hs.floats(0, 1e6, width=32), hs.floats(0.0009765625, 1e6, width=32))
def test_the_i_divergence_keeps_its_digits(x, m):
    """Against 50 digits: relative to itself where x ≈ m, which x log(x/m) − x + m is not."""
    import decimal

    with decimal.localcontext(decimal.Context(prec=50)):
        a, b = decimal.Decimal(x), decimal.Decimal(m)
        exact = float(b - a + (a * (a / b).ln() if a else 0))
    measured = float(I_DIVERGENCES(cast(np.array([x])), cast(np.array([m])))[0])
    # far from m the terms are at most ~60 times their sum
    assert measured == pytest.approx(exact, rel=200 * EPS, abs=1e-30)


def test_i_divergence_next_to_its_mean_in_float32():
    x, m = jnp.float32(1_000_001), jnp.float32(1_000_000)
    naive = xlogy(x, x / m) - x + m
    assert float(bregman.i_divergence_terms(x, m)) == pytest.approx(0.5e-6, rel=1e-5)
    assert abs(naive - 0.5e-6) > 1e-3


def test_itakura_saito_keeps_its_digits_far_below_the_mean():
    for x in (1e-12, 1e-17, 1e-30):
        expected = x - 1 - np.log(x)
        assert float(bregman.itakura_saito(cast([x]), cast([1.0]))) == pytest.approx(expected, rel=16 * EPS)
