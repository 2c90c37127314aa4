"""What may come into a mixture: θ and rows against the names and shapes that it declares."""

import functools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.primitives import Messenger

from jaxem._core.arrays import numbers
from jaxem._core.checks import admitted, as_floating, named_entries
from jaxem._core.handlers import alone
from jaxem._core.model import Theta, ThetaLike
from jaxem._core.tracing import is_concrete

if TYPE_CHECKING:
    from jaxem.families._mixture import Mixture


def prepare_theta(m: "Mixture", theta: ThetaLike, x: Array | jax.ShapeDtypeStruct, *, batched: bool = False) -> Theta:
    """θ cast to x's precision, its names, shapes and (where concrete) values checked against the program."""
    theta = named_entries(theta, list(m.parameters), "this mixture")
    if jnp.issubdtype(x.dtype, jnp.floating):
        dtype = x.dtype
        given = {name: numbers(f"theta[{name!r}]", value) for name, value in theta.items()}
    else:
        given = {name: as_floating(numbers(f"theta[{name!r}]", value)) for name, value in theta.items()}
        dtype = jnp.result_type(*given.values())
    theta = {name: numbers(f"theta[{name!r}]", theta[name], dtype) for name in given}
    _check_shapes(m, theta, x, batched)
    return {name: admitted(name, m.constraint(name), value, given[name]) for name, value in theta.items()}


def theta_alone(m: "Mixture", theta: ThetaLike) -> Theta:
    """θ without data: D is what it says itself."""
    theta = named_entries(theta, list(m.parameters), "this mixture")
    theta = {name: numbers(f"theta[{name!r}]", value) for name, value in theta.items()}
    sizes = (dict(zip(spec.split(), theta[name].shape, strict=False)) for name, spec in m.shapes)
    num_features = next((size["D"] for size in sizes if "D" in size), 1)
    return prepare_theta(m, theta, jax.ShapeDtypeStruct((1, num_features), jnp.int32))


def check_support(m: "Mixture", theta: Theta, x: Array) -> None:
    """A ValueError where concrete rows lie outside the family's support."""
    if m.extras.check_support is not None and is_concrete(theta, x):
        fault = m.extras.check_support(np.asarray(x), {name: np.asarray(value) for name, value in theta.items()})
        if fault:
            raise ValueError(f"x: {fault}")


def length(axis: str, sizes: dict[str, int]) -> int:
    """Of an axis by its name: K, D or C, a number, or K + 1, of which the last is of no component."""
    if axis.isdigit():
        return int(axis)
    return sizes["K"] + 1 if axis == "K+1" else sizes[axis]


def _check_shapes(m: "Mixture", theta: Theta, x: Array | jax.ShapeDtypeStruct, batched: bool) -> None:
    sizes: dict[str, tuple[int, str]] = {"D": (x.shape[1], "x")}
    for name, spec in m.shapes:
        axes = ["lanes"] * batched + spec.split()
        shape = theta[name].shape
        if len(shape) != len(axes):
            wanted = f"({', '.join(axes)})"
            raise ValueError(f"theta[{name!r}]: must have shape {wanted}, got {shape}; see the family's table of θ")
        for axis, size in zip(axes, shape, strict=True):
            if axis.isdigit():
                if size != int(axis):
                    raise ValueError(f"theta[{name!r}]: must have shape ({', '.join(axes)}), got {shape}")
                continue
            axis, size = ("K", size - 1) if axis == "K+1" else (axis, size)
            expected, source = sizes.setdefault(axis, (size, f"theta[{name!r}]"))
            if size != expected:
                raise ValueError(
                    f"theta[{name!r}]: has {axis} = {size} (shape {shape}), but {source} has {axis} = {expected}; "
                    "make them agree"
                )
    for axis, what in (("K", "components"), ("lanes", "lanes")):
        if axis in sizes and sizes[axis][0] < 1:
            raise ValueError(f"theta: has no {what} ({axis} = 0); pass at least one")


class Enough(Exception):
    """All that was asked for is known."""


class Declared(Messenger):
    """Reads the constraints that a program declares, and ends it with the last one.

    What comes after, the laws of z and x, NumPyro would make and validate: ten times the work.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.found = names, dict[str, constraints.Constraint]()
        super().__init__()

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] == "param":
            self.found[msg["name"]] = msg["kwargs"].get("constraint", constraints.real)
            if self.found.keys() >= set(self.names):
                raise Enough


@functools.cache
def constraints_of(m: "Mixture") -> dict[str, constraints.Constraint]:
    """Each parameter's constraint, from a trace of the program on shapes alone."""
    declared, sizes = Declared(m.parameters), {"K": 2, "D": 2, "C": 2}

    def visit() -> None:
        theta = {name: jnp.ones([length(axis, sizes) for axis in spec.split()]) for name, spec in m.shapes}
        model = handlers.seed(handlers.substitute(m.program, data=theta), jax.random.key(0))
        with alone(), suppress(Enough), declared:
            model(None, num_points=2)

    jax.eval_shape(visit)
    return {name: declared.found[name] for name in m.parameters}
