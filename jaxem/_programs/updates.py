"""Closed-form M-steps of a program's sites: expected statistics over expected counts.

In one argument of one distribution Q takes one of five forms, each with a maximiser that is known:

    power     N log u − D u                        u⁺ = N / D               rates; 1/scale²
    odds      S log u + F log(1 − u)               u⁺ = S / (S + F)         probabilities of yes and no
    shares    Σ_j S_j log u_j,  Σ_j u_j = 1        u⁺ = S / Σ_j S_j         probabilities of categories
    scatter   −½ N log|U| − ½ tr(U⁻¹ S)            U⁺ = S / N               covariances
    square    −½ (x − u)ᵀ P (x − u)                u⁺ = u + P⁻¹ Σ P(x − u)  locations

Where every entry of the argument follows one entry of V = φ(p), u = L(V) for a known invertible φ, the maximiser
of Q over the parameter p is

    p⁺ = φ⁻¹( Lᵀ(numerator) / Lᵀ(denominator) )                                (eq:update)

where Lᵀ, the transpose of L, sums over all events that share an entry of V. A conjugate prior adds pseudo-counts to
both. This file is the table of numerators, denominators and priors; `_programs/plan` finds the φ and the L.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import lgamma
from jaxtyping import Array
from numpyro import distributions as dist

from jaxem._programs.sums import Outer, Repeated, each, times

Sums = tuple[Any, Any]  # numerator and denominator, or S and F


class Rule(NamedTuple):
    """How Q depends on one argument of one family."""

    form: str
    sums: Callable[[Any, Array, Array], Sums]  # (fn, value, γ over fn's events) → per event; trailing axes as u's
    canonical: Callable[[Any], Any] = lambda argument: argument  # argument → u
    last: bool = False  # updated after the other parameters: a scale, about its new location
    moved: Callable[[Array, Array, Array], Sums] | None = None  # what the sums gain where that moves (eq:moved)


class Coordinate(NamedTuple):
    """φ: V = p^k ('power'), e^{kp} ('log'), p itself, logit⁻¹(p), e^p, p⁻¹ or p pᵀ."""

    name: str = "itself"
    exponent: float = 1.0

    def inverse(self, numerator: Any, denominator: Any = 1.0) -> Array:
        """p at V = numerator / denominator; the quotient is formed upside down where φ falls, so that 0 stays 0."""
        if self.name in ("power", "log") and self.exponent < 0:
            return Coordinate(self.name, -self.exponent).inverse(denominator, numerator)
        V = jnp.asarray(numerator) / denominator
        if self.name == "itself":
            return V
        if self.name == "power":
            root = {1.0: lambda V: V, 2.0: jnp.sqrt, 0.5: jnp.square}.get(self.exponent)
            return root(V) if root else V ** (1 / self.exponent)
        if self.name == "inverse":
            return jnp.linalg.inv(V)
        if self.name == "cholesky":
            return jnp.linalg.cholesky(V)
        tiny = jnp.finfo(V.dtype).tiny  # a logarithm of 0 is −708 (float64): no digit of Q is below it
        if self.name == "logit":
            return jnp.log(jnp.maximum(V, tiny)) - jnp.log(jnp.maximum(1 - V, tiny))
        return jnp.log(jnp.maximum(V, tiny)) / self.exponent  # 'log'


def ones(gamma: Any, like: Any) -> Array:
    return jnp.broadcast_to(gamma, jnp.broadcast_shapes(jnp.shape(gamma), jnp.shape(like)))


# ---- locations: u⁺ = u + Lᵀ(γ (x − u)/s²) / Lᵀ(γ/s²), a step from u, so that data far from 0 keep their digits


def deviation(fn: Any, x: Any) -> Any:
    return (jnp.log(x) if isinstance(fn, dist.LogNormal) else x) - fn.loc


def location(fn: Any, x: Any, gamma: Any) -> Sums:
    if isinstance(fn, dist.MultivariateNormal):  # one precision for all that share a location, or else least squares
        return times(gamma[..., None], deviation(fn, x)), Repeated(gamma[..., None], gamma.shape + fn.event_shape)
    precision, d = gamma / fn.scale**2, deviation(fn, x)
    return times(precision, d), each(precision, d)


def weigh(fn: Any, gamma: Any, vector: Any) -> Array:
    """γ P v: P the precision of a location."""
    if not isinstance(fn, dist.MultivariateNormal):
        return gamma / fn.scale**2 * vector
    white = whitened(inverse_factor(fn), vector)
    return gamma[..., None] * whitened(jnp.swapaxes(inverse_factor(fn), -1, -2), white)


# ---- scales: mean squares, or absolute values, about the location
#
#     Σ γ (x − u − δ)² = Σ γ (x − u)² − 2 δ Σ γ (x − u) + δ² Σ γ                                    (eq:moved)


def first_moments(fn: Any, x: Any, gamma: Any) -> Sums:
    """γ (x − u) and γ of each event, of which eq:moved is made."""
    d = deviation(fn, x)
    gamma = gamma[..., None] if isinstance(fn, dist.MultivariateNormal) else gamma
    return times(gamma, d), each(gamma, d)


def squares_moved(first: Any, count: Any, delta: Any) -> Sums:
    return jnp.zeros_like(first), delta * (0.5 * delta * count - first)


def scatter_moved(first: Any, count: Any, delta: Any) -> Sums:
    both = delta[..., :, None] * (0.5 * count * delta - first)[..., None, :]
    return both + jnp.swapaxes(both, -1, -2), jnp.zeros_like(both[..., :1, :1])


def squares(away: Callable[[Any, Array], Array]) -> Callable[[Any, Array, Array], Sums]:
    def sums(fn: Any, x: Any, gamma: Any) -> Sums:
        d = away(fn, x)
        return each(0.5 * gamma, d), times(0.5 * gamma, d**2)

    return sums


def absolute(fn: Any, x: Any, gamma: Any) -> Sums:
    d = jnp.abs(x - fn.loc)
    return each(gamma, d), times(gamma, d)


def scatter(fn: Any, x: Any, gamma: Any) -> Sums:
    d = x - fn.loc
    count = each(gamma, d[..., 0])
    return Outer(gamma[..., None] * d, d), Repeated(count.u[..., None, None], (*count.shape, 1, 1))


# ---- probabilities and rates


def bernoulli(fn: Any, x: Any, gamma: Any) -> Sums:
    return times(gamma, x), times(gamma, 1 - x)


def binomial(fn: Any, x: Any, gamma: Any) -> Sums:
    return times(gamma, x), times(gamma, fn.total_count - x)


def geometric(fn: Any, x: Any, gamma: Any) -> Sums:
    return each(gamma, x), times(gamma, x)


def categorical(fn: Any, x: Any, gamma: Any) -> Sums:
    size = jnp.shape(fn.logits if isinstance(fn, dist.CategoricalLogits) else fn.probs)[-1]
    seen = times(gamma[..., None], jax.nn.one_hot(x, size, dtype=gamma.dtype))
    return seen, Repeated(jnp.zeros((1,) * len(seen.shape), gamma.dtype), seen.shape)


def multinomial(fn: Any, x: Any, gamma: Any) -> Sums:
    seen = times(gamma[..., None], x)
    return seen, Repeated(jnp.zeros((1,) * len(seen.shape), gamma.dtype), seen.shape)


def poisson(fn: Any, x: Any, gamma: Any) -> Sums:
    return times(gamma, x), each(gamma, x)


def exponential(fn: Any, x: Any, gamma: Any) -> Sums:
    return each(gamma, x), times(gamma, x)


def gamma_rate(fn: Any, x: Any, gamma: Any) -> Sums:
    return times(gamma, ones(fn.concentration, x)), times(gamma, x)


def inverse_gamma_rate(fn: Any, x: Any, gamma: Any) -> Sums:
    return times(gamma, ones(fn.concentration, x)), times(gamma, 1 / x)


def pareto(fn: Any, x: Any, gamma: Any) -> Sums:
    return each(gamma, x), times(gamma, jnp.log(x / fn.scale))


def precision(scale: Any) -> Any:
    return scale**-2.0


def reciprocal(scale: Any) -> Any:
    return 1 / scale


RULES: dict[tuple[type, str], Rule] = {
    (dist.Normal, "loc"): Rule("square", location),
    (dist.LogNormal, "loc"): Rule("square", location),
    (dist.MultivariateNormal, "loc"): Rule("square", location),
    (dist.Normal, "scale"): Rule("power", squares(deviation), precision, last=True, moved=squares_moved),
    (dist.LogNormal, "scale"): Rule("power", squares(deviation), precision, last=True, moved=squares_moved),
    (dist.HalfNormal, "scale"): Rule("power", squares(lambda fn, x: x), precision),
    (dist.Laplace, "scale"): Rule("power", absolute, reciprocal, last=True),
    (dist.MultivariateNormal, "covariance_matrix"): Rule("scatter", scatter, last=True, moved=scatter_moved),
    (dist.BernoulliProbs, "probs"): Rule("odds", bernoulli),
    (dist.BernoulliLogits, "logits"): Rule("odds", bernoulli, jax.nn.sigmoid),
    (dist.BinomialProbs, "probs"): Rule("odds", binomial),
    (dist.BinomialLogits, "logits"): Rule("odds", binomial, jax.nn.sigmoid),
    (dist.GeometricProbs, "probs"): Rule("odds", geometric),
    (dist.GeometricLogits, "logits"): Rule("odds", geometric, jax.nn.sigmoid),
    (dist.CategoricalProbs, "probs"): Rule("shares", categorical),
    (dist.CategoricalLogits, "logits"): Rule("shares", categorical, jnp.exp),
    (dist.MultinomialProbs, "probs"): Rule("shares", multinomial),
    (dist.Poisson, "rate"): Rule("power", poisson),
    (dist.Exponential, "rate"): Rule("power", exponential),
    (dist.Gamma, "rate"): Rule("power", gamma_rate),
    (dist.InverseGamma, "rate"): Rule("power", inverse_gamma_rate),
    (dist.Pareto, "alpha"): Rule("power", pareto),
}

# ---- conjugate priors: what they add to the numerator and the denominator of V, by the form and φ


def normal_prior(prior: Any, old: Any) -> Sums:
    return (prior.loc - old) / prior.scale**2, 1 / prior.scale**2


def half_normal_prior(prior: Any, old: Any) -> Sums:
    return -old / prior.scale**2, 1 / prior.scale**2


ITSELF = Coordinate()
PRIORS: dict[tuple[str, type, Coordinate], Callable[[Any, Any], Sums]] = {
    ("square", dist.Normal, ITSELF): normal_prior,
    ("square", dist.HalfNormal, ITSELF): half_normal_prior,
    ("odds", dist.Beta, ITSELF): lambda prior, old: (prior.concentration1 - 1, prior.concentration0 - 1),
    ("shares", dist.Dirichlet, ITSELF): lambda prior, old: (prior.concentration - 1, jnp.zeros_like(old)),
    ("power", dist.Gamma, Coordinate("power", 1.0)): lambda prior, old: (prior.concentration - 1, prior.rate),
    ("power", dist.Exponential, Coordinate("power", 1.0)): lambda prior, old: (jnp.zeros_like(old), prior.rate),
    ("power", dist.InverseGamma, Coordinate("power", -1.0)): lambda prior, old: (prior.concentration + 1, prior.rate),
    ("power", dist.HalfNormal, Coordinate("power", 2.0)): lambda prior, old: (
        jnp.zeros_like(old),
        0.5 / prior.scale**2,
    ),
}
FLAT = {None, dist.Uniform}  # their bounds are the parameter's constraint
QUADRATIC = {*FLAT, dist.Normal, dist.MultivariateNormal}  # log densities that least squares takes


# ---- densities and arguments


def log_prob(fn: Any, value: Any) -> Array:
    """fn.log_prob(value), with 0·log 0 = 0; a multivariate normal's with one inverse for each covariance, not row."""
    if type(fn) is dist.Dirichlet:
        alpha, value = inexact(fn.concentration, value)
        normaliser = jnp.sum(lgamma(alpha), axis=-1) - lgamma(jnp.sum(alpha, axis=-1))
        return jnp.sum(times_log(alpha - 1, value), axis=-1) - normaliser
    if type(fn) is dist.Beta:
        a, b, value = inexact(fn.concentration1, fn.concentration0, value)
        normaliser = lgamma(a) + lgamma(b) - lgamma(a + b)  # scipy.special.betaln of JAX is off by 1e-6
        return times_log(a - 1, value) + times_log(b - 1, 1 - value, jnp.finfo(value.dtype).eps) - normaliser
    if type(fn) is dist.Gamma:
        alpha, beta, value = inexact(fn.concentration, fn.rate, value)
        return alpha * jnp.log(beta) - lgamma(alpha) + times_log(alpha - 1, value) - beta * value
    if type(fn) is not dist.MultivariateNormal:
        return fn.log_prob(value)
    size = fn.event_shape[0]
    deviation = jnp.broadcast_to(value - fn.loc, jnp.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape))
    white = whitened(inverse_factor(fn), deviation)
    half_log_det = jnp.sum(jnp.log(jnp.diagonal(fn.scale_tril, axis1=-2, axis2=-1)), axis=-1)
    return -0.5 * jnp.sum(white**2, axis=-1) - half_log_det - 0.5 * size * jnp.log(2 * jnp.pi)


