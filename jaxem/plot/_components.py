"""What the figures of rows are made of: two columns of them, and the components as they look in those."""

from typing import Any, NamedTuple

import jax
import numpy as np

from jaxem._answers.covariances import covariances
from jaxem.families._mixture import Mixture, mixture_only

HALF, MOST = (
    1.177410,
    2.447747,
)  # √(−2 log(1 − p)): radii within which p = 50 % and 95 % of a normal law in the plane lie
POINTS = 200  # of a grid, in each direction


class Shown(NamedTuple):
    """A model at one θ, its rows, and which of their columns are drawn."""

    m: Mixture
    theta: dict[str, np.ndarray]
    x: np.ndarray  # (N, D)
    columns: tuple[int, ...]  # one, or two
    names: tuple[str, ...]  # theirs

    @property
    def points(self) -> np.ndarray:
        """The columns that are drawn, (N, 1) or (N, 2)."""
        return self.x[:, list(self.columns)]


def shown(m: Any, theta: Any, x: Any, columns: Any, names: Any) -> Shown:
    """What was passed, checked; θ may be a fit, x a data frame, and columns are numbers or names."""
    m = mixture_only("plot", m)
    theta = {name: np.asarray(value) for name, value in getattr(theta, "theta", theta).items()}
    known = [str(name) for name in (getattr(x, "columns", ()) if names is None else names)]
    x = np.asarray(x).astype(jax.dtypes.canonicalize_dtype(float))  # what JAX computes in
    x = x[:, None] if x.ndim == 1 else x
    if names is not None and len(known) != x.shape[1]:
        raise ValueError(f"names: must be {x.shape[1]}, one per column of x, got {len(known)}")
    known = known or [f"$x_{{{d + 1}}}$" for d in range(x.shape[1])]
    wanted = tuple(range(min(2, x.shape[1]))) if columns is None else tuple(columns)
    places = tuple(known.index(column) if column in known else column for column in wanted)
    good = all(isinstance(place, int | np.integer) and 0 <= place < x.shape[1] for place in places)
    if not good or len(places) != min(2, x.shape[1]) or len(set(places)) != len(places):
        raise ValueError(f"columns: must be two of the {x.shape[1]} of x, by number from 0 or by name, got {columns!r}")
    return Shown(m, theta, x, places, tuple(known[place] for place in places))


def normal_laws(s: Shown) -> tuple[np.ndarray, np.ndarray] | None:
    """Means (K, c) and covariances (K, c, c) of the c columns shown, of a Gaussian family; else None."""
    if "mu" not in s.theta:
        return None
    columns = list(s.columns)
    return s.theta["mu"][:, columns], np.asarray(covariances(s.m, s.theta))[:, columns][:, :, columns]


def log_density(theta: dict[str, np.ndarray], means: np.ndarray, covariances: np.ndarray, at: np.ndarray) -> np.ndarray:
    """log Σ_k π_k N(at | μ_k, Σ_k) in the plane, over the last axis of `at`."""
    terms = []
    pi = theta["pi"][: len(means)]  # noise, the last, has no law in a plane
    for weight, mean, covariance in zip(pi, means, covariances, strict=True):
        difference = at - mean
        square = np.einsum("...i,ij,...j->...", difference, np.linalg.inv(covariance), difference)
        log_norm = len(mean) / 2 * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1] / 2
        with np.errstate(divide="ignore"):
            terms.append(np.log(weight) - log_norm - square / 2)
    return np.logaddexp.reduce(terms)


def component_names(s: Shown) -> list[str]:
    """1 … K, and noise."""
    count = len(s.theta["pi"])
    noise = getattr(s.m, "has_noise", False)
    return [*(str(k + 1) for k in range(count - noise)), *["noise"] * noise]


def limits(points: np.ndarray, part: float = 0.08) -> tuple[float, float]:
    """The range of numbers and a margin."""
    low, high = float(points.min()), float(points.max())
    margin = part * ((high - low) or abs(high) or 1.0)
    return low - margin, high + margin
