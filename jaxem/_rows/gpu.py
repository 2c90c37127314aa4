"""On an NVIDIA GPU: the E-step of a table that is quadratic in x with diagonal P_k, as one kernel.

The rows are read once, and nothing of their length is written: a program of the kernel takes tile after tile of its
share, makes their ℓ and γ in registers, and adds up what the M-step needs. XLA's kernels pass a chunk's table through
memory five times. Written in Pallas for its Triton backend; derivatives are those of `by_chunks`, the same sums in jnp.

    ℓ_nk = a_k·x_n² + b_k·x_n + h_k,  x about c;    sums: Σγ, Σγx, Σγx², Σ‖x‖², F and Σ|F_n|
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.objective import assign, assign_one_hot, weighted
from jaxem._rows.chunks import sum_over_rows

# as measured on an H200, where D = 32, K = 64 and D = 2, K = 16 are fastest so: experiments/GPU.md
TABLE = 2**10  # entries of the table that a warp makes at a time, in registers
MOST = 2**12  # sums that a program may hold there, …
SUMS = 2**9  # … and a warp, while there are fewer than WARPS
TILES = 64  # of rows that it takes at most: so many sums are added one by one
PROGRAMS = 264  # at least, where there are rows, if they have all warps: two for each multiprocessor
WARPS, STAGES = 4, 2
LEAST, LONGEST = 16, 128  # rows and columns of what Triton multiplies
PRECISION = lax.DotAlgorithmPreset.TF32_TF32_F32_X3  # three products of 11 bits each: as exact as float32, and faster
INTERPRET = False  # the kernel run as jnp, on any device: for tests
EXACT = lax.Precision.HIGHEST


class Quadratic(NamedTuple):
    """ℓ less what is common to all components."""

    c: Float[Array, " D"]
    squares: Float[Array, "K D"] | None  # a; None: 0
    slope: Float[Array, "K D"]  # b
    intercept: Float[Array, " K"]  # h
    common: Float[Array, "2"]  # of F_n, α + β‖x_n‖²

    @property
    def etas(self) -> tuple[Float[Array, "K D"], ...]:
        """Of x and, where a ≠ 0, of x²."""
        return (self.slope,) if self.squares is None else (self.slope, self.squares)


class KernelSums(NamedTuple):
    """Over rows that weigh w: γ stands for wγ."""

    N_k: Float[Array, " K"]
    x: Float[Array, "K D"]
    squares: Float[Array, "K D"] | None
    norms: Float[Array, ""]  # Σ w‖x‖²
    free_energy: Float[Array, ""]
    scale: Float[Array, ""]  # Σ |w F_n|


def where_it_runs(fused: Callable[[bool], Any], otherwise: Callable[[], Any]) -> Any:
    """fused(False) on an NVIDIA GPU."""
    if INTERPRET:
        return fused(True)
    if jax.default_backend() != "gpu" or not has_triton():
        return otherwise()
    return lax.platform_dependent(cuda=partial(fused, False), default=otherwise)  # a GPU may not be what this is for


def has_triton() -> bool:
    """Has JAX still what the kernel is written for? In 0.11 it is deprecated."""
    try:
        from jax.experimental.pallas import triton
    except ImportError:
        return False
    return hasattr(triton, "CompilerParams")


def padded(size: int) -> int:
    """The power of two that Triton wants."""
    return max(LEAST, 1 << (size - 1).bit_length())


def fits(ell: Quadratic) -> bool:
    """Can the kernel do it?"""
    K, D = ell.slope.shape
    return ell.slope.dtype == jnp.float32 and len(ell.etas) * padded(K) * padded(D) <= MOST


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def sums(
    ell: Quadratic, x: Float[Array, "N D"], weights: Array | None, temperature: Array, hard: bool, interpret: bool
) -> KernelSums:
    """The E-step at ℓ, T > 0 or T = 0, or T known to be 0 (`hard`)."""
    from jax.experimental import pallas as pl  # here: it takes a while to import, and CPUs have no use for it
    from jax.experimental.pallas import triton

    num_rows, D = x.shape
    K, parts = len(ell.intercept), len(ell.etas)
    F, C = padded(D), padded(K)
    warps = min(max(F * C // SUMS, 1), WARPS)
    tile = min(max(TABLE * warps // max(F, C), LEAST), LONGEST)
    share = min(TILES, -(-num_rows // (tile * PROGRAMS * (WARPS // warps) ** 2))) * tile
    programs = -(-num_rows // share)

    def columns(eta: Float[Array, "K D"]) -> Float[Array, "F C"]:
        return jnp.pad(eta.T, ((0, F - D), (0, C - K)))

    scalars = jnp.concatenate([ell.common, jnp.reshape(temperature, 1), jnp.zeros(1, x.dtype)])  # four: a power of two
    whole = (
        scalars,
        jnp.pad(ell.c, (0, F - D)),
        jnp.pad(ell.intercept, (0, C - K), constant_values=-jnp.inf),
        *map(columns, ell.etas),
    )
    along = (x,) if weights is None else (x, weights)

    def every(*shape: int) -> Any:
        return pl.BlockSpec(shape, lambda i: (0,) * len(shape))

    def own(*shape: int) -> Any:
        return pl.BlockSpec((None, *shape), lambda i: (i,) + (0,) * len(shape))

    shapes = [(C,), (4,), *[(C, F)] * parts]
    body = partial(
        kernel, num_rows=num_rows, width=D, share=share, tile=tile, parts=parts, hard=hard, interpret=interpret
    )
    N_k, totals, *moments = pl.pallas_call(
        body,
        grid=(programs,),
        in_specs=[
            *(every(*leaf.shape) for leaf in whole),
            *(pl.BlockSpec((share, *leaf.shape[1:]), lambda i, n=leaf.ndim: (i,) + (0,) * (n - 1)) for leaf in along),
        ],
        out_specs=[own(*shape) for shape in shapes],
        out_shape=[jax.ShapeDtypeStruct((programs, *shape), x.dtype) for shape in shapes],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=STAGES),
        interpret=interpret,
    )(*whole, *along)
    first, *second = (jnp.sum(part, axis=0)[:K, :D] for part in moments)
    totals = jnp.sum(totals, axis=0)
    known = jnp.isfinite(jnp.sum(ell.slope)) & ~jnp.isnan(jnp.sum(ell.intercept))  # a maximum here passes over NaN
    value = jnp.where(known, totals[0], jnp.nan)
    return KernelSums(jnp.sum(N_k, axis=0)[:K], first, second[0] if second else None, totals[2], value, totals[1])


def kernel(
    scalars: Any, c: Any, intercept: Any, *refs: Any, num_rows: int, width: int, share: int, tile: int, parts: int,
    hard: bool, interpret: bool,
) -> None:  # fmt: skip
    """One program: its share of the rows, tile after tile; references to inputs and outputs."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    etas, along, (N_k, totals), moments = refs[:parts], refs[parts : -2 - parts], refs[-2 - parts :][:2], refs[-parts:]
    F, C = etas[0].shape
    etas, c, intercept = tuple(eta[...] for eta in etas), c[...][None], intercept[...][None]
    precision = lax.DotAlgorithmPreset.F32_F32_F32 if interpret else PRECISION
    dot = partial(lax.dot_general, precision=precision, preferred_element_type=jnp.float32)
    alpha, beta, temperature = scalars[0], scalars[1], scalars[2]
    features = lax.broadcasted_iota(jnp.int32, (tile, F), 1) < width
    component = lax.broadcasted_iota(jnp.int32, (tile, C), 1)
    first = pl.program_id(0) * share

    def add_tile(j: Array, so_far: Any) -> Any:
        start = j * tile
        here = first + start + jnp.arange(tile) < num_rows
        rows = pl.ds(start, tile)
        x = triton.load(along[0].at[rows, pl.ds(0, F)], mask=features & here[:, None], other=0.0) - c
        w = here.astype(x.dtype) if len(along) == 1 else triton.load(along[1].at[rows], mask=here, other=0.0)
        phi = (x, x * x)[:parts]
        table = intercept
        for phi_i, eta_i in zip(phi, etas, strict=True):
            table = table + dot(phi_i, eta_i, (((1,), (0,)), ((), ())))
        gamma, value = assigned(table, component, temperature, hard)
        norms = jnp.sum(x * x, axis=1)
        value = jnp.where(w == 0, 0, w * (value + alpha + beta * norms))
        gamma = gamma * w[:, None]
        terms = (
            jnp.sum(gamma, axis=0),
            *(jnp.sum(term) for term in (value, jnp.abs(value), w * norms)),
            *(dot(gamma, phi_i, (((0,), (0,)), ((), ()))) for phi_i in phi),
        )
        return jax.tree.map(jnp.add, so_far, terms)

    zero = jnp.zeros((), jnp.float32)
    nothing = (jnp.zeros(C, jnp.float32), zero, zero, zero, *[jnp.zeros((C, F), jnp.float32)] * parts)
    N, value, scale, norms, *sums_of_phi = lax.fori_loop(0, share // tile, add_tile, nothing)
    N_k[...] = N
    totals[0], totals[1], totals[2], totals[3] = value, scale, norms, zero
    for ref, sum_of_phi in zip(moments, sums_of_phi, strict=True):
        ref[...] = sum_of_phi


def assigned(
    table: Float[Array, "n K"], component: Array, temperature: Array, hard: bool
) -> tuple[Float[Array, "n K"], Float[Array, " n"]]:
    """γ (eq:E) and the rows' terms (eq:bound), by what Triton has; T = 0 is data."""
    peak = jnp.max(table, axis=1)
    winner = jnp.min(jnp.where(table == peak[:, None], component, table.shape[1]), axis=1)
    one_hot = (component == winner[:, None]).astype(table.dtype)
    if hard:
        return one_hot, peak
    t = jnp.where(temperature == 0, 1, temperature)
    relative = jnp.exp((table - peak[:, None]) / t)
    total = jnp.sum(relative, axis=1)
    soft = relative / total[:, None]
    is_hard = temperature == 0
    return jnp.where(is_hard, one_hot, soft), jnp.where(is_hard, peak, peak + t * jnp.log(total))


@sums.defjvp
def _derivative(hard: bool, interpret: bool, primals: Any, tangents: Any) -> tuple[KernelSums, KernelSums]:
    return jax.jvp(partial(by_chunks, hard=hard), primals, tangents)


def by_chunks(
    ell: Quadratic, x: Float[Array, "N D"], weights: Array | None, temperature: Array, hard: bool
) -> KernelSums:
    """The same sums, in jnp."""

    def chunk(x: Array, weights: Array) -> KernelSums:
        x = x - ell.c[None]
        product = partial(jnp.matmul, precision=EXACT)
        table = product(ell.slope, x.T) + ell.intercept[:, None]
        if ell.squares is not None:
            table = table + product(ell.squares, (x**2).T)
        gamma, value = assign_one_hot(table, axis=0) if hard else assign(table, temperature, axis=0)
        gamma, norms = gamma * weights[None], jnp.sum(x**2, axis=1)
        value = weighted(value + ell.common[0] + ell.common[1] * norms, weights)
        squares = None if ell.squares is None else product(gamma, x**2)
        totals = (jnp.sum(weights * norms), jnp.sum(value), jnp.sum(jnp.abs(value)))
        return KernelSums(jnp.sum(gamma, axis=1), product(gamma, x), squares, *totals)

    return sum_over_rows(chunk, x, weights, num_components=len(ell.intercept), dtype=x.dtype)
