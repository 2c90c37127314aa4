"""Conjugate priors of μ_k and Σ_k, and the M-step that maximises Q + log p(θ) (Fraley & Raftery 2007).

A prior is rows that nobody saw: κ of them at m, scatter Λ_k beside those, and c of them that count for Σ_k's size,

    log p(θ) = −½ Σ_k [ c log|Σ_k| + tr Λ_kΣ_k⁻¹ + κ (μ_k − m)ᵀΣ_k⁻¹(μ_k − m) ] + const                   (eq:prior)

so that the M-step is that of the family with n_k + c for n_k and W_k + Λ_k + κ(μ_k⁺ − m)(μ_k⁺ − m)ᵀ for W_k, about

    μ_k⁺ = (n_k x̄_k + κm) / (n_k + κ)

π has no prior. Where Σ_k is one for all, Λ = Σ_kΛ_k and Kc belong to that one. With dof ν and scale s or Λ, eq:prior is
the density of μ_k ~ N(m, Σ_k/κ) and, in the variance (not the standard deviation),

    EII VII   σ² ~ InvGamma(ν/2, s/2)       EEI VVI   the same of every column's       EEE VVV   Σ ~ InvWishart(ν, Λ)

with its constant, where the density is proper. VEI, EVI, EEV and VEV have R mclust's c, and no constant.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.arrays import raw, shown
from jaxem._core.checks import rows_and_weights
from jaxem._core.model import Theta
from jaxem._core.tracing import is_concrete
from jaxem._core.values import settle
from jaxem.families._mixture import Mixture, mixture_only
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian import _factors as factors
from jaxem.families.gaussian import _scales as scales
from jaxem.families.gaussian._moments import Moments, divide_where_occupied
from jaxem.families.gaussian._rounding import rounding_of_covariances


class Prior(NamedTuple):
    """What is believed of every component's mean and covariance, in mclust's words."""

    mean: Any  # m (D,), in units of x
    shrinkage: Any  # κ ≥ 0: how many rows that mean is worth
    dof: Any  # ν ≥ 0
    scale: Any  # Λ (D, D), squared units of x, or a number s for s·I; models of scales take s = tr Λ/D


class Form(NamedTuple):
    """How a model takes a prior."""

    unseen: Callable[[float, int, int], float]  # (ν, D, K) → c, of one component
    shared: bool = False  # is Σ one for all, and so its prior?
    law: str = ""  # of Σ: "gamma" a component, "gammas" a column of it, "wishart"; none: up to a constant


FORMS = {
    scales.isotropic: Form(lambda nu, D, K: 1 + (nu + 2) / (D * K), True, "gamma"),
    scales.spherical: Form(lambda nu, D, K: 1 + (nu + 2) / D, False, "gamma"),
    factors.EEI: Form(lambda nu, D, K: 1 + (nu + 2) / K, True, "gammas"),
    scales.diagonal: Form(lambda nu, D, K: nu + 3, False, "gammas"),
    covariances.tied: Form(lambda nu, D, K: 1 + (nu + D + 1) / K, True, "wishart"),
    covariances.full: Form(lambda nu, D, K: nu + D + 2, False, "wishart"),
    factors.VEI: Form(lambda nu, D, K: (nu + 3) / D),
    factors.EVI: Form(lambda nu, D, K: (nu + 2) / K),
    factors.EEV: Form(lambda nu, D, K: (nu + D + 2) / K),
    factors.VEV: Form(lambda nu, D, K: 0.0),
}


def mclust_prior(x: Any, K: int) -> Prior:
    """R mclust's default prior for K components: weak, and enough to keep Σ_k off planes and points.

        m = x̄,   κ = 0.01,   ν = D + 2,   Λ = S / K^{2/D}

    with S the covariance of all rows (divided by N − 1), of columns that are as many as rows or more its diagonal.

    Args:
        x: the data, (N, D), or (N,) for D = 1; concrete, since a model is no data.
        K: how many components share the volume of the data, ≥ 1.

    Returns:
        A `Prior`, a NamedTuple of mean, shrinkage, dof and scale: `._replace(shrinkage=0.1)` is another.

    Raises:
        ValueError: for a traced x, rows that are not finite, fewer than two, or a K that is no count.

    >>> import jax.numpy as jnp
    >>> from jaxem.families import gaussian
    >>> prior = gaussian.mclust_prior(jnp.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]), 2)
    >>> prior.mean.tolist(), prior.shrinkage, prior.dof, prior.scale.tolist()
    ([1.0, 1.0], 0.01, 4, [[0.5, 0.0], [0.0, 1.5]])
    """
    x, _ = rows_and_weights(x, None)
    if not is_concrete(x):
        raise ValueError("x: is traced, and a prior is a part of a model, which is none; make it outside of jit")
    rows = np.asarray(x, float)
    count = raw("K", K)
    if not (is_concrete(count) and count.shape == () and count.dtype.kind in "iu" and int(count) >= 1):
        raise ValueError(f"K: must be an integer ≥ 1, the number of components, got {shown(K)}")
    N, D = rows.shape
    if N < 2 or not np.isfinite(rows).all():
        what = f"{N} row" if N < 2 else "NaN or infinity"
        raise ValueError(f"x: has {what}, and a prior takes the covariance of all rows; pass at least two, finite")
    S = np.cov(rows, rowvar=False).reshape(D, D)
    S = S if N > D else np.diag(np.diag(S))
    return Prior(rows.mean(axis=0), 0.01, D + 2, S / int(count) ** (2 / D))


def with_prior(m: Mixture, prior: Any) -> Mixture:
    """The same Gaussian mixture, fitted by maximum a posteriori: F_T has the term log p(θ) (eq:prior).

    The M-step is the exact maximiser of Q + log p(θ), so F never falls and the certificates hold. `log_likelihood`,
    `bic` and the rest leave the prior out. With a scale that is positive definite no component can collapse, one
    without rows is at the prior's mode, and data with fewer rows than columns have a maximum. C6, which is of the
    likelihood alone, says nothing.

    Args:
        m: one of the ten models that R mclust has a prior for: EII VII EEI VEI EVI VVI EEE EEV VEV VVV of
            `jaxem.families.gaussian`; its pi may be held. For noise beside, `with_noise(with_prior(m, prior))`.
        prior: a `Prior`, or a mapping or tuple of its `mean`, `shrinkage`, `dof` and `scale`: `gaussian.mclust_prior`
            makes mclust's default.

    Raises:
        ValueError: for one of the other four models, a model with a held mean or covariance, and a prior that is none.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[0.0], [0.0], [4.0], [5.0]])
    >>> m = gaussian.with_prior(gaussian.spherical, gaussian.mclust_prior(x, 2))
    >>> fit = jaxem.fit(m, x, jax.random.key(0), 2)                        # two equal rows: without it, σ → 0
    >>> [f"{sigma:.2f}" for sigma in sorted(fit.theta["sigma"])], bool(fit.status == jaxem.Status.CONVERGED)
    (['0.47', '0.53'], True)
    """
    m = mixture_only("with_prior", m)
    bare = m.but(held=frozenset(), missing=None)  # as FORMS has them
    if bare not in FORMS or bare.extras.prior is not None:
        names = " ".join(form.name.removeprefix("gaussian.") for form in FORMS)
        raise ValueError(
            f"m: a conjugate prior is for gaussian.{names.replace(' ', ', ')}, as in mclust, without a floor, noise or "
            f"prior; got {bare!r}"
        )
    held = [name for name in m.parameters if name in m.held and name != "pi"]
    if held:
        raise ValueError(
            f"m: holds {', '.join(map(repr, held))}, and a prior of what is held decides nothing; leave out "
            "the hold, or the prior"
        )
    return with_conjugate(m, vars(checked(bare, prior)))


def with_conjugate(m: Mixture, fields: Mapping[str, Any]) -> Mixture:
    """The same mixture under a prior that is known to fit it, of what a `Conjugate` says beside the model."""
    bare, scale = m.but(held=frozenset(), missing=None), tuple(map(tuple, fields["scale"]))
    conjugate = Conjugate(bare, tuple(fields["mean"]), fields["shrinkage"], fields["dof"], scale)
    rounding, update = m.numerics.rounding, m.update
    if conjugate.lifts and m.update is covariances.update:  # the prior lifts it
        rounding = partial(rounding_of_covariances, inflation=covariances.inflation, scatter=None)
        update = partial(covariances.update, lifts=False)
    return m.but(
        name=f"gaussian.with_prior({conjugate.m!r}, dof={conjugate.dof:g}, shrinkage={conjugate.shrinkage:g})",
        update=MaximumAPosteriori(update, conjugate),
        prior=conjugate.log_density,
        gradient_form=None,
        rounding=rounding,
    )


def checked(m: Mixture, prior: Any) -> "Conjugate":
    """The prior as the model takes it, or a ValueError that names what is wrong with it."""
    if isinstance(prior, Mapping):
        unknown = sorted(set(prior) ^ set(Prior._fields))
        if unknown:
            raise ValueError(f"prior: must have {', '.join(Prior._fields)}, no more and no less; look at {unknown}")
        prior = Prior(**prior)
    if not isinstance(prior, tuple) or len(prior) != len(Prior._fields):
        raise ValueError(
            f"prior: must be a Prior of mean, shrinkage, dof and scale, got {shown(prior)}; use mclust_prior"
        )
    values = {name: raw(f"prior.{name}", value) for name, value in zip(Prior._fields, prior, strict=True)}
    for name, value in values.items():
        if not is_concrete(value):
            raise ValueError(f"prior.{name}: is traced, and a model is no data; make it outside of jit")
        if not np.isfinite(np.asarray(value, float)).all():
            raise ValueError(f"prior.{name}: must be finite, got {shown(value)}")
    arrays = {name: np.asarray(value, float) for name, value in values.items()}
    mean, scale = arrays["mean"], arrays["scale"]
    mean = mean[None] if mean.ndim == 0 else mean
    D = mean.shape[0]
    if mean.ndim != 1:
        raise ValueError(f"prior.mean: must have shape (D,), got {mean.shape}")
    for name in ("shrinkage", "dof"):
        if arrays[name].shape != () or arrays[name] < 0:
            raise ValueError(f"prior.{name}: must be a number ≥ 0, got {shown(arrays[name])}")
    scale = scale * np.eye(D) if scale.ndim == 0 else scale
    if scale.shape != (D, D) or not np.allclose(scale, scale.T):
        raise ValueError(f"prior.scale: must be a number or symmetric ({D}, {D}), like prior.mean, got {scale.shape}")
    least = np.linalg.eigvalsh(scale)[0]
    if least < -1e-10 * np.abs(scale).max():
        raise ValueError(f"prior.scale: must be positive definite, has an eigenvalue of {least:.3g}")
    diagonal = "Sigma" not in m.parameters and not {"rotation", "correlation"} & set(m.parameters)
    if diagonal:
        s = np.trace(scale) / D
        scale = np.eye(D) * (s / D if FORMS[m].law == "gamma" else s)
    return Conjugate(
        m, tuple(mean.tolist()), float(arrays["shrinkage"]), float(arrays["dof"]), tuple(map(tuple, scale.tolist()))
    )


@dataclass(frozen=True)
class Conjugate:
    """eq:prior of one model, of numbers that are hashed: (m, κ, ν, Λ_k or Λ)."""

    m: Mixture
    mean: tuple[float, ...]
    shrinkage: float
    dof: float
    scale: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        settle(self)

    @property
    def lifts(self) -> bool:
        """Does it keep covariances off planes? Not where it lies on one itself, as far as its digits say."""
        values = np.linalg.eigvalsh(np.array(self.scale))
        return bool(values[0] > 1e-10 * values[-1])

    def away(self, mu: Float[Array, "K D"]) -> Float[Array, "K D"]:
        """m − μ_k."""
        return jnp.asarray(np.array(self.mean), mu.dtype)[None] - mu

    def rows(self, mu: Float[Array, "K D"]) -> tuple[float, Float[Array, "D D"]]:
        """c and Λ_k of one component."""
        K, D = mu.shape
        if len(self.mean) != D:
            raise ValueError(f"m: its prior is of D = {len(self.mean)} columns, and x has {D}; make it of x")
        form = FORMS[self.m]
        scale = jnp.asarray(np.array(self.scale), mu.dtype)
        return form.unseen(self.dof, D, K), scale / K if form.shared else scale

    def log_density(self, theta: Theta) -> Float[Array, ""]:
        """log p(θ), nats (eq:prior)."""
        mu = theta["mu"]
        plain = factors.plain(theta)
        count, scale = self.rows(mu)
        away = self.away(mu)
        if "sigma" in plain:
            variance = scales.by_feature(plain["sigma"], mu) ** 2
            log_det = jnp.sum(jnp.log(variance), axis=1)
            inside = (jnp.diagonal(scale)[None] + self.shrinkage * away**2) / variance
            traces = jnp.sum(inside, axis=1)
        else:
            L = jnp.linalg.cholesky(covariances.by_component(plain["Sigma"], mu))
            log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(L, axis1=1, axis2=2)), axis=1)
            both = scale[None] + self.shrinkage * covariances.outer(away, away)
            half = lax.linalg.triangular_solve(L, both, left_side=True, lower=True)
            traces = jnp.trace(
                lax.linalg.triangular_solve(L, jnp.swapaxes(half, 1, 2), left_side=True, lower=True), axis1=1, axis2=2
            )
        return self.constant(*mu.shape) - jnp.sum(count * log_det + traces) / 2

    def constant(self, K: int, D: int) -> float:
        """What makes it a density, where it is proper and has a law."""
        law, shared = FORMS[self.m].law, FORMS[self.m].shared
        scale, nu = np.array(self.scale), self.dof
        proper = self.lifts and self.shrinkage > 0 and nu > (D - 1 if law == "wishart" else 0)
        if not law or not proper:
            return 0.0
        if law == "wishart":
            log_gamma = D * (D - 1) / 4 * math.log(math.pi) + sum(math.lgamma((nu - d) / 2) for d in range(D))
            one = nu / 2 * np.linalg.slogdet(scale)[1] - nu * D / 2 * math.log(2) - log_gamma
        else:
            s = np.trace(scale) if law == "gamma" else scale[0, 0]
            one = (nu / 2 * math.log(s / 2) - math.lgamma(nu / 2)) * (1 if law == "gamma" else D)
        return float((1 if shared else K) * one + K * D / 2 * math.log(self.shrinkage / (2 * math.pi)))


@dataclass(frozen=True)
class MaximumAPosteriori:
    """The family's M-step on the rows and those of the prior: π of the rows alone, then μ, then Σ about that μ."""

    update: Callable[[Any, Theta, frozenset[str]], Theta]
    prior: Conjugate

    def __post_init__(self) -> None:
        settle(self)

    def __call__(self, moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
        N_k, shift, spread = moments
        mu, kappa = theta["mu"], self.prior.shrinkage
        count, scale = self.prior.rows(mu)
        new = self.update(moments, theta, held | frozenset(theta) - {"pi"})
        away = self.prior.away(mu)
        n, sums = N_k + kappa, shift + kappa * away
        move = jnp.zeros_like(mu) if "mu" in held else divide_where_occupied(sums, n)
        new = new | {"mu": mu + move}
        # Σγ(x − μ⁺)(x − μ⁺)ᵀ of both, expanded about the old mean, and Λ_k
        plain = factors.plain(theta)
        if "sigma" in plain:
            beside = jnp.diagonal(scale)[None] + kappa * away**2 + move * (n[:, None] * move - 2 * sums)
            spread = jnp.maximum(spread + scales.pooled(beside, spread), 0)
        else:
            cross = covariances.outer(move, n[:, None] * move - sums) - covariances.outer(sums, move)
            beside = scale[None] + kappa * covariances.outer(away, away) + cross
            spread = spread + covariances.pooled(beside, spread)
        about = Moments(N_k + count, jnp.zeros_like(shift), spread)
        return self.update(about, new, held | {"pi", "mu"})
