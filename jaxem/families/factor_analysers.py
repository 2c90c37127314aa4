"""Mixtures of factor analysers: Gaussians of D features whose correlations come from Q < D factors that are not seen.

    f ~ N(0, I_Q),  x_n | z_n = k, f ~ N(μ_k + Λ_k f, Ψ_k):   x_n | z_n = k ~ N(μ_k, Λ_k Λ_kᵀ + Ψ_k),   Ψ_k = diag σ_k²

DQ + D − Q(Q − 1)/2 numbers for each covariance in the place of D(D + 1)/2 (Ghahramani & Hinton 1996; McLachlan & Peel
2000). f is not completed: given γ the likelihood depends on S_k, the weighted covariance of the rows about their mean,
and no more, and the M-step goes to its maximum in Λ_k and σ_k at once, by Newton's method on D × D matrices
(`_factor_analysis.py`). So it maximises Q itself, where EM with f as a latent, or AECM, climbs a surface below it.
"""

import math
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Bool, Float
from numpyro.distributions import constraints

from jaxem._core.arrays import static_count
from jaxem._core.model import Theta
from jaxem.families import _exponential_family as ef
from jaxem.families._factor_analysis import analyse, analyse_given, best_loadings, by_component, floor
from jaxem.families._loadings import loadings as up_to_rotation
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian._accuracy import EXACT, recentre
from jaxem.families.gaussian._factors import at_plain, plain
from jaxem.families.gaussian._missing import completed
from jaxem.families.gaussian._moments import (
    Moments,
    differences,
    divide_where_occupied,
    in_small_batches,
    log_weights,
    sum_of_squares,
    underflown,
    update_weights_and_means,
)
from jaxem.families.gaussian._rounding import rounding_of_covariances, sizes_of_terms, where_occupied

__all__ = ["mixture"]


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ N(μ_k, Λ_k Λ_kᵀ + diag σ_k²)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = jnp.asarray(numpyro.param("mu", constraint=constraints.real))
    loadings = jnp.asarray(numpyro.param("loadings", constraint=up_to_rotation))
    sigma = jnp.asarray(numpyro.param("sigma", constraint=constraints.positive))
    if x is not None:
        x = jnp.reshape(x, (-1, mu.shape[-1]))
        num_points = x.shape[0]
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        law = dist.LowRankMultivariateNormal(mu[z], cov_factor=loadings[z], cov_diag=sigma[z] ** 2)
        numpyro.sample("x", law, obs=x)


# ---- the table


