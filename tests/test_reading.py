"""How a program is read: kinds of programs against brute force over every assignment, and what is refused by name."""

import dataclasses
from argparse import Namespace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.distributions import constraints
from numpyro.infer.reparam import CircularReparam
from programs import Case, brute_force
from scipy.special import logsumexp, softmax

import jaxem
from jaxem._core.checks import enter as prepare

X = jnp.array([-2.0, -1.7, 1.1, 2.2, 0.3])
PAIR = jnp.array([-1.0, 1.0])
simplex, positive = constraints.simplex, constraints.positive


def expectations(m, theta, x, temperatures=(1.0, 0.5, 0.0), prior=False):
    """F_T at θ, or (F_T, log p(θ)), compiled once."""
    theta, data = prepare(m, theta, x)

    @jax.jit
    def both(temperature):
        now = data._replace(temperature=temperature)
        return m.expect(theta, now).free_energy, m.log_prior(theta, now)

    found = [both(jnp.asarray(temperature, data.temperature.dtype)) for temperature in temperatures]
    free_energy = np.array([float(value) for value, _ in found])
    return (free_energy, float(found[0][1])) if prior else free_energy


def agrees_with_brute_force(program, x, *, marginals=True):
    """F_T at three temperatures, and the marginals."""
    m = jaxem.from_numpyro(program)
    theta = m.init(jax.random.key(0), x)
    found, prior = expectations(m, theta, x, prior=True)
    brute = brute_force(Case(program, x), theta)
    joint = brute.log_density - prior
    wanted = [prior + logsumexp(joint), prior + 0.5 * logsumexp(joint / 0.5), prior + joint.max()]
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
    if marginals:
        found, share = jaxem.marginals(m, theta, x), softmax(brute.log_density)
        for site, values in brute.assignments.items():
            table = np.stack([np.tensordot(share, values == k, 1) for k in range(brute.sizes[site])], axis=-1)
            np.testing.assert_allclose(found[site], table.reshape(found[site].shape), atol=1e-12)
    return m, theta


# ---- laws of whole numbers


def of_whole_numbers(number, x):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.array([number(1), number(2)])))
    p = numpyro.sample("p", dist.Beta(number(1), number(1)))
    rate = numpyro.sample("rate", dist.Gamma(number(2), number(1)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("longer", dist.Gamma(number(2), rate * (1 + z)), obs=1 + x)
        numpyro.sample("x", dist.Binomial(number(9), jnp.stack([p, 1 - p])[z]), obs=x)


def test_integers_in_a_law_and_in_its_rows_are_numbers_like_any_other():
    x = jnp.array([0, 1, 7, 8, 3])
    m, theta = agrees_with_brute_force(partial(of_whole_numbers, int), x)
    fit = jaxem.em(m, theta, x)
    other = jaxem.em(jaxem.from_numpyro(partial(of_whole_numbers, float)), theta, x)
    assert m.explain(theta, x)["p"] == jaxem.from_numpyro(partial(of_whole_numbers, float)).explain(theta, x)["p"]
    assert jaxem.check(fit).num_steps == other.num_steps
    np.testing.assert_allclose(fit.free_energy, other.free_energy, rtol=1e-13)
    assert fit.theta["p"].dtype == other.theta["p"].dtype == theta["p"].dtype


# ---- what is indexed by what is traced


def by_plate(x, table):
    mu = numpyro.param("mu", PAIR)
    with numpyro.plate("rows", len(x)) as rows:
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x[rows])


def by_latent(x, table):
    mu = numpyro.param("mu", PAIR)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z] + table[z], 1.0), obs=x)


def by_time(x, table):
    mu = numpyro.param("mu", PAIR)

    def step(z, t):
        z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[z]))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x.at[0].set(0.0)[t])
        return z, None

    scan(step, 0, jnp.arange(len(x)))


@pytest.mark.parametrize("program", [by_plate, by_latent, by_time], ids=lambda program: program.__name__)
def test_data_may_be_indexed_by_a_plate_a_latent_or_a_time(program):
    x = (X, jnp.array([0.0, 0.5]))
    m, theta = agrees_with_brute_force(program, x, marginals=False)
    as_numpy = jax.tree.map(np.asarray, x)
    assert m.explain(theta, as_numpy)["mu"].startswith("closed form")
    assert bool(jnp.isfinite(jaxem.log_likelihood(m, theta, as_numpy)))


