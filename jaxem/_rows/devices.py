"""Where the rows lie: on one device, on all cores of a machine, on a user's mesh, on the hosts of a cluster.

A mesh takes the rows in equal shares. Where they do not divide, a share begins with rows that its neighbour
counts, and skips them: so nothing is padded, and on CPU devices no row is copied.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxem._core.model import Data, Layout, Model, Shards, divides, rows_of, with_rows
from jaxem._core.tracing import being_traced, is_traced

# words of the layers below in what they raise when a peer is gone
TRANSPORT = ("Gloo", "NCCL", "oordination", "onnection", "DEADLINE_EXCEEDED", "UNAVAILABLE")

ROWS_A_LEG = 2**22  # rows times steps of one program on several CPU devices: see `steps_a_leg`

_all_cores = False  # was `use_all_cores` called?


class ProcessLost(RuntimeError):
    """A sum over the processes of a mesh failed: one of them has ended, or cannot be reached."""


@contextlib.contextmanager
def joined(num_processes: int) -> Iterator[None]:
    """Where several processes wait for each other, say so when one is gone."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if num_processes == 1 or not any(word in str(error) for word in TRANSPORT):
            raise
        raise ProcessLost(
            f"a sum over {num_processes} processes failed, so one of them has ended or cannot be reached: "
            f"{str(error).splitlines()[0]}. Start them all again; em_stream(..., resume=checkpoint) goes on from the "
            "last pass"
        ) from error


def use_all_cores() -> None:
    """Make every core of this machine an XLA device, and spread rows over all devices by default.

    XLA runs one program per CPU device, and most of its loops on one core; with a device per core, each takes its
    share of the rows. Call it once, before anything runs on JAX. From then on `em`, `kmeans` and `em_batch` spread
    concrete, uncommitted data over all devices, as if `mesh` named them; under `jax.distributed.initialize` those
    are the devices of all processes, and x is this process's rows. Inside your own `jit`, or for data that you
    have put on a device, pass `mesh`.

    On CPU devices a long fit is several calls of one program, since XLA frees some memory only when a program ends; a
    fit inside your own `jit` is part of yours, and on a mesh keeps some 20 bytes a row and step until then if it is
    `full`, a hundred with more than 512 components.

    Raises:
        RuntimeError: when JAX's backend has started with fewer CPU devices.

    >>> import jaxem
    >>> jaxem.use_all_cores()                                                               # doctest: +SKIP
    """
    global _all_cores
    wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:
        found = jax.local_device_count("cpu")
        if found != wanted:
            raise RuntimeError(
                f"use_all_cores: JAX has already started with {found} CPU device(s), and this machine has {wanted} "
                "cores; call it before the first JAX computation of the process"
            ) from error
    _all_cores = True


def default_mesh() -> Mesh | None:
    """All devices in one axis, once `use_all_cores` was called."""
    if not _all_cores:
        return None
    return jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))


def mesh_for(x: Any, mesh: Mesh | None) -> Mesh | None:
    """The mesh of a call: the one that is named, the one that x lies on, or the default for x that may be moved."""
    if mesh is not None:
        if not isinstance(mesh, Mesh):
            raise ValueError(f"mesh: must be a jax.sharding.Mesh, got {type(mesh).__name__}; see jax.make_mesh")
        if AxisType.Explicit in mesh.axis_types:
            raise ValueError("mesh: has Explicit axes; make it with axis_types=(jax.sharding.AxisType.Auto, …)")
        return mesh
    leaves = jax.tree.leaves(x)
    if is_traced(leaves) or being_traced():
        return None
    for leaf in leaves:
        if _axes_of_rows(leaf):
            return leaf.sharding.mesh
    return None if any(getattr(leaf, "committed", False) for leaf in leaves) else default_mesh()


