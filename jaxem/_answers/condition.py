"""Completing a row: the law of its hidden columns given its observed ones.

    p(x_h | x_o) = Σ_k π_k(x_o) p(x_h | x_o, z = k),   π_k(x_o) = softmax_k log p(x_o, z = k | θ)    (eq:conditional)

The conditional of a mixture is a mixture. A family supplies its two ingredients (`Mixture.condition`).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution

from jaxem._core.arrays import random_key, raw
from jaxem._core.checks import blame_x, enter, prepare_x
from jaxem._core.model import Theta
from jaxem._core.objective import assign
from jaxem._core.tracing import is_concrete
from jaxem.families._mixture import Mixture, mixture_only


class Conditional(NamedTuple):
    """A mixture for each row's H hidden columns, in the order of x's columns. A pytree."""

    pi: Float[Array, "N K"]  # p(z_n = k | observed columns)
    mean: Float[Array, "N H"]  # E[hidden columns | observed columns]
    law: Distribution  # of the hidden columns given the observed and z; batch shape (K, N) or (K, 1)

    def sample(self, key: Array) -> Array:
        """One draw of the hidden columns of every row, (N, H): z_n from pi, then the row from the law at z_n."""
        for_z, for_x = jax.random.split(random_key(key))
        num_rows, num_components = self.pi.shape
        z = jax.random.categorical(for_z, jnp.log(self.pi), axis=-1)
        with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
            draws = self.law.expand((num_components, num_rows)).sample(for_x)
        return draws[z, jnp.arange(num_rows)]


def condition(m: Mixture, theta: Theta, x: ArrayLike, mask: ArrayLike | Sequence[bool]) -> Conditional:
    """The law of the hidden columns of each row given its observed ones (eq:conditional).

    Args:
        m: a Gaussian mixture, or any whose family supplies a conditional.
        theta: its parameters.
        x: the rows, (N, D), or (N,) for D = 1. Hidden columns are ignored, and may be NaN.
        mask: (D,) bool, True where observed, the same for every row. Fixes a shape: concrete, also inside `jit`.

    Returns:
        A `Conditional`: `pi` (N, K), `mean` (N, H), and `sample(key)` -> (N, H), with H the number hidden.

    Raises:
        ValueError: for a mask of wrong length or type, or with all or none observed.

    For Gaussians: x_h | x_o, z = k ~ N(μ_h + Σ_ho Σ_oo⁻¹ (x_o − μ_o), Σ_hh − Σ_ho Σ_oo⁻¹ Σ_oh)  (Bishop 2006, §2.3.1).

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.ones(1), "mu": jnp.zeros((1, 2)), "Sigma": jnp.array([[2.0, 1.0], [1.0, 2.0]])}
    >>> x = jnp.array([[4.0, jnp.nan]])
    >>> jaxem.condition(gaussian.tied, theta, x, mask=[True, False]).mean.round(3).tolist()      # Σ_ho/Σ_oo · 4
    [[2.0]]
    """
    m = mixture_only("condition", m)
    if m.condition is None:
        raise ValueError("m: its family supplies no conditional; use a Gaussian or Bernoulli family")
    x = prepare_x(x)
    observed = _prepare_mask(mask, x.shape[1])
    x = jnp.where(jnp.asarray(observed)[None], x, jnp.zeros((), x.dtype))  # hidden: ignored
    theta, data = enter(m, theta, x)
    conditional, total = _condition(m, theta, data.x, tuple(observed.tolist()))
    blame_x(data.x, total)
    return conditional


@partial(jax.jit, static_argnames="mask")
def _condition(m: Mixture, theta: Theta, x: Array, mask: tuple[bool, ...]) -> tuple[Conditional, Array]:
    """The conditional, and a sum over its rows that is not finite where one of x is not."""
    assert m.condition is not None
    with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
        table, law = m.condition(theta, x, np.array(mask))
        given_z = jnp.asarray(law.mean)
    gamma, _ = assign(table, 1.0, axis=0)
    given_z = jnp.broadcast_to(given_z, (*table.shape, given_z.shape[-1]))
    mean = jnp.einsum("kn,knh->nh", gamma, given_z, precision=jax.lax.Precision.HIGHEST)
    return Conditional(gamma.T, mean, law), jnp.sum(jnp.max(table, axis=0))


def _prepare_mask(mask: ArrayLike | Sequence[bool], num_features: int) -> Bool[np.ndarray, " D"]:
    if not is_concrete(mask):
        raise ValueError("mask: fixes a shape, so it must be concrete, got a tracer; close over it in jax.jit")
    observed = np.asarray(raw("mask", mask))
    if observed.shape != (num_features,) or observed.dtype != bool:
        raise ValueError(
            f"mask: must be {num_features} bools, one per column of x, True where observed; "
            f"got shape {observed.shape} of {observed.dtype}"
        )
    if observed.all():
        raise ValueError("mask: every column is observed, nothing is left to condition; set the hidden ones to False")
    if not observed.any():
        raise ValueError("mask: no column is observed; set some to True, or use jaxem.sample for the joint law")
    return observed
