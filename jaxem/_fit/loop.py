"""The loop: coordinate ascent on F_T, one `while_loop`.

A step is M, then E, so that θ, its statistics and F in the state describe the same point, and the F that is
reported is the F of the θ that is returned. The E-step is compiled once: the first step is E alone, and where
statistics of many rows have lost their digits for the M-step, a turn of the loop takes them anew.

    θ⁺ = argmax_θ F_T(θ, γ),   γ⁺ = argmax_γ F_T(θ⁺, γ)                     (eq:M, eq:E)
"""

import enum
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxem._core import words
from jaxem._core.model import Data, Expectation, Model, Theta
from jaxem._core.tracing import compiled
from jaxem._fit.acceleration import Course, after_guess, guessed
from jaxem._fit.digits import Digits, digits_at
from jaxem._fit.nats_left import NatsLeft, Watch, look
from jaxem._fit.progress import awaited, bar

NEWS = 0.2  # seconds between two looks at a fit that is watched
PATIENCE = 30  # steps that a fit may idle at a θ without digits
NEARLY = 100.0  # tolerances: what a gain may be before the last one


class Status(enum.IntEnum):
    """How a fit ended. Codes, not exceptions, so that they survive `jit` and `vmap`; `check` raises."""

    CONVERGED = 0  # the last gain in F was within tolerance, and none grows (k-means: no centre changed); or as few
    # nats are left as `nats_left` asked for
    MAX_STEPS = 1  # still rising after max_steps
    DECREASED = 2  # an M-step lowered F by more than tolerance and rounding: it does not maximise; θ from before it
    NONFINITE = 3  # F is NaN or infinite, or a component came to rest on fewer dimensions than the data have, where F
    # rises without end; θ from before it, or with its covariance lifted off that plane

    @classmethod
    def counts(cls, fits: "Fit") -> dict[str, int]:
        """How many lanes ended how, e.g. {"CONVERGED": 14, "NONFINITE": 6}."""
        if not isinstance(fits, Fit):
            raise ValueError(f"fits: must be a Fit, as of em or em_batch, got {type(fits).__name__}")
        if fits.ended is None:
            ended = np.bincount(np.ravel(fits.status), minlength=len(cls))
        else:  # of the starts of `jaxem.fit`
            ended = np.reshape(fits.ended, (-1, len(cls))).sum(axis=0)
        return {status.name: int(count) for status, count in zip(cls, ended, strict=True) if count}


class Fit(NamedTuple):
    """The outcome of `em`; every field describes the same θ. Batched fits carry a leading lane axis."""

    theta: Theta
    free_energy: Float[Array, "*lanes"]  # F_T at theta, nats
    gain: Float[Array, "*lanes"]  # its last rise, nats; ∞ before the first step
    num_steps: Int[Array, "*lanes"]  # M-steps done
    status: Int[Array, "*lanes"]  # a Status
    rounding: Float[Array, "*lanes"] | None = None  # nats that rounding leaves open in F: above tol·W, it ended the fit
    ended: Int[Array, "*lanes 4"] | None = None  # of the best of several starts (`jaxem.fit`): how many had each Status
    ambiguous: Bool[Array, "*lanes"] | None = None  # of `jaxem.bootstrap`: are its components named as θ's by chance?

    def __repr__(self) -> str:
        """What people read; as Python shows it where it is traced, or no fit's numbers."""
        if not words.readable(self):
            return words.plain(self)
        if np.ndim(self.status):
            first = f"Fit of {np.size(self.status)} lanes: {words.counted(Status.counts(self))}"
            F, steps = np.asarray(self.free_energy), np.asarray(self.num_steps)
            first += f"; F from {words.number(F.min())} to {words.number(F.max())} nats; "
            first += f"{steps.min()} to {steps.max()} steps"
            if self.ambiguous is not None:
                first += f"; {np.sum(self.ambiguous)} ambiguous"
        else:
            first = f"Fit: {Status(int(self.status)).name} after {int(self.num_steps)} steps at F = "
            first += f"{words.number(self.free_energy, 8)} nats, last gain {words.number(self.gain, 2)}"
        lines = [first]
        if self.ended is not None and not np.ndim(self.status):
            lines.append(f"  of {int(np.sum(self.ended))} starts: {words.counted(Status.counts(self))}")
        return "\n".join(lines + [f"  {line}" for line in words.entries(self.theta)])


class State(NamedTuple):
    """A fit in progress."""

    theta: Theta
    expectation: Expectation
    gain: Array
    num_steps: Array  # −1: not even the first E-step is done
    status: Array
    rounding: Array  # nats
    idle: Array  # steps in a row after which θ had lost its digits, and F not risen by more than rounding
    lost: Array  # has θ lost its digits?


