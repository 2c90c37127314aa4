"""The M-step of Σ_k = λ_k D_k A_k D_kᵀ (or λ_k C_k): each factor at its best given the others, in turn.

With S_k = Σγ(x − μ_k)(x − μ_k)ᵀ/N_k and shares p_k = N_k/N, the M-step minimises, det A_k = det C_k = 1,

    J = Σ_k p_k [ D log λ_k + tr(S_k D_k A_k⁻¹ D_kᵀ)/λ_k ]

Given the rest, with b_k = diag(D_kᵀS_kD_k) and ∝ meaning of product (determinant) 1, the least J is at

    λ_k = Σ_d b_kd/a_kd / D, or tr(C_k⁻¹S_k)/D         λ: the mean of those, by p_k
    A_k ∝ b_k                                          A ∝ Σ_k p_k b_k/λ_k
    C_k ∝ S_k                                          C ∝ Σ_k p_k S_k/λ_k
    D_k = eigenvectors of S_k, in the order of A       D: plane by plane, see `turned`

(Celeux & Govaert 1995). EEI EVI EEV EVV take one such sweep, since the own D_k and C_k ask for nothing else, and then a
common λ is asked for by nothing else. VEI VEE VEV sweep until nothing moves: J is convex in log λ, log A (and
geodesically in C), so there is one end. EVE VVE take Newton's steps in D, the other factors at their best for each D
(`_rotation`). A held factor is one that is skipped. No step raises J; if rounding does, at the end of many, the factors
are as they were: so F never falls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from jaxem._core.model import Theta
from jaxem.families import _exponential_family as ef
from jaxem.families.gaussian._accuracy import EXACT
from jaxem.families.gaussian._moments import divide_where_occupied, in_small_batches, underflown
from jaxem.families.gaussian._rotation import orthogonal, settled

ORDER = ("correlation", "rotation", "shape", "volume")  # of a sweep
OF_EACH = {"correlation": 3, "rotation": 3, "shape": 2, "volume": 1}  # the rank of one that each component has
SWEEPS = 1000  # at most
AT_REST = 16  # times eps: no factor moves by more, relatively

Factors = dict[str, Array]


class Asked(NamedTuple):
    """What the rows ask of Σ_k."""

    S: Float[Array, "K D ..."]  # their own covariances, or the diagonals of those
    share: Float[Array, " K"]  # p_k
    kept: Bool[Array, " K"]  # is the component (all but) empty? Then what is its own stays

    @classmethod
    def of(cls, W: Float[Array, "K D ..."], N_k: Float[Array, " K"], theta: Theta, old: Array) -> "Asked":
        """Of W_k = N_k S_k; `old` stands in for the S_k of an empty component."""
        squares = W if W.ndim == 2 else jnp.diagonal(W, axis1=1, axis2=2)
        kept = ~ef.occupied(N_k) | jnp.any(underflown(squares, N_k[:, None], theta["mu"]), axis=1)
        S = jnp.where(over(kept, W), old, divide_where_occupied(W, N_k, otherwise=1.0))
        return cls(S, jnp.where(kept, 0, N_k) / jnp.sum(N_k), kept)


def over(of_component: Shaped[Array, " K"], like: Array) -> Array:
    """A number of each component, to meet an array of leading axis K."""
    return jnp.reshape(of_component, of_component.shape + (1,) * (like.ndim - 1))


def volumes(factors: Factors, rows: Asked) -> Float[Array, " K"]:
    """λ_k of every component."""
    return jnp.broadcast_to(factors["volume"], rows.share.shape)


def spectra(factors: Factors, rows: Asked) -> Float[Array, "K D"]:
    """b_k, the diagonals of D_kᵀS_kD_k."""
    if "rotation" not in factors:
        return rows.S
    rotation = jnp.broadcast_to(factors["rotation"], rows.S.shape)
    return jnp.sum(rotation * jnp.matmul(rows.S, rotation, precision=EXACT), axis=1)


def traces(factors: Factors, rows: Asked) -> Float[Array, " K"]:
    """tr(S_k D_k A_k⁻¹ D_kᵀ), or tr(C_k⁻¹S_k)."""
    if "correlation" not in factors:
        b = spectra(factors, rows)
        return jnp.sum(b / jnp.broadcast_to(factors["shape"], b.shape), axis=1)
    L = jnp.broadcast_to(jnp.linalg.cholesky(factors["correlation"]), rows.S.shape)
    half = lax.linalg.triangular_solve(L, rows.S, left_side=True, lower=True)
    whole = lax.linalg.triangular_solve(L, jnp.swapaxes(half, 1, 2), left_side=True, lower=True)
    return jnp.trace(whole, axis1=1, axis2=2)


def J(factors: Factors, rows: Asked) -> Float[Array, ""]:
    """What the M-step minimises, nats a row, twice."""
    volume, D = volumes(factors, rows), rows.S.shape[1]
    return jnp.sum(rows.share * (D * jnp.log(volume) + traces(factors, rows) / volume))


# ---- each factor given the others, and how far it moved


def best_volume(factors: Factors, rows: Asked) -> tuple[Array, Array]:
    """λ_k = tr(…)/D, a common one their mean."""
    old, own = factors["volume"], traces(factors, rows) / rows.S.shape[1]
    new = jnp.sum(rows.share * own) / jnp.sum(rows.share) if old.ndim == 0 else own
    return new, jnp.max(jnp.abs(new / old - 1))


def best_shape(factors: Factors, rows: Asked) -> tuple[Array, Array]:
    """A_k ∝ b_k, a common one ∝ Σ p_k b_k/λ_k."""
    old, b = factors["shape"], spectra(factors, rows)
    new = to_unit_product(b if old.ndim == 2 else jnp.sum(over(rows.share / volumes(factors, rows), b) * b, axis=0))
    return new, jnp.max(jnp.abs(new / old - 1))


def best_correlation(factors: Factors, rows: Asked) -> tuple[Array, Array]:
    """C_k ∝ S_k, a common one ∝ Σ p_k S_k/λ_k."""
    old, S = factors["correlation"], rows.S
    new = to_unit_determinant(S if old.ndim == 3 else jnp.sum(over(rows.share / volumes(factors, rows), S) * S, axis=0))
    deviation = jnp.sqrt(jnp.diagonal(old, axis1=-2, axis2=-1))
    return new, jnp.max(jnp.abs(new - old) / (deviation[..., :, None] * deviation[..., None, :]))


def best_rotation(factors: Factors, rows: Asked) -> tuple[Array, Array]:
    """D_k by eigenvectors of S_k, a common one by planes."""
    if factors["rotation"].ndim == 3:
        return eigenvectors(factors, rows), jnp.zeros((), rows.S.dtype)
    return turned(factors, rows)


BEST: dict[str, Callable[[Factors, Asked], tuple[Array, Array]]] = {
    "correlation": best_correlation,
    "rotation": best_rotation,
    "shape": best_shape,
    "volume": best_volume,
}


def to_unit_product(b: Float[Array, "*k D"]) -> Float[Array, "*k D"]:
    """b over the geometric mean of its entries, by logarithms."""
    log = jnp.log(b)
    return jnp.exp(log - jnp.mean(log, axis=-1, keepdims=True))


def to_unit_determinant(S: Float[Array, "*k D D"]) -> Float[Array, "*k D D"]:
    """S over det S^{1/D}, by logarithms."""
    L = in_small_batches(jnp.linalg.cholesky, S, cubes=1)
    log = jnp.mean(jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)), axis=-1)
    return S * jnp.exp(-2 * log)[..., None, None]


def eigenvectors(factors: Factors, rows: Asked) -> Float[Array, "K D D"]:
    """Of S_k, in the order that A has: tr(S_k D A⁻¹ Dᵀ) is least there (von Neumann). Signs as they were."""
    _, vectors = in_small_batches(lambda S: tuple(jnp.linalg.eigh(S)), rows.S, cubes=25)
    rank = jnp.argsort(jnp.argsort(factors["shape"]))
    vectors = vectors[:, :, rank]
    along = jnp.sum(vectors * factors["rotation"], axis=1, keepdims=True)
    return jnp.where(along < 0, -vectors, vectors)


def turned(factors: Factors, rows: Asked) -> tuple[Float[Array, "D D"], Array]:
    """The common D turned in each plane of two axes, one after another, as far as J falls: the least is in closed form.

    Turned by φ in the plane (i, j), J = const + P cos 2φ + Q sin 2φ, with g_k = p_k/λ_k and B_k = DᵀS_kD,

        P = Σ_k g_k (1/a_ki − 1/a_kj)(B_kii − B_kjj)/2,    Q = Σ_k g_k (1/a_ki − 1/a_kj) B_kij

    so 2φ = atan2(−Q, −P): Jacobi's method, of several matrices (Flury & Gautschi 1986). Majorisation (Browne &
    McNicholas 2014) rests where ∇J = 0 too, but its steps are short where eigenvalues are far apart. Returned beside D:
    the largest Q, in units of the terms that it is a sum of.
    """
    old = factors["rotation"]
    D = old.shape[0]
    g = over(rows.share / volumes(factors, rows), rows.S[:, 0])
    weights = g / jnp.broadcast_to(factors["shape"], (g.shape[0], D))
    rotations = jnp.broadcast_to(old, rows.S.shape)
    B = jnp.matmul(jnp.swapaxes(rotations, 1, 2), jnp.matmul(rows.S, rotations, precision=EXACT), precision=EXACT)
    sizes = jnp.trace(B, axis1=1, axis2=2)

    def turn(carry: tuple[Array, Array, Array], plane: tuple[Array, Array]) -> tuple[tuple[Array, Array, Array], None]:
        rotation, B, residual = carry
        i, j = plane
        c = weights[:, i] - weights[:, j]
        P, Q = jnp.sum(c * (B[:, i, i] - B[:, j, j])) / 2, jnp.sum(c * B[:, i, j])
        scale = jnp.sum(jnp.abs(c) * sizes)
        flat = ~(jnp.hypot(P, Q) > jnp.finfo(Q.dtype).eps * scale)
        angle = jnp.arctan2(jnp.where(flat, 0, -Q), jnp.where(flat, 1, -P)) / 2
        cos, sin = jnp.cos(angle), jnp.sin(angle)

        def columns(a: Array) -> Array:
            a_i, a_j = a[..., i], a[..., j]
            return a.at[..., i].set(cos * a_i + sin * a_j).at[..., j].set(cos * a_j - sin * a_i)

        B = columns(jnp.swapaxes(columns(B), 1, 2))  # symmetric: its rows turn as its columns do
        return (columns(rotation), B, jnp.maximum(residual, jnp.where(flat, 0, jnp.abs(Q) / scale))), None

    i, j = np.triu_indices(D, 1)
    start = (old, B, jnp.zeros((), B.dtype))
    (rotation, _, residual), _ = lax.scan(turn, start, (jnp.asarray(i), jnp.asarray(j)))
    return orthogonal(rotation), residual


# ---- all of them


def best(factors: Factors, rows: Asked, free: tuple[str, ...]) -> Factors:
    """The factors of least J, those not in `free` as they are."""
    own = tuple(name for name in free if name in ("correlation", "rotation") and factors[name].ndim == OF_EACH[name])
    factors, _ = swept(factors, rows, own)
    common = tuple(name for name in free if name not in own)
    frame: Factors = {}
    if "rotation" in factors and "rotation" not in common:  # in a frame that stays only diagonals count
        rows = rows._replace(S=spectra(factors, rows))
        frame, factors = {"rotation": factors["rotation"]}, {n: f for n, f in factors.items() if n != "rotation"}
    if "rotation" in common:
        return lowest(factors, rows, common)
    if factors["volume"].ndim == 0:
        return swept(factors, rows, common)[0] | frame
    return alternated(factors, rows, common) | frame


def swept(factors: Factors, rows: Asked, names: tuple[str, ...]) -> tuple[Factors, Array]:
    """Each of these given the others, in order, and how far the one that moved most has moved."""
    moves = jnp.zeros((), rows.S.dtype)
    for name in ORDER:
        if name in names:
            old, (new, move) = factors[name], BEST[name](factors, rows)
            if old.ndim == OF_EACH[name]:
                new = jnp.where(over(rows.kept, new), old, new)  # empty: F is flat there
            factors, moves = factors | {name: new}, jnp.maximum(moves, move)
    return factors, moves


def lowest(factors: Factors, rows: Asked, names: tuple[str, ...]) -> Factors:
    """A common D by Newton's method on J at the best A_k and λ for each D, which one sweep gives."""
    others = tuple(name for name in names if name != "rotation")

    def at(rotation: Array) -> Factors:
        return swept(factors | {"rotation": rotation}, rows, others)[0]

    new = at(settled(lambda D: J(at(D), rows), lambda D: turned(at(D), rows)[0], factors["rotation"]))
    rises = J(new, rows) > J(factors, rows)
    return {name: jnp.where(rises, factors[name], new[name]) for name in factors}


def alternated(factors: Factors, rows: Asked, names: tuple[str, ...]) -> Factors:
    """Swept until no factor moves, or rounding alone moves them."""
    eps = jnp.finfo(rows.S.dtype).eps

    def goes_on(carry: Any) -> Array:
        _, move, before, count = carry
        stalled = (move >= before) & (move < jnp.sqrt(eps))
        return (move > AT_REST * eps) & ~stalled & (count < SWEEPS)

    def sweep(carry: Any) -> Any:
        factors, move, _, count = carry
        factors, new_move = swept(factors, rows, names)
        return factors, new_move, move, count + 1

    infinity = jnp.full((), jnp.inf, rows.S.dtype)
    new, *_ = lax.while_loop(goes_on, sweep, (factors, infinity, infinity, jnp.zeros((), jnp.int32)))
    rises = J(new, rows) > J(factors, rows)
    return {name: jnp.where(rises, factors[name], new[name]) for name in factors}
