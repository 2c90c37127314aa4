"""C20, C20′: where the one cluster that all centres make falls in two, in which direction, and how far.

With π = 1/K and σ held and λ = λ_max(Cov X) simple, y = vᵀ(x − x̄) along its eigenvector v, m_j = mean y^j:

    K = 2    at σ_c = √λ a stable pair x̄ ± a v leaves the mean, a² = 3λ²(σ_c² − σ²)/m₄ · (1 + O(1 − σ²/λ))   (C20)
             for σ ≥ σ_c no pair of centres has a larger likelihood than (x̄, x̄), which alone attains it          (C20′)
    K ≥ 3    if m₃ ≠ 0 the small fixed points are all unstable, on both sides of σ_c: an annealed path jumps, and the
             global maximum has left x̄ at some σ > σ_c already

C20 is an asymptotic law, which no test of rounding can hold; C20′ is a theorem. Other stable pairs may exist above σ_c
for K = 2, too (99 rows at 0 and one at 10: up to σ² = 6λ); they are not the global maximum.

Later splits (Rose 1998) are C13 again, with the covariance of what a cluster's rows are responsible for. Let m ≥ 2
atoms coincide at a fixed point, and move them by u_j v with Σ_j π_j u_j = 0, v an eigenvector of that covariance C. To
first order the mixture's density is unchanged, no other centre moves, and EM returns (λ/σ²) u_j v: the λ_i(C)/σ²,
m − 1 times each, are eigenvalues of its Jacobian. So these atoms part as σ² falls below λ_max(C).

Proof of C20′. Put μ = x̄ + c ± δ, b = ‖δ‖/σ, k = ‖c‖/σ. Then (L − L(x̄, x̄))/W = −k²/2 − b²/2 + E log cosh s with
s = ⟨x − x̄ − c, δ⟩/σ², E s² ≤ b²(1 + k²), and log cosh √v is concave: with Q = 1 + k² and z = b√Q the right side is at
most −(Q − 1)/2 − z²/2Q + log cosh z ≤ 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.arrays import numbers
from jaxem._core.checks import blame_x, enter, prepare_centres, rows_and_weights
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign, weighted
from jaxem.families.gaussian import isotropic
from jaxem.families.gaussian._moments import centred
from jaxem.limits._bound import Bound
from jaxem.limits._kmeans_bound import prepared
from jaxem.limits._lindsay import isotropic_only

EPS_SHARE = 16  # allowance of C20′: so many eps·Σ w (|log p_n| of either side)


class Split(NamedTuple):
    """The first split (C20), in units of x."""

    sigma: Float[Array, ""]  # σ_c = √λ_max(Cov X)
    direction: Float[Array, " D"]  # v, of length 1, its largest entry positive
    third: Float[Array, ""]  # m₃ of y = vᵀ(x − x̄): not 0 means that K ≥ 3 centres jump
    fourth: Float[Array, ""]  # m₄
    amplitude: Float[Array, ""]  # √3 λ/√m₄: below σ_c two centres lie at x̄ ± amplitude·√(σ_c² − σ²)·v

    def pair(self, mean: Array, sigma: ArrayLike) -> Float[Array, "2 D"]:
        """The law's two centres at σ ≤ σ_c, about the mean of the rows."""
        a = self.amplitude * jnp.sqrt(jnp.maximum(self.sigma**2 - jnp.asarray(sigma) ** 2, 0))
        return mean[None] + jnp.stack([-a, a])[:, None] * self.direction[None]


def split(x: Any, *, weights: Any = None) -> Split:
    """Where, which way and how far EM's two centres leave the mean as σ falls: C20, to first order (Rose 1998).

        σ_c² = λ = λ_max(Cov X),   a² = 3λ²(σ_c² − σ²)/m₄ · (1 + O(1 − σ²/λ)),   μ = x̄ ± a v

    for K = 2, π = 1/2 and σ held. A law near σ_c, not a bound: compare a measured amplitude as a ratio. Where λ is not
    simple there is no one direction, and nothing is claimed. Works inside `jit` and `vmap`.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        weights: w (N,) ≥ 0.

    Returns:
        A `Split`; its method `pair(mean, sigma)` gives the law's centres.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> first = jaxem.limits.split(jnp.array([-1.0, 1.0]))          # two points: m₂ = m₄ = 1
    >>> float(first.sigma), round(float(first.amplitude) ** 2, 4)
    (1.0, 3.0)
    """
    rows, w = rows_and_weights(x, weights)
    found = _split(*prepared(rows, w))
    blame_x(rows, found.sigma)
    return found


