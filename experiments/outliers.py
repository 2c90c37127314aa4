"""A few outliers move means without limit, and medoids by a bounded amount whatever the outliers do.

    python experiments/outliers.py [--seed S] [--out DIR] [--quick] [--no-plot]

Old Faithful, K = 2, with m outliers at growing distance d from the mean of the long eruptions, in a direction where the
data have nothing. Both algorithms start at their own solution for the clean data.

k-means. With n inliers of mean μ̄ and m outliers of mean o in a cluster, its mean is μ̄ + m/(n + m)·(o − μ̄): it moves by
m d/(n + m), for any d, even if m = 1 (breakdown point 0).

k-medoids, any metric V. Let p be a row of a cluster with n inliers and m < n outliers, and c its medoid. As c has the
least total, 0 ≥ Σ_in [V(x, c) − V(x, p)] + Σ_out [V(x, c) − V(x, p)] ≥ (n − m) V(c, p) − 2 Σ_in V(x, p): the triangle
inequality, once for each kind of row. So

    V(c, p) ≤ 2 Σ_in V(x_n, p) / (n − m),

in which the outliers' positions do not occur (compare Lopuhaä & Rousseeuw 1991: breakdown point 1/2). Here p is the
clean medoid. The statement is about the alternation from a given start. Where d is so large that it costs less to give
the outliers a medoid of their own, the global minimum of J does so, for k-medoids as for k-means; d* in the summary is
the first d where it does.

Writes DIR/outliers.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem import limits

from _command import Config, Result, command, leave
from _data import load
from _results import Claim

START = np.array([[-1.3, -1.2], [0.7, 0.7]])  # short and long eruptions, in standard deviations
NUM_OUTLIERS = 5
DIRECTION = np.array([1.0, -1.0]) / np.sqrt(2)  # long eruptions after a short wait: there are none
SPREAD = 0.1  # of the outliers about their centre, standard deviations
FAR = 1e4
LONG = 1  # the cluster that receives them


def manhattan(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(jnp.abs(x - y))


def euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum((x - y) ** 2))


METRICS = {"manhattan": manhattan, "euclidean": euclidean}


def run(config: Config) -> Result:
    data = load("old_faithful")
    clean, N = jnp.asarray(data.x), len(data.x)
    distances = np.concatenate([[0.0], np.geomspace(0.5, FAR, 12 if config.quick else 45)])
    noise = np.asarray(jax.random.normal(jax.random.key(config.seed), (NUM_OUTLIERS, 2))) * SPREAD
    noise -= noise.mean(axis=0)  # so that d is the distance of their mean
    mean_of_clean = jaxem.check(jaxem.kmeans(clean, START)).theta["mu"]
    outliers = np.asarray(mean_of_clean[LONG]) + distances[:, None, None] * DIRECTION + noise  # (T, m, D)
    contaminated = jnp.concatenate([jnp.broadcast_to(clean, (len(distances), N, 2)), jnp.asarray(outliers)], axis=1)

    arrays: dict[str, Any] = {"x": data.x, "distance": distances, "outliers": outliers}
    fits = jax.vmap(lambda x: jaxem.kmeans(x, mean_of_clean))(contaminated)
    labels = jax.vmap(nearest)(contaminated, fits.theta["mu"])
    arrays |= {"kmeans_clean": mean_of_clean, "kmeans": fits.theta["mu"], "kmeans_labels": labels}
    statuses = [np.asarray(fits.status)]
    for name, metric in METRICS.items():
        at_clean = jaxem.kmedoids(clean, START, metric)
        # kmedoids is compiled once for all d: the rows are data
        fits = [jaxem.kmedoids(x, at_clean.medoids, metric) for x in contaminated]
        arrays |= {
            f"{name}_clean": at_clean.medoids,
            f"{name}_clean_labels": at_clean.labels,
            name: jnp.stack([fit.medoids for fit in fits]),
            f"{name}_labels": jnp.stack([fit.labels for fit in fits]),
        }
        statuses += [np.asarray([fit.status for fit in fits]), np.asarray([at_clean.status])]
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    summary = summarise(arrays, data)
    unfinished = int(sum((status != jaxem.Status.CONVERGED).sum() for status in statuses))
    return Result(summary, claims(arrays, summary, unfinished), arrays)


def nearest(x: jax.Array, mu: jax.Array) -> jax.Array:
    return jnp.argmin(jnp.sum((x[:, None] - mu[None]) ** 2, axis=-1), axis=1)


def summarise(arrays: dict[str, np.ndarray], data: Any) -> dict[str, Any]:
    N, distances = len(arrays["x"]), arrays["distance"]
    clean_labels = np.asarray(nearest(arrays["x"], arrays["kmeans_clean"]))
    summary: dict[str, Any] = {
        "columns": data.columns,
        "centre": data.centre,
        "scale": data.scale,
        "num_rows": N,
        "num_outliers": NUM_OUTLIERS,
        "kmeans_moved": np.linalg.norm(arrays["kmeans"] - arrays["kmeans_clean"], axis=2).max(axis=1),
        "kmeans_relabelled": (arrays["kmeans_labels"][:, :N] != clean_labels).sum(axis=1),
        "mean_predicted": NUM_OUTLIERS * distances / (np.sum(clean_labels == LONG) + NUM_OUTLIERS),
    }
    kept = (arrays["kmeans_labels"][:, :N] == clean_labels).all(axis=1)
    kept &= (arrays["kmeans_labels"][:, N:] == LONG).all(axis=1)
    summary["assignments_kept"] = kept
    for name, metric in METRICS.items():
        V = jax.vmap(metric, in_axes=(0, None))
        clean, moved, labels = arrays[f"{name}_clean"], arrays[name], arrays[f"{name}_labels"]
        displacement = np.stack([np.asarray(jax.vmap(metric)(c, clean)) for c in moved])  # (T, K)
        summary[f"{name}_moved"] = np.linalg.norm(moved - clean, axis=2).max(axis=1)  # Euclidean, to compare
        summary[f"{name}_relabelled"] = (labels[:, :N] != arrays[f"{name}_clean_labels"]).sum(axis=1)
        bound = np.stack([[metric_bound(V, arrays["x"], clean[k], row, k) for k in range(2)] for row in labels])
        summary[f"{name}_displacement"], summary[f"{name}_bound"] = displacement, bound
        summary[f"{name}_crossover"] = crossover(metric, arrays, name)
    return summary


def metric_bound(V: Any, x: np.ndarray, p: np.ndarray, labels: np.ndarray, k: int) -> float:
    """2 Σ_in V(x_n, p) / (n − m) for cluster k; ∞ where it says nothing, as m ≥ n or p is not in the cluster."""
    inside, m = labels[: len(x)] == k, int(np.sum(labels[len(x) :] == k))
    present = bool((x[inside] == p).all(axis=1).any())
    n = int(inside.sum())
    return 2 * float(jnp.sum(V(x[inside], p))) / (n - m) if n > m and present else np.inf


def crossover(metric: Any, arrays: dict[str, np.ndarray], name: str) -> float:
    """d*: the first d on the grid at which a medoid among the outliers, and one for all data, costs less."""
    V = jax.jit(jax.vmap(metric, in_axes=(0, None)))
    x = arrays["x"]
    one = np.min([np.sum(V(x, c)) for c in x])
    for distance, outliers, medoids in zip(arrays["distance"], arrays["outliers"], arrays[name], strict=True):
        rows = np.concatenate([x, outliers])
        kept = np.minimum(V(rows, medoids[0]), V(rows, medoids[1])).sum()
        if one + np.min([np.sum(V(outliers, c)) for c in outliers]) < kept:
            return float(distance)
    return float("inf")


def claims(arrays: dict[str, np.ndarray], summary: dict[str, Any], unfinished: int) -> list[Claim]:
    kept, moved = summary["assignments_kept"], summary["kmeans_moved"]
    eps = limits.ROUNDING * np.finfo(float).eps
    error = np.abs(moved - summary["mean_predicted"])[kept]
    at_least = (summary["mean_predicted"] / np.maximum(moved, np.finfo(float).tiny))[1:]
    until = arrays["distance"][kept].max()
    verdicts = [
        Claim(
            "means", f"the mean moves by m d/(n + m) while rows keep their cluster (d ≤ {until:.3g})", error.max(), eps
        ),
        Claim("more", "… and by no less after that: m d/(n + m) / its move", float(at_least.max()), 1 + eps),
    ]
    for name in METRICS:
        displacement, bound = summary[f"{name}_displacement"], summary[f"{name}_bound"]
        k = np.unravel_index(np.argmax(displacement / bound), bound.shape)
        verdicts += [
            Claim(name[:3], f"{name} medoids move by V ≤ 2 ΣV/(n − m) at every d ≤ {FAR:g}", displacement[k], bound[k]),
            Claim(f"{name[:3]}-l", "… and their clusters stay: eruptions relabelled, largest share",
                  float(summary[f"{name}_relabelled"].max() / summary["num_rows"]), 0.02),
        ]  # fmt: skip
    return [*verdicts, Claim("end", "fits that did not converge", float(unfinished), 0.0)]


def report(summary: dict[str, Any]) -> None:
    print(f"\n{summary['num_rows']} eruptions, {summary['num_outliers']} outliers; moves in standard deviations")
    for name in ("kmeans", *METRICS):
        moved, relabelled = summary[f"{name}_moved"], summary[f"{name}_relabelled"]
        far = f"at the farthest outliers {moved[-1]:9.3g}; most eruptions relabelled {max(relabelled)}"
        star = f"; d* = {summary[f'{name}_crossover']:.3g}" if name in METRICS else ""
        print(f"  {name:<10} moves {max(moved):9.3g} at most, {far}{star}")
    print()


def main(arguments: list[str] | None = None) -> int:
    return command("outliers", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
