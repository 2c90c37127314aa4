"""A chain beyond its data, held to plain NumPy: filtered states times powers of A, and all that could be observed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from chain import MU, THETA, A, M, Y, every_path, last_given
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from programs import CASES
from scipy.stats import norm

import jaxem
from jaxem.families import gaussian

from cases import FLOAT, cast, tolerance

CLOSE = {"rtol": 0, "atol": tolerance(1e-12, 2e-6)}
DRAWS = 4000


@pytest.fixture(scope="module")
def found():
    return jaxem.forecast(M, THETA, Y, 4, key=jax.random.key(1), num_samples=DRAWS)


def test_the_latents_go_on_by_their_law(found):
    p = last_given(*every_path(Y))
    assert found.latents["z"].dtype == FLOAT
    for h in range(4):
        p = p @ A
        np.testing.assert_allclose(found.latents["z"][h], p, **CLOSE)
    alone = jaxem.forecast(M, THETA, Y, 4)
    assert alone.paths == alone.observations == {}
    np.testing.assert_allclose(alone.latents["z"], found.latents["z"], **CLOSE)


def test_its_draws_are_paths_and_what_they_emit(found):
    z, y, p = np.asarray(found.paths["z"]), np.asarray(found.observations["y"]), last_given(*every_path(Y))
    assert z.shape == y.shape == (DRAWS, 4)
    paths = np.array(list(itertools.product(range(3), repeat=2)))
    joint = (p @ A)[paths[:, 0]] * A[paths[:, 0], paths[:, 1]]  # of the first two steps
    counts = np.bincount(3 * z[:, 0] + z[:, 1], minlength=9)
    assert (np.abs(counts - DRAWS * joint) < 5 * np.sqrt(DRAWS * joint)).all()
    residual = (y - MU[z]) / 0.8
    assert np.abs(residual.mean(axis=0)).max() < 5 / np.sqrt(DRAWS)
    assert np.abs(np.corrcoef(residual.T) - np.eye(4)).max() < 5 / np.sqrt(DRAWS)
    assert abs(residual.std() - 1) < 5 / np.sqrt(8 * DRAWS)


def test_inside_jit_and_vmap():
    many = jnp.stack([Y, -Y])
    lanes = jax.jit(jax.vmap(lambda y: jaxem.forecast(M, THETA, y, 2).latents["z"]))(many)
    np.testing.assert_allclose(lanes[1], jaxem.forecast(M, THETA, -Y, 2).latents["z"], **CLOSE)


B = np.array([[0.8, 0.2], [0.3, 0.7]])
MEANS = np.array([[-2.0, 0.0], [1.0, 3.0]])


def sequences(y, lengths, end):
    """Sequences that end early, each with a switch, emissions that are mixtures, and something after the last step."""
    with numpyro.plate("sequences", len(y)):
        s = numpyro.sample("s", dist.Bernoulli(0.4))

    def step(carry, y):
        before, t = carry
        with numpyro.plate("sequences", len(y), dim=-1), handlers.mask(mask=t < lengths):
            probs = jnp.where(s[..., None] == 1, cast(B[::-1])[before], cast(B)[before])
            z = numpyro.sample("z", dist.Categorical(probs))
            parts = dist.Normal(cast(MEANS)[z], 0.5)
            numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(cast(np.array([0.3, 0.7]))), parts), obs=y)
        return (z, t + 1), None

    (z, _), _ = scan(step, (jnp.zeros(len(y), int), 0), y.T)
    with numpyro.plate("sequences", len(y)):
        numpyro.sample("end", dist.Normal(3.0 * z, 0.5), obs=end)


def test_sequences_that_end_early_go_on_from_their_own_ends():
    lengths = [4, 2, 3]
    y = np.random.default_rng(8).normal(size=(3, 4)) * 2
    args = (cast(y), jnp.array(lengths), cast(np.zeros(3)))
    m = jaxem.from_numpyro(sequences)
    found = jaxem.forecast(m, {}, args, 3, key=jax.random.key(0), num_samples=DRAWS)
    assert found.latents["z"].shape == (3, 3, 2)
    assert found.observations["y"].shape == (DRAWS, 3, 3)
    for n, length in enumerate(lengths):
        wanted, mean = np.zeros((3, 2)), np.zeros(3)
        for s, *z in itertools.product(range(2), repeat=1 + length + 3):
            law = B[::-1] if s else B
            z = np.array(z)
            emit = norm.pdf(y[n, :length, None], MEANS[z[:length]], 0.5) @ [0.3, 0.7]
            p = [0.6, 0.4][s] * law[np.append(0, z[:-1]), z].prod() * emit.prod()
            wanted[np.arange(3), z[length:]] += p
            mean += p * (MEANS[z[length:]] @ [0.3, 0.7])
        np.testing.assert_allclose(found.latents["z"][:, n], wanted / wanted.sum(1, keepdims=True), **CLOSE)
        drawn = np.asarray(found.observations["y"][:, :, n])
        off = np.abs(drawn.mean(axis=0) - mean / wanted.sum(1))
        assert (off < 5 * drawn.std(axis=0) / np.sqrt(DRAWS)).all()


def test_two_chains_and_emissions_of_a_row(key):
    case = CASES["factorial_hmm"]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(key, case.x)
    found = jaxem.forecast(m, theta, case.x, 2, key=key, num_samples=3)
    joint = jaxem.filter(m, theta, case.x)
    for site, law in (("a", "A"), ("b", "B")):
        np.testing.assert_allclose(found.latents[site][0], joint[site][-1] @ theta[law], **CLOSE)
    assert found.observations["y"].shape == (3, 2)


def with_covariate(y, u):
    def step(before, inputs):
        y, u = inputs
        z = numpyro.sample("z", dist.Bernoulli(jnp.where(before == 1, 0.5, 0.3)))
        numpyro.sample("y", dist.Normal(z * u, 1.0), obs=y)
        return z, None

    scan(step, 0, (y, u))


def test_what_is_not_known_yet_is_refused_in_one_line(key):
    m, u = jaxem.from_numpyro(with_covariate), cast(np.arange(4.0))
    assert jaxem.forecast(m, {}, (Y[:4], u), 2).latents["z"].shape == (2, 2)  # its states need no covariate
    with pytest.raises(ValueError, match=r"^forecast: the law of what is observed at 'y' .* covariate.*leave out key"):
        jaxem.forecast(m, {}, (Y[:4], u), 2, key=key)
    case = CASES["emissions_that_are_mixtures"]
    m = jaxem.from_numpyro(case.program)
    with pytest.raises(ValueError, match=r"^forecast: the law of 'z' is another at every step, by a covariate"):
        jaxem.forecast(m, m.init(key, case.x), case.x, 2)
    with pytest.raises(ValueError, match=r"^forecast: a scan of so few steps"):
        jaxem.forecast(M, THETA, Y[:2], 1)
    with pytest.raises(ValueError, match=r"^forecast: a mixture's rows have no time"):
        jaxem.forecast(gaussian.isotropic, {"pi": [1.0], "mu": [[0.0]], "sigma": 1.0}, [0.0], 1)
    with pytest.raises(ValueError, match=r"^num_steps: must be an integer ≥ 1"):
        jaxem.forecast(M, THETA, Y, 0)