# ---- priors that depend on a latent, and batches without a plate


def spike_and_slab(x, y, law):
    on = [numpyro.sample(f"on_{j}", dist.Bernoulli(0.3)) for j in range(2)]
    beta = [numpyro.sample(f"beta_{j}", law(0.0, jnp.where(on[j] == 1, 2.0, 0.1))) for j in range(2)]
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(beta[0] * x[:, 0] + beta[1] * x[:, 1], 1.0), obs=y)


def slabs_in_a_plate(x, y):
    with numpyro.plate("features", 2):
        on = numpyro.sample("on", dist.Bernoulli(0.3))
        beta = numpyro.sample("beta", dist.Normal(0.0, jnp.where(on == 1, 2.0, 0.1)))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def regime(x, y):
    s = numpyro.sample("s", dist.Bernoulli(0.4))
    with numpyro.plate("components", 2):
        mu = numpyro.sample("mu", dist.Normal(jnp.array([0.0, 3.0])[s], 1.0))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.3))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)))


@pytest.mark.parametrize(
    "program",
    [partial(spike_and_slab, law=dist.Normal), partial(spike_and_slab, law=dist.Laplace), slabs_in_a_plate, regime],
    ids=["Normal", "Laplace", "plate", "components"],
)
def test_a_prior_that_depends_on_a_latent_is_a_factor_of_the_sum(program):
    m, theta = agrees_with_brute_force(program, (FEATURES, X))
    if program is regime:
        assert all("its prior depends on 's'" in why for why in m.explain(theta, (FEATURES, X)).values())
        path = jaxem.em_path(m, theta, (FEATURES, X), num_steps=2)
        assert (np.diff(np.stack([path.after_e, path.after_m], 1).ravel()) >= -1e-10).all()


def unplated_prior(x, mixture):
    mu = numpyro.sample("mu", dist.Normal(PAIR, 5.0).expand([2]))
    with numpyro.plate("rows", len(x)):
        if mixture:
            law = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(mu, 1.0))
            numpyro.sample("x", law, obs=x)
        else:
            z = numpyro.sample("z", dist.Bernoulli(0.7))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def unplated_rows(x, mixture):
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0), sample_shape=(2,))
    if mixture:
        law = dist.MixtureSameFamily(dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(mu, 1.0))
        numpyro.sample("x", law, obs=x)
    else:
        z = numpyro.sample("z", dist.Bernoulli(0.7), sample_shape=(len(x),))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@pytest.mark.parametrize("program", [unplated_prior, unplated_rows], ids=lambda program: program.__name__)
def test_a_batch_without_a_plate_is_a_batch(program):
    m, theta = agrees_with_brute_force(program, (X, False))
    assert jaxem.marginals(m, theta, (X, False))["z"].shape == (5, 2)
    np.testing.assert_allclose(expectations(m, theta, (X, True)), expectations(m, theta, (X, False)), rtol=1e-13)


# ---- what names say, and what they do not


def semi_supervised(x, labels, known, names):
    mu = numpyro.param("mu", PAIR)
    with numpyro.plate("known", len(labels)):
        z = numpyro.sample("labels", dist.Bernoulli(0.4), obs=labels)
        numpyro.sample(f"x_{names[0]}", dist.Normal(mu[z], 1.0), obs=known)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample(f"x_{names[1]}", dist.Normal(mu[z], 1.0), obs=x)


def test_a_name_decides_nothing():
    x = (X, jnp.array([0, 1]), PAIR)
    found = [
        expectations(jaxem.from_numpyro(partial(semi_supervised, names=names)), {"mu": PAIR}, x)
        for names in (("labelled", "unlabelled"), ("observed", "unobserved"))
    ]
    np.testing.assert_array_equal(*found)


KNOWN = jnp.array([True, False, True, False, False])
LABELS = jnp.array([0, 0, 1, 0, 7])


def partly_labelled(x, labels, known):
    pi = numpyro.param("pi", jnp.array([0.3, 0.7]), constraint=simplex)
    mu = numpyro.param("mu", PAIR)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi), obs=labels, obs_mask=known)
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def partly_labelled_chain(x, labels, known):
    A = numpyro.param("A", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=simplex)
    mu = numpyro.param("mu", PAIR)

    def step(z, inputs):
        x, label, known = inputs
        z = numpyro.sample("z", dist.Categorical(A[z]), obs=label, obs_mask=known)
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
        return z, None

    scan(step, 0, (x, labels, known))


