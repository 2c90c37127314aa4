"""The registry: for each family a random θ, data drawn without jaxem, and SciPy's log-density as the oracle."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import scipy.stats as st
from conftest import PRECISION
from jaxem import Mixture
from jaxem.families import gaussian

FLOAT = np.float64 if PRECISION == 64 else np.float32
EPS = float(np.finfo(FLOAT).eps)


def tolerance(f64: float, f32: float) -> float:
    """A tolerance keyed by the leg's precision; say beside it why it is what it is."""
    return f64 if PRECISION == 64 else f32


def cast(value):
    """θ or x in the leg's precision (integers stay integers)."""
    if isinstance(value, dict):
        return {name: cast(v) for name, v in value.items()}
    value = np.asarray(value)
    return jnp.asarray(value, FLOAT if value.dtype.kind == "f" else None)


@dataclass(frozen=True)
class Case:
    """A family under test; K components, D features, N rows."""

    name: str
    m: Mixture
    random_theta: Callable[[np.random.Generator, int, int], dict]
    random_x: Callable[[np.random.Generator, int, int], np.ndarray]
    log_density: Callable[[dict, np.ndarray, int], np.ndarray]  # (θ, x, k) -> log p(x_n | z_n = k), (N,)

    def theta(self, seed: int = 0, K: int = 3, D: int = 2) -> dict:
        return cast(self.random_theta(np.random.default_rng([seed, 1]), K, D))

    def x(self, seed: int = 0, N: int = 60, D: int = 2):
        return cast(self.random_x(np.random.default_rng([seed, 2]), N, D))

    def log_joint(self, theta: dict, x) -> np.ndarray:
        """(N, K) by SciPy in float64."""
        theta = {name: np.asarray(value, float) for name, value in theta.items()}
        x = np.asarray(x)
        columns = [self.log_density(theta, x, k) for k in range(len(theta["pi"]))]
        with np.errstate(divide="ignore"):
            return np.log(theta["pi"])[None] + np.stack(columns, axis=1)


def dirichlet(rng, K):
    return rng.dirichlet(np.full(K, 3.0))


def clumps(rng, N, D):
    """Three overlapping clumps."""
    return rng.normal(size=(N, D)) + 1.5 * rng.integers(0, 3, size=(N, 1))


CASES = [
    Case(
        "isotropic",
        gaussian.isotropic,
        lambda rng, K, D: {"pi": dirichlet(rng, K), "mu": 2 * rng.normal(size=(K, D)), "sigma": rng.uniform(0.5, 1.5)},
        clumps,
        lambda theta, x, k: st.norm.logpdf(x, theta["mu"][k], theta["sigma"]).sum(axis=1),
    ),
]
