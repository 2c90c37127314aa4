"""`grow` ends in a certified nonparametric maximum (C19); `dpmeans` is a limit of Gibbs sampling (C24)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status, limits
from jaxem.families import gaussian

from cases import EPS, FLOAT, cast, clumps, tolerance

M = gaussian.isotropic.hold("sigma")


def test_grow_reaches_the_nonparametric_maximum(old_faithful):
    """Old Faithful at σ = ½: −457.67386 with a third component of weight .00766, and nothing left to gain."""
    x, mu = old_faithful
    theta = {"pi": cast([0.5, 0.5]), "mu": mu, "sigma": cast(0.5)}
    fit = jaxem.grow(M, theta, x, tol=tolerance(0.3, 0.5))
    assert int(fit.status) == Status.CONVERGED
    assert float(fit.free_energy) == pytest.approx(-457.674, abs=tolerance(5e-3, 5e-2))
    assert float(jaxem.global_gap(M, fit.theta, x).nats) <= tolerance(0.45, 0.7)
    if tolerance(64, 32) == 64:
        assert sorted(np.asarray(fit.theta["pi"]))[0] == pytest.approx(0.00766, abs=2e-3)


def test_grow_never_falls_and_prunes():
    rng = np.random.default_rng(0)
    x = cast(np.concatenate([rng.normal(size=(25, 1)) * 0.3 + c for c in (-3.0, 0.0, 4.0)]))
    many = {
        "pi": cast(np.full(5, 0.2)),
        "mu": cast(np.full((5, 1), 0.1) + 1e-3 * np.arange(5)[:, None]),
        "sigma": cast(0.6),
    }
    fit = jaxem.grow(M, many, x)
    start = jaxem.log_likelihood(M, many, x)
    assert float(fit.free_energy) > float(start)
    assert int(fit.status) == Status.CONVERGED
    assert len(fit.theta["pi"]) <= 5
    assert float(jnp.sum(fit.theta["pi"])) == pytest.approx(1, abs=16 * EPS)
    gap = jaxem.global_gap(M, fit.theta, x, tol=0.02)
    assert float(gap.nats) <= 0.1 + 0.02 + tolerance(0, 0.05)
    for K in (3, 6, 12):  # no rival of EM's is better by more than that
        rival = jaxem.em(M, {"pi": cast(np.full(K, 1 / K)), "mu": x[:: 75 // K][:K], "sigma": cast(0.6)}, x)
        assert float(rival.free_energy) <= float(fit.free_energy) + float(gap.nats)


def test_grow_without_room_says_so_and_bad_input():
    x = cast(np.array([-5.0, -4.9, 0.0, 0.1, 5.0, 5.1]))
    one = {"pi": cast([1.0]), "mu": cast([[0.0]]), "sigma": cast(0.5)}
    fit = jaxem.grow(gaussian.isotropic, one, x, max_components=2)
    assert int(fit.status) == Status.MAX_STEPS
    assert len(fit.theta["pi"]) == 2
    for call, name in (
        (lambda: jaxem.grow(M.hold("pi"), one, x), "m"),
        (lambda: jaxem.grow(gaussian.full, one, x), "m"),
        (lambda: jaxem.grow(M, one, x, tol=0.0), "tol"),
        (lambda: jaxem.grow(M, one, x, max_components=0), "max_components"),
        (lambda: jax.jit(lambda x: jaxem.grow(M, one, x))(x), "x"),
        (lambda: jaxem.dpmeans(x, 0.0), "penalty"),
        (lambda: jaxem.dpmeans(x, 1.0, max_steps=-1), "max_steps"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()


def sequential(x, w, price, steps=100):
    """DP-means row by row, from its definition; also the objective after each pass."""
    mu, label, trace = [np.average(x, 0, w)], np.zeros(len(x), int), []
    for _ in range(steps):
        old = label.copy()
        for n, row in enumerate(x):
            d = [((row - m) ** 2).sum() for m in mu]
            if w[n] * min(d) > price:
                mu.append(row.copy())
                label[n] = len(mu) - 1
            else:
                label[n] = int(np.argmin(d))
        used = [k for k in range(len(mu)) if (w * (label == k)).sum() > 0]
        label = np.array([used.index(k) if k in used else 0 for k in label])
        mu = [np.average(x[label == i], 0, w[label == i]) for i in range(len(used))]
        trace.append(w @ ((x - np.stack(mu)[label]) ** 2).sum(1) + price * len(mu))
        if (label == old).all():
            break
    return np.stack(mu), trace


def test_C24_dpmeans_is_its_definition_and_never_rises():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x = clumps(rng, 40, 1 + seed % 3) + (seed % 4 == 1) * 100
        x[:3] = x[3]
        w = rng.uniform(0.3, 2, 40) if seed % 2 else np.ones(40)
        x, w = np.asarray(cast(x), float), np.asarray(cast(w), float)
        price = rng.uniform(0.5, 8)
        mu, trace = sequential(x, w, price)
        fit = jaxem.dpmeans(cast(x), price, weights=cast(w))
        assert (np.diff(trace) <= 1e-9 * trace[0]).all()
        assert fit.theta["mu"].shape == mu.shape
        assert np.allclose(fit.theta["mu"], mu, rtol=1e-5)
        assert float(fit.free_energy) == pytest.approx(-trace[-1] / 2, rel=1e-4)
        assert int(fit.status) == Status.CONVERGED
        assert fit.theta["mu"].dtype == FLOAT
    assert len(jaxem.dpmeans(cast(x), 1e9).theta["pi"]) == 1
    assert int(jaxem.dpmeans(cast(x), 0.5, max_steps=1).status) == Status.MAX_STEPS


def test_C24_a_gibbs_draw_is_dpmeans_choice():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        D, C = rng.integers(1, 8), rng.integers(1, 6)
        x, mu = 3 * rng.normal(size=(9, D)), 3 * rng.normal(size=(C, D))
        price = ((x[0] - mu) ** 2).sum(1).min() * (1 + (seed % 3) * 1e-6)  # a near tie with λ
        check = limits.dpmeans_choice(cast(x), cast(mu), rng.integers(1, 1000, C), rng.uniform(0.1, 3), price, base=2.0)
        assert bool(check.holds), (seed, check)
    args = (cast([[0.2]]), cast([[0.0], [1.0]]), [3, 4])
    values = jax.vmap(lambda s: limits.dpmeans_choice(*args, s, 4.0).value)(cast([1.0, 0.3, 0.1]))
    assert bool(jnp.all(jnp.diff(values) < 0))  # it hardens


def test_C24_is_broken_without_the_counts():
    """The bound with 1 for n_• is none: a far cluster of many rows attracts."""
    x, mu, counts = cast([[0.45]]), cast([[0.0], [1.0]]), [1, 1000]
    check = limits.dpmeans_choice(x, mu, counts, 0.5, 9.0)
    assert bool(check.holds)
    assert float(check.value) > float(check.bound) - np.log(1001)
