"""Mixtures of products of gammas: x_nd | z_n = k ~ Gamma(α_kd, β_kd), density β^α x^{α−1} e^{−βx} / Γ(α) on x > 0.

α is a concentration, without unit, β a rate, in units of 1/x. With the mean m = α/β and Itakura & Saito's divergence
D(x, m) = x/m − log(x/m) − 1 it is

    log p(x) = −α D(x, m) − log x + c(α),   c(α) = α log α − α − log Γ(α)

where nothing large is subtracted, however narrow the density. The M-step matches E[x] and E[log x]:

    log α − ψ(α) = log Σγx/Σγ − Σγ log x/Σγ,   β = α / (Σγx/Σγ)              (Minka 2002)

The difference on the right is taken from sums about the current mean, of x/m − 1 and of D(x, m): it keeps its digits.
A component whose rows are all alike in some column has no maximum (α → ∞): its fit ends in Status NONFINITE.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem.bregman import itakura_saito_terms, log_defect
from jaxem.families import _exponential_family as ef
from jaxem.families._gamma_function import HALF_LOG_2PI, concentration_of, inverse_digamma, log_less_digamma, rest
from jaxem.families._missing import by_column
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics
from jaxem.families.gaussian._moments import over_features

__all__ = ["mixture"]


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_nd | z_n = k ~ Gamma(α_kd, β_kd)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    concentration = jnp.asarray(numpyro.param("concentration", constraint=constraints.positive))
    rate = jnp.asarray(numpyro.param("rate", constraint=constraints.positive))
    if x is not None:
        x = jnp.reshape(x, (-1, rate.shape[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Gamma(concentration[z], rate[z]).to_event(1), obs=x)


class Moments(NamedTuple):
    """Additive statistics about the means m at which the E-step was done."""

    N_k: Float[Array, " K"]  # Σγ
    shift: Float[Array, "K D"]  # Σγ(x/m − 1)
    spread: Float[Array, "K D"]  # Σγ D(x, m)


def height(concentration: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """c(α) = ½ log α/2π − rest(α): log p at its mean, and that times x."""
    return jnp.log(concentration) / 2 - HALF_LOG_2PI - rest(concentration)


def in_support(x: Shaped[Array | np.ndarray, "n D"]) -> Array | np.ndarray:
    """x > 0."""
    return (x > 0) & (x < np.inf)


def log_joint(theta: Theta, x: Shaped[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k + Σ_d c(α_kd) − α_kd D(x_nd, m_kd) − log x_nd."""
    alpha, beta = theta["concentration"], theta["rate"]
    inside = in_support(x)
    x = jnp.where(inside, x, 1).astype(alpha.dtype)
    divergence = over_features(lambda x, m, alpha: alpha * itakura_saito_terms(x, m), x, alpha / beta, alpha)
    heights = ef.finite_log(theta["pi"]) + jnp.sum(height(alpha), axis=1)
    h = ef.on_support(inside, -jnp.sum(jnp.log(x), axis=1))
    return ef.impossible_to_infinity(heights[:, None] - divergence) + h[None]


def statistics(theta: Theta, x: Shaped[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x/m − 1), Σγ D(x, m)."""
    mean = (theta["concentration"] / theta["rate"])[:, :, None]
    x = x.astype(mean.dtype).T[None]
    shift = jnp.sum(gamma[:, None] * ((x - mean) / mean), axis=2)
    return Moments(jnp.sum(gamma, axis=1), shift, jnp.sum(gamma[:, None] * itakura_saito_terms(x, mean), axis=2))


def update(moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
    """π_k = N_k / N, and α, β with these E[x] and E[log x]."""
    N_k, shift, spread = moments
    theta = ef.with_weights(theta, N_k, held)
    count = ef.counts(N_k)[:, None]
    return theta | matched(theta, shift / count, spread / count, N_k, held)


def matched(theta: Theta, shift: Array, spread: Array, N_k: Array, held: frozenset[str]) -> Theta:
    """The free ones of α and β, of E[x] = m (1 + shift) and E[log x] = log m + shift − spread, m the mean at θ."""
    alpha, beta = theta["concentration"], theta["rate"]
    mean = alpha / beta
    new = {}
    if "concentration" not in held and "rate" in held:
        new["concentration"] = inverse_digamma(jnp.log(alpha) + shift - spread)
    elif "concentration" not in held:
        difference = spread - log_defect(shift)  # log E[x] − E[log x]
        apart = difference > (4 * jnp.finfo(mean.dtype).eps) ** 2  # else x differs by what m is rounded
        new["concentration"] = concentration_of(jnp.where(apart, difference, 0))
    if "rate" not in held:
        new["rate"] = new.get("concentration", alpha) / (mean * (1 + shift))
    return {name: ef.keep_where_empty(N_k, value, theta[name]) for name, value in new.items()}


def gradient_form(theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
    """The M-step as a step along ∇L (eq:XuJordan): E⁺[x] = m − ∇_β L / N_k,  E⁺[log x] = E[log x] + ∇_α L / N_k.

    α − 1 and −β are the natural parameters, in which m⁺ − m = I_c⁻¹ ∇L in mean parameters is ∇L / N_k.
    """
    alpha, beta = theta["concentration"], theta["rate"]
    theta = ef.with_stepped_weights(theta, gradient, N_k, held)
    count = ef.counts(N_k)[:, None]
    shift = -gradient["rate"] / count * (beta / alpha)
    spread = shift + log_less_digamma(alpha) - gradient["concentration"] / count
    return theta | matched(theta, shift, spread, N_k, held)


def sizes_of_terms(theta: Theta, moments: Moments) -> Array:
    """Σ γ (sizes of the terms of ℓ)."""
    alpha, beta = theta["concentration"], theta["rate"]
    log_pi = ef.size_of_log(theta["pi"])
    of_rows = jnp.sum(jnp.abs(height(alpha)) + jnp.abs(jnp.log(alpha / beta)), axis=1) + log_pi
    return jnp.sum(alpha * moments.spread) + jnp.sum(moments.N_k * of_rows)


def guess(centres: Float[Array, "K D"], x: Shaped[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """π = 1/K, means half-way between centre and overall mean, α that of all rows by moments, between 1 and 100."""
    x = x.astype(centres.dtype)
    overall, mean = ef.mean_of_rows(x, weights), ef.halfway(centres, x, weights)
    variance = ef.mean_of_rows((x / overall[None] - 1) ** 2, weights)
    alpha = jnp.broadcast_to(1 / jnp.clip(variance, 0.01, 1), mean.shape)
    return {"pi": ef.equal_weights(centres), "concentration": alpha, "rate": alpha / mean}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Anything that is not positive?"""
    advice = "a gamma mixture takes values > 0: drop the row, or use an exponential or gaussian family"
    return ef.first_outside(x, in_support(x), advice)


mixture = Mixture(
    name="gamma.mixture",
    program=program,
    shapes=(("pi", "K"), ("concentration", "K D"), ("rate", "K D")),
    kernel=log_joint,
    statistics=statistics,
    update=update,
    guess=guess,
    numerics=Numerics(sizes_of_terms=sizes_of_terms),
    extras=Extras(check_support=check_support, missing=partial(by_column, filler=1.0), gradient_form=gradient_form),
)
