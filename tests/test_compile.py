"""Programs of jaxem's own are compiled as it wishes, parts of a caller's as the caller does."""

import jax
import jax.numpy as jnp
import pytest

from jaxem._core import tracing

import xla_flags


def test_options_are_for_programs_of_its_own(monkeypatch):
    """An option that XLA does not know shows where it arrives: JAX lets no part of a program have any."""
    monkeypatch.setattr(tracing, "OPTIONS", {"no_such_option": 1})
    monkeypatch.setattr(tracing, "accepted", dict)
    double = tracing.compiled(lambda x: 2 * x)
    with pytest.raises(Exception, match="no_such_option"):
        double(1.0)
    assert jax.jit(double)(1.0) == 2
    assert jax.jit(lambda: double(2.0))() == 4  # nothing that it is given is traced
    assert jax.grad(double)(1.0) == 2
    assert jax.vmap(double)(jnp.ones(3)).tolist() == [2, 2, 2]


def test_where_little_is_to_be_done_it_is_compiled_quickly(monkeypatch):
    monkeypatch.setattr(tracing, "QUICKLY", {"no_such_option": 1})
    monkeypatch.setattr(tracing, "LITTLE", 4)
    monkeypatch.setattr(tracing, "accepted", dict)
    double = tracing.compiled(lambda tree: 2 * tree["x"])
    assert double({"x": jnp.ones(5)}).tolist() == 5 * [2]
    with pytest.raises(Exception, match="no_such_option"):
        double({"x": jnp.ones(4)})


def test_it_takes_the_options_of_jit():
    power = tracing.compiled(lambda x, n: x**n, static_argnames="n")
    assert power(3.0, n=2) == jax.jit(power, static_argnames="n")(3.0, n=2) == 9


def test_an_option_that_this_xla_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(tracing, "OPTIONS", {"no_such_option": 1})
    assert tracing.compiled(lambda x: 2 * x)(1.0) == 2
    options = (("xla_backend_optimization_level", 1), ("no_such_option", 1))
    assert tracing.accepted(options) == {"xla_backend_optimization_level": 1}


def test_flags_that_this_xla_does_not_know_are_left_out():
    """Else the process that runs the tests would abort."""
    assert xla_flags.is_known("xla_backend_optimization_level", 1)
    assert not xla_flags.is_known("xla_no_such_flag", 1)
