"""`isotropic`, `spherical`, `diagonal`: Σ_k = diag(σ_k²), with the scales pooled over all, over D, or not at all.

    ℓ_nk = log π_k − Σ_d (x_nd − μ_kd)² / 2σ_kd² − Σ_d log σ_kd − (D/2) log 2π
    σ²   = Σ γ (x − μ⁺)² / Σ γ, both sums over the entries that share σ    (Celeux & Govaert 1995, EII VII VVI)

Tables and statistics come twice: by differences, and by matrix products in natural parameters.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem._rows.chunks import squared_norms
from jaxem._rows.gpu import KernelSums, Quadratic
from jaxem._rows.products import Fused, Products, added, in_fours
from jaxem.families import _exponential_family as ef
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras
from jaxem.families.gaussian._accuracy import and_one, linear, recentre
from jaxem.families.gaussian._moments import (
    Moments,
    centre,
    centred,
    differences,
    divide_where_occupied,
    equal_weights_at,
    leading,
    log_weights,
    over_features,
    spread_or_a_stand_in,
    squared_distances,
    step_weights_and_means,
    sum_and_count,
    sum_of_squares,
    underflown,
    update_weights_and_means,
)
from jaxem.families.gaussian._rounding import numerics, rounding_of_scales


def by_feature(sigma: Array, mu: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """σ of any of the three shapes (), (K,), (K, D) as (K, D)."""
    sigma = jnp.asarray(sigma)
    return jnp.broadcast_to(jnp.reshape(sigma, sigma.shape + (1,) * (2 - sigma.ndim)), jnp.shape(mu))


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ N(μ_k, diag σ_k²)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = numpyro.param("mu", constraint=constraints.real)
    sigma = numpyro.param("sigma", constraint=constraints.positive)
    if x is not None:
        x = jnp.reshape(x, (-1, jnp.shape(mu)[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(jnp.asarray(mu)[z], by_feature(sigma, mu)[z]).to_event(1), obs=x)


# ---- the table and its statistics, by differences


def heights(theta: Theta) -> Float[Array, " K"]:
    """log π_k − Σ_d log σ_kd − (D/2) log 2π: ℓ at its peaks."""
    sigma = by_feature(theta["sigma"], theta["mu"])
    return log_weights(theta["pi"]) - jnp.sum(jnp.log(sigma), axis=1) - sigma.shape[1] / 2 * jnp.log(2 * jnp.pi)


def relative_heights(theta: Theta) -> Float[Array, " K"]:
    """Less the largest."""
    return heights(theta) - constant(theta)


def constant(theta: Theta) -> Float[Array, ""]:
    """The largest, which tables leave out."""
    return leading(heights(theta))


def round_table(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − d_nk / 2σ_k² − (D/2) log 2πσ_k², less `constant`."""
    sigma = jnp.broadcast_to(theta["sigma"], theta["pi"].shape)[:, None]
    return relative_heights(theta)[:, None] - squared_distances(x, theta["mu"]) / (2 * sigma**2)


def round_statistics(theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x − μ_k), Σγ‖x − μ_k‖², `isotropic`'s summed over k."""
    difference = differences(x, theta["mu"])
    return Moments(
        N_k=jnp.sum(gamma, axis=1),
        shift=jnp.einsum("kn,kdn->kd", gamma, difference),
        spread=pooled(jnp.sum(gamma * sum_of_squares(difference), axis=1), theta["sigma"]),
    )


def round_statistics_by_winner(
    theta: Theta, x: Float[Array, "n D"], winner: Int[Array, " n"], weights: Float[Array, " n"]
) -> Moments:
    """`isotropic`'s, where a row belongs to one component: its difference to that one's mean is all it needs."""
    difference = x - theta["mu"][winner]
    num_components, num_features = theta["mu"].shape
    terms = in_fours(weights[:, None] * and_one(difference))
    sums = added(jnp.zeros_like(terms, shape=(num_components, terms.shape[1])), winner, terms)
    shift, N_k = sum_and_count(sums[:, : num_features + 1])
    return Moments(N_k, shift, jnp.sum(terms[:, :num_features] * difference))


