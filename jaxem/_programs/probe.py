"""Random stand-ins for a program's arguments, parameters and observed values, all inside their supports.

A plan must not depend on the user's values, but what is found at random numbers must hold at theirs: so the numbers
are as wide and as varied as the program bears. An integer may be an index, a length or a count, a number a covariate
or the concentration of a prior: each argument gets the widest range at which every distribution of the program
still has arguments that it allows.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints

from jaxem._programs.read import Arguments, Structure, Term, Theta

# runs a few times: compiled in a hurry
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def arguments(
    shapes: Arguments, violations: Callable[[Arguments], Any], limits: list[int], first: int = 0
) -> Arguments:
    """Random data of the same shapes and dtypes, of the widest ranges that lead to no more `violations`.

    Of the ranges of each argument (`ranges`) the first few are passed over.
    """
    rng = np.random.default_rng(2 + first)
    leaves, treedef = jax.tree.flatten(shapes)
    found = [list(ranges(leaf, limits, rng))[-1] for leaf in leaves]
    least = int(violations(jax.tree.unflatten(treedef, found)))
    for place, leaf in enumerate(leaves):
        for wide in itertools.islice(ranges(leaf, limits, rng), first, None):
            some = [*found[:place], wide, *found[place + 1 :]]
            count = int(violations(jax.tree.unflatten(treedef, some)))
            if count <= least:
                found, least = some, count
                break
    return jax.tree.unflatten(treedef, found)


def limits(shapes: Arguments, structure: Structure) -> list[int]:
    """What an integer may have to stay below, as a length, a count or an index, the widest first."""
    leaves = jax.tree.leaves((shapes, [parameter.shape for parameter in structure.parameters.values()]))
    axes = {size for leaf in leaves for size in ([leaf] if isinstance(leaf, int) else leaf.shape)}
    return sorted({size + more for size in axes for more in (0, 1) if size + more > 1} | {2}, reverse=True)


def ranges(leaf: Any, limits: list[int], rng: np.random.Generator) -> Iterator[jax.Array]:
    """Stand-ins for one argument, the widest range first; the last lies inside the support of most things."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        yield jnp.asarray(rng.normal(0, 2, leaf.shape), leaf.dtype)
        yield jnp.asarray(rng.uniform(1.1, 1 + limits[0], leaf.shape), leaf.dtype)
        yield jnp.asarray(rng.uniform(1.1, 3, leaf.shape), leaf.dtype)
        yield jnp.asarray(rng.uniform(0.05, 0.95, leaf.shape), leaf.dtype)
    elif jnp.issubdtype(leaf.dtype, jnp.integer):
        yield from (integers(leaf, limit, rng) for limit in limits)
    else:
        yield integers(leaf, 2, rng)


def integers(leaf: Any, count: int, rng: np.random.Generator) -> jax.Array:
    """0 … count − 1 in random order, each as often as the others."""
    every = np.arange(int(np.prod(leaf.shape, dtype=int))) % count
    shift = rng.integers(count) if every.size < count else 0
    return jnp.asarray(rng.permutation((every + shift) % count).reshape(leaf.shape), leaf.dtype)


def parameters(structure: Structure, dtype: Any, rng: np.random.Generator) -> Theta:
    """A random θ that satisfies its constraints."""

    def entry(shape: tuple[int, ...], constraint: constraints.Constraint) -> Any:
        bijection = biject_to(constraint)
        # in JAX's own precision, the only one that some of NumPyro's transforms take
        return bijection(jnp.asarray(rng.normal(size=bijection.inverse_shape(shape)) * 0.5, float)).astype(dtype)

    return {
        name: jax.tree.map(
            functools.partial(entry, constraint=parameter.constraint),
            parameter.shape,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for name, parameter in structure.parameters.items()
    }


def violations(terms: list[Term]) -> Any:
    """How many of the numbers given to distributions are NaN or outside of what the distributions allow."""
    count = jnp.zeros((), int)
    for term in terms:
        for name, constraint in type(term.fn).arg_constraints.items():
            value = vars(term.fn).get(name)
            if value is None:
                continue
            count += sum(jnp.sum(leaf != leaf) for leaf in jax.tree.leaves(value))  # NaN
            if not isinstance(constraint, type(constraints.dependent)) and isinstance(value, jax.Array):
                count += jnp.sum(~jnp.asarray(constraint(value), bool))
    return count


def draw(term: Term, key: jax.Array, rng: np.random.Generator) -> jax.Array:
    """Values that fn could have given, one for each row, each at some value of the latents.

    Of a Bernoulli or Categorical every value in turn, for all to be seen, where it is possible at all; no count is 0,
    for a rate to be moved by each.
    """
    fn, value = term.fn, jnp.asarray(term.value)
    if not value.size:  # a factor's
        return value
    batch = value.shape[: value.ndim - fn.event_dim]
    full = jnp.broadcast_shapes(fn.batch_shape, batch)
    try:
        drawn = jnp.asarray(fn.expand(full).sample(key))
    except (NotImplementedError, TypeError, ValueError):  # a law that cannot be sampled (totals that are floats, too)
        return value
    hidden = [axis for axis in range(len(full)) if full[axis] > size_at(batch, full, axis)]
    drawn = jnp.moveaxis(drawn, hidden, range(len(hidden)))
    drawn = drawn.reshape((-1, *batch, *fn.event_shape))
    which = rng.integers(drawn.shape[0], size=(1, *batch, *(1,) * fn.event_dim))
    drawn = jnp.take_along_axis(drawn, jnp.asarray(which), axis=0)[0]
    if fn.has_enumerate_support and not fn.event_dim:
        drawn = covering(fn, drawn, full, hidden, rng)
    if fn.support is constraints.nonnegative_integer:
        drawn = jnp.maximum(drawn, 1)
    return drawn.astype(value.dtype)


def size_at(batch: tuple[int, ...], full: tuple[int, ...], axis: int) -> int:
    """The size of an axis of `full` in a shape that broadcasts to it."""
    own = axis - len(full) + len(batch)
    return batch[own] if own >= 0 else 1


def covering(
    fn: Any, drawn: jax.Array, full: tuple[int, ...], hidden: list[int], rng: np.random.Generator
) -> jax.Array:
    """Each value of the support as often as the others, but for rows where that has probability 0."""
    try:
        support = jnp.asarray(fn.enumerate_support(expand=False)).reshape(-1)
    except (NotImplementedError, jax.errors.ConcretizationTypeError):  # a Binomial of unlike totals
        return drawn
    every = support[jnp.asarray(rng.permutation(np.arange(drawn.size) % support.size).reshape(drawn.shape))]
    log_prob = jnp.broadcast_to(fn.log_prob(every), full)
    possible = jnp.all(jnp.isfinite(log_prob), axis=tuple(hidden)).reshape(drawn.shape)
    return jnp.where(possible, every, drawn)


def covariances(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Positive definite matrices (…, D, D)."""
    factor = rng.normal(size=shape)
    return factor @ np.swapaxes(factor, -1, -2) / shape[-1] + np.eye(shape[-1])
