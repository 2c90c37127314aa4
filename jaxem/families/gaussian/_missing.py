"""Gaussians whose rows have missing cells: each row is completed under each component, and no pattern is formed.

With M_n = diag of what is observed of row n, the masked Σ̃ = MΣM + I − M and x̃ = M(x − μ) have the density of the
observed cells, N(x̃; 0, Σ̃) = N(x_o; μ_o, Σ_oo) N(0; 0, I) (eq:observed). With Λ = Σ⁻¹ it takes the missing cells alone:
least squares over them by conjugate directions, one for each missing cell j, with what came before kept least:

    v = e_j − Σ_i v_i v_iᵀΛe_j,   v /= √vᵀΛv,   x̂ −= v vᵀΛx̂

From x̂ = x̃ on this ends in μ + x̂ = E[x | x_o, k], and Σ_i v_i v_iᵀ = Λ_mm⁻¹ = Cov[x | x_o, k], 0 but for what is
missing. Then (x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o) = x̂ᵀΛx̂ and det Σ_oo = det Σ det Λ_mm, where det Λ_mm is the product of the
vᵀΛv that were divided by; and for the M-step (Dempster, Laird & Rubin 1977; Ghahramani & Jordan 1994)

    W_k = Σ_n γ_nk [(x̂_nk + μ_k − μ_k⁺)(x̂_nk + μ_k − μ_k⁺)ᵀ + Cov[x_n | x_n,observed, k]]

So every model that is fitted by way of W_k, under a floor or a prior too, is fitted with missing cells. A column never
observed in a component keeps its law given the others (without correlations: its mean and its variance).

A step serves all rows of a chunk, each with its own next missing cell; rows that miss as many lie together
(`Missing.in_order`), so that a chunk takes few steps.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Theta
from jaxem._rows.products import Products, by_gamma
from jaxem.families._missing import Missing, halves, missing_of
from jaxem.families._mixture import Fast, Mixture
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian import _scales as scales
from jaxem.families.gaussian._accuracy import EXACT, and_one, linear
from jaxem.families.gaussian._factors import plain
from jaxem.families.gaussian._moments import (
    Moments,
    centre,
    differences,
    log_weights,
    sum_and_count,
    sum_of_squares,
)

LOG_2PI = math.log(2 * math.pi)


class Completed(NamedTuple):
    """Rows as each component would have them."""

    difference: Float[Array, "K D n"]  # E[x | observed, k] − μ_k
    directions: Float[
        Array, "T _ D n"
    ]  # v_1 …, of each k or of all: Cov[x | observed, k] is Σ v vᵀ; or v² its diagonal
    squares: Float[Array, "K n"]  # (x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o)
    log_det: Float[Array, "K n"]  # log det Σ_oo


def completed(m: Mixture) -> Missing:
    """For any mixture of Gaussians whose M-step takes `Moments`."""
    return missing_of(
        m,
        kernel=table,
        statistics=statistics,
        fast=Fast(products),
        law=law,
        surface=surface,
        in_order=bool({"Sigma", "rotation", "correlation"} & dict(m.shapes).keys()),
    )


class Given(NamedTuple):
    """What completing a row takes of θ."""

    mu: Float[Array, "K D"]
    scale: Float[Array, "K D ..."]  # σ_kd (K, D), or L_k⁻¹ (K, D, D) of Σ_k = L_k L_kᵀ
    log_det: Float[Array, " K"] | None = None  # of L_k
    precision: Float[Array, "_ D D"] | None = None  # Λ_k, one where Σ is shared


def given(theta: Theta) -> Given:
    """Of plain θ."""
    if "sigma" in theta:
        return Given(theta["mu"], scales.by_feature(theta["sigma"], theta["mu"]))
    inverse, log_det = covariances.whiteners(theta)
    own = inverse[:1] if theta["Sigma"].ndim == 2 else inverse
    return Given(theta["mu"], inverse, log_det, jnp.einsum("kde,kdf->kef", own, own, precision=EXACT))


def complete(given: Given, rows: Float[Array, "n both"], most: Array | None = None) -> Completed:
    """Of rows that miss so many cells at `most`, if that is known, and else with a gradient."""
    x, seen = halves(rows)
    difference = jnp.where(seen.T[None], differences(x, given.mu), 0)
    if given.precision is None:
        return by_scales(given.scale, difference, seen.T)
    if most is None:
        return by_covariances(given, difference, ~seen.T, None)
    return as_far_as(given, difference, ~seen.T, most)


def by_scales(sigma: Float[Array, "K D"], difference: Float[Array, "K D n"], seen: Bool[Array, "D n"]) -> Completed:
    """Features that tell nothing of each other."""
    return Completed(
        difference,
        jnp.where(seen[None], 0, sigma[:, :, None])[None],
        sum_of_squares(difference * (1 / sigma)[:, :, None]),
        2 * jnp.matmul(jnp.log(sigma), seen.astype(sigma.dtype), precision=EXACT),
    )


@jax.custom_jvp
def as_far_as(given: Given, difference: Array, missing: Array, most: Array) -> Completed:
    """`by_covariances` in as few turns as the rows take, with the derivative of all of them: a loop of unknown length
    has none in reverse."""
    return by_covariances(given, difference, missing, most)


@as_far_as.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Completed, Completed]:
    given, difference, missing, _ = primals
    return jax.jvp(
        lambda given, difference: by_covariances(given, difference, missing, None), (given, difference), tangents[:2]
    )


def by_covariances(
    given: Given, difference: Float[Array, "K D n"], missing: Bool[Array, "D n"], most: Array | None
) -> Completed:
    """By the directions above."""
    assert given.precision is not None
    assert given.log_det is not None
    precision, D = given.precision, len(missing)
    up_to = jnp.tri(D, dtype=difference.dtype)
    turn = jnp.where(missing, jnp.matmul(up_to, missing.astype(difference.dtype)), 0)  # of a cell in its row, from 1 on
    nothing = 0 * difference[: len(precision)]  # that lies where the rows do

    def minimise(index: Any, state: Completed) -> Completed:
        difference, directions, _, log_pivots = state
        here = turn == index + 1
        e, one = here.astype(difference.dtype), jnp.any(here, axis=0)[None]
        column = jnp.einsum("kde,en->kdn", precision, e, precision=EXACT)

        def add(i: Any, known: Array) -> Array:
            v = directions[i]
            return known + v * jnp.sum(v * column, axis=1, keepdims=True)

        # those that follow are 0, and a loop of known length has a gradient
        v = e[None] - lax.fori_loop(0, D if most is None else index, add, nothing)
        pivot = jnp.where(one, jnp.sum(v * column, axis=1), 1)
        root = jnp.where(one, lax.rsqrt(pivot), 0)[:, None]
        difference = difference - v * root**2 * jnp.sum(column * difference, axis=1, keepdims=True)
        directions = lax.dynamic_update_index_in_dim(directions, v * root, index, 0)
        return Completed(difference, directions, state.squares, log_pivots + jnp.log(pivot))

    directions = jnp.zeros_like(difference, shape=(D, *nothing.shape)) + nothing[0, 0, 0]
    start = Completed(difference, directions, nothing[:, 0], nothing[:, 0])
    turns = D if most is None else most
    end = lax.fori_loop(0, turns, minimise, start)

    def again(_: Any, difference: Array) -> Array:
        """Once more, of what rounding left: the residual by way of L⁻¹, whose condition is the root of Λ's."""
        residual = covariances.whitened(given.scale, difference)
        residual = jnp.einsum("kde,kdn->ken", given.scale, residual, precision=EXACT)
        residual = jnp.where(missing[None], residual, 0)

        def correct(i: Any, difference: Array) -> Array:
            v = end.directions[i]
            return difference - v * jnp.sum(v * residual, axis=1, keepdims=True)

        return lax.fori_loop(0, turns, correct, difference)

    # not where no cell is missing
    end = end._replace(difference=lax.fori_loop(0, 1 if most is None else jnp.minimum(most, 1), again, end.difference))
    squares = sum_of_squares(covariances.whitened(given.scale, end.difference))
    return end._replace(squares=squares, log_det=2 * given.log_det[:, None] + end.log_det)


