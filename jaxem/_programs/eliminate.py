"""Sum-product at a temperature: log Σ over every joint assignment of a program's discrete latents.

A program's log density is a sum of *factors*, tables over its enumerated variables, repeated over plates and
over the time of a scan. This file eliminates the variables one by one, leaf plates first (tensor variable
elimination, Obermeyer et al. 2019), a scan's chain from its first step to its last, each with

    max_T ℓ = T log Σ e^{ℓ/T},  at T = 0 the maximum, the lowest index at ties             (eq:reduce)

so that the result is F_T(θ) of eq:bound. Everything else is its derivative. ∂F_T/∂(factor) is that factor's
expected indicator table: posterior marginals at T = 1 (Darwiche 2003; Eisner 2016: forward–backward is the
gradient of forward), and at T = 0, where the derivative of a maximum is one-hot, the backtracking of
max-product: the most probable joint assignment. Where each γ in that derivative is replaced by a one-hot draw from it,
the same road back draws from the joint posterior: each variable given those that were eliminated after it. Where a
chain's pass back is left out of it, its end is the filter.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core.objective import assign, weighted
from jaxem._programs.chain import Tables, chain, drawn_chain, filtered_chain
from jaxem._programs.steps import PREVIOUS, root, steps_back


class Named(NamedTuple):
    """An array with a name for each axis: a variable, a plate or a time."""

    names: tuple[str, ...]
    array: Any  # a weight that is a number in the program is NumPy's

    def along(self, names: Sequence[str]) -> Array:
        """The array with these axes in this order, of size 1 where it has none."""
        order = [self.names.index(name) for name in names if name in self.names]
        return jnp.expand_dims(
            jnp.transpose(self.array, order), [i for i, name in enumerate(names) if name not in self.names]
        )


class Factor(NamedTuple):
    """Some terms of the log density: a table, where it is repeated, and with which weight."""

    table: Named
    plates: frozenset[str]  # plates and times it lives in; one without an axis in the table repeats it
    scale: Named  # w of eq:F, over plates; of the rows whose sum over assignments it enters
    law_of: str | None = None  # the variable whose prior this is: its scale is that of the whole sum


class Graph(NamedTuple):
    """What is static about a program's factors."""

    sizes: dict[str, int]  # of every variable, plate and time
    variables: tuple[str, ...]
    times: frozenset[str]
    memory_limit: int  # bytes


def is_one(scale: Named) -> bool:
    """Is this weight known to be 1?"""
    return isinstance(scale.array, np.ndarray) and scale.array.ndim == 0 and float(scale.array) == 1


def add(terms: Sequence[Named], names: Sequence[str]) -> Array:
    """Σ of tables, aligned by name."""
    first, *rest = terms
    return sum((term.along(names) for term in rest), first.along(names))


@jax.custom_jvp
def reduce_first(table: Array, temperature: Array) -> Array:
    """eq:reduce over the first axis; its derivative is γ of eq:E."""
    return assign(table, temperature, axis=0)[1]


@reduce_first.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    table, temperature = primals
    gamma, value = assign(table, temperature, axis=0)
    positive = gamma > 0
    log_gamma = jnp.log(jnp.where(positive, gamma, 1))
    entropy = -jnp.sum(gamma * log_gamma, axis=0)
    change = jnp.sum(jnp.where(positive, gamma * tangents[0], 0), axis=0)
    return value, change + entropy * tangents[1]


@jax.custom_jvp
def reduce_and_draw(table: Array, noise: Array) -> Array:
    """eq:reduce over the first axis at T = 1; its derivative is one-hot, a draw from γ: the Gumbel-max trick."""
    return assign(table, 1.0, axis=0)[1]


@reduce_and_draw.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    table, noise = primals
    drawn = jax.nn.one_hot(jnp.argmax(table + noise, axis=0), table.shape[0], dtype=bool, axis=0)
    return assign(table, 1.0, axis=0)[1], jnp.sum(jnp.where(drawn, tangents[0], 0), axis=0)


class Entangled(ValueError):
    """A chain cannot be filtered by itself."""


def log_partition(
    factors: Sequence[Factor],
    graph: Graph,
    temperature: ArrayLike,
    rows: str | None = None,
    key: Array | None = None,
    filtered: bool = False,
) -> Array:
    """F_T = Σ w · T log Σ_z e^{Σ factors / T}, the sum over every joint assignment of the variables.

    `rows`: a plate that every factor lives in; then F_T of each of its members. `key`: then T is 1, and the derivative
    is no marginal but one joint draw. `filtered`: then T is 1, and the derivative in what a scan has at a step is known
    from the steps until then; `Entangled` where a latent outside of the scan has a say in all of its steps.
    """
    return Elimination(factors, graph, temperature, key, filtered).run(rows)


