"""A program's rows: in chunks, weighed, spread and streamed it is the same program, to rounding."""

import functools

import jax
import numpy as np
import pytest
from programs import CASES

import jaxem
from jaxem._core.checks import enter
from jaxem._rows import chunks

EXACT = 1e-11
WHOLE = {"gaussian_hmm", "categorical_hmm", "switch", "factorial_hmm", "emissions_that_are_mixtures", "disguised"}
WHOLE |= {"one_step"}
ROWS = [name for name in CASES if name not in WHOLE]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two rows: the last one overlaps its neighbour where their number is odd."""
    monkeypatch.setattr(chunks, "TABLE_ENTRIES", 1)
    monkeypatch.setattr(chunks, "FEWEST", 2)


@functools.cache
def started(name):
    m = jaxem.from_numpyro(CASES[name].program)
    theta = m.init(jax.random.key(0), CASES[name].x)
    return m, *enter(m, theta, CASES[name].x)


def ready(m, theta, data):
    m.get_ready(theta, data)
    return data


def cut(m, data):
    return data._replace(x=m.by_rows("test", data.x, data.temperature.dtype))


@pytest.mark.parametrize("name", CASES)
def test_a_row_plate_is_found_or_what_stands_against_it_is_named(name):
    m, _, data = started(name)
    found = m.row_plate(data.x, data.temperature.dtype)
    assert (name in WHOLE) == isinstance(found, str), found
    assert found == "'s' is in no plate" if name == "switch" else True


hurried = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name", ROWS)
def test_a_step_by_chunks_is_a_step_on_whole_tables(name, small_chunks):
    m, theta, data = started(name)

    @hurried
    def step(theta, data):
        found = m.expect(theta, data)
        return found.free_energy, m.size(data), m.maximize(found.statistics, theta, data).theta

    whole, by_rows = (step(theta, ready(m, theta, data)) for data in (data, cut(m, data)))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(by_rows), strict=True):
        exact = EXACT if CASES[name].closed else 1e-6  # as far as a climb goes
        np.testing.assert_allclose(other, one, rtol=exact, atol=exact * (1 + np.abs(one).max()))
