"""Mixtures of products of exponentials: x_nd | z_n = k ~ Exponential(λ_kd), density λ e^{−λx} on x ≥ 0.

λ is a rate, in units of 1/x. A component whose rows are all 0 in some column has no maximum (λ → ∞): its fit
ends in Status NONFINITE.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem.families import _exponential_family as ef
from jaxem.families._missing import by_column
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics

__all__ = ["mixture"]


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_nd | z_n = k ~ Exponential(λ_kd)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    rate = jnp.asarray(numpyro.param("rate", constraint=constraints.positive))
    if x is not None:
        x = jnp.reshape(x, (-1, rate.shape[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Exponential(rate[z]).to_event(1), obs=x)


def features(x: Float[Array, "n D"], rate: Float[Array, "K D"]) -> Float[Array, "n D+1"]:
    """φ(x) = (x, 1)."""
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def natural(rate: Float[Array, "K D"]) -> Float[Array, "K D+1"]:
    """η = (−λ, Σ_d log λ_d)."""
    return jnp.concatenate([-rate, jnp.sum(jnp.log(rate), axis=1, keepdims=True)], axis=1)


def from_moments(S: Float[Array, "K F"], rate: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """1/λ = Σγx / Σγ."""
    return S[:, -1:] / S[:, :-1]


def in_support(x: Shaped[Array | np.ndarray, "n D"]) -> Array | np.ndarray:
    """x ≥ 0."""
    return (x >= 0) & (x < np.inf)


def carrier(x: Float[Array, "n D"], rate: Float[Array, "K D"]) -> Float[Array, " n"]:
    """h = 0, also at x = 0, where the density is λ."""
    return ef.on_support(in_support(x))


def ascend(rate: Float[Array, "K D"], gradient: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """1/λ⁺ = 1/λ − ∇_λ L / N_k; with m = 1/λ, Var[x] ∇_m L = −∇_λ L."""
    return 1 / (1 / rate - gradient)


def guess(centres: Float[Array, "K D"], x: Shaped[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """π = 1/K, 1/λ half-way between the centre and the overall mean; 1 for a column of zeros."""
    mean = ef.halfway(centres, x, weights)
    return {"pi": ef.equal_weights(centres), "rate": 1 / jnp.where(mean > 0, mean, 1)}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Anything negative?"""
    advice = "an Exponential mixture takes values ≥ 0: measure from a start that no value precedes, or drop the row"
    return ef.first_outside(x, in_support(x), advice)


family = ef.ExponentialFamily("rate", features, natural, from_moments, carrier, ascend)

mixture = Mixture(
    name="exponential.mixture",
    program=program,
    shapes=(("pi", "K"), ("rate", "K D")),
    kernel=family.log_joint,
    statistics=family.statistics,
    update=family.update,
    guess=guess,
    numerics=Numerics(sizes_of_terms=family.sizes_of_terms),
    extras=Extras(check_support=check_support, missing=by_column, gradient_form=family.gradient_form),
)
