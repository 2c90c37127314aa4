"""Draws of the discrete latents from their joint posterior, exact, at one θ or at each of many.

    z ~ p(z | x, θ)                                                                      (eq:draws)

The road back through the sum that makes F is the E-step's derivative; with a one-hot draw in place of each γ on it, its
end is a joint draw (`_programs/eliminate.py`): a latent given those above it in the plates, a chain backwards from its
last step. In a mixture rows are independent, and each draws from its γ.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxem._answers.posterior import refuse_impossible, weighted_marginals, with_first_steps
from jaxem._core.arrays import random_key, static_count
from jaxem._core.checks import enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._programs.arguments import Arguments
from jaxem._programs.program import Program
from jaxem._rows.chunks import side_by_side
from jaxem.families._mixture import Mixture

TABLES = 8  # entries of tables, about, for each value that is drawn


def sample_latents(m: Model, theta: ThetaLike, x: Any, key: Array, num_samples: int) -> Any:
    """`num_samples` joint draws of every discrete latent from p(z | x, θ) (eq:draws).

    Unlike draws from `responsibilities` or `marginals`, latents that depend on each other are drawn together: a chain's
    path by backward sampling, a row's two latents, a switch with the rows that it governs.

    Args:
        m: a mixture or a program.
        theta: its parameters.
        x: the data.
        key: a key of `jax.random`.
        num_samples: how many draws, S.

    Returns:
        Of a mixture the components, (S, N). Of a program a dict, site → values (S, …), with the axes of `decode`.

    Raises:
        ValueError: for what `em` refuses, and where x is impossible at θ.

    >>> import jax, jax.numpy as jnp, jaxem, numpyro
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": [0.5, 0.5], "mu": [[0.0], [2.0]], "sigma": 1.0}
    >>> z = jaxem.sample_latents(gaussian.isotropic, theta, jnp.array([0.0, 1.0]), jax.random.key(0), 1000)
    >>> z.shape, bool(abs(z[:, 1].mean() - 0.5) < 0.05)                                # γ of the second row is ½, ½
    ((1000, 2), True)
    >>> from numpyro import distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def chain(y):
    ...     def step(before, y):
    ...         z = numpyro.sample("z", dist.Categorical(jnp.array([[0.99, 0.01], [0.01, 0.99]])[before]))
    ...         numpyro.sample("y", dist.Normal(2.0 * z, 1.0), obs=y)
    ...         return z, None
    ...     scan(step, 0, y)
    >>> y = jnp.array([0.0, 1.0, 1.0, 2.0])
    >>> path = jaxem.sample_latents(jaxem.from_numpyro(chain), {}, y, jax.random.key(0), 500)["z"]
    >>> path.shape, bool(jnp.mean(jnp.sum(jnp.diff(path) != 0, axis=1)) < 1.05)        # it changes about once
    ((500, 4), True)
    """
    static_count("num_samples", num_samples, 1)
    theta, data = enter(m, theta, x)
    keys = jax.random.split(random_key(key), int(num_samples))
    found, free_energy = _draws(m, theta, data, keys, lanes=False)
    refuse_impossible("sample_latents", data, free_energy)
    return found


def recover(m: Model, samples: ThetaLike, x: Any, key: Array) -> Any:
    """One joint draw of the latents for each draw of θ: (θ, z) is then a draw from p(θ, z | x).

    For draws of θ by MCMC from a program whose discrete latents were summed out, as `numpyro.infer.MCMC` and
    `get_samples()` give them. One axis of draws: of several chains, use `get_samples()` without `group_by_chain`.

    Args:
        m: the mixture or program of which θ was drawn.
        samples: θ with a leading axis of draws, S; entries that are not m's (deterministic sites) are left out.
        x: the data.
        key: a key of `jax.random`.

    Returns:
        As `sample_latents`: (S, N), or a dict, site → values (S, …). Beside `samples` in a dict, ArviZ takes them.

    Raises:
        ValueError: for what `em_batch` refuses, and where x is impossible at a θ.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> draws = {"pi": jnp.full((3, 2), 0.5), "mu": jnp.array([[[0.0], [9.0]]] * 3), "sigma": jnp.ones(3)}
    >>> jaxem.recover(gaussian.isotropic, draws, jnp.array([0.0, 9.0]), jax.random.key(0)).tolist()
    [[0, 1], [0, 1], [0, 1]]
    """
    if not hasattr(samples, "keys"):
        raise ValueError(f"samples: must be a dict of θ with a leading axis of draws, got {type(samples).__name__}")
    names = _parameters(m, x)
    thetas, data = enter(m, {name: samples[name] for name in names if name in samples}, x, batched=True)
    leaves = jax.tree.leaves(thetas)
    if not leaves:
        raise ValueError("samples: this program has no parameters; use sample_latents")
    keys = jax.random.split(random_key(key), leaves[0].shape[0])
    found, free_energy = _draws(m, thetas, data, keys, lanes=True)
    refuse_impossible("recover", data, free_energy)
    return found


def _parameters(m: Any, x: Any) -> list[str]:
    """The names of θ."""
    if isinstance(m, Program):
        return list(m.structure(Arguments.of(x)).parameters)
    return list(getattr(m, "parameters", ()))


@partial(jax.jit, static_argnames="lanes")
def _draws(m: Mixture | Program, theta: Theta, data: Data, keys: Array, lanes: bool) -> tuple[Any, Array]:
    """(a draw for each key, F); where θ has lanes, each at its own."""

    def draw(args: tuple[Array, Theta]) -> tuple[Any, Array]:
        key, theta = args
        if not isinstance(m, Program):
            table = m.table(theta, data.x)
            rows = jnp.max(table, axis=0)  # −∞ where nothing is possible
            return jax.random.categorical(key, table, axis=0), jnp.sum(rows)
        tables, _, free_energy = weighted_marginals(m, theta, data, key)
        return {name: jnp.argmax(table, axis=-1) for name, table in with_first_steps(tables).items()}, free_energy

    if lanes:
        return side_by_side(draw, (keys, theta), times=TABLES)
    return side_by_side(lambda key: draw((key, theta)), keys, times=TABLES)
