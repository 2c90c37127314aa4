"""A program's M-step: each parameter by the update that `_programs/plan` found for it, block after block.

    θ_B⁺ = argmax Q(θ) over the block B, the others as they are                     (eq:block)

in the order: selected parameters (eq:update), least squares, gradient, then scales about the new locations. Where
the blocks do not interact, which is the rule, this is the M-step; where they do it is ECM (Meng & Rubin 1993), and
F rises all the same.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from numpyro.distributions.constraints import Constraint

from jaxem._core.climb import highest
from jaxem._core.model import Data, Theta
from jaxem._programs import domains
from jaxem._programs.follow import Place
from jaxem._programs.joint import Marginals
from jaxem._programs.plan import ITERATED, Plan, Update, climbing
from jaxem._programs.probe import once
from jaxem._programs.read import Term
from jaxem._programs.sums import unbroadcast
from jaxem._programs.updates import (
    PRIORS,
    RULES,
    Rule,
    Sums,
    arguments_of,
    deviation,
    ones,
    weigh,
)

Stages = list[tuple[list[str], Theta]]


class Stage(NamedTuple):
    """Parameters that are updated at once."""

    names: tuple[str, ...]
    kind: str  # as of `Update`


def stages_of(plan: Plan) -> list[Stage]:
    """The blocks of an M-step, in their order."""

    def names(kind: str) -> tuple[str, ...]:
        return tuple(name for name, update in plan.items() if update.kind == kind)

    def selected(last: bool) -> list[Stage]:
        some = [name for name in names("selection") if plan[name].last == last]
        blocks = sorted({plan[name].block for name in some})
        return [Stage(tuple(name for name in some if plan[name].block == block), "selection") for block in blocks]

    others = [Stage(names(kind), kind) for kind in ("linear", *ITERATED)]
    return [stage for stage in (*selected(last=False), *others, *selected(last=True)) if stage.names]


def stages(m: Any, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Stages:
    """(block, θ after its update), one after another, from ([], θ)."""
    found: Stages = [([], theta)]
    for stage in stages_of(plan):
        old = found[-1][1]
        if stage.kind in ITERATED:
            new = ascend(m, stage, plan, Surface(lambda theta: m.energy(marginals, theta, data)), old, data)
        else:
            new = solved(m, stage, plan, sums_of(m, stage, plan, marginals, old, data), old, data)
        found.append((list(stage.names), new))
    return found


def sums_of(m: Any, stage: Stage, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Any:
    """What the update of a closed block takes from the data, its other parameters at θ: additive over rows."""
    with jax.numpy_rank_promotion("allow"):
        sums = selection_sums if stage.kind == "selection" else least_squares_sums
        return sums(m, stage.names, plan, marginals, theta, data)


def solved(m: Any, stage: Stage, plan: Plan, sums: Any, theta: Theta, data: Data) -> Theta:
    """θ after the update of a closed block, from its sums and the priors; of the data only the shapes matter."""
    with jax.numpy_rank_promotion("allow"):
        solve = select if stage.kind == "selection" else least_squares
        return like(solve(m, stage.names, plan, sums, theta, data), theta)


def like(new: Theta, old: Theta) -> Theta:
    """In the precision of θ."""
    return jax.tree.map(lambda new, old: new.astype(old.dtype), new, old)


# ---- eq:update, for parameters whose entries are followed by the arguments that they enter


def selection_sums(
    m: Any, names: tuple[str, ...], plan: Plan, marginals: Marginals, theta: Theta, data: Data
) -> dict[str, Sums]:
    """Lᵀ(numerator) and Lᵀ(denominator) of each parameter."""
    terms = {term.name: term for term in m.terms(theta, data.x)[0]}

    def sums(arguments: dict[Place, Array]) -> dict[Place, Sums]:
        return {
            place: sums_at(rule_at(terms[place[0]], place), terms[place[0]], marginals, argument)
            for place, argument in arguments.items()
        }

    return followed(m, names, plan, terms, theta, data, sums)


def followed(
    m: Any,
    names: tuple[str, ...],
    plan: Plan,
    terms: dict[str, Term],
    theta: Theta,
    data: Data,
    sums: Callable[[dict[Place, Array]], dict[Place, Sums]],
) -> dict[str, Sums]:
    """Lᵀ of sums that lie as the arguments do, from which they are made; linear in them."""
    origin = {name: origin_of(plan[name], theta[name]) for name in names}

    def L(V: Theta) -> dict[Place, Array]:
        some = {name: plan[name].coordinate.inverse(V[name]).astype(theta[name].dtype) for name in names}
        return arguments_at(m, [place for name in names for place in plan[name].places], data, theta | some)

    at_origin, push = jax.linearize(L, origin)
    pull = jax.linear_transpose(push, origin)
    slopes = push(jax.tree.map(jnp.ones_like, origin))
    pairs = {
        place: laid_against(rule_at(terms[place[0]], place), pair, slopes[place])
        for place, pair in sums(at_origin).items()
    }
    above, below = (
        pull({place: pair[side].astype(at_origin[place].dtype) for place, pair in pairs.items()})[0] for side in (0, 1)
    )
    return {name: (above[name], below[name]) for name in names}


def select(m: Any, names: tuple[str, ...], plan: Plan, sums: dict[str, Sums], theta: Theta, data: Data) -> Theta:
    """eq:update from its sums."""
    parameters = m.structure(data.x).parameters
    laws = {term.name: term for term in m.terms(theta, data.x)[1]}
    return theta | {
        name: updated(plan[name], sums[name], laws.get(name), theta[name], parameters[name].constraint)
        for name in names
    }


# ---- locations affine in β: (Aᵀ W A + W₀) δ = Aᵀ W (x − location) + ∇log p(β), W = γP, A = ∂location/∂β, β⁺ = β + δ;
# P is the precision of a row, W₀ = −∇²log p(β)


def least_squares_sums(
    m: Any, names: tuple[str, ...], plan: Plan, marginals: Marginals, theta: Theta, data: Data
) -> tuple[Array, Array]:
    """Aᵀ W A and Aᵀ W (x − location)."""
    flat, unravel = ravel_pytree({name: theta[name] for name in names})
    places = list(dict.fromkeys(place for name in names for place in plan[name].places))
    terms = {term.name: term for term in m.terms(theta, data.x)[0]}

    def locations(beta: Array) -> dict[Place, Array]:
        return arguments_at(m, places, data, theta | unravel(beta))

    at, push = jax.linearize(locations, flat)
    pull = jax.linear_transpose(push, flat)
    gammas = {place: gamma_at(terms[place[0]], marginals) for place in places}
    apart = {place: deviation(terms[place[0]].fn, terms[place[0]].value) for place in places}

    def weighted(place: Place, gamma: Array, vector: Array) -> Array:
        return unbroadcast(weigh(terms[place[0]].fn, gamma, vector), at[place].shape).astype(at[place].dtype)

    residual = pull({place: weighted(place, gammas[place], apart[place]) for place in places})[0]
    shared = {place: unbroadcast(gammas[place], precisions(terms[place[0]].fn, at[place])) for place in places}

    def column(direction: Array) -> Array:
        moved = push(direction)
        return pull({place: weighted(place, shared[place], moved[place]) for place in places})[0]

    directions = jnp.where(True, jnp.eye(flat.size, dtype=flat.dtype), flat[None])  # of flat's kind, on a mesh too
    return jax.lax.map(column, directions), residual


def least_squares(
    m: Any, names: tuple[str, ...], plan: Plan, sums: tuple[Array, Array], theta: Theta, data: Data
) -> Theta:
    """β + δ; a direction that no row sees does not move."""
    flat, unravel = ravel_pytree({name: theta[name] for name in names})

    def prior(beta: Array) -> Array:
        laws = [term for term in m.terms(theta | unravel(beta), data.x)[1] if term.name in names]
        return sum((jnp.sum(term.scale * term.table()) for term in laws), jnp.zeros((), flat.dtype))

    slope, curve = jax.linearize(jax.grad(prior), flat)
    normal = sums[0] - jax.lax.map(curve, jnp.eye(flat.size, dtype=flat.dtype))
    return theta | unravel(flat + jnp.linalg.lstsq(normal, sums[1] + slope)[0])


# ---- up the gradient


class Surface(NamedTuple):
    """Q, and f(q, u, θ) summed over the parts q that it is a sum of."""

    Q: Callable[[Theta], Array]
    parts: Callable[..., Array] | None = None

    def over(self, f: Callable[..., Array], u: Array, theta: Theta) -> Array:
        return f(self.Q, u, theta) if self.parts is None else self.parts(f, u, theta)


def ascend(m: Any, stage: Stage, plan: Plan, surface: Surface, theta: Theta, data: Data) -> Theta:
    """Up Q in unconstrained coordinates, to where it is stationary (`_core/climb`)."""
    parameters, names = m.structure(data.x).parameters, climbing(stage.names, plan)
    start = m.coordinates(theta, data).unconstrain({name: theta[name] for name in names})
    new = highest(
        surface.Q,
        lambda free, theta: m.coordinates(theta, data).constrain(free),
        start,
        theta,
        m.rows.size(data),
        {name: parameters[name].constraint for name in names},
        m.optimizer,
        m.num_gradient_steps,
        surface.over if stage.kind == "newton" else None,
    )
    return like(new, theta)


class Tested(NamedTuple):
    """What C3 says of one parameter's closed form."""

    entries: np.ndarray  # which of ∂Q's entries could be tested: finite, and not 0 before the update
    is_wrong: bool  # is ∂Q not 0 after it?
    why: str


