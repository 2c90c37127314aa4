"""Completing a row: the law of its hidden columns given its observed ones.

    p(x_h | x_o) = Σ_k π_k(x_o) p(x_h | x_o, z = k),   π_k(x_o) = softmax_k log p(x_o, z = k | θ)    (eq:conditional)

The conditional of a mixture is a mixture. A family supplies its two ingredients: for a mask of columns
`Extras.condition`, and for cells that are missing row by row the table and law of `m.with_missing()`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float
from numpyro.distributions import Distribution

from jaxem._core import columns
from jaxem._core.arrays import random_key, raw, static_count
from jaxem._core.checks import blame_x, enter, prepare_x
from jaxem._core.model import Model, Theta, ThetaLike
from jaxem._core.objective import assign
from jaxem._core.tracing import is_concrete
from jaxem.families._missing import Missing, halves
from jaxem.families._mixture import Mixture, mixture_only


class Conditional(NamedTuple):
    """A mixture for each row's H hidden columns, in the order of x's columns, or for whole rows. A pytree.

    Without a mask the rows are whole, H = D: what is observed stays as it is in `mean` and in samples.
    """

    pi: Float[Array, "N K"]  # p(z_n = k | observed columns)
    mean: Float[Array, "N H"]  # E[hidden columns | observed columns]
    law: Distribution  # of the hidden columns given the observed and z; batch shape (K, N) or (K, 1)
    observed: Float[Array, "N D"] | None = None  # without a mask: x, NaN where `law` counts

    def sample(self, key: Array) -> Array:
        """One draw of every row, (N, H): z_n from pi, then the row from the law at z_n."""
        for_z, for_x = jax.random.split(random_key(key))
        num_rows, num_components = self.pi.shape
        z = jax.random.categorical(for_z, jnp.log(self.pi), axis=-1)
        with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
            draws = self.law.expand((num_components, num_rows)).sample(for_x)
        return kept(self.observed, draws[z, jnp.arange(num_rows)])


def kept(observed: Array | None, completed: Array) -> Array:
    """What is observed, and where that is NaN what completes it."""
    return completed if observed is None else jnp.where(jnp.isnan(observed), completed, observed)


def condition(m: Model, theta: ThetaLike, x: Any, mask: ArrayLike | Sequence[bool] | None = None) -> Conditional:
    """The law of the hidden columns of each row given its observed ones (eq:conditional).

    Args:
        m: a mixture of `jaxem.families`; with a mask a Gaussian or Bernoulli one.
        theta: its parameters.
        x: the rows, (N, D), or (N,) for D = 1. Hidden columns are ignored, and may be NaN.
        mask: (D,) bool, True where observed, the same for every row. Fixes a shape: concrete, also inside `jit`.
            Without one, what is NaN is hidden, row by row.

    Returns:
        A `Conditional`: `pi` (N, K), `mean` (N, H), and `sample(key)` -> (N, H), with H the number hidden. Without a
        mask H = D, and `mean` and samples are x but where that is NaN. A categorical column has no mean: NaN.

    Raises:
        ValueError: for a mask of wrong length or type, or with all or none observed.

    For Gaussians: x_h | x_o, z = k ~ N(μ_h + Σ_ho Σ_oo⁻¹ (x_o − μ_o), Σ_hh − Σ_ho Σ_oo⁻¹ Σ_oh)  (Bishop 2006, §2.3.1).

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.ones(1), "mu": jnp.zeros((1, 2)), "Sigma": jnp.array([[2.0, 1.0], [1.0, 2.0]])}
    >>> x = jnp.array([[4.0, jnp.nan]])
    >>> jaxem.condition(gaussian.tied, theta, x, mask=[True, False]).mean.round(3).tolist()      # Σ_ho/Σ_oo · 4
    [[2.0]]
    >>> jaxem.condition(gaussian.tied, theta, x).mean.round(3).tolist()
    [[4.0, 2.0]]
    """
    m = mixture_only("condition", m)
    if mask is None:
        m = m.with_missing()
        theta, data = enter(m, theta, x)
        return _complete(m, theta, data.x)
    if m.has_noise:
        raise ValueError(f"m: {m!r} has noise, which has no law of columns; condition its Gaussians alone")
    if not m.takes_whole_rows:
        raise ValueError("mask: is for rows without missing cells; leave it out, and what is NaN is hidden, row by row")
    if m.extras.condition is None:
        raise ValueError("m: its family supplies no conditional; use a Gaussian or Bernoulli family")
    columns.agree(theta, x)
    x = prepare_x(x)
    observed = _prepare_mask(mask, x.shape[1])
    x = jnp.where(jnp.asarray(observed)[None], x, jnp.zeros((), x.dtype))  # hidden: ignored
    theta, data = enter(m, theta, x)
    conditional, total = _condition(m, theta, data.x, tuple(observed.tolist()))
    blame_x(data.x, total)
    return conditional


def impute(m: Model, theta: ThetaLike, x: Any, key: Any, num_samples: int) -> Float[Array, "S N D"]:
    """Draws of the rows with their missing cells filled in, from p(missing | observed, θ): multiple imputation.

    The cells of a row are drawn together, z_n first; θ is taken as known.

    Args:
        m: a mixture of `jaxem.families`.
        theta: its parameters, e.g. of a fit with `missing=True`.
        x: the rows, (N, D), or (N,) for D = 1, NaN where a cell is missing.
        key: a key of `jax.random`.
        num_samples: S.

    Returns:
        (S, N, D), equal to x where that is observed.

    Raises:
        ValueError: for a program, infinity in x, and an x of NaN alone.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import bernoulli
    >>> theta = {"pi": [0.5, 0.5], "probs": [[0.0, 0.0], [1.0, 1.0]]}
    >>> jaxem.impute(bernoulli.mixture, theta, jnp.array([[1.0, jnp.nan]]), jax.random.key(0), 2).tolist()
    [[[1.0, 1.0]], [[1.0, 1.0]]]
    """
    static_count("num_samples", num_samples, 1)
    keys = jax.random.split(random_key(key), int(num_samples))
    return _draws(condition(mixture_only("impute", m), theta, x), keys)


@jax.jit
def _draws(conditional: Conditional, keys: Array) -> Array:
    return jax.vmap(conditional.sample)(keys)


@jax.jit
def _complete(m: Missing, theta: Theta, rows: Array) -> Conditional:
    """Of whole rows, whose law says what is missing."""
    x, seen = halves(rows)
    observed = jnp.where(seen, x, jnp.nan)
    assert m.law is not None
    with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
        law = m.law(theta, rows)
        given_z = jnp.asarray(law.mean)
    gamma, _ = assign(m.table(theta, rows), 1.0, axis=0)
    given_z = jnp.broadcast_to(given_z, (*gamma.shape, x.shape[1]))
    mean = jnp.einsum("kn,knd->nd", gamma, given_z, precision=jax.lax.Precision.HIGHEST)
    return Conditional(gamma.T, kept(observed, mean), law, observed)


@partial(jax.jit, static_argnames="mask")
def _condition(m: Mixture, theta: Theta, x: Array, mask: tuple[bool, ...]) -> tuple[Conditional, Array]:
    """The conditional, and a sum over its rows that is not finite where one of x is not."""
    assert m.extras.condition is not None
    with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
        table, law = m.extras.condition(theta, x, np.array(mask))
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
