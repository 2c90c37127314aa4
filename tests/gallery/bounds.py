"""Constraints of parameters, and priors with bounds: no update may leave them."""

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.distributions import constraints

from gallery.registry import J, entry, weights

X = J([-2.2, -1.9, 0.3, 1.8, 2.1])
COUNTS = J([0, 1, 9, 8, 2])
TEXTBOOK = "textbook: a constraint against label switching, a floor, a bound"


def constrained(about, make, x, name, **given):
    """A mixture whose one parameter has a constraint that its free maximum violates."""

    def program(x):
        law = make()
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(weights("pi", 2)))
            numpyro.sample("x", law(z), obs=x)

    program.__doc__ = about
    entry(x, source=TEXTBOOK, name=name, **given)(program)


def normal(start, constraint, about, name, **given):
    def make():
        mu = numpyro.param("mu", J(start), constraint=constraint)
        return lambda z: dist.Normal(mu[z], 1.0)

    constrained(about, make, X, name, **given)


normal([-1.0, 1.0], constraints.ordered_vector, "Means in order.", "ordered_means")
normal([0.5, 1.0], constraints.positive, "Means above zero.", "positive_means")
normal([-0.5, 0.5], constraints.interval(-1.0, 1.0), "Means in an interval.", "means_in_an_interval")
normal([-1.0, 1.0], constraints.zero_sum(1), "Means that sum to zero.", "means_that_sum_to_zero")
normal([-1.0, 1.0], constraints.real, "Means without a constraint.", "free_means", closed="mu pi")


def floored():
    scale = numpyro.param("scale", J([2.0, 3.0]), constraint=constraints.greater_than(1.5))
    return lambda z: dist.Normal(J([-1.0, 1.0])[z], scale[z])


constrained("Scales with a floor.", floored, X, "floored_scales")


def capped_probability():
    p = numpyro.param("p", J([0.2, 0.4]), constraint=constraints.interval(0.0, 0.5))
    return lambda z: dist.Binomial(9, p[z])


constrained("Probabilities up to a half.", capped_probability, COUNTS, "capped_probabilities")


def capped_rate():
    rate = numpyro.param("rate", J([1.0, 3.0]), constraint=constraints.interval(0.0, 4.0))
    return lambda z: dist.Poisson(rate[z])


constrained("Rates in an interval.", capped_rate, COUNTS, "capped_rates")


def correlated(constraint, guise, about, name):
    def make():
        start = jnp.eye(2) + 0.2 * J([[0.0, 1.0], [1.0, 0.0]])
        start = jnp.linalg.cholesky(start) if guise == "scale_tril" else start
        R = numpyro.param("R", start, constraint=constraint)
        return lambda z: dist.MultivariateNormal(J([[-1.0, 0.0], [1.0, 0.5]])[z], **{guise: R})

    constrained(about, make, jnp.stack([X, X[::-1]], axis=-1), name)


correlated(constraints.corr_matrix, "covariance_matrix", "A correlation matrix as covariance.", "correlation_matrix")
correlated(constraints.corr_cholesky, "scale_tril", "The Cholesky factor of a correlation.", "correlation_cholesky")


@entry(X, J([0.5, -1.0, 0.2, -0.8, -0.9]), source=TEXTBOOK)
def positive_slopes(x, y):
    """Slopes of regressions above zero, whose free least squares are below."""
    slope = numpyro.param("slope", J([0.5, 1.0]), constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Normal(slope[z] * x + 1.0 * z, 1.0), obs=y)


def uniform_prior(low, high, about, name):
    def program(x):
        mu = numpyro.sample("mu", dist.Uniform(low(x), high(x)).expand([2]).to_event(1))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    program.__doc__ = about
    entry(X, source="common: bounds of a prior computed in the program", name=name)(program)


uniform_prior(lambda x: -3.0, lambda x: 3.0, "A uniform prior between Python numbers.", "bounds_of_python")
uniform_prior(
    lambda x: np.array(-3.0), lambda x: np.float64(3.0), "A uniform prior between NumPy's numbers.", "bounds_of_numpy"
)
uniform_prior(
    lambda x: J(-3.0), lambda x: 3.0 * jnp.ones(()), "A uniform prior between JAX constants.", "bounds_of_jax"
)
uniform_prior(
    lambda x: -jnp.exp(1.0), lambda x: jnp.float32(3.0), "A uniform prior whose bounds are computed.", "bounds_computed"
)


@entry(J([3, 4, 4, 2, 4]), source="textbook", theta={"p": J([0.6, 0.8])}, closed="p")
def beta_below_one(x):
    """Beta(1/2, 2) on probabilities: no update leaves [0, 1]."""
    p = numpyro.sample("p", dist.Beta(0.5, 2.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Binomial(4, p[z]), obs=x)


def at_its_edge(x, start, about, name):
    def program(x):
        p = numpyro.sample("p", dist.Beta(0.5, 0.5).expand([2]).to_event(1))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Binomial(4, p[z]), obs=x)

    program.__doc__ = about
    entry(J(x), source="textbook", theta={"p": J(start)}, ends="NONFINITE MAX_STEPS", name=name)(program)


at_its_edge(
    [4, 4, 4, 4, 4],
    [0.9, 0.8],
    "Beta(1/2, 1/2) and successes only: no maximum exists, and p stays in [0, 1].",
    "beta_below_one_at_its_edge",
)
at_its_edge(
    [4, 4, 4, 4, 3],
    [0.85, 0.08],
    "Beta(1/2, 1/2) and a component without rows: its prior alone has no maximum.",
    "beta_below_one_of_no_rows",
)


@entry(COUNTS, source="textbook", closed="rate")
def exponential_prior_and_zeros(x):
    """A Gamma(1, 1) prior on rates, and rows that are all zero in a component."""
    rate = numpyro.sample("rate", dist.Gamma(1.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Poisson(rate[z]), obs=jnp.where(x > 5, x, 0))


@entry(COUNTS, 2.5, source="hyperparameters as arguments", closed="pi")
def concentration_as_an_argument(x, concentration):
    """The prior's concentration is an argument of the program."""
    pi = numpyro.sample("pi", dist.Dirichlet(concentration * jnp.ones(2)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Poisson(J([1.0, 6.0])[z]), obs=x)
