"""Growing a mixture to the best one of any size (C19): add where Lindsay's gradient is positive, EM, prune.

A vertex-direction method: a component enters where D(a) has a local maximum above 0, with the weight that raises the
concave likelihood most along the way there; EM then moves all of them. It ends where branch and bound proves that no
mixture of any number of components is better by more than tol (the nonparametric maximum, to tol), or out of room.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem._core.arrays import count, tolerance
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete
from jaxem._fit.em import em
from jaxem._fit.loop import Fit, Status
from jaxem.families._mixture import Mixture
from jaxem.limits._lindsay import Problem, global_gap, isotropic_only, log_sum_exp

ROUNDS = 60
EM_STEPS = 1000  # of one round
APART = 0.02  # in units of σ: nearer components are one
LEAST = 1e-9  # share of the data below which a component has died
ROOM = 8  # components that a θ is padded with, so that one compiled EM serves several rounds


def grow(m: Model, theta: ThetaLike, x: Any, *, weights: Any = None, tol: float = 0.1, max_components: int = 64) -> Fit:
    """The best mixture of N(a, σ²I) with any number of components, σ held, to within `tol` nats (C19).

    From θ: EM; add components at the local maxima of `jaxem.gradient_function`; EM; merge those that met, drop those
    that died; until `jaxem.global_gap` is at most tol. Then no mixture of any number of components, with this σ, has a
    log-likelihood larger by more than tol: proved up to D = 3, estimated beyond. Concrete arguments only.

    Args:
        m: `gaussian.isotropic`; σ is held whatever it says, and π must be free.
        theta: where to start, e.g. one component at the mean.
        x: the data, (N, D), or (N,) for D = 1.
        weights: w (N,) ≥ 0.
        tol: nats, > 0.
        max_components: most components to have.

    Returns:
        A `Fit`, with as many components as it came to. CONVERGED: the gap is at most tol; MAX_STEPS: it is not, for
        want of room or rounds, and `jaxem.global_gap` says how large it is. num_steps counts EM's steps.

    Raises:
        ValueError: for another family, for π held, inside `jit`.

    Source: the bound and the ascent direction are Lindsay's, Ann. Statist. 11 (1983).

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([-3.0, -2.9, 0.0, 0.1, 3.0, 3.1])
    >>> fit = jaxem.grow(gaussian.isotropic, {"pi": [1.0], "mu": [[0.0]], "sigma": 0.5}, x)
    >>> sorted(round(float(a), 1) for a in fit.theta["mu"][:, 0]), bool(fit.status == jaxem.Status.CONVERGED)
    ([-2.9, 0.1, 3.0], True)
    """
    m = isotropic_only("grow", m)
    if "pi" in m.held:
        raise ValueError("m: grow gives new components weight, so pi must be free; pass gaussian.isotropic")
    if not is_concrete(theta, x, weights):
        raise ValueError("x: grow branches on values, so it takes concrete ones; call it outside jax.jit")
    count("max_components", max_components, 1)
    smallest = float(tolerance(tol, np.float64))
    if smallest == 0:
        raise ValueError("tol: must be > 0, got 0; the gap is only bounded")
    theta, data = enter(m, theta, x, weights)
    m, steps, gap = m.hold("sigma"), 0, np.inf
    for _ in range(ROUNDS):
        fit = _settled(m, theta, data)
        blame_x(data.x, fit.free_energy)
        theta, steps = _pruned(fit.theta), steps + int(fit.num_steps)
        problem = Problem(theta, data.x, data.weights)
        atoms = _candidates(problem, smallest / 4)
        if not len(atoms):  # nothing to see: ask for a proof, or for a counterexample
            found = global_gap(m, theta, data.x, weights=data.weights, tol=smallest / 2)
            gap, atoms = float(found.nats), np.asarray(found.at, float)[None]
        room = int(max_components) - len(theta["pi"])
        if gap <= smallest or room < 1 or int(fit.status) == Status.NONFINITE:
            break
        theta = _with_atoms(theta, problem, atoms[:room])
    final = em(m, theta, data.x, weights=data.weights, max_steps=0)
    status = Status.CONVERGED if gap <= smallest else Status.MAX_STEPS
    if not np.isfinite(float(final.free_energy)):
        status = Status.NONFINITE
    return final._replace(gain=fit.gain, num_steps=jnp.asarray(steps, jnp.int32), status=jnp.asarray(status, jnp.int32))


def _settled(m: Mixture, theta: Theta, data: Data) -> Fit:
    """EM, of θ padded with components of weight 0, which it leaves where they are."""
    missing = -len(theta["pi"]) % ROOM
    padded = theta | {
        "pi": jnp.pad(theta["pi"], (0, missing)),
        "mu": jnp.concatenate([theta["mu"], jnp.broadcast_to(theta["mu"][:1], (missing, data.x.shape[1]))]),
    }
    return em(m, padded, data.x, weights=data.weights, max_steps=EM_STEPS)


def _pruned(theta: Theta) -> Theta:
    """Those that have weight, in order of it, each joined by its near ones."""
    pi, mu = np.asarray(theta["pi"], float), np.asarray(theta["mu"], float)
    order = np.argsort(-pi)
    pi, mu = pi[order], mu[order]
    kept: list[tuple[float, np.ndarray]] = []
    for weight, mean in zip(pi, mu, strict=True):
        if weight <= LEAST:
            continue
        near = [i for i, (_, other) in enumerate(kept) if np.linalg.norm(other - mean) < APART * float(theta["sigma"])]
        if near:
            old, other = kept[near[0]]
            kept[near[0]] = (old + weight, (old * other + weight * mean) / (old + weight))
        else:
            kept.append((weight, mean))
    weights, means = np.array([k[0] for k in kept]), np.stack([k[1] for k in kept])
    dtype = theta["mu"].dtype
    return theta | {"pi": jnp.asarray(weights / weights.sum(), dtype), "mu": jnp.asarray(means, dtype)}


def _candidates(problem: Problem, least: float) -> np.ndarray:
    """Local maxima of D at which more than so many nats are allowed, the highest first, apart from each other."""
    points, heights = problem.climbed(*problem.box)
    found: list[np.ndarray] = []
    for index in np.argsort(-heights):
        if problem.size * (heights[index] - np.log(problem.size)) <= least:
            break
        if all(np.linalg.norm(points[index] - other) > 0.3 * problem.sigma for other in found):
            found.append(points[index])
    return np.array(found).reshape(-1, problem.x.shape[1])


def _with_atoms(theta: Theta, problem: Problem, atoms: np.ndarray) -> Theta:
    """θ and these, with the share α of all that raises L((1 − α)θ + α·their mean) most: a concave function of α."""
    log_r = log_sum_exp(problem.terms(atoms), axis=0) - np.log(len(atoms)) - problem.log_w  # of f/p, a row at a time
    w, low, high = np.exp(problem.log_w), -30.0, 0.0  # log α
    for _ in range(60):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            mixed = np.logaddexp(np.log1p(-np.exp(middle)), middle + log_r)
        rising = w @ (np.exp(np.minimum(log_r - mixed, 700)) - np.exp(-mixed)) > 0
        low, high = (middle, high) if rising else (low, middle)
    share, dtype = np.exp(low), theta["mu"].dtype
    pi = np.concatenate([np.asarray(theta["pi"], float) * (1 - share), np.full(len(atoms), share / len(atoms))])
    return theta | {
        "pi": jnp.asarray(pi / pi.sum(), dtype),
        "mu": jnp.concatenate([theta["mu"], jnp.asarray(atoms, dtype)]),
    }