def mesh_for_rows(m: Model, data: Data, mesh: Mesh | None) -> tuple[Mesh | None, Data]:
    """The mesh over which a fit's rows are spread, and the data, divided into rows where that is asked for."""
    found = mesh_for(data.x, mesh)
    if mesh is not None or (found is not None and found.is_multi_process):
        data = m.rows.divided("mesh", data)
    return (found if divides(data) else None), data


def meshes_for_lanes(m: Model, data: Data, lanes: int, mesh: Mesh | None) -> tuple[Mesh | None, Mesh | None]:
    """The mesh over which rows are spread, or the mesh over which lanes are: at most one of the two."""
    mesh = mesh_for(data.x, mesh)
    if mesh is None:
        return None, None
    lies = any(_axes_of_rows(leaf) for leaf in jax.tree.leaves(data.x))
    if divides(data) and (lies or mesh.is_multi_process or lanes < mesh.size):
        return mesh, None
    return None, mesh


def _axes_of_rows(x: Any) -> tuple[str, ...]:
    """The mesh axes over which the leading axis of an array already lies."""
    sharding = getattr(x, "sharding", None) if not is_traced(x) else None
    if not isinstance(sharding, NamedSharding) or sharding.is_fully_replicated:
        return ()
    spec = (*sharding.spec, None)
    if any(axis is not None for axis in spec[1:]):
        raise ValueError(f"x: is sharded along its features, {sharding.spec}; shard rows only, PartitionSpec('rows')")
    return (spec[0],) if isinstance(spec[0], str) else tuple(spec[0] or ())


def replicated(tree: Any, mesh: Mesh | None) -> Any:
    """The same arrays, whole on every device of the mesh."""
    if mesh is None or is_traced(tree):
        return tree
    everywhere = NamedSharding(mesh, PartitionSpec())
    if all(getattr(leaf, "sharding", None) == everywhere for leaf in jax.tree.leaves(tree)) or being_traced():
        return tree

    # other processes' devices cannot take an array from here, only its value
    values = jax.tree.map(np.asarray, tree) if mesh.is_multi_process else tree
    return jax.device_put(values, everywhere)


def for_one_call(tree: Any, mesh: Mesh | None) -> Any:
    """The same for one call of a program: it puts a value on CPU devices in less time than `device_put`."""
    if mesh is None or is_traced(tree) or mesh.is_multi_process or mesh.devices.flat[0].platform != "cpu":
        return replicated(tree, mesh)
    return tree if being_traced() else jax.tree.map(np.asarray, tree)


def spread_rows(data: Data, mesh: Mesh | None) -> Data:
    """The same data with its rows in shares over the mesh; data that already lie so are left as they lie."""
    if mesh is None:
        return data
    rows = (rows_of(data.x), data.weights, data.labels)
    axes = _axes_of_rows(rows[0][0])
    if axes and rows[0][0].sharding.mesh == mesh:
        layout = Layout(mesh, axes)
        none = jnp.zeros(np.prod([mesh.shape[axis] for axis in axes]), jnp.int32)
        put = partial(_put, sharding=NamedSharding(mesh, layout.rows))
        shares, skip = jax.tree.map(put, rows), put(none)
    else:
        layout = Layout(mesh, tuple(mesh.axis_names))
        split = _traced_shares if is_traced(rows) or being_traced() else _concrete_shares
        shares, skip = split(rows, NamedSharding(mesh, layout.rows))
    x, weights, labels = shares
    x = with_rows(data.x if len(jax.tree.leaves(data.x)) == len(x) else replicated(data.x, mesh), x)
    return Data(x, weights, for_one_call(data.temperature, mesh), labels, Shards(layout, skip))


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(leaf, sharding) if is_traced(leaf) else jax.device_put(leaf, sharding)


def _windows(num_rows: int, shares: int, size: int) -> list[tuple[int, int]]:
    """(first row, rows to skip) of each share of `size` rows; a share ends with its last own row."""
    ends = [min((i + 1) * size, num_rows) for i in range(shares)]
    own = [max(0, end - i * size) for i, end in enumerate(ends)]
    return [(end - size, size - count) for end, count in zip(ends, own, strict=True)]


