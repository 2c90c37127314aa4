"""What may come into a program: its own traces say what θ and its arguments must be."""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core.arrays import numbers
from jaxem._core.checks import admitted, named_entries, prepare_temperature, prepare_weights
from jaxem._core.model import Data, Theta, ThetaLike
from jaxem._core.tracing import is_concrete
from jaxem._programs.arguments import Arguments
from jaxem._programs.structure import Parameter

if TYPE_CHECKING:
    from jaxem._programs.program import Program


def enter(
    m: "Program", theta: ThetaLike, x: Any, weights: Any, temperature: ArrayLike, labels: Any, batched: bool
) -> tuple[Theta, Data]:
    """The same for a program: its own traces say what θ and x must be."""
    if labels is not None:
        raise ValueError("labels: a program observes its own latents; give its discrete site obs= or numpyro.factor")
    arguments = Arguments.of(x)
    parameters = m.structure(arguments).parameters
    unknown = sorted(m.held - set(parameters))
    if unknown:
        raise ValueError(f"hold: {', '.join(map(repr, unknown))} is not a parameter; choose from {list(parameters)}")
    theta = named_entries(theta, list(parameters), "this program")
    given = {name: _entry(name, theta[name], parameter) for name, parameter in parameters.items()}
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
        theta[name] = jax.tree.map(partial(admitted, name, parameter.constraint), theta[name], given[name])
    temperature = prepare_temperature(temperature, theta, batched)
    if weights is None:
        return theta, Data(m.by_rows_if_large(arguments, temperature.dtype), None, temperature)
    return theta, Data(*weighed(m.by_rows("weights", arguments, temperature.dtype), weights, temperature), temperature)


def weighed(x: Arguments, weights: Any, temperature: Array) -> tuple[Arguments, Array]:
    """The arguments with copies of a row that counts for those of weight 0, which may hold anything, and w (N,)."""
    w = prepare_weights(weights, x.rows()[0], temperature.dtype)
    if is_concrete(w) and np.all(np.asarray(w) > 0):
        return x, w
    return x.with_rows(_copies_where_weightless(x.rows(), w)), w


@jax.jit
def _copies_where_weightless(rows: tuple[Array, ...], weights: Array) -> tuple[Array, ...]:
    """The rows that weigh something, and copies of the first of them."""
    counts, first = weights > 0, jnp.argmax(weights > 0)
    return tuple(jnp.where(counts.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, leaf[first][None]) for leaf in rows)


def _entry(name: str, value: Any, parameter: Parameter) -> Any:
    """An entry of a program's θ as numbers; of a module it is a tree of them."""
    what = f"theta[{name!r}]"
    if isinstance(parameter.shape, tuple):
        return numbers(what, value)
    wanted = jax.tree.structure(parameter.shape, is_leaf=lambda node: isinstance(node, tuple))
    if jax.tree.structure(value) != wanted:
        raise ValueError(f"{what}: must be a tree like the program's, {wanted}, got {jax.tree.structure(value)}")
    return jax.tree.map(partial(numbers, what), value)
