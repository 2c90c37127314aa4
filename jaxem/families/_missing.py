"""Rows with missing cells: NaN is missing at random, and F is the observed-data free energy.

    ℓ_nk = log p(x_n,observed, z_n = k | θ)          (eq:observed)

A mixture for such rows is a mixture itself, `Missing`: another table, other statistics and M-step for the same θ, so
that every algorithm and answer runs on it unchanged. Its rows are (x, 1 where missing), x being `filler` where it is.

Where columns are independent given z, ℓ_nk = log π_k + Σ_d log p(x_nd | θ_kd) over the observed d: the mixture is D
mixtures of one column, and a missing cell is a row of weight 0 in its column (`by_column`). A column never observed in
a component is then an empty component of its mixture, and keeps its parameters. Gaussians: `gaussian/_missing.py`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped
from numpyro import handlers
from numpyro.distributions import Distribution

from jaxem._core import checks
from jaxem._core.arrays import blame_rows, gaps_as_nan, listed, numbers, switch, warn
from jaxem._core.handlers import alone
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete, is_traced
from jaxem._rows.engine import MixtureRows
from jaxem.families import _exponential_family as ef
from jaxem.families._mixture import Mixture


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Missing(Mixture):
    """A mixture of the same θ whose rows may have missing cells.

    Attributes:
        law: (θ, rows) → the law of whole rows given the observed cells and z, batch shape (K, n) or (K, 1); of what it
            says only the missing cells count.
        filler: what stands in missing cells, a value that whole rows may have; it counts for nothing.
        in_order: does it sum rows sooner where those that miss as many cells lie together?
    """

    law: Callable[[Theta, Array], Distribution] | None = None
    filler: float = 0.0
    in_order: bool = False

    @property
    def takes_whole_rows(self) -> bool:
        """They may have missing cells."""
        return False

    def with_missing(self) -> "Missing":
        """Itself."""
        return self

    def enter(
        self,
        theta: ThetaLike,
        x: Any,
        weights: Any,
        temperature: Any,
        labels: Any,
        *,
        batched: bool,
        plans: bool = False,
    ) -> tuple[Theta, Data]:
        """θ and the rows as they are summed; a row with nothing observed has weight 0."""
        x, weights = checks.rows_and_weights(gaps_as_nan("x", x), weights)
        x = checks.as_floating(x)
        seen = ~jnp.isnan(x)
        weights = _without_blank_rows(x, seen, weights)
        whole = jnp.where(seen, x, self.filler)
        theta, data = super().enter(theta, whole, weights, temperature, labels, batched=batched)
        return theta, data._replace(x=beside(whole, ~seen))

    @property
    def rows(self) -> MixtureRows:
        """In an order of their own, where that is faster."""
        return RowsInOrder(self) if self.in_order else MixtureRows(self)

    def with_gaps(self, x: Any) -> Array:
        """x (N, D), floating, NaN where it is missing."""
        return checks.as_floating(checks.prepare_x(gaps_as_nan("x", x)))


@dataclass(frozen=True)
class RowsInOrder(MixtureRows):
    """Rows that are summed sooner where those that miss as many cells lie together."""

    def once(self, theta: Theta, data: Data) -> Data:
        """Those that miss fewest cells first; on several devices they lie as they were dealt."""
        return super().once(theta, ordered(data, 1) if data.shards is None else data)

    def dealt(self, data: Data, devices: int) -> Data:
        """Every device those that miss few and those that miss many, its fewest first; what lies on several stays."""
        lies = not is_traced(data.x) and len(data.x.devices()) > 1
        return data if lies else ordered(data, devices)


def ordered(data: Data, devices: int) -> Data:
    """By the number of missing cells, dealt out to so many devices."""
    order = jnp.argsort(jnp.sum(~halves(data.x)[1], axis=1))
    order = jnp.concatenate([order[start::devices] for start in range(devices)])
    rows = {name: leaf[order] for name in ("x", "weights", "labels") if (leaf := getattr(data, name)) is not None}
    return data._replace(**rows)


def for_rows(m: Model, x: Any, missing: Any, *, of_a_fit: bool = False) -> Model:
    """m; or where `missing` is asked for, and x may have missing cells, m for such rows.

    So an x that is known to have none is fitted by m itself, to the bit.
    """
    if not switch("missing", missing):
        return m
    model = checks.a_model(m)
    if not isinstance(model, Mixture):
        raise ValueError(
            "missing: is for mixtures of jaxem.families; in a program, pass x with any numbers in its gaps and a mask "
            "beside it, and observe it inside numpyro.handlers.mask(mask=mask)"
        )
    x = gaps_as_nan("x", x)
    if is_concrete(x):
        seen = ~np.isnan(np.asarray(x)) if jnp.issubdtype(x.dtype, jnp.floating) else np.ones(x.shape, bool)
        if seen.all():
            return model
        never = np.flatnonzero(~seen.any(axis=0)) if of_a_fit and seen.ndim == 2 and seen.any() else np.empty(0, int)
        if never.size:
            warn(f"x: nothing is observed in column(s) {listed(never)}; given the others they stay as they start")
    return model.with_missing()


def _without_blank_rows(x: Array, seen: Bool[Array, "N D"], weights: Array | None) -> Array | None:
    """Weight 0 for rows with nothing observed; a ValueError for ∞, and where nothing is observed at all."""
    some = jnp.any(seen, axis=1)
    if is_concrete(x):
        here = np.asarray(seen)
        blame_rows("x", np.isinf(np.asarray(x)), "infinity", None, "NaN is what is missing; drop or impute the rest")
        if not here.any():
            raise ValueError("x: every cell is NaN, so that nothing is observed; pass rows with some numbers")
        if here.any(axis=1).all():
            return weights
    ones = jnp.ones(x.shape[:1], x.dtype)
    return jnp.where(some, ones if weights is None else weights, 0)


def beside(x: Shaped[Array, "n D"], missing: Bool[Array, "n D"]) -> Shaped[Array, "n both"]:
    """The rows: x, filled where it is missing, and where that is."""
    return jnp.concatenate([x, missing.astype(x.dtype)], axis=1)


def halves(rows: Shaped[Array, "n both"]) -> tuple[Shaped[Array, "n D"], Bool[Array, "n D"]]:
    """x, filled where it is missing, and where it is observed."""
    x, missing = jnp.split(rows, 2, axis=1)
    return x, missing == 0


def missing_of(m: Mixture, **changes: Any) -> Missing:
    """The `Missing` of a mixture: all that it has, but for these."""
    own = {field.name: getattr(m, field.name) for field in dataclasses.fields(Mixture)}
    own["name"] = f"{m.but(held=frozenset())!r}.with_missing()"
    of_whole_rows = {"constant": None, "products": None, "squares": False, "by_winner": None, "condition": None}
    return Missing(**own).but(**(of_whole_rows | {"hard": False} | changes))


def filled_for_a_start(key: Array, x: Float[Array, "N D"], weights: Any, filler: float = 0.0) -> Float[Array, "N D"]:
    """x with each missing cell drawn from the observed ones of its column, where starts need whole rows.

    Of rows that count: a row of weight 0 counts for nothing.

    A value that a column has is one that its family knows, which a mean is not. `filler` in a column without any.
    """
    return _filled(key, x, jnp.ones(x.shape[0]) if weights is None else numbers("weights", weights), filler)


@jax.jit
def _filled(key: Array, x: Float[Array, "N D"], weights: Float[Array, " N"], filler: Any) -> Float[Array, "N D"]:
    seen = jnp.isfinite(x) & (weights > 0)[:, None]
    observed_first = jnp.argsort(~seen, axis=0)
    count = jnp.sum(seen, axis=0, keepdims=True)
    drawn = jax.random.randint(key, x.shape, 0, jnp.maximum(jnp.broadcast_to(count, x.shape), 1))
    others = jnp.take_along_axis(x, jnp.take_along_axis(observed_first, drawn, axis=0), axis=0)
    return jnp.where(jnp.isnan(x), jnp.where(count > 0, others, filler), x)


# ---- columns that are independent given z


class ByColumn(NamedTuple):
    """Additive statistics."""

    N_k: Float[Array, " K"]  # Σ_n γ_nk
    columns: Any  # the family's own of each column, over the rows that are observed there, leading axis D


def by_column(m: Mixture, filler: float = 0.0) -> Missing:
    """For a family whose columns are independent given z, all its parameters but π having an axis D."""
    sizes = m.numerics.sizes_of_terms
    return missing_of(
        m,
        kernel=partial(table, m),
        statistics=partial(statistics, m),
        update=partial(update, m),
        gradient_form=None,
        surface=m.extras.surface and partial(surface, m),
        sizes_of_terms=sizes and partial(sizes_of_terms, m),
        law=partial(law, m),
        filler=filler,
    )


def axes(m: Mixture) -> dict[str, int]:
    """Where each parameter but π has its axis of columns."""
    return {name: spec.split().index("D") for name, spec in m.shapes if name != "pi"}


def columns_of(m: Mixture, theta: Theta) -> Theta:
    """The parameters of mixtures of one column each, leading axis D; their π is 1, of which log p(x | z) is all."""
    split = {name: jnp.expand_dims(jnp.moveaxis(theta[name], axis, 0), axis + 1) for name, axis in axes(m).items()}
    num_features = len(next(iter(split.values())))
    return split | {"pi": jnp.ones((num_features, *theta["pi"].shape), theta["pi"].dtype)}


def table(m: Mixture, theta: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k + Σ_d log p(x_nd | θ_kd) over what is observed."""
    return over_columns(m.table, theta["pi"], (columns_of(m, theta),), rows)


