"""Gaussian mixtures: x_n | z_n = k ~ N(μ_k, Σ_k), z_n ~ Categorical(π).

Statistics are taken about the current means, Σ γ (x − μ_k) and Σ γ ‖x − μ_k‖², never as raw moments:
E[x²] − μ² loses every digit when the data sit far from the origin or a cluster is tight, while these
differences keep theirs, and the correction for the mean's move vanishes as EM converges.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from jaxem._mixture import Mixture, Theta


def squared_distances(x: Float[Array, "n D"], mu: Float[Array, "K D"]) -> Float[Array, "K n"]:
    """d_nk = ‖x_n − μ_k‖², component-major, by differences: exact where the expanded square cancels."""
    return jnp.sum((x.T[None] - mu[:, :, None]) ** 2, axis=1)


def divide_where_occupied(sums: Float[Array, "K D"], N_k: Float[Array, " K"]) -> Float[Array, "K D"]:
    """sums / N_k, and 0 for an empty component, whose parameters F does not depend on.

    Empty means N_k below the smallest normal number over eps: fewer than the digits of a mean are left.
    """
    limits = jnp.finfo(N_k.dtype)
    occupied = N_k > limits.tiny / limits.eps
    return jnp.where(occupied[:, None], sums / jnp.where(occupied, N_k, 1)[:, None], 0)


class Moments(NamedTuple):
    """Additive statistics about the means μ_k at which the E-step was done."""

    N_k: Float[Array, " K"]  # Σ_n γ_nk
    shift: Float[Array, "K D"]  # Σ_n γ_nk (x_n − μ_k)
    spread: Float[Array, " K"]  # Σ_n γ_nk ‖x_n − μ_k‖²


# ---- isotropic: one σ for all components (the sources' model; mclust's EII)


def isotropic_program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ N(μ_k, σ² I)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = numpyro.param("mu", constraint=constraints.real)
    sigma = numpyro.param("sigma", constraint=constraints.positive)
    if x is not None:
        x = jnp.reshape(x, (-1, jnp.shape(mu)[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Normal(jnp.asarray(mu)[z], sigma).to_event(1), obs=x)


def isotropic_log_joint(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − d_nk / 2σ² − (D/2) log 2πσ²."""
    pi, mu, sigma = theta["pi"], theta["mu"], theta["sigma"]
    log_pi = jnp.where(pi > 0, jnp.log(jnp.where(pi > 0, pi, 1)), -jnp.inf)
    log_normaliser = mu.shape[1] / 2 * jnp.log(2 * jnp.pi) + mu.shape[1] * jnp.log(sigma)
    return (log_pi - log_normaliser)[:, None] - squared_distances(x, mu) / (2 * sigma**2)


def isotropic_statistics(theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x − μ_k), Σγ‖x − μ_k‖²."""
    differences = x.T[None] - theta["mu"][:, :, None]
    return Moments(
        N_k=jnp.sum(gamma, axis=1),
        shift=jnp.einsum("kn,kdn->kd", gamma, differences),
        spread=jnp.sum(gamma * jnp.sum(differences**2, axis=1), axis=1),
    )


def isotropic_update(moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
    """π_k = N_k/N,  μ_k = Σγx / N_k,  σ² = Σγ‖x − μ_k‖² / ND  (Bishop 2006, §9.2–9.3)."""
    N_k, shift, spread = moments
    num_features = shift.shape[1]
    total = jnp.sum(N_k)
    move = jnp.zeros_like(shift)
    if "pi" not in held:
        theta = theta | {"pi": N_k / total}
    if "mu" not in held:
        move = divide_where_occupied(shift, N_k)
        theta = theta | {"mu": theta["mu"] + move}
    if "sigma" not in held:
        # Σγ‖x − μ_k − move‖², expanded about the old mean
        within = spread - 2 * jnp.sum(shift * move, axis=1) + N_k * jnp.sum(move**2, axis=1)
        theta = theta | {"sigma": jnp.sqrt(jnp.sum(within) / (total * num_features))}
    return theta


def isotropic_guess(centres: Float[Array, "K D"], x: Float[Array, "N D"]) -> Theta:
    """π = 1/K, μ the centres, σ the pooled standard deviation of the data."""
    num_components = centres.shape[0]
    pi = jnp.full(num_components, 1 / num_components, centres.dtype)
    return {"pi": pi, "mu": centres, "sigma": jnp.sqrt(jnp.mean((x - jnp.mean(x, axis=0)[None]) ** 2))}


def isotropic_gradient_form(theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
    """The M-step as a step along ∇L (eq:XuJordan; Xu & Jordan 1996, theorem 1):

    μ_k⁺ = μ_k + (σ²/N_k) ∇_{μ_k} L,   π⁺ = π + (1/N)(diag π − ππᵀ) ∇_π L,
    σ⁺² + Σ_k N_k ‖μ_k⁺ − μ_k‖² / ND = σ² + (σ³/ND) ∂L/∂σ.
    """
    pi, mu, sigma = theta["pi"], theta["mu"], theta["sigma"]
    total, num_features = jnp.sum(N_k), mu.shape[1]
    move = jnp.zeros_like(mu)
    if "pi" not in held:
        step = pi * (gradient["pi"] - jnp.sum(pi * gradient["pi"])) / total
        theta = theta | {"pi": pi + step}
    if "mu" not in held:
        move = divide_where_occupied(sigma**2 * gradient["mu"], N_k)
        theta = theta | {"mu": mu + move}
    if "sigma" not in held:
        moved = jnp.sum(N_k * jnp.sum(move**2, axis=1))
        variance = sigma**2 + (sigma**3 * gradient["sigma"] - moved) / (total * num_features)
        theta = theta | {"sigma": jnp.sqrt(variance)}
    return theta


isotropic = Mixture(
    program=isotropic_program,
    shapes=(("pi", "K"), ("mu", "K D"), ("sigma", "")),
    kernel=isotropic_log_joint,
    statistics=isotropic_statistics,
    update=isotropic_update,
    guess=isotropic_guess,
    gradient_form=isotropic_gradient_form,
)
