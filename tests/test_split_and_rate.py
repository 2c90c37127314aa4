"""C20, C20′: the first split; C21: EM's rate without Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from cases import cast, clumps, tolerance

M = gaussian.isotropic.hold("pi", "sigma")


def rows(seed, N=40):
    """Normal, skewed, two-point; duplicates; far from the origin; D 1 to 3."""
    rng = np.random.default_rng(seed)
    D = 1 + seed % 3
    draw = [
        rng.normal,
        lambda size: rng.gamma(1.0, size=size),
        lambda size: rng.choice([-1.0, 2.0], size=size),
    ]
    x = draw[seed % 3](size=(N, D)) * np.array([2.0, 1.0, 0.5])[:D] @ np.linalg.qr(rng.normal(size=(D, D)))[0]
    x[:3] = x[3]
    return rng, x + (seed % 4 == 1) * 100.0


def test_C20_the_moments_are_numpys():
    for seed in range(6):
        rng, x = rows(seed)
        w = rng.uniform(0.2, 2, len(x))
        found = limits.split(cast(x), weights=cast(w))
        centred = x - np.average(x, 0, w)
        values, vectors = np.linalg.eigh((centred * w[:, None]).T @ centred / w.sum())
        y = centred @ vectors[:, -1]
        assert float(found.sigma) == pytest.approx(np.sqrt(values[-1]), rel=tolerance(1e-10, 1e-3))
        assert abs(np.asarray(found.direction) @ vectors[:, -1]) == pytest.approx(1, abs=tolerance(1e-9, 1e-2))
        assert float(found.fourth) == pytest.approx(w @ y**4 / w.sum(), rel=tolerance(1e-9, 1e-2))
        assert abs(float(found.third)) == pytest.approx(abs(w @ y**3) / w.sum(), rel=tolerance(1e-7, 5e-2), abs=1e-2)


def test_C20_two_centres_leave_the_mean_with_the_laws_amplitude():
    """An asymptotic law: the ratio is 1 up to O(1 − σ²/λ), in both directions of that error."""
    if tolerance(64, 32) == 32:
        pytest.skip("amplitudes of 1e-3 need float64")
    for seed in (0, 1, 2):
        _, x = rows(seed)
        found = limits.split(cast(x))
        for below in (1e-2, 1e-3):
            sigma = float(found.sigma) * np.sqrt(1 - below)
            mu = found.pair(jnp.mean(cast(x), axis=0), sigma)
            a = pair_amplitude(x, sigma, float(jnp.linalg.norm(mu[1] - mu[0])) / 2, np.asarray(found.direction))
            law = float(found.amplitude) * np.sqrt(float(found.sigma) ** 2 - sigma**2)
            assert abs(a / law - 1) < 3 * below, (seed, below)


def test_later_splits_are_eigenvalues_of_EMs_jacobian():
    """C13 of a cluster (Rose 1998): where m centres coincide at a fixed point, λ_i(C_k)/σ², m − 1 times each."""
    for seed in (0, 1):
        rng, x = rows(3 * seed + 1, 30)
        x, w = cast(np.concatenate([x, x + np.array([9.0, 2.0])])), cast(rng.uniform(0.2, 2, 60))
        pi, sigma = cast([0.4, 0.3, 0.1, 0.2]), 2.0 * float(jnp.std(x[:30, 0]))
        apart = {"pi": cast([0.4, 0.6]), "mu": jnp.stack([x[:30].mean(0), x[30:].mean(0)]), "sigma": cast(sigma)}
        mu = jaxem.em(M, apart, x, weights=w, tol=0.0).theta["mu"]
        theta = apart | {"pi": pi, "mu": mu[jnp.array([0, 1, 1, 1])]}
        found = np.asarray(limits.critical_sigmas(M, theta, x, weights=w))
        np.testing.assert_allclose(found[1:], found[1], rtol=tolerance(1e-12, 1e-5))
        eigenvalues = np.linalg.eigvals(np.asarray(jaxem.convergence_rate(M, theta, x, weights=w).jacobian, float)).real
        gamma = np.asarray(jaxem.responsibilities(M, theta, x), float)[:, 1] * np.asarray(w, float)
        centred = np.asarray(x, float) - np.asarray(theta["mu"][1], float)
        expected = np.linalg.eigvalsh((centred * gamma[:, None]).T @ centred / gamma.sum()) / sigma**2
        assert found[1] == pytest.approx(sigma * np.sqrt(expected[-1]), rel=tolerance(1e-9, 1e-3))
        for value in expected:
            assert (np.abs(eigenvalues - value) < tolerance(1e-7, 2e-3)).sum() >= 2, (eigenvalues, expected)
    together = {"pi": cast([0.5, 0.5]), "mu": jnp.stack([x.mean(0)] * 2), "sigma": cast(1.0)}
    critical = np.full(2, limits.critical_sigma(x))
    np.testing.assert_allclose(limits.critical_sigmas(M, together, x), critical, rtol=tolerance(1e-12, 1e-4))
    with pytest.raises(ValueError, match=r"^m: "):
        limits.critical_sigmas(gaussian.full, together, x)


def test_where_components_split_does_not_mind_where_the_rows_lie():
    x = np.random.default_rng(0).normal(size=(200, 2))
    far = cast(x + tolerance(1e12, 1e5))
    near = cast(np.asarray(far, float) - np.asarray(far, float).mean(0))  # what the offset left of them
    together = {"pi": cast([0.5, 0.5]), "mu": jnp.stack([far.mean(0)] * 2), "sigma": cast(1.0)}
    for critical in (limits.critical_sigmas(M, together, far)[0], limits.split(far).sigma):
        assert float(critical) == pytest.approx(float(limits.split(near).sigma), rel=tolerance(1e-10, 1e-5))


def pair_amplitude(x, sigma, start, v):
    """The stable pair's half distance: EM in NumPy, extrapolated (its rate is 1 − 2·(1 − σ²/λ))."""
    x = x - x.mean(0)
    mu = np.stack([-start * v, start * v])
    for _ in range(60):
        previous = mu
        images = [mu]
        for _ in range(2):
            d = ((x[:, None] - images[-1][None]) ** 2).sum(-1) / (2 * sigma**2)
            g = np.exp(-(d - d.min(1, keepdims=True)))
            g /= g.sum(1, keepdims=True)
            images.append(g.T @ x / g.sum(0)[:, None])
        r, t = images[1] - images[0], images[2] - 2 * images[1] + images[0]
        alpha = -np.linalg.norm(r) / max(np.linalg.norm(t), 1e-300)
        mu = images[0] - 2 * alpha * r + alpha**2 * t  # SQUAREM
        d = ((x[:, None] - mu[None]) ** 2).sum(-1) / (2 * sigma**2)
        g = np.exp(-(d - d.min(1, keepdims=True)))
        g /= g.sum(1, keepdims=True)
        mu = g.T @ x / g.sum(0)[:, None]
        if np.abs(mu - previous).max() < 1e-13:
            break
    return np.linalg.norm(mu[1] - mu[0]) / 2


