"""Closed-form M-steps of a program's sites: expected statistics over expected counts.

For a distribution argument a = L(p) that *selects* entries of a parameter p (`mu[z]`, `A[z_prev]`, a shared
scale), with weights γ on each scalar event, the maximiser of Σ γ log p(x | a) over p is

    p⁺ = g( Lᵀ(numerator) / Lᵀ(denominator) )                                (eq:update)

where Lᵀ, the transpose of the selection, sums over all events that share an entry of p. A conjugate prior adds
pseudo-counts to both. This file is the table of numerators, denominators and priors; `_plan` finds the L.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro import distributions as dist

Sums = tuple[Any, Any]  # numerator and denominator


class Rule(NamedTuple):
    """How one argument of one family is updated."""

    sums: Callable[
        [Any, Array, Array], Sums
    ]  # (fn, value, γ over fn's events) → per event; trailing axes as the argument's
    finish: Callable[[Array], Array] = lambda ratio: ratio  # g
    last: bool = False  # updated after the other parameters: a scale, about its new location
    offset: bool = False  # the ratio is a step from the old p (a location), not p itself
    simplex: bool = False  # the denominator is the numerator's sum over the last axis
    prior: type | None = None  # the conjugate prior
    pseudo: Callable[[Any, Array], Sums] | None = None  # (prior fn, old p) → what it adds


def ones(gamma: Any, like: Any) -> Array:
    return jnp.broadcast_to(gamma, jnp.broadcast_shapes(jnp.shape(gamma), jnp.shape(like)))


# ---- locations: p⁺ = p + Lᵀ(γ (x − a)/s²) / Lᵀ(γ/s²), a step from p, so that data far from 0 keep their digits


def normal_location(fn: Any, x: Any, gamma: Any) -> Sums:
    precision = ones(gamma / fn.scale**2, x)
    return precision * (x - fn.loc), precision


def log_normal_location(fn: Any, x: Any, gamma: Any) -> Sums:
    return normal_location(fn, jnp.log(x), gamma)


def multivariate_location(fn: Any, x: Any, gamma: Any) -> Sums:
    return gamma[..., None] * (x - fn.loc), jnp.broadcast_to(gamma[..., None], jnp.shape(gamma) + fn.event_shape)


def normal_prior(prior: Any, old: Any) -> Sums:
    return (prior.loc - old) / prior.scale**2, jnp.broadcast_to(1 / prior.scale**2, old.shape)


# ---- scales: the mean square about the location


def square(deviation: Callable[[Any, Array], Array]) -> Callable[[Any, Array, Array], Sums]:
    def sums(fn: Any, x: Any, gamma: Any) -> Sums:
        d = deviation(fn, x)
        return gamma * d**2, ones(gamma, d)

    return sums


def absolute(fn: Any, x: Any, gamma: Any) -> Sums:
    d = jnp.abs(x - fn.loc)
    return gamma * d, ones(gamma, d)


class Outer(NamedTuple):
    """u vᵀ of two vectors for each event, not formed: summed over events it is a matrix product."""

    u: Array
    v: Array


def scatter(fn: Any, x: Any, gamma: Any) -> Sums:
    d = x - fn.loc
    return Outer(gamma[..., None] * d, d), gamma[..., None, None]


# ---- probabilities and rates


def mean(fn: Any, x: Any, gamma: Any) -> Sums:
    return gamma * x, ones(gamma, x)


def binomial(fn: Any, x: Any, gamma: Any) -> Sums:
    return gamma * x, gamma * ones(fn.total_count, x)


def categorical(fn: Any, x: Any, gamma: Any) -> Sums:
    seen = gamma[..., None] * jax.nn.one_hot(x, jnp.shape(fn.probs)[-1], dtype=gamma.dtype)
    return seen, seen


def multinomial(fn: Any, x: Any, gamma: Any) -> Sums:
    seen = gamma[..., None] * x
    return seen, seen


def exponential(fn: Any, x: Any, gamma: Any) -> Sums:
    return ones(gamma, x), gamma * x


def gamma_rate(fn: Any, x: Any, gamma: Any) -> Sums:
    return gamma * ones(fn.concentration, x), gamma * x


def geometric(fn: Any, x: Any, gamma: Any) -> Sums:
    return ones(gamma, x), gamma * (1 + x)


def beta_prior(prior: Any, old: Any) -> Sums:
    successes, failures = prior.concentration1 - 1, prior.concentration0 - 1
    return jnp.broadcast_to(successes, old.shape), jnp.broadcast_to(successes + failures, old.shape)


def dirichlet_prior(prior: Any, old: Any) -> Sums:
    extra = jnp.broadcast_to(prior.concentration - 1, old.shape)
    return extra, extra


def gamma_prior(prior: Any, old: Any) -> Sums:
    return jnp.broadcast_to(prior.concentration - 1, old.shape), jnp.broadcast_to(prior.rate, old.shape)


BETA: dict[str, Any] = {"prior": dist.Beta, "pseudo": beta_prior}
DIRICHLET: dict[str, Any] = {"prior": dist.Dirichlet, "pseudo": dirichlet_prior}
GAMMA: dict[str, Any] = {"prior": dist.Gamma, "pseudo": gamma_prior}
NORMAL: dict[str, Any] = {"prior": dist.Normal, "pseudo": normal_prior}

RULES: dict[tuple[type, str], Rule] = {
    (dist.Normal, "loc"): Rule(normal_location, offset=True, **NORMAL),
    (dist.Normal, "scale"): Rule(square(lambda fn, x: x - fn.loc), jnp.sqrt, last=True),
    (dist.LogNormal, "loc"): Rule(log_normal_location, offset=True, **NORMAL),
    (dist.LogNormal, "scale"): Rule(square(lambda fn, x: jnp.log(x) - fn.loc), jnp.sqrt, last=True),
    (dist.HalfNormal, "scale"): Rule(square(lambda fn, x: x), jnp.sqrt),
    (dist.Laplace, "scale"): Rule(absolute, last=True),
    (dist.MultivariateNormal, "loc"): Rule(multivariate_location, offset=True),
    (dist.MultivariateNormal, "covariance_matrix"): Rule(scatter, last=True),
    (dist.MultivariateNormal, "precision_matrix"): Rule(scatter, jnp.linalg.inv, last=True),
    (dist.MultivariateNormal, "scale_tril"): Rule(scatter, jnp.linalg.cholesky, last=True),
    (dist.BernoulliProbs, "probs"): Rule(mean, **BETA),
    (dist.BinomialProbs, "probs"): Rule(binomial, **BETA),
    (dist.CategoricalProbs, "probs"): Rule(categorical, simplex=True, **DIRICHLET),
    (dist.MultinomialProbs, "probs"): Rule(multinomial, simplex=True, **DIRICHLET),
    (dist.GeometricProbs, "probs"): Rule(geometric, **BETA),
    (dist.Poisson, "rate"): Rule(mean, **GAMMA),
    (dist.Exponential, "rate"): Rule(exponential, **GAMMA),
    (dist.Gamma, "rate"): Rule(gamma_rate, **GAMMA),
}


def log_prob(fn: Any, value: Any) -> Array:
    """fn.log_prob(value); a multivariate normal's with one inverse for each covariance, not a solve for each row."""
    if type(fn) is not dist.MultivariateNormal:
        return fn.log_prob(value)
    size = fn.event_shape[0]
    eye = jnp.eye(size, dtype=fn.scale_tril.dtype)
    inverse = jax.scipy.linalg.solve_triangular(fn.scale_tril, jnp.broadcast_to(eye, fn.scale_tril.shape), lower=True)
    deviation = jnp.broadcast_to(value - fn.loc, jnp.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape))
    white = whitened(inverse, deviation)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(fn.scale_tril, axis1=-2, axis2=-1)), axis=-1)
    return -0.5 * jnp.sum(white**2, axis=-1) - half_log_det - 0.5 * size * jnp.log(2 * jnp.pi)


def whitened(inverse: Array, deviation: Array) -> Array:
    """L⁻¹ d for every row: one matrix product for each covariance where the rows share it."""
    if inverse.ndim < 3 or inverse.shape[-3] == 1:
        rows = inverse if inverse.ndim < 3 else jnp.squeeze(inverse, -3)
        return jnp.matmul(deviation, jnp.swapaxes(rows, -1, -2))
    return jnp.matmul(inverse, deviation[..., None])[..., 0]


GUISES = ("covariance_matrix", "precision_matrix", "scale_tril")


def arguments_of(fn: Any) -> dict[str, Any]:
    """What fn was given, by name; of a covariance's guises the one that the program chose."""
    held = vars(fn)
    given = {name: held[name] for name in type(fn).arg_constraints if held.get(name) is not None}
    if isinstance(fn, dist.MultivariateNormal):
        chosen = next(name for name in GUISES if name in given)
        given = {name: value for name, value in given.items() if name not in GUISES or name == chosen}
    if given:
        return given
    return {
        name: value for name, value in held.items() if any(isinstance(v, jax.Array) for v in jax.tree.leaves(value))
    }
