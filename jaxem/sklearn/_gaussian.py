"""Gaussian mixtures under scikit-learn's names."""

from typing import Any

import numpy as np

import jaxem
from jaxem.families import gaussian
from jaxem.sklearn._kmeans import labels_of_kmeans
from jaxem.sklearn._mixture import Mixture, Theta
from jaxem.sklearn._rows import given_array

FAMILIES = {
    "full": gaussian.full,
    "tied": gaussian.tied,
    "diag": gaussian.diagonal,
    "spherical": gaussian.spherical,
    "isotropic": gaussian.isotropic,
}


def from_kmeans(m: jaxem.Mixture, key: Any, x: np.ndarray, num_components: int, *, weights: Any) -> Theta:
    """One M-step from the clusters of k-means, as scikit-learn starts."""
    labels = np.zeros(len(x), int) if num_components == 1 else labels_of_kmeans(key, x, num_components, weights)
    try:
        return jaxem.inits.from_labels(m, x, labels, num_components, weights=weights)
    except ValueError as error:
        raise ValueError(f"init_params='kmeans': {error}; or raise reg_covar") from error


class GaussianMixture(Mixture):
    """z_n ~ Categorical(π), x_n | z_n = k ~ N(μ_k, Σ_k), fitted by EM; a drop-in for `sklearn.mixture.GaussianMixture`.

    Args:
        n_components: K.
        covariance_type: "full" Σ_k, "tied" one Σ, "diag" diag σ_k², "spherical" σ_k² I, or jaxem's "isotropic", one
            σ² I for all: the model whose limit is k-means.
        tol: smallest gain in nats a row that is worth a step; jaxem's own default, 1e-10, is tighter.
        reg_covar: the least variance in any direction, in squared units of X (`gaussian.with_floor`); 0 is none.
            scikit-learn *adds* its own to every variance; a floor is not felt until it is reached, and F never falls.
        max_iter: most steps.
        n_init: how many starts; the best that converged is kept.
        init_params: "kmeans", the clusters of k-means; "k-means++" or "random" rows as centres with pooled scales.
        weights_init: π to start at, (K,).
        means_init: μ to start at, (K, D).
        precisions_init: Σ⁻¹ to start at, in the shape of `precisions_`.
        random_state: an int, a RandomState or None.
        warm_start: start at the last fit.
        verbose: print a line for each start.

    Attributes:
        weights_: π (K,).
        means_: μ (K, D), in units of X.
        covariances_: Σ: (K, D, D) full, (D, D) tied, (K, D) diag, (K,) spherical, () isotropic, squared units of X.
        precisions_: their inverses, in the same shapes.
        converged_, status_: did the kept fit converge; how it ended, a `jaxem.Status`.
        n_iter_, lower_bound_: its steps; its F, which is log p(X), in nats a row.
        model_, theta_: the same fit as jaxem has it.

    Example:
        >>> import numpy as np, jaxem.sklearn
        >>> X = np.concatenate([np.random.default_rng(0).normal(size=(50, 2)) + shift for shift in (0, 9)])
        >>> e = jaxem.sklearn.GaussianMixture(2, random_state=0).fit(X)
        >>> e.converged_, np.bincount(e.predict(X)).tolist(), e.covariances_.shape
        (True, [50, 50], (2, 2, 2))
    """

    _starts = {"kmeans": from_kmeans, **Mixture._starts}  # noqa: RUF012

    def __init__(
        self,
        n_components: Any = 1,
        *,
        covariance_type: Any = "full",
        tol: Any = 1e-3,
        reg_covar: Any = 1e-6,
        max_iter: Any = 100,
        n_init: Any = 1,
        init_params: Any = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _model(self) -> jaxem.Mixture:
        if self.covariance_type not in FAMILIES:
            choices = ", ".join(map(repr, FAMILIES))
            raise ValueError(f"covariance_type: must be one of {choices}, got {self.covariance_type!r}")
        m = FAMILIES[self.covariance_type]
        if self.reg_covar == 0:
            return m
        if not (np.ndim(self.reg_covar) == 0 and 0 < self.reg_covar < np.inf):
            raise ValueError(f"reg_covar: must be a finite number ≥ 0, got {self.reg_covar!r}")
        return gaussian.with_floor(m, self.reg_covar)

    def _given(self, num_features: int) -> Theta:
        K, D = self.n_components, num_features
        given = super()._given(num_features)
        means = given_array("means_init", self.means_init, (K, D))
        if means is not None:
            given["mu"] = means
        shapes = {"full": (K, D, D), "tied": (D, D), "diag": (K, D), "spherical": (K,), "isotropic": ()}
        precisions = given_array("precisions_init", self.precisions_init, shapes[self.covariance_type])
        if precisions is not None:
            is_matrix = self.covariance_type in ("full", "tied")
            given |= {"Sigma": np.linalg.inv(precisions)} if is_matrix else {"sigma": precisions**-0.5}
        return given

    def _publish(self, theta: Theta) -> None:
        super()._publish(theta)
        self.means_ = theta["mu"]
        self.covariances_ = theta["Sigma"] if "Sigma" in theta else theta["sigma"] ** 2
        self.precisions_ = np.linalg.inv(theta["Sigma"]) if "Sigma" in theta else 1 / self.covariances_
