"""The derivative of a fit, in both modes: that of the fixed point, not of the road to it.

    θ* = M(θ*; φ)   ⇒   ∂θ*/∂φ = (I − J)⁻¹ ∂M/∂φ,   J = ∂M/∂θ                               (eq:fixed)

φ is whatever M depends on: the rows, their weights, the temperature, the held entries of θ, a program's arguments. In
θ's own coordinates no direction is lost: what J maps to is tangent to where M's values lie (a simplex, symmetric
matrices), so that a v = Jv is one of the model's own. The loop is never differentiated, so that memory does not grow
with its steps; and since it stops a little before θ*, the formula is taken some Newton steps further.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Data, Model, Theta, maximize
from jaxem._fit.gradient import GradientAscent
from jaxem._fit.loop import Fit, Status
from jaxem.families._mixture import Mixture

DENSE = 64  # entries of θ up to which I − J is a matrix
POLISHING = 4  # Newton steps, all with the first J
EXACT_STEPS = 100  # at most, of a climb to the top
KRYLOV = 64  # directions of GMRES before it starts again
CONTRACTS = 8.0  # at a regular fixed point they shrink M(θ) − θ at least so much; at a singular one each halves it


def at_the_fixed_point(m: Model, theta: Theta, data: Data, fit: Fit) -> Fit:
    """The same fit, its θ and F with the derivatives of EM's fixed point in `theta`'s held entries and the data.

    NaN unless it converged, to a θ at which I − J is regular. In the start, `theta`'s free entries, they are 0.
    """
    fit = lax.stop_gradient(fit)
    m = to_the_top(m)
    free = {name: fit.theta[name] for name in theta if name not in m.held}

    @jax.custom_jvp
    def found(free: Theta, value: Array, converged: Array, theta: Theta, data: Data) -> tuple[Theta, Array]:
        return free, value

    @found.defjvp
    def derivative(primals: tuple, tangents: tuple) -> tuple[tuple[Theta, Array], tuple[Theta, Array]]:
        _, _, converged, *given = primals
        here = found(*primals)  # this function again: second derivatives know how it depends on what is given
        return here, moved(m, here[0], converged, tuple(given), tuple(tangents[3:]))

    free, value = found(free, fit.free_energy, fit.status == Status.CONVERGED, theta, data)
    return fit._replace(theta=theta | free, free_energy=value)


def to_the_top(m: Model) -> Model:
    """The same model, of whose gradient M-step the maximiser is taken: an optimiser's steps have another derivative."""
    if isinstance(m, Mixture):
        climb = m.extras.maximizer
        if isinstance(climb, GradientAscent) and climb.optimizer is not None:
            return m.but(maximizer=GradientAscent(None, EXACT_STEPS))
    return m


def moved(m: Model, free: Theta, converged: Bool[Array, ""], given: tuple, moves: tuple) -> tuple[Theta, Array]:
    """How θ* and F(θ*) move when what they were made from, (θ's held entries, the data), moves (eq:fixed)."""
    names = tuple(free)
    u, unravel = ravel_pytree(free)
    if u.size:
        u, regular, matrix = at_rest(m, names, u, *given)

    def along(f: Callable[..., Array]) -> Array:
        return jax.jvp(lambda *given: f(m, names, u, *given), given, moves)[1]

    # F is stationary in θ along the model: what is left is its own derivative (the envelope theorem)
    value_dot = spoiled(jnp.where(converged, 1, jnp.nan).astype(given[1].temperature.dtype), along(free_energy))
    if not u.size:
        return {}, value_dot
    of_start = ravel_pytree({name: moves[0][name] for name in names})[0]
    valid = jnp.where(converged & regular, 1, jnp.nan).astype(u.dtype)
    if matrix is not None:
        matrix = jnp.where(converged & regular, matrix, jnp.eye(u.size, dtype=u.dtype))
    solve = solver(lambda u: step(m, names, u, *given), u, matrix)
    return unravel(spoiled(valid, solve(spoiled(valid, along(step) + 0 * of_start)))), value_dot


def spoiled(valid: Array, b: Array) -> Array:
    """valid·b, valid being 1 or NaN; of cotangents 0 stays 0, so that a lane that nobody chose spoils nothing."""
    return lax.custom_linear_solve(
        lambda v: v / valid, b, lambda _, b: valid * b, lambda _, b: jnp.where(b == 0, 0, valid * b)
    )


