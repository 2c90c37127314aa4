"""The gradient M-step is of the same type as the closed form, climbs the same F and never falls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import Status

from cases import CASES, EPS, cast, tolerance

CASE = CASES[0]
THETA, X = CASE.theta(), CASE.x()


def test_lbfgs_reaches_the_closed_form():
    """One M-step by gradient, from the same γ, ends where the closed form does."""
    exact = jaxem.em(CASE.m, THETA, X, max_steps=1, tol=0)
    climbed = jaxem.em(jaxem.gradient_m_step(CASE.m, num_steps=60), THETA, X, max_steps=1, tol=0)
    assert float(climbed.free_energy) == pytest.approx(float(exact.free_energy), rel=tolerance(1e-9, 1e-4))
    for name in THETA:
        assert np.allclose(climbed.theta[name], exact.theta[name], atol=tolerance(1e-5, 1e-2))


@pytest.mark.parametrize("optimizer", [optax.adam(0.05), optax.sgd(0.3), optax.sgd(1e3)], ids=["adam", "sgd", "wild"])
def test_any_optimiser_raises_the_free_energy(optimizer):
    """Generalised EM: even an optimiser that overshoots cannot lower F, because the best point is kept."""
    m = jaxem.gradient_m_step(CASE.m, optimizer, num_steps=5)
    path = jaxem.em_path(m, THETA, X, num_steps=6)
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    assert (np.diff(trace) >= -64 * EPS * np.abs(trace).max()).all()
    assert int(jaxem.em(m, THETA, X, max_steps=20).status) != Status.DECREASED


def test_held_parameters_stay_and_weights_count():
    m = jaxem.gradient_m_step(CASE.m.hold("pi", "sigma"), num_steps=40)
    weights = cast(np.arange(60.0))
    fit = jaxem.em(m, THETA, X, weights=weights, max_steps=2, tol=0)
    exact = jaxem.em(CASE.m.hold("pi", "sigma"), THETA, X, weights=weights, max_steps=2, tol=0)
    assert np.array_equal(fit.theta["pi"], THETA["pi"])
    assert float(fit.theta["sigma"]) == float(THETA["sigma"])
    assert np.allclose(fit.theta["mu"], exact.theta["mu"], atol=tolerance(1e-5, 1e-2))


def test_it_is_a_mixture_like_any_other():
    m = jaxem.gradient_m_step(CASE.m, num_steps=40)
    assert float(jaxem.certify(m, THETA, X).C3) < tolerance(1e-5, 1e-2)  # stationary as far as L-BFGS went
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), THETA)
    fits = jax.vmap(lambda theta: jaxem.em(m, theta, X, max_steps=2))(many)
    assert fits.free_energy.shape == (2,)
    assert m.hold("mu").free == ("pi", "sigma")


def test_a_point_that_nothing_improves_is_returned_to_the_bit():
    m = jaxem.gradient_m_step(CASE.m, optax.sgd(0.0), num_steps=2)
    fit = jaxem.em(m, THETA, X, max_steps=3, tol=0)
    for name in THETA:
        assert np.array_equal(fit.theta[name], THETA[name])