def clamped(x, labels, known, chain):
    """The same in NumPyro's words: every label is a latent, and a factor says which are known."""
    law = jnp.array([0.3, 0.7]) if not chain else jnp.array([[0.8, 0.2], [0.3, 0.7]])
    z = numpyro.sample("z", dist.Bernoulli(0.5).expand([len(x)]).mask(False))
    before = jnp.concatenate([jnp.zeros(1, int), z[:-1]])
    numpyro.factor("law", jnp.log(law[before, z] if chain else law[z]).sum())
    numpyro.factor("x", dist.Normal(PAIR[z], 1.0).log_prob(x).sum())
    numpyro.factor("known", jnp.where(known & (z != labels), -jnp.inf, 0.0).sum())


@pytest.mark.parametrize("program", [partly_labelled, partly_labelled_chain], ids=["rows", "chain"])
def test_labels_that_obs_mask_hides_are_latents_and_those_it_shows_are_data(program):
    chain = program is partly_labelled_chain
    x = (X, LABELS, KNOWN)
    m = jaxem.from_numpyro(program)
    theta = m.init(jax.random.key(0), x)
    brute = brute_force(Case(partial(clamped, chain=chain), x), {})
    wanted = [logsumexp(brute.log_density), 0.5 * logsumexp(brute.log_density / 0.5), brute.log_density.max()]
    np.testing.assert_allclose(expectations(m, theta, x), wanted, rtol=1e-12)
    share = softmax(brute.log_density) @ brute.assignments["z"]
    np.testing.assert_allclose(jaxem.marginals(m, theta, x)["z_unobserved"][:, 1], share, atol=1e-12)
    if not chain:
        path = jaxem.em_path(m, theta, x, num_steps=3)
        assert (np.diff(np.stack([path.after_e, path.after_m], 1).ravel()) >= -1e-12).all()


def imputed_covariate(x, u, seen):
    b = numpyro.param("b", PAIR)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        u = numpyro.sample("u", dist.Normal(0.0, 1.0), obs=u, obs_mask=seen)
        numpyro.sample("x", dist.Normal(b[z] * u, 1.0), obs=x)


def missing_regressor(x, u, seen):
    def step(carry, inputs):
        z, last = carry
        x, seen = inputs
        z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[z]))
        x = numpyro.sample("x", dist.Normal(z + 0.5 * last, 1.0), obs=x, obs_mask=seen)
        return (z, x), None

    scan(step, (0, jnp.array(0.0)), (x, seen))


def test_missing_values_that_nothing_depends_on_integrate_to_one_in_a_scan():
    def program(x, seen):
        def step(z, inputs):
            x, seen = inputs
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[z]))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)
            return z, None

        scan(step, 0, (x, seen))

    agrees_with_brute_force(program, (X, KNOWN))


# ---- latents that are masked


def sequences(y, lengths):
    A = numpyro.param("A", jnp.array([[0.6, 0.4], [0.1, 0.9]]), constraint=simplex)
    mu = numpyro.param("mu", PAIR)

    def step(carry, y):
        z, t = carry
        with numpyro.plate("sequences", y.shape[0]), handlers.mask(mask=t < lengths):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return (z, t + 1), None

    scan(step, (jnp.zeros(y.shape[0], int), 0), y.T)


