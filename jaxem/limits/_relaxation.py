"""How far k-means is from its global optimum (C18): a dual point of Peng & Wei's semidefinite program, by ADMM.

    least ⟨C_w, Z⟩  over  Z in F = {qqᵀ/W + Z': 0 ⪯ Z' ⪯ I on q^⊥, tr Z' = K − 1}  with  Z ≥ 0 entry by entry

    Z ← the projection of Y − U − C_w/ρ on F, over-relaxed,    Y ← max(Z + U, 0),    U ← min(Z + U, 0)

and B = −ρU ≥ 0 is a dual point after any number of rounds. The bound is valid for whatever B comes out, so projections
need not be exact: of large problems only the leading eigenvectors are followed, from round to round. The penalty is
ρ = 2.5 (W/K) · the mean of C: Z is of the size K/W, B of that of C.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._answers.quantities import distortion
from jaxem._core.arrays import count
from jaxem._core.checks import prepare_centres, rows_and_weights
from jaxem._fit.em import kmeans
from jaxem.families.gaussian import squared_distances
from jaxem.limits._kmeans_bound import Dual, compressed, cost, grouped, of_cells, of_rows, prepared

MOST_ROWS = 2000  # whose N × N matrices are worked with; more are grouped into cells
CELLS = 1000
PENALTY, RELAXATION = 2.5, 1.7
HALVINGS = 60  # of the threshold of a projection


class Gap(NamedTuple):
    """C18: between a k-means solution and the best there is, in squared units of x."""

    value: Float[Array, ""]  # J of the centres
    lower_bound: Float[Array, ""]  # no K centres have less
    dual: Array | Dual  # from which `jaxem.limits.lower_bound` proves it again

    @property
    def relative(self) -> Float[Array, ""]:
        """(J − bound)/J: the solution is proved to be within this share of the optimum; 0 for J = 0."""
        return (self.value - self.lower_bound) / jnp.where(self.value > 0, self.value, 1)


def optimality_gap(x: Any, mu: Any, *, weights: Any = None, num_steps: int = 500) -> Gap:
    """Prove how near k-means' centres are to the global optimum of J (C18).

    Whatever the solver does, `lower_bound` is a bound: it is recomputed from the dual point by
    `jaxem.limits.lower_bound`, with an allowance for rounding. How tight it is depends on the data (separated clusters:
    to 1e-6 and better; overlapping ones: the relaxation's own gap remains) and on `num_steps`. "Proved within the gap"
    says nothing about the partition's uniqueness.

    More than 2,000 rows are grouped into 1,000 cells, whose bound is one of the rows', less what the cells lose: it may
    be 0. Memory is a few (N, N) matrices, time num_steps·N²·50 operations.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: centres (K, D), e.g. of `jaxem.kmeans`.
        weights: w (N,) ≥ 0.
        num_steps: rounds of the solver, ≥ 0; 0 gives the spectral bound, B = 0.

    Returns:
        A `Gap`.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([[0.0], [1.0], [10.0], [11.0]])
    >>> gap = jaxem.optimality_gap(x, jnp.array([[0.5], [10.5]]), num_steps=100)
    >>> bool(gap.relative < 1e-3), bool(jaxem.limits.lower_bound(x, gap.dual, 2) == gap.lower_bound)
    (True, True)
    """
    count("num_steps", num_steps, 0)
    x, w = rows_and_weights(x, weights)
    mu = prepare_centres("mu", mu, x)
    value, K = distortion(x, mu, w), mu.shape[0]
    x, w = prepared(x, w)
    N = x.shape[0]
    if N <= MOST_ROWS:
        B, bound = _best_dual(x, w, mu, num_steps)
        return Gap(value, bound, B)
    cells = _cells(x, w)
    means, sizes, _ = grouped(x, w, cells, CELLS)
    B, _ = _best_dual(means, sizes, mu, num_steps)
    return Gap(value, of_cells(x, w, B, cells, K), Dual(B, cells))


def _cells(x: Array, weights: Array) -> Array:
    """Some cells of near rows: a few rounds of k-means from rows at equal steps."""
    start = x[jnp.linspace(0, x.shape[0] - 1, CELLS).astype(int)]
    return jnp.argmin(squared_distances(x, kmeans(x, start, weights, max_steps=10).theta["mu"]), axis=0)


@jax.jit
def _best_dual(x: Array, weights: Array, mu: Array, num_steps: ArrayLike) -> tuple[Array, Array]:
    """The better of the solver's B and 0, with its bound."""
    K, q, total = mu.shape[0], jnp.sqrt(weights), jnp.sum(weights)
    C = cost(x, q)
    penalty = PENALTY * total / K * (q @ C @ q) / total**2
    penalty = jnp.where(penalty > 0, penalty, 1)
    label = jnp.argmin(squared_distances(x, mu), axis=0)
    B = penalty * _admm(C / penalty, q, label, K, num_steps)
    bound, spectral = of_rows(x, weights, B, K), of_rows(x, weights, jnp.zeros_like(B), K)
    return jnp.where(bound > spectral, B, 0), jnp.fmax(bound, spectral)


def _admm(C: Array, q: Array, label: Array, K: int, num_steps: ArrayLike) -> Float[Array, "N N"]:
    """B/ρ after so many rounds, from the partition; C is C_w/ρ. One matrix A = Y + U is carried: Y = A₊, U = −A₋."""
    N, p = C.shape[0], q / jnp.sqrt(jnp.sum(q**2))
    member = jnp.where(label[None] == jnp.arange(K)[:, None], q[None], 0)
    sizes = jnp.sum(member**2, axis=1, keepdims=True)
    rank = max(24, 2 * K + 8)
    follows = 3 * rank < N

    def round_(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        A, Q = carry
        V = jnp.abs(A) - C  # Y − U − C/ρ
        if follows:
            values, Q = leading_pairs(V, p, Q)
        else:
            V = compressed(V, p)
            values, Q = jnp.linalg.eigh(V - (1 + jnp.sqrt(jnp.sum(V**2))) * (p[:, None] * p[None]))
        share = onto_fantope(values, min(K, N) - 1)
        with_p = jnp.concatenate([Q, p[:, None]], axis=1)
        Z = (with_p * jnp.append(share, 1)[None]) @ with_p.T
        return RELAXATION * Z + jnp.where(A > 0, (1 - RELAXATION) * A, A), Q

    Q = jnp.sin(jnp.arange(1, N + 1, dtype=C.dtype)[:, None] * jnp.arange(1, rank + 1, dtype=C.dtype)[None])
    Q = orthonormal(Q - p[:, None] * (p @ Q)[None]) if follows else jnp.zeros_like(C)
    start = member.T @ (member / jnp.where(sizes > 0, sizes, 1))
    return jnp.maximum(-lax.fori_loop(0, num_steps, round_, (start, Q))[0], 0)


def leading_pairs(V: Float[Array, "N N"], p: Float[Array, " N"], Q: Float[Array, "N r"]) -> tuple[Array, Array]:
    """Nearly the r largest eigenvalues of V on p^⊥ with their vectors: Rayleigh & Ritz on what Q and VQ span."""

    def off(R: Array) -> Array:
        return R - p[:, None] * (p @ R)[None]

    VQ = off(V @ Q)
    R = VQ
    for _ in range(2):  # twice is enough
        R = R - Q @ (Q.T @ R)
    R = orthonormal(R / jnp.maximum(jnp.sqrt(jnp.sum(R**2, axis=0)), jnp.finfo(R.dtype).tiny)[None])
    R = off(1.5 * R - 0.5 * R @ (R.T @ R))  # Newton & Schulz: orthonormal to rounding
    basis, images = jnp.concatenate([Q, R], axis=1), jnp.concatenate([VQ, off(V @ R)], axis=1)
    H = basis.T @ images
    values, vectors = jnp.linalg.eigh((H + H.T) / 2)
    Q = basis @ vectors[:, -Q.shape[1] :]
    return values[-Q.shape[1] :], 1.5 * Q - 0.5 * Q @ (Q.T @ Q)  # again, or it would drift


def orthonormal(R: Float[Array, "N r"]) -> Float[Array, "N r"]:
    """A basis of what R spans, by its Gram matrix (a QR takes a hundred times as long); 0 where columns depend."""
    sizes, vectors = jnp.linalg.eigh(R.T @ R)
    clear = sizes > jnp.sqrt(jnp.finfo(R.dtype).eps) * sizes[-1]
    return (R @ vectors) * jnp.where(clear, 1 / jnp.sqrt(jnp.where(clear, sizes, 1)), 0)[None]


def onto_fantope(values: Float[Array, " r"], trace: int) -> Float[Array, " r"]:
    """min(max(λ − θ, 0), 1) with the θ at which they sum to `trace`."""

    def halve(_: Any, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        theta = (low + high) / 2
        too_much = jnp.sum(jnp.clip(values - theta, 0, 1)) > trace
        return jnp.where(too_much, theta, low), jnp.where(too_much, high, theta)

    low, high = lax.fori_loop(0, HALVINGS, halve, (jnp.min(values) - 1, jnp.max(values)))
    return jnp.clip(values - (low + high) / 2, 0, 1)
