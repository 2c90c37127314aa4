"""Stepwise EM: θ moves after every batch, for one pass over data that are many or never end.

s_t = (1 − η_t) s_{t−1} + η_t s̄(batch_t; θ_{t−1}),  θ_t = argmax Q(θ; s_t)             (eq:stepwise)
"""

import contextlib
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.arrays import raw, static_count
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import compiled
from jaxem._fit import batches as _batches
from jaxem._fit.argument_batches import ArgumentsReader
from jaxem._programs import rows
from jaxem._programs.program import Program
from jaxem._rows import devices
from jaxem.families._mixture import Mixture


class OnlineFit(NamedTuple):
    """The outcome of `em_online`."""

    theta: Theta
    predictive: Float[Array, ""]  # mean F per unit of weight of each batch at the θ before it was seen, nats
    num_batches: int
    num_rows: int


@compiled
def _online(
    m: Model, theta: Theta, reference: Theta, data: Data, s: Any, rate: Array, move: Array
) -> tuple[Theta, Any, Array]:
    """eq:stepwise, with statistics about the means of one θ, so that those of all batches may be added."""
    expectation = m.expect(theta, data, reference)
    weight = m.rows.size(data)
    s = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new / weight, s, expectation.statistics)
    moved = m.maximize(s, reference, data).theta
    return jax.tree.map(partial(jnp.where, move), moved, theta), s, expectation.free_energy


@compiled
def _online_rows(
    m: Program, theta: Theta, reference: Theta, data: Data, s: Any, rate: Array, move: Array, weights: Array
) -> tuple[Theta, Any, Array]:
    """The same for a program: `weights` are the batch's and all so far, the rows that its prior is weighed against."""
    expectation = rows.sums(m, theta, reference, data)
    s = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new / weights[0], s, expectation.statistics)
    statistics = jax.tree.map(lambda mean: mean * weights[1], s)
    moved = rows.maximize_by_passes(m, statistics, reference, rows.some_of(data), None)
    return jax.tree.map(partial(jnp.where, move), moved, theta), s, expectation.free_energy


def em_online(
    m: Model,
    theta: ThetaLike,
    batches: _batches.Batches,
    *,
    temperature: ArrayLike = 1.0,
    exponent: float = 0.6,
    warm_up: int = 5,
    mesh: Mesh | None = None,
    prefetch: int = 2,
) -> OnlineFit:
    """Stepwise EM: θ moves after every batch, so that one pass may do (eq:stepwise; Cappé & Moulines 2009).

    s_t = (1 − η_t) s_{t−1} + η_t s̄(batch_t; θ_{t−1}) with η_t = t^{−exponent} and s̄ the mean statistics of a batch;
    θ_t is the M-step of s_t. It approaches a stationary point of the expected log-likelihood, not an optimum of these
    rows: finish with `em_stream` or `em` for that.

    Args:
        m, theta, temperature, mesh, prefetch: as in `em_stream`. In float32 let θ's means lie among the data.
        batches: a function that returns an iterator; repeat its batches there for more than one pass. Many small
            batches take θ further than few large ones.
        exponent: in (0.5, 1]; smaller forgets the start sooner, and is noisier.
        warm_up: batches that only add to the statistics before θ first moves.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.random.normal(jax.random.key(0), (10_000, 2))
    >>> theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(1), x[:500], 3)
    >>> fit = jaxem.em_online(gaussian.isotropic, theta, lambda: iter(x.reshape(100, 100, 2)))
    >>> before, after = (jaxem.log_likelihood(gaussian.isotropic, each, x) for each in (theta, fit.theta))
    >>> bool(after > before)
    True
    """
    given = raw("exponent", exponent)
    exponent = float(given) if given.shape == () else np.nan
    if not 0.5 < exponent <= 1:
        raise ValueError(f"exponent: must be in (0.5, 1] for the steps to settle, got {exponent}")
    static_count("warm_up", warm_up, 0)
    _batches.check("em_online", m, batches, prefetch)
    is_program = isinstance(m, Program)
    if isinstance(m, Mixture) and m.extras.prior is not None:
        raise ValueError("m: its prior has a weight against all rows, and em_online averages some; use em_stream")
    if isinstance(m, Mixture) and m.extras.surface is not None:
        raise ValueError(
            "m: em_online adds sums of many θ, and those of this family are of latents of its own, expected at one; "
            "use em_stream"
        )
    reader = (ArgumentsReader if is_program else _batches.Reader)(m, theta, batches, temperature, mesh, prefetch)
    if reader.processes > 1:
        raise ValueError("mesh: em_online is for one process; em_stream adds up the sums of several")
    reference = theta = reader.theta
    if is_program and (
        again := [b.stage.names[0] for b in rows.blocks_at(m, reader.two_rows()) if b.source == "again"]
    ):
        raise ValueError(f"m: em_online sees each batch once, and {again[0]!r} needs a second pass; use em_stream")
    shapes = jax.eval_shape(type(m).expect, m, theta, reader.two_rows()).statistics
    s = devices.replicated(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), reader.mesh)
    total, weight, num_rows, count = 0.0, 0.0, 0, 0
    with contextlib.closing(reader.read()) as placed:
        for batch in placed:
            num_rows += batch.rows
            if batch.weight == 0:
                continue  # it says nothing
            count += 1
            rate = np.asarray(count**-exponent, reader.temperature.dtype)
            weight, move = weight + batch.weight, np.asarray(count > warm_up)
            passed: Any = (m, theta, reference, batch.data, s, rate, move)
            if is_program:
                theta, s, value = _online_rows(*passed, np.asarray((batch.weight, weight), rate.dtype))
            else:
                theta, s, value = _online(*passed)
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, theta))):
                raise _batches.StreamError(
                    f"batches: at batch {batch.number} F or θ is not finite: a component collapsed; "
                    "hold its scale, start elsewhere (jaxem.inits), or make the batches larger"
                )
            total += float(value)
    if count <= warm_up:
        raise ValueError(f"warm_up: θ never moved: {count} batch(es) had any weight, and warm_up is {warm_up}")
    predictive = jnp.asarray(total / weight, reader.temperature.dtype)
    return OnlineFit(theta, predictive, count, num_rows)
