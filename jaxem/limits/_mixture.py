"""The k-means limit of EM for `isotropic`, as statements with bounds: C7–C11, C13–C15.

Everywhere π = 1/K unless it is an argument, d_nk = ‖x_n − μ_k‖², J = Σ_n min_k d_nk, r is the one-hot
nearest-centre assignment, Δ_n the gap between the two smallest d_nk, and γ the library's own E-step at T = 1.
Each check returns a `Bound`: what was measured and the theorem's bound plus a rounding allowance, so that
`value <= bound` can fail only if the statement does. All are compiled, and run inside `jit` and `vmap`
over `sigma`; shapes are checked, and a meaningless value (σ ≤ 0, NaN) ends in a bound that does not hold.

>>> import jax, jaxem
>>> x = jax.random.normal(jax.random.key(0), (100, 2))
>>> bound = jaxem.limits.assignment_gap(x, x[:3], 0.1)                      # C7 at your own θ
>>> bool(bound.holds)
True
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.arrays import numbers
from jaxem._core.checks import enter, prepare_x
from jaxem._core.model import Theta
from jaxem._core.objective import assign, row_free_energy
from jaxem._fit.path import em_path
from jaxem.families.gaussian import isotropic, squared_distances
from jaxem.limits._bound import ROUNDING, Bound, tightest


def parameters(mu: ArrayLike, sigma: ArrayLike) -> Theta:
    """θ of `isotropic` with π = 1/K.

    Args:
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
    """
    mu, sigma = numbers("mu", mu), numbers("sigma", sigma)
    if mu.ndim != 2 or not mu.size:
        raise ValueError(f"mu: must be (K, D) with K ≥ 1, got shape {mu.shape}; one centre a row")
    return {"pi": jnp.full(mu.shape[0], 1 / mu.shape[0]), "mu": mu, "sigma": sigma}


def _prepare(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> tuple[Theta, Array]:
    theta, data = enter(isotropic, parameters(mu, sigma), x)
    return theta, data.x


def _eps(theta: Theta) -> float:
    return ROUNDING * float(jnp.finfo(theta["mu"].dtype).eps)


def _hard_and_soft(theta: Theta, x: Array) -> tuple[Array, Array, Array]:
    """d, r and γ, each (K, N), r and γ by the library's E-step at T = 0 and T = 1."""
    table = isotropic.table(theta, x)
    return squared_distances(x, theta["mu"]), assign(table, 0.0, axis=0)[0], assign(table, 1.0, axis=0)[0]


def gaps(d: Float[Array, "K N"]) -> Float[Array, " N"]:
    """Δ_n, the gap between the two smallest d_nk; ∞ for K = 1.

    Args:
        d: squared distances ‖x_n − μ_k‖², (K, N).
    """
    if d.shape[0] == 1:
        return jnp.full(d.shape[1], jnp.inf, d.dtype)
    smallest = -lax.top_k(-d.T, 2)[0]
    return smallest[:, 1] - smallest[:, 0]


