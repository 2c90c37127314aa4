"""The nine of mclust's models whose components share some of Σ_k's factors, and not others.

    Σ_k = λ_k D_k A_k D_kᵀ:  volume λ > 0, squared units of x;  shape A = diag a, Π a_d = 1;  rotation D, DᵀD = I
    Σ_k = λ_k C_k:           correlation C, det C = 1, where no shape is told from its rotation

A model's name says which are equal (E), vary (V) or are the identity (I), in this order (Banfield & Raftery 1993;
Celeux & Govaert 1995): VEI has volume (K,) and shape (D,); EVE volume (), shape (K, D) and rotation (D, D).

Without a rotation the E-step is that of `diagonal` at the same Σ_k, else that of `full`; of the M-step see
`_factor_updates.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian import _scales as scales
from jaxem.families.gaussian._accuracy import EXACT, recentre
from jaxem.families.gaussian._constraints import orthogonal, unit_determinant, unit_product
from jaxem.families.gaussian._factor_updates import ORDER, Asked, best, to_unit_determinant, to_unit_product
from jaxem.families.gaussian._moments import Moments, equal_weights_at, step_weights_and_means, update_weights_and_means
from jaxem.families.gaussian._rounding import numerics, rounding_of_covariances, rounding_of_scales

FACTORS = {
    "volume": constraints.positive,
    "shape": unit_product,
    "rotation": orthogonal,
    "correlation": unit_determinant,
}


def plain(theta: Theta) -> Theta:
    """θ of `diagonal`, or of `full` where there is a rotation, correlation or factors, with the same Σ_k."""
    if "loadings" in theta:
        loadings, variance = jnp.asarray(theta["loadings"]), jnp.asarray(theta["sigma"]) ** 2
        own = variance[:, :, None] * jnp.eye(variance.shape[1], dtype=variance.dtype)[None]
        Sigma = jnp.einsum("kdq,keq->kde", loadings, loadings, precision=EXACT) + own
        return {"pi": theta["pi"], "mu": theta["mu"], "Sigma": Sigma}
    if "volume" not in theta:
        return theta
    K, D = jnp.shape(theta["mu"])
    volume = jnp.broadcast_to(theta["volume"], (K,))
    others = {"pi": theta["pi"], "mu": theta["mu"]}
    if "correlation" in theta:
        return others | {"Sigma": volume[:, None, None] * jnp.broadcast_to(theta["correlation"], (K, D, D))}
    axes = volume[:, None] * jnp.broadcast_to(theta["shape"], (K, D))
    if "rotation" not in theta:
        return others | {"sigma": jnp.sqrt(axes)}
    rotation = jnp.broadcast_to(theta["rotation"], (K, D, D))
    Sigma = jnp.einsum("kde,kfe->kdf", rotation * axes[:, None], rotation, precision=EXACT)
    return others | {"Sigma": (Sigma + jnp.swapaxes(Sigma, 1, 2)) / 2}


def at_plain(theta: Theta, *args: Any, function: Callable[..., Any]) -> Any:
    """A function of `diagonal`'s or `full`'s θ."""
    return function(plain(theta), *args)


def program(x: Array | None = None, num_points: int | None = None, *, factors: tuple[str, ...]) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ N(μ_k, Σ_k), Σ_k of its factors."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = numpyro.param("mu", constraint=constraints.real)
    theta = plain(
        {"pi": pi, "mu": jnp.asarray(mu)}
        | {name: jnp.asarray(numpyro.param(name, constraint=FACTORS[name])) for name in factors}
    )
    if x is not None:
        x = jnp.reshape(x, (-1, jnp.shape(mu)[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        if "sigma" in theta:
            law = dist.Normal(theta["mu"][z], theta["sigma"][z]).to_event(1)
        else:
            law = dist.MultivariateNormal(theta["mu"][z], scale_tril=jnp.linalg.cholesky(theta["Sigma"])[z])
        numpyro.sample("x", law, obs=x)


def update(moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
    """π and μ as for every Gaussian, and the factors of least J (`_factor_updates.py`)."""
    old = plain(theta)
    new, move = update_weights_and_means(moments, theta, held)
    free = tuple(name for name in ORDER if name in theta and name not in held)
    if not free:
        return new
    N_k, shift, spread = moments
    if "sigma" in old:
        W = jnp.maximum(spread + move * (N_k[:, None] * move - 2 * shift), 0)
        rows = Asked.of(W, N_k, theta, old["sigma"] ** 2)
    else:
        rows = Asked.of(covariances.scatter(moments, theta, held), N_k, theta, old["Sigma"])
    return new | best({name: theta[name] for name in ORDER if name in theta}, rows, free)


def guess(
    centres: Float[Array, "K D"],
    x: Float[Array, "N D"],
    weights: Float[Array, " N"] | None = None,
    *,
    shapes: tuple[tuple[str, str], ...],
) -> Theta:
    """π = 1/K, μ the centres, Σ_k the pooled covariance of the data, or its diagonal."""
    K, D = centres.shape
    names = [name for name, _ in shapes]
    if "rotation" not in names and "correlation" not in names:
        axes = scales.diagonal_guess(centres, x, weights)["sigma"][0] ** 2
        found = {"shape": to_unit_product(axes)}
    else:
        Sigma = covariances.guess(centres, x, weights, is_tied=True)["Sigma"]
        axes, vectors = jnp.linalg.eigh(Sigma)
        found = {"shape": to_unit_product(axes), "rotation": vectors, "correlation": to_unit_determinant(Sigma)}
    found["volume"] = jnp.exp(jnp.mean(jnp.log(axes)))
    sizes = {"K": K, "D": D}
    broad = {
        name: jnp.broadcast_to(found[name], tuple(sizes[axis] for axis in spec.split()))
        for name, spec in shapes
        if name in found
    }
    return equal_weights_at(centres) | broad


def gradient_form_of_EEI(theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
    """The M-step as a step along ∇L (eq:XuJordan):  s⁺ + ⟨move²⟩ = s + (2/N) s² ∇_s L,  s = λa.

    ∂L/∂log s_d = a_d ∂L/∂a_d, L being a function of λa alone.
    """
    s = theta["volume"] * theta["shape"]
    natural = jnp.broadcast_to(s, theta["mu"].shape) * gradient["mu"]
    new, move = step_weights_and_means(theta, gradient, natural, N_k, held)
    ascent = 2 * s * theta["shape"] * gradient["shape"]
    variance = s + (ascent - jnp.sum(N_k[:, None] * move**2, axis=0)) / jnp.sum(N_k)
    shape = theta["shape"] if "shape" in held else to_unit_product(variance)
    found = {"volume": jnp.mean(variance / shape), "shape": shape}
    return new | {name: value for name, value in found.items() if name not in held}


def rounding(theta: Theta, moments: Moments, held: frozenset[str], *, inflation: Any, names: tuple[str, ...]) -> Any:
    """That of `diagonal` or `full`; a singular Σ_k has lost its digits, since factors are not lifted off planes."""
    held = frozenset({"sigma", "Sigma"}) if held.issuperset(names) else frozenset()
    theta = plain(theta)
    if "sigma" in theta:
        return rounding_of_scales(theta, moments, held, inflation=inflation)
    return rounding_of_covariances(theta, moments, held, inflation=inflation, scatter=None)


def shapes_of(name: str) -> tuple[tuple[str, str], ...]:
    """θ's shapes, from a model's three letters."""
    volume, shape, orientation = ("K " * (letter == "V") for letter in name)
    common = (("pi", "K"), ("mu", "K D"), ("volume", volume.strip()))
    if name in ("VEE", "EVV"):
        return (*common, ("correlation", f"{shape}D D"))
    rotation = () if name.endswith("I") else (("rotation", f"{orientation}D D"),)
    return (*common, ("shape", f"{shape}D"), *rotation)


def model(name: str) -> Mixture:
    """One of the nine."""
    shapes = shapes_of(name)
    names = tuple(factor for factor, _ in shapes[2:])
    host: Any = scales if name.endswith("I") else covariances
    like: Any = scales.diagonal if name.endswith("I") else covariances.full
    geometry, inflation = (partial(at_plain, function=f) for f in (host.geometry, host.inflation))
    return Mixture(
        name=f"gaussian.{name}",
        program=partial(program, factors=names),
        shapes=shapes,
        kernel=partial(at_plain, function=like.kernel),
        statistics=partial(at_plain, function=like.statistics),
        update=update,
        guess=partial(guess, shapes=shapes),
        numerics=replace(
            numerics(
                names,
                inflation,
                partial(rounding, names=names),
                constant=partial(at_plain, function=like.numerics.constant),
                recentre=partial(recentre, geometry=geometry, squares=name.endswith("I")),
            ),
            products=partial(at_plain, function=like.numerics.products),
        ),
        extras=Extras(
            condition=partial(at_plain, function=like.extras.condition),
            gradient_form=gradient_form_of_EEI if name == "EEI" else None,
        ),
    )


EEI, VEI, EVI, VEE, EVE, VVE, EEV, VEV, EVV = map(
    model, ("EEI", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV")
)
