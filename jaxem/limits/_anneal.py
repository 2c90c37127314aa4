"""Following EM's fixed point as σ falls or rises: branches, where they lose their stability, and what comes after.

At each σ the branch is continued from the last by EM with Newton's method on μ = M(μ) (`_fixed_point`); J = ∂M/∂μ is
self-adjoint in the metric N_k, so its spectrum is that of a symmetric matrix. Where ρ(J) > 1 the fixed point is
no maximum, a symmetric one say: it is left along the leading eigenvector (C13, C20: at μ_k = x̄ the first principal
axis; at a cluster's own σ_c that cluster's, Rose 1998), as far as raises the likelihood most, and again while where it
leads is unstable, at most K times; the new branch is followed. A branch is followed while it is stable, and that need
not be the best one any more: its rival is looked for where Lindsay's gradient is largest (C19, `_rival`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxem._core.arrays import non_negative, numbers, shown, steps, switch, tolerance
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete
from jaxem._fit.loop import Status
from jaxem.families.gaussian import squared_distances
from jaxem.limits._fixed_point import allowed, em_map, fixed_point, jacobian, likelihood
from jaxem.limits._lindsay import isotropic_only
from jaxem.limits._rival import rival

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
    rival: Float[Array, " S"]  # nats by which another fixed point is above it: 0 where none was found, NaN: not asked


def anneal(
    m: Model,
    theta: ThetaLike,
    x: Any,
    sigmas: Any,
    *,
    weights: Any = None,
    tol: float = 1e-10,
    max_steps: int = 500,
    rivals: bool = False,
) -> Branches:
    """Deterministic annealing, followed: EM's fixed point at every σ of a list, from each to the next.

    Downwards, centres that coincide stay so until their common point is unstable (σ² < λ_max of what they share), and
    then split along its leading direction. Pass the σ's down and up again, `jnp.concatenate([down, down[::-1]])`, to
    see hysteresis: a branch that jumped on the way down comes back elsewhere. Each fixed point is a local maximum where
    its spectral radius is below 1. The best of all may have jumped away from it before: `rivals` looks for a better one
    of as many centres where Lindsay's gradient is largest (C19), and the first σ at which `rival` is above 0 is where
    the best jumped, or after it; how far the best of any number of centres can be is for `jaxem.global_gap` to say. By
    C14 it is annealing in T, too, T·s² being σ². Works inside `jit` and `vmap`. Costs K·D passes an iteration; rivals
    K + 1 times as much.

    Args:
        m: `gaussian.isotropic`; π and σ are held whatever it says.
        theta: where to start, at sigmas[0]; its own sigma is not looked at.
        x: the data, (N, D), or (N,) for D = 1.
        sigmas: (S,), all > 0, in the order of the walk.
        weights: w (N,) ≥ 0.
        tol: a fixed point is found when EM's step is at most tol·σ, or rounding.
        max_steps: most iterations at a σ, of EM and Newton, on all branches tried there. Where none is left with which
            to leave an unstable point, the status is MAX_STEPS.
        rivals: look at every σ for a better fixed point. An estimate: that none is found proves nothing.

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
    most = jnp.asarray(steps("max_steps", max_steps))
    walk = _anneal(theta, data, sigmas, limit, most, rivals=switch("rivals", rivals))
    blame_x(data.x, walk.free_energy)
    return walk


@partial(jax.jit, static_argnames="rivals")
def _anneal(theta: Theta, data: Data, sigmas: Array, tol: Array, max_steps: Array, rivals: bool) -> Branches:
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
        above = rival(here, data, end, tol, max_steps) if rivals else jnp.full_like(sigma, jnp.nan)
        L = likelihood(here, data, end)
        return end, Branches(sigma, here | {"mu": end}, L, radius, num, moved, count, status, above)

    return lax.scan(at, theta["mu"], sigmas)[1]


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
