"""A fixed number of EM steps, every θ of them kept: what a fit does on its way, differentiable in both modes."""

from functools import partial
from typing import Any, NamedTuple

from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem._core.arrays import static_count
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike, maximize
from jaxem._core.tracing import compiled

MOST_STEPS = 10**8  # of which all θ are kept


class Path(NamedTuple):
    """The trajectory of `em_path`; entry t is one step from θ_t to θ_{t+1}."""

    theta: Theta  # θ_{t+1}
    after_e: Float[Array, " T"]  # F_T(θ_t, γ_t)
    after_m: Float[Array, " T"]  # F_T(θ_{t+1}, γ_t)


@partial(compiled, static_argnames="num_steps")
def _path(m: Model, theta: Theta, data: Data, num_steps: int) -> Path:
    def body(theta: Theta, _: None) -> tuple[Theta, Path]:
        expectation = m.expect(theta, data)
        new = maximize(m, expectation, theta, data)
        return new, Path(new, expectation.free_energy, m.objective(new, theta, data))

    _, path = lax.scan(body, theta, length=num_steps)
    return path


def em_path(
    m: Model,
    theta: ThetaLike,
    x: Any,
    *,
    num_steps: int,
    temperature: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> Path:
    """A fixed number of EM steps, with F after every half-step. Differentiable in both modes.

    Entry t holds F(θ_t, γ_t) after the E-step, F(θ_{t+1}, γ_t) after the M-step, and θ_{t+1}; θ_0 is the
    argument. Both traces never fall. Memory under `jax.grad` is O(num_steps·|θ| + N + chunk·K).

    Args:
        m: a mixture or a program.
        theta: θ_0, the start.
        x: the data, as for `em`.
        num_steps: M-steps to do, a Python int ≥ 1.
        temperature: T ≥ 0.
        weights: w (N,) ≥ 0, one per row; None is all 1.
        labels: known components (N,), −1 where unknown.

    Returns:
        A `Path`, along whose leading axis the steps are.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[-1.2], [-1.0], [-0.8], [0.9], [1.1]])
    >>> theta = {"pi": jnp.array([0.5, 0.5]), "mu": jnp.array([[-0.5], [0.5]]), "sigma": 1.0}
    >>> path = jaxem.em_path(gaussian.isotropic, theta, x, num_steps=5)
    >>> bool(jnp.all(path.after_m >= path.after_e)), path.theta["mu"].shape
    (True, (5, 2, 1))
    """
    theta, data = enter(m, theta, x, weights, temperature, labels, plans=True)
    static_count("num_steps", num_steps, 1)
    if num_steps > MOST_STEPS:
        raise ValueError(
            f"num_steps: must be at most {MOST_STEPS}, since θ of every step is kept, got {num_steps}; "
            "use em(..., max_steps=) where only the last counts"
        )
    path = _path(m, theta, data, int(num_steps))
    blame_x(data.x, path.after_e)
    return path
