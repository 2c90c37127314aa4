"""Batches of rows: read ahead by a thread, checked, and copied.

What the two streaming algorithms share. Every fault names the batch and, where it is the rows', the rows.
"""

import itertools
import queue
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxem._core.arrays import fitted, raw, static_count
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, ThetaLike
from jaxem._programs.program import Program
from jaxem._rows import devices
from jaxem.families._mixture import whole_rows_only

Batches = Callable[[], Iterable[Any]]
END = object()  # no more batches


class StreamError(RuntimeError):
    """A stream broke in the middle of a fit; says where."""


class Checked(NamedTuple):
    """A checked copy of a batch, filled up with rows of weight zero."""

    x: np.ndarray
    weights: np.ndarray
    num_rows: int  # without those
    weight: float
    number: int


class Batch(NamedTuple):
    """A batch on its devices."""

    data: Data
    rows: int
    weight: float
    number: int


class Reader:
    """Passes over the batches, one `read` each; θ in the precision of the first batch, which binds the others."""

    def __init__(
        self, m: Any, theta: ThetaLike, batches: Batches, temperature: ArrayLike, mesh: Mesh | None, prefetch: int
    ):
        self.m, self.batches, self.prefetch = m, batches, prefetch
        self.passes = 1  # the number of the one that is open, or was last
        self.capacity = 0  # rows of the largest batch so far: smaller ones are filled up to it
        opened = self.raw()
        first = next(opened, END)
        if first is END:
            raise ValueError("batches: yielded nothing; it must return an iterator over arrays (rows, D)")
        self.opened: Iterable[Any] | None = itertools.chain([first], opened)
        x, weights = rows_and_weights(first, self.place_of(0))
        anything = m.but(check_support=None)  # `checked` looks at the rows
        if missing := [name for name in m.parameters if m.extras.complete is not None and name not in theta]:
            raise ValueError(f"theta: has no {missing[0]!r}, which em reads off all rows; a stream has to be told")
        start, data = enter(anything, theta, np.zeros_like(x[:1]), None, temperature)
        self.dtype, self.placed_as = x.dtype, np.dtype(data.x.dtype)  # float64 becomes float32 without x64
        self.num_features = x.shape[1]
        self.checksum: int | None = None  # of the batches so far of the first pass; None where nobody asks for it
        self.anchor: Any = np.zeros(self.num_features, x.dtype)  # a row that may stand for one of weight 0
        self.first: Any = x, weights
        self.ones = np.empty(0)  # the weights of a full batch that has none, once for all
        self.last_weights: tuple[Any, Any] = (None, None)  # a batch's weights, and as they lie on the devices
        whole = devices.mesh_for(x, mesh)
        self.mesh = None if whole is None else devices.local_part(whole)
        self.processes = devices.num_processes(whole)
        self.theta, self.temperature = devices.replicated((start, data.temperature), self.mesh)

    def first_checksum(self) -> int:
        """Of the first batch, while no other is asked for."""
        x, weights = self.first
        return checksum(x, weights, 0)

    def place_of(self, index: int) -> str:
        """A batch, for messages."""
        return f"batches: batch {index} of pass {self.passes}"

    def two_rows(self) -> Data:
        """Data of the right shapes."""
        x = jnp.zeros((2, self.num_features), self.placed_as)
        return Data(x, jnp.ones(2, self.temperature.dtype), self.temperature)

    def raw(self) -> Iterator[Any]:
        """What `batches` yields, and its own errors with their place."""
        index = 0
        try:
            for batch in self.batches():
                yield batch
                index += 1
        except Exception as error:
            raise StreamError(
                f"{self.place_of(index)} could not be read: {type(error).__name__}: {error}; "
                "the checkpoint, if the fit has one, holds the passes before it"
            ) from error

    def read(self) -> Generator[Batch]:
        """Batches on their devices. A thread reads ahead, and what goes wrong in it is raised here.

        It leaves JAX alone, whose settings (x64, the default device) may belong to the thread that called.
        """
        if self.opened is None:
            self.passes += 1
            self.opened = self.raw()
        source, self.opened, self.first = self.opened, None, (np.empty(0), None)
        ahead: queue.Queue[Any] = queue.Queue(maxsize=self.prefetch)
        stopped = threading.Event()

        def put(item: Any) -> None:
            while not stopped.is_set():
                with suppress(queue.Full):
                    return ahead.put(item, timeout=0.1)

        def work() -> None:
            try:
                for index, batch in enumerate(source):
                    put(self.checked(batch, index))
                    if stopped.is_set():
                        return
                put(END)
            except BaseException as error:  # all of them: who waits must not wait for ever
                put(error)

        thread = threading.Thread(target=work, name="jaxem-batches", daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not END:
                if isinstance(item, BaseException):
                    raise item
                yield self.placed(item)
        finally:
            stopped.set()
            thread.join()

    def checked(self, batch: Any, index: int) -> Checked:
        """A batch that can be used: a copy, unless its owner cannot overwrite it and it lies as it must."""
        where = self.place_of(index)
        x, weights = rows_and_weights(batch, where)
        if x.shape[1] != self.num_features:
            raise ValueError(f"{where} has shape {x.shape}; the first had {self.num_features} columns, like θ")
        if x.dtype != self.dtype:
            given = getattr(batch[0] if isinstance(batch, tuple) else batch, "dtype", x.dtype)
            raise ValueError(f"{where} has dtype {given}, the first had {self.dtype}; convert them to one")
        x = self.with_weightless_rows_replaced(x, weights)
        if self.passes == 1 and self.m.extras.check_support is not None:
            fault = self.m.extras.check_support(x, {name: np.asarray(value) for name, value in self.theta.items()})
            if fault:
                raise ValueError(f"{where} {fault}")
        if self.passes == 1 and self.checksum is not None:
            self.checksum = checksum(x, weights, self.checksum)
        num_rows = len(x)
        self.capacity = max(self.capacity, num_rows)  # so that one compiled program serves every batch
        if num_rows == self.capacity and x.dtype == self.placed_as and x.flags.c_contiguous and is_read_only(x):
            rows, finite = x, self.passes > 1 or all_finite(x)  # the same rows in every pass
        else:
            rows = aligned((self.capacity, self.num_features), self.placed_as)
            finite = copied(x, rows)
            rows[num_rows:] = rows[0]
        if not finite:
            with named(where):
                blame_x(x, np.nan)
                fitted("x", x, self.placed_as)
                raise ValueError(f"has integers beyond {self.placed_as}; pass them as floats")
        weight = float(num_rows if weights is None else weights.sum())
        return Checked(rows, self.filled_up(weights, num_rows), num_rows, weight, index)

    def with_weightless_rows_replaced(self, x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        """The rows, those of weight 0 as copies of the last that had one: 0·∞ is no number."""
        if weights is None:
            return x
        counts = weights.astype(self.temperature.dtype) > 0
        if counts.any():
            self.anchor = x[np.argmax(counts)].copy()
        return x if counts.all() else np.where(counts[:, None], x, self.anchor[None])

    def filled_up(self, weights: np.ndarray | None, num_rows: int) -> np.ndarray:
        """The weights of a batch, and zeros up to the capacity."""
        if weights is None and num_rows == self.capacity == len(self.ones):
            return self.ones
        filled = aligned((self.capacity,), np.dtype(self.temperature.dtype))
        filled[:num_rows] = 1 if weights is None else weights
        filled[num_rows:] = 0
        if weights is None and num_rows == self.capacity:
            self.ones = filled
        return filled

    def placed(self, rows: Checked) -> Batch:
        """A batch on its devices; the weights of full batches are put there once."""
        if rows.weights is not self.last_weights[0]:
            self.last_weights = rows.weights, self.spread(rows.weights).x
        data = self.spread(rows.x)._replace(weights=self.last_weights[1])
        return Batch(data, rows.num_rows, rows.weight, rows.number)

    def spread(self, rows: Any) -> Data:
        """On one device, or in shares over several."""
        x = rows if self.mesh is not None else jax.device_put(rows)
        return devices.spread_rows(Data(x, None, self.temperature), self.mesh)


def check(name: str, m: Any, batches: Any, prefetch: Any) -> None:
    """What both functions ask of their arguments."""
    if not isinstance(m, Program) and whole_rows_only(name, m).asks_rows:
        hold = f", or hold {', '.join(map(repr, sorted(m.last)))}" if m.last else ""
        raise ValueError(
            f"m: {name} needs an M-step from sums alone, which one that asks the rows again is not; use em on data in "
            f"memory{hold}"
        )
    if not callable(batches):
        raise ValueError(
            f"batches: must be a function that returns a fresh iterator, got {type(batches).__name__}; "
            "pass lambda: iterator_over_the_batches()"
        )
    static_count("prefetch", prefetch, 1)


def is_read_only(x: np.ndarray) -> bool:
    """May nobody write to the memory of x through an array: is it a file mapped for reading, say?"""
    base: Any = x
    while isinstance(base, np.ndarray):
        if base.flags.writeable:
            return False
        base = base.base
    return base is not None  # an array of its own that is marked so may be marked otherwise


def blocks(num_rows: int, bytes_a_row: int) -> Iterator[slice]:
    """As many rows at a time as a cache holds."""
    at_a_time = max(1, 2**18 // bytes_a_row)
    return (slice(first, min(first + at_a_time, num_rows)) for first in range(0, num_rows, at_a_time))


def checksum(x: np.ndarray, weights: np.ndarray | None, before: int) -> int:
    """Of rows and weights, the bytes that they are, and of what was before them."""
    for rows in (x, np.ones(len(x)) if weights is None else weights):
        for block in blocks(len(rows), rows[0].nbytes):
            before = zlib.crc32(np.ascontiguousarray(rows[block]).data, before)
    return before


def all_finite(x: np.ndarray) -> bool:
    """Is every entry?"""
    return all(np.isfinite(x[block]).all() for block in blocks(len(x), x[0].nbytes))


def copied(x: np.ndarray, copy: np.ndarray) -> bool:
    """The rows of x into an array; are they finite there, and if whole the same?"""
    finite = True
    for block in blocks(len(x), copy[0].nbytes):
        with np.errstate(over="ignore"):
            copy[block] = x[block]
        good = copy[block] == x[block] if x.dtype.kind in "iu" else np.isfinite(copy[block])
        finite &= bool(good.all())
    return finite


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that begins where XLA wants one to, at a multiple of 64 bytes: then JAX need not copy it."""
    size = int(np.prod(shape)) * dtype.itemsize
    bytes_ = np.empty(size + 64, np.uint8)
    first = -bytes_.ctypes.data % 64
    return bytes_[first : first + size].view(dtype).reshape(shape)


def rows_and_weights(batch: Any, where: str) -> tuple[np.ndarray, np.ndarray | None]:
    """x (rows, D), and the weights (rows,) if the batch is a pair."""
    if isinstance(batch, tuple) and len(batch) != 2:
        raise ValueError(f"{where} is no array of rows, nor a pair of one and weights, but a tuple of {len(batch)}")
    x, weights = batch if isinstance(batch, tuple) else (batch, None)
    with named(f"{where} is no array of rows of numbers: it"):
        w = None if weights is None else np.asarray(raw("weights", weights)).astype(float)
        x = np.asarray(raw("x", x, None if w is None or w.ndim != 1 else w > 0))
    x = x[:, None] if x.ndim == 1 else x
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"{where} has shape {x.shape}; it must be (rows, D), with at least one row")
    if w is None:
        return x, None
    if w.shape != x.shape[:1] or not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"{where} has weights of shape {w.shape}; they must be {len(x)} finite numbers ≥ 0")
    return x, w


@contextmanager
def named(where: str) -> Iterator[None]:
    """What is wrong with x or its weights, said of a batch."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where} {str(error).removeprefix('x: ')}") from None
