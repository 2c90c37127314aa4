"""Following EM's fixed point as σ falls or rises: branches, where they lose their stability, and what comes after.

At each σ the branch is continued from the last by EM with Newton's method on μ = M(μ),

    μ ← μ + (I − J)⁻¹ (M(μ) − μ),      J = ∂M/∂μ,

taken where it raises the likelihood at least as much as EM's own step; EM alone crawls near a split, where ρ(J) → 1.
J is self-adjoint in the metric N_k, so its spectrum is that of a symmetric matrix. Where ρ(J) > 1 the fixed point is
no maximum, a symmetric one say: it is left along the leading eigenvector (C13, C20: at μ_k = x̄ the first principal
axis; at a cluster's own σ_c that cluster's, Rose 1998), as far as raises the likelihood most, and again while where it
leads is unstable, at most K times; the new branch is followed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxem._core.arrays import non_negative, numbers, shown, steps, tolerance
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign
from jaxem._core.tracing import is_concrete
from jaxem._fit.loop import Status
from jaxem.families.gaussian import isotropic, squared_distances
from jaxem.limits._lindsay import isotropic_only

STRETCHES = 32  # lengths tried along an unstable direction, each way
APART = 1e-4  # in units of σ: nearer centres count as one


class Branches(NamedTuple):
    """One fixed point of EM for each σ, in the order given: leading axis S."""

    sigma: Float[Array, " S"]
    theta: Theta
    free_energy: Float[Array, " S"]  # L, nats
    spectral_radius: Float[Array, " S"]  # ρ(J) there, π and σ held: EM's rate; above 1 no maximum
    num_centres: Int[Array, " S"]  # that are distinct
    moved: Float[Array, " S"]  # how far a centre moved since the σ before: a jump stands out
    num_steps: Int[Array, " S"]
    status: Int[Array, " S"]  # a Status


def anneal(
    m: Model,
    theta: ThetaLike,
    x: Any,
    sigmas: Any,
    *,
    weights: Any = None,
    tol: float = 1e-10,
    max_steps: int = 500,
) -> Branches:
    """Deterministic annealing, followed: EM's fixed point at every σ of a list, from each to the next.

    Downwards, centres that coincide stay so until their common point is unstable (σ² < λ_max of what they share), and
    then split along its leading direction. Pass the σ's down and up again, `jnp.concatenate([down, down[::-1]])`, to
    see hysteresis: a branch that jumped on the way down comes back elsewhere. Each fixed point is a local maximum where
    its spectral radius is below 1; how far it can be from the best of all is for `jaxem.global_gap` to say. By C14 it
    is annealing in T, too, T·s² being σ². Works inside `jit` and `vmap`. Costs K·D passes an iteration.

    Args:
        m: `gaussian.isotropic`; π and σ are held whatever it says.
        theta: where to start, at sigmas[0]; its own sigma is not looked at.
        x: the data, (N, D), or (N,) for D = 1.
        sigmas: (S,), all > 0, in the order of the walk.
        weights: w (N,) ≥ 0.
        tol: a fixed point is found when EM's step is at most tol·σ, or rounding.
        max_steps: most iterations at a σ, of EM and Newton, on all branches tried there. Where none is left with which
            to leave an unstable point, the status is MAX_STEPS.

    Returns:
        `Branches`.

    Raises:
        ValueError: for another family, or sigmas that are not a list of positive numbers.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([-1.0, -1.0, 1.0, 1.0])                               # σ_c = 1
    >>> theta = {"pi": [0.5, 0.5], "mu": [[0.1], [-0.2]], "sigma": 1.0}
    >>> walk = jaxem.anneal(jaxem.families.gaussian.isotropic, theta, x, [1.3, 1.1, 0.9, 0.6])
    >>> walk.num_centres.tolist(), bool(jnp.all(walk.spectral_radius < 1))
    ([1, 1, 2, 2], True)
    """
    isotropic_only("anneal", m)
    theta, data = enter(m, theta, x, weights)
    sigmas = numbers("sigmas", sigmas, data.temperature.dtype)
    if sigmas.ndim != 1 or not sigmas.size:
        raise ValueError(f"sigmas: must be (S,) with S ≥ 1, got shape {sigmas.shape}; one σ after another")
    non_negative("sigmas", sigmas, "standard deviations")
    if is_concrete(sigmas) and not np.asarray(sigmas > 0).all():
        raise ValueError(f"sigmas: must be > 0, got {shown(sigmas)}; k-means (jaxem.kmeans) is the limit at 0")
    limit = jnp.asarray(tolerance(tol, sigmas.dtype))
    walk = _anneal(theta, data, sigmas, limit, jnp.asarray(steps("max_steps", max_steps)))
    blame_x(data.x, walk.free_energy)
    return walk


@jax.jit
def _anneal(theta: Theta, data: Data, sigmas: Array, tol: Array, max_steps: Array) -> Branches:
    def at(mu: Array, sigma: Array) -> tuple[Array, Branches]:
        here = theta | {"sigma": sigma}
        found, count, residual = fixed_point(here, data, mu, tol, max_steps)
        radius, direction = spectrum(here, data, found)

        def is_saddle(radius: Array) -> Array:
            return radius > 1 + 1e3 * jnp.finfo(radius.dtype).eps

        def unstable(carry: tuple[Array, ...]) -> Array:
            _, count, _, radius, _, left = carry
            return is_saddle(radius) & (left < mu.shape[0]) & (count < max_steps)

        def leave(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            mu, count, _, _, direction, left = carry
            start = stretched(here, data, mu, direction)
            end, more, residual = fixed_point(here, data, start, tol, max_steps - count)
            return end, count + more, residual, *spectrum(here, data, end), left + 1

        first: tuple[Array, ...] = (found, count, residual, radius, direction, jnp.zeros((), jnp.int32))
        end, count, residual, radius, _, _ = lax.while_loop(unstable, leave, first)
        rests = (residual <= allowed(data, sigma, tol)) & ~(is_saddle(radius) & (count >= max_steps))
        status = jnp.where(rests, Status.CONVERGED, Status.MAX_STEPS)
        status = jnp.where(jnp.all(jnp.isfinite(end)), status, Status.NONFINITE).astype(jnp.int32)
        moved = jnp.sqrt(jnp.max(jnp.sum((end - mu) ** 2, axis=1)))
        num = num_distinct(end, sigma)
        return end, Branches(sigma, here | {"mu": end}, likelihood(here, data, end), radius, num, moved, count, status)

    return lax.scan(at, theta["mu"], sigmas)[1]


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


def spectrum(theta: Theta, data: Data, mu: Array) -> tuple[Array, Float[Array, "K D"]]:
    """The largest eigenvalue of J and its direction, the largest step in it of length 1.

    Where m ≥ 3 centres coincide it has m − 1 directions: of their mixtures that one which is nearest to a fixed pattern
    that moves each centre by another length, so that it is not rounding, nor the machine, that divides them.
    """
    N_k = em_map(theta, data, mu)[1]
    root = jnp.repeat(jnp.sqrt(jnp.maximum(N_k, jnp.finfo(N_k.dtype).tiny)), mu.shape[1])
    J = root[:, None] * jacobian(theta, data, mu) / root[None]
    J = jnp.where(jnp.isfinite(J), (J + J.T) / 2, 0)
    values, vectors = jnp.linalg.eigh(J)
    pattern = jnp.cos(1 + jnp.arange(mu.size, dtype=mu.dtype)) * root
    leading = values >= values[-1] - jnp.sqrt(jnp.finfo(mu.dtype).eps) * jnp.abs(values[-1])
    direction = vectors @ jnp.where(leading, vectors.T @ pattern, 0)
    direction = jnp.where(jnp.any(direction != 0), direction, vectors[:, -1])
    direction = (direction / root).reshape(mu.shape)
    return values[-1], direction / jnp.sqrt(jnp.max(jnp.sum(direction**2, axis=1)))


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


def stretched(theta: Theta, data: Data, mu: Array, direction: Array) -> Array:
    """μ + a·direction at the a, of either sign, that raises L most."""
    reach = jnp.sqrt(jnp.max(squared_distances(data.x, jnp.mean(mu, axis=0)[None])))
    lengths = reach * jnp.geomspace(1e-4, 1.0, STRETCHES, dtype=mu.dtype)
    lengths = jnp.concatenate([-lengths, lengths])
    values = lax.map(lambda a: likelihood(theta, data, mu + a * direction), lengths)
    return mu + lengths[jnp.argmax(values)] * direction


def num_distinct(mu: Array, sigma: Array) -> Int[Array, ""]:
    """How many centres have none before them within a ten-thousandth of σ."""
    near = squared_distances(mu, mu) < (APART * sigma) ** 2
    before = jnp.tril(near, -1)
    return jnp.sum(~jnp.any(before, axis=1)).astype(jnp.int32)
