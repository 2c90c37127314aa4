"""Mixtures of exponential families: the equations that they share.

    log p(x | z = k) = ⟨η(θ_k), φ(x)⟩ + h(x)                                              (eq:family)

So the table is one matrix product, ℓ = η φᵀ + h + log π, and the statistics are another, S_k = Σ_n γ_nk φ(x_n).
The gradient of Q in η_k is S_k − N_k E_θ[φ], so the M-step matches moments: E_θ[φ] = S_k / N_k, the exact
maximum, and unique (Brown 1986; Bishop 2006, §2.4). A family is three small functions: φ, η, and θ from S.

φ has one feature per outcome, log p and log(1 − p) rather than the logit, and log 0 is a large finite number:
then 0·log 0 = 0 inside the product, certain data cost exactly nothing, and impossible data become −∞ after it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Shaped

from jaxem._core.arrays import GAPS
from jaxem._core.model import Theta
from jaxem._core.values import settle

LOG_ZERO = -1e30  # times any count below 10⁸ it is finite in float32, and no possible row comes near it


def finite_log(p: Array) -> Array:
    """log p, and LOG_ZERO with gradient 0 at p = 0."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1)), LOG_ZERO)


def impossible_to_infinity(table: Array) -> Array:
    """−∞ for the entries that a LOG_ZERO reached."""
    return jnp.where(table < LOG_ZERO / 2, -jnp.inf, table)


def possible(p: Array, mass: Array) -> Array:
    """p, above 0 where some γ has the outcome: rounded to 0, Q = Σγ log p would be −∞ and not its maximum."""
    return jnp.where(mass > 0, jnp.maximum(p, jnp.finfo(p.dtype).tiny), p)


class Moments(NamedTuple):
    """Additive statistics."""

    N_k: Float[Array, " K"]  # Σ_n γ_nk
    S: Float[Array, "K F"]  # Σ_n γ_nk φ(x_n)


@dataclass(frozen=True)
class ExponentialFamily:
    """eq:family for the one parameter `name` beside π; its methods are a `Mixture`'s functions.

    Attributes:
        name: the parameter's site, (K, D) or (K, D, C).
        features: φ: (x (n, D), parameter) → (n, F). The parameter lends its shape only.
        natural: η: parameter → (K, F), finite.
        from_moments: (S (K, F), parameter) → the parameter with E[φ] = S / N_k; any positive multiple of S
            gives the same.
        carrier: h: (x, parameter) → (n,), −∞ off the support.
        ascend: (parameter, ∇L / N_k) → parameter⁺ by m⁺ − m = I_c⁻¹ ∇L in mean parameters (eq:XuJordan).
    """

    name: str
    features: Callable[[Array, Array], Array]
    natural: Callable[[Array], Array]
    from_moments: Callable[[Array, Array], Array]
    carrier: Callable[[Array, Array], Array]
    ascend: Callable[[Array, Array], Array]

    def __post_init__(self) -> None:
        settle(self)

    def log_joint(self, theta: Theta, x: Shaped[Array, "n D"]) -> Float[Array, "K n"]:
        """ℓ_nk = log π_k + ⟨η(θ_k), φ(x_n)⟩ + h(x_n)."""
        parameter = theta[self.name]
        x = x.astype(parameter.dtype)
        eta, phi = self.natural(parameter), self.features(x, parameter)
        table = jnp.einsum("kf,nf->kn", eta, phi, precision=lax.Precision.HIGHEST)
        return impossible_to_infinity(table + finite_log(theta["pi"])[:, None]) + self.carrier(x, parameter)[None]

    def statistics(self, theta: Theta, x: Shaped[Array, "n D"], gamma: Float[Array, "K n"]) -> Moments:
        """N_k = Σγ,  S_k = Σγφ."""
        parameter = theta[self.name]
        phi = self.features(x.astype(parameter.dtype), parameter)
        return Moments(jnp.sum(gamma, axis=1), jnp.matmul(gamma, phi, precision=lax.Precision.HIGHEST))

    def sizes_of_terms(self, theta: Theta, moments: Moments) -> Array:
        """Σ γ (sizes of the terms of ℓ) = Σ_k N_k |log π_k| + |η_k|·S_k, since φ ≥ 0; twice, h being no larger."""
        N_k, S = moments
        eta = jnp.abs(self.natural(theta[self.name]))
        return 2 * jnp.sum(jnp.where(S > 0, eta * S, 0)) + jnp.sum(N_k * size_of_log(theta["pi"]))

    def update(self, moments: Moments, theta: Theta, held: frozenset[str]) -> Theta:
        """π_k = N_k / N,  E_θ[φ] = S_k / N_k."""
        N_k, S = moments
        theta = with_weights(theta, N_k, held)
        if self.name not in held:
            old = theta[self.name]
            new = self.from_moments(jnp.where(occupied(N_k)[:, None], S, 1), old)
            theta = theta | {self.name: keep_where_empty(N_k, new, old)}
        return theta

    def gradient_form(self, theta: Theta, gradient: Theta, N_k: Array, held: frozenset[str]) -> Theta:
        """The M-step as a step along ∇L: m⁺ − m = I_c⁻¹ ∇L (Xu & Jordan 1996).

        In mean parameters m = E[φ] the complete-data information of N_k rows is N_k Cov[φ]⁻¹, so the step is
        Cov[φ] ∇_m L / N_k. For π it is (1/N)(diag π − ππᵀ) ∇_π L.
        """
        old = theta[self.name]
        theta = with_stepped_weights(theta, gradient, N_k, held)
        if self.name not in held:
            count = counts(N_k).reshape((-1,) + (1,) * (old.ndim - 1))
            new = self.ascend(old, gradient[self.name] / count)
            theta = theta | {self.name: keep_where_empty(N_k, new, old)}
        return theta


