"""The registry: for each family a random θ, data drawn without jaxem, and SciPy's log-density as the oracle."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import scipy.stats as st

from jaxem import Mixture
from jaxem.families import (
    bernoulli,
    categorical,
    exponential,
    gamma,
    gaussian,
    negative_binomial,
    poisson,
    student_t,
    von_mises_fisher,
)

from conftest import PRECISION

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
    slack: float = 1.0  # how many times the tolerances of the theorems it may take; say why
    numpyro: float = 1.0  # the same of NumPyro's own distribution, where that is the one with fewer digits

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


def afresh(m: Mixture) -> Mixture:
    """The same mixture, but no function compiled for it serves this one."""
    return replace(m, statistics=lambda theta, x, gamma: m.statistics(theta, x, gamma))


def dirichlet(rng, K):
    return rng.dirichlet(np.full(K, 3.0))


def clumps(rng, N, D):
    """Three overlapping clumps."""
    return rng.normal(size=(N, D)) + 1.5 * rng.integers(0, 3, size=(N, 1))


CATEGORIES = 4  # C of the categorical case


def normalised(p):
    """float32's simplex is one to 10⁻⁷ only; SciPy insists on more."""
    return p / p.sum(axis=-1, keepdims=True)


def groups(rng, levels, N, D):
    """(N, D): each row at one of three levels."""
    return np.repeat(rng.choice(levels, size=(N, 1)), D, axis=1)


def weights_and_means(rng, K, D):
    return {"pi": dirichlet(rng, K), "mu": 1 + rng.normal(size=(K, D))}


def directions(x):
    """Of norm 1, to float64's rounding."""
    x = np.asarray(x, float)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def covariances(rng, *shape):
    """Well-conditioned, correlated."""
    root = rng.normal(size=(*shape, shape[-1])) / 2
    return root @ np.swapaxes(root, -1, -2) + 0.5 * np.eye(shape[-1])


