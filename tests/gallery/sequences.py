"""What a scan may hold: plates, several latents, several scans, and what may stand around it."""

import jax.numpy as jnp
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

from gallery.registry import J, draws, entry, simplex

TESTS = "numpyro test_funsor: scan"
SERIES = J([-1.2, -0.7, 0.9, 1.4])
BLOCK = J(draws(9).normal(size=(3, 2)))  # time × rows
STICKY = J([[0.8, 0.2], [0.3, 0.7]])


def chain_parameters():
    return numpyro.param("A", STICKY, constraint=simplex), numpyro.param("mu", J([-1.0, 1.0]))


@entry(BLOCK, source=TESTS, closed="A mu")
def plate_inside_the_scan(y):
    """A chain for each row of a plate inside the scan."""
    A, mu = chain_parameters()

    def step(z, y):
        with numpyro.plate("rows", 2):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, jnp.zeros(2, int), y)


@entry(BLOCK, source=TESTS, closed="A mu")
def plate_of_emissions_only(y):
    """One chain, whose emissions live in a plate."""
    A, mu = chain_parameters()

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        with numpyro.plate("sensors", 2):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


@entry(BLOCK, BLOCK[:, 0] * 2, source=TESTS, closed="A mu")
def two_plates_one_dimension(y, w):
    """Two plates of one dimension, one after the other in a step."""
    A, mu = chain_parameters()

    def step(z, values):
        with numpyro.plate("left", 2):
            z = numpyro.sample("z", dist.Categorical(A[z]))
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=values[0])
        with numpyro.plate("right", 1):
            numpyro.sample("w", dist.Normal(0.0, 2.0), obs=values[1][None])
        return z, None

    scan(step, jnp.zeros(2, int), (y, w))


@entry(BLOCK, source=TESTS, closed="A mu w")
def latent_in_an_inner_plate(y):
    """A chain, and in each step a latent of each row."""
    A = numpyro.param("A", STICKY, constraint=simplex)
    mu = numpyro.param("mu", J([[-1.0, 0.0], [1.0, 2.0]]))
    w = numpyro.param("w", J([0.4, 0.6]), constraint=simplex)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        with numpyro.plate("rows", 2):
            c = numpyro.sample("c", dist.Categorical(w))
            numpyro.sample("y", dist.Normal(mu[z, c], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


@entry(SERIES, source=TESTS, closed="A mu p")
def latent_outside(y):
    """A switch above the chain chooses its transitions."""
    A = numpyro.param("A", J([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.4, 0.6]]]), constraint=simplex)
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    s = numpyro.sample("s", dist.Bernoulli(p))

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[s, z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


@entry(SERIES[:3], SERIES, source=TESTS, closed="A mu")
def two_scans(a, b):
    """Two scans, the second going on where the first ended up."""
    A, mu = chain_parameters()

    def step(name):
        def one(z, y):
            z = numpyro.sample(f"z_{name}", dist.Categorical(A[z]))
            numpyro.sample(f"y_{name}", dist.Normal(mu[z], 1.0), obs=y)
            return z, None

        return one

    scan(step("a"), 0, a)
    scan(step("b"), 1, b)


@entry(SERIES, source=TESTS, closed="mu")
def no_latent_in_the_scan(y):
    """A scan of observations alone, under a latent outside."""
    mu = numpyro.param("mu", J([-1.0, 1.0]))
    s = numpyro.sample("s", dist.Bernoulli(0.4))

    def step(t, y):
        numpyro.sample("y", dist.Normal(mu[s] + 0.1 * t, 1.0), obs=y)
        return t + 1, None

    scan(step, 0, y)


@entry(SERIES, source=TESTS, closed="A B mu")
def two_latents_a_step(y):
    """In each step a second latent follows the first."""
    A, mu = chain_parameters()
    B = numpyro.param("B", J([[0.6, 0.4], [0.1, 0.9]]), constraint=simplex)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        w = numpyro.sample("w", dist.Categorical(B[z]))
        numpyro.sample("y", dist.Normal(mu[w], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


@entry(SERIES, source="NumPyro docs: scan over times", closed="A mu")
def time_indexed(y):
    """A scan over times: the data and a table are indexed by the step's own time."""
    A, mu = chain_parameters()
    late = J([0.0, 0.1, 0.2, 0.3])

    def step(z, t):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z] + late[t], 1.0), obs=y[t])
        return z, None

    scan(step, 0, jnp.arange(4))


@entry(SERIES, source="NumPyro docs: scan with a length alone", closed="A mu")
def length_alone(y):
    """A scan with a length and no inputs: its carry counts the time."""
    A, mu = chain_parameters()

    def step(carry, _):
        z, t = carry
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y[t])
        return (z, t + 1), None

    scan(step, (0, 0), None, length=4)


@entry(SERIES, source="forum: first step by hand", closed="A mu pi")
def first_step_by_hand(y):
    """The first step before the scan, from an initial law of its own."""
    A, mu = chain_parameters()
    pi = numpyro.param("pi", J([0.4, 0.6]), constraint=simplex)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    z_0 = numpyro.sample("z_0", dist.Categorical(pi))
    numpyro.sample("y_0", dist.Normal(mu[z_0], 1.0), obs=y[0])
    scan(step, z_0, y[1:])


@entry(SERIES, J([True, False, True, True]), source="forum: gaps in a series", closed="A mu")
def gaps(y, seen):
    """Missing values of a series by a mask inside the scan."""
    A, mu = chain_parameters()

    def step(z, values):
        y, seen = values
        z = numpyro.sample("z", dist.Categorical(A[z]))
        with handlers.mask(mask=seen):
            numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, (y, seen))


def spelled_emissions(y):
    A, mu = numpyro.param("A", STICKY, constraint=simplex), numpyro.param("mu", J([[-1.0, 0.0], [1.0, 3.0]]))
    w = numpyro.param("w", J([[0.3, 0.7], [0.5, 0.5]]), constraint=simplex)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        c = numpyro.sample("y", dist.Categorical(w[z]))
        numpyro.sample("value", dist.Normal(mu[z, c], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


@entry(SERIES, source="textbook: mixtures as emissions", reference=spelled_emissions, closed="A mu w")
def mixtures_as_emissions(y):
    """Emissions that are a MixtureSameFamily, inside the scan."""
    A, mu = numpyro.param("A", STICKY, constraint=simplex), numpyro.param("mu", J([[-1.0, 0.0], [1.0, 3.0]]))
    w = numpyro.param("w", J([[0.3, 0.7], [0.5, 0.5]]), constraint=simplex)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        law = dist.MixtureSameFamily(dist.Categorical(w[z]), dist.Normal(mu[z], 1.0))
        numpyro.sample("y", law, obs=y)
        return z, None

    scan(step, 0, y)


@entry(SERIES, source="forum: factor inside a scan", closed="A")
def factor_in_a_scan(y):
    """A likelihood written as a factor inside the scan."""
    A, mu = chain_parameters()

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.factor("y", -0.5 * (y - mu[z]) ** 2)
        return z, None

    scan(step, 0, y)
