"""What an entry of the gallery is, and the registry of them all."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import constraints

J = jnp.asarray  # in the precision of the run
positive, simplex, unit_interval = constraints.positive, constraints.simplex, constraints.unit_interval


class Entry(NamedTuple):
    """A program someone writes, its data, and what is true of it."""

    program: Callable[..., Any]
    x: tuple  # its arguments
    about: str  # what it shows, in one line
    source: str  # where programs of its kind are published
    theme: str
    closed: tuple[str, ...]  # parameters whose M-step is a formula
    climbs: tuple[str, ...]  # parameters for which there is none
    reference: Callable[..., Any] | None  # the same joint density with its latents spelled out
    theta: dict[str, Any] | None  # where the fit starts; by default the program's own start
    ends: tuple[str, ...]  # the statuses a fit may truthfully end with
    refusal: str | None  # a pattern of the one line that refuses it
    single: bool  # float32 has ended it in another way than float64


ENTRIES: dict[str, Entry] = {}


def entry(
    *x: Any,
    source: str,
    closed: str = "",
    climbs: str = "",
    reference: Callable[..., Any] | None = None,
    theta: dict[str, Any] | None = None,
    ends: str = "CONVERGED MAX_STEPS",
    refusal: str | None = None,
    name: str | None = None,
    single: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Put a program into the gallery, under its own name."""

    def register(program: Callable[..., Any]) -> Callable[..., Any]:
        key = name or program.__name__
        assert key not in ENTRIES, key
        about = program.__doc__.strip().splitlines()[0].rstrip(".")
        theme = sys._getframe(1).f_globals["__name__"].rsplit(".", 1)[-1]  # a partial has no module of its own
        ENTRIES[key] = Entry(
            program=program,
            x=x,
            about=about,
            source=source,
            theme=theme,
            closed=tuple(closed.split()),
            climbs=tuple(climbs.split()),
            reference=reference,
            theta=theta,
            ends=tuple(ends.split()),
            refusal=refusal,
            single=single,
        )
        return program

    return register


def draws(seed: int) -> np.random.Generator:
    """Small data from a seed of the entry's own."""
    return np.random.default_rng(seed)


def weights(name: str, *values: Any) -> Any:
    """A `param` on the simplex: even, or as given."""
    start = J(values) if len(values) > 1 else jnp.ones(values[0]) / values[0]
    return numpyro.param(name, start, constraint=simplex)
