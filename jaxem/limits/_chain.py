"""The k-means limit of a hidden Markov model, as statements with bounds: H7–H10 and HV, at one θ.

States 1 … K, transitions A_kj and a start a, held; x_t given z_t = k is N(μ_k, σ²I), σ held. d_tk = ‖x_t − μ_k‖²,
J(z) = Σ_t d_{t z_t}, r the path of nearest means, J = J(r), γ_tk = p(z_t = k | x), and

    log p(x, z) = log p(z) − J(z)/2σ² − (ND/2) log 2πσ²,      G_σ = −2σ² log Σ_z p(z) e^{−J(z)/2σ²}

As σ → 0 distances drown log p(z), and Baum–Welch becomes k-means, whatever A. How small is small is what a path's p(z)
can gain by z_t = k in place of l, over all neighbours i, j:  R_tkl = max_i (A_ik/A_il) · max_j (A_kj/A_lj).

The proofs are in docs/theorems_chains.md. All are compiled, and run inside `jit` and `vmap` over `sigma`. Where A has
zeros, R may be infinite: then H7, H8 and HV say nothing of those times, and hold. The E-step measured is the library's
(eq:chain), unless `step` is another's.

>>> import jax, jaxem
>>> x = jax.random.normal(jax.random.key(0), (50, 2))
>>> A = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
>>> limit = jaxem.limits.chain_limit(x, x[:3], 0.3, A)
>>> [bool(check.holds) for check in (limit.assignment, limit.path, limit.objective, limit.distances, limit.centres)]
[True, True, True, True, True]
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxem._core.arrays import numbers, shown
from jaxem._core.checks import as_floating, blame_x, enter, poisoned
from jaxem._core.model import Theta
from jaxem._core.objective import product
from jaxem._core.tracing import is_concrete
from jaxem._programs.chain import Tables, expectations
from jaxem._programs.chain import chain as over_paths
from jaxem.families.gaussian import isotropic, squared_distances
from jaxem.limits._bound import ROUNDING, Bound, tightest
from jaxem.limits._mixture import diameter, parameters

HELD = isotropic.hold("pi", "sigma")


class Chain(NamedTuple):
    """Checked arguments, in x's precision."""

    theta: Theta  # of `isotropic`
    x: Float[Array, "N D"]
    log_A: Float[Array, "K K"]
    log_start: Float[Array, " K"]


class ChainStep(NamedTuple):
    """One E- and one M-step of a chain, by whom it may be: what H7–H10 and HV are about."""

    value: Float[Array, ""]  # log Σ_z p(z) e^{−(J(z) − J)/2σ²} = L + (ND/2) log 2πσ² + J/2σ², from log p(r) to 0
    gamma: Float[Array, "N K"]
    path: Int[Array, " N"]  # the most probable one
    mu: Float[Array, "K D"]  # after the M-step
    rounding: Float[Array, ""]  # nats by which rounding may have moved `value` and log γ


class ChainLimit(NamedTuple):
    """How far a chain's EM is from k-means at one σ, and how far it may be."""

    assignment: Bound  # H7: |γ − r| against Σ_{j≠r} R e^{−Δ/2σ²}
    path: Bound  # HV: times at which Viterbi's path is not the nearest mean though it must be; 0
    objective: Bound  # H8: |v − h/2| against h/2
    distances: Bound  # H9: |e − v/2| against v/2, e = (Σγd − J)/2σ²N
    centres: Bound  # H10: ‖μ_k(γ) − μ_k(r)‖ against diam(X) Σ|γ − r|/N_k
    v: Float[Array, ""]  # (G_σ − J)/2σ²N, from 0 to h
    h: Float[Array, ""]  # −log p(r)/N
    apart: Int[Array, ""]  # times at which Viterbi's path is not the nearest mean
    undecided: Int[Array, ""]  # times at which A may overrule it: Δ ≤ 2σ² log R
    shares: Float[Array, " N"]  # H7's right side at every time, without an allowance for rounding


def prepare(x: Any, mu: Any, sigma: Any, transitions: Any, start: Any) -> Chain:
    """The one door: a ValueError where shapes or concrete values make no sense."""
    theta, data = enter(isotropic, parameters(numbers("mu", mu), numbers("sigma", sigma)), x)
    if len(data.x) < 2:
        raise ValueError("x: must have at least two rows, the times of a chain; one row is a mixture's")
    blame_x(data.x, data.x)
    theta = theta | {"sigma": poisoned(theta["sigma"], theta["sigma"] > 0)}
    return Chain(theta, data.x, *_laws(transitions, start, theta["mu"].shape[0], data.x.dtype))


