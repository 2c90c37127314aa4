"""Certificates: at any θ, numbers that must vanish if the E-step, the M-step and the likelihood are right.

C1–C6 hold at every θ, not only at fixed points, and for every family and program; `jax.grad` is the judge. C12,
the speed of EM, is in `_answers/rate`; the statements about the k-means limit are in `jaxem.limits`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxem._answers.posterior import weighted_marginals
from jaxem._core import words
from jaxem._core.arrays import numbers
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Expectation, Model, Theta, ThetaLike, maximize
from jaxem._core.objective import assign, prepare_tables, row_free_energy, weighted
from jaxem._core.tracing import compiled
from jaxem._programs.m_step import stages
from jaxem._programs.program import Program
from jaxem.families._missing import for_rows
from jaxem.families._mixture import Mixture


class Certificate(NamedTuple):
    """Residuals of C1–C6 at one θ, each max|residual| / (1 + scale of its terms): near eps when right.

    A field is NaN where its statement says nothing, and `holds` skips it: C4 at T = 0 or when every row is
    one-hot (`C4_rows` counts the rows that did speak), C3, C5 and C6 when everything is held, and C6 for a
    family without a gradient form of its M-step, and every program.
    """

    C1: Float[Array, ""]  # F_T(θ, γ) ≤ T Σ log Σ e^{ℓ/T}, equality at γ(θ); the gap elsewhere is T Σ KL
    C2: Float[Array, ""]  # neither half-step lowers F
    C3: Float[Array, ""]  # M-step: ∇_θ F(θ⁺, γ) = 0 in unconstrained coordinates
    C4: Float[Array, ""]  # E-step: ∂F/∂γ_nk equal over each row's positive entries
    C5: Float[Array, ""]  # Fisher: ∇L(θ) = ∇_θ Q(θ; γ(θ))
    C6: Float[Array, ""]  # Xu & Jordan: θ⁺ from ∇L equals the M-step
    C4_rows: Int[Array, ""]  # rows with two or more positive γ, the only ones C4 can test

    def holds(self, tol: ArrayLike | None = None) -> Bool[Array, ""]:
        """Are all residuals that say something at most `tol`? By default √eps: half of the digits are right."""
        residuals = jnp.stack(self[:6])
        tol = jnp.sqrt(jnp.finfo(residuals.dtype).eps) if tol is None else tol
        tol = numbers("tol", tol, residuals.dtype)
        return jnp.all(jnp.isnan(residuals) | (residuals <= tol))

    def __repr__(self) -> str:
        """Each statement, its residual and its bound."""
        if not words.readable(self) or np.ndim(self.C1):
            return words.plain(self)
        bound = float(np.sqrt(np.finfo(self.C1.dtype).eps))
        rows = [["", "statement", "residual", "bound"]]
        for name, statement in STATEMENTS.items():
            value = float(getattr(self, name))
            said = ["says nothing"] if np.isnan(value) else [f"{value:.1e}", f"{bound:.1e}"]
            rows.append([name, statement, *said])
        failed = [row[0] for row in rows[1:] if len(row) == 4 and not float(getattr(self, row[0])) <= bound]
        verdict = f"does not hold: {', '.join(failed)}" if failed else "holds"
        lines = [f"Certificate: {verdict}", *(f"  {line}" for line in words.table(rows, left=2))]
        return "\n".join([*lines, f"  C4 was tested on {int(self.C4_rows)} row(s) with two or more positive γ"])


STATEMENTS = {
    "C1": "F(θ, γ) ≤ T Σ log Σ e^{ℓ/T}, with equality at γ(θ)",
    "C2": "neither half-step lowers F",
    "C3": "M-step: ∇F = 0 at θ⁺",
    "C4": "E-step: ∂F/∂γ equal over each row's positive γ",
    "C5": "Fisher: ∇L(θ) = ∇Q(θ; γ(θ))",
    "C6": "Xu & Jordan: θ⁺ is a step along ∇L",
}


def certify(
    m: Model,
    theta: ThetaLike,
    x: Any,
    temperature: ArrayLike = 1.0,
    *,
    weights: ArrayLike | None = None,
    missing: bool = False,
) -> Certificate:
    """Certify E-step, M-step and likelihood at any θ, by `jax.grad` (C1–C6). Stores the (N, K) table.

    For a program of `from_numpyro` the same statements in the form that its structure allows: C1 is
    F = Q + T·∂F/∂T, the entropy being the derivative in T; C3 is asked of each parameter that has a closed form or is
    updated by Newton's method, the others as they were when it was (ECM), and says nothing about those that climb a
    gradient; C4 is asked of the table where `log_joint` exists, else that every marginal sums to one; C6 is NaN.

    With `missing`, ℓ is of what is observed. Gaussians complete their rows, and in C2 and C3 the F between the
    half-steps is that with what is missing as a latent too, E[log p(x, z | θ⁺)] plus its entropy: below F, equal at θ.

    Args:
        m: a mixture or a program; what it holds is skipped.
        theta: any θ, not only one at which EM is at rest.
        x: the data, as for `em`.
        temperature: T ≥ 0.
        weights: w (N,) ≥ 0, one per row; None is all 1.
        missing: may x have NaN, missing at random?

    Returns:
        A `Certificate`; its `holds(tol)` says whether every residual is at most `tol`.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.random.normal(jax.random.key(0), (50, 2))
    >>> theta = jaxem.inits.random_points(gaussian.isotropic, jax.random.key(1), x, 3)
    >>> bool(jaxem.certify(gaussian.isotropic, theta, x).holds(1e-5))
    True
    """
    m = for_rows(m, x, missing)
    theta, data = enter(m, theta, x, weights, temperature, plans=True)
    certificate = _certify_program(m, theta, data) if isinstance(m, Program) else _certify(m, theta, data)
    blame_x(data.x, certificate.C1)
    return certificate


@compiled
def _certify(m: Mixture, theta: Theta, data: Data) -> Certificate:
    expectation = m.expect(theta, data)
    new = maximize(m, expectation, theta, data)
    table = m.table(theta, data.x).T
    gamma, rows = assign(table, data.temperature, axis=-1)
    C4, C4_rows = _e_step_residual(table, gamma, data.temperature)
    return Certificate(
        C1=_bound_residual(table, gamma, rows, data),
        C2=_fall(m, expectation, theta, new, data),
        C3=_stationarity(m, theta, new, gamma, data),
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
    other = possible.astype(table.dtype) / jnp.sum(possible, axis=-1, keepdims=True, dtype=table.dtype)
    t = jnp.where(temperature > 0, temperature, 1)
    log_gamma = (jnp.where(possible, table, 0) - rows[:, None]) / t  # log γ, exact where γ underflows
    kl = jnp.sum(jnp.where(possible, other * (jnp.log(jnp.where(possible, other, 1)) - log_gamma), 0), axis=-1)
    gap = rows - row_free_energy(table, other, temperature, axis=-1)
    gap_scale = scale + jnp.sum(weighted(jnp.abs(gap), data.weights))
    mismatch = jnp.where(temperature > 0, jnp.abs(jnp.sum(weighted(gap - t * kl, data.weights))), 0)
    return jnp.maximum(jnp.abs(attained) / (1 + scale), mismatch / (1 + gap_scale))


def _fall(m: Mixture, before: Expectation, theta: Theta, new: Theta, data: Data) -> Array:
    """C2: how far F(θ, γ) ≤ F(θ⁺, γ) ≤ F(θ⁺, γ⁺) is violated, stage by stage of the M-step."""
    between = [stage.objective(after, theta, data) for stage, after in m.stages(theta, new)]
    F = jnp.stack([before.free_energy, *between, m.expect(new, data).free_energy])
    return jnp.maximum(jnp.max(F[:-1] - F[1:]), 0) / (1 + before.scale)


def e_step_residual(
    log_joint: Float[Array, "N K"], gamma: Float[Array, "N K"], temperature: ArrayLike = 1.0
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """C4, for any γ: is it a stationary point of eq:F on the simplex? Returns (residual, rows tested).

    On each row, ∂F/∂γ_nk by `jax.grad` must be the same for all k with γ_nk > 0. Rows with a single positive
    entry say nothing and are not counted; with none counted, or at T = 0, the residual is NaN. This is the
    check that rejects an F with a slipped factor, which the M-step alone cannot see.

    Args:
        log_joint: ℓ (N, K).
        gamma: any γ (N, K), rows on the simplex.
        temperature: T ≥ 0.

    >>> import jax, jax.numpy as jnp
    >>> from jaxem import e_step_residual
    >>> table = jnp.array([[-1.0, -2.0]])
    >>> residual, rows = e_step_residual(table, jax.nn.softmax(table))
    >>> bool(residual < 1e-6), int(rows)
    (True, 1)
    >>> bool(e_step_residual(table, jax.nn.softmax(2 * table))[0] > 0.1)      # half the variance: rejected
    True
    """
    return _e_step_residual(*prepare_tables(log_joint, gamma, temperature))


def _e_step_residual(log_joint: Array, gamma: Array, temperature: Array) -> tuple[Array, Array]:
    gradient = jax.grad(lambda gamma: jnp.sum(row_free_energy(log_joint, gamma, temperature, axis=-1)))(gamma)
    active = gamma >= jnp.finfo(gamma.dtype).tiny  # a subnormal γ has too few digits for its logarithm
    count = jnp.sum(active, axis=-1, keepdims=True, dtype=gamma.dtype)
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
    coordinates = m.coordinates(theta)
    free, unravel = ravel_pytree(coordinates.unconstrain(theta))

    def at(u: Array) -> Theta:
        return _at_exactly(theta, coordinates.constrain(unravel(u)))

    weights = jnp.ones(data.x.shape[0], free.dtype) if data.weights is None else data.weights

    def one(x: Array, index: Array, weight: Array) -> tuple[Array, Array]:
        gradient = jax.grad(lambda u: rows(at(u), x[None], index[None])[0])(free)
        return weight * gradient, jnp.abs(weight * gradient)

    terms = jax.lax.map(lambda args: one(*args), (data.x, jnp.arange(data.x.shape[0]), weights), batch_size=1024)
    return jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), terms)


def _at_exactly(theta: Theta, back: Theta) -> Theta:
    """θ itself, with the derivatives of its round trip through the unconstrained coordinates."""
    return jax.tree.map(lambda exact, new: exact + (new - jax.lax.stop_gradient(new)), theta, back)


def _relative(residual: Array, scale: Array) -> Array:
    """max |residual| / (1 + scale); NaN where there is nothing to check."""
    return jnp.max(jnp.abs(residual) / (1 + scale)) if residual.size else jnp.full((), jnp.nan, residual.dtype)


def _stationarity(m: Mixture, old: Theta, new: Theta, gamma: Array, data: Data) -> Array:
    """C3: ∇(Q + log p(θ)) = 0 at θ⁺, γ fixed, and what is expected of missing cells with it; stage by stage."""
    stages = [_stationary(stage, old, after, gamma, data) for stage, after in m.stages(old, new) if stage.free]
    return jnp.max(jnp.stack(stages)) if stages else jnp.full((), jnp.nan, gamma.dtype)


def _stationary(m: Mixture, old: Theta, new: Theta, gamma: Array, data: Data) -> Array:
    """Of one stage, at the θ after it."""

    def rows(theta: Theta, x: Array, index: Array) -> Array:
        return row_free_energy(m.climbed(theta, old, x), gamma[index].T, 0.0, axis=0)

    coordinates = m.coordinates(new)
    free, unravel = ravel_pytree(coordinates.unconstrain(new))

    def expected(free: Array) -> Array:
        there = coordinates.constrain(unravel(free))
        everything = rows(there, data.x, jnp.arange(data.x.shape[0]))
        return jnp.sum(weighted(everything, data.weights)) + m.log_prior(there)

    residual, scale = _gradients(m, new, rows, data)
    if m.extras.prior is not None:
        of_prior = jax.grad(lambda u: m.log_prior(_at_exactly(new, coordinates.constrain(unravel(u)))))(free)
        residual, scale = residual + of_prior, scale + jnp.abs(of_prior)
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
    if m.extras.gradient_form is None or not m.free:
        return jnp.full((), jnp.nan, gamma.dtype)
    gradient = jax.grad(lambda theta: m.expect(theta, data).free_energy)(theta)
    N_k = jnp.sum(gamma if data.weights is None else gamma * data.weights[:, None], axis=0)
    predicted = m.extras.gradient_form(theta, gradient, N_k, m.held)
    residuals = [
        _relative(predicted[name] - new[name], jnp.max(jnp.abs(new[name])) + jnp.max(jnp.abs(theta[name])))
        for name in m.free
    ]
    return jnp.max(jnp.stack(residuals))


# ---- the same for any program


@compiled
def _certify_program(m: Program, theta: Theta, data: Data) -> Certificate:
    expectation, entropy = jax.jvp(
        lambda temperature: m.expect_whole(theta, data._replace(temperature=temperature)),
        (data.temperature,),
        (jnp.ones_like(data.temperature),),
    )
    marginals, scale = expectation.statistics, 1 + expectation.scale
    before = m.energy(marginals, theta, data)
    entropic = jnp.where(data.temperature > 0, data.temperature * entropy.free_energy, 0)
    plan = m.plan(data.x, data.temperature.dtype)
    steps = stages(m, plan, marginals, theta, data)
    new = steps[-1][1]
    between = expectation.free_energy + m.energy(marginals, new, data) - before
    fall = jnp.maximum(expectation.free_energy - between, between - m.expect_whole(new, data).free_energy)
    closed = [([n for n in names if plan[n].kind != "gradient"], after) for names, after in steps[1:]]
    C3 = [_program_gradient(m, names, after, marginals, data) for names, after in closed if names]
    C4, C4_rows = _program_e_step_residual(m, theta, data)
    return Certificate(
        C1=jnp.abs(expectation.free_energy - before - entropic) / scale,
        C2=jnp.maximum(fall, 0) / scale,
        C3=_largest([_relative(*pair) for pair in C3], scale),
        C4=C4,
        C5=_program_fisher_residual(m, theta, marginals, data),
        C6=jnp.full_like(scale, jnp.nan),
        C4_rows=C4_rows,
    )


def _largest(residuals: list[Array], like: Array) -> Array:
    return jnp.max(jnp.stack(residuals)) if residuals else jnp.full_like(like, jnp.nan)


def _program_gradient(m: Program, names: list[str], theta: Theta, marginals: Any, data: Data) -> tuple[Array, Array]:
    """∇Q in the unconstrained coordinates of these parameters, and Σ |γ ∂ℓ|, the scale of its rounding."""
    coordinates = m.coordinates(theta, data)
    everything = coordinates.unconstrain(theta)
    free, unravel = ravel_pytree({name: value for name, value in everything.items() if name in names})

    def terms(u: Array) -> list[Array]:
        at = _at_exactly(theta, coordinates.constrain(unravel(u)))
        _, tables, _ = m.tables(at, data.x)
        return [*(marginals[name] * table for name, table in tables.items()), jnp.reshape(m.log_prior(at, data), 1)]

    def along(direction: Array) -> tuple[Array, Array]:
        _, changes = jax.jvp(terms, (free,), (direction,))
        changes = [jnp.where(jnp.isfinite(change), change, 0) for change in changes]  # 0 · ∞ where γ = 0
        total = jnp.stack([jnp.sum(change) for change in changes])
        return jnp.sum(total), jnp.sum(jnp.stack([jnp.sum(jnp.abs(change)) for change in changes]))

    return jax.lax.map(along, jnp.eye(free.size, dtype=free.dtype))


def _program_e_step_residual(m: Program, theta: Theta, data: Data) -> tuple[Array, Array]:
    """C4 on the (N, K) table where the program has one; else: do the marginals of every latent sum to one?"""
    try:
        table = m.table(theta, data.x).T
    except ValueError:
        found, weights, _ = weighted_marginals(m, theta, data)
        worst = [jnp.max(jnp.abs(jnp.sum(table, axis=-1) / weights[name] - 1)) for name, table in found.items()]
        worst += [jnp.max(jnp.maximum(-table, 0)) for table in found.values()]
        rows = [jnp.sum(jnp.sum(table > 0, axis=-1) > 1) for table in found.values()]
        return jnp.max(jnp.stack(worst)), jnp.sum(jnp.stack(rows))
    gamma, _ = assign(table, data.temperature, axis=-1)
    return _e_step_residual(table, gamma, data.temperature)


def _program_fisher_residual(m: Program, theta: Theta, marginals: Any, data: Data) -> Array:
    """C5: ∇F(θ), through the elimination, equals ∇Q(θ) at its marginals."""
    coordinates = m.coordinates(theta, data)
    names = coordinates.unconstrain(theta)
    free, unravel = ravel_pytree(names)
    if not free.size:
        return jnp.full_like(data.temperature, jnp.nan)
    through = jax.grad(lambda u: m.expect_whole(coordinates.constrain(unravel(u)), data).free_energy)(free)
    expected, scale = _program_gradient(m, list(names), theta, marginals, data)
    return _relative(jnp.where(jnp.isfinite(through), through - expected, 0), scale)
