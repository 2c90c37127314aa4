"""A program's start from its data: responsibilities before any θ, and one M-step from them.

Each discrete latent that observed numbers depend on gets labels: those numbers, standardised, are assigned to the
nearest of as many of their rows as the latent has values, drawn as k-means++ draws them. A latent of which nothing
observed depends directly gets labels at random. A field b on the label, beside nothing else,

    γ ∝ e^{b [z = label]},   b = log(9 (K − 1)):   γ is 0.9 at the label, and nowhere 0

makes them joint responsibilities, along chains and across plates, of which the program's own M-step makes θ. What is
impossible at the program's own values stays impossible.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxem._core.model import Data, Theta
from jaxem._programs.arguments import Arguments
from jaxem._programs.blame import blamed_on_the_program
from jaxem._programs.eliminate import Factor, Named, log_partition, steps_back
from jaxem._programs.joint import dtype_of
from jaxem._programs.read import Term, root
from jaxem._programs.structure import plain_trace

SURE = 0.9  # γ at the label


@jax.jit
def own_values(m: Any, key: Array, arguments: Arguments) -> Theta:
    """θ as the program itself has it: the values of its params, and draws of its latents from their priors."""
    names = m.structure(arguments).parameters  # first: it says in one line what a program cannot do
    with blamed_on_the_program(arguments):
        trace = plain_trace(m.program, arguments, key)
    return {name: jax.tree.map(arguments.cast, trace[name]["value"]) for name in names}


@jax.jit
def from_arguments(m: Any, key: Array, arguments: Arguments) -> Theta:
    """θ from responsibilities made of the data."""
    for_theta, for_labels = jax.random.split(key)
    theta = own_values(m, for_theta, arguments)
    return from_data(m, for_labels, theta, Data(arguments, None, jnp.ones((), dtype_of(theta))))


def from_data(m: Any, key: Array, theta: Theta, data: Data) -> Theta:
    """One M-step from responsibilities made of the data; θ gives what it does not move, or moves out of bounds."""
    terms, tables, _ = m.tables(theta, data.x)
    graph, dtype = m.graph(terms, tables), data.temperature.dtype
    possible = {name: jnp.where(jnp.isneginf(table), table, 0).astype(table.dtype) for name, table in tables.items()}
    fields = [
        Factor(Named((*places(law), str(law.law_of)), field.astype(dtype)), frozenset(law.plates), scale(law, dtype))
        for law, field in fields_of(key, terms, graph.sizes)
    ]
    fields = [field._replace(table=squeezed(field.table)) for field in fields]

    def partition(tables: dict[str, Array]) -> Array:
        return log_partition([*(t.factor(tables[t.name]) for t in terms), *fields], graph, data.temperature)

    with jax.numpy_rank_promotion("allow"):
        new = m.maximize(jax.grad(partition)(possible), theta, data).theta
        parameters = m.structure(data.x).parameters
        return {
            name: jax.tree.map(
                lambda new, old, name=name: jnp.where(inside(parameters[name].constraint, new), new, old),
                new[name], theta[name],
            )
            for name in theta
        }  # fmt: skip


def inside(constraint: Any, value: Array) -> Array:
    """Does an entry of θ have all its values, where they may be?"""
    return jnp.all(jnp.isfinite(value)) & jnp.all(constraint(value))


def places(law: Term) -> list[str]:
    return law.plates_in_order()


def scale(law: Term, dtype: Any) -> Named:
    """The weight that a latent's own law has, so that a field on it is not weighed again."""
    return law.named(jnp.asarray(law.scale, dtype))


def squeezed(table: Named) -> Named:
    """Without the axes of size 1."""
    kept = [i for i, size in enumerate(table.array.shape) if size > 1]
    return Named(tuple(table.names[i] for i in kept), jnp.squeeze(table.array))


def fields_of(key: Array, terms: list[Term], sizes: dict[str, int]) -> list[tuple[Term, Array]]:
    """(the law of a latent, b·[z = label] over its places and values); a scan's first step has one of its own."""
    laws = [term for term in terms if term.law_of is not None and sizes.get(term.law_of, 1) > 1]
    found = []
    for index, name in enumerate(dict.fromkeys(root(str(law.law_of)) for law in laws)):
        own = [law for law in laws if root(str(law.law_of)) == name]
        counts = [tuple(law.plates[place] for place in places(law)) for law in own]
        num_values = sizes[str(own[0].law_of)]
        labels = labels_of(jax.random.fold_in(key, index), own, terms, counts, num_values)
        b = jnp.log(SURE / (1 - SURE) * (num_values - 1))
        found += [(law, b * jax.nn.one_hot(some, num_values)) for law, some in zip(own, labels, strict=True)]
    return found