Stop = Callable[[State, State, Array], Array]  # (before, after, tolerance in nats) -> done?


def gain_is_small(before: State, after: State, tolerance: Array) -> Array:
    """|gain| ≤ max(tol·W, floor), after a gain that came near it and was no smaller than this one, to rounding.

    A gain that falls at once from far above to below says nothing of the next: at the first steps what is stable may
    be done, and a fit on its way out of a saddle rises the more at every step.
    """
    noise = before.rounding + after.rounding
    near = jnp.abs(before.gain) <= jnp.maximum(NEARLY * tolerance, noise)
    grows = after.gain - before.gain > noise
    return (jnp.abs(after.gain) <= tolerance) & near & ~grows


class Climb(NamedTuple):
    """What the loop carries: a state, and what its statistics are about."""

    state: State
    centre: Theta  # the θ about whose means they are: the state's own, or where those were cancelled the next ones
    again: Array  # were they summed again, about those?
    course: Course | None = None  # what an accelerated fit remembers of its way
    watch: Watch | None = None  # what one that asks for nats left remembers of its looks


def unstarted(m: Model, theta: Theta, data: Data, accelerate: Any = None, tol: Any = None) -> Climb:
    """θ before its E-step."""
    shapes = jax.eval_shape(lambda: begin(m, theta, expect(m, at(m, theta), data)))
    state: State = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    course, watch = Course.new(accelerate, theta, m, data), Watch.new(tol, state.gain)
    return renewed(Climb(state, theta, jnp.zeros((), bool), course, watch), theta)


def renewed(climb: Climb, theta: Theta) -> Climb:
    """Another θ, whose E-step is still to do."""
    state = climb.state._replace(
        theta=theta,
        num_steps=jnp.full_like(climb.state.num_steps, -1),
        status=jnp.full_like(climb.state.status, Status.MAX_STEPS),
    )
    course, watch = climb.course and climb.course.renewed(theta), climb.watch and climb.watch.renewed()
    return Climb(state, theta, jnp.zeros_like(climb.again), course, watch)


def begin(m: Model, theta: Theta, expectation: Expectation) -> State:
    """The state at θ, of which the E-step is done and no M-step."""
    finite = jnp.isfinite(expectation.free_energy)
    status = jnp.where(finite, Status.MAX_STEPS, Status.NONFINITE).astype(jnp.int32)
    infinity = jnp.full_like(expectation.free_energy, jnp.inf)
    digits, zero = digits_at(m, theta, expectation), jnp.zeros((), jnp.int32)
    rounding = noise(expectation, digits) + digits.slack
    return State(theta, expectation, infinity, zero, status, rounding, zero, jnp.asarray(digits.lost))


def noise(expectation: Expectation, digits: Digits) -> Array:
    """What the rounding of its arithmetic can move F by, nats: 8·eps·Σ w (|F_n| + sizes of the terms of ℓ_n)."""
    sizes = expectation.scale + digits.sizes
    return 8 * jnp.finfo(sizes.dtype).eps * sizes


def tolerance_of(expectation: Expectation, tol: Array, size: Array | int) -> Array:
    """A gain below it is not worth a step: tol·W, or what is rounding."""
    return jnp.maximum(tol * size, 8 * jnp.finfo(expectation.scale.dtype).eps * expectation.scale)


class Proposal(NamedTuple):
    """Where to do the next E-step, and what its statistics are to be about."""

    theta: Theta
    centre: Theta | None  # None of a model whose statistics never cancel
    again: Array  # is it the E-step at the old θ, its statistics summed again?


def at(m: Model, theta: Theta) -> Proposal:
    """An E-step at θ, its statistics about its own means."""
    return Proposal(theta, theta if m.recentres else None, jnp.zeros((), bool))


@jax.jit
def expect(m: Model, proposal: Proposal, data: Data) -> Expectation:
    """The E-step (eq:E) of a proposal; a program of its own, so that it is traced once for all that ask for it."""
    return m.expect(proposal.theta, data, proposal.centre, proposal.again)


def choose(condition: Array, this: Any, other: Any) -> Any:
    """One of two trees."""
    return jax.tree.map(partial(jnp.where, condition), this, other)


def step(m: Model, climb: Climb, data: Data, tol: Any, size: Array | int, stop: Stop) -> Climb:
    """One M-step and the E-step after it; of a new state, or of cancelled statistics, an E-step alone."""
    proposal = propose(m, climb, data)
    course, asked = climb.course, tol
    if climb.watch is not None:
        tol = climb.watch.tolerance(asked)
    if course is not None:
        proposal, course = beyond(m, climb.state, course, proposal, data)
    expectation = expect(m, proposal, data)
    after = advance(m, climb, proposal, expectation, tol, size, stop)
    if course is not None:
        after = accelerated(m, climb, course, after, proposal, expectation, tol, size)
    return after if climb.watch is None else watched(m, climb, course, after, data, asked, size)