def _laws(transitions: Any, start: Any, num_states: int, dtype: Any) -> tuple[Array, Array]:
    """log A and log a of K states."""
    start = jnp.full(num_states, 1 / num_states, dtype) if start is None else start
    A, a = _law("transitions", transitions, (num_states,) * 2, dtype), _law("start", start, (num_states,), dtype)
    return jnp.log(A), jnp.log(a)


def square(transitions: Any) -> Array:
    """A as a floating (K, K), where no means say what K is."""
    A = as_floating(numbers("transitions", transitions))
    if A.ndim != 2 or A.shape[0] != A.shape[1] or not A.size:
        raise ValueError(f"transitions: must be (K, K), got shape {A.shape}; a row for each state, of where it goes")
    return A


def _law(name: str, value: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """Probabilities along the last axis; NaN where they cannot be looked at and are none."""
    value = numbers(name, value, dtype)
    if value.shape != shape:
        raise ValueError(f"{name}: must have shape {shape}, of K = {shape[0]} states, got {value.shape}")
    slack = 10 * shape[0] * float(jnp.finfo(dtype).eps)
    if is_concrete(value):
        p = np.asarray(value, float)
        if not ((p >= 0).all() and (abs(p.sum(-1) - 1) <= slack).all()):
            raise ValueError(f"{name}: must be ≥ 0 and sum to 1 along its last axis, got {shown(p)}; divide by its sum")
        return value
    good = jnp.all(value >= 0) & jnp.all(jnp.abs(jnp.sum(value, axis=-1) - 1) <= slack)
    return jnp.where(good, value, jnp.nan)


def sound(chain: Chain) -> Array:
    """Do its values make sense? Inside `jit` and `vmap` nobody could look before."""
    arrays = (chain.x, chain.theta["mu"], chain.theta["sigma"])
    finite = jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays])
    return jnp.all(finite) & ~jnp.any(jnp.isnan(chain.log_A)) & ~jnp.any(jnp.isnan(chain.log_start))


def only_if(good: Array, check: Bound) -> Bound:
    """A check that does not hold where its arguments make no sense."""
    return check._replace(value=jnp.where(good, check.value, jnp.nan))


def eps_of(chain: Chain) -> float:
    """ROUNDING·eps of its precision."""
    return ROUNDING * float(jnp.finfo(chain.x.dtype).eps)


def _relative(chain: Chain) -> tuple[Array, Array, Array]:
    """d (N, K), r (N,) and (d − d_r)/2σ²."""
    d = squared_distances(chain.x, chain.theta["mu"]).T
    gap = (d - jnp.min(d, axis=1, keepdims=True)) / (2 * chain.theta["sigma"] ** 2)
    return d, jnp.argmin(d, axis=1), gap


def one_hot(labels: Array, like: Array) -> Array:
    return jax.nn.one_hot(labels, like.shape[1], dtype=like.dtype)


# ---- what the prior of paths can overrule


def chain_log_ratios(transitions: Any, start: Any, nearest: Any) -> Float[Array, "N K"]:
    """log R_tk: the most that log p(z) can gain by z_t = k in place of l = r_t, over all neighbours' states.

        R_tk = max_i (A_ik/A_il) · max_j (A_kj/A_lj),  a_k/a_l for the first factor at t = 1, no second one at t = N

    −∞ where k is impossible, else 0 for k = r_t, ∞ where r_t may be impossible and k is not. With A and a uniform,
    R = 1.

    Args:
        transitions: A (K, K), rows summing to 1.
        start: a (K,); uniform when None.
        nearest: r (N,), the states of a path, in 0 … K − 1; inside `jit` R is NaN for another.

    Raises:
        ValueError: for shapes or concrete values that make no sense.

    >>> import jax.numpy as jnp, jaxem
    >>> log_R = jaxem.limits.chain_log_ratios([[0.8, 0.2], [0.2, 0.8]], None, [0, 0, 0])
    >>> jnp.exp(log_R[:, 1]).round().tolist()                            # 4 by one neighbour, 16 by two
    [4.0, 16.0, 4.0]
    """
    A = square(transitions)
    K = len(A)
    path = numbers("nearest", nearest)
    if path.ndim != 1 or not path.size or not jnp.issubdtype(path.dtype, jnp.integer):
        raise ValueError(f"nearest: must be integers (N,), got shape {path.shape} of {path.dtype}; one state a time")
    known = (path >= 0) & (path < K)
    if is_concrete(known) and not np.asarray(known).all():
        raise ValueError(f"nearest: must lie in 0 … {K - 1}, got {shown(path)}; transitions have {K} states")
    return jnp.where(known[:, None], _log_ratios(*_laws(A, start, K, A.dtype), path), jnp.nan)


