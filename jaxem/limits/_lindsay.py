"""C19: how much better any mixture could be, however many components it had (Lindsay 1983).

With the covariance σ²I held, f(x|a) the density N(x; a, σ²I), and p(x|θ) the mixture at θ,

    D(a) = Σ_n w_n f(x_n|a)/p(x_n|θ) − W,      W = Σ w.

For every probability G over means: L(G) − L(θ) ≤ W log(1 + ∫D dG/W) ≤ W log(1 + sup D/W), by Jensen. θ is a maximum
over all mixtures (an NPMLE) iff sup D = 0. D(μ_k) = N_k/π_k − W, so it is 0 at every atom of a fixed point of EM with
π free. sup D lies in the bounding box of the data, for projection on their hull brings a point nearer to all of them.

The supremum is found by branch and bound. On a cell with centre c and half-diagonal r, with d_n and D_n the least and
the largest distance of x_n from the cell and u_n = w_n f(d_n)/p_n, both of these bound D from above:

    Σ u_n − W       and       D(c) + r‖∇D(c)‖ + ½r² Σ u_n (D_n²/σ² − 1)₊/σ²    (Taylor)

All is done in logarithms, in float64, on the host: how many cells there are depends on the data.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxem._core.arrays import blame_rows, numbers, shown, tolerance
from jaxem._core.checks import enter
from jaxem._core.model import Model, Theta, ThetaLike
from jaxem._core.objective import assign
from jaxem._core.tracing import is_concrete
from jaxem.families._mixture import Mixture, whole_rows_only
from jaxem.families.gaussian import isotropic, squared_distances

RIGOROUS = 3  # features, at most, in which the supremum is searched with proof
EVALUATIONS = 4e8  # of f(x_n|a) after which a search ends with the bound that it has
BATCH = 2e6  # of those at a time
CLIMBERS = 64  # rows from which means climb
STEPS = 200  # of a climb


class GlobalGap(NamedTuple):
    """C19: how many nats any mixture, of any number of components, can be above this one at the same σ."""

    nats: Float[Array, ""]  # W log(1 + sup D/W), rounded up; an estimate, from below, where not is_bound
    at: Float[Array, " D"]  # the best mean found for a further component
    is_bound: Bool[Array, ""]  # is it proved?


def isotropic_only(what: str, m: Model) -> Mixture:
    """A ValueError for a model whose components are not N(μ_k, σ²I) with one σ."""
    mixture = whole_rows_only(what, m)
    if (mixture.program, mixture.shapes) != (isotropic.program, isotropic.shapes):
        raise ValueError(f"m: {what} is for gaussian.isotropic, whose components share one σ; got another family")
    return mixture


def gradient_function(m: Model, theta: ThetaLike, x: Any, at: Any, *, weights: Any = None) -> Float[Array, "*points"]:
    """Lindsay's gradient D(a): the slope of L from θ towards a component of mean a, in nats (C19).

        D(a) = Σ_n w_n N(x_n; a, σ²I)/p(x_n|θ) − W

    Where it is positive, a new component there raises the likelihood; where it is nowhere, θ is the best mixture of any
    number of components. 0 at the μ_k of a fixed point of EM with π free. ∞ where it overflows: an outlier of θ. Works
    inside `jit` and `vmap`.

    Args:
        m: `gaussian.isotropic`; what it holds does not matter.
        theta: pi, mu, sigma.
        x: the data, (N, D), or (N,) for D = 1.
        at: a, (D,) or (…, D).
        weights: w (N,) ≥ 0.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.0], [1.0], [9.0]])
    >>> theta = {"pi": [1.0], "mu": [[0.0]], "sigma": 1.0}
    >>> slope = jaxem.gradient_function(gaussian.isotropic, theta, x, [[0.0], [9.0]])
    >>> float(slope[0]), bool(slope[1] > 1e6)
    (0.0, True)
    """
    m = isotropic_only("gradient_function", m)
    theta, data = enter(m, theta, x, weights)
    at = numbers("at", at, theta["mu"].dtype)
    D = data.x.shape[1]
    if at.ndim < 1 or at.shape[-1] != D:
        raise ValueError(f"at: must be (…, D) with D = {D} as in x, got shape {at.shape}; one point a row")
    values = _gradient(m, theta, data.x, data.weights, at.reshape(-1, D))
    return values.reshape(at.shape[:-1])


@jax.jit
def _gradient(m: Mixture, theta: Theta, x: Array, weights: Array | None, at: Array) -> Array:
    w = jnp.ones_like(x[:, 0]) if weights is None else weights
    _, log_p = assign(m.table(theta, x), 1.0, axis=0)
    log_normaliser = x.shape[1] / 2 * jnp.log(2 * jnp.pi * theta["sigma"] ** 2)
    exponent = -squared_distances(x, at) / (2 * theta["sigma"] ** 2) - (log_p + log_normaliser)[None]
    return jnp.sum(jnp.where(w > 0, w, 0)[None] * jnp.exp(jnp.where(w > 0, exponent, -jnp.inf)), axis=1) - jnp.sum(w)


def global_gap(
    m: Model,
    theta: ThetaLike,
    x: Any,
    *,
    weights: Any = None,
    tol: float = 0.1,
    box: Any = None,
) -> GlobalGap:
    """How far θ can be from the best mixture of any number of components at its σ (C19).

        L(G) − L(θ) ≤ W log(1 + sup_a D(a)/W)      for every mixture G of N(a, σ²I)

    Up to D = 3 the supremum is bounded with proof, by branch and bound. Beyond, `nats` is an estimate: the largest D to
    which means climb from rows of the data, which may be too small; `is_bound` is then False. It is a bound, not a
    forecast: 31 nats may be allowed where 0.1 are there to gain. θ may be anything; a fit with π free has the smallest.

    Rounding allowance: sup D + W is multiplied by 1 + 4·eps·(N + D + 4 + max_n (d_n/2σ² + |log p_n|)), in float64
    whatever x's precision. Concrete x and θ only: the number of cells depends on them.

    Args:
        m: `gaussian.isotropic`; what it holds does not matter.
        theta: pi, mu, sigma.
        x: the data, (N, D), or (N,) for D = 1.
        weights: w (N,) ≥ 0.
        tol: the search ends when the proved bound is within so many nats of what was found; 0 < tol.
        box: (lowest, highest), each (D,): bound only mixtures whose means lie there. The data's own when absent.

    Returns:
        A `GlobalGap`. Should a search end early (after 4e8 evaluations), its bound is looser than tol, and still one.

    Raises:
        ValueError: inside `jit`, for another family than isotropic, or a tol ≤ 0.

    Source: Lindsay, Ann. Statist. 11 (1983) 86–94; the logarithm is Jensen's.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([-1.0, 1.0])
    >>> gap = jaxem.global_gap(gaussian.isotropic, {"pi": [1.0], "mu": [[0.0]], "sigma": 1.1}, x, tol=1e-3)
    >>> bool(gap.nats < 2e-3), bool(gap.is_bound)                       # above σ_c = 1 one component is best
    (True, True)
    """
    m = isotropic_only("global_gap", m)
    if not is_concrete(theta, x, weights):
        raise ValueError("x: global_gap branches on values, so it takes concrete ones; call it outside jax.jit")
    theta, data = enter(m, theta, x, weights)
    smallest = float(tolerance(tol, np.float64))
    if smallest == 0:
        raise ValueError("tol: must be > 0, got 0; a supremum is only bracketed")
    problem = Problem(theta, data.x, data.weights)
    low, high = problem.box if box is None else _box(box, data.x)
    start, at = problem.climb(low, high)
    if problem.x.shape[1] <= RIGOROUS:
        top, at = branch_and_bound(problem, low, high, start, at, smallest)
        top += problem.rounding
    else:
        top = start
    nats = problem.size * max(top - np.log(problem.size), 0.0)
    dtype = theta["mu"].dtype
    up = np.nextafter(np.asarray(nats, dtype), np.asarray(np.inf, dtype))
    return GlobalGap(jnp.asarray(up), jnp.asarray(at, dtype), jnp.asarray(problem.x.shape[1] <= RIGOROUS))


def _box(box: Any, x: Array) -> tuple[np.ndarray, np.ndarray]:
    low, high = (np.asarray(numbers("box", side), float) for side in box)
    if low.shape != x.shape[1:] or high.shape != x.shape[1:] or not (low <= high).all():
        raise ValueError(f"box: must be (lowest, highest), each ({x.shape[1]},), got {shown(low)} and {shown(high)}")
    blame_rows("box", ~np.isfinite(np.stack([low, high])), "NaN or infinity", None, "leave it out")
    return low, high


class Problem:
    """D + W as a function of the mean, by its logarithm, in float64."""

    def __init__(self, theta: Theta, x: Array, weights: Array | None) -> None:
        self.x = np.asarray(x, float)
        self.sigma = float(theta["sigma"])
        w = np.ones(len(self.x)) if weights is None else np.asarray(weights, float)
        self.x, w = self.x[w > 0], w[w > 0]
        mu, pi = np.asarray(theta["mu"], float), np.asarray(theta["pi"], float)
        mu, pi = mu[pi > 0], pi[pi > 0]
        d = ((self.x[:, None] - mu[None]) ** 2).sum(2)
        log_p = log_sum_exp(np.log(pi)[None] - d / (2 * self.sigma**2), axis=1)  # without f's normaliser, as f below
        self.size = w.sum()
        self.log_w = np.log(w)
        self.log_ratio = self.log_w - log_p  # log of w_n f(x_n|x_n)/p_n
        N, D = self.x.shape
        eps = np.finfo(float).eps
        farthest = ((self.x.max(0) - self.x.min(0)) ** 2).sum() / (2 * self.sigma**2)
        self.rounding = float(4 * eps * (N + D + 4 + min(farthest, 800.0) + np.abs(log_p).max()))

    @property
    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """That of the data."""
        return self.x.min(0), self.x.max(0)

    def terms(self, a: np.ndarray) -> np.ndarray:
        """log w_n f(x_n|a)/p_n, (A, N)."""
        return self.log_ratio[None] - ((a[:, None] - self.x[None]) ** 2).sum(2) / (2 * self.sigma**2)

    def climb(self, low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray]:
        """The largest log(D + W) to which means climb, and where."""
        points, values = self.climbed(low, high)
        return float(values.max()), points[values.argmax()]

    def climbed(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where means climb to from some rows, and log(D + W) there: a ← Σ u x/Σ u, EM for one mean, never falls."""
        rows = np.argsort(-self.log_ratio)
        rows = np.unique(np.concatenate([rows[:CLIMBERS], rows[:: max(1, len(rows) // CLIMBERS)]]))
        a = np.clip(self.x[rows], low, high)
        for _ in range(STEPS):
            terms = self.terms(a)
            u = np.exp(terms - terms.max(1, keepdims=True))
            new = np.clip(u @ self.x / u.sum(1, keepdims=True), low, high)
            done = np.abs(new - a).max() < 1e-6 * self.sigma
            a = new
            if done:
                break
        return a, log_sum_exp(self.terms(a), axis=1)

    def above(self, centre: np.ndarray, half: np.ndarray, shift: float) -> tuple[np.ndarray, np.ndarray]:
        """D + W at the centres of some cells and a bound of it on each, both times e^{−shift}."""
        s2 = self.sigma**2
        difference = self.x[None] - centre[:, None]  # (A, N, D)
        apart = np.abs(difference)
        near = (np.maximum(apart - half[:, None], 0) ** 2).sum(2)
        far = ((apart + half[:, None]) ** 2).sum(2)
        with np.errstate(over="ignore"):
            here = np.exp(self.log_ratio[None] - (apart**2).sum(2) / (2 * s2) - shift)
            most = np.exp(self.log_ratio[None] - near / (2 * s2) - shift)
        value, first = here.sum(1), most.sum(1)
        slope = np.sqrt((np.einsum("an,and->ad", here, difference) ** 2).sum(1)) / s2
        curvature = (most * np.maximum(far / s2 - 1, 0)).sum(1) / s2
        r2 = (half**2).sum(1)
        return value, np.fmin(first, value + np.sqrt(r2) * slope + r2 / 2 * curvature)


def log_sum_exp(terms: np.ndarray, axis: int) -> np.ndarray:
    """log Σ e^t."""
    peak = terms.max(axis, keepdims=True)
    return np.squeeze(peak, axis) + np.log(np.exp(terms - peak).sum(axis))


def branch_and_bound(
    problem: Problem, low: np.ndarray, high: np.ndarray, start: float, at: np.ndarray, tol: float
) -> tuple[float, np.ndarray]:
    """An upper bound of log(D + W) on the box, within tol/W of the best value found, and where that is."""
    D, N = problem.x.shape[1], len(problem.x)
    corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * D, indexing="ij"), -1).reshape(-1, D)
    centre, half = ((low + high) / 2)[None], ((high - low) / 2)[None]
    best, dropped, spent = 1.0, 0.0, 0.0  # all in units of e^start; bounds of cells that need not be split
    upper = np.array([np.inf])
    while len(centre) and spent < EVALUATIONS:
        allowed = np.exp(tol / problem.size)
        done = upper <= best * allowed
        dropped = max(dropped, upper[done].max(initial=0.0))
        centre, half, upper = centre[~done], half[~done], upper[~done]
        if not len(centre):
            break
        number = max(1, int(BATCH / (N * len(corners))))
        order = np.argsort(-upper)
        first, rest = order[:number], order[number:]
        small = np.repeat(half[first] / 2, len(corners), axis=0)
        children = (centre[first][:, None] + corners[None] * half[first][:, None] / 2).reshape(-1, D)
        values, bounds = problem.above(children, small, start)
        spent += values.size * N
        if values.max() > best:
            best, at = float(values.max()), children[values.argmax()]
        centre, half = np.concatenate([centre[rest], children]), np.concatenate([half[rest], small])
        upper = np.concatenate([upper[rest], bounds])
    return start + float(np.log(max(best, dropped, upper.max(initial=0.0)))), at
