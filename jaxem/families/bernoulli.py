"""Mixtures of products of Bernoullis: x_nd | z_n = k ~ Bernoulli(p_kd), z_n ~ Categorical(π).

The latent class model (Lazarsfeld 1950; Bishop 2006, §9.3.3). Rows of 0 and 1, of any numeric dtype or bool.
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
    """z_n ~ Categorical(π),  x_nd | z_n = k ~ Bernoulli(p_kd)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    probs = jnp.asarray(numpyro.param("probs", constraint=constraints.unit_interval))
    if x is not None:
        x = jnp.reshape(x, (-1, probs.shape[-1])).astype(probs.dtype)
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def features(x: Float[Array, "n D"], probs: Float[Array, "K D"]) -> Float[Array, "n 2*D"]:
    """φ(x) = (x, 1 − x)."""
    return jnp.concatenate([x, 1 - x], axis=1)


def natural(probs: Float[Array, "K D"]) -> Float[Array, "K 2*D"]:
    """η = (log p, log(1 − p))."""
    return jnp.concatenate([ef.finite_log(probs), ef.finite_log(1 - probs)], axis=1)


def from_moments(S: Float[Array, "K F"], probs: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """p = Σγx / (Σγx + Σγ(1 − x)): in [0, 1] whatever the rounding, and 0 or 1 only where no γ says otherwise."""
    ones, zeros = jnp.split(S, 2, axis=1)
    p = ef.possible(ones / (ones + zeros), ones)
    below_one = 1 - jnp.finfo(p.dtype).epsneg
    return jnp.where(zeros > 0, jnp.minimum(p, below_one), p)


def in_support(x: Shaped[Array | np.ndarray, "n D"]) -> Array | np.ndarray:
    """x in {0, 1}."""
    return (x == 0) | (x == 1)


def carrier(x: Float[Array, "n D"], probs: Float[Array, "K D"]) -> Float[Array, " n"]:
    """h = 0."""
    return ef.on_support(in_support(x))


def ascend(probs: Float[Array, "K D"], gradient: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """p⁺ = p + p(1 − p) ∇_p L / N_k."""
    return probs + probs * (1 - probs) * gradient


def guess(centres: Float[Array, "K D"], x: Shaped[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """π = 1/K, p half-way between the centre and the overall mean, inside (0, 1)."""
    edge = ef.least(x.shape[0])
    return {"pi": ef.equal_weights(centres), "probs": jnp.clip(ef.halfway(centres, x, weights), edge, 1 - edge)}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Anything but 0 and 1?"""
    return ef.first_outside(x, in_support(x), "a Bernoulli mixture takes 0 and 1 only: binarise it, e.g. x > 0.5")


family = ef.ExponentialFamily("probs", features, natural, from_moments, carrier, ascend)


def conditional(theta: Theta, x: Shaped[Array, "n D"], mask: np.ndarray) -> tuple[Array, dist.Distribution]:
    """ℓ of the observed columns, and the hidden ones given z: independent of them, Bernoulli(p_kd)."""
    probs = theta["probs"]
    table = family.log_joint(theta | {"probs": probs[:, mask]}, x[:, mask])
    return table, dist.Bernoulli(probs[:, None, ~mask]).to_event(1)


mixture = Mixture(
    name="bernoulli.mixture",
    program=program,
    shapes=(("pi", "K"), ("probs", "K D")),
    kernel=family.log_joint,
    statistics=family.statistics,
    update=family.update,
    guess=guess,
    numerics=Numerics(sizes_of_terms=family.sizes_of_terms),
    extras=Extras(
        check_support=check_support, condition=conditional, missing=by_column, gradient_form=family.gradient_form
    ),
)