def diagonal_table(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − Σ_d (x_nd − μ_kd)² / 2σ_kd² − Σ_d log σ_kd − (D/2) log 2π, less `constant`."""
    quadratic = over_features(lambda x, mu, sigma: ((x - mu) / sigma) ** 2, x, theta["mu"], theta["sigma"])
    return relative_heights(theta)[:, None] - quadratic / 2


def diagonal_statistics(theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x − μ_k), Σγ(x − μ_k)² feature by feature."""
    difference = differences(x, theta["mu"])
    return Moments(
        N_k=jnp.sum(gamma, axis=1),
        shift=jnp.einsum("kn,kdn->kd", gamma, difference),
        spread=jnp.einsum("kn,kdn->kd", gamma, difference**2),
    )


# ---- the same in natural parameters, about c


def diagonal_products(theta: Theta, about: Theta, may_cancel: Array | bool) -> Products:
    """φ = x², (x, 1),  η_k = −1/2σ_k², ((μ_k − c)/σ_k², ℓ at c)."""
    c = centre(theta)
    offset = theta["mu"] - c
    eta = (-1 / (2 * theta["sigma"] ** 2), slope_and_intercept(theta, offset))

    def features(x: Float[Array, "n D"], squares: Array | None = None) -> tuple[Array, Array]:
        return (x - c) ** 2, and_one(x - c)

    def finish(sums: tuple[tuple[Array, Array], Any]) -> Moments:
        squares, (S, N_k) = sums[0][0], sum_and_count(sums[0][1])
        shift = S - N_k[:, None] * offset
        # Σγ(x − μ)² = Σγ(x − c)² − δ(Σγ(x − c) + Σγ(x − μ)),  δ = μ − c
        return Moments(N_k, shift, squares - offset * (S + shift))

    return at_height(theta, c, eta, features=features, finish=finish)


def spherical_products(theta: Theta, about: Theta, may_cancel: Array | bool, c: Array | None = None) -> Products:
    """φ = ‖x‖², (x, 1),  η_k = −1/2σ_k², ((μ_k − c)/σ_k², ℓ at c)."""
    c = centre(theta) if c is None else c
    offset = theta["mu"] - c
    eta = (-1 / (2 * theta["sigma"][:, None] ** 2), slope_and_intercept(theta, offset))

    def features(x: Float[Array, "n D"], squares: Array | None = None) -> tuple[Array, Array]:
        return (squared_norms(x - c) if squares is None else squares)[:, None], and_one(x - c)

    def finish(sums: tuple[tuple[Array, Array], Any]) -> Moments:
        squares, (S, N_k) = sums[0][0][:, 0], sum_and_count(sums[0][1])
        shift = S - N_k[:, None] * offset
        return Moments(N_k, shift, squares - jnp.sum(offset * (S + shift), axis=1))  # as for the diagonal

    return at_height(theta, c, eta, features=features, finish=finish)


def at_height(theta: Theta, c: Float[Array, "1 D"], eta: tuple[Array, ...], **options: Any) -> Products:
    """Of a family whose only term common to all components is `constant`."""
    height = constant(theta)
    return linear(theta, c, geometry, eta, common=lambda phi: height, fused=fused(c, eta, height), **options)


def isotropic_products(theta: Theta, about: Theta, may_cancel: Array | bool, c: Array | None = None) -> Products:
    """φ = (x, 1),  η_k = ((μ_k − c)/σ², ℓ at c), beside −‖x‖²/2σ², which is common to all components."""
    c = centre(theta) if c is None else c
    offset = theta["mu"] - c
    eta = (slope_and_intercept(theta, offset),)
    height = constant(theta)

    def features(x: Float[Array, "n D"], squares: Array | None = None) -> tuple[Array, Array]:
        return and_one(x - c), squared_norms(x - c) if squares is None else squares

    def common(phi: tuple[Array, Array]) -> Float[Array, " n"]:
        return height - phi[1] / (2 * theta["sigma"] ** 2)

    def weighted_squares(phi: tuple[Array, Array], weights: Float[Array, " n"]) -> Float[Array, " n"]:
        return weights * phi[1]

    def finish(sums: tuple[tuple[Array], Array]) -> Moments:
        S, N_k = sum_and_count(sums[0][0])
        shift = S - N_k[:, None] * offset
        return Moments(N_k, shift, jnp.sum(sums[1]) - jnp.sum(offset * (S + shift)))

    return linear(
        theta, c, geometry, eta, features=features, finish=finish, common=common, beside=weighted_squares,
        fused=fused(c, eta, height, -1 / (2 * theta["sigma"] ** 2)),
    )  # fmt: skip


def fused(c: Float[Array, "1 D"], eta: tuple[Array, ...], height: Array, a_square: Array | float = 0.0) -> Fused:
    """The same for a GPU: η of x² (or of ‖x‖²) and of (x, 1); the term common to all, and what ‖x‖² adds to it."""
    *of_squares, affine = eta
    slope, intercept = affine[:, :-1], affine[:, -1]
    squares = jnp.broadcast_to(of_squares[0], slope.shape) if of_squares else None
    common = jnp.stack([height, jnp.asarray(a_square, height.dtype)])

    def unpack(sums: KernelSums) -> tuple[tuple[Array, ...], Any]:
        pooled = jnp.concatenate([sums.x, sums.N_k[:, None]], axis=1)
        if sums.squares is None:
            return (pooled,), sums.norms
        is_norm = of_squares[0].shape[1] == 1
        return (jnp.sum(sums.squares, axis=1, keepdims=True) if is_norm else sums.squares, pooled), ()

    return Fused(Quadratic(c[0], squares, slope, intercept, common), unpack)


def slope_and_intercept(theta: Theta, offset: Float[Array, "K D"]) -> Float[Array, "K D+1"]:
    """((μ_k − c)/σ_k², ℓ at c less `constant`)."""
    sigma = by_feature(theta["sigma"], offset)
    intercept = relative_heights(theta) - jnp.sum((offset / sigma) ** 2 / 2, axis=1)
    return jnp.concatenate([offset / sigma**2, intercept[:, None]], axis=1)


def geometry(theta: Theta) -> tuple[Array, Array]:
    """σ and 1/σ², both (K, D)."""
    sigma = by_feature(theta["sigma"], theta["mu"])
    return sigma, 1 / sigma**2


def inflation(theta: Theta) -> tuple[Array, Array]:
    """σ (K, D), and 1: no feature tells of another."""
    sigma = by_feature(theta["sigma"], theta["mu"])
    return sigma, jnp.ones_like(sigma)


# ---- the M-step


def pooled(sums: Array, like: Array) -> Array:
    """Σ over the axes that σ does not have."""
    return jnp.sum(sums, axis=tuple(range(like.ndim, sums.ndim)))


def update(moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
    """π and μ as for every Gaussian;  σ² = Σγ(x − μ⁺)² / Σγ over what shares σ  (Bishop 2006, §9.2–9.3)."""
    N_k, shift, spread = moments
    theta, move = update_weights_and_means(moments, theta, held)
    if "sigma" in held:
        return theta
    # Σγ(x − μ − move)², expanded about the old mean
    correction = move * (N_k[:, None] * move - 2 * shift)
    within = spread + pooled(correction, spread)
    return theta | {"sigma": _scale(within, N_k, theta)}


def _scale(within: Array, N_k: Array, theta: Theta) -> Array:
    """√(Σ within / Σ N_k) over the entries that share σ; a component that is empty, or nearly so, keeps its own."""
    sigma = theta["sigma"]
    entries = theta["mu"].shape[1] if sigma.ndim < 2 else 1
    within = jnp.maximum(pooled(within, sigma), 0)  # 0 is a collapse: F is then not finite, and em says so
    if sigma.ndim == 0:
        return jnp.sqrt(within / (jnp.sum(N_k) * entries))
    variance = divide_where_occupied(within / entries, N_k, otherwise=1.0)
    N_k = jnp.reshape(N_k, N_k.shape + (1,) * (sigma.ndim - 1))
    mu = theta["mu"] if sigma.ndim == 2 else jnp.max(jnp.abs(theta["mu"]), axis=1)
    return jnp.where(ef.occupied(N_k) & ~underflown(within, N_k, mu), jnp.sqrt(variance), sigma)


def gradient_form(theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
    """The M-step as a step along ∇L (eq:XuJordan):  σ⁺² + ⟨move²⟩ = σ² + σ³ ∂L/∂σ / Σγ, sums over what shares σ."""
    old = theta
    sigma, variance = theta["sigma"], by_feature(theta["sigma"], theta["mu"]) ** 2
    theta, move = step_weights_and_means(theta, gradient, variance * gradient["mu"], N_k, held)
    if "sigma" in held:
        return theta
    counts = pooled(jnp.broadcast_to(N_k[:, None], move.shape), sigma)
    moved = pooled(N_k[:, None] * move**2, sigma)
    return theta | {"sigma": _scale(counts * sigma**2 + sigma**3 * gradient["sigma"] - moved, N_k, old)}


# ---- the start, the conditional, the families


def isotropic_guess(
    centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None
) -> Theta:
    """π = 1/K, μ the centres, σ the pooled standard deviation of the data."""
    variance = jnp.mean(ef.mean_of_rows(centred(x, weights) ** 2, weights))
    return equal_weights_at(centres) | {"sigma": jnp.sqrt(spread_or_a_stand_in(variance, x))}


def spherical_guess(
    centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None
) -> Theta:
    """The same, σ_k the pooled standard deviation for every k."""
    theta = isotropic_guess(centres, x, weights)
    return theta | {"sigma": jnp.broadcast_to(theta["sigma"], theta["pi"].shape)}


def diagonal_guess(
    centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None
) -> Theta:
    """The same, σ_k each feature's standard deviation for every k."""
    variance = ef.mean_of_rows(centred(x, weights) ** 2, weights)
    sigma = jnp.sqrt(spread_or_a_stand_in(variance, x))
    return equal_weights_at(centres) | {"sigma": jnp.broadcast_to(sigma[None], centres.shape)}


def condition(theta: Theta, x: Float[Array, "n D"], mask: np.ndarray) -> tuple[Array, dist.Distribution]:
    """ℓ of the observed columns, (K, n), and the law of the hidden ones given k, which is the same for every x."""
    mu, sigma = theta["mu"], by_feature(theta["sigma"], theta["mu"])
    seen = {"pi": theta["pi"], "mu": mu[:, mask], "sigma": sigma[:, mask]}
    table = diagonal_table(seen, x[:, mask]) + constant(seen)
    law = dist.Normal(mu[:, None, ~mask], sigma[:, None, ~mask]).to_event(1)
    return table, law


numerics_of_scales = numerics(
    ("sigma",),
    inflation,
    rounding_of_scales,
    constant=constant,
    recentre=partial(recentre, geometry=geometry, squares=True),
)
extras = Extras(condition=condition, gradient_form=gradient_form)

isotropic = Mixture(
    name="gaussian.isotropic",
    program=program,
    shapes=(("pi", "K"), ("mu", "K D"), ("sigma", "")),
    kernel=round_table,
    statistics=round_statistics,
    update=update,
    guess=isotropic_guess,
    numerics=replace(
        numerics_of_scales, products=isotropic_products, squares=True, by_winner=round_statistics_by_winner
    ),
    extras=extras,
)

spherical = Mixture(
    name="gaussian.spherical",
    program=program,
    shapes=(("pi", "K"), ("mu", "K D"), ("sigma", "K")),
    kernel=round_table,
    statistics=round_statistics,
    update=update,
    guess=spherical_guess,
    numerics=replace(numerics_of_scales, products=spherical_products, squares=True),
    extras=extras,
)

diagonal = Mixture(
    name="gaussian.diagonal",
    program=program,
    shapes=(("pi", "K"), ("mu", "K D"), ("sigma", "K D")),
    kernel=diagonal_table,
    statistics=diagonal_statistics,
    update=update,
    guess=diagonal_guess,
    numerics=replace(numerics_of_scales, products=diagonal_products),
    extras=extras,
)
