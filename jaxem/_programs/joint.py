"""The joint law of a program's data, latents and parameters, as factors: what is read of it, and their sum.

    F_T(θ) = log p(θ) + T log Σ_z e^{log p(x, z | θ)/T}                            (eq:partition)

Its gradient in the program's factors (`_programs/eliminate`) is the posterior: their expected tables.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array
from numpyro.distributions import ImproperUniform

from jaxem._core.model import Data, Expectation, Theta
from jaxem._core.objective import product, weighted
from jaxem._programs import read
from jaxem._programs.absent import absent
from jaxem._programs.blame import blamed_on_the_program
from jaxem._programs.eliminate import Elimination, Graph, add, log_partition
from jaxem._programs.reach import reached, tangents
from jaxem._programs.read import Arguments, Structure, Term

Marginals = dict[str, Array]  # term → ∂F/∂(its table)


class Joint:
    """log p(x, z, θ) of a program, read off its traces.

    Attributes:
        program: the program, as it is.
        memory_limit: bytes that one enumerated table may take.
    """

    program: Any
    memory_limit: int

    def structure(self, x: Arguments) -> Structure:
        """The program's sites at these shapes."""
        with blamed_on_the_program(x):
            return structure_at(self.program, x.planned())

    def terms(self, theta: Theta, x: Arguments) -> tuple[list[Term], list[Term]]:
        """(terms of the data and its latents, priors of θ)."""
        structure = self.structure(x)
        of_theta: list[Term] = []
        data: list[Term] = []
        with blamed_on_the_program(x):
            terms = read.terms_of(self.program, structure, theta, x)
        for term in terms:
            if isinstance(term.fn, ImproperUniform):  # log 1, and no counts
                continue
            is_prior = term.name in structure.parameters and not term.mentioned(structure.enumerated)
            (of_theta if is_prior else data).append(term)  # a prior that depends on a latent is a factor of the sum
        return data, of_theta

    def graph(self, terms: list[Term], tables: dict[str, Array]) -> Graph:
        """What there is to sum over, and how much of it."""
        sizes: dict[str, int] = {}
        for term in terms:
            names, array = term.named(tables[term.name])
            sizes |= term.plates | dict(zip(names, array.shape, strict=True))
        variables = tuple(dict.fromkeys(term.law_of for term in terms if term.law_of is not None))
        times = frozenset(name for name in sizes if name.startswith("_time"))
        return Graph(sizes, variables, times, self.memory_limit)

    def tables(self, theta: Theta, x: Arguments) -> tuple[list[Term], dict[str, Array], list[Term]]:
        """(terms of the data and its latents, the table of each by name, priors of θ)."""
        terms, priors = self.terms(theta, x)
        with jax.numpy_rank_promotion("allow"), blamed_on_the_program(x):
            return terms, {term.name: term.table() for term in terms}, priors

    def table(self, theta: Theta, x: Arguments) -> Array:
        """ℓ (K, n), where there is one discrete latent and it lives in one plate."""
        terms, tables, _ = self.tables(theta, x)
        laws = [term for term in terms if term.law_of is not None]
        plates = [plate for plate in laws[0].plates if laws[0].plates[plate] > 1] or list(laws[0].plates)
        outside = [term.name for term in terms if plates and plates[0] not in term.plates]
        if len(laws) > 1 or len(plates) != 1 or plates[0].startswith("_time") or outside:
            raise ValueError(
                f"log_joint: needs one discrete latent in one plate with all that is observed, and this program has "
                f"{', '.join(f'{law.name!r} in {list(law.plates)}' for law in laws)}; use jaxem.marginals"
            )
        graph = self.graph(terms, tables)
        factors = [term.factor(tables[term.name]) for term in terms]
        elimination = Elimination(factors, graph, 1.0)
        by_row = [elimination.product(factor, factor.plates - set(plates)) for factor in factors]
        names = (str(laws[0].law_of), plates[0])
        table = add(elimination.weighted(by_row, elimination.common_scale(by_row)), names)
        return jnp.broadcast_to(table, [graph.sizes.get(name, 1) for name in names])

    def relative_table(self, theta: Theta, x: Arguments) -> Array:
        """The same: no term is left out of it."""
        return self.table(theta, x)

    def posterior(self, theta: Theta, data: Data) -> tuple[Expectation, list[Term]]:
        """The gradient of Σ w F_T in every site's table, with F_T of each row where they are cut; and the priors."""
        terms, tables, priors = self.tables(theta, data.x)
        graph, rows = self.graph(terms, tables), data.x.cut and data.x.cut.plate

        def partition(tables: dict[str, Array]) -> tuple[Array, Array]:
            factors = [term.factor(tables[term.name]) for term in terms]
            value = log_partition(factors, graph, data.temperature, rows)
            return jnp.sum(weighted(value, data.weights)), value

        (_, value), marginals = jax.value_and_grad(partition, has_aux=True)(tables)
        dtype = data.temperature.dtype
        energy = sum(jnp.sum(jnp.abs(product(marginals[name], tables[name]))) for name in tables)
        with jax.numpy_rank_promotion("allow"):
            value = value - data.temperature * absent(terms, graph, rows)
        return Expectation(marginals, value.astype(dtype), jnp.asarray(energy, dtype)), priors

    def log_prior(self, theta: Theta, data: Data) -> Array:
        """log p(θ), in constrained space."""
        return log_prior(self.terms(theta, data.x.some())[1], data.temperature.dtype)

    def energy(self, marginals: Marginals, theta: Theta, data: Data) -> Array:
        """Q(θ): log p(θ) + Σ ⟨marginal, table⟩."""
        expected, prior = self.energies(marginals, theta, data)
        return expected + prior

    def energies(self, marginals: Marginals | None, theta: Theta, data: Data) -> tuple[Array | float, Array]:
        """(Σ ⟨marginal, table⟩, log p(θ)), their derivatives with 0·∞ = 0 (`_programs/reach`)."""
        moves = tangents(lambda theta: [*itertools.chain(*self.terms(theta, data.x))], theta)
        terms, priors = self.terms(theta, data.x)
        with jax.numpy_rank_promotion("allow"):
            priors = [reached(term, moves.get(term.name, {}), None) for term in priors]
            prior = log_prior(priors, data.temperature.dtype)
            if marginals is None:
                return 0.0, prior
            terms = [reached(term, moves.get(term.name, {}), marginals[term.name]) for term in terms]
            return sum(jnp.sum(product(marginals[term.name], term.table())) for term in terms), prior

    def events(self, x: Arguments) -> Array:
        """How many scalars are observed; of each row, or of any of them, where they are cut."""
        structure, rows = self.structure(x), x.cut and x.cut.plate
        shapes = {name: parameter.shape for name, parameter in structure.parameters.items()}
        theta = jax.tree.map(jnp.ones, shapes, is_leaf=lambda node: isinstance(node, tuple))
        with jax.numpy_rank_promotion("allow"):
            counts = [term.events(structure.enumerated, rows) for term in self.terms(theta, x)[0] if term.observed]
            return sum(counts[1:], counts[0])


