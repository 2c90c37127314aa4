"""The E-step is a map-reduce: additive statistics of the rows, summed over chunks.

The (N, K) table never has to exist: a chunk of rows is mapped to sums, and the sums are added with
compensation (Kahan 1965), because in float32 at N = 10⁶ plain summation alone moves F by several ulps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

TABLE_ENTRIES = 65_536  # entries of a chunk's (K, rows) table: it stays in a core's cache


def chunk_rows(num_rows: int, num_components: int) -> int:
    """Rows in a chunk: about TABLE_ENTRIES / K, spread evenly over the chunks."""
    most = max(256, TABLE_ENTRIES // num_components)
    num_chunks = -(-num_rows // most)
    return -(-num_rows // num_chunks)


def fits_one_chunk(num_rows: int, num_components: int) -> bool:
    """Is there a single chunk?"""
    return chunk_rows(num_rows, num_components) == num_rows


def sum_over_rows(
    f: Callable[[Any, Array], Any],
    rows: Any,
    weights: Array | None,
    *,
    num_components: int,
    dtype: jnp.dtype,
) -> Any:
    """Σ over chunks of f(rows[chunk], weights[chunk]), where f returns any pytree of sums over rows.

    `rows` is any pytree of arrays with the data's leading axis.
    The last chunk ends at the last row and overlaps its neighbour; overlapped rows get weight zero. So
    one body is compiled, nothing is padded, and the data are never copied. The body is rematerialised under
    reverse-mode differentiation.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size = chunk_rows(num_rows, num_components)
    if size == num_rows:
        return f(rows, jnp.ones(num_rows, dtype) if weights is None else weights)

    @jax.checkpoint
    def chunk(index: Array) -> Any:
        first = index * size
        start = jnp.minimum(first, num_rows - size)

        def part(leaf: Array) -> Array:
            return lax.dynamic_slice_in_dim(leaf, start, size)

        fresh = (start + jnp.arange(size) >= first).astype(dtype)
        return f(jax.tree.map(part, rows), fresh if weights is None else fresh * part(weights))

    def add(carry: tuple[Any, Any], index: Array) -> tuple[tuple[Any, Any], None]:
        total, error = carry
        term = jax.tree.map(jnp.subtract, chunk(index), error)
        new = jax.tree.map(jnp.add, total, term)
        error = jax.tree.map(lambda new, old, term: (new - old) - term, new, total, term)
        error = jax.tree.map(lambda e: jnp.where(jnp.isfinite(e), e, 0), error)  # ∞ − ∞: keep the ∞
        return (new, error), None

    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(chunk, jnp.array(0)))
    (total, _), _ = lax.scan(add, (zeros, zeros), jnp.arange(-(-num_rows // size)))
    return total
