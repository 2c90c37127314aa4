"""Mixtures of products of negative binomials: counts x_nd | z_n = k ~ NegativeBinomial2(m_kd, r_kd).

m is the mean and r the concentration: the variance is m + m²/r, and r → ∞ is Poisson's. The weighted mean maximises Q
in m, whatever r; of r alone Q has log Γ(x + r) − log Γ(r) = Σ_{j<x} log(r + j). So the sums over rows of [x > j] are
all that counts up to J = 32 say of r, and Q is maximised exactly. Beyond, log(r + j) is convex in log(r + J), and above

    log(r + j)  ≥  log(r₀ + j) + (r₀ + J)/(r₀ + j) · log (r + J)/(r₀ + J)

with equality at the current r₀: EM with a latent for each j ≥ J, a coin that falls heads with probability
(r + J)/(r + j); at J = 0 the number of heads is that of tables in a Chinese restaurant (Zhou & Carin 2015). M-step:

    m = Σγx / Σγ,    Σ_{j<J} S_j/(r + j) + T/(r + J) = log(1 + m/r),   S_j = Σγ[x > j]/Σγ,  T = Σγ heads/Σγ

which Newton's method solves. Rows that vary no more than Poisson's (Σγ(x − m)² ≤ m Σγ) have their maximum at r = ∞:
there r ends at max(m, 1)/eps, where the law is Poisson's to rounding.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, Shaped
from numpyro.distributions import constraints

from jaxem._core.model import Theta
from jaxem._core.root import root
from jaxem.bregman import i_divergence_terms, log_defect
from jaxem.families import _exponential_family as ef
from jaxem.families._gamma_function import log_less_digamma, rest
from jaxem.families._missing import by_column
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras
from jaxem.families.gaussian._moments import over_features
from jaxem.families.poisson import in_support, log_saturated

__all__ = ["mixture"]

J = 32  # counts that the M-step knows one by one


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_nd | z_n = k ~ NegativeBinomial2(m_kd, r_kd)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mean = jnp.asarray(numpyro.param("mean", constraint=constraints.nonnegative))  # 0 after an M-step on zeros
    concentration = jnp.asarray(numpyro.param("concentration", constraint=constraints.positive))
    if x is not None:
        x = jnp.reshape(x, (-1, mean.shape[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.NegativeBinomial2(mean[z], concentration[z]).to_event(1), obs=x)


class Sums(NamedTuple):
    """Additive statistics."""

    N_k: Float[Array, " K"]  # Σγ
    total: Float[Array, "K D"]  # Σγx
    above: Float[Array, "J K D"]  # Σγ[x > j]
    tails: Float[Array, "K D"]  # Σγ of how many coins of x fall tails


# ---- the table


def log_joint(theta: Theta, x: Shaped[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k + Σ_d log p(x_nd | m_kd, r_kd), by what keeps its digits at any m and r."""
    mean = theta["mean"]
    inside = in_support(x)
    x = jnp.where(inside, x, 0).astype(mean.dtype)
    table = over_features(log_relative, x, mean, theta["concentration"])
    h = ef.on_support(inside, jnp.sum(log_saturated(x), axis=1))
    return ef.impossible_to_infinity(ef.finite_log(theta["pi"])[:, None] + table) + h[None]


def log_relative(x: Array, m: Array, r: Array) -> Array:
    """log p(x | m, r) less Poisson's at its own mean: ½ log r/(x + r) + rest(x + r) − rest(r) − deviance(x, m)."""
    return rest(x + r) - rest(r) - jnp.log1p(x / r) / 2 - deviance(x, m, r)


def deviance(x: Array, m: Array, r: Array) -> Array:
    """x log x/m − (x + r) log (x + r)/(m + r) ≥ 0: a difference of terms of some √r, or of some m/r, the smaller."""
    possible = (m > 0) | (x == 0)
    a = jnp.where(m > 0, m, 1)
    ratio = jnp.where((m > 0) & (x > 0), r / (x + r) * ((x - a) / a), 0)
    log_ratio = jnp.sign(x - m) * jnp.log1p(jnp.abs(x - m) / (jnp.minimum(x, m) + r))  # (x + r)/(m + r)
    by_ratio = x * jnp.log1p(ratio) - r * log_ratio
    by_divergence = i_divergence_terms(x, a) - i_divergence_terms(x + r, a + r)
    return jnp.where(
        possible, jnp.where((r * jnp.sqrt(r) < jnp.maximum(x, m)) | (m == 0), by_ratio, by_divergence), jnp.inf
    )


# ---- what is beyond J


def heads_and_tails(x: Array, r: Array) -> tuple[Array, Array]:
    """The expected numbers of coins of j = J … x − 1 that fall heads, Σ (r + J)/(r + j), and tails."""
    coins, start = jnp.maximum(x - J, 0), r + J
    v = coins / start
    heads = start * (jnp.log1p(v) + log_less_digamma(start) - log_less_digamma(start + coins))
    tails = start * (log_defect(v) - log_less_digamma(start) + log_less_digamma(start + coins))
    return jnp.where(coins > 0, heads, 0), jnp.where(coins > 0, tails, 0)


