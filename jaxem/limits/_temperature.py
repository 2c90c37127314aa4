"""T → 0 in every mixture, as statements with bounds: the rate is the lead of the largest ℓ_nk over the second.

For a table ℓ (N, K), whatever family, program or θ it is of, with r_n one-hot at the largest ℓ_nk, M_n that ℓ, Δ_n its
lead over the second, γ(T) = softmax(ℓ/T) and F_T,n = T log Σ_k e^{ℓ_nk/T}:

    e^{−Δ_n/T}/(1 + e^{−Δ_n/T}) ≤ max_k |γ_nk − r_nk| ≤ s_n/(1 + s_n),        s_n = (K − 1) e^{−Δ_n/T}
    T log(1 + e^{−Δ_n/T}) ≤ F_T,n − M_n ≤ T log(1 + s_n)
    ‖m_k(γ) − m_k(r)‖ ≤ diam(φ(X)) Σ_n w_n |γ_nk − r_nk| / N_k ≤ diam(φ(X)) Σ_n w_n e_n / Σ_{n∈k} w_n (1 − e_n)

with e_n = s_n/(1 + s_n), m_k(γ) = Σ_n w_n γ_nk φ(x_n)/N_k the mean parameters of an exponential family with statistics
φ, which is what its M-step computes, and n ∈ k where r_nk = 1; proved in docs/theorems_chains.md. All of it runs inside
`jit` and `vmap`. A tie has Δ_n = 0, an answer: its γ does not harden. Rounding allowances are 64 eps, since ℓ is given.

>>> import jax, jaxem
>>> from jaxem.families import poisson
>>> x, theta = jax.numpy.array([[1], [2], [9]]), {"pi": [0.5, 0.5], "rate": [[2.0], [8.0]]}
>>> table = jaxem.log_joint(poisson.mixture, theta, x)
>>> bool(jaxem.limits.hardening(table, 0.3).holds), bool(jaxem.limits.cooling(table, 0.3).holds)
(True, True)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.arrays import non_negative, numbers, scalar
from jaxem._core.checks import copies_where_weightless
from jaxem._core.objective import assign, weighted
from jaxem.limits._bound import ROUNDING, UNDERFLOW, Bound, tightest
from jaxem.limits._mixture import diameter


class Table(NamedTuple):
    """A mixture's ℓ at a temperature."""

    ell: Float[Array, "N K"]
    temperature: Float[Array, ""]
    weights: Float[Array, " N"]


def _prepare(log_joint: Any, temperature: Any, weights: Any = None) -> Table:
    ell = numbers("log_joint", log_joint)
    ell = ell if jnp.issubdtype(ell.dtype, jnp.floating) else ell.astype(float)
    if ell.ndim != 2 or not ell.size:
        raise ValueError(f"log_joint: must be (N, K), got shape {ell.shape}; it is jaxem.log_joint's table")
    w = jnp.ones_like(ell[:, 0]) if weights is None else numbers("weights", weights, ell.dtype)
    if w.shape != ell.shape[:1]:
        raise ValueError(f"weights: must have shape {ell.shape[:1]}, one per row of log_joint, got {w.shape}")
    non_negative("weights", w, "drop rows by giving them weight 0")
    ell = ell if weights is None else copies_where_weightless(ell, w)
    return Table(ell, scalar("temperature", temperature, ell.dtype, "use 1 for EM, 0 for hard assignment"), w)


def leads(log_joint: Any) -> Float[Array, " N"]:
    """Δ_n, the lead of the largest ℓ_nk over the second, in nats; ∞ where the second is −∞ and for K = 1, 0 at a tie.

    Args:
        log_joint: ℓ (N, K), from `jaxem.log_joint`.

    >>> import jax.numpy as jnp, jaxem
    >>> jaxem.limits.leads(jnp.array([[0.0, -3.0, -1.0], [2.0, 2.0, -jnp.inf]])).tolist()
    [1.0, 0.0]
    """
    return _leads(_prepare(log_joint, 1.0).ell)


def _leads(ell: Float[Array, "N K"]) -> Float[Array, " N"]:
    if ell.shape[1] == 1:
        return jnp.where(jnp.isfinite(ell[:, 0]), jnp.inf, jnp.nan)
    largest = lax.top_k(ell, 2)[0]
    return jnp.where(jnp.any(jnp.isnan(ell), axis=1), jnp.nan, largest[:, 0] - largest[:, 1])


