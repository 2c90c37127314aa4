"""Annealing followed: branches, their stability, splits and jumps (C13, C20)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status, limits
from jaxem._core.checks import enter
from jaxem.families import gaussian
from jaxem.limits import _anneal

from cases import cast, tolerance

M = gaussian.isotropic
HALVES = {"pi": cast([0.5, 0.5]), "sigma": cast(1.0)}


def test_two_centres_split_at_sigma_c_with_the_laws_amplitude():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) * [2.0, 1.0]
    x = cast(x - x.mean(0))
    first = limits.split(x)
    below = np.array([0.3, 0.1, 0.05, 0.01])  # 1 − σ²/λ
    sigmas = float(first.sigma) * np.sqrt(1 - np.array([-0.5, -0.1, *below[::-1]]))
    walk = jaxem.anneal(M, HALVES | {"mu": x[:2]}, x, cast(sigmas))
    assert walk.num_centres.tolist() == [1, 1, 2, 2, 2, 2]
    assert bool(jnp.all(walk.status == Status.CONVERGED))
    assert bool(jnp.all(walk.spectral_radius < 1 + tolerance(1e-9, 1e-2)))
    half = jnp.sqrt(jnp.sum((walk.theta["mu"][2:, 1] - walk.theta["mu"][2:, 0]) ** 2, axis=1)) / 2
    law = float(first.amplitude) * np.sqrt(float(first.sigma) ** 2 - sigmas[2:] ** 2)
    ratio = np.asarray(half) / law
    assert (np.abs(ratio - 1) < 3 * below[::-1] + tolerance(1e-3, 5e-2)).all(), ratio
    # each is a fixed point of EM, and its rate that of the Jacobian in library coordinates
    for i in (0, 3, 5):
        theta = {name: value[i] for name, value in walk.theta.items()}
        again = jaxem.em(M.hold("pi", "sigma"), theta, x, max_steps=1).theta["mu"]
        assert float(jnp.max(jnp.abs(again - theta["mu"]))) < tolerance(1e-9, 1e-4)
        rate = jaxem.convergence_rate(M.hold("pi", "sigma"), theta, x).spectral_radius
        assert float(rate) == pytest.approx(float(walk.spectral_radius[i]), abs=tolerance(1e-7, 1e-2))


def test_three_centres_jump_and_come_back_elsewhere():
    """Skewed data, K = 3: no small branch is stable (C20), so the walk jumps, and returns by another σ: hysteresis."""
    rng = np.random.default_rng(3)
    x = cast(np.concatenate([rng.normal(size=30) * 0.3, 4 + rng.normal(size=6) * 0.3])[:, None])
    critical = float(limits.critical_sigma(x))
    down = critical * np.linspace(1.25, 0.9, 8)
    theta = {"pi": cast(np.full(3, 1 / 3)), "mu": x[:3], "sigma": cast(1.0)}
    walk = jaxem.anneal(M, theta, x, cast(np.concatenate([down, down[::-1]])))
    there, back = np.asarray(walk.num_centres[:8]), np.asarray(walk.num_centres[8:])[::-1]
    assert (there[down > critical * 1.001] == 1).all()
    assert there[-1] > 1
    assert (back >= there).all()
    assert (back > there).any()  # above σ_c the way back is still split where the way there was not
    split_at = int(np.argmax(there > 1))
    assert float(walk.moved[split_at]) > 0.2 * critical
    higher = np.asarray(walk.free_energy[8:])[::-1] - np.asarray(walk.free_energy[:8])
    assert np.isfinite(higher).all()


def test_the_rival_is_the_best_of_many_starts():
    """Where the best of K centres has jumped away from the branch that is followed, C19's direction leads there."""
    rng = np.random.default_rng(3)
    x = cast(np.concatenate([rng.normal(size=30) * 0.3, 4 + rng.normal(size=6) * 0.3])[:, None])
    sigmas = cast(float(limits.critical_sigma(x)) * np.linspace(1.25, 0.9, 8))
    theta = {"pi": cast(np.full(3, 1 / 3)), "mu": x[:3], "sigma": cast(1.0)}
    walk = jaxem.anneal(M, theta, x, sigmas, rivals=True)
    starts = rng.choice(np.asarray(x)[:, 0], size=(100, 3))[..., None]
    lanes = {"pi": np.full((100, 3), 1 / 3), "mu": starts, "sigma": np.ones(100)}
    held = M.hold("pi", "sigma")
    best = [
        float(jnp.max(jaxem.em_batch(held, lanes | {"sigma": np.full(100, sigma)}, x, max_steps=3000).free_energy))
        for sigma in sigmas
    ]
    above = np.asarray(best) - np.asarray(walk.free_energy)
    np.testing.assert_allclose(np.maximum(above, 0), walk.rival, atol=tolerance(1e-6, 1e-2))
    metastable = above > tolerance(1e-6, 1e-2)
    assert metastable.any()
    assert not metastable.all()
    # where no mixture of any number of components is better, no rival is
    for i in np.flatnonzero(~metastable):
        at = {name: value[i] for name, value in walk.theta.items()}
        if float(jaxem.global_gap(M, at, x).nats) < 0.1:
            assert float(walk.rival[i]) == 0
    assert bool(jnp.all(jnp.isnan(jaxem.anneal(M, theta, x, sigmas).rival)))


