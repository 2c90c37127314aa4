"""Missing cells where all components share Σ: a row is completed once for all, about one point c amid the rows.

With y_n = E[x | x_o] under N(c, Σ), the directions v_nt of its missing cells (`_completed`), P = Σ⁻¹, s_k = P(μ_k − c),

    b_nkt = v_ntᵀ s_k,      E[x | x_o, k] = y_n + Σ_t v_nt b_nkt,

since v_tᵀP(y − c) = 0. So ℓ is that of whole rows y_n plus ½ Σ_t b_nkt², and with β_nt = Σ_k γ_nk b_nkt the sums are

    Σγ(x̂ − c)        =  Σγ(y − c) + U_k,                 U_k = Σ_nt γ_nk b_nkt v_nt
    Σγ(x̂ − c)(·)ᵀ    =  Σ w (y − c)(y − c)ᵀ + X + Xᵀ + G,    X = Σ_nt β_nt (y_n − c) v_ntᵀ,
                                                          G = Σ_ntt' (Σ_k γ_nk b_nkt b_nkt') v_nt v_nt'ᵀ

and Σ w Σ_t v_nt v_ntᵀ, what is left uncertain. No D × D matrix is made for a component, and none for a row.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.model import Theta
from jaxem._rows.products import Products, by_gamma
from jaxem.families._missing import halves
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian._accuracy import EXACT, is_accurate
from jaxem.families.gaussian._completed import LOG_2PI, Completed, Given, complete, first_sums, in_few_turns
from jaxem.families.gaussian._moments import Moments, centre, log_weights


class Shared(NamedTuple):
    """A chunk's φ."""

    y: Float[Array, "D n"]  # less c
    directions: Float[Array, "T _ D n"]
    common: Float[Array, " n"]  # what no component has of its own in ℓ
    most: Array


class Sums(NamedTuple):
    """The sums above."""

    N_k: Float[Array, " K"]
    S: Float[Array, "K D"]  # Σγ(y − c)
    second: Float[Array, "D D"]  # Σ w (y − c)(y − c)ᵀ, and what is left uncertain
    U: Float[Array, "K D"]
    X: Float[Array, "D D"]
    G: Float[Array, "D D"]


def products(theta: Theta) -> Products:
    """The E-step of these rows, about c."""
    D = theta["mu"].shape[1]
    c = centre(theta)
    offset = theta["mu"] - c
    inverse, log_det = covariances.whiteners(theta)
    slope = jnp.einsum("de,df,kf->ke", inverse[0], inverse[0], offset, precision=EXACT)  # s_k
    intercept = log_weights(theta["pi"]) - jnp.sum(slope * offset, axis=1) / 2
    about_c = Given(c, inverse[:1], log_det[:1], inverse[:1])

    def features(rows: Float[Array, "n both"], squares: Array | None = None) -> Shared:
        seen = halves(rows)[1]
        most = jnp.max(jnp.sum(~seen, axis=1))
        done: Completed = complete(about_c, rows, most)
        count = jnp.sum(seen, axis=1, dtype=rows.dtype)
        common = -(done.squares[0] + done.log_det[0] + count * LOG_2PI) / 2
        return Shared(done.difference[0], done.directions, common, most)

    def table(phi: Shared) -> Float[Array, "K n"]:
        whole = jnp.matmul(slope, phi.y, precision=EXACT) + intercept[:, None]
        return whole + gained_so_far(slope, phi.directions, phi.most)

    def statistics(phi: Shared, gamma: Float[Array, "K n"]) -> Sums:
        w = jnp.sum(gamma, axis=0, keepdims=True)
        second = jnp.matmul(phi.y * w, phi.y.T, precision=EXACT)
        second = second + first_sums(w, phi.directions, phi.most)[0]
        moved = moved_so_far(slope, phi.y, phi.directions, gamma, phi.most)
        return Sums(jnp.sum(gamma, axis=1), jnp.matmul(gamma, phi.y.T, precision=EXACT), second, *moved)

    def finish(sums: Sums) -> Moments:
        S = sums.S + sums.U
        shift = S - sums.N_k[:, None] * offset
        second = sums.second + sums.X + sums.X.T + sums.G
        return Moments(
            sums.N_k, shift, second - jnp.sum(covariances.outer(S, offset) + covariances.outer(offset, shift), axis=0)
        )

    return Products(
        width=2 * D * D,
        features=features,
        table=table,
        common=lambda phi: phi.common,
        sums=by_gamma(statistics),
        hard=None,
        finish=finish,
        accurate=is_accurate(theta, c, covariances.geometry),
        accurate_when_hard=lambda sums: jnp.zeros((), bool),  # hard ones compare squares, of which these are parts
    )


def gained(slope: Float[Array, "K D"], directions: Array, most: Array | None = None) -> Float[Array, "K n"]:
    """½ Σ_t b_nkt²."""

    def add(t: Any, so_far: Array) -> Array:
        return so_far + jnp.matmul(slope, directions[t, 0], precision=EXACT) ** 2 / 2

    nothing = jnp.zeros((len(slope), directions.shape[3]), slope.dtype) + 0 * directions[0, 0, :1]
    return lax.fori_loop(0, len(directions) if most is None else most, add, nothing)


def moved(
    slope: Float[Array, "K D"],
    y: Float[Array, "D n"],
    directions: Array,
    gamma: Float[Array, "K n"],
    most: Array | None = None,
) -> tuple[Float[Array, "K D"], Float[Array, "D D"], Float[Array, "D D"]]:
    """U, X and G."""
    turns = len(directions) if most is None else most

    def shift(t: Any) -> tuple[Array, Array]:
        v = directions[t, 0]
        return v, jnp.matmul(slope, v, precision=EXACT)

    def add(t: Any, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        U, X, G = so_far
        v, b = shift(t)
        pulled = gamma * b
        U = U + jnp.matmul(pulled, v.T, precision=EXACT)
        X = X + jnp.matmul(y * jnp.sum(pulled, axis=0, keepdims=True), v.T, precision=EXACT)

        def pair(other: Any, G: Array) -> Array:
            v_other, b_other = shift(other)
            return G + jnp.matmul(v * jnp.sum(pulled * b_other, axis=0, keepdims=True), v_other.T, precision=EXACT)

        return U, X, lax.fori_loop(0, turns, pair, G)

    D = len(y)
    nothing = 0 * gamma[0, 0] + 0 * y[0, 0]
    start = (jnp.zeros((len(slope), D), y.dtype) + nothing, *(jnp.zeros((D, D), y.dtype) + nothing for _ in range(2)))
    return lax.fori_loop(0, turns, add, start)


gained_so_far, moved_so_far = in_few_turns(gained), in_few_turns(moved)
