"""A chain summed over its states: forward–backward, and at T = 0 Viterbi, as one function and its derivative.

    F = max_T over z_0 … z_n of  start(z_0) + Σ_t ℓ_t(z_{t−1}, z_t) + last(z_n)           (eq:chain)

with max_T of eq:reduce. ∂F/∂ℓ_t(i, j) is the pairwise marginal ξ_t(i, j): the rule of `chain`'s derivative computes
it, so that differentiating F costs one pass forward and one back, K² a step, and memory O(n·K) unless a table
itself has K² entries a step.

Tables that do not change with time are kept apart from those that do. Where numbers allow it the passes run on
probabilities, normalised at each step (Rabiner 1989), with one exponential for each entry of each table; else on
logarithms.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxem._core.objective import product


class Tables(NamedTuple):
    """The factors of a chain of K states and n steps, for any lanes of independent chains at the right."""

    start: Array  # (K, *lanes)
    last: Array  # (K, *lanes)
    fixed: tuple[Array, ...]  # each (K or 1, K or 1, *lanes or 1): the same at every step
    moving: tuple[Array, ...]  # each (n, K or 1, K or 1, *lanes or 1)


Marginals = Tables  # ∂F/∂ each of them


@jax.custom_jvp
def chain(tables: Tables, temperature: Array) -> Array:
    """eq:chain, one value for each lane."""
    return expectations(tables, temperature)[0]


@chain.defjvp
def _(primals: tuple[Tables, Array], tangents: tuple[Tables, Array]) -> tuple[Array, Array]:
    tables, temperature = primals
    value, marginals, energy = expectations(tables, temperature)
    change = inner(marginals, tangents[0], value)
    entropy = jnp.where(temperature == 0, 0, (value - energy) / jnp.where(temperature == 0, 1, temperature))
    return value, change + entropy * tangents[1]


@jax.custom_jvp
def drawn_chain(tables: Tables, noise: Array) -> Array:
    """eq:chain at T = 1; its derivative is the indicators of one path, a draw from the posterior of all of them.

    `noise` (n + 1, K, *lanes): independent, of Gumbel's law.
    """
    return by_logarithms(tables)[0]


@drawn_chain.defjvp
def _(primals: tuple[Tables, Array], tangents: tuple[Tables, Array]) -> tuple[Array, Array]:
    value, marginals = by_draws(*primals)
    return value, inner(marginals, tangents[0], value)


@jax.custom_jvp
def filtered_chain(tables: Tables) -> Array:
    """eq:chain at T = 1; its derivative is each step's pairs given what came until then, and not what follows."""
    return by_logarithms(tables)[0]


@filtered_chain.defjvp
def _(primals: tuple[Tables], tangents: tuple[Tables]) -> tuple[Array, Array]:
    value, pairs = by_filter(*primals)
    return value, inner(pairs, tangents[0], value)


def expectations(tables: Tables, temperature: Array) -> tuple[Array, Marginals, Array]:
    """(F, marginals, Σ ⟨marginal, table⟩) for each lane. A marginal has its lanes, even where its table repeats."""

    def soft() -> tuple[Array, Marginals]:
        scaled = jax.tree.map(lambda table: table / jnp.where(temperature == 0, 1, temperature), tables)
        passes = forward(scaled)
        value, marginals = lax.cond(
            passes.safe, lambda: by_probabilities(scaled, passes), lambda: by_logarithms(scaled)
        )
        return value * temperature, marginals

    value, marginals = lax.cond(temperature == 0, lambda: by_paths(tables), soft)
    return value, marginals, inner(marginals, tables, value)


def inner(marginals: Marginals, tables: Tables, like: Array) -> Array:
    """Σ ⟨marginal, table⟩ for each lane."""
    total = jnp.zeros_like(like)
    for marginal, table in zip(jax.tree.leaves(marginals), jax.tree.leaves(tables), strict=True):
        terms = product(marginal, table)
        total = total + jnp.sum(terms, axis=tuple(range(terms.ndim - like.ndim)))
    return total


def total(tables: tuple[Array, ...], like: Array, axes: int) -> Array:
    """Σ of tables, of size 1 where none has an axis; zeros where there is none."""
    zero = jnp.zeros((1,) * (axes + like.ndim - 1), like.dtype)
    return sum(tables, zero)


def gather(xi: Callable[..., Array], tables: Tables, start: Array, last: Array) -> Marginals:
    """Each table's marginal: ξ summed over the axes that it does not have."""
    sums: dict[tuple[bool, ...], Array] = {}

    def pair(table: Array, moving: bool) -> Array:
        shape = table.shape[1:] if moving else table.shape
        keep = (moving, shape[0] > 1, shape[1] > 1)
        if keep not in sums:
            axes = tuple(axis for axis, kept in enumerate(keep) if not kept)
            summed = jnp.sum(xi(), axis=axes, keepdims=True)
            sums[keep] = summed if moving else summed[0]
        return sums[keep]

    return Marginals(
        start,
        last,
        tuple(pair(table, False) for table in tables.fixed),
        tuple(pair(table, True) for table in tables.moving),
    )


