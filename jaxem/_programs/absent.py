"""Latents that are not there: where everything that mentions one is masked, no sum is over it.

`handlers.mask` sets a term to zero. Where it does so to a latent's law and to all that depends on the latent, the
sum over its K values is one over nothing, of which NumPyro's density keeps log K. A padded step of a sequence, a row
left out: they count nothing, whatever the temperature,

    F_T ← F_T − T Σ w log K   over the latents that are not there,

so that a masked row might as well not be a row. Where something that is not masked mentions a latent whose law is,
NumPyro's density holds as it stands: its law is uniform, and not normalised.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from jaxem._programs.eliminate import Graph, Named, root, steps_back
from jaxem._programs.read import Term


def absent(terms: Sequence[Term], graph: Graph, rows: str | None = None) -> Array | float:
    """Σ w log K of what is not there, in nats at T = 1; of each member of the plate `rows`."""
    laws = [term for term in terms if term.law_of in graph.variables and term.mask is not None and term.seen is None]
    return sum((uncounted(law, terms, graph, rows) for law in laws if graph.sizes[str(law.law_of)] > 1), 0.0)


def uncounted(law: Term, terms: Sequence[Term], graph: Graph, rows: str | None) -> Array:
    """Σ w log K over the places of one latent."""
    name, places = str(law.law_of), law.plates_in_order()
    sizes = [law.plates[place] for place in places]
    there = jnp.zeros(sizes, bool)
    for term in terms:
        for label in term.axes.values():
            if root(label) == root(name):
                there = there | shown(term, label, name, places, graph)
    scale = law.named(jnp.asarray(law.scale)).along(places)
    summed = tuple(axis for axis, place in enumerate(places) if place != rows)
    return jnp.sum(jnp.where(there, 0, scale), axis=summed) * jnp.log(graph.sizes[name])


def shown(term: Term, label: str, name: str, places: list[str], graph: Graph) -> Array | bool:
    """Where a term that mentions a latent, by this label, is not masked, over the latent's places.

    Inside of a scan's time a label counts back from the term's own step; outside it is a step that is unrolled, or the
    last.
    """
    inside = [plate for plate in term.plates if plate in graph.times]
    time = next((axis for axis, place in enumerate(places) if place in graph.times), None)
    back, unrolled = steps_back(label), steps_back(name)
    if not inside or (time is None and not unrolled):
        mask = label == name and along(term, places)
        return mask if time is None else mask & last_steps(places, graph, 1)
    if time is not None:
        sizes = [graph.sizes[place] for place in places]
        mask = jnp.roll(jnp.broadcast_to(along(term, places), sizes), -back, axis=time)
        return mask & ~last_steps(places, graph, back)
    step, length = back - unrolled, graph.sizes[inside[0]]
    mask = along(term, [*inside, *places])
    return 0 <= step < length and mask[min(step, len(mask) - 1)]


def last_steps(places: list[str], graph: Graph, count: int) -> Array:
    """The last few steps of time, over a latent's places."""
    (axis,) = (axis for axis, place in enumerate(places) if place in graph.times)
    length = graph.sizes[places[axis]]
    late = jnp.arange(length) >= length - count
    return jnp.expand_dims(late, [other for other in range(len(places)) if other != axis])


def along(term: Term, places: list[str]) -> Array:
    """Where a term is not masked anywhere else, over these places."""
    names, mask = term.named_mask()
    others = tuple(axis for axis, label in enumerate(names) if label not in places)
    return Named(tuple(label for label in names if label in places), jnp.any(mask, axis=others)).along(places)