def with_free(names: tuple[str, ...], u: Float[Array, " P"], theta: Theta) -> Theta:
    """θ, of which these entries are u."""
    return theta | ravel_pytree({name: theta[name] for name in names})[1](u)


@partial(jax.jit, static_argnames="names")
def step(m: Model, names: tuple[str, ...], u: Float[Array, " P"], theta: Theta, data: Data) -> Float[Array, " P"]:
    """M(u) − u, u being these entries of θ."""
    here = with_free(names, u, theta)
    new = maximize(m, m.expect(here, data), here, data)
    return ravel_pytree({name: new[name] for name in names})[0] - u


@partial(jax.jit, static_argnames="names")
def free_energy(m: Model, names: tuple[str, ...], u: Float[Array, " P"], theta: Theta, data: Data) -> Array:
    """F_T there."""
    return m.expect(with_free(names, u, theta), data).free_energy


@partial(jax.jit, static_argnames="names")
def at_rest(
    m: Model, names: tuple[str, ...], found: Float[Array, " P"], theta: Theta, data: Data
) -> tuple[Float[Array, " P"], Bool[Array, ""], Float[Array, "P P"] | None]:
    """(the fixed point near `found`, is it regular?, I − J there, where that is made)."""
    start, *given = lax.stop_gradient((found, theta, data))

    def residual(u: Array) -> Array:
        return step(m, names, u, *given)

    solve = solver(residual, start, matrix_at(residual, start))
    u, left = start, residual(start)
    first = jnp.linalg.norm(left)
    for _ in range(POLISHING):
        u = u + solve(left)
        left = residual(u)
    last, rounding = jnp.linalg.norm(left), jnp.finfo(u.dtype).eps ** 0.75 * jnp.linalg.norm(u)
    regular = jnp.all(jnp.isfinite(u)) & ((CONTRACTS * last <= first) | (last <= rounding))
    u = found + lax.stop_gradient(jnp.where(regular, u - start, 0))
    matrix = matrix_at(lambda u: step(m, names, u, theta, data), u)
    here, fixed = lax.stop_gradient((u, matrix))
    probe = 1 + jnp.cos(jnp.arange(u.size, dtype=u.dtype))  # some of every direction: singular ones make it long
    longest = jnp.finfo(u.dtype).eps ** -0.75 * jnp.linalg.norm(probe)
    there = solver(residual, here, fixed)(probe)  # at rest: before, I − J is as singular as the fit is inexact
    off = jnp.linalg.norm(probe + jax.jvp(residual, (here,), (there,))[1])  # was it solved at all?
    regular = regular & (jnp.linalg.norm(there) <= longest) & (off <= 1e-2 * jnp.linalg.norm(probe))
    return u, regular, matrix


def matrix_at(step: Callable[[Array], Array], u: Float[Array, " P"]) -> Float[Array, "P P"] | None:
    """I − J at u, where `step` has the derivative J − I; None where it is too large."""
    if u.size > DENSE:
        return None
    return -lax.map(lambda v: jax.jvp(step, (u,), (v,))[1], jnp.eye(u.size, dtype=u.dtype)).T


def solver(step: Callable[[Array], Array], u: Float[Array, " P"], matrix: Array | None) -> Callable[[Array], Array]:
    """b ↦ (I − J)⁻¹ b at u; linear, and transposable."""
    if matrix is not None:
        return lambda b: jnp.linalg.solve(matrix, b)
    _, differential = jax.linearize(step, u)
    pulled = jax.linear_transpose(differential, u)

    def gmres(apply: Callable[[Array], Array], b: Array) -> Array:
        precise = float(jnp.finfo(u.dtype).eps) ** 0.85
        options = {"restart": KRYLOV, "maxiter": 20, "solve_method": "incremental"}
        found = jax.scipy.sparse.linalg.gmres(apply, b, tol=precise, **options)[0]
        return found + 0 * jnp.sum(b)  # NaN in, NaN out: GMRES would return its start

    return lambda b: lax.custom_linear_solve(
        lambda v: -differential(v), b, gmres, lambda _, b: gmres(lambda v: -pulled(v)[0], b)
    )
