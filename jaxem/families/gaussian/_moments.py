"""What every Gaussian family shares: moments about the current means, and the updates of π and μ."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Theta
from jaxem.families import _exponential_family as ef

SPELLED_OUT = 8  # features, at most, of a sum that is written term by term
SMALL_TABLE = 16_384  # entries, at most, of a table made by such a sum over differences
LAPACK_ALONE = 100_000  # operations of a batch of matrices
LIMIT = 256.0  # an expanded form may cost eight bits


class Moments(NamedTuple):
    """Additive statistics about the means μ_k at which the E-step was done."""

    N_k: Float[Array, " K"]  # Σ_n γ_nk
    shift: Float[Array, "K D"]  # Σ_n γ_nk (x_n − μ_k)
    spread: Float[Array, "..."]  # Σγ(x − μ_k)², or (x − μ_k)(x − μ_k)ᵀ, summed over what shares σ or Σ: its shape


def squared_distances(x: Float[Array, "n D"], mu: Float[Array, "K D"]) -> Float[Array, "K n"]:
    """d_nk = ‖x_n − μ_k‖², component-major, by differences: exact where the expanded square cancels.

    Args:
        x: rows, (n, D).
        mu: centres μ, (K, D).
    """
    return over_features(lambda x, mu: (x - mu) ** 2, x, mu)


def unit_of(reach: Float[Array, ""]) -> Float[Array, ""]:
    """A power of two near `reach`, in which squares keep their digits; 1 where they do so anyway.

    In single precision a square has no digits below 1e-19 and no end above 1e19: distances are compared in this unit.
    """
    limits = jnp.finfo(reach.dtype)
    least, most = float(limits.tiny) ** 0.5 * 2**20, float(limits.max) ** 0.5 / 2**20
    extreme = (reach > 0) & jnp.isfinite(reach) & ((reach < least) | (reach > most))
    _, exponent = jnp.frexp(jnp.where(extreme, reach, 1))
    return jnp.where(extreme, jnp.ldexp(jnp.ones_like(reach), exponent - 1), 1)


def over_features(term: Callable[..., Array], x: Float[Array, "n D"], *parameters: Float[Array, "K D"]) -> Array:
    """Σ_d term(x_d (1, n), p_d (K, 1), …), (K, n): feature by feature, so that terms never lie in memory together.

    A table that is small is spelled out. Of a large one XLA would read x against its order for every component: the
    loop makes it turn x over first, and is up to seven times as fast.
    """
    small = len(parameters[0]) * len(x) <= SMALL_TABLE and x.shape[1] <= SPELLED_OUT
    if small:
        terms = [term(x[:, d][None], *(p[:, d][:, None] for p in parameters)) for d in range(x.shape[1])]
        return sum(terms[1:], terms[0])

    def add(total: Array, feature: tuple[Array, ...]) -> tuple[Array, None]:
        x_d, *of_components = feature
        return total + term(x_d[None], *(p_d[:, None] for p_d in of_components)), None

    nothing = jnp.zeros_like(x, shape=(len(parameters[0]), len(x)), dtype=jnp.result_type(x, *parameters))
    return lax.scan(add, nothing, (x.T, *(p.T for p in parameters)))[0]


def sum_of_squares(difference: Float[Array, "K D n"], spelled_out: int = SPELLED_OUT) -> Float[Array, "K n"]:
    """Σ_d of their squares, spelled out for so many features at most: XLA would put the squares in memory first.

    Of differences that are not in memory more terms cost more time to compile, and tens of megabytes.
    """
    num_features = difference.shape[1]
    if num_features > spelled_out:
        return jnp.sum(difference**2, axis=1)
    squares = [difference[:, d] ** 2 for d in range(num_features)]
    return sum(squares[1:], squares[0])


def differences(x: Float[Array, "n D"], mu: Float[Array, "K D"]) -> Float[Array, "K D n"]:
    """x_n − μ_k."""
    return x.T[None] - mu[:, :, None]


def in_small_batches(f: Callable[[Array], Any], matrices: Float[Array, "*k D D"], cubes: int) -> Any:
    """f of each matrix, a LAPACK routine of some `cubes` · D³ operations, few enough at a time to be done where asked.

    More than 200,000 jaxlib 0.10 shares out among threads, and waits on one of them: where each of several CPU devices
    does, no thread is left to do what they wait for.
    """
    at_a_time = max(1, LAPACK_ALONE // (cubes * matrices.shape[-1] ** 3))
    if matrices.ndim == 2 or matrices.shape[0] <= at_a_time:
        return f(matrices)
    return lax.map(f, matrices, batch_size=at_a_time)


def log_weights(pi: Float[Array, " K"]) -> Float[Array, " K"]:
    """log π_k, −∞ at π_k = 0 with a finite gradient."""
    return jnp.where(pi > 0, jnp.log(jnp.where(pi > 0, pi, 1)), -jnp.inf)


def leading(heights: Float[Array, " K"]) -> Float[Array, ""]:
    """max_k of ℓ at its peaks, which tables leave out: 0 is left of equal ones, and no digit below them is lost.

    Otherwise k-means of data in small units, with σ = 1, would compare −½‖x − μ_k‖² after rounding it to log K.
    """
    return lax.stop_gradient(jnp.max(heights))


def sum_and_count(sums: Float[Array, "K F"]) -> tuple[Array, Float[Array, " K"]]:
    """Σγ(x − c) and Σγ, of Σγ(x − c, 1)."""
    return sums[:, :-1], sums[:, -1]


def divide_where_occupied(sums: Array, N_k: Float[Array, " K"], otherwise: Array | float = 0.0) -> Array:
    """sums / N_k, and `otherwise` for an empty component, whose parameters F does not depend on."""
    column = jnp.reshape(N_k, N_k.shape + (1,) * (sums.ndim - 1))
    kept = ef.occupied(column)
    return jnp.where(kept, sums / jnp.where(kept, column, 1), otherwise)


def underflown(squares: Array, N_k: Array, mu: Array) -> Bool[Array, "..."]:
    """Have squares no digits since next to no rows are behind them, and not for a collapse?

    They underflow, and so would they if the rows were a digit of μ apart. N_k and μ are of the same rank.
    """
    limits = jnp.finfo(squares.dtype)
    least, nearly_empty = limits.tiny / limits.eps, N_k < limits.eps**2 * jnp.sum(N_k)
    return nearly_empty & (squares < least) & (N_k * (limits.eps * mu) ** 2 < least)


def update_weights_and_means(moments: Moments, theta: Theta, held: frozenset[str]) -> tuple[Theta, Array]:
    """π_k = N_k/N,  μ_k⁺ = μ_k + Σγ(x − μ_k)/N_k  (Bishop 2006, §9.2). Returns θ and the moves μ⁺ − μ."""
    move = jnp.zeros_like(moments.shift)
    theta = ef.with_weights(theta, moments.N_k, held)
    if "mu" not in held:
        move = divide_where_occupied(moments.shift, moments.N_k)
        theta = theta | {"mu": theta["mu"] + move}
    return theta, move


def step_weights_and_means(
    theta: Theta, gradient: Theta, natural_step: Array, N_k: Array, held: frozenset[str]
) -> tuple[Theta, Array]:
    """The same, as a step along ∇L (eq:XuJordan; Xu & Jordan 1996, theorem 1); `natural_step` = Σ_k ∇_{μ_k} L.

    μ_k⁺ = μ_k + (1/N_k) Σ_k ∇_{μ_k} L,   π⁺ = π + (1/N)(diag π − ππᵀ) ∇_π L.
    """
    pi, move = theta["pi"], jnp.zeros_like(theta["mu"])
    if "pi" not in held:
        step = pi * (gradient["pi"] - jnp.sum(pi * gradient["pi"])) / jnp.sum(N_k)
        theta = theta | {"pi": pi + step}
    if "mu" not in held:
        move = divide_where_occupied(natural_step, N_k)
        theta = theta | {"mu": theta["mu"] + move}
    return theta, move


def centre(theta: Theta) -> Float[Array, "1 D"]:
    """c = Σ_k π_k μ_k, as a constant: ℓ and the statistics do not depend on it."""
    return lax.stop_gradient(jnp.sum(theta["pi"][:, None] * theta["mu"], axis=0, keepdims=True))


def equal_weights_at(centres: Float[Array, "K D"]) -> Theta:
    """π = 1/K and μ the centres: the part of a start that all families share."""
    return {"pi": ef.equal_weights(centres), "mu": centres}


def centred(x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Float[Array, "N D"]:
    """x − x̄, twice: the second takes what rounding left of the first, at data far from the origin."""
    x = x - ef.mean_of_rows(x, weights)[None]
    return x - ef.mean_of_rows(x, weights)[None]


def spread_or_a_stand_in(variance: Array, x: Float[Array, "N D"]) -> Array:
    """Variances to start from: one of a constant column, 0, is no scale. The others' mean stands in, or x², or 1."""
    for stand_in in (jnp.mean(variance), jnp.mean(x**2), jnp.ones((), x.dtype)):
        variance = jnp.where(variance > 0, variance, stand_in)
    return variance
