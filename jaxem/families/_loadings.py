"""Loadings Λ (D, Q), which a rotation of the factors turns and leaves the model what it is: their coordinates.

    Λ = T R₀,   T lower trapezoidal (T_dq = 0 for q > d),   R₀ᵀR₀ = I,   R₀ fixed

T is Λ's but for a rotation (LQ decomposition), and has DQ − Q(Q − 1)/2 entries, as many as the model has parameters
there. About a Λ₀ the R₀ is its own, so that Λ₀ is met exactly.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform


class Loadings(constraints.ParameterFreeConstraint):
    """Any real matrix; what is said of it does not depend on a rotation of its columns."""

    event_dim = 2

    def __call__(self, x: Any) -> Any:
        return (x == x).all(axis=(-2, -1))

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype)

    def chart_about(self, origin: Float[Array, "*k D Q"]) -> "Trapezoid":
        """Coordinates in which Λ₀ is Λ₀ itself, not turned."""
        return Trapezoid(origin)

    def __repr__(self) -> str:
        return "real, up to a rotation of its columns"


loadings = Loadings()


def below(D: int, Q: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of T's entries: all D of the first column, D − 1 of the second, …"""
    return np.tril_indices(D, 0, Q)


def turn(x: Float[Array, "*k D Q"]) -> Float[Array, "*k Q Q"]:
    """R with Λ = T R and T_qq ≥ 0."""
    Q = x.shape[-1]
    turned, triangle = jnp.linalg.qr(jnp.swapaxes(x[..., :Q, :], -1, -2))
    sign = jnp.where(jnp.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1, 1).astype(x.dtype)
    return sign[..., :, None] * jnp.swapaxes(turned, -1, -2)


class Trapezoid(Transform):
    """u, the entries of T ↦ T R₀; R₀ is the identity where there is no Λ₀, and then D and Q are those of `shape`."""

    domain = constraints.real_vector
    codomain = loadings

    def __init__(self, origin: Array | None = None):
        self.origin = origin

    def about(self) -> Array:
        """Λ₀, whose D and Q u does not tell."""
        if self.origin is None:
            raise ValueError("loadings: D and Q cannot be told from one number; ask the mixture's `chart` about some Λ")
        return self.origin

    def __call__(self, u: Float[Array, "*k p"]) -> Float[Array, "*k D Q"]:
        origin = self.about()
        D, Q = origin.shape[-2:]
        T = jnp.zeros((*u.shape[:-1], D, Q), u.dtype).at[(..., *below(D, Q))].set(u)
        return jnp.matmul(T, turn(origin), precision="highest")

    def _inverse(self, y: Float[Array, "*k D Q"]) -> Float[Array, "*k p"]:
        T = jnp.matmul(y, jnp.swapaxes(turn(y), -1, -2), precision="highest")
        return T[(..., *below(*y.shape[-2:]))]

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], *self.about().shape[-2:])

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], len(below(*shape[-2:])[0]))

    def tree_flatten(self) -> Any:
        return (self.origin,), (("origin",), {})


biject_to.register(Loadings, lambda constraint: Trapezoid())
