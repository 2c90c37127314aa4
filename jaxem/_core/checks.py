"""Static facts, checked once at the door, an argument at a time: every error names it, what it got and the remedy.

Shapes, names and dtypes are always known; values only when concrete, so inside a user's `jit` or `vmap`
the checks on values are skipped and the outcome becomes a `Status`. What θ must be is the model's to say (`enter`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from numpyro.distributions import constraints

from jaxem._core import columns
from jaxem._core.arrays import blame_rows, non_negative, numbers, raw, shown
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete


def enter(
    m: Any,
    theta: ThetaLike,
    x: Any,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    labels: ArrayLike | None = None,
    *,
    batched: bool = False,
    plans: bool = False,
) -> tuple[Theta, Data]:
    """θ in x's precision and the data, or a ValueError: the one door; see `Model.enter`."""
    model = a_model(m)
    columns.agree(theta, x)
    return model.enter(theta, x, weights, temperature, labels, batched=batched, plans=plans)


def a_model(m: Any) -> Model:
    """A ValueError where something else stands in for a model."""
    if not isinstance(m, Model):
        raise ValueError(
            f"m: must be a mixture of jaxem.families or jaxem.from_numpyro(program), got {type(m).__name__}"
        )
    return m


def prepare_x(x: ArrayLike) -> Array:
    """The rows as a numeric (N, D) array."""
    return rows_and_weights(x, None)[0]


def rows_and_weights(x: Any, weights: Any) -> tuple[Array, Array | None]:
    """The rows (N, D) and, where given, w (N,) ≥ 0: a row of weight 0 counts for nothing, whatever it held.

    It becomes a copy of one that counts, for 0·∞ is no number. Where no concrete weight is 0, nothing is copied.
    """
    if weights is None:
        return _table(numbers("x", x, rows=True)), None
    w = raw("weights", weights)
    counts = np.asarray(w) > 0 if is_concrete(w) and w.ndim == 1 else None
    x = raw("x", x, counts)
    precision = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.result_type(float)
    w = prepare_weights(w, x, precision)
    if counts is not None:
        counts = np.asarray(w) > 0  # in the precision of the fit
        if isinstance(x, np.ndarray) and not counts.all():
            x = x.copy()
            x[~counts] = x[np.argmax(counts)]
    x = _table(numbers("x", x, rows=True))
    return (x if counts is not None and counts.all() else copies_where_weightless(x, w)), w


@jax.jit
def copies_where_weightless(x: Array, weights: Array) -> Array:
    """The rows that weigh something, and copies of the first of them."""
    counts = weights > 0
    return jnp.where(counts[:, None], x, x[jnp.argmax(counts)][None])


def _table(x: Array) -> Array:
    if x.ndim not in (1, 2):
        raise ValueError(f"x: must be (N, D) or (N,), got shape {x.shape}; reshape it to one row per point")
    if x.size == 0:
        raise ValueError(f"x: is empty, got shape {x.shape}; pass at least one row and one column")
    return x[:, None] if x.ndim == 1 else x


def prepare_weights(weights: Any, x: Any, dtype: Any) -> Array:
    """w (N,) ≥ 0, one for each row of x."""
    w = numbers("weights", weights, dtype)
    if w.shape != x.shape[:1]:
        raise ValueError(f"weights: must have shape {x.shape[:1]}, one per row of x, got {w.shape}")
    non_negative("weights", w, "drop rows by giving them weight 0")
    if is_concrete(w):
        total = np.sum(np.asarray(w))
        if not total > 0:
            raise ValueError("weights: sum to 0; give at least one row a positive weight")
        if not np.isfinite(total):
            raise ValueError(f"weights: sum to more than {w.dtype} can hold; divide them by their largest")
    return poisoned(w, (w >= 0) & (jnp.sum(w) > 0))


def prepare_temperature(temperature: ArrayLike, theta: Theta, batched: bool) -> Array:
    leaves = jax.tree.leaves(theta)
    temperature = numbers("temperature", temperature, jnp.result_type(*leaves) if leaves else float)
    lanes = leaves[0].shape[:1] if batched and leaves else ()
    if temperature.shape not in {(), lanes}:
        raise ValueError(f"temperature: must be a scalar{' or one per lane' * batched}, got shape {temperature.shape}")
    non_negative("temperature", temperature, "use 1 for EM, 0 for hard assignment")
    return poisoned(temperature, temperature >= 0)


def prepare_labels(labels: ArrayLike, x: Array, num_components: int, *, least: int) -> Array:
    """Integer labels (N,) in least … K−1."""
    labels = raw("labels", labels)
    if labels.shape != x.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"labels: must be {x.shape[0]} integers, one per row of x, got shape {labels.shape} of {labels.dtype}"
        )
    if is_concrete(labels):
        values = np.asarray(labels)
        if values.min() < least or values.max() >= num_components:
            raise ValueError(
                f"labels: must lie in {least} … {num_components - 1}, got {values.min()} … {values.max()}; "
                "renumber them, or use more components"
            )
    return jnp.asarray(labels, int)


