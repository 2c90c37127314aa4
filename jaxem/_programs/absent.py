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

from jaxem._programs.eliminate import PREVIOUS, Graph, Named
from jaxem._programs.read import Term


def absent(terms: Sequence[Term], graph: Graph, rows: str | None = None) -> Array | float:
    """Σ w log K of what is not there, in nats at T = 1; of each member of the plate `rows`."""
    laws = [term for term in terms if term.law_of in graph.variables and term.mask is not None and term.seen is None]
    return sum((uncounted(law, terms, graph, rows) for law in laws if graph.sizes[str(law.law_of)] > 1), 0.0)


def uncounted(law: Term, terms: Sequence[Term], graph: Graph, rows: str | None) -> Array:
    """Σ w log K over the places of one latent."""
    name, places = str(law.law_of), law.plates_in_order()
    sizes = [law.plates[place] for place in places]
    time = next((axis for axis, place in enumerate(places) if place in graph.times), None)
    there = jnp.zeros(sizes, bool)
    for term in terms:
        for variable in (name, PREVIOUS + name):
            if variable in term.axes.values():
                there = there | shown(term, places, sizes, time, later=variable != name, graph=graph)
    scale = law.named(jnp.asarray(law.scale)).along(places)
    summed = tuple(axis for axis, place in enumerate(places) if place != rows)
    return jnp.sum(jnp.where(there, 0, scale), axis=summed) * jnp.log(graph.sizes[name])


def shown(term: Term, places: list[str], sizes: list[int], time: int | None, later: bool, graph: Graph) -> Array:
    """Where a term that mentions a latent is not masked, over the latent's places. `later`: it does so a step later."""
    inside = [plate for plate in term.plates if plate in graph.times]
    if time is None and later:
        return along(term, [*inside, *places])[0]  # a scan's first step, and what the second says of it
    mask = along(term, places)
    if time is None:
        return mask
    steps = jnp.expand_dims(jnp.arange(sizes[time]), [axis for axis in range(len(sizes)) if axis != time])
    last = steps == sizes[time] - 1
    if not inside:
        return mask & last & (not later)  # what follows a scan mentions its last step
    return jnp.roll(jnp.broadcast_to(mask, sizes), -1, axis=time) & ~last if later else mask


def along(term: Term, places: list[str]) -> Array:
    """Where a term is not masked anywhere else, over these places."""
    names, mask = term.named_mask()
    others = tuple(axis for axis, label in enumerate(names) if label not in places)
    return Named(tuple(label for label in names if label in places), jnp.any(mask, axis=others)).along(places)
