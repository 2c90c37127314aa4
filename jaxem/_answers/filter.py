"""What is known of a chain's state while its data come in: the filter.

    p(z_t | x_1 … x_t, θ)                                                                 (eq:filter)

It is the derivative that gives the marginals, with the pass back left out (`_programs/chain.by_filter`). Where a latent
outside of the scan has a say in every step, what is known of it changes with t too, and the steps until t are summed
anew for each t.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxem._answers.offset import Offset
from jaxem._answers.posterior import refuse_impossible, with_first_steps
from jaxem._core.checks import enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._programs.eliminate import Entangled, Factor, Named, steps_back
from jaxem._programs.program import Program, program_only
from jaxem._programs.read import root


def filter(m: Any, theta: ThetaLike, x: Any) -> dict[str, Array]:
    """p(z_t | x_1 … x_t, θ) of every latent inside a program's scan: its posterior from the data until its time.

    `marginals` knows all data, the filter none from later steps, nor what the program observes after the scan; at the
    last step the two agree. What stands before the scan or outside of it is known at every step. K² a step, as
    `marginals`; where a latent outside of the scan enters all of its steps, so much for every pair of steps.

    Args:
        m: a program with one `scan`.
        theta: its parameters.
        x: the data.

    Returns:
        dict: site → table, with the axes of `marginals`: time, the site's plates, its values.

    Raises:
        ValueError: for a mixture, whose rows have no time; for a program without a scan, or with several; for what
            `em` refuses; where x is impossible at θ.

    >>> import jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def chain(y):
    ...     def step(before, y):
    ...         z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.1, 0.9]])[before]))
    ...         numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[z], 1.0), obs=y)
    ...         return z, None
    ...     scan(step, 0, y)
    >>> m, y = jaxem.from_numpyro(chain), jnp.array([-1.0, 0.5, 2.0])
    >>> [f"{p:.2f}" for p in jaxem.filter(m, {}, y)["z"][:, 1]]
    ['0.01', '0.26', '0.96']
    >>> [f"{p:.2f}" for p in jaxem.marginals(m, {}, y)["z"][:, 1]]
    ['0.09', '0.73', '0.96']
    """
    program = program_with_time("filter", m)
    theta, data = enter(program, theta, x)
    found, free_energy = _filter(program, theta, data)
    refuse_impossible("filter", data, free_energy)
    return found


def program_with_time(what: str, m: Any) -> Program:
    """A ValueError where a mixture stands in for a program."""
    if isinstance(m, Model) and not isinstance(m, Program):
        raise ValueError(f"{what}: a mixture's rows have no time, and each stands alone; use jaxem.responsibilities")
    return program_only(what, m)


class Scanned(NamedTuple):
    """Which of a program's terms and latents are in its scan."""

    time: str | None  # None: no more than one step is not unrolled
    order: int  # how many steps are unrolled before the others
    latents: tuple[str, ...]
    terms: frozenset[str]

    @classmethod
    def of(cls, what: str, offset: Offset) -> "Scanned":
        """A ValueError where there is not one scan."""
        times = sorted(offset.graph.times)
        terms = {root(name) for name in offset.factors if steps_back(name)}  # a scan unrolls its first step
        latents = {root(name) for name in offset.laws if steps_back(name)}
        if not latents:
            raise ValueError(
                f"{what}: the program has no scan of a discrete latent, so its latents {sorted(offset.laws)} have no "
                "time; use jaxem.marginals"
            )
        if len(times) > 1:
            raise ValueError(f"{what}: the program has {len(times)} scans, each with a time of its own; use one")
        return cls(
            times[0] if times else None,
            max(map(steps_back, offset.factors)),
            tuple(name for name in offset.laws if root(name) in latents),
            frozenset(name for name in offset.factors if root(name) in terms),
        )

    def step(self, name: str) -> int:
        """The step of a site that is unrolled; of others the first."""
        return self.order - steps_back(name)

    def is_after(self, term: str, factor: Factor) -> bool:
        """Does this follow the scan: not in it, and depending on its latents?"""
        return term not in self.terms and bool({*factor.table.names} & {*self.latents})


def until(offset: Offset, scanned: Scanned, t: Array | int | None) -> Offset:
    """Without what follows step t, of all of them, and without what follows the scan; None: that alone."""

    def known(term: str, factor: Factor) -> Factor:
        names, array = factor.table
        if scanned.is_after(term, factor):
            names, array = (), jnp.zeros((), array.dtype)
        elif t is not None and scanned.time in factor.plates:
            names = (scanned.time, *(name for name in names if name != scanned.time))
            array = factor.table.along(names)
            step = scanned.order + jnp.arange(offset.graph.sizes[scanned.time])
            array = jnp.where(jnp.expand_dims(step <= t, tuple(range(1, array.ndim))), array, 0)
        elif t is not None and term in scanned.terms:
            array = jnp.where(scanned.step(term) <= t, array, 0)
        return factor._replace(table=Named(names, array))

    return offset._replace(factors={term: known(term, factor) for term, factor in offset.factors.items()})


@jax.jit
def _filter(m: Program, theta: Theta, data: Data) -> tuple[dict[str, Array], Array]:
    """(the tables of eq:filter, log p(x | θ))."""
    whole = Offset.of(m, theta, data)
    scanned = Scanned.of("filter", whole)
    zeros, one = whole.zeros(data.temperature.dtype), jnp.ones_like(data.temperature)

    def at_step(t: Array | int) -> dict[str, Array]:
        return jax.grad(lambda epsilon: until(whole, scanned, t).partition(epsilon, one))(zeros)

    def summed(epsilon: dict[str, Array], filtered: bool) -> Array:
        return until(whole, scanned, None).partition(epsilon, one, filtered=filtered)

    found: dict[str, Array] = {}
    try:
        free_energy, tables = jax.value_and_grad(summed)(zeros, filtered=True)
        if scanned.time:
            found = {name: tables[name] for name in scanned.latents if steps_back(name) <= 1}
    except Entangled:
        free_energy = summed(zeros, filtered=False)
        inside = [name for name in scanned.latents if not steps_back(name)]
        steps = jnp.arange(whole.graph.sizes[str(scanned.time)])
        found = lax.map(lambda t: {name: at_step(scanned.order + t)[name][t] for name in inside}, steps)
    for name in scanned.latents:
        if name not in found:
            found[name] = at_step(scanned.step(name))[name]
    return with_first_steps({name: table / jnp.sum(table, axis=-1, keepdims=True) for name, table in found.items()}), (
        free_energy
    )
