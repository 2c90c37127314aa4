"""A race to the same height: climbs as compiled programs, their histories, and who arrives after how many steps.

A climb is (state, step, look): `step` is one step of an optimiser, `look` what is written down of a state, at least its
height. One program per method makes both its trace, to the end of the budget, and the run that is timed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

History = dict[str, jax.Array]


class Racer(NamedTuple):
    """A compiled method: its trace, the call to time, and the seconds of compilation."""

    trace: Any  # a NamedTuple whose `value` (steps + 1,) begins at the common start
    race: Callable[..., Any]
    compile_seconds: float


def recorded(
    step: Callable, look: Callable[[Any], History], state: Any, most: Any, room: int, target: Any = jnp.inf
) -> tuple[Any, jax.Array, History]:
    """Steps until value ≥ target, `most` at most: (state, steps, what `look` saw at the start and after each).

    A history has `room` entries, zeros after the last; a height that is NaN goes on.
    """
    history = jax.tree.map(lambda leaf: jnp.zeros((room, *leaf.shape), leaf.dtype), jax.eval_shape(look, state))

    def write(steps: jax.Array, state: Any, history: History) -> History:
        return jax.tree.map(lambda past, now: past.at[steps].set(now), history, look(state))

    def body(carry: tuple) -> tuple:
        state, steps, history = carry
        state = step(state)
        return state, steps + 1, write(steps + 1, state, history)

    def goes_on(carry: tuple) -> jax.Array:
        state, steps, _ = carry
        return ~(look(state)["value"] >= target) & (steps < most)

    zero = jnp.zeros((), int)
    return jax.lax.while_loop(goes_on, body, (state, zero, write(zero, state, history)))


class Climb(NamedTuple):
    """The state of an optimiser's ascent; the height and its gradient are those at `point`."""

    point: Any
    state: Any  # the optimiser's
    value: jax.Array
    gradient: Any
    evaluations: jax.Array  # of the height with its gradient


def ascent(height: Callable[[Any], jax.Array], optimizer: Any, scale: float = 1.0) -> tuple[Callable, Callable]:
    """(point → Climb, step) of an optax optimiser on height/scale, with or without a line search."""
    optimizer = optax.with_extra_args_support(optimizer)

    def loss(point: Any) -> jax.Array:
        return -height(point) / scale

    def evaluate(point: Any, state: Any, evaluations: Any) -> Climb:
        searched = optax.tree.get(state, "num_linesearch_steps", None)
        if searched is None:
            value, gradient = jax.value_and_grad(loss)(point)
        else:  # the line search has evaluated this point: its last step
            value, gradient = optax.value_and_grad_from_state(loss)(point, state=state)
        return Climb(point, state, -scale * value, gradient, evaluations + (1 if searched is None else searched))

    def initial(point: Any) -> Climb:
        return evaluate(point, optimizer.init(point), jnp.zeros((), int))._replace(evaluations=jnp.ones((), int))

    def step(climb: Climb) -> Climb:
        known = {"value": -climb.value / scale, "grad": climb.gradient, "value_fn": loss}
        updates, state = optimizer.update(climb.gradient, climb.state, climb.point, **known)
        return evaluate(optax.apply_updates(climb.point, updates), state, climb.evaluations)

    return initial, step


# ---- who arrived


def as_row(method: str, value: np.ndarray, target: float, height: str) -> dict[str, Any]:
    """Steps to the target, None where it is not reached; `height` names the column of the highest value."""
    arrived = np.flatnonzero(value >= target)
    return {
        "method": method,
        "chosen": True,
        "steps": int(arrived[0]) if arrived.size else None,
        "steps_tried": len(value) - 1,
        height: float(np.nanmax(value)),
        "compile_seconds": None,
        "seconds": None,
    }


def choose(rows: dict[str, dict[str, Any]], swept: str, height: str) -> None:
    """Of the rows whose method begins with `swept`, a method at several rates, one is chosen.

    Fewest steps to the target first; of those that never arrive, the highest.
    """
    found = [row for row in rows.values() if row["method"].startswith(swept)]
    best = min(found, key=lambda row: (np.inf if row["steps"] is None else row["steps"], -row[height]))
    for row in found:
        row["chosen"] = row is best
