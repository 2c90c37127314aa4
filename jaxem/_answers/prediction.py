"""What a fit says of each row: its component, how sure that is, and how probable the row is at all."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Model, Theta, ThetaLike
from jaxem._core.objective import assign
from jaxem._programs.program import Program
from jaxem.families._mixture import Mixture


class Prediction(NamedTuple):
    """One entry for each row of x."""

    labels: Int[Array, " N"]  # argmax_k γ_nk, the lowest index at ties
    log_likelihood: Float[Array, " N"]  # log p(x_n | θ) = log Σ_k e^{ℓ_nk}, nats
    uncertainty: Float[Array, " N"]  # 1 − max_k γ_nk, the probability that the label is wrong


def predict(m: Model, theta: ThetaLike, x: Any) -> Prediction:
    """Each row's most probable component, its log-likelihood, and the uncertainty 1 − max_k γ_nk.

    The uncertainty is the sum of the other components' γ, so that it keeps its digits where it is small. A row that
    is impossible under every component has log-likelihood −∞.

    Args:
        m: a mixture, or a program with one discrete latent in one plate (`log_joint`); of any other program
            `jaxem.marginals` and `jaxem.decode` tell the same.
        theta: its parameters, e.g. `fit.theta`.
        x: rows, as for `em`; they need not be those that were fitted.

    Returns:
        A `Prediction` of `labels`, `log_likelihood` and `uncertainty`, (N,) each.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[0.0], [2.0]]), "sigma": 1.0}
    >>> found = jaxem.predict(gaussian.isotropic, theta, jnp.array([-1.0, 1.0, 3.0]))
    >>> found.labels.tolist(), [f"{u:.3f}" for u in found.uncertainty]
    ([0, 0, 1], ['0.018', '0.500', '0.018'])
    """
    theta, data = enter(m, theta, x)
    found = _predict(m, theta, data.x)
    blame_x(data.x, jnp.sum(found.log_likelihood))
    return found


@jax.jit
def _predict(m: Mixture | Program, theta: Theta, x: Any) -> Prediction:
    gamma, rows = assign(m.table(theta, x), 1.0, axis=0)
    labels = jnp.argmax(gamma, axis=0)
    others = jnp.arange(gamma.shape[0])[:, None] != labels[None]
    return Prediction(labels, rows, jnp.sum(jnp.where(others, gamma, 0), axis=0))
