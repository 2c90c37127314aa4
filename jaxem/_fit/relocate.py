"""An empty cluster of k-means takes the row that lies farthest from its own centre.

J falls by at least that row's w·d: it costs nothing at its new centre, and those it left have a mean nearer to them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxem._core.model import Data, Theta
from jaxem.families._mixture import Mixture
from jaxem.families.gaussian import squared_distances

ENTRIES = 2**20  # of the table of distances that exists at once


def relocate(m: Mixture, statistics: Any, theta: Theta, data: Data) -> Theta:
    """The M-step of k-means, with each empty cluster at one of the farthest rows (as scikit-learn does).

    The j-th empty cluster takes the j-th farthest row, which leaves the mean of the cluster it was in. Nothing moves
    where that row lies on its centre, or has no weight.
    """
    empty = statistics.N_k == 0

    def to_the_farthest() -> Theta:
        distances, cluster = to_own_centre(data.x, theta["mu"])
        if data.weights is not None:
            distances = jnp.where(data.weights > 0, distances, 0)
        num_rows, num_components = distances.shape[0], empty.shape[0]
        farthest, rows = lax.top_k(distances, min(num_rows, num_components))
        rank = jnp.cumsum(empty) - 1  # of an empty cluster among them
        place = jnp.clip(rank, 0, rows.shape[0] - 1)
        takes = empty & (rank < rows.shape[0]) & (farthest[place] > 0)
        row = data.x[rows[place]].astype(theta["mu"].dtype)  # (K, D): the row of each, if it takes one
        old = cluster[rows[place]]
        weight = jnp.ones_like(statistics.N_k) if data.weights is None else data.weights[rows[place]]
        leaves = jnp.where(takes, weight, 0)
        lean = statistics._replace(
            N_k=statistics.N_k.at[old].add(-leaves),
            shift=statistics.shift.at[old].add(-leaves[:, None] * (row - theta["mu"][old])),
        )
        new = m.update(lean, theta, m.held)
        return new | {"mu": jnp.where(takes[:, None], row, new["mu"])}

    return lax.cond(jnp.any(empty), to_the_farthest, lambda: m.update(statistics, theta, m.held))


def to_own_centre(x: Array, mu: Array) -> tuple[Array, Array]:
    """min_k d_nk and the k that has it, (N,) each, some rows at a time."""

    def of_row(row: Array) -> tuple[Array, Array]:
        distances = squared_distances(row[None], mu)[:, 0]
        return jnp.min(distances), jnp.argmin(distances)

    at_a_time = max(1, ENTRIES // mu.shape[0])
    return jax.vmap(of_row)(x) if x.shape[0] <= at_a_time else lax.map(of_row, x, batch_size=at_a_time)
