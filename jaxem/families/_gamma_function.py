"""Γ with its digits, where what it is made of cancels: log Γ(a) = (a − ½) log a − a + ½ log 2π + rest(a).

Densities have log Γ(a) beside a log a. At a = 10⁶ both are 10⁷, and what is left of them in single precision is a nat
of noise; of the rest, which is near 1/12a (Stirling's series), nothing is lost.
"""

import math

import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float

from jaxem._core.root import root

SERIES = 16.0  # from here on by Stirling's series, which is off by at most 10⁻¹⁶
HALF_LOG_2PI = math.log(2 * math.pi) / 2


def rest(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log Γ(a) − (a − ½) log a + a − ½ log 2π, a > 0."""
    large = a >= SERIES
    y, small = jnp.where(large, a, SERIES), jnp.where(large, 1, a)
    r = 1 / y**2
    series = (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r * (1 / 1680 - r / 1188)))) / y
    direct = gammaln(small) - (small - 1 / 2) * jnp.log(small) + small - HALF_LOG_2PI
    return jnp.where(large, series, direct)


def log_less_digamma(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log a − ψ(a) > 0, which lies between 1/2a and 1/a."""
    large = a >= SERIES
    y, small = jnp.where(large, a, SERIES), jnp.where(large, 1, a)
    r = 1 / y**2
    series = 1 / (2 * y) + r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r / 132))))
    return jnp.where(large, series, jnp.log(small) - digamma(small))


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
    return root(lambda a: t - digamma(a), jnp.maximum(low, high - 0.5), low, high)
