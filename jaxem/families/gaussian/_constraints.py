"""The constraints of Σ's factors, and their unconstrained coordinates, in which df are counted and gradients taken.

    shape        a_d > 0, Π a_d = 1           u_d = log a_d, d < D                                        D − 1
    correlation  C = LLᵀ, det C = 1           L below its diagonal, and log L_dd, d < D          D(D + 1)/2 − 1
    rotation     RᵀR = I                      R = R₀ (I − S)⁻¹(I + S),  S = −Sᵀ (Cayley)             D(D − 1)/2

No chart covers all rotations, so theirs is about one of them, R₀, where S = 0. A chart of NumPyro's own, which knows no
R₀, is about the identity.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ParameterFreeTransform, Transform

NEAR = 1e-3  # of a rotation's entries and of log a product: what tells another quantity, and not a rounding
DETERMINANT = 1e-2  # of log det C, which rounding moves the more, the nearer C is to singular


def by_numpy(value: Any) -> Any:
    """The module that value's arrays are of."""
    return np if isinstance(value, np.ndarray | np.generic) else jnp


class UnitProduct(constraints.ParameterFreeConstraint):
    """Positive, with product 1."""

    event_dim = 1

    def __call__(self, x: Any) -> Any:
        xp, positive = by_numpy(x), (x > 0).all(axis=-1)
        log = xp.log(xp.where(x > 0, x, 1))
        return positive & (xp.abs(log.sum(axis=-1)) < NEAR * x.shape[-1])

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.ones_like(prototype)

    def __repr__(self) -> str:
        return "positive with product 1 along the last axis"


class UnitDeterminant(constraints.ParameterFreeConstraint):
    """Symmetric and positive definite, with determinant 1."""

    event_dim = 2

    def __call__(self, x: Any) -> Any:
        xp = by_numpy(x)
        admitted = constraints.positive_definite(x)
        _, log_det = xp.linalg.slogdet(x)
        return admitted & (xp.abs(log_det) < DETERMINANT * x.shape[-1])

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.broadcast_to(jnp.eye(prototype.shape[-1]), prototype.shape)

    def __repr__(self) -> str:
        return "positive definite with determinant 1"


class Orthogonal(constraints.ParameterFreeConstraint):
    """R with RᵀR = I."""

    event_dim = 2

    def __call__(self, x: Any) -> Any:
        xp = by_numpy(x)
        gram = xp.matmul(xp.swapaxes(x, -1, -2), x)
        return (xp.abs(gram - xp.broadcast_to(xp.eye(x.shape[-1]), gram.shape)) < NEAR).all(axis=(-2, -1))

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.broadcast_to(jnp.eye(prototype.shape[-1]), prototype.shape)

    def chart_about(self, origin: Float[Array, "*k D D"]) -> "Cayley":
        """Coordinates of the rotations near one of them."""
        return Cayley(origin)

    def __repr__(self) -> str:
        return "orthogonal"


unit_product, unit_determinant, orthogonal = UnitProduct(), UnitDeterminant(), Orthogonal()


def log_unit_product(u: Float[Array, "*k d"]) -> Float[Array, "*k D"]:
    """u and minus its sum."""
    return jnp.concatenate([u, -jnp.sum(u, axis=-1, keepdims=True)], axis=-1)


class UnitProductTransform(ParameterFreeTransform):
    """a = exp(u, −Σu)."""

    domain = constraints.real_vector
    codomain = unit_product

    def __call__(self, u: Float[Array, "*k d"]) -> Float[Array, "*k D"]:
        return jnp.exp(log_unit_product(u))

    def _inverse(self, y: Float[Array, "*k D"]) -> Float[Array, "*k d"]:
        log = jnp.log(y)
        return (log - jnp.mean(log, axis=-1, keepdims=True))[..., :-1]

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)


class UnitDeterminantTransform(ParameterFreeTransform):
    """C = LLᵀ,  L = below(u_1 …) + diag exp(… u, −Σ)."""

    domain = constraints.real_vector
    codomain = unit_determinant

    def __call__(self, u: Float[Array, "*k p"]) -> Float[Array, "*k D D"]:
        D = self.forward_shape(u.shape)[-1]
        rows, columns = np.tril_indices(D, -1)
        diagonal = jnp.exp(log_unit_product(u[..., len(rows) :]))
        identity = jnp.broadcast_to(jnp.eye(D, dtype=u.dtype), (*u.shape[:-1], D, D))
        L = (identity * diagonal[..., None]).at[..., rows, columns].set(u[..., : len(rows)])
        return jnp.matmul(L, jnp.swapaxes(L, -1, -2), precision="highest")

    def _inverse(self, y: Float[Array, "*k D D"]) -> Float[Array, "*k p"]:
        L = jnp.linalg.cholesky(y)
        rows, columns = np.tril_indices(y.shape[-1], -1)
        log = jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1))
        mean = jnp.mean(log, axis=-1, keepdims=True)
        below = L[..., rows, columns] * jnp.exp(-mean)
        return jnp.concatenate([below, (log - mean)[..., :-1]], axis=-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        D = next(D for D in range(1, shape[-1] + 3) if shape[-1] == D * (D + 1) // 2 - 1)
        return (*shape[:-1], D, D)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        D = shape[-1]
        return (*shape[:-2], D * (D + 1) // 2 - 1)


class Cayley(Transform):
    """R = R₀ (I − S)⁻¹(I + S), where S is skew with u below its diagonal; R₀ is the identity where it is not given."""

    domain = constraints.real_vector
    codomain = orthogonal

    def __init__(self, origin: Array | None = None):
        self.origin = origin

    def __call__(self, u: Float[Array, "*k p"]) -> Float[Array, "*k D D"]:
        D = self.forward_shape(u.shape)[-1]
        rows, columns = np.tril_indices(D, -1)
        below = jnp.zeros((*u.shape[:-1], D, D), u.dtype).at[..., rows, columns].set(u)
        identity = jnp.broadcast_to(jnp.eye(D, dtype=u.dtype), below.shape)
        skew = below - jnp.swapaxes(below, -1, -2)
        turn = jnp.linalg.solve(identity - skew, identity + skew)
        return turn if self.origin is None else jnp.matmul(self.origin, turn, precision="highest")

    def _inverse(self, y: Float[Array, "*k D D"]) -> Float[Array, "*k p"]:
        D = y.shape[-1]
        turn = y if self.origin is None else jnp.matmul(jnp.swapaxes(self.origin, -1, -2), y, precision="highest")
        identity = jnp.broadcast_to(jnp.eye(D, dtype=y.dtype), y.shape)
        half = jnp.linalg.solve(turn + identity, turn - identity)  # they commute
        skew = (half - jnp.swapaxes(half, -1, -2)) / 2
        rows, columns = np.tril_indices(D, -1)
        return skew[..., rows, columns]

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        D = next(D for D in range(1, shape[-1] + 3) if shape[-1] == D * (D - 1) // 2)
        return (*shape[:-1], D, D)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        D = shape[-1]
        return (*shape[:-2], D * (D - 1) // 2)

    def tree_flatten(self) -> Any:
        return (self.origin,), (("origin",), {})


TRANSFORMS: dict[Any, Callable[[Any], Transform]] = {
    UnitProduct: lambda constraint: UnitProductTransform(),
    UnitDeterminant: lambda constraint: UnitDeterminantTransform(),
    Orthogonal: lambda constraint: Cayley(),
}
for kind, transform in TRANSFORMS.items():
    biject_to.register(kind, transform)
