"""The one objective, as pure functions of the table ℓ_nk = log p(x_n, z_n = k | θ).

    F_T(θ, γ) = Σ_nk γ_nk ℓ_nk(θ) − T Σ_nk γ_nk log γ_nk                     (eq:F)

At fixed θ it is maximal at γ = softmax_k(ℓ_nk / T), one-hot as T → 0        (eq:E)
and its value there is T Σ_n log Σ_k exp(ℓ_nk / T), Σ_n max_k ℓ_nk at T = 0  (eq:bound)

Public tables are (N, K). Kernels hold them component-major, (K, N), so every function takes the component
axis as `axis`. Temperature is data: one compiled program serves T = 1, an annealing schedule and T = 0.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.arrays import non_negative, numbers, scalar


def free_energy(
    log_joint: Float[Array, "N K"],
    gamma: Float[Array, "N K"],
    temperature: ArrayLike = 1.0,
    *,
    weights: Float[Array, " N"] | None = None,
) -> Float[Array, ""]:
    """The free energy of any assignment (eq:F), in nats.

        F_T(θ, γ) = Σ_n w_n [Σ_k γ_nk ℓ_nk − T Σ_k γ_nk log γ_nk],   with 0·log 0 = 0 and 0·(−∞) = 0.

    Its maximum over γ is `log_likelihood` at T = 1 (Neal & Hinton 1998).

    Args:
        log_joint: ℓ, from `jaxem.log_joint`; entries may be −∞.
        gamma: γ, non-negative, rows summing to one.
        temperature: T ≥ 0.
        weights: w, one per row; all 1 when absent.

    >>> import jax.numpy as jnp, jaxem
    >>> table = jnp.log(jnp.array([[0.2, 0.6]]))              # p(x, z = 0), p(x, z = 1)
    >>> posterior = jnp.array([[0.25, 0.75]])
    >>> bool(jnp.allclose(jaxem.free_energy(table, posterior), jnp.log(0.8)))     # log p(x)
    True
    """
    log_joint, gamma, temperature = prepare_tables(log_joint, gamma, temperature)
    rows = row_free_energy(log_joint, gamma, temperature, axis=-1)
    if weights is None:
        return jnp.sum(rows)
    weights = numbers("weights", weights, rows.dtype)
    if weights.shape != rows.shape:
        raise ValueError(f"weights: must have shape {rows.shape}, one per row of log_joint, got {weights.shape}")
    non_negative("weights", weights, "drop rows by giving them weight 0")
    return jnp.sum(weighted(rows, weights))


def prepare_tables(log_joint: Any, gamma: Any, temperature: Any) -> tuple[Array, Array, Array]:
    """ℓ and γ of one shape, and T: floating, in the precision of the finest table."""
    log_joint, gamma = numbers("log_joint", log_joint), numbers("gamma", gamma)
    if log_joint.shape != gamma.shape or gamma.ndim < 1:
        raise ValueError(f"gamma: must have the shape of log_joint, {log_joint.shape}, got {gamma.shape}")
    non_negative("gamma", gamma, "each row is a distribution over components")
    dtype = jnp.result_type(log_joint, gamma, float)
    return log_joint.astype(dtype), gamma.astype(dtype), scalar("temperature", temperature, dtype, "use 1 for EM")


def row_free_energy(log_joint: Array, gamma: Array, temperature: ArrayLike, axis: int) -> Array:
    """The N terms of eq:F, one per row of the data."""
    expected = jnp.where((gamma == 0) & jnp.isneginf(log_joint), 0, log_joint)  # 0·(−∞) = 0
    positive = gamma > 0
    gamma_log_gamma = jnp.where(positive, gamma * jnp.log(jnp.where(positive, gamma, 1)), 0)  # 0·log 0 = 0
    return jnp.sum(gamma * expected - temperature * gamma_log_gamma, axis=axis)  # eq:F


def weighted(rows: Array, weights: Array | None) -> Array:
    """w_n · row_n, a row of weight zero counting for nothing even where it is infinite."""
    if weights is None:
        return rows
    return jnp.where(weights == 0, 0, weights * jnp.where(weights == 0, 0, rows))  # NaN in, NaN out


def product(gamma: Array, table: Array) -> Array:
    """γ ℓ, with 0·(−∞) = 0."""
    return jnp.where(gamma == 0, 0, gamma * jnp.where(gamma == 0, 0, table))


def assign(log_joint: Array, temperature: ArrayLike, axis: int) -> tuple[Array, Array]:
    """The E-step: the maximiser γ of eq:F and the N terms of its maximum (eq:E, eq:bound).

    One `lax.cond` on T chooses soft or hard. A row whose every ℓ is −∞ gets γ = 1/K (T = 0: its first
    component) and the value −∞.
    """
    temperature = jnp.asarray(temperature, log_joint.dtype)
    soft, hard = partial(assign_soft, temperature=temperature, axis=axis), partial(assign_one_hot, axis=axis)
    return lax.cond(temperature == 0, hard, soft, log_joint)  # NaN in, NaN out


def assign_soft(log_joint: Array, temperature: Array, axis: int) -> tuple[Array, Array]:
    """γ = softmax(ℓ / T) and T log Σ_k e^{ℓ/T}, for T > 0."""
    t = jnp.where(temperature == 0, 1, temperature)  # under vmap both branches run: stay finite at T = 0
    peak = lax.stop_gradient(jnp.max(log_joint, axis=axis, keepdims=True))
    possible = jnp.isfinite(peak)
    # eq:E, from differences to the row's peak: no overflow, and exactly 0 where e^{…} underflows
    relative = jnp.exp(jnp.where(possible, log_joint - peak, 0) * (1 / t))
    total = jnp.sum(relative, axis=axis, keepdims=True)
    gamma = relative * jnp.where(jnp.isnan(peak), jnp.nan, 1 / total)  # NaN in, NaN out
    rows = peak + t * jnp.where(possible, log(total), 0)  # eq:bound
    return gamma, jnp.squeeze(rows, axis)


@jax.custom_jvp
def log(z: Array) -> Array:
    """log z for z ≥ 1 of single precision's range: in double precision a Newton step from single's, twice as fast.

    log z = y + log(1 + r),  r = z e^{−y} − 1 ≈ 1e-7
    """
    if z.dtype != jnp.float64:
        return jnp.log(z)
    y = jnp.log(z.astype(jnp.float32)).astype(z.dtype)
    r = z * jnp.exp(-y) - 1
    return y + r * (1 - r / 2)


log.defjvps(lambda tangent, value, z: tangent / z)


def assign_one_hot(log_joint: Array, axis: int) -> tuple[Array, Array]:
    """`assign` at T = 0."""
    winner, rows = assign_hard(log_joint, axis)
    return jax.nn.one_hot(winner, log_joint.shape[axis], dtype=log_joint.dtype, axis=axis), rows


def assign_hard(log_joint: Array, axis: int) -> tuple[Array, Array]:
    """argmax_k ℓ, the lowest index at ties, and max_k ℓ: eq:E and eq:bound at T = 0.

    Found by comparing with the maximum, which compiles to vector instructions where an argmax does not. The table
    must be in memory: computed twice, it might differ from its own maximum. A row with a NaN gets index K.
    """
    log_joint = lax.optimization_barrier(log_joint)
    rows = jnp.max(log_joint, axis=axis, keepdims=True)
    component = lax.broadcasted_iota(jnp.int32, log_joint.shape, axis % log_joint.ndim)
    winner = jnp.min(jnp.where(log_joint == rows, component, log_joint.shape[axis]), axis=axis)
    return winner, jnp.squeeze(rows, axis)
