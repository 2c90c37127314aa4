"""Fits of programs, against families, NumPyro itself, and textbook algorithms written out in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import programs
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.funsor import config_enumerate, enum, infer_discrete
from numpyro.contrib.funsor.infer_util import log_density
from numpyro.distributions import biject_to, constraints
from scipy.special import softmax
from scipy.stats import norm

import jaxem
from jaxem._core.checks import enter as prepare
from jaxem.families import categorical, gaussian

RNG = np.random.default_rng(11)
TWO = jnp.asarray(np.concatenate([RNG.normal(-2, 0.6, (30, 2)), RNG.normal(1.5, 1.0, (50, 2))]))
SEQUENCE = jnp.asarray(np.repeat([-1.0, 1.2, -1.0, 1.2], 15) + 0.7 * RNG.normal(size=60))


def fitted(program, x, **options):
    m = jaxem.from_numpyro(program)
    return m, jaxem.check(jaxem.em(m, m.init(jax.random.key(0), x), x, **options))


def test_a_program_of_a_family_fits_as_the_family_does():
    m, fit = fitted(programs.mixture, TWO, tol=1e-12)
    start = m.init(jax.random.key(0), TWO)
    wanted = jaxem.em(gaussian.spherical, start, TWO, tol=1e-12)
    assert abs(float(fit.free_energy - wanted.free_energy)) < 1e-9
    for name in wanted.theta:
        np.testing.assert_allclose(fit.theta[name], wanted.theta[name], atol=1e-6)
    np.testing.assert_allclose(
        jaxem.log_joint(m, start, TWO), jaxem.log_joint(gaussian.spherical, start, TWO), rtol=1e-12
    )
    np.testing.assert_allclose(
        jaxem.responsibilities(m, start, TWO, 0.5), jaxem.marginals(m, start, TWO, 0.5)["z"], atol=1e-12
    )


def test_a_mixture_distribution_fits_as_the_explicit_latent_does():
    _, explicit = fitted(programs.mixture, TWO)
    _, marginal = fitted(programs.same_family, TWO)
    assert int(explicit.num_steps) == int(marginal.num_steps)
    np.testing.assert_allclose(marginal.theta["mu"], explicit.theta["mu"], atol=1e-10)


def test_latent_class_analysis_fits_as_the_categorical_family_does():
    answers = jnp.asarray(np.where(RNG.random((80, 3)) < 0.7, RNG.integers(0, 2, (80, 1)), RNG.integers(0, 3, (80, 3))))
    m = jaxem.from_numpyro(programs.latent_class)
    start = m.init(jax.random.key(0), (answers, 2))
    one, right = (jaxem.em(m, start, (answers, 2, plates), max_steps=40) for plates in (False, True))
    wanted = jaxem.em(categorical.mixture, start, answers, max_steps=40)
    for fit in (one, right):
        np.testing.assert_allclose(fit.theta["probs"], wanted.theta["probs"], atol=1e-8)
        assert abs(float(fit.free_energy - wanted.free_energy)) < 1e-9


def test_an_hmm_fits_as_baum_welch_does():
    """Forward–backward and the textbook M-step (Rabiner 1989), in NumPy; the first state follows z_0."""
    m = jaxem.from_numpyro(partial(programs.hmm, emit=programs.gaussian_emission))
    theta = m.init(jax.random.key(0), SEQUENCE)
    path = jaxem.em_path(m, theta, SEQUENCE, num_steps=5)
    pi, A, mu, sigma = (np.asarray(theta[name]) for name in ("pi", "A", "mu", "sigma"))
    y = np.asarray(SEQUENCE)
    for t in range(5):
        B = norm.pdf(y[:, None], mu, sigma)
        alpha, beta = [pi], [np.ones(2)]
        for b in B:
            alpha.append((alpha[-1] @ A) * b)
        for b in B[::-1]:
            beta.append(A @ (b * beta[-1]))
        alpha, beta = np.array(alpha), np.array(beta[::-1])
        likelihood = alpha[-1].sum()
        assert abs(float(path.after_e[t]) - np.log(likelihood)) < 1e-10
        gamma = alpha * beta / likelihood
        xi = alpha[:-1, :, None] * A * (B * beta[1:])[:, None] / likelihood
        pi, A = gamma[0], xi.sum(0) / xi.sum((0, 2))[:, None]
        weight = gamma[1:].sum(0)
        mu = gamma[1:].T @ y / weight
        sigma = np.sqrt(np.einsum("tk,tk->k", gamma[1:], (y[:, None] - mu) ** 2) / weight)
        for name, wanted in (("pi", pi), ("A", A), ("mu", mu), ("sigma", sigma)):
            np.testing.assert_allclose(path.theta[name][t], wanted, atol=1e-10)


def test_hard_em_of_an_hmm_is_segmental_k_means():
    """At T = 0 a fixed point's parameters are the moments of its own best path."""
    m, fit = fitted(partial(programs.hmm, emit=programs.gaussian_emission), SEQUENCE, temperature=0.0)
    z = np.asarray(jaxem.decode(m, fit.theta, SEQUENCE)["z"])
    for k in range(2):
        assert abs(float(fit.theta["mu"][k]) - SEQUENCE[z == k].mean()) < 1e-12