def log_prior(priors: list[Term], dtype: Any) -> Array:
    """log p(θ) of the priors' terms."""
    with jax.numpy_rank_promotion("allow"):
        return jnp.asarray(sum(jnp.sum(term.scale * term.table()) for term in priors), dtype)


@functools.lru_cache(maxsize=256)
def structure_at(program: Any, shapes: Arguments) -> Structure:
    """The program's sites, and which priors depend on a latent: those are known from the enumerated trace."""
    structure = read.inspect(program, shapes)
    if all(parameter.prior is None for parameter in structure.parameters.values()):
        return structure
    mixed: dict[str, str] = {}

    def visit(theta: Theta, x: Arguments) -> None:
        for term in read.terms_of(program, structure, theta, x):
            found = term.mentioned(structure.enumerated)
            if term.name in structure.parameters and found:
                mixed[term.name] = found[0]

    theta = {name: abstract(parameter.shape) for name, parameter in structure.parameters.items()}
    jax.eval_shape(visit, theta, shapes)
    parameters = {name: p._replace(mixed=mixed.get(name)) for name, p in structure.parameters.items()}
    return structure._replace(parameters=parameters)


def abstract(shape: Any, dtype: Any = float) -> Any:
    """An array, or a tree of arrays, of this shape, without values."""
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, dtype), shape, is_leaf=is_shape)


def is_shape(node: Any) -> bool:
    """Is it the shape of one array, and no tree of such?"""
    return isinstance(node, tuple)


def dtype_of(theta: Theta) -> Any:
    """θ's precision; JAX's own where θ is empty."""
    return jnp.result_type(*jax.tree.leaves(theta)) if theta else jnp.result_type(float)
