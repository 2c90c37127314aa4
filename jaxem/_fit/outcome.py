"""What to make of fits: the best of several, and an error that says what to do about one that did not converge."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem._core.tracing import is_concrete
from jaxem._fit.loop import Fit, Status

ADVICE = {
    Status.MAX_STEPS: "still rising: raise max_steps, or loosen tol",
    Status.DECREASED: "an M-step lowered F: it does not maximise Q; certify(m, theta, x).C3 shows by how much",
    Status.NONFINITE: "a component collapsed onto a point or a plane, or a parameter ran off, where F has no bound: "
    "put a floor under it (gaussian.with_floor; in a program a bound or a proper prior), hold its scale, start "
    "elsewhere (jaxem.inits), or use fewer components or columns",
}
FROM_THE_START = (
    "F was NaN or infinite before any step: −∞ says that some row is impossible at this θ, NaN or ∞ that the data, the "
    "weights or the temperature are none, or overflow; move θ, or scale x"
)


class EMError(RuntimeError):
    """Raised by `check` for a fit that did not converge."""


def best(fits: Any) -> Fit:
    """The lane of highest free energy among those that CONVERGED, else those at MAX_STEPS, else the others.

    A collapsed lane has no maximum to offer, however high its F was when it was stopped; `Status.counts(fits)` says how
    many ended how. A list of fits of one model is taken for its lanes, and a single fit is its own best.

    Args:
        fits: a `Fit` with lanes, as of `em_batch`, or a list of `Fit`s.

    Raises:
        ValueError: for what is neither, or fits of different models.

    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> starts = {"pi": jnp.ones((2, 1)), "mu": jnp.array([[[0.0]], [[5.0]]]), "sigma": jnp.ones(2)}
    >>> fits = jaxem.em_batch(gaussian.isotropic, starts, jnp.array([[0.0], [1.0]]), max_steps=0)
    >>> jaxem.best(fits).theta["mu"].tolist()
    [[0.0]]
    """
    if isinstance(fits, list | tuple) and not isinstance(fits, Fit) and all(isinstance(fit, Fit) for fit in fits):
        if len({(fit.ended is None, fit.ambiguous is None) for fit in fits}) > 1:  # what only some of them know
            fits = [fit._replace(ended=None, ambiguous=None) for fit in fits]
        if not fits or len({str(jax.tree.map(jnp.shape, fit)) for fit in fits}) > 1:
            raise ValueError(f"fits: must be fits of one model and one shape of θ, at least one, got {len(fits)}")
        fits = jax.tree.map(lambda *leaves: jnp.stack(leaves), *fits)
    if not isinstance(fits, Fit):
        raise ValueError(
            f"fits: must be a Fit with lanes, as of em_batch, or a list of Fits, got {type(fits).__name__}"
        )
    axes = jnp.ndim(fits.free_energy)
    lanes = jax.tree.map(lambda leaf: jnp.reshape(leaf, (-1, *jnp.shape(leaf)[axes:])), fits)
    end = jnp.where(lanes.status == Status.MAX_STEPS, 1, jnp.where(lanes.status == Status.CONVERGED, 0, 2))
    value = jnp.where(jnp.isnan(lanes.free_energy), -jnp.inf, lanes.free_energy)
    lane = jnp.lexsort((-value, end))[0]
    return jax.tree.map(lambda leaf: leaf[lane], lanes)


def check(fit: Fit) -> Fit:
    """Return the fit if every lane CONVERGED, else raise `EMError` naming lanes, status and remedy.

    Args:
        fit: what `em`, `kmeans` or another fit returned, with lanes or without; concrete, so outside of `jit`.

    >>> import jax.numpy as jnp, jaxem
    >>> fit = jaxem.kmeans(jnp.array([[0.0], [1.0], [9.0]]), jnp.array([[0.0], [1.0]]), max_steps=1)
    >>> jaxem.check(fit)
    Traceback (most recent call last):
    jaxem.EMError: MAX_STEPS: still rising: raise max_steps, or loosen tol
    """
    if not hasattr(fit, "status"):
        raise ValueError(f"fit: must be what em, kmeans or another fit returned, got {type(fit).__name__}; pass that")
    if not is_concrete(fit.status):
        raise ValueError("check: needs a concrete fit; call it outside jit and vmap")
    status = np.atleast_1d(np.asarray(fit.status))
    if (status == Status.CONVERGED).all():
        return fit
    from_the_start = (status == Status.NONFINITE) & ~np.isfinite(np.atleast_1d(fit.free_energy))
    lines = []
    for code, advice in (*ADVICE.items(), (Status.NONFINITE, FROM_THE_START)):
        lanes = np.argwhere((status == code) & (from_the_start == (advice == FROM_THE_START)))
        if lanes.size:
            where = ", ".join(str(lane.tolist() if lane.size > 1 else int(lane[0])) for lane in lanes[:10])
            where = f" in lane(s) {where}{', …' * (len(lanes) > 10)}" if np.ndim(fit.status) else ""
            lines.append(f"{code.name}{where}: {advice}")
    raise EMError("; ".join(lines))
