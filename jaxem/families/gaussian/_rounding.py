"""What rounding leaves open in F at a Gaussian θ, and when a component lies on a plane.

θ itself is rounded: μ_k by eps·|μ_k|, the entries of Σ_k by eps·√(Σ_dd Σ_ee). F is at rest in both, so it moves by

    Σ_k N_k [ Σ_d (eps·μ_kd / σ_kd)² v_kd  +  D·eps·Σ_d v_kd ] nats,   v_kd = Σ_dd P_dd = 1/(1 − R²)        (digits)

with σ_kd² = Σ_dd, P = Σ⁻¹, and R² that of the regression of feature d on the others: v is the variance inflation
factor, and its sum tr C⁻¹ of the correlation matrix C. The second term is of covariance matrices alone.

A covariance is singular, in this precision, if C has an eigenvalue within NEAR·D·eps of 0, told by D·eps·tr C⁻¹. It
is asked of the rows' own scatter, whose rounding that is, and in correlation units: units of x and of weights drop
out. The likelihood is unbounded there. What M-steps make of such a scatter is lifted off the plane, so that a
component may pass it on its way; where it comes to rest, it has collapsed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Theta
from jaxem.families import _exponential_family as ef
from jaxem.families._parts import Numerics
from jaxem.families.gaussian._moments import LIMIT, Moments, centre, in_small_batches

NEAR = 8.0  # times D·eps, of trials: what rows on a plane leave in an eigenvalue of C
LIFT = 2 * NEAR
HALF = 0.5  # nats a row that rounding may move F by: with more, θ has lost its digits

HasCounts = Any  # sums with N_k; `scatter` knows the rest
# θ → σ (K, D) and v (K, D)
Inflation = Callable[[Theta], tuple[Array, Array]]


def digits_of_means(theta: Theta, inflation: Inflation) -> Float[Array, " K"]:
    """The first term of (digits), for a row of each component."""
    deviation, v = inflation(theta)
    return jnp.sum((jnp.finfo(v.dtype).eps * theta["mu"] / deviation) ** 2 * v, axis=1)


def where_occupied(N_k: Float[Array, " K"], value: Array) -> Array:
    """0 for a component that F does not depend on."""
    return jnp.where(ef.occupied(N_k), value, 0)


def rounding_of_scales(
    theta: Theta, moments: Moments, held: frozenset[str], *, inflation: Inflation
) -> tuple[Array, Array | bool]:
    """(digits); and is it more than half a nat a row, σ below the last digit of μ?"""
    a_row = where_occupied(moments.N_k, digits_of_means(theta, inflation))
    return jnp.sum(moments.N_k * a_row), False if "sigma" in held else jnp.any(a_row > HALF)


def rounding_of_covariances(
    theta: Theta,
    moments: HasCounts,
    held: frozenset[str],
    *,
    inflation: Inflation,
    scatter: Callable[..., Array] | None,
) -> tuple[Array, Array | bool]:
    """(digits); is the first term more than half a nat a row, or the rows' scatter singular?

    Under a floor (`scatter` None) a plane is no collapse; but a floor below the digits of Σ_k is none.
    """
    means = where_occupied(moments.N_k, digits_of_means(theta, inflation))
    v = inflation(theta)[1]
    entries = where_occupied(moments.N_k, v.shape[1] * jnp.finfo(v.dtype).eps * jnp.sum(v, axis=1))
    slack = jnp.sum(moments.N_k * (means + entries))
    if "Sigma" in held:
        return slack, False
    if scatter is None:
        return slack, jnp.any(means + entries > HALF)
    flat = is_singular(scatter(moments, theta, held))
    return slack, jnp.any(means > HALF) | jnp.any(where_occupied(moments.N_k, flat) if flat.ndim else flat)


def is_singular(scatter: Float[Array, "*k D D"]) -> Bool[Array, "*k"]:
    """Has its correlation matrix C an eigenvalue within NEAR·D·eps of 0? Where C has no Cholesky factor, it has."""
    num_features = scatter.shape[-1]
    variance = jnp.diagonal(scatter, axis1=-2, axis2=-1)
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 1)
    C = scatter / deviation[..., :, None] / deviation[..., None, :]
    one = jnp.broadcast_to(jnp.eye(num_features, dtype=C.dtype), C.shape)
    trace = in_small_batches(trace_of_inverse, jnp.where(one == 1, one, C), cubes=1)
    return ~(NEAR * num_features * jnp.finfo(C.dtype).eps * trace < 1)


def trace_of_inverse(C: Float[Array, "*k D D"]) -> Float[Array, "*k"]:
    """tr C⁻¹ = ‖L⁻¹‖², NaN where C is not positive definite."""
    one = jnp.broadcast_to(jnp.eye(C.shape[-1], dtype=C.dtype), C.shape)
    inverse = lax.linalg.triangular_solve(jnp.linalg.cholesky(C), one, left_side=True, lower=True)
    return jnp.sum(inverse**2, axis=(-2, -1))


def lifted(scatter: Float[Array, "*k D D"]) -> Float[Array, "*k D D"]:
    """Where it is singular, its correlations shrunk by LIFT·D·eps: then Σ_k is positive definite, to the eye of all."""
    share = LIFT * scatter.shape[-1] * jnp.finfo(scatter.dtype).eps
    return shrunk(scatter, jnp.where(is_singular(scatter), share, 0)[..., None, None])


def shrunk(S: Float[Array, "*K D D"], share: Array) -> Float[Array, "*K D D"]:
    """(1 − share) S + share diag S: the correlations shrink, the variances stay, to the bit."""
    on_diagonal = jnp.broadcast_to(jnp.eye(S.shape[-1], dtype=bool), S.shape)
    return jnp.where(on_diagonal, S, (1 - jnp.broadcast_to(share, S.shape)) * S)


def sizes_of_terms(theta: Theta, moments: HasCounts, *, inflation: Inflation) -> Array:
    """Σ_k N_k (sizes of what ℓ subtracts and F_n does not show): of its logarithms, and of squares expanded about c.

    Where those are larger than LIMIT·D they are not expanded. What is left, ½(x − μ)ᵀP(x − μ), is no more than these
    and |F_n| together.
    """
    deviation, v = inflation(theta)
    num_features, pi = v.shape[1], theta["pi"]
    logs = jnp.abs(jnp.log(deviation)) + jnp.log(jnp.maximum(v, 1)) / 2 + jnp.log(2 * jnp.pi) / 2
    log_pi = jnp.abs(jnp.log(jnp.where(pi > 0, pi, 1)))
    squares = jnp.sum(((theta["mu"] - centre(theta)) / deviation) ** 2 * v, axis=1)
    a_row = log_pi + jnp.sum(logs, axis=1) + jnp.minimum(squares, LIMIT * num_features)
    return jnp.sum(moments.N_k * where_occupied(moments.N_k, a_row))


def numerics(
    scales: tuple[str, ...],
    inflation: Inflation,
    rounding: Callable[..., tuple[Array, Array | bool]],
    *,
    constant: Callable[[Theta], Array],
    recentre: Callable[[Theta, Theta], tuple[Theta, Array]] | None = None,
    **options: Callable | None,
) -> Numerics:
    """A Gaussian's `Numerics`, its products apart: when digits are lost, and what is left of them."""
    rounding = partial(rounding, inflation=inflation, **options)
    return Numerics(
        constant=constant,
        recentre=recentre,
        scales=scales,
        rounding=rounding,
        sizes_of_terms=partial(sizes_of_terms, inflation=inflation),
    )
