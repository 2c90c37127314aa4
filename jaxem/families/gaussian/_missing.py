"""Gaussians whose rows have missing cells: each row is completed under each component, and no pattern is formed.

With M_n = diag of what is observed of row n, the masked Σ̃ = MΣM + I − M and x̃ = M(x − μ) have the density of the
observed cells, N(x̃; 0, Σ̃) = N(x_o; μ_o, Σ_oo) N(0; 0, I) (eq:observed). Its factorisation feature by feature is this
recursion, one prediction, and one update of what is expected of the others, for each observed feature j:

    e = x_j − m_j,  v = S_jj,   log p += −½(e²/v + log 2πv),   m += S_·j e/v,   S −= S_·j S_j·/v

from m = μ_k, S = Σ_k. It ends in m = E[x | x_o, k] and S = Cov[x | x_o, k], 0 but for what is missing, and with
x̂_nk = m those are all that the M-step needs (Dempster, Laird & Rubin 1977; Ghahramani & Jordan 1994):

    W_k = Σ_n γ_nk [(x̂_nk − μ_k⁺)(x̂_nk − μ_k⁺)ᵀ + Cov[x_n | x_n,observed, k]]

So every model that is fitted by way of W_k, under a floor or a prior too, is fitted with missing cells. A column never
observed in a component keeps its law given the others (without correlations: its mean and its variance).
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.model import Theta
from jaxem._rows.products import Products, by_gamma
from jaxem.families._missing import Missing, halves, missing_of
from jaxem.families._mixture import Fast, Mixture
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian import _scales as scales
from jaxem.families.gaussian._accuracy import EXACT
from jaxem.families.gaussian._factors import plain
from jaxem.families.gaussian._moments import SPELLED_OUT, Moments, differences, log_weights

LOG_2PI = math.log(2 * math.pi)


class Completed(NamedTuple):
    """Rows as each component would have them."""

    difference: Float[Array, "K D n"]  # E[x | observed, k] − μ_k
    covariance: Float[
        Array, "K D ..."
    ]  # Cov[x | observed, k], (K, D, D, n), or (K, D, n) its diagonal: there is no more
    squares: Float[Array, "K n"]  # (x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o)
    log_det: Float[Array, "K n"]  # log det Σ_oo


def completed(m: Mixture) -> Missing:
    """For any mixture of Gaussians whose M-step takes `Moments`."""
    return missing_of(
        m,
        kernel=table,
        statistics=statistics,
        fast=Fast(products),
        law=law,
        surface=surface,
    )


def complete(theta: Theta, rows: Float[Array, "n both"]) -> Completed:
    """Of plain θ."""
    x, seen = halves(rows)
    difference, seen = differences(x, theta["mu"]), seen.T[None]
    if "sigma" in theta:
        return by_scales(scales.by_feature(theta["sigma"], theta["mu"]), difference, seen)
    return by_covariances(covariances.by_component(theta["Sigma"], theta["mu"]), difference, seen)


def by_scales(sigma: Float[Array, "K D"], difference: Float[Array, "K D n"], seen: Array) -> Completed:
    """Features that tell nothing of each other."""
    sigma = sigma[:, :, None]
    difference = jnp.where(seen, difference, 0)
    return Completed(
        difference,
        jnp.where(seen, 0, sigma**2),
        jnp.sum((difference / sigma) ** 2, axis=1),
        jnp.sum(jnp.where(seen, 2 * jnp.log(sigma), 0), axis=1),
    )


def by_covariances(Sigma: Float[Array, "K D D"], difference: Float[Array, "K D n"], seen: Array) -> Completed:
    """The recursion above."""
    Sigma = (Sigma + jnp.swapaxes(Sigma, 1, 2)) / 2  # as its gradient then is

    def observe(state: Completed, j: Any) -> tuple[Completed, None]:
        mean, S, squares, log_det = state
        column, here = S[:, :, j], seen[:, j]
        v = jnp.where(here, column[:, j], 1)
        e = jnp.where(here, difference[:, j] - mean[:, j], 0)
        gain = jnp.where(here[:, None], column / v[:, None], 0)
        return Completed(
            mean + gain * e[:, None], S - gain[:, :, None] * column[:, None], squares + e**2 / v, log_det + jnp.log(v)
        ), None

    nothing = 0 * difference[:, 0]  # that lies where the rows do
    S = Sigma[..., None] + nothing[:, None, None]
    start = Completed(0 * difference, S, nothing, nothing)
    features = np.arange(Sigma.shape[1])
    if len(features) <= SPELLED_OUT:  # three times as fast
        end = start
        for j in features:
            end, _ = observe(end, j)
    else:
        end, _ = lax.scan(observe, start, features)
    mean, S, squares, log_det = end
    both = ~seen[:, :, None] & ~seen[:, None]
    return Completed(jnp.where(seen, difference, mean), jnp.where(both, S, 0), squares, log_det)


def log_joint(theta: Theta, done: Completed, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − ½[(x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o) + log det 2πΣ_oo]."""
    count = jnp.sum(halves(rows)[1], axis=1, dtype=rows.dtype)[None]
    return log_weights(theta["pi"])[:, None] - (done.squares + done.log_det + count * LOG_2PI) / 2


