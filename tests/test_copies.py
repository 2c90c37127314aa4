"""A model is a value: equal to its copies and to what its pickle gives back, which run what is compiled for it."""

import copy
import functools
import pickle
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
import pytest

import jaxem
from jaxem._core.values import Partial, by_value
from jaxem.families import bernoulli, gaussian, poisson

from cases import CASES

pytestmark = pytest.mark.takes_turns("name")

traces = []


def counted(theta, x):
    """A kernel that notes when it is traced."""
    traces.append(1)
    return gaussian.spherical.kernel(theta, x)


def program(x, num_components=2):
    traces.append(1)
    mu = numpyro.param("mu", jnp.arange(-0.5, num_components - 0.5))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.ones(num_components) / num_components))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@dataclass(frozen=True)
class Clusters:
    """A program as a method, and as what calls it."""

    num_components: int

    def model(self, x):
        return program(x, self.num_components)

    def __call__(self, x):
        return self.model(x)


def scaled(theta, x, factor):
    return factor * gaussian.spherical.kernel(theta, x)


def models():
    """name → a function that makes the model: twice called, the same twice."""
    made = {case.name: lambda m=case.m: m for case in CASES}
    made |= {f"held {name}": lambda m=m: m().hold("pi") for name, m in list(made.items())}
    made |= {
        "floored": lambda: gaussian.with_floor(gaussian.full, 0.01),
        "floored, held": lambda: gaussian.with_floor(gaussian.diagonal.hold("pi"), 0.01).hold("mu"),
        "gradient": lambda: jaxem.gradient_m_step(gaussian.isotropic),
        "gradient of an exponential family": lambda: jaxem.gradient_m_step(bernoulli.mixture.hold("pi"), num_steps=3),
        "a user's partial": lambda: replace(gaussian.spherical, kernel=functools.partial(scaled, factor=1.0)),
        "a user's method": lambda: replace(poisson.mixture, statistics=poisson.family.statistics),
        "program": lambda: jaxem.from_numpyro(program),
        "program, options": lambda: jaxem.from_numpyro(program, num_gradient_steps=3, closed_form=False),
        "program, held": lambda: jaxem.from_numpyro(program).hold("mu"),
        "program, partial": lambda: jaxem.from_numpyro(functools.partial(program, num_components=3)),
        "program, method": lambda: jaxem.from_numpyro(Clusters(3).model),
        "program, object": lambda: jaxem.from_numpyro(Clusters(3)),
    }
    return made


MODELS = models()
COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy} | {
    f"pickle {protocol}": lambda m, protocol=protocol: pickle.loads(pickle.dumps(m, protocol)) for protocol in (2, 4, 5)
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_its_copies(name):
    m = MODELS[name]()
    assert MODELS[name]() == m  # made anew
    for how, copied in COPIES.items():
        assert copied(m) == m, how
        assert hash(copied(m)) == hash(m), how
        assert copied(copied(m)) == m, how


def test_models_that_differ_still_differ():
    made = [MODELS[name]() for name in MODELS]
    for i, m in enumerate(made):
        assert [other == m for other in made].count(True) == (2 if m == poisson.mixture else 1), list(MODELS)[i]
    assert Partial(scaled, factor=1) != Partial(scaled, factor=True) != Partial(scaled, factor=1.0)
    assert jaxem.from_numpyro(functools.partial(program, num_components=2)) != jaxem.from_numpyro(program)


def test_what_holds_arrays_is_known_by_what_it_is():
    """Two arrays are not compared: a model made of one is itself alone, and works as before."""
    rows = functools.partial(scaled, factor=jnp.ones(3))
    assert by_value(rows) is rows
    m = replace(gaussian.spherical, kernel=rows)
    assert m == copy.copy(m)
    assert by_value(Partial(scaled, factor=1.0)) == Partial(scaled, factor=1.0)


def test_copies_run_what_was_compiled_for_the_first(key):
    x = jax.random.normal(key, (40, 2))
    theta = {"pi": jnp.full(2, 0.5), "mu": x[:2], "sigma": jnp.ones(2)}
    rows = x[:, 0]
    kinds = {
        "family": (lambda: gaussian.with_floor(replace(gaussian.spherical, kernel=counted), 0.01), theta, x),
        "climbing": (lambda: jaxem.gradient_m_step(replace(gaussian.spherical, kernel=counted)), theta, x),
        "program": (lambda: jaxem.from_numpyro(functools.partial(program, num_components=2)), {"mu": rows[:2]}, rows),
    }
    for make, theta, x in kinds.values():
        fit = jaxem.em(make(), theta, x, max_steps=2)
        seen = len(traces)
        for copied in (*COPIES.values(), lambda m: make()):  # noqa: B023
            again = jaxem.em(copied(make()), theta, x, max_steps=2)
            assert again.free_energy == fit.free_energy
        assert len(traces) == seen


def test_an_optimizer_of_closures_is_equal_after_a_deepcopy():
    m = jaxem.gradient_m_step(gaussian.isotropic, optax.adam(0.1))
    assert copy.deepcopy(m) == m


def test_a_model_comes_back_in_another_process():
    """As with multiprocessing's spawn: the names are all that a pickle holds of a function."""
    made = [case.m.hold("pi") for case in CASES] + [MODELS["floored"](), MODELS["gradient"]()]
    command = (
        "import pickle, sys; made = pickle.loads(sys.stdin.buffer.read()); sys.stdout.buffer.write(pickle.dumps(made))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command],
        input=pickle.dumps(made),
        capture_output=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert pickle.loads(done.stdout) == made
