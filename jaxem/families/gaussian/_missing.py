"""Gaussians whose rows have missing cells: each row is completed under each component, and no pattern is formed.

`_completed` gives E[x | x_o, k] = μ_k + x̂, Cov[x | x_o, k] and the density of what is observed; and for the M-step
(Dempster, Laird & Rubin 1977; Ghahramani & Jordan 1994)

    W_k = Σ_n γ_nk [(x̂_nk + μ_k − μ_k⁺)(x̂_nk + μ_k − μ_k⁺)ᵀ + Cov[x_n | x_n,observed, k]]

So every model that is fitted by way of W_k, under a floor or a prior too, is fitted with missing cells. A column never
observed in a component keeps its law given the others (without correlations: its mean and its variance).
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from jaxem._core.model import Theta
from jaxem._rows.products import Products, by_gamma
from jaxem.families._missing import Missing, halves, missing_of
from jaxem.families._mixture import Mixture
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian import _missing_shared as shared
from jaxem.families.gaussian import _scales as scales
from jaxem.families.gaussian._accuracy import EXACT, and_one, linear
from jaxem.families.gaussian._completed import (
    LOG_2PI,
    Completed,
    complete,
    covariance,
    covariance_sums,
    first_sums,
    given,
)
from jaxem.families.gaussian._factors import plain
from jaxem.families.gaussian._moments import (
    Moments,
    centre,
    log_weights,
    sum_and_count,
)


def completed(m: Mixture) -> Missing:
    """For any mixture of Gaussians whose M-step takes `Moments`."""
    return missing_of(
        m,
        kernel=table,
        statistics=statistics,
        products=products,
        law=law,
        surface=surface,
        in_order=bool({"Sigma", "rotation", "correlation", "loadings"} & dict(m.shapes).keys()),
    )


def log_joint(theta: Theta, done: Completed, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − ½[(x_o − μ_o)ᵀ Σ_oo⁻¹ (x_o − μ_o) + log det 2πΣ_oo]."""
    count = jnp.sum(halves(rows)[1], axis=1, dtype=rows.dtype)[None]
    return log_weights(theta["pi"])[:, None] - (done.squares + done.log_det + count * LOG_2PI) / 2


def moments(theta: Theta, done: Completed, gamma: Float[Array, "K n"], most: Array | None = None) -> Moments:
    """Σγ, Σγ(x̂ − μ_k), and Σγ[(x̂ − μ_k)(x̂ − μ_k)ᵀ + Cov], or its diagonal, summed over what shares σ or Σ."""
    N_k = jnp.sum(gamma, axis=1)
    shift = jnp.einsum("kn,kdn->kd", gamma, done.difference, precision=EXACT)
    if "sigma" in theta:
        squares = done.difference**2 + done.directions[0] ** 2
        spread = jnp.einsum("kn,kdn->kd", gamma, squares, precision=EXACT)
        return Moments(N_k, shift, scales.pooled(spread, theta["sigma"]))

    pooled = partial(covariances.pooled, like=theta["Sigma"])
    own = gamma if done.directions.shape[1] == len(gamma) else jnp.sum(gamma, axis=0, keepdims=True)

    spread = pooled(covariances.products_of(gamma[:, None] * done.difference, done.difference))
    hidden = covariance_sums(own, done.directions) if most is None else first_sums(own, done.directions, most)
    return Moments(N_k, shift, spread + pooled(hidden))


