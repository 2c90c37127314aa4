"""The k-means limit of a hidden Markov model along a path, and where its means part: H11, H13."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.arrays import numbers, shown
from jaxem._core.checks import as_floating, blame_x, rows_and_weights
from jaxem._core.tracing import is_concrete
from jaxem._fit.path import em_path
from jaxem.families.gaussian._moments import centred
from jaxem.limits._bound import UNDERFLOW, Bound
from jaxem.limits._chain import (
    HELD,
    Chain,
    em_step,
    eps_of,
    largest_log_ratio,
    m_step,
    one_hot,
    only_if,
    prepare,
    sound,
    square,
)

# ---- H11: a σ small enough that Baum–Welch is Lloyd's algorithm, iterate by iterate


def chain_one_hot_sigma(delta: Any, transitions: Any, start: Any = None) -> Float[Array, ""]:
    """H11's largest σ for a least gap δ: σ² = δ/2(750 + log R) in float64, δ/2(105 + log R) in float32.

    Below it e^{−δ/2σ²} R is 0 in that precision. R is the largest over times and states; 0 where R is infinite, for
    then no σ is small enough.

    Args:
        delta: the least gap along Lloyd's path, `least_gap`.
        transitions: A (K, K).
        start: a (K,); uniform when None.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> even, sticky = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]]
    >>> bool(jaxem.limits.chain_one_hot_sigma(1.0, sticky) < jaxem.limits.chain_one_hot_sigma(1.0, even))
    True
    """
    delta = as_floating(numbers("delta", delta))
    if is_concrete(delta) and not (np.asarray(delta) >= 0).all():
        raise ValueError(f"delta: must be ≥ 0, got {shown(delta)}; it is a squared distance less a smaller one")
    log_R = largest_log_ratio(transitions, start)
    return jnp.sqrt(delta / (2 * (UNDERFLOW[delta.dtype.name] + log_R.astype(delta.dtype))))


def chain_iterates_gap(
    x: Any,
    mu: Any,
    sigma: Any,
    transitions: Any,
    start: Any = None,
    *,
    num_steps: int,
) -> Bound:
    """H11: below `chain_one_hot_sigma` EM's means, and hard EM's, equal Lloyd's at every step, to rounding.

    Args:
        x, mu, sigma, transitions, start: as for `chain_limit`.
        num_steps: how many steps are compared.

    >>> import jax.numpy as jnp, jaxem
    >>> x, mu, A = jnp.array([-1.0, 0.1, -1.0, 2.0, 2.0]), jnp.array([[-1.0], [1.0]]), [[0.9, 0.1], [0.1, 0.9]]
    >>> sigma = 0.99 * jaxem.limits.chain_one_hot_sigma(jaxem.limits.least_gap(x, mu, num_steps=5), A)
    >>> bool(jaxem.limits.chain_iterates_gap(x, mu, sigma, A, num_steps=5).holds)
    True
    """
    return _iterates_gap(prepare(x, mu, sigma, transitions, start), num_steps)


@partial(jax.jit, static_argnames="num_steps")
def _iterates_gap(chain: Chain, num_steps: int) -> Bound:
    def em(mu: Array, _: None) -> tuple[Array, Array]:
        mu = em_step(chain._replace(theta=chain.theta | {"mu": mu})).mu
        return mu, mu

    def hard(mu: Array, _: None) -> tuple[Array, Array]:
        at = chain._replace(theta=chain.theta | {"mu": mu})
        mu = m_step(at, one_hot(em_step(at).path, chain.log_A))
        return mu, mu

    lloyd = em_path(HELD, chain.theta, chain.x, num_steps=num_steps, temperature=0.0).theta["mu"]
    paths = [lax.scan(each, chain.theta["mu"], length=num_steps)[1] for each in (em, hard)]
    furthest = jnp.max(jnp.stack([jnp.max(jnp.abs(path - lloyd)) for path in paths]))
    return only_if(sound(chain), Bound(furthest, eps_of(chain) * jnp.max(jnp.abs(chain.x))))


# ---- H13: where the means part


def _stay(chain: Chain) -> Array:
    """λ of A = λI + (1 − λ)11ᵀ/K and a = 1/K; a ValueError, or NaN inside `jit`, where they are not of that form."""
    stay, good = _stays(chain)
    if is_concrete(good) and not bool(good):
        raise ValueError(
            f"transitions: must be λI + (1 − λ)/K and the start uniform, got {shown(np.exp(chain.log_A))}; H13 is "
            "proved of a chain that stays, or goes anywhere alike"
        )
    return jnp.where(good, stay, jnp.nan)


@jax.jit
def _stays(chain: Chain) -> tuple[Array, Array]:
    """(λ, is A of that form?)"""
    A, a = jnp.exp(chain.log_A), jnp.exp(chain.log_start)
    K = len(a)
    stay = A[0, 0] - A[0, -1] if K > 1 else jnp.zeros((), A.dtype)
    wanted = stay * jnp.eye(K, dtype=A.dtype) + (1 - stay) / K
    far = jnp.maximum(jnp.max(jnp.abs(A - wanted)), jnp.max(jnp.abs(a - 1 / K)))
    return stay, far <= 16 * K * jnp.finfo(A.dtype).eps


def chain_critical_sigma(x: Any, transitions: Any) -> Float[Array, ""]:
    """σ_c = √λ_max(C_λ): below it μ_k = x̄ for all k is unstable, C_λ = (1/N) Σ_ts λ^{|t−s|} (x_t − x̄)(x_s − x̄)ᵀ.

    `critical_sigma` for λ = 0. A chain that stays (λ > 0) splits where slow movement is.

    Args:
        x: the sequence, (N, D), or (N,) for D = 1.
        transitions: A = λI + (1 − λ)11ᵀ/K, (K, K).

    Raises:
        ValueError: for an A of another form, and what `chain_limit` refuses.

    >>> import jax.numpy as jnp, jaxem
    >>> slow = jnp.repeat(jnp.array([-1.0, 1.0]), 20)
    >>> print(jaxem.limits.critical_sigma(slow))
    1.0
    >>> print(jaxem.limits.chain_critical_sigma(slow, [[0.9, 0.1], [0.1, 0.9]]).round(1))
    2.5
    """
    chain = _coincident(x, 1.0, transitions)
    return jnp.sqrt(jnp.maximum(_spectrum_of_C(chain, _stay(chain))[-1], 0))  # λ = 1: C is 0, but for rounding


def _coincident(x: Any, sigma: Any, transitions: Any) -> Chain:
    """The chain with all means at x̄, both moved to 0: what is asked of it does not mind."""
    rows = as_floating(rows_and_weights(x, None)[0])
    blame_x(rows, rows)
    A = square(transitions)
    return prepare(centred(rows), jnp.zeros((len(A), rows.shape[1])), sigma, A, None)


@jax.jit
def _spectrum_of_C(chain: Chain, stay: Array) -> Float[Array, " D"]:
    """The eigenvalues of C_λ, ascending, in O(N): y_t = λ y_{t−1} + x̃_t."""

    def decay(y: Array, row: Array) -> tuple[Array, Array]:
        y = stay * y + row
        return y, y

    x = chain.x  # its mean is 0
    _, y = lax.scan(decay, jnp.zeros_like(x[0]), x)
    half = x.T @ y - x.T @ x / 2  # Σ_{s≤t}, its diagonal halved
    return jnp.linalg.eigvalsh((half + half.T) / len(x))


def chain_spectrum(x: Any, sigma: Any, transitions: Any) -> tuple[Array, Array]:
    """H13: the eigenvalues of EM's Jacobian in the means at μ_k = x̄, and the theorem's, both ascending.

    The theorem's: 0, D times, and those of C_λ/σ², K − 1 times each.

    Args:
        x: the sequence, (N, D), or (N,) for D = 1.
        sigma: σ > 0.
        transitions: A = λI + (1 − λ)11ᵀ/K, (K, K).

    Raises:
        ValueError: for an A of another form, and what `chain_limit` refuses.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([-1.0, -1.1, -0.9, 1.0, 1.1, 0.9])
    >>> measured, theorem = jaxem.limits.chain_spectrum(x, 1.0, [[0.9, 0.1], [0.1, 0.9]])
    >>> bool(jnp.allclose(measured, theorem, atol=1e-5)), measured.shape
    (True, (2,))
    """
    chain = _coincident(x, sigma, transitions)
    return _spectrum(chain, _stay(chain))


@jax.jit
def _spectrum(chain: Chain, stay: Array) -> tuple[Array, Array]:
    mu = chain.theta["mu"]

    def em_map(flat: Array) -> Array:
        return em_step(chain._replace(theta=chain.theta | {"mu": flat.reshape(mu.shape)})).mu.ravel()

    measured = jnp.sort(jnp.real(jnp.linalg.eigvals(jax.jacfwd(em_map)(mu.ravel()))))
    theorem = jnp.repeat(_spectrum_of_C(chain, stay) / chain.theta["sigma"] ** 2, mu.shape[0] - 1)
    return measured, jnp.sort(jnp.concatenate([jnp.zeros(mu.shape[1], mu.dtype), theorem]))


def chain_spectrum_bound(x: Any, sigma: Any, transitions: Any) -> Bound:
    """H13 as a check: largest |measured − theorem|, against rounding alone.

    Args:
        x, sigma, transitions: as for `chain_spectrum`.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([-1.0, -1.1, -0.9, 1.0, 1.1, 0.9])
    >>> bool(jaxem.limits.chain_spectrum_bound(x, 1.0, [[0.9, 0.1], [0.1, 0.9]]).holds)
    True
    """
    chain = _coincident(x, sigma, transitions)
    measured, theorem = _spectrum(chain, _stay(chain))
    scale = (1 + jnp.max(jnp.abs(theorem))) * (measured.shape[0] + len(chain.x))
    return only_if(sound(chain), Bound(jnp.max(jnp.abs(measured - theorem)), eps_of(chain) * scale))
