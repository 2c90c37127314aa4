"""C12: the speed of EM at a fixed point is the largest fraction of missing information."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike, maximize
from jaxem._core.tracing import compiled


class Rate(NamedTuple):
    """C12 at one θ, in unconstrained coordinates of the free parameters (P of them)."""

    jacobian: Float[Array, "P P"]  # ∂θ⁺/∂θ of the EM map, by jax.jacfwd
    missing_information: Float[Array, "P P"]  # I − I_c⁻¹ I_obs, by jax.hessian
    spectral_radius: Float[Array, ""]  # of the Jacobian: the linear rate of convergence


def convergence_rate(
    m: Model, theta: ThetaLike, x: Any, temperature: ArrayLike = 1.0, *, weights: ArrayLike | None = None
) -> Rate:
    """How fast EM converges at a fixed point θ, twice: from its own map, and from the information matrices.

        ∂M/∂θ = I − I_c⁻¹ I_obs,   I_c = −∇²Q(θ; γ),   I_obs = −∇²L(θ)         (eq:missing)

    (Dempster, Laird & Rubin 1977.) The two agree at a fixed point of EM, and only there. The spectral radius
    is the largest fraction of missing information; it is 0 for k-means, which therefore stops in finitely
    many steps. Costs (number of free parameters)² passes; eigenvalues on CPU.

    Args:
        m: a mixture or a program with something free.
        theta: a fixed point of EM, as `em(…).theta` is.
        x: the data, as for `em`.
        temperature: T ≥ 0, that of the fit.
        weights: w (N,) ≥ 0, one per row; None is all 1.

    Returns:
        A `Rate`: the Jacobian ∂M/∂θ in unconstrained coordinates, the fraction of missing information, both (P, P) of
        P free numbers, and the spectral radius of the first.

    Raises:
        ValueError: where every parameter is held, and for what `em` refuses.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jax.numpy.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> m = gaussian.isotropic.hold("pi", "sigma")
    >>> theta = {"pi": [0.5, 0.5], "mu": [[-0.5], [0.5]], "sigma": 0.3}
    >>> rate = jaxem.convergence_rate(m, jaxem.em(m, theta, x).theta, x)
    >>> bool(rate.spectral_radius < 1e-3)                                     # well separated: nearly k-means
    True
    """
    theta, data = enter(m, theta, x, weights, temperature, plans=True)
    if not m.coordinates(theta, data).unconstrain(theta):
        raise ValueError("convergence_rate: every parameter is held; leave at least one free")
    rate = _rate(m, theta, data)
    blame_x(data.x, rate.jacobian)
    return rate


@compiled
def _rate(m: Model, theta: Theta, data: Data) -> Rate:
    coordinates = m.coordinates(theta, data)
    free, unravel = ravel_pytree(coordinates.unconstrain(theta))

    def at(u: Array) -> Theta:
        return coordinates.constrain(unravel(u))

    def em_map(u: Array) -> Array:
        here = at(u)
        new = maximize(m, m.expect(here, data), here, data)
        return ravel_pytree(coordinates.unconstrain(new))[0]

    jacobian = jax.jacfwd(em_map)(free)
    complete = -jax.hessian(lambda u: m.objective(at(u), theta, data))(free)  # I_c
    observed = -jax.hessian(lambda u: m.expect(at(u), data).free_energy)(free)  # I_obs
    missing = jnp.eye(free.size, dtype=free.dtype) - jnp.linalg.solve(complete, observed)  # eq:missing
    return Rate(jacobian, missing, spectral_radius(jacobian))


def spectral_radius(matrix: Float[Array, "P P"]) -> Float[Array, ""]:
    """The largest modulus of an eigenvalue; NaN for a matrix that is not finite."""
    finite = jnp.all(jnp.isfinite(matrix))
    eigenvalues = jnp.linalg.eigvals(jnp.where(finite, matrix, 0))
    return jnp.where(finite, jnp.max(jnp.abs(eigenvalues), initial=0), jnp.nan)