def test_a_padded_step_counts_nothing():
    """F_T, the best path and every step of EM are those of the sequences alone, one after another."""
    y, lengths = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5))), jnp.array([2, 5, 4])
    m = jaxem.from_numpyro(sequences)
    theta = m.init(jax.random.key(0), (y, lengths))
    alone = [(y[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(lengths.tolist())]
    wanted = sum(expectations(m, theta, x) for x in alone)
    np.testing.assert_allclose(expectations(m, theta, (y, lengths)), wanted, rtol=1e-12)
    path = jaxem.decode(m, theta, (y, lengths))["z"]
    for i, x in enumerate(alone):
        np.testing.assert_array_equal(path[: int(x[1][0]), i], jaxem.decode(m, theta, x)["z"][:, 0])
    longer = jnp.concatenate([y, jnp.full((3, 3), 99.0)], axis=1)
    once, twice = (jaxem.em_path(m, theta, (rows, lengths), num_steps=2) for rows in (y, longer))
    for found, same in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(found, same, rtol=1e-10)


def masked_rows(x, seen, how):
    pi = numpyro.param("pi", jnp.array([0.3, 0.7]), constraint=simplex)
    mu = numpyro.param("mu", PAIR)
    with numpyro.plate("rows", len(x)), handlers.mask(mask=seen):
        if how == "explicit":
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)
        else:
            parts = dist.Normal(mu, 1.0) if how == "same" else [dist.Normal(mu[k], 1.0) for k in range(2)]
            numpyro.sample("x", dist.Mixture(dist.Categorical(pi), parts), obs=x)


@pytest.mark.parametrize("how", ["explicit", "same", "general"])
def test_a_masked_row_might_as_well_not_be_there(how):
    m = jaxem.from_numpyro(partial(masked_rows, how=how))
    theta = m.init(jax.random.key(0), (X, KNOWN))
    only = (X[KNOWN], KNOWN[KNOWN])
    np.testing.assert_allclose(expectations(m, theta, (X, KNOWN)), expectations(m, theta, only), rtol=1e-13)
    if how == "general":
        some, all_of = (jaxem.em_path(m, theta, x, num_steps=3) for x in ((X, KNOWN), only))
        np.testing.assert_allclose(some.theta["pi"], all_of.theta["pi"], rtol=1e-12)


def test_a_latent_whose_law_alone_is_masked_is_summed_as_numpyro_does():
    def program(x):
        with numpyro.plate("rows", len(x)):
            with handlers.mask(mask=KNOWN):
                z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(PAIR[z], 1.0), obs=x)

    agrees_with_brute_force(program, X)


def test_the_mask_of_a_component_counts():
    def program(x):
        w = numpyro.param("w", jnp.array([0.3, 0.7]), constraint=simplex)
        mu = numpyro.param("mu", PAIR)
        with numpyro.plate("rows", len(x)):
            components = dist.Normal(mu, 1.0).mask(jnp.array([True, False]))
            numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), components), obs=x)

    wanted = np.log(0.3 * np.exp(-0.5 * (np.asarray(X) + 1) ** 2) / np.sqrt(2 * np.pi) + 0.7).sum()
    m = jaxem.from_numpyro(program)
    assert abs(expectations(m, m.init(jax.random.key(0), X), X)[0] - wanted) < 1e-12


# ---- zero inflation


COUNTS = jnp.array([0, 0, 3, 0, 2, 0, 5, 1, 0, 4])


def inflated(y, law):
    gate = numpyro.param("gate", 0.3, constraint=constraints.unit_interval)
    rate = numpyro.param("rate", 2.0, constraint=positive)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", law(gate, rate), obs=y)


def with_delta(gate, rate, zero):
    parts = [dist.Delta(zero), dist.Poisson(rate)]
    return dist.MixtureGeneral(
        dist.Categorical(jnp.stack([gate, 1 - gate])), parts, support=constraints.nonnegative_integer
    )


INFLATED = {
    "ZeroInflatedPoisson": dist.ZeroInflatedPoisson,
    "gate": lambda gate, rate: dist.ZeroInflatedDistribution(dist.Poisson(rate), gate=gate),
    "logits": lambda gate, rate: dist.ZeroInflatedDistribution(
        dist.Poisson(rate), gate_logits=jnp.log(gate) - jnp.log1p(-gate)
    ),
    "Delta(0)": partial(with_delta, zero=0),
    "Delta(0.0)": partial(with_delta, zero=0.0),
    "Delta(array)": partial(with_delta, zero=jnp.array(0)),
}


@pytest.mark.parametrize("name", INFLATED)
def test_zero_inflation_is_a_mixture_of_two_components(name):
    m = jaxem.from_numpyro(partial(inflated, law=INFLATED[name]))
    theta = m.init(jax.random.key(0), COUNTS)
    zeros = np.asarray(COUNTS) == 0
    wanted = np.where(zeros, np.log(0.3 + 0.7 * np.exp(-2.0)), np.asarray(dist.Poisson(2.0).log_prob(COUNTS)))
    wanted = np.where(zeros, wanted, wanted + np.log(0.7)).sum()
    assert abs(expectations(m, theta, COUNTS)[0] - wanted) < 1e-12
    if name == "ZeroInflatedPoisson":
        fit = jaxem.check(jaxem.em(m, theta, COUNTS))
        np.testing.assert_allclose([fit.theta["gate"], fit.theta["rate"]], [0.46836, 2.82144], atol=1e-4)
        assert all(why.startswith("closed form") for why in m.explain(theta, COUNTS).values())
        assert jaxem.decode(m, fit.theta, COUNTS)["y"].tolist() == [int(z) for z in zeros]


