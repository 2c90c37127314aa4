"""What the large comparisons fit: sizes, data, starts; and one number, in float64, for the outcome of every program."""

from typing import Any, NamedTuple

import numpy as np

ROWS_AT_A_TIME = 16_384


class Case(NamedTuple):
    """A size, and how many iterations are made from the start."""

    num_rows: int
    num_features: int
    num_components: int
    num_steps: int

    def tiny(self) -> "Case":
        return Case(2_000, min(self.num_features, 3), 4, 2)

    def setting(self, start: str, devices: int) -> dict[str, Any]:
        """As a comparison states it."""
        n, d, k, _ = self
        return {"N": n, "D": d, "K": k, "precision": 32, "start": start, "devices": devices}


def data(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters of different shapes, and K of its rows as first centres; float32."""
    rng = np.random.default_rng(seed)
    n, d, k, _ = case
    shapes = rng.normal(size=(k, d, d)).astype(np.float32) / np.sqrt(d) + np.eye(d, dtype=np.float32)
    centres = 1.5 * rng.normal(size=(k, d)).astype(np.float32)
    z = rng.integers(k, size=n)
    x = rng.standard_normal(size=(n, d), dtype=np.float32)
    for j in range(k):
        x[z == j] = x[z == j] @ shapes[j].T + centres[j]
    return x, x[rng.choice(n, k, replace=False)]


def blobs(case: Case, seed: int, x: np.ndarray | None = None, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping unit Gaussians, and K rows as first centres; float32, into `x` (a file's, say) where given.

    Made block by block, so that millions of rows cost no more than themselves.
    """
    rng = np.random.default_rng(seed)
    n, d, k, _ = case
    centres = np.float32(spread) * rng.standard_normal(size=(k, d), dtype=np.float32)
    x = np.empty((n, d), np.float32) if x is None else x
    for first in range(0, n, 2**18):
        rows = x[first : first + 2**18]
        rows[:] = rng.standard_normal(size=rows.shape, dtype=np.float32)
        rows += centres[rng.integers(k, size=len(rows))]
    return x, np.array(x[np.sort(rng.choice(n, k, replace=False))])


def start(family: str, mu: np.ndarray) -> dict[str, np.ndarray]:
    """The centres; for EM also π = 1/K, and Σ_k = 4 I in the family's own shape."""
    if family == "kmeans":
        return {"mu": mu}
    k, d = mu.shape
    eye = np.eye(d, dtype=np.float32)
    scale = {
        "full": {"Sigma": np.tile(4 * eye, (k, 1, 1))},
        "tied": {"Sigma": 4 * eye},
        "diagonal": {"sigma": np.full((k, d), 2, np.float32)},
        "spherical": {"sigma": np.full(k, 2, np.float32)},
        "isotropic": {"sigma": np.float32(2)},
    }
    return {"pi": np.full(k, 1 / k, np.float32), "mu": mu} | scale[family]


def objective(family: str, x: np.ndarray, theta: dict[str, Any]) -> float:
    """Distortion of the centres for k-means, else the log-likelihood."""
    mu = np.asarray(theta["mu"], float)
    if family == "kmeans":
        return distortion(x, mu)
    return log_likelihood(x, np.asarray(theta["pi"], float), mu, covariances(theta))


def distortion(x: np.ndarray, mu: np.ndarray) -> float:
    """J in float64, by NumPy; expanded squares lose nothing that matters in float64 at data near the origin."""
    total = 0.0
    for first in range(0, len(x), ROWS_AT_A_TIME):
        rows = x[first : first + ROWS_AT_A_TIME].astype(float)
        total += np.min((rows**2).sum(1)[:, None] - 2 * rows @ mu.T + (mu**2).sum(1), axis=1).sum()
    return float(total)


def covariances(theta: dict[str, Any]) -> np.ndarray:
    """Σ_k, (K, D, D), float64."""
    k, d = theta["mu"].shape
    if "Sigma" in theta:
        return np.broadcast_to(np.asarray(theta["Sigma"], float), (k, d, d))
    sigma = np.asarray(theta["sigma"], float)
    sigma = sigma.reshape(-1, 1) if sigma.ndim < 2 else sigma
    return np.broadcast_to(sigma, (k, d))[:, :, None] ** 2 * np.eye(d)


def log_likelihood(x: np.ndarray, pi: np.ndarray, mu: np.ndarray, Sigma: np.ndarray) -> float:
    """Σ_n log Σ_k π_k N(x_n; μ_k, Σ_k), by NumPy in float64."""
    from scipy.linalg import solve_triangular
    from scipy.special import logsumexp

    d = x.shape[1]
    factors = np.linalg.cholesky(Sigma)
    whiten = [solve_triangular(factor, np.eye(d), lower=True).T for factor in factors]
    offset = np.log(pi) - np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
    total = 0.0
    for first in range(0, len(x), ROWS_AT_A_TIME):
        rows = x[first : first + ROWS_AT_A_TIME].astype(float)
        quadratic = np.stack([(((rows - m) @ w) ** 2).sum(1) for m, w in zip(mu, whiten, strict=True)])
        total += logsumexp(offset[:, None] - quadratic / 2, axis=0).sum()
    return float(total - len(x) * d / 2 * np.log(2 * np.pi))
