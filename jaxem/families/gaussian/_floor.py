"""A floor under the covariances, off by default: no component can collapse onto a point."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxem._core.arrays import raw, shown
from jaxem._core.model import Theta
from jaxem._core.tracing import is_concrete
from jaxem._core.values import settle
from jaxem.families._mixture import Mixture, mixture_only
from jaxem.families.gaussian._covariances import inflation, update
from jaxem.families.gaussian._moments import in_small_batches
from jaxem.families.gaussian._rounding import rounding_of_covariances


def with_floor(m: Mixture, variance: float) -> Mixture:
    """The same Gaussian mixture, fitted under Σ_k ⪰ variance·I.

    The M-step clips the eigenvalues of each updated Σ_k (for scales: σ²) at `variance`. This is the exact
    maximiser of Q under the constraint: with S_k = U diag(s) Uᵀ the unconstrained one, log det Σ + tr Σ⁻¹S_k is
    least at eigenvectors U (von Neumann's trace inequality), where it is Σ_d (log λ_d + s_d/λ_d), each term
    falling up to λ_d = s_d and rising after it. So F still never falls, from a start that obeys the floor.

    Where the floor binds, θ is a constrained maximum: `certify`'s C3 and `convergence_rate`, which ask for a
    vanishing gradient, do not apply to it.

    Args:
        m: EII, VII, VVI, EEE or VVV of `jaxem.families.gaussian`. In the other nine components share factors of Σ_k,
            and clipped eigenvalues would leave the model.
        variance: the least variance in any direction, in squared units of x, > 0.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> x = jnp.array([[0.0], [0.0], [4.0], [5.0]])
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[0.0], [4.5]]), "sigma": jnp.ones(2)}
    >>> bool(jaxem.em(gaussian.spherical, theta, x).status == jaxem.Status.NONFINITE)      # two equal rows: σ₁ → 0
    True
    >>> floored = jaxem.em(gaussian.with_floor(gaussian.spherical, 0.01), theta, x)
    >>> [round(float(sigma), 3) for sigma in floored.theta["sigma"]]
    [0.1, 0.5]
    """
    m = mixture_only("with_floor", m)
    if m.has_noise:
        raise ValueError("m: has noise already; put the floor first, with_noise(with_floor(m, variance))")
    scale = next((name for name in ("sigma", "Sigma") if name in m.parameters), None)
    if "loadings" in m.parameters:
        raise ValueError(f"m: {m!r} has a floor of its own; a floor is for gaussian.EII, VII, VVI, EEE and VVV")
    if "volume" in m.parameters:
        raise ValueError(
            f"m: {m!r} has factors that components share, and eigenvalues that are clipped one by one leave the model; "
            "a floor is for gaussian.EII, VII, VVI, EEE and VVV"
        )
    if scale is None:
        raise ValueError(f"m: has no sigma or Sigma among {list(m.parameters)}; a floor is for Gaussian families")
    given = raw("variance", variance)
    if not (is_concrete(given) and given.shape == () and 0 < float(given) < float("inf")):
        raise ValueError(f"variance: must be a finite number > 0, got {shown(variance)}; in squared units of x")
    variance = float(given)

    def floored(function: Callable[..., Theta]) -> Callable[..., Theta]:
        return Floored(function, scale, variance)

    ascent = m.extras.gradient_form
    m_step, rounding = m.update, m.numerics.rounding
    if scale == "Sigma":
        rounding = partial(rounding_of_covariances, inflation=inflation, scatter=None)
        m_step = partial(update, lifts=False) if m.update is update else m.update  # the floor lifts it
    return m.but(
        name=f"gaussian.with_floor({m.but(held=frozenset())!r}, {variance:g})",
        update=floored(m_step),
        guess=floored(m.guess),
        rounding=rounding,
        gradient_form=None if ascent is None else floored(ascent),
    )


def is_floored(m: Any) -> bool:
    """Does its M-step keep covariances above a floor, noise beside them or not?"""
    update = getattr(m, "update", None)
    beside = getattr(update, "args", ())  # of the update of `with_noise`: what has the Gaussians that it stands beside
    return isinstance(update, Floored) or any(is_floored(getattr(part, "m", None)) for part in beside)


@dataclass(frozen=True)
class Floored:
    """A function that returns θ, with the free scale of that θ clipped from below."""

    function: Callable[..., Theta]
    scale: str
    variance: float

    def __post_init__(self) -> None:
        settle(self)

    def __call__(self, *args: Any, **named: Any) -> Theta:
        theta = self.function(*args, **named)
        held = args[-1] if isinstance(args[-1], frozenset) else frozenset()
        if self.scale in held:
            return theta
        value = theta[self.scale]
        if self.scale == "sigma":
            return theta | {"sigma": jnp.maximum(value, jnp.sqrt(jnp.asarray(self.variance, value.dtype)))}
        values, vectors = in_small_batches(lambda S: tuple(jnp.linalg.eigh(S)), value, cubes=25)
        clipped = jnp.maximum(values, self.variance)
        bounded = jnp.einsum("...de,...e,...fe->...df", vectors, clipped, vectors)
        bounded = (bounded + jnp.swapaxes(bounded, -1, -2)) / 2
        binds = jnp.any(values < self.variance, axis=-1)[..., None, None]
        return theta | {"Sigma": jnp.where(binds, bounded, value)}  # untouched, to the bit, where it does not bind
