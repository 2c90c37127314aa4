"""Rows drawn to be centres, one after another, by how far they lie from those before."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxem._core.tracing import compiled
from jaxem.families.gaussian._moments import over_features, unit_of


def uniform_over_the_rest(distances: Array) -> Array:
    """Log-weights: any row that is not one of the centres."""
    return jnp.where(distances > 0, 0, -jnp.inf)


def proportional_to_distance(distances: Array) -> Array:
    """Log-weights: log d, so that a row equal to a centre is never drawn."""
    return jnp.log(distances)


LOG_WEIGHTS: dict[Any, Callable] = {"k-means++": proportional_to_distance, "random": uniform_over_the_rest}


def mismatches(x: Array, centre: Array) -> Array:
    """Σ_d [x_nd ≠ c_d], (N,)."""
    return jnp.sum(x != centre[None], axis=1).astype(x.dtype)


@partial(compiled, static_argnames=("num_components", "log_weights", "categorical"))
def draw_centres(
    key: Array, x: Array, w: Array | None, num_components: int, log_weights: Callable, categorical: bool
) -> tuple[Array, Array]:
    """K rows of x, each drawn by `log_weights` of the distances to those before, times w; were they distinct?"""
    keys = jax.random.split(key, num_components)
    log_w = 0 if w is None else jnp.log(w)
    any_row = jax.random.randint(keys[0], (), 0, x.shape[0]) if w is None else jax.random.categorical(keys[0], log_w)
    start = x[any_row]
    if num_components == 1:
        return start[None], jnp.array(True)

    per_unit = 1 if categorical else 1 / unit_of(jnp.max(jnp.abs(x - start[None])))

    def draw(carry: tuple[Array, Array], key: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        nearest, newest = carry
        if categorical:
            distances = mismatches(x, newest)
        else:
            distances = over_features(lambda x, c: ((x - c) * per_unit) ** 2, x, newest[None])[0]
        nearest = jnp.minimum(nearest, distances)
        index = jax.random.categorical(key, log_weights(nearest) + log_w)
        return (nearest, x[index]), (x[index], nearest[index] > 0)

    far = jnp.full(x.shape[0], jnp.inf, x.dtype)
    _, (others, distinct) = lax.scan(draw, (far, start), keys[1:])
    return jnp.concatenate([start[None], others]), jnp.all(distinct)
