"""To a fixed point of EM in the means, π and σ held, by Newton's method kept uphill.

    μ ← μ + (I − J)⁻¹ (M(μ) − μ),      J = ∂M/∂μ,

taken where it raises the likelihood at least as much as EM's own step; EM alone crawls near a split, where ρ(J) → 1.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.model import Data, Theta
from jaxem._core.objective import assign
from jaxem.families.gaussian import isotropic


def em_map(theta: Theta, data: Data, mu: Array) -> tuple[Array, Array, Array]:
    """M(μ), N_k, and L(μ)."""
    here = theta | {"mu": mu}
    gamma, rows = assign(isotropic.table(here, data.x), 1.0, axis=0)
    w = jnp.ones_like(rows) if data.weights is None else data.weights
    sums = isotropic.statistics(here, data.x, gamma * w[None])
    return isotropic.update(sums, here, frozenset({"pi", "sigma"}))["mu"], sums.N_k, w @ rows


def likelihood(theta: Theta, data: Data, mu: Array) -> Array:
    """L(μ)."""
    return em_map(theta, data, mu)[2]


def jacobian(theta: Theta, data: Data, mu: Array) -> Float[Array, "P P"]:
    """J = ∂M/∂μ, of P = K·D."""
    return jax.jacfwd(lambda flat: em_map(theta, data, flat.reshape(mu.shape))[0].ravel())(mu.ravel())


def allowed(data: Data, sigma: Array, tol: Array) -> Array:
    """How small a step of EM must be: tol·σ, or the rounding of a mean."""
    return jnp.maximum(tol * sigma, 64 * jnp.finfo(sigma.dtype).eps * jnp.max(jnp.abs(data.x)))


def fixed_point(theta: Theta, data: Data, mu: Array, tol: Array, max_steps: Array) -> tuple[Array, Array, Array]:
    """From μ to a fixed point uphill; iterations; and the length of EM's step there."""
    limit = allowed(data, theta["sigma"], tol)

    def length(step: Array) -> Array:
        return jnp.sqrt(jnp.max(jnp.sum(step**2, axis=1)))

    def improve(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mu, count, _ = carry
        moved, _, _ = em_map(theta, data, mu)
        matrix = jnp.eye(mu.size, dtype=mu.dtype) - jacobian(theta, data, mu)
        newton = mu + jnp.linalg.solve(matrix, (moved - mu).ravel()).reshape(mu.shape)
        newton = jnp.where(jnp.all(jnp.isfinite(newton)), newton, moved)
        after_em, after_newton = em_map(theta, data, moved), em_map(theta, data, newton)
        rounding = 8 * jnp.finfo(mu.dtype).eps * jnp.abs(after_em[2])
        nearer = length(after_newton[0] - newton) < length(after_em[0] - moved)
        better = nearer & (after_newton[2] >= after_em[2] - rounding)
        new = jnp.where(better, newton, moved)
        return new, count + 1, jnp.where(better, length(after_newton[0] - newton), length(after_em[0] - moved))

    def goes_on(carry: tuple[Array, Array, Array]) -> Array:
        _, count, residual = carry
        return (residual > limit) & (count < max_steps)

    start = length(em_map(theta, data, mu)[0] - mu)
    return lax.while_loop(goes_on, improve, (mu, jnp.zeros((), jnp.int32), start))
