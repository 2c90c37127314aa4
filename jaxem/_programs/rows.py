"""A program's sums over rows: where it has a row plate, EM in the memory of a chunk.

A chunk of rows is the same program on fewer rows (`_programs/row_plate`), so F and what each closed block of the
M-step takes from the data (`m_step.sums_of`) are sums over chunks:

    s_B(θ) = Σ_chunks s_B(chunk; γ(θ), θ)                                             (eq:rows)

The M-step goes block by block, and a block may need what those before it have changed: a scale the new location. Its
sums about the old one then become those about the new (eq:moved), where that costs no digits; where it would, and in
what eq:moved does not know, the rows are gone through again. A block that climbs sums Q over chunks at each turn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxem._core.model import Data, Expectation, Theta
from jaxem._core.objective import weighted
from jaxem._programs.arguments import Arguments, Cut
from jaxem._programs.follow import Place
from jaxem._programs.m_step import (
    Stage,
    Surface,
    arguments_at,
    ascend,
    followed,
    rule_at,
    solved,
    stages_of,
    sums_of,
)
from jaxem._programs.plan import ITERATED, Plan, climbing
from jaxem._programs.read import Term
from jaxem._programs.sums import unbroadcast
from jaxem._programs.updates import Sums, first_moments
from jaxem._rows.chunks import fits_one_chunk, sum_over_rows

LOSS = 16.0  # of its size, that a sum may lose when it is moved


class Block(NamedTuple):
    """A block of the M-step, and where its sums come from."""

    stage: Stage
    source: str  # "kept" from the E-step, "moved" from it, taken "again", or "climbing"
    stale: tuple[Place, ...] = ()  # of those that are moved: the places about a location that others change


def blocks_of(plan: Plan, cut: Cut) -> list[Block]:
    """The blocks of an M-step in their order."""
    found: list[Block] = []
    changed: set[str] = set()  # parameters, by the blocks before
    for stage in stages_of(plan):
        if stage.kind in ITERATED:
            found.append(Block(stage, "climbing"))
            changed |= {*climbing(stage.names, plan)}
            continue
        places = [place for name in stage.names for place in plan[name].places]
        terms = {term for term, _ in places}
        meets = {place for name in changed for place in plan[name].places if place[0] in terms}
        stale = tuple(dict.fromkeys(place for place in places if place[0] in {term for term, _ in meets}))
        movable = all(plan[name].moves for name in stage.names) and all(argument == "loc" for _, argument in meets)
        if any(not plan[name].places for name in changed):  # who knows where they are
            found.append(Block(stage, "again"))
        elif not meets:
            found.append(Block(stage, "kept"))
        elif movable and not cut.varying & {*stale, *meets}:
            found.append(Block(stage, "moved", stale))
        else:
            found.append(Block(stage, "again"))
        changed |= {*stage.names}
    return found


# ---- sums


def over_rows(f: Callable[..., Any], data: Data, *at: Any, then: Callable[[Any], Any] = lambda total: total) -> Any:
    """Σ over chunks of f(a chunk's data, θ, …)."""
    cut = data.x.cut

    def chunk(rows: tuple[Array, ...], weights: Array) -> Any:
        others = [leaf for place, leaf in enumerate(data.x.leaves) if place not in cut.places]
        if data.shards is not None:
            others, *here = varying((others, *at), weights)
        else:
            here = list(at)
        supply = iter(others)
        leaves = tuple(leaf if place in cut.places else next(supply) for place, leaf in enumerate(data.x.leaves))
        x = Arguments(leaves, data.x.treedef, data.x.static, cut).with_rows(rows)
        return f(Data(x, weights, data.temperature), *here)

    return sum_over_rows(
        chunk,
        data.x.rows(),
        data.weights,
        num_components=cut.entries,
        width=cut.width,
        dtype=data.temperature.dtype,
        shards=data.shards,
        then=then,
    )


def varying(tree: Any, weights: Array) -> Any:
    """The same values, which may differ between devices as far as `shard_map` can know: so may what a chunk makes."""
    any_value = weights[0] >= 0
    return jax.tree.map(lambda leaf: jnp.where(any_value, leaf, leaf), tree)


def some_of(data: Data) -> Data:
    """A few rows, for what is the same for all."""
    return Data(data.x.some(), None, data.temperature)


def expect(m: Any, theta: Theta, about: Theta, data: Data) -> Expectation:
    """The E-step: F_T at θ, and what is kept for the M-step, about another one."""
    return with_prior(m, sums(m, theta, about, data), theta, data)


def with_prior(m: Any, total: Expectation, theta: Theta, data: Data) -> Expectation:
    """F_T of sums over rows."""
    prior = m.log_prior(theta, data)
    return total._replace(free_energy=total.free_energy + prior, scale=total.scale + jnp.abs(prior))


def sums(m: Any, theta: Theta, about: Theta, data: Data) -> Expectation:
    """F_T without log p(θ), and eq:rows of every block that keeps its sums, γ at θ and the rest about another one."""
    plan = m.plan(data.x, data.temperature.dtype)
    blocks = blocks_of(plan, data.x.cut)

    def chunk(part: Data, at: Theta, there: Theta) -> Expectation:
        found, _ = m.posterior(at, part)
        assert part.weights is not None
        value = jnp.broadcast_to(found.free_energy, part.weights.shape)
        sums = tuple(block_sums(m, block, plan, found.statistics, there, part) for block in blocks)
        return Expectation(sums, weighted(value, part.weights), found.scale)

    def summed(total: Expectation) -> Expectation:  # F row by row until here: chunks add as vectors
        return total._replace(free_energy=jnp.sum(total.free_energy))

    return over_rows(chunk, data, theta, about, then=summed)


def block_sums(m: Any, block: Block, plan: Plan, marginals: Any, theta: Theta, part: Data) -> Any:
    """What of a block is kept from the E-step."""
    if block.source not in ("kept", "moved"):
        return None
    sums = sums_of(m, block.stage, plan, marginals, theta, part)
    if block.source == "kept":
        return sums
    with jax.numpy_rank_promotion("allow"):
        terms = {term.name: term for term in m.terms(theta, part.x)[0]}
        return sums, tuple(moments_at(terms[place[0]], marginals, place, m, theta, part) for place in block.stale)


def moments_at(term: Term, marginals: Any, place: Place, m: Any, theta: Theta, part: Data) -> Sums:
    """Σ γ (x − u) and Σ γ over all rows that share both the location and the scale."""
    first, count = first_moments(term.fn, term.value, term.weights(marginals[term.name]))
    shape = joint_shape(term)
    return unbroadcast(first, shape), unbroadcast(count, shape)


def joint_shape(term: Term) -> tuple[int, ...]:
    """Of a location and a scale together."""
    if term.fn.event_dim:
        batch = jnp.broadcast_shapes(term.fn.loc.shape[:-1], term.fn.scale_tril.shape[:-2])
        return (*batch, term.fn.event_shape[0])
    return jnp.broadcast_shapes(jnp.shape(term.fn.loc), jnp.shape(term.fn.scale))


# ---- the M-step


def blocks_at(m: Any, data: Data) -> list[Block]:
    """The blocks of its M-step."""
    return blocks_of(m.plan(data.x, data.temperature.dtype), data.x.cut)


def maximize(m: Any, statistics: Any, theta: Theta, data: Data) -> Theta:
    """The M-step, block by block (eq:block)."""
    new, some = theta, some_of(data)
    for block, kept in zip(blocks_at(m, data), statistics, strict=True):
        again = partial(sums_again, m, block.stage, theta, new, data)
        if block.source == "climbing":
            new = ascend(m, block.stage, m.plan(data.x, data.temperature.dtype), expected(m, theta, data), new, data)
            continue
        if block.source == "moved":
            sums, lost = moved(m, block, kept, theta, new, some)
            sums = lax.cond(lost, again, lambda sums=sums: sums)
        else:
            sums = kept if block.source == "kept" else again()
        new = solved(m, block.stage, m.plan(data.x, data.temperature.dtype), sums, new, some)
    return new


def maximize_by_passes(
    m: Any, statistics: Any, theta: Theta, some: Data, again: Callable[[int, Theta], Any] | None
) -> Theta:
    """The same where rows are elsewhere: `again` sums those of a block over all of them, γ at the old θ.

    Without it, sums that are moved are taken as they are.
    """
    new = theta
    for index, (block, kept) in enumerate(zip(blocks_at(m, some), statistics, strict=True)):
        if block.source == "moved":
            sums, lost = _moved(m, index, kept, theta, new, some)
            sums = again(index, new) if again is not None and bool(lost) else sums
        else:
            sums = kept if again is None or block.source == "kept" else again(index, new)
        new = _solved(m, index, sums, new, some)
    return new


@partial(jax.jit, static_argnames="index")
def _moved(m: Any, index: int, kept: Any, theta: Theta, new: Theta, some: Data) -> tuple[Any, Array]:
    return moved(m, blocks_at(m, some)[index], kept, theta, new, some)


@partial(jax.jit, static_argnames="index")
def _solved(m: Any, index: int, sums: Any, new: Theta, some: Data) -> Theta:
    return solved(m, blocks_at(m, some)[index].stage, m.plan(some.x, some.temperature.dtype), sums, new, some)


def sums_again(m: Any, stage: Stage, old: Theta, theta: Theta, data: Data) -> Any:
    """Another pass: γ at the old θ, the block's sums at the new one."""
    plan = m.plan(data.x, data.temperature.dtype)

    def chunk(part: Data, before: Theta, at: Theta) -> Any:
        return sums_of(m, stage, plan, m.posterior(before, part)[0].statistics, at, part)

    return over_rows(chunk, data, old, theta)


def moved(m: Any, block: Block, kept: Any, old: Theta, theta: Theta, some: Data) -> tuple[dict[str, Sums], Array]:
    """The block's sums about the new locations (eq:moved), and whether that cost them their digits."""
    sums, moments = kept
    names, plan = block.stage.names, m.plan(some.x, some.temperature.dtype)
    with jax.numpy_rank_promotion("allow"):
        terms = {term.name: term for term in m.terms(theta, some.x)[0]}
        locations = [(term, "loc") for term, _ in block.stale]
        before, now = (arguments_at(m, locations, some, at) for at in (old, theta))

        def gained(arguments: dict[Place, Array]) -> dict[Place, Sums]:
            found = {place: (jnp.zeros_like(u), jnp.zeros_like(u)) for place, u in arguments.items()}
            for place, location, moment in zip(block.stale, locations, moments, strict=True):
                change = rule_at(terms[place[0]], place).moved
                assert change is not None
                above, below = change(moment[0], moment[1], now[location] - before[location])
                shape = arguments[place].shape
                found[place] = unbroadcast(above, shape), unbroadcast(below, shape)
            return found

        gains = followed(m, names, plan, terms, theta, some, gained)
    new = {name: (sums[name][0] + gains[name][0], sums[name][1] + gains[name][1]) for name in names}
    lost = [jnp.any(LOSS * spread(plan[n].form, new[n]) < spread(plan[n].form, sums[n])) for n in names]
    return new, jnp.any(jnp.stack(lost))


def spread(form: str, sums: Sums) -> Array:
    """Sums of squares."""
    return jnp.diagonal(sums[0], axis1=-2, axis2=-1) if form == "scatter" else sums[1]


def expected(m: Any, old: Theta, data: Data) -> Surface:
    """θ ↦ Q(θ), γ at the old θ: kept where the rows are one chunk, else made anew with each."""
    if data.shards is None and fits_one_chunk(data.x.num_rows(), data.x.cut.entries, data.x.cut.width):
        marginals = m.posterior(old, data)[0].statistics
        return Surface(lambda theta: m.energy(marginals, theta, data))

    def parts(f: Callable[..., Array], *at: Any) -> Array:
        def chunk(part: Data, before: Theta, *at: Any) -> Array:
            marginals = m.posterior(before, part)[0].statistics
            return f(lambda theta: m.energies(marginals, theta, part)[0], *at)

        return over_rows(chunk, data, old, *at) + f(lambda theta: m.energies(None, theta, some_of(data))[1], *at)

    return Surface(lambda theta: parts(lambda q, theta: q(theta), theta), parts)


def objective(m: Any, theta: Theta, old: Theta, data: Data) -> Array:
    """F_T(θ, γ(θ_old)) = F_T(θ_old) + Q(θ) − Q(θ_old)."""

    def chunk(part: Data, before: Theta, at: Theta) -> Array:
        found, _ = m.posterior(before, part)
        now, then = (m.energies(found.statistics, here, part)[0] for here in (at, before))
        return jnp.sum(weighted(found.free_energy, part.weights)) + now - then

    return over_rows(chunk, data, old, theta) + m.log_prior(theta, data)


def size(m: Any, data: Data) -> Array:
    """W: the number of observed scalar log-densities, each with its weight."""

    def chunk(part: Data) -> Array:
        assert part.weights is not None
        return jnp.sum(weighted(jnp.broadcast_to(m.events(part.x), part.weights.shape), part.weights))

    return jax.jit(partial(over_rows, chunk))(data)
