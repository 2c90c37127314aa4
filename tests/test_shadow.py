"""C17: the shadow of k-means. EM's fixed point near given centres: certified, and found there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from cases import EPS, FLOAT, cast, tolerance

M = gaussian.isotropic.hold("pi", "sigma")


def em_map(x, mu, sigma, pi, w):
    """EM's map in NumPy."""
    d = ((x[:, None] - mu[None]) ** 2).sum(-1)
    gamma = softmax(np.log(pi)[None] - d / (2 * sigma**2), axis=1) * w[:, None]
    return gamma.T @ x / gamma.sum(0)[:, None]


def fixed_point(x, mu, sigma, pi, w, steps=3000):
    for _ in range(steps):
        old, mu = mu, em_map(x, mu, sigma, pi, w)
        if np.abs(mu - old).max() < 1e-15 * np.abs(x).max():
            break
    return mu


def problem(seed):
    """Unequal clusters, near and exact ties, duplicates, an offset, weights, unequal π."""
    rng = np.random.default_rng(seed)
    N, D, K = 24, 2, 3
    centres = 3 * rng.normal(size=(K, D))
    x = centres[np.minimum(rng.geometric(0.5, N) - 1, K - 1)] + 0.3 * rng.normal(size=(N, D))
    x[:4] = x[4]
    x[5] = (centres[0] + centres[1]) / 2 + (seed % 3) * 1e-3
    x = x + [0.0, 1e3, 0.0][seed % 3]
    w = rng.uniform(0.3, 2, N) if seed % 2 else np.ones(N)
    pi = rng.dirichlet(np.full(K, 5.0)) if seed % 4 > 1 else np.full(K, 1 / K)
    mu = np.asarray(jaxem.kmeans(cast(x), cast(x[rng.choice(N, K, False)]), cast(w)).theta["mu"], float)
    mu = mu + (seed % 5 == 0) * 0.02 * rng.normal(size=mu.shape)  # not quite Lloyd's point: R > 0
    return rng, np.asarray(cast(x), float), mu, pi, w


def test_C17_on_random_and_adversarial_problems():
    """A fixed point is in the ball, near as said; the map stays in it, and contracts there by the rate."""
    number = 0
    for seed in range(40):
        rng, x, mu, pi, w = problem(seed)
        for sigma in (0.25, 0.6):
            found = limits.shadow(cast(x), cast(mu), sigma, pi=cast(pi), weights=cast(w))
            found = jax.tree.map(np.asarray, found)
            if not found.exists:
                continue
            number += 1
            ends = fixed_point(x, np.asarray(cast(mu), float), sigma, pi, w)
            noise = 64 * len(x) * EPS * np.abs(x - x.mean(0)).max() + 8 * EPS * np.abs(x).max()
            distance = np.sqrt(((ends - mu) ** 2).sum(1).max())
            assert distance <= found.smallest_radius + noise
            assert distance <= found.distance_bound + noise / (1 - min(found.rate, 0.99))
            for radius in (found.smallest_radius, found.largest_radius) if found.unique else (found.smallest_radius,):
                direction = rng.normal(size=(2, *mu.shape))
                direction *= radius / np.sqrt((direction**2).sum(-1)).max(-1)[:, None, None]
                starts = mu + direction
                images = np.stack([em_map(x, start, sigma, pi, w) for start in starts])
                assert np.sqrt(((images - mu) ** 2).sum(-1)).max() <= radius * (1 + 1e-6) + noise
                if found.unique:
                    assert np.abs(fixed_point(x, starts[0], sigma, pi, w) - ends).max() <= 1e-6 + noise
            if found.unique:
                moved = np.sqrt(((images[0] - images[1]) ** 2).sum(-1).max())
                apart = np.sqrt(((starts[0] - starts[1]) ** 2).sum(-1).max())
                assert moved <= apart * (1 + 1e-6) + noise
    assert number >= 25  # or the test says nothing


def numpy_bounds(x, mu, sigma, radius):
    """A and L of the theorem, term by term, as it is printed."""
    N, K = len(x), len(mu)
    s = np.sqrt(((x[:, None] - mu[None]) ** 2).sum(-1))
    label = s.argmin(1)
    E = np.zeros((N, K))
    for n in range(N):
        for k in set(range(K)) - {label[n]}:
            far, near = s[n, k], s[n, label[n]]
            g = far**2 - near**2 - 2 * radius * (far + near) if far >= radius else -((near + radius) ** 2)
            E[n, k] = np.exp(-g / (2 * sigma**2))
    other, leaving = E / (1 + E), E.sum(1) / (1 + E.sum(1))
    A, L = np.zeros(K), np.zeros(K)
    for k in range(K):
        inside, outside = label == k, label != k
        staying = inside.sum() - leaving[inside].sum()
        R = np.linalg.norm((x[inside] - mu[k]).sum(0))
        A[k] = (R + (leaving * s[:, k])[inside].sum() + (other[:, k] * s[:, k])[outside].sum()) / staying
        for n in range(N):
            a = s[n] + radius
            if inside[n]:
                L[k] += min(leaving[n], 0.25) * a[k] ** 2
                L[k] += sum(min(other[n, j], 0.25) * a[k] * a[j] for j in range(K) if j != k)
            else:
                L[k] += min(other[n, k], 0.25) * a[k] * a.sum()
        L[k] /= sigma**2 * staying
    return A.max(), L.max()


