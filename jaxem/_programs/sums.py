"""Sums over events: the transpose of broadcasting, of products that need not be formed."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array


class Outer(NamedTuple):
    """u vᵀ of two vectors for each event, not formed: summed over events it is a matrix product."""

    u: Array
    v: Array


class Product(NamedTuple):
    """u v of each event, not formed: summed over events it is a matrix product."""

    u: Array
    v: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.u.shape, self.v.shape)


class Repeated(NamedTuple):
    """u of each event, once for each of `shape`: summed, it is a multiple of the sum of u."""

    u: Array
    shape: tuple[int, ...]


def times(gamma: Any, value: Any) -> Product:
    return Product(jnp.asarray(gamma), jnp.asarray(value, jnp.result_type(gamma)))


def each(gamma: Any, like: Any) -> Repeated:
    return Repeated(jnp.asarray(gamma), jnp.broadcast_shapes(jnp.shape(gamma), jnp.shape(like)))


def unbroadcast(array: Any, shape: tuple[int, ...]) -> Array:
    """Sum an array to a shape that broadcasts to it: the transpose of broadcasting."""
    if isinstance(array, Outer):
        return outer_sum(array, shape)
    if isinstance(array, Product):
        return product_sum(array, shape)
    if isinstance(array, Repeated):
        return repeated_sum(array, shape)
    if array.ndim < len(shape):
        array = jnp.reshape(array, (1,) * (len(shape) - array.ndim) + array.shape)
    extra = array.ndim - len(shape)
    summed = [extra + axis for axis, size in enumerate(shape) if size == 1 and array.shape[extra + axis] != 1]
    return jnp.broadcast_to(jnp.reshape(jnp.sum(array, axis=(*range(extra), *summed)), fitted(array, shape)), shape)


def repeated_sum(array: Repeated, shape: tuple[int, ...]) -> Array:
    """Σ u, as often as it is repeated along what is summed."""
    rank = max(len(array.shape), len(shape))
    u = jnp.reshape(array.u, (1,) * (rank - array.u.ndim) + array.u.shape)
    full, kept = ((1,) * (rank - len(some)) + tuple(some) for some in (array.shape, shape))
    gone = [axis for axis in range(rank) if kept[axis] == 1 and full[axis] != 1]
    repeats = math.prod(full[axis] for axis in gone if u.shape[axis] == 1)
    total = jnp.sum(u, axis=tuple(axis for axis in gone if u.shape[axis] != 1), keepdims=True)
    total = jnp.reshape(total, total.shape[rank - len(shape) :])
    return jnp.broadcast_to(total * repeats if repeats != 1 else total, shape)


def product_sum(pair: Product, shape: tuple[int, ...]) -> Array:
    """Σ u v over the axes that the shape does not have: what both have is contracted, the rest summed after that."""
    rank = max(len(pair.shape), len(shape))
    sides = [jnp.reshape(side, (1,) * (rank - side.ndim) + side.shape) for side in pair]
    kept = (1,) * (rank - len(shape)) + tuple(shape)
    axes = [[axis for axis in range(rank) if side.shape[axis] != 1] for side in sides]
    gone = {axis for axis in range(rank) if kept[axis] == 1}
    later = [axis for axis in gone if (axis in axes[0]) != (axis in axes[1])]
    out = [axis for axis in range(rank) if axis in (*axes[0], *axes[1]) and (axis not in gone or axis in later)]
    squeezed = [jnp.reshape(side, [side.shape[axis] for axis in own]) for side, own in zip(sides, axes, strict=True)]
    total = jnp.einsum(squeezed[0], axes[0], squeezed[1], axes[1], out, precision=jax.lax.Precision.HIGHEST)
    total = jnp.sum(total, axis=tuple(place for place, axis in enumerate(out) if axis in later))
    left = [axis for axis in out if axis not in later]
    sizes = [max(side.shape[axis] for side in sides) if axis in left else 1 for axis in range(rank)]
    return jnp.broadcast_to(jnp.reshape(total, sizes[rank - len(shape) :]), shape)


def fitted(array: Array, shape: tuple[int, ...]) -> list[int]:
    """The shape after summing: the array's own size 1 where it only repeats along the target's axis."""
    extra = array.ndim - len(shape)
    return [min(size, array.shape[extra + axis]) for axis, size in enumerate(shape)]


def outer_sum(pair: Outer, shape: tuple[int, ...]) -> Array:
    """Σ u vᵀ over the axes that the shape (…, D, D) does not have, as matrix products."""
    batch = pair.u.ndim - 1
    extra = batch - (len(shape) - 2)
    rows = [axis for axis in range(batch) if axis < extra or shape[axis - extra] == 1]
    kept = [axis for axis in range(batch) if axis not in rows]
    out = jnp.einsum(pair.u, [*range(batch), batch], pair.v, [*range(batch), batch + 1], [*kept, batch, batch + 1])
    return jnp.broadcast_to(jnp.reshape(out, shape), shape)
