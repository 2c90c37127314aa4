"""An M-step without a closed form: up Q in unconstrained coordinates u, to where it is stationary, and its derivative.

    ∇Q(u*; φ) = 0   ⇒   ∂u*/∂φ = −(∇²Q)⁻¹ ∂∇Q/∂φ                                       (eq:implicit)

φ is whatever Q depends on. The derivative is that of the maximiser, in both modes, not of the road to it. The road is
Newton's (`_core/newton`) for a few coordinates, else that of L-BFGS (`_core/descent`), or of an optimiser of optax.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro.distributions import biject_to, constraints, transforms

from jaxem._core.descent import descend
from jaxem._core.newton import columns, newton

Tree = Any
Over = Callable[[Callable[[Callable, Array, Tree], Array], Array, Tree], Array]
DENSE = 512  # coordinates up to which ∇²Q is a matrix
FAR = 8.0  # coordinates nearer to 0 than this are at no bound
RISING = 1e-3  # nats a unit of u: Q that rises as fast where its coordinate cannot move has no maximum


def check_optimizer(optimizer: Any) -> None:
    """A ValueError for what is no optimiser of optax; None is the default one."""
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer: must be an optax GradientTransformation, got {optimizer!r}; e.g. optax.adam(0.01)"
        )


def highest(
    Q: Callable[[Tree], Array],
    constrain: Callable[[Tree, Tree], Tree],
    free: Tree,
    theta: Tree,
    size: Array | int,
    supports: Mapping[str, constraints.Constraint],
    optimizer: optax.GradientTransformation | None,
    num_steps: int,
    over: Over | None = None,
) -> Tree:
    """θ⁺ with Q(θ⁺) > Q(θ); θ to the bit where there is none; NaN where Q is not finite, or has no maximum.

    Args:
        Q: of θ, in nats.
        constrain: θ from its unconstrained coordinates and what of it is fixed.
        free: θ's coordinates, by name.
        theta: θ.
        size: W, the unit of a tolerance.
        supports: the constraint of each name.
        optimizer: whose `num_steps` steps are taken; when absent Q is climbed until it is stationary, or so many turns.
        num_steps: how many.
        over: for Newton's method; (f, u, θ) ↦ Σ f(q, u, θ) over the parts q that Q is a sum of. Without it L-BFGS.
    """
    start, unravel = ravel_pytree(free)
    if not start.size:
        return theta
    end = -float(np.log(jnp.finfo(start.dtype).tiny))  # as far as a coordinate says anything
    start = jnp.nan_to_num(start, nan=jnp.nan, posinf=end, neginf=-end)

    def loss(u: Array, is_start: Array | bool = False) -> Array:
        """−Q/W; at the start of θ itself, not of what its coordinates make of it."""
        new = constrain(unravel(u), theta)
        at = jax.tree.map(lambda old, new: valued(jnp.where(is_start, old, new), new), theta, new)
        return -Q(at) / size

    if optimizer is None:
        edges = lax.stop_gradient(at_bounds(lambda u: constrain(unravel(u), theta), free, start, supports))
        limit = jnp.maximum(RISING / jnp.asarray(size, start.dtype), 128 * jnp.finfo(start.dtype).eps)

        def part(q: Callable, u: Array, theta: Tree) -> Array:
            return columns(lambda u: q(constrain(unravel(u), theta)), u)

        curvature = None if over is None else lambda u: -over(part, u, theta) / size
        u, verdict = solved(loss, curvature, start, edges, limit, num_steps)
    else:
        u, verdict = stepped(loss, start, optimizer, num_steps)
    new = constrain(unravel(u), theta)

    def outcome(new: Array, old: Array) -> Array:
        kept = jnp.where(verdict > 0, new, old)
        return valued(jnp.where(verdict < 0, jnp.full_like(kept, jnp.nan), kept), new)

    changed = jax.tree.map(outcome, {name: new[name] for name in free}, {name: theta[name] for name in free})
    return theta | changed


@jax.custom_jvp
def valued(value: Array, at: Array) -> Array:
    """`value`, with the derivative of `at`."""
    return value


@valued.defjvp
def _valued_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], tangents[1]


def solved(
    loss: Callable, curvature: Callable | None, start: Array, edges: Array, limit: Array, max_turns: int
) -> tuple[Array, Array]:
    """(where the road ended, verdict), with eq:implicit; 1: below the start, 0: not, −1: nothing is lowest."""

    def slopes(u: Array, is_start: Array) -> tuple[Array, Array]:
        value, gradient = jax.value_and_grad(loss)(u, is_start)
        endless = is_start & jnp.any(edges * gradient < -limit)
        return jnp.where(endless, jnp.nan, value), gradient

    def solve(_: Callable, start: Array) -> tuple[Array, Array]:
        inside = start - 2 * edges  # from where a bound bends the coordinates no more
        if curvature is not None:
            last = newton(slopes, curvature, inside, max_turns)  # it moves where that is more than rounding
            return last.at, jnp.where(last.walled, -1, jnp.where(last.moved, 1, 0)).astype(start.dtype)
        end = descend(slopes, inside, max_turns)
        # a θ that differs in its last digits alone has another Q: a rise within that is none
        digits = 1 + 64 * jnp.finfo(start.dtype).eps * jnp.array([1.0, -2.0, 3.0], start.dtype)
        nearby = lax.map(lambda factor: loss(factor * end.at), digits)
        noise = jnp.max(jnp.nan_to_num(jnp.abs(nearby - end.value), posinf=0.0))
        better = jnp.where(end.fallen > 2 * noise, 1, 0)
        return end.at, jnp.where(end.walled, -1, better).astype(start.dtype)

    def solve_tangent(hessian: Callable, y: Array) -> Array:
        if y.size > DENSE:
            return jax.scipy.sparse.linalg.cg(hessian, y)[0]
        matrix = lax.map(hessian, jnp.eye(y.size, dtype=y.dtype))
        return jnp.linalg.pinv((matrix + matrix.T) / 2, hermitian=True) @ y  # a flat direction does not move

    try:
        return lax.custom_root(jax.grad(loss), start, solve, solve_tangent, has_aux=True)
    except NotImplementedError:  # Q has no second derivative that JAX knows, and the maximiser none at all
        return solve(loss, start)


def at_bounds(constrain: Callable[[Array], Tree], free: Tree, start: Array, supports: Mapping) -> Array:
    """+1 for each coordinate that can grow no more, to the bit, −1 for each that cannot fall, else 0."""

    def marked(leaf: Array, bounded: bool) -> np.ndarray:
        return np.full(np.shape(leaf), bounded)

    bounded = {
        name: jax.tree.map(partial(marked, bounded=not is_everywhere(supports[name])), free[name]) for name in free
    }
    places = np.flatnonzero(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(bounded)]))
    if not places.size:
        return jnp.zeros_like(start)

    def same(this: Tree, other: Tree) -> Array:
        pairs = zip(jax.tree.leaves(this), jax.tree.leaves(other), strict=True)
        return jnp.all(jnp.stack([jnp.all(a == b) for a, b in pairs]))

    def search() -> Array:
        here = constrain(start)

        def sign(place: Array) -> Array:
            up, down = (same(constrain(start.at[place].add(step)), here) for step in (1.0, -1.0))
            return up.astype(start.dtype) - down

        return jnp.zeros_like(start).at[places].set(lax.map(sign, jnp.asarray(places)))

    return lax.cond(jnp.any(jnp.abs(start[places]) > FAR), search, lambda: jnp.zeros_like(start))


def is_everywhere(support: constraints.Constraint) -> bool:
    """Are the coordinates of this support the numbers themselves?"""
    bijection = biject_to(support)
    while isinstance(bijection, transforms.IndependentTransform):
        bijection = bijection.base_transform
    return isinstance(bijection, transforms.IdentityTransform)


def stepped(
    loss: Callable[..., Array], start: Array, optimizer: optax.GradientTransformation, num_steps: int
) -> tuple[Array, Array]:
    """(the lowest point of the optimiser's steps, verdict); differentiable as far as the optimiser is."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple, is_start: Array) -> tuple[tuple, Array]:
        u, state, best, lowest = carry
        value, gradient = jax.value_and_grad(loss)(u, is_start)
        better = value < lowest
        best, lowest = jnp.where(better, u, best), jnp.where(better, value, lowest)
        updates, state = optimizer.update(gradient, state, u, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(u, updates), state, best, lowest), jnp.append(gradient, value)

    first = (start, optimizer.init(start), start, jnp.full((), jnp.inf, start.dtype))
    (last, _, best, lowest), visited = lax.scan(step, first, jnp.arange(num_steps) == 0)
    value, at_start = loss(last), visited[0, -1]
    better = value < lowest
    best, lowest = jnp.where(better, last, best), jnp.where(better, value, lowest)
    verdict = jnp.where(jnp.all(jnp.isfinite(visited[0])), jnp.where(lowest < at_start, 1, 0), -1)
    return best, verdict.astype(start.dtype)
