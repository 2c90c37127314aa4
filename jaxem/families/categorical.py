"""Mixtures of products of categoricals: x_nd | z_n = k ~ Categorical(p_kd·), x_nd in 0 … C − 1.

The latent class model for polytomous items (Lazarsfeld & Henry 1968); C = 2 is `bernoulli.mixture`.
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
    """z_n ~ Categorical(π),  x_nd | z_n = k ~ Categorical(p_kd)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    probs = jnp.asarray(numpyro.param("probs", constraint=constraints.simplex))
    if x is not None:
        x = jnp.reshape(x, (-1, probs.shape[-2])).astype(int)
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Categorical(probs[z]).to_event(1), obs=x)


def features(x: Float[Array, "n D"], probs: Float[Array, "K D C"]) -> Float[Array, "n D*C"]:
    """φ(x) = ([x_d = c])_dc."""
    return one_hot(x, probs.shape[2]).reshape(x.shape[0], -1)


def one_hot(x: Float[Array, "n D"], num_categories: int) -> Float[Array, "n D C"]:
    """[x_d = c]."""
    return (x[:, :, None] == jnp.arange(num_categories, dtype=x.dtype)[None, None]).astype(x.dtype)


def natural(probs: Float[Array, "K D C"]) -> Float[Array, "K D*C"]:
    """η = log p."""
    return ef.finite_log(probs).reshape(probs.shape[0], -1)


def from_moments(S: Float[Array, "K F"], probs: Float[Array, "K D C"]) -> Float[Array, "K D C"]:
    """p_dc = Σγ[x_d = c] / Σ_c Σγ[x_d = c]."""
    counts = S.reshape(probs.shape)
    return ef.possible(counts / jnp.sum(counts, axis=2, keepdims=True), counts)


def in_support(x: Shaped[Array | np.ndarray, "n D"], num_categories: int) -> Array | np.ndarray:
    """x in {0, …, C − 1}."""
    return (x >= 0) & (x < num_categories) & ef.integral(x)


def carrier(x: Float[Array, "n D"], probs: Float[Array, "K D C"]) -> Float[Array, " n"]:
    """h = 0."""
    return ef.on_support(in_support(x, probs.shape[2]))


def ascend(probs: Float[Array, "K D C"], gradient: Float[Array, "K D C"]) -> Float[Array, "K D C"]:
    """p⁺ = p + (diag p − ppᵀ) ∇_p L / N_k."""
    return ef.on_simplex(probs, gradient)


def guess(
    centres: Float[Array, "K D"],
    x: Shaped[Array, "N D"],
    num_categories: int,
    weights: Float[Array, " N"] | None = None,
) -> Theta:
    """π = 1/K, p half-way between the centre's one-hot and the overall frequencies, inside the simplex."""
    frequencies = ef.mean_of_rows(one_hot(x.astype(centres.dtype), num_categories), weights)
    probs = (one_hot(centres, num_categories) + frequencies[None]) / 2
    probs = jnp.maximum(probs, ef.least(x.shape[0]))
    return {"pi": ef.equal_weights(centres), "probs": probs / jnp.sum(probs, axis=2, keepdims=True)}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Anything but 0, …, C − 1?"""
    num_categories = theta["probs"].shape[-1]
    advice = (
        f"a categorical mixture with C = {num_categories} takes whole numbers 0 … {num_categories - 1}: renumber the "
        "categories, or give theta['probs'] more of them (num_categories= in jaxem.inits)"
    )
    return ef.first_outside(x, in_support(x, num_categories), advice)


family = ef.ExponentialFamily("probs", features, natural, from_moments, carrier, ascend)

mixture = Mixture(
    name="categorical.mixture",
    program=program,
    shapes=(("pi", "K"), ("probs", "K D C")),
    kernel=family.log_joint,
    statistics=family.statistics,
    update=family.update,
    guess=guess,
    numerics=Numerics(sizes_of_terms=family.sizes_of_terms),
    extras=Extras(check_support=check_support, missing=by_column, gradient_form=family.gradient_form),
)