def moments(theta: Theta, done: Completed, gamma: Float[Array, "K n"]) -> Moments:
    """Σγ, Σγ(x̂ − μ_k), and Σγ[(x̂ − μ_k)(x̂ − μ_k)ᵀ + Cov], or its diagonal, summed over what shares σ or Σ."""
    weighted = gamma[:, None] * done.difference
    N_k, shift = jnp.sum(gamma, axis=1), jnp.sum(weighted, axis=2)
    if "sigma" in theta:
        spread = jnp.sum(weighted * done.difference + gamma[:, None] * done.covariance, axis=2)
        return Moments(N_k, shift, scales.pooled(spread, theta["sigma"]))
    spread = covariances.products_of(weighted, done.difference)
    spread = spread + jnp.sum(gamma[:, None, None] * done.covariance, axis=3)
    return Moments(N_k, shift, covariances.pooled(spread, theta["Sigma"]))


def table(theta: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ of the observed cells."""
    return log_joint(theta, complete(plain(theta), rows), rows)


def statistics(theta: Theta, rows: Float[Array, "n both"], gamma: Float[Array, "K n"]) -> Moments:
    """Of the completed rows."""
    theta = plain(theta)
    return moments(theta, complete(theta, rows), gamma)


def products(theta: Theta, about: Theta, may_cancel: Array | bool) -> Products:
    """Both, of rows completed once, and so few rows at a time that they stay in a core's cache."""
    theta = plain(theta)
    K, D = theta["mu"].shape
    from_about = (theta["mu"] - about["mu"])[:, :, None]

    def features(rows: Float[Array, "n both"], squares: Array | None = None) -> tuple[Completed, Array]:
        return complete(theta, rows), rows

    def moved(done: Completed) -> Completed:
        return done._replace(difference=done.difference + from_about)

    return Products(
        width=K * D * (1 if "sigma" in theta else D),
        features=features,
        table=lambda phi: log_joint(theta, *phi),
        common=lambda phi: 0.0,
        sums=by_gamma(lambda phi, gamma: moments(theta, moved(phi[0]), gamma)),
        hard=None,
        finish=lambda sums: sums,
        accurate=None,
        accurate_when_hard=None,
    )


def law(theta: Theta, rows: Float[Array, "n both"]) -> dist.Distribution:
    """N(E[x | observed, k], Cov[x | observed, k]), with variance 1 where x is observed."""
    theta = plain(theta)
    done, (_, seen) = complete(theta, rows), halves(rows)
    mean = jnp.swapaxes(theta["mu"][:, :, None] + done.difference, 1, 2)
    if "sigma" in theta:
        variance = jnp.where(seen[None], 1, jnp.swapaxes(done.covariance, 1, 2))
        return dist.Normal(mean, jnp.sqrt(variance)).to_event(1)
    covariance = jnp.moveaxis(done.covariance, 3, 1) + (jnp.eye(seen.shape[1])[None] * seen[:, None])[None]
    return dist.MultivariateNormal(mean, scale_tril=jnp.linalg.cholesky(covariance))


def surface(theta: Theta, old: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ̂ = E_old[log p(x, z = k | θ) | observed, k] + the entropy of what is missing there, what the M-step climbs."""
    theta, old = plain(theta), plain(old)
    done = complete(old, rows)
    moved = done.difference + (old["mu"] - theta["mu"])[:, :, None]
    hidden = jnp.sum(~halves(rows)[1], axis=1, dtype=rows.dtype)[None]
    if "sigma" in theta:
        sigma, before = (scales.by_feature(t["sigma"], t["mu"]) for t in (theta, old))
        heights = scales.heights(theta)
        squares = jnp.sum((moved**2 + done.covariance) / sigma[:, :, None] ** 2, axis=1)
        log_det = 2 * jnp.sum(jnp.log(before), axis=1)
    else:
        inverse, heights = covariances.whiteners_and_heights(theta)
        white = covariances.whitened(inverse, moved)
        precision = jnp.einsum("kde,kdf->kef", inverse, inverse, precision=EXACT)
        trace = jnp.einsum("kde,kden->kn", precision, done.covariance, precision=EXACT)
        squares = jnp.sum(white**2, axis=1) + trace
        log_det = 2 * covariances.whiteners(old)[1]
    entropy = log_det[:, None] - done.log_det + hidden * (LOG_2PI + 1)
    return heights[:, None] - (squares - entropy) / 2
