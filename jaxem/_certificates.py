"""Certificates: at any θ, numbers that must vanish if the E-step, the M-step and the likelihood are right.

C1–C6 hold at every θ, not only at fixed points, and for every family; `jax.grad` is the judge. C12 relates
the speed of EM at a fixed point to the fraction of missing information. The statements about the k-means
limit, C7–C11 and C13–C15, are in `jaxem.limits`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxem import _validate
from jaxem._free_energy import assign, row_free_energy, weighted
from jaxem._mixture import Data, Mixture, Theta, ThetaLike


class Certificate(NamedTuple):
    """Residuals of C1–C6 at one θ, each max|residual| / (1 + scale of its terms): near eps when right.

    A field is NaN where its statement says nothing, and `holds` skips it: C4 at T = 0 or when every row is
    one-hot (`C4_rows` counts the rows that did speak), C3, C5 and C6 when everything is held, and C6 for a
    family without a gradient form of its M-step.
    """

    C1: Float[Array, ""]  # F_T(θ, γ) ≤ T Σ log Σ e^{ℓ/T}, equality at γ(θ); the gap elsewhere is T Σ KL
    C2: Float[Array, ""]  # neither half-step lowers F
    C3: Float[Array, ""]  # M-step: ∇_θ F(θ⁺, γ) = 0 in unconstrained coordinates
    C4: Float[Array, ""]  # E-step: ∂F/∂γ_nk equal over each row's positive entries
    C5: Float[Array, ""]  # Fisher: ∇L(θ) = ∇_θ Q(θ; γ(θ))
    C6: Float[Array, ""]  # Xu & Jordan: θ⁺ from ∇L equals the M-step
    C4_rows: Int[Array, ""]  # rows with two or more positive γ, the only ones C4 can test

    def holds(self, tol: ArrayLike) -> Bool[Array, ""]:
        """Are all residuals that say something at most `tol`?"""
        residuals = jnp.stack(self[:6])
        return jnp.all(jnp.isnan(residuals) | (residuals <= tol))


def certify(
    m: Mixture, theta: ThetaLike, x: ArrayLike, temperature: ArrayLike = 1.0, *, weights: ArrayLike | None = None
) -> Certificate:
    """Certify E-step, M-step and likelihood at any θ, by `jax.grad` (C1–C6). Stores the (N, K) table.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.random.normal(jax.random.key(0), (50, 2))
    >>> theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(1), x, 3)
    >>> bool(jaxem.certify(gaussian.isotropic, theta, x).holds(1e-5))
    True
    """
    theta, data = _validate.prepare(m, theta, x, weights, temperature)
    certificate = _certify(m, theta, data)
    _validate.blame_x(data.x, certificate.C1)
    return certificate


@jax.jit
def _certify(m: Mixture, theta: Theta, data: Data) -> Certificate:
    expectation = m.expect(theta, data)
    new = m.maximize(expectation.statistics, theta, data)
    table = m.table(theta, data.x).T
    gamma, rows = assign(table, data.temperature, axis=-1)
    C4, C4_rows = e_step_residual(table, gamma, data.temperature)
    return Certificate(
        C1=_bound_residual(table, gamma, rows, data),
        C2=_fall(m, theta, new, data),
        C3=_stationarity(m, new, gamma, data),
        C4=C4,
        C5=_fisher_residual(m, theta, data),
        C6=_gradient_form_residual(m, theta, new, gamma, data),
        C4_rows=C4_rows,
    )


def _bound_residual(table: Array, gamma: Array, rows: Array, data: Data) -> Array:
    """C1: equality at γ(θ), and at γ' uniform over the possible components a gap of exactly T Σ w KL(γ' ‖ γ)."""
    temperature = data.temperature
    scale = jnp.sum(weighted(jnp.abs(rows), data.weights))
    attained = jnp.sum(weighted(row_free_energy(table, gamma, temperature, axis=-1) - rows, data.weights))
    possible = jnp.isfinite(table)
    other = possible / jnp.sum(possible, axis=-1, keepdims=True)
    t = jnp.where(temperature > 0, temperature, 1)
    log_gamma = (jnp.where(possible, table, 0) - rows[:, None]) / t  # log γ, exact where γ underflows
    kl = jnp.sum(jnp.where(possible, other * (jnp.log(jnp.where(possible, other, 1)) - log_gamma), 0), axis=-1)
    gap = rows - row_free_energy(table, other, temperature, axis=-1)
    gap_scale = scale + jnp.sum(weighted(jnp.abs(gap), data.weights))
    mismatch = jnp.where(temperature > 0, jnp.abs(jnp.sum(weighted(gap - t * kl, data.weights))), 0)
    return jnp.maximum(jnp.abs(attained) / (1 + scale), mismatch / (1 + gap_scale))


def _fall(m: Mixture, theta: Theta, new: Theta, data: Data) -> Array:
    """C2: how far F(θ, γ) ≤ F(θ⁺, γ) ≤ F(θ⁺, γ⁺) is violated."""
    before, after = m.expect(theta, data), m.expect(new, data)
    between = m.objective(new, theta, data)
    fall = jnp.maximum(before.free_energy - between, between - after.free_energy)
    return jnp.maximum(fall, 0) / (1 + before.scale)


def e_step_residual(
    log_joint: Float[Array, "N K"], gamma: Float[Array, "N K"], temperature: ArrayLike = 1.0
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """C4, for any γ: is it a stationary point of eq:F on the simplex? Returns (residual, rows tested).

    On each row, ∂F/∂γ_nk by `jax.grad` must be the same for all k with γ_nk > 0. Rows with a single positive
    entry say nothing and are not counted; with none counted, or at T = 0, the residual is NaN. This is the
    check that rejects an F with a slipped factor, which the M-step alone cannot see.

    >>> import jax, jax.numpy as jnp
    >>> from jaxem import e_step_residual
    >>> table = jnp.array([[-1.0, -2.0]])
    >>> residual, rows = e_step_residual(table, jax.nn.softmax(table))
    >>> bool(residual < 1e-6), int(rows)
    (True, 1)
    >>> bool(e_step_residual(table, jax.nn.softmax(2 * table))[0] > 0.1)      # half the variance: rejected
    True
    """
    temperature = jnp.asarray(temperature, log_joint.dtype)
    gradient = jax.grad(lambda gamma: jnp.sum(row_free_energy(log_joint, gamma, temperature, axis=-1)))(gamma)
    active = gamma >= jnp.finfo(gamma.dtype).tiny  # a subnormal γ has too few digits for its logarithm
    count = jnp.sum(active, axis=-1, keepdims=True)
    mean = jnp.sum(jnp.where(active, gradient, 0), axis=-1, keepdims=True) / jnp.maximum(count, 1)
    speaks = (count >= 2) & (temperature > 0)
    size = jnp.max(jnp.where(active, jnp.abs(log_joint), 0), axis=-1, keepdims=True)
    residual = jnp.max(jnp.where(active & speaks, jnp.abs(gradient - mean) / (1 + size), 0))
    num_rows = jnp.sum(speaks)
    return jnp.where(num_rows > 0, residual, jnp.nan), num_rows


def _gradients(m: Mixture, theta: Theta, rows: Any, data: Data) -> tuple[Array, Array]:
    """Σ_n w_n ∇row_n(θ) in unconstrained coordinates, and Σ_n w_n |∇row_n|, the scale of its rounding.

    `rows`: (θ, x (n, D), index (n,)) -> (n,), a sum's terms. They are evaluated at θ itself and differentiated
    through the coordinates: a probability of exactly 0 or 1, which lies at ±∞, would not survive the round trip.
    """
    free, unravel = ravel_pytree(m.unconstrain(theta))

    def at(u: Array) -> Theta:
        back = m.constrain(unravel(u), theta)
        return jax.tree.map(lambda exact, new: exact + (new - jax.lax.stop_gradient(new)), theta, back)

    weights = jnp.ones(data.x.shape[0], free.dtype) if data.weights is None else data.weights

    def one(x: Array, index: Array, weight: Array) -> tuple[Array, Array]:
        gradient = jax.grad(lambda u: rows(at(u), x[None], index[None])[0])(free)
        return weight * gradient, jnp.abs(weight * gradient)

    terms = jax.lax.map(lambda args: one(*args), (data.x, jnp.arange(data.x.shape[0]), weights), batch_size=1024)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), terms)


def _relative(residual: Array, scale: Array) -> Array:
    """max |residual| / (1 + scale); NaN where there is nothing to check."""
    return jnp.max(jnp.abs(residual) / (1 + scale)) if residual.size else jnp.full((), jnp.nan, residual.dtype)


def _stationarity(m: Mixture, new: Theta, gamma: Array, data: Data) -> Array:
    """C3: ∇Q = 0 at θ⁺, γ fixed."""
    if not m.free:
        return jnp.full((), jnp.nan, gamma.dtype)

    def rows(theta: Theta, x: Array, index: Array) -> Array:
        return row_free_energy(m.table(theta, x), gamma[index].T, 0.0, axis=0)

    free, unravel = ravel_pytree(m.unconstrain(new))

    def expected(free: Array) -> Array:
        everything = rows(m.constrain(unravel(free), new), data.x, jnp.arange(data.x.shape[0]))
        return jnp.sum(weighted(everything, data.weights))

    residual, scale = _gradients(m, new, rows, data)
    # θ⁺ itself is rounded: eps·|θ| moves the gradient by the curvature times it, except at ±∞, where Q is flat
    rounding = jnp.where(jnp.isfinite(free), jnp.abs(free), 0)
    _, curvature = jax.jvp(jax.grad(expected), (free,), (rounding,))
    return _relative(residual, scale + jnp.where(jnp.isfinite(curvature), jnp.abs(curvature), 0))


def _fisher_residual(m: Mixture, theta: Theta, data: Data) -> Array:
    """C5: ∇L = ∇Q; at T ≠ 1, ∇ T Σ log Σ e^{ℓ/T} = ∇Q at γ = softmax(ℓ/T)."""
    if not m.free:
        return jnp.full((), jnp.nan, theta["pi"].dtype)

    def likelihood(new: Theta, x: Array, index: Array) -> Array:
        return assign(m.table(new, x), data.temperature, axis=0)[1]

    def expected(new: Theta, x: Array, index: Array) -> Array:
        gamma, _ = assign(m.table(theta, x), data.temperature, axis=0)
        return row_free_energy(m.table(new, x), gamma, 0.0, axis=0)

    left, left_scale = _gradients(m, theta, likelihood, data)
    right, right_scale = _gradients(m, theta, expected, data)
    return _relative(left - right, jnp.maximum(left_scale, right_scale))


def _gradient_form_residual(m: Mixture, theta: Theta, new: Theta, gamma: Array, data: Data) -> Array:
    """C6: the family's M-step, written as a step along ∇L (eq:XuJordan), against the M-step itself."""
    if m.gradient_form is None or not m.free:
        return jnp.full((), jnp.nan, gamma.dtype)
    gradient = jax.grad(lambda theta: m.expect(theta, data).free_energy)(theta)
    N_k = jnp.sum(gamma if data.weights is None else gamma * data.weights[:, None], axis=0)
    predicted = m.gradient_form(theta, gradient, N_k, m.held)
    residuals = [
        _relative(predicted[name] - new[name], jnp.max(jnp.abs(new[name])) + jnp.max(jnp.abs(theta[name])))
        for name in m.free
    ]
    return jnp.max(jnp.stack(residuals))


