"""A program's factors with a table ε added to the log-probabilities of each of its latents.

F_T's derivative in ε is what is known of the latents (eq:marginal); what is left out of the factors first, later steps
of a scan for one, is not known.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from jaxem._core.model import Data, Theta
from jaxem._programs.eliminate import Factor, Graph, Named, log_partition
from jaxem._programs.program import Program
from jaxem._programs.read import Term, is_number, root


class Offset(NamedTuple):
    """The factors of a program at one θ, and its latents."""

    factors: dict[str, Factor]  # by the name of their term
    graph: Graph
    laws: dict[str, str]  # latent → the term that is its law
    places: dict[str, tuple[str, ...]]  # latent → its plates and times, from left to right
    values: dict[str, int]  # latent → how many it takes

    @classmethod
    def of(cls, m: Program, theta: Theta, data: Data) -> "Offset":
        """Of a program at θ."""
        terms, tables, _ = m.tables(theta, data.x)
        return cls.of_terms(m, terms, tables, data)

    @classmethod
    def of_terms(cls, m: Program, terms: list[Term], tables: dict[str, Array], data: Data) -> "Offset":
        """Of its terms."""
        enumerated = m.structure(data.x).enumerated
        tiny = jnp.finfo(data.temperature.dtype).tiny ** 0.75  # a row of weight 0 has a posterior too
        terms = [t if is_number(t.scale) else t._replace(scale=jnp.maximum(t.scale, tiny)) for t in terms]
        laws = {term.law_of: term for term in terms if term.law_of is not None}
        return cls(
            {term.name: term.factor(tables[term.name]) for term in terms},
            m.graph(terms, tables),
            {name: term.name for name, term in laws.items()},
            {name: tuple(term.plates_in_order()) for name, term in laws.items()},
            {name: enumerated[root(name)] for name in laws},
        )

    def rows(self, name: str) -> tuple[int, ...]:
        """The sizes of a latent's plates and times."""
        return tuple(self.graph.sizes[place] for place in self.places[name])

    def zeros(self, dtype: Any) -> dict[str, Array]:
        """ε = 0."""
        return {name: jnp.zeros((*self.rows(name), self.values[name]), dtype) for name in self.laws}

    def weights(self) -> dict[str, Array]:
        """The weights of the latents' rows."""
        scales = {name: self.factors[law].scale.along(self.places[name]) for name, law in self.laws.items()}
        return {name: jnp.broadcast_to(scale, self.rows(name)) for name, scale in scales.items()}

    def partition(
        self, epsilon: dict[str, Array], temperature: Array, key: Array | None = None, filtered: bool = False
    ) -> Array:
        """F_T with ε added; its derivative is that of `log_partition`."""
        extra = []
        for name, law in self.laws.items():
            axes = zip((*self.places[name], name), epsilon[name].shape, strict=True)
            table = Named(tuple(label for label, size in axes if size > 1), jnp.squeeze(epsilon[name]))
            own = self.factors[law]
            extra.append(Factor(table, own.plates, own.scale))
        return log_partition([*self.factors.values(), *extra], self.graph, temperature, key=key, filtered=filtered)
