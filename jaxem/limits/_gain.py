"""C16 as a check: the gain of a step against its three KL divergences."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._answers.gain import flat_family, gain_and_step
from jaxem._core.checks import enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign, weighted
from jaxem.families._mixture import Mixture
from jaxem.families.gaussian._floor import is_floored
from jaxem.limits._bound import Bound


def gain_identity(m: Model, theta: ThetaLike, x: Any, temperature: ArrayLike = 1.0, *, weights: Any = None) -> Bound:
    """C16: |F_T(θ⁺) − F_T(θ) − `jaxem.gain`.total| is rounding; under a floor, the total never exceeds the rise.

    The two F are taken row by row and subtracted there. Allowance: 8·eps·[Σ w (|F_n| + |F_n⁺|) + Σ wγ(|ℓ| + |ℓ⁺|) +
    Σ_k N_k (D·cond Σ_k + D·cond Σ_k⁺ + 2 KL_k)].

    Args:
        m, theta, x, temperature, weights: as for `jaxem.gain`.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[-0.5], [0.5]]), "sigma": 1.0}
    >>> bool(jaxem.limits.gain_identity(gaussian.isotropic, theta, x).holds)
    True
    """
    flat_family(m)
    return _gain_identity(m, *enter(m, theta, x, weights, temperature))


@jax.jit
def _gain_identity(m: Mixture, theta: Theta, data: Data) -> Bound:
    parts, new, allowance = gain_and_step(m, theta, data)
    rise = _free_energy_of_rows(m, new, data) - _free_energy_of_rows(m, theta, data)
    difference = parts.total - jnp.sum(weighted(rise, data.weights))
    return Bound(jnp.maximum(difference, 0) if is_floored(m) else jnp.abs(difference), allowance)


def _free_energy_of_rows(m: Mixture, theta: Theta, data: Data) -> Array:
    return assign(m.table(theta, data.x), data.temperature, axis=0)[1]
