"""Batches of a program's arguments: what `_fit/batches` does for rows of one array.

A batch is what `em` takes as x: the argument, the tuple of the arguments, or `jaxem.arguments(…)`; with weights it is
a pair of the last and those. Its rows lie along the leading axis of the arguments that the program's row plate cuts;
what is not cut is the same in all batches.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxem._core.checks import enter
from jaxem._core.model import Data, ThetaLike
from jaxem._fit.batches import END, Batch, Batches, Checked, Reader, checksum
from jaxem._programs.arguments import Arguments
from jaxem._programs.rows import blocks_at
from jaxem._rows import devices


class ArgumentsReader(Reader):
    """Passes over batches of arguments; the first batch says which of them are cut, and binds the others."""

    def __init__(
        self, m: Any, theta: ThetaLike, batches: Batches, temperature: ArrayLike, mesh: Mesh | None, prefetch: int
    ):
        self.m, self.batches, self.prefetch = m, batches, prefetch
        self.passes, self.capacity, self.checksum = 1, 0, None
        opened = self.raw()
        first = next(opened, END)
        if first is END:
            raise ValueError("batches: yielded nothing; it must return an iterator over the program's arguments")
        self.opened = itertools.chain([first], opened)
        x, weights = pair(first)
        start, data = enter(m, theta, Arguments.of(x), None, temperature)
        data = m.rows.divided("batches", data)
        self.arguments: Arguments = data.x.some()
        climbing = [name for block in blocks_at(m, data) if block.source == "climbing" for name in block.stage.names]
        if climbing:
            raise ValueError(
                f"m: a stream needs closed-form M-steps, and {climbing[0]!r} climbs its gradient "
                f"({m.plan(data.x, data.temperature.dtype)[climbing[0]].why}); use em on data in memory"
            )
        self.leaves = [None if leaf is None else np.asarray(leaf) for leaf in self.arguments.leaves]
        self.anchor: Any = tuple(leaf[0] for leaf in self.rows_of(x, self.place_of(0)))
        self.temperature = data.temperature
        self.first: Any = self.rows_of(x, self.place_of(0)), self.weights_of(weights, self.place_of(0))
        whole = devices.mesh_for(self.arguments.rows(), mesh)
        self.mesh = None if whole is None else devices.local_part(whole)
        self.processes = devices.num_processes(whole)
        self.theta, self.temperature = devices.replicated((start, data.temperature), self.mesh)

    def first_checksum(self) -> int:
        """Of the first batch, while no other is asked for."""
        rows, weights = self.first
        return self.checked_sum(rows, weights, 0)

    def checked_sum(self, rows: tuple[np.ndarray, ...], weights: np.ndarray | None, before: int) -> int:
        """Of rows and weights, and of what was before them."""
        for leaf in rows:
            before = checksum(leaf.reshape(len(leaf), -1), weights, before)
        return before

    def two_rows(self) -> Data:
        """Data of the right shapes."""
        some = self.arguments.some()
        return Data(some, jnp.ones(some.num_rows(), self.temperature.dtype), self.temperature)

    def rows_of(self, x: Any, where: str) -> tuple[np.ndarray, ...]:
        """The leaves that are cut, of the shapes and dtypes of the first batch; the others must be its own."""
        like, cut = self.arguments, self.arguments.cut
        assert cut is not None
        leaves, treedef = (x.leaves, x.treedef) if isinstance(x, Arguments) else flat(x)
        if treedef != like.treedef:
            raise ValueError(f"{where} is {treedef}, the first was {like.treedef}; yield the program's arguments")
        found = []
        for place, (leaf, first) in enumerate(zip(leaves, self.leaves, strict=True)):
            fixed = like.static[place]
            own = x.static[place].value if isinstance(x, Arguments) and fixed is not None else leaf
            if first is None or place not in cut.places:
                if not (fixed.value == own if first is None else np.array_equal(np.asarray(leaf), first)):
                    raise ValueError(f"{where} has another argument that is not cut into rows than the first batch")
                continue
            array = np.asarray(leaf)
            if array.shape[1:] != first.shape[1:] or not array.size:
                raise ValueError(f"{where} has rows of shape {array.shape[1:]}, the first had {first.shape[1:]}")
            found.append(array.astype(first.dtype, copy=False))
        if len({len(leaf) for leaf in found}) > 1:
            raise ValueError(f"{where} has arguments of {[len(leaf) for leaf in found]} rows; they must agree")
        return tuple(found)

    def weights_of(self, weights: Any, where: str) -> np.ndarray | None:
        """w (rows,), or nothing."""
        if weights is None:
            return None
        w = np.asarray(weights, float)
        if w.ndim != 1 or not (np.isfinite(w) & (w >= 0)).all():
            raise ValueError(f"{where} has weights of shape {w.shape}; they must be finite numbers ≥ 0, one for a row")
        return w

    def checked(self, batch: Any, index: int) -> Checked:
        """A copy of a batch, filled up to the largest so far with rows of weight 0."""
        where = self.place_of(index)
        x, weights = pair(batch)
        rows, weights = self.rows_of(x, where), self.weights_of(weights, where)
        num_rows = len(rows[0])
        if weights is not None and len(weights) != num_rows:
            raise ValueError(f"{where} has {num_rows} rows and {len(weights)} weights")
        if self.passes == 1 and self.checksum is not None:
            self.checksum = self.checked_sum(rows, weights, self.checksum)
        self.capacity = max(self.capacity, num_rows)  # so that one compiled program serves every batch
        counts = np.zeros(self.capacity, bool)
        counts[:num_rows] = True if weights is None else weights.astype(self.temperature.dtype) > 0
        if counts.any():
            first = int(np.argmax(counts))
            self.anchor = tuple(leaf[first].copy() for leaf in rows)

        def filled(leaf: np.ndarray, anchor: Any) -> np.ndarray:
            new = np.empty((self.capacity, *leaf.shape[1:]), leaf.dtype)
            new[:num_rows] = leaf
            new[~counts] = anchor  # 0·∞ is no number
            return new

        full: Any = tuple(filled(leaf, anchor) for leaf, anchor in zip(rows, self.anchor, strict=True))
        weight = float(num_rows if weights is None else weights.sum())
        return Checked(full, self.filled(weights, num_rows), num_rows, weight, index)

    def filled(self, weights: np.ndarray | None, num_rows: int) -> np.ndarray:
        """The weights of a batch, and zeros up to the capacity."""
        filled = np.zeros(self.capacity, np.dtype(self.temperature.dtype))
        filled[:num_rows] = 1 if weights is None else weights
        return filled

    def placed(self, rows: Checked) -> Batch:
        """A batch on its devices."""
        leaves: Any
        weights: Any
        leaves, weights = (rows.x, rows.weights) if self.mesh is not None else jax.device_put((rows.x, rows.weights))
        data = Data(self.arguments.with_rows(leaves), weights, self.temperature)
        return Batch(devices.spread_rows(data, self.mesh), rows.num_rows, rows.weight, rows.number)


def pair(batch: Any) -> tuple[Any, Any]:
    """(x, weights or None) of a batch."""
    if isinstance(batch, tuple) and len(batch) == 2 and isinstance(batch[0], Arguments):
        return batch
    return batch, None


def flat(x: Any) -> tuple[list[Any], Any]:
    """The leaves of x as `Arguments.of` has them."""
    several = isinstance(x, tuple) and not hasattr(x, "_fields")
    return jax.tree.flatten((x if several else (x,), {}))
