"""Static facts, checked once at the door: every error names the argument, what it got and the remedy.

Shapes, names and dtypes are always known; values only when concrete, so inside a user's `jit` or `vmap`
the checks on values are skipped and the outcome becomes a `Status`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from numpyro.distributions import constraints

from jaxem._arrays import (  # noqa: F401 (some for the modules that say `_validate.`)
    RESCALE,
    blame_rows,
    count,
    first_line,
    fitted,
    listed,
    non_negative,
    numbers,
    random_key,
    raw,
    scalar,
    shown,
    static_count,
    steps,
    tolerance,
    warn,
)
from jaxem._mixture import Mixture
from jaxem._model import Data, Model, Theta, ThetaLike, is_concrete
from jaxem._program import Program
from jaxem._read import Arguments, Parameter


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
    x, weights = rows_and_weights(x, weights)
    theta = prepare_theta(m, theta, x, batched=batched)
    check_support(m, theta, x)
    temperature = _prepare_temperature(temperature, theta, batched)
    if weights is not None:
        weights = weights.astype(temperature.dtype)
    if labels is not None:
        labels = prepare_labels(labels, x, theta["pi"].shape[-1], least=-1)
    return theta, Data(x, weights, temperature, labels)


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
    given = {name: _program_entry(name, theta[name], parameter) for name, parameter in parameters.items()}
    theta = {name: jax.tree.map(arguments.cast, entry) for name, entry in given.items()}
    for name, parameter in parameters.items():
        for value, shape in zip(
            jax.tree.leaves(theta[name]),
            jax.tree.leaves(parameter.shape, is_leaf=lambda node: isinstance(node, tuple)),
            strict=True,
        ):
            if value.shape[batched:] != shape or value.ndim < batched:
                wanted = ("lanes", *shape) if batched else shape
                raise ValueError(f"theta[{name!r}]: must have shape {wanted} as in the program, got {value.shape}")
        theta[name] = jax.tree.map(partial(_admitted, name, parameter.constraint), theta[name], given[name])
    return theta, Data(arguments, None, _prepare_temperature(temperature, theta, batched))


def _program_entry(name: str, value: Any, parameter: Parameter) -> Any:
    """An entry of a program's θ as numbers; of a module it is a tree of them."""
    what = f"theta[{name!r}]"
    if isinstance(parameter.shape, tuple):
        return numbers(what, value)
    wanted = jax.tree.structure(parameter.shape, is_leaf=lambda node: isinstance(node, tuple))
    if jax.tree.structure(value) != wanted:
        raise ValueError(f"{what}: must be a tree like the program's, {wanted}, got {jax.tree.structure(value)}")
    return jax.tree.map(partial(numbers, what), value)


def _prepare_temperature(temperature: ArrayLike, theta: Theta, batched: bool) -> Array:
    leaves = jax.tree.leaves(theta)
    temperature = numbers("temperature", temperature, jnp.result_type(*leaves) if leaves else float)
    lanes = leaves[0].shape[:1] if batched and leaves else ()
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
    return (x if counts is not None and counts.all() else _copies_where_weightless(x, w)), w


@jax.jit
def _copies_where_weightless(x: Array, weights: Array) -> Array:
    """The rows that weigh something, and copies of the first of them."""
    counts = weights > 0
    return jnp.where(counts[:, None], x, x[jnp.argmax(counts)][None])


def _table(x: Array) -> Array:
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


def prepare_theta(m: Mixture, theta: ThetaLike, x: Array | jax.ShapeDtypeStruct, *, batched: bool = False) -> Theta:
    """θ cast to x's precision, its names, shapes and (where concrete) values checked against the program."""
    theta = _named_entries(theta, list(m.parameters), "this mixture")
    if jnp.issubdtype(x.dtype, jnp.floating):
        dtype = x.dtype
        given = {name: numbers(f"theta[{name!r}]", value) for name, value in theta.items()}
    else:
        given = {name: as_floating(numbers(f"theta[{name!r}]", value)) for name, value in theta.items()}
        dtype = jnp.result_type(*given.values())
    theta = {name: numbers(f"theta[{name!r}]", theta[name], dtype) for name in given}
    _check_shapes(m, theta, x, batched)
    return {name: _admitted(name, m.constraint(name), value, given[name]) for name, value in theta.items()}


def theta_alone(m: Mixture, theta: ThetaLike) -> Theta:
    """θ without data: D is what it says itself."""
    theta = _named_entries(theta, list(m.parameters), "this mixture")
    theta = {name: numbers(f"theta[{name!r}]", value) for name, value in theta.items()}
    sizes = (dict(zip(spec.split(), theta[name].shape, strict=False)) for name, spec in m.shapes)
    num_features = next((size["D"] for size in sizes if "D" in size), 1)
    return prepare_theta(m, theta, jax.ShapeDtypeStruct((1, num_features), jnp.int32))


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


def _named_entries(theta: ThetaLike, names: list[str], what: str) -> dict[str, Any]:
    if not hasattr(theta, "keys"):
        raise ValueError(f"theta: must be a dict with {names}, got {type(theta).__name__}")
    missing = [name for name in names if name not in theta]
    unknown = [name for name in theta if name not in names]
    if missing or unknown:
        raise ValueError(f"theta: missing {missing}, unknown {unknown}; {what} has exactly {names}")
    return {name: theta[name] for name in names}


def _check_shapes(m: Mixture, theta: Theta, x: Array | jax.ShapeDtypeStruct, batched: bool) -> None:
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
    for axis, what in (("K", "components"), ("lanes", "lanes")):
        if axis in sizes and sizes[axis][0] < 1:
            raise ValueError(f"theta: has no {what} ({axis} = 0); pass at least one")


def _admitted(name: str, constraint: constraints.Constraint, value: Array, given: Array) -> Array:
    """θ's entry, its concrete values checked; what rounding left in a coarser precision is brought back.

    On a simplex that is a sum of 1 to the precision in which it was given: the sum in the finer one is then made 1.
    """
    eps = max(jnp.finfo(v.dtype).eps for v in (value, given) if jnp.issubdtype(v.dtype, jnp.floating))
    if is_concrete(value):
        _check_values(name, np.asarray(value), constraint, float(eps))
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
