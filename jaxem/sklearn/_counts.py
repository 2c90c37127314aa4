"""Mixtures of zeros and ones, of counts, and of categories: latent classes."""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_non_negative

import jaxem
from jaxem.families import bernoulli, categorical, poisson
from jaxem.sklearn._mixture import Mixture, Theta
from jaxem.sklearn._rows import given_array


class PoissonMixture(Mixture):
    """z_n ~ Categorical(π), x_nd | z_n = k ~ Poisson(λ_kd), fitted by EM.

    Args:
        n_components: K.
        tol: smallest gain in nats a row that is worth a step.
        max_iter: most steps.
        n_init: how many starts; the best that converged is kept.
        init_params: "k-means++" or "random": rows, half-way to the overall mean.
        weights_init: π to start at, (K,).
        rate_init: λ to start at, (K, D).
        random_state: an int, a RandomState or None.
        warm_start: start at the last fit.
        verbose: print a line for each start.

    Attributes:
        weights_: π (K,).
        rate_: λ (K, D), counts a row.
        converged_, status_, n_iter_, lower_bound_, model_, theta_: as of `GaussianMixture`.

    Rows are whole numbers ≥ 0, or it is a ValueError that names the first that is not.

    Example:
        >>> import numpy as np, jaxem.sklearn
        >>> X = np.random.default_rng(0).poisson(np.repeat([[1.0, 9.0], [9.0, 1.0]], 50, axis=0))
        >>> e = jaxem.sklearn.PoissonMixture(2, random_state=0).fit(X)
        >>> e.rate_.shape, np.bincount(e.predict(X)).tolist()
        ((2, 2), [50, 50])
    """

    def __init__(
        self,
        n_components: Any = 1,
        *,
        tol: Any = 1e-6,
        max_iter: Any = 1000,
        n_init: Any = 1,
        init_params: Any = "k-means++",
        weights_init: Any = None,
        rate_init: Any = None,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.rate_init = rate_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _model(self) -> jaxem.Mixture:
        return poisson.mixture

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        X = super()._rows(X, **options)
        check_non_negative(X, type(self).__name__)
        return X

    def _given(self, num_features: int) -> Theta:
        rate = given_array("rate_init", self.rate_init, (self.n_components, num_features))
        return super()._given(num_features) | ({} if rate is None else {"rate": rate})

    def _publish(self, theta: Theta) -> None:
        super()._publish(theta)
        self.rate_ = theta["rate"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.categorical = True  # whole numbers: of scikit-learn's words the one that says so
        return tags


class BernoulliMixture(Mixture):
    """z_n ~ Categorical(π), x_nd | z_n = k ~ Bernoulli(p_kd), fitted by EM: latent class analysis of yes and no.

    Args:
        n_components: K.
        binarize: x > binarize is 1, else 0; None takes X as it is, which must then be 0 and 1.
        tol: smallest gain in nats a row that is worth a step.
        max_iter: most steps.
        n_init: how many starts; the best that converged is kept.
        init_params: "k-means++" or "random": rows, half-way to the overall mean.
        weights_init: π to start at, (K,).
        probs_init: p to start at, (K, D).
        random_state: an int, a RandomState or None.
        warm_start: start at the last fit.
        verbose: print a line for each start.

    Attributes:
        weights_: π (K,).
        probs_: p (K, D), in [0, 1].
        converged_, status_, n_iter_, lower_bound_, model_, theta_: as of `GaussianMixture`; what they say is of the
            rows of 0 and 1.

    Example:
        >>> import numpy as np, jaxem.sklearn
        >>> X = np.random.default_rng(0).random((100, 8)) < np.repeat([[0.1], [0.9]], 50, axis=0)
        >>> e = jaxem.sklearn.BernoulliMixture(2, random_state=0).fit(X)
        >>> np.sort(e.probs_.mean(axis=1)).round(1).tolist()
        [0.1, 0.9]
    """

    def __init__(
        self,
        n_components: Any = 1,
        *,
        binarize: Any = 0.0,
        tol: Any = 1e-6,
        max_iter: Any = 1000,
        n_init: Any = 1,
        init_params: Any = "k-means++",
        weights_init: Any = None,
        probs_init: Any = None,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.binarize = binarize
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.probs_init = probs_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _model(self) -> jaxem.Mixture:
        return bernoulli.mixture

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        X = super()._rows(X, **options)
        return X if self.binarize is None else (self.binarize < X).astype(X.dtype)

    def _given(self, num_features: int) -> Theta:
        probs = given_array("probs_init", self.probs_init, (self.n_components, num_features))
        return super()._given(num_features) | ({} if probs is None else {"probs": probs})

    def _publish(self, theta: Theta) -> None:
        super()._publish(theta)
        self.probs_ = theta["probs"]


class CategoricalMixture(Mixture):
    """z_n ~ Categorical(π), x_nd | z_n = k ~ Categorical(p_kd·), fitted by EM: latent class analysis.

    Args:
        n_components: K.
        n_categories: C; None is the largest category of X and one. Say it where a part of the data, as in
            cross-validation, may lack the last one.
        tol: smallest gain in nats a row that is worth a step.
        max_iter: most steps.
        n_init: how many starts; the best that converged is kept.
        init_params: "k-means++" or "random": rows, half-way to the overall frequencies.
        weights_init: π to start at, (K,).
        probs_init: p to start at, (K, D, C).
        random_state: an int, a RandomState or None.
        warm_start: start at the last fit.
        verbose: print a line for each start.

    Attributes:
        weights_: π (K,).
        probs_: p (K, D, C); of each component and column they sum to 1.
        converged_, status_, n_iter_, lower_bound_, model_, theta_: as of `GaussianMixture`.

    Rows are categories 0 … C − 1, as `sklearn.preprocessing.OrdinalEncoder` makes them.

    Example:
        >>> import numpy as np, jaxem.sklearn
        >>> X = np.repeat([[0, 1, 2], [2, 2, 0]], 20, axis=0)
        >>> e = jaxem.sklearn.CategoricalMixture(2, random_state=0).fit(X)
        >>> e.probs_.shape, sorted(e.probs_.argmax(axis=2).tolist())
        ((2, 3, 3), [[0, 1, 2], [2, 2, 0]])
    """

    def __init__(
        self,
        n_components: Any = 1,
        *,
        n_categories: Any = None,
        tol: Any = 1e-6,
        max_iter: Any = 1000,
        n_init: Any = 1,
        init_params: Any = "k-means++",
        weights_init: Any = None,
        probs_init: Any = None,
        random_state: Any = None,
        warm_start: Any = False,
        verbose: Any = 0,
    ) -> None:
        self.n_components = n_components
        self.n_categories = n_categories
        self.tol = tol
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.probs_init = probs_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose

    def _model(self) -> jaxem.Mixture:
        return categorical.mixture

    def _rows(self, X: Any, **options: Any) -> np.ndarray:
        X = super()._rows(X, **options)
        check_non_negative(X, type(self).__name__)
        return X

    def _options(self) -> dict[str, Any]:
        return {"num_categories": self.n_categories}

    def _given(self, num_features: int) -> Theta:
        given = super()._given(num_features)
        if self.probs_init is not None:
            C = self.n_categories or np.shape(self.probs_init)[-1]
            given["probs"] = given_array("probs_init", self.probs_init, (self.n_components, num_features, C))
        return given

    def _publish(self, theta: Theta) -> None:
        super()._publish(theta)
        self.probs_ = theta["probs"]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        tags.input_tags.categorical = True
        return tags
