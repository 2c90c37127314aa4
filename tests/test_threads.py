"""Threads may share jaxem: what eight of them do at once is to the bit what one does."""

import ast
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan

import jaxem
from jaxem._core.handlers import alone
from jaxem.families import gaussian

from cases import CASES, KINDS, afresh

THREADS = 8
PACKAGE = Path(jaxem.__file__).parent


def at_once(work):
    """work(i) in eight threads that start together: its results, or the first error."""
    gate, found = threading.Barrier(THREADS), [None] * THREADS

    def run(i):
        gate.wait()
        try:
            found[i] = work(i)
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


def the_same_as_alone(work):
    """`work(i)` is called in threads first, so that what it compiles is compiled there."""
    for i, found in enumerate(at_once(work)):
        jax.tree.map(np.testing.assert_array_equal, found, work(i))


@pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)
def test_first_calls_of_a_family(case):
    """One model new to all of them; its trace, and (for a gradient) the constraints that the program declares."""
    m, x = afresh(case.m), case.x()

    def work(i):
        theta = case.theta(i)
        of = m.coordinates(theta)
        return m.traced_table(theta, x), of.constrain(of.unconstrain(theta)), jaxem.em(m, theta, x, max_steps=2)

    the_same_as_alone(work)


def test_eight_families_at_once():
    models = [afresh(case.m) for case in CASES]
    the_same_as_alone(lambda i: jaxem.em(models[i], CASES[i].theta(), CASES[i].x(), max_steps=2))


def test_samples_first_and_later():
    m, theta = afresh(gaussian.full), next(case for case in CASES if case.name == "full").theta()
    for _ in range(3):
        the_same_as_alone(lambda i: jaxem.sample(m, theta, jax.random.key(i), 20))


def new_programs():
    """A mixture and a Markov chain, known to no cache."""

    def mixture(x):
        mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)

    def chain(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))

        def step(before, x):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[before]))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)
            return z, None

        scan(step, 0, x)

    return mixture, chain


def test_first_calls_of_programs():
    """Some new to several threads, some to one; of two lengths, for each of which a program is traced anew."""
    made, x = [*new_programs(), new_programs()[0]], np.random.default_rng(0).normal(size=12)

    def work(i):
        m, rows = jaxem.from_numpyro(made[i % 3]), x[: 10 + i // 4]
        theta = {"mu": np.array([-0.5, 0.5 + i])}
        return jaxem.em(m, theta, rows, max_steps=2), m.init(jax.random.key(i), rows)

    the_same_as_alone(work)


def test_a_program_may_call_jaxem_itself():
    """The lock lets its own thread through, and the inner trace is none of the outer's."""

    def program(x):
        start = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[-1.0], [1.0]]), "sigma": 1.0}
        _, z = jaxem.sample(gaussian.isotropic, start, jax.random.key(0), 2)
        mu = numpyro.param("mu", z.astype(float))
        with numpyro.plate("points", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)

    found = at_once(lambda i: jaxem.from_numpyro(program).init(jax.random.key(0), np.zeros(3))["mu"])
    assert all((mu == found[0]).all() for mu in found)


def test_handlers_around_a_call_do_not_see_into_it():
    theta = {"pi": jnp.full(2, 0.5), "mu": jnp.zeros((2, 1)), "sigma": 1.0}
    with numpyro.handlers.trace() as seen:
        jaxem.sample(gaussian.isotropic, theta, jax.random.key(0), 3)
        gaussian.isotropic.traced_table(theta | {"sigma": jnp.ones(())}, jnp.zeros((3, 1)))
    assert not seen


def test_an_error_in_a_program_frees_the_lock():
    with pytest.raises(KeyError), alone():
        raise KeyError
    assert (
        at_once(
            lambda i: len(
                jaxem.sample(
                    gaussian.isotropic, {"pi": np.ones(1), "mu": np.zeros((1, 1)), "sigma": 1.0}, jax.random.key(0), 2
                )[0]
            )
        )
        == [2] * THREADS
    )


def test_every_trace_of_a_program_is_taken_alone():
    """`get_trace`, wherever it is called in the package, stands under `with alone()`."""
    count = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        safe = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any("alone()" in ast.unparse(item) for item in block.items)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "get_trace":
                assert id(node) in safe, f"{path.name}, line {node.lineno}: a trace outside `with alone()`"
                count += 1
    assert count >= 5