def watched(
    m: Model, climb: Climb, course: Course | None, after: Climb, data: Data, tol: NatsLeft, size: Array | int
) -> Climb:
    """The climb after a step, at its end where few enough nats are left; as ever, no fit ends at a guess."""
    assert climb.watch is not None
    state, rises = after.state, after.state.status == Status.MAX_STEPS
    can = rises & (state.num_steps > jnp.maximum(climb.state.num_steps, 0)) & ~state.lost
    can = can if course is None else can & ~course.tried
    few, watch = look(m, climb.watch, state.theta, data, state.gain, state.rounding, can, tol, size)
    status = jnp.where(few, Status.CONVERGED, state.status).astype(state.status.dtype)
    return after._replace(state=state._replace(status=status), watch=watch)


def propose(m: Model, climb: Climb, data: Data) -> Proposal:
    """The M-step (eq:M)."""
    state, is_new = climb.state, climb.state.num_steps < 0
    statistics = state.expectation.statistics
    if not m.recentres:
        moved = lax.cond(is_new, lambda: state.theta, lambda: m.maximize(statistics, state.theta, data).theta)
        return Proposal(moved, None, jnp.zeros((), bool))
    new = m.maximize(statistics, climb.centre, data)
    again = jnp.asarray(new.cancelled) & ~is_new & ~climb.again
    theta = choose(again | is_new, state.theta, new.theta)
    return Proposal(theta, choose(again, new.centre, theta), again)


def advance(
    m: Model, climb: Climb, proposal: Proposal, expectation: Expectation, tol: Array, size: Array | int, stop: Stop
) -> Climb:
    """The climb after a proposal's E-step."""
    state, theta = climb.state, proposal.theta
    after = judged(m, state, theta, expectation, tol, size, stop)
    after = choose(state.num_steps < 0, begin(m, theta, expectation), after)
    if proposal.centre is None:
        return climb._replace(state=after, centre=after.theta)
    summed_again = state._replace(expectation=state.expectation._replace(statistics=expectation.statistics))
    after = choose(proposal.again, summed_again, after)
    return climb._replace(
        state=after, centre=choose(proposal.again, proposal.centre, after.theta), again=proposal.again
    )


def stays(state: State, proposal: Proposal) -> Array:
    """Does the open E-step make no step: of a new state, or of cancelled statistics?"""
    return proposal.again | (state.num_steps < 0)


def beyond(m: Model, state: State, course: Course, proposal: Proposal, data: Data) -> tuple[Proposal, Course]:
    """The accelerator's guess in place of EM's own step, where it has one."""
    theta, course = guessed(m, course, state.theta, proposal.theta, data, stays(state, proposal))
    centre = None if proposal.centre is None else choose(course.tried, theta, proposal.centre)
    return proposal._replace(theta=theta, centre=centre), course


def accelerated(
    m: Model,
    climb: Climb,
    course: Course,
    plain: Climb,
    proposal: Proposal,
    expectation: Expectation,
    tol: Array,
    size: Array | int,
) -> Climb:
    """The climb after an E-step at a guess: there if F rose, else where it was; after EM's own step it is `plain`.

    No fit ends at a guess: EM's own gains say whether anything is left to gain.
    """
    state, gain = climb.state, expectation.free_energy - climb.state.expectation.free_energy
    digits = digits_at(m, proposal.theta, expectation)
    rose = jnp.isfinite(expectation.free_energy) & (gain > 0) & ~jnp.asarray(digits.lost) & ~state.lost
    there = state._replace(
        theta=proposal.theta, expectation=expectation, gain=gain, rounding=noise(expectation, digits) + digits.slack
    )
    moved = climb._replace(state=there, centre=proposal.theta, again=jnp.zeros_like(climb.again))
    here = choose(rose, moved, climb)
    here = here._replace(state=here.state._replace(num_steps=state.num_steps + 1))
    quiet = gain <= NEARLY * tolerance_of(expectation, tol, size)
    new = after_guess(course, rose, quiet, stays(state, proposal))
    return choose(course.tried, here, plain)._replace(course=new)


