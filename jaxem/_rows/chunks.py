"""The E-step is a map-reduce: additive statistics of the rows, summed over chunks and over devices.

The (N, K) table never has to exist: a chunk of rows is mapped to sums. Sums of a group of chunks are added with
compensation (Kahan 1965), because in float32 at N = 10⁶ plain summation alone moves F by several ulps. Where
the rows lie on several devices each adds its own, and one `psum` a pass adds those.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec
from jaxtyping import Array

from jaxem._core.model import Shards

# entries of a chunk's (K, rows) table: it stays in a core's cache. A product of more entries is split into tasks by
# XLA's library for small products (YNNPACK, in jaxlib 0.10), which keeps those until the program returns
TABLE_ENTRIES = 32_768
ROW_ENTRIES = 131_072  # numbers made for the rows of a chunk beside the table, likewise
FEWEST = 64  # rows of a chunk, whatever K, which has a multiple of so many: a product of others takes up to 17 % longer
BESIDE = 16  # rows that take as long as what a chunk takes whatever its size
ACCELERATOR = 128  # times as much where the backend is no CPU, to fill it, and …
LONGEST = 65_536  # … no more rows; and of what is not a product with features, …
DIFFERENCES = 8_192  # … since sums over 65,536 that are made on the way took XLA's autotuner minutes to compile
DRAWS = 2**22  # entries of draws that are made side by side
SAMPLE = 4_096  # rows of a device, whose mean is near enough to that of all
GROUP = 16  # chunks added plainly, at most; only the sums of groups are compensated


def chunk_rows(num_rows: int, num_components: int, width: int = 0) -> int:
    """Rows in a chunk: all, or of what the limits allow the number that costs least, with what its last group lacks."""
    larger, longest = 1, num_rows
    if jax.default_backend() != "cpu":
        larger, longest = ACCELERATOR, LONGEST if width else DIFFERENCES
    most = min(larger * TABLE_ENTRIES // num_components, longest)
    if width:
        most = min(most, larger * ROW_ENTRIES // width)
    most = max(most, FEWEST)
    if num_rows <= most:
        return num_rows

    def cost(rows: int) -> int:
        num_chunks = -(-num_rows // rows)
        return (num_chunks + -num_chunks % grouped(num_chunks)) * (rows + BESIDE)

    return min(range(most - most % FEWEST, most // 2, -FEWEST), key=cost)


def grouped(num_chunks: int) -> int:
    """Chunks in a group: as many, from half of GROUP on, as leave the last one with the fewest missing."""
    most = min(GROUP, num_chunks)
    return min(range(most, most // 2, -1), key=lambda group: -num_chunks % group)


def fits_one_chunk(num_rows: int, num_components: int, width: int = 0) -> bool:
    """Is there a single chunk?"""
    return chunk_rows(num_rows, num_components, width) == num_rows


def side_by_side(draw: Callable[[Any], Any], over: Any, *, times: int = 1) -> Any:
    """`draw` of each entry of `over` along its leading axis, so many at a time that DRAWS bounds what is in memory.

    `times`: how many entries there are on the way for each that is returned.
    """
    leaves = jax.tree.leaves(jax.eval_shape(draw, jax.tree.map(lambda leaf: leaf[0], over)))
    entries = times * sum(math.prod(leaf.shape) for leaf in leaves)
    count = jax.tree.leaves(over)[0].shape[0]
    return lax.map(draw, over, batch_size=max(1, min(count, DRAWS // max(entries, 1))))


def plus(so_far: Any, term: Any) -> Any:
    """Sums with those of another chunk."""
    return term if so_far is None else jax.tree.map(jnp.add, so_far, term)


def compensated(total: Any, error: Any, term: Any) -> tuple[Any, Any]:
    """total + term, and the rounding error of that, which the next addition takes into account (Kahan 1965)."""
    term = jax.tree.map(jnp.subtract, term, error)
    new = jax.tree.map(jnp.add, total, term)
    error = jax.tree.map(lambda new, old, term: (new - old) - term, new, total, term)
    return new, jax.tree.map(lambda e: jnp.where(jnp.isfinite(e), e, 0), error)  # ∞ − ∞: keep the ∞


def sum_over_rows(
    f: Callable[..., Any],
    rows: Any,
    weights: Array | None,
    *,
    num_components: int,
    dtype: jnp.dtype,
    width: int = 0,
    folds: bool = False,
    whole: bool = False,
    shards: Shards | None = None,
    then: Callable[[Any], Any] = lambda total: total,
) -> Any:
    """Σ over chunks of f(rows[chunk], weights[chunk]), where f returns any pytree of sums over rows.

    If it `folds`, f(so far, rows[chunk], weights[chunk]) adds those to the sums so far itself, None at first.
    A device's rows are one chunk if they are taken `whole`. `then` is linear, and done on each device to its own sum.
    `rows` is any pytree of arrays with the data's leading axis; what else f needs it closes over. The body is
    rematerialised under reverse-mode differentiation.
    """
    chunked = partial(
        _sum_over_chunks, f, num_components=num_components, dtype=dtype, width=width, folds=folds, whole=whole
    )
    if shards is None:
        return then(chunked(rows, weights, None))
    axes, each = shards.layout.axes, shards.layout.rows

    def on_this_device(rows: Any, weights: Array | None, skip: Array) -> Any:
        return sum_over_devices(then(chunked(rows, weights, skip)), axes)

    spread = jax.shard_map(
        on_this_device,
        mesh=shards.layout.mesh,
        in_specs=(each, each, each),
        out_specs=PartitionSpec(),
        check_vma=not whole,  # what takes them whole is a kernel, which does not tell how its outputs vary
    )
    return spread(rows, weights, shards.skip)


def seen_here(tree: Any) -> Any:
    """The same values, for f to use: in `shard_map` JAX 0.10 neither gathers from nor maps what a mesh held before."""
    return jax.tree.map(lambda leaf: 1 * leaf, tree)


def sum_over_devices(sums: Any, axes: tuple[str, ...]) -> Any:
    """Σ over devices, as one array: each would be a message of its own, for which all wait (60 µs on two cores)."""
    flat, unravel = ravel_pytree(sums)
    return unravel(lax.psum(flat, axes))


def norms_of_rows(x: Array, weights: Array | None, *, shards: Shards | None = None) -> tuple[Array, Array]:
    """c (1, D), about the mean of the rows, and ‖x_n − c‖² (N,) of every row."""
    if shards is None:
        return _norms_here(x, weights, lambda sums: sums)
    axes, each = shards.layout.axes, shards.layout.rows
    on_this_device = partial(_norms_here, over_devices=partial(sum_over_devices, axes=axes))
    spread = jax.shard_map(
        on_this_device, mesh=shards.layout.mesh, in_specs=(each, each), out_specs=(PartitionSpec(), each)
    )
    return spread(x, weights)


def _norms_here(x: Array, weights: Array | None, over_devices: Callable[[Any], Any]) -> tuple[Array, Array]:
    """The same of one device's rows; JAX moves a slice that is past the last row back to end there."""
    num_rows, width = x.shape
    every = -(-num_rows // SAMPLE) if weights is None else 1  # those sampled might weigh nothing
    w = jnp.ones_like(x[::every, 0]) if weights is None else weights[::every]
    size, total = over_devices((jnp.sum(w), w @ x[::every]))
    c = lax.stop_gradient(total / jnp.where(size > 0, size, 1))[None]
    rows = chunk_rows(num_rows, 1, 4 * width)

    def put(index: Array, squares: Array) -> Array:
        start = index * rows
        new = squared_norms(lax.dynamic_slice_in_dim(x, start, rows) - c)
        return lax.dynamic_update_slice_in_dim(squares, new, start, 0)

    return c, lax.fori_loop(0, -(-num_rows // rows), put, jnp.zeros_like(x, shape=num_rows))


def squared_norms(x: Array) -> Array:
    """‖x_n‖², by a product: faster than a sum along the row."""
    return jnp.matmul(x**2, jnp.ones(x.shape[1], x.dtype), precision=lax.Precision.HIGHEST)


def _sum_over_chunks(
    f: Callable[..., Any],
    rows: Any,
    weights: Array | None,
    skip: Array | None,
    *,
    num_components: int,
    dtype: jnp.dtype,
    width: int,
    folds: bool,
    whole: bool,
) -> Any:
    """The sums of one device's rows, but its first `skip`.

    A chunk past the last row is moved back to end there, and overlaps its neighbour; rows that are not its own
    get weight zero. So one body is compiled, nothing is padded, and the data are never copied.
    """
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size = num_rows if whole else chunk_rows(num_rows, num_components, width)
    num_chunks = -(-num_rows // size)
    group = grouped(num_chunks)
    first_own = jnp.zeros((), jnp.int32) if skip is None else skip[0]

    @jax.checkpoint
    def chunk(so_far: Any, index: Array) -> Any:
        first = index * size
        start = jnp.minimum(first, num_rows - size)

        def part(leaf: Array) -> Array:
            return lax.dynamic_slice_in_dim(leaf, start, size)

        every_row = num_chunks == 1 and skip is None  # a constant, which XLA multiplies by nothing
        own = jnp.ones(size, bool) if every_row else start + jnp.arange(size) >= jnp.maximum(first, first_own)
        own = own.astype(dtype)
        of_chunk = jax.tree.map(part, rows), own if weights is None else own * part(weights)
        return f(so_far, *of_chunk) if folds else f(*of_chunk)

    first_chunk = partial(chunk, None)
    if num_chunks == 1:
        return first_chunk(jnp.zeros((), jnp.int32))

    def add_chunk(total: Any, index: Array) -> tuple[Any, None]:
        return (chunk(total, index) if folds else plus(total, first_chunk(index))), None

    def add_group(carry: tuple[Any, Any], first: Array) -> tuple[tuple[Any, Any], None]:
        term, _ = lax.scan(add_chunk, zeros, first + jnp.arange(group))
        return compensated(*carry, term), None

    nothing = first_own * 0  # a zero that differs between devices, as far as `shard_map` can know
    shapes = jax.eval_shape(first_chunk, jnp.zeros((), jnp.int32))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype) + nothing.astype(s.dtype), shapes)
    (total, _), _ = lax.scan(add_group, (zeros, zeros), jnp.arange(0, num_chunks, group))
    return total