@jax.jit
def assignment_gap(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> Bound:
    """C7: |γ_nk − r_nk| ≤ (K − 1) e^{−Δ_n / 2σ²} for every n and k.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
    """
    theta, x = _prepare(x, mu, sigma)
    d, r, gamma = _hard_and_soft(theta, x)
    value = jnp.max(jnp.abs(gamma - r), axis=0)
    theorem = (d.shape[0] - 1) * jnp.exp(-gaps(d) / (2 * theta["sigma"] ** 2))
    # an error of eps·|ℓ| in ℓ is a relative error in e^ℓ
    exponent = jnp.max(jnp.abs(isotropic.table(theta, x)), axis=0)
    return tightest(value, theorem * (1 + _eps(theta) * exponent) + _eps(theta))


@jax.jit
def objective_gap(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> Float[Array, ""]:
    """C8's quantity, (G_σ − J) / 2σ²N = log K − mean_n log Σ_k e^{−(d_nk − min_j d_nj)/2σ²}, without subtracting J.

    G_σ = −2σ² Σ_n log Σ_k (1/K) e^{−d_nk/2σ²} is the negated log-likelihood in the units of J, so C8 says that
    the two objectives differ by at most 2σ²N log K.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
    """
    theta, x = _prepare(x, mu, sigma)
    table = isotropic.table(theta, x)
    highest = jnp.arange(table.shape[0])[:, None] == jnp.argmax(table, axis=0)[None]
    below = jnp.minimum(table - jnp.max(table, axis=0)[None], 0)
    # 0 there whatever the compiler does: a table that it computes twice may differ from itself
    _, soft_maximum = assign(jnp.where(highest, 0, below), 1.0, axis=0)
    return jnp.log(jnp.asarray(table.shape[0], x.dtype)) - jnp.mean(soft_maximum)


@jax.jit
def objective_bound(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> Bound:
    """C8: J ≤ G_σ ≤ J + 2σ²N log K, as |v − ½ log K| ≤ ½ log K with v = `objective_gap`.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
    """
    v = objective_gap(x, mu, sigma)
    half = jnp.log(jnp.asarray(jnp.shape(mu)[0], v.dtype)) / 2
    return Bound(jnp.abs(v - half), half + ROUNDING * jnp.finfo(v.dtype).eps * (1 + half))


class ScaledQ(NamedTuple):
    """C9: Q itself, the rescaled 2σ²(Q − C) + J, and that residual's bound."""

    Q: Float[Array, ""]
    residual: Float[Array, ""]
    check: Bound


@jax.jit
def scaled_expectation(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> ScaledQ:
    """C9: 2σ²(Q − C) = −Σγd → −J although Q diverges; C = −N log K − (ND/2) log 2πσ².

    0 ≤ Σγd − J ≤ 2σ²N(K − 1)/e, because γ_nk ≤ e^{−a} with a = (d_nk − min_j d_nj)/2σ², and a e^{−a} ≤ 1/e.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
    """
    theta, x = _prepare(x, mu, sigma)
    (num_rows, num_features), num_components = x.shape, theta["mu"].shape[0]
    d, _, gamma = _hard_and_soft(theta, x)
    Q = jnp.sum(row_free_energy(isotropic.table(theta, x), gamma, 0.0, axis=0))
    variance = theta["sigma"] ** 2
    C = -num_rows * (jnp.log(num_components) + num_features / 2 * jnp.log(2 * jnp.pi * variance))
    J = jnp.sum(jnp.min(d, axis=0))
    residual = 2 * variance * (Q - C) + J
    rounding = _eps(theta) * (2 * variance * (jnp.abs(Q) + jnp.abs(C)) + J)
    theorem = 2 * variance * num_rows * (num_components - 1) / jnp.e
    return ScaledQ(Q, residual, Bound(jnp.abs(residual), theorem + rounding))


@jax.jit
def diameter(x: ArrayLike) -> Float[Array, ""]:
    """diam(X) = max_{m,n} ‖x_m − x_n‖, exactly, in N² distances and O(N) memory.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
    """
    x = prepare_x(x)
    return jnp.sqrt(jnp.max(lax.map(lambda row: jnp.max(jnp.sum((x - row[None]) ** 2, axis=1)), x)))


@jax.jit
def centre_gap(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike, diam: ArrayLike | None = None) -> Bound:
    """C10: ‖μ_k(γ) − μ_k(r)‖ ≤ diam(X) Σ_n |γ_nk − r_nk| / N_k, over k with Σ_n r_nk > 0. The M-steps' gap.

    `diam` may be passed when it is known.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
        diam: diam(X), where it is known.
    """
    theta, x = _prepare(x, mu, sigma)
    _, r, gamma = _hard_and_soft(theta, x)
    diam = diameter(x) if diam is None else jnp.asarray(diam, x.dtype)
    m = isotropic.hold("pi", "sigma")
    soft, hard = (m.update(m.statistics(theta, x, a), theta, m.held)["mu"] for a in (gamma, r))
    N_k, used = jnp.sum(gamma, axis=1), jnp.sum(r, axis=1) > 0
    distance = jnp.sqrt(jnp.sum((soft - hard) ** 2, axis=1))
    theorem = diam * jnp.sum(jnp.abs(gamma - r), axis=1) / jnp.where(used, N_k, 1)
    allowance = _eps(theta) * (diam + jnp.max(jnp.abs(x)))
    return tightest(jnp.where(used, distance, 0), jnp.where(used, theorem, 0) + allowance)


# ---- C11: a σ small enough that EM is Lloyd's algorithm, iterate by iterate


@partial(jax.jit, static_argnames="num_steps")
def least_gap(x: ArrayLike, mu: ArrayLike, *, num_steps: int) -> Float[Array, ""]:
    """δ, the least Δ_n along `num_steps` of Lloyd's path from `mu`; 0 at a tie.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: where the path starts, (K, D).
        num_steps: how many steps to take, ≥ 1.
    """
    theta, x = _prepare(x, mu, 1.0)
    m = isotropic.hold("pi", "sigma")
    path = em_path(m, theta, x, num_steps=num_steps, temperature=0.0)
    centres = jnp.concatenate([theta["mu"][None], path.theta["mu"][:-1]])
    return jnp.min(lax.map(lambda mu: jnp.min(gaps(squared_distances(x, mu))), centres))


def one_hot_sigma(delta: ArrayLike) -> Float[Array, ""]:
    """C11's largest σ for a least gap δ: σ² = δ/1500 in float64, δ/210 in float32, where e^{−δ/2σ²} is 0.

    Args:
        delta: δ, the least gap along a path, in squared units of x; its dtype says which bound.
    """
    delta = jnp.asarray(delta)
    return jnp.sqrt(delta / (1500 if delta.dtype == jnp.float64 else 210))


@partial(jax.jit, static_argnames="num_steps")
def iterates_gap(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike, *, num_steps: int) -> Bound:
    """C11: at σ² < δ/1500 (float32: δ/210) EM's centres equal Lloyd's at every step, to rounding.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: where both start, (K, D).
        sigma: σ > 0, one for all.
        num_steps: how many steps to take, ≥ 1.
    """
    theta, x = _prepare(x, mu, sigma)
    m = isotropic.hold("pi", "sigma")
    em, lloyd = (em_path(m, theta, x, num_steps=num_steps, temperature=t).theta["mu"] for t in (1.0, 0.0))
    return Bound(jnp.max(jnp.abs(em - lloyd)), _eps(theta) * jnp.max(jnp.abs(x)))


# ---- C13: the coincident point, and where an annealed path leaves it


@jax.jit
def critical_sigma(x: ArrayLike) -> Float[Array, ""]:
    """σ_c = √λ_max(Cov X): below it the coincident point μ_k = x̄ is unstable (Rose 1998).

    Args:
        x: the data, (N, D), or (N,) for D = 1.
    """
    return jnp.sqrt(_covariance_spectrum(prepare_x(x))[-1])


def _covariance_spectrum(x: Array) -> Array:
    """Eigenvalues of Cov X (divisor N), ascending."""
    centred = x - jnp.mean(x, axis=0)[None]
    return jnp.linalg.eigvalsh(centred.T @ centred / x.shape[0])


@jax.jit
def coincident_spectrum(x: ArrayLike, pi: ArrayLike, sigma: ArrayLike) -> tuple[Array, Array]:
    """C13: the eigenvalues of EM's Jacobian in μ at μ_k = x̄, and the theorem's, both ascending.

    The theorem's: 0, D times, and λ_i(Cov X)/σ², K − 1 times each, whatever π.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        pi: the weights π, (K,).
        sigma: σ > 0, one for all.
    """
    x = prepare_x(x)
    pi, sigma = jnp.asarray(pi, x.dtype), jnp.asarray(sigma, x.dtype)
    num_components, num_features = pi.shape[0], x.shape[1]
    m = isotropic.hold("pi", "sigma")

    def em_map(flat: Array) -> Array:
        theta = {"pi": pi, "mu": flat.reshape(num_components, num_features), "sigma": sigma}
        gamma, _ = assign(m.table(theta, x), 1.0, axis=0)
        return m.update(m.statistics(theta, x, gamma), theta, m.held)["mu"].ravel()

    coincident = jnp.tile(jnp.mean(x, axis=0), num_components)
    measured = jnp.sort(jnp.real(jnp.linalg.eigvals(jax.jacfwd(em_map)(coincident))))
    theorem = jnp.repeat(_covariance_spectrum(x) / sigma**2, num_components - 1)
    return measured, jnp.sort(jnp.concatenate([jnp.zeros(num_features, x.dtype), theorem]))


@jax.jit
def coincident_bound(x: ArrayLike, pi: ArrayLike, sigma: ArrayLike) -> Bound:
    """C13's spectrum as a check: largest |measured − theorem|, against rounding alone.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        pi: the weights π, (K,).
        sigma: σ > 0, one for all.
    """
    measured, theorem = coincident_spectrum(x, pi, sigma)
    allowance = ROUNDING * jnp.finfo(measured.dtype).eps * (1 + jnp.max(jnp.abs(theorem))) * measured.shape[0]
    return Bound(jnp.max(jnp.abs(measured - theorem)), allowance)


@partial(jax.jit, static_argnames="num_steps")
def coincidence(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike, *, num_steps: int = 100) -> Bound:
    """C13: for σ > diam(X), EM (equal π held) from any start ends with all centres at x̄.

    Its contraction factor there is λ_max/σ² ≤ 1/4, so 100 steps leave rounding only.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: where EM starts, (K, D).
        sigma: σ > diam(X).
        num_steps: how many steps to take, ≥ 1.
    """
    theta, x = _prepare(x, mu, sigma)
    m = isotropic.hold("pi", "sigma")
    end = em_path(m, theta, x, num_steps=num_steps).theta["mu"][-1]
    distance = jnp.max(jnp.abs(end - jnp.mean(x, axis=0)[None]))
    return Bound(distance, _eps(theta) * jnp.max(jnp.abs(x)))


# ---- C14, C15: two roads to k-means


@jax.jit
def temperature_is_variance(
    x: ArrayLike, mu: ArrayLike, sigma: ArrayLike, temperature: ArrayLike, *, pi: ArrayLike | None = None
) -> Bound:
    """C14: temperature T > 0 at variance σ² gives the γ of T = 1 at variance T·σ² — for equal π.

    With unequal `pi` the two differ (π^{1/T} against π), and the bound is exceeded.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        sigma: σ > 0, one for all.
        temperature: T > 0.
        pi: other weights than 1/K, (K,), of which it is not true.
    """
    theta, x = _prepare(x, mu, sigma)
    theta = theta if pi is None else theta | {"pi": jnp.asarray(pi, x.dtype)}
    temperature = jnp.asarray(temperature, x.dtype)
    table = isotropic.table(theta, x)
    cooled, _ = assign(table, temperature, axis=0)
    widened, _ = assign(isotropic.table(theta | {"sigma": theta["sigma"] * jnp.sqrt(temperature)}, x), 1.0, axis=0)
    scale = 1 + jnp.max(jnp.abs(table)) / temperature
    return Bound(jnp.max(jnp.abs(cooled - widened)), _eps(theta) * scale)


@partial(jax.jit, static_argnames="num_steps")
def hard_em_is_kmeans(x: ArrayLike, mu: ArrayLike, sigma: ArrayLike, *, num_steps: int) -> Bound:
    """C15: hard EM (T = 0, equal π held) at any σ assigns and moves as Lloyd's algorithm does.

    Lloyd's here is written from its definition, by distances alone (Celeux & Govaert 1992).

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: where both start, (K, D).
        sigma: σ > 0, one for all.
        num_steps: how many steps to take, ≥ 1.
    """
    theta, x = _prepare(x, mu, sigma)
    m = isotropic.hold("pi", "sigma")
    hard = em_path(m, theta, x, num_steps=num_steps, temperature=0.0).theta["mu"]

    def lloyd(mu: Array, _: None) -> tuple[Array, Array]:
        r = jax.nn.one_hot(jnp.argmin(squared_distances(x, mu), axis=0), mu.shape[0], axis=0, dtype=x.dtype)
        N_k = jnp.sum(r, axis=1)[:, None]
        mu = jnp.where(N_k > 0, r @ x / jnp.maximum(N_k, 1), mu)
        return mu, mu

    _, path = lax.scan(lloyd, theta["mu"], length=num_steps)
    return Bound(jnp.max(jnp.abs(hard - path)), _eps(theta) * jnp.max(jnp.abs(x)))
