"""Down a smooth function to where it is stationary: L-BFGS, one evaluation of the gradient a turn.

    x⁺ = x + t p,    p = −B g,    B ≈ H⁻¹ from the last moves s = x⁺ − x and y = g⁺ − g       (Nocedal 1980)

A trial that falls by 1e-4 of what its slope promises is taken. One that does not is shortened by the parabola through
what is known; so is one that falls four times as far as promised: that is rounding, or another valley. A move along
which the slope did not grow (yᵀs ≤ 0) teaches B nothing: the next one is twice as long.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

MEMORY = 20  # moves remembered: more than most blocks have coordinates
ENOUGH = 1e-4  # of what the slope promises (Armijo)
BELIEVED = 4.0


class Descent(NamedTuple):
    """The lowest point so far, and the trial that is next."""

    at: Float[Array, " P"]
    value: Float[Array, ""]
    gradient: Float[Array, " P"]
    fallen: Float[Array, ""]  # since the start
    direction: Float[Array, " P"]  # p
    length: Float[Array, ""]  # t
    moves: Float[Array, "M P"]  # s, the newest last; rows of 0 are none
    bends: Float[Array, "M P"]  # y
    turns: Int[Array, ""]
    done: Bool[Array, ""]
    walled: Bool[Array, ""]  # ended at the edge of where the function is a number, still falling


Slopes = Callable[[Array, Array], tuple[Array, Array]]  # (x, is it the start?) → (value, gradient)


def descend(slopes: Slopes, start: Float[Array, " P"], max_turns: int) -> Descent:
    """From `start` to a point where nothing is left to gain, or as far as `max_turns` evaluations lead."""
    zero, memory = jnp.zeros((), start.dtype), jnp.zeros((min(MEMORY, start.size), start.size), start.dtype)
    no = jnp.zeros((), bool)
    unborn = Descent(start, zero, start, zero, jnp.zeros_like(start), zero, memory, memory, jnp.int32(-1), no, no)

    def turn(state: Descent) -> Descent:
        is_new = state.turns < 0
        trial = state.at + state.length * state.direction
        value, gradient = slopes(trial, is_new)
        value, gradient = value.astype(start.dtype), gradient.astype(start.dtype)
        slope = gradient @ state.direction
        promised = -state.length * (state.gradient @ state.direction)
        enough = value <= state.value - ENOUGH * promised
        too_good = state.value - value > BELIEVED * promised + rounding(value)
        enough = enough & (~too_good | jnp.isneginf(value))
        enough = enough & (jnp.all(jnp.isfinite(gradient)) | jnp.isneginf(value))
        after = chosen(enough, moved(state, trial, value, gradient), shortened(state, value, slope, promised))
        after = chosen(is_new, begun(state, value, gradient), after)
        return after._replace(turns=state.turns + 1)

    return lax.while_loop(lambda state: ~state.done & (state.turns < max_turns), turn, unborn)


def chosen(condition: Array, this: Descent, other: Descent) -> Descent:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), this, other)


def rounding(value: Array) -> Array:
    """What rounding moves the value by."""
    return jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))


def steepest(state: Descent) -> Descent:
    """All forgotten: straight down, at most by 1."""
    norm = jnp.linalg.norm(state.gradient)
    nothing = jnp.zeros_like(state.moves)
    return state._replace(
        direction=-state.gradient, length=1 / jnp.maximum(norm, 1), moves=nothing, bends=nothing, walled=norm < 0
    )


def begun(state: Descent, value: Array, gradient: Array) -> Descent:
    """At the start; where that is flat, or not finite, at the end as well."""
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    flat = jnp.max(jnp.abs(gradient), initial=0) <= rounding(value)
    return steepest(state._replace(value=value, gradient=gradient))._replace(done=~finite | flat, walled=~finite)


def moved(state: Descent, trial: Array, value: Array, gradient: Array) -> Descent:
    """At a trial that was taken, with the next direction."""
    s, y = trial - state.at, gradient - state.gradient
    curved = s @ y > jnp.finfo(s.dtype).eps * jnp.linalg.norm(s) * jnp.linalg.norm(y)
    moves, bends = (
        jnp.where(curved, jnp.concatenate([old[1:], new[None]]), old)
        for old, new in ((state.moves, s), (state.bends, y))
    )
    fallen = state.fallen + (state.value - value)
    direction = -inverse_hessian(moves, bends, gradient)
    left = -(gradient @ direction) / 2
    known = jnp.any(moves[max(len(moves) - 2, 0)] != 0)  # two moves, so that the model has a scale
    small = (left <= rounding(value)) & known & curved
    flat = jnp.max(jnp.abs(gradient), initial=0) <= rounding(value)
    return Descent(
        at=trial,
        value=value,
        gradient=gradient,
        fallen=fallen,
        direction=direction,
        length=jnp.where(curved, 1, 2 * state.length),
        moves=moves,
        bends=bends,
        turns=state.turns,
        done=small | flat | ~jnp.isfinite(left) | ~jnp.isfinite(value),
        walled=jnp.zeros_like(state.walled),
    )


def shortened(state: Descent, value: Array, slope: Array, promised: Array) -> Descent:
    """A shorter trial in the same direction; where none is left, straight down; where that was straight, the end."""
    factor = shorter_by(value - state.value + promised, promised, jnp.isfinite(value) & jnp.isfinite(slope))
    shorter = state._replace(length=state.length * factor, walled=jnp.isnan(value) | ~jnp.isfinite(slope))
    exhausted = promised <= rounding(state.value) / 4
    straight = ~jnp.any(state.moves != 0)
    steep = jnp.max(jnp.abs(state.gradient), initial=0) > 10 * jnp.finfo(value.dtype).eps ** 0.5
    end = shorter._replace(done=exhausted & straight, walled=shorter.walled & steep)
    return chosen(exhausted & ~straight, steepest(state), end)


def shorter_by(excess: Array, promised: Array, finite: Array) -> Array:
    """The next length, a part of the last, by the parabola whose second order is what the fall fell short by."""
    factor = jnp.where(excess > 0, promised / (2 * jnp.where(excess > 0, excess, 1)), 0.1)
    return jnp.where(finite, jnp.clip(factor, 1e-3, 0.5), 0.1)


def inverse_hessian(moves: Float[Array, "M P"], bends: Float[Array, "M P"], gradient: Float[Array, " P"]) -> Array:
    """B g by the two loops over the moves."""
    products = jnp.sum(moves * bends, axis=1)
    known = products > 0
    rho = jnp.where(known, 1 / jnp.where(known, products, 1), 0)

    def back(q: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        s, y, rho = pair
        alpha = rho * (s @ q)
        return q - alpha * y, alpha

    def forth(r: Array, pair: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        s, y, rho, alpha = pair
        return r + s * (alpha - rho * (y @ r)), None

    q, alpha = lax.scan(back, gradient, (moves, bends, rho), reverse=True)
    scale = jnp.where(known[-1], products[-1] / jnp.where(known[-1], bends[-1] @ bends[-1], 1), 1)
    r, _ = lax.scan(forth, scale * q, (moves, bends, rho, alpha))
    return r
