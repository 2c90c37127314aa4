"""The loop: coordinate ascent on F_T, one `while_loop`.

A step is M, then E, so that θ, its statistics and F in the state describe the same point, and the F that is
reported is the F of the θ that is returned. The first step is E alone: so the E-step is compiled once.

    θ⁺ = argmax_θ F_T(θ, γ),   γ⁺ = argmax_γ F_T(θ⁺, γ)                     (eq:M, eq:E)
"""

import enum
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxem._model import Data, Expectation, Model, Theta


class Status(enum.IntEnum):
    """How a fit ended. Codes, not exceptions, so that they survive `jit` and `vmap`; `check` raises."""

    CONVERGED = 0  # the last gain in F was within tolerance (k-means: no centre changed)
    MAX_STEPS = 1  # still rising after max_steps
    DECREASED = 2  # an M-step lowered F by more than rounding: it does not maximise; θ from before it
    NONFINITE = 3  # F became NaN or infinite: a collapse, or bad data; θ from before it


class Fit(NamedTuple):
    """The outcome of `em`; every field describes the same θ. Batched fits carry a leading lane axis."""

    theta: Theta
    free_energy: Float[Array, "*lanes"]  # F_T at theta, nats
    gain: Float[Array, "*lanes"]  # its last rise, nats; ∞ before the first step
    num_steps: Int[Array, "*lanes"]  # M-steps done
    status: Int[Array, "*lanes"]  # a Status


class State(NamedTuple):
    """The carry of the loop."""

    theta: Theta
    expectation: Expectation
    gain: Array
    num_steps: Array  # −1: not even the first E-step is done
    status: Array


Stop = Callable[[State, State, Array], Array]  # (before, after, tolerance in nats) -> done?


def gain_is_small(before: State, after: State, tolerance: Array) -> Array:
    """|gain| ≤ max(tol·W, floor)."""
    return jnp.abs(after.gain) <= tolerance


def unstarted(m: Model, theta: Theta, data: Data) -> State:
    """The state at θ before its E-step."""
    shapes = jax.eval_shape(lambda: begin(theta, m.expect(theta, data)))
    state: State = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return renewed(state, theta)


def renewed(state: State, theta: Theta) -> State:
    """A state at another θ, whose E-step is still to do."""
    return state._replace(
        theta=theta,
        num_steps=jnp.full_like(state.num_steps, -1),
        status=jnp.full_like(state.status, Status.MAX_STEPS),
    )


def begin(theta: Theta, expectation: Expectation) -> State:
    """The state at θ, of which the E-step is done and no M-step."""
    finite = jnp.isfinite(expectation.free_energy)
    status = jnp.where(finite, Status.MAX_STEPS, Status.NONFINITE).astype(jnp.int32)
    infinity = jnp.full_like(expectation.free_energy, jnp.inf)
    return State(theta, expectation, infinity, jnp.zeros((), jnp.int32), status)


def step(m: Model, state: State, data: Data, tol: Array, size: Array | int, stop: Stop) -> State:
    """One M-step and the E-step after it; of a state that is new, the E-step alone."""
    is_new = state.num_steps < 0
    theta = lax.cond(
        is_new,
        lambda: state.theta,
        lambda: m.maximize(state.expectation.statistics, state.theta, data),  # eq:M
    )
    expectation = m.expect(theta, data)  # eq:E
    after = advance(m, state, theta, expectation, tol, size, stop)
    return jax.tree.map(partial(jnp.where, is_new), begin(theta, expectation), after)


def advance(
    m: Model, state: State, theta: Theta, expectation: Expectation, tol: Array, size: Array | int, stop: Stop
) -> State:
    """The state after a step to θ; a fall of F or a non-finite F leaves θ where it was.

    Rounding moves F by its own `floor`, and by what θ's digits leave open, `slack`. A fall within both is none; where
    the slack is small, it is the end of what can be gained. A θ that lost its digits is no result.
    """
    gain = expectation.free_energy - state.expectation.free_energy
    floor = 8 * jnp.finfo(gain.dtype).eps * expectation.scale  # what rounding alone can move F by
    after = State(theta, expectation, gain, state.num_steps + 1, state.status)
    slack, lost = m.rounding_of_theta(theta, expectation)
    at_rest = (gain < -floor) & (slack < size / 32)
    done = (stop(state, after, jnp.maximum(tol * size, floor)) | at_rest) & ~jnp.asarray(lost)
    finite = jnp.isfinite(expectation.free_energy)
    fell = gain < -(floor + slack)
    status = jnp.where(done, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(fell, Status.DECREASED, status)
    status = jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
    accept = finite & ~fell
    kept = jax.tree.map(lambda new, old: jnp.where(accept, new, old), after, state)
    return kept._replace(status=status)


@partial(jax.jit, static_argnames="stop")
def run(m: Model, theta: Theta, data: Data, tol: Array, max_steps: Array, stop: Stop) -> Fit:
    """The one loop: step until a status is reached or max_steps are done."""
    return fit_of(ascend(m, unstarted(m, theta, data), data, tol, max_steps, stop))


def ascend(m: Model, state: State, data: Data, tol: Array, max_steps: Array, stop: Stop) -> State:
    """The state at the end of the loop."""
    size = m.size(data)  # once a fit: over a mesh it is a sum of its own
    return lax.while_loop(
        lambda state: (state.status == Status.MAX_STEPS) & (state.num_steps < max_steps),
        lambda state: step(m, state, data, tol, size, stop),
        state,
    )


begin_legs = jax.jit(unstarted)
run_leg = jax.jit(ascend, static_argnames="stop")


def run_in_legs(
    m: Model, theta: Theta, data: Data, tol: Array, max_steps: Array, stop: Stop, *, steps_a_leg: int
) -> Fit:
    """The same fit by several calls of the loop, each of at most so many steps."""
    state, last, done = begin_legs(m, theta, data), int(max_steps), 0
    while True:
        done = min(done + steps_a_leg, last)
        state = run_leg(m, state, data, tol, jnp.asarray(done, jnp.int32), stop)
        if done == last or int(state.status) != Status.MAX_STEPS:
            return fit_of(state)


def fit_of(state: State) -> Fit:
    """What of the carry is the outcome."""
    return Fit(state.theta, state.expectation.free_energy, state.gain, state.num_steps, state.status)
