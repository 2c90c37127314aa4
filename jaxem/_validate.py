"""Static facts, checked once at the door: every error names the argument, what it got and the remedy.

Shapes, names and dtypes are always known; values only when concrete, so inside a user's `jit` or `vmap`
the checks on values are skipped and the outcome becomes a `Status`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from numpyro.distributions import constraints

from jaxem._mixture import Mixture
from jaxem._model import Data, Model, Theta, ThetaLike, is_concrete, is_traced
from jaxem._program import Program
from jaxem._read import Arguments


def prepare(
    m: Model,
    theta: ThetaLike,
    x: Any,
    weights: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    labels: ArrayLike | None = None,
    *,
    batched: bool = False,
) -> tuple[Theta, Data]:
    """θ in x's precision and the data, or a ValueError. `batched`: θ has a leading lane axis."""
    if isinstance(m, Program):
        return _prepare_program(m, theta, x, weights, temperature, labels, batched)
    m = mixture_only("jaxem", m)
    x = prepare_x(x)
    theta = prepare_theta(m, theta, x, batched=batched)
    check_support(m, theta, x)
    temperature = _prepare_temperature(temperature, theta, batched)
    if labels is not None:
        labels = prepare_labels(labels, x, theta["pi"].shape[-1], least=-1)
    return theta, Data(x, prepare_weights(weights, x, temperature.dtype), temperature, labels)


def _prepare_program(
    m: Program, theta: ThetaLike, x: Any, weights: Any, temperature: ArrayLike, labels: Any, batched: bool
) -> tuple[Theta, Data]:
    """The same for a program: its own traces say what θ and x must be."""
    if weights is not None:
        raise ValueError("weights: a program weighs its own rows; put numpyro.handlers.scale(scale=weights) in it")
    if labels is not None:
        raise ValueError("labels: a program observes its own latents; give its discrete site obs= or numpyro.factor")
    arguments = Arguments.of(x)
    parameters = m.structure(arguments).parameters
    unknown = sorted(m.held - set(parameters))
    if unknown:
        raise ValueError(f"hold: {', '.join(map(repr, unknown))} is not a parameter; choose from {list(parameters)}")
    theta = _named_entries(theta, list(parameters), "this program")
    theta = {name: jax.tree.map(arguments.cast, theta[name]) for name in parameters}
    for name, parameter in parameters.items():
        for value, shape in zip(
            jax.tree.leaves(theta[name]),
            jax.tree.leaves(parameter.shape, is_leaf=lambda node: isinstance(node, tuple)),
            strict=True,
        ):
            if value.shape[batched:] != shape or value.ndim < batched:
                wanted = ("lanes", *shape) if batched else shape
                raise ValueError(f"theta[{name!r}]: must have shape {wanted} as in the program, got {value.shape}")
            if is_concrete(value):
                _check_values(name, np.asarray(value), parameter.constraint)
    return theta, Data(arguments, None, _prepare_temperature(temperature, theta, batched))


def _prepare_temperature(temperature: ArrayLike, theta: Theta, batched: bool) -> Array:
    leaves = jax.tree.leaves(theta)
    temperature = jnp.asarray(temperature, jnp.result_type(*leaves) if leaves else float)
    lanes = leaves[0].shape[:1] if batched else ()
    if temperature.shape not in {(), lanes}:
        raise ValueError(f"temperature: must be a scalar{' or one per lane' * batched}, got shape {temperature.shape}")
    non_negative("temperature", temperature, "use 1 for EM, 0 for hard assignment")
    return poisoned(temperature, temperature >= 0)


def mixture_only(what: str, m: Any) -> Mixture:
    """A ValueError where a program stands in for a mixture."""
    if isinstance(m, Program):
        raise ValueError(f"{what}: is for mixtures of jaxem.families; a program has m.init, jaxem.marginals and decode")
    if not isinstance(m, Mixture):
        raise ValueError(
            f"m: must be a mixture of jaxem.families or jaxem.from_numpyro(program), got {type(m).__name__}"
        )
    return m


