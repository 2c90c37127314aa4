"""Mixtures, as tutorials and forums write them."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer.reparam import CircularReparam, LocScaleReparam

from gallery.registry import J, entry, positive, weights

ROWS = J([-2.1, -1.7, 0.4, 1.9, 2.6])
PAIRS = J([[-1.0, 0.2], [-0.8, -0.4], [0.1, 0.3], [1.2, 0.9], [0.7, 1.6]])
COUNTS = J([0, 1, 4, 2, 7])


@entry(J([0.0, 1.0, 10.0, 11.0, 12.0]), source="NumPyro notebook gmm; tests of funsor enumeration", closed="locs")
def one_scale_for_all(x):
    """Five points, two components, a prior below one on the weights and one scale for both."""
    pi = numpyro.sample("weights", dist.Dirichlet(0.5 * jnp.ones(2)))
    scale = numpyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("components", 2):
        locs = numpyro.sample("locs", dist.Normal(0.0, 10.0))
    with numpyro.plate("data", len(x)):
        assignment = numpyro.sample("assignment", dist.Categorical(pi))
        numpyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)


@entry(J([0.2, 1.3, 2.9, -2.8, -1.0]), source="public repository: mixtures of directions", climbs="kappa")
def von_mises(x):
    """Angles from two von Mises distributions."""
    pi = weights("pi", 0.4, 0.6)
    loc = numpyro.param("loc", J([-1.0, 1.0]), constraint=constraints.circular)
    kappa = numpyro.sample("kappa", dist.Gamma(4.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.VonMises(loc[z], kappa[z]), obs=x)


@entry(ROWS, source="NumPyro example toy_mixture_model_discrete_enumeration", closed="locs p")
def two_switches(x):
    """Two coins choose one of four locations together."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0).expand([2]).to_event(1))
    locs = numpyro.sample("locs", dist.Normal(0.0, 3.0).expand([2, 2]).to_event(2))
    with numpyro.plate("rows", len(x)):
        a = numpyro.sample("a", dist.Bernoulli(p[0]))
        b = numpyro.sample("b", dist.Bernoulli(p[1]))
        numpyro.sample("x", dist.Normal(locs[a, b], 1.0), obs=x)


@entry(ROWS, source="NumPyro docs: reparameterization; mixtures of skewed directions", theta={"m": J(0.3)})
def flat_prior(x):
    """A location with an improper flat prior."""
    m = numpyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(m + 2.0 * z, 1.0), obs=x)


@entry(
    J([[0.2, 1.3], [2.9, -2.8], [-1.0, 0.1]]),
    source="NumPyro example ssbvm_mixture",
    theta={"phi_unwrapped": J([0.3, -0.2])},
)
def circular_reparameterisation(x):
    """Sine-skewed angles about a direction that CircularReparam unwraps."""
    with handlers.reparam(config={"phi": CircularReparam()}):
        phi = numpyro.sample("phi", dist.VonMises(0.0, 2.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        base = dist.VonMises(phi + z[..., None], 2.0).to_event(1)
        numpyro.sample("x", dist.SineSkewed(base, J([0.1, -0.2])), obs=x)


def spelled_hill(x):
    w = numpyro.sample("w", dist.Dirichlet(2.0 * jnp.ones(2)))
    m = numpyro.sample("m", dist.Normal(0.0, 5.0))
    with numpyro.plate("k", 2):
        base = numpyro.sample("loc_decentered", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("x", dist.Categorical(w))
        numpyro.sample("value", dist.Normal((m + base)[z], 0.8), obs=x)


@entry(ROWS, source="public repository: dose response, a mixture of Hill curves", reference=spelled_hill)
def reparameterised_components(x):
    """Locations of a mixture distribution, decentered by LocScaleReparam."""
    w = numpyro.sample("w", dist.Dirichlet(2.0 * jnp.ones(2)))
    m = numpyro.sample("m", dist.Normal(0.0, 5.0))
    with handlers.reparam(config={"loc": LocScaleReparam(0.0)}), numpyro.plate("k", 2):
        loc = numpyro.sample("loc", dist.Normal(m, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, 0.8)), obs=x)


@entry(jnp.stack([ROWS, ROWS**2]).T, source="public repository: hierarchical mixture", closed="mu", climbs="chol")
def correlated_components(x):
    """Components share a correlation with an LKJ prior."""
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 3.0)))
    mu = numpyro.param("mu", J([[-1.0, 2.0], [1.0, 4.0]]))
    chol = numpyro.sample("chol", dist.LKJCholesky(2, 3.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.MultivariateNormal(mu[z], scale_tril=1.5 * chol), obs=x)


@entry(ROWS, J([0, 1, 1, 0, 1]), source="public repository: weights of subgroups", closed="pi mu")
def weights_of_subgroups(x, group):
    """Each subgroup has weights of its own, all share the components."""
    with numpyro.plate("groups", 2):
        pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(2, 2.0)))
    with numpyro.plate("k", 2):
        mu = numpyro.sample("mu", dist.Normal(0.0, 4.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi[group]))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(ROWS, source="forum: sample_shape for a latent of every row", closed="mu pi")