def largest_log_ratio(transitions: Any, start: Any) -> Float[Array, ""]:
    """The largest log R_tkl of any path: of each state for l at the first time, between, and at the last."""
    A = square(transitions)
    log_A, log_a = _laws(A, start, len(A), A.dtype)
    return jnp.max(jax.vmap(lambda state: _log_ratios(log_A, log_a, jnp.full(3, state)))(jnp.arange(len(A))))


@jax.jit
def _log_ratios(log_A: Array, log_a: Array, nearest: Array) -> Float[Array, "N K"]:
    def change(of: Array, to: Array) -> Array:  # what both forbid is no path
        return jnp.where(jnp.isneginf(of), -jnp.inf, of - jnp.where(jnp.isneginf(of), 0, to))

    into = jnp.max(change(log_A[:, :, None], log_A[:, None, :]), axis=0)  # (k, l): max_i A_ik / A_il
    out = jnp.max(change(log_A[:, None, :], log_A[None, :, :]), axis=2)  # (k, l): max_j A_kj / A_lj
    first = change(log_a[:, None], log_a[None, :])
    times = jnp.arange(nearest.shape[0])[:, None]
    before = jnp.where(times == 0, first.T[nearest], into.T[nearest])
    after = jnp.where(times == nearest.shape[0] - 1, 0, out.T[nearest])
    either = jnp.isneginf(before) | jnp.isneginf(after)
    return jnp.where(either, -jnp.inf, jnp.where(either, 0, before) + jnp.where(either, 0, after))


def _log_prior(chain: Chain, path: Array) -> Array:
    """log p(z)."""
    return chain.log_start[path[0]] + jnp.sum(chain.log_A[path[:-1], path[1:]])


# ---- H7–H10 and HV, at one θ


def chain_step(x: Any, mu: Any, sigma: Any, transitions: Any, start: Any = None) -> ChainStep:
    """The library's E-step (forward–backward and Viterbi, eq:chain) and M-step for the means.

    Args:
        x: the sequence, (N, D), or (N,) for D = 1.
        mu: the means, (K, D).
        sigma: σ > 0.
        transitions: A (K, K), rows summing to 1.
        start: a (K,); uniform when None.

    >>> import jax.numpy as jnp, jaxem
    >>> A = [[0.9, 0.1], [0.1, 0.9]]
    >>> jaxem.limits.chain_step(jnp.array([-1.0, 0.1, -1.0, 2.0, 2.0]), [[-1.0], [1.0]], 1.0, A).path.tolist()
    [0, 0, 0, 1, 1]
    """
    return em_step(prepare(x, mu, sigma, transitions, start))


@jax.jit
def em_step(chain: Chain) -> ChainStep:
    """Forward–backward and Viterbi on −(d − d_r)/2σ², so that nothing is lost to J/2σ² as σ → 0."""
    _, _, gap = _relative(chain)
    tables = Tables(chain.log_start - gap[0], jnp.zeros_like(gap[0]), (chain.log_A,), (-gap[1:, None],))

    def marginals(temperature: float) -> Array:
        _, found, _ = expectations(tables, jnp.asarray(temperature, gap.dtype))
        return jnp.concatenate([found.start[None], found.moving[0][:, 0]])

    value = over_paths(tables, jnp.ones((), gap.dtype))  # with its own derivative, right where A has zeros, too
    gamma, best = marginals(1.0), marginals(0.0)
    rounding = eps_of(chain) * (1 + len(gap) + jnp.abs(value))
    return ChainStep(value, gamma, jnp.argmax(best, axis=1), m_step(chain, gamma), rounding)


def m_step(chain: Chain, gamma: Float[Array, "N K"]) -> Float[Array, "K D"]:
    """The M-step; an empty state keeps its mean."""
    return HELD.update(HELD.statistics(chain.theta, chain.x, gamma.T), chain.theta, HELD.held)["mu"]