def inexact(*given: Any) -> list[Array]:
    """Arguments and value in the floating dtype that they have together: Beta(1, 1) and rows that are counts, too."""
    dtype = jnp.result_type(*given, 1.0)
    return [jnp.asarray(value, dtype) for value in given]


def times_log(count: Any, value: Any, rounding: Any = None) -> Array:
    """count · log value; 0 where the count is 0, and ∞ at a pole.

    A constrained coordinate ends a `rounding` away from the edge of the support, and so does a climb to a pole there:
    its log density would only say how small a number may be.
    """
    rounding = jnp.finfo(jnp.result_type(count, value)).tiny if rounding is None else rounding
    counts = count != 0
    log = jnp.log(jnp.where(counts, value, 1))
    pole = (count < 0) & (value <= rounding)
    return jnp.where(pole, jnp.inf, jnp.where(counts, count, 0) * log)


def inverse_factor(fn: Any) -> Array:
    """L⁻¹ of each covariance L Lᵀ."""
    eye = jnp.eye(fn.event_shape[0], dtype=fn.scale_tril.dtype)
    return jax.scipy.linalg.solve_triangular(fn.scale_tril, jnp.broadcast_to(eye, fn.scale_tril.shape), lower=True)


def whitened(inverse: Array, deviation: Array) -> Array:
    """L⁻¹ d for every row: one matrix product for each covariance where the rows share it."""
    if inverse.ndim < 3 or inverse.shape[-3] == 1:
        rows = inverse if inverse.ndim < 3 else jnp.squeeze(inverse, -3)
        return jnp.matmul(deviation, jnp.swapaxes(rows, -1, -2))
    return jnp.matmul(inverse, deviation[..., None])[..., 0]


def arguments_of(fn: Any) -> dict[str, Any]:
    """What fn was given, by name; of a multivariate normal its covariance, in whatever guise the program gave it.

    Where fn does not keep all that it was given, every array that it holds.
    """
    held = vars(fn)
    if isinstance(fn, dist.MultivariateNormal):
        return {"loc": fn.loc, "covariance_matrix": fn.scale_tril @ jnp.swapaxes(fn.scale_tril, -1, -2)}
    given = {name: held[name] for name in type(fn).arg_constraints if held.get(name) is not None}
    if given and len(given) == len(type(fn).arg_constraints):
        return given
    return given | {
        name: value for name, value in held.items() if any(isinstance(v, jax.Array) for v in jax.tree.leaves(value))
    }