def stationarity(m: Any, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> dict[str, Tested]:
    """C3, of every entry of each closed parameter: is ∂Q = 0 after its update, where it was not before?

    In the directions that the constraint leaves open, and on a bound for whether Q falls inwards (`domains.residual`).
    """
    blocks: list[list[str]] = []

    @once
    def visited(theta: Theta, marginals: Marginals, data: Data) -> tuple[list[Theta], Theta]:
        steps = stages(m, plan, marginals, theta, data)
        blocks[:] = [block for block, _ in steps[1:]]
        thetas = [at for _, at in steps]
        gradient = jax.grad(lambda some, at: m.energy(marginals, at | some, data))
        # one after another, for the program to be read and compiled once for all of them
        every = jax.tree.map(lambda *leaves: jnp.stack(leaves), *thetas)
        return thetas, jax.lax.map(lambda at: gradient({name: at[name] for name in plan}, at), every)

    thetas, every_slope = jax.device_get(visited(theta, marginals, data))
    slopes = [jax.tree.map(lambda leaf, place=place: leaf[place], every_slope) for place in range(len(thetas))]
    parameters, found = m.structure(data.x).parameters, {}
    for (old, new), (at_old, at_new), block in zip(pairwise(thetas), pairwise(slopes), blocks, strict=True):
        for name in block:
            constraint = parameters[name].constraint
            with np.errstate(all="ignore"):
                was = domains.residual(constraint, old[name], at_old[name])
                left = domains.residual(constraint, new[name], at_new[name])
            found[name] = tested(was, left)
            if not domains.is_inside(constraint, new[name]):  # a covariance may be singular where rows are few
                why = f"its closed form leaves the constraint {domains.base(constraint)}"
                found[name] = Tested(np.zeros_like(found[name].entries), False, why)
    return found


def tested(was: Any, left: Any) -> Tested:
    """A closed form that leaves these of those derivatives."""
    finite, tolerance = np.isfinite(was) & np.isfinite(left), np.finfo(was.dtype).eps ** 0.5
    largest = np.abs(was[finite]).max(initial=np.finfo(was.dtype).tiny)
    share = np.abs(left[finite]).max(initial=0) / largest
    if share > 100 * tolerance:
        return Tested(finite, True, f"its closed form leaves ∇Q at {share:.0e} of what it was")
    with np.errstate(invalid="ignore"):
        entries = finite & (np.abs(was) > tolerance * largest / 10)
    what = "moved nothing that was observed" if finite.all() else "have no finite ∂Q"
    return Tested(entries, False, f"{(~entries).sum()} of its {entries.size} entries {what}")


# ---- the pieces of eq:update


def origin_of(update: Update, old: Array) -> Array:
    """Where L is evaluated: V of the parameter itself for a step from it; anything else that suits the form."""
    if update.form == "square":
        return old
    if update.form == "scatter":
        return jnp.broadcast_to(jnp.eye(old.shape[-1], dtype=old.dtype), old.shape)
    some = jnp.full_like(old, 0.5 if update.form == "odds" else 1)
    return jnp.where(True, some, old)  # traced where θ is: NumPyro would look whether a number suits the constraint


def arguments_at(m: Any, places: Iterable[Place], data: Data, theta: Theta) -> dict[Place, Array]:
    """What the program gives to its distributions at these places, in the form that Q is known in."""
    terms = {term.name: term for term in m.terms(theta, data.x)[0]}
    found = {name: arguments_of(terms[name].fn) for name in {name for name, _ in places}}
    return {
        place: rule_at(terms[place[0]], place).canonical(jnp.asarray(found[place[0]][place[1]])) for place in places
    }


def rule_at(term: Term, place: Place) -> Rule:
    return RULES[type(term.fn), place[1]]


def sums_at(rule: Rule, term: Term, marginals: Marginals, argument: Array) -> Sums:
    """Numerator and denominator in the shape of the argument."""
    above, below = rule.sums(term.fn, term.value, term.weights(marginals[term.name]))
    return unbroadcast(above, argument.shape), unbroadcast(below, argument.shape)


def laid_against(rule: Rule, sums: Sums, slope: Array) -> Sums:
    """The sums as Lᵀ takes them: so that it adds those of V, u being slope·V (or 1 − V, of slope −1)."""
    above, below = sums
    safe = jnp.where(slope == 0, 1, slope)
    if rule.form == "power":  # N log(c V) − D c V
        return jnp.where(slope == 0, 0, above / safe), below
    if rule.form == "shares":
        return jnp.where(slope < 0, -below, above / safe), jnp.where(slope < 0, -above, below)
    if rule.form == "odds":
        return jnp.where(slope < 0, -below, above), jnp.where(slope < 0, -above, below)
    if rule.form == "scatter":
        scale = safe[..., :1, :1]
        return above / scale**2, below / scale
    return above, below * slope


def gamma_at(term: Term, marginals: Marginals) -> Array:
    """γ for each event of a location, as many as there are."""
    batch = jnp.shape(deviation(term.fn, term.value))
    batch = batch[: len(batch) - term.fn.event_dim]
    return ones(term.weights(marginals[term.name]), jnp.empty(batch))


def precisions(fn: Any, location: Array) -> tuple[int, ...]:
    """How many weights γP differ, of the events that share a location or a precision."""
    batch = location.shape[: location.ndim - fn.event_dim]
    own = fn.scale_tril.shape[:-2] if fn.event_dim else jnp.shape(fn.scale)
    return jnp.broadcast_shapes(batch, own)


def pseudo_counts(update: Update, prior: Term | None, old: Array) -> Sums:
    """What a conjugate prior adds to the numerator and the denominator, as often as it counts."""
    add = None if prior is None else PRIORS.get((update.form, type(prior.fn), update.coordinate))
    if prior is None or add is None:
        return jnp.zeros_like(old), jnp.zeros_like(old)
    counts = prior.weights(jnp.asarray(prior.scale, old.dtype))
    counts = counts.reshape(counts.shape + (1,) * prior.fn.event_dim)
    above, below = add(prior.fn, old)
    return jnp.broadcast_to(counts * above, old.shape), jnp.broadcast_to(counts * below, old.shape)


def updated(update: Update, sums: Sums, prior: Term | None, old: Array, constraint: Constraint) -> Array:
    """eq:update, with the prior's pseudo-counts; an entry that no event saw stays as it is.

    A prior below 1 may ask for less than nothing: Q then has a pole at the edge, and that is where it ends.
    """
    numerator, denominator = (own + extra for own, extra in zip(sums, pseudo_counts(update, prior, old), strict=True))
    if update.form == "scatter":
        seen = jnp.all(denominator > 0, axis=(-1, -2), keepdims=True)
        V = jnp.where(seen, numerator / jnp.where(seen, denominator, 1), jnp.eye(old.shape[-1], dtype=old.dtype))
        return jnp.where(seen, update.coordinate.inverse(V), old)
    if update.form == "square":
        seen, pole = denominator > 0, jnp.zeros((), bool)
        new = old + numerator / jnp.where(seen, denominator, 1)
    elif update.form == "power":
        seen = (numerator != 0) | (denominator != 0)
        new = update.coordinate.inverse(jnp.maximum(numerator, 0), jnp.where(seen, denominator, 1))
        pole = denominator == 0
    else:
        both = jnp.stack([numerator, denominator], -1) if update.form == "odds" else numerator
        seen = jnp.any(both != 0, axis=-1, keepdims=True)
        at_pole = jax.nn.one_hot(jnp.argmax(both, axis=-1), both.shape[-1], dtype=both.dtype)
        counts = jnp.where(jnp.any(both > 0, axis=-1, keepdims=True), jnp.maximum(both, 0), at_pole)
        share = counts / jnp.sum(counts, axis=-1, keepdims=True)
        share = jnp.where(counts > 0, jnp.maximum(share, jnp.finfo(share.dtype).tiny), share)  # log 0 is no log of it
        seen, share = (seen[..., 0], share[..., 0]) if update.form == "odds" else (seen, share)
        new, pole = update.coordinate.inverse(share), jnp.zeros((), bool)
    return jnp.where(seen, domains.project(constraint, new, pole), old)
