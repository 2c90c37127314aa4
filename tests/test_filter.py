"""What is known of a chain while its data come in, held to every path of short sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from chain import MU, START, THETA, A, M, Y, every_path, last_given
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from programs import CASES
from scipy.stats import norm

import jaxem
from jaxem.families import gaussian

from cases import FLOAT, cast, tolerance

CLOSE = {"rtol": 0, "atol": tolerance(1e-12, 2e-6)}


def test_each_step_is_known_from_the_data_until_then():
    found = jaxem.filter(M, THETA, Y)["z"]
    assert found.dtype == FLOAT
    for t in range(6):
        np.testing.assert_allclose(found[t], last_given(*every_path(Y[: t + 1])), **CLOSE)
    np.testing.assert_allclose(found[:1], jaxem.filter(M, THETA, Y[:1])["z"], **CLOSE)  # a scan of one step


def test_inside_jit_and_vmap():
    many = jnp.stack([Y, Y[::-1], -Y])
    found = jax.jit(jax.vmap(lambda y: jaxem.filter(M, THETA, y)["z"]))(many)
    for lane, y in zip(found, many, strict=True):
        np.testing.assert_allclose(lane, jaxem.filter(M, THETA, y)["z"], **CLOSE)


def test_a_long_chain_keeps_its_digits():
    y = cast(np.random.default_rng(0).normal(size=3000) * 50)  # log p of −4e6: its rounding is no digit of the filter's
    alpha, found = START * norm.pdf(float(y[0]), MU, 0.8), np.asarray(jaxem.filter(M, THETA, y)["z"])
    log_e = norm.logpdf(np.asarray(y, float)[:, None], MU, 0.8)
    for t in range(3000):
        before = START if t == 0 else alpha @ A
        alpha = before * np.exp(log_e[t] - log_e[t].max())
        alpha = alpha / alpha.sum()
        np.testing.assert_allclose(found[t], alpha, atol=tolerance(1e-11, 2e-3))


@pytest.mark.takes_turns("name")
@pytest.mark.parametrize("name", ["gaussian_hmm", "factorial_hmm", "disguised"])
def test_it_is_the_marginal_of_data_that_end_there(name, key):
    """A first state outside, two latents in a step, a scan that NumPyro rolls."""
    case = CASES[name]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(key, case.x)
    found, some = jaxem.filter(m, theta, case.x), jaxem.marginals(m, theta, case.x[:2])
    whole = jaxem.marginals(m, theta, case.x)
    for site, table in found.items():
        np.testing.assert_allclose(table[1], some[site][1], **CLOSE)
        np.testing.assert_allclose(table[-1], whole[site][-1], **CLOSE)


def test_sequences_in_a_plate_and_steps_that_are_masked(key):
    y, lengths = CASES["hmm_sequences"].x
    m = jaxem.from_numpyro(CASES["hmm_sequences"].program)
    theta = m.init(key, (y, lengths))
    found = jaxem.filter(m, theta, (y, lengths))["z"]
    assert found.shape == (4, 3, 2)
    for n, length in enumerate(lengths.tolist()):
        one = jaxem.marginals(m, theta, (y[n : n + 1], jnp.array([length])))["z"][length - 1, 0]
        np.testing.assert_allclose(found[length - 1, n], one, **CLOSE)


def entangled(y, end):
    """A switch that every step depends on, a latent inside each, and an observation after the last."""
    s = numpyro.sample("s", dist.Bernoulli(0.4))
    numpyro.sample("sign", dist.Normal(s, 1.0), obs=cast(0.7))

    def step(before, y):
        z = numpyro.sample("z", dist.Categorical(cast(A[:2, :2] / A[:2, :2].sum(1, keepdims=True))[before]))
        c = numpyro.sample("c", dist.Bernoulli(cast(np.array([0.3, 0.6]))[z]))
        numpyro.sample("y", dist.Normal(2.0 * z - c + 1.5 * s, 0.8), obs=y)
        return z, None

    z, _ = scan(step, 0, y)
    numpyro.sample("end", dist.Normal(3.0 * z, 0.5), obs=end)


def test_a_switch_is_known_better_and_better_and_what_follows_the_scan_is_not_known():
    B, law = A[:2, :2] / A[:2, :2].sum(1, keepdims=True), np.array([0.3, 0.6])
    y = np.asarray(Y[:4], float)
    found = jaxem.filter(jaxem.from_numpyro(entangled), {}, (Y[:4], cast(2.0)))
    assert set(found) == {"z", "c"}
    for t in range(4):
        tables = {"z": np.zeros(2), "c": np.zeros(2)}
        for s, *rest in itertools.product(range(2), repeat=1 + 2 * (t + 1)):
            z, c = np.array(rest[: t + 1]), np.array(rest[t + 1 :])
            p = [0.6, 0.4][s] * norm.pdf(0.7, s, 1.0) * B[np.append(0, z[:-1]), z].prod()
            p = p * np.where(c == 1, law[z], 1 - law[z]).prod() * norm.pdf(y[: t + 1], 2 * z - c + 1.5 * s, 0.8).prod()
            tables["z"][z[-1]] += p
            tables["c"][c[-1]] += p
        for name, table in tables.items():
            np.testing.assert_allclose(found[name][t], table / table.sum(), **CLOSE)


def test_what_has_no_time_is_refused_in_one_line():
    theta = {"pi": [0.5, 0.5], "mu": [[0.0], [1.0]], "sigma": 1.0}
    with pytest.raises(ValueError, match=r"^filter: a mixture's rows have no time.*jaxem\.responsibilities$"):
        jaxem.filter(gaussian.isotropic, theta, [0.0])
    case = CASES["mixture"]
    m = jaxem.from_numpyro(case.program)
    with pytest.raises(ValueError, match=r"^filter: the program has no scan .*'z'.*use jaxem\.marginals"):
        jaxem.filter(m, m.init(jax.random.key(0), case.x), case.x)
    with pytest.raises(ValueError, match=r"^m: must be jaxem\.from_numpyro"):
        jaxem.filter(3, theta, [0.0])

    def impossible(x):
        def step(before, x):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.factor("x", jnp.where(x > 1.0 + z, -jnp.inf, 0.0))
            return z, None

        scan(step, 0, x)

    with pytest.raises(ValueError, match=r"^filter: log p\(x \| theta\) is "):
        jaxem.filter(jaxem.from_numpyro(impossible), {}, cast(np.array([0.5, 5.0, 0.5])))
