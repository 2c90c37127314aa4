"""C18: a bound of k-means' global optimum, provable again from its dual point alone."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from cases import EPS, FLOAT, cast, tolerance


def best_by_enumeration(x, w, K):
    """J* over every partition into at most K clusters."""
    N = len(x)
    labels = np.array(list(product(range(K), repeat=N - 1)))
    labels = np.concatenate([np.zeros((len(labels), 1), int), labels], axis=1)  # the first row names its cluster 0
    member = (labels[:, :, None] == np.arange(K)) * w[None, :, None]  # (P, N, K)
    sizes = member.sum(1)
    sums = np.einsum("pnk,nd->pkd", member, x)
    means = sums / np.where(sizes > 0, sizes, 1)[..., None]
    return (w @ (x**2).sum(1) - (sizes * (means**2).sum(-1)).sum(1)).min()


def problems():
    for seed in range(16):
        rng = np.random.default_rng(seed)
        N, K, D = 7, 1 + seed % 4, 1 + seed % 3
        x = rng.normal(size=(N, D)) * 10.0 ** rng.integers(-2, 3)
        if seed % 3 == 0:
            x[1:3] = x[0]  # duplicates
        if seed % 4 == 1:
            x[:4] += 50 * np.abs(x).max()  # far apart
        w = rng.uniform(0.2, 3, N) if seed % 2 else np.ones(N)
        yield rng, x, w, K


def matrices(rng, x, w, K):
    """Dual points, good, poor and silly."""
    N = len(x)
    C = ((x[:, None] - x[None]) ** 2).sum(-1) / 2 * np.sqrt(w[:, None] * w[None])
    noise = rng.uniform(size=(N, N)) * C.mean()
    yield np.zeros((N, N))
    yield noise
    yield C * rng.uniform()
    yield -noise  # cut off: the same as 0
    yield noise * (rng.uniform(size=(N, N)) > 0.8) * 5
    yield 1e3 * noise


def test_C18_no_dual_point_exceeds_the_enumerated_optimum():
    for rng, x, w, K in problems():
        best = best_by_enumeration(x - x.mean(0), w, K)
        mu = cast(x[:K])
        gap = jaxem.optimality_gap(cast(x), mu, weights=cast(w), num_steps=60)
        scale = w @ ((x - x.mean(0)) ** 2).sum(1)
        offset = cast(x + 1e3 * (np.float64 == FLOAT) * np.abs(x).max())
        slack = 64 * EPS * scale + 1e-10 * scale * (np.float64 == FLOAT)  # of the oracle, and of x moved away
        assert float(gap.lower_bound) <= best + slack
        for B in (*matrices(rng, x, w, K), np.asarray(gap.dual, float)):
            bound = float(limits.lower_bound(cast(x), cast(B), K, weights=cast(w)))
            assert 0 <= bound <= best + slack, (K, bound, best)
        moved = float(limits.lower_bound(offset, gap.dual, K, weights=cast(w)))
        assert moved == pytest.approx(float(gap.lower_bound), rel=1e-4, abs=1e-3 * scale)


def test_C18_is_often_tight_on_small_problems():
    tight = []
    for _, x, w, K in problems():
        best = best_by_enumeration(x - x.mean(0), w, K)
        gap = jaxem.optimality_gap(cast(x), cast(x[:K]), weights=cast(w), num_steps=60)
        total = w @ ((x - np.average(x, 0, w)) ** 2).sum(1)
        tight.append((best - float(gap.lower_bound)) / total)
    assert np.median(tight) < tolerance(1e-4, 1e-3)


def test_C18_with_no_dual_is_the_spectral_bound():
    """B = 0: total scatter less the K − 1 largest eigenvalues of the centred Gram matrix."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    centred = x - x.mean(0)
    values = np.linalg.eigvalsh(centred.T @ centred)[::-1]
    for K in (1, 2, 3, 4):
        bound = float(limits.lower_bound(cast(x), cast(np.zeros((20, 20))), K))
        assert bound == pytest.approx(values[K - 1 :].sum(), abs=tolerance(1e-9, 1e-2))


def test_C18_is_broken_by_a_dual_that_is_not_one():
    """A matrix with negative entries would prove too much if it were believed; so would a wrong q."""
    x = np.array([[0.0], [1.0], [2.0], [3.0]])
    best = best_by_enumeration(x, np.ones(4), 2)
    C = (x - x.T) ** 2 / 2
    p = np.full(4, 0.5)
    S = C + 10  # C − B at B = −10
    believed = p @ S @ p + np.linalg.eigvalsh(S - np.outer(p, S @ p) - np.outer(S @ p, p) + (p @ S @ p) / 4)[0]
    assert believed > best  # so cutting B off at 0 is what makes it a bound
    assert float(limits.lower_bound(cast(x), cast(np.full((4, 4), -10.0)), 2)) <= best


