"""The E-step as matrix products: what a family says of it, and how γ pools a chunk's features.

ℓ about one centre for all components is one product, the statistics are another: twice to ten times as fast as
differences to every μ_k, and right where their cancellations leave enough digits.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxem._core.objective import assign, assign_hard, assign_one_hot, assign_soft
from jaxem._rows import gpu
from jaxem._rows.chunks import plus

FOUR = 4  # numbers that a CPU adds at once: a scatter of few columns is up to 30 % faster in whole fours
NARROW = 16  # columns for which that is so
POOLED = 512  # components to which a GPU adds rows faster by a product than one by one
FEW = 16  # rows of a chunk to a component, of which `GROUP` chunks may be added one by one


class Counts(NamedTuple):
    """How a chunk's rows count, and at which temperature they are assigned."""

    weights: Float[Array, " n"]
    counted: bool  # are those 1 or 0: in or out?
    temperature: Array


# (sums so far or None, φ, ℓ (K, n), counts) → those with a chunk's, and the rows' terms of eq:bound
Adder = Callable[[Any, Any, Array, Counts], tuple[Any, Array]]


class Products(NamedTuple):
    """An E-step by matrix products about one centre for all components; what depends on θ alone is closed over."""

    width: int  # numbers made for a row, beside its table
    features: Callable[[Array, Array | None], Any]  # x (n, D), ‖x − c‖² (n,) if known → φ, arrays of leading axis n
    table: Callable[[Any], Array]  # φ → ℓ, (K, n), up to a term common to all components
    common: Callable[[Any], Array | float]  # φ → that term, (n,)
    sums: Adder  # `by_gamma` or `by_pooling`
    hard: Adder | None  # the same where T is known to be 0, if that is faster
    finish: Callable[[Any], Any]  # such sums → the statistics that `update` takes, linearly
    # do its cancellations keep enough digits at this θ, for soft assignments, and for hard ones, which is asked of the
    # statistics they led to? None where the family sees to it chunk by chunk, and is right everywhere.
    accurate: Array | None
    accurate_when_hard: Callable[[Any], Array] | None
    fused: "Fused | None" = None


class Fused(NamedTuple):
    """The same E-step for `_rows/gpu`, and its sums as those of `sums`."""

    ell: gpu.Quadratic
    unpack: Callable[[gpu.KernelSums], Any]


def by_gamma(statistics: Callable[[Any, Array], Any]) -> Adder:
    """Any sums over γ times weights: (φ, γ (K, n)) → sums."""

    def sums(so_far: Any, phi: Any, table: Array, counts: Counts) -> tuple[Any, Array]:
        gamma, value = assign(table, counts.temperature, axis=0)
        return plus(so_far, statistics(phi, gamma * counts.weights[None])), value

    return sums


def by_pooling(
    pooled: Callable[[Any], tuple[Array, ...]],
    beside: Callable[[Any, Array], Any],
    add: Callable[[tuple[Array, ...], tuple[Array, ...], Array, Counts], tuple[tuple[Array, ...], Array]],
) -> Adder:
    """(Σγφ_i (K, F_i) of the arrays φ → (φ_1, …), and beside those the sums (φ, weights) that need no γ)."""

    def sums(so_far: Any, phi: Any, table: Array, counts: Counts) -> tuple[Any, Array]:
        parts, others = pooled(phi), beside(phi, counts.weights)
        if so_far is None:
            old = tuple(jnp.zeros((len(table), part.shape[1]), part.dtype) for part in parts)
        else:
            old, others = so_far[0], plus(so_far[1], others)
        new, value = add(old, parts, table, counts)
        return (new, others), value

    return sums


def by_temperature(
    old: tuple[Array, ...], parts: tuple[Array, ...], table: Array, counts: Counts
) -> tuple[tuple[Float[Array, "K _"], ...], Array]:
    """Softly or by the winner."""
    branches = (partial(add, old, parts, table, counts) for add in (by_winner, softly))
    return lax.cond(counts.temperature == 0, *branches)


def softly(
    old: tuple[Array, ...], parts: tuple[Array, ...], table: Array, counts: Counts
) -> tuple[tuple[Float[Array, "K _"], ...], Array]:
    """For T > 0, by matrix products."""
    return by_product(old, parts, assign_soft(table, counts.temperature, axis=0), counts)


def by_product(
    old: tuple[Array, ...], parts: tuple[Array, ...], assigned: tuple[Array, Array], counts: Counts
) -> tuple[tuple[Float[Array, "K _"], ...], Array]:
    """Σγφ, of γ and what else an assignment gives."""
    gamma, value = assigned
    gamma = gamma * counts.weights[None]
    exact = lax.Precision.HIGHEST
    return tuple(sums + jnp.matmul(gamma, phi, precision=exact) for sums, phi in zip(old, parts, strict=True)), value


def by_winner(
    old: tuple[Array, ...], parts: tuple[Array, ...], table: Array, counts: Counts
) -> tuple[tuple[Float[Array, "K _"], ...], Array]:
    """At T = 0: a row's features are added to its component's, and γ is never made, unless that is faster."""
    if jax.default_backend() != "cpu" and len(table) <= POOLED:
        return by_product(old, parts, assign_one_hot(table, axis=0), counts)
    winner, value = assign_hard(table, axis=0)
    if counts.counted:  # a row that is not counted goes to no component
        winner = jnp.where(counts.weights > 0, winner, len(table))
    else:
        parts = tuple(counts.weights[:, None] * phi for phi in parts)
    return tuple(added(sums, winner, phi) for sums, phi in zip(old, parts, strict=True)), value


def in_fours(phi: Float[Array, "n F"]) -> Float[Array, "n _"]:
    """With columns of zeros, where those are few."""
    missing = -phi.shape[1] % FOUR if phi.shape[1] < NARROW else 0
    return jnp.pad(phi, ((0, 0), (0, missing)))


def added(sums: Float[Array, "K F"], winner: Int[Array, " n"], phi: Float[Array, "n F"]) -> Float[Array, "K F"]:
    """Σφ by component, added in place where that is few rows each; many lose fewer digits if summed apart first."""
    if len(phi) > FEW * len(sums):
        # behind a barrier: XLA would add them in place
        return sums + lax.optimization_barrier(jnp.zeros_like(sums).at[winner].add(phi))
    return sums.at[winner].add(phi)
