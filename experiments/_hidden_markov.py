"""The chain of hmm_sigma_sweep: its program, draws from it, and NumPy's own algorithms on it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import jaxem
from jaxem import limits

Theta = dict[str, Any]
NUM_STATES = 3
STAY = 0.9  # of the diagonal of A
MEANS = np.array([-2.0, 0.0, 2.0])  # the truth, with σ = 1


def program(x: jax.Array) -> None:
    """The last row of A is the start."""
    A = numpyro.param("A", jnp.asarray(transitions()), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.asarray(MEANS[:, None]))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)

    def step(before: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        z = numpyro.sample("z", dist.Categorical(A[before]))
        numpyro.sample("x", dist.Normal(mu[z], sigma).to_event(1), obs=x)
        return z, None

    scan(step, len(A) - 1, x)


M = jaxem.from_numpyro(program).hold("A", "sigma")


def transitions(stay: float = STAY) -> np.ndarray:
    """(K + 1, K): every other state equally likely, and a uniform start."""
    off = (1 - stay) / (NUM_STATES - 1)
    A = np.full((NUM_STATES, NUM_STATES), off) + (stay - off) * np.eye(NUM_STATES)
    return np.concatenate([A, np.full((1, NUM_STATES), 1 / NUM_STATES)])


def parameters(mu: Any, sigma: Any, stay: float = STAY) -> Theta:
    return {"A": jnp.asarray(transitions(stay)), "mu": jnp.asarray(mu), "sigma": jnp.asarray(sigma, float)}


def draw_chain(seed: int, num_times: int) -> tuple[np.ndarray, np.ndarray]:
    """x (T, 1) from the program's own law at the truth, and its states."""
    rng, A = np.random.default_rng(seed), transitions()
    z = np.zeros(num_times, int)
    before = NUM_STATES
    for t in range(num_times):
        z[t] = before = rng.choice(NUM_STATES, p=A[before])
    return MEANS[z, None] + rng.normal(size=(num_times, 1)), z


# ---- NumPy's own: the best path, segmental k-means, k-means


def viterbi(x: np.ndarray, theta: Theta) -> tuple[np.ndarray, float]:
    """The most probable path, and its log p(x, z)."""
    A, mu, sigma = (np.asarray(theta[name]) for name in ("A", "mu", "sigma"))
    emission = -squared(x, mu) / (2 * sigma**2) - x.shape[1] / 2 * np.log(2 * np.pi * sigma**2)
    score, back = np.log(A[-1]) + emission[0], []
    for row in emission[1:]:
        candidates = score[:, None] + np.log(A[:-1])
        back.append(candidates.argmax(axis=0))
        score = candidates.max(axis=0) + row
    path = [int(score.argmax())]
    for came_from in back[::-1]:
        path.append(int(came_from[path[-1]]))
    return np.array(path[::-1]), float(score.max())


def best_path(x: np.ndarray, theta: Theta) -> limits.Lead:
    """That path, by NumPy, and its lead over the second."""
    path, value = viterbi(x, theta)
    return limits.Lead({"z": jnp.asarray(path)}, jnp.asarray(value), limits.lead(M, theta, x).lead)


def squared(x: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """d (T, K)."""
    return ((x[:, None] - mu[None]) ** 2).sum(axis=-1)


def means(x: np.ndarray, path: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """The mean of each state's points; a state without points keeps its own."""
    return np.stack([x[path == k].mean(axis=0) if np.any(path == k) else mu[k] for k in range(len(mu))])


def segmental_kmeans(x: np.ndarray, theta: Theta, num_steps: int) -> np.ndarray:
    """μ after every step of: Viterbi's path, then the means of its segments."""
    mus = [np.asarray(theta["mu"])]
    for _ in range(num_steps):
        mus.append(means(x, viterbi(x, theta | {"mu": mus[-1]})[0], mus[-1]))
    return np.stack(mus[1:])


def lloyd(x: np.ndarray, mu: np.ndarray, num_steps: int) -> np.ndarray:
    """μ after every step of k-means."""
    mus = [mu]
    for _ in range(num_steps):
        mus.append(means(x, squared(x, mus[-1]).argmin(axis=1), mus[-1]))
    return np.stack(mus[1:])


def coincident_spectrum(x: np.ndarray, sigma: float) -> np.ndarray:
    """Eigenvalues of the Jacobian in μ of EM on the program, at μ_k = x̄, by `jax.jacfwd`, ascending."""

    def em_map(mu: jax.Array) -> jax.Array:
        theta = parameters(mu[:, None], sigma)
        return jaxem.em_path(M, theta, x, num_steps=1).theta["mu"][0, :, 0]

    jacobian = jax.jit(jax.jacfwd(em_map))(jnp.full(NUM_STATES, x.mean()))
    return np.sort(np.linalg.eigvals(np.asarray(jacobian)).real)
