"""What every mixture is as an estimator: starts, lanes, the best of them, and what it says about rows."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

import jaxem
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

Theta = dict[str, Any]


class Mixture(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    """A mixture of `n_components`, fitted by EM. A family says which model, and what its parameters are called."""

    _starts: ClassVar[dict[str, Callable[..., Theta]]] = {  # init_params -> (m, key, x, K, weights=) -> θ
        "k-means++": jaxem.inits.kmeans_plus_plus,
        "random": jaxem.inits.random_points,
        "random_from_data": jaxem.inits.random_points,
    }

    # ---- what a family says

    def _model(self) -> jaxem.Mixture:
        """Which mixture."""
        raise NotImplementedError

    def _given(self, num_features: int) -> Theta:
        """Those entries of θ where the user says where to start."""
        weights = given_array("weights_init", self.weights_init, (self.n_components,))
        return {} if weights is None else {"pi": weights}

    def _publish(self, theta: Theta) -> None:
        """The attributes that are made of θ."""
        self.weights_ = theta["pi"]

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        """X as the family takes it."""
        return validated(self, X, **options)

    # ---- fit

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "Mixture":
        """Fit by EM from `n_init` starts; the best that converged is kept.

        Args:
            X: the rows, (n_samples, n_features).
            y: ignored.
            sample_weight: (n_samples,) ≥ 0; a row of weight w counts w times.
        """
        X = self._rows(X)
        x, w = distinct(X, weights_of(sample_weight, X))
        self._check(x, len(X))
        x, w = with_room(x, w)
        with precision(X):
            m = self._model()
            thetas = self._lanes(m, x, w)
            fits = jaxem.em_batch(m, thetas, x, weights=w, tol=self.tol, max_steps=self.max_iter)
            fit = jaxem.best(fits)
        size = float(w.sum())
        self._keep(m, fit, size)
        if self.verbose:
            starts = zip(fits.status, fits.num_steps, fits.free_energy / size, strict=True)
            report(self, starts, self.lower_bound_, "nats a row")
        try:
            jaxem.check(fit)
        except jaxem.EMError as error:
            warnings.warn(str(error), ConvergenceWarning, stacklevel=2)
        return self

    def _check(self, x: np.ndarray, num_rows: int) -> None:
        counts_to_use(self, "n_components", "n_init", "max_iter")
        if self.init_params not in self._starts:
            choices = ", ".join(map(repr, self._starts))
            raise ValueError(f"init_params: must be one of {choices}, got {self.init_params!r}")
        if len(x) < self.n_components:
            raise ValueError(
                f"n_components={self.n_components} needs as many distinct rows, and X has {len(x)} "
                f"(n_samples={num_rows}); ask for fewer components"
            )

    def _lanes(self, m: jaxem.Mixture, x: np.ndarray, w: np.ndarray) -> Theta:
        """θ of every start, with a leading axis."""
        if self.warm_start and hasattr(self, "theta_"):
            return {name: value[None] for name, value in self.theta_.items()}
        given = self._given(x.shape[1])
        start = self._starts[self.init_params]
        thetas: list[Theta] = [given]
        if set(given) != set(m.parameters):
            keys = jax.random.split(key_of(self.random_state), self.n_init)
            thetas = [start(m, key, x, self.n_components, weights=w, **self._options()) | given for key in keys]
        return {name: jnp.stack([jnp.asarray(theta[name], x.dtype) for theta in thetas]) for name in m.parameters}

    def _options(self) -> dict[str, Any]:
        """What else a start has to know."""
        return {}

    def _keep(self, m: jaxem.Mixture, fit: jaxem.Fit, size: float) -> None:
        self.model_ = m
        self.theta_ = {name: np.asarray(value) for name, value in fit.theta.items()}
        self.status_ = jaxem.Status(int(fit.status))
        self.converged_ = self.status_ == jaxem.Status.CONVERGED
        self.n_iter_ = max(int(fit.num_steps), 1)
        self.lower_bound_ = float(fit.free_energy) / size
        self._publish(self.theta_)

    # ---- what it says about rows

    def _entered(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "theta_")
        return self._rows(X, reset=False)

    def _of_rows(self, quantity: Callable[..., jax.Array], X: Any) -> np.ndarray:
        """A table (N, K) that jaxem makes of rows."""
        X = self._entered(X)
        with precision(X):
            return np.asarray(quantity(self.model_, self.theta_, roomy(X)))[: len(X)]

    def score_samples(self, X: Any) -> np.ndarray:
        """log p(x_n), in nats, (n_samples,)."""
        return logsumexp(self._of_rows(jaxem.log_joint, X), axis=1)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of log p(x_n), in nats a row."""
        return float(np.mean(self.score_samples(X)))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable component of each row, (n_samples,)."""
        return np.argmax(self._of_rows(jaxem.log_joint, X), axis=1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """p(z_n = k | x_n), (n_samples, n_components)."""
        return self._of_rows(jaxem.responsibilities, X)

    def transform(self, X: Any) -> np.ndarray:
        """`predict_proba`: what the step after this one in a pipeline gets."""
        return self.predict_proba(X)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> np.ndarray:
        """`fit`, then `predict` of the same rows."""
        return self.fit(X, y, sample_weight).predict(X)

    def sample(self, n_samples: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(X, components): that many draws from the fitted mixture, and which component each came from."""
        check_is_fitted(self, "theta_")
        with precision(self.weights_):
            x, z = jaxem.sample(self.model_, self.theta_, key_of(self.random_state), n_samples)
        return np.asarray(x), np.asarray(z)

    def aic(self, X: Any) -> float:
        """−2 log p(X) + 2 df: smaller is better (`jaxem.aic`)."""
        return 2 * self._num_parameters() - 2 * float(np.sum(self.score_samples(X)))

    def bic(self, X: Any) -> float:
        """−2 log p(X) + df·log N: smaller is better (`jaxem.bic`)."""
        log_likelihoods = self.score_samples(X)
        return float(self._num_parameters() * np.log(len(log_likelihoods)) - 2 * np.sum(log_likelihoods))

    def _num_parameters(self) -> int:
        check_is_fitted(self, "theta_")
        return jaxem.num_parameters(self.model_, self.theta_)

    @property
    def _n_features_out(self) -> int:
        return len(self.weights_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