def chain_limit(
    x: Any,
    mu: Any,
    sigma: Any,
    transitions: Any,
    start: Any = None,
    *,
    step: ChainStep | None = None,
) -> ChainLimit:
    """H7–H10 and HV at one θ: how far Baum–Welch is from k-means, against how far it may be.

        H7   |γ_tk − r_tk| ≤ min(1, Σ_{j≠l} R_tjl e^{−(d_tj − d_tl)/2σ²}),  l = r_t the nearest mean
        HV   Viterbi's path is at l wherever d_tk − d_tl > 2σ² log R_tkl for every k ≠ l
        H8   J ≤ G_σ ≤ J + 2σ² log 1/p(r)
        H9   J ≤ Σ γd ≤ G_σ
        H10  ‖μ_k(γ) − μ_k(r)‖ ≤ diam(X) Σ_t |γ_tk − r_tk| / N_k,  over k that are somebody's nearest; ∞ for N_k = 0

    Args:
        x: the sequence, (N, D), or (N,) for D = 1.
        mu: the means, (K, D).
        sigma: σ > 0, in units of x.
        transitions: A (K, K), rows summing to 1. Where zeros make R infinite the bounds are 1 and ∞.
        start: a (K,); uniform when None.
        step: what is judged; the library's own `chain_step` when None.

    Raises:
        ValueError: for shapes or concrete values that make no sense. Inside `jit` and `vmap` no check holds of them.

    >>> import jax.numpy as jnp, jaxem
    >>> x = jnp.array([-1.0, 0.1, -1.0, 2.0, 2.0])
    >>> warm, cold = (jaxem.limits.chain_limit(x, [[-1.0], [1.0]], s, [[0.9, 0.1], [0.1, 0.9]]) for s in (1.0, 0.2))
    >>> int(warm.apart), int(warm.undecided), int(cold.apart), int(cold.undecided)     # A overrules 0.1, and then not
    (1, 4, 0, 0)
    """
    chain = prepare(x, mu, sigma, transitions, start)
    if step is None:
        return _limit(chain, em_step(chain))
    (N, D), K = chain.x.shape, len(chain.log_start)
    for name, shape in (("value", ()), ("gamma", (N, K)), ("path", (N,)), ("mu", (K, D)), ("rounding", ())):
        if jnp.shape(found := getattr(step, name)) != shape:
            raise ValueError(f"step.{name}: must have shape {shape}, got {jnp.shape(found)}")
    return _limit(chain, step)


@jax.jit
def _limit(chain: Chain, step: ChainStep) -> ChainLimit:
    value, gamma, path, moved, rounding = step
    d, nearest, gap = _relative(chain)
    eps, num_times, r = eps_of(chain), len(d), one_hot(nearest, d)
    log_R = _log_ratios(chain.log_A, chain.log_start, nearest)
    others = jnp.sum(product(1 - r, jnp.exp(jnp.where(r == 1, 0, log_R - gap))), axis=1)
    theorem = jnp.minimum(others, 1)
    decided = jnp.all((r == 1) | (gap > log_R + rounding), axis=1)
    apart = path != nearest
    v, h = -value / num_times, -_log_prior(chain, nearest) / num_times
    bounded = ~jnp.isposinf(h)  # p(r) = 0: G_σ has no upper bound
    half = jnp.where(bounded, h / 2, 0)
    excess = jnp.sum(gamma * gap) / num_times  # (Σγd − J)/2σ²N
    N_k, used = jnp.sum(gamma, axis=0), jnp.sum(r, axis=0) > 0
    distance = jnp.sqrt(jnp.sum((moved - m_step(chain, r)) ** 2, axis=1))
    spread = 2 * rounding * jnp.sum(gamma * (1 - gamma), axis=0)  # what an error of `rounding` in log γ does to Σγ
    moved_at_most = diameter(chain.x) * (jnp.sum(jnp.abs(gamma - r), axis=0) + spread)
    reach = jnp.where(N_k > 0, moved_at_most / jnp.where(N_k > 0, N_k, 1), jnp.inf)
    checks = (
        tightest(jnp.max(jnp.abs(gamma - r), axis=1), theorem * (1 + rounding) + eps),
        Bound(jnp.sum(decided & apart).astype(d.dtype), jnp.zeros((), d.dtype)),
        Bound(jnp.where(bounded, jnp.abs(v - half), jnp.maximum(-v, 0)), half + rounding / num_times),
        Bound(jnp.abs(excess - v / 2), v / 2 + rounding / num_times),
        tightest(jnp.where(used, distance, 0), jnp.where(used, reach, 0) + eps * jnp.max(jnp.abs(chain.x))),
    )
    good = sound(chain) & ~jnp.isnan(rounding)
    h7, hv, h8, h9, h10 = (only_if(good, check) for check in checks)
    return ChainLimit(h7, hv, h8, h9, h10, v, h, jnp.sum(apart), jnp.sum(~decided), theorem)