def table(theta: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ of the observed cells."""
    return log_joint(theta, complete(given(plain(theta)), rows), rows)


def statistics(theta: Theta, rows: Float[Array, "n both"], gamma: Float[Array, "K n"]) -> Moments:
    """Of the completed rows."""
    theta = plain(theta)
    return moments(theta, complete(given(theta), rows), gamma)


def products(theta: Theta, about: Theta, may_cancel: Array | bool) -> Products:
    """Both, as is fastest."""
    theta = plain(theta)
    if "sigma" in theta:
        return by_cells(theta)
    return shared.products(theta) if theta["Sigma"].ndim == 2 else by_completing(theta, about)


def by_cells(theta: Theta) -> Products:
    """φ = m (x − c)², m (x − c), (m, 1), m being 1 where x is observed: no row is completed, the sums are."""
    c = centre(theta)
    sigma, offset = scales.by_feature(theta["sigma"], theta["mu"]), theta["mu"] - c
    height = -((offset / sigma) ** 2) / 2 - jnp.log(sigma) - LOG_2PI / 2
    eta = (
        -1 / (2 * sigma**2),
        offset / sigma**2,
        jnp.concatenate([height, log_weights(theta["pi"])[:, None]], axis=1),
    )

    def features(rows: Float[Array, "n both"], squares: Array | None = None) -> tuple[Array, Array, Array]:
        x, seen = halves(rows)
        x = jnp.where(seen, x - c, 0)
        return x**2, x, and_one(seen.astype(x.dtype))

    def finish(sums: tuple[tuple[Array, Array, Array], Any]) -> Moments:
        squares, S, counts = sums[0]
        counts, N_k = sum_and_count(counts)
        shift = S - counts * offset
        spread = squares - offset * (S + shift) + (N_k[:, None] - counts) * sigma**2
        return Moments(N_k, shift, scales.pooled(spread, theta["sigma"]))

    def common(phi: Any) -> Array:
        return jnp.zeros((), c.dtype)

    # hard ones compare squares alone, and the spread that would judge those has σ² of what is missing in it
    products = linear(theta, c, scales.geometry, eta, features=features, finish=finish, common=common)
    return products._replace(accurate_when_hard=lambda moments: jnp.zeros((), bool))


def by_completing(theta: Theta, about: Theta) -> Products:
    """Of rows completed once for both, and so few at a time that they stay in a core's cache."""
    K, D = theta["mu"].shape
    of_theta, from_about = given(theta), (theta["mu"] - about["mu"])[:, :, None]

    def features(rows: Float[Array, "n both"], squares: Array | None = None) -> tuple[Completed, Array, Array]:
        most = jnp.max(jnp.sum(~halves(rows)[1], axis=1))
        return complete(of_theta, rows, most), rows, most

    def sums(phi: tuple[Completed, Array, Array], gamma: Float[Array, "K n"]) -> Moments:
        done, _, most = phi
        return moments(theta, done._replace(difference=done.difference + from_about), gamma, most)

    return Products(
        width=2 * K * D * D,
        features=features,
        table=lambda phi: log_joint(theta, *phi[:2]),
        common=lambda phi: 0.0,
        sums=by_gamma(sums),
        hard=None,
        finish=lambda sums: sums,
        accurate=None,
        accurate_when_hard=None,
    )


def law(theta: Theta, rows: Float[Array, "n both"]) -> dist.Distribution:
    """N(E[x | observed, k], Cov[x | observed, k]), with variance 1 where x is observed."""
    theta = plain(theta)
    done, (_, seen) = complete(given(theta), rows), halves(rows)
    mean = jnp.swapaxes(theta["mu"][:, :, None] + done.difference, 1, 2)
    if "sigma" in theta:
        variance = jnp.where(seen[None], 1, jnp.swapaxes(done.directions[0] ** 2, 1, 2))
        return dist.Normal(mean, jnp.sqrt(variance)).to_event(1)
    observed = (jnp.eye(seen.shape[1])[None] * seen[:, None])[None]
    factor = jnp.linalg.cholesky(jnp.moveaxis(covariance(done), 3, 1) + observed)
    return dist.MultivariateNormal(mean, scale_tril=factor)


def surface(theta: Theta, old: Theta, rows: Float[Array, "n both"]) -> Float[Array, "K n"]:
    """ℓ̂ = E_old[log p(x, z = k | θ) | observed, k] + the entropy of what is missing there, what the M-step climbs."""
    theta, old = plain(theta), plain(old)
    done = complete(given(old), rows)
    moved = done.difference + (old["mu"] - theta["mu"])[:, :, None]
    hidden = jnp.sum(~halves(rows)[1], axis=1, dtype=rows.dtype)[None]
    if "sigma" in theta:
        sigma, before = (scales.by_feature(t["sigma"], t["mu"]) for t in (theta, old))
        heights = scales.heights(theta)
        squares = jnp.sum((moved**2 + done.directions[0] ** 2) / sigma[:, :, None] ** 2, axis=1)
        log_det = 2 * jnp.sum(jnp.log(before), axis=1)
    else:
        inverse, heights = covariances.whiteners_and_heights(theta)
        white = covariances.whitened(inverse, moved)
        precision = jnp.einsum("kde,kdf->kef", inverse, inverse, precision=EXACT)
        trace = jnp.einsum("kde,kden->kn", precision, covariance(done), precision=EXACT)
        squares = jnp.sum(white**2, axis=1) + trace
        log_det = 2 * covariances.whiteners(old)[1]
    entropy = log_det[:, None] - done.log_det + hidden * (LOG_2PI + 1)
    return heights[:, None] - (squares - entropy) / 2
