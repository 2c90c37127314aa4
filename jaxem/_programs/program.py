"""EM for any NumPyro program with enumerable discrete latents.

    F_T(θ) = log p(θ) + T log Σ_z e^{log p(x, z | θ)/T}                            (eq:partition)

The E-step is its gradient in the program's factors (`_programs/eliminate`): their expected tables, the posterior
marginals. The M-step maximises Q(θ) = log p(θ) + Σ ⟨marginal, log p of the site⟩, each parameter by the closed
form that `_programs/plan` found for it, by Newton's method or by gradient.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from numpyro.distributions import ImproperUniform, biject_to

from jaxem._core.arrays import PACKAGE, count, first_line, random_key, shown, switch
from jaxem._core.climb import check_optimizer
from jaxem._core.model import Data, Expectation, Model, Step, Theta, ThetaLike
from jaxem._core.objective import product, weighted
from jaxem._core.tracing import at_once
from jaxem._core.values import name_of, settle
from jaxem._programs import plan as _plan
from jaxem._programs import probe, read, row_plate, rows, start
from jaxem._programs.absent import absent
from jaxem._programs.arguments import Cut
from jaxem._programs.eliminate import Elimination, Graph, add, log_partition
from jaxem._programs.enter import enter
from jaxem._programs.follow import Probe
from jaxem._programs.m_step import Marginals, stages, stationarity
from jaxem._programs.reach import reached, tangents
from jaxem._programs.read import Arguments, Structure, Term
from jaxem._programs.row_plate import is_small

REMEDIES = {
    "weights": "; put numpyro.handlers.scale(scale=weights) in the program",
    "mesh": "; em_batch spreads such a program's fits, lane by lane",
    "batches": "; use em on data in memory",
}
KINDS = {
    "selection": "closed form",
    "linear": "weighted least squares",
    "newton": "Newton's method",
    "gradient": "gradient",
}


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Program(Model):
    """A NumPyro program as a model for `em`; made by `from_numpyro`. Hashable, and a pytree without leaves.

    Attributes:
        program: the program, as it is.
        held: names of θ that are never updated; see `hold`.
        optimizer: for parameters without a closed form; None climbs by Newton's method, or by L-BFGS.
        num_gradient_steps: its steps in one M-step, or the most evaluations of ∇Q.
        memory_limit: bytes that one enumerated table may take.
        closed_form: look for closed-form M-steps; if not, every parameter climbs its gradient.
    """

    program: Any
    held: frozenset[str] = frozenset()
    optimizer: optax.GradientTransformation | None = None
    num_gradient_steps: int = 100
    memory_limit: int = 2**31
    closed_form: bool = True

    def __post_init__(self) -> None:
        settle(self)

    def __repr__(self) -> str:
        """Its function, what is held, and the options that are not the default."""
        defaults = {field.name: field.default for field in fields(self) if field.name not in ("program", "held")}
        given = {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}
        optimizer = {"optimizer": "…"} if given.pop("optimizer", None) is not None else {}
        options = "".join(f", {name}={value}" for name, value in (optimizer | given).items())
        held = f".hold({', '.join(map(repr, sorted(self.held)))})" if self.held else ""
        return f"jaxem.from_numpyro({name_of(self.program)}{options}){held}"

    def __dir__(self) -> list[str]:
        """What its users use; all else there is, is how it is fitted."""
        return ["explain", "held", "hold", "init", "program"]

    def hold(self, *names: str) -> "Program":
        """The same program with these entries of θ never updated; names are checked when a θ is given."""
        return replace(self, held=self.held | set(names))

    # ---- the program, read

    def structure(self, x: Arguments) -> Structure:
        """The program's sites at these shapes."""
        with blamed_on_the_program(x):
            return _structure(self.program, x.planned())

    def plan(self, x: Arguments, dtype: Any) -> _plan.Plan:
        """The update of every free parameter at these shapes."""
        with blamed_on_the_program(x):
            plan = _verified_plan(self.program, x.planned(), jnp.dtype(dtype))
        if not self.closed_form:
            plan = {name: update._replace(kind="gradient", why="closed_form=False") for name, update in plan.items()}
        plan = {name: update for name, update in plan.items() if name not in self.held}
        iterates = self.closed_form and self.optimizer is None
        iterates = iterates and any(update.kind == "gradient" for update in plan.values())
        if not iterates or not _is_smooth(self.program, x.planned(), jnp.dtype(dtype)):
            return plan
        shapes = {name: parameter.shape for name, parameter in self.structure(x).parameters.items()}
        sizes = {name: sum(map(math.prod, jax.tree.leaves(shapes[name], is_leaf=is_shape))) for name in plan}
        return _plan.with_newton(plan, sizes)

    def by_rows(self, what: str, x: Arguments, dtype: Any) -> Arguments:
        """The arguments, cut along the row plate; a ValueError that says `what` needs one, and why there is none."""
        if x.cut is not None:
            return x
        found = self.row_plate(x, dtype)
        if isinstance(found, str):
            needs = f"{what}: needs a plate of rows with all latents and data in it, and here {found}"
            raise ValueError(needs + REMEDIES.get(what, ""))
        return x.by(found)

    def row_plate(self, x: Arguments, dtype: Any) -> Cut | str:
        """How the arguments are cut into rows, or why they cannot be."""
        with blamed_on_the_program(x):
            return _row_plate(self.program, x.by(None).shapes(), jnp.dtype(dtype))

    def divides(self, data: Data) -> bool:
        """Are its arguments cut?"""
        return data.x.cut is not None

    def divided(self, what: str, data: Data) -> Data:
        """The data with the arguments cut, and the plan made; a ValueError where there is no plate of rows."""
        data = data._replace(x=self.by_rows(what, data.x, data.temperature.dtype))
        self.plan(data.x, data.temperature.dtype)
        return data

    def explain(self, theta: Any, x: Any) -> "Explanation":
        """Which update each parameter gets, and why; its `rows` tells the plate of rows, or why there is none.

        With one the fit can be chunked, weighed, spread over devices and streamed.

        Args:
            theta: gives the precision.
            x: as in `em`.

        >>> import jax, jax.numpy as jnp, jaxem, numpyro
        >>> from numpyro import distributions as dist
        >>> def program(x):
        ...     rate = numpyro.param("rate", jnp.array([1.0, 5.0]), constraint=dist.constraints.positive)
        ...     with numpyro.plate("rows", len(x)):
        ...         z = numpyro.sample("z", dist.Bernoulli(0.3))
        ...         numpyro.sample("x", dist.Poisson(rate[z]), obs=x)
        >>> m, x = jaxem.from_numpyro(program), jnp.array([0, 1, 5])
        >>> m.explain(m.init(jax.random.key(0), x), x)
        {'rate': "closed form: selected by Poisson.rate of 'x'"}
        >>> m.explain(m.init(jax.random.key(0), x), x).rows
        "the members of plate 'rows'"
        """
        if not hasattr(theta, "keys"):
            raise ValueError(f"theta: must be a dict of the program's parameters, got {type(theta).__name__}")
        arguments = Arguments.of(x)
        dtype = dtype_of(jax.tree.map(arguments.cast, dict(theta)))
        cut = self.row_plate(arguments, dtype)
        plan = self.plan(self.by_rows_if_large(arguments, dtype), dtype)
        found = Explanation(
            (name, f"{KINDS[plan[name].kind]}: {plan[name].why}{estimated(parameter)}" if name in plan else "held")
            for name, parameter in self.structure(arguments).parameters.items()
        )
        found.rows = f"none: {cut}" if isinstance(cut, str) else f"the members of plate {cut.plate!r}"
        return found

    def by_rows_if_large(self, x: Arguments, dtype: Any) -> Arguments:
        """The arguments, cut where that is worth it and can be."""
        if x.cut is not None or is_small(self.structure(x), x):
            return x
        cut = self.row_plate(x, dtype)
        return x if isinstance(cut, str) else x.by(cut)

    def init(self, key: Array, x: Any, method: Any = "program") -> Theta:
        """A start: the program's own initial values of its params, and a draw from the priors of its latents.

        With method="responsibilities" a start from the data: the observed numbers that a discrete latent enters are
        assigned to the nearest of a few of their rows, drawn as k-means++ draws them (a latent without such numbers
        gets labels at random), and one M-step is made of that (`_programs/start.py`). What the M-step would move out
        of its bounds, and what is held, stays at the program's own.

        Args:
            key: a key of `jax.random`; other keys give other starts.
            x: the program's argument, or the tuple of its arguments.
            method: "program" or "responsibilities".

        >>> import jax, jaxem, numpyro
        >>> from numpyro import distributions as dist
        >>> def program(x):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
        ...     with numpyro.plate("rows", len(x)):
        ...         z = numpyro.sample("z", dist.Bernoulli(0.3))
        ...         numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)
        >>> jaxem.from_numpyro(program).init(jax.random.key(0), jax.numpy.zeros(5))["mu"].shape
        (2,)
        """
        if method not in ("program", "responsibilities"):
            raise ValueError(f'method: must be "program" or "responsibilities", got {shown(method)}')
        key, arguments = random_key(key), Arguments.of(x)
        if method == "program":
            return _own_values(self, key, arguments)
        shapes = jax.tree.leaves(jax.eval_shape(_own_values, self, key, arguments))
        self.plan(arguments, jnp.result_type(*shapes) if shapes else float)
        return _from_data(self, key, arguments)

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
        sizes: dict[str, int] = {}
        for term in terms:
            names, array = term.named(tables[term.name])
            sizes |= term.plates | dict(zip(names, array.shape, strict=True))
        variables = tuple(dict.fromkeys(term.law_of for term in terms if term.law_of is not None))
        times = frozenset(name for name in sizes if name.startswith("_time"))
        return Graph(sizes, variables, times, self.memory_limit)

    def tables(self, theta: Theta, x: Arguments) -> tuple[list[Term], dict[str, Array], list[Term]]:
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

    # ---- the two maximisers of eq:F, and F itself

    def enter(
        self, theta: ThetaLike, x: Any, weights: Any, temperature: Any, labels: Any, *, batched: bool
    ) -> tuple[Theta, Data]:
        """θ in the precision of the program's arguments, and those, checked against its traces."""
        return enter(self, theta, x, weights, temperature, labels, batched)

    def get_ready(self, theta: Theta, data: Data) -> None:
        """Make the plan."""
        self.plan(data.x, dtype_of(theta))

    def expect(self, theta: Theta, data: Data, centre: Theta | None = None, again: Array | bool = True) -> Expectation:
        """The E-step: F_T (eq:partition), with what the M-step needs of it: sums over rows, or whole tables."""
        if data.x.cut is not None:
            return rows.expect(self, theta, theta if centre is None else centre, data)
        return self.expect_whole(theta, data)

    def expect_whole(self, theta: Theta, data: Data) -> Expectation:
        """The E-step: F_T, and its gradient in every site's table."""
        here, priors = self.posterior(theta, data)
        prior = log_prior(priors, data.temperature.dtype)
        value = jnp.sum(weighted(here.free_energy, data.weights))
        return Expectation(here.statistics, value + prior, here.scale + jnp.abs(prior))

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

    def objective(self, theta: Theta, old: Theta, data: Data) -> Array:
        """F_T(θ, γ(θ_old)) = F_T(θ_old) + Q(θ) − Q(θ_old)."""
        if data.x.cut is not None:
            return rows.objective(self, theta, old, data)
        before = self.expect(old, data)
        marginals = before.statistics
        return before.free_energy + self.energy(marginals, theta, data) - self.energy(marginals, old, data)

    def maximize(self, statistics: Any, theta: Theta, data: Data) -> Step:
        """The M-step, block by block (eq:block)."""
        if data.x.cut is not None:
            return Step(rows.maximize(self, statistics, theta, data))
        return Step(stages(self, self.plan(data.x, dtype_of(theta)), statistics, theta, data)[-1][1])

    def size(self, data: Data) -> Array:
        """W: the number of observed scalar log-densities, each with its weight."""
        if data.x.cut is not None:
            return rows.size(self, data)
        return jax.jit(self.events)(data.x)  # jit: θ of ones need not satisfy what NumPyro validates outside

    def events(self, x: Arguments) -> Array:
        """How many scalars are observed; of each row, or of any of them, where they are cut."""
        structure, rows = self.structure(x), x.cut and x.cut.plate
        shapes = {name: parameter.shape for name, parameter in structure.parameters.items()}
        theta = jax.tree.map(jnp.ones, shapes, is_leaf=lambda node: isinstance(node, tuple))
        with jax.numpy_rank_promotion("allow"):
            counts = [term.events(structure.enumerated, rows) for term in self.terms(theta, x)[0] if term.observed]
            return sum(counts[1:], counts[0])

    # ---- coordinates

    def coordinates(self, theta: Theta, data: Data, names: Iterable[str]) -> Theta:
        """Some of θ in NumPyro's unconstrained coordinates."""
        parameters = self.structure(data.x).parameters
        return {name: map_constraint(parameters[name], theta[name], inverse=True) for name in names}

    def unconstrain(self, theta: Theta, data: Data, origin: Theta | None = None) -> Theta:
        """θ's free entries in NumPyro's unconstrained coordinates."""
        return self.coordinates(theta, data, [name for name in theta if name not in self.held])

    def constrain(self, free: Theta, theta: Theta, data: Data) -> Theta:
        """The inverse of `unconstrain`; held entries are θ's."""
        parameters = self.structure(data.x).parameters
        return theta | {name: map_constraint(parameters[name], u) for name, u in free.items()}


