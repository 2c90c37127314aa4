"""When an expanded square may stand for a difference: one rule, for the two places where it matters.

Expanding (x − μ)ᵀP(x − μ) about another point r gives terms as large as reachᵀ|P|reach, with reach_d the
distance along feature d of the data from r; their rounding is what is left of digits after they cancel:

    loss_k(reach) = reachᵀ |P_k| reach / D,   rounding of a quadratic form ≤ eps · D · loss   (eq:loss)

It does not depend on the units of the features, and is about eps·spread²/λ_min(Σ_k) in the isotropic case. Where
only the vector is expanded and then squared, L⁻¹(x − r) − L⁻¹(μ − r), that is its root: eps·spread/√λ_min.

1. The E-step by products (`Numerics.products`) expands about c = Σ_k π_k μ_k, or a point amid the rows. It is used
   where max_k loss_k ≤ LIMIT (of a vector: √loss_k), with reach the farthest that any component reaches from c; else
   differences are. Hard assignments know no nats, only which component is nearer: there the loss is measured by the
   mean quadratic form q̄ of a row about its own component, max_k loss_k ≤ LIMIT·q̄, with reach that of the means;
   where a vector is expanded they are made by differences.
2. The M-step expands about the old means (about c, if that E-step expanded squares). If that costs more than
   LIMIT times what an expansion about the new means does, or more than NATS a row and four times as much, a second pass
   takes the statistics about those (`Numerics.recentre`): it happens in the first steps from a hard start, or where
   columns are all but collinear, or never.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxem._core.model import Theta
from jaxem._rows.products import Fused, Products, by_pooling, by_temperature, by_winner, in_fours
from jaxem.families.gaussian._moments import LIMIT, Moments, centre

NATS = 1 / 64
EXACT = lax.Precision.HIGHEST  # no TF32 or bfloat16 in a matrix product, on any device

# θ → √diag Σ_k (K, D), and P_k = Σ_k⁻¹ as (K, D) where diagonal, else (K, D, D)
Geometry = Callable[[Theta], tuple[Array, Array]]


def loss(reach: Float[Array, "K D"], precision: Float[Array, "K D ..."]) -> Float[Array, " K"]:
    """reachᵀ |P_k| reach / D  (eq:loss)."""
    image = precision * reach if precision.ndim == 2 else jnp.einsum("kde,ke->kd", jnp.abs(precision), reach)
    return jnp.mean(reach * image, axis=1)


def vector_loss(reach: Float[Array, "K D"], inverse: Float[Array, "K D D"]) -> Float[Array, " K"]:
    """‖|L_k⁻¹| reach‖ / √D, the root of eq:loss."""
    return jnp.sqrt(jnp.mean(jnp.einsum("kde,ke->kd", jnp.abs(inverse), reach) ** 2, axis=1))


def farthest(theta: Theta, c: Float[Array, "1 D"], deviation: Float[Array, "K D"]) -> Float[Array, "K D"]:
    """How far any component reaches from c, the same for every k."""
    reach = jnp.abs(theta["mu"] - c) + deviation
    return jnp.broadcast_to(jnp.max(reach, axis=0, keepdims=True), reach.shape)


def is_accurate(theta: Theta, c: Float[Array, "1 D"], geometry: Geometry) -> Bool[Array, ""]:
    """Rule 1 at θ; False for a θ that is not finite."""
    deviation, precision = geometry(theta)
    return jnp.all(loss(farthest(theta, c, deviation), precision) <= LIMIT)


def is_accurate_when_hard(
    theta: Theta, c: Float[Array, "1 D"], geometry: Geometry, moments: Moments
) -> Bool[Array, ""]:
    """Rule 1 for T = 0, with q̄ = Σγ(x − μ_k)ᵀP_k(x − μ_k) / DΣγ from the moments that it gave."""
    _, precision = geometry(theta)
    spread = moments.spread  # pooled where Σ is shared, and there P is the same
    if precision.ndim == 3:
        own = precision if spread.ndim == 3 else precision[0]
    else:
        own = precision[(slice(None),) * spread.ndim + (0,) * (2 - spread.ndim)]
    mean = jnp.maximum(jnp.sum(own * spread) / (jnp.sum(moments.N_k) * theta["mu"].shape[1]), 0)
    return jnp.all(loss(farthest(theta, c, jnp.zeros_like(theta["mu"])), precision) <= LIMIT * mean)


def and_one(x: Float[Array, "n D"]) -> Float[Array, "n D+1"]:
    """(x, 1), so that a product with it takes in an intercept, or counts."""
    return jnp.concatenate([x, jnp.ones_like(x[:, :1])], axis=1)


def linear(
    theta: Theta,
    c: Float[Array, "1 D"],
    geometry: Geometry,
    eta: tuple[Float[Array, "K _"], ...],
    *,
    features: Callable[[Array, Array | None], Any],
    finish: Callable[[Any], Moments],
    common: Callable[[Any], Array],
    beside: Callable[[Any, Array], Any] = lambda phi, weights: (),
    fused: Fused | None = None,
) -> Products:
    """ℓ = Σ_i η_i φ_iᵀ + common in natural parameters, statistics γ φ_i, and what needs no γ beside them.

    The φ_i are several arrays, and not the columns of one, since XLA joins columns slowly; those after the last η_i
    are for `common` and `beside`.
    """

    def table(phi: tuple[Array, ...]) -> Float[Array, "K n"]:
        products = [jnp.matmul(eta_i, phi_i.T, precision=EXACT) for eta_i, phi_i in zip(eta, phi, strict=False)]
        return sum(products[1:], products[0])

    def pooled(phi: tuple[Array, ...]) -> tuple[Array, ...]:
        return phi[: len(eta)]

    def pooled_in_fours(phi: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(map(in_fours, pooled(phi)))

    def finish_both(sums: tuple[tuple[Array, ...], Any]) -> Moments:
        parts = tuple(part[:, : eta_i.shape[1]] for part, eta_i in zip(sums[0], eta, strict=True))
        return finish((parts, sums[1]))

    return Products(
        width=sum(eta_i.shape[1] for eta_i in eta),
        features=features,
        table=table,
        common=common,
        sums=by_pooling(pooled, beside, by_temperature),
        hard=by_pooling(pooled_in_fours, beside, by_winner),
        finish=finish_both,
        accurate=is_accurate(theta, c, geometry),
        accurate_when_hard=partial(is_accurate_when_hard, theta, c, geometry),
        fused=fused,
    )


def recentre(theta: Theta, new: Theta, *, geometry: Geometry, squares: bool) -> tuple[Theta, Bool[Array, ""]]:
    """Rule 2: θ at the new means, and whether θ⁺'s scales must be computed anew about them.

    `squares`: do the family's products expand squares?
    """
    reference = theta["mu"]
    if squares:
        c = centre(theta)
        reference = jnp.where(is_accurate(theta, c, geometry), c, reference)
    deviation, precision = geometry(new)
    reach = jnp.abs(new["mu"] - reference) + deviation
    cost, least = loss(reach, precision), loss(deviation, precision)
    nats = reach.shape[1] * jnp.finfo(cost.dtype).eps * cost
    kept = jnp.all((cost <= LIMIT * least) & ((nats <= NATS) | (cost <= 4 * least)))
    return theta | {"mu": new["mu"]}, ~kept  # so that a NaN asks for the second pass
