"""Ward's hierarchical clustering, by SciPy: which rows belong together, whatever comes of them."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

MOST_ROWS = 5_000  # of which all distances are kept


def coordinates(shapes: dict[str, str], x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N M"]:
    """The rows as the clustering is to see them for a θ of these shapes: no unit that it does not know of decides."""
    centred = x - x.mean(axis=0)
    rotates = bool({"Sigma", "rotation", "correlation", "loadings"} & set(shapes))
    if not rotates and "shape" not in shapes and shapes.get("sigma") != "K D":
        return centred
    deviation = centred.std(axis=0)
    scaled = centred / np.where(deviation > 0, deviation, 1)
    if not rotates:
        return scaled
    _, values, axes = np.linalg.svd(scaled, full_matrices=False)
    kept = values > 1e-6 * values[:1]
    return np.ascontiguousarray(scaled @ axes[kept].T / np.sqrt(values[kept])) if kept.any() else scaled


def labels_of(x: Float[np.ndarray, "N D"], num_clusters: int) -> Int[np.ndarray, " N"]:
    """The cluster 0 … K−1 of each row, where the tree of Ward (1963) has K: the largest first.

    At every turn the two clusters are joined that raise Σ‖x − x̄_k‖² least: agglomerative maximum likelihood for σ²I.
    """
    tree, N = tree_of(x.tobytes(), x.shape, str(x.dtype)), len(x)
    top = np.arange(2 * N - 1)  # the cluster that each node is in
    for joined in range(N - num_clusters - 1, -1, -1):
        top[tree[joined].astype(int)] = top[N + joined]
    _, labels, sizes = np.unique(top[:N], return_inverse=True, return_counts=True)
    return np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")[labels.ravel()]


@functools.lru_cache(maxsize=4)  # several K, and several models, cut one tree
def tree_of(rows: bytes, shape: tuple[int, int], dtype: str) -> Float[np.ndarray, "M 2"]:
    """The pairs of nodes that are joined, in order."""
    return (
        hierarchy().linkage(np.frombuffer(rows, dtype).reshape(shape), "ward")[:, :2]
        if shape[0] > 1
        else np.zeros((0, 2))
    )


def hierarchy() -> Any:
    """SciPy's module, or one line that says how to have it."""
    try:
        from scipy.cluster import hierarchy
    except ImportError as error:
        raise ValueError('init: "hierarchical" needs SciPy; pip install scipy, or start by "k-means++"') from error
    return hierarchy
