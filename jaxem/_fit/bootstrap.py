"""The bootstrap: how θ would vary over other samples, by fitting many, each a lane that starts at θ.

    nonparametric   w_n = how often row n is among N drawn with replacement          (Efron 1979)
    weighted        w = N·Dirichlet(1, …, 1)                                          (Rubin 1981)
    parametric      N rows drawn from the model at θ

The first two weigh the rows at hand and copy none. A fit's components come in any order; they are put into θ's by the
assignments of the rows at hand: the permutation of least

    Σ_n ‖γ_n(θ) − γ_n(θ_lane)‖² ,                                                        (eq:align)

which knows no units. Where exchanging two components would less than double what they add to it, the lane is about as
near to another order as to this one, and `ambiguous`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxem._core.arrays import one_of, random_key, static_count, steps, tolerance
from jaxem._core.checks import blame_x, enter
from jaxem._core.model import Data, Model, Theta, ThetaLike, rows_of
from jaxem._core.objective import assign
from jaxem._core.tracing import compiled, is_concrete
from jaxem._fit.em import remembered
from jaxem._fit.lanes import slots_here
from jaxem._fit.loop import Fit, gain_is_small, run
from jaxem.families._missing import beside, halves
from jaxem.families._mixture import Mixture, num_components

KINDS = ("nonparametric", "weighted", "parametric")
FAR = 0.02  # nats that a step may gain at a fixed point


def bootstrap(
    m: Model,
    theta: ThetaLike,
    x: Any,
    key: Array,
    num_samples: int,
    *,
    kind: str = "nonparametric",
    tol: ArrayLike = 1e-10,
    max_steps: ArrayLike = 1000,
) -> Fit:
    """Fits of `num_samples` other data sets, as lanes from `theta`, their components in its order (eq:align).

    The spread of a parameter over lanes is its standard error, its percentiles an interval:
    `jnp.std(fits.theta["mu"], axis=0)`, `jnp.percentile(fits.theta["mu"], jnp.array([2.5, 97.5]), axis=0)`. Leave
    out lanes that did not converge, `fits.status != 0`, and look at those where the components' names are not clear,
    `fits.ambiguous`: if they are many, a parameter of *a* component has no error, only the mixture's density has one.

    Costs `num_samples` fits, in the memory of one (of as many as an accelerator runs at a time). A program's lanes need
    its plate of rows; they start at θ too, and keep its names, for which no permutation is tried.

    Args:
        m: the model, possibly with parameters held.
        theta: a fixed point of EM on x: `em(m, theta, x).theta`.
        x: the data that were fitted.
        key: a key of `jax.random`.
        num_samples: how many data sets; 999 for intervals.
        kind: "nonparametric" draws rows with replacement; "weighted" gives each a random weight, so that no row and no
            rare component is ever lost; "parametric" draws from the model at θ, a mixture.
        tol, max_steps: as for `em`.

    Returns:
        A `Fit` with lanes; `ambiguous` (num_samples,) tells where the components' order is not clear.

    Raises:
        ValueError: for what `em` refuses, an unknown kind, a θ that is no fixed point (it says what a step would gain),
            a program without a plate of rows, and inside of `jit`.

    >>> import jax, jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> truth = {"pi": [0.5, 0.5], "mu": [[0.0], [9.0]], "sigma": 1.0}
    >>> x, _ = jaxem.sample(gaussian.isotropic, truth, jax.random.key(0), 100)
    >>> theta = jaxem.em(gaussian.isotropic, truth, x).theta
    >>> fits = jaxem.bootstrap(gaussian.isotropic, theta, x, jax.random.key(1), 200)
    >>> errors = jnp.std(fits.theta["mu"], axis=0)[:, 0]                        # about 1/√50
    >>> bool(jnp.all(abs(errors - 0.14) < 0.04)), int(jnp.sum(fits.ambiguous))
    (True, 0)
    """
    one_of("kind", kind, KINDS)
    static_count("num_samples", num_samples, 1)
    given, key = theta, random_key(key)
    theta, data = enter(m, theta, x)
    if kind == "parametric" and not isinstance(m, Mixture):
        raise ValueError('kind: "parametric" draws from mixtures; a program has "nonparametric" and "weighted"')
    if not is_concrete(theta, data, key):
        raise ValueError("bootstrap: finds the order of components outside of jit and vmap; call it there")
    data = m.rows.divided(f'kind: "{kind}"', data)
    smallest, most = tolerance(tol, data.temperature.dtype), steps("max_steps", max_steps)
    _at_rest(m, theta, data)
    keys = jax.random.split(key, int(num_samples))
    slots = slots_here(data.x)
    fits, shared = _lanes(m, theta, data, keys, smallest, most, kind, None if slots == 1 else slots)
    blame_x(data.x, fits.free_energy)
    if isinstance(m, Mixture):
        fits = _aligned(m, theta, fits, shared)
    return remembered(fits, x, given)


class Shared(NamedTuple):
    """Sums over the rows at hand of products of assignments, θ's and a lane's."""

    overlap: Array  # (K, K) Σ_n γ_nj(θ) γ_nk(θ_lane)
    own: Array  # (K,) Σ_n γ_nk(θ)²
    others: Array  # (K,) Σ_n γ_nk(θ_lane)²


def _at_rest(m: Model, theta: Theta, data: Data) -> None:
    """A ValueError for a θ from which EM would move."""
    dtype = data.temperature.dtype
    fit = run(m, theta, data, np.zeros((), dtype), np.ones((), np.int32), gain_is_small)
    gain = float(fit.gain)
    if gain > max(FAR, float(fit.rounding)) or not np.isfinite(fit.free_energy):
        blame_x(data.x, fit.free_energy)
        raise ValueError(
            f"theta: is no fixed point of EM on these data, a step gains {gain:.2g} nats; pass "
            "jaxem.em(m, theta, x).theta"
        )


@partial(compiled, static_argnames=("kind", "slots"))
def _lanes(
    m: Model, theta: Theta, data: Data, keys: Array, tol: Array, max_steps: Array, kind: str, slots: int | None
) -> tuple[Fit, Shared]:
    """Every lane's fit, and what it shares with θ."""
    dtype = data.temperature.dtype
    N = rows_of(data.x)[0].shape[0]
    gamma = assignments(m, theta, data)

    def lane(key: Array) -> tuple[Fit, Shared]:
        if kind == "parametric":
            assert isinstance(m, Mixture)
            other = data._replace(x=as_rows(m, m.sample(theta, key, N)[0], data.x))
        elif kind == "weighted":
            w = jax.random.exponential(key, (N,), dtype)
            other = data._replace(weights=w * (N / jnp.sum(w)))
        else:
            drawn = jax.random.randint(key, (N,), 0, N)
            counts = jnp.zeros(N, dtype).at[drawn].add(1)
            other = data._replace(weights=counts if data.weights is None else jnp.where(data.weights > 0, counts, 0))
        fit = run(m, theta, other, tol, max_steps, gain_is_small)
        there = assignments(m, fit.theta, data)
        overlap = jnp.matmul(gamma, there.T, precision="highest")
        return fit, Shared(overlap, jnp.sum(gamma**2, axis=1), jnp.sum(there**2, axis=1))

    return lax.map(lane, keys, batch_size=slots)