def test_C17_the_radii_are_those_of_the_printed_theorem():
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(12, 2)) * 0.5 + c for c in ([0, 0], [4, 0], [0, 5])])
    mu = np.asarray(jaxem.kmeans(cast(x), cast(x[[0, 12, 24]])).theta["mu"], float)
    for sigma in (0.8, 0.9):
        found = limits.shadow(cast(x), cast(mu), sigma)
        assert bool(found.unique)
        radii = np.geomspace(1e-6, 5, 1500)
        table = np.array([numpy_bounds(np.asarray(cast(x), float), mu, sigma, radius) for radius in radii[::10]])
        good = (table[:, 0] <= radii[::10]) & (table[:, 1] < 1)
        assert float(found.smallest_radius) == pytest.approx(radii[::10][good].min(), rel=0.12)  # the grid's step
        assert float(found.largest_radius) == pytest.approx(radii[::10][good].max(), rel=0.12)
        A, L = numpy_bounds(np.asarray(cast(x), float), mu, sigma, float(found.smallest_radius))
        assert A <= float(found.smallest_radius) <= A * (1 + 1e-4)
        assert float(found.rate) == pytest.approx(L, rel=tolerance(1e-6, 1e-2))


# THEOREMS' table: Old Faithful, standardised, K = 2
SIGMAS = [0.70, 0.60, 0.50, 0.40, 0.30, 0.20, 0.10]
SMALLEST = np.array([0.0720, 0.0475, 0.0336, 0.0273, 0.0207, 0.0146, 4.3e-4])
LARGEST = np.array([0.308, 0.354, 0.354, 0.308, 0.203, 0.095, 0.0084])


def test_C17_old_faithful(old_faithful):
    """The published numbers, by vmap over σ, of a grid of radii with steps of some 8 %."""
    x, mu = old_faithful
    found = jax.vmap(lambda sigma: limits.shadow(x, mu, sigma))(cast([*SIGMAS, 1.0]))
    for ratio in (SMALLEST / found.smallest_radius[:7], found.largest_radius[:7] / LARGEST):
        assert ((ratio > tolerance(0.998, 0.98)) & (ratio < 1.08)).all(), ratio  # between two points of that grid
    assert bool(jnp.all(found.unique[:7]))
    assert not bool(found.exists[7])  # none at σ = 1: an answer, not an error
    assert float(found.smallest_radius[7]) == np.inf
    assert float(found.largest_radius[7]) == 0
    at_half = found.distance_bound[2]
    assert float(at_half) == pytest.approx(0.0158, abs=3e-4)  # the true distance is .0137
    assert found.rate.dtype == FLOAT


def test_C17_the_basin_tends_to_half_the_margin():
    x = cast([[0.0], [1.0], [10.0], [11.0]])
    mu = cast([[0.5], [10.5]])
    found = limits.shadow(x, mu, 0.05)
    margin = float(np.min(np.abs(np.asarray(x) - 10.5) * (np.asarray(x) < 5) + 99 * (np.asarray(x) > 5)) - 0.5)
    assert float(found.largest_radius) == pytest.approx(margin / 2, rel=0.01)
    assert float(found.smallest_radius) < 1e3 * EPS
    assert float(found.rate) < 1e-30


def test_C17_is_broken_by_a_shrunken_ball():
    """Half the smallest radius is no self-map, and the bound on the distance is not slack by a factor."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(size=(12, 2)) * 0.5 + c for c in ([0, 0], [3, 0])])
    mu = np.asarray(jaxem.kmeans(cast(x), cast(x[[0, 12]])).theta["mu"], float)
    found = limits.shadow(cast(x), cast(mu), 0.5)
    assert bool(found.unique)
    ends = fixed_point(x, mu, 0.5, np.full(2, 0.5), np.ones(24))
    distance = np.sqrt(((ends - mu) ** 2).sum(1).max())
    assert distance > 0.3 * float(found.distance_bound)
    A, _ = numpy_bounds(x, mu, 0.5, 0.5 * float(found.smallest_radius))
    assert 0.5 * float(found.smallest_radius) < A


def test_C17_weights_are_repetitions_and_no_rows_no_certificate():
    rng = np.random.default_rng(4)
    x = np.concatenate([rng.normal(size=(9, 2)) * 0.4, rng.normal(size=(7, 2)) * 0.4 + 3])
    w = rng.integers(0, 3, 16)
    mu = np.stack([np.repeat(x, w, 0)[np.repeat(np.arange(16) < 9, w)].mean(0), x[9:].mean(0)])
    weighted = limits.shadow(cast(x), cast(mu), 0.6, weights=cast(w.astype(float)))
    repeated = limits.shadow(cast(np.repeat(x, w, 0)), cast(mu), 0.6)
    assert bool(repeated.exists)
    for one, other in zip(weighted, repeated, strict=True):
        assert np.allclose(one, other, rtol=tolerance(1e-6, 1e-2))
    empty = limits.shadow(cast(x), cast(np.concatenate([mu, [[90.0, 90.0]]])), 0.3)
    assert not bool(empty.exists)
    one = limits.shadow(cast(x), cast(x.mean(0)[None]), 1.0)
    assert bool(one.unique)
    assert float(one.rate) == 0


def test_C17_bad_input():
    x, mu = cast(np.arange(6.0)[:, None]), cast([[1.0], [4.0]])
    with pytest.raises(ValueError, match="sigma"):
        limits.shadow(x, mu, 0.0)
    with pytest.raises(ValueError, match="mu"):
        limits.shadow(x, cast([[1.0, 2.0]]), 1.0)
    with pytest.raises(ValueError, match="weights"):
        limits.shadow(x, mu, 1.0, weights=cast(-np.ones(6)))
    assert not bool(jax.jit(lambda sigma: limits.shadow(x, mu, sigma).exists)(0.0))  # traced: no certificate
