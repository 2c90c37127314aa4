"""Draws of θ, and of the latents at each, as ArviZ reads them."""

from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Array

from jaxem._answers.latents import recover
from jaxem._core.arrays import static_count
from jaxem._core.model import Model, ThetaLike


def to_datatree(m: Model, samples: ThetaLike, x: Any, key: Array, *, num_chains: int = 1) -> Any:
    """Draws of θ with the latents that `recover` draws at each, as an `xarray.DataTree` for ArviZ.

    Its group `posterior` has every entry of `samples` and every latent, (chain, draw, …): then `arviz.summary`, plots
    and files are ArviZ's own. Needs ArviZ 1.0 or later, `pip install "jaxem[arviz]"`.

    Args:
        m: the mixture or program of which θ was drawn.
        samples: θ with a leading axis of draws, as `get_samples()` of `numpyro.infer.MCMC` gives them, chain after
            chain; other entries (deterministic sites) come along.
        x: the data.
        key: a key of `jax.random`.
        num_chains: how many chains the draws are of.

    Raises:
        ImportError: where ArviZ is missing.
        ValueError: for what `recover` refuses, and draws that are no multiple of `num_chains`.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> draws = {"pi": jnp.full((4, 2), 0.5), "mu": jnp.array([[[0.0], [9.0]]] * 4), "sigma": jnp.ones(4)}
    >>> x = jnp.array([0.0, 9.0])
    >>> tree = jaxem.to_datatree(gaussian.isotropic, draws, x, jax.random.key(0), num_chains=2)  # doctest: +SKIP
    >>> tree["posterior"]["z"].shape                                                             # doctest: +SKIP
    (2, 2, 2)
    """
    try:
        from_dict = import_module("arviz_base").from_dict
    except ImportError as error:
        raise ImportError('jaxem.to_datatree needs ArviZ 1.0 or later: pip install "jaxem[arviz]"') from error
    static_count("num_chains", num_chains, 1)
    latents = recover(m, samples, x, key)
    draws = dict(samples) | (latents if isinstance(latents, dict) else {"z": latents})
    return from_dict({"posterior": {name: by_chain(name, some, int(num_chains)) for name, some in draws.items()}})


def by_chain(name: str, draws: Any, num_chains: int) -> np.ndarray:
    """(chain, draw, …) of draws that stand chain after chain."""
    array = np.asarray(draws)
    if len(array) % num_chains:
        raise ValueError(f"samples[{name!r}]: {len(array)} draws are no multiple of num_chains = {num_chains}")
    return array.reshape(num_chains, -1, *array.shape[1:])
