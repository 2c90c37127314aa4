"""C18: a bound of k-means' global optimum that anyone can check again, from one symmetric matrix.

With q = √w, C_w = diag(q) ½‖x_i − x_j‖² diag(q), W = Σw, and any symmetric B ≥ 0 (entry by entry), every set of K
centres has

    J = Σ_n w_n min_k ‖x_n − μ_k‖²  ≥  qᵀ(C_w − B)q/W + the sum of the K − 1 least eigenvalues of C_w − B on q^⊥.

Proof. For a partition, Z = Σ_k q_k q_kᵀ/W_k is a projection of rank K with Zq = q and Z ≥ 0, and J = ⟨C_w, Z⟩ ≥ ⟨C_w
− B, Z⟩. Z = qqᵀ/W + Z', Z' a projection of rank K − 1 inside q^⊥: Ky Fan. Fewer clusters are no better, nor are other
centres than means. B = 0 gives total scatter minus the K − 1 largest eigenvalues (Zha et al. 2001; Ding & He 2004);
the best B gives Peng & Wei's semidefinite program (SIAM J. Optim. 18, 2007).

Of rows grouped into cells with means m_g, √J ≥ √J_cells − √W_c, W_c = Σ w ‖x − m_g‖² (the distance to a set is
1-Lipschitz; Minkowski): so a bound of the cells' problem, of any smaller size, is one of the rows'.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from jaxem._core.arrays import numbers, raw, static_count
from jaxem._core.checks import blame_x, rows_and_weights
from jaxem._core.tracing import is_concrete
from jaxem.families.gaussian import squared_distances


class Dual(NamedTuple):
    """The proof of a bound: B over cells of rows."""

    matrix: Float[Array, "M M"]  # B ≥ 0, symmetric
    cells: Int[Array, " N"]  # the cell of each row, 0 … M − 1


def lower_bound(x: Any, dual: Any, K: int, *, weights: Any = None) -> Float[Array, ""]:
    """A number that no K centres' distortion J is below (C18), from any dual point. In squared units of x.

        J ≥ qᵀ(C_w − B)q/W + Σ of the K − 1 least eigenvalues of C_w − B on q^⊥,    q = √w, W = Σw

    This is the whole proof: nothing of how B was found is trusted. Negative entries of B are cut off and B is made
    symmetric first; an allowance for rounding, eps·[K·N‖S‖ + K(D + 4)‖C_w‖ + Σ|S_ij|] with S = C_w − B, is subtracted.
    Costs one eigendecomposition of the size of B. Works inside `jit` and `vmap`.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        dual: B (N, N), or a `Dual` (B (M, M), cells (N,)), such as `jaxem.optimality_gap` returns. Zeros are a B too.
        K: how many centres.
        weights: w (N,) ≥ 0.

    Returns:
        The bound, ≥ 0.

    Raises:
        ValueError: for a dual of another size than x, or K < 1.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> bound = jaxem.limits.lower_bound(x, jnp.zeros((4, 4)), 2)           # the best J is 1
    >>> bool(0 <= bound <= 1)
    True
    """
    static_count("K", K, 1)
    x, w = rows_and_weights(x, weights)
    x, w = prepared(x, w)
    B, cells = prepare_dual(dual, x)
    bound = of_rows(x, w, B, int(K)) if cells is None else of_cells(x, w, B, cells, int(K))
    blame_x(x, bound)
    return bound


def prepared(x: Array, weights: Array | None) -> tuple[Array, Array]:
    """Rows in floating point, and their weights."""
    x = x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
    return x, jnp.ones_like(x[:, 0]) if weights is None else weights.astype(x.dtype)


def prepare_dual(dual: Any, x: Array) -> tuple[Array, Array | None]:
    """B and the cells of rows, if it is over cells."""
    matrix, cells = dual if isinstance(dual, tuple) else (dual, None)
    B = numbers("dual", matrix, x.dtype)
    if B.ndim != 2 or B.shape[0] != B.shape[1]:
        raise ValueError(f"dual: must be a square matrix, got shape {B.shape}; zeros (N, N) are a dual, too")
    if cells is None:
        if B.shape[0] != x.shape[0]:
            raise ValueError(
                f"dual: must be (N, N) with N = {x.shape[0]} rows as in x, got {B.shape}; or a limits.Dual"
            )
        return B, None
    cells = raw("dual.cells", cells)
    if cells.shape != x.shape[:1] or not jnp.issubdtype(cells.dtype, jnp.integer):
        raise ValueError(f"dual.cells: must be {x.shape[0]} integers, one per row of x, got shape {cells.shape}")
    if is_concrete(cells) and (np.min(np.asarray(cells)) < 0 or np.max(np.asarray(cells)) >= B.shape[0]):
        raise ValueError(f"dual.cells: must lie in 0 … {B.shape[0] - 1}, the rows of dual.matrix")
    return B, jnp.asarray(cells)


def cost(x: Array, q: Array) -> Float[Array, "N N"]:
    """C_w, squares by differences."""
    return squared_distances(x, x) / 2 * (q[:, None] * q[None])


@partial(jax.jit, static_argnames="K")
def of_rows(x: Array, weights: Array, B: Array, K: int) -> Float[Array, ""]:
    """The bound of C18 with its rounding subtracted, at least 0."""
    (N, D), eps, q = x.shape, jnp.finfo(x.dtype).eps, jnp.sqrt(weights)
    C = cost(x, q)
    S = C - jnp.maximum((B + B.T) / 2, 0)
    S = (S + S.T) / 2
    size = jnp.sqrt(jnp.sum(S**2))
    p = q / jnp.sqrt(jnp.sum(weights))
    along = p @ S @ p
    values = jnp.linalg.eigvalsh(compressed(S, p) + 2 * size * (p[:, None] * p[None]))  # q's own is the largest
    least = jnp.sum(values[: min(K, N) - 1])
    of_squares = jnp.sqrt(jnp.sum(C**2))
    allowance = eps * (K * N * size + K * (D + 4) * of_squares + jnp.sum(jnp.abs(S)))
    return jnp.maximum(along + least - allowance, 0)


def compressed(S: Array, p: Array) -> Array:
    """P S P with P = I − ppᵀ."""
    Sp = S @ p
    return S - p[:, None] * Sp[None] - Sp[:, None] * p[None] + (p @ Sp) * (p[:, None] * p[None])


@partial(jax.jit, static_argnames="K")
def of_cells(x: Array, weights: Array, B: Array, cells: Array, K: int) -> Float[Array, ""]:
    """(√J_cells − √W_c)₊²."""
    means, sizes, within = grouped(x, weights, cells, B.shape[0])
    within = within * (1 + 4 * (x.shape[0] + x.shape[1]) * jnp.finfo(x.dtype).eps)
    return jnp.maximum(jnp.sqrt(of_rows(means, sizes, B, K)) - jnp.sqrt(within), 0) ** 2


def grouped(x: Array, weights: Array, cells: Array, num_cells: int) -> tuple[Array, Array, Array]:
    """Means and weights of the cells, and the scatter W_c about those means; an empty cell weighs nothing."""
    sizes = jnp.zeros_like(weights, shape=num_cells).at[cells].add(weights)
    sums = jnp.zeros_like(x, shape=(num_cells, x.shape[1])).at[cells].add(weights[:, None] * (x - x[:1]))
    means = x[:1] + sums / jnp.where(sizes > 0, sizes, 1)[:, None]
    return means, sizes, jnp.sum(weights[:, None] * (x - means[cells]) ** 2)


def likelihood_ceiling(x: Any, lower_bound: ArrayLike, sigma: ArrayLike, *, weights: Any = None) -> Float[Array, ""]:
    """No mixture of K Gaussians N(μ_k, σ²I), whatever its π, has a larger log-likelihood (C18's corollary), in nats.

        L(θ) ≤ −(WD/2) log 2πσ² − J_lb/2σ²,

    because a mixture is at most its largest component. J_lb is `lower_bound` of the same x, K and weights.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        lower_bound: J_lb, no more than any J of K centres, in squared units of x.
        sigma: σ > 0, one for all.
        weights: w (N,) ≥ 0, or None: all 1.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> bound = jaxem.limits.lower_bound(x, jnp.zeros((4, 4)), 2)
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[0.5], [10.5]]), "sigma": 0.5}
    >>> L = jaxem.log_likelihood(jaxem.families.gaussian.isotropic, theta, x)
    >>> bool(L <= jaxem.limits.likelihood_ceiling(x, bound, 0.5))
    True
    """
    rows, w = rows_and_weights(x, weights)
    rows, w = prepared(rows, w)
    J, sigma = numbers("lower_bound", lower_bound, rows.dtype), numbers("sigma", sigma, rows.dtype)
    normaliser = -jnp.sum(w) * rows.shape[1] / 2 * jnp.log(2 * jnp.pi * sigma**2)
    nats = normaliser - J / (2 * sigma**2)
    return nats + 8 * jnp.finfo(rows.dtype).eps * (jnp.abs(normaliser) + J / (2 * sigma**2))