CASES = [
    Case(
        "isotropic",
        gaussian.isotropic,
        lambda rng, K, D: {"pi": dirichlet(rng, K), "mu": 1 + rng.normal(size=(K, D)), "sigma": rng.uniform(0.5, 1.5)},
        clumps,
        lambda theta, x, k: st.norm.logpdf(x, theta["mu"][k], theta["sigma"]).sum(axis=1),
    ),
    Case(
        "bernoulli",
        bernoulli.mixture,
        lambda rng, K, D: {"pi": dirichlet(rng, K), "probs": rng.uniform(0.05, 0.95, size=(K, D))},
        lambda rng, N, D: rng.binomial(1, groups(rng, [0.2, 0.5, 0.9], N, D)),
        lambda theta, x, k: st.bernoulli.logpmf(x, theta["probs"][k]).sum(axis=1),
    ),
    Case(
        "categorical",
        categorical.mixture,
        lambda rng, K, D: {"pi": dirichlet(rng, K), "probs": rng.dirichlet(np.ones(CATEGORIES), size=(K, D))},
        lambda rng, N, D: rng.binomial(CATEGORIES - 1, groups(rng, [0.1, 0.5, 0.8], N, D)),
        lambda theta, x, k: st.multinomial.logpmf(np.eye(CATEGORIES)[x], 1, normalised(theta["probs"][k])).sum(axis=1),
    ),
    Case(
        "poisson",
        poisson.mixture,
        lambda rng, K, D: {"pi": dirichlet(rng, K), "rate": rng.uniform(0.5, 9, size=(K, D))},
        lambda rng, N, D: rng.poisson(groups(rng, [1.0, 4.0, 9.0], N, D)),
        lambda theta, x, k: st.poisson.logpmf(x, theta["rate"][k]).sum(axis=1),
    ),
    Case(
        "exponential",
        exponential.mixture,
        lambda rng, K, D: {"pi": dirichlet(rng, K), "rate": rng.uniform(0.2, 4, size=(K, D))},
        lambda rng, N, D: rng.exponential(groups(rng, [0.2, 1.0, 5.0], N, D)),
        lambda theta, x, k: st.expon.logpdf(x, scale=1 / theta["rate"][k]).sum(axis=1),
    ),
    Case(
        "gamma",
        gamma.mixture,
        lambda rng, K, D: {
            "pi": dirichlet(rng, K),
            "concentration": rng.uniform(0.5, 6, size=(K, D)),
            "rate": rng.uniform(0.5, 4, size=(K, D)),
        },
        lambda rng, N, D: rng.gamma(2.5, groups(rng, [0.2, 1.0, 5.0], N, D)),
        lambda theta, x, k: st.gamma.logpdf(x, theta["concentration"][k], scale=1 / theta["rate"][k]).sum(axis=1),
    ),
    Case(
        "negative_binomial",
        negative_binomial.mixture,
        lambda rng, K, D: {
            "pi": dirichlet(rng, K),
            "mean": rng.uniform(0.5, 40, size=(K, D)),
            "concentration": rng.uniform(0.5, 6, size=(K, D)),
        },
        lambda rng, N, D: rng.poisson(rng.gamma(1.5, groups(rng, [1.0, 8.0, 30.0], N, D))),  # some beyond 32
        lambda theta, x, k: st.nbinom.logpmf(
            x, theta["concentration"][k], 1 / (1 + theta["mean"][k] / theta["concentration"][k])
        ).sum(axis=1),
        numpyro=1e6,  # JAX's betaln has eight digits
    ),
    Case(
        "student_t",
        student_t.mixture,
        lambda rng, K, D: weights_and_means(rng, K, D) | {"Sigma": covariances(rng, K, D), "df": rng.uniform(1, 9, K)},
        lambda rng, N, D: clumps(rng, N, D) + 0.3 * rng.standard_t(1.5, size=(N, D)),
        lambda theta, x, k: np.reshape(
            st.multivariate_t.logpdf(x, theta["mu"][k], theta["Sigma"][k], df=theta["df"][k]), -1
        ),
    ),
    Case(
        "von_mises_fisher",
        von_mises_fisher.mixture,
        lambda rng, K, D: {
            "pi": dirichlet(rng, K),
            "mu": directions(rng.normal(size=(K, D))),
            "kappa": rng.uniform(0.5, 9, K),
        },
        lambda rng, N, D: directions(rng.normal(size=(N, D)) + 2 * np.eye(D)[rng.integers(0, D, N)]),
        lambda theta, x, k: st.vonmises_fisher(directions(theta["mu"][k]), theta["kappa"][k]).logpdf(directions(x)),
        slack=4,  # κ follows a resultant near N_k with a derivative of some κ²
    ),
    Case(
        "spherical",
        gaussian.spherical,
        lambda rng, K, D: weights_and_means(rng, K, D) | {"sigma": rng.uniform(0.5, 1.5, K)},
        clumps,
        lambda theta, x, k: st.norm.logpdf(x, theta["mu"][k], theta["sigma"][k]).sum(axis=1),
    ),
    Case(
        "diagonal",
        gaussian.diagonal,
        lambda rng, K, D: weights_and_means(rng, K, D) | {"sigma": rng.uniform(0.5, 1.5, (K, D))},
        clumps,
        lambda theta, x, k: st.norm.logpdf(x, theta["mu"][k], theta["sigma"][k]).sum(axis=1),
    ),
    Case(
        "tied",
        gaussian.tied,
        lambda rng, K, D: weights_and_means(rng, K, D) | {"Sigma": covariances(rng, D)},
        clumps,
        lambda theta, x, k: np.reshape(st.multivariate_normal.logpdf(x, theta["mu"][k], theta["Sigma"]), -1),
    ),
    Case(
        "full",
        gaussian.full,
        lambda rng, K, D: weights_and_means(rng, K, D) | {"Sigma": covariances(rng, K, D)},
        clumps,
        lambda theta, x, k: np.reshape(st.multivariate_normal.logpdf(x, theta["mu"][k], theta["Sigma"][k]), -1),
    ),
]

# one of each kind, where a statement is about the driver and not about the family: compiling is what tests cost
KINDS = [case for case in CASES if case.name in {"isotropic", "full", "bernoulli"}]