def test_a_long_chain_that_underflows_falls_back_to_logarithms():
    """Emissions 60 standard deviations apart: probabilities underflow, the answer does not change."""
    m = jaxem.from_numpyro(partial(programs.hmm, emit=programs.gaussian_emission))
    theta = m.init(jax.random.key(0), SEQUENCE) | {"mu": jnp.array([-30.0, 30.0]), "sigma": jnp.array([0.5, 0.5])}
    wanted, _ = log_density(enum(config_enumerate(m.program), -1), (SEQUENCE,), {}, theta)
    assert abs(float(jaxem.log_likelihood(m, theta, SEQUENCE)) - float(wanted)) < 1e-9 * abs(float(wanted))
    assert bool(jaxem.certify(m, theta, SEQUENCE).holds(1e-10))  # differences of messages of 1e5 nats


def test_a_mixture_of_regressions_fits_by_weighted_least_squares():
    x = np.column_stack([np.ones(80), RNG.normal(size=80)])
    y = np.where(np.arange(80) < 40, x @ [1.0, 2.0], x @ [-1.0, -0.5]) + 0.4 * RNG.normal(size=80)
    m = jaxem.from_numpyro(programs.regressions)
    theta = m.init(jax.random.key(0), (x, y))
    path = jaxem.em_path(m, theta, (jnp.asarray(x), jnp.asarray(y)), num_steps=4)
    pi, beta, sigma = (np.asarray(theta[name]) for name in ("pi", "beta", "sigma"))
    for t in range(4):
        gamma = softmax(np.log(pi) + norm.logpdf(y[:, None], x @ beta.T, sigma), axis=1)
        pi = gamma.mean(0)
        beta = np.stack([np.linalg.solve((x.T * g) @ x, (x.T * g) @ y) for g in gamma.T])
        sigma = np.sqrt((gamma * (y[:, None] - x @ beta.T) ** 2).sum(0) / gamma.sum(0))
        for name, wanted in (("pi", pi), ("beta", beta), ("sigma", sigma)):
            np.testing.assert_allclose(path.theta[name][t], wanted, atol=1e-9)


