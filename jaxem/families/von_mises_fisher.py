"""Mixtures of von Mises–Fisher laws: unit rows x_n | z_n = k ~ vMF(μ_k, κ_k) on the sphere of R^D, D ≥ 2.

μ_k is a direction, ‖μ_k‖ = 1, and κ_k a concentration, without unit: near 1/κ is the variance across μ, and at κ = 0
the law is uniform. An exponential family of x, of which E[x] = A(κ) μ, A = I_{D/2}/I_{D/2−1}. So the M-step is

    μ = Σγx / ‖Σγx‖,    1 − A(κ) = 1 − ‖Σγx‖/Σγ              (Banerjee, Dhillon, Ghosh & Sra 2005)

by Newton's method to rounding; the difference on the right is taken from sums about the current μ, of ‖x − μ‖²/2, and
keeps its digits. A component whose rows are all alike has no maximum (κ → ∞): its fit ends in Status NONFINITE.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem._core.root import root
from jaxem.families import _exponential_family as ef
from jaxem.families._bessel import height, spread
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics
from jaxem.families._sphere import NEAR, VonMisesFisher, on_sphere, unit
from jaxem.families.gaussian._moments import differences, squared_distances

__all__ = ["mixture"]


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ vMF(μ_k, κ_k)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = jnp.asarray(numpyro.param("mu", constraint=unit))
    kappa = jnp.asarray(numpyro.param("kappa", constraint=constraints.nonnegative))
    if x is not None:
        x = jnp.reshape(x, (-1, mu.shape[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", VonMisesFisher(mu[z], kappa[z]), obs=x)


class Moments(NamedTuple):
    """Additive statistics about the directions at which the E-step was done."""

    N_k: Float[Array, " K"]  # Σγ
    shift: Float[Array, "K D"]  # Σγ(x − μ)
    spread: Float[Array, " K"]  # Σγ ‖x − μ‖²/2


def log_joint(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k + h(κ_k) − κ_k ‖x_n − μ_k‖²/2."""
    kappa = theta["kappa"]
    heights = ef.finite_log(theta["pi"]) + height(kappa, x.shape[1])
    table = heights[:, None] - kappa[:, None] * squared_distances(x, theta["mu"]) / 2
    return ef.impossible_to_infinity(table) + jnp.where(on_sphere(x), 0, -jnp.inf)[None]


