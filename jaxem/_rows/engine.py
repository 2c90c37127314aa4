"""The E-step of a mixture, summed over its rows: by differences, by matrix products, or by one kernel on a GPU.

A family says what is summed, ℓ and statistics; here is how. Data of one chunk are summed by differences. Of more, the
family's products are used where their cancellations leave enough digits (`Products.accurate`), else differences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.model import Data, Expectation, Norms, Rows, Theta
from jaxem._core.objective import assign, assign_hard, assign_one_hot, row_free_energy, weighted
from jaxem._rows import gpu
from jaxem._rows.chunks import fits_one_chunk, norms_of_rows, plus, seen_here, sum_over_rows
from jaxem._rows.products import Adder, Counts, Products


@runtime_checkable
class Family(Protocol):
    """What is asked of a mixture; see `Mixture`."""

    @property
    def recentres(self) -> bool: ...
    @property
    def numerics(self) -> Any: ...
    @property
    def statistics(self) -> Callable[[Theta, Array, Array], Any]: ...
    def table(self, theta: Theta, x: Array) -> Array: ...
    def relative_table(self, theta: Theta, x: Array) -> Array: ...
    def climbed(self, theta: Theta, old: Theta, x: Array) -> Array: ...
    def common(self, theta: Theta) -> Array | float: ...


class Along(NamedTuple):
    """What lies along the rows."""

    x: Array
    labels: Array | None
    squares: Array | None  # of `Data.norms`


def in_one_chunk(theta: Theta, data: Data) -> bool:
    """Is the (K, N) table small enough to be made whole?"""
    return fits_one_chunk(data.x.shape[0], theta["pi"].shape[0])


@dataclass(frozen=True)
class MixtureRows(Rows):
    """The rows of a mixture, independent of each other."""

    m: Family

    def once(self, theta: Theta, data: Data) -> Data:
        """With ‖x_n − c‖² about a point c amid the rows; not where statistics may be about another point."""
        unused = not self.m.numerics.squares or self.m.recentres
        if unused or in_one_chunk(theta, data) or data.norms is not None:
            return data
        return data._replace(norms=Norms(*norms_of_rows(data.x, data.weights, shards=data.shards)))

    def size(self, data: Data) -> Array | int:
        """W = Σ w_n."""
        return size(data)


def expect(m: Family, theta: Theta, data: Data, centre: Theta | None, again: Array | bool) -> Expectation:
    """eq:E in one pass over the rows; where `again`, statistics about the means of `centre`, and by differences."""
    about = theta if centre is None else centre
    again = False if centre is None else again

    def differences() -> Expectation:
        return by_differences(m, theta, about, data)

    if again is True or m.numerics.products is None or in_one_chunk(theta, data):
        return differences()
    is_hard = jnp.asarray(True) if m.numerics.hard else data.temperature == 0
    about_c = () if data.norms is None else (data.norms.c,)
    products = m.numerics.products(theta, about, jnp.logical_not(again | is_hard), *about_c)

    def multiplied() -> Expectation:
        return by_products(m, products, theta, data)

    if products.accurate is None or products.accurate_when_hard is None:
        return multiplied()
    may = jnp.logical_not(again)  # squares are expanded about the products' own centre

    def nothing() -> Expectation:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(multiplied))

    tried = lax.cond(may & (products.accurate | is_hard), multiplied, nothing)
    accurate = jnp.where(is_hard, products.accurate_when_hard(tried.statistics), products.accurate)
    return lax.cond(may & accurate, lambda: tried, differences)


def by_differences(m: Family, theta: Theta, about: Theta, data: Data) -> Expectation:
    """The E-step at θ by differences, its statistics about the means of another θ."""

    def chunk(rows: Along, weights: Array) -> Expectation:
        here, centre = seen_here((theta, about))
        table = exclude(m.relative_table(here, rows.x), rows.labels)
        if m.numerics.hard and m.numerics.by_winner:
            winner, value = assign_hard(table, axis=0)
            statistics = m.numerics.by_winner(centre, rows.x, winner, weights)
        else:
            gamma, value = assign_one_hot(table, axis=0) if m.numerics.hard else assign(table, data.temperature, axis=0)
            statistics = m.statistics(centre, rows.x, gamma * weights[None])
        return expectation(statistics, value + common, weights)

    common = m.common(theta)
    return over_rows(chunk, theta, data, then=summed)


def by_products(m: Family, products: Products, theta: Theta, data: Data) -> Expectation:
    """The same sums by products; on an NVIDIA GPU by a kernel that does it all, where there is one."""
    fused = products.fused
    chunks = partial(by_chunks, m, products, theta, data)
    if fused is None or data.labels is not None or not gpu.fits(fused.ell):
        return chunks()
    counts_all = data.weights is None and data.shards is None

    def all_rows(interpret: bool, rows: Along, weights: Array) -> Expectation:
        w = None if counts_all else weights
        sums = gpu.sums(fused.ell, rows.x, w, data.temperature, m.numerics.hard, interpret)
        return Expectation(products.finish(fused.unpack(sums)), sums.free_energy, sums.scale)

    def in_one(interpret: bool) -> Expectation:
        return over_rows(partial(all_rows, interpret), theta, data, whole=True)

    return gpu.where_it_runs(in_one, chunks)


def by_chunks(m: Family, products: Products, theta: Theta, data: Data) -> Expectation:
    """The same sums, chunk by chunk."""

    def chunk(add: Adder, so_far: Expectation | None, rows: Along, weights: Array) -> Expectation:
        old = None if so_far is None else so_far.statistics
        phi = products.features(rows.x, rows.squares)
        table = exclude(products.table(phi), rows.labels)
        sums, value = add(old, phi, table, Counts(weights, data.weights is None, data.temperature))
        new = expectation(None, value + products.common(phi), weights)
        return plus(so_far and so_far._replace(statistics=None), new)._replace(statistics=sums)

    def finish(total: Expectation) -> Expectation:
        return summed(total)._replace(statistics=products.finish(total.statistics))

    add = products.hard if m.numerics.hard and products.hard else products.sums
    return over_rows(partial(chunk, add), theta, data, width=products.width, folds=True, then=finish)


def objective(m: Family, theta: Theta, old: Theta, data: Data) -> Array:
    """F_T(θ, γ(θ_old)), chunk by chunk."""

    def chunk(rows: Along, weights: Array) -> Array:
        new, before = seen_here((theta, old))
        gamma, _ = assign(exclude(m.relative_table(before, rows.x), rows.labels), data.temperature, axis=0)
        table = exclude(m.climbed(new, before, rows.x), rows.labels)
        value = row_free_energy(table, gamma, data.temperature, axis=0)
        return jnp.sum(weighted(value, weights))

    return over_rows(chunk, theta, data)


def sums_under(m: Family, statistics: Callable[..., Any], old: Theta, data: Data, *others: Any) -> Any:
    """Σ of statistics(x, γ(θ_old) times weights, *others), chunk by chunk: what an M-step asks the rows for."""

    def chunk(rows: Along, weights: Array) -> Any:
        before, *here = seen_here((old, *others))
        gamma, _ = assign(exclude(m.relative_table(before, rows.x), rows.labels), data.temperature, axis=0)
        return statistics(rows.x, gamma * weights[None], *here)

    return over_rows(chunk, old, data)


def over_rows(chunk: Callable[..., Any], theta: Theta, data: Data, **options: Any) -> Any:
    """Σ over chunks of what lies `Along` the rows, in θ's precision."""
    pi = theta["pi"]
    return sum_over_rows(
        chunk,
        Along(data.x, data.labels, data.norms and data.norms.squares),
        data.weights,
        num_components=pi.shape[0],
        dtype=pi.dtype,
        shards=data.shards,
        **options,
    )