def test_C18_old_faithful(old_faithful):
    x, mu = old_faithful
    gap = jaxem.optimality_gap(x, mu, num_steps=150)
    assert float(gap.value) == pytest.approx(79.57596, abs=tolerance(1e-4, 1e-2))
    assert float(gap.relative) < tolerance(0.005, 0.01)
    assert float(gap.lower_bound) < float(gap.value)
    again = limits.lower_bound(x, gap.dual, 2)
    assert float(again) == float(gap.lower_bound)
    none = limits.lower_bound(x, jnp.zeros_like(gap.dual), 2)
    assert float(none) == pytest.approx(26.979, abs=tolerance(1e-3, 0.1))
    # the corollary: a ceiling of the likelihood for every π and every μ
    for sigma in (0.2, 0.6):
        ceiling = limits.likelihood_ceiling(x, gap.lower_bound, sigma)
        for pi in (0.5, 0.3, 0.99):
            theta = {"pi": cast([pi, 1 - pi]), "mu": mu, "sigma": cast(sigma)}
            fit = jaxem.em(gaussian.isotropic.hold("sigma"), theta, x)
            assert float(fit.free_energy) <= float(ceiling)


def test_C18_separated_clusters_are_proved_optimal():
    rng = np.random.default_rng(1)
    x = cast(np.concatenate([rng.normal(size=(25, 2)) * 0.5 + c for c in ([0, 0], [8, 0], [0, 8])]))
    mu = jaxem.kmeans(x, x[jnp.array([0, 25, 50])]).theta["mu"]
    gap = jaxem.optimality_gap(x, mu)
    assert -1e-12 < float(gap.relative) < tolerance(1e-6, 1e-2)
    worse = x[jnp.array([0, 1, 25])]
    assert float(jaxem.optimality_gap(x, worse, num_steps=60).relative) > 0.3  # a poor start is seen as one


def test_C18_cells_and_weights(monkeypatch):
    rng = np.random.default_rng(3)
    x = np.concatenate([rng.normal(size=(40, 2)) * 0.3, rng.normal(size=(40, 2)) * 0.3 + 5])
    mu = np.stack([x[:40].mean(0), x[40:].mean(0)])
    whole = jaxem.optimality_gap(cast(x), cast(mu), num_steps=100)
    monkeypatch.setattr("jaxem.limits._relaxation.MOST_ROWS", 60)
    monkeypatch.setattr("jaxem.limits._relaxation.CELLS", 30)
    grouped = jaxem.optimality_gap(cast(x), cast(mu), num_steps=100)
    assert isinstance(grouped.dual, limits.Dual)
    assert 0 < float(grouped.lower_bound) < float(whole.lower_bound)  # cells lose something, and prove something
    assert float(limits.lower_bound(cast(x), grouped.dual, 2)) == float(grouped.lower_bound)
    w = rng.integers(0, 3, 20)
    dual = rng.uniform(size=(20, 20)) * 0.1
    weighted = limits.lower_bound(cast(x[30:50]), cast(dual), 2, weights=cast(w.astype(float)))
    repeated = np.repeat(np.arange(20), w)
    share = np.sqrt(w[repeated][:, None] * w[repeated][None])
    plain = limits.lower_bound(cast(x[30:50][repeated]), cast(dual[repeated][:, repeated] / share), 2)
    assert float(weighted) == pytest.approx(float(plain), rel=tolerance(1e-8, 1e-2), abs=tolerance(1e-8, 1e-2))


def test_C18_in_jit_and_vmap_and_bad_input():
    rng = np.random.default_rng(0)
    x = cast(rng.normal(size=(8, 2)))
    dual = cast(np.zeros((8, 8)))
    scaled = jax.jit(jax.vmap(lambda s: limits.lower_bound(s * x, dual, 2)))(cast([1.0, 2.0]))
    assert float(scaled[1]) == pytest.approx(4 * float(scaled[0]), rel=tolerance(1e-9, 1e-3))
    for call, name in (
        (lambda: limits.lower_bound(x, dual[:4], 2), "dual"),
        (lambda: limits.lower_bound(x, dual[:4, :4], 2), "dual"),
        (lambda: limits.lower_bound(x, limits.Dual(dual[:4, :4], jnp.arange(8)), 2), "dual.cells"),
        (lambda: limits.lower_bound(x, dual, 0), "K"),
        (lambda: jaxem.optimality_gap(x, x[:2], num_steps=-1), "num_steps"),
        (lambda: jaxem.optimality_gap(x, cast([[0.0]])), "mu"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()
