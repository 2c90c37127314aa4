"""Hidden Markov models, as textbooks and tutorials have them."""

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

from gallery.registry import J, draws, entry, simplex

STICKY = J([[0.8, 0.2], [0.3, 0.7]])
SERIES = J([-1.2, -0.7, 0.9, 1.4, -0.2])


@entry(SERIES, source="NumPyro example hmm_enum, model 6, rewritten", closed="mu")
def second_order_as_pairs(y):
    """A chain that remembers two states, as one state of K² values."""
    A = numpyro.param("A", J([[[0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.1, 0.9]]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    last, now = J([0, 0, 1, 1]), J([0, 1, 0, 1])

    def step(pair, y):
        follows = now[:, None] == last[None, :]
        law = jnp.where(follows, A[last[:, None], now[:, None], now[None, :]], 0.0)
        pair = numpyro.sample("pair", dist.Categorical(law[pair]))
        numpyro.sample("y", dist.Normal(mu[now[pair]], 1.0), obs=y)
        return pair, None

    scan(step, 0, y)


@entry(SERIES, source="NumPyro example hmm_enum, model 6; test_funsor: scan history", closed="A mu")
def second_order(y):
    """A chain that remembers two states: NumPyro's history=2."""
    A = numpyro.param("A", J([[[0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.1, 0.9]]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))

    def step(before, y):
        z = numpyro.sample("z", dist.Categorical(A[before[0], before[1]]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return (before[1], z), None

    scan(step, (0, 0), y, history=2)


@entry(SERIES, source="Pyro tutorial: enumeration", ends="NONFINITE MAX_STEPS")
def jeffreys(y):
    """Jeffreys' Dirichlet(1/2) on the transitions: no maximum exists."""
    A = numpyro.sample("A", dist.Dirichlet(jnp.full(2, 0.5)).expand([2]).to_event(1))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(2.0 * z - 1.0, 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def full_covariance(guise):
    def program(y):
        A = numpyro.param("A", STICKY, constraint=simplex)
        mu = numpyro.param("mu", J([[-1.0, 0.0], [1.0, 0.5]]))
        start = J([[[1.0, 0.2], [0.2, 0.8]], [[0.7, -0.3], [-0.3, 1.5]]])
        constraint = constraints.positive_definite
        if guise == "scale_tril":
            start, constraint = jnp.linalg.cholesky(start), constraints.lower_cholesky
        V = numpyro.param("V", start, constraint=constraint)

        def step(z, y):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.sample("y", dist.MultivariateNormal(mu[z], **{guise: V[z]}), obs=y)
            return z, None

        scan(step, 0, y)

    program.__doc__ = f"A full {guise} for each state."
    return program


STATES = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 1])
PLANE = J(draws(6).normal(size=(10, 2)) + np.array([[-2.0, 0.0], [2.0, 1.0]])[STATES])
for guise in ("covariance_matrix", "precision_matrix", "scale_tril"):
    entry(
        PLANE,
        source="textbook: the Gaussian hidden Markov model",
        closed="A mu V",
        name=f"hmm_{guise}",
    )(full_covariance(guise))


@entry(
    {"y": J([[-1.0, 0.5, 1.2], [0.3, -0.9, 1.0]]), "lengths": J([3, 2])},
    source="public repository: sequences in a dictionary",
    closed="A mu",
    single=True,
)
def arguments_in_a_dictionary(data):
    """Sequences of unequal length, all arguments in a dictionary."""
    y, lengths = data["y"], data["lengths"]
    A = numpyro.param("A", STICKY, constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))

    def step(carry, y):
        z, t = carry
        with numpyro.plate("sequences", len(y)):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            with handlers.mask(mask=t < lengths):
                numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return (z, t + 1), None

    scan(step, (jnp.zeros(len(y), int), 0), y.T)


@entry(SERIES, source="numpyro test_funsor: a chain by markov", closed="mu", single=True)
def unrolled(y):
    """A chain as a Python loop, a site for each step."""
    A = numpyro.sample("A", dist.Dirichlet(jnp.full(2, 2.0)).expand([2]).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    z = 0
    for t, value in enumerate(y):
        z = numpyro.sample(f"z_{t}", dist.Categorical(A[z]))
        numpyro.sample(f"y_{t}", dist.Normal(mu[z], 1.0), obs=value)


@entry(SERIES, source="classic: Hamilton's Markov-switching autoregression", closed="A")
def switching_autoregression(y):
    """An AR(1) whose intercept and slope follow a hidden chain."""
    A = numpyro.param("A", STICKY, constraint=simplex)
    c = numpyro.param("c", J([-0.5, 0.5]))
    phi = numpyro.param("phi", J([0.3, 0.1]))
    sigma = numpyro.sample("sigma", dist.Gamma(3.0, 3.0))

    def step(carry, y):
        z, last = carry
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(c[z] + phi[z] * last, sigma), obs=y)
        return (z, y), None

    scan(step, (0, J(0.0)), y)


@entry(SERIES, source="classic: Hamilton 1989, mean-adjusted", closed="A")
def mean_adjusted(y):
    """Deviations from the mean of the state before follow the state's mean: both states are in the location."""
    A = numpyro.param("A", STICKY, constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    phi = numpyro.param("phi", J(0.3), constraint=constraints.interval(-0.9, 0.9))

    def step(carry, y):
        before, last = carry
        z = numpyro.sample("z", dist.Categorical(A[before]))
        numpyro.sample("y", dist.Normal(mu[z] + phi * (last - mu[before]), 1.0), obs=y)
        return (z, y), None

    scan(step, (0, J(0.0)), y)


@entry(SERIES, J([0.0, 1.0, 0.5, -1.0, 0.2]), source="classic: input-output hidden Markov model", climbs="w")
def inputs_drive_the_chain(y, u):
    """Transitions depend on an input by a logistic regression."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2]).to_event(1))

    def step(z, inputs):
        y, u = inputs
        z = numpyro.sample("z", dist.Bernoulli(logits=w[z] * u))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, (y, u))


@entry(J([4, 5, 0, 1, 0, 2]), source="public tutorial: coal mining disasters", closed="A", single=True)
def regimes_of_counts(counts):
    """Poisson rates of regimes in a sticky chain, with priors."""
    A = numpyro.sample("A", dist.Dirichlet(10.0 * jnp.eye(2) + 1.0).to_event(1))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Poisson(rate[z]), obs=y)
        return z, None

    scan(step, 0, counts)


@entry(SERIES[:4], SERIES[1:], source="classic: coupled hidden Markov models", closed="A B")
def coupled(a, b):
    """Two chains, each looking at the other's last state."""
    A = numpyro.param("A", J([[[0.8, 0.2], [0.6, 0.4]], [[0.3, 0.7], [0.2, 0.8]]]), constraint=simplex)
    B = numpyro.param("B", J([[[0.7, 0.3], [0.5, 0.5]], [[0.4, 0.6], [0.1, 0.9]]]), constraint=simplex)

    def step(before, values):
        z = numpyro.sample("z", dist.Categorical(A[before[0], before[1]]))
        w = numpyro.sample("w", dist.Categorical(B[before[1], before[0]]))
        numpyro.sample("a", dist.Normal(2.0 * z - 1.0, 1.0), obs=values[0])
        numpyro.sample("b", dist.Normal(1.0 - 2.0 * w, 1.0), obs=values[1])
        return (z, w), None

    scan(step, (0, 0), (a, b))


@entry(SERIES[:4], source="classic: semi-Markov model", closed="D mu")
def semi_markov(y):
    """The state and how long it still lasts: a pair of latents in each step."""
    D = numpyro.param("D", J([[0.5, 0.5], [0.2, 0.8]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))

    def step(before, y):
        state, left = before
        move = J([[0.3, 0.7], [0.6, 0.4]])[state]
        stay = jnp.where(left[..., None] > 0, jnp.eye(2)[state], move)
        state = numpyro.sample("state", dist.Categorical(stay))
        wait = jnp.where(left[..., None] > 0, J([1.0, 0.0]), D[state])
        left = numpyro.sample("left", dist.Categorical(wait))
        numpyro.sample("y", dist.Normal(mu[state], 1.0), obs=y)
        return (state, left), None

    scan(step, (J(0), J(0)), y)
