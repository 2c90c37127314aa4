"""Rows padded to a few sizes, so that data of another length are no other program to compile.

A row of weight 0 counts for nothing. So the rows of a small fit, of one chunk, are followed by copies of the first with
weight 0, up to the next of eight sizes an octave: at most an eighth more rows, and what was compiled for one N serves
its neighbours.
"""

from typing import Any

import jax
import numpy as np

from jaxem._core.model import Data, Model, Theta
from jaxem._core.tracing import being_traced, is_concrete
from jaxem._rows.chunks import fits_one_chunk
from jaxem.families._mixture import Mixture

LEAST = 8  # rows between one size and the next


def padded_size(num_rows: int) -> int:
    """The next multiple of an eighth of the largest power of two that is not above N."""
    step = max(LEAST, 2 ** (num_rows.bit_length() - 1) // 8)
    return -(-num_rows // step) * step


def padded(m: Model, theta: Theta, data: Data) -> Data:
    """The data of a mixture's fit with rows up to the next size; traced, large or placed ones as they are."""
    if not isinstance(m, Mixture) or data.shards is not None or being_traced() or not is_concrete(theta, data):
        return data
    N, K = data.x.shape[0], theta["pi"].shape[-1]
    size = padded_size(N)
    if data.x.committed or not fits_one_chunk(size, K):
        return data
    x = np.asarray(data.x)
    weights = np.ones(N, theta["pi"].dtype) if data.weights is None else np.asarray(data.weights)

    def followed(rows: np.ndarray, by: Any, axis: int = 0) -> jax.Array:
        shape = list(rows.shape)
        shape[axis] = size - N
        return jax.device_put(np.concatenate([rows, np.broadcast_to(np.asarray(by, rows.dtype), shape)], axis))

    return data._replace(
        x=followed(x, x[0]),
        weights=followed(weights, 0, axis=-1),  # of each lane, too
        labels=None if data.labels is None else followed(np.asarray(data.labels), -1),
    )
