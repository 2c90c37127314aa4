"""Γ with its digits, where what it is made of cancels: log Γ(a) = (a − ½) log a − a + ½ log 2π + rest(a).

Densities have log Γ(a) beside a log a. At a = 10⁶ both are 10⁷, and what is left of them in single precision is a nat
of noise; of the rest, which is near 1/12a, nothing is lost. It is Stirling's series from a = 8 on, and below by way of
Γ(a + 8) = a (a + 1) … (a + 7) Γ(a): elementary functions, as are all of its derivatives.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem._core.root import root

SHIFT = 8  # from here on the series is off by at most 10⁻¹⁵
HALF_LOG_2PI = math.log(2 * math.pi) / 2
OF_LOG = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400)
OF_DIGAMMA = tuple((2 * i + 1) * c for i, c in enumerate(OF_LOG))


def rest(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log Γ(a) − (a − ½) log a + a − ½ log 2π, a > 0."""
    large = a >= SHIFT
    y, small = jnp.where(large, a, a + SHIFT), jnp.where(large, 1, a)
    product = small
    for i in range(1, SHIFT):
        product = product * (small + i)
    at = small + SHIFT
    below = (at - 1 / 2) * jnp.log(at) - (small - 1 / 2) * jnp.log(small) - SHIFT - jnp.log(product)
    return series(OF_LOG, y) / y + jnp.where(large, 0, below)


def log_less_digamma(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log a − ψ(a) > 0, which lies between 1/2a and 1/a."""
    return 1 / (2 * a) + second_of_digamma(a)


def second_of_digamma(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log a − ψ(a) − 1/2a, near 1/12a²."""
    large = a >= SHIFT
    y, small = jnp.where(large, a, a + SHIFT), jnp.where(large, 1, a)
    terms = 1 / (2 * small)
    for i in range(1, SHIFT):
        terms = terms + 1 / (small + i)
    below = terms + 1 / (2 * (small + SHIFT)) - jnp.log1p(SHIFT / small)
    return series(OF_DIGAMMA, y) / y**2 + jnp.where(large, 0, below)


def series(coefficients: tuple[float, ...], y: Array) -> Array:
    """Σ_i c_i y^{−2i}."""
    r, total = 1 / y**2, jnp.zeros_like(y)
    for c in reversed(coefficients):
        total = c + r * total
    return total


def concentration_of(s: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """α with log α − ψ(α) = s, by Newton's method from Minka's guess (2002); ∞, as NaN, at s = 0."""
    positive = s > 0
    s = jnp.where(positive, s, 1)
    guess = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    found = root(lambda a: log_less_digamma(a) - s, guess, 1 / (2 * s), 1 / s)
    return jnp.where(positive, found, jnp.nan)


def inverse_digamma(t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """α with ψ(α) = t: log(α − ½) < ψ(α) < log α, and ψ(α) > −0.6 − 1/α."""
    low, high = jnp.maximum(jnp.exp(t), 0.5 / (1 + jnp.abs(t))), jnp.exp(t) + 0.5
    return root(lambda a: t - jnp.log(a) + log_less_digamma(a), jnp.maximum(low, high - 0.5), low, high)
