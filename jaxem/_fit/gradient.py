"""Gradient ascent as the M-step: for when no closed form is at hand.

Climbs θ ↦ F_T(θ, γ(θ_old)) in NumPyro's unconstrained coordinates (`_core/climb`). Only θ_old is carried, γ is
recomputed chunk by chunk, so memory stays O(chunk·K).
"""

from dataclasses import dataclass
from typing import Any

import optax

from jaxem._core.arrays import static_count
from jaxem._core.climb import check_optimizer, highest
from jaxem._core.model import Data, Model, Theta
from jaxem.families._mixture import Mixture, mixture_only


def gradient_m_step(
    m: Model, optimizer: optax.GradientTransformation | None = None, *, num_steps: int = 100
) -> Mixture:
    """The same mixture, its M-step done by climbing its gradient instead of the closed form.

    Without an optimiser L-BFGS climbs F_T(θ, γ)/W over the free parameters, in the unconstrained coordinates of their
    NumPyro constraints, until it is stationary: the M-step is solved, and its derivative is the maximiser's, in both
    modes. With one, `num_steps` of its steps are taken from a fresh state, and differentiated as far as they can be;
    the best point visited is returned, the start included: F never falls (generalised EM; Dempster, Laird & Rubin
    1977). Where the gradient is not finite, or Q has no maximum, the fit is NONFINITE.

    Args:
        m: the mixture; held parameters stay held.
        optimizer: an optax `GradientTransformation`, or None.
        num_steps: steps of the optimiser in one M-step, ≥ 1; without one, the most evaluations of the gradient.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[-0.5], [0.5]]), "sigma": 1.0}
    >>> exact = jaxem.em(gaussian.isotropic, theta, x)
    >>> climbed = jaxem.em(jaxem.gradient_m_step(gaussian.isotropic), theta, x)
    >>> bool(abs(exact.free_energy - climbed.free_energy) < 1e-3)
    True
    """
    mixture = mixture_only("gradient_m_step", m)
    static_count("num_steps", num_steps, 1)
    check_optimizer(optimizer)
    name = f"jaxem.gradient_m_step({mixture.but(held=frozenset())!r})"
    return mixture.but(name=name, maximizer=GradientAscent(optimizer, num_steps))


@dataclass(frozen=True)
class GradientAscent:
    """A maximiser for `Extras.maximizer`: up F_T(·, γ(θ_old)), by `num_steps` steps of `optimizer` or to the top."""

    optimizer: optax.GradientTransformation | None
    num_steps: int

    def __call__(self, m: Mixture, statistics: Any, theta: Theta, data: Data) -> Theta:
        return highest(
            lambda new: m.objective(new, theta, data),
            lambda free, theta: m.coordinates(theta, data).constrain(free),
            m.coordinates(theta, data).unconstrain(theta),
            theta,
            m.rows.size(data),
            {name: m.constraint(name) for name in m.free},
            self.optimizer,
            self.num_steps,
        )
