"""What a model says about data at a given θ: ℓ, γ, L, Q, J, and draws. Public tables are (N, K)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.arrays import listed, numbers, random_key, static_count, warn
from jaxem._core.checks import blame_x, enter, prepare_centres, rows_and_weights
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.objective import assign, row_free_energy, weighted
from jaxem._core.tracing import compiled, is_concrete
from jaxem._programs.program import Program
from jaxem._programs.structure import simulated
from jaxem._rows.chunks import side_by_side, sum_over_rows
from jaxem.families._enter import theta_alone
from jaxem.families._missing import for_rows
from jaxem.families._mixture import Mixture, mixture_only
from jaxem.families.gaussian import squared_distances


def log_joint(m: Model, theta: ThetaLike, x: Any, *, missing: bool = False) -> Float[Array, "N K"]:
    """ℓ_nk = log p(x_n, z_n = k | θ), in nats (eq:joint).

    The table of the NumPyro program's trace; a family's kernel is held equal to it by the tests. For a program of
    `from_numpyro` only where it has one discrete latent in one plate; `jaxem.marginals` serves every program.

    Args:
        m: a mixture, or such a program.
        theta: its parameters.
        x: the data, as for `em`.
        missing: may x have NaN, missing at random? Then x_n is what is observed of the row.

    Raises:
        ValueError: for another program, and for what `em` refuses.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[0.0], [2.0]]), "sigma": 1.0}
    >>> print(jaxem.log_joint(gaussian.isotropic, theta, jnp.array([[1.0]])).round(3))
    [[-2.112 -2.112]]
    """
    m = for_rows(m, x, missing)
    theta, data = enter(m, theta, x)
    table, total = _table(m, theta, data.x)
    blame_x(data.x, total)
    return table


def responsibilities(
    m: Model, theta: ThetaLike, x: Any, temperature: ArrayLike = 1.0, *, missing: bool = False
) -> Float[Array, "N K"]:
    """γ = softmax_k(ℓ_nk / T), the maximiser of F_T (eq:E); one-hot, lowest index at ties, at T = 0.

    At T = 1 the posterior p(z_n = k | x_n, θ). A row that is impossible under every component gets 1/K, and a warning.

    Args:
        m: a mixture, or a program with one discrete latent in one plate.
        theta: its parameters.
        x: the data, as for `em`.
        temperature: T ≥ 0.
        missing: may x have NaN, missing at random? A row with nothing observed gets π.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[0.0], [2.0]]), "sigma": 1.0}
    >>> jaxem.responsibilities(gaussian.isotropic, theta, jnp.array([[1.0]])).tolist()
    [[0.5, 0.5]]
    >>> jaxem.responsibilities(gaussian.isotropic, theta, jnp.array([[1.0]]), temperature=0.0).tolist()
    [[1.0, 0.0]]
    """
    m = for_rows(m, x, missing)
    theta, data = enter(m, theta, x, temperature=temperature)
    gamma, peaks = _gamma(m, theta, data)
    if is_concrete(peaks) and not np.isfinite(total := np.sum(peaks)):
        blame_x(data.x, total)
        impossible = np.flatnonzero(np.isneginf(peaks))
        if impossible.size:
            warn(
                f"x: {impossible.size} row(s) have probability 0 under every component, so that nothing tells those "
                f"apart: {listed(impossible)}; keep theta's probabilities off 0"
            )
    return gamma


def log_likelihood(
    m: Model, theta: ThetaLike, x: Any, *, weights: ArrayLike | None = None, missing: bool = False
) -> Float[Array, ""]:
    """L(θ) = Σ_n w_n log Σ_k p(x_n, z_n = k | θ), in nats, priors excluded; memory does not grow with N·K.

    Args:
        m: a mixture or a program.
        theta: its parameters.
        x: the data, as for `em`.
        weights: w (N,) ≥ 0, one per row; None is all 1.
        missing: may x have NaN, missing at random? Then L is of what is observed.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.array([1.0]), "mu": jnp.array([[0.0]]), "sigma": 1.0}
    >>> f"{jaxem.log_likelihood(gaussian.isotropic, theta, jnp.array([0.0])):.4f}"
    '-0.9189'
    """
    m = for_rows(m, x, missing)
    theta, data = enter(m, theta, x, weights)
    value = _log_likelihood(m, theta, data)
    blame_x(data.x, value)
    return value


def expected_log_joint(
    m: Model,
    theta: ThetaLike,
    gamma: ArrayLike,
    x: Any,
    *,
    weights: ArrayLike | None = None,
    missing: bool = False,
) -> Float[Array, ""]:
    """Q(θ; γ) = Σ_n w_n Σ_k γ_nk ℓ_nk(θ), the expected complete-data log-likelihood, with 0·(−∞) = 0.

    Args:
        m: a mixture, or a program with one discrete latent in one plate.
        theta: θ, where ℓ is taken.
        gamma: γ (N, K), whose rows need not be the posterior's at θ.
        x: the data, as for `em`.
        weights: w (N,) ≥ 0, one per row; None is all 1.
        missing: may x have NaN, missing at random? Then ℓ is of what is observed.

    Raises:
        ValueError: for a γ of another shape, and for what `em` refuses.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[0.0], [2.0]]), "sigma": 1.0}
    >>> x = jnp.array([[1.0]])
    >>> gamma = jaxem.responsibilities(gaussian.isotropic, theta, x)
    >>> print(jaxem.expected_log_joint(gaussian.isotropic, theta, gamma, x).round(3))
    -2.112
    """
    m = for_rows(m, x, missing)
    theta, data = enter(m, theta, x, weights)
    gamma = numbers("gamma", gamma, data.temperature.dtype)
    wanted = jax.eval_shape(_table, m, theta, data.x)[0].shape
    if gamma.shape != wanted:
        raise ValueError(f"gamma: must have shape (N, K) = {wanted}, got {gamma.shape}")
    value = _expected(m, theta, gamma, data)
    blame_x(data.x, value)
    return value


def distortion(x: Any, mu: ArrayLike, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """J = Σ_n w_n min_k ‖x_n − μ_k‖², the objective of k-means, in squared units of x.

    Args:
        x: the data, (N, D), or (N,) for D = 1.
        mu: the centres μ, (K, D).
        weights: w (N,) ≥ 0; None is all 1.

    >>> import jax.numpy as jnp, jaxem
    >>> float(jaxem.distortion(jnp.array([[0.0], [3.0]]), jnp.array([[1.0]])))
    5.0
    """
    x, w = rows_and_weights(x, weights)
    mu = prepare_centres("mu", mu, x)
    value = _distortion(x, mu, w if w is None else w.astype(mu.dtype))
    blame_x(x, value)
    return value


def sample(m: Model, theta: ThetaLike, key: Array, num_samples: int, x: Any = None) -> Any:
    """`num_samples` draws from the model at θ: of a mixture (x, z), rows with the component of each.

    Of a program a dict, site → draws (num_samples, …), of what it observes and of its latents: each is a whole data
    set, of as many rows and steps as the arguments have.

    Args:
        m: a mixture or a program.
        theta: its parameters.
        key: a key of `jax.random`.
        num_samples: how many rows of a mixture, how many data sets of a program.
        x: a program's arguments, as to `em`. Of what is observed only the shape counts; covariates, lengths and masks
            are used as they are. A mixture needs none.

    Returns:
        (x (num_samples, D), z (num_samples,)), or of a program a dict. A scan's sites have their time first.

    Raises:
        ValueError: for a program without x, and for what `em` refuses.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[0.0, 0.0], [9.0, 9.0]]), "sigma": 1.0}
    >>> x, z = jaxem.sample(gaussian.isotropic, theta, jax.random.key(0), 500)
    >>> x.shape, bool(jnp.all((x[:, 0] > 4.5) == (z == 1)))
    ((500, 2), True)
    """
    static_count("num_samples", num_samples, 1)
    key = random_key(key)
    if isinstance(m, Program):
        if x is None:
            raise ValueError("x: a program's arguments say how many rows to draw; pass the data, as to em")
        theta, data = enter(m, theta, x)
        return _simulate(m, theta, data.x, jax.random.split(key, int(num_samples)))
    mixture = mixture_only("sample", m)
    theta = theta_alone(mixture, theta)
    return mixture.sample(theta, key, int(num_samples))


@jax.jit
def _simulate(m: Program, theta: Theta, x: Any, keys: Array) -> dict[str, Array]:
    """A data set for each key, some side by side."""

    def one(key: Array) -> dict[str, Array]:
        return simulated(m.program, x, theta, key)

    return side_by_side(one, keys)


@jax.jit
def _table(m: Mixture | Program, theta: Theta, x: Any) -> tuple[Array, Array]:
    """ℓ, and a sum over its rows that is not finite where one of x is not."""
    table = m.table(theta, x)
    return table.T, jnp.sum(jnp.max(table, axis=0))


@jax.jit
def _gamma(m: Mixture | Program, theta: Theta, data: Data) -> tuple[Array, Array]:
    """γ, and max_k ℓ_nk (N,), which show what it does not: a row that is not finite, or impossible."""
    table = m.relative_table(theta, data.x)
    return assign(table, data.temperature, axis=0)[0].T, jnp.max(table, axis=0)


@compiled
def _log_likelihood(m: Mixture | Program, theta: Theta, data: Data) -> Array:
    return m.expect(theta, data).free_energy - m.log_prior(theta, data)


@jax.jit
def _expected(m: Mixture | Program, theta: Theta, gamma: Array, data: Data) -> Array:
    # temperature 0 leaves F = Σ γ ℓ
    return jnp.sum(weighted(row_free_energy(m.table(theta, data.x), gamma.T, 0.0, axis=0), data.weights))


@jax.jit
def _distortion(x: Array, mu: Array, weights: Array | None) -> Array:
    def chunk(x: Array, weights: Array) -> Array:
        return jnp.sum(weights * jnp.min(squared_distances(x, mu), axis=0))

    return sum_over_rows(chunk, x, weights, num_components=mu.shape[0], dtype=mu.dtype)
