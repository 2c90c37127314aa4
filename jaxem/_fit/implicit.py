"""The derivative of a fit, in both modes: that of the fixed point, not of the road to it.

    θ* = M(θ*; φ)   ⇒   ∂θ*/∂φ = (I − J)⁻¹ ∂M/∂φ,   J = ∂M/∂θ                               (eq:fixed)

φ is whatever M depends on: the rows, their weights, the temperature, the held entries of θ, a program's arguments. In
θ's own coordinates no direction is lost: what J maps to is tangent to where M's values lie (a simplex, symmetric
matrices), so a null vector of I − J = one of J's own values is one along the model. The loop is never differentiated, so
memory does not grow with its steps; and as it stops a little before θ*, the formula is taken some Newton steps further.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Data, Model, Theta, maximize
from jaxem._fit.loop import Fit, Status

DENSE = 64  # entries of θ up to which I − J is a matrix
POLISHING = 3  # Newton steps, all with the first J
KRYLOV = 64  # directions of GMRES before it starts again
CONTRACTS = 8.0  # at a regular fixed point they shrink M(θ) − θ at least so much; at a singular one each halves it

Inverse = Callable[[Array], Array]


def at_the_fixed_point(m: Model, theta: Theta, data: Data, fit: Fit) -> Fit:
    """The same fit, its θ and F with the derivatives of EM's fixed point in `theta`'s held entries and the data.

    NaN unless it converged, to a θ at which I − J is regular. In the start, `theta`'s free entries, they are 0.
    """
    names = [name for name in theta if name not in m.held]
    if not names:
        return fit
    fit = lax.stop_gradient(fit)
    free, converged = {name: fit.theta[name] for name in names}, fit.status == Status.CONVERGED

    @jax.custom_jvp
    def found(free: Theta, value: Array, converged: Array, theta: Theta, data: Data) -> tuple[Theta, Array]:
        return free, value

    @found.defjvp
    def tangents_of_found(primals: tuple, tangents: tuple) -> tuple[tuple[Theta, Array], tuple[Theta, Array]]:
        _, _, converged, *given = primals
        here = found(*primals)
        return here, moved(m, here[0], converged, tuple(given), tuple(tangents[3:]))

    free, value = found(free, fit.free_energy, converged, theta, data)
    return fit._replace(theta=theta | free, free_energy=value)


def moved(m: Model, free: Theta, converged: Bool[Array, ""], given: tuple, moves: tuple) -> tuple[Theta, Array]:
    """How θ* and F(θ*) move when what they were made from, (θ's held entries, the data), moves (eq:fixed)."""
    found, unravel = ravel_pytree(free)

    def step(u: Array, theta: Theta, data: Data) -> Array:
        """M(u) − u."""
        here = theta | unravel(u)
        new = maximize(m, m.expect(here, data), here, data)
        return ravel_pytree({name: new[name] for name in free})[0] - u

    def free_energy(u: Array, theta: Theta, data: Data) -> Array:
        return m.expect(theta | unravel(u), data).free_energy

    u, regular = polished(lambda u: step(u, *lax.stop_gradient(given)), lax.stop_gradient(found))
    u = found + lax.stop_gradient(u - found)  # which knows how `found` depends on what is given, for second derivatives
    valid = jnp.where(converged & regular, 1, jnp.nan).astype(u.dtype)
    solve = inverse(lambda u: step(u, *given), u)

    def along(f: Callable[..., Array]) -> Array:
        return jax.jvp(lambda *given: f(u, *given), given, moves)[1]

    of_start = ravel_pytree({name: moves[0][name] for name in free})[0]
    u_dot = valid * (solve(along(step)) + 0 * of_start)
    # F is stationary in θ along the model: what is left is its own derivative (the envelope theorem)
    value_dot = jnp.where(converged, 1, jnp.nan).astype(u.dtype) * along(free_energy)
    return unravel(u_dot), value_dot


def polished(step: Callable[[Array], Array], u: Float[Array, " P"]) -> tuple[Float[Array, " P"], Bool[Array, ""]]:
    """(u some Newton steps nearer to where `step` vanishes, is that a regular point?); u itself where it is not."""
    solve = inverse(step, u)
    at, left = u, step(u)
    first = jnp.linalg.norm(left)
    for _ in range(POLISHING):
        at = at + solve(left)
        left = step(at)
    last, rounding = jnp.linalg.norm(left), jnp.finfo(u.dtype).eps ** 0.75 * jnp.linalg.norm(u)
    regular = jnp.all(jnp.isfinite(at)) & ((CONTRACTS * last <= first) | (last <= rounding))
    # a direction with a part along every other: where I − J is singular, its solution is as long as rounding allows
    probe = 1 + jnp.cos(jnp.arange(u.size, dtype=u.dtype))
    longest = jnp.finfo(u.dtype).eps ** -0.75 * jnp.linalg.norm(probe)
    regular = regular & (jnp.linalg.norm(solve(probe)) <= longest)
    return jnp.where(regular, at, u), regular


def inverse(step: Callable[[Array], Array], u: Float[Array, " P"]) -> Inverse:
    """b ↦ (I − J)⁻¹ b at u, where `step` has the derivative J − I; linear, and transposable."""

    def applied(v: Array) -> Array:
        return -jax.jvp(step, (u,), (v,))[1]

    if u.size > DENSE:
        precise = float(jnp.finfo(u.dtype).eps) ** 0.85
        return lambda b: jax.scipy.sparse.linalg.gmres(
            applied, b, tol=precise, restart=KRYLOV, maxiter=20, solve_method="incremental"
        )[0]
    matrix = lax.map(applied, jnp.eye(u.size, dtype=u.dtype)).T
    return lambda b: jnp.linalg.solve(matrix, b)
