"""The programs, data and starts of em_vs_svi, and their likelihood as NumPyro computes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.funsor import config_enumerate, enum, log_density
from numpyro.distributions import biject_to, constraints
from numpyro.infer import ELBO, TraceEnum_ELBO

import jaxem
from jaxem.families import gaussian

from _command import Config
from _data import load

Theta = dict[str, jax.Array]
CENTRES = np.array([[-1.5, 1.0], [1.5, -1.0]])  # the slides' start on Old Faithful


class Problem(NamedTuple):
    """A program, its data, and one start for all."""

    program: Any
    x: jax.Array
    theta: Theta
    has_scan: bool = False


def mixture(start: Theta) -> Any:
    """A Gaussian mixture with full covariances."""

    def program(x: jax.Array) -> None:
        pi = numpyro.param("pi", start["pi"], constraint=constraints.simplex)
        mu = numpyro.param("mu", start["mu"])
        scale = numpyro.param("scale", start["scale"], constraint=constraints.lower_cholesky)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("x", dist.MultivariateNormal(mu[z], scale_tril=scale[z]), obs=x)

    return program


def spherical(start: Theta) -> Any:
    """A Gaussian mixture, one σ to a component."""

    def program(x: jax.Array) -> None:
        pi = numpyro.param("pi", start["pi"], constraint=constraints.simplex)
        mu = numpyro.param("mu", start["mu"])
        sigma = numpyro.param("sigma", start["sigma"], constraint=constraints.positive)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z][..., None]).to_event(1), obs=x)

    return program


def hidden_markov(start: Theta) -> Any:
    """A Gaussian hidden Markov model; the last row of A is the start."""

    def program(x: jax.Array) -> None:
        A = numpyro.param("A", start["A"], constraint=constraints.simplex)
        mu = numpyro.param("mu", start["mu"])
        sigma = numpyro.param("sigma", start["sigma"], constraint=constraints.positive)

        def step(before: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            z = numpyro.sample("z", dist.Categorical(A[before]))
            numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)
            return z, None

        scan(step, len(A) - 1, x)

    return program


def problems(config: Config) -> dict[str, Problem]:
    """Old Faithful, three overlapping Gaussians, and a chain of three overlapping states."""
    draw, start, chain = jax.random.split(jax.random.key(config.seed), 3)
    geyser = jnp.asarray(load("old_faithful").x)
    identity = jnp.broadcast_to(jnp.eye(2), (2, 2, 2))
    slides = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.asarray(CENTRES), "scale": identity}
    chosen = {"Old Faithful, K = 2": Problem(mixture(slides), geyser, slides)}
    if config.quick:
        return chosen
    angle = 2 * jnp.pi * jnp.arange(3) / 3
    truth = {"pi": jnp.array([0.5, 0.3, 0.2]), "mu": 1.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)}
    x, _ = jaxem.sample(gaussian.isotropic, truth | {"sigma": jnp.ones(())}, draw, 1_000)
    centres = jaxem.inits.kmeans_plus_plus(gaussian.isotropic, start, x, 3)["mu"]
    wide = {"pi": jnp.full(3, 1 / 3), "mu": centres, "sigma": jnp.ones(3)}
    chosen["overlapping mixture, K = 3"] = Problem(spherical(wide), x, wide)
    y = chain_sample(chain, 300)
    A = jnp.concatenate([jnp.full((3, 3), 0.1) + 0.7 * jnp.eye(3), jnp.full((1, 3), 1 / 3)])
    states = {"A": A, "mu": jnp.quantile(y, jnp.array([0.2, 0.5, 0.8])), "sigma": jnp.full(3, jnp.std(y))}
    chosen["hidden Markov model, K = 3"] = Problem(hidden_markov(states), y, states, has_scan=True)
    return chosen


def chain_sample(key: jax.Array, num_steps: int) -> jax.Array:
    """A draw from three states, two standard deviations apart, that last ten steps on average."""
    first, stay, noise = jax.random.split(key, 3)
    A = jnp.full((3, 3), 0.05) + 0.85 * jnp.eye(3)

    def step(z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.random.categorical(key, jnp.log(A[z])), z

    _, z = jax.lax.scan(step, jax.random.randint(first, (), 0, 3), jax.random.split(stay, num_steps))
    return 2.0 * z - 2.0 + jax.random.normal(noise, (num_steps,))


# ---- NumPyro's own likelihood and coordinates


class Enumerated(ELBO):
    """−L(θ) by `log_density`, which eliminates along `scan`."""

    can_infer_discrete = True

    def loss(self, rng_key: jax.Array, param_map: Theta, model: Any, guide: Any, x: jax.Array) -> jax.Array:
        return -numpyro_log_likelihood(model, param_map, x)


def numpyro_log_likelihood(program: Any, theta: Theta, x: jax.Array) -> jax.Array:
    """L(θ) by NumPyro's own enumeration."""
    model = handlers.seed(enum(config_enumerate(program), first_available_dim=-2), jax.random.key(0))
    return log_density(model, (x,), {}, theta)[0]


def bijections(program: Any, x: jax.Array) -> dict[str, Any]:
    """From NumPyro's unconstrained coordinates to each parameter."""
    sites = handlers.trace(handlers.seed(program, jax.random.key(0))).get_trace(x)
    params = {name: site for name, site in sites.items() if site["type"] == "param"}
    return {name: biject_to(site["kwargs"].get("constraint", constraints.real)) for name, site in params.items()}


def trace_enum_error(problem: Problem, value: float) -> float:
    """(ELBO − L)/|L| at the start, by `TraceEnum_ELBO` whatever the program."""
    loss = TraceEnum_ELBO().loss(
        jax.random.key(0), problem.theta, config_enumerate(problem.program), lambda x: None, problem.x
    )
    return (-float(loss) - value) / abs(value)