def prepare_centres(name: str, centres: Any, x: Array) -> Array:
    """Centres (K, D) in x's precision."""
    centres = numbers(name, centres, x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else float)
    if centres.ndim != 2 or centres.shape[0] < 1 or centres.shape[1] != x.shape[1]:
        got = f"D = {centres.shape[1]} (shape {centres.shape})" if centres.ndim == 2 else f"shape {centres.shape}"
        raise ValueError(f"{name}: must be (K, D) with K ≥ 1 and D = {x.shape[1]} as in x, got {got}; one centre a row")
    if is_concrete(centres):
        blame_rows(name, ~np.isfinite(np.asarray(centres)), "NaN or infinity", None, "start from rows of x")
    return centres


def as_floating(value: Array) -> Array:
    """Numbers in the precision that they have, or else in JAX's own."""
    return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(float)


def named_entries(theta: ThetaLike, names: list[str], what: str) -> dict[str, Any]:
    if not hasattr(theta, "keys"):
        raise ValueError(f"theta: must be a dict with {names}, got {type(theta).__name__}")
    missing = [name for name in names if name not in theta]
    unknown = [name for name in theta if name not in names]
    if missing or unknown:
        raise ValueError(f"theta: missing {missing}, unknown {unknown}; {what} has exactly {names}")
    return {name: theta[name] for name in names}


def admitted(name: str, constraint: constraints.Constraint, value: Array, given: Array) -> Array:
    """θ's entry, its concrete values checked; what rounding left in a coarser precision is brought back.

    On a simplex that is a sum of 1 to the precision in which it was given: the sum in the finer one is then made 1.
    A subnormal number, for which XLA computes with 0, becomes the least normal one: log 0 would be −∞.
    """
    eps = max(jnp.finfo(v.dtype).eps for v in (value, given) if jnp.issubdtype(v.dtype, jnp.floating))
    if is_concrete(value):
        concrete = np.asarray(value)
        _check_values(name, concrete, constraint, float(eps))
        tiny = jnp.finfo(concrete.dtype).tiny
        subnormal = (concrete != 0) & (np.abs(concrete) < tiny)
        if subnormal.any():
            value = jnp.asarray(np.where(subnormal, np.copysign(tiny, concrete), concrete))
    if constraint is constraints.simplex and eps > jnp.finfo(value.dtype).eps:
        return value / jnp.sum(value, axis=-1, keepdims=True)
    return value


def _check_values(name: str, value: np.ndarray, constraint: constraints.Constraint, eps: float) -> None:
    if not np.isfinite(value).all():
        raise ValueError(f"theta[{name!r}]: must be finite, got {shown(value)}; start from jaxem.inits")
    if constraint is constraints.simplex:
        slack = 10 * value.shape[-1] * eps
        off = np.abs(value.sum(-1) - 1).max()
        if off > slack or (value < 0).any():
            raise ValueError(f"theta[{name!r}]: must be ≥ 0 and sum to 1, got {shown(value)}; divide it by its sum")
    elif not np.all(is_covariance(value) if constraint is constraints.positive_definite else constraint(value)):
        remedy = (
            "add a little to its diagonal, or start from jaxem.inits"
            if constraint is constraints.positive_definite
            else "move it inside"
        )
        raise ValueError(
            f"theta[{name!r}]: must satisfy NumPyro's constraint {constraint}, got {shown(value)}; {remedy}"
        )


def is_covariance(value: np.ndarray) -> bool:
    """Symmetric and positive definite, whatever the units of its rows: its correlations have a Cholesky factor."""
    deviation = np.sqrt(np.maximum(np.diagonal(value, axis1=-2, axis2=-1), 0), dtype=float)
    if not (deviation > 0).all():
        return False
    correlations = value.astype(float) / deviation[..., :, None] / deviation[..., None, :]
    if not np.allclose(correlations, np.swapaxes(correlations, -1, -2), rtol=0, atol=1e-6):
        return False
    try:
        np.linalg.cholesky(correlations)
    except np.linalg.LinAlgError:
        return False
    return True


def poisoned(value: Array, allowed: Array | bool) -> Array:
    """What cannot be looked at here, NaN where it is not allowed: then F is NaN, and the fit NONFINITE."""
    return value if is_concrete(value) else jnp.where(allowed & jnp.isfinite(value), value, jnp.nan)


def blame_x(x: Any, outcome: Any) -> None:
    """After a non-finite outcome on concrete data: a ValueError that names x's bad rows, if it has any."""
    if not is_concrete(x, outcome) or np.isfinite(np.asarray(outcome)).all():
        return
    for array in map(np.asarray, jax.tree.leaves(x)):
        if jnp.issubdtype(array.dtype, jnp.floating):
            blame_rows("x", ~np.isfinite(np.atleast_1d(array)), "NaN or infinity")
