"""The seam between the algorithm and its models: what `em` needs of a model, whoever implements it.

A `Mixture` (a family with closed-form sums) and a `Program` (any NumPyro program with discrete latents) are
both static, hashable pytrees without leaves, and both are two maximisers of one objective (eq:F).
"""

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


class Digits(NamedTuple):
    """What rounding leaves open in F at a θ, nats."""

    sizes: Array | float  # Σ w (sizes of the terms of ℓ_n), where they cancel inside it
    slack: Array | float  # by how much rounding θ alone can move F
    lost: Array | bool  # has a component of θ lost its digits?


class Model:
    """What `em`, `certify` and the rest call; see `Mixture` and `Program`."""

    held: frozenset[str]

    def hold(self, *names: str) -> "Model":
        """The same model with these entries of θ never updated."""
        raise NotImplementedError

    def enter(
        self, theta: ThetaLike, x: Any, weights: Any, temperature: Any, labels: Any, *, batched: bool
    ) -> tuple[Theta, Data]:
        """θ in x's precision and the data, or a ValueError that names the argument, what it got and the remedy."""
        raise NotImplementedError

    def divides(self, data: Data) -> bool:
        """May rows be summed part by part: chunks, devices, batches of a stream?"""
        return False

    def divided(self, what: str, data: Data) -> Data:
        """The data in a form whose rows may, or a ValueError that says what asks for it and why that cannot be."""
        return data

    def get_ready(self, theta: Theta, data: Data) -> None:
        """Work out, before anything is compiled, what does not depend on values."""

    def once(self, theta: Theta, data: Data) -> Data:
        """The data with what the steps of a fit need of them, and none changes."""
        return data

    def dealt(self, data: Data, devices: int) -> Data:
        """The rows in an order in which equal shares of them, one after another, take as long."""
        return data

    @property
    def recentres(self) -> bool:
        """May an M-step find its statistics cancelled? Known before anything is traced."""
        return False

    def expect(self, theta: Theta, data: Data, centre: Theta | None = None, again: Array | bool = True) -> Expectation:
        """The E-step (eq:E): statistics of γ(θ), and F_T at θ; where `again`, statistics about `centre`'s means."""
        raise NotImplementedError

    def maximize(self, statistics: Any, theta: Theta, data: Data) -> Step:
        """The M-step (eq:M): θ⁺ = argmax_θ Σ γ ℓ(θ), held entries as they are; θ is what statistics are centred at."""
        raise NotImplementedError

    def digits(self, theta: Theta, expectation: Expectation) -> Digits:
        """What rounding leaves open in F, beside the rounding of F_n itself."""
        return Digits(0.0, 0.0, False)

    def objective(self, theta: Theta, old: Theta, data: Data) -> Array:
        """F_T(θ, γ(θ_old)): the surface that the M-step climbs."""
        raise NotImplementedError

    def log_prior(self, theta: Theta, data: Data) -> Array | float:
        """log p(θ), the part of F_T that no temperature divides."""
        raise NotImplementedError

    def table(self, theta: Theta, x: Any) -> Array:
        """ℓ (K, n), component-major (eq:joint)."""
        raise NotImplementedError

    def relative_table(self, theta: Theta, x: Any) -> Array:
        """The same less any term common to all its entries: what assignments are made of."""
        return self.table(theta, x)

    def size(self, data: Data) -> Array | int:
        """W: how much data there is, the unit in which a tolerance is stated."""
        raise NotImplementedError

    def unconstrain(self, theta: Theta, data: Data, origin: Theta | None = None) -> Theta:
        """θ's free entries in NumPyro's unconstrained coordinates; those that are about a θ, about `origin`."""
        raise NotImplementedError

    def constrain(self, free: Theta, theta: Theta, data: Data) -> Theta:
        """The inverse of `unconstrain` about θ; held entries are θ's."""
        raise NotImplementedError


def maximize(m: Model, expectation: Expectation, theta: Theta, data: Data) -> Theta:
    """A whole M-step: where the statistics at hand are cancelled, they are summed again."""
    new = m.maximize(expectation.statistics, theta, data)
    if new.centre is None:
        return new.theta

    def again(centre: Theta) -> Theta:
        return m.maximize(m.expect(theta, data, centre).statistics, centre, data).theta

    return lax.cond(new.cancelled, again, lambda _: new.theta, new.centre)
