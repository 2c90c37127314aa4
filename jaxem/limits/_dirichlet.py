"""C24: as σ → 0, one Gibbs draw in a Dirichlet process mixture is DP-means' choice.

The label of x given clusters (μ_c, n_c ≥ 1), likelihood N(μ_c, σ²I), base N(0, ρ²I), concentration
α = (1 + ρ²/σ²)^{D/2} e^{−λ/2σ²}, has unnormalised probabilities n_c e^{−d_c/2σ²}, and Q e^{−λ/2σ²} for a new cluster,
Q = e^{−‖x‖²/2(ρ²+σ²)} ≤ 1. DP-means takes the least of {d_c, λ}; with Δ the gap to the second least, n_• = Σ n_c,

    1 − p(choice) ≤ n_• e^{−Δ/2σ²} · (1 if the choice is a cluster, 1/Q if it is new).

Proof. 1 − p ≤ Σ of the others / the choice, and every exponent is at least Δ better. For a cluster c*,
[n_• − n_{c*} + Q]/n_{c*} ≤ n_•; for a new one n_•/Q.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core.arrays import numbers
from jaxem._core.checks import prepare_centres, prepare_x
from jaxem.families.gaussian import squared_distances
from jaxem.limits._bound import ROUNDING, Bound


def dpmeans_choice(
    x: Any, mu: Any, counts: Any, sigma: ArrayLike, penalty: ArrayLike, *, base: ArrayLike = 1.0
) -> Bound:
    """C24: log(1 − p(DP-means' choice)) of a Gibbs draw, for the row nearest to a violation, and its bound.

    Rounding allowance: 64·eps·(1 + the sizes of the exponents). Works inside `jit` and `vmap`, e.g. over `sigma`.

    Args:
        x: rows, (N, D), or (N,) for D = 1; each is drawn as if it were the next.
        mu: centres of the clusters (C, D).
        counts: n_c ≥ 1, (C,), counted without the row.
        sigma: σ > 0 of a cluster.
        penalty: λ of `jaxem.dpmeans`.
        base: ρ, the standard deviation of the base measure N(0, ρ²I).

    >>> import jax.numpy as jnp, jaxem
    >>> check = jaxem.limits.dpmeans_choice(jnp.array([0.2, 9.0]), jnp.array([[0.0], [1.0]]), [3, 4], 0.3, 4.0)
    >>> bool(check.holds), bool(check.value < -1)
    (True, True)
    """
    rows = prepare_x(x)
    mu = prepare_centres("mu", mu, rows)
    rows, n = rows.astype(mu.dtype), numbers("counts", counts, mu.dtype)
    if n.shape != mu.shape[:1]:
        raise ValueError(f"counts: must have shape {mu.shape[:1]}, one per centre, got {n.shape}")
    scalars = (
        numbers(name, value, mu.dtype) for name, value in (("sigma", sigma), ("penalty", penalty), ("base", base))
    )
    return _choice(rows, mu, n, *scalars)


@jax.jit
def _choice(x: Array, mu: Array, n: Array, sigma: Array, penalty: Array, base: Array) -> Bound:
    log_Q = -jnp.sum(x**2, axis=1) / (2 * (base**2 + sigma**2))
    costs = jnp.concatenate([squared_distances(x, mu), jnp.full_like(x[:, 0], 0)[None] + penalty])  # (C + 1, N)
    log_weights = jnp.concatenate([jnp.broadcast_to(jnp.log(n)[:, None], costs[:-1].shape), log_Q[None]])
    exponents = log_weights - costs / (2 * sigma**2)
    choice = jnp.argmin(costs, axis=0)[None] == jnp.arange(len(costs))[:, None]
    least = jnp.sort(costs, axis=0)
    gap = least[1] - least[0]
    value = jax.nn.logsumexp(jnp.where(choice, -jnp.inf, exponents), axis=0) - jax.nn.logsumexp(exponents, axis=0)
    theorem = jnp.log(jnp.sum(n)) - gap / (2 * sigma**2) - jnp.where(choice[-1], log_Q, 0)
    sizes = 1 + jnp.max(jnp.where(jnp.isfinite(exponents), jnp.abs(exponents), 0), axis=0)
    bound = theorem + ROUNDING * jnp.finfo(x.dtype).eps * sizes
    worst = jnp.argmax(value - bound)
    return Bound(value[worst], bound[worst])
