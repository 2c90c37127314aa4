"""Counts with too many zeros, however they are written."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist

from gallery.registry import J, entry, positive, unit_interval

COUNTS = J([0, 0, 3, 1, 0])
X = J([-0.5, 0.2, 0.9, 0.1, -1.0])


def spelled(count, zero):
    """The same with its latent, whose value `zero` is a zero of the gate's own."""

    def program(x):
        gate, law = count()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("x", dist.Bernoulli(gate if zero == 1 else 1 - gate))
            inflated = jnp.where(x == 0, 0.0, -jnp.inf)
            numpyro.factor("value", jnp.where(z == zero, inflated, law.log_prob(x)))

    return program


def poisson():
    gate = numpyro.sample("gate", dist.Beta(2.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    return gate, dist.Poisson(rate)


def negative_binomial():
    gate = numpyro.sample("gate", dist.Beta(2.0, 2.0))
    mean = numpyro.sample("mean", dist.Gamma(2.0, 1.0))
    return gate, dist.NegativeBinomial2(mean, 3.0)


@entry(COUNTS, source="NumPyro example zero_inflated_poisson", reference=spelled(poisson, 1))
def zero_inflated_poisson(x):
    """ZeroInflatedPoisson: the two-component mixture that the distribution sums itself."""
    gate, law = poisson()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.ZeroInflatedPoisson(gate, law.rate), obs=x)


@entry(COUNTS, source="NumPyro docs: ZeroInflatedNegativeBinomial2", reference=spelled(negative_binomial, 1))
def zero_inflated_negative_binomial(x):
    """ZeroInflatedNegativeBinomial2: the same about a negative binomial."""
    gate, law = negative_binomial()
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.ZeroInflatedNegativeBinomial2(law.mean, law.concentration, gate=gate), obs=x)


@entry(COUNTS, source="NumPyro docs: mixtures; classic", reference=spelled(poisson, 0), closed="rate")
def point_and_poisson(x):
    """A point at zero and a Poisson, as MixtureGeneral."""
    gate, law = poisson()
    with numpyro.plate("rows", len(x)):
        mixing = dist.Categorical(jnp.stack([gate, 1 - gate]))
        parts = [dist.Delta(0), law]
        numpyro.sample("x", dist.MixtureGeneral(mixing, parts, support=law.support), obs=x)


@entry(COUNTS, source="PyMC example: latent occupancy")
def rate_times_latent(x):
    """Poisson(rate·z): at z = 0 a rate of zero, whose derivative is 0·∞."""
    gate = numpyro.sample("gate", dist.Beta(2.0, 2.0))
    rate = numpyro.param("rate", J(1.5), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(gate))
        numpyro.sample("x", dist.Poisson(rate * z), obs=x)


@entry(COUNTS, source="classic", closed="gate")
def tiny_rate(x):
    """Zero inflation by a rate that is almost zero where z = 0."""
    gate = numpyro.sample("gate", dist.Beta(2.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(gate))
        numpyro.sample("x", dist.Poisson(jnp.where(z == 1, rate, 1e-6)), obs=x)


@entry(COUNTS, source="classic", closed="gate")
def inflated_negative_binomial(x):
    """Overdispersed counts, or nearly none, with a latent."""
    gate = numpyro.param("gate", J(0.5), constraint=unit_interval)
    mean = numpyro.sample("mean", dist.Gamma(2.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(gate))
        numpyro.sample("x", dist.NegativeBinomial2(jnp.where(z == 1, mean, 1e-3), 2.0), obs=x)


@entry(COUNTS, X, source="classic: hurdle", climbs="slope", closed="gate")
def hurdle(counts, covariate):
    """Zero or above a hurdle, the rate by a log-linear regression, by factor."""
    gate = numpyro.sample("gate", dist.Beta(2.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    rate = jnp.exp(slope * covariate)
    with numpyro.plate("rows", len(counts)):
        z = numpyro.sample("z", dist.Bernoulli(gate))
        positive_count = dist.Poisson(rate).log_prob(counts) - jnp.log1p(-jnp.exp(-rate))
        above = jnp.where(counts > 0, positive_count, -jnp.inf)
        numpyro.factor("x", jnp.where(z == 1, above, jnp.where(counts == 0, 0.0, -jnp.inf)))
