"""The least time that an iteration could take on this machine: its arithmetic, or reading its rows once.

    roof = max( products / (GFLOP/s) + exponentials / (Gexp/s),  bytes / (GB/s) )

with the three speeds measured here, on all of JAX's devices together, as the best of a few repeats. Counted are the
matrix products of the table (K × rows) and of the statistics, the K exponentials of a row (none in k-means), and one
read of the rows; not counted are maxima, sums, and moving a chunk in and out of the cache. Beside the roof: what the
same products take alone at their own sizes, chunk by chunk, since the first speed is that of a long inner dimension.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from _problems import Case
from _timing import measure


class Machine(NamedTuple):
    """Float32, all devices together; units of 10⁹ a second."""

    gflops: float
    gexps: float
    gbytes: float


class Work(NamedTuple):
    """Of one iteration."""

    flops: float
    exps: float
    bytes: float


def work(family: str, case: Case) -> Work:
    """The work of the fewest features φ that the family has: see `jaxem/families/gaussian`."""
    n, d, k, _ = case
    if family == "kmeans":
        return Work(n * (2 * k * d + d), 0, 4 * n * d)  # the table; adding a row to its centre
    features = num_features(family, d)
    common = 4 * n * d * d if family == "tied" else 0  # xᵀPx and Σ x xᵀ, without a component
    return Work(4 * n * k * features + common, n * k, 4 * n * d)


def num_features(family: str, d: int) -> int:
    """Of a row, of which products are taken."""
    return {"full": d * (d + 1) // 2 + d, "diagonal": 2 * d}.get(family, d)


def on_each(f: Callable[[Any], Any], shape: tuple[int, ...], repeats: int = 15) -> float:
    """Seconds of f of an array of that shape on every device at once."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    devices, part = jax.device_count(), PartitionSpec("all")
    mesh = jax.make_mesh((devices,), ("all",), axis_types=(AxisType.Auto,))
    rows = np.random.default_rng(0).random((devices, *shape), np.float32)
    x = jax.device_put(rows, NamedSharding(mesh, part))
    spread = jax.jit(jax.shard_map(lambda x: f(x[0])[None], mesh=mesh, in_specs=part, out_specs=part))
    return min(measure(spread, x, repeats=repeats).seconds)


def machine(quick: bool = False) -> Machine:
    """Measured with the devices that this process has: matrix products of 1,024², exponentials in a core's cache, and
    sums of columns of arrays that no cache holds."""
    import jax
    import jax.numpy as jnp

    side, passes, rows = (64, 2, 2**10) if quick else (1_024, 400, 2**21)
    products = on_each(lambda a: a @ a, (side, side))
    exps = on_each(lambda a: jax.lax.fori_loop(0, passes, lambda _, a: jnp.exp(a - 1), a), (64, 256))
    reads = on_each(lambda x: jnp.sum(x, axis=0), (rows, 32))
    done = (2 * side**3 / products, passes * 64 * 256 / exps, 4 * rows * 32 / reads)  # a second, by each device
    return Machine(*(1e-9 * jax.device_count() * speed for speed in done))


def products_alone(family: str, case: Case) -> float:
    """Seconds of an iteration's products with φ (rows, F) at hand: K × F by F × rows, and back but in k-means."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from jaxem._rows.chunks import chunk_rows

    in_memory = lax.optimization_barrier  # all of it: XLA would make only the entry that is used
    features, k = num_features(family, case.num_features), case.num_components
    rows = chunk_rows(-(-case.num_rows // jax.device_count()), k, features)
    chunks = max(1, case.num_rows // (jax.device_count() * rows))

    def loop(phi: Any) -> Any:
        eta = phi[:k]

        def chunk(total: Any, index: Any) -> tuple[Any, None]:
            phi_n = lax.dynamic_slice_in_dim(phi, index * rows, rows)
            made = in_memory(jnp.matmul(eta, phi_n.T, precision="highest"))
            if family != "kmeans":
                made = in_memory(jnp.matmul(made, phi_n, precision="highest"))
            return total + made[0, 0], None

        return lax.scan(chunk, 0 * phi[0, 0], jnp.arange(chunks))[0]

    return on_each(loop, (max(chunks * rows, k), features), repeats=5)


def remarks(family: str, case: Case, seconds: float, machine: Machine) -> list[str]:
    """What the machine can do, what an iteration asks of it, and the share that was reached."""
    load = work(family, case)
    arithmetic = 1e-9 * (load.flops / machine.gflops + load.exps / machine.gexps)
    reading = 1e-9 * load.bytes / machine.gbytes
    roof = max(arithmetic, reading)
    exps = f" and {1e-9 * load.exps:.3g} Gexp" if load.exps else ""
    return [
        f"This machine, float32, all devices: {machine.gflops:.3g} GFLOP/s, {machine.gexps:.3g} Gexp/s, "
        f"reads {machine.gbytes:.3g} GB/s.",
        f"An iteration: {1e-9 * load.flops:.3g} GFLOP of matrix products{exps} ({1e3 * arithmetic:.3g} ms), "
        f"{1e-6 * load.bytes:.3g} MB of rows ({1e3 * reading:.3g} ms); jaxem takes {1e3 * seconds:.3g} ms, "
        f"{roof / seconds:.0%} of the roof.",
        f"Its products with features, alone and chunk by chunk: {1e3 * products_alone(family, case):.3g} ms.",
    ]