# ---- mixtures and factors inside a scan


def emissions(y, law):
    """A state that a factor and a mixture see, in a plate of sequences; `law` may write its latent out."""
    A, mu = jnp.array([[0.9, 0.1], [0.2, 0.8]]), jnp.array([[-1.0, 1.0], [2.0, 4.0]])

    def step(z, y):
        with numpyro.plate("sequences", 2):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.factor("f", -((y - z) ** 2))
            if law == "explicit":
                c = numpyro.sample("y", dist.Categorical(A[z]))
                numpyro.sample("x", dist.Normal(mu[z, c], 1.0), obs=y)
            elif law == "same":
                numpyro.sample("y", dist.MixtureSameFamily(dist.Categorical(A[z]), dist.Normal(mu[z], 1.0)), obs=y)
            elif law == "general":
                parts = [dist.Normal(mu[z][..., k], 1.0) for k in range(2)]
                numpyro.sample("y", dist.MixtureGeneral(dist.Categorical(A[z]), parts), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), y)


def test_a_mixture_in_a_scan_is_the_latent_that_it_sums():
    y = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2)))
    m, _ = agrees_with_brute_force(partial(emissions, law="explicit"), y)
    wanted = jaxem.marginals(m, {}, y)
    for law in ("same", "general"):
        m = jaxem.from_numpyro(partial(emissions, law=law))
        np.testing.assert_allclose(
            expectations(m, {}, y),
            expectations(jaxem.from_numpyro(partial(emissions, law="explicit")), {}, y),
            rtol=1e-13,
        )
        np.testing.assert_allclose(jaxem.marginals(m, {}, y)["y"], wanted["y"], atol=1e-13)


def test_zero_inflation_in_a_scan():
    def program(y):
        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[z]))
            numpyro.sample("y", dist.ZeroInflatedPoisson(0.3 + 0.1 * z, 1.0 + z), obs=y)
            return z, None

        scan(step, 0, y)

    y = COUNTS[:4]
    m = jaxem.from_numpyro(program)
    brute = brute_force(Case(program, y), {})
    assert abs(float(jaxem.log_likelihood(m, {}, y)) - logsumexp(brute.log_density)) < 1e-12


# ---- latents of groups


def topics(words):
    docs, length = words.shape
    with numpyro.plate("topics", 2):
        phi = numpyro.sample("phi", dist.Dirichlet(jnp.full(3, 1.5)))
    with numpyro.plate("docs", docs, dim=-2):
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.full(2, 1.5)))
        with numpyro.plate("words", length, dim=-1):
            z = numpyro.sample("z", dist.Categorical(theta))
            numpyro.sample("w", dist.Categorical(phi[z]), obs=words)


def species(y):
    sites, visits = y.shape
    with numpyro.plate("sites", sites, dim=-2):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(effect)))
        with numpyro.plate("visits", visits, dim=-1):
            numpyro.sample("y", dist.Normal(2.0 * z + effect, 1.0), obs=y)


def items(y):
    persons, number = y.shape
    with numpyro.plate("items", number, dim=-1):
        easy = numpyro.sample("easy", dist.Normal(0.0, 1.0))
        with numpyro.plate("persons", persons, dim=-2):
            guess = numpyro.sample("guess", dist.Bernoulli(0.2))
            numpyro.sample("y", dist.Normal(jnp.where(guess == 1, 0.0, easy), 1.0), obs=y)


def sequences_with_levels(y):
    with numpyro.plate("sequences", y.shape[0]):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))

    def step(z, y):
        with numpyro.plate("sequences", y.shape[0]):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[z]))
            numpyro.sample("y", dist.Normal(level + 2.0 * z, 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(y.shape[0], int), y.T)


TABLE = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)))
GROUPS = {
    topics: (jnp.array([[0, 1, 2, 2], [1, 1, 0, 2]]), "theta", "'docs'"),
    species: (TABLE, "effect", "'sites'"),
    items: (TABLE, "easy", "'items'"),
    sequences_with_levels: (TABLE, "level", "'sequences'"),
}


