"""A statement with a number: what was measured, and what it must not exceed."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

ROUNDING = 64  # allowances are ROUNDING·eps·(scale of the terms)
UNDERFLOW = {"float64": 750.0, "float32": 105.0}  # e^{−…} is 0, subnormal numbers included


class Bound(NamedTuple):
    """A measured value and the bound it must not exceed: the theorem's plus a rounding allowance."""

    value: Float[Array, "*batch"]
    bound: Float[Array, "*batch"]

    @property
    def holds(self) -> Bool[Array, "*batch"]:
        """value ≤ bound; False for NaN."""
        return self.value <= self.bound


def tightest(value: Array, bound: Array) -> Bound:
    """Of many pairs, the one nearest to a violation: largest value / bound, NaN first. Bounds are positive.

    Args:
        value: what was measured, of any shape.
        bound: what each must not exceed, > 0, of the same shape.
    """
    ratio = jnp.ravel(value / bound)
    worst = jnp.argmax(jnp.where(jnp.isnan(ratio), jnp.inf, ratio))
    return Bound(jnp.ravel(value)[worst], jnp.ravel(bound)[worst])
