"""The five families of bregman_limit: each with its divergence, its mean parameters and the law of its data."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import Mixture, bregman
from jaxem.families import bernoulli, categorical, exponential, gaussian, poisson

NUM_COMPONENTS, NUM_FEATURES, NUM_CATEGORIES = 3, 4, 4


class Family(NamedTuple):
    """A mixture with equal weights held, its divergence, and the mean parameters in which M-steps are means."""

    m: Mixture
    name: str  # the parameter beside π
    divergence: Callable[[jax.Array, jax.Array], jax.Array]
    scale: float  # −log p = scale · D + …
    mean: Callable[[jax.Array], jax.Array]  # parameter → mean of φ; its own inverse in each family here
    truth: Callable[[jax.Array], jax.Array]  # key → the parameter that generates the data
    features: Callable[[jax.Array], jax.Array] = lambda x: x.astype(float)  # φ


def probabilities(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (NUM_COMPONENTS, 2 * NUM_FEATURES), minval=0.1, maxval=0.9)


def simplices(key: jax.Array) -> jax.Array:
    logits = 1.5 * jax.random.normal(key, (NUM_COMPONENTS, 2 * NUM_FEATURES, NUM_CATEGORIES))
    return jax.nn.softmax(logits, axis=-1)


def rates(key: jax.Array, low: float, high: float) -> jax.Array:
    logs = jax.random.uniform(key, (NUM_COMPONENTS, NUM_FEATURES), minval=np.log(low), maxval=np.log(high))
    return jnp.exp(logs)


def one_hot(x: jax.Array) -> jax.Array:
    return jax.nn.one_hot(x.astype(int), NUM_CATEGORIES, dtype=jnp.result_type(float))


SIGMA = 1.0
FAMILIES = {
    "gaussian": Family(
        gaussian.isotropic.hold("pi", "sigma"),
        "mu",
        bregman.squared_euclidean,
        1 / (2 * SIGMA**2),
        lambda mu: mu,
        lambda key: 1.5 * jax.random.normal(key, (NUM_COMPONENTS, NUM_FEATURES)),
    ),
    "bernoulli": Family(bernoulli.mixture.hold("pi"), "probs", bregman.logistic_loss, 1.0, lambda p: p, probabilities),
    "categorical": Family(
        categorical.mixture.hold("pi"), "probs", bregman.kullback_leibler, 1.0, lambda p: p, simplices, one_hot
    ),
    "poisson": Family(
        poisson.mixture.hold("pi"), "rate", bregman.i_divergence, 1.0, lambda rate: rate, partial(rates, low=1, high=15)
    ),
    "exponential": Family(
        exponential.mixture.hold("pi"),
        "rate",
        bregman.itakura_saito,
        1.0,
        lambda rate: 1 / rate,
        partial(rates, low=0.1, high=10),
    ),
}
DIVERGENCES = {
    "gaussian": "squared Euclidean",
    "bernoulli": "logistic loss",
    "categorical": "Kullback–Leibler",
    "poisson": "I-divergence",
    "exponential": "Itakura–Saito",
}


def with_means(family: Family, means: jax.Array) -> dict[str, jax.Array]:
    """θ with these means, equal weights, and σ where there is one."""
    theta = {"pi": jnp.full(len(means), 1 / len(means)), family.name: family.mean(means)}
    return theta | ({"sigma": jnp.asarray(SIGMA)} if "sigma" in family.m.parameters else {})