def test_priors_make_the_fit_an_optimum_of_numpyros_own_log_density():
    x = TWO[:, 0]
    counts = jnp.asarray(RNG.poisson(np.where(np.asarray(x) < 0, 2.0, 6.0)))
    m, fit = fitted(programs.with_priors, (x, counts), tol=1e-13)
    supports = {"pi": constraints.simplex, "mu": constraints.real, "rate": constraints.positive}
    free = {name: biject_to(supports[name]).inv(fit.theta[name]) for name in supports}

    def density(free):
        theta = {name: biject_to(supports[name])(u) for name, u in free.items()}
        return log_density(enum(config_enumerate(programs.with_priors), -2), (x, counts), {}, theta)[0]

    with jax.numpy_rank_promotion("allow"):
        value, gradient = jax.value_and_grad(density)(free)
    assert abs(float(value - fit.free_energy)) < 1e-9
    assert max(float(jnp.abs(g).max()) for g in gradient.values()) < 1e-4  # F is within 1e-13·W of its top
    prior = float(fit.free_energy - jaxem.log_likelihood(m, fit.theta, (x, counts)))
    laws = dist.Dirichlet(jnp.array([2.0, 3.0])), dist.Normal(0.0, 2.0), dist.Gamma(2.0, 0.5)
    wanted = sum(float(jnp.sum(law.log_prob(fit.theta[n]))) for law, n in zip(laws, supports, strict=True))
    assert abs(prior - wanted) < 1e-9


def test_what_is_masked_or_unobserved_might_as_well_not_be_there():
    x, seen = TWO[:, 0], jnp.asarray(RNG.random(80) < 0.7)
    _, half = fitted(programs.half_observed, (jnp.where(seen, x, jnp.nan), seen))
    _, dropped = fitted(programs.half_observed, (x[seen], seen[seen]))
    np.testing.assert_allclose(half.theta["mu"], dropped.theta["mu"], atol=1e-8)
    holes = jnp.stack([seen, ~seen], axis=1)
    _, masked = fitted(programs.masked, (TWO, holes))
    _, moved = fitted(programs.masked, (jnp.where(holes, TWO, 99.0), holes))
    np.testing.assert_array_equal(masked.theta["mu"], moved.theta["mu"])


def test_a_scale_of_two_is_a_row_twice():
    x, weights = TWO[:, 0], jnp.asarray(RNG.integers(0, 4, 80).astype(float))
    m, fit = fitted(programs.weighted, (x, weights))
    repeated = jnp.repeat(x, weights.astype(int))
    _, wanted = fitted(programs.weighted, (repeated, jnp.ones(len(repeated))))
    np.testing.assert_allclose(fit.theta["mu"], wanted.theta["mu"], atol=1e-7)
    assert abs(float(fit.free_energy - wanted.free_energy)) < 1e-7
    assert bool(jnp.isfinite(jaxem.marginals(m, fit.theta, (x, weights))["z"]).all())  # rows of weight 0 too


@pytest.mark.parametrize("name", ["student", "gammas", "neural"])
def test_the_gradient_takes_over_where_no_closed_form_is_known(name):
    """Generalised EM rises, and comes to rest where ∇L vanishes."""
    x = TWO[:, 0]
    data = {"student": x, "gammas": jnp.exp(x), "neural": (x, jnp.sin(x) + 0.1 * TWO[:, 1])}[name]
    m = jaxem.from_numpyro(programs.CASES[name].program)
    fit = jaxem.em(m, m.init(jax.random.key(0), data), data, max_steps=150, tol=1e-9)
    assert int(fit.status) in {jaxem.Status.CONVERGED, jaxem.Status.MAX_STEPS}
    theta, prepared = prepare(m, fit.theta, data)

    def likelihood(free):
        return m.expect(m.coordinates(theta, prepared).constrain(free), prepared).free_energy

    gradient = jax.grad(likelihood)(m.coordinates(theta, prepared).unconstrain(theta))
    # the gain is below 1e-9 a number: with curvature of order W the gradient is below W·√(2e-9)
    limit = 80 * np.sqrt(2e-9) if int(fit.status) == jaxem.Status.CONVERGED else 1.0
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 10 * limit


def test_the_gradient_m_step_climbs_to_the_same_optimum_as_the_closed_form():
    climbing = jaxem.from_numpyro(programs.mixture, closed_form=False)
    theta = climbing.init(jax.random.key(0), TWO)
    assert all(why.startswith("gradient") for why in climbing.explain(theta, TWO).values())
    fit = jaxem.em(climbing, theta, TWO, max_steps=100)
    _, wanted = fitted(programs.mixture, TWO)
    assert abs(float(fit.free_energy - wanted.free_energy)) < 1e-5


