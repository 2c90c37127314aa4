"""Balanced EM (C23): EM whose components must each take a given share of the data, by optimal transport.

    F_OT(θ) = max {F_T(θ, γ): γ ≥ 0, Σ_k γ_nk = 1, Σ_n w_n γ_nk = W π_k}
            = min_v T Σ_n w_n log Σ_k e^{(ℓ_nk + v_k)/T} − W ⟨π, v⟩          ≤ F_T(θ),

with equality iff softmax(ℓ/T) has the shares π already. The maximum is unique; v is, up to a constant. Both sides are
certificates: any v bounds F_OT from above, any γ with the right shares from below, and the gap is printed. As T → 0 the
E-step becomes the linear program of k-means with prescribed cluster sizes: 0 ≤ F_OT + its cost ≤ T·W·H(π).

The E-step pins Σ_n w_n γ_nk, so π never moves: balanced EM cannot learn it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxem._core.arrays import steps, tolerance
from jaxem._core.checks import blame_x, enter, poisoned
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign_soft, row_free_energy
from jaxem._core.tracing import is_concrete
from jaxem._fit.loop import Status
from jaxem.families._mixture import Mixture, whole_rows_only

MOST = 300  # steps of one E-step, each the better of Newton's and Sinkhorn's
CLEAR = 64  # a share is met when it is off by no more than so many eps


class BalancedFit(NamedTuple):
    """The outcome of `balanced_em`; every field describes the same θ."""

    theta: Theta
    free_energy: Float[Array, ""]  # F_T(θ, γ) at a γ that has the shares: attained, in nats
    duality_gap: Float[Array, ""]  # F_OT(θ) is at most this much larger
    gain: Float[Array, ""]  # the last rise
    num_steps: Int[Array, ""]
    status: Int[Array, ""]  # a Status
    responsibilities: Float[Array, "N K"]  # that γ
    potentials: Float[Array, " K"]  # v


def balanced_em(
    m: Model,
    theta: ThetaLike,
    x: Any,
    *,
    temperature: ArrayLike = 1.0,
    weights: Any = None,
    tol: ArrayLike = 1e-10,
    max_steps: ArrayLike = 1000,
) -> BalancedFit:
    """EM under the constraint that component k takes the share π_k of the data (C23): ascent on F_OT.

    The E-step is entropic optimal transport of rows to components, the M-step that of the family, π held. Every fixed
    point of EM with π free is one of this too (it has the shares); not conversely. With a small temperature, equal π
    and `gaussian.isotropic` with σ held it is k-means with clusters of equal size. Stores the (N, K) table. Works
    inside `jit` and `vmap`.

    Args:
        m: a family of `jaxem.families`; pi is held whatever it says.
        theta: where to start; its pi, all of it > 0, are the shares.
        x: the data, (N, D), or (N,) for D = 1.
        temperature: T > 0. At 0 the E-step is a linear program; use a small T.
        weights: w (N,) ≥ 0; shares are of W = Σ w.
        tol: smallest gain worth a step, in nats per unit of weight.
        max_steps: most M-steps to do.

    Returns:
        A `BalancedFit`. Its duality gap certifies the E-step.

    Raises:
        ValueError: for a program, T = 0, or a share of 0.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4, 9.0])                        # five and one; but halves are asked for
    >>> theta = {"pi": [0.5, 0.5], "mu": [[0.0], [9.0]], "sigma": 1.0}
    >>> fit = jaxem.balanced_em(gaussian.isotropic.hold("sigma"), theta, x, temperature=0.01)
    >>> fit.responsibilities.sum(axis=0).round(3).tolist(), fit.responsibilities[:, 1].round(2).tolist()
    ([3.0, 3.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    """
    m = whole_rows_only("balanced_em", m)
    if m.extras.prior is not None:
        raise ValueError("m: has a prior, and balanced_em's duality gap knows none; use em, or leave the prior out")
    theta, data = enter(m, theta, x, weights, temperature)
    T, pi = data.temperature, theta["pi"]
    if is_concrete(T) and not np.asarray(T) > 0:
        raise ValueError("temperature: must be > 0, got 0, where the E-step is a linear program; use a small one")
    if is_concrete(pi) and not (np.asarray(pi) > 0).all():
        raise ValueError("theta['pi']: a share is 0, so nothing may be in that component; leave it out")
    data, theta = data._replace(temperature=poisoned(T, T > 0)), theta | {"pi": poisoned(pi, pi > 0)}
    run = partial(_run, m.hold("pi"), theta, data)
    fit = run(jnp.asarray(tolerance(tol, data.temperature.dtype)), jnp.asarray(steps("max_steps", max_steps)))
    blame_x(data.x, fit.free_energy)
    return fit


@jax.jit
def _run(m: Mixture, theta: Theta, data: Data, tol: Array, max_steps: Array) -> BalancedFit:
    x, T = data.x, data.temperature
    w = jnp.ones(x.shape[0], T.dtype) if data.weights is None else data.weights
    size = jnp.sum(w)

    def at(theta: Theta, v: Array, gain: Array, count: Array) -> BalancedFit:
        table = m.table(theta, x)
        gamma, v, above, below = transport(table, theta["pi"], w, T, v)
        status = jnp.where(jnp.isfinite(below), Status.MAX_STEPS, Status.NONFINITE).astype(jnp.int32)
        return BalancedFit(theta, below, jnp.maximum(above - below, 0), gain, count, status, gamma, v)

    def step(fit: BalancedFit) -> BalancedFit:
        new = m.update(m.statistics(fit.theta, x, fit.responsibilities * w[None]), fit.theta, m.held)
        after = at(new, fit.potentials, fit.gain, fit.num_steps + 1)
        gain = after.free_energy - fit.free_energy
        floor = 8 * jnp.finfo(T.dtype).eps * (jnp.abs(fit.free_energy) + size)
        limit = jnp.maximum(jnp.maximum(tol * size, floor), fit.duality_gap + after.duality_gap)
        status = jnp.where(jnp.abs(gain) <= limit, Status.CONVERGED, after.status)
        status = jnp.where(gain < -limit, Status.DECREASED, status).astype(jnp.int32)
        status = jnp.where(jnp.isfinite(after.free_energy), status, after.status)
        keeps = (status == Status.DECREASED) | (status == Status.NONFINITE)
        kept = jax.tree.map(lambda new, old: jnp.where(keeps, old, new), after._replace(gain=gain), fit)
        return kept._replace(status=status)

    start = at(theta, jnp.zeros_like(theta["pi"]), jnp.full_like(size, jnp.inf), jnp.zeros((), jnp.int32))
    end = lax.while_loop(lambda fit: (fit.status == Status.MAX_STEPS) & (fit.num_steps < max_steps), step, start)
    return end._replace(responsibilities=end.responsibilities.T)


def transport(
    table: Float[Array, "K N"], pi: Array, w: Array, T: Array, v: Array
) -> tuple[Float[Array, "K N"], Array, Array, Array]:
    """The balanced E-step from a v: γ with the shares π, v, and bounds of F_OT from above and below."""
    target = jnp.sum(w) * pi
    K, eps = len(pi), jnp.finfo(table.dtype).eps

    def dual(v: Array) -> tuple[Array, Array]:
        gamma, rows = assign_soft(table + v[:, None], T, axis=0)
        return gamma, w @ rows - target @ v

    def improve(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        v, gamma, _, count = carry
        counted = gamma * w[None]
        N_k = jnp.sum(counted, axis=1)
        least = jnp.finfo(N_k.dtype).tiny
        sinkhorn = v + T * (jnp.log(target) - jnp.log(jnp.maximum(N_k, least)))
        hessian = (jnp.diag(N_k) - counted @ gamma.T) / T
        ridge = jnp.mean(jnp.diagonal(hessian)) * jnp.ones((K, K), hessian.dtype) + eps * jnp.diag(target) / T
        newton = v + jnp.linalg.solve(hessian + ridge, target - N_k)
        newton = jnp.where(jnp.all(jnp.isfinite(newton)), newton, sinkhorn)
        tries = [(candidate, *dual(candidate)) for candidate in (sinkhorn, newton)]
        best = jax.tree.map(partial(jnp.where, tries[1][2] < tries[0][2]), tries[1], tries[0])
        return (*best, count + 1)

    def goes_on(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, gamma, _, count = carry
        return (jnp.max(jnp.abs(gamma @ w - target)) > CLEAR * eps * jnp.sum(w)) & (count < MOST)

    v, gamma, value, _ = lax.while_loop(goes_on, improve, (v, *dual(v), jnp.zeros((), jnp.int32)))
    gamma = with_shares(gamma, target, w)
    return gamma, v, value, jnp.sum(w * row_free_energy(table, gamma, T, axis=0))


def with_shares(gamma: Float[Array, "K N"], target: Array, w: Array) -> Float[Array, "K N"]:
    """The nearest at hand that has the shares: what is over is taken, and given where it is missing, in proportion."""
    N_k = gamma @ w
    cut = gamma * jnp.minimum(1, target / jnp.where(N_k > 0, N_k, 1))[:, None]
    row, column = jnp.maximum(1 - jnp.sum(cut, axis=0), 0), jnp.maximum(target - cut @ w, 0)
    missing = jnp.sum(column)
    return cut + (column / jnp.where(missing > 0, missing, 1))[:, None] * row[None]
