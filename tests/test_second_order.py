"""Chains that look more than one step back: the carry has several past states. Held to every path in plain NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints
from scipy.special import logsumexp
from scipy.stats import norm

import jaxem

from cases import FLOAT, cast, tolerance

A = np.random.default_rng(3).dirichlet(np.ones(2), (2, 2))
MU = np.array([-1.0, 1.5])
CLOSE = {"rtol": tolerance(1e-12, 2e-5), "atol": tolerance(1e-12, 5e-6)}
Y = cast(np.random.default_rng(5).normal(size=6) * 1.5)
DRAWS = 4000


def second_order(y, **options):
    A_ = numpyro.param("A", cast(A), constraint=constraints.simplex)
    mu = numpyro.param("mu", cast(MU))

    def step(carry, y):
        before_last, last = carry
        z = numpyro.sample("z", dist.Categorical(A_[before_last, last]))
        numpyro.sample("y", dist.Normal(mu[z], 0.8), obs=y)
        return (last, z), None

    scan(step, (0, 1), y, **options)


M, THETA = jaxem.from_numpyro(second_order), {"A": A, "mu": MU}


def every_path(y):
    """(paths, log p(path, y)): the states before the first are 0 and 1."""
    paths = np.array(list(itertools.product(range(2), repeat=len(y))))
    z = np.concatenate([np.tile([0, 1], (len(paths), 1)), paths], axis=1)
    log_p = np.log(A)[z[:, :-2], z[:, 1:-1], z[:, 2:]].sum(1)
    return paths, log_p + norm.logpdf(np.asarray(y, float), MU[paths], 0.8).sum(1)


def posterior(log_p):
    return np.exp(log_p - logsumexp(log_p))


def test_its_free_energy_is_that_of_every_path():
    for length in (1, 2, 3):
        found = jaxem.log_likelihood(M, THETA, Y[:length])
        assert float(found) == pytest.approx(logsumexp(every_path(Y[:length])[1]), rel=tolerance(1e-12, 1e-5))
    log_p = every_path(Y)[1]
    for T in (1.0, 0.5, 0.0):
        wanted = log_p.max() if T == 0 else T * logsumexp(log_p / T)
        fit = jaxem.em(M, THETA, Y, temperature=T, max_steps=0)
        assert float(fit.free_energy) == pytest.approx(wanted, rel=tolerance(1e-12, 1e-5))


def test_marginals_and_decode():
    paths, log_p = every_path(Y)
    wanted = np.stack([1 - posterior(log_p) @ paths, posterior(log_p) @ paths], axis=1)
    found = jaxem.marginals(M, THETA, Y)["z"]
    assert found.dtype == FLOAT
    np.testing.assert_allclose(found, wanted, **CLOSE)
    assert jaxem.decode(M, THETA, Y)["z"].tolist() == paths[log_p.argmax()].tolist()


def test_filter_and_forecast():
    found = jaxem.filter(M, THETA, Y)["z"]
    for t in range(6):
        paths, log_p = every_path(Y[: t + 1])
        np.testing.assert_allclose(found[t, 1], posterior(log_p) @ paths[:, -1], **CLOSE)
    ahead = jaxem.forecast(M, THETA, Y, 3).latents["z"]
    paths, log_p = every_path(Y)
    pairs = np.zeros((2, 2))
    np.add.at(pairs, (paths[:, -2], paths[:, -1]), posterior(log_p))
    for h in range(3):
        pairs = np.einsum("ij,ijk->jk", pairs, A)
        np.testing.assert_allclose(ahead[h], pairs.sum(0), **CLOSE)


def test_draws_are_paths_as_often_as_they_are_probable():
    log_p = every_path(Y)[1]
    z = np.asarray(jaxem.sample_latents(M, THETA, Y, jax.random.key(2), DRAWS)["z"])
    counts, expected = np.bincount(z @ 2 ** np.arange(5, -1, -1), minlength=64), DRAWS * posterior(log_p)
    some = expected >= 5
    assert (((counts - expected) ** 2)[some] / expected[some]).sum() < some.sum() + 5 * np.sqrt(2 * some.sum())


def test_an_em_step_is_that_of_every_path():
    """A from the expected triples, the means from the expected states; both in closed form."""
    paths, log_p = every_path(Y)
    z = np.concatenate([np.tile([0, 1], (len(paths), 1)), paths], axis=1)
    triples, p, y = np.zeros((2, 2, 2)), posterior(log_p), np.asarray(Y, float)
    for t in range(6):
        np.add.at(triples, (z[:, t], z[:, t + 1], z[:, t + 2]), p)
    gamma = p @ (paths[:, :, None] == np.arange(2)).reshape(len(paths), -1)
    gamma = gamma.reshape(6, 2)
    fit = jaxem.em(M, THETA, Y, max_steps=1)
    seen = triples.sum(-1, keepdims=True) > 0
    np.testing.assert_allclose(fit.theta["A"], np.where(seen, triples / triples.sum(-1, keepdims=True), A), **CLOSE)
    np.testing.assert_allclose(fit.theta["mu"], gamma.T @ y / gamma.sum(0), **CLOSE)
    assert all("closed form" in why for why in M.explain(THETA, Y).values())
    assert bool(jaxem.certify(M, THETA, Y).holds())


def test_history_says_the_same():
    m = jaxem.from_numpyro(lambda y: second_order(y, history=2))
    for length in (2, 6):
        one, other = (jaxem.log_likelihood(each, THETA, Y[:length]) for each in (m, M))
        assert float(one) == pytest.approx(float(other), rel=tolerance(1e-12, 1e-5))


B = np.random.default_rng(4).dirichlet(np.ones(2), (2, 2, 2))
C = np.array([[0.7, 0.3], [0.2, 0.8]])


def third_and_first(y, lengths):
    """A latent that looks three steps back beside one that looks one back, in sequences that end early."""

    def step(carry, y):
        past, c, t = carry
        with numpyro.plate("sequences", len(y)), handlers.mask(mask=t < lengths):
            z = numpyro.sample("z", dist.Categorical(cast(B)[past["3"], past["2"], past["1"]]))
            c = numpyro.sample("c", dist.Categorical(cast(C)[c]))
            numpyro.sample("y", dist.Normal(cast(MU)[z] - 2.0 * c, 0.8), obs=y)
        return ({"3": past["2"], "2": past["1"], "1": z}, c, t + 1), None

    start = jnp.zeros(len(y), int)
    (past, _, _), _ = scan(step, ({"3": start, "2": start, "1": start}, start, 0), y.T)
    with numpyro.plate("sequences", len(y)):
        numpyro.sample("end", dist.Normal(1.0 * past["1"], 1.0), obs=jnp.zeros(len(y)))


def test_three_steps_back_in_sequences_beside_a_latent_that_looks_one_back():
    lengths, y = [5, 2], np.random.default_rng(1).normal(size=(2, 5))
    wanted, tables = 0.0, []
    for n, length in enumerate(lengths):
        log_p, paths = [], []
        for path in itertools.product(range(2), repeat=2 * length):
            z, c = np.array(path[:length]), np.array(path[length:])
            past = np.append([0, 0, 0], z)
            log = np.log(B)[past[:-3], past[1:-2], past[2:-1], z].sum() + np.log(C)[np.append(0, c[:-1]), c].sum()
            log += norm.logpdf(y[n, :length], MU[z] - 2 * c, 0.8).sum()
            if length == 5:
                log += norm.logpdf(0, z[-1], 1)
            log_p.append(log)
            paths.append(np.stack([z, c]))
        tables.append(np.tensordot(posterior(np.array(log_p)), np.array(paths), 1))
        # a sequence that ends early has no last state: what follows its scan sees one that is uniform
        wanted += logsumexp(log_p) + (0 if length == 5 else logsumexp(norm.logpdf(0, [0, 1], 1)))
    m, args = jaxem.from_numpyro(third_and_first), (cast(y), jnp.array(lengths))
    assert float(jaxem.log_likelihood(m, {}, args)) == pytest.approx(wanted, rel=tolerance(1e-12, 1e-5))
    found = jaxem.marginals(m, {}, args)
    for n, length in enumerate(lengths):
        for site, table in zip(("z", "c"), tables[n], strict=True):
            np.testing.assert_allclose(found[site][:length, n, 1], table, **CLOSE)


def last_but_one_after_the_scan(y):
    def step(carry, y):
        z = numpyro.sample("z", dist.Categorical(cast(A)[carry[0], carry[1]]))
        numpyro.sample("y", dist.Normal(cast(MU)[z], 0.8), obs=y)
        return (carry[1], z), None

    (before_last, _), _ = scan(step, (0, 0), y)
    numpyro.sample("end", dist.Normal(1.0 * before_last, 1.0), obs=0.0)


def sum_of_states(y):
    def step(carry, y):
        z = numpyro.sample("z", dist.Bernoulli(0.3 + 0.4 * carry[0]))
        numpyro.sample("y", dist.Normal(z + 0.1 * carry[1], 1.0), obs=y)
        return (z, carry[1] + z), None

    scan(step, (jnp.array(0), jnp.array(0)), y)


@pytest.mark.parametrize("length", [4, 5, 6])
def test_what_follows_the_scan_has_its_last_state_only(length):
    with pytest.raises(ValueError, match=r"^program: 'end' depends on a discrete latent in a way.*inside the scan"):
        jaxem.log_likelihood(jaxem.from_numpyro(last_but_one_after_the_scan), {}, Y[:length])


def test_what_depends_on_all_states_before_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match=r"^program: the scan at \['z'\] carries more .*of as many steps as it takes"):
        jaxem.log_likelihood(jaxem.from_numpyro(sum_of_states), {}, Y)