def program_only(what: str, m: Any) -> Program:
    """A ValueError where something else stands in for a program."""
    if isinstance(m, Mixture):
        raise ValueError(f"{what}: is for jaxem.from_numpyro(program); a mixture has jaxem.responsibilities")
    if not isinstance(m, Program):
        raise ValueError(f"m: must be jaxem.from_numpyro(program), got {type(m).__name__}")
    return m


def prepare_x(x: ArrayLike) -> Array:
    """The rows as a numeric (N, D) array."""
    if not isinstance(x, jax.Array):
        x = np.asarray(x)
        if x.dtype.kind not in "biuf" and not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"x: must be numeric, got dtype {x.dtype}; convert it to float32 or float64")
        x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"x: must be real, got dtype {x.dtype}; pass x.real, or real and imaginary parts as columns")
    if x.ndim not in (1, 2):
        raise ValueError(f"x: must be (N, D) or (N,), got shape {x.shape}; reshape it to one row per point")
    if x.size == 0:
        raise ValueError(f"x: is empty, got shape {x.shape}; pass at least one row and one column")
    return x[:, None] if x.ndim == 1 else x


def check_support(m: Mixture, theta: Theta, x: Array) -> None:
    """A ValueError where concrete rows lie outside the family's support."""
    if m.check_support is not None and is_concrete(theta, x):
        fault = m.check_support(np.asarray(x), {name: np.asarray(value) for name, value in theta.items()})
        if fault:
            raise ValueError(f"x: {fault}")


def prepare_labels(labels: ArrayLike, x: Array, num_components: int, *, least: int) -> Array:
    """Integer labels (N,) in least … K−1."""
    labels = jnp.asarray(labels)
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
    return labels


def prepare_theta(m: Mixture, theta: ThetaLike, x: Array, *, batched: bool = False) -> Theta:
    """θ cast to x's precision, its names, shapes and (where concrete) values checked against the program."""
    theta = _named_entries(theta, list(m.parameters), "this mixture")
    theta = {name: jnp.asarray(value) for name, value in theta.items()}
    for name, value in theta.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            theta[name] = value.astype(float)
    if jnp.issubdtype(x.dtype, jnp.floating):
        theta = {name: value.astype(x.dtype) for name, value in theta.items()}
    else:
        dtype = jnp.result_type(*theta.values())
        theta = {name: value.astype(dtype) for name, value in theta.items()}
    _check_shapes(m, theta, x, batched)
    for name, value in theta.items():
        if is_concrete(value):
            _check_values(name, np.asarray(value), m.constraint(name))
    return theta


def _named_entries(theta: ThetaLike, names: list[str], what: str) -> dict[str, Any]:
    if not hasattr(theta, "keys"):
        raise ValueError(f"theta: must be a dict with {names}, got {type(theta).__name__}")
    missing = [name for name in names if name not in theta]
    unknown = [name for name in theta if name not in names]
    if missing or unknown:
        raise ValueError(f"theta: missing {missing}, unknown {unknown}; {what} has exactly {names}")
    return {name: theta[name] for name in names}


def _check_shapes(m: Mixture, theta: Theta, x: Array, batched: bool) -> None:
    sizes: dict[str, tuple[int, str]] = {"D": (x.shape[1], "x")}
    for name, spec in m.shapes:
        axes = ["lanes"] * batched + spec.split()
        shape = theta[name].shape
        if len(shape) != len(axes):
            wanted = f"({', '.join(axes)})"
            raise ValueError(f"theta[{name!r}]: must have shape {wanted}, got {shape}; see the family's table of θ")
        for axis, size in zip(axes, shape, strict=True):
            expected, source = sizes.setdefault(axis, (size, f"theta[{name!r}]"))
            if size != expected:
                raise ValueError(
                    f"theta[{name!r}]: has {axis} = {size} (shape {shape}), but {source} has {axis} = {expected}; "
                    "make them agree"
                )
    if sizes["K"][0] < 1:
        raise ValueError("theta: has K = 0 components; pass at least one")