def _shares(table: Table) -> tuple[Array, Array]:
    """(e^{−Δ/T}, s = (K − 1) e^{−Δ/T}); 0 at T = 0, at which γ is r by definition."""
    T = table.temperature
    lead = _leads(table.ell)
    share = jnp.where(T == 0, jnp.where(jnp.isnan(lead), jnp.nan, 0), jnp.exp(-lead / jnp.where(T == 0, 1, T)))
    return share, (table.ell.shape[1] - 1) * share


def _gammas(table: Table) -> tuple[Array, Array]:
    """γ and r, each (N, K): the library's E-step at T and at 0."""
    return assign(table.ell, table.temperature, axis=1)[0], assign(table.ell, 0.0, axis=1)[0]


def _eps(table: Table) -> float:
    return ROUNDING * float(jnp.finfo(table.ell.dtype).eps)


def hardening(log_joint: Any, temperature: Any) -> Bound:
    """T → 0, E-step: |γ_nk(T) − r_nk| ≤ s_n/(1 + s_n), s_n = (K − 1) e^{−Δ_n/T}, for every n and k.

    C7 with −ℓ for d/2σ². No faster, either: max_k |γ_nk − r_nk| ≥ e^{−Δ_n/T}/(1 + e^{−Δ_n/T}), the bound for K = 2.

    Args:
        log_joint: ℓ (N, K), from `jaxem.log_joint`, of any family or program that has such a table.
        temperature: T ≥ 0.

    Returns:
        A `Bound`, of the row nearest to a violation. A row whose every ℓ is −∞, or one with a NaN, does not hold.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> check = jaxem.limits.hardening(jnp.array([[0.0, -2.0]]), 0.5)
    >>> f"{check.value:.3f}", f"{check.bound:.3f}", bool(check.holds)                               # e⁻⁴/(1 + e⁻⁴)
    ('0.018', '0.018', True)
    """
    return _hardening(_prepare(log_joint, temperature))


@jax.jit
def _hardening(table: Table) -> Bound:
    (gamma, r), (_, s) = _gammas(table), _shares(table)
    return tightest(jnp.max(jnp.abs(gamma - r), axis=1), s / (1 + s) + _eps(table))


def cooling_gap(log_joint: Any, temperature: Any, *, weights: Any = None) -> Float[Array, ""]:
    """(F_T − F_0)/TW, from 0 to log K: how far the free energy is from the hard objective, per row and T.

        F_T = T Σ_n w_n log Σ_k e^{ℓ_nk/T},   F_0 = Σ_n w_n max_k ℓ_nk

    Row by row from the largest ℓ, so that nothing is lost to |F| as T → 0. 0 at T = 0.

    Args:
        log_joint: ℓ (N, K).
        temperature: T ≥ 0.
        weights: w (N,) ≥ 0.

    >>> import jax.numpy as jnp, jaxem
    >>> print(jaxem.limits.cooling_gap(jnp.zeros((3, 2)), 0.1) == jnp.log(2))           # of ties, all of log K
    True
    """
    return _cooling_gap(_prepare(log_joint, temperature, weights))


@jax.jit
def _cooling_gap(table: Table) -> Array:
    return jnp.sum(weighted(_excess(table), table.weights)) / jnp.sum(table.weights)


def _excess(table: Table) -> Float[Array, " N"]:
    """(F_T,n − M_n)/T."""
    ell, T = table.ell, table.temperature
    _, rows = assign(ell - jnp.max(ell, axis=1, keepdims=True), T, axis=1)
    return rows / jnp.where(T == 0, 1, T)


def cooling(log_joint: Any, temperature: Any, *, weights: Any = None) -> Bound:
    """T → 0, objective: T log(1 + e^{−Δ_n/T}) ≤ F_T,n − M_n ≤ T log(1 + s_n) for every row, s_n = (K − 1) e^{−Δ_n/T}.

    C8 with −ℓ for d/2σ², and its rate; so 0 ≤ F_T − F_0 ≤ T W log K. As distances from the middle of the two bounds, in
    units of T.

    Args:
        log_joint: ℓ (N, K).
        temperature: T ≥ 0.
        weights: w (N,) ≥ 0; rows of weight 0 are not looked at.

    Returns:
        A `Bound`, of the row nearest to a violation.

    >>> import jax.numpy as jnp, jaxem
    >>> bool(jaxem.limits.cooling(jnp.array([[0.0, -2.0, -3.0], [1.0, 1.0, -1.0]]), 0.5).holds)
    True
    """
    return _cooling(_prepare(log_joint, temperature, weights))


@jax.jit
def _cooling(table: Table) -> Bound:
    share, s = _shares(table)
    low, high = jnp.log1p(share), jnp.log1p(s)
    value, half = jnp.abs(_excess(table) - (low + high) / 2), (high - low) / 2
    counts = table.weights > 0
    return tightest(jnp.where(counts, value, 0), jnp.where(counts, half, 0) + _eps(table))