def test_the_machine_does_not_choose_how_coincident_centres_part():
    """Three centres at the mean are unstable in a plane of directions: rounding of the data turns none of them."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(40, 2)) * [2.0, 1.0] + [0.3, -0.1]
    mean, sigma = x.mean(0), 1.5
    directions = []
    for noise in (0.0, tolerance(1e-13, 1e-6)):
        theta = {"pi": np.full(3, 1 / 3), "mu": np.tile(mean, (3, 1)), "sigma": sigma}
        theta, data = enter(M, theta, cast(x + noise * rng.normal(size=x.shape)), None)
        value, direction = _anneal.spectrum(theta, data, theta["mu"])
        assert float(value) > 1
        assert float(jnp.max(jnp.abs(jnp.sum(direction, axis=0)))) < tolerance(1e-9, 1e-3)  # the mean stays
        directions.append(np.asarray(direction))
    np.testing.assert_allclose(*directions, atol=tolerance(1e-6, 2e-2))


def test_a_walk_rests_at_maxima_only():
    """Where the way out of an unstable point ends at another saddle, that one is left in its turn."""
    for seed in (10, 28):
        x = np.random.default_rng(seed).gamma(1.0, size=(40, 2)) * [2.0, 1.0]
        theta = {"pi": cast(np.full(4, 0.25)), "mu": cast(np.tile(x.mean(0), (4, 1))), "sigma": cast(1.0)}
        sigmas = float(limits.critical_sigma(cast(x))) * np.array([0.999, 0.98, 0.9, 0.7, 0.5])
        walk = jaxem.anneal(M, theta, cast(x), cast(sigmas), max_steps=2000)
        assert float(jnp.max(walk.spectral_radius)) < 1 + tolerance(0, 1e-3)


def test_without_the_kick_the_mean_is_kept():
    """EM started exactly at the mean never leaves it, however unstable: what the walk does is not EM's doing."""
    x = cast(np.array([-1.0, -1.0, 1.0, 1.0])[:, None])
    centred = HALVES | {"mu": cast([[0.0], [0.0]]), "sigma": cast(0.5)}
    stuck = jaxem.em(M.hold("pi", "sigma"), centred, x).theta["mu"]
    assert float(jnp.max(jnp.abs(stuck))) == 0
    walk = jaxem.anneal(M, centred, x, cast([0.5]))
    assert sorted(np.asarray(walk.theta["mu"][0, :, 0]).round(1)) == [-1.0, 1.0]
    weighted = jaxem.anneal(M, centred, x[::2], cast([0.5]), weights=cast([2.0, 2.0]))
    assert float(weighted.free_energy[0]) == pytest.approx(float(walk.free_energy[0]), rel=tolerance(1e-10, 1e-4))


def test_no_sigma_takes_more_than_max_steps():
    """On whatever branches they are spent; an unstable point that there was no step left to leave is no end."""
    x = np.random.default_rng(10).gamma(1.0, size=(40, 2)) * [2.0, 1.0]
    theta = {"pi": cast(np.full(4, 0.25)), "mu": cast(np.tile(x.mean(0), (4, 1))), "sigma": cast(1.0)}
    sigmas = cast(float(limits.critical_sigma(cast(x))) * np.array([1.1, 0.5]))
    for max_steps in (0, 3, 12):
        walk = jaxem.anneal(M, theta, cast(x), sigmas, max_steps=max_steps)
        assert int(jnp.max(walk.num_steps)) <= max_steps
        assert walk.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS]


def test_anneal_in_vmap_and_bad_input():
    x = cast(np.array([-1.0, -1.0, 1.0, 1.0])[:, None])
    theta = HALVES | {"mu": cast([[0.1], [-0.1]])}
    both = jax.jit(jax.vmap(lambda s: jaxem.anneal(M, theta, s * x, s * cast([1.2, 0.6])).num_centres))(
        cast([1.0, 3.0])
    )
    assert both.tolist() == [[1, 2], [1, 2]]
    for call, name in (
        (lambda: jaxem.anneal(M, theta, x, 1.0), "sigmas"),
        (lambda: jaxem.anneal(M, theta, x, cast([1.0, 0.0])), "sigmas"),
        (lambda: jaxem.anneal(gaussian.full, theta, x, cast([1.0])), "m"),
        (lambda: jaxem.anneal(M, theta, x, cast([1.0]), max_steps=-1), "max_steps"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            call()
