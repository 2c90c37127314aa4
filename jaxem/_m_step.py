"""A program's M-step: each parameter by the update that `_plan` found for it, block after block.

    θ_B⁺ = argmax Q(θ) over the block B, the others as they are                     (eq:block)

in the order: selected parameters (eq:update), least squares, gradient, then scales about the new locations. Where
the blocks do not interact, which is the rule, this is the M-step; where they do it is ECM (Meng & Rubin 1993), and
F rises all the same.
"""

from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from jaxem._climb import highest
from jaxem._model import Data, Theta
from jaxem._plan import Place, Plan, once
from jaxem._read import Term
from jaxem._updates import Outer, Rule, Sums, arguments_of

Marginals = dict[str, Array]  # term → ∂F/∂(its table)
Stages = list[tuple[list[str], Theta]]


def stages(m: Any, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Stages:
    """(block, θ after its update), one after another, from ([], θ)."""

    def names(kind: str) -> list[str]:
        return [name for name, update in plan.items() if update.kind == kind]

    selected = names("selection")

    found: Stages = [([], theta)]
    for block, update in (
        ([name for name in selected if not plan[name].closed.last], partial(select, plan=plan)),
        (names("linear"), partial(least_squares, plan=plan)),
        (names("gradient"), partial(ascend, plan=plan)),
        ([name for name in selected if plan[name].closed.last], partial(select, plan=plan)),
    ):
        if block:
            old = found[-1][1]
            new = update(m, block, marginals=marginals, theta=old, data=data)
            found.append((block, jax.tree.map(lambda new, old: new.astype(old.dtype), new, old)))
    return found


def select(m: Any, block: list[str], *, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Theta:
    """eq:update, for parameters that are selected by the arguments they enter."""
    with jax.numpy_rank_promotion("allow"):
        sums, priors = sums_at(m, block, plan, marginals, theta, data)
        of_theta = partial(arguments_at, m, sums, data)
        _, pull = jax.vjp(lambda some: of_theta(theta | some), {name: theta[name] for name in block})
        numerator, denominator = (pull({place: pair[side] for place, pair in sums.items()})[0] for side in (0, 1))
        return theta | {
            name: updated(plan[name].closed, numerator[name], denominator[name], priors.get(name), theta[name])
            for name in block
        }


def least_squares(m: Any, block: list[str], *, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Theta:
    """Locations affine in β: (Aᵀ W A) δ = Aᵀ W (x − location), W = γ/scale², A = ∂location/∂β, β⁺ = β + δ."""
    flat, unravel = ravel_pytree({name: theta[name] for name in block})
    with jax.numpy_rank_promotion("allow"):
        sums, priors = sums_at(m, block, plan, marginals, theta, data)

        def locations(beta: Array) -> dict[Place, Array]:
            return arguments_at(m, sums, data, theta | unravel(beta))

        _, pull = jax.vjp(locations, flat)
        residual = pull({place: pair[0] for place, pair in sums.items()})[0]

        def column(direction: Array) -> Array:
            _, moved = jax.jvp(locations, (flat,), (direction,))
            return pull({place: pair[1] * moved[place] for place, pair in sums.items()})[0]

        normal = jax.lax.map(column, jnp.eye(flat.size, dtype=flat.dtype))
        pseudo = {name: pseudo_counts(plan[name].closed, priors.get(name), theta[name]) for name in block}
        extra = [ravel_pytree({name: pair[side] for name, pair in pseudo.items()})[0] for side in (0, 1)]
        step = jnp.linalg.lstsq(normal + jnp.diag(extra[1]), residual + extra[0])[0]
        return theta | unravel(flat + step)  # a direction that no row sees does not move


def ascend(m: Any, block: list[str], *, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Theta:
    """Up Q in unconstrained coordinates, to where it is stationary (`_climb`).

    What shares a distribution with the block climbs with it, closed form or not: by turns, a Gamma's shape and rate
    would take hundreds of M-steps for one.
    """
    parameters = m.structure(data.x).parameters
    shared = {term for name in block for term, _ in plan[name].places}
    block = [name for name in plan if name in block or shared & {term for term, _ in plan[name].places}]
    return highest(
        lambda theta: m.energy(marginals, theta, data),
        lambda free: m.constrain(free, theta, data),
        m.coordinates(theta, data, block),
        theta,
        m.size(data),
        {name: parameters[name].constraint for name in block},
        m.optimizer,
        m.num_gradient_steps,
    )


def stationarity(m: Any, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> dict[str, float]:
    """C3: how much of ∇Q each parameter's update leaves, in unconstrained coordinates, relative to before it."""

    @once
    def gradient(theta: Theta, marginals: Marginals, data: Data) -> Theta:
        def energy(free: Theta) -> Array:
            return m.energy(marginals, m.constrain(free, theta, data), data)

        return jax.grad(energy)(m.coordinates(theta, data, plan))

    blocks: list[list[str]] = []

    @once
    def visited(theta: Theta, marginals: Marginals, data: Data) -> list[Theta]:
        steps = stages(m, plan, marginals, theta, data)
        blocks[:] = [block for block, _ in steps[1:]]
        return [theta for _, theta in steps]

    residuals: dict[str, float] = {}
    gradients = [gradient(theta, marginals, data) for theta in visited(theta, marginals, data)]
    for (before, after), block in zip(pairwise(gradients), blocks, strict=True):
        for name in block:
            left = jnp.where(jnp.isfinite(after[name]), jnp.abs(after[name]), 0)  # p at its bound is at ±∞: not tested
            residuals[name] = float(jnp.max(left) / (1 + jnp.max(jnp.abs(before[name]))))
    return residuals


# ---- the pieces of eq:update


def arguments_at(m: Any, places: Iterable[Place], data: Data, theta: Theta) -> dict[Place, Array]:
    """What the program gives to its distributions at these places."""
    found = {term.name: arguments_of(term.fn) for term in m.terms(theta, data.x)[0]}
    return {place: found[place[0]][place[1]] for place in places}


def sums_at(
    m: Any, block: list[str], plan: Plan, marginals: Marginals, theta: Theta, data: Data
) -> tuple[dict[Place, Sums], dict[str, Term]]:
    """The numerator and denominator at each place, in the shape of the argument there, and the priors of θ."""
    terms, priors = m.terms(theta, data.x)
    by_name = {term.name: term for term in terms}
    found: dict[Place, Any] = {}
    for name in block:
        for place in plan[name].places:
            term = by_name[place[0]]
            above, below = plan[name].closed.sums(term.fn, term.value, term.weights(marginals[term.name]))
            argument = jnp.asarray(arguments_of(term.fn)[place[1]])
            found[place] = tuple(unbroadcast(sums, argument.shape).astype(argument.dtype) for sums in (above, below))
    return found, {term.name: term for term in priors}


def unbroadcast(array: Array | Outer, shape: tuple[int, ...]) -> Array:
    """Sum an array to a shape that broadcasts to it: the transpose of broadcasting."""
    if isinstance(array, Outer):
        return outer_sum(array, shape)
    if array.ndim < len(shape):
        array = jnp.reshape(array, (1,) * (len(shape) - array.ndim) + array.shape)
    extra = array.ndim - len(shape)
    summed = [extra + axis for axis, size in enumerate(shape) if size == 1 and array.shape[extra + axis] != 1]
    return jnp.broadcast_to(jnp.reshape(jnp.sum(array, axis=(*range(extra), *summed)), fitted(array, shape)), shape)


def fitted(array: Array, shape: tuple[int, ...]) -> list[int]:
    """The shape after summing: the array's own size 1 where it only repeats along the target's axis."""
    extra = array.ndim - len(shape)
    return [min(size, array.shape[extra + axis]) for axis, size in enumerate(shape)]


def outer_sum(pair: Outer, shape: tuple[int, ...]) -> Array:
    """Σ u vᵀ over the axes that the shape (…, D, D) does not have, as matrix products."""
    batch = pair.u.ndim - 1
    extra = batch - (len(shape) - 2)
    rows = [axis for axis in range(batch) if axis < extra or shape[axis - extra] == 1]
    kept = [axis for axis in range(batch) if axis not in rows]
    out = jnp.einsum(pair.u, [*range(batch), batch], pair.v, [*range(batch), batch + 1], [*kept, batch, batch + 1])
    return jnp.broadcast_to(jnp.reshape(out, shape), shape)


def pseudo_counts(rule: Rule, prior: Term | None, old: Array) -> Sums:
    """What a conjugate prior adds to the numerator and the denominator."""
    if prior is None or rule.pseudo is None:
        return jnp.zeros_like(old), jnp.zeros_like(old)
    above, below = rule.pseudo(prior.fn, old)
    return prior.scale * above, prior.scale * below


def updated(rule: Rule, numerator: Array, denominator: Array, prior: Term | None, old: Array) -> Array:
    """eq:update, with the prior's pseudo-counts; an entry that no event saw stays as it is."""
    above, below = pseudo_counts(rule, prior, old)
    numerator, denominator = numerator + above, denominator + below
    if not rule.offset:
        numerator = jnp.where(above < 0, jnp.maximum(numerator, 0), numerator)  # a Dirichlet below 1 may ask for less
    if rule.simplex:
        denominator = jnp.sum(numerator, axis=-1, keepdims=True)
    seen = denominator > 0
    ratio = numerator / jnp.where(seen, denominator, 1)
    return jnp.where(seen, old + ratio if rule.offset else rule.finish(ratio), old)
