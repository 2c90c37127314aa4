"""Programs under NumPyro's handlers, and plates in the ways that people enter them."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers

from gallery.registry import J, entry, positive, weights

X = J([-2.1, -1.7, 0.4, 1.9])


def two_means():
    return numpyro.param("mu", J([-1.0, 1.0]))


def rows(mu, x, pi=0.4):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(pi))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


# ---- handlers


def handled(about, name, program, closed="mu"):
    program.__doc__ = about
    entry(X, source="NumPyro handlers", closed=closed, name=name)(program)


def plain(x):
    rows(two_means(), x)


def with_switch(x):
    mu = two_means()
    s = numpyro.sample("s", dist.Bernoulli(0.3))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z] + s, 1.0), obs=x)


def aside(x):
    numpyro.deterministic("aside", x.sum())
    plain(x)


def scoped_rows(x):
    scale = numpyro.param("scale", J(1.5), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(2.0 * z, scale), obs=x)


def scaled_likelihood(x):
    mu = two_means()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with handlers.scale(scale=2.0):
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def subsample_of_all(x):
    mu = two_means()
    with numpyro.plate("rows", len(x), subsample_size=len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def stacked(x):
    with numpyro.plate_stack("components", [2, 2]):
        mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        w = numpyro.sample("w", dist.Bernoulli(0.3))
        numpyro.sample("x", dist.Normal(mu[z, w], 1.0), obs=x)


def shared_infer(x):
    infer = {"enumerate": "parallel"}
    mu = two_means()
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4), infer=infer)
        w = numpyro.sample("w", dist.Bernoulli(0.3), infer=infer)
        numpyro.sample("x", dist.Normal(mu[z] + w, 1.0), obs=x)


def deterministic(x):
    numpyro.deterministic("twice", 2 * x)
    mu = numpyro.deterministic("means", two_means())
    rows(mu, x)


handled("A program already seeded.", "seeded", lambda x: handlers.seed(plain, 0)(x))
handled("A latent conditioned on.", "conditioned", lambda x: handlers.condition(with_switch, data={"s": J(1)})(x))
handled(
    "A param lifted to a latent with a prior.",
    "lifted",
    lambda x: handlers.lift(plain, prior={"mu": dist.Normal(0.0, 2.0).expand([2]).to_event(1)})(x),
)
handled("A site of no consequence blocked.", "blocked", lambda x: handlers.block(aside, hide=["aside"])(x))
handled("Sites renamed by a scope.", "scoped", lambda x: handlers.scope(scoped_rows, prefix="a")(x), "a/scale")
handled("The likelihood alone is scaled.", "scaled_likelihood", lambda x: scaled_likelihood(x))
handled("A plate with subsample_size its size.", "subsample_of_all", lambda x: subsample_of_all(x))
handled("A plate_stack around the components.", "plate_stack", lambda x: stacked(x))
handled("One infer dictionary shared by two latents.", "shared_infer", lambda x: shared_infer(x))
handled("A deterministic site beside.", "deterministic", lambda x: deterministic(x))


# ---- plates, expansions, loops


@entry(X, source="forum", closed="mu")
def expanded_latent(x):
    """A latent of every row by `.expand`, and no plate at all."""
    mu = two_means()
    z = numpyro.sample("z", dist.Bernoulli(0.4).expand([len(x)]))
    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(X, source="beginners: a loop over rows", closed="mu pi")
def loop_over_rows(x):
    """A site for each row, in a Python loop."""
    mu, pi = two_means(), weights("pi", 2)
    for i in range(len(x)):
        z = numpyro.sample(f"z_{i}", dist.Categorical(pi))
        numpyro.sample(f"x_{i}", dist.Normal(mu[z], 1.0), obs=x[i])


@entry(X, source="forum", closed="mu")
def plate_used_twice(x):
    """The plate of the rows entered twice."""
    mu, plate = two_means(), numpyro.plate("rows", len(x))
    with plate:
        z = numpyro.sample("z", dist.Bernoulli(0.4))
    with plate:
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(X, J([True, True, False, True]), source="forum: a mask on part of a prior")
def partly_masked_prior(x, counts):
    """Half of a parameter's prior is switched off."""
    with numpyro.plate("components", 2), handlers.mask(mask=J([True, False])):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)), handlers.mask(mask=counts):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(X, J([2, 1, 4, 3]), 3, source="forum: a mask computed from integers")
def prior_masked_by_an_integer(x, sizes, least):
    """A mask that integers decide switches a prior's rows on and off."""
    with numpyro.plate("components", 2), handlers.mask(mask=sizes[:2] >= least - 1):
        rate = numpyro.sample("rate", dist.Gamma(3.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Poisson(rate[z]), obs=sizes)


class Bell(dist.Distribution):
    """A density that its author gave no sampler."""

    support = dist.constraints.real

    def __init__(self, peak):
        self.peak = peak
        super().__init__(jnp.shape(peak), ())

    def log_prob(self, value):
        return -jnp.log(jnp.pi) - jnp.log1p((value - self.peak) ** 2)


@entry(X, source="NumPyro docs: custom distributions", climbs="peak")
def density_without_sampler(x):
    """A distribution of one's own, with log_prob and no sample."""
    peak = numpyro.param("peak", J([-1.0, 1.0]), constraint=dist.constraints.interval(-2.0, 2.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", Bell(peak[z]), obs=x)