def test_C20_prime_no_pair_beats_the_mean_above_sigma_c():
    for seed in range(20):
        rng, x = rows(seed)
        w = rng.uniform(0.2, 2, len(x)) if seed % 2 else np.ones(len(x))
        critical = limits.split(cast(x), weights=cast(w)).sigma * (1 + tolerance(1e-12, 1e-5))
        size = 10.0 ** rng.uniform(-3, 1)
        mu = x.mean(0) + size * rng.normal(size=(2, x.shape[1]))
        for factor in (1.0, 1.3, 4.0):
            check = limits.before_the_split(cast(x), cast(mu), factor * critical, weights=cast(w))
            assert bool(check.holds), (seed, factor, check)


def test_C20_prime_is_broken_below_sigma_c_but_not_by_the_stable_pair_far_above():
    """99 rows at 0 and one at 10: a stable pair beside the mean up to 6λ, which is no global maximum."""
    x = cast(np.append(np.zeros(99), 10.0)[:, None])
    found = limits.split(x)
    assert float(found.sigma) ** 2 == pytest.approx(0.99, rel=1e-5)
    pair = cast([[0.0], [10.0]])
    sigma = np.sqrt(2) * found.sigma
    stable = jaxem.em(M, limits.parameters(pair, sigma), x).theta["mu"]
    assert float(jnp.max(jnp.abs(stable - pair))) < 0.5
    assert bool(limits.before_the_split(x, stable, sigma).holds)
    below = 0.97 * found.sigma
    law = found.pair(jnp.mean(x, axis=0), below)
    assert not bool(limits.before_the_split(x, law, below).holds)


