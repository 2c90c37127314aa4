"""What is found out of a program by trying it at stand-ins for its arguments, once for their shapes.

Where its rows lie, which closed forms its M-step has and whether those are right (C3), whether what has none can climb
by second derivatives.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxem._core.model import Data, Theta
from jaxem._core.tracing import at_once
from jaxem._programs import probe
from jaxem._programs import row_plate as plates
from jaxem._programs.arguments import Arguments, Cut
from jaxem._programs.follow import Probe
from jaxem._programs.joint import Joint, abstract
from jaxem._programs.m_step import stationarity
from jaxem._programs.plan import Plan, Planner
from jaxem._programs.read import Term


@dataclass(frozen=True)
class Tried(Joint):
    """A program whose observed values may be replaced, by draws that lie in their supports."""

    program: Any
    draws: Any = None
    memory_limit: int = 2**31

    def terms(self, theta: Theta, x: Arguments) -> tuple[list[Term], list[Term]]:
        terms, priors = super().terms(theta, x)
        if self.draws is None:
            return terms, priors
        return [term._replace(value=self.draws.get(term.name, term.value)) for term in terms], priors


@functools.lru_cache(maxsize=256)
def probe_at(program: Any, shapes: Arguments, dtype: Any) -> Probe:
    """The program at stand-ins of these shapes."""
    m = Tried(program)
    with at_once(), jax.numpy_rank_promotion("allow"):
        return Probe(m.terms, m.structure(shapes), shapes, dtype)


@functools.lru_cache(maxsize=256)
def row_plate(program: Any, shapes: Arguments, dtype: Any) -> Cut | str:
    """How arguments of these shapes are cut into rows, or why they cannot be."""
    m = Tried(program)
    try:
        with at_once(), jax.numpy_rank_promotion("allow"):
            return plates.find(m, shapes, m.structure(shapes), lambda shapes: probe_at(program, shapes, dtype))
    except plates.Whole as why:
        return str(why)


@functools.lru_cache(maxsize=256)
def is_smooth(program: Any, shapes: Arguments, dtype: Any) -> bool:
    """Does JAX know second derivatives of all that θ enters? Some functions have a first one alone."""
    m = Tried(program)

    def total(theta: Theta, x: Arguments) -> Array:
        return sum((jnp.sum(table) for table in m.tables(theta, x)[1].values()), m.log_prior(theta, Data(x, None, one)))

    def bend(theta: Theta, x: Arguments) -> Any:
        return jax.jvp(lambda theta: jax.grad(total)(theta, x), (theta,), (theta,))[1]

    one = jnp.ones((), dtype)
    theta = {name: abstract(parameter.shape, dtype) for name, parameter in m.structure(shapes).parameters.items()}
    try:
        with jax.numpy_rank_promotion("allow"):
            jax.eval_shape(bend, theta, shapes)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


@functools.lru_cache(maxsize=256)
def verified_plan(program: Any, shapes: Arguments, dtype: Any) -> Plan:
    """The plan, each closed form held to C3: ∇Q = 0 after it and not before, in every entry, at random stand-ins.

    A parameter whose closed form does not pass falls to its next best, at last to its gradient.
    """
    m = Tried(program)
    structure = m.structure(shapes)
    rng = np.random.default_rng(1)
    with at_once(), jax.numpy_rank_promotion("allow"):
        planner = Planner(probe_at(program, shapes, dtype))
        theta = probe.parameters(structure, dtype, rng)

        @probe.once
        def stand_ins(theta: Theta, x: Arguments) -> tuple[Theta, dict[str, Array]]:
            terms = m.terms(theta, x)[0]
            keys = jax.random.split(jax.random.key(0), len(terms))
            draws = {t.name: probe.draw(t, key, rng) for t, key in zip(terms, keys, strict=True) if t.observed}
            finite = {t.name: jnp.isfinite(t._replace(value=draws.get(t.name, t.value)).table()) for t in terms}
            return draws, finite

        def check(closed: Plan) -> dict[str, str]:
            """What is wrong, with whom: entry by entry, until all were tested or there are no other stand-ins."""
            left = {name: (np.zeros(1, bool), "") for name in closed}
            for x in planner.probe.arguments() if closed else ():
                draws, finite = stand_ins(theta, x)
                data, m = Data(x, None, jnp.ones((), dtype)), Tried(program, draws)
                marginals = {name: jnp.where(some, rng.uniform(0.1, 1, some.shape), 0) for name, some in finite.items()}
                marginals = {name: some.astype(dtype) for name, some in marginals.items()}
                for name, now in stationarity(m, closed, marginals, theta, data).items():
                    left[name] = (left[name][0] | now.entries, left[name][1] or now.why)
                    if now.is_wrong:
                        return {name: now.why}
                if all(entries.all() for entries, _ in left.values()):
                    break
            return {name: why for name, (entries, why) in left.items() if not entries.all()}

        while True:
            plan = planner.plan()
            wrong = check({name: update for name, update in plan.items() if update.kind != "gradient"})
            if not wrong:
                return plan
            for name, why in wrong.items():
                planner.drop(name, why)
