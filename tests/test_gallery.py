"""Programs of the field through jaxem, each against NumPyro's own density at every assignment of its latents."""

import functools

import jax
import numpy as np
import pytest

import jaxem
from jaxem._core.checks import enter as prepare

from conftest import PRECISION
from gallery import ENTRIES, PENDING
from gallery.oracle import Oracle
from gallery.page import PAGE, is_formula, row, shortened, updates
from turns import TURN

EXACT = 1e-12 if PRECISION == 64 else 3e-5
STATIONARY = 1e-3  # nats per unit of an unconstrained coordinate; EM stops at 1e-10 nats an observation

# Each entry is a program of its own to compile, some ten seconds. One of each kind (its theme, whether it has formulas,
# whether something climbs) with every change: of those of a kind the one that JAXEM_TURN counts to, from 0 and round
# again, so that JAXEM_TURN=0, 1, 2, … come past every entry; JAXEM_TURN=all, `make gallery`, takes them at once.


def turn(names, kind):
    """Of the entries of each kind the one whose turn it is."""
    of_kind = {}
    for name in names:
        of_kind.setdefault(kind(ENTRIES[name]), []).append(name)
    return [name for some in of_kind.values() for name in (some if TURN == "all" else [some[int(TURN) % len(some)]])]


WRITTEN = {"idioms", "handled", "shapes", "sequences", "formulas"}  # themes about how a program is written
ACCEPTED = [name for name, entry in ENTRIES.items() if entry.refusal is None]
RUN = turn(ACCEPTED, lambda entry: (entry.theme, bool(entry.closed), bool(entry.climbs)))
SINGLE = turn([name for name in ACCEPTED if ENTRIES[name].single], lambda entry: entry.theme)
SUMMED = RUN if PRECISION == 64 else [name for name in RUN if ENTRIES[name].theme not in WRITTEN]
REFUSED = [name for name, entry in ENTRIES.items() if entry.refusal is not None]
FITTED = RUN if PRECISION == 64 else SINGLE
only_double = pytest.mark.skipif(PRECISION == 32, reason="does not depend on the precision")


def each(names):
    """The entries of a test, those that a fault stands against marked."""
    faults = {name: pytest.mark.xfail(reason=fault, strict=False) for name, fault in PENDING.items()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=faults.get(name, ())) for name in names])


@functools.cache
def started(name):
    """(model, θ, the oracle)."""
    entry = ENTRIES[name]
    oracle = Oracle(entry.reference or entry.program, entry.x, entry.theta)
    return jaxem.from_numpyro(entry.program), oracle.start(), oracle


def free_energy(m, theta, x):
    """T → F_T at θ; in float64 by the compiled fit that the other tests use."""
    if PRECISION == 64:
        return lambda temperature: float(jaxem.em(m, theta, x, temperature=temperature, max_steps=0).free_energy)
    theta, data = prepare(m, theta, x)
    expect = jax.jit(lambda temperature: m.expect(theta, data._replace(temperature=temperature)).free_energy)
    return lambda temperature: float(expect(np.float32(temperature)))


@each(SUMMED)
def test_the_free_energy_is_the_sum_over_every_assignment(name):
    """F_T = log p(θ) + T log Σ_z e^{log p(x, z | θ)/T}, at T = 1, ½ and 0."""
    m, theta, oracle = started(name)
    joint, of = oracle.joint(theta), free_energy(m, theta, ENTRIES[name].x)
    scale = 1 + abs(joint.prior) + np.abs(joint.log_joint).min()
    for temperature in (1.0, 0.5, 0.0):
        assert abs(of(temperature) - joint.free_energy(temperature)) <= EXACT * scale, temperature


@only_double
@each(RUN)
def test_marginals_are_shares_of_the_assignments_and_decode_the_best_of_them(name):
    m, theta, oracle = started(name)
    x, joint = ENTRIES[name].x, oracle.joint(theta)
    for temperature in (1.0, 0.5):
        found, wanted = jaxem.marginals(m, theta, x, temperature), joint.marginals(temperature)
        assert set(found) == set(wanted)
        for site, counted in joint.latents.counted.items():
            table = np.reshape(found[site], wanted[site].shape)
            np.testing.assert_allclose(table[counted], wanted[site][counted], atol=1e-11)
    decoded, best = jaxem.decode(m, theta, x), joint.log_joint.argmax()
    for site, counted in joint.latents.counted.items():
        values = joint.latents.assignments[site][best]
        np.testing.assert_array_equal(np.reshape(decoded[site], values.shape)[counted], values[counted])


@each(FITTED)
def test_a_fit_never_falls_and_says_truly_how_it_ended(name):
    """F rises; θ stays inside its constraints; CONVERGED is where the density of the data is stationary."""
    m, theta, oracle = started(name)
    entry = ENTRIES[name]
    fits = [jaxem.em(m, theta, entry.x, max_steps=most) for most in (0, 1, 2, 3, 300)]
    rise, fit = np.array([float(fit.free_energy) for fit in fits]), fits[-1]
    assert (np.diff(rise) >= -EXACT * (1 + np.abs(rise[1:]))).all(), rise
    status = jaxem.Status(int(fit.status)).name
    assert status in entry.ends, status
    assert not oracle.outside(fit.theta), fit.theta
    wanted = oracle.log_density(fit.theta)
    if np.isfinite(wanted):  # NumPyro's 0·log 0 is NaN
        assert abs(rise[-1] - wanted) <= 10 * EXACT * (1 + abs(wanted))
    if status == "CONVERGED" and PRECISION == 64:
        slopes = oracle.slopes(fit.theta)
        assert all(slope <= STATIONARY for slope in slopes.values()), slopes


@each(FITTED)
def test_explain_says_which_updates_are_formulas_and_so_does_the_page(name):
    """In both precisions the same."""
    m, theta, _ = started(name)
    entry, said = ENTRIES[name], m.explain(theta, ENTRIES[name].x)
    for parameter in entry.closed:
        assert is_formula(said[parameter]), said[parameter]
    for parameter in entry.climbs:
        assert not is_formula(said[parameter]), said[parameter]
    assert row(name, entry, updates(said)) in page()


@only_double
@each(REFUSED)
def test_it_is_refused_in_one_line_that_names_the_cause(name):
    entry = ENTRIES[name]
    m = jaxem.from_numpyro(entry.program)
    with pytest.raises(ValueError, match=entry.refusal) as refused:
        jaxem.em(m, m.init(jax.random.key(0), entry.x), entry.x)
    assert "\n" not in str(refused.value)
    assert row(name, entry, shortened(refused.value)) in page()


@only_double
def test_every_entry_has_its_turn(monkeypatch):
    kind = lambda entry: entry.theme  # noqa: E731
    seen = set()
    for count in range(len(ACCEPTED)):
        monkeypatch.setitem(globals(), "TURN", str(count))
        seen |= set(turn(ACCEPTED, kind))
    assert seen == set(ACCEPTED)
    assert {kind(ENTRIES[name]) for name in RUN} == {kind(ENTRIES[name]) for name in ACCEPTED}


@functools.cache
def page():
    return PAGE.read_text(encoding="utf-8").splitlines()


@only_double
def test_the_page_lists_every_program_once():
    listed = [line.split("`")[1] for line in page() if line.startswith("| `")]
    assert sorted(listed) == sorted(ENTRIES), "write it anew: see gallery/page.py"
    assert set(PENDING) <= set(ENTRIES)