class MeansGap(NamedTuple):
    """T → 0, M-step: the distance of soft from hard means, by what was measured and by Δ alone."""

    check: Bound  # against diam(φ(X)) Σ_n w_n |γ_nk − r_nk| / N_k: C10's
    rate: Bound  # against diam(φ(X)) Σ_n w_n e_n / Σ_{n∈k} w_n (1 − e_n): falls like e^{−min Δ/T}


def means_gap(log_joint: Any, features: Any, temperature: Any, *, weights: Any = None, diam: Any = None) -> MeansGap:
    """T → 0, M-step: ‖m_k(γ) − m_k(r)‖ ≤ diam(φ(X)) Σ_n w_n |γ_nk − r_nk| / N_k, over k that hold rows of weight.

    m_k(γ) = Σ_n w_n γ_nk φ(x_n)/N_k are the mean parameters that the M-step of an exponential family sets: φ(x) = x for
    means of Gaussians, for Bernoulli, Poisson and Exponential, indicators for categorical, (x, xxᵀ) with covariances.

    Args:
        log_joint: ℓ (N, K).
        features: φ(x_n), (N, F) or (N, …).
        temperature: T ≥ 0.
        weights: w (N,) ≥ 0; rows of weight 0 are not looked at.
        diam: diam(φ(X)), where it is known; else N² distances.

    Returns:
        A `MeansGap`: two bounds of the same distance, of the component nearest to a violation.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import poisson
    >>> x, theta = jnp.array([[1], [2], [9]]), {"pi": [0.5, 0.5], "rate": [[2.0], [8.0]]}
    >>> gap = jaxem.limits.means_gap(jaxem.log_joint(poisson.mixture, theta, x), x, 0.3)
    >>> bool(gap.check.holds), bool(gap.rate.holds)
    (True, True)
    """
    table = _prepare(log_joint, temperature, weights)
    phi = numbers("features", features, table.ell.dtype)
    if phi.ndim < 1 or phi.shape[0] != len(table.ell) or not phi.size:
        raise ValueError(f"features: must be ({len(table.ell)}, …), a row for each of log_joint, got {phi.shape}")
    return _means_gap(
        table,
        copies_where_weightless(phi.reshape(len(phi), -1), table.weights),
        None if diam is None else scalar("diam", diam, phi.dtype, "leave it out to have it computed"),
    )


@jax.jit
def _means_gap(table: Table, phi: Float[Array, "N F"], diam: Array | None) -> MeansGap:
    (gamma, r), (_, s), w = _gammas(table), _shares(table), table.weights
    diam = diameter(phi) if diam is None else diam
    e = s / (1 + s)

    def means(counted: Array) -> Array:
        N_k = jnp.sum(counted, axis=0)[:, None]
        return jnp.where(N_k > 0, counted.T @ phi, 0) / jnp.where(N_k > 0, N_k, 1)

    soft, hard = w[:, None] * gamma, w[:, None] * r
    used = jnp.sum(hard, axis=0) > 0
    distance = jnp.where(used, jnp.sqrt(jnp.sum((means(soft) - means(hard)) ** 2, axis=1)), 0)
    N_k, left = jnp.sum(soft, axis=0), jnp.sum(hard * (1 - e)[:, None], axis=0)
    moved = jnp.sum(w[:, None] * jnp.abs(gamma - r), axis=0) / jnp.where(used, N_k, 1)
    at_most = jnp.sum(w * e) / jnp.where(used, left, 1)
    rounding = _eps(table) * (diam + jnp.max(jnp.abs(phi)))
    pairs = (tightest(distance, jnp.where(used, diam * bound, 0) + rounding) for bound in (moved, at_most))
    return MeansGap(*pairs)


def one_hot_temperature(delta: Any) -> Float[Array, ""]:
    """The largest T for a least lead δ: T = δ/750 in float64, δ/105 in float32, where e^{−δ/T} is 0.

    Below it γ is exactly one-hot wherever no lead is under δ; with δ the least along the path of hard EM, EM's iterates
    are hard EM's: C11 with −ℓ for d/2σ².

    Args:
        delta: δ in nats, the least of `leads`.

    >>> import jax.numpy as jnp, jaxem
    >>> float(jaxem.limits.one_hot_temperature(jnp.float32(105.0)))
    1.0
    """
    delta = numbers("delta", delta)
    delta = delta if jnp.issubdtype(delta.dtype, jnp.floating) else delta.astype(float)
    return delta / UNDERFLOW[delta.dtype.name]