def surface(theta: Theta, old: Theta, x: Shaped[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ̂ = ℓ − Σ_d Σ_{j ≥ J} [log (r + j)/(r₀ + j) − (r₀ + J)/(r₀ + j) · log (r + J)/(r₀ + J)]."""
    r = theta["concentration"]

    def excess(x: Array, r: Array, before: Array) -> Array:
        coins = jnp.maximum(x - J, 0)
        heads, _ = heads_and_tails(x, before)
        log_ratio = jnp.log1p((r - before) / (before + J))
        rises = log_product(coins, r + J) - log_product(coins, before + J)
        return jnp.where(coins > 0, rises + coins * log_ratio - heads * log_ratio, 0)

    lost = over_features(excess, jnp.where(in_support(x), x, 0).astype(r.dtype), r, old["concentration"])
    return log_joint(theta, x) - lost


def log_product(n: Array, a: Array) -> Array:
    """log Γ(a + n)/Γ(a) − n log a."""
    v = n / a
    return (a + n) * jnp.log1p(v) - n - jnp.log1p(v) / 2 + rest(a + n) - rest(a)


# ---- the M-step


def statistics(theta: Theta, x: Shaped[Array, "n D"], gamma: Float[Array, "K n"]) -> Sums:
    """Σγ, Σγx, Σγ[x > j], and what is expected of coins."""
    r = theta["concentration"]
    x = x.astype(r.dtype)
    dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    above = lax.map(lambda j: dot(gamma, (x > j).astype(r.dtype)), jnp.arange(J, dtype=r.dtype))
    tails = heads_and_tails(x.T[None], r[:, :, None])[1]
    return Sums(jnp.sum(gamma, axis=1), dot(gamma, x), above, jnp.sum(gamma[:, None] * tails, axis=2))


def update(sums: Sums, theta: Theta, held: frozenset[str]) -> Theta:
    """π_k = N_k / N,  m_k = Σγx / N_k, and r by Newton's method."""
    N_k = sums.N_k
    count = ef.counts(N_k)[:, None]
    mean = sums.total / count
    theta = ef.with_weights(theta, N_k, held)
    if "mean" not in held:
        theta = theta | {"mean": ef.keep_where_empty(N_k, ef.possible(mean, sums.total), theta["mean"])}
    if "concentration" not in held:
        new = concentration(mean, theta["mean"], sums.above / count[None], sums.tails / count, theta["concentration"])
        theta = theta | {"concentration": ef.keep_where_empty(N_k, new, theta["concentration"])}
    return theta


def concentration(
    average: Float[Array, "K D"],
    mean: Float[Array, "K D"],
    above: Float[Array, "J K D"],
    tails: Float[Array, "K D"],
    old: Float[Array, "K D"],
) -> Float[Array, "K D"]:
    """argmax_r Q, of which the mean m is given; `old` of a column of zeros, which does not depend on it.

    ∂Q/∂log r = r h(m/r) + (x̄ − m) m/(r + m) − tails − Σ_j S_j j/(r + j) − heads · J/(r + J), h(u) = u − log(1 + u).
    """
    something = (average > 0) & (mean > 0)
    average, mean = jnp.where(something, average, 1), jnp.where(something, mean, 1)
    heads = jnp.maximum(average - jnp.sum(above, axis=0) - tails, 0)
    j = jnp.arange(J, dtype=mean.dtype)[:, None, None]

    def slope(log_r: Array) -> Array:
        """Times 1 + r/m: then it decreases from above 0 to where r → ∞."""
        r = jnp.exp(log_r)
        spent = jnp.sum(above * j / (r[None] + j), axis=0) + heads * J / (r + J) + tails
        total = r * log_defect(mean / r) + (average - mean) * mean / (r + mean) - spent
        return (1 + r / mean) * total

    limits = jnp.finfo(mean.dtype)
    low = jnp.full_like(mean, np.log(float(limits.tiny)) / 2)
    high = jnp.log(jnp.maximum(mean, 1) / limits.eps)
    pairs = 2 * (jnp.sum(above * j, axis=0) + heads * J) - mean**2  # about Σγ(x − m)²/Σγ − m
    start = jnp.log(jnp.where(pairs > 0, mean**2 / jnp.where(pairs > 0, pairs, 1), 10 * mean))
    found = jnp.exp(root(slope, jnp.clip(start, -7, jnp.log(1e5)), low, high))
    return jnp.where(something, found, old)


def guess(centres: Float[Array, "K D"], x: Shaped[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """π = 1/K, means half-way between centre and overall mean, above 0; r that of all rows by moments, in 0.1 … 100."""
    x = x.astype(centres.dtype)
    overall = ef.mean_of_rows(x, weights)
    mean = jnp.maximum(ef.halfway(centres, x, weights), ef.least(x.shape[0]))
    wider = jnp.maximum(ef.mean_of_rows((x - overall[None]) ** 2, weights) - overall, overall**2 / 100)
    r = jnp.clip(jnp.where(wider > 0, overall**2 / jnp.where(wider > 0, wider, 1), 1), 0.1, 100)
    return {"pi": ef.equal_weights(centres), "mean": mean, "concentration": jnp.broadcast_to(r, mean.shape)}


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """Anything but a count?"""
    advice = "a negative binomial mixture takes counts 0, 1, 2, …: drop the row, or use a gaussian or gamma family"
    return ef.first_outside(x, in_support(x), advice)


mixture = Mixture(
    name="negative_binomial.mixture",
    program=program,
    shapes=(("pi", "K"), ("mean", "K D"), ("concentration", "K D")),
    kernel=log_joint,
    statistics=statistics,
    update=update,
    guess=guess,
    extras=Extras(check_support=check_support, missing=by_column, surface=surface),
)
