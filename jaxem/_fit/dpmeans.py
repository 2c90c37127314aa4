"""DP-means: k-means that opens clusters where a row is too far from all (Kulis & Jordan, ICML 2012).

    J(z, μ) + λ·K = Σ_n w_n ‖x_n − μ_{z_n}‖² + λ · (number of clusters)

It is the limit σ → 0 of Gibbs sampling in a Dirichlet process mixture whose concentration is
α = (1 + ρ²/σ²)^{D/2} e^{−λ/2σ²} (C24, `jaxem.limits.dpmeans_choice`).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem._core.arrays import count, numbers, shown
from jaxem._core.checks import blame_x, rows_and_weights
from jaxem._core.tracing import is_concrete
from jaxem._fit.loop import Fit, Status


def dpmeans(x: Any, penalty: float, *, weights: Any = None, max_steps: int = 1000) -> Fit:
    """Cluster without saying how many: a local minimum of Σ_n w_n ‖x_n − μ_{z_n}‖² + λ·K, λ the penalty.

    Starts from one cluster at the mean. In a pass each row in order goes to its nearest centre, or opens a cluster of
    its own where that costs less: where w_n‖x_n − μ‖² > λ for all centres; then empty clusters are dropped and centres
    become means. No pass raises the objective; it stops when one changes no label. The order of rows matters. How many
    clusters there will be depends on the values, so that it takes concrete ones.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        penalty: λ > 0, the price of a cluster, in squared units of x.
        weights: w (N,) ≥ 0.
        max_steps: most passes to do.

    Returns:
        A `Fit`; theta is that of `gaussian.isotropic` with π = 1/K and σ = 1, and free_energy is −½(J + λK), in squared
        units of x: what `jaxem.kmeans` calls F, but for its constant, less ½ λ a cluster.

    Raises:
        ValueError: for a penalty ≤ 0, inside `jit`, or for shapes or values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([0.0, 1.0, 10.0, 11.0, 50.0])
    >>> jaxem.dpmeans(x, 9.0).theta["mu"][:, 0].tolist()
    [0.5, 10.5, 50.0]
    """
    if not is_concrete(x, penalty, weights):
        raise ValueError(
            "x: dpmeans opens clusters as values ask for, so it takes concrete ones; call it outside jax.jit"
        )
    price = numbers("penalty", penalty, float)
    if price.shape != () or not 0 < float(price) < np.inf:
        raise ValueError(f"penalty: must be a finite number > 0, got {shown(penalty)}; in squared units of x")
    count("max_steps", max_steps, 0)
    rows, w = rows_and_weights(x, weights)
    blame_x(rows, jnp.sum(rows * 0.0))
    dtype = rows.dtype if jnp.issubdtype(rows.dtype, jnp.floating) else jnp.result_type(float)
    points = np.asarray(rows, float)
    share = np.ones(len(points)) if w is None else np.asarray(w, float)
    cost, steps, status = float(price), 0, Status.MAX_STEPS
    mu, label = np.average(points, 0, share)[None], np.zeros(len(points), int)
    before, value = np.inf, objective(points, share, mu, label, cost)
    while steps < int(max_steps) and status == Status.MAX_STEPS:
        opened, new = assigned(points, share, mu, cost)
        mu, new = means(points, share, opened, new)
        before, value = value, objective(points, share, mu, new, cost)
        status = Status.CONVERGED if (new == label).all() else status
        label, steps = new, steps + 1
    K = len(mu)
    theta = {"pi": jnp.full(K, 1 / K, dtype), "mu": jnp.asarray(mu, dtype), "sigma": jnp.ones((), dtype)}
    return Fit(
        theta,
        jnp.asarray(-value / 2, dtype),
        jnp.asarray((before - value) / 2, dtype),
        jnp.asarray(steps, jnp.int32),
        jnp.asarray(status, jnp.int32),
    )


def objective(x: np.ndarray, w: np.ndarray, mu: np.ndarray, label: np.ndarray, price: float) -> float:
    """J + λK."""
    return float(w @ ((x - mu[label]) ** 2).sum(1) + price * len(mu))


def assigned(x: np.ndarray, w: np.ndarray, mu: np.ndarray, price: float) -> tuple[np.ndarray, np.ndarray]:
    """The centres after a pass over the rows, in their order, and each row's.

    A row's distances change only where one before it opened a cluster: so the next that does is found at once.
    """
    d = ((x[:, None] - mu[None]) ** 2).sum(2)
    nearest, label, first = d.min(1), d.argmin(1), 0
    while (far := np.flatnonzero(w[first:] * nearest[first:] > price)).size:
        first += int(far[0])
        mu = np.concatenate([mu, x[first][None]])
        to_new = ((x[first:] - x[first]) ** 2).sum(1)
        nearer = to_new < nearest[first:]
        nearest[first:] = np.where(nearer, to_new, nearest[first:])
        label[first:] = np.where(nearer, len(mu) - 1, label[first:])
    return mu, label


def means(x: np.ndarray, w: np.ndarray, mu: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of the clusters that have weight, and labels among those."""
    sizes = np.bincount(label, w, len(mu))
    used = np.flatnonzero(sizes > 0)
    number = np.zeros(len(mu), int)
    number[used] = np.arange(len(used))
    sums = np.zeros_like(mu)
    np.add.at(sums, label, w[:, None] * (x - mu[label]))
    return mu[used] + sums[used] / sizes[used][:, None], number[label]
