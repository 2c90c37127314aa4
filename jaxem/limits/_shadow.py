"""C17, the shadow: near given centres EM has a fixed point, in a ball whose radius is computed from the data.

For any centres μ* and the labels l(n) of the nearest, s_nk = ‖x_n − μ*_k‖, and R_k = ‖Σ_{l(n)=k} w_n (x_n − μ*_k)‖,
which is 0 at a fixed point of Lloyd's. On the ball B of radius ρ, ‖h‖ = max_k ‖h_k‖, with l = l(n) and k ≠ l,

    g_nk = s_nk² − s_nl² − 2ρ(s_nk + s_nl)          the least gap of squared distances in B; −(s_nl + ρ)² where s_nk < ρ
    E_nk = (π_k/π_l) e^{−g_nk/2σ²},   γ_nk ≤ ε_nk = E_nk/(1 + E_nk),   1 − γ_nl ≤ e_n = ΣE/(1 + ΣE)
    N̲_k  = Σ_{n∈k} w_n (1 − e_n)
    A_k  = [R_k + Σ_{n∈k} w e_n s_nk + Σ_{n∉k} w ε_nk s_nk] / N̲_k                           bounds ‖M(μ)_k − μ*_k‖ in B
    L_k  = [Σ_{n∈k} w (e'_n a_nk² + Σ_{j≠k} ε'_nj a_nk a_nj) + Σ_{n∉k} w ε'_nk a_nk Σ_j a_nj] / σ²N̲_k    bounds ‖dM_k‖

with a = s + ρ, and a prime for "at most ¼". If A ≤ ρ then EM's map M takes B into itself, and has a fixed point in it
(Brouwer). If also L < 1 it is the only one (Banach) and the maximum of the likelihood over B, EM converges to it from
all of B, and its distance from μ* is at most ‖M(μ*) − μ*‖/(1 − L). Ties and wrong labels cost radius, not truth.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from jaxem._core.checks import blame_x, enter, poisoned
from jaxem._core.model import Data, Theta
from jaxem._core.objective import assign
from jaxem.families.gaussian import isotropic, squared_distances

SECANTS, SLACK = 60, 1e-5  # steps to the smallest radius, which needs about seven, and how near it they come
NARROWINGS, NEARLY = 30, 2e-3  # the same of the largest
LARGEST_EXPONENT = 60.0  # e⁶⁰/(1 + e⁶⁰) is 1


class Shadow(NamedTuple):
    """EM's fixed point near k-means' (C17), radii in units of x, as the largest distance of a centre from its μ*_k."""

    smallest_radius: Float[Array, ""]  # a fixed point lies within it; ∞ where none is certified
    largest_radius: Float[Array, ""]  # it is the only one within it, and attracts all of it; 0 where that is not known
    rate: Float[Array, ""]  # L at the smallest radius: EM's error shrinks by it at least, each step
    distance_bound: Float[Array, ""]  # the fixed point is not farther from μ* than this
    exists: Bool[Array, ""]
    unique: Bool[Array, ""]


def shadow(
    x: Any,
    mu: Any,
    sigma: ArrayLike,
    *,
    pi: Any = None,
    weights: Any = None,
) -> Shadow:
    """Where EM's fixed point lies, given centres near it, such as those of k-means (C17). σ and π are held.

    `exists` and `unique` are proved for the data at hand, by the theorem in the head of this file, not estimated;
    False means that no certificate was found at this σ. With s = ‖x_n − μ_k‖, as σ → 0 the smallest radius vanishes
    like e^{−Δ/2σ²} and the largest tends to ½ min_n (second smallest s_nk − smallest).

    Rounding allowance: g loses 8(D + 4)·eps·(s_nk² + s_nl² + ρ²); R_k gains (n_k + 2)·eps·Σ_{n∈k} s_nk; A and L are
    multiplied by 1 + 4(N + K + D)·eps; `distance_bound` gains 4(D + 4)·eps·(max_n ‖x_n − μ_k‖)/(1 − L). EM's iterates
    in floating point agree with the exact map to N·eps·max ‖x − x̄‖/(1 − L).

    Costs O(N·K) for each of some twenty radii. Works inside `jit` and `vmap`, e.g. over `sigma`.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: any centres, (K, D).
        sigma: σ > 0, the standard deviation of every component.
        pi: π (K,), held; 1/K when absent.
        weights: w (N,) ≥ 0.

    Returns:
        A `Shadow`. A cluster without rows has no certificate.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    Source: Banach's and Brouwer's fixed points on bounds of the responsibilities; a computable, sample-wise relative of
    Balakrishnan, Wainwright & Yu (Ann. Statist. 45, 2017).

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> mu = jaxem.kmeans(x, jnp.array([[-1.0], [1.0]])).theta["mu"]
    >>> shadow = jaxem.limits.shadow(x, mu, 0.4)
    >>> bool(shadow.exists), bool(shadow.unique), bool(shadow.distance_bound <= shadow.smallest_radius)
    (True, True, True)
    """
    mu = jnp.asarray(mu) if not hasattr(mu, "shape") else mu
    pi = jnp.full(mu.shape[:1], 1 / max(mu.shape[0], 1)) if pi is None else pi
    theta, data = enter(isotropic, {"pi": pi, "mu": mu, "sigma": sigma}, x, weights)
    found = _shadow(theta, data)
    blame_x(data.x, jnp.sum(found.rate * 0))
    return found


class Ball(NamedTuple):
    """What the theorem says of one radius."""

    A: Array  # max_k A_k; ∞ where some N̲_k ≤ 0
    L: Array  # max_k L_k


class Geometry(NamedTuple):
    """What does not depend on the radius; tables are (K, N)."""

    s: Array
    nearest: Array  # s of the row's own cluster, (N,)
    own: Array  # is k the row's own?
    residual: Array  # R_k with its rounding
    log_ratio: Array  # log π_k − log π_l
    weights: Array


@jax.jit
def _shadow(theta: Theta, data: Data) -> Shadow:
    x, _mu, eps = data.x, theta["mu"], jnp.finfo(theta["mu"].dtype).eps
    sigma = poisoned(theta["sigma"], theta["sigma"] > 0)
    geometry = measured(theta, data)
    ball = partial(bounds, geometry, sigma, x.shape[1])
    reach = jnp.max(geometry.s)

    exists, smallest = least_self_map(lambda radius: ball(radius).A, eps * reach, reach)
    at_smallest = ball(smallest)
    unique = exists & (at_smallest.L < 1)

    largest = largest_certified(ball, smallest, jnp.where(unique, jnp.maximum(reach, smallest), smallest))
    infinity, L = jnp.full_like(smallest, jnp.inf), at_smallest.L
    error = 4 * (x.shape[1] + 4) * eps * reach
    distance = jnp.minimum(smallest, (moved(theta, data) + error) / jnp.where(unique, 1 - L, 1))
    return Shadow(
        smallest_radius=jnp.where(exists, smallest, infinity),
        largest_radius=jnp.where(unique, largest, 0),
        rate=jnp.where(exists, L, infinity),
        distance_bound=jnp.where(unique, distance, jnp.where(exists, smallest, infinity)),
        exists=exists,
        unique=unique,
    )


def measured(theta: Theta, data: Data) -> Geometry:
    """Distances, labels and residuals of the centres."""
    x, mu = data.x, theta["mu"]
    d = squared_distances(x, mu)
    label = jnp.argmin(d, axis=0)
    s, own = jnp.sqrt(d), jnp.arange(mu.shape[0])[:, None] == label[None]
    w = jnp.ones_like(s[0]) if data.weights is None else data.weights
    nearest = jnp.min(s, axis=0)
    zeros = jnp.zeros_like(mu)
    sums = zeros.at[label].add(w[:, None] * (x - mu[label]))
    sizes = jnp.sum(jnp.where(own, jnp.ones_like(s), 0), axis=1)
    reach = jnp.sum(jnp.where(own, w[None] * s, 0), axis=1)
    residual = jnp.sqrt(jnp.sum(sums**2, axis=1)) + (sizes + 2) * jnp.finfo(s.dtype).eps * reach
    log_pi = jnp.log(theta["pi"])
    return Geometry(s, nearest, own, residual, log_pi[:, None] - log_pi[label][None], w)


def bounds(geometry: Geometry, sigma: Array, num_features: int, radius: Array) -> Ball:
    """A and L at one radius, with their rounding."""
    s, nearest, own, residual, log_ratio, w = geometry
    eps = jnp.finfo(s.dtype).eps
    nearest = nearest[None]
    g = jnp.where(s >= radius, s**2 - nearest**2 - 2 * radius * (s + nearest), -((nearest + radius) ** 2))
    g = g - 8 * (num_features + 4) * eps * (s**2 + nearest**2 + radius**2)
    exponent = jnp.minimum(log_ratio - g / (2 * sigma**2), LARGEST_EXPONENT)
    E = jnp.where(own, 0, jnp.exp(exponent))
    S = jnp.sum(E, axis=0)[None]
    other, leaving = E / (1 + E), S / (1 + S)  # ε_nk, 0 on the row's own; e_n

    def of_own(row: Array, otherwise: Array) -> Array:  # Σ_n w_n, of the rows in k and of those outside
        return jnp.sum(w[None] * jnp.where(own, row, otherwise), axis=1)

    staying = of_own(1 / (1 + S), jnp.zeros_like(s))
    away = of_own(leaving * s, other * s)
    a = s + radius
    capped, leaving = jnp.minimum(other, 0.25), jnp.minimum(leaving, 0.25)
    from_others, in_all = jnp.sum(capped * a, axis=0)[None], jnp.sum(a, axis=0)[None]
    spread = of_own(leaving * a**2 + a * from_others, capped * a * in_all)
    allowance = 1 + 4 * (s.shape[0] + s.shape[1] + num_features) * eps

    # N̲ is a sum of positive numbers, whose rounding is relative
    def largest(bound: Array) -> Array:
        return allowance * jnp.max(jnp.where(staying > 0, bound / jnp.where(staying > 0, staying, 1), jnp.inf))

    return Ball(largest(residual + away), largest(spread / sigma**2))


def least_self_map(A: Any, start: Array, end: Array) -> tuple[Array, Array]:
    """Is there a radius with A(ρ) ≤ ρ below `end`, and nearly the least such.

    A rises with ρ, so that ρ ← A(ρ) never passes its least fixed point from below. A secant step goes farther, and not
    past it either where A is convex. What it ends at is checked, with a little more radius.
    """

    def rise(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        radius, value, slope, count = carry
        secant = radius + (value - radius) / jnp.where(slope < 1, 1 - slope, jnp.inf)
        new = jnp.maximum(value, secant)
        new_value = A(new)
        return new, new_value, (new_value - value) / jnp.where(new > radius, new - radius, 1), count + 1

    def goes_on(carry: tuple[Array, Array, Array, Array]) -> Array:
        radius, value, _, count = carry
        return (value > radius * (1 + SLACK)) & (radius <= end) & (count < SECANTS)

    state = (start, A(start), jnp.zeros_like(start), jnp.zeros((), jnp.int32))
    radius = lax.while_loop(goes_on, rise, state)[0]
    best = (jnp.zeros((), bool), radius)
    for more in (1e-2, 1e-4):
        tried = jnp.maximum(radius * (1 + more), start)
        best = jax.tree.map(partial(jnp.where, (A(tried) <= tried) & (tried <= end)), (jnp.ones((), bool), tried), best)
    return best


def largest_certified(ball: Any, low: Array, high: Array) -> Array:
    """From a radius that is certified, one that is nearly the largest: by interpolating where the other is not."""

    def excess(radius: Array) -> Array:  # ≤ 0: certified
        A, L = ball(radius)
        size = jnp.log(jnp.maximum(A / radius, L))
        return jnp.where(
            (radius >= A) & (L < 1), jnp.clip(size, -3, 0), jnp.where(size > 0, jnp.minimum(size, 3), 1e-3)
        )

    def narrow(bracket: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        low, at_low, high, at_high, count = bracket
        middle = low + (high - low) * jnp.clip(at_low / (at_low - at_high), 0.1, 0.9)
        value = excess(middle)
        good = value <= 0
        new_low, new_high = jnp.where(good, middle, low), jnp.where(good, high, middle)
        return new_low, jnp.where(good, value, at_low), new_high, jnp.where(good, at_high, value), count + 1

    def goes_on(bracket: tuple[Array, Array, Array, Array, Array]) -> Array:
        low, _, high, _, count = bracket
        return (high - low > NEARLY * low) & (count < NARROWINGS)

    at_high = excess(high)
    start = (
        jnp.where(at_high <= 0, high, low),
        excess(low),
        high,
        jnp.maximum(at_high, 1e-3),
        jnp.zeros((), jnp.int32),
    )
    return lax.while_loop(goes_on, narrow, start)[0]


def moved(theta: Theta, data: Data) -> Array:
    """‖M(μ*) − μ*‖: how far one EM step moves the centres."""
    gamma, _ = assign(isotropic.table(theta, data.x), 1.0, axis=0)
    counted = gamma if data.weights is None else gamma * data.weights[None]
    held = frozenset({"pi", "sigma"})
    new = isotropic.update(isotropic.statistics(theta, data.x, counted), theta, held)
    return jnp.sqrt(jnp.max(jnp.sum((new["mu"] - theta["mu"]) ** 2, axis=1)))
