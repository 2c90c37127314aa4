"""When to stop, asked in nats below the maximum and not in nats a step: Newton's decrement, while a fit runs.

    F* − F ≈ ½ gᵀ I⁻¹ g,    g = ∇F,   I = −∇²F,   at θ, in unconstrained coordinates                   (eq:left)

(C27) is the rise of the quadratic that F looks like at θ, up to its top at u + I⁻¹g. It is an estimate; so F is asked
there: where it does not rise as the quadratic does, or I is singular or not positive definite (a saddle, equal
components, centres about to part), there is none, and the ordinary tolerance decides.

A look costs some E-steps for each free parameter, so there are few: the first when the gain of a step is down to what
may be left, and one that finds more left than that says when the next is worth it. Near the end both fall alike: the
gain has to fall as far as what is left has.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxem._core.arrays import shown, tolerance
from jaxem._core.model import Data, Model, Theta
from jaxem._core.newton import columns, scales
from jaxem.families.gaussian._floor import is_floored

MOST = 1024  # free parameters: I is a matrix
AGREES = 0.1  # of the decrement: how far F's own rise may be from it; at a pitchfork, a quartic, it is off by 0.2
LATER, SOON = 0.5, 0.9  # how far the gain falls between two looks: where the first found nothing, and at least


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NatsLeft:
    """See `nats_left`; a pytree, so that the value may be traced."""

    nats: Any
    tol: Any

    def __repr__(self) -> str:
        return f"jaxem.nats_left({shown(self.nats)}, tol={shown(self.tol)})"


def nats_left(nats: Any, *, tol: Any = 1e-10) -> NatsLeft:
    """Where a fit may stop: at about so many nats below the maximum. For `tol` of `em`, `em_batch`, `fit`, `select`.

        F* − F ≈ ½ ∇Fᵀ I⁻¹ ∇F ≤ nats,    I = −∇²F                                                      (eq:left)

    A gain per step says little of it: where EM is slow, thousands of steps that each gain next to nothing may be left.
    Nats are the unit that statistics asks for: at T = 1, √(2·nats) is how many standard errors θ, or any function of
    it, is from the maximum's at most; at 0.005, a tenth of one.

    It is an estimate and no bound (C27): right to 0.1 % with 1e-4 left, where Aitken's, from the gains alone, may be
    half of the truth; with a nat or more left it may be off by any factor. A fit ends on it only where I is positive
    definite and F at the end of Newton's step has risen as estimated, to a tenth. Where that is not so (saddles, equal
    components, parameters on a bound), and at T = 0, a fit ends by `tol`, as always; and in every case when a gain is
    rounding. The nearest maximum is meant, not the highest.

    It costs a few passes for each free parameter every time it is looked at, which is about two or three times in a
    fit: worth it where EM is slow. Near the end each of the steps between two looks is an ordinary one.

    Args:
        nats: the most that may be left, ≥ 0, of all rows together: not per unit of weight, as `tol` is.
        tol: smallest gain worth a step where there is no estimate, in nats per unit of weight.

    Raises:
        ValueError: for values that are negative, NaN or no numbers; by `em`, for a model with more than 1,024 free
            parameters, or with a floor, at which the maximum is no zero of the gradient.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> truth = {"pi": [0.5, 0.5], "mu": [[0.0], [1.5]], "sigma": 1.0}              # much overlap: EM is slow
    >>> x, _ = jaxem.sample(gaussian.isotropic, truth, jax.random.key(0), 300)
    >>> end = jaxem.em(gaussian.isotropic, truth, x, max_steps=5000)
    >>> fit = jaxem.em(gaussian.isotropic, truth, x, tol=jaxem.nats_left(0.005))
    >>> bool(end.free_energy - fit.free_energy < 0.006), jaxem.Status.counts(fit)
    (True, {'CONVERGED': 1})
    """
    return NatsLeft(nats, tol)


def stopping(m: Model, theta: Theta, data: Data, tol: Any, *, batched: bool) -> Any:
    """`tol` as the loop takes it, checked: a number, or a `NatsLeft` of numbers."""
    dtype = data.temperature.dtype
    if tol is nats_left:
        raise ValueError("tol: got the function itself; say how many nats, jaxem.nats_left(0.01)")
    if not isinstance(tol, NatsLeft):
        return tolerance(tol, dtype)
    nats = tolerance(tol.nats, dtype, "nats, of tol=jaxem.nats_left")
    if is_floored(m):
        raise ValueError(
            f"tol: jaxem.nats_left does not know the floor of {m!r}, at which ∇F is not 0; give tol a number, or "
            "leave out the floor (gaussian.with_prior keeps components from collapsing, too)"
        )
    one = jax.tree.map(lambda leaf: leaf[0], theta) if batched else theta
    free = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: m.coordinates(one, data).unconstrain(one))))
    if free > MOST:
        raise ValueError(
            f"tol: jaxem.nats_left makes a matrix of the curvature in every free parameter; this fit has {free}, and "
            f"at most {MOST} are taken; hold some, or give tol a number"
        )
    ordinary = tolerance(tol.tol, dtype)
    return NatsLeft(nats, ordinary) if free else ordinary


def refuse(what: str, tol: Any, why: str) -> None:
    """A ValueError where a fit does not stop by it."""
    if tol is nats_left or isinstance(tol, NatsLeft):
        raise ValueError(f"tol: {what} takes a number: {why}; got {shown(tol)}")


class Watch(NamedTuple):
    """What a fit remembers of its looks."""

    next: Float[Array, ""]  # the gain at which another is worth it; ∞: at the first that is as small as `nats`
    blind: Bool[Array, ""]  # did the last find no estimate?

    @classmethod
    def new(cls, tol: Any, gain: Array) -> "Watch | None":
        """At the start; None where a fit stops by its gains."""
        if not isinstance(tol, NatsLeft):
            return None
        return cls(jnp.full_like(gain, jnp.inf), jnp.zeros((), bool))

    def renewed(self) -> "Watch":
        """At another start."""
        return Watch(jnp.full_like(self.next, jnp.inf), jnp.zeros_like(self.blind))

    def tolerance(self, tol: NatsLeft) -> Array:
        """Of a gain: the ordinary one where there is no estimate, else rounding."""
        return jnp.where(self.blind, tol.tol, 0)


class Look(NamedTuple):
    """Is it few enough, and the watch after a step."""

    few: Bool[Array, ""]
    watch: Watch


def look(
    m: Model, watch: Watch, theta: Theta, data: Data, gain: Array, rounding: Array, can: Array, tol: NatsLeft, size: Any
) -> Look:
    """After a step to θ that gained so much: look where it is time, if one `can`."""
    first = jnp.maximum(tol.nats, tol.tol * size)
    gain = jnp.abs(gain)
    due = can & (gain <= jnp.minimum(first, watch.next)) & (data.temperature > 0)
    left = when(due, lambda: decrement(m, theta, data, rounding), jnp.full_like(gain, jnp.nan))
    share = jnp.where(left > 0, tol.nats / left, jnp.nan)
    later = gain * jnp.where(jnp.isnan(share), LATER, jnp.minimum(share, SOON))
    again = jnp.where(gain > first, jnp.inf, watch.next)
    after = Watch(jnp.where(due, later, again), jnp.where(due, jnp.isnan(left), watch.blind))
    return Look(due & (left <= tol.nats), after)


def when(due: Bool[Array, ""], value: Any, otherwise: Array) -> Array:
    """`value()` where due: a loop of one turn or none, as `vmap` would make a `cond` take both of its branches."""
    once = (due, otherwise)
    return lax.while_loop(lambda state: state[0], lambda state: (jnp.zeros_like(state[0]), value()), once)[1]


@jax.default_matmul_precision("highest")
def decrement(m: Model, theta: Theta, data: Data, rounding: Float[Array, ""]) -> Float[Array, ""]:
    """½ gᵀ I⁻¹ g at θ (eq:left), nats; NaN where that is no estimate of what is left. F is known up to `rounding`."""
    coordinates = m.coordinates(theta, data)
    u, unravel = ravel_pytree(coordinates.unconstrain(theta))

    def free_energy(u: Array) -> Array:
        return m.expect(coordinates.constrain(unravel(u)), data).free_energy

    here, g = jax.value_and_grad(free_energy)(u)
    information = -columns(free_energy, u)
    d = scales(information)  # I in units of its diagonal, whatever those of x
    scaled = (information + information.T) / 2 * jnp.outer(d, d)
    finite = jnp.all(jnp.isfinite(scaled)) & jnp.all(jnp.isfinite(g))
    values, axes = jnp.linalg.eigh(jnp.where(finite, scaled, 0))
    regular = finite & (values[0] > max(float(jnp.finfo(u.dtype).eps) ** 0.5, 1e-6))
    along, values = axes.T @ (d * g), jnp.where(regular, values, 1)
    left = jnp.sum(along**2 / values) / 2  # eq:left
    rise = free_energy(u + d * (axes @ (along / values))) - here
    agrees = jnp.abs(rise - left) <= AGREES * left + 2 * rounding
    return jnp.where(regular & agrees, left, jnp.nan).astype(rounding.dtype)