def _concrete_shares(rows: Any, sharding: NamedSharding) -> tuple[Any, Any]:
    """Shares as views of the rows, one per device of this process; the rows of other processes lie with them."""
    mesh = cast(Mesh, sharding.mesh)
    here = devices_here(mesh)
    if not here:
        raise ValueError("mesh: has no device of this process; every process that calls must hold a part of it")
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size = -(-num_rows // len(here))
    if mesh.is_multi_process:
        size = int(np.max(multihost_utils.process_allgather(np.int64(size))))
    windows = _windows(num_rows, len(here), size)

    def shares(leaf: Any) -> Array:  # NumPy's or JAX's
        on_cpu = isinstance(leaf, np.ndarray) or all(device.platform == "cpu" for device in leaf.devices())
        source: Any = np.asarray(leaf) if on_cpu else leaf  # a view: slicing it copies nothing
        if num_rows == size * mesh.size:
            return jax.device_put(source, sharding)
        pieces = []
        for (first, _), device in zip(windows, here, strict=True):
            piece = source[max(first, 0) : first + size]
            if first < 0:  # fewer rows than a share: what stands before them is skipped
                piece = np.concatenate([np.repeat(np.asarray(source[:1]), -first, axis=0), np.asarray(piece)])
            pieces.append(jax.device_put(piece, device))
        shape = (size * mesh.size, *leaf.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, pieces)

    return jax.tree.map(shares, rows), _skips(sharding, tuple(skipped for _, skipped in windows))


@functools.lru_cache(maxsize=16)
def _skips(sharding: NamedSharding, skipped: tuple[int, ...]) -> Array:
    """How many rows each device skips, on that device; kept for the next batch or call."""
    mesh = cast(Mesh, sharding.mesh)
    pieces = [
        jax.device_put(np.array([count], np.int32), device)
        for count, device in zip(skipped, devices_here(mesh), strict=True)
    ]
    return jax.make_array_from_single_device_arrays((mesh.size,), sharding, pieces)


def _traced_shares(rows: Any, sharding: NamedSharding) -> tuple[Any, Any]:
    """The same inside a user's `jit`: where the rows do not divide, the shares are gathered."""
    num_shares = sharding.mesh.size
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    size = -(-num_rows // num_shares)
    windows = _windows(num_rows, num_shares, size)
    index = np.concatenate([np.arange(first, first + size) for first, _ in windows]).clip(0)

    def shares(leaf: Array) -> Array:
        return _put(leaf if num_rows == size * num_shares else leaf[index], sharding)

    return jax.tree.map(shares, rows), _put(jnp.array([skip for _, skip in windows], jnp.int32), sharding)


def steps_a_leg(mesh: Mesh | None, run: tuple[Any, Data]) -> int | None:
    """How many steps of this fit one call of a program may do; None: all.

    While every core serves a CPU device, XLA's library for small products (YNNPACK, in jaxlib 0.10) keeps the tasks
    into which it splits one of more than 32,768 entries, some 14 kB for each, until the program returns.
    """
    if mesh is None or is_traced(run) or being_traced() or mesh.devices.flat[0].platform != "cpu" or mesh.size == 1:
        return None
    return max(1, ROWS_A_LEG // int(rows_of(run[1].x)[0].shape[0]))


def num_processes(mesh: Mesh | None) -> int:
    """How many processes hold a part of the mesh."""
    return 1 if mesh is None else len({device.process_index for device in mesh.devices.flat})


def devices_here(mesh: Mesh) -> list[Any]:
    """The devices of a mesh that this process has."""
    return [device for device in mesh.devices.flat if device.process_index == jax.process_index()]


def local_part(mesh: Mesh) -> Mesh:
    """The devices of a mesh that this process has, in one axis."""
    return Mesh(np.array(devices_here(mesh)), ("rows",), axis_types=(AxisType.Auto,))