def size(data: Data) -> Array | int:
    """W = Σ w_n."""
    if data.weights is None:
        return data.x.shape[0] - (0 if data.shards is None else jnp.sum(data.shards.skip))
    if data.shards is None:
        return jnp.sum(data.weights)
    rows = (data.x[:, 0], None)  # counted like every other sum, each once
    dtype = data.temperature.dtype
    return sum_over_rows(lambda _, w: jnp.sum(w), rows, data.weights, num_components=1, dtype=dtype, shards=data.shards)


def expectation(statistics: Any, value: Float[Array, " n"], weights: Float[Array, " n"]) -> Expectation:
    """A chunk's outcome. F is kept row by row: chunks add as vectors, and `summed` adds the rows of that once."""
    value = weighted(value, weights)
    return Expectation(statistics, value, jnp.abs(value))


def summed(total: Expectation) -> Expectation:
    """The sum over rows of what `expectation` kept."""
    return total._replace(free_energy=jnp.sum(total.free_energy), scale=jnp.sum(total.scale))


def exclude(table: Float[Array, "K n"], labels: Array | None) -> Float[Array, "K n"]:
    """−∞ for the components that a row's known label excludes: then eq:E gives that row its label."""
    if labels is None:
        return table
    component = jnp.arange(table.shape[0])[:, None]
    excluded = (labels[None] >= 0) & (labels[None] != component)
    return jnp.where(excluded, -jnp.inf, table)
