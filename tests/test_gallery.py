"""Programs of the field through jaxem, each against NumPyro's own density at every assignment of its latents."""

import functools

import jax
import numpy as np
import pytest

import jaxem

from conftest import PRECISION
from gallery import ENTRIES, PENDING
from gallery.oracle import Oracle

EXACT = 1e-12 if PRECISION == 64 else 3e-5


def each(entries):
    """Parameters of a test, those with a known fault marked."""
    fault = {name: pytest.mark.xfail(strict=False, reason=PENDING[name]) for name in entries if name in PENDING}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=fault.get(n, ())) for n in entries])


RUN = [name for name, entry in ENTRIES.items() if entry.refusal is None]
REFUSED = [name for name, entry in ENTRIES.items() if entry.refusal is not None]


@functools.cache
def started(name):
    """(model, θ, the oracle)."""
    entry = ENTRIES[name]
    oracle = Oracle(entry.reference or entry.program, entry.x, entry.density, entry.skip_masked)
    return jaxem.from_numpyro(entry.program), entry.theta or oracle.start(), oracle


def free_energy(m, theta, x, temperature):
    return float(jaxem.em(m, theta, x, temperature=temperature, max_steps=0).free_energy)


@each(RUN)
def test_the_free_energy_is_the_sum_over_every_assignment(name):
    m, theta, oracle = started(name)
    x = ENTRIES[name].x
    if ENTRIES[name].density:
        wanted = oracle.log_density(theta)
        assert abs(free_energy(m, theta, x, 1.0) - wanted) <= EXACT * (1 + abs(wanted))
        return
    joint = oracle.joint(theta)
    for temperature in (1.0, 0.5, 0.0):
        found, wanted = free_energy(m, theta, x, temperature), joint.free_energy(temperature)
        assert abs(found - wanted) <= EXACT * (1 + abs(joint.prior) + np.abs(joint.log_joint).min()), temperature


@each([name for name in RUN if ENTRIES[name].density is None])
def test_marginals_are_shares_of_the_assignments_and_decode_the_best_of_them(name):
    m, theta, oracle = started(name)
    x = ENTRIES[name].x
    joint = oracle.joint(theta)
    for temperature in (1.0, 0.5):
        found, wanted = jaxem.marginals(m, theta, x, temperature), joint.marginals(temperature)
        assert set(found) == set(wanted)
        for site, counted in joint.latents.counted.items():
            table = np.reshape(found[site], wanted[site].shape)
            np.testing.assert_allclose(table[counted], wanted[site][counted], atol=10 * EXACT)
    decoded = jaxem.decode(m, theta, x)
    best = joint.log_joint.argmax()
    for site, counted in joint.latents.counted.items():
        values = joint.latents.assignments[site][best]
        np.testing.assert_array_equal(np.reshape(decoded[site], values.shape)[counted], values[counted])


@each(RUN)
def test_a_fit_never_falls_and_ends_at_a_maximum_or_says_that_it_does_not(name):
    m, theta, oracle = started(name)
    entry = ENTRIES[name]
    rise = [float(jaxem.em(m, theta, entry.x, max_steps=n).free_energy) for n in (0, 1, 2, 3)]
    fit = jaxem.em(m, theta, entry.x, max_steps=300)
    rise.append(float(fit.free_energy))
    assert (np.diff(rise) >= -EXACT * (1 + np.abs(rise[1:]))).all(), rise
    status = jaxem.Status(int(fit.status))
    assert status.name in entry.ends, status
    assert not oracle.outside(fit.theta), fit.theta
    wanted = oracle.log_density(fit.theta)
    if np.isfinite(wanted):
        assert abs(rise[-1] - wanted) <= EXACT * (1 + abs(wanted))
    if status == jaxem.Status.CONVERGED and PRECISION == 64:
        slopes = oracle.slopes(fit.theta)
        assert all(slope <= 1e-3 for slope in slopes.values()), slopes


@each(RUN)
def test_explain_says_which_updates_are_formulas(name):
    m, theta, _ = started(name)
    said = m.explain(theta, ENTRIES[name].x)
    for parameter in ENTRIES[name].closed:
        assert "gradient" not in said[parameter], said[parameter]
    for parameter in ENTRIES[name].climbs:
        assert "gradient" in said[parameter], said[parameter]


@each(REFUSED)
def test_it_is_refused_in_one_line_that_names_the_cause(name):
    entry = ENTRIES[name]
    m = jaxem.from_numpyro(entry.program)
    with pytest.raises(ValueError, match=entry.refusal) as refused:
        jaxem.em(m, m.init(jax.random.key(0), entry.x), entry.x)
    assert "\n" not in str(refused.value)
