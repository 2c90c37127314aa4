"""From data to the best of several fits, by one call: starts, a fit from each, and the best that converged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem import inits
from jaxem._core.arrays import gaps_as_nan, one_of, random_key, shown, static_count
from jaxem._core.model import Model, Theta
from jaxem._fit.em import em_batch
from jaxem._fit.loop import Fit, Status
from jaxem._fit.outcome import best
from jaxem._programs.program import Program
from jaxem.families._missing import Missing, filled_for_a_start, for_rows
from jaxem.families._mixture import Mixture, mixture_only
from jaxem.families.gaussian._floor import is_floored

INITS = ("k-means++", "random", "hierarchical")
OF_A_PROGRAM = {"k-means++": "responsibilities", "random": "program"}


def fit(
    m: Model,
    x: Any,
    key: Array,
    num_components: Any = None,
    *,
    starts: int = 10,
    init: Any = "k-means++",
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    tol: Any = 1e-10,
    max_steps: ArrayLike = 1000,
    missing: bool = False,
    accelerate: Any = None,
    mesh: Mesh | None = None,
    progress: bool = False,
) -> Fit:
    """Fit a model from several starts and return the best fit: the one of highest F among those that converged.

    `inits`, `em_batch` and `best` in one call. How many starts ended how is in the fit's repr, in
    `Status.counts(fit)` and, by code, in `fit.ended`.

    Args:
        m: the model, e.g. `gaussian.full` or `jaxem.from_numpyro(program)`, possibly with parameters held.
        x: the data, as for `em`. The columns of a data frame are remembered by `fit.theta`.
        key: a key of `jax.random`; the same key gives the same fit.
        num_components: K of a mixture; a program has its own, and it is left out.
        starts: how many.
        init: "k-means++" or "random" (rows of x), or any function of (m, key, x, num_components) that returns θ and can
            be vmapped over keys. "hierarchical" is Ward's clustering (`inits.hierarchical`, of at most 5,000 rows) for
            the first start, and k-means++ for the others. For a program "k-means++" is
            `m.init(key, x, method="responsibilities")`, after a first start from the program's own values; "random" is
            `m.init(key, x)`, a draw from its priors.
        temperature, weights, labels, tol, max_steps, accelerate, mesh: as for `em_batch`.
        missing: NaN in x is a missing cell, as for `em`; starts see it as a draw of the observed ones of its column.
        progress: show a tqdm bar of starts; Ctrl-C then ends the call at once.

    Returns:
        A `Fit`; `jaxem.check(fit)` raises unless it converged.

    Raises:
        ValueError: for what `em` refuses, and for a K that is missing, or too large for the rows of x.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> truth = {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [9.0, 9.0]], "sigma": 1.0}
    >>> x, _ = jaxem.sample(gaussian.isotropic, truth, jax.random.key(0), 200)
    >>> fit = jaxem.fit(gaussian.isotropic, x, jax.random.key(1), 2, starts=5)
    >>> sorted(fit.theta["mu"][:, 0].round().tolist()), jaxem.Status.counts(fit)
    ([0.0, 9.0], {'CONVERGED': 5})
    """
    static_count("starts", starts, 1)
    m = for_rows(m, x, missing, of_a_fit=True)
    _not_singular_by_shape(m, x)
    return fitted(
        m, x, key, num_components, starts=starts, init=init, temperature=temperature, weights=weights, labels=labels,
        tol=tol, max_steps=max_steps, accelerate=accelerate, mesh=mesh, progress=progress,
    )  # fmt: skip


def fitted(
    m: Model, x: Any, key: Array, num_components: Any, *, starts: int, init: Any, weights: Any, **options: Any
) -> Fit:
    """The same, of a model that may be singular at these rows: then no start converges."""
    thetas = several(m, x, random_key(key), num_components, int(starts), init, weights)
    return chosen(em_batch(m, thetas, x, weights=weights, **options))


def _not_singular_by_shape(m: Model, x: Any) -> None:
    """A ValueError where the rows are too few for any covariance matrix: then no start has a maximum."""
    if not isinstance(m, Mixture) or m.extras.prior is not None or is_floored(m):
        return
    shape = np.shape(gaps_as_nan("x", x))
    if {"Sigma", "correlation", "rotation"} & set(m.free) and len(shape) == 2 and shape[0] <= shape[1]:
        raise ValueError(
            f"x: has {shape[0]} rows and {shape[1]} columns, so that every covariance of {m!r} is singular; use a "
            "diagonal model, gaussian.with_prior or gaussian.with_floor, or more rows"
        )


@jax.jit
def chosen(fits: Fit) -> Fit:
    """The best lane, which knows how many ended how."""
    ended = jnp.sum(fits.status[None] == jnp.arange(len(Status))[:, None], axis=1)
    return best(fits)._replace(ended=ended)


def several(m: Model, x: Any, key: Array, num_components: Any, starts: int, init: Any, weights: Any) -> Theta:
    """Starts along a leading axis."""
    if not callable(init):
        one_of("init", init, dict.fromkeys((*INITS, *OF_A_PROGRAM.values())), " or a function")
    keys = jax.random.split(key, starts)
    if isinstance(m, Program):
        return _of_program(m, x, keys, num_components, init)
    x = whole_rows(m, x, key, starts, weights)
    if num_components is None:
        raise ValueError("num_components: how many components has this mixture? Pass K, or use jaxem.select")
    if callable(init):
        return jax.vmap(lambda key: init(m, key, x, num_components))(keys)
    if init not in INITS:
        raise ValueError(f'init: {init!r} is for programs; use "k-means++" or "random"')
    m, drawn = mixture_only("fit", m), "k-means++" if init == "hierarchical" else init
    thetas = inits.many(m, keys, x, num_components, init=drawn, weights=weights)
    if init != "hierarchical":
        return thetas
    return first_of(thetas, inits.hierarchical(m, x, num_components, weights=weights))


def whole_rows(m: Model, x: Any, key: Array, starts: int, weights: Any) -> Any:
    """x as so many starts see it, with its gaps filled."""
    if not isinstance(m, Missing):
        return x
    return filled_for_a_start(jax.random.fold_in(key, starts), m.with_gaps(x), weights, m.filler)


def first_of(thetas: Theta, theta: Theta) -> Theta:
    """The starts, the first of them another."""
    return jax.tree.map(lambda many, one: many.at[0].set(one), thetas, theta)


def _of_program(m: Program, x: Any, keys: Array, num_components: Any, init: Any) -> Theta:
    if init == "hierarchical":
        raise ValueError('init: "hierarchical" is for mixtures; use "responsibilities" or "program"')
    if num_components is not None:
        raise ValueError(
            f"num_components: a program says itself how many values its latents have; leave it out, got "
            f"{shown(num_components)}"
        )
    if callable(init):
        return jax.vmap(lambda key: init(m, key, x, None))(keys)
    method = OF_A_PROGRAM.get(init, init)
    found = jax.vmap(lambda key: m.init(key, x, method))(keys)
    if method == "program":
        return found
    return first_of(found, m.init(keys[0], x))  # its author may know best
