"""Ward's hierarchical clustering, by SciPy: which rows belong together, whatever comes of them."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

MOST_ROWS = 5_000  # of which all distances are kept


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