def log_joint(theta: Theta, done: Completed, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − ½[(x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o) + log det 2πΣ_oo]."""
    count = jnp.sum(halves(rows)[1], axis=1, dtype=rows.dtype)[None]
    return log_weights(theta["pi"])[:, None] - (done.squares + done.log_det + count * LOG_2PI) / 2


def moments(theta: Theta, done: Completed, gamma: Float[Array, "K n"], most: Array | None = None) -> Moments:
    """Σγ, Σγ(x̂ − μ_k), and Σγ[(x̂ − μ_k)(x̂ − μ_k)ᵀ + Cov], or its diagonal, summed over what shares σ or Σ."""
    N_k = jnp.sum(gamma, axis=1)
    shift = jnp.einsum("kn,kdn->kd", gamma, done.difference, precision=EXACT)
    if "sigma" in theta:
        squares = done.difference**2 + done.directions[0] ** 2
        spread = jnp.einsum("kn,kdn->kd", gamma, squares, precision=EXACT)
        return Moments(N_k, shift, scales.pooled(spread, theta["sigma"]))

    pooled = partial(covariances.pooled, like=theta["Sigma"])
    own = gamma if done.directions.shape[1] == len(gamma) else jnp.sum(gamma, axis=0, keepdims=True)

    spread = pooled(covariances.products_of(gamma[:, None] * done.difference, done.difference))
    hidden = covariance_sums(own, done.directions) if most is None else first_sums(own, done.directions, most)
    return Moments(N_k, shift, spread + pooled(hidden))


def covariance_sums(
    gamma: Float[Array, "_ n"], directions: Float[Array, "T _ D n"], most: Array | None = None
) -> Float[Array, "_ D D"]:
    """Σ_n γ_n Cov[x_n | observed], of so many directions at `most`."""

    def add(i: Any, sums: Array) -> Array:
        return sums + covariances.products_of(gamma[:, None] * directions[i], directions[i])

    D = directions.shape[2]
    nothing = jnp.zeros_like(directions, shape=(len(gamma), D, D)) + 0 * gamma[0, 0]
    return lax.fori_loop(0, len(directions) if most is None else most, add, nothing)


@jax.custom_jvp
def first_sums(gamma: Array, directions: Array, most: Array) -> Array:
    """The same, with the derivative of all, as for `as_far_as`."""
    return covariance_sums(gamma, directions, most)


@first_sums.defjvp
def _(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Array, Array]:
    return jax.jvp(covariance_sums, primals[:2], tangents[:2])


def covariance(done: Completed) -> Float[Array, "K D D n"]:
    """Cov[x | observed, k], with correlations."""
    products = jnp.einsum("tkdn,tken->kden", done.directions, done.directions, precision=EXACT)
    return jnp.broadcast_to(products, (len(done.difference), *products.shape[1:]))


def table(theta: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ of the observed cells."""
    return log_joint(theta, complete(given(plain(theta)), rows), rows)


def statistics(theta: Theta, rows: Float[Array, "n both"], gamma: Float[Array, "K n"]) -> Moments:
    """Of the completed rows."""
    theta = plain(theta)
    return moments(theta, complete(given(theta), rows), gamma)


def products(theta: Theta, about: Theta, may_cancel: Array | bool) -> Products:
    """Both, as is fastest."""
    theta = plain(theta)
    return by_cells(theta) if "sigma" in theta else by_completing(theta, about)


def by_cells(theta: Theta) -> Products:
    """φ = m (x − c)², m (x − c), (m, 1), m being 1 where x is observed: no row is completed, the sums are."""
    c = centre(theta)
    sigma, offset = scales.by_feature(theta["sigma"], theta["mu"]), theta["mu"] - c
    height = -((offset / sigma) ** 2) / 2 - jnp.log(sigma) - LOG_2PI / 2
    eta = (
        -1 / (2 * sigma**2),
        offset / sigma**2,
        jnp.concatenate([height, log_weights(theta["pi"])[:, None]], axis=1),
    )

    def features(rows: Float[Array, "n both"], squares: Array | None = None) -> tuple[Array, Array, Array]:
        x, seen = halves(rows)
        x = jnp.where(seen, x - c, 0)
        return x**2, x, and_one(seen.astype(x.dtype))

    def finish(sums: tuple[tuple[Array, Array, Array], Any]) -> Moments:
        squares, S, counts = sums[0]
        counts, N_k = sum_and_count(counts)
        shift = S - counts * offset
        spread = squares - offset * (S + shift) + (N_k[:, None] - counts) * sigma**2
        return Moments(N_k, shift, scales.pooled(spread, theta["sigma"]))

    def common(phi: Any) -> Array:
        return jnp.zeros((), c.dtype)

    # hard ones compare squares alone, and the spread that would judge those has σ² of what is missing in it
    products = linear(theta, c, scales.geometry, eta, features=features, finish=finish, common=common)
    return products._replace(accurate_when_hard=lambda moments: jnp.zeros((), bool))


def by_completing(theta: Theta, about: Theta) -> Products:
    """Of rows completed once for both, and so few at a time that they stay in a core's cache."""
    K, D = theta["mu"].shape
    of_theta, from_about = given(theta), (theta["mu"] - about["mu"])[:, :, None]

    def features(rows: Float[Array, "n both"], squares: Array | None = None) -> tuple[Completed, Array, Array]:
        most = jnp.max(jnp.sum(~halves(rows)[1], axis=1))
        return complete(of_theta, rows, most), rows, most

    def sums(phi: tuple[Completed, Array, Array], gamma: Float[Array, "K n"]) -> Moments:
        done, _, most = phi
        return moments(theta, done._replace(difference=done.difference + from_about), gamma, most)

    return Products(
        width=2 * K * D * D,
        features=features,
        table=lambda phi: log_joint(theta, *phi[:2]),
        common=lambda phi: 0.0,
        sums=by_gamma(sums),
        hard=None,
        finish=lambda sums: sums,
        accurate=None,
        accurate_when_hard=None,
    )


def law(theta: Theta, rows: Float[Array, "n both"]) -> dist.Distribution:
    """N(E[x | observed, k], Cov[x | observed, k]), with variance 1 where x is observed."""
    theta = plain(theta)
    done, (_, seen) = complete(given(theta), rows), halves(rows)
    mean = jnp.swapaxes(theta["mu"][:, :, None] + done.difference, 1, 2)
    if "sigma" in theta:
        variance = jnp.where(seen[None], 1, jnp.swapaxes(done.directions[0] ** 2, 1, 2))
        return dist.Normal(mean, jnp.sqrt(variance)).to_event(1)
    observed = (jnp.eye(seen.shape[1])[None] * seen[:, None])[None]
    factor = jnp.linalg.cholesky(jnp.moveaxis(covariance(done), 3, 1) + observed)
    return dist.MultivariateNormal(mean, scale_tril=factor)


def surface(theta: Theta, old: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ̂ = E_old[log p(x, z = k | θ) | observed, k] + the entropy of what is missing there, what the M-step climbs."""
    theta, old = plain(theta), plain(old)
    done = complete(given(old), rows)
    moved = done.difference + (old["mu"] - theta["mu"])[:, :, None]
    hidden = jnp.sum(~halves(rows)[1], axis=1, dtype=rows.dtype)[None]
    if "sigma" in theta:
        sigma, before = (scales.by_feature(t["sigma"], t["mu"]) for t in (theta, old))
        heights = scales.heights(theta)
        squares = jnp.sum((moved**2 + done.directions[0] ** 2) / sigma[:, :, None] ** 2, axis=1)
        log_det = 2 * jnp.sum(jnp.log(before), axis=1)
    else:
        inverse, heights = covariances.whiteners_and_heights(theta)
        white = covariances.whitened(inverse, moved)
        precision = jnp.einsum("kde,kdf->kef", inverse, inverse, precision=EXACT)
        trace = jnp.einsum("kde,kden->kn", precision, covariance(done), precision=EXACT)
        squares = jnp.sum(white**2, axis=1) + trace
        log_det = 2 * covariances.whiteners(old)[1]
    entropy = log_det[:, None] - done.log_det + hidden * (LOG_2PI + 1)
    return heights[:, None] - (squares - entropy) / 2
