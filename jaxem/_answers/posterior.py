"""What a program says about its discrete latents: their posterior marginals and their most probable values.

Both are one derivative. Add a table ε of zeros to each latent's factor; then ∂F_T/∂ε is its marginal (eq:marginal),
whatever plates, scans and other latents stand around it. At T = 0 it is the one-hot of the most probable joint
assignment, because the derivative of a maximum backtracks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._answers.offset import Offset
from jaxem._core.arrays import shown
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete
from jaxem._programs.eliminate import PREVIOUS
from jaxem._programs.program import Program, program_only
from jaxem._programs.read import root, steps_back


def marginals(m: Model, theta: ThetaLike, x: Any, temperature: ArrayLike = 1.0) -> dict[str, Array]:
    """The posterior table of every enumerated site, p(z | x, θ) at T = 1 (eq:marginal).

    Leading axes: the time of a scan, with the step that NumPyro unrolls, then the site's plates from left to right;
    last axis: its values. A mixture distribution's component goes by the name of its site. At T = 0 the table is
    one-hot at `decode`'s value. Exact, by differentiating the log partition function (Darwiche 2003; Eisner 2016).

    Args:
        m: a program of `from_numpyro`; of a mixture, `jaxem.responsibilities` are the same.
        theta: its parameters.
        x: its arguments, as for `em`.
        temperature: T ≥ 0.

    Raises:
        ValueError: for a program, θ or x that `em` would refuse.

    >>> import jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> def program(x):
    ...     with numpyro.plate("rows", len(x)):
    ...         z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.5])))
    ...         numpyro.sample("x", dist.Normal(jnp.array([0.0, 2.0])[z], 1.0), obs=x)
    >>> m = jaxem.from_numpyro(program)
    >>> jaxem.marginals(m, {}, jnp.array([1.0]))["z"].tolist()
    [[0.5, 0.5]]
    """
    program = program_only("marginals", m)
    theta, data = enter(program, theta, x, temperature=temperature)
    return possible("marginals", program, theta, data)


def decode(m: Model, theta: ThetaLike, x: Any) -> dict[str, Array]:
    """The most probable joint assignment of every enumerated site, argmax_z p(x, z | θ): max-product with backtracking.

    Of each site its values: along the time of a scan, with the step that NumPyro unrolls, then the site's plates from
    left to right. Ties go to the lowest index.

    Args:
        m: a program of `from_numpyro`.
        theta: its parameters.
        x: its arguments, as for `em`.

    Raises:
        ValueError: for a mixture, and for a program, θ or x that `em` would refuse.

    >>> import jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def chain(y):
    ...     def step(before, y):
    ...         z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.1, 0.9]])[before]))
    ...         numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[z], 1.0), obs=y)
    ...         return z, None
    ...     scan(step, 0, y)
    >>> jaxem.decode(jaxem.from_numpyro(chain), {}, jnp.array([-1.0, 0.1, -1.0, 2.0, 2.0]))["z"].tolist()
    [0, 0, 0, 1, 1]
    """
    program = program_only("decode", m)
    theta, data = enter(program, theta, x, temperature=0.0)
    return {name: jnp.argmax(table, axis=-1) for name, table in possible("decode", program, theta, data).items()}


def possible(what: str, m: Program, theta: Theta, data: Data) -> dict[str, Array]:
    """The marginals, or a ValueError where no assignment is possible: a maximum over nothing has an argmax, too."""
    found, free_energy = _marginals(m, theta, data)
    refuse_impossible(what, data, free_energy)
    return found


def refuse_impossible(what: str, data: Data, free_energy: Array) -> None:
    """A ValueError where log p(x | θ), or one of several, is not finite."""
    blame_x(data.x, free_energy)
    if is_concrete(free_energy) and not np.isfinite(value := np.asarray(free_energy)).all():
        raise ValueError(
            f"{what}: log p(x | theta) is {shown(value)}, so the posterior of the latents is undefined; look for "
            "data outside of a distribution's support, and for probabilities of 0 in theta or the program"
        )


@jax.jit
def _marginals(m: Program, theta: Theta, data: Data) -> tuple[dict[str, Array], Array]:
    tables, _, free_energy = weighted_marginals(m, theta, data)
    return with_first_steps(
        {name: table / jnp.sum(table, axis=-1, keepdims=True) for name, table in tables.items()}
    ), free_energy


def with_first_steps(found: dict[str, Array]) -> dict[str, Array]:
    """A scan's sites in one, the steps that are unrolled before the others."""
    found = dict(found)
    for name in sorted((name for name in found if name.startswith(PREVIOUS)), key=steps_back):
        first = found.pop(name)[None]
        rest = found.get(root(name))
        found[root(name)] = first if rest is None else jnp.concatenate([first, rest.reshape(-1, *first.shape[1:])])
    return found


def weighted_marginals(
    m: Program, theta: Theta, data: Data, key: Array | None = None
) -> tuple[dict[str, Array], dict[str, Array], Array]:
    """(eq:marginal times the weight of its row, that weight) of every latent, and F; a scan's first step apart.

    With a key the tables are one-hot, one draw from the joint posterior.
    """
    partition, zeros, weights = offset_partition(m, theta, data, key)
    free_energy, found = jax.value_and_grad(partition)(zeros)
    return found, weights, free_energy


def offset_partition(
    m: Program, theta: Theta, data: Data, key: Array | None = None
) -> tuple[Callable[[dict[str, Array]], Array], dict[str, Array], dict[str, Array]]:
    """(ε → F_T with ε added to the log-probabilities of every latent, ε = 0, the weights of their rows)."""
    offset = Offset.of(m, theta, data)
    partition = partial(offset.partition, temperature=data.temperature, key=key)
    return partition, offset.zeros(data.temperature.dtype), offset.weights()
