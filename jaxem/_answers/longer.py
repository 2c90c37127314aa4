"""A program whose scan goes on beyond its data, and what would be observed there (eq:forecast)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import Unit

from jaxem._answers.filter import Scanned
from jaxem._answers.offset import Offset
from jaxem._core.model import Data, Theta
from jaxem._programs.absent import along
from jaxem._programs.eliminate import Factor, Named, steps_back
from jaxem._programs.program import Program
from jaxem._programs.read import Term, root
from jaxem._programs.start import squeezed


class Longer(NamedTuple):
    """A program whose scan goes on for some steps."""

    offset: Offset
    scanned: Scanned
    last: dict[str, Array]  # latent → the last step that is there, of each member of its plates
    num_steps: int

    @classmethod
    def of(cls, m: Program, theta: Theta, data: Data, num_steps: int) -> "Longer":
        """By so many steps."""
        terms, tables, _ = m.tables(theta, data.x)
        offset = Offset.of_terms(m, terms, tables, data)
        scanned = Scanned.of("forecast", offset)
        if scanned.time is None or offset.graph.sizes[scanned.time] < 2:
            raise ValueError("forecast: a scan of so few steps does not show what stays the same; pass more of them")
        laws = [term for term in terms if term.law_of in scanned.latents]
        places = {root(str(law.law_of)): law.plates_in_order()[1:] for law in laws if not steps_back(law.name)}
        last = {name: last_step(offset, scanned, laws, some) for name, some in places.items()}
        with jax.numpy_rank_promotion("allow"):
            by_name = {t.name: continued(t, offset, scanned, last, places, num_steps) for t in terms}
        sizes = offset.graph.sizes | {scanned.time: offset.graph.sizes[scanned.time] + num_steps}
        return cls(offset._replace(factors=by_name, graph=offset.graph._replace(sizes=sizes)), scanned, last, num_steps)

    def ahead(self, name: str, values: Array, back: int = 0) -> Array:
        """Of a latent's values along time, those of the steps to come, or of so many steps before each."""
        last = self.last[name]
        first = jnp.expand_dims(jnp.arange(1, self.num_steps + 1) - back, tuple(range(1, last.ndim + 1)))
        index = first + last[None]
        return jnp.take_along_axis(values, jnp.expand_dims(index, tuple(range(index.ndim, values.ndim))), axis=0)


def last_step(offset: Offset, scanned: Scanned, laws: list[Term], places: list[str]) -> Array:
    """The last step at which a latent is not masked, of each member of these plates; −1 where there is none."""
    sizes = [offset.graph.sizes[place] for place in places]
    num_steps = offset.graph.sizes[str(scanned.time)]
    there = jnp.full((scanned.order + num_steps, *sizes), False)
    for law in laws:
        law = law if law.seen is None else law._replace(mask=None)  # masked where it is seen
        if steps_back(law.name):
            there = there.at[scanned.step(law.name)].set(there[scanned.step(law.name)] | along(law, places))
        else:
            shown = jnp.broadcast_to(along(law, [str(scanned.time), *places]), (num_steps, *sizes))
            there = there.at[scanned.order :].set(there[scanned.order :] | shown)
    steps = jnp.expand_dims(jnp.arange(len(there)), tuple(range(1, there.ndim)))
    return jnp.max(jnp.where(there, steps, -1), axis=0)


def continued(
    term: Term, offset: Offset, scanned: Scanned, last: dict[str, Array], places: dict[str, list[str]], num_steps: int
) -> Factor:
    """A term's factor over more steps: the law of a latent goes on, all else says nothing of them."""
    factor, time, unrolled = offset.factors[term.name], str(scanned.time), bool(steps_back(term.name))
    nothing = Named((), jnp.zeros((), factor.table.array.dtype))
    if scanned.is_after(term.name, factor):
        return factor._replace(table=nothing)
    if term.name not in scanned.terms or (unrolled and term.law_of is None):
        return factor
    steps = jnp.arange(offset.graph.sizes[time] + num_steps)
    if term.law_of is None:
        future, beyond = nothing, Named((time,), steps >= offset.graph.sizes[time])
    else:
        future, name = bare(term), root(term.law_of)
        if time in future.names:
            raise ValueError(
                f"forecast: the law of {name!r} is another at every step, by a covariate, a time or a state that is "
                "carried in another form, and is not known in those to come; let it stay the same"
            )
        if term.mask is None:
            return factor
        until, where, now = last[name], places[name], jnp.asarray(scanned.step(term.name))
        if not unrolled:
            until, where, now = until[None], [time, *where], scanned.order + steps
        beyond = squeezed(Named(tuple(where), jnp.expand_dims(now, tuple(range(now.ndim, until.ndim))) > until))
    table, scale = longer(factor.table, time, num_steps), longer(factor.scale, time, num_steps)
    return factor._replace(table=chosen(beyond, future, table), scale=scale)


