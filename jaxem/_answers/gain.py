"""C16: the gain of one EM step is three Kullback–Leibler divergences, none of them negative.

    F_T(θ⁺) − F_T(θ) = Σ_k N_k KL(p_k⁺‖p_k) + W KL(π⁺‖π) + T Σ_n w_n KL(γ_n‖γ_n⁺)

Proof. F_T(θ⁺) = F_T(θ⁺, γ) + T Σ w KL(γ‖γ⁺) is C1, and F_T(θ) = F_T(θ, γ), so entropies cancel and what is left is
Q(θ⁺) − Q(θ). Its π part is Σ N_k log(π_k⁺/π_k) = W KL(π⁺‖π). The rest, Σ N_k [⟨η_k⁺ − η_k, m̂_k⟩ − A(η_k⁺) + A(η_k)],
is stationary at η⁺ on an affine set, so that the data's means m̂ may be replaced by ∇A(η⁺), which makes it a KL.

The set has to be affine in natural parameters (the family is *flat*), as it is in the nine families here, with any
entries held. Of mclust's fourteen EII, VII, EEI, VVI, EEE and VVV are flat; the others are not, nor is the bound true
of them. A floor under covariances is convex in the precisions: there "=" becomes "≥".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign, product, weighted
from jaxem._core.tracing import compiled
from jaxem.bregman import i_divergence_terms, log_defect
from jaxem.families import bernoulli, categorical, exponential, gaussian, poisson
from jaxem.families._mixture import Mixture, whole_rows_only
from jaxem.families.gaussian._covariances import by_component
from jaxem.families.gaussian._floor import Floored
from jaxem.families.gaussian._moments import in_small_batches
from jaxem.families.gaussian._scales import by_feature


class Gain(NamedTuple):
    """What one EM step gains in F_T, in nats, by cause. Every part is ≥ 0."""

    components: Float[Array, ""]  # Σ_k N_k KL(p_k⁺‖p_k): densities moved
    weights: Float[Array, ""]  # W KL(π⁺‖π): mixing weights moved
    posterior: Float[Array, ""]  # T Σ_n w_n KL(γ_n‖γ_n⁺): rows changed their mind
    total: Float[Array, ""]  # their sum: F_T(θ⁺) − F_T(θ), or a lower bound of it under a floor


def gain(m: Model, theta: ThetaLike, x: Any, temperature: ArrayLike = 1.0, *, weights: Any = None) -> Gain:
    """What one EM step from θ gains in F_T, as three KL divergences (C16). Stores the (N, K) table.

        F_T(θ⁺) − F_T(θ) = Σ_k N_k KL(p_k⁺‖p_k) + W KL(π⁺‖π) + T Σ_n w_n KL(γ_n‖γ_n⁺)

    θ⁺ is the M-step at γ = softmax(ℓ(θ)/T), N_k = Σ_n w_n γ_nk, W = Σ_n w_n, γ⁺ the E-step at θ⁺. At T = 0 the last
    term is Σ_n w_n [max_k ℓ⁺_nk − ℓ⁺_{n z_n}]. Only nonnegative numbers are added, so that near convergence, where a
    difference of two F is rounding, `total` still has its digits. With `gaussian.with_floor` it is a lower bound of
    the gain, and equal to it where the floor does not bind. Works inside `jit` and `vmap`.

    Along a run the totals add up to F(θ_end) − F(θ_start), so the least of T steps is at most a T-th of that.

    Args:
        m: a flat family of `jaxem.families`, with any parameters held.
        theta: where the step starts.
        x: the data, (N, D), or (N,) for D = 1.
        temperature: T ≥ 0.
        weights: w (N,) ≥ 0.

    Returns:
        A `Gain`, in nats. `jaxem.limits.gain_identity` compares it with the difference of the two F.

    Raises:
        ValueError: for a model of which the identity is not proved: a program, a curved or foreign family, or one
            whose M-step climbs a gradient.

    Source: the first two terms as a lower bound are Kunstner, Kumar & Schmidt (AISTATS 2021); the third is C1.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[-0.5], [0.5]]), "sigma": 1.0}
    >>> step = jaxem.em(gaussian.isotropic, theta, x, max_steps=1)
    >>> bool(jnp.allclose(jaxem.gain(gaussian.isotropic, theta, x).total, step.gain, rtol=1e-4))
    True
    """
    flat_family(m)
    theta, data = enter(m, theta, x, weights, temperature)
    parts = gain_and_step(m, theta, data)[0]
    blame_x(data.x, parts.total)
    return parts


# ---- KL(p_k⁺‖p_k) of each family, (K,)


def of_gaussians(new: Theta, old: Theta) -> Float[Array, " K"]:
    """½ Σ_i h(λ_i(Σ⁻¹(Σ⁺ − Σ))) + ½ ‖Σ^{-½}(μ⁺ − μ)‖², h(u) = u − log(1 + u) ≥ 0."""
    move = new["mu"] - old["mu"]
    if "sigma" in old:
        sigma, sigma_new = by_feature(old["sigma"], old["mu"]), by_feature(new["sigma"], old["mu"])
        relative, white = (sigma_new - sigma) / sigma * ((sigma_new + sigma) / sigma), move / sigma
    else:
        Sigma, Sigma_new = by_component(old["Sigma"], move), by_component(new["Sigma"], move)
        factor = in_small_batches(jnp.linalg.cholesky, Sigma, cubes=1)
        solve = partial(jax.scipy.linalg.solve_triangular, lower=True)
        half = jax.vmap(solve)(factor, Sigma_new - Sigma)
        change = jax.vmap(solve)(factor, jnp.swapaxes(half, 1, 2))
        relative = in_small_batches(jnp.linalg.eigvalsh, (change + jnp.swapaxes(change, 1, 2)) / 2, cubes=10)
        white = jax.vmap(solve)(factor, move)
    return jnp.sum(log_defect(relative) + white**2, axis=1) / 2


def of_bernoullis(new: Theta, old: Theta) -> Float[Array, " K"]:
    """Σ_d of p and of 1 − p."""
    p, q = new["probs"], old["probs"]
    return jnp.sum(i_divergence_terms(p, q) + i_divergence_terms(1 - p, 1 - q), axis=1)


def of_categoricals(new: Theta, old: Theta) -> Float[Array, " K"]:
    """Σ_dc p⁺ log(p⁺/p)."""
    return jnp.sum(i_divergence_terms(new["probs"], old["probs"]), axis=(1, 2))


def of_poissons(new: Theta, old: Theta) -> Float[Array, " K"]:
    """Σ_d λ⁺ log(λ⁺/λ) − λ⁺ + λ."""
    return jnp.sum(i_divergence_terms(new["rate"], old["rate"]), axis=1)


def of_exponentials(new: Theta, old: Theta) -> Float[Array, " K"]:
    """Σ_d h(λ/λ⁺ − 1)."""
    return jnp.sum(log_defect((old["rate"] - new["rate"]) / new["rate"]), axis=1)


def of_posteriors(gamma: Array, new: Array, log_ratio: Array) -> Array:
    """γ log(γ/γ⁺) − γ + γ⁺, by the given logarithm where an entry has underflowed."""
    tiny = jnp.finfo(gamma.dtype).tiny
    near = (gamma >= tiny) & (new >= tiny)
    by_logs = jnp.where(gamma > 0, gamma * jnp.where(gamma > 0, log_ratio, 0), 0) - gamma + new
    terms = i_divergence_terms(jnp.where(near, gamma, 1), jnp.where(near, new, 1))
    return jnp.where(near, terms, jnp.maximum(by_logs, 0))


FLAT: tuple[tuple[Mixture, Callable[[Theta, Theta], Array]], ...] = (
    (gaussian.isotropic, of_gaussians),
    (gaussian.spherical, of_gaussians),
    (gaussian.diagonal, of_gaussians),
    (gaussian.tied, of_gaussians),
    (gaussian.full, of_gaussians),
    (bernoulli.mixture, of_bernoullis),
    (categorical.mixture, of_categoricals),
    (poisson.mixture, of_poissons),
    (exponential.mixture, of_exponentials),
)


def flat_family(m: Model) -> Callable[[Theta, Theta], Array]:
    """Its KL(p_k⁺‖p_k), or a ValueError where C16 is not proved of it."""
    mixture = whole_rows_only("gain", m)
    update = mixture.update.function if isinstance(mixture.update, Floored) else mixture.update
    if mixture.extras.maximizer is None:
        for family, divergence in FLAT:
            same = mixture.program == family.program and mixture.shapes == family.shapes
            if same and family.update in (update, getattr(update, "func", None)):
                return divergence
    raise ValueError(
        "m: its M-step is not the exact maximum of a flat exponential family of jaxem.families, of which alone the "
        "identity is proved; compare the F of two fits (em(..., max_steps=1).gain)"
    )


@compiled
def gain_and_step(m: Mixture, theta: Theta, data: Data) -> tuple[Gain, Theta, Array]:
    """C16's three terms, θ⁺, and the rounding allowance of the identity."""
    divergence, T = flat_family(m), data.temperature
    table = m.table(theta, data.x)
    gamma, value = assign(table, T, axis=0)
    w = jnp.ones_like(value) if data.weights is None else data.weights
    counted = weighted(gamma, jnp.broadcast_to(w[None], gamma.shape))
    new = m.update(m.statistics(theta, data.x, counted), theta, m.held)
    if "mu" in theta:  # again about the new means, which costs no digits
        about = theta | {"mu": new["mu"]}
        new = m.update(m.statistics(about, data.x, counted), about, m.held)
    table_new = m.table(new, data.x)
    gamma_new, value_new = assign(table_new, T, axis=0)

    N_k = jnp.sum(counted, axis=1)
    KL = divergence(new, theta)
    components = jnp.sum(product(N_k, KL))
    weights = jnp.sum(w) * jnp.sum(i_divergence_terms(new["pi"], theta["pi"]))
    log_ratio = (table - value[None] - (table_new - value_new[None])) / jnp.where(T > 0, T, 1)
    soft = T * jnp.sum(of_posteriors(gamma, gamma_new, log_ratio), axis=0)
    hard = value_new - jnp.sum(product(gamma, table_new), axis=0)
    posterior = jnp.sum(weighted(jnp.where(T > 0, soft, hard), data.weights))
    parts = Gain(components, weights, posterior, components + weights + posterior)

    sizes = jnp.abs(value) + jnp.abs(value_new) + jnp.sum(product(gamma, jnp.abs(table) + jnp.abs(table_new)), axis=0)
    of_densities = jnp.sum(product(N_k, condition_numbers(theta) + condition_numbers(new) + 2 * KL))
    scale = jnp.sum(weighted(sizes, data.weights)) + of_densities
    return parts, new, 8 * jnp.finfo(scale.dtype).eps * scale


def condition_numbers(theta: Theta) -> Array:
    """D · cond Σ_k, the digits that a KL of Gaussians loses; 0 where there is none."""
    if "mu" not in theta:
        return jnp.zeros_like(theta["pi"])
    num_features = theta["mu"].shape[1]
    if "Sigma" not in theta:
        return jnp.full_like(theta["pi"], num_features)
    values = in_small_batches(jnp.linalg.eigvalsh, by_component(theta["Sigma"], theta["mu"]), cubes=10)
    return num_features * values[:, -1] / jnp.maximum(values[:, 0], jnp.finfo(values.dtype).tiny)