def _check_values(name: str, value: np.ndarray, constraint: constraints.Constraint) -> None:
    if not np.isfinite(value).all():
        raise ValueError(f"theta[{name!r}]: must be finite, got {value}; start from jaxem.inits")
    if constraint is constraints.simplex:
        slack = 10 * value.shape[-1] * np.finfo(value.dtype).eps
        off = np.abs(value.sum(-1) - 1).max()
        if off > slack or (value < 0).any():
            raise ValueError(f"theta[{name!r}]: must be ≥ 0 and sum to 1, got {value}; divide it by its sum")
    elif not np.all(is_covariance(value) if constraint is constraints.positive_definite else constraint(value)):
        remedy = (
            "add a little to its diagonal, or start from jaxem.inits"
            if constraint is constraints.positive_definite
            else "move it inside"
        )
        raise ValueError(f"theta[{name!r}]: must satisfy NumPyro's constraint {constraint}, got {value}; {remedy}")


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


def prepare_weights(weights: ArrayLike | None, x: Array, dtype: jnp.dtype) -> Array | None:
    """w (N,) ≥ 0 in θ's precision, or None."""
    if weights is None:
        return None
    weights = jnp.asarray(weights, dtype)
    if weights.shape != x.shape[:1]:
        raise ValueError(f"weights: must have shape {x.shape[:1]}, one per row of x, got {weights.shape}")
    non_negative("weights", weights, "drop rows by giving them weight 0")
    if is_concrete(weights) and not float(jnp.sum(weights)) > 0:
        raise ValueError("weights: sum to 0; give at least one row a positive weight")
    return poisoned(weights, (weights >= 0) & (jnp.sum(weights) > 0))


def poisoned(value: Array, allowed: Array | bool) -> Array:
    """What cannot be looked at here, NaN where it is not allowed: then F is NaN, and the fit NONFINITE."""
    return value if is_concrete(value) else jnp.where(allowed & jnp.isfinite(value), value, jnp.nan)


def non_negative(name: str, value: ArrayLike, remedy: str) -> None:
    """A ValueError where a concrete value is negative, NaN or infinite."""
    if is_concrete(value):
        value = np.asarray(value)
        if not (np.isfinite(value) & (value >= 0)).all():
            raise ValueError(f"{name}: must be finite and ≥ 0, got {value}; {remedy}")


def number(value: ArrayLike, dtype: Any) -> Array | np.ndarray:
    """A value that the loop takes: NumPy's where it is known, which JAX places in less time than it makes its own."""
    return jnp.asarray(value, dtype) if is_traced(value) else np.asarray(value, dtype)


def count(name: str, value: Any, least: int) -> None:
    """A ValueError where a concrete count is not an integer of at least `least`."""
    if is_concrete(value) and (np.asarray(value).dtype.kind not in "iu" or np.asarray(value) < least):
        raise ValueError(f"{name}: must be an integer ≥ {least}, got {value!r}")


def static_count(name: str, value: Any, least: int) -> None:
    """A ValueError where a count that fixes a shape is traced, not an integer, or too small."""
    if not is_concrete(value):
        raise ValueError(f"{name}: fixes a shape, so it must be a Python int, got {value}; mark it static in jax.jit")
    count(name, value, least)


def blame_x(x: Any, outcome: Any) -> None:
    """After a non-finite outcome on concrete data: a ValueError that names x's bad rows, if it has any."""
    if not is_concrete(x, outcome) or np.isfinite(np.asarray(outcome)).all():
        return
    for array in map(np.asarray, jax.tree.leaves(x)):
        rows = np.atleast_1d(array).reshape(array.shape[0] if array.ndim else 1, -1)
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if not bad.size:
            continue
        shown = ", ".join(map(str, bad[:5])) + (", …" if bad.size > 5 else "")
        raise ValueError(f"x: has NaN or infinity in {bad.size} row(s): {shown}; drop or impute them")