def as_rows(m: Mixture, drawn: Array, x: Array) -> Array:
    """Rows that were drawn, in the form of those at hand: the same cells are missing."""
    drawn = drawn.astype(x.dtype)
    if m.takes_whole_rows:
        return drawn.reshape(x.shape)
    return beside(drawn, ~halves(x)[1])


def assignments(m: Model, theta: Theta, data: Data) -> Array:
    """γ (K, N); of a program, whose components may be anything, nothing."""
    if not isinstance(m, Mixture):
        return jnp.zeros((1, 0), data.temperature.dtype)
    return assign(m.relative_table(theta, data.x), 1.0, axis=0)[0]


def _aligned(m: Mixture, theta: Theta, fits: Fit, shared: Shared) -> Fit:
    """Every lane's components in θ's order; noise is noise in each, and held entries that differ say which is which."""
    named = [np.asarray(theta[name]) for name, spec in m.shapes if spec.startswith("K") and name in m.held]
    if any((entry != entry[:1]).any() for entry in named):
        return fits._replace(ambiguous=jnp.zeros(len(fits.status), bool))
    K = num_components(m, theta)
    shared = Shared(shared.overlap[:, :K, :K], shared.own[:, :K], shared.others[:, :K])
    found = [in_order(Shared(*lane)) for lane in zip(*map(np.nan_to_num, map(np.asarray, shared)), strict=True)]
    order, lanes = jnp.asarray(np.stack([order for order, _ in found])), jnp.arange(len(found))[:, None]
    ordered = {
        name: fits.theta[name].at[:, :K].set(fits.theta[name][lanes, order])
        for name, spec in m.shapes
        if spec.startswith("K")
    }
    return fits._replace(theta=fits.theta | ordered, ambiguous=jnp.asarray([unclear for _, unclear in found]))


def in_order(lane: Shared) -> tuple[np.ndarray, bool]:
    """(the lane's component for each of θ's, by eq:align; is another order about as near?)."""
    from scipy.optimize import linear_sum_assignment  # SciPy comes with JAX

    order = linear_sum_assignment(-lane.overlap)[1]  # all else in eq:align is the same in every order
    overlap = lane.overlap[:, order]
    agreed = np.diagonal(overlap)
    distance = lane.own + lane.others[order] - 2 * agreed  # of each component
    added = 2 * (agreed[:, None] + agreed[None] - overlap - overlap.T)  # by exchanging j and k
    pairs = ~np.eye(len(order), dtype=bool)
    return order, bool(np.any(pairs & (added <= distance[:, None] + distance[None])))