def labels_of(key: Array, laws: list[Term], terms: list[Term], counts: list[tuple[int, ...]], K: int) -> list[Array]:
    """A label for every place of a latent: one clustering of all of them, the first step of a scan included."""
    parts = [features(law, terms, shape) for law, shape in zip(laws, counts, strict=True)]
    if any(part is None for part in parts) or len({part.shape[-1] for part in parts if part is not None}) > 1:
        keys = jax.random.split(key, len(laws))
        return [jax.random.randint(k, shape, 0, K) for k, shape in zip(keys, counts, strict=True)]
    rows = [part.reshape(-1, part.shape[-1]) for part in parts if part is not None]
    labels, taken, found = nearest_of_drawn(key, standardised(jnp.concatenate(rows)), K), 0, []
    for part, shape in zip(rows, counts, strict=True):
        found.append(labels[taken : taken + len(part)].reshape(shape))
        taken += len(part)
    return found


def features(law: Term, terms: list[Term], shape: tuple[int, ...]) -> Array | None:
    """The observed numbers that depend on a latent at each of its places, (*places, F); None where there are none."""
    unrolled, where = steps_back(str(law.law_of)), places(law)
    found = []
    for term in terms:
        mentions = law.law_of in term.axes.values() and term.observed
        if mentions and set(where) <= set(term.plates) and unrolled in (0, steps_back(term.name)):
            found.append(laid_out(term, where, shape))
    return jnp.concatenate(found, axis=-1) if found else None


def laid_out(term: Term, where: list[str], shape: tuple[int, ...]) -> Float[Array, "*places F"]:
    """A term's values over some places, all else of a value side by side."""
    term = term._replace(axes=term.own_axes())
    own = term.event + term.fn.event_dim  # rightmost axes of an event
    value = jnp.asarray(term.value, float)
    batch = value.shape[: value.ndim - own]
    value = jnp.reshape(value, (*batch, -1))
    one_by_one = [term.named(value[..., f]) for f in range(value.shape[-1])]
    others = [name for name in one_by_one[0].names if name not in where]
    columns = [named.along([*where, *others]) for named in one_by_one]
    columns = [jnp.broadcast_to(c, (*shape, *c.shape[len(shape) :])).reshape((*shape, -1)) for c in columns]
    return jnp.concatenate(columns, axis=-1)


def standardised(rows: Float[Array, "n F"]) -> Float[Array, "n F"]:
    """Each column about its mean, in its standard deviation; what is not finite is at the mean."""
    finite = jnp.isfinite(rows)
    count = jnp.maximum(jnp.sum(finite, axis=0), 1)
    centred = jnp.where(finite, rows - (jnp.sum(jnp.where(finite, rows, 0), axis=0) / count)[None], 0)
    deviation = jnp.sqrt(jnp.sum(centred**2, axis=0) / count)
    return centred / jnp.where(deviation > 0, deviation, 1)[None]


def nearest_of_drawn(key: Array, rows: Float[Array, "n F"], K: int) -> Int[Array, " n"]:
    """The nearest of K rows, each drawn in proportion to its squared distance from those before (k-means++)."""
    first, *rest = jax.random.split(key, K)
    start = rows[jax.random.randint(first, (), 0, rows.shape[0])]

    def distance(centre: Array) -> Array:
        return jnp.sum((rows - centre[None]) ** 2, axis=1)

    def draw(nearest: Array, key: Array) -> tuple[Array, Array]:
        newest = distance(rows[jax.random.categorical(key, jnp.log(nearest))])
        return jnp.minimum(nearest, newest), newest

    at_start = distance(start)
    _, others = lax.scan(draw, at_start, jnp.stack(rest)) if rest else (None, at_start[:0][None][:0])
    return jnp.argmin(jnp.concatenate([at_start[None], others.reshape(-1, rows.shape[0])]), axis=0)
