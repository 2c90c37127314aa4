"""Joint draws of the latents, held to every assignment's probability by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from programs import CASES, brute_force

import jaxem
from jaxem.families import gaussian

from cases import CASES as FAMILIES
from cases import cast

DRAWS = 4_000
# a plate, two latents in one, one above a plate, a chain, chains with masked ends, two chains, a latent in each step
NAMES = ["dependent_pair", "switch", "gaussian_hmm", "hmm_sequences", "factorial_hmm", "emissions_that_are_mixtures"]


def frequencies_agree(counts, probabilities):
    """Pearson's χ² over cells that expect 5 or more, the rest as one: within 5 of its standard deviations."""
    expected = probabilities * counts.sum()
    large = expected >= 5
    if not large.all():
        counts = np.append(counts[large], counts[~large].sum())
        expected = np.append(expected[large], expected[~large].sum())
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    chi = ((counts - expected) ** 2 / np.maximum(expected, 1)).sum()
    degrees = max(len(counts) - 1, 1)
    assert chi < degrees + 5 * np.sqrt(2 * degrees), (chi, degrees)


@pytest.mark.parametrize("name", NAMES)
def test_every_assignment_comes_as_often_as_it_is_probable(name, key):
    case = CASES[name]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(key, case.x)
    brute = brute_force(case, theta)
    draws = jaxem.sample_latents(m, theta, case.x, jax.random.key(11), DRAWS)
    assert set(draws) == set(brute.assignments)
    place = {}
    every = np.concatenate([np.reshape(v, (len(v), -1)) for v in brute.assignments.values()], axis=1)
    for index, values in enumerate(map(tuple, every)):
        place[values] = index
    drawn = np.concatenate([np.reshape(draws[site], (DRAWS, -1)) for site in brute.assignments], axis=1)
    counts = np.bincount([place[tuple(values)] for values in drawn], minlength=len(every))
    probabilities = np.exp(brute.log_density - np.logaddexp.reduce(brute.log_density))
    frequencies_agree(counts, probabilities)


def test_a_mixtures_rows_draw_from_their_responsibilities():
    case = next(case for case in FAMILIES if case.name == "spherical")
    theta, x = case.theta(K=3), case.x(N=8)
    z = np.asarray(jaxem.sample_latents(case.m, theta, x, jax.random.key(0), DRAWS))
    gamma = np.asarray(jaxem.responsibilities(case.m, theta, x))
    for n in range(8):
        frequencies_agree(np.bincount(z[:, n], minlength=3), gamma[n])
    joint = np.bincount(3 * z[:, 0] + z[:, 1], minlength=9)
    frequencies_agree(joint, np.outer(gamma[0], gamma[1]).ravel())  # rows are independent


def test_the_latents_of_draws_of_theta_are_drawn_at_each(key):
    case = CASES["gaussian_hmm"]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(key, case.x)
    other = theta | {"mu": theta["mu"][::-1]}
    samples = {name: jnp.repeat(jnp.stack([theta[name], other[name]]), 1500, axis=0) for name in theta}
    z = np.asarray(jaxem.recover(m, samples | {"log_likelihood": jnp.zeros(3000)}, case.x, key)["z"])
    for half, at in ((z[:1500], theta), (z[1500:], other)):
        expected = jaxem.marginals(m, at, case.x)["z"][:, 1]
        np.testing.assert_allclose(half.mean(axis=0), expected, atol=5 * 0.5 / np.sqrt(1500))
    one = {"pi": jnp.full((2, 2), 0.5), "mu": cast(np.array([[[0.0], [50.0]], [[50.0], [0.0]]])), "sigma": jnp.ones(2)}
    assert jaxem.recover(gaussian.isotropic, one, cast(np.array([0.0, 50.0])), key).tolist() == [[0, 1], [1, 0]]


def test_bad_input_is_one_line(key):
    theta = {"pi": [1.0], "mu": [[0.0]], "sigma": 1.0}
    with pytest.raises(ValueError, match=r"^num_samples: must be an integer ≥ 1"):
        jaxem.sample_latents(gaussian.isotropic, theta, [0.0], key, 0)
    with pytest.raises(ValueError, match=r"^samples: must be a dict"):
        jaxem.recover(gaussian.isotropic, [1.0], [0.0], key)
    with pytest.raises(ValueError, match=r"^theta: missing \['sigma'\]"):
        jaxem.recover(gaussian.isotropic, {"pi": [[1.0]], "mu": [[[0.0]]]}, [0.0], key)

    def impossible(x):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Uniform(0.0, 1.0 + z), obs=x)

    with pytest.raises(ValueError, match=r"^sample_latents: log p\(x \| theta\) is "):
        jaxem.sample_latents(jaxem.from_numpyro(impossible), {}, jnp.array(5.0), key, 3)


def test_a_programs_own_draws_are_from_its_density(key):
    """Σ_S log p(x, z) over draws of the program has the mean that enumeration gives it; and each site its shape."""
    case = CASES["gaussian_hmm"]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(key, case.x)
    draws = jaxem.sample(m, theta, key, 2000, case.x)
    assert {name: value.shape for name, value in draws.items()} == {"z_0": (2000,), "z": (2000, 6), "y": (2000, 6)}
    z = np.concatenate([draws["z_0"][:, None], draws["z"]], axis=1)
    frequencies_agree(np.bincount(z[:, 0], minlength=2), np.asarray(theta["pi"]))
    for i in range(2):
        after = z[:, 1:][z[:, :-1] == i]
        frequencies_agree(np.bincount(after, minlength=2), np.asarray(theta["A"])[i])
        mine = np.asarray(draws["y"])[np.asarray(draws["z"]) == i]
        mu, sigma = float(theta["mu"][i]), float(theta["sigma"][i])
        assert abs(mine.mean() - mu) < 5 * sigma / np.sqrt(len(mine))
        assert abs(mine.std() / sigma - 1) < 5 / np.sqrt(2 * len(mine))
    case = CASES["regressions"]  # covariates are used as they are
    m = jaxem.from_numpyro(case.program)
    theta = m.init(key, case.x)
    draws = jaxem.sample(m, theta, key, 500, case.x)
    mean = jnp.sum(case.x[0][None] * theta["beta"][draws["z"]], axis=-1)
    residual = (draws["y"] - mean) / theta["sigma"][draws["z"]]
    assert abs(float(jnp.std(residual)) - 1) < 5 / np.sqrt(2 * residual.size)
    with pytest.raises(ValueError, match=r"^x: a program's arguments say how many rows"):
        jaxem.sample(m, theta, key, 5)
