"""The problems of coordinate_vs_gradient, and the objective that all methods climb."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxem
from jaxem.families import gaussian

from _data import load

M = gaussian.isotropic.hold("pi", "sigma")
CLOSE = 1e-8  # a method has arrived once F ≥ F* − CLOSE·|F*|


class Problem(NamedTuple):
    """Data, the start with its held σ, and T."""

    x: jax.Array  # (N, D)
    theta: dict[str, jax.Array]
    temperature: jax.Array


class Point(NamedTuple):
    """The free variables of joint gradient ascent."""

    mu: jax.Array  # (K, D)
    logits: jax.Array  # (N, K), γ = softmax(logits)


def problems(seed: int, quick: bool) -> dict[str, Problem]:
    """Old Faithful with σ below its first split, and three overlapping components; at T = 1 and below."""
    start, draw = jax.random.split(jax.random.key(seed))
    geyser = jnp.asarray(load("old_faithful").x)
    overlapping = overlapping_mixture(draw, 200 if quick else 1_000)

    def problem(x: jax.Array, num_components: int, sigma: float, temperature: float) -> Problem:
        theta = jaxem.inits.random_points(M, start, x, num_components)
        return Problem(x, theta | {"sigma": jnp.asarray(sigma)}, jnp.asarray(temperature))

    return {
        "Old Faithful, T = 1": problem(geyser, 2, 0.5, 1.0),
        "Old Faithful, T = 0.3": problem(geyser, 2, 0.5, 0.3),
        "three overlapping components, T = 1": problem(overlapping, 3, 1.0, 1.0),
        "three overlapping components, T = 0.3": problem(overlapping, 3, 1.0, 0.3),
    }


def overlapping_mixture(key: jax.Array, num_points: int) -> jax.Array:
    """Three unit Gaussians of equal weight on a circle of radius 1: 1.7 standard deviations apart."""
    angle = 2 * jnp.pi * jnp.arange(3) / 3
    mu = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    theta = {"pi": jnp.full(3, 1 / 3), "mu": mu, "sigma": jnp.ones(())}
    return jaxem.sample(gaussian.isotropic, theta, key, num_points)[0]


def height(problem: Problem, point: Point) -> jax.Array:
    """F_T(μ, γ) (eq:F)."""
    table = jaxem.log_joint(M, problem.theta | {"mu": point.mu}, problem.x)
    return jaxem.free_energy(table, jax.nn.softmax(point.logits, axis=-1), problem.temperature)


def ceiling(problem: Problem, mu: jax.Array) -> jax.Array:
    """L_T(μ) = T Σ_n log Σ_k e^{ℓ_nk/T}, the maximum of F over γ (eq:bound)."""
    scaled = jaxem.log_joint(M, problem.theta | {"mu": mu}, problem.x) / problem.temperature
    return problem.temperature * jnp.sum(jax.nn.logsumexp(scaled, axis=-1))


def at_posterior(problem: Problem, mu: jax.Array) -> Point:
    """(μ, γ(μ)), an E-step as a point of the joint space."""
    table = jaxem.log_joint(M, problem.theta | {"mu": mu}, problem.x)
    return Point(mu, jax.nn.log_softmax(table / problem.temperature, axis=-1))
