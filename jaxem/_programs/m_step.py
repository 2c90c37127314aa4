"""A program's M-step: each parameter by the update that `_programs/plan` found for it, block after block.

    θ_B⁺ = argmax Q(θ) over the block B, the others as they are                     (eq:block)

in the order: selected parameters (eq:update), least squares, gradient, then scales about the new locations. Where
the blocks do not interact, which is the rule, this is the M-step; where they do it is ECM (Meng & Rubin 1993), and
F rises all the same.
"""

from collections.abc import Iterable
from functools import partial
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
from jaxem._programs.plan import Plan, Update
from jaxem._programs.probe import once
from jaxem._programs.read import Term
from jaxem._programs.updates import PRIORS, RULES, Outer, Rule, Sums, arguments_of, deviation, ones, weigh

Marginals = dict[str, Array]  # term → ∂F/∂(its table)
Stages = list[tuple[list[str], Theta]]


def stages(m: Any, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Stages:
    """(block, θ after its update), one after another, from ([], θ)."""

    def names(kind: str) -> list[str]:
        return [name for name, update in plan.items() if update.kind == kind]

    def selected(last: bool) -> list[list[str]]:
        """Block by block."""
        some = [name for name in names("selection") if plan[name].last == last]
        return [[name for name in some if plan[name].block == block] for block in sorted({plan[n].block for n in some})]

    steps: list[tuple[list[str], Any]] = [(block, partial(select, plan=plan)) for block in selected(last=False)]
    steps += [(names("linear"), partial(least_squares, plan=plan)), (names("gradient"), partial(ascend, plan=plan))]
    steps += [(block, partial(select, plan=plan)) for block in selected(last=True)]
    found: Stages = [([], theta)]
    for block, update in steps:
        if block:
            old = found[-1][1]
            new = update(m, block, marginals=marginals, theta=old, data=data)
            found.append((block, jax.tree.map(lambda new, old: new.astype(old.dtype), new, old)))
    return found


def select(m: Any, block: list[str], *, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Theta:
    """eq:update, for parameters whose entries are followed by the arguments that they enter."""
    parameters = m.structure(data.x).parameters
    with jax.numpy_rank_promotion("allow"):
        terms, priors = m.terms(theta, data.x)
        by_name = {term.name: term for term in terms}
        origin = {name: origin_of(plan[name], theta[name]) for name in block}

        def L(V: Theta) -> dict[Place, Array]:
            some = {name: plan[name].coordinate.inverse(V[name]).astype(theta[name].dtype) for name in block}
            return arguments_at(m, [place for name in block for place in plan[name].places], data, theta | some)

        at_origin, push = jax.linearize(L, origin)
        pull = jax.linear_transpose(push, origin)
        slopes = push(jax.tree.map(jnp.ones_like, origin))
        pairs = {
            place: laid_against(rule, sums_at(rule, by_name[place[0]], marginals, at_origin[place]), slopes[place])
            for place, rule in rules_at(by_name, at_origin).items()
        }
        sums = [
            pull({place: pair[side].astype(at_origin[place].dtype) for place, pair in pairs.items()})[0]
            for side in (0, 1)
        ]
        laws = {term.name: term for term in priors}
        return theta | {
            name: updated(
                plan[name], (sums[0][name], sums[1][name]), laws.get(name), theta[name], parameters[name].constraint
            )
            for name in block
        }


def least_squares(m: Any, block: list[str], *, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Theta:
    """Locations affine in β: (Aᵀ W A + W₀) δ = Aᵀ W (x − location) + ∇log p(β), W = γP, A = ∂location/∂β, β⁺ = β + δ.

    P is the precision of a row, W₀ = −∇²log p(β).
    """
    flat, unravel = ravel_pytree({name: theta[name] for name in block})
    places = list(dict.fromkeys(place for name in block for place in plan[name].places))
    with jax.numpy_rank_promotion("allow"):
        terms = {term.name: term for term in m.terms(theta, data.x)[0]}

        def locations(beta: Array) -> dict[Place, Array]:
            return arguments_at(m, places, data, theta | unravel(beta))

        def prior(beta: Array) -> Array:
            laws = [term for term in m.terms(theta | unravel(beta), data.x)[1] if term.name in block]
            return sum((jnp.sum(term.scale * term.table()) for term in laws), jnp.zeros((), flat.dtype))

        at, push = jax.linearize(locations, flat)
        pull = jax.linear_transpose(push, flat)
        gammas = {place: gamma_at(terms[place[0]], marginals) for place in places}
        apart = {place: deviation(terms[place[0]].fn, terms[place[0]].value) for place in places}

        def weighted(place: Place, gamma: Array, vector: Array) -> Array:
            return unbroadcast(weigh(terms[place[0]].fn, gamma, vector), at[place].shape).astype(at[place].dtype)

        slope, curve = jax.linearize(jax.grad(prior), flat)
        residual = slope + pull({place: weighted(place, gammas[place], apart[place]) for place in places})[0]
        shared = {place: unbroadcast(gammas[place], precisions(terms[place[0]].fn, at[place])) for place in places}

        def column(direction: Array) -> Array:
            moved = push(direction)
            return pull({place: weighted(place, shared[place], moved[place]) for place in places})[0] - curve(direction)

        normal = jax.lax.map(column, jnp.eye(flat.size, dtype=flat.dtype))
        return theta | unravel(
            flat + jnp.linalg.lstsq(normal, residual)[0]
        )  # a direction that no row sees does not move


def ascend(m: Any, block: list[str], *, plan: Plan, marginals: Marginals, theta: Theta, data: Data) -> Theta:
    """Up Q in unconstrained coordinates, to where it is stationary (`_core/climb`).

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
    def visited(theta: Theta, marginals: Marginals, data: Data) -> tuple[list[Theta], list[Theta]]:
        steps = stages(m, plan, marginals, theta, data)
        blocks[:] = [block for block, _ in steps[1:]]
        gradient = jax.grad(lambda some, at: m.energy(marginals, at | some, data))
        return [at for _, at in steps], [gradient({name: at[name] for name in plan}, at) for _, at in steps]

    thetas, slopes = jax.device_get(visited(theta, marginals, data))
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
    return jnp.full_like(old, 0.5 if update.form == "odds" else 1)


def arguments_at(m: Any, places: Iterable[Place], data: Data, theta: Theta) -> dict[Place, Array]:
    """What the program gives to its distributions at these places, in the form that Q is known in."""
    terms = {term.name: term for term in m.terms(theta, data.x)[0]}
    found = {name: arguments_of(terms[name].fn) for name in {name for name, _ in places}}
    return {
        place: rule_at(terms[place[0]], place).canonical(jnp.asarray(found[place[0]][place[1]])) for place in places
    }


def rule_at(term: Term, place: Place) -> Rule:
    return RULES[type(term.fn), place[1]]


def rules_at(terms: dict[str, Term], places: Iterable[Place]) -> dict[Place, Rule]:
    return {place: rule_at(terms[place[0]], place) for place in places}


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