def with_weights(theta: Theta, N_k: Float[Array, " K"], held: frozenset[str]) -> Theta:
    """π_k = N_k / N, where π is free."""
    return theta if "pi" in held else theta | {"pi": possible(N_k / jnp.sum(N_k), N_k)}


def with_stepped_weights(theta: Theta, gradient: Theta, N_k: Float[Array, " K"], held: frozenset[str]) -> Theta:
    """The same as a step along ∇L, (1/N)(diag π − ππᵀ) ∇_π L."""
    return theta if "pi" in held else theta | {"pi": on_simplex(theta["pi"], gradient["pi"] / jnp.sum(N_k))}


def size_of_log(p: Array) -> Array:
    """|log p|, 0 at p = 0, which no row has."""
    return jnp.abs(jnp.log(jnp.where(p > 0, p, 1)))


def on_simplex(p: Array, gradient: Array) -> Array:
    """p⁺ = p + (diag p − ppᵀ) ∇ along the last axis."""
    return p + p * (gradient - jnp.sum(p * gradient, axis=-1, keepdims=True))


def occupied(N_k: Float[Array, "K ..."]) -> Bool[Array, "K ..."]:
    """Is N_k above the smallest normal number over eps? Below it the digits of a mean are lost."""
    limits = jnp.finfo(N_k.dtype)
    return N_k > limits.tiny / limits.eps


def counts(N_k: Float[Array, "K ..."]) -> Float[Array, "K ..."]:
    """N_k to divide by: 1 for an empty component, whose quotient is not used."""
    return jnp.where(occupied(N_k), N_k, 1)


def keep_where_empty(N_k: Float[Array, " K"], new: Float[Array, "K ..."], old: Float[Array, "K ..."]) -> Array:
    """`old` for an empty component: F does not depend on it."""
    return jnp.where(occupied(N_k).reshape((-1,) + (1,) * (old.ndim - 1)), new, old)


# ---- starts and supports


def equal_weights(centres: Float[Array, "K D"]) -> Float[Array, " K"]:
    """π = 1/K."""
    return jnp.full(centres.shape[0], 1 / centres.shape[0], centres.dtype)


def mean_of_rows(x: Float[Array, "N ..."], weights: Float[Array, " N"] | None = None) -> Float[Array, "..."]:
    """Σ w x / Σ w."""
    if weights is None:
        return jnp.mean(x, axis=0)
    share = weights / jnp.sum(weights)
    return jnp.sum(jnp.reshape(share, (-1,) + (1,) * (x.ndim - 1)) * x, axis=0)


def halfway(
    centres: Float[Array, "K D"], x: Shaped[Array, "N D"], weights: Float[Array, " N"] | None = None
) -> Float[Array, "K D"]:
    """½ (centre + overall mean): a centre alone may lie on the boundary, where EM cannot leave."""
    return (centres + mean_of_rows(x.astype(centres.dtype), weights)[None]) / 2


def least(num_rows: int) -> float:
    """1 / 2(N + 1): below every positive half-way point of 0/1 or count data, so only a zero is moved to it."""
    return 1 / (2 * (num_rows + 1))


def integral(x: Array | np.ndarray) -> Array | np.ndarray | bool:
    """Which entries are whole numbers?"""
    with np.errstate(invalid="ignore"):  # ∞ is none
        return True if x.dtype.kind in "biu" else x % 1 == 0


def on_support(inside: Array | np.ndarray, h: Float[Array, " n"] | float = 0.0) -> Array:
    """h on rows whose every entry is inside the support, −∞ elsewhere."""
    return jnp.where(jnp.all(inside, axis=1), h, -jnp.inf)


def first_outside(x: np.ndarray, inside: Array | np.ndarray, advice: str) -> str | None:
    """What the first entry outside the support is, where, and what to do; None if there is none."""
    if inside.all():
        return None
    if x.dtype.kind not in "biu" and not np.isfinite(x).all():
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        return f"has NaN or infinity in {bad.size} row(s), first in row {bad[0]}; {GAPS}"
    row, column = np.argwhere(~inside)[0]
    return f"has {x[row, column]} in row {row}, column {column}; {advice}"