def surface(m: Mixture, theta: Theta, old: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ̂, the same of the surfaces of columns."""
    return over_columns(m.climbed, theta["pi"], (columns_of(m, theta), columns_of(m, old)), rows)


def over_columns(
    of_column: Callable[..., Array], pi: Float[Array, " K"], columns: tuple[Theta, ...], rows: Float[Array, "n both"]
) -> Float[Array, "K n"]:
    """log π_k + Σ_d of_column(θ_d, …, x_d) over what is observed."""
    x, seen = halves(rows)

    def add(total: Array, column: tuple[tuple[Theta, ...], Array, Array]) -> tuple[Array, None]:
        thetas, x_d, seen_d = column
        return total + jnp.where(seen_d[None], of_column(*thetas, x_d[:, None]), 0), None

    log_pi = jnp.where(pi > 0, jnp.log(jnp.where(pi > 0, pi, 1)), -jnp.inf)
    start = log_pi[:, None] + 0 * x.T[:1]  # which lies where the rows do
    return lax.scan(add, start, (columns, x.T, seen.T))[0]


def statistics(m: Mixture, theta: Theta, rows: Float[Array, "n both"], gamma: Float[Array, "K n"]) -> ByColumn:
    """N_k, and the family's own statistics of each column, where a missing cell has γ = 0."""
    x, seen = halves(rows)

    def of_column(_: None, column: tuple[Theta, Array, Array]) -> tuple[None, Any]:
        theta_d, x_d, seen_d = column
        return None, m.statistics(theta_d, x_d[:, None], jnp.where(seen_d[None], gamma, 0))

    return ByColumn(jnp.sum(gamma, axis=1), lax.scan(of_column, None, (columns_of(m, theta), x.T, seen.T))[1])


def update(m: Mixture, sums: ByColumn, theta: Theta, held: frozenset[str]) -> Theta:
    """π_k = N_k / N, and the family's own M-step of each column, which keeps what no row tells of."""

    def of_column(sums: Any, theta: Theta) -> Theta:
        return m.update(sums, theta, held | {"pi"})

    new = jax.vmap(of_column)(sums.columns, columns_of(m, theta))
    free = {name: axis for name, axis in axes(m).items() if name not in held}
    joined = {name: jnp.moveaxis(jnp.squeeze(new[name], axis + 1), 0, axis) for name, axis in free.items()}
    return ef.with_weights(theta | joined, sums.N_k, held)


def sizes_of_terms(m: Mixture, theta: Theta, sums: ByColumn) -> Array:
    """Those of each column, and of log π."""
    assert m.numerics.sizes_of_terms is not None
    of_columns = jax.vmap(m.numerics.sizes_of_terms)(columns_of(m, theta), sums.columns)
    return jnp.sum(of_columns) + jnp.sum(sums.N_k * ef.size_of_log(theta["pi"]))


def law(m: Mixture, theta: Theta, rows: Float[Array, "n both"]) -> Distribution:
    """Of x given z: the program's own, since the observed cells tell of the others through z alone."""
    x, _ = halves(rows)
    z = jnp.arange(len(theta["pi"]))[:, None]
    with alone():
        sites = handlers.trace(handlers.substitute(m.program, data=theta | {"z": z})).get_trace(x)
    return sites["x"]["fn"]
