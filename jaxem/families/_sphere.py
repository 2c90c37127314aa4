"""The unit sphere of R^D: its coordinates, and von Mises–Fisher's law on it, which NumPyro has not.

    p(x | μ, κ) ∝ e^{κ μᵀx},   log p = h(κ) − κ ‖x − μ‖²/2             (Mardia & Jupp 2000; h in `_bessel.py`)

where ‖x − μ‖²/2 = 1 − μᵀx keeps the digits of rows near μ. Coordinates are about one point μ₀ of the sphere: of the
stereographic projection from its antipode, D − 1 numbers that are 0 at μ₀.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution, biject_to, constraints
from numpyro.distributions.transforms import Transform
from numpyro.distributions.util import promote_shapes, validate_sample

from jaxem.families._bessel import height, spread

NEAR = 1e-5  # of ‖x‖²: what tells another quantity, and not a rounding in either precision


class Unit(constraints.ParameterFreeConstraint):
    """‖x‖ = 1."""

    event_dim = 1

    def __call__(self, x: Any) -> Any:
        return abs((x**2).sum(axis=-1) - 1) < NEAR

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype).at[..., 0].set(1)

    def chart_about(self, origin: Float[Array, "*k D"]) -> "Stereographic":
        """Coordinates of the sphere but the antipode of a point."""
        return Stereographic(origin)

    def __repr__(self) -> str:
        return "of norm 1 along the last axis"


unit = Unit()


class Stereographic(Transform):
    """u (D − 1) ↦ the point ((1 − q), u)/(1 + q), q = ‖u‖²/4, turned so that 0 lies at μ₀, or at e₁ without one."""

    domain = constraints.real_vector
    codomain = unit

    def __init__(self, origin: Array | None = None):
        self.origin = origin

    def turned(self, y: Float[Array, "*k D"]) -> Float[Array, "*k D"]:
        """Householder's reflection that takes −sign(μ₀₁) e₁ to μ₀, times −sign(μ₀₁): it is its own inverse."""
        if self.origin is None:
            return y
        sign = jnp.where(self.origin[..., :1] >= 0, 1, -1).astype(y.dtype)
        v = self.origin.at[..., :1].add(sign)
        return -sign * (y - 2 * v * jnp.sum(v * y, axis=-1, keepdims=True) / jnp.sum(v**2, axis=-1, keepdims=True))

    def __call__(self, u: Float[Array, "*k d"]) -> Float[Array, "*k D"]:
        q = jnp.sum(u**2, axis=-1, keepdims=True) / 4
        return self.turned(jnp.concatenate([1 - q, u], axis=-1) / (1 + q))

    def _inverse(self, y: Float[Array, "*k D"]) -> Float[Array, "*k d"]:
        y = self.turned(y)
        return 2 * y[..., 1:] / (1 + y[..., :1])

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)

    def tree_flatten(self) -> Any:
        return (self.origin,), (("origin",), {})


biject_to.register(Unit, lambda constraint: Stereographic())


def on_sphere(x: Float[Array, "*n D"]) -> Bool[Array, "*n"]:
    """Is ‖x‖ = 1?"""
    return jnp.abs(jnp.sum(x**2, axis=-1) - 1) < NEAR


class VonMisesFisher(Distribution):
    """Von Mises–Fisher's law on the unit sphere of R^D, D ≥ 2, for NumPyro.

    Args:
        mu: its mean direction, (..., D), of norm 1.
        kappa: its concentration, (...) ≥ 0; uniform at 0.

    >>> import jax, jax.numpy as jnp
    >>> from jaxem.families._sphere import VonMisesFisher
    >>> law = VonMisesFisher(jnp.array([1.0, 0.0, 0.0]), 0.0)
    >>> f"{jnp.exp(-law.log_prob(jnp.array([0.0, 0.0, 1.0]))):.4f}"                     # 4π
    '12.5664'
    >>> law.sample(jax.random.key(0), (5,)).shape
    (5, 3)
    """

    arg_constraints: ClassVar = {"mu": unit, "kappa": constraints.nonnegative}
    support = unit
    pytree_data_fields = ("mu", "kappa")

    def __init__(self, mu: Any, kappa: Any, *, validate_args: bool | None = None):
        mu, kappa = jnp.asarray(mu), jnp.asarray(kappa)
        batch = lax.broadcast_shapes(mu.shape[:-1], kappa.shape)
        (self.mu,) = promote_shapes(mu, shape=(*batch, mu.shape[-1]))
        (self.kappa,) = promote_shapes(kappa, shape=batch)
        super().__init__(batch, mu.shape[-1:], validate_args=validate_args)

    @validate_sample
    def log_prob(self, value: Array) -> Array:
        """h(κ) − κ ‖x − μ‖²/2, −∞ off the sphere."""
        far = jnp.sum((value - self.mu) ** 2, axis=-1) / 2
        inside = height(self.kappa, self.event_shape[0]) - self.kappa * far
        return jnp.where(on_sphere(value), inside, -jnp.inf)

    @property
    def mean(self) -> Array:
        """I_{D/2}(κ)/I_{D/2−1}(κ) μ."""
        return (1 - spread(self.kappa, self.event_shape[0]))[..., None] * self.mu

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """μᵀx by rejection (Ulrich 1984; Wood 1994), and a uniform direction across μ."""
        shape, D = sample_shape + self.batch_shape, self.event_shape[0]
        along_key, across_key = jax.random.split(key)
        mu, kappa = jnp.broadcast_to(self.mu, (*shape, D)), jnp.broadcast_to(self.kappa, shape)
        b = (D - 1) / (2 * kappa + jnp.sqrt(4 * kappa**2 + (D - 1) ** 2))
        centre = (1 - b) / (1 + b)
        level = kappa * centre + (D - 1) * jnp.log1p(-(centre**2))

        def trial(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            key, along, done = state
            key, beta_key, uniform_key = jax.random.split(key, 3)
            z = jax.random.beta(beta_key, (D - 1) / 2, (D - 1) / 2, shape, dtype=kappa.dtype)
            new = (1 - (1 + b) * z) / (1 - (1 - b) * z)
            log_u = jnp.log(jax.random.uniform(uniform_key, shape, dtype=kappa.dtype))
            accepted = kappa * new + (D - 1) * jnp.log1p(-centre * new) - level >= log_u
            return key, jnp.where(done, along, new), done | accepted

        start = (along_key, jnp.zeros_like(kappa), jnp.isnan(kappa))
        _, along, _ = lax.while_loop(lambda state: ~jnp.all(state[2]), trial, start)
        across = jax.random.normal(across_key, (*shape, D), kappa.dtype)
        across = across - mu * jnp.sum(across * mu, axis=-1, keepdims=True)
        across = across / jnp.linalg.norm(across, axis=-1, keepdims=True)
        x = along[..., None] * mu + jnp.sqrt(jnp.maximum(1 - along**2, 0))[..., None] * across
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
