"""Down a smooth function of a few coordinates to where it is stationary, to rounding: Newton's method, safeguarded.

    x⁺ = x − t |H|⁻¹ g,      |H| = D V |Λ| Vᵀ D,    D = diag(|H|)^½,    V Λ Vᵀ = D⁻¹ H D⁻¹            (eq:newton)

D makes it the same in whatever units a coordinate is in; |Λ| leads down where H is indefinite, and away from saddles
(Dauphin et al. 2014). A step is at first one unit of D⁻¹ long, then at most four times the last one: what is a
quadratic near by need not be one further away. It is taken where the function falls by 1e-4 of what its slope promises
(Armijo), or, once rounding hides that, where it rises by no more than rounding and its slope halves (Hager & Zhang
2005); else it is shortened. For log densities that are concave in a linear predictor this is iteratively reweighted
least squares.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxem._core.descent import BELIEVED, ENOUGH, Slopes, rounding, shorter_by

GROWTH = 4.0  # of a step over the last one
TOGETHER = 8  # columns of the Hessian
SLACK = 4.0  # roundings of the value that hide a fall


class Newton(NamedTuple):
    """The lowest point so far, and the step from it that is tried next."""

    at: Float[Array, " P"]
    value: Float[Array, ""]
    gradient: Float[Array, " P"]
    hessian: Float[Array, "P P"]
    fallen: Float[Array, ""]  # since the start
    step: Float[Array, " P"]
    length: Float[Array, ""]  # t
    turns: Int[Array, ""]  # evaluations of the gradient
    bends: Int[Array, ""]  # of the Hessian
    moved: Bool[Array, ""]
    done: Bool[Array, ""]
    walled: Bool[Array, ""]  # ended at the edge of where the function is a number, still falling


def newton(
    slopes: Slopes, curvature: Callable[[Array], Array], start: Float[Array, " P"], max_turns: int | Array
) -> Newton:
    """From `start` to a point where nothing is left to gain, or as far as `max_turns` evaluations lead.

    Args:
        slopes: (x, is it the start?) → (value, gradient).
        curvature: x → H.
        start: x.
        max_turns: the most evaluations of `slopes`.
    """
    zero, no = jnp.zeros((), start.dtype), jnp.zeros((), bool)
    none = jnp.int32(0)
    flat = jnp.zeros_like(start)
    unborn = Newton(start, zero, flat, jnp.outer(flat, flat), zero, flat, zero, none - 1, none, no, no, no)

    def turn(state: Newton) -> Newton:
        is_new = state.turns < 0
        trial = state.at + state.length * state.step
        value, gradient = slopes(trial, is_new)
        value, gradient = value.astype(start.dtype), gradient.astype(start.dtype)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
        before, slope = state.gradient @ state.step, gradient @ state.step
        promised, fallen = -state.length * before, state.value - value
        lower = (fallen >= ENOUGH * promised) & (fallen <= BELIEVED * promised + rounding(value))
        level = (fallen >= -SLACK * rounding(value)) & (jnp.abs(slope) <= jnp.abs(before) / 2)
        unbounded = jnp.isneginf(value)
        taken = is_new | (finite & (lower | level)) | unbounded
        # by the Hessian of the last point, which serves as well where all that is left is less than rounding
        last = steps(state.hessian, gradient)
        near = taken & ~is_new & (last.left <= rounding(value))
        hessian = lax.cond(taken & finite & ~near, curvature, lambda _: state.hessian, trial)
        next_ = steps(hessian.astype(start.dtype), gradient)
        reach = jnp.where(is_new, 1, GROWTH * state.length * size(state.hessian, state.step))
        at_trial = Newton(
            at=jnp.where(near, trial + last.sure, trial),
            value=value,
            gradient=gradient,
            hessian=hessian.astype(start.dtype),
            fallen=jnp.where(is_new, 0, state.fallen + fallen),
            step=next_.full,
            length=jnp.minimum(1, reach / jnp.maximum(size(hessian, next_.full), jnp.finfo(start.dtype).tiny)),
            turns=state.turns,
            bends=state.bends,
            moved=~is_new,
            done=near | ~finite | ~jnp.any(gradient != 0),
            walled=is_new & ~finite,
        )
        factor = shorter_by(-fallen + promised, promised, finite)
        steep = jnp.max(jnp.abs(state.gradient), initial=0) > 10 * jnp.finfo(value.dtype).eps ** 0.5
        exhausted = promised <= SLACK * rounding(state.value)
        shortened = state._replace(
            length=state.length * factor,
            done=exhausted,
            walled=exhausted & steep & (jnp.isnan(value) | ~jnp.isfinite(slope)),
        )
        after = jax.tree.map(lambda a, b: jnp.where(taken, a, b), at_trial, shortened)
        return after._replace(turns=state.turns + 1, bends=state.bends + (taken & finite & ~near))

    return lax.while_loop(lambda state: ~state.done & (state.turns < max_turns), turn, unborn)


class Steps(NamedTuple):
    """−|H|⁻¹ g, whole and in the directions whose curvature is surely positive, and ½ gᵀ |H|⁻¹ g."""

    full: Float[Array, " P"]
    sure: Float[Array, " P"]
    left: Float[Array, ""]


def steps(hessian: Float[Array, "P P"], gradient: Float[Array, " P"]) -> Steps:
    """Where the quadratic leads; a coordinate whose curvature is 0, or no number, is taken to go one unit."""
    eps = jnp.finfo(gradient.dtype).eps
    unknown = ~jnp.all(jnp.isfinite(hessian), axis=1) | (jnp.diagonal(hessian) == 0)
    hessian = jnp.where(unknown[:, None] | unknown[None, :], jnp.diag(jnp.abs(gradient)), hessian)
    d = scales(hessian)
    scaled = hessian * jnp.outer(d, d)
    curvatures, axes = jnp.linalg.eigh((scaled + scaled.T) / 2)
    most = jnp.maximum(jnp.max(jnp.abs(curvatures)), jnp.finfo(gradient.dtype).tiny)
    along = (gradient * d) @ axes / jnp.maximum(jnp.abs(curvatures), eps**0.75 * most)
    full, sure = (-d * (axes @ a) for a in (along, jnp.where(curvatures > eps**0.5 * most, along, 0)))
    return Steps(full, sure, -(gradient @ full) / 2)


def scales(hessian: Array) -> Array:
    """D⁻¹: one for a coordinate in which nothing bends."""
    bends = jnp.abs(jnp.diagonal(hessian))
    return jnp.where(bends > 0, bends, 1) ** -0.5


def size(hessian: Array, step: Array) -> Array:
    """How long a step is, in units of D⁻¹."""
    return jnp.linalg.norm(step / scales(hessian))


def columns(f: Callable[[Array], Array], at: Float[Array, " P"]) -> Float[Array, "P P"]:
    """∇²f, a few columns at a time: forward over reverse, in the memory of those."""
    width = min(at.size, TOGETHER)
    batches = -(-at.size // width)
    eye = jnp.where(True, jnp.eye(batches * width, at.size, dtype=at.dtype), at[None])  # of at's kind, on a mesh too
    column = jax.vmap(lambda e: jax.jvp(jax.grad(f), (at,), (e,))[1])
    found = lax.map(column, eye.reshape(batches, width, at.size))
    return found.reshape(batches * width, at.size)[: at.size]
