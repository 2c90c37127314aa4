"""C21: a bound of EM's rate from K² numbers, without its Jacobian.

For `isotropic` with π and σ held, at a fixed point μ with N_k > 0 and s_nk = ‖x_n − μ_k‖, EM's Jacobian has blocks

    J_kj = (1/σ²N_k) Σ_n w_n γ_nk (δ_kj − γ_nj)(x_n − M_k)(x_n − μ_j)ᵀ,      ‖J_kj‖ ≤ B_kj,
    B_kj = (1/σ²N_k) Σ_n w_n γ_nk |δ_kj − γ_nj| ‖x_n − M_k‖ s_nj

so ρ(J) ≤ ρ(B) ≤ the largest row sum of B, and ρ(B), by Collatz and Wielandt, ≤ max_k (Bv)_k/v_k for every v > 0. Along
fixed points that tend to a tie-free point of Lloyd's, B = O(e^{−Δ/2σ²}/σ²): the rate vanishes, and EM's speed grows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign
from jaxem.families.gaussian import isotropic, squared_distances
from jaxem.limits._lindsay import isotropic_only

POWERS = 64  # steps towards Perron's vector


def rate_matrix(m: Model, theta: ThetaLike, x: Any, *, weights: Any = None) -> Float[Array, "K K"]:
    """B of C21, with its rounding: ‖∂M_k/∂μ_j‖ ≤ B_kj for EM's map M at any μ, π and σ held.

    Its row sums bound max_k ‖M_k(μ + h) − M_k(μ)‖/max_j ‖h_j‖ for small h, its Perron root (`limits.rate_bound`) the
    rate of convergence at a fixed point. A row of an empty component, which stays where it is, is 0 but for a 1 on the
    diagonal.

    Args:
        m: `gaussian.isotropic`; the statement is about π and σ held, whatever it holds.
        theta: pi, mu, sigma.
        x: the data, (N, D), or (N,) for D = 1.
        weights: w (N,) ≥ 0.

    >>> import jax.numpy as jnp, jaxem
    >>> theta = {"pi": [1.0], "mu": [[0.5]], "sigma": 1.0}
    >>> jaxem.limits.rate_matrix(jaxem.families.gaussian.isotropic, theta, jnp.array([0.0, 1.0])).tolist()
    [[0.0]]
    """
    isotropic_only("rate_matrix", m)
    theta, data = enter(m, theta, x, weights)
    matrix = _rate_matrix(theta, data)
    blame_x(data.x, matrix)
    return matrix


def rate_bound(m: Model, theta: ThetaLike, x: Any, *, weights: Any = None) -> Float[Array, ""]:
    """A bound of the rate at which EM converges near a fixed point θ, for π and σ held (C21).

        ρ(∂M/∂μ) ≤ ρ(B),    B_kj = (1/σ²N_k) Σ_n w_n γ_nk |δ_kj − γ_nj| ‖x_n − μ_k‖ ‖x_n − μ_j‖

    In O(N·K²), no Jacobian and no eigenvalue of it: the Perron root of the K × K matrix `limits.rate_matrix`, bounded
    from above by Collatz & Wielandt. Never larger than its largest row sum. Where it is below 1, EM converges to θ from
    near by, each step leaving at most that share of the error in the long run. It may exceed 1 where EM converges.

    Rounding allowance: 4(N + K)·eps relative, with 1 − γ_nk as Σ_{j≠k} γ_nj. At a θ that is no fixed point it bounds
    the spectral radius of the map's derivative there. Works inside `jit` and `vmap`, e.g. over σ.

    Args:
        m: `gaussian.isotropic`.
        theta: a fixed point of EM with π and σ held: pi, mu, sigma.
        x: the data, (N, D), or (N,) for D = 1.
        weights: w (N,) ≥ 0.

    Raises:
        ValueError: for another family, or shapes or concrete values that make no sense.

    Source: Ma, Xu & Jordan (Neural Comput. 12, 2000) have the asymptotics.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> m = gaussian.isotropic.hold("pi", "sigma")
    >>> fit = jaxem.em(m, {"pi": [0.5, 0.5], "mu": [[-0.5], [0.5]], "sigma": 0.4}, x)
    >>> bool(jaxem.convergence_rate(m, fit.theta, x).spectral_radius <= jaxem.limits.rate_bound(m, fit.theta, x) < 0.1)
    True
    """
    return perron_bound(rate_matrix(m, theta, x, weights=weights))


@jax.jit
def _rate_matrix(theta: Theta, data: Data) -> Float[Array, "K K"]:
    x, mu, sigma = data.x, theta["mu"], theta["sigma"]
    K, N = mu.shape[0], x.shape[0]
    gamma, _ = assign(isotropic.table(theta, x), 1.0, axis=0)
    w = jnp.ones_like(x[:, 0]) if data.weights is None else data.weights
    counted = gamma * w[None]
    N_k = jnp.sum(counted, axis=1)
    moved = isotropic.update(isotropic.statistics(theta, x, counted), theta, frozenset({"pi", "sigma"}))["mu"]
    s, t = jnp.sqrt(squared_distances(x, mu)), jnp.sqrt(squared_distances(x, moved))
    diagonal = jnp.eye(K, dtype=bool)
    between = (counted * t) @ (gamma * s).T
    others = jnp.where(diagonal[:, :, None], 0, gamma[None])  # [k, j, n]: γ_nj but for j = k
    within = jnp.sum(counted * jnp.sum(others, axis=1) * t * s, axis=1)
    sums = jnp.where(diagonal, within[:, None], between)
    occupied = N_k > 0
    B = sums / (sigma**2 * jnp.where(occupied, N_k, 1))[:, None] * (1 + 4 * (N + K) * jnp.finfo(x.dtype).eps)
    return jnp.where(occupied[:, None], B, diagonal.astype(B.dtype))


@jax.jit
def perron_bound(B: Float[Array, "K K"]) -> Float[Array, ""]:
    """max_k (Bv)_k/v_k at a v > 0 near Perron's vector: at least the spectral radius of a matrix B ≥ 0.

    Args:
        B: a matrix without negative entries, as `rate_matrix` gives.
    """
    scale = jnp.max(jnp.sum(B, axis=1))
    eps = jnp.finfo(B.dtype).eps

    def power(v: Array, _: None) -> tuple[Array, None]:
        v = v + B @ v / jnp.where(scale > 0, scale, 1)  # I + B: no oscillation
        return jnp.maximum(v / jnp.max(v), eps), None

    v, _ = lax.scan(power, jnp.ones_like(B[0]), length=POWERS)
    return jnp.minimum(jnp.max((B @ v) / v), scale) * (1 + 4 * B.shape[0] * eps)