# ---- on probabilities


class Forward(NamedTuple):
    """The filter: normalised forward messages, and their normalisers."""

    before: Array  # (n, K, *lanes): α_{t−1}
    end: Array  # (K, *lanes): α_n
    scales: Array  # (n, *lanes)
    fixed: Array  # e^{Σ fixed − peak}
    moving: Array  # (n, …) e^{Σ moving − peak}
    peaks: Array  # (*lanes): what was taken out of start, fixed and moving, summed over time
    safe: Array  # has no entry come near underflow?


def forward(tables: Tables) -> Forward:
    """α_t(j) ∝ Σ_i α_{t−1}(i) e^{ℓ_t(i, j)}, each step normalised."""
    fixed, moving = total(tables.fixed, tables.start, 2), total(tables.moving, tables.start, 3)
    fixed_peak = lax.stop_gradient(jnp.max(fixed, axis=(0, 1)))
    moving_peak = lax.stop_gradient(jnp.max(moving, axis=(1, 2)))
    start_peak = lax.stop_gradient(jnp.max(tables.start, axis=0))
    P, E = jnp.exp(fixed - fixed_peak[None, None]), jnp.exp(moving - moving_peak[:, None, None])
    first = jnp.exp(tables.start - start_peak[None])
    scale = jnp.sum(first, axis=0)

    def step(alpha: Array, E: Array) -> tuple[Array, tuple[Array, Array]]:
        new = jnp.sum(alpha[:, None] * P * E, axis=0)
        new = jnp.broadcast_to(new, alpha.shape)
        scale = jnp.sum(new, axis=0)
        return new / scale[None], (alpha, scale)

    end, (before, scales) = lax.scan(step, first / scale[None], E)
    peaks = start_peak + jnp.log(scale) + jnp.sum(moving_peak, axis=0) + moving.shape[0] * fixed_peak
    small = jnp.finfo(P.dtype).tiny ** 0.6
    safe = jnp.all(before > small) & jnp.all(end > small) & jnp.all(jnp.isfinite(scales)) & jnp.all(jnp.isfinite(peaks))
    return Forward(before, end, scales, P, E, peaks, safe)


def by_probabilities(tables: Tables, passes: Forward) -> tuple[Array, Marginals]:
    """β_{t−1}(i) = Σ_j e^{ℓ_t(i, j)} β_t(j) / scale_t;  ξ_t(i, j) = α_{t−1}(i) e^{ℓ_t(i, j)} β_t(j) / scale_t."""
    last_peak = lax.stop_gradient(jnp.max(tables.last, axis=0))
    last = jnp.exp(tables.last - last_peak[None])
    final = jnp.sum(passes.end * last, axis=0)

    def step(beta: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        E, scale = inputs
        after = beta / scale[None]
        return jnp.broadcast_to(jnp.sum(passes.fixed * E * after[None], axis=1), beta.shape), after

    beta, after = lax.scan(step, last / final[None], (passes.moving, passes.scales), reverse=True)
    value = passes.peaks + jnp.sum(jnp.log(passes.scales), axis=0) + last_peak + jnp.log(final)

    def xi() -> Array:
        return passes.before[:, :, None] * passes.fixed[None] * passes.moving * after[:, None]

    return value, gather(xi, tables, passes.before[0] * beta, passes.end * last / final[None])


# ---- on logarithms, and on paths


def steps(tables: Tables) -> Array:
    """ℓ_t(i, j) in full but for lanes and times that all tables repeat."""
    return total(tables.fixed, tables.start, 2)[None] + total(tables.moving, tables.start, 3)


def by_logarithms(tables: Tables) -> tuple[Array, Marginals]:
    """The same passes with log-sum-exp at each step."""
    ell = steps(tables)

    def ahead(message: Array, ell: Array) -> tuple[Array, Array]:
        new = log_sum(message[:, None] + ell, axis=0)
        return jnp.broadcast_to(new, message.shape), message

    def back(message: Array, ell: Array) -> tuple[Array, Array]:
        new = log_sum(ell + message[None], axis=1)
        return jnp.broadcast_to(new, message.shape), message

    end, before = lax.scan(ahead, tables.start, ell)
    beginning, after = lax.scan(back, tables.last, ell, reverse=True)
    value = log_sum(end + tables.last, axis=0)

    def xi() -> Array:
        return shares(before[:, :, None] + ell + after[:, None], axes=(1, 2))

    return value, gather(xi, tables, shares(tables.start + beginning, axes=0), shares(end + tables.last, axes=0))


def shares(table: Array, axes: int | tuple[int, int]) -> Array:
    """e^table over its sum: right to eps, where e^{table − F} is right to eps·|F|."""
    peak = lax.stop_gradient(jnp.max(table, axis=axes, keepdims=True))
    weights = jnp.exp(table - jnp.where(jnp.isfinite(peak), peak, 0))
    total = jnp.sum(weights, axis=axes, keepdims=True)
    return weights / jnp.where(total > 0, total, 1)


def log_sum(table: Array, axis: int) -> Array:
    """log Σ e^table, −∞ where every entry is."""
    peak = lax.stop_gradient(jnp.max(table, axis=axis, keepdims=True))
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    sums = jnp.sum(jnp.exp(table - peak), axis=axis)
    positive = sums > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, sums, 1)), -jnp.inf) + jnp.squeeze(peak, axis)