class Elimination:
    """One run: factors grouped by the plates they live in, worked off from the deepest group."""

    def __init__(
        self,
        factors: Sequence[Factor],
        graph: Graph,
        temperature: ArrayLike,
        key: Array | None = None,
        filtered: bool = False,
    ):
        self.graph, self.temperature, self.filtered = graph, temperature, filtered
        self.key, self.num_draws = key, 0
        self.dtype = jnp.result_type(*(factor.table.array for factor in factors))
        self.one = Named((), np.ones((), self.dtype))
        self.groups: dict[frozenset[str], list[Factor]] = {}
        self.home: dict[str, frozenset[str]] = {}  # where a variable lives: in every plate that all its factors share
        for factor in factors:
            self.put(factor)
            for name in self.variables_of(factor):
                self.home[name] = self.home.get(name, factor.plates) & factor.plates
        for factor in factors:
            left = factor.plates - graph.times - self.home.get(factor.law_of or "", factor.plates)
            if left:
                raise ValueError(
                    f"program: {factor.law_of!r} is used outside of its plate {min(left)!r}; enter it there too"
                )

    def put(self, factor: Factor) -> None:
        self.groups.setdefault(factor.plates, []).append(factor)

    def variables_of(self, factor: Factor) -> list[str]:
        return [name for name in factor.table.names if name in self.graph.variables]

    def run(self, rows: str | None = None) -> Array:
        kept = frozenset() if rows is None else frozenset({rows})
        total = jnp.zeros([self.graph.sizes[plate] for plate in kept], self.dtype)
        times = self.graph.times
        while self.groups:
            leaf = max(self.groups, key=lambda plates: (len(plates - times), len(plates)))
            local = {name for name, home in self.home.items() if home == leaf}
            carried = {root(name) for name in self.home if leaf & times and steps_back(name)}
            shared = local | {name for name in self.home if root(name) in carried}
            for part in self.connected(self.groups.pop(leaf), shared):
                names = {name for factor in part for name in self.variables_of(factor)}
                before = {root(name) for name in names if steps_back(name)}
                steps = [name for name in self.graph.variables if name in names & carried & before]
                if steps:
                    self.put(self.chain(part, leaf, names & local - set(steps), steps))
                    continue
                result = self.without(part, names & local)
                left = self.variables_of(result)
                plates = frozenset().union(*(self.home[name] for name in left))
                if left and plates == leaf:
                    raise ValueError(
                        f"program: the enumerated sites {sorted(names)} are coupled across the plates {sorted(leaf)}, "
                        "which costs exponential work; give them a plate in common, or observe one of them"
                    )
                summed = self.product(result, leaf - plates - kept)
                if left:
                    self.put(summed)
                else:
                    total = total + summed.table.along(tuple(kept))
        return total

    def connected(self, factors: list[Factor], shared: set[str]) -> list[list[Factor]]:
        """The factors in groups that have no variable of `shared` in common."""
        parts: list[tuple[set[str], list[Factor]]] = []
        for factor in factors:
            names, members = set(self.variables_of(factor)) & shared, [factor]
            apart = []
            for other in parts:
                if other[0] & names:
                    names, members = names | other[0], other[1] + members
                else:
                    apart.append(other)
            parts = [*apart, (names, members)]
        return [members for _, members in parts]

    # ---- sums over variables, products over plates

    def order(self, tables: Iterable[Named]) -> list[str]:
        """Every name: times first, then variables, then plates, along which arithmetic is contiguous."""
        names = {name for table in tables for name in table.names}
        times, variables = self.graph.times, self.graph.variables
        return sorted(names, key=lambda name: (name not in times, name not in variables, name))

    def joined(self, tables: Sequence[Named]) -> Named:
        """Σ of tables, over all of their names."""
        names = self.order(tables)
        self.check_memory(names)
        return Named(tuple(names), add(tables, names))

    def check_memory(self, names: Sequence[str]) -> None:
        size = math.prod(self.graph.sizes[name] for name in names) * self.dtype.itemsize
        if size > self.graph.memory_limit:
            shape = ", ".join(f"{name}: {self.graph.sizes[name]}" for name in names)
            raise ValueError(
                f"program: enumeration needs a table of {size / 2**20:,.0f} MiB ({shape}), more than memory_limit = "
                f"{self.graph.memory_limit / 2**20:,.0f} MiB; raise it in from_numpyro, or couple fewer sites"
            )

    def common_scale(self, factors: Sequence[Factor]) -> Named:
        """w of the sum over assignments: the scale of the latents' own laws, which must be one.

        Weights that are only known when the program runs make F NaN where they are not.
        """
        laws = [factor for factor in factors if factor.law_of is not None]
        if not laws:
            return self.one
        first, common = laws[0], laws[0].scale
        for law in laws[1:]:
            names = self.order([common, law.scale])
            known = [isinstance(scale.array, np.ndarray) for scale in (common, law.scale)]
            if all(known) and not names and common.array != law.scale.array:
                raise ValueError(
                    f"program: the latents {first.law_of!r} and {law.law_of!r} are summed together but have the scales "
                    f"{common.array} and {law.scale.array}; put both under one handlers.scale, or neither"
                )
            if not (all(known) and not names):
                one, other = common.along(names), law.scale.along(names)
                common = Named(tuple(names), jnp.where(one == other, one, jnp.nan))
        return common

    def weighted(self, factors: Sequence[Factor], scale: Named) -> list[Named]:
        """Each table times its own scale over the common one: 1, unless a program weighs a likelihood alone."""
        tables = []
        for factor in factors:
            if factor.scale is scale or (is_one(factor.scale) and is_one(scale)):
                tables.append(factor.table)
                continue
            names = self.order([factor.scale, scale])
            own, common = factor.scale.along(names), scale.along(names)
            ratio = Named(tuple(names), jnp.where(common > 0, own / jnp.where(common > 0, common, 1), 1))
            names = self.order([ratio, factor.table])
            tables.append(Named(tuple(names), weighted(factor.table.along(names), ratio.along(names))))
        return tables

    def without(self, factors: Sequence[Factor], variables: set[str]) -> Factor:
        """eq:reduce over these variables of the factors' sum, then weighed."""
        scale = self.common_scale([factor for factor in factors if factor.law_of in variables])
        table = self.joined(self.summed_out(self.weighted(factors, scale), variables))
        names = self.order([table, scale])
        array = weighted(table.along(names), scale.along(names)) if variables else table.along(names)
        plates = frozenset().union(*(factor.plates for factor in factors))
        return Factor(Named(tuple(names), array), plates, self.one)

    def summed_out(self, tables: list[Named], variables: Iterable[str]) -> list[Named]:
        """Eliminate variables, the one with the smallest table first."""
        left = set(variables)

        def cost(variable: str) -> int:
            names = self.order(table for table in tables if variable in table.names)
            return math.prod(self.graph.sizes[name] for name in names)

        while left:
            variable = min(sorted(left), key=cost)
            left.remove(variable)
            joined = self.joined([table for table in tables if variable in table.names])
            rest = tuple(name for name in joined.names if name != variable)
            tables = [table for table in tables if variable not in table.names] + [
                Named(rest, self.reduced(joined.along((variable, *rest))))
            ]
        return tables

    def reduced(self, table: Array) -> Array:
        """eq:reduce over the first axis."""
        if self.key is None:
            return reduce_first(table, jnp.asarray(self.temperature, table.dtype))
        return reduce_and_draw(table, self.noise(table.shape, table.dtype))

    def noise(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Independent of all that was asked for before."""
        assert self.key is not None
        self.num_draws += 1
        return jax.random.gumbel(jax.random.fold_in(self.key, self.num_draws), shape, dtype)

    def product(self, factor: Factor, plates: frozenset[str]) -> Factor:
        """Σ of log tables over these plates; one without an axis counts its size times."""
        names, array = factor.table
        axes = tuple(names.index(plate) for plate in plates if plate in names)
        repeats = math.prod(self.graph.sizes[plate] for plate in plates if plate not in names)
        kept = tuple(name for name in names if name not in plates)
        table = jnp.sum(array, axis=axes)
        return factor._replace(
            table=Named(kept, table * repeats if repeats > 1 else table), plates=factor.plates - plates
        )

    # ---- a scan over time

    def chain(self, factors: list[Factor], leaf: frozenset[str], inner: set[str], steps: list[str]) -> Factor:
        """A scan's factors, with those of its first steps and of what follows its last, summed along time.

        Where a latent's law looks h steps back, the state is its last h values: from (z_{t−h} … z_{t−1}) to
        (z_{t−h+1} … z_t), of which all but one are the same.
        """
        (time,) = leaf & self.graph.times
        tables_of = {name for factor in factors for name in factor.table.names}
        past = {name: max(steps_back(other) for other in tables_of if root(other) == name) for name in steps}
        base, before = leaf - {time}, [PREVIOUS * k + name for name in steps for k in range(past[name], 0, -1)]
        ends = self.taken(base, {*before, *steps}, avoid=tables_of)
        scale = self.common_scale(ends + factors)
        if time in scale.names:
            raise ValueError(f"program: handlers.scale varies over the time of the scan at {steps}; give it one value")

        tables = self.summed_out(self.weighted(factors, scale), inner)
        tables, after = self.moved_on(tables, past)
        elsewhere = {name for group in self.groups.values() for f in group for name in f.table.names} | tables_of
        gone = {name for f in ends for name in self.variables_of(f) if self.home[name] == base}
        outer = self.summed_out(self.weighted(ends, scale), gone - elsewhere - {*before, *steps})
        joint = [end.names for end in outer if {*before} & {*end.names} and {*steps} & {*end.names}]
        if joint:
            raise ValueError(f"program: what follows the scan depends on its first and its last step at once: {joint}")

        lanes = tuple(n for n in self.order([*tables, *outer]) if n not in (time, *before, *after))
        self.check_memory((*before, *after, *lanes))
        sizes, states = self.graph.sizes, math.prod(self.graph.sizes[name] for name in after)

        def end(names: Sequence[str]) -> Array:
            parts = [self.flat(table, (names, lanes)) for table in outer if {*names} & {*table.names}]
            return jnp.broadcast_to(
                sum(parts, jnp.zeros((1,) * (1 + len(lanes)), self.dtype)), (states, *(sizes[n] for n in lanes))
            )

        fixed = [self.flat(table, (before, after, lanes)) for table in tables if time not in table.names]
        moving = [self.flat(table, ([time], before, after, lanes)) for table in tables if time in table.names]
        if not moving:
            moving = [jnp.zeros((sizes[time], 1, 1, *(1 for _ in lanes)), self.dtype)]
        chained = Tables(end(before), end(after), tuple(fixed), tuple(moving))
        if self.filtered:
            if shared := [name for name in lanes if name in self.graph.variables]:
                raise Entangled(f"program: {steps} depend on {shared}, which have no time")
            value = filtered_chain(chained)
        elif self.key is None:
            value = chain(chained, jnp.asarray(self.temperature, self.dtype))
        else:
            value = drawn_chain(chained, self.noise((sizes[time] + 1, *chained.start.shape), self.dtype))
        self.home |= dict.fromkeys(steps, base)
        names = self.order([Named(lanes, value), scale])
        weighed = weighted(Named(lanes, value).along(names), scale.along(names))
        return Factor(Named(tuple(names), weighed), base, self.one)

    def moved_on(self, tables: list[Named], past: dict[str, int]) -> tuple[list[Named], list[str]]:
        """The tables of a step, with the values that go on from the state before in their places in the one after; and
        the names of that."""
        same = {PREVIOUS * k + name: f"{PREVIOUS * k}{name} after" for name, h in past.items() for k in range(1, h)}
        sizes = self.graph.sizes | {new: self.graph.sizes[old] for old, new in same.items()}
        self.graph = self.graph._replace(sizes=sizes)
        tables = [Named(tuple(same.get(name, name) for name in table.names), table.array) for table in tables]
        for old, new in same.items():
            equal = jnp.where(jnp.eye(sizes[old], dtype=bool), 0, -jnp.inf)
            tables.append(Named((old, new), equal.astype(self.dtype)))
        names = [PREVIOUS * k + name for name, h in past.items() for k in range(h - 1, -1, -1)]
        return tables, [same.get(name, name) for name in names]

    def taken(self, plates: frozenset[str], reach: set[str], avoid: set[str]) -> list[Factor]:
        """The factors of a group that these variables reach, through others than those to avoid; no longer in it."""
        group, taken = self.groups.pop(plates, []), []
        while found := [factor for factor in group if reach & set(factor.table.names)]:
            taken += found
            group = [factor for factor in group if not any(factor is other for other in found)]
            reach = {name for f in found for name in self.variables_of(f) if self.home[name] == plates} - avoid
        if group:
            self.groups[plates] = group
        return taken

    def flat(self, table: Named, groups: tuple[Sequence[str], ...]) -> Array:
        """The table with one axis for each group of names but the last, of size 1 where it has none of them."""
        array, sizes = table.along([name for group in groups for name in group]), self.graph.sizes
        shape: list[int] = []
        for group in groups[:-1]:
            shape.append(math.prod(sizes[name] for name in group) if {*group} & {*table.names} else 1)
        kept = [sizes[name] if name in table.names else 1 for name in groups[-1]]
        full = [sizes[name] if {*group} & {*table.names} else 1 for group in groups[:-1] for name in group]
        return jnp.broadcast_to(array, [*full, *kept]).reshape([*shape, *kept])
