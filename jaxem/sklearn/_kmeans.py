"""k-means under scikit-learn's names: the same loop as every mixture's, at temperature 0."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

import jaxem
from jaxem.families import gaussian
from jaxem.sklearn._rows import (
    counts_to_use,
    distinct,
    given_array,
    key_of,
    precision,
    report,
    roomy,
    validated,
    weights_of,
    with_room,
)

squared_distances = jax.jit(gaussian.squared_distances)

STARTS = {"k-means++": jaxem.inits.kmeans_plus_plus, "random": jaxem.inits.random_points}


def labels_of_kmeans(key: Any, x: np.ndarray, num_components: int, weights: np.ndarray) -> np.ndarray:
    """The clusters of one run from k-means++, (N,)."""
    mu = jaxem.inits.kmeans_plus_plus(gaussian.isotropic, key, x, num_components, weights=weights)["mu"]
    return nearest(x, jaxem.kmeans(x, mu, weights, empty="relocate").theta["mu"])


def distances(X: np.ndarray, mu: Any) -> np.ndarray:
    """‖x_n − μ_k‖², (K, N)."""
    with precision(X):
        return np.asarray(squared_distances(jnp.asarray(roomy(X)), jnp.asarray(mu, X.dtype)))[:, : len(X)]


def nearest(X: np.ndarray, mu: Any) -> np.ndarray:
    """argmin_k ‖x_n − μ_k‖², (N,), the lowest index at ties."""
    return np.argmin(distances(X, mu), axis=0)


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Lloyd's k-means; a drop-in for `sklearn.cluster.KMeans`. It is EM at temperature 0 (`jaxem.kmeans`).

    Args:
        n_clusters: K.
        init: "k-means++", "random" rows, or the centres to start at, (K, D).
        n_init: how many starts, of which the one of least inertia is kept; "auto" is 10 for "random" and else 1.
        max_iter: most steps.
        tol: stop where a step lowers the inertia by at most this part of the inertia about the overall mean. 0 goes on
            until no centre moves, which is where scikit-learn's own ends at tol=0; its default ends before.
        random_state: an int, a RandomState or None.
        verbose: print a line for each start.

    Attributes:
        cluster_centers_: μ (K, D), in units of X.
        labels_: of the rows that were fitted, (N,).
        inertia_: J = Σ_n w_n min_k ‖x_n − μ_k‖², squared units of X.
        converged_, status_: did the kept run converge; how it ended, a `jaxem.Status`.
        n_iter_: its steps.

    Example:
        >>> import numpy as np, jaxem.sklearn
        >>> X = np.array([[0.0], [1.0], [10.0], [11.0]])
        >>> e = jaxem.sklearn.KMeans(2, random_state=0).fit(X)
        >>> np.sort(e.cluster_centers_.ravel()).tolist(), e.inertia_
        ([0.5, 10.5], 1.0)
    """

    def __init__(
        self,
        n_clusters: Any = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: Any = 300,
        tol: Any = 0.0,
        random_state: Any = None,
        verbose: Any = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "KMeans":
        """Lloyd's algorithm from `n_init` starts; the one of least inertia is kept.

        Args:
            X: the rows, (n_samples, n_features).
            y: ignored.
            sample_weight: (n_samples,) ≥ 0; a row of weight w counts w times.
        """
        X = validated(self, X)
        x, w = distinct(X, weights_of(sample_weight, X))
        counts_to_use(self, "n_clusters", "max_iter")
        starts = self._starts(x, w, len(X))
        x, w = with_room(x, w)
        with precision(X):
            about_the_mean = np.average(((x - np.average(x, axis=0, weights=w)) ** 2).sum(axis=1), weights=w)
            smallest = self.tol * float(about_the_mean) / 2
            fits = [
                jaxem.kmeans(x, jnp.asarray(mu, x.dtype), w, tol=smallest, max_steps=self.max_iter, empty="relocate")
                for mu in starts
            ]
            fit = jaxem.best(fits)
            self.inertia_ = float(jaxem.distortion(x, fit.theta["mu"], w))
            self.cluster_centers_ = np.asarray(fit.theta["mu"])
            self.labels_ = nearest(X, self.cluster_centers_)
        self.status_ = jaxem.Status(int(fit.status))
        self.converged_ = self.status_ == jaxem.Status.CONVERGED
        self.n_iter_ = max(int(fit.num_steps), 1)
        if self.verbose:
            ended = ((one.status, one.num_steps, jaxem.distortion(x, one.theta["mu"], w)) for one in fits)
            report(self, ended, self.inertia_, "of inertia")
        try:
            jaxem.check(fit)
        except jaxem.EMError as error:
            warnings.warn(str(error), ConvergenceWarning, stacklevel=2)
        return self

    def _starts(self, x: np.ndarray, w: np.ndarray, num_rows: int) -> list[Any]:
        """The centres of every start; x are distinct rows."""
        K = self.n_clusters
        if num_rows < K:
            raise ValueError(
                f"n_clusters={K} needs as many rows, and X has n_samples={num_rows}; ask for fewer clusters"
            )
        if not isinstance(self.init, str):
            return [given_array("init", self.init, (K, x.shape[1]))]
        if self.init not in STARTS:
            raise ValueError(f"init: must be one of {', '.join(map(repr, STARTS))} or centres, got {self.init!r}")
        if len(x) < K:
            told = f"n_clusters={K}: X has {len(x)} distinct rows, so that some clusters are empty; ask for fewer"
            warnings.warn(told, ConvergenceWarning, stacklevel=3)
            return [x[np.arange(K) % len(x)]]
        if self.n_init == "auto":
            num_starts = 10 if self.init == "random" else 1
        else:
            counts_to_use(self, "n_init")
            num_starts = self.n_init
        x, w = with_room(x, w)
        with precision(x):
            keys = jax.random.split(key_of(self.random_state), num_starts)
            return [STARTS[self.init](gaussian.isotropic, key, x, K, weights=w)["mu"] for key in keys]

    def _entered(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "cluster_centers_")
        return validated(self, X, reset=False)

    def predict(self, X: Any) -> np.ndarray:
        """The nearest centre of each row, (n_samples,)."""
        return nearest(self._entered(X), self.cluster_centers_)

    def transform(self, X: Any) -> np.ndarray:
        """‖x_n − μ_k‖, (n_samples, n_clusters), in units of X."""
        return np.sqrt(distances(self._entered(X), self.cluster_centers_).T)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """`fit`, then `labels_`."""
        return self.fit(X, y, sample_weight).labels_

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """−J of these rows."""
        X = self._entered(X)
        with precision(X):
            return -float(jaxem.distortion(X, self.cluster_centers_.astype(X.dtype), weights_of(sample_weight, X)))

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