def sample_shape(x):
    """One latent for every row by sample_shape."""
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    z = numpyro.sample("z", dist.Categorical(weights("pi", 2)), sample_shape=(len(x),))
    numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(ROWS, source="loops over the number of components", closed="mu")
def one_component(x):
    """K = 1, where a loop over numbers of components begins."""
    pi, mu = weights("pi", 1), numpyro.param("mu", J([0.5]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@entry(ROWS, source="classic: robust noise as a mixture of scales", closed="mu")
def student_on_a_grid(x):
    """A Student t as a mixture over a grid of precisions."""
    mu = numpyro.param("mu", J(0.2))
    grid = J([0.2, 1.0, 2.0])
    with numpyro.plate("rows", len(x)):
        g = numpyro.sample("g", dist.Categorical(J([0.3, 0.4, 0.3])))
        numpyro.sample("x", dist.Normal(mu, 1 / jnp.sqrt(grid[g])), obs=x)


@entry(ROWS, source="classic: priors on precisions and variances")
def precision_and_variance(x):
    """A Gamma prior on precisions, an InverseGamma prior on a variance."""
    tau = numpyro.sample("tau", dist.Gamma(3.0, 1.0).expand([2]).to_event(1))
    v = numpyro.sample("v", dist.InverseGamma(3.0, 2.0))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(2.0 * z, 1 / jnp.sqrt(tau[z])), obs=x)
        numpyro.sample("y", dist.Normal(-1.0 * z, jnp.sqrt(v)), obs=x / 2)


@entry(COUNTS, J([1.0, 2.0, 0.5, 1.5, 1.0]), source="classic: rates with exposure")
def exposure(counts, time):
    """Poisson rates of two groups, each row with an exposure of its own."""
    pi = weights("pi", 0.5, 0.5)
    rate = numpyro.param("rate", J([0.5, 3.0]), constraint=positive)
    with numpyro.plate("rows", len(counts)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Poisson(time * rate[z]), obs=counts)


@entry(J([0.3, 1.0, 2.0, 2.5, 0.4]), J([1, 0, 1, 0, 1]), source="classic: survival with censoring")
def censored(time, seen):
    """Exponential survival of two groups; a censored row counts its survival function."""
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(time)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.factor("y", jnp.where(seen == 1, jnp.log(rate[z]), 0.0) - rate[z] * time)


@entry(J([0.3, 1.0, 2.0, 2.5, 0.4]), J([1, 0, 1, 0, 1]), source="classic: cure model")
def cure(time, seen):
    """Some are cured and never fail: a mixture of survival functions by factor."""
    cured = numpyro.sample("cured", dist.Beta(2.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("rows", len(time)):
        c = numpyro.sample("c", dist.Bernoulli(cured))
        failed = jnp.where(c == 1, -jnp.inf, jnp.log(rate) - rate * time)
        numpyro.factor("y", jnp.where(seen == 1, failed, jnp.where(c == 1, 0.0, -rate * time)))


@entry(J([0, 3, 4, 1, 2]), source="classic: overdispersed proportions", climbs="a")
def beta_binomial(x):
    """Proportions more spread than a binomial's, two groups."""
    a = numpyro.sample("a", dist.Gamma(3.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.BetaBinomial(a[z], 2.0, 4), obs=x)


@entry(J([0, 2, 1, 2, 0]), source="classic: ordinal answers", climbs="shift cuts")
def ordered_logistic(x):
    """Ordinal answers with cut points in order, two groups."""
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    cuts = numpyro.sample(
        "cuts",
        dist.TransformedDistribution(dist.Normal(0.0, 1.0).expand([2]).to_event(1), dist.transforms.OrderedTransform()),
    )
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.OrderedLogistic(shift[z], cuts), obs=x)


@entry(PAIRS, J([0, 1, 1, 0, 1]), source="classic: mixture of experts", climbs="gate")
def experts(x, y):
    """A gate that depends on the row chooses the expert that answers."""
    gate = numpyro.sample("gate", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(logits=x @ gate))
        numpyro.sample("y", dist.Bernoulli(logits=jnp.sum(x * w[z], axis=-1)), obs=y)


@entry(PAIRS, J([0, 1, 1]), source="classic: latent-class regression", climbs="slope", closed="probs")
def class_depends_on_a_covariate(covariates, items):
    """Latent classes whose weights depend on covariates."""
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    probs = numpyro.param("probs", J([[0.3, 0.6, 0.5], [0.7, 0.2, 0.4]]), constraint=constraints.unit_interval)
    answers = (covariates[:, :1] > J([0.0, 0.5, -0.9])).astype(int) ^ items
    with numpyro.plate("rows", len(covariates)):
        z = numpyro.sample("z", dist.Bernoulli(logits=covariates @ slope))
        for j in range(3):
            numpyro.sample(f"y_{j}", dist.Bernoulli(probs[z, j]), obs=answers[:, j])
