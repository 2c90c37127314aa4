"""Some steps of an optax optimiser, and the best point that they visited."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax


def check_optimizer(optimizer: Any) -> None:
    """A ValueError for what is no optimiser of optax; None is the default one."""
    if optimizer is not None and not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            f"optimizer: must be an optax GradientTransformation, got {optimizer!r}; e.g. optax.adam(0.01)"
        )


def climb(
    loss: Callable[[Any], jax.Array], start: Any, optimizer: optax.GradientTransformation | None, num_steps: int
) -> tuple[Any, jax.Array]:
    """`num_steps` steps of the optimiser down `loss`: the best point visited, and whether it beats the start.

    None is `optax.lbfgs()`, made here: a model that held one, a knot of closures, could not be pickled.
    Where no step helped the caller keeps θ itself, not its round trip through the unconstrained coordinates.
    """
    optimizer = optax.with_extra_args_support(optax.lbfgs() if optimizer is None else optimizer)

    def step(carry, _):
        free, state, best, lowest = carry
        value, gradient = jax.value_and_grad(loss)(free)
        better = value < lowest
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), free, best)
        updates, state = optimizer.update(gradient, state, free, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(free, updates), state, best, jnp.minimum(value, lowest)), None

    at_start = loss(start)
    (last, _, best, lowest), _ = lax.scan(step, (start, optimizer.init(start), start, at_start), length=num_steps)
    better = loss(last) < lowest
    best = jax.tree.map(lambda new, old: jnp.where(better, new, old), last, best)
    return best, better | (lowest < at_start)