def judged(
    m: Model, state: State, theta: Theta, expectation: Expectation, tol: Array, size: Array | int, stop: Stop
) -> State:
    """The state after a step to θ; a fall of F or a non-finite F leaves θ where it was.

    F is known up to `rounding`: of its own arithmetic, and what θ's digits leave open, `slack`. A fall within that, or
    within the tolerance, is none; where the slack is small, it is the end of what can be gained. A θ that lost its
    digits is no result, and its F not to be compared: a fit may pass it on its way, but if it rests or idles there,
    that is a collapse.
    """
    gain = expectation.free_energy - state.expectation.free_energy
    digits = digits_at(m, theta, expectation)
    rounding, slack = noise(expectation, digits) + digits.slack, digits.slack
    lost, either = jnp.asarray(digits.lost), state.rounding + rounding
    idle = jnp.where(lost & ~(gain > either), state.idle + 1, 0)
    after = State(theta, expectation, gain, state.num_steps + 1, state.status, rounding, idle, lost)
    tolerance = tolerance_of(expectation, tol, size)
    fell = (gain < -jnp.maximum(tolerance, either)) & ~lost & ~state.lost
    at_rest = (gain < -tolerance) & (slack < size / 32) & ~state.lost
    done, collapsed = (
        stop(state, after, tolerance) | at_rest,
        lost & ((jnp.abs(gain) <= tolerance) | (idle >= PATIENCE)),
    )
    finite = jnp.isfinite(expectation.free_energy)
    status = jnp.where(done & ~lost, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(fell, Status.DECREASED, status)
    status = jnp.where(finite & ~collapsed, status, Status.NONFINITE).astype(jnp.int32)
    return choose(finite & ~fell, after, state)._replace(status=status)


@partial(compiled, static_argnames="stop")
def run(m: Model, theta: Theta, data: Data, tol: Any, max_steps: Array, stop: Stop, accelerate: Any = None) -> Fit:
    """The one loop: step until a status is reached or max_steps are done."""
    return run_on(m, theta, m.rows.once(theta, data), tol, max_steps, stop, accelerate)


def run_on(m: Model, theta: Theta, data: Data, tol: Any, max_steps: Array, stop: Stop, accelerate: Any = None) -> Fit:
    """The same, of data that `Rows.once` has seen."""
    return fit_of(ascend(m, unstarted(m, theta, data, accelerate, tol), data, tol, max_steps, stop).state)


def ascend(m: Model, climb: Climb, data: Data, tol: Any, max_steps: Array, stop: Stop) -> Climb:
    """The end of the loop."""
    size = m.rows.size(data)  # once a fit: over a mesh it may be a sum of its own
    return lax.while_loop(
        lambda climb: (climb.state.status == Status.MAX_STEPS) & (climb.state.num_steps < max_steps),
        lambda climb: step(m, climb, data, tol, size, stop),
        climb,
    )


@compiled
def once(m: Model, theta: Theta, data: Data) -> dict[str, Any]:
    """What `Rows.once` changes of the data: the rest would be copied."""
    new = m.rows.once(theta, data)._asdict()
    return {name: value for name, value in new.items() if value is not getattr(data, name)}


begin_legs = jax.jit(unstarted)
run_leg = compiled(ascend, static_argnames="stop")


def run_in_legs(
    m: Model,
    theta: Theta,
    data: Data,
    tol: Any,
    max_steps: Array,
    stop: Stop,
    accelerate: Any = None,
    *,
    steps_a_leg: int,
) -> Fit:
    """The same fit by several calls of the loop, each of at most so many steps.

    A call is made before the one before it has ended, so that the devices need not wait; past the end it does nothing.
    """
    data = data._replace(**once(m, theta, data))
    climb, last, done = begin_legs(m, theta, data, accelerate, tol), int(max_steps), 0
    while True:
        before, done = climb, min(done + steps_a_leg, last)
        climb = run_leg(m, before, data, tol, np.int32(done), stop)  # NumPy: in every process
        if done == last or int(before.state.status) != Status.MAX_STEPS:
            return fit_of(climb.state)


def run_watched(
    m: Model, theta: Theta, data: Data, tol: Any, max_steps: Any, stop: Stop, accelerate: Any = None
) -> Fit:
    """The same with a tqdm bar: legs as long as people wait for news, each awaited so that Ctrl-C is heard."""
    data = data._replace(**once(m, theta, data))
    climb, last, done, steps = begin_legs(m, theta, data, accelerate, tol), int(max_steps), 0, 1
    with bar(True, last, "step") as show:
        while True:
            began, before, done = time.monotonic(), done, min(done + steps, last)
            climb = awaited(run_leg(m, climb, data, tol, np.int32(done), stop))
            state = climb.state
            moved = int(state.num_steps) - before
            show(f"F={float(state.expectation.free_energy):.8g} gain={float(state.gain):.2g}", moved)
            if done == last or int(state.status) != Status.MAX_STEPS:
                return fit_of(state)
            steps = 2 * steps if time.monotonic() - began < NEWS else steps


def fit_of(state: State) -> Fit:
    """What of the carry is the outcome."""
    return Fit(state.theta, state.expectation.free_energy, *state[2:6])
