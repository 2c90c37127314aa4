"""Σ_k of any Gaussian family, whatever its θ is made of."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxem._core.model import ThetaLike
from jaxem.families._enter import theta_alone
from jaxem.families._mixture import Mixture, mixture_only
from jaxem.families.gaussian._factors import plain


def covariances(m: Mixture, theta: ThetaLike) -> Float[Array, "K D D"]:
    """The covariance matrix Σ_k of every component, (K, D, D), in squared units of x.

    From a standard deviation sigma of shape (), (K,) or (K, D) it is diag σ_k²; a Sigma (D, D) is every component's;
    of volume, shape, rotation and correlation it is the product λ_k D_k A_k D_kᵀ or λ_k C_k;
    of loadings and sigma Λ_k Λ_kᵀ + diag σ_k².

    Args:
        m: a family of `jaxem.families.gaussian`, or a `factor_analysers.mixture`.
        theta: its parameters.

    Raises:
        ValueError: for a family that has no covariances.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.zeros((2, 2)), "sigma": jnp.array([1.0, 3.0])}
    >>> jaxem.covariances(gaussian.spherical, theta).tolist()
    [[[1.0, 0.0], [0.0, 1.0]], [[9.0, 0.0], [0.0, 9.0]]]
    """
    m = mixture_only("covariances", m)
    if "mu" not in m.parameters or not {"sigma", "Sigma", "volume"} & set(m.parameters):
        raise ValueError(f"m: has no covariances, its θ is {list(m.parameters)}; use a family of gaussian")
    theta = plain(theta_alone(m, theta))
    K, D = theta["mu"].shape
    if "Sigma" in theta:
        return jnp.broadcast_to(theta["Sigma"], (K, D, D))
    sigma = theta["sigma"]
    variance = jnp.broadcast_to(jnp.reshape(sigma, sigma.shape + (1,) * (2 - sigma.ndim)), (K, D)) ** 2
    return variance[:, :, None] * jnp.eye(D, dtype=variance.dtype)[None]
