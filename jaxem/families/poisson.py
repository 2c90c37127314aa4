"""Mixtures of products of Poissons: x_nd | z_n = k ~ Poisson(λ_kd), x_nd in 0, 1, 2, …

Large counts need care. x log λ − λ − log x! subtracts numbers of size x log x: at x = 10⁶ float32 is left with
a nat of noise. The same number is −I(x, λ) + log p(x | x), with the I-divergence by `jaxem.bregman` and the
density at its own mean by Stirling's series (Loader 2000): nothing large is subtracted, at the price of a
logarithm for every n, k and d. It is used where the data are so large that the product would be off by 10⁻³ nats.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem.bregman import i_divergence_terms
from jaxem.families import _exponential_family as ef
from jaxem.families._missing import by_column
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics

__all__ = ["mixture"]

LOST = 1e-3  # nats a row that the product may be off by


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_nd | z_n = k ~ Poisson(λ_kd)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    rate = jnp.asarray(numpyro.param("rate", constraint=constraints.nonnegative))  # 0 after an M-step on zeros
    if x is not None:
        x = jnp.reshape(x, (-1, rate.shape[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Poisson(rate[z]).to_event(1), obs=x)


def features(x: Float[Array, "n D"], rate: Float[Array, "K D"]) -> Float[Array, "n D+1"]:
    """φ(x) = (x, 1)."""
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def natural(rate: Float[Array, "K D"]) -> Float[Array, "K D+1"]:
    """η = (log λ, −Σ_d λ_d)."""
    return jnp.concatenate([ef.finite_log(rate), -jnp.sum(rate, axis=1, keepdims=True)], axis=1)


def from_moments(S: Float[Array, "K F"], rate: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """λ = Σγx / Σγ."""
    return ef.possible(S[:, :-1] / S[:, -1:], S[:, :-1])


def in_support(x: Shaped[Array | np.ndarray, "n D"]) -> Array | np.ndarray:
    """x in {0, 1, 2, …}."""
    return (x >= 0) & ef.integral(x)


def carrier(x: Float[Array, "n D"], rate: Float[Array, "K D"]) -> Float[Array, " n"]:
    """h = −Σ_d log x_d!"""
    return ef.on_support(in_support(x), -jnp.sum(jax.scipy.special.gammaln(jnp.maximum(x, 0) + 1), axis=1))


def ascend(rate: Float[Array, "K D"], gradient: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """λ⁺ = λ + λ ∇_λ L / N_k."""
    return rate + rate * gradient


family = ef.ExponentialFamily("rate", features, natural, from_moments, carrier, ascend)


def log_joint(theta: Theta, x: Shaped[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k + Σ_d x_nd log λ_kd − λ_kd − log x_nd!, by the form that keeps its digits."""
    dtype = theta["rate"].dtype
    largest = jnp.maximum(jnp.max(x).astype(dtype), 1)
    lost = jnp.finfo(dtype).eps * x.shape[1] * largest * jnp.log(largest)  # a function of x: fixed along a fit
    return lax.cond(lost < LOST, family.log_joint, log_joint_by_divergence, theta, x)


def sizes_of_terms(theta: Theta, moments: ef.Moments) -> Array:
    """The family's; where they were larger than rounding allows, they are not subtracted."""
    most = LOST / jnp.finfo(theta["rate"].dtype).eps
    return jnp.minimum(family.sizes_of_terms(theta, moments), most * jnp.sum(moments.N_k))


def log_joint_by_divergence(theta: Theta, x: Shaped[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − I(x_n, λ_k) + log p(x_n | x_n)."""
    rate = theta["rate"]
    x = x.astype(rate.dtype)
    divergence = jnp.sum(i_divergence_terms(x.T[None], rate[:, :, None]), axis=1)
    h = ef.on_support(in_support(x), jnp.sum(log_saturated(jnp.maximum(x, 0)), axis=1))
    return ef.impossible_to_infinity(ef.finite_log(theta["pi"])[:, None] - divergence) + h[None]


def log_saturated(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """log p(x | λ = x) = x log x − x − log x!; from x = 16 on by Stirling's series, off by at most 10⁻¹⁴."""
    large = x >= 16
    y = jnp.where(large, x, 16)
    r = 1 / y**2
    stirling = -jnp.log(2 * jnp.pi * y) / 2 - (1 / 12 - r * (1 / 360 - r * (1 / 1260 - r / 1680))) / y
    small = jnp.where(large, 0, x)
    direct = jax.scipy.special.xlogy(small, small) - small - jax.scipy.special.gammaln(small + 1)
    return jnp.where(large, stirling, direct)


def guess(centres: Float[Array, "K D"], x: Shaped[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """π = 1/K, λ half-way between the centre and the overall mean, above 0."""
    return {"pi": ef.equal_weights(centres), "rate": jnp.maximum(ef.halfway(centres, x, weights), ef.least(x.shape[0]))}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Anything but a count?"""
    advice = "a Poisson mixture takes counts 0, 1, 2, …: drop the row, or use a gaussian or exponential family"
    return ef.first_outside(x, in_support(x), advice)


mixture = Mixture(
    name="poisson.mixture",
    program=program,
    shapes=(("pi", "K"), ("rate", "K D")),
    kernel=log_joint,
    statistics=family.statistics,
    update=family.update,
    guess=guess,
    numerics=Numerics(sizes_of_terms=sizes_of_terms),
    extras=Extras(check_support=check_support, missing=by_column, gradient_form=family.gradient_form),
)
