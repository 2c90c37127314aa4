"""How many parameters a fit has, and what it is worth for them: the criteria by which models are chosen.

    aic = −2 L + 2 df,     bic = −2 L + df log N,     icl = −2 L_c + df log N          smaller is better

L(θ) = Σ w_n log Σ_k e^{ℓ_nk} is the log-likelihood, L_c(θ) = Σ w_n max_k ℓ_nk the same with every latent at its most
probable value, which is F at T = 0. Priors are in neither. R's mclust has the same numbers with the opposite sign.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._answers.posterior import weighted_marginals
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import compiled
from jaxem._programs.program import Program
from jaxem._programs.read import root
from jaxem.families._enter import theta_alone
from jaxem.families._mixture import Mixture, mixture_only


class Terms(NamedTuple):
    """What the criteria are made of, at one θ."""

    log_likelihood: Float[Array, ""]  # L
    classified: Float[Array, ""]  # L_c
    num_rows: Float[Array, ""]  # N


def num_parameters(m: Model, theta: ThetaLike, x: Any = None) -> int:
    """df: the number of free parameters, which is that of NumPyro's unconstrained coordinates of them.

    Held entries and the last entry of a simplex are not counted, and of a symmetric matrix one half.

    Args:
        m: the model, possibly with parameters held.
        theta: its parameters, whose shapes say K and D.
        x: the data; needed for a program only, whose own trace says what its constraints are.

    Raises:
        ValueError: for a program without x.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(3, 1 / 3), "mu": jnp.zeros((3, 2)), "Sigma": jnp.stack([jnp.eye(2)] * 3)}
    >>> jaxem.num_parameters(gaussian.full, theta)                                        # 2 + 3·2 + 3·3
    17
    >>> jaxem.num_parameters(gaussian.full.hold("pi"), theta)
    15
    """
    if isinstance(m, Program):
        if x is None:
            raise ValueError("x: a program's own trace says what its constraints are; pass the data, as to em")
        theta, data = enter(m, theta, x)
    else:
        m, data = mixture_only("num_parameters", m), None
        theta = theta_alone(m, theta)
    return degrees_of_freedom(m, theta, data)


def degrees_of_freedom(m: Any, theta: Theta, data: Data | None) -> int:
    """The same for a θ that was checked."""
    free = jax.eval_shape(lambda theta: m.coordinates(theta, data).unconstrain(theta), theta)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(free))


def aic(m: Model, theta: ThetaLike, x: Any, *, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """Akaike's information criterion, −2 L + 2 df, in nats; smaller is better.

    L is the log-likelihood, priors excluded, and df the number of free parameters (`num_parameters`).

    Args:
        m: the model, possibly with parameters held.
        theta: its parameters, best at a maximum of the likelihood.
        x: the data, as for `em`.
        weights: w (N,) ≥ 0, one per row of a mixture.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.ones(1), "mu": jnp.zeros((1, 1)), "sigma": 1.0}
    >>> f"{jaxem.aic(gaussian.isotropic, theta, jnp.array([0.0])):.4f}"                  # log 2π + 2·2
    '5.8379'
    """
    terms, df = _terms_of(m, theta, x, weights)
    return criterion("aic", terms, df)


def bic(m: Model, theta: ThetaLike, x: Any, *, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """Schwarz's Bayesian information criterion, −2 L + df log N, in nats; smaller is better.

    N is the number of rows, or the sum of their weights; for a program the number of places of its discrete latent,
    of the one that has most: the rows of a mixture, the steps of all chains. mclust's BIC is minus this.

    Args:
        m: the model, possibly with parameters held.
        theta: its parameters, best at a maximum of the likelihood.
        x: the data, as for `em`.
        weights: w (N,) ≥ 0, one per row of a mixture.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.ones(1), "mu": jnp.zeros((1, 1)), "sigma": 1.0}
    >>> f"{jaxem.bic(gaussian.isotropic, theta, jnp.array([0.0])):.4f}"                  # log 2π + 2·log 1
    '1.8379'
    """
    terms, df = _terms_of(m, theta, x, weights)
    return criterion("bic", terms, df)


def icl(m: Model, theta: ThetaLike, x: Any, *, weights: ArrayLike | None = None) -> Float[Array, ""]:
    """The integrated completed likelihood, bic − 2 Σ_n w_n log max_k γ_nk, in nats; smaller is better.

    It is −2 L_c + df log N: the bic of the data completed by their most probable components, so that components
    which overlap cost something (Biernacki, Celeux & Govaert 2000). mclust's ICL is minus this.

    Args:
        m: the model, possibly with parameters held.
        theta: its parameters, best at a maximum of the likelihood.
        x: the data, as for `em`.
        weights: w (N,) ≥ 0, one per row of a mixture.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.zeros((2, 1)), "sigma": 1.0}          # two equal components:
    >>> x = jnp.array([0.0])
    >>> f"{jaxem.icl(gaussian.isotropic, theta, x) - jaxem.bic(gaussian.isotropic, theta, x):.4f}"  # 2 log 2
    '1.3863'
    """
    terms, df = _terms_of(m, theta, x, weights)
    return criterion("icl", terms, df)


CRITERIA = ("aic", "bic", "icl")


def criterion(name: str, terms: Terms, df: int) -> Array:
    """One of the three by its name."""
    penalty = 2 * df if name == "aic" else df * jnp.log(terms.num_rows)
    return penalty - 2 * (terms.classified if name == "icl" else terms.log_likelihood)


def _terms_of(m: Model, theta: ThetaLike, x: Any, weights: ArrayLike | None) -> tuple[Terms, int]:
    theta, data = enter(m, theta, x, weights)
    terms = terms_at(m, theta, data)
    blame_x(data.x, terms.log_likelihood)
    return terms, degrees_of_freedom(m, theta, data)


@compiled
def terms_at(m: Mixture | Program, theta: Theta, data: Data) -> Terms:
    """L, L_c and N at a θ that was checked."""
    prior = m.log_prior(theta, data)
    hard = data._replace(temperature=jnp.zeros_like(data.temperature))
    L, L_c = (m.expect(theta, some).free_energy - prior for some in (data, hard))
    return Terms(L, L_c, jnp.asarray(num_rows(m, theta, data), L.dtype))


def num_rows(m: Model, theta: Theta, data: Data) -> Array | int:
    """N: the weights of a mixture's rows, or of the places of the latent of a program that has most of them."""
    if isinstance(m, Mixture):
        return m.rows.size(data)
    assert isinstance(m, Program)
    _, weights, _ = weighted_marginals(m, theta, data)
    places: dict[str, Any] = {}
    for name, w in weights.items():  # a scan's first step is apart
        places[root(name)] = places.get(root(name), 0) + jnp.sum(w)
    return jnp.max(jnp.stack(list(places.values()))) if places else m.rows.size(data)
