"""The general EM algorithm, every family: Q(θ, θ_old) rises, and takes L and F with it, whether or not it is maximised.

With γ the posterior at θ_old, Q(θ, θ_old) = Σ γ ℓ(θ) and H the entropy of γ, L(θ_old) = Q(θ_old, θ_old) + H and
L(θ) ≥ Q(θ, θ_old) + H (C1). So L(θ) − L(θ_old) ≥ Q(θ, θ_old) − Q(θ_old, θ_old): whatever raises Q raises L at least as
much (Dempster, Laird & Rubin 1977, theorem 1), and a partial M-step is enough.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import Status

from cases import CASES, EPS, tolerance

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
STEPS = 6
ROUNDING = 64 * EPS  # relative to the sum of absolute terms of F or Q: tens of rounded operations a term


@dataclass(frozen=True)
class HalfWay:
    """A maximiser that stops half-way, in unconstrained coordinates."""

    def __call__(self, m, statistics, theta, data):
        of = m.coordinates(theta)
        new = of.unconstrain(m.update(statistics, theta, m.held))
        return of.constrain(jax.tree.map(lambda a, b: (a + b) / 2, of.unconstrain(theta), new))


PARTIAL = {
    "half-way": lambda m: m.but(maximizer=HalfWay()),
    "one gradient step": lambda m: jaxem.gradient_m_step(m, optax.sgd(0.05), num_steps=1),
}


@partial(jax.jit, static_argnames="m")
def quantities(m, theta, x):
    """Along EM's path: L(θ_t), Q(θ_t, θ_t) and Q(θ_{t+1}, θ_t), and the sum of absolute terms of Q."""
    path = jaxem.em_path(m, theta, x, num_steps=STEPS)
    thetas = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), theta, path.theta)

    def at(old, new):
        gamma = jaxem.responsibilities(m, old, x)
        terms = jnp.abs(jnp.where(gamma > 0, gamma * jaxem.log_joint(m, old, x), 0))
        return {
            "L": jaxem.log_likelihood(m, old, x),
            "L_new": jaxem.log_likelihood(m, new, x),
            "Q": jaxem.expected_log_joint(m, old, gamma, x),
            "Q_new": jaxem.expected_log_joint(m, new, gamma, x),
            "scale": 1 + jnp.sum(terms),
        }

    pairs = (jax.tree.map(lambda leaf: leaf[:-1], thetas), jax.tree.map(lambda leaf: leaf[1:], thetas))
    return jax.lax.map(lambda pair: at(*pair), pairs)


@each_case
def test_Q_rises_in_every_m_step_and_L_by_at_least_as_much(case):
    for seed in range(2):
        found = {name: np.asarray(v) for name, v in quantities(case.m, case.theta(seed), case.x(seed)).items()}
        allowed = ROUNDING * found["scale"]
        rise_in_Q, rise_in_L = found["Q_new"] - found["Q"], found["L_new"] - found["L"]
        assert (rise_in_Q >= -allowed).all()
        assert (rise_in_L >= rise_in_Q - allowed).all()
        assert rise_in_Q[0] > 1e-3  # from a random θ there is something to gain


@each_case
def test_fishers_identity(case):
    """∇L(θ) = ∇_θ Q(θ, θ_old) at θ_old = θ, any θ: EM's surface is tangent to the likelihood."""
    m, theta, x = case.m, case.theta(1), case.x(1)
    free = m.coordinates(theta).unconstrain(theta)

    @jax.jit
    def gradients(free):
        def L(free):
            return jaxem.log_likelihood(m, m.coordinates(theta).constrain(free), x)

        gamma = jaxem.responsibilities(m, m.coordinates(theta).constrain(free), x)

        def Q(free):
            return jaxem.expected_log_joint(m, m.coordinates(theta).constrain(free), gamma, x)

        return jax.grad(L)(free), jax.grad(Q)(free)

    left, right = gradients(free)
    for name in m.free:
        scale = 1 + float(jnp.max(jnp.abs(left[name])))
        assert scale > 1.01  # not a stationary point, where the identity is empty
        # sums of N gradients through NumPyro's transforms, rounded in another order
        np.testing.assert_allclose(left[name], right[name], rtol=0, atol=tolerance(1e-11, 1e-3) * scale)


@pytest.mark.parametrize(
    ("case", "kind"),
    # the gradient's coordinates are the same three constraints in every family: one case for each
    [(case, "half-way") for case in CASES]
    + [(case, "one gradient step") for case in CASES if case.name in ("isotropic", "categorical", "full")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_partial_m_step_raises_F(case, kind):
    """Generalised EM: F rises from a random θ, whatever of the M-step is done, and no fit DECREASED."""
    m, theta, x = PARTIAL[kind](case.m), case.theta(), case.x()
    start, one, many = (jaxem.em(m, theta, x, tol=0, max_steps=count) for count in (0, 1, STEPS))  # one compilation
    assert int(one.num_steps) == 1
    assert float(one.gain) > 1e-3
    assert float(one.free_energy) == pytest.approx(float(start.free_energy + one.gain), rel=ROUNDING)
    assert float(many.free_energy) > float(one.free_energy)
    assert {int(fit.status) for fit in (start, one, many)} <= {Status.MAX_STEPS, Status.CONVERGED}


def test_half_way_m_steps_end_at_EMs_fixed_point():
    """A partial M-step moves while and only while the full one does: the fixed points are the same."""
    case = CASES[0]
    exact = jaxem.check(jaxem.em(case.m, case.theta(), case.x(), max_steps=5_000))
    halved = jaxem.em(PARTIAL["half-way"](case.m), exact.theta, case.x(), max_steps=50)
    assert int(halved.status) == Status.CONVERGED
    for name in case.m.free:
        # both stop within the tolerance of the same flat top
        np.testing.assert_allclose(halved.theta[name], exact.theta[name], atol=tolerance(1e-4, 1e-2))


def test_a_step_past_the_maximum_is_reported():
    """What is not even partial: three times the way to the maximum, away from it, lowers F, and the status says so."""

    @dataclass(frozen=True)
    class Away:
        def __call__(self, m, statistics, theta, data):
            of = m.coordinates(theta)
            new = of.unconstrain(m.update(statistics, theta, m.held))
            return of.constrain(jax.tree.map(lambda a, b: a - 3 * (b - a), of.unconstrain(theta), new))

    case = CASES[0]
    fit = jaxem.em(case.m.but(maximizer=Away()), case.theta(), case.x())
    assert int(fit.status) == Status.DECREASED
    assert int(fit.num_steps) == 0
