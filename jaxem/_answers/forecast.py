"""A chain continued beyond its data.

    p(z_{T+h}, x_{T+h} | x_1 … x_T, θ),  h = 1 … H                                      (eq:forecast)

The scan is summed over H steps more, of which nothing is observed: the laws of its latents go on as they were, which
must be the same at every step. A sequence that ends early, its last steps masked, goes on from its own end.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxem._answers.filter import program_with_time
from jaxem._answers.longer import Longer, observations
from jaxem._answers.posterior import refuse_impossible, with_first_steps
from jaxem._core.arrays import random_key, static_count
from jaxem._core.checks import enter
from jaxem._core.model import Data, Theta, ThetaLike
from jaxem._programs.program import Program
from jaxem._rows.chunks import side_by_side

TABLES = 8  # entries of tables, about, for each value that is drawn


class Forecast(NamedTuple):
    """What follows the data of a chain; `paths` and `observations` are empty without a key."""

    latents: dict[str, Array]  # site → p(z_{T+h} | x_1 … x_T), (num_steps, plates…, values)
    paths: dict[str, Array]  # site → joint draws of the latents, (num_samples, num_steps, plates…)
    observations: dict[str, Array]  # site → draws of what will be observed, (num_samples, num_steps, plates…, event…)


def forecast(
    m: Any, theta: ThetaLike, x: Any, num_steps: int, *, key: Array | None = None, num_samples: int = 1000
) -> Forecast:
    """A chain's latents and observations after its data: p(z_{T+h}, x_{T+h} | x_1 … x_T, θ), h = 1 … num_steps.

    The latents' tables are exact, and their draws are paths. A sequence whose last steps are masked, latent and all,
    goes on from its own end. What the program observes after its scan is not known here, as in `filter`.

    Args:
        m: a program with one `scan`, the laws of its latents the same at every step: a covariate or a time in them has
            no value yet in the steps to come.
        theta: its parameters.
        x: the data, of three steps at least.
        num_steps: how many steps beyond the data.
        key: of `jax.random`, for draws; what is observed in the scan must then have the same law at every step, too.
        num_samples: how many draws.

    Returns:
        Forecast(latents, paths, observations), three dicts by site.

    Raises:
        ValueError: for a mixture, or a program without a scan; for laws that change along the data; for what `em`
            refuses; where x is impossible at θ.

    >>> import jax, jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def chain(y):
    ...     def step(before, y):
    ...         z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.1, 0.9]])[before]))
    ...         numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[z], 1.0), obs=y)
    ...         return z, None
    ...     scan(step, 0, y)
    >>> m, y = jaxem.from_numpyro(chain), jnp.array([-1.0, 0.5, 2.0])
    >>> found = jaxem.forecast(m, {}, y, 3, key=jax.random.key(0))
    >>> [f"{p:.2f}" for p in found.latents["z"][:, 1]]               # it was 0.96 at the end of the data
    ['0.87', '0.79', '0.74']
    >>> found.observations["y"].shape
    (1000, 3)
    """
    static_count("num_steps", num_steps, 1)
    static_count("num_samples", num_samples, 1)
    program = program_with_time("forecast", m)
    theta, data = enter(program, theta, x)
    keys = None if key is None else jax.random.split(random_key(key), int(num_samples))
    found, free_energy = _forecast(program, theta, data, keys, int(num_steps))
    refuse_impossible("forecast", data, free_energy)
    return found


@partial(jax.jit, static_argnames="num_steps")
def _forecast(m: Program, theta: Theta, data: Data, keys: Array | None, num_steps: int) -> tuple[Forecast, Array]:
    """(the forecast, log p(x | θ))."""
    long = Longer.of(m, theta, data, num_steps)
    zeros, one = long.offset.zeros(data.temperature.dtype), jnp.ones_like(data.temperature)

    def ahead(values: dict[str, Array]) -> dict[str, Array]:
        return {name: long.ahead(name, values[name]) for name in long.last}

    free_energy, tables = jax.value_and_grad(long.offset.partition)(zeros, one)
    tables = ahead(with_first_steps(tables))
    latents = {name: table / jnp.sum(table, axis=-1, keepdims=True) for name, table in tables.items()}
    if keys is None:
        return Forecast(latents, {}, {}), free_energy

    def draw(key: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        for_path, for_data = jax.random.split(key)
        one_hot = with_first_steps(jax.grad(long.offset.partition)(zeros, one, key=for_path))
        paths = {name: jnp.argmax(table, axis=-1) for name, table in one_hot.items()}
        with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast
            return ahead(paths), observations(m.terms(theta, data.x)[0], long, paths, for_data)

    return Forecast(latents, *side_by_side(draw, keys, times=TABLES)), free_energy