# ---- C12: the speed of EM is the fraction of missing information


class Rate(NamedTuple):
    """C12 at one θ, in unconstrained coordinates of the free parameters (P of them)."""

    jacobian: Float[Array, "P P"]  # ∂θ⁺/∂θ of the EM map, by jax.jacfwd
    missing_information: Float[Array, "P P"]  # I − I_c⁻¹ I_obs, by jax.hessian
    spectral_radius: Float[Array, ""]  # of the Jacobian: the linear rate of convergence


def convergence_rate(
    m: Mixture, theta: ThetaLike, x: ArrayLike, temperature: ArrayLike = 1.0, *, weights: ArrayLike | None = None
) -> Rate:
    """How fast EM converges at a fixed point θ, twice: from its own map, and from the information matrices.

        ∂M/∂θ = I − I_c⁻¹ I_obs,   I_c = −∇²Q(θ; γ),   I_obs = −∇²L(θ)         (eq:missing)

    (Dempster, Laird & Rubin 1977.) The two agree at a fixed point of EM, and only there. The spectral radius
    is the largest fraction of missing information; it is 0 for k-means, which therefore stops in finitely
    many steps. Costs (number of free parameters)² passes; eigenvalues on CPU.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> m = gaussian.isotropic.hold("pi", "sigma")
    >>> theta = {"pi": [0.5, 0.5], "mu": [[-0.5], [0.5]], "sigma": 0.3}
    >>> rate = jaxem.convergence_rate(m, jaxem.em(m, theta, x).theta, x)
    >>> bool(rate.spectral_radius < 1e-3)                                     # well separated: nearly k-means
    True
    """
    theta, data = _validate.prepare(m, theta, x, weights, temperature)
    if not m.free:
        raise ValueError("convergence_rate: every parameter is held; leave at least one free")
    rate = _rate(m, theta, data)
    _validate.blame_x(data.x, rate.jacobian)
    return rate


@jax.jit
def _rate(m: Mixture, theta: Theta, data: Data) -> Rate:
    free, unravel = ravel_pytree(m.unconstrain(theta))

    def at(u: Array) -> Theta:
        return m.constrain(unravel(u), theta)

    def em_map(u: Array) -> Array:
        theta = at(u)
        new = m.maximize(m.expect(theta, data).statistics, theta, data)
        return ravel_pytree(m.unconstrain(new))[0]

    jacobian = jax.jacfwd(em_map)(free)
    complete = -jax.hessian(lambda u: m.objective(at(u), theta, data))(free)  # I_c
    observed = -jax.hessian(lambda u: m.expect(at(u), data).free_energy)(free)  # I_obs
    missing = jnp.eye(free.size, dtype=free.dtype) - jnp.linalg.solve(complete, observed)  # eq:missing
    return Rate(jacobian, missing, spectral_radius(jacobian))


def spectral_radius(matrix: Float[Array, "P P"]) -> Float[Array, ""]:
    """The largest modulus of an eigenvalue; NaN for a matrix that is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    eigenvalues = jnp.linalg.eigvals(jnp.where(finite, matrix, 0))
    return jnp.where(finite, jnp.max(jnp.abs(eigenvalues)), jnp.nan)
