"""The E-step as matrix products: what a family says of it, and how γ pools a chunk's features.

ℓ about one centre for all components is one product, the statistics are another: twice to ten times as fast as
differences to every μ_k, and right where their cancellations leave enough digits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._free_energy import assign_hard, assign_soft

# φ → Σγφ (K, F) of a chunk: a matrix product, or at T = 0 a scatter-add
Pool = Callable[[Float[Array, "n F"]], Float[Array, "K F"]]


class Products(NamedTuple):
    """An E-step by matrix products about one centre for all components; what depends on θ alone is closed over."""

    width: int  # numbers made for a row, beside its table
    features: Callable[[Array], Any]  # x (n, D) → φ, arrays of leading axis n
    table: Callable[[Any], Array]  # φ → ℓ, (K, n), up to a term common to all components
    common: Callable[[Any], Array | float]  # φ → that term, (n,)
    statistics: Callable[[Any, Array], Any] | None  # (φ, γ (K, n) times weights) → additive sums …
    pooled: Callable[[Any, Array, Pool], Any] | None  # … or (φ, weights (n,), pool) → such sums, γ only pooled
    finish: Callable[[Any], Any]  # those sums → the statistics that `update` takes, linearly
    # do its cancellations keep enough digits at this θ, for soft assignments, and for hard ones, which is asked of the
    # statistics they led to? None where the family sees to it chunk by chunk, and is right everywhere.
    accurate: Array | None
    accurate_when_hard: Callable[[Any], Array] | None


def pooled_softly(sums: Callable[[Pool], Any], table: Array, weights: Array, temperature: Array) -> tuple[Any, Array]:
    """`sums` over γ for T > 0, a matrix product, and eq:bound row by row."""
    gamma, value = assign_soft(table, temperature, axis=0)
    gamma = gamma * weights[None]

    def pool(phi: Float[Array, "n F"]) -> Float[Array, "K F"]:
        return jnp.matmul(gamma, phi, precision=lax.Precision.HIGHEST)

    return sums(pool), value


def pooled_by_winner(sums: Callable[[Pool], Any], table: Array, weights: Array) -> tuple[Any, Array]:
    """The same at T = 0: a row's features go to its component, and γ is never made."""
    winner, value = assign_hard(table, axis=0)

    def pool(phi: Float[Array, "n F"]) -> Float[Array, "K F"]:
        return jnp.zeros((table.shape[0], phi.shape[1]), phi.dtype).at[winner].add(weights[:, None] * phi)

    return sums(pool), value
