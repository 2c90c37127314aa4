"""EM on data larger than memory: the same steps, with the rows read in batches, pass after pass.

Statistics are additive (`_rows/chunks.py`), so a pass over batches is an E-step of which only the sums are kept:

    s(θ) = Σ_batches Σ_{n in batch} γ_n(θ) φ(x_n)

A thread reads and places the next batches while one is computed (`_fit/batches.py`); after a pass the state can be
written to disk (`_fit/checkpoint.py`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxem._core.arrays import static_count, switch, tolerance
from jaxem._core.model import Data, Expectation, Model, Theta, ThetaLike
from jaxem._core.tracing import compiled
from jaxem._fit import batches as _batches
from jaxem._fit import checkpoint as _checkpoint
from jaxem._fit import names, nats_left
from jaxem._fit.acceleration import refuse
from jaxem._fit.argument_batches import ArgumentsReader
from jaxem._fit.loop import Climb, Fit, Proposal, State, Status, advance, at, begin, fit_of, gain_is_small, propose
from jaxem._programs import rows
from jaxem._programs.program import Program
from jaxem._rows import devices
from jaxem._rows.chunks import compensated
from jaxem.families._mixture import Mixture


class Compensated(NamedTuple):
    """What a pass adds up, with Kahan's error terms."""

    total: Any
    error: Any

    @classmethod
    def nothing(cls, like: Any, mesh: Mesh | None) -> "Compensated":
        """Zeros of these shapes, on the devices of a pass."""
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return devices.replicated(cls(zero, zero), mesh)


@compiled
def _add(m: Mixture, proposal: Proposal, data: Data, sums: Compensated) -> Compensated:
    """The sums so far and those of one batch."""
    return Compensated(*compensated(*sums, m.sums(proposal.theta, data, proposal.centre, proposal.again)))


_with_log_prior = jax.jit(lambda m, theta, total: m.with_log_prior(theta, total))
_begin = jax.jit(begin)
_propose = jax.jit(propose)
_advance = jax.jit(partial(advance, stop=gain_is_small))


class Passes:
    """E-steps over the batches of a reader, and what one found for the next: every pass must see the same rows."""

    def __init__(self, m: Any, reader: _batches.Reader):
        self.m, self.reader = m, reader
        self.rows = 0  # of a whole pass; 0 before the first
        self.weight = 0.0  # of a whole pass, in all processes
        self.checksum: int | None = None  # of all batches; None before the first pass, or where nobody asks for it
        self.few = reader.two_rows()  # an M-step asks data for no more than their shapes
        self.nothing = Compensated.nothing(jax.eval_shape(type(m).expect, m, reader.theta, self.few), reader.mesh)

    def expect(self, proposal: Proposal) -> Expectation:
        """The E-step at a proposal; a prior counts once."""
        total = self.sum(lambda data, sums: _add(self.m, proposal, data, sums), self.nothing)
        return _with_log_prior(self.m, proposal.theta, total)

    def sum(self, add: Callable[[Data, Compensated], Compensated], nothing: Compensated) -> Any:
        """A pass: (data of a batch, sums so far) → sums, over all batches of all processes."""
        sums, rows, weight = nothing, 0, 0.0
        with contextlib.closing(self.reader.read()) as batches:
            for batch in batches:
                before = sums
                sums = add(batch.data, sums)
                jax.block_until_ready(before)  # so that no more than two batches are in flight
                rows, weight = rows + batch.rows, weight + batch.weight
        if self.rows and rows != self.rows:
            raise ValueError(
                f"batches: pass {self.reader.passes} had {rows} rows, before {self.rows}; "
                "it must return a fresh iterator over the same batches each time"
            )
        if self.reader.passes == 1 and self.reader.checksum is not None:
            if self.checksum not in (None, self.reader.checksum):
                raise ValueError(
                    "batches: their rows or weights are not those that the checkpoint was made with, though the first "
                    "batch is; resume with the same, or start afresh"
                )
            self.checksum = self.reader.checksum
        self.rows = rows
        total, self.weight = self.over_processes(sums.total, weight)
        if not self.weight > 0:
            raise ValueError("batches: all weights are 0; give at least one row a positive weight")
        return total

    def over_processes(self, mine: Any, weight: float) -> tuple[Any, float]:
        """The sums over processes, in the same order and so to the same bits in each; one capacity for all."""
        if self.reader.processes == 1:
            return mine, weight
        sums = (jax.tree.map(np.asarray, mine), np.float64(weight))
        with devices.joined(self.reader.processes):
            sums, capacity = multihost_utils.process_allgather((sums, np.int32(self.reader.capacity)))
        self.reader.capacity = int(capacity.max())
        total, weight = jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=leaf.dtype), sums)
        return jax.tree.map(jnp.asarray, total), float(weight)

    def step(self, state: State, tol: float) -> State:
        """One M-step and the E-step after it, with a pass between where the statistics are cancelled."""
        climb = Climb(state, state.theta, jnp.zeros((), bool))
        while True:
            proposal = _propose(self.m, climb, self.few)
            expectation = self.expect(proposal)
            tol_and_size = jnp.asarray((tol, self.weight), expectation.free_energy.dtype)
            climb = _advance(self.m, climb, proposal, expectation, *tol_and_size)
            if not climb.again:
                return climb.state