def test_decode_agrees_with_numpyros_infer_discrete():
    theta = jaxem.from_numpyro(programs.dependent_pair).init(jax.random.key(0), TWO[:, 0])
    model = handlers.substitute(config_enumerate(programs.dependent_pair), data=theta)
    inferred = infer_discrete(model, temperature=0, first_available_dim=-2, rng_key=jax.random.key(1))
    with jax.numpy_rank_promotion("allow"):
        trace = handlers.trace(inferred).get_trace(TWO[:, 0])
    found = jaxem.decode(jaxem.from_numpyro(programs.dependent_pair), theta, TWO[:, 0])
    for site in ("a", "b"):
        np.testing.assert_array_equal(found[site], trace[site]["value"])


def test_ties_go_to_the_lowest_index_of_one_assignment():
    """Two states that cannot be told apart: each step alone says nothing, the path must still be one path."""

    def program(y):
        def step(before, y):
            z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.1, 0.9]])[before]))
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)
            return z, None

        z_0 = numpyro.sample("z_0", dist.Categorical(jnp.array([0.5, 0.5])))
        programs.scan(step, z_0, y)

    m = jaxem.from_numpyro(program)
    decoded = jaxem.decode(m, {}, jnp.zeros(5))
    assert decoded["z"].tolist() == [0] * 5
    assert int(decoded["z_0"]) == 0
    np.testing.assert_allclose(jaxem.marginals(m, {}, jnp.zeros(5))["z"], 0.5, atol=1e-12)


def test_held_parameters_stay_and_lanes_equal_single_fits():
    m = jaxem.from_numpyro(programs.mixture).hold("sigma")
    theta = m.init(jax.random.key(0), TWO)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), theta)
    starts["mu"] = starts["mu"] + jnp.array([0.0, 0.3])[:, None, None]
    lanes = jaxem.em_batch(m, starts, TWO)
    mapped = jax.vmap(lambda theta: jaxem.em(m, theta, TWO))(starts)
    np.testing.assert_allclose(lanes.theta["mu"], mapped.theta["mu"], atol=1e-9)
    assert bool(jnp.all(lanes.theta["sigma"] == starts["sigma"]))
    single = jax.jit(lambda theta, x: jaxem.em(m, theta, x))(theta, TWO)
    np.testing.assert_allclose(lanes.theta["mu"][0], single.theta["mu"], atol=1e-12)
    assert m.explain(theta, TWO)["sigma"] == "held"


def test_the_rate_of_convergence_is_the_missing_information():
    m, fit = fitted(programs.offset_regression, (TWO[:, 0], TWO[:, 1]), tol=1e-14)
    rate = jaxem.convergence_rate(m, fit.theta, (TWO[:, 0], TWO[:, 1]))
    np.testing.assert_allclose(rate.jacobian, rate.missing_information, atol=1e-5)
    assert 0 < float(rate.spectral_radius) < 1


def test_float32_goes_in_and_comes_out():
    x = jnp.asarray(TWO, jnp.float32)
    _, fit = fitted(programs.mixture, x, tol=1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((fit.theta, fit.free_energy)))
    _, exact = fitted(programs.mixture, TWO)
    assert abs(float(fit.free_energy) - float(exact.free_energy)) < 0.01 * len(x)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mixture", 10),  # 5 rows of 2 features
        ("same_family", 10),
        ("general", 5),
        ("latent_class_right", 15),
        ("hmm_sequences", 4 + 2 + 3),  # the lengths
        ("weighted", 7.5),  # the weights
        ("masked", 6),
        ("half_observed", 3),
    ],
)
def test_a_tolerance_is_a_number_of_nats_for_each_observed_number(name, wanted):
    case = programs.CASES[name]
    m = jaxem.from_numpyro(case.program)
    _, data = prepare(m, m.init(jax.random.key(0), case.x), case.x)
    assert float(m.rows.size(data)) == wanted