@pytest.mark.parametrize("program", GROUPS, ids=lambda program: program.__name__)
def test_a_latent_of_a_group_of_rows_is_a_parameter(program):
    x, name, plate = GROUPS[program]
    m, theta = agrees_with_brute_force(program, x, marginals=False)
    why = m.explain(theta, x)[name]
    assert why.endswith(f"a point estimate (MAP) for each member of plate {plate}"), why


# ---- starts


class Custom(dist.Distribution):
    """A law that can be evaluated and not drawn from."""

    arg_constraints = {"loc": constraints.real}  # noqa: RUF012
    support = constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc))

    def log_prob(self, value):
        return -((value - self.loc) ** 4)


def improper(x):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.real, (), (2,)))
    sigma = numpyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)


def custom(x):
    with numpyro.plate("components", 2):
        mu = numpyro.sample("mu", Custom(0.5))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", Custom(mu[z]), obs=x)


@handlers.reparam(config={"angle": CircularReparam()})
def circular(x):
    angle = numpyro.sample("angle", dist.VonMises(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.VonMises(angle + z, 2.0), obs=x)


@pytest.mark.parametrize("program", [improper, custom, circular], ids=lambda program: getattr(program, "__name__", ""))
def test_a_law_that_cannot_be_drawn_from_starts_inside_its_support(program):
    m, theta = agrees_with_brute_force(program, X, marginals=False)
    other = m.init(jax.random.key(1), X)
    assert all((theta[name] != other[name]).all() for name in theta)
    if program is improper:
        assert bool(jaxem.em(m, theta, X, max_steps=3).gain > 0)


BOUNDS = {
    "array": lambda: dist.Uniform(jnp.array([-5.0, 0.0]), jnp.array([0.0, 5.0])),
    "ones": lambda: dist.Uniform(-5 * jnp.ones(2), 5 * jnp.ones(2)),
    "log": lambda: dist.Uniform(jnp.float32(-3.0), jnp.log(20.0)).expand([2]),
    "truncated": lambda: dist.TruncatedNormal(0.0, 1.0, low=jnp.zeros(2)),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bounds_that_are_constant_are_bounds(name):
    def program(x):
        mu = numpyro.sample("mu", BOUNDS[name]().to_event(1))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    agrees_with_brute_force(program, X, marginals=False)


# ---- arguments


@dataclasses.dataclass
class Options:
    centre: float
    sizes: tuple[int, ...] = (2, 3)


def with_options(x, options, *, scale=1.0):
    value = options["centre"] if isinstance(options, dict) else getattr(options, "centre", 1.0)
    mu = numpyro.param("mu", PAIR)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z] * value, scale), obs=x)


@pytest.mark.parametrize(
    "options",
    [
        Namespace(centre=1.0),
        Options(1.0),
        {"centre": 1.0, "note": "a word", "n": 3},
        np.array(["a", "b"]),
        object(),
        "text",
        None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_no_array_is_an_option(options):
    m = jaxem.from_numpyro(with_options)
    wanted = np.log(0.6 * np.exp(-((X + 1) ** 2) / 2) + 0.4 * np.exp(-((X - 1) ** 2) / 2)).sum() - 2.5 * np.log(
        2 * np.pi
    )
    assert abs(expectations(m, {"mu": PAIR}, (X, options))[0] - wanted) < 1e-12


def test_an_option_that_was_changed_is_another():
    m, options = jaxem.from_numpyro(with_options), Namespace(centre=1.0)
    before = float(jaxem.log_likelihood(m, {"mu": PAIR}, (X, options)))
    options.centre = 2.0
    assert float(jaxem.log_likelihood(m, {"mu": PAIR}, (X, options))) != before
    assert float(jaxem.log_likelihood(m, {"mu": PAIR}, (X, Namespace(centre=1.0)))) == before


def test_keywords_are_arguments():
    m = jaxem.from_numpyro(with_options)
    by_name = jaxem.arguments(X, options=None, scale=0.5)
    bound = jaxem.from_numpyro(partial(with_options, scale=0.5))
    found = expectations(m, {"mu": PAIR}, by_name)
    np.testing.assert_array_equal(found, expectations(bound, {"mu": PAIR}, (X, None)))
    gradient = jax.grad(lambda s: jaxem.log_likelihood(m, {"mu": PAIR}, jaxem.arguments(X, None, scale=s)))(0.5)
    assert bool(jnp.isfinite(gradient))


def test_equal_functions_make_equal_models():
    assert jaxem.from_numpyro(by_plate) == jaxem.from_numpyro(by_plate)
    assert hash(jaxem.from_numpyro(by_plate)) == hash(jaxem.from_numpyro(by_plate))


def test_one_infer_may_serve_several_sites():
    infer = {"enumerate": "parallel"}

    def program(x):
        a = numpyro.sample("a", dist.Bernoulli(0.3), infer=infer)

        def step(z, x):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[z]), infer=infer)
            numpyro.sample("x", dist.Normal(z + a, 1.0), obs=x, infer=infer)
            return z, None

        scan(step, 0, x)

    found = expectations(jaxem.from_numpyro(program), {}, X)
    assert infer == {"enumerate": "parallel"}
    infer = {}  # NumPyro itself writes into it
    assert abs(found[0] - logsumexp(brute_force(Case(program, X), {}).log_density)) < 1e-12


