"""The rotation at which a function of it is least: Newton's method among orthogonal matrices.

Near D every rotation is D e^X of a skew-symmetric X, D(D − 1)/2 numbers u in all, and D e^X = D (I + X + X²/2) + O(X³),
so the gradient g and the Hessian H of u ↦ f(D e^X) at 0 are those of that polynomial. The step is

    u = −H⁻¹ g,      D⁺ = D (I − X/2)⁻¹ (I + X/2)        (Cayley: orthogonal whatever X, e^X to the third order)

taken where f does not rise; elsewhere, far from the end or where H is not positive, a sweep of turns in one plane after
another, which never raises f, is. The sweeps alone come near the end by a constant factor each, Newton's steps square
what is left.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxem.families.gaussian._accuracy import EXACT

STEPS = 1000  # at most, sweeps among them
LARGEST = 24  # axes, beyond which H, of D⁴/4 entries, costs more than the sweeps that it saves
AT_REST = 16  # times eps: no turn is larger, radians
FARTHEST = 0.5  # a step that turns by more is none of Newton's


def settled(
    f: Callable[[Array], Array], sweep: Callable[[Array], Array], rotation: Float[Array, "D D"]
) -> Float[Array, "D D"]:
    """The D of least f downhill from `rotation`; `sweep`: D → one of no larger f."""
    size, eps = rotation.shape[0], jnp.finfo(rotation.dtype).eps
    if size == 1:
        return rotation
    i, j = np.triu_indices(size, 1)

    def skew(u: Array) -> Array:
        half = jnp.zeros((size, size), u.dtype).at[i, j].set(u)
        return half - half.T

    def near(rotation: Array, u: Array) -> Array:
        X = skew(u)
        turn = jnp.eye(size, dtype=u.dtype) + X + jnp.matmul(X, X, precision=EXACT) / 2
        return f(jnp.matmul(rotation, turn, precision=EXACT))

    def newton(rotation: Array) -> tuple[Array, Array]:
        """D⁺, and the largest turn on the way there; NaN where H is not positive."""
        here, still = lambda u: near(rotation, u), jnp.zeros(len(i), rotation.dtype)
        factor = jnp.linalg.cholesky(jax.hessian(here)(still))
        u = -jax.scipy.linalg.cho_solve((factor, True), jax.grad(here)(still))
        half = skew(u) / 2
        eye = jnp.eye(size, dtype=u.dtype)
        turned = jnp.matmul(rotation, jnp.linalg.solve(eye - half, eye + half), precision=EXACT)
        return turned, jnp.max(jnp.abs(u))

    def goes_on(carry: Any) -> Array:
        _, _, move, before, count = carry
        stalled = (move >= before) & (move < jnp.sqrt(eps))
        return (move > AT_REST * eps) & ~stalled & (count < STEPS)

    def step(carry: Any) -> Any:
        rotation, value, move, _, count = carry
        new = sweep(rotation)
        moved, lower = jnp.max(jnp.abs(new - rotation)), f(new)
        if size <= LARGEST:
            found, turn = newton(rotation)
            at_found = f(found)
            taken = (at_found <= value + 8 * eps * jnp.abs(value)) & (turn < FARTHEST)
            new, lower = jnp.where(taken, found, new), jnp.where(taken, at_found, lower)
            moved = jnp.where(taken, turn, moved)
        return orthogonal(new), lower, moved, move, count + 1

    infinity = jnp.full((), jnp.inf, rotation.dtype)
    start = (rotation, f(rotation), infinity, infinity, jnp.zeros((), jnp.int32))
    return lax.while_loop(goes_on, step, start)[0]


def orthogonal(rotation: Float[Array, "D D"]) -> Float[Array, "D D"]:
    """Orthogonal again to rounding, by a step of Newton and Schulz."""
    gram = jnp.matmul(rotation.T, rotation, precision=EXACT)
    return jnp.matmul(rotation, (3 * jnp.eye(len(gram), dtype=gram.dtype) - gram) / 2, precision=EXACT)