def statistics(theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x − μ), Σγ ‖x − μ‖²/2."""
    shift = jnp.einsum("kn,kdn->kd", gamma, differences(x, theta["mu"]), precision=lax.Precision.HIGHEST)
    spread = jnp.sum(gamma * squared_distances(x, theta["mu"]), axis=1) / 2
    return Moments(jnp.sum(gamma, axis=1), shift, spread)


def update(moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
    """π_k = N_k / N,  μ_k and κ_k with E[x] = Σγx / N_k."""
    N_k = moments.N_k
    theta = ef.with_weights(theta, N_k, held)
    count = ef.counts(N_k)
    return theta | matched(theta, moments.shift / count[:, None], moments.spread / count, N_k, held)


def matched(theta: Theta, shift: Array, apart: Array, N_k: Array, held: frozenset[str]) -> Theta:
    """The free ones of μ and κ, of E[x] = μ + shift and E‖x − μ‖²/2 = apart, μ that of θ."""
    mu, new = theta["mu"], {}
    if "mu" not in held:
        mean = mu + shift
        length = jnp.linalg.norm(mean, axis=1)
        some = length > 0  # else any direction is as good
        new["mu"] = jnp.where(some[:, None], mean / jnp.where(some, length, 1)[:, None], mu)
        along = 1 - apart
        across = jnp.sum((shift - mu * jnp.sum(mu * shift, axis=1, keepdims=True)) ** 2, axis=1)
        nearer = across / jnp.where(along > 0, length + along, 1)  # ‖E[x]‖ − μᵀE[x]
        apart = jnp.where(along > 0, apart - nearer, 1 - length)
    if "kappa" not in held:
        new["kappa"] = concentration(apart, mu.shape[1])
    return {name: ef.keep_where_empty(N_k, value, theta[name]) for name, value in new.items()}


def concentration(apart: Float[Array, " K"], D: int) -> Float[Array, " K"]:
    """κ with 1 − A(κ) = apart, between (D − 2) ρ/(1 − ρ²) and D ρ/(1 − ρ²), ρ = 1 − apart (Tanabe et al. 2007).

    0 where apart ≥ 1, and NaN, for ∞, where rows differ by what they are rounded.
    """
    eps = jnp.finfo(apart.dtype).eps
    different = ~(apart <= D * (4 * eps) ** 2)
    s = jnp.where(different, apart, 1 / 2)
    rho = jnp.maximum(1 - s, 0)
    scale = rho / jnp.where(rho > 0, s * (2 - s), 1)
    low, high = (D - 2) * scale * (1 - 8 * eps), D * scale * (1 + 8 * eps)
    found = root(lambda kappa: spread(kappa, D) - s, (D - rho**2) * scale, low, high)
    return jnp.where(different, jnp.where(rho > 0, found, 0), jnp.nan)


def gradient_form(theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
    """The M-step as a step along ∇L (eq:XuJordan): E⁺[x] = μ + ∇_μ L / κN_k,  E⁺‖x − μ‖²/2 = 1 − A(κ) − ∇_κ L / N_k."""
    kappa = theta["kappa"]
    theta = ef.with_stepped_weights(theta, gradient, N_k, held)
    count = ef.counts(N_k)
    shift = gradient["mu"] / (count * kappa)[:, None]
    apart = spread(kappa, theta["mu"].shape[1]) - gradient["kappa"] / count
    return theta | matched(theta, shift, apart, N_k, held)


def sizes_of_terms(theta: Theta, moments: Moments) -> Array:
    """Σ γ (sizes of the terms of ℓ)."""
    log_pi = ef.size_of_log(theta["pi"])
    peaks = jnp.abs(height(theta["kappa"], theta["mu"].shape[1]))
    return jnp.sum(theta["kappa"] * moments.spread) + jnp.sum(moments.N_k * (log_pi + peaks))


def guess(centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """π = 1/K, μ the centres' directions, κ that of all rows about one direction, but at least D."""
    D = centres.shape[1]
    length = jnp.linalg.norm(centres, axis=1, keepdims=True)
    first = jnp.zeros_like(centres).at[:, 0].set(1)
    mu = jnp.where(length > 0, centres / jnp.where(length > 0, length, 1), first)
    rho = jnp.minimum(jnp.linalg.norm(ef.mean_of_rows(x, weights)), 1 - 1e-3)
    kappa = jnp.maximum(rho * (D - rho**2) / (1 - rho**2), D)
    return {"pi": ef.equal_weights(centres), "mu": mu, "kappa": jnp.broadcast_to(kappa, centres.shape[:1])}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Any row that is not of norm 1?"""
    if x.shape[1] < 2:
        return "has one column, and directions have at least two; pass rows on a circle or a sphere"
    norm = np.sqrt((x.astype(float) ** 2).sum(axis=1))
    bad = np.flatnonzero(~(np.abs(norm**2 - 1) < NEAR))
    if not bad.size:
        return None
    if not np.isfinite(x.astype(float)).all():
        return ef.first_outside(x.astype(float), np.isfinite(x), "")
    return (
        f"has {bad.size} row(s) that are not of norm 1, first row {bad[0]}, of norm {norm[bad[0]]:.6g}; divide each "
        "row by its norm"
    )


mixture = Mixture(
    name="von_mises_fisher.mixture",
    program=program,
    shapes=(("pi", "K"), ("mu", "K D"), ("kappa", "K")),
    kernel=log_joint,
    statistics=statistics,
    update=update,
    guess=guess,
    numerics=Numerics(sizes_of_terms=sizes_of_terms),
    extras=Extras(check_support=check_support, gradient_form=gradient_form),
)
