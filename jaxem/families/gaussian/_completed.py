"""Rows with missing cells as a Gaussian would have them: the missing ones by least squares.

With M_n = diag of what is observed of row n, the masked Σ̃ = MΣM + I − M and x̃ = M(x − μ) have the density of the
observed cells, N(x̃; 0, Σ̃) = N(x_o; μ_o, Σ_oo) N(0; 0, I) (eq:observed). With Σ = L Lᵀ it takes missing cells alone:
least squares of w = L⁻¹x̂ over them, by a direction for each missing cell j, orthogonal to those before (modified
Gram–Schmidt, which is backward stable; Björck 1967):

    v = e_j,  u = L⁻¹e_j;    for each i before:  v −= v_i u_iᵀu,  u −= u_i u_iᵀu;    v, u /= ‖u‖;
    x̂ −= v uᵀw,  w −= u uᵀw

From x̂ = x̃ on this ends in μ + x̂ = E[x | x_o, k], and Σ_i v_i v_iᵀ = (Σ⁻¹)_mm⁻¹ = Cov[x | x_o, k], 0 but for what is
missing. Then (x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o) = ‖w‖² and det Σ_oo = det Σ det (Σ⁻¹)_mm, the latter being the product of
the ‖u‖² that were divided by.

A step serves all rows of a chunk, each with its own next missing cell; rows that miss as many lie together
(`Missing.in_order`), so that a chunk takes few steps.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Theta
from jaxem.families._missing import halves
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian import _scales as scales
from jaxem.families.gaussian._accuracy import EXACT
from jaxem.families.gaussian._moments import differences, sum_of_squares

LOG_2PI = math.log(2 * math.pi)


class Completed(NamedTuple):
    """Rows as each component would have them."""

    difference: Float[Array, "K D n"]  # E[x | observed, k] − μ_k
    directions: Float[
        Array, "T _ D n"
    ]  # v_1 …, of each k or of all: Cov[x | observed, k] is Σ v vᵀ; or v² its diagonal
    squares: Float[Array, "K n"]  # (x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o)
    log_det: Float[Array, "K n"]  # log det Σ_oo


class Given(NamedTuple):
    """What completing a row takes of θ."""

    mu: Float[Array, "K D"]
    scale: Float[Array, "K D ..."]  # σ_kd (K, D), or L_k⁻¹ (K, D, D) of Σ_k = L_k L_kᵀ
    log_det: Float[Array, " K"] | None = None  # of L_k
    own: Float[Array, "_ D D"] | None = None  # the L_k⁻¹ that differ: one where Σ is shared


def given(theta: Theta) -> Given:
    """Of plain θ."""
    if "sigma" in theta:
        return Given(theta["mu"], scales.by_feature(theta["sigma"], theta["mu"]))
    inverse, log_det = covariances.whiteners(theta)
    own = inverse[:1] if theta["Sigma"].ndim == 2 else inverse
    return Given(theta["mu"], inverse, log_det, own)


def complete(given: Given, rows: Float[Array, "n both"], most: Array | None = None) -> Completed:
    """Of rows that miss so many cells at `most`, if that is known, and else with a gradient."""
    x, seen = halves(rows)
    difference = jnp.where(seen.T[None], differences(x, given.mu), 0)
    if given.own is None:
        return by_scales(given.scale, difference, seen.T)
    if most is None:
        return by_covariances(given, difference, ~seen.T, None)
    return as_far_as(given, difference, ~seen.T, most)


def by_scales(sigma: Float[Array, "K D"], difference: Float[Array, "K D n"], seen: Bool[Array, "D n"]) -> Completed:
    """Features that tell nothing of each other."""
    return Completed(
        difference,
        jnp.where(seen[None], 0, sigma[:, :, None])[None],
        sum_of_squares(difference * (1 / sigma)[:, :, None]),
        2 * jnp.matmul(jnp.log(sigma), seen.astype(sigma.dtype), precision=EXACT),
    )


def by_covariances(
    given: Given, difference: Float[Array, "K D n"], missing: Bool[Array, "D n"], most: Array | None
) -> Completed:
    """By the directions above."""
    assert given.own is not None
    assert given.log_det is not None
    own, D = given.own, len(missing)
    up_to = jnp.tri(D, dtype=difference.dtype)
    turn = jnp.where(missing, jnp.matmul(up_to, missing.astype(difference.dtype)), 0)  # of a cell in its row, from 1 on
    nothing = 0 * difference[: len(own)]  # that lies where the rows do

    def minimise(index: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
        difference, white, V, U, log_pivots = state
        here = turn == index + 1
        e, one = here.astype(difference.dtype), jnp.any(here, axis=0)[None]

        def less(i: Any, pair: tuple[Array, Array]) -> tuple[Array, Array]:
            along = sum_of_features(U[i] * pair[1])[:, None]
            return pair[0] - V[i] * along, pair[1] - U[i] * along

        # those that follow are 0, and a loop of known length has a gradient
        start = e[None] + nothing, jnp.einsum("kde,en->kdn", own, e, precision=EXACT)
        v, u = lax.fori_loop(0, D if most is None else index, less, start)
        pivot = jnp.where(one, sum_of_features(u**2), 1)
        root = jnp.where(one, lax.rsqrt(pivot), 0)[:, None]
        v, u = v * root, u * root
        along = sum_of_features(u * white)[:, None]
        V, U = (lax.dynamic_update_index_in_dim(every, new, index, 0) for every, new in ((V, v), (U, u)))
        return difference - v * along, white - u * along, V, U, log_pivots + jnp.log(pivot)

    none = jnp.zeros_like(difference, shape=(D, *nothing.shape)) + nothing[0, 0, 0]
    start = (difference, covariances.whitened(given.scale, difference), none, none, nothing[:, 0])
    difference, white, V, _, log_pivots = lax.fori_loop(0, D if most is None else most, minimise, start)
    return Completed(difference, V, sum_of_squares(white), 2 * given.log_det[:, None] + log_pivots)


def sum_of_features(terms: Float[Array, "_ D n"]) -> Float[Array, "_ n"]:
    """Σ_d, as a product: XLA would sum anew for each feature that the sum meets, eight times as slow."""
    ones = jnp.ones((len(terms), 1, terms.shape[1]), terms.dtype)
    return jnp.matmul(ones, terms, precision=EXACT)[:, 0]


def covariance_sums(
    gamma: Float[Array, "_ n"], directions: Float[Array, "T _ D n"], most: Array | None = None
) -> Float[Array, "_ D D"]:
    """Σ_n γ_n Cov[x_n | observed], of so many directions at `most`."""

    def add(i: Any, sums: Array) -> Array:
        return sums + covariances.products_of(gamma[:, None] * directions[i], directions[i])

    D = directions.shape[2]
    nothing = jnp.zeros_like(directions, shape=(len(gamma), D, D)) + 0 * gamma[0, 0]
    return lax.fori_loop(0, len(directions) if most is None else most, add, nothing)


def in_few_turns(sums: Callable[..., Any]) -> Callable[..., Any]:
    """`sums(…, most)`, its derivative that of `sums(…, None)`: a loop of unknown length has none in reverse."""
    few = jax.custom_jvp(sums)

    @few.defjvp
    def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
        return jax.jvp(lambda *given: sums(*given, None), primals[:-1], tangents[:-1])

    return few


as_far_as, first_sums = in_few_turns(by_covariances), in_few_turns(covariance_sums)


def covariance(done: Completed) -> Float[Array, "K D D n"]:
    """Cov[x | observed, k], with correlations."""
    products = jnp.einsum("tkdn,tken->kden", done.directions, done.directions, precision=EXACT)
    return jnp.broadcast_to(products, (len(done.difference), *products.shape[1:]))