class Explanation(dict[str, str]):
    """What `explain` says of each parameter, and of the rows."""

    rows: str = ""


@jax.jit
def _own_values(m: Program, key: Array, arguments: Arguments) -> Theta:
    """θ as the program itself has it."""
    names = m.structure(arguments).parameters  # first: it says in one line what a program cannot do
    with blamed_on_the_program(arguments):
        trace = read.plain_trace(m.program, arguments, key)
    return {name: jax.tree.map(arguments.cast, trace[name]["value"]) for name in names}


@jax.jit
def _from_data(m: Program, key: Array, arguments: Arguments) -> Theta:
    """θ from responsibilities made of the data."""
    for_theta, for_labels = jax.random.split(key)
    theta = _own_values(m, for_theta, arguments)
    return start.from_data(m, for_labels, theta, Data(arguments, None, jnp.ones((), dtype_of(theta))))


def estimated(parameter: read.Parameter) -> str:
    """What to say of a latent that has a value for each of a group of rows."""
    plates = ", ".join(map(repr, parameter.plates))
    return f"; a point estimate (MAP) for each member of plate {plates}" if plates else ""


@contextmanager
def blamed_on_the_program(x: Arguments) -> Iterator[None]:
    """What a program cannot do with its arguments, said in one line; jaxem's words, and errors of its own, stay."""
    try:
        yield
    except (TypeError, AttributeError, AssertionError, LookupError, ValueError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is not None and frame.tb_frame.f_code.co_filename.startswith(PACKAGE):
            raise
        raise ValueError(
            f"program: called with x = {shown(x.described())}, it raises {type(error).__name__}: {first_line(error)}; "
            "x must be its argument, or the tuple of its arguments"
        ) from error


def dtype_of(theta: Theta) -> Any:
    return jnp.result_type(*jax.tree.leaves(theta)) if theta else jnp.result_type(float)


def map_constraint(parameter: read.Parameter, value: Any, inverse: bool = False) -> Any:
    """A parameter through the bijection of its constraint."""
    bijection = biject_to(parameter.constraint)
    bijection = bijection.inv if inverse else bijection
    with jax.numpy_rank_promotion("allow"):  # NumPyro's transforms broadcast, and some know JAX's own precision only
        return jax.tree.map(lambda leaf: bijection(leaf.astype(float)).astype(leaf.dtype), value)


def log_prior(priors: list[Term], dtype: Any) -> Array:
    with jax.numpy_rank_promotion("allow"):
        return jnp.asarray(sum(jnp.sum(term.scale * term.table()) for term in priors), dtype)


def from_numpyro(
    program: Any,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_gradient_steps: int = 100,
    memory_limit: int = 2**31,
    closed_form: bool = True,
) -> Program:
    """Any NumPyro program with enumerable discrete latents as a model for `em`, unchanged.

    θ is every `numpyro.param` site, and every continuous latent, whose prior then makes the fit a maximum a
    posteriori. Discrete latents are summed out: by plates, along `scan`, and those that a `MixtureSameFamily` or
    `MixtureGeneral` already sums. The E-step is exact; `explain` says how the M-step updates each parameter: by a
    closed form of which every entry of ∇Q was seen to vanish, at random stand-ins for the data; by Newton's method, to
    where ∇Q = 0, all that share a distribution together; or, where those have more than 64 entries, by the gradient.

    A floor under a scale or a rate is a constraint, which closed forms keep:
    `numpyro.param("sigma", 1.0, constraint=constraints.greater_than(1e-3))`. Covariances have none.

    A continuous latent with a value for each of a group of rows is an entry of θ like any other, its point estimate;
    one for each row is refused.

    Args:
        program: the program. `x` in `em` and the rest is its argument, a tuple of its arguments, or
            `jaxem.arguments(…, name=…)` where it has keywords. Arrays and floats, in any pytree, are data; all else
            (ints, bools, strings, functions, a Namespace of options) is static.
        optimizer: an optax `GradientTransformation` for parameters without a closed form; when absent they climb, by
            Newton's method or L-BFGS, to where Q is stationary.
        num_gradient_steps: the optimiser's steps in one M-step, ≥ 1; without one, the most evaluations of ∇Q.
        memory_limit: bytes that one enumerated table may take, before a ValueError says how large it would be.
        closed_form: look for closed-form M-steps.

    >>> import jax, jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> def program(x):
    ...     pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=dist.constraints.simplex)
    ...     mu = numpyro.param("mu", jnp.array([-0.5, 0.5]))
    ...     with numpyro.plate("rows", len(x)):
    ...         z = numpyro.sample("z", dist.Categorical(pi))
    ...         numpyro.sample("x", dist.Normal(mu[z], 0.2), obs=x)
    >>> x = jnp.array([-1.2, -1.0, -0.8, 0.9, 1.1])
    >>> m = jaxem.from_numpyro(program)
    >>> fit = jaxem.em(m, m.init(jax.random.key(0), x), x)
    >>> jaxem.check(fit).theta["mu"].round(1).tolist()
    [-1.0, 1.0]
    """
    if not callable(program):
        raise ValueError(f"program: must be a NumPyro program, a function, got {type(program).__name__}")
    count("num_gradient_steps", num_gradient_steps, 1)
    count("memory_limit", memory_limit, 0)
    check_optimizer(optimizer)
    closed_form = switch("closed_form", closed_form)
    return Program(program, frozenset(), optimizer, num_gradient_steps, memory_limit, closed_form)


@functools.lru_cache(maxsize=256)
def _structure(program: Any, shapes: Arguments) -> Structure:
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
    return isinstance(node, tuple)


@dataclass(frozen=True)
class Redrawn(Program):
    """A program whose observed values are replaced, by draws that lie in their supports."""

    draws: Any = None

    def terms(self, theta: Theta, x: Arguments) -> tuple[list[Term], list[Term]]:
        terms, priors = super().terms(theta, x)
        return [term._replace(value=self.draws.get(term.name, term.value)) for term in terms], priors


@functools.lru_cache(maxsize=256)
def _probe(program: Any, shapes: Arguments, dtype: Any) -> Probe:
    """The program at stand-ins of these shapes."""
    m = Program(program)
    with at_once(), jax.numpy_rank_promotion("allow"):
        return Probe(m.terms, m.structure(shapes), shapes, dtype)


@functools.lru_cache(maxsize=256)
def _row_plate(program: Any, shapes: Arguments, dtype: Any) -> Cut | str:
    """How arguments of these shapes are cut into rows, or why they cannot be."""
    m = Program(program)
    try:
        with at_once(), jax.numpy_rank_promotion("allow"):
            return row_plate.find(m, shapes, m.structure(shapes), lambda shapes: _probe(program, shapes, dtype))
    except row_plate.Whole as why:
        return str(why)


@functools.lru_cache(maxsize=256)
def _is_smooth(program: Any, shapes: Arguments, dtype: Any) -> bool:
    """Does JAX know second derivatives of all that θ enters? Some functions have a first one alone."""
    m = Program(program)

    def total(theta: Theta, x: Arguments) -> Array:
        return sum((jnp.sum(table) for table in m.tables(theta, x)[1].values()), m.log_prior(theta, Data(x, None, one)))

    def bend(theta: Theta, x: Arguments) -> Any:
        return jax.jvp(lambda theta: jax.grad(total)(theta, x), (theta,), (theta,))[1]

    one = jnp.ones((), dtype)
    theta = {name: abstract(parameter.shape, dtype) for name, parameter in m.structure(shapes).parameters.items()}
    try:
        with jax.numpy_rank_promotion("allow"):
            jax.eval_shape(bend, theta, shapes)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


@functools.lru_cache(maxsize=256)
def _verified_plan(program: Any, shapes: Arguments, dtype: Any) -> _plan.Plan:
    """The plan, each closed form held to C3: ∇Q = 0 after it and not before, in every entry, at random stand-ins.

    A parameter whose closed form does not pass falls to its next best, at last to its gradient.
    """
    m = Program(program)
    structure = m.structure(shapes)
    rng = np.random.default_rng(1)
    with at_once(), jax.numpy_rank_promotion("allow"):
        planner = _plan.Planner(_probe(program, shapes, dtype))
        theta = probe.parameters(structure, dtype, rng)

        @probe.once
        def stand_ins(theta: Theta, x: Arguments) -> tuple[Theta, dict[str, Array]]:
            terms = m.terms(theta, x)[0]
            keys = jax.random.split(jax.random.key(0), len(terms))
            draws = {t.name: probe.draw(t, key, rng) for t, key in zip(terms, keys, strict=True) if t.observed}
            finite = {t.name: jnp.isfinite(t._replace(value=draws.get(t.name, t.value)).table()) for t in terms}
            return draws, finite

        def check(closed: _plan.Plan) -> dict[str, str]:
            """What is wrong, with whom: entry by entry, until all were tested or there are no other stand-ins."""
            left = {name: (np.zeros(1, bool), "") for name in closed}
            for x in planner.probe.arguments() if closed else ():
                draws, finite = stand_ins(theta, x)
                data, m = Data(x, None, jnp.ones((), dtype)), Redrawn(program, draws=draws)
                marginals = {name: jnp.where(some, rng.uniform(0.1, 1, some.shape), 0) for name, some in finite.items()}
                marginals = {name: some.astype(dtype) for name, some in marginals.items()}
                for name, now in stationarity(m, closed, marginals, theta, data).items():
                    left[name] = (left[name][0] | now.entries, left[name][1] or now.why)
                    if now.is_wrong:
                        return {name: now.why}
                if all(entries.all() for entries, _ in left.values()):
                    break
            return {name: why for name, (entries, why) in left.items() if not entries.all()}

        while True:
            plan = planner.plan()
            wrong = check({name: update for name, update in plan.items() if update.kind != "gradient"})
            if not wrong:
                return plan
            for name, why in wrong.items():
                planner.drop(name, why)


def program_only(what: str, m: Any) -> Program:
    """A ValueError where something else stands in for a program."""
    if isinstance(m, Program):
        return m
    if isinstance(m, Model):
        raise ValueError(f"{what}: is for jaxem.from_numpyro(program); a mixture has jaxem.responsibilities")
    raise ValueError(f"m: must be jaxem.from_numpyro(program), got {type(m).__name__}")