def test_C21_the_rate_is_bounded():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x = clumps(rng, 30, 2)
        x[:3] = x[3]
        w = rng.uniform(0.3, 2, 30) if seed % 2 else None
        pi = rng.dirichlet(np.full(3, 4.0)) if seed % 3 else np.full(3, 1 / 3)
        sigma = rng.uniform(0.3, 1.2)
        theta = cast({"pi": pi, "mu": x[:9:3], "sigma": np.asarray(sigma)})
        if seed == 4:
            theta = theta | {"mu": jnp.mean(cast(x), axis=0)[None] * jnp.ones((3, 1))}  # the coincident point
        w = None if w is None else cast(w)
        theta = jaxem.em(M, theta, cast(x), weights=w, tol=0.0, max_steps=3000).theta
        bound = float(limits.rate_bound(M, theta, cast(x), weights=w))
        B = np.asarray(limits.rate_matrix(M, theta, cast(x), weights=w), float)
        rate = float(jaxem.convergence_rate(M, theta, cast(x), weights=w).spectral_radius)
        assert rate <= bound * (1 + tolerance(1e-9, 1e-3)) + tolerance(1e-9, 1e-3)
        assert bound <= B.sum(1).max() * (1 + tolerance(1e-12, 1e-5))
        assert bound == pytest.approx(np.abs(np.linalg.eigvals(B)).max(), rel=tolerance(1e-4, 1e-3))
        blocks = np.asarray(jacobian(theta, cast(x), w))
        norms = np.linalg.norm(blocks.transpose(0, 2, 1, 3), ord=2, axis=(2, 3))
        assert (norms <= B * (1 + tolerance(1e-9, 1e-3)) + tolerance(1e-12, 1e-5)).all()


def jacobian(theta, x, w):
    """∂M/∂μ, (K, D, K, D), by jax."""

    def em_map(mu):
        gamma = jaxem.responsibilities(M, theta | {"mu": mu}, x) * (1.0 if w is None else w[:, None])
        return gamma.T @ x / jnp.sum(gamma, axis=0)[:, None]

    return jax.jacfwd(em_map)(theta["mu"])


def test_C21_the_rate_vanishes_with_sigma_and_the_bound_can_be_broken():
    x, mu = cast([[-1.2], [-1.0], [-0.8], [0.9], [1.1]]), cast([[-1.0], [1.0]])
    bounds = jax.vmap(lambda s: limits.rate_bound(M, limits.parameters(mu, s), x))(cast([0.5, 0.3, 0.2, 0.1]))
    assert bool(jnp.all(jnp.diff(bounds) < 0))
    assert float(bounds[-1]) < 1e-20
    theta = limits.parameters(cast([[0.0], [0.0]]), 0.9)  # at the mean the rate is λ/σ², and the bound attained
    centred = x - jnp.mean(x, axis=0)[None]
    exact = float(jnp.mean(centred**2)) / 0.81
    at_mean = float(limits.rate_bound(M, theta, centred))
    assert at_mean == pytest.approx(exact, rel=tolerance(1e-9, 1e-4))
    assert 0.999 * at_mean < exact * (1 + 1e-6)  # a thousandth less would be no bound
    with pytest.raises(ValueError, match=r"^m: "):
        limits.rate_bound(gaussian.full, theta, x)
    with pytest.raises(ValueError, match=r"^mu: "):
        limits.before_the_split(x, cast([[0.0]]), 1.0)
