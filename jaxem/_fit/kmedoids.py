"""k-medoids: the hard alternation for any dissimilarity, with rows of the data as prototypes.

    J(r, c) = Σ_n V(x_n, c_{r_n}),   each c_k a row of x                                      (eq:medoids)

The E-step gives r_n the least dissimilar medoid, the M-step moves c_k to the member of cluster k with the least
total dissimilarity to it (Bishop 2006, eq. 9.6; Park & Jun 2009). Neither raises J. No mean is taken, so x may
be of any kind that V understands, and an outlier cannot drag a prototype off the data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

from jaxem._core.arrays import blame_rows, first_line, numbers, shown, steps
from jaxem._core.checks import blame_x, prepare_x
from jaxem._core.tracing import is_concrete
from jaxem._fit.loop import Status

Dissimilarity = Callable[[Array, Array], Array]  # V: (x (D,), prototype (D,)) -> ()
ENTRIES = 2**20  # of the (rows, N, D) differences that exist at once


class KMedoids(NamedTuple):
    """The outcome of `kmedoids`; every field describes the same medoids."""

    medoids: Shaped[Array, "*lanes K D"]
    indices: Int[Array, "*lanes K"]  # the row of x that each medoid is; −1 for a start point that never moved
    labels: Int[Array, "*lanes N"]  # the least dissimilar medoid, lowest index at ties
    distortion: Float[Array, "*lanes"]  # J
    num_steps: Int[Array, "*lanes"]  # M-steps done
    status: Int[Array, "*lanes"]  # a Status


def kmedoids(
    x: ArrayLike, medoids: ArrayLike, dissimilarity: Dissimilarity, *, max_steps: ArrayLike = 1000
) -> KMedoids:
    """Cluster by any dissimilarity: a local minimum of Σ_n V(x_n, medoid of n) (eq:medoids).

    Stops when no medoid changes. Ties go to the lowest index, of cluster and of row; an empty cluster keeps its
    medoid. Costs N² evaluations of V a step, in chunks: the N × N matrix is never stored. Works inside `jit`
    and `vmap` over starts.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        medoids: where to start, (K, D): rows of x, or any points (the first M-step moves to rows, and may
            then raise J; no later step does).
        dissimilarity: V, a JAX function of two points, the row first: (D,), (D,) → (). It need be neither
            symmetric nor a metric; `jaxem.bregman` has some. Compiled once per function object, so define it
            once, outside loops.
        max_steps: most M-steps to do; 0 only assigns.

    Returns:
        A `KMedoids`; its status is NONFINITE where V gave a NaN, or where J is infinite at the end.

    Raises:
        ValueError: for a wrong shape or dtype, or a V whose result is not a scalar.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([[0.0], [1.0], [2.0], [10.0], [11.0], [900.0]])
    >>> def absolute(x, y):
    ...     return jnp.sum(jnp.abs(x - y))
    >>> fit = jaxem.kmedoids(x, x[:2], absolute)
    >>> fit.medoids.ravel().tolist(), fit.labels.tolist()
    ([1.0, 11.0], [0, 0, 0, 1, 1, 1])
    """
    x, medoids, told = _prepare(x, medoids, dissimilarity)
    fit = _run(x, medoids, dissimilarity, steps("max_steps", max_steps))
    blame_x(x, fit.distortion)
    return fit._replace(medoids=fit.medoids.astype(told))


def _prepare(x: ArrayLike, medoids: ArrayLike, dissimilarity: Dissimilarity) -> tuple[Array, Array, Any]:
    """Both as (·, D) in one dtype, in which V computes, and the dtype in which medoids are told.

    V sees integers as floats, for in 8 bits |5 − 250| wraps; where it does not take floats (it looks its arguments up
    in a table, say) they stay whole, in 32 bits or more.
    """
    x, medoids = prepare_x(x), numbers("medoids", medoids)
    if medoids.ndim != 2 or medoids.shape[0] < 1 or medoids.shape[1] != x.shape[1]:
        raise ValueError(f"medoids: must be (K, D) with K ≥ 1 and D = {x.shape[1]} as in x, got shape {medoids.shape}")
    told = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(x, medoids)
    seen = told if jnp.issubdtype(told, jnp.floating) else jnp.result_type(float)
    wrong = _what_is_wrong_with(dissimilarity, x.shape[1:], seen)
    if wrong and seen != told:
        seen = jnp.result_type(told, int)
        wrong = _what_is_wrong_with(dissimilarity, x.shape[1:], seen)
    if wrong:
        raise ValueError(f"dissimilarity: {wrong}")
    if seen == jnp.float32 and seen != told and is_concrete(x):
        blame_rows("x", abs(np.asarray(x, float)) > 2**24, "integers that float32 rounds", None, "enable x64")
    return x.astype(seen), medoids.astype(seen), told


def _what_is_wrong_with(dissimilarity: Any, shape: tuple[int, ...], dtype: Any) -> str | None:
    """V, called with two points of this dtype; its own errors are its own, unless JAX or Python could not call it."""
    if not callable(dissimilarity):
        return f"must be a JAX function of two points, got {shown(dissimilarity)}"
    try:
        hash(dissimilarity)
    except TypeError:
        return f"must have a hash, as functions have, got an object of {type(dissimilarity).__name__}"
    point = jax.ShapeDtypeStruct(shape, dtype)
    try:
        outcome = jax.eval_shape(dissimilarity, point, point)
    except (TypeError, IndexError) as error:
        return f"must be a JAX function of two points of shape {shape}; called so: {first_line(error)}"
    if getattr(outcome, "shape", None) != ():
        return f"must return a scalar for two points of shape {shape}, got {outcome}"
    if jnp.issubdtype(outcome.dtype, jnp.complexfloating):
        return f"must return a real number, got dtype {outcome.dtype}"
    return None


@partial(jax.jit, static_argnames="dissimilarity")
def _run(x: Array, medoids: Array, dissimilarity: Dissimilarity, max_steps: ArrayLike) -> KMedoids:
    dissimilarity = in_floats(dissimilarity)

    def step(fit: KMedoids) -> KMedoids:
        indices = m_step(x, fit, dissimilarity)
        moved = jnp.any(indices != fit.indices)
        medoids = jnp.where((indices >= 0)[:, None], x[indices], fit.medoids)
        return e_step(x, medoids, indices, dissimilarity, fit.num_steps + 1, moved)

    equal = jnp.all(x[None] == medoids[:, None], axis=2)
    indices = jnp.where(jnp.any(equal, axis=1), jnp.argmax(equal, axis=1), -1)
    start = e_step(x, medoids, indices, dissimilarity, jnp.zeros((), jnp.int32), jnp.array(True))
    fit = lax.while_loop(lambda fit: (fit.status == Status.MAX_STEPS) & (fit.num_steps < max_steps), step, start)
    return fit._replace(status=jnp.where(jnp.isfinite(fit.distortion), fit.status, Status.NONFINITE))


def in_floats(dissimilarity: Dissimilarity) -> Dissimilarity:
    """V as a floating number: sums of many whole ones might wrap."""

    def V(x: Array, y: Array) -> Array:
        value = jnp.asarray(dissimilarity(x, y))
        return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)

    return V


def e_step(
    x: Array, medoids: Array, indices: Array, dissimilarity: Dissimilarity, num_steps: Array, moved: Array
) -> KMedoids:
    """r_n = argmin_k V(x_n, c_k), and J."""
    to_medoids = jax.vmap(lambda c: jax.vmap(lambda row: dissimilarity(row, c))(x))(medoids)
    J = jnp.sum(jnp.min(to_medoids, axis=0))
    status = jnp.where(moved, Status.MAX_STEPS, Status.CONVERGED)
    status = jnp.where(jnp.isnan(J), Status.NONFINITE, status).astype(jnp.int32)
    labels = jnp.argmin(to_medoids, axis=0)
    return KMedoids(medoids, indices, labels, J, num_steps, status)


def m_step(x: Array, fit: KMedoids, dissimilarity: Dissimilarity) -> Array:
    """c_k = argmin over members c of cluster k of Σ_{n in k} V(x_n, c), as rows of x; empty: as it was."""

    def total(candidate: tuple[Array, Array]) -> Array:
        c, label = candidate
        costs = jax.vmap(lambda row: dissimilarity(row, c))(x)
        return jnp.sum(jnp.where(fit.labels == label, costs, 0))

    totals = lax.map(total, (x, fit.labels), batch_size=max(1, ENTRIES // x.size))
    cluster = jnp.arange(fit.indices.shape[0])[:, None]
    totals = jnp.where(fit.labels[None] == cluster, totals[None], jnp.inf)
    possible = jnp.isfinite(jnp.min(totals, axis=1))
    return jnp.where(possible, jnp.argmin(totals, axis=1), fit.indices)
