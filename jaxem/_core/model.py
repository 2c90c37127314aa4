"""The seam between the algorithm and its models: what `em` needs of a model, whoever implements it.

A `Mixture` (a family with closed-form sums) and a `Program` (any NumPyro program with discrete latents) are
both static, hashable pytrees without leaves, and both are two maximisers of one objective (eq:F).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

Theta = dict[str, Array]
ThetaLike = Any  # what a user passes for θ: any mapping from names to numbers; `Model.enter` makes it a Theta


@jax.tree_util.register_static
@dataclass(frozen=True)
class Layout:
    """Which axes of which mesh the rows are spread over; static, so that it passes through `jit` and `vmap`."""

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def rows(self) -> PartitionSpec:
        """The leading axis of the data, over all of `axes`."""
        return PartitionSpec(self.axes)


class Shards(NamedTuple):
    """How rows lie on devices: equal shares, the first `skip` rows of a share being counted elsewhere."""

    layout: Layout
    skip: Int[Array, " shards"]


class Norms(NamedTuple):
    """‖x_n − c‖² of every row about one point, which no step of a fit changes."""

    c: Array  # (1, D)
    squares: Array  # (N,)


class Data(NamedTuple):
    """What a fit holds fixed: the rows, their weights (None: all 1), the temperature, and known labels."""

    x: Any  # (N, D); for a program its `Arguments`
    weights: Array | None
    temperature: Array
    labels: Array | None = None  # (N,): the component of a row where it is known, −1 where not
    shards: Shards | None = None  # how the rows lie on several devices
    norms: Norms | None = None  # where a fit computes them once, before its first step


def rows_of(x: Any) -> tuple[Any, ...]:
    """The arrays with the rows along their leading axis: x itself, or those of a program's arguments that are cut."""
    return x.rows() if hasattr(x, "with_rows") else (x,)


def with_rows(x: Any, rows: tuple[Any, ...]) -> Any:
    """x with other rows."""
    return x.with_rows(rows) if hasattr(x, "with_rows") else rows[0]


class Expectation(NamedTuple):
    """The E-step's outcome at one θ: statistics, F_T(θ) and the scale of its rounding, Σ_n |F_n|."""

    statistics: Any
    free_energy: Array
    scale: Array


class Step(NamedTuple):
    """The M-step's outcome: θ⁺, and whether the statistics had lost the digits that it needs."""

    theta: Theta
    cancelled: Array | bool = False  # then it is to be done again, with statistics …
    centre: Theta | None = None  # … about the means of this θ; None of a model whose statistics never cancel


class Coordinates(NamedTuple):
    """NumPyro's unconstrained coordinates of θ's free entries, about one θ."""

    unconstrain: Callable[[Theta], Theta]  # θ → its free entries, unconstrained
    constrain: Callable[[Theta], Theta]  # the inverse; what is held is as in the θ that they are about


class Rows:
    """How a model's rows may be laid out, and how many they are; of most it does not matter how they lie."""

    def divided(self, what: str, data: Data) -> Data:
        """The data in a form that `divides`, or a ValueError that says what asks for it and why that cannot be."""
        return data

    def dealt(self, data: Data, devices: int) -> Data:
        """The rows in an order in which equal shares of them, one after another, take as long."""
        return data

    def once(self, theta: Theta, data: Data) -> Data:
        """The data with what the steps of a fit need of them, and none changes."""
        return data

    def size(self, data: Data) -> Array | int:
        """W: how much data there is, the unit in which a tolerance is stated."""
        raise NotImplementedError


def divides(data: Data) -> bool:
    """May rows be summed part by part: chunks, devices, batches of a stream? A program's, where they are cut."""
    return not hasattr(data.x, "with_rows") or data.x.cut is not None


class Model:
    """What a fit calls, and no more; see `Mixture` and `Program`."""

    held: frozenset[str]  # names of θ that are never updated
    recentres: bool = False  # may an M-step find its statistics cancelled?

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
        """θ in x's precision and the data, or a ValueError that names the argument, what it got and the remedy.

        Args:
            theta: the parameters, of whatever kind users pass.
            x: the data, likewise.
            weights: w (N,) ≥ 0, or None.
            temperature: T ≥ 0; of each lane, where there are any.
            labels: known components (N,), −1 where unknown, or None.
            batched: has θ a leading axis of lanes?
            plans: will there be M-steps? What they need that does not depend on values is then worked out here, before
                anything is compiled.
        """
        raise NotImplementedError

    def expect(self, theta: Theta, data: Data, centre: Theta | None = None, again: Array | bool = True) -> Expectation:
        """The E-step (eq:E): statistics of γ(θ), and F_T at θ; where `again`, statistics about `centre`'s means."""
        raise NotImplementedError

    def maximize(self, statistics: Any, theta: Theta, data: Data) -> Step:
        """The M-step (eq:M): θ⁺ = argmax_θ Σ γ ℓ(θ), held entries as they are; θ is what statistics are centred at."""
        raise NotImplementedError

    def objective(self, theta: Theta, old: Theta, data: Data) -> Array:
        """F_T(θ, γ(θ_old)): the surface that the M-step climbs."""
        raise NotImplementedError

    def coordinates(self, theta: Theta, data: Data) -> Coordinates:
        """NumPyro's unconstrained coordinates of the free entries; those that are about a θ, about this one."""
        raise NotImplementedError

    @property
    def rows(self) -> Rows:
        """How its rows may be laid out, and counted."""
        raise NotImplementedError


def maximize(m: Model, expectation: Expectation, theta: Theta, data: Data) -> Theta:
    """A whole M-step: where the statistics at hand are cancelled, they are summed again."""
    new = m.maximize(expectation.statistics, theta, data)
    if new.centre is None:
        return new.theta

    def again(centre: Theta) -> Theta:
        return m.maximize(m.expect(theta, data, centre).statistics, centre, data).theta

    return lax.cond(new.cancelled, again, lambda _: new.theta, new.centre)
