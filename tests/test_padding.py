"""Rows of weight 0 up to one of a few sizes: another length is no other program, and the fit is the same."""

import jax
import numpy as np
import pytest

import jaxem
from jaxem._fit import loop, padding
from jaxem.families import gaussian, poisson

from cases import cast, tolerance


def test_sizes_are_few_and_waste_little():
    sizes = [padding.padded_size(N) for N in range(1, 5000)]
    assert all(N <= size <= max(1.125 * N, N + padding.LEAST) for N, size in enumerate(sizes, start=1))
    assert len(set(sizes)) < 70
    assert [padding.padded_size(size) for size in set(sizes)] == list(set(sizes))  # each is its own


def data(N, seed=0):
    rng = np.random.default_rng(seed)
    return cast(rng.normal(size=(N, 2)) + 4 * (rng.random((N, 1)) < 0.5))


@pytest.fixture
def not_padded(monkeypatch):
    """`em` as it was."""

    def fit(*args, **options):
        with monkeypatch.context() as changed:
            changed.setattr("jaxem._fit.em.padded", lambda m, theta, data: data)
            return jaxem.em(*args, **options)

    return fit


@pytest.mark.parametrize("m", [gaussian.full, gaussian.isotropic.hold("pi"), poisson.mixture], ids=repr)
def test_the_fit_is_that_of_the_rows_alone(m, not_padded):
    x = data(37) if m.name.startswith("gaussian") else np.random.default_rng(1).poisson(3.0, (37, 2))
    theta = jaxem.inits.kmeans_plus_plus(m, jax.random.key(1), x, 2)
    labels = np.where(np.arange(37) < 3, 1, -1)
    for options in ({}, {"weights": cast(np.random.default_rng(2).random(37))}, {"labels": labels}, {"temperature": 0}):
        ours, theirs = jaxem.em(m, theta, x, **options), not_padded(m, theta, x, **options)
        assert int(ours.status) == int(theirs.status)
        assert abs(int(ours.num_steps) - int(theirs.num_steps)) <= tolerance(0, 2)  # in float32 rounding ends a fit
        np.testing.assert_allclose(ours.free_energy, theirs.free_energy, rtol=tolerance(1e-13, 1e-5))
        for name in theta:
            # a step more or less, where F is flat to float32's rounding
            np.testing.assert_allclose(ours.theta[name], theirs.theta[name], rtol=tolerance(1e-9, 2e-2), atol=1e-4)


def test_missing_cells_and_lanes_are_padded_too():
    x = np.array(data(37))
    x[::5, 0] = np.nan
    m = gaussian.diagonal
    keys = jax.random.split(jax.random.key(0), 3)
    thetas = jax.vmap(lambda key: jaxem.inits.random_points(m, key, x[1:5], 2))(keys)
    counts = np.random.default_rng(0).poisson(1.0, (3, 37))
    fits = jaxem.em_batch(m, thetas, x, weights=counts, missing=True)
    for lane in range(3):
        theta = jax.tree.map(lambda leaf, lane=lane: leaf[lane], thetas)
        alone = jaxem.em(m, theta, np.repeat(x, counts[lane], axis=0), missing=True)
        assert float(alone.free_energy) == pytest.approx(float(fits.free_energy[lane]), rel=tolerance(1e-9, 1e-4))


def test_neighbours_in_length_share_a_program(monkeypatch):
    traced = []
    step = loop.step
    monkeypatch.setattr(loop, "step", lambda *args, **named: traced.append(1) or step(*args, **named))
    jax.clear_caches()
    m = gaussian.tied.hold("pi")  # of no other test
    counts = []
    for N in (290, 300, 301, 320):
        x = data(N, seed=N)
        jaxem.em(m, jaxem.inits.from_labels(m, x, np.arange(N) % 2), x)
        counts.append(len(traced))
    once = counts[0]
    assert counts == [once] * 4
    assert once > 0
    x = data(321)
    jaxem.em(m, jaxem.inits.from_labels(m, x, np.arange(321) % 2), x)
    assert len(traced) > once


def test_what_is_placed_or_traced_stays_as_it_is():
    x = data(37)
    theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(0), x, 2)
    seen = []

    def spy(m, theta, given):
        found = padding.padded(m, theta, given)
        seen.append(found.x.shape[0])
        return found

    with pytest.MonkeyPatch.context() as changed:
        changed.setattr("jaxem._fit.em.padded", spy)
        jax.jit(lambda x: jaxem.em(gaussian.isotropic, theta, x))(x)
        jaxem.em(gaussian.isotropic, theta, jax.device_put(x, jax.devices()[0]))
        jaxem.em(gaussian.isotropic, theta, x)
    assert seen == [37, 37, 40]
