"""Starts for EM. Keys come in as arguments; K fixes shapes, so it is a Python int.

All set π = 1/K and the scales to the pooled scale of the data; they differ in how centres are chosen.
Distances are by differences. `random_points` and `kmeans_plus_plus` run inside `jit` and `vmap` over keys.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem import _validate
from jaxem._mixture import Mixture, Theta
from jaxem.families.gaussian import squared_distances


def random_points(m: Mixture, key: Array, x: ArrayLike, num_components: int) -> Theta:
    """K rows of x, distinct in value, drawn one after another, each row not yet taken equally likely.

    Rows that repeat a chosen value are excluded: coincident centres are a tie that EM splits and Lloyd
    does not. With fewer than K distinct rows a concrete x raises; a traced x repeats the first row.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[0.0], [0.0], [0.0], [5.0]])
    >>> theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(0), x, 2)
    >>> sorted(theta["mu"].ravel().tolist())
    [0.0, 5.0]
    """
    return _from_centres(m, key, x, num_components, uniform_over_the_rest)


def kmeans_plus_plus(m: Mixture, key: Array, x: ArrayLike, num_components: int) -> Theta:
    """k-means++ (Arthur & Vassilvitskii 2007): each next centre is a row drawn with probability ∝ min_k d_nk.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[0.0], [0.1], [9.0], [9.1]])
    >>> theta = jaxem.inits.kmeans_plus_plus(gaussian.isotropic, jax.random.key(0), x, 2)
    >>> bool(abs(theta["mu"][0, 0] - theta["mu"][1, 0]) > 8)
    True
    """
    return _from_centres(m, key, x, num_components, proportional_to_distance)


def from_labels(m: Mixture, x: ArrayLike, labels: ArrayLike, num_components: int | None = None) -> Theta:
    """One M-step from hard labels (N,) in 0 … K−1: the complete-data maximum likelihood.

    `num_components` defaults to max(labels) + 1 and must be given where labels are traced. A component
    without rows stays at the overall mean. Held parameters keep the start's value (π = 1/K, pooled scales).

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = jaxem.inits.from_labels(gaussian.isotropic, jnp.array([[0.0], [2.0], [9.0]]), jnp.array([0, 0, 1]))
    >>> theta["mu"].ravel().tolist(), theta["pi"].round(2).tolist()
    ([1.0, 9.0], [0.6700000166893005, 0.33000001311302185])
    """
    x = _as_float(_validate.prepare_x(x))
    if num_components is None:
        if not _validate.is_concrete(labels):
            raise ValueError("num_components: must be given where labels are traced")
        num_components = int(np.max(labels)) + 1
    _validate.static_count("num_components", num_components, 1)
    labels = _validate.prepare_labels(labels, x, int(num_components), least=0)
    theta = _from_labels(m, x, labels, int(num_components))
    for value in theta.values():
        _validate.blame_x(x, value)
    return theta


def uniform_over_the_rest(distances: Array) -> Array:
    """Log-weights: any row that is not one of the centres."""
    return jnp.where(distances > 0, 0, -jnp.inf)


def proportional_to_distance(distances: Array) -> Array:
    """Log-weights: log d, so that a row equal to a centre is never drawn."""
    return jnp.log(distances)


def _from_centres(m: Mixture, key: Array, x: ArrayLike, num_components: int, log_weights: Callable) -> Theta:
    x = _as_float(_validate.prepare_x(x))
    _validate.static_count("num_components", num_components, 1)
    if num_components > x.shape[0]:
        raise ValueError(f"num_components: {num_components} exceeds the {x.shape[0]} rows of x; ask for fewer")
    centres, distinct = _draw_centres(key, x, int(num_components), log_weights)
    _validate.blame_x(x, jnp.sum(x))
    if _validate.is_concrete(distinct) and not distinct:
        raise ValueError(f"num_components: x has fewer than {num_components} distinct rows; ask for fewer")
    return m.guess(centres, x)


@partial(jax.jit, static_argnames=("num_components", "log_weights"))
def _draw_centres(key: Array, x: Array, num_components: int, log_weights: Callable) -> tuple[Array, Array]:
    """K rows of x, each drawn by `log_weights` of the distances to those before; were they distinct?"""
    first, *rest = jax.random.split(key, num_components)
    start = x[jax.random.randint(first, (), 0, x.shape[0])]
    if not rest:
        return start[None], jnp.array(True)

    def draw(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        nearest, newest = carry
        nearest = jnp.minimum(nearest, squared_distances(x, newest[None])[0])
        index = jax.random.categorical(key, log_weights(nearest))
        return (nearest, x[index]), (x[index], nearest[index] > 0)

    far = jnp.full(x.shape[0], jnp.inf, x.dtype)
    _, (others, distinct) = lax.scan(draw, (far, start), jnp.stack(rest))
    return jnp.concatenate([start[None], others]), jnp.all(distinct)


@partial(jax.jit, static_argnames="num_components")
def _from_labels(m: Mixture, x: Array, labels: Array, num_components: int) -> Theta:
    mean = jnp.mean(x, axis=0)
    theta = m.guess(jnp.broadcast_to(mean, (num_components, x.shape[1])), x)
    gamma = jax.nn.one_hot(labels, num_components, axis=0, dtype=x.dtype)

    def m_step(theta: Theta) -> Theta:
        return m.update(m.statistics(theta, x, gamma), theta, m.held)

    return m_step(m_step(theta))  # the second about the labels' own means: no cancellation


def _as_float(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(float)
