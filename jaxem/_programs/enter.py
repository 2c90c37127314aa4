"""What may come into a program: its own traces say what θ and its arguments must be."""

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
from jax.typing import ArrayLike

from jaxem._core.arrays import numbers
from jaxem._core.checks import admitted, named_entries, prepare_temperature
from jaxem._core.model import Data, Theta, ThetaLike
from jaxem._programs.arguments import Arguments
from jaxem._programs.structure import Parameter

if TYPE_CHECKING:
    from jaxem._programs.program import Program


def enter(
    m: "Program", theta: ThetaLike, x: Any, weights: Any, temperature: ArrayLike, labels: Any, batched: bool
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
    return theta, Data(arguments, None, prepare_temperature(temperature, theta, batched))


def _entry(name: str, value: Any, parameter: Parameter) -> Any:
    """An entry of a program's θ as numbers; of a module it is a tree of them."""
    what = f"theta[{name!r}]"
    if isinstance(parameter.shape, tuple):
        return numbers(what, value)
    wanted = jax.tree.structure(parameter.shape, is_leaf=lambda node: isinstance(node, tuple))
    if jax.tree.structure(value) != wanted:
        raise ValueError(f"{what}: must be a tree like the program's, {wanted}, got {jax.tree.structure(value)}")
    return jax.tree.map(partial(numbers, what), value)
