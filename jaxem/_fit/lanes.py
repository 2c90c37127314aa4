"""Many fits of the same data, scheduled so that a slow one does not hold the others.

`vmap` of the loop runs all lanes until the slowest is done. Here a number of slots take lanes from a queue, and a
slot whose fit is done takes the next. On a CPU one slot is fastest, and lanes run one after another; a GPU has room
for many. With a mesh every device serves its own lanes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from jaxem._core.arrays import non_negative
from jaxem._core.model import Data, Model, Theta
from jaxem._core.tracing import compiled, is_concrete
from jaxem._fit.implicit import at_the_fixed_point
from jaxem._fit.loop import Climb, Fit, Status, Stop, fit_of, renewed, run, run_on, step, unstarted
from jaxem._fit.progress import awaited, bar
from jaxem.families._missing import Missing

SLOTS = {"cpu": 1}  # by platform
MANY = 1_024  # elsewhere, at most, …
GROUPS = 10  # of the lanes of a call that shows its progress
ROWS = 2**20  # … and so many rows at a time, each slot all of them: experiments/GPU.md


def slots_here(x: Any) -> int:
    """How many lanes of these data to run at a time on the platform that is the default."""
    rows = max((leaf.shape[0] for leaf in jax.tree.leaves(x) if leaf.ndim), default=1)
    return SLOTS.get(jax.default_backend(), max(1, min(MANY, ROWS // rows)))


class Lanes(NamedTuple):
    """What each lane has of its own, along a leading axis."""

    theta: Theta
    temperature: Array
    weights: Array | None  # (lanes, N), or None where the data's are all lanes'

    def to(self, data: Data) -> Data:
        """The data of one lane."""
        data = data._replace(temperature=self.temperature)
        return data if self.weights is None else data._replace(weights=self.weights)


def dealt_out(thetas: Theta, data: Data) -> tuple[Lanes, Data]:
    """(the lanes, the data that they share)."""
    temperatures = jnp.broadcast_to(data.temperature, jax.tree.leaves(thetas)[0].shape[:1])
    if data.weights is None or data.weights.ndim == 1:
        return Lanes(thetas, temperatures, None), data
    return Lanes(thetas, temperatures, data.weights), data._replace(weights=None)


def weighed(weights: Any, thetas: Theta, data: Data) -> Data:
    """The data with a row of weights for each lane; those that they have say which rows count in any."""
    assert data.weights is not None
    wanted = (jax.tree.leaves(thetas)[0].shape[0], *data.weights.shape)
    if weights.shape != wanted:
        raise ValueError(
            f"weights: must have shape {wanted[1:]}, or {wanted} with a row for each lane, got {weights.shape}"
        )
    non_negative("weights", weights, "drop rows by giving them weight 0")
    w = jnp.asarray(weights, data.temperature.dtype)
    w = jnp.where(data.weights[None] == 0, 0, w)  # a row that counts in no lane, or of which nothing is observed
    allowed = jnp.all(w >= 0, axis=1) & (jnp.sum(w, axis=1) > 0)
    if is_concrete(w) and not np.asarray(allowed).all():
        raise ValueError(f"weights: of lane {int(np.argmin(np.asarray(allowed)))} sum to 0; give it at least one row")
    return data._replace(weights=jnp.where(allowed[:, None], w, jnp.nan))


@partial(compiled, static_argnames=("stop", "mesh", "slots"))
def run_lanes(
    m: Model,
    thetas: Theta,
    data: Data,
    tol: Any,
    max_steps: Array,
    stop: Stop,
    mesh: Mesh | None = None,
    slots: int = 1,
    accelerate: Any = None,
) -> Fit:
    """Every lane's fit, in the order of `thetas`.

    With a mesh every device takes every n-th lane, since neighbours in a sweep tend to need as many steps.
    """
    args, data = dealt_out(thetas, data)
    lanes = args.temperature.shape[0]

    def here(args: Lanes, data: Data, tol: Any, max_steps: Array) -> Fit:
        # once for all lanes, but where it puts rows in order, which weights of a lane's own would not be in
        alike = args.weights is None or not isinstance(m, Missing)
        if alike:
            data = m.rows.once(jax.tree.map(lambda leaf: leaf[0], args.theta), data)
        if slots > 1:
            return _in_slots(m, args, data, tol, max_steps, stop, slots, accelerate)

        def lane(args: Lanes) -> Fit:
            return (run_on if alike else run)(m, args.theta, args.to(data), tol, max_steps, stop, accelerate)

        return lax.map(lane, args)

    if mesh is None:
        return here(args, data, tol, max_steps)
    share = -(-lanes // mesh.size)
    dealt = np.arange(share * mesh.size).reshape(share, mesh.size).T.ravel()  # the lane at each place
    args = jax.tree.map(lambda leaf: leaf[np.minimum(dealt, lanes - 1)], args)
    whole, each = PartitionSpec(), PartitionSpec(mesh.axis_names)
    spread = jax.shard_map(here, mesh=mesh, in_specs=(each, whole, whole, whole), out_specs=each, check_vma=False)
    fits = spread(args, data, tol, max_steps)
    return jax.tree.map(lambda leaf: leaf[np.argsort(dealt)[:lanes]], fits)


def run_in_groups(
    m: Model,
    thetas: Theta,
    data: Data,
    tol: Any,
    max_steps: Any,
    stop: Stop,
    mesh: Mesh | None = None,
    slots: int = 1,
    accelerate: Any = None,
) -> Fit:
    """The same with a tqdm bar: some lanes after others, each group awaited so that Ctrl-C is heard."""
    args, data = dealt_out(thetas, data)
    lanes = args.temperature.shape[0]
    size = max(-(-lanes // GROUPS), slots, 1 if mesh is None else mesh.size)
    found: list[Fit] = []
    with bar(True, lanes, "fit") as show:
        for first in range(0, lanes, size):
            index = np.minimum(np.arange(first, first + size), lanes - 1)  # groups of one size compile once
            some = jax.tree.map(lambda leaf, index=index: leaf[index], args)
            fits = run_lanes(m, some.theta, some.to(data), tol, max_steps, stop, mesh, slots, accelerate)
            count = min(size, lanes - first)
            found.append(jax.tree.map(lambda leaf, count=count: leaf[:count], awaited(fits)))
            show(f"F={float(np.max(np.asarray(found[-1].free_energy))):.8g}", count)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found)


def at_fixed_points(m: Model, thetas: Theta, data: Data, fits: Fit) -> Fit:
    """The lanes with the derivatives of their fixed points, one lane after another."""
    lanes, data = dealt_out(thetas, data)

    def lane(args: tuple[Lanes, Fit]) -> Fit:
        own, fit = args
        return at_the_fixed_point(m, own.theta, own.to(data), fit)

    return lax.map(lane, (lanes, fits))


class Slots(NamedTuple):
    """The carry: a climb per slot, which lane it is, and the lanes that are done."""

    climbs: Climb
    lane: Int[Array, " slots"]  # = lanes: idle
    next: Int[Array, ""]
    done: Fit


def _in_slots(
    m: Model, args: Lanes, data: Data, tol: Any, max_steps: Array, stop: Stop, slots: int, accelerate: Any
) -> Fit:
    """A step of all slots at a time."""
    lanes = args.temperature.shape[0]
    slots = min(slots, lanes)

    def of(lane: Array) -> Lanes:
        return jax.tree.map(lambda leaf: leaf[jnp.minimum(lane, lanes - 1)], args)

    def move(climb: Climb, lane: Lanes) -> Climb:
        own = lane.to(data)
        return step(m, climb, own, tol, m.rows.size(own), stop)

    def body(slots_: Slots) -> Slots:
        climbs = jax.vmap(move)(slots_.climbs, of(slots_.lane))
        states = climbs.state
        ended = (states.status != Status.MAX_STEPS) | (states.num_steps >= max_steps)
        place = jnp.where(ended, slots_.lane, lanes)  # `lanes` is no place: nothing is written
        done = jax.tree.map(lambda all, one: all.at[place].set(one, mode="drop"), slots_.done, fit_of(states))
        lane = jnp.where(ended, jnp.minimum(slots_.next + jnp.cumsum(ended) - 1, lanes), slots_.lane)
        fresh = renewed(climbs, of(lane).theta)

        def either(new: Any, old: Any) -> Any:
            return jnp.where(ended.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

        return Slots(jax.tree.map(either, fresh, climbs), lane, slots_.next + jnp.sum(ended), done)

    lane = jnp.arange(slots)
    climbs = jax.vmap(lambda lane: unstarted(m, lane.theta, lane.to(data), accelerate, tol))(of(lane))
    done = jax.tree.map(lambda leaf: jnp.zeros((lanes, *leaf.shape[1:]), leaf.dtype), fit_of(climbs.state))
    first = Slots(climbs, lane, jnp.asarray(slots), done)
    return lax.while_loop(lambda slots_: jnp.any(slots_.lane < lanes), body, first).done
