"""Where a decreasing function is 0, entry by entry: Newton's method between two bounds that draw together.

    f(u*; φ) = 0   ⇒   ∂u*/∂φ = −(∂f/∂u)⁻¹ ∂f/∂φ

φ is whatever f depends on: the derivative is the root's, in both modes and of every order, not that of the road to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

MOST = 100  # turns: bisection alone would have spent all digits


class Search(NamedTuple):
    """Where the roots are, so far."""

    at: Float[Array, "*shape"]
    low: Float[Array, "*shape"]
    high: Float[Array, "*shape"]
    moved: Float[Array, "*shape"]  # by how much in the last turn, of itself
    turns: Int[Array, ""]


def root(
    f: Callable[[Array], Array],
    start: Float[Array, "*shape"],
    low: Float[Array, "*shape"],
    high: Float[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """The u in [low, high] with f(u) = 0; the nearest bound, with derivative 0, where there is none; NaN where f is.

    Args:
        f: decreasing through its root, each entry of its own u alone.
        start: a guess between the bounds.
        low: where f > 0, if a root is not below.
        high: where f < 0, if a root is not above.

    >>> import jax, jax.numpy as jnp
    >>> from jaxem._core.root import root
    >>> square_root = lambda a: root(lambda u: a - u**2, a, jnp.zeros_like(a), 1 + a)
    >>> f"{square_root(jnp.array(2.0)):.5f}, {jax.grad(square_root)(jnp.array(4.0)):.5f}"
    '1.41421, 0.25000'
    """
    low, high = lax.stop_gradient(low), lax.stop_gradient(high)
    near = 4 * jnp.finfo(start.dtype).eps

    def solve(f: Callable[[Array], Array], start: Array) -> Array:
        def turn(search: Search) -> Search:
            u = search.at
            value, slope = jax.jvp(f, (u,), (jnp.ones_like(u),))
            low, high = jnp.where(value > 0, u, search.low), jnp.where(value < 0, u, search.high)
            newton = jnp.where(value == 0, u, u - value / slope)
            inside = (slope < 0) & (newton >= low) & (newton <= high)
            new = jnp.where(inside | (value == 0), newton, low + (high - low) / 2)
            new = jnp.where(jnp.isnan(value), jnp.nan, new)
            return Search(new, low, high, jnp.abs(new - u) / jnp.abs(new), search.turns + 1)

        at_low, here, at_high = jax.vmap(f)(jnp.stack([low, start, high]))
        start = jnp.where((here >= 0) & (at_high >= 0), high, jnp.where((here <= 0) & (at_low <= 0), low, start))
        first = Search(start, low, high, jnp.ones_like(start), jnp.zeros((), jnp.int32))
        return lax.while_loop(lambda s: jnp.any(s.moved > near) & (s.turns < MOST), turn, first).at

    def tangent(slope_times: Callable[[Array], Array], y: Array) -> Array:
        slope = slope_times(jnp.ones_like(y))
        return y / jnp.where(slope < 0, slope, -jnp.inf)

    found = lax.custom_root(f, lax.stop_gradient(start), solve, tangent)
    return jnp.where((found > low) & (found < high) | jnp.isnan(found), found, lax.stop_gradient(found))