class ProgramPasses(Passes):
    """The same for a program with a row plate: its blocks may each take a pass, and a prior counts once."""

    def __init__(self, m: Any, reader: Any):
        super().__init__(m, reader)
        self.size = jnp.zeros(())  # W, of the last pass

    def expect(self, proposal: Proposal) -> Expectation:
        """The E-step at a proposal, and W."""
        nothing = Compensated.nothing((self.nothing.total, self.few.temperature), self.reader.mesh)
        total, self.size = self.sum(lambda data, sums: _add_rows(self.m, proposal.theta, data, sums), nothing)
        return _with_prior(self.m, total, proposal.theta, self.few)

    def step(self, state: State, tol: float) -> State:
        """One M-step, with a pass for each block that needs one, and the E-step after it."""

        def again(index: int, theta: Theta) -> Any:
            m: Any = self.m
            shapes = jax.eval_shape(partial(_of_block, m, index), state.theta, theta, self.few)
            nothing = Compensated.nothing(shapes, self.reader.mesh)
            return self.sum(lambda data, sums: _add_block(self.m, index, state.theta, theta, data, sums), nothing)

        theta = rows.maximize_by_passes(self.m, state.expectation.statistics, state.theta, self.few, again)
        proposal = at(self.m, theta)
        expectation = self.expect(proposal)
        tol_and_size = jnp.asarray((tol, self.size), expectation.free_energy.dtype)
        climb = Climb(state, state.theta, jnp.zeros((), bool))
        return _advance(self.m, climb, proposal, expectation, *tol_and_size).state


@compiled
def _add_rows(m: Program, theta: Theta, data: Data, sums: Compensated) -> Compensated:
    return Compensated(
        *compensated(*sums, (rows.sums(m, theta, theta, data), m.rows.size(data).astype(data.temperature.dtype)))
    )


def _of_block(m: Program, index: int, old: Theta, theta: Theta, data: Data) -> Any:
    return rows.sums_again(m, rows.blocks_at(m, data)[index].stage, old, theta, data)


@partial(compiled, static_argnames="index")
def _add_block(m: Program, index: int, old: Theta, theta: Theta, data: Data, sums: Compensated) -> Compensated:
    return Compensated(*compensated(*sums, _of_block(m, index, old, theta, data)))


_with_prior = jax.jit(rows.with_prior)


