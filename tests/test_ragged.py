"""Sequences of different lengths as one array: F, its gradient and the M-step are those of each by itself, summed."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import jaxem

from cases import cast, tolerance

RNG = np.random.default_rng(2)
SEQUENCES = [cast(RNG.gamma(2.0, size=(length, 2))) for length in (5, 1, 3)]
THETA = {
    "A": cast(np.array([[0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])),
    "rate": cast(np.array([[0.5, 1.0], [2.0, 0.7]])),
}
CLOSE = {"rtol": tolerance(1e-12, 2e-5), "atol": tolerance(1e-12, 1e-5)}


def program(x, lengths):
    """Gamma emissions, in whose support padding by zeros would not lie; the last row of A is the start."""
    A = numpyro.param("A", THETA["A"], constraint=constraints.simplex)
    rate = numpyro.param("rate", THETA["rate"], constraint=constraints.positive)

    def step(carry, x):
        z, t = carry
        with numpyro.plate("sequences", len(x)), handlers.mask(mask=t < lengths):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.sample("x", dist.Gamma(2.0, rate[z]).to_event(1), obs=x)
        return (z, t + 1), None

    scan(step, (jnp.full(len(x), 2), 0), jnp.swapaxes(x, 0, 1))


M = jaxem.from_numpyro(program)


def likelihood(theta, sequences):
    return jaxem.log_likelihood(M, theta, jaxem.ragged(sequences))


@pytest.fixture(scope="module")
def one_by_one():
    """(F, its gradient, the marginals) of each sequence."""
    value = jax.value_and_grad(likelihood)
    return [(*value(THETA, [some]), jaxem.marginals(M, THETA, jaxem.ragged([some]))["z"][:, 0]) for some in SEQUENCES]


def test_its_free_energy_and_gradient_are_those_of_each_summed(one_by_one):
    value, gradient = jax.value_and_grad(likelihood)(THETA, SEQUENCES)
    np.testing.assert_allclose(value, sum(F for F, _, _ in one_by_one), **CLOSE)
    for name in THETA:
        np.testing.assert_allclose(gradient[name], sum(g[name] for _, g, _ in one_by_one), **CLOSE)


def test_its_m_step_is_that_of_each_summed(one_by_one):
    """Expected transitions are A·∂F/∂A, by Fisher's identity; the rates are shapes over means."""
    transitions = sum(THETA["A"] * g["A"] for _, g, _ in one_by_one)
    rows = sum(gamma.sum(axis=0) for _, _, gamma in one_by_one)
    sums = sum(gamma.T @ some for (_, _, gamma), some in zip(one_by_one, SEQUENCES, strict=True))
    theta = jaxem.em(M, THETA, jaxem.ragged(SEQUENCES), max_steps=1).theta
    np.testing.assert_allclose(theta["A"], transitions / transitions.sum(axis=1, keepdims=True), **CLOSE)
    np.testing.assert_allclose(theta["rate"], 2.0 * rows[:, None] / sums, **CLOSE)


def test_rows_end_to_end_with_their_lengths():
    x, lengths = jaxem.ragged(SEQUENCES)
    assert x.shape == (3, 5, 2)
    assert lengths.tolist() == [5, 1, 3]
    other, counts = jaxem.ragged(jnp.concatenate(SEQUENCES), [5, 1, 3])
    assert jnp.array_equal(other, x)
    assert jnp.array_equal(counts, lengths)
    assert jaxem.ragged([[1, 2], [3]])[0].tolist() == [[1, 2], [3, 3]]
    traced = jax.jit(lambda x: jaxem.ragged(x, [2, 1])[0])(jnp.arange(3.0))
    assert traced.tolist() == [[0.0, 1.0], [2.0, 2.0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), r"sequences: is empty"),
        ((jnp.ones((2, 3)),), r"sequences: must be a list of arrays, got .*tell the lengths"),
        (([[1.0], []],), r"sequences\[1\]: must be \(time, …\) with a step at least"),
        (([1.0, 2.0],), r"sequences\[0\]: must be \(time, …\)"),
        (([jnp.ones((2, 2)), jnp.ones((2, 3))],), r"sequences\[1\]: has rows of shape \(3,\), the first of \(2,\)"),
        (([["a"]],), r"sequences\[0\]: must be numeric"),
        ((jnp.ones(4), [2, 1]), r"lengths: add up to 3, and sequences has 4 rows"),
        ((jnp.ones(4), [4, 0]), r"lengths: must be a list of integers ≥ 1"),
    ],
)
def test_what_is_wrong_is_called_by_its_name(arguments, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        jaxem.ragged(*arguments)