def by_filter(tables: Tables) -> tuple[Array, Marginals]:
    """The forward pass alone, each message normalised, so that it keeps its digits however long the chain is.

    p(z_{t−1}, z_t | x_1 … x_t) ∝ α_{t−1}(z_{t−1}) e^{ℓ_t(z_{t−1}, z_t)}                       (eq:filter)
    """
    ell = steps(tables)

    def ahead(message: Array, ell: Array) -> tuple[Array, tuple[Array, Array]]:
        new = jnp.broadcast_to(log_sum(message[:, None] + ell, axis=0), message.shape)
        scale = log_sum(new, axis=0)
        return new - jnp.where(jnp.isfinite(scale), scale, 0)[None], (message, scale)

    end, (before, scales) = lax.scan(ahead, tables.start, ell)

    def xi() -> Array:
        return shares(before[:, :, None] + ell, axes=(1, 2))

    value = jnp.sum(scales, axis=0) + log_sum(end + tables.last, axis=0)
    return value, gather(xi, tables, shares(tables.start, axes=0), shares(end, axes=0))


def by_draws(tables: Tables, noise: Array) -> tuple[Array, Marginals]:
    """Backward sampling: z_n from its marginal, then each z_{t−1} given z_t, by the filter's messages.

    p(z_{t−1} | z_t, x) ∝ α_{t−1}(z_{t−1}) e^{ℓ_t(z_{t−1}, z_t)}                    (Frühwirth-Schnatter 1994)
    """
    ell = steps(tables)

    def ahead(message: Array, ell: Array) -> tuple[Array, Array]:
        new = log_sum(message[:, None] + ell, axis=0)
        return jnp.broadcast_to(new, message.shape), message

    end, before = lax.scan(ahead, tables.start, ell)
    final = end + tables.last
    z_end = jnp.argmax(final + noise[-1], axis=0)

    def back(z: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        message, ell, noise = inputs
        given = jnp.broadcast_to(message[:, None] + ell, (len(message), len(message), *z.shape))
        chosen = jnp.take_along_axis(given, z[None, None], axis=1)[:, 0]
        return jnp.argmax(chosen + noise, axis=0), z

    z_start, path = lax.scan(back, z_end, (before, ell, noise[:-1]), reverse=True)
    return log_sum(final, axis=0), of_path(tables, z_start, path, z_end)


def by_paths(tables: Tables) -> tuple[Array, Marginals]:
    """Viterbi: the best path, the lowest index at ties from its end; its indicators are the marginals."""
    ell = steps(tables)
    size = tables.start.shape[0]

    def ahead(message: Array, ell: Array) -> tuple[Array, Array]:
        scores = jnp.broadcast_to(message[:, None] + ell, (size, *message.shape))
        return jnp.max(scores, axis=0), jnp.argmax(scores, axis=0)

    end, came_from = lax.scan(ahead, tables.start, ell)
    final = end + tables.last
    z_end = jnp.argmax(final, axis=0)

    def back(z: Array, came_from: Array) -> tuple[Array, Array]:
        return jnp.take_along_axis(came_from, z[None], axis=0)[0], z

    z_start, path = lax.scan(back, z_end, came_from, reverse=True)
    return jnp.max(final, axis=0), of_path(tables, z_start, path, z_end)


def of_path(tables: Tables, z_start: Array, path: Array, z_end: Array) -> Marginals:
    """The indicators of a path z_0, z_1 … z_n."""

    def hot(z: Array, axis: int) -> Array:
        return jax.nn.one_hot(z, tables.start.shape[0], dtype=tables.start.dtype, axis=axis)

    def xi() -> Array:
        before = jnp.concatenate([z_start[None], path[:-1]])
        return hot(before, 1)[:, :, None] * hot(path, 1)[:, None]

    return gather(xi, tables, hot(z_start, 0), hot(z_end, 0))
