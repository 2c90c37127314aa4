"""Parameters whose M-step has a formula, in the ways that people write them."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from gallery.registry import J, entry, positive, unit_interval

X = J([-1.0, 0.5, 2.0, 1.0])
COUNTS = J([0, 1, 4, 3])
SOME = J([0, 1, 1, 0])


def written(name, about, build, x, closed):
    """A mixture of two, `build()` making its parameters and giving the law under z."""

    def program(x):
        law = build()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", law(z), obs=x)

    program.__doc__ = about
    entry(x, source="common", closed=closed, name=name)(program)


def param(name, start, constraint=constraints.real):
    return numpyro.param(name, J(start), constraint=constraint)


def two_scales():
    a, b = param("a", 1.0, positive), param("b", 2.0, positive)
    return lambda z: dist.Normal(0.0, jnp.where(z == 1, a, b))


def two_rates():
    a, b = param("a", 1.0, positive), param("b", 2.0, positive)
    return lambda z: dist.Poisson(jnp.where(z == 1, a, b))


def stacked_rates():
    rates = jnp.stack([param("a", 1.0, positive), param("b", 3.0, positive)])
    return lambda z: dist.Poisson(rates[z])


def exposed():
    rate = param("rate", [1.0, 3.0], positive)
    return lambda z: dist.Poisson(J([1.0, 2.0, 0.5, 1.0]) * rate[z])


def detected():
    p = param("p", 0.4, unit_interval)
    return lambda z: dist.Bernoulli(z * p)


def complement():
    p = param("p", [0.4, 0.6], unit_interval)
    return lambda z: dist.Bernoulli(1 - p[z])


def two_sided():
    p = param("p", [0.4, 0.6], unit_interval)
    return lambda z: dist.Categorical(jnp.stack([p, 1 - p], axis=-1)[z])


def logits():
    logit = param("logit", [0.4, 0.6])
    return lambda z: dist.Bernoulli(logits=logit[z])


def log_scale():
    log = param("log", [0.0, 0.5])
    return lambda z: dist.Normal(0.0, jnp.exp(log)[z])


def log_rate():
    log = param("log", [0.0, 0.5])
    return lambda z: dist.Poisson(jnp.exp(log[z]))


def precision():
    tau = numpyro.sample("tau", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    return lambda z: dist.Normal(0.0, 1 / jnp.sqrt(tau[z]))


def variance():
    v = numpyro.sample("v", dist.InverseGamma(2.0, 1.0).expand([2]).to_event(1))
    return lambda z: dist.Normal(0.0, jnp.sqrt(v[z]))


def uniform_mean():
    mu = numpyro.sample("mu", dist.Uniform(-10.0, 10.0).expand([2]).to_event(1))
    return lambda z: dist.Normal(mu[z], 1.0)


def uniform_probability():
    p = numpyro.sample("p", dist.Uniform(0.0, 1.0).expand([2]).to_event(1))
    return lambda z: dist.Bernoulli(p[z])


def exponential_rate():
    rate = numpyro.sample("rate", dist.Exponential(1.0).expand([2]).to_event(1))
    return lambda z: dist.Poisson(rate[z])


def vector_mean():
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0).expand([2, 2]).to_event(2))
    return lambda z: dist.MultivariateNormal(mu[z], jnp.eye(2))


def vector_mean_with_covariance():
    mu = numpyro.sample("mu", dist.MultivariateNormal(jnp.zeros(2), 2 * jnp.eye(2)).expand([2]).to_event(1))
    return lambda z: dist.MultivariateNormal(mu[z], jnp.eye(2))


def partly_masked_event():
    mu = param("mu", [[0.0, 1.0], [2.0, 3.0]])
    return lambda z: dist.Normal(mu[z], 1.0).mask(J([[True, False]])).to_event(1)


POINTS = jnp.stack([X, X**2], axis=-1)
for name, about, build, x, closed in (
    ("scales_by_where", "Two scales, chosen by where.", two_scales, X, "a b"),
    ("rates_by_where", "Two rates, chosen by where.", two_rates, COUNTS, "a b"),
    ("rates_stacked", "Two rates, stacked.", stacked_rates, COUNTS, "a b"),
    ("rates_times_exposure", "Rates times a known exposure.", exposed, COUNTS, "rate"),
    ("probability_times_latent", "Bernoulli(z·p): seen only if there.", detected, SOME, "p"),
    ("probability_of_failure", "Bernoulli(1 − p).", complement, SOME, "p"),
    ("both_probabilities", "Categorical([p, 1 − p]).", two_sided, SOME, "p"),
    ("probability_by_logit", "Bernoulli by its logit.", logits, SOME, "logit"),
    ("scale_by_logarithm", "A scale by its logarithm.", log_scale, X, "log"),
    ("rate_by_logarithm", "A rate by its logarithm.", log_rate, COUNTS, "log"),
    ("precision_with_gamma", "1/√τ, τ with a Gamma prior.", precision, X, "tau"),
    ("variance_with_inverse_gamma", "√v, v with an InverseGamma prior.", variance, X, "v"),
    ("mean_with_uniform_prior", "A mean with a uniform prior.", uniform_mean, X, "mu"),
    ("probability_with_uniform_prior", "A probability with a uniform prior.", uniform_probability, SOME, "p"),
    ("rate_with_exponential_prior", "A rate with an Exponential prior.", exponential_rate, COUNTS, "rate"),
    ("vector_with_normal_prior", "A vector mean, each entry Normal.", vector_mean, POINTS, "mu"),
    ("vector_with_vector_prior", "A vector mean, multivariate normal.", vector_mean_with_covariance, POINTS, "mu"),
    ("masked_within_an_event", "A mask under to_event.", partly_masked_event, POINTS, "mu"),
):
    written(name, about, build, x, closed)


@entry(POINTS, source="dynamax: linear regression and autoregressive emissions", closed="A W")
def vector_regression_in_a_chain(y):
    """A vector autoregression whose matrix follows the state."""
    A = numpyro.param("A", J([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    W = numpyro.param("W", J([[[0.5, 0.0], [0.0, 0.5]], [[-0.2, 0.1], [0.0, 0.3]]]))

    def step(carry, y):
        z, last = carry
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.MultivariateNormal(jnp.sum(W[z] * last, axis=-1), jnp.eye(2)), obs=y)
        return (z, y), None

    scan(step, (0, jnp.ones(2)), y)
