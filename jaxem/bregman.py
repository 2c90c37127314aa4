"""Bregman divergences: what hard EM minimises in each exponential family.

A regular exponential family with mean m has −log p(x | m) = D_φ(x, m) + terms free of m, where D_φ is the
Bregman divergence D_φ(x, m) = φ(x) − φ(m) − ⟨∇φ(m), x − m⟩ of the dual φ of its log-normaliser. So EM at
T → 0 with equal π held is k-means with D_φ for ‖·‖², and the M-step is the mean whatever φ (Banerjee,
Merugu, Dhillon & Ghosh 2005).

    family                      divergence             φ
    gaussian.isotropic          squared_euclidean      ‖x‖²              −log p = D/2σ² + …
    bernoulli.mixture           logistic_loss          Σ x log x + (1 − x) log(1 − x)
    categorical.mixture         kullback_leibler       Σ x log x on the simplex, x one-hot
    poisson.mixture             i_divergence           Σ x log x − x
    exponential.mixture         itakura_saito          −Σ log x

Each takes two points of the same shape and sums over all their axes: `divergence(x, mean)` is what
`jaxem.kmedoids` takes as a dissimilarity. Not symmetric; zero iff x = mean; no 0·∞.

>>> import jax.numpy as jnp, jaxem
>>> x = jnp.array([[1.0], [2.0], [30.0], [31.0]])
>>> jaxem.kmedoids(x, x[:2], jaxem.bregman.itakura_saito).labels.tolist()
[0, 0, 1, 1]
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

__all__ = ["i_divergence", "itakura_saito", "kullback_leibler", "logistic_loss", "squared_euclidean"]

Point = Num[Array | np.ndarray, "*D"]
SERIES = 8  # terms of artanh v − v: v² < 10⁻² below, so the next is 10⁻¹⁸ of the first


def squared_euclidean(x: Point, mean: Point) -> Float[Array, ""]:
    """D(x, m) = ‖x − m‖².

    Args:
        x: a point or an array of numbers.
        mean: m, of the same shape.

    >>> import jax.numpy as jnp, jaxem
    >>> float(jaxem.bregman.squared_euclidean(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])))
    25.0
    """
    x, mean = _floating(x, mean)
    return jnp.sum((x - mean) ** 2)


def logistic_loss(x: Point, mean: Point) -> Float[Array, ""]:
    """D(x, m) = Σ x log(x/m) + (1 − x) log((1 − x)/(1 − m)) for x, m in [0, 1]: Bernoulli's KL, in nats.

    For x in {0, 1} it is −log p(x | m).

    Args:
        x: shares in [0, 1].
        mean: m, of the same shape.

    >>> import jax.numpy as jnp, jaxem
    >>> float(jaxem.bregman.logistic_loss(jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])))
    0.0
    """
    x, mean = _floating(x, mean)
    return jnp.sum(i_divergence_terms(x, mean) + i_divergence_terms(1 - x, 1 - mean))


def kullback_leibler(x: Point, mean: Point) -> Float[Array, ""]:
    """D(x, m) = Σ x log(x/m) for x, m on simplices: the categorical's KL, in nats. For one-hot x, −log p.

    Args:
        x: a point of a simplex.
        mean: m, of the same shape.

    >>> import jax.numpy as jnp, jaxem
    >>> jaxem.bregman.kullback_leibler(jnp.array([0.0, 1.0]), jnp.array([0.5, 0.5])) == jnp.log(2.0)
    Array(True, dtype=bool)
    """
    return i_divergence(x, mean)  # Σ(m − x) = 0 between points of a simplex


def i_divergence(x: Point, mean: Point) -> Float[Array, ""]:
    """D(x, m) = Σ x log(x/m) − x + m for x, m ≥ 0: the generalised I-divergence, Poisson's, in nats.

    Args:
        x: numbers ≥ 0.
        mean: m, of the same shape.

    >>> import jax.numpy as jnp, jaxem
    >>> float(jaxem.bregman.i_divergence(jnp.array([0.0, 7.0]), jnp.array([2.0, 7.0])))
    2.0
    """
    return jnp.sum(i_divergence_terms(*_floating(x, mean)))


def itakura_saito(x: Point, mean: Point) -> Float[Array, ""]:
    """D(x, m) = Σ x/m − log(x/m) − 1 for x, m > 0: Exponential's, free of scale: D(cx, cm) = D(x, m).

    Infinite at x = 0, where Exponential's density is not: −log p = D + log x + 1 has ∞ − ∞ there.

    Args:
        x: numbers > 0.
        mean: m, of the same shape.

    >>> import jax.numpy as jnp, jaxem
    >>> float(jaxem.bregman.itakura_saito(jnp.array([5.0]), jnp.array([5.0])))
    0.0
    """
    return jnp.sum(itakura_saito_terms(*_floating(x, mean)))


def i_divergence_terms(x: Array, mean: Array) -> Array:
    """x log(x/m) − x + m entry by entry, with 0 log 0 = 0 and every digit where x ≈ m (Loader 2000).

    With v = (x − m)/(x + m), log(x/m) = 2 artanh v and the term is (x − m) v + 2x (artanh v − v): a sum of
    small numbers near m, where the first form subtracts x from x.
    """
    total = x + mean
    v = (x - mean) / jnp.where(total > 0, total, 1)
    near = jnp.abs(v) < 0.1
    small = jnp.where(near, v, 0)
    series = jnp.zeros_like(v)
    for j in reversed(range(SERIES)):
        series = 1 / (2 * j + 3) + small**2 * series  # Σ_j v^{2j} / (2j + 3), by Horner
    close = (x - mean) * v + 2 * x * small**3 * series
    both = (x > 0) & (mean > 0)
    a, b = jnp.where(both, x, 1), jnp.where(both, mean, 1)
    ratio, limits = a / b, jnp.finfo(x.dtype)
    normal = (ratio >= limits.tiny) & (ratio <= limits.max)  # else x/m under- or overflows
    log_ratio = jnp.where(normal, jnp.log(jnp.where(normal, ratio, 1)), jnp.log(a) - jnp.log(b))
    far = jnp.where((x > 0) & (mean == 0), jnp.inf, x * log_ratio - x + mean)
    return jnp.where(near, close, far)


def itakura_saito_terms(x: Array, mean: Array) -> Array:
    """x/m − log(x/m) − 1 entry by entry."""
    excess = (x - mean) / mean  # x/m − 1, exact near x = m …
    near = jnp.abs(excess) < 0.5
    far = excess - (jnp.log(x) - jnp.log(mean))  # … and far from it
    return jnp.where(near, log_defect(jnp.where(near, excess, 0)), far)


def log_defect(u: Array) -> Array:
    """h(u) = u − log(1 + u) ≥ 0 for u > −1."""
    small = jnp.abs(u) < 1e-3
    v = jnp.where(small, u, 0)
    series = v**2 * (1 / 2 - v * (1 / 3 - v * (1 / 4 - v * (1 / 5 - v / 6))))
    return jnp.where(small, series, jnp.maximum(u - jnp.log1p(u), 0))


def _floating(x: Point, mean: Point) -> tuple[Array, Array]:
    """Both in one floating dtype: the floating one's where they differ."""
    dtype = jnp.result_type(x, mean)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    return jnp.asarray(x, dtype), jnp.asarray(mean, dtype)
