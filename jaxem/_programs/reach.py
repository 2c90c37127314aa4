"""0·∞ = 0 in ∇Q, too: a derivative goes nowhere that it does not reach.

    ∇Q = Σ γ · ∂ℓ/∂a · ∂a/∂θ,    a: the arguments of the program's distributions

Where γ or ∂a/∂θ is exactly 0 the term is 0, though backwards it may be 0·∞ = NaN: Poisson(rate·z) at z = 0 has
∂ℓ/∂a = y/0 − 1 and ∂a/∂rate = 0; a log-normal component has no part in a row x = 0, and ∂ℓ/∂μ = log 0 − μ there.
Such an argument is a constant.
"""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array
from numpyro import distributions as dist

Path = tuple[str, ...]  # of attributes, from the distribution to an array
Change = Callable[[Path, Array, Any, Any], Array]  # (path, array, its distribution, its constraint) → array


def changed(fn: Any, change: Change, path: Path = ()) -> Any:
    """A copy of a distribution, and of the distributions in it, with every floating array changed."""
    new = copy.copy(fn)
    for name, held in vars(fn).items():
        if isinstance(held, dist.Distribution):
            vars(new)[name] = changed(held, change, (*path, name))
        elif isinstance(held, jax.Array) and jnp.issubdtype(held.dtype, jnp.floating):
            vars(new)[name] = change((*path, name), held, fn, type(fn).arg_constraints.get(name))
    return new


def parts(fn: Any) -> list[Any]:
    """A distribution, and the distributions in it."""
    inside = [held for held in vars(fn).values() if isinstance(held, dist.Distribution)]
    return [fn, *(part for held in inside for part in parts(held))]


def arrays(fn: Any) -> dict[Path, Array]:
    """Every floating array of a distribution."""
    found: dict[Path, Array] = {}
    changed(fn, lambda path, held, *_: found.setdefault(path, held))
    return found


def tangents(terms_of: Callable[[Any], Iterable[Any]], theta: Any) -> dict[str, dict[Path, Array]]:
    """How every argument of every term moves as θ moves in a direction with no zeros."""
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1, leaf.shape), leaf.dtype), theta)

    def arguments(theta: Any) -> dict[str, dict[Path, Array]]:
        return {term.name: arrays(term.fn) for term in terms_of(theta)}

    try:
        return jax.jvp(arguments, (lax.stop_gradient(theta),), (direction,))[1]
    except TypeError:  # a program with a derivative in reverse mode alone
        return {}


def event_dim(constraint: Any) -> int | None:
    """How many axes of an argument belong to one event, where its constraint tells."""
    try:
        return None if constraint is None else constraint.event_dim
    except NotImplementedError:  # it depends on the other arguments
        return None


def reached(term: Any, moves: dict[Path, Array], marginal: Array | None) -> Any:
    """The term, its arguments constant where nothing moves them, and where they count for nothing."""
    unused = None if marginal is None else term.weights(marginal) == 0

    def change(path: Path, held: Array, fn: Any, constraint: Any) -> Array:
        still = moves[path] == 0 if path in moves else jnp.zeros(held.shape, bool)
        inner = event_dim(constraint)
        if unused is not None and inner is not None and inner < 2 and fn.batch_shape == term.fn.batch_shape:
            still = still | jnp.reshape(unused, unused.shape + (1,) * inner)
        return jnp.where(still, lax.stop_gradient(held), held)

    fn = changed(term.fn, change)
    for part in parts(fn):  # an argument may now have an axis for each use of it
        if unused is not None and part.batch_shape == term.fn.batch_shape:
            part._batch_shape = jnp.broadcast_shapes(part.batch_shape, unused.shape)
    return term._replace(fn=fn)