def em_stream(
    m: Model,
    theta: ThetaLike,
    batches: _batches.Batches,
    *,
    temperature: ArrayLike = 1.0,
    tol: Any = 1e-10,
    max_steps: int = 1000,
    accelerate: Any = None,
    mesh: Mesh | None = None,
    checkpoint: str | os.PathLike | None = None,
    resume: str | os.PathLike | None = None,
    prefetch: int = 2,
    progress: bool = False,
) -> Fit:
    """Fit a mixture to data that is read in batches, pass after pass: `em`, to rounding, in a batch's memory.

    Args:
        m: a family of `jaxem.families`, or a program with a row plate (`explain(…).rows`), with closed-form M-steps.
        theta: where to start; it takes the precision of the first batch, if that is floating.
        batches: called once a pass, it returns a fresh iterator over the same batches: arrays (rows, D), anything
            that `numpy.asarray` takes, or pairs (x, weights); for a program what `em` takes as x, with weights a pair
            (`jaxem.arguments(…)`, weights). Sizes may differ; equal ones are fastest, of
            32 MiB or more where rows are narrow. Rows that nobody can write to, as of a file mapped for reading, are
            used as they lie; others are copied.
        temperature, tol, max_steps: as in `em`. A step is one pass, and at times two.
        accelerate: None; only `em` and `em_batch` accelerate.
        mesh: devices that share each batch, as in `em`. Over several processes each reads its own batches, and
            their sums are added once a pass.
        checkpoint: a file to write after each pass, whole or not at all; the first process writes it. A symbolic
            link is written through; what is no file, or is read-only, is never replaced.
        resume: a checkpoint to go on from: the fit ends in the same bits as if it had not been interrupted, and one
            that had ended is returned as it is.
        prefetch: batches to read ahead of the one that is computed, ≥ 1.
        progress: show a tqdm bar of passes.

    Returns:
        A `Fit`, as from `em`.

    Raises:
        ValueError: for a batch of another shape or dtype, with values outside the support, NaN or infinite; for
            batches that differ between passes; for a checkpoint that is damaged or belongs to another fit. It names
            the batch, and its rows.
        StreamError: when `batches` itself raises; it names the batch.
        OSError: when the checkpoint cannot be written; the one before it is still there.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
    >>> theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(1), x, 3)
    >>> batches = lambda: (x[i : i + 250] for i in range(0, 1000, 250))
    >>> fit = jaxem.em_stream(gaussian.isotropic, theta, batches, max_steps=5)
    >>> same = jaxem.em(gaussian.isotropic, theta, x, max_steps=5)
    >>> bool(jnp.allclose(fit.free_energy, same.free_energy, rtol=1e-5))
    True
    """
    _batches.check("em_stream", m, batches, prefetch)
    nats_left.refuse("em_stream", tol, "a look takes several passes, in reverse mode too")
    refuse("em_stream", accelerate, "a checkpoint holds a θ, and not the way to it; em and em_batch accelerate")
    is_program = isinstance(m, Program)
    smallest = float(tolerance(tol, float))
    static_count("max_steps", max_steps, 0)
    mine = jax.process_index() == 0
    path = None if checkpoint is None or not mine else _checkpoint.check_path(checkpoint)
    reader = (ArgumentsReader if is_program else _batches.Reader)(m, theta, batches, temperature, mesh, prefetch)
    passes = (ProgramPasses if is_program else Passes)(m, reader)
    description = {
        "model": names.description(m),
        "theta": {name: str(jax.tree.map(jnp.shape, value)) for name, value in reader.theta.items()},
        "precision": str(reader.temperature.dtype),
        "temperature": float(reader.temperature),
        "processes": reader.processes,
    }
    if mine and (checkpoint is not None or resume is not None):
        description["first batch"] = reader.first_checksum()  # each process has its own; the first writes, and asks
        reader.checksum = 0  # of all batches, too, in the first pass

    def save(state: State) -> None:
        if path is not None:
            found = {"rows": passes.rows, "capacity": reader.capacity, "all batches": passes.checksum}
            _checkpoint.save(path, state, description | found)

    with _bar(switch("progress", progress), max_steps) as show:
        if resume is None:
            state = _begin(m, reader.theta, passes.expect(at(m, reader.theta)))
            save(state)
        else:
            like = jax.eval_shape(begin, m, reader.theta, passes.nothing.total)
            arrays, found = _checkpoint.load(resume, like, description)
            state = devices.replicated(jax.tree.map(jnp.asarray, arrays), reader.mesh)
            if why := unsound(arrays, found):
                raise ValueError(f"resume: {_checkpoint.told(resume)} {why}; start afresh")
            passes.rows, passes.checksum = (found["rows"], found["all batches"]) if mine else (0, None)
            reader.capacity = found["capacity"]  # it decides how sums are rounded
        while int(state.status) == Status.MAX_STEPS and int(state.num_steps) < max_steps:
            state = passes.step(state, smallest)
            save(state)
            show(state)
    return fit_of(state)


def unsound(state: State, found: dict[str, Any]) -> str | None:
    """What a checkpoint says that no fit can have left there, or nothing."""
    counts = [found.get(name) for name in ("rows", "capacity", "all batches")]
    if not all(type(count) is int and count >= 0 for count in counts):
        return f"says it was made with {counts[0]!r:.20} rows, {counts[1]!r:.20} at a time"
    if int(state.status) not in list(Status) or min(state.num_steps, state.idle) < 0:
        return f"has status {state.status} after {state.num_steps} steps, as no fit has"
    collapsed = state.status == Status.NONFINITE and state.num_steps == 0
    parts: dict[str, Any] = {"theta": state.theta}
    if not collapsed:
        parts |= {"F": state.expectation.free_energy, "statistics": state.expectation.statistics}
        parts |= {"rounding": state.rounding} | ({"gain": state.gain} if state.num_steps > 0 else {})
    for name, part in parts.items():
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)):
            return f"has NaN or infinity in {name}"
    return None


@contextlib.contextmanager
def _bar(wanted: bool, max_steps: int) -> Iterator[Callable[[State], None]]:
    """A progress bar of steps with F in it, or nothing."""
    if not wanted:
        yield lambda state: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ValueError("progress: needs tqdm; pip install tqdm, or leave progress out") from error
    with tqdm(total=max_steps, unit="pass") as bar:

        def show(state: State) -> None:
            bar.update(int(state.num_steps) - bar.n)
            bar.set_postfix_str(f"F = {float(state.expectation.free_energy):.9g}, gain = {float(state.gain):.2e}")

        yield show