def log_joint(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k − ½ [‖y − Af̂‖² + ‖f̂‖²] − log det σ_k − ½ log det(I + AᵀA) − (D/2) log 2π.

    y = (x − μ)/σ,  A = Λ/σ,  f̂ = (I + AᵀA)⁻¹Aᵀy = E[f | x]: by Q × Q matrices (Woodbury), and no square is subtracted.
    """
    mu, sigma = theta["mu"], theta["sigma"]
    A = theta["loadings"] / sigma[:, :, None]
    one = jnp.eye(A.shape[2], dtype=A.dtype)[None]
    inner = jnp.einsum("kdq,kdr->kqr", A, A, precision=EXACT) + one
    factor = in_small_batches(jnp.linalg.cholesky, inner, cubes=1)
    white = lax.linalg.triangular_solve(factor, jnp.broadcast_to(one, inner.shape), left_side=True, lower=True)
    log_det = jnp.sum(jnp.log(sigma), axis=1) + jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    to_factors = jnp.einsum("krq,krs,kds->kqd", white, white, A, precision=EXACT)
    y = differences(x, mu) / sigma[:, :, None]
    f = jnp.einsum("kqd,kdn->kqn", to_factors, y, precision=EXACT)
    rest = y - jnp.einsum("kdq,kqn->kdn", A, f, precision=EXACT)
    heights = log_weights(theta["pi"]) - log_det - mu.shape[1] / 2 * jnp.log(2 * jnp.pi)
    return heights[:, None] - (sum_of_squares(rest) + sum_of_squares(f)) / 2


# ---- the M-step


def variances(moments: Moments, theta: Theta, held: frozenset[str]) -> tuple[Array, Array, Bool[Array, " K"]]:
    """Σγ(x − μ⁺)(x − μ⁺)ᵀ, the variances of the features, (K, D), and where those have digits."""
    within, N_k = covariances.scatter(moments, theta, held), moments.N_k
    squares, limits = jnp.diagonal(within, axis1=1, axis2=2), jnp.finfo(within.dtype)
    variance = divide_where_occupied(squares, N_k, otherwise=1.0)
    told = (squares > limits.tiny / limits.eps) & (variance > (limits.eps * theta["mu"]) ** 2)
    return within, variance, jnp.all(told, axis=1) & ef.occupied(N_k)


def update(moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
    """π_k = N_k/N, μ_k = Σγx/N_k, and (Λ_k, σ_k) of most likelihood given S_k; a component on a point keeps its own."""
    old = theta
    theta, _ = update_weights_and_means(moments, theta, held)
    if held.issuperset({"loadings", "sigma"}):
        return theta
    within, variance, usable = variances(moments, old, held)
    unit = jnp.sqrt(jnp.where(usable[:, None], variance, 1))
    one = jnp.broadcast_to(jnp.eye(unit.shape[1], dtype=unit.dtype), within.shape)
    S = jnp.where(usable[:, None, None], divide_where_occupied(within, moments.N_k), one)
    S = S / covariances.outer(unit, unit)
    log_psi = 2 * jnp.log(old["sigma"] / unit)
    new, Q = {}, old["loadings"].shape[2]
    if "sigma" not in held:
        low = jnp.minimum(log_psi, jnp.log(jnp.asarray(floor(S.dtype), S.dtype)))
        if "loadings" in held:
            log_psi = by_component(analyse_given, S, log_psi, low, old["loadings"] / unit[:, :, None])
        else:
            log_psi = by_component(partial(analyse, Q=Q), S, log_psi, low)
        new["sigma"] = unit * jnp.exp(log_psi / 2)
    if "loadings" not in held:
        new["loadings"] = unit[:, :, None] * by_component(partial(best_loadings, Q=Q), S, log_psi)
    kept = {name: usable.reshape((-1,) + (1,) * (value.ndim - 1)) for name, value in new.items()}
    return theta | {name: jnp.where(kept[name], value, old[name]) for name, value in new.items()}


# ---- digits


def rounding(theta: Theta, moments: Moments, held: frozenset[str]) -> tuple[Array, Array | bool]:
    """That of a floored `full`; where more than Q of σ_k lie on their floor, rows lie in Q dimensions: a collapse."""
    fixed = held.issuperset({"loadings", "sigma"})
    about = frozenset({"Sigma"}) if fixed else frozenset()
    full = plain(theta)
    slack, lost = rounding_of_covariances(full, moments, about, inflation=covariances.inflation, scatter=None)
    if fixed:
        return slack, lost
    within, variance, usable = variances(moments, theta, held)
    squares = jnp.diagonal(within, axis1=1, axis2=2)
    empty = jnp.any(underflown(squares, moments.N_k[:, None], theta["mu"]), axis=1)
    on_floor = theta["sigma"] ** 2 <= 2 * floor(variance.dtype) * variance
    collapsed = jnp.sum(on_floor, axis=1) > theta["loadings"].shape[2]
    if "sigma" in held:
        collapsed = jnp.zeros_like(collapsed)
    return slack, lost | jnp.any(where_occupied(moments.N_k, (~usable & ~empty) | collapsed))


# ---- the start, the family


def guess(
    centres: Float[Array, "K D"],
    x: Float[Array, "N D"],
    weights: Float[Array, " N"] | None = None,
    *,
    num_factors: int,
) -> Theta:
    """That of `gaussian.tied`: of each feature's variance one half is its own, and the loadings are the best then."""
    theta = covariances.guess(centres, x, weights, is_tied=True)
    Sigma, (K, D) = theta.pop("Sigma"), centres.shape
    unit = jnp.sqrt(jnp.diagonal(Sigma))
    half = jnp.full_like(unit, -math.log(2))
    S = Sigma / unit[:, None] / unit[None]
    loadings = unit[:, None] * best_loadings(S, half, num_factors)
    sigma = unit * jnp.exp(half / 2)
    return theta | {
        "loadings": jnp.broadcast_to(loadings, (K, D, num_factors)),
        "sigma": jnp.broadcast_to(sigma, (K, D)),
    }


def check_support(x: np.ndarray, theta: dict[str, np.ndarray]) -> str | None:
    """As many factors as columns, or more, of which the last say nothing?"""
    D, Q = theta["loadings"].shape[-2:]
    if Q >= D:
        return f"has {D} column(s), and {Q} factors need at least {Q + 1}; take fewer factors, or gaussian.full"
    return None


def mixture(num_factors: Any) -> Mixture:
    """Mixtures of factor analysers with Q = `num_factors` factors: x_n | z_n = k ~ N(μ_k, Λ_k Λ_kᵀ + diag σ_k²).

    θ: `pi` (K,), `mu` (K, D), `loadings` Λ (K, D, Q) and `sigma` (K, D), the standard deviations of what is each
    feature's own, all but pi in the unit of x. Λ is told up to a rotation of its columns, and so many numbers fewer are
    counted as parameters; an M-step gives the canonical one: Λᵀ diag(σ⁻²) Λ is diagonal and falls along the diagonal,
    and of each column the largest entry is positive.

    A σ_kd that the likelihood asks to be 0 (a Heywood case) stops at a share of the feature's standard deviation in k,
    eps^0.2: 0.0007 in float64, 0.04 in float32; F still never falls, but as with any floor that binds, certificate C3
    is then not 0. Where more than Q of a component do so, its rows lie in Q dimensions, the likelihood has no bound,
    and the fit ends in Status NONFINITE.

    Args:
        num_factors: Q, 1 or more, fewer than there are columns. Mixtures of the same Q are equal.

    Raises:
        ValueError: for a Q that is no positive int; later, for rows of no more than Q columns.

    >>> import jax, jaxem
    >>> from jaxem.families import factor_analysers
    >>> m = factor_analysers.mixture(1)
    >>> x = jax.random.normal(jax.random.key(0), (200, 1)) + jax.random.normal(jax.random.key(1), (200, 4)) / 2
    >>> fit = jaxem.em(m, jaxem.inits.random_points(m, jax.random.key(2), x, 1), x)
    >>> m, fit.theta["loadings"].shape, jaxem.num_parameters(m, fit.theta)                    # 4 + 4·1 + 4
    (factor_analysers.mixture(1), (1, 4, 1), 12)
    >>> bool((abs(fit.theta["loadings"] - 1) < 0.2).all() & (abs(fit.theta["sigma"] - 0.5) < 0.1).all())
    True
    """
    static_count("num_factors", num_factors, 1)
    Q = int(num_factors)
    return Mixture(
        name=f"factor_analysers.mixture({Q})",
        program=program,
        shapes=(("pi", "K"), ("mu", "K D"), ("loadings", f"K D {Q}"), ("sigma", "K D")),
        kernel=log_joint,
        statistics=partial(at_plain, function=covariances.statistics),
        update=update,
        guess=partial(guess, num_factors=Q),
        numerics=Numerics(
            recentre=partial(recentre, geometry=partial(at_plain, function=covariances.geometry), squares=False),
            scales=("sigma",),
            rounding=rounding,
            sizes_of_terms=partial(at_plain, function=partial(sizes_of_terms, inflation=covariances.inflation)),
        ),
        extras=Extras(
            check_support=check_support,
            condition=partial(at_plain, function=covariances.condition),
            missing=completed,
        ),
    )