# ---- refused by name


def test_a_posterior_of_nothing_possible_is_refused():
    def program(x):
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Uniform(0.0, 1.0 + z), obs=x)

    m = jaxem.from_numpyro(program)
    for ask in (jaxem.marginals, jaxem.decode):
        with pytest.raises(ValueError, match=f"{ask.__name__}: log p.*-inf.*support"):
            ask(m, {}, jnp.array([0.5, 7.0]))


def no_obs(x, u, seen):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(PAIR[z], 1.0))


def no_obs_below_a_switch(x, u, seen):
    s = numpyro.sample("s", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(PAIR[s], 1.0))
        numpyro.sample("u", dist.Normal(PAIR[s], 1.0), obs=u)


def no_obs_of_counts(x, u, seen):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Poisson(1.0 + z))


def value_for_each_row(x, u, seen):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(PAIR[z] + effect, 1.0), obs=x)


def branch(x, u, seen):
    z = numpyro.sample("z", dist.Bernoulli(0.4))
    arms = [lambda _, loc=loc: numpyro.sample("w", dist.Normal(loc, 1.0), obs=x[1]) for loc in (0.0, 1.0)]
    cond(x[0] > 0, *arms, None)
    numpyro.sample("x", dist.Normal(z, 1.0), obs=x[0])


def two_scales(x, u, seen):
    a = numpyro.sample("a", dist.Bernoulli(0.4))
    with handlers.scale(scale=10.0):
        b = numpyro.sample("b", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(a + 2 * b, 1.0), obs=x[0])


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (imputed_covariate, ["'x' depends on the values of 'u' that obs_mask hides", "fill them in"]),
        (missing_regressor, ["'x' that obs_mask hides", "of a scan", "fill them in"]),
        (no_obs, ["'x'", "'rows'", "obs="]),
        (no_obs_below_a_switch, ["'x'", "'rows'", "obs="]),
        (no_obs_of_counts, ["'x'", "Poisson", "obs="]),
        (value_for_each_row, ["'effect'", "each row", "'rows'", "integral"]),
        (branch, ["'w'", "control_flow.cond", "jnp.where"]),
        (two_scales, ["'a'", "'b'", "10.0", "1.0", "handlers.scale"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_read_is_refused_by_name(program, words):
    m = jaxem.from_numpyro(program)
    with pytest.raises(ValueError, match="program") as error:
        jaxem.em(m, {}, (X, X, KNOWN))
    for word in words:
        assert word in str(error.value), str(error.value)


def test_scales_that_differ_when_a_program_runs_make_it_nan():
    def program(x, w):
        a = numpyro.sample("a", dist.Bernoulli(0.4))
        with handlers.scale(scale=w):
            b = numpyro.sample("b", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(a + 2 * b, 1.0), obs=x[0])

    m = jaxem.from_numpyro(program)
    assert bool(jnp.isnan(jaxem.log_likelihood(m, {}, (X, 10.0))))
    assert bool(jnp.isfinite(jaxem.log_likelihood(m, {}, (X, 1.0))))
