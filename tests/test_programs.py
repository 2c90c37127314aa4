"""EM for any NumPyro program, against brute force over every assignment of its latents."""

import functools

import jax
import numpy as np
import pytest
from programs import CASES, KINDS, RISING, brute_force
from scipy.special import logsumexp, softmax

import jaxem
from jaxem._core.checks import enter as prepare

from gallery.page import is_formula

pytestmark = pytest.mark.takes_turns("name")

EXACT = 1e-12


@functools.cache
def started(name):
    """(model, θ, brute force at θ)."""
    case = CASES[name]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(jax.random.key(0), case.x)
    return m, theta, brute_force(case, theta)


UNSCALED = [name for name in CASES if not CASES[name].scaled]


@pytest.mark.parametrize("name", UNSCALED)
def test_the_free_energy_is_the_sum_over_every_assignment(name):
    """F_T = log p(θ) + T log Σ_z e^{log p(x, z | θ)/T}; at T = 0 the maximum; at T = 1 what NumPyro sums itself."""
    m, theta, brute = started(name)
    theta, data = prepare(m, theta, CASES[name].x)
    expect = jax.jit(lambda temperature: m.expect(theta, data._replace(temperature=temperature)).free_energy)
    prior = float(jax.jit(lambda: m.log_prior(theta, data))())
    log_joint = brute.log_density - prior
    for temperature in (1.0, 0.5, 0.0):
        wanted = prior + (temperature * logsumexp(log_joint / temperature) if temperature else log_joint.max())
        assert abs(float(expect(temperature)) - wanted) <= EXACT * (1 + np.abs(log_joint).max()), temperature


@pytest.mark.parametrize("name", UNSCALED)
def test_marginals_are_the_shares_of_the_assignments_and_decode_the_best_of_them(name):
    m, theta, brute = started(name)
    for temperature in (1.0, 0.5):
        found = jaxem.marginals(m, theta, CASES[name].x, temperature)
        share = softmax(brute.log_density / temperature)
        assert set(found) == set(brute.assignments)
        for site, values in brute.assignments.items():
            wanted = np.stack([np.tensordot(share, values == k, 1) for k in range(brute.sizes[site])], axis=-1)
            np.testing.assert_allclose(found[site], wanted.reshape(found[site].shape), atol=1e-12)
    decoded = jaxem.decode(m, theta, CASES[name].x)
    hard = jaxem.marginals(m, theta, CASES[name].x, 0.0)
    best = brute.log_density.argmax()
    for site, values in brute.assignments.items():
        np.testing.assert_array_equal(decoded[site], values[best].reshape(decoded[site].shape))
        np.testing.assert_array_equal(hard[site], jax.nn.one_hot(decoded[site], brute.sizes[site]))


@pytest.mark.parametrize("name", RISING)
def test_no_half_step_lowers_the_free_energy(name):
    m, theta, _ = started(name)
    for temperature in (1.0, 0.0):
        path = jaxem.em_path(m, theta, CASES[name].x, num_steps=4, temperature=temperature)
        trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
        trace = trace[: np.argmax(~np.isfinite(trace)) or None]  # five rows may end in a collapse
        assert len(trace) >= 3
        assert (np.diff(trace) >= -1e-12 * np.abs(trace[1:])).all(), trace


@pytest.mark.parametrize("name", KINDS)
def test_certificates_hold_away_from_any_fixed_point(name):
    m, theta, _ = started(name)
    certificate = jaxem.certify(m, theta, CASES[name].x)
    assert bool(certificate._replace(C3=certificate.C3 * (1e-12 / CASES[name].solved)).holds(1e-12)), certificate
    assert CASES[name].closed == all(is_formula(why) for why in m.explain(theta, CASES[name].x).values())