def bare(term: Term) -> Named:
    """Its table where nothing is masked."""
    free = term._replace(mask=None, seen=None)
    return free.named(free.table())


def chosen(where: Named, one: Named, other: Named) -> Named:
    """One table where this holds, else the other."""
    names = tuple(dict.fromkeys((*where.names, *one.names, *other.names)))
    return Named(names, jnp.where(where.along(names), one.along(names), other.along(names)))


def longer(table: Named, time: str, num_steps: int) -> Named:
    """With the last step's entries for so many steps more."""
    if time not in table.names:
        return table
    widths = [(0, num_steps if name == time else 0) for name in table.names]
    return Named(table.names, jnp.pad(table.array, widths, mode="edge"))


def drawn(term: Term, long: Longer, paths: dict[str, Array], key: Array) -> Array:
    """What is observed at a site in the steps to come, given all latents along time: (steps, plates…, event…)."""
    time, axes = str(long.scanned.time), term.own_axes()
    batch = tuple(term.fn.batch_shape)
    own = batch[: len(batch) - term.event]
    rank = max(len(own), *(-axis for axis in axes))
    labels = [axes.get(axis, "") for axis in range(-rank, 0)]
    sizes = dict(long.offset.graph.sizes) | {time: long.num_steps}
    own = (1,) * (rank - len(own)) + own
    if own[labels.index(time)] > 1:
        raise ValueError(
            f"forecast: the law of what is observed at {term.name!r} is another at every step, by a covariate, a time "
            "or the value before, and is not known in those to come; leave out key for the latents alone"
        )
    shape = [sizes[label] if label else size for label, size in zip(labels, own, strict=True)]
    values = term.fn.expand((*shape, *batch[len(batch) - term.event :])).sample(key)
    extra = values.ndim - rank
    for axis, label in enumerate(labels):
        if root(label) in paths:
            z = state(label, long, paths).along(labels)
            values = jnp.take_along_axis(values, jnp.expand_dims(z, tuple(range(-extra, 0))), axis=axis)
    gone = tuple(axis for axis, label in enumerate(labels) if label not in term.plates)
    return jnp.squeeze(values, axis=gone)


def state(label: str, long: Longer, paths: dict[str, Array]) -> Named:
    """A variable of an enumerated axis, in the steps to come."""
    name = root(label)
    places = (str(long.scanned.time), *long.offset.places[name][1:])
    if name not in long.last:  # outside of the scan
        return Named(long.offset.places[name], paths[name])
    return Named(places, long.ahead(name, paths[name], steps_back(label)))


def observations(terms: list[Term], long: Longer, paths: dict[str, Array], key: Array) -> dict[str, Array]:
    """A draw of every site that is observed inside the scan."""
    found: dict[str, Array] = {}
    for index, term in enumerate(terms):
        inside = term.name in long.scanned.terms and not steps_back(term.name)
        if not (inside and term.observed) or isinstance(term.fn, Unit):
            continue
        values = drawn(term, long, paths, jax.random.fold_in(key, index))
        if term.only is None:
            found[term.name] = values
            continue
        name = str(term.axes[-1])  # one of a mixture's unlike components
        z = state(name, long, paths).array == term.only[0]
        mine = jnp.expand_dims(z, tuple(range(z.ndim, values.ndim)))
        found[name] = jnp.where(mine, values, found.get(name, values))
    return found