@jax.jit
def _split(x: Array, w: Array) -> Split:
    share = w / jnp.sum(w)
    x = centred(x, w)
    values, vectors = jnp.linalg.eigh((x * share[:, None]).T @ x)
    variance, v = values[-1], vectors[:, -1]
    v = v * jnp.where(v[jnp.argmax(jnp.abs(v))] < 0, -1, 1)
    y = x @ v
    third, fourth = share @ y**3, share @ y**4
    amplitude = variance * jnp.sqrt(3 / jnp.where(fourth > 0, fourth, jnp.inf))
    return Split(jnp.sqrt(jnp.maximum(variance, 0)), v, third, fourth, amplitude)


def before_the_split(x: Any, mu: Any, sigma: ArrayLike, *, weights: Any = None) -> Bound:
    """C20′: at σ ≥ σ_c two centres, wherever they are, have no larger likelihood than one at the mean.

    Value: (L(μ₁, μ₂) − L(x̄, x̄)), π = ½ and σ held, in nats; bound: its rounding, 16·eps·Σ w (|log p_n| of both sides).
    Below σ_c the statement is false, and the bound exceeded by the pair of C20.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: two centres, (2, D).
        sigma: σ > 0; the theorem speaks of σ ≥ `limits.critical_sigma(x)`.
        weights: w (N,) ≥ 0.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([-1.0, 1.0])
    >>> [bool(jaxem.limits.before_the_split(x, jnp.array([[-0.5], [0.5]]), s).holds) for s in (1.0, 0.7)]
    [True, False]
    """
    rows, _ = rows_and_weights(x, weights)
    mu = prepare_centres("mu", mu, rows)
    if mu.shape[0] != 2:
        raise ValueError(f"mu: must be two centres, (2, {rows.shape[1]}), got shape {mu.shape}; C20′ is about K = 2")
    sigma = numbers("sigma", sigma, mu.dtype)
    return _before(*enter(isotropic, {"pi": jnp.full(2, 0.5, mu.dtype), "mu": mu, "sigma": sigma}, rows, weights))


@jax.jit
def _before(theta: Theta, data: Data) -> Bound:
    x = data.x
    w = jnp.ones_like(x[:, 0]) if data.weights is None else data.weights
    mean = x[0] + (w / jnp.sum(w)) @ (x - x[:1])
    apart, together = (
        assign(isotropic.table(theta | {"mu": mu}, x), 1.0, axis=0)[1] for mu in (theta["mu"], jnp.stack([mean, mean]))
    )
    eps = jnp.finfo(x.dtype).eps
    scale = jnp.sum(weighted(jnp.abs(apart) + jnp.abs(together), data.weights))
    return Bound(jnp.sum(weighted(apart - together, data.weights)), EPS_SHARE * eps * scale)


def critical_sigmas(m: Model, theta: ThetaLike, x: Any, *, weights: Any = None) -> Float[Array, " K"]:
    """σ at which each component would split: √λ_max of the covariance of its rows (Rose 1998), in units of x.

        C_k = (1/N_k) Σ_n w_n γ_nk (x_n − M_k)(x_n − M_k)ᵀ,    M_k = (1/N_k) Σ_n w_n γ_nk x_n

    Where m ≥ 2 centres coincide at a fixed point of EM, π and σ held, λ_i(C_k)/σ² are eigenvalues of EM's Jacobian,
    m − 1 times each: they stay together while σ exceeds this number, and part as it falls below. With all centres at
    the mean it is `limits.critical_sigma`. A centre that no other shares has nothing to split into; NaN is an empty
    one's. γ moves with σ, so that at another σ the number is another. Works inside `jit` and `vmap`.

    Args:
        m: `gaussian.isotropic`; the statement is about π and σ held, whatever it holds.
        theta: a fixed point: pi, mu, sigma.
        x: the data, (N, D), or (N,) for D = 1.
        weights: w (N,) ≥ 0.

    Raises:
        ValueError: for another family, or shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([-11.0, -9.0, 8.0, 12.0])                            # two far pairs, of variances 1 and 4
    >>> theta = {"pi": [0.5, 0.25, 0.25], "mu": [[-10.0], [10.0], [10.0]], "sigma": 3.0}
    >>> [f"{sigma:.3f}" for sigma in jaxem.limits.critical_sigmas(jaxem.families.gaussian.isotropic, theta, x)]
    ['1.000', '2.000', '2.000']
    """
    isotropic_only("critical_sigmas", m)
    theta, data = enter(m, theta, x, weights)
    found = _critical_sigmas(theta, data)
    blame_x(data.x, found)
    return found


@jax.jit
def _critical_sigmas(theta: Theta, data: Data) -> Float[Array, " K"]:
    x = data.x
    gamma, _ = assign(isotropic.table(theta, x), 1.0, axis=0)
    counted = gamma if data.weights is None else gamma * data.weights[None]
    share = counted / jnp.sum(counted, axis=1, keepdims=True)  # empty: NaN

    def of_one(share: Array) -> Array:
        apart = centred(x, share)
        return jnp.linalg.eigvalsh((apart * share[:, None]).T @ apart)[-1]

    return jnp.sqrt(jnp.maximum(jax.vmap(of_one)(share), 0))
