"""The three methods of `em_vs_svi`, compiled: their whole climb, and the call that is timed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _race import Climb, Racer, ascent, recorded
from _svi_programs import Enumerated, Problem, Theta, bijections, numpyro_log_likelihood
from jax.flatten_util import ravel_pytree
from numpyro.contrib.funsor import config_enumerate
from numpyro.infer import SVI, TraceEnum_ELBO

import jaxem

from benchmarks._timing import compiled, measure


class Trace(NamedTuple):
    """A climb, one entry a step; entry 0 is the start."""

    value: np.ndarray  # L(θ_t), as the method itself computes it
    theta: dict[str, np.ndarray]  # θ_t
    passes: np.ndarray  # over the data until L(θ_t) is known: E-steps, or L with its gradient


def em_racer(problem: Problem, num_steps: int) -> Racer:
    """Coordinate ascent, an E-step and an M-step a step; finding the closed forms counts as compilation."""
    m = jaxem.from_numpyro(problem.program)
    plan = measure(m.explain, problem.theta, problem.x, repeats=1, warm_up=False)
    path = jaxem.em_path(m, problem.theta, problem.x, num_steps=num_steps + 1)
    theta = jax.tree.map(lambda first, rest: np.concatenate([first[None], rest[:-1]]), problem.theta, path.theta)

    def run(theta: Theta, x: jax.Array, steps: jax.Array) -> Theta:
        return jaxem.em(m, theta, x, tol=0.0, max_steps=steps).theta

    run, seconds = compiled(run, problem.theta, problem.x, jnp.asarray(num_steps))
    trace = Trace(np.asarray(path.after_e), theta, 1 + np.arange(num_steps + 1))
    return Racer(trace, lambda steps: run(problem.theta, problem.x, jnp.asarray(steps)), seconds + plan.median)


def svi_racers(problem: Problem, rates: tuple[float, ...], num_steps: int) -> dict[str, Racer]:
    """NumPyro's SVI with Adam; one compilation for all rates."""
    unravel = ravel_pytree(problem.theta)[1]

    def run(rate: jax.Array, x: jax.Array, steps: jax.Array) -> dict[str, jax.Array]:
        loss = Enumerated() if problem.has_scan else TraceEnum_ELBO()
        svi = SVI(config_enumerate(problem.program), lambda x: None, optax.adam(rate), loss)
        state = svi.init(jax.random.key(0), x)

        def step(carry: tuple) -> tuple:
            state, _ = carry
            return svi.update(state, x)  # the loss is that of θ before the step

        def look(carry: tuple) -> dict[str, jax.Array]:
            state, loss = carry
            return {"value": -loss, "flat": ravel_pytree(svi.get_params(state))[0]}

        return recorded(step, look, (state, jnp.zeros(())), steps, num_steps + 2)[2]

    example = (jnp.zeros(()), problem.x, jnp.asarray(num_steps + 1))
    run, seconds = compiled(run, *example)

    def racer(rate: float) -> Racer:
        seen = run(jnp.asarray(rate), *example[1:])
        theta = jax.tree.map(np.asarray, jax.vmap(unravel)(seen["flat"][:-1]))
        trace = Trace(np.asarray(seen["value"][1:]), theta, 1 + np.arange(num_steps + 1))
        return Racer(trace, lambda steps: run(jnp.asarray(rate), problem.x, jnp.asarray(steps)), seconds)

    return {f"SVI, Adam {rate:g}": racer(rate) for rate in rates}


def lbfgs_racer(problem: Problem, num_steps: int) -> Racer:
    """optax's L-BFGS with its zoom line search, on −L in unconstrained coordinates."""
    to = bijections(problem.program, problem.x)
    flat, unravel = ravel_pytree({name: to[name].inv(value) for name, value in problem.theta.items()})

    def theta_of(flat: jax.Array) -> Theta:
        return {name: to[name](u) for name, u in unravel(flat).items()}

    def run(flat: jax.Array, x: jax.Array, steps: jax.Array) -> dict[str, jax.Array]:
        def height(flat: jax.Array) -> jax.Array:
            return numpyro_log_likelihood(problem.program, theta_of(flat), x)

        def look(climb: Climb) -> dict[str, jax.Array]:
            return {"value": climb.value, "flat": climb.point, "passes": climb.evaluations}

        initial, step = ascent(height, optax.lbfgs())
        return recorded(step, look, initial(flat), steps, num_steps + 1)[2]

    run, seconds = compiled(run, flat, problem.x, jnp.asarray(num_steps))
    seen = run(flat, problem.x, jnp.asarray(num_steps))
    theta = jax.tree.map(np.asarray, jax.jit(jax.vmap(theta_of))(seen["flat"]))
    trace = Trace(np.asarray(seen["value"]), theta, np.asarray(seen["passes"]))
    return Racer(trace, lambda steps: run(flat, problem.x, jnp.asarray(steps)), seconds)
