"""Are there K₁ components, or is what they gain over K₀ chance? The parametric bootstrap of the likelihood ratio.

    statistic = 2 (L(θ̂₁) − L(θ̂₀)), samples: the same of data drawn from θ̂₀, p = (1 + #{samples ≥ statistic}) / (1 + #)

At K₀ the extra components have no place in θ, so that no χ² law holds (McLachlan 1987).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxem import inits
from jaxem._answers.selection import grown
from jaxem._core import words
from jaxem._core.arrays import random_key, static_count, steps, tolerance
from jaxem._core.checks import enter
from jaxem._core.model import Data, Theta
from jaxem._core.tracing import compiled, is_concrete
from jaxem._fit import loop
from jaxem._fit.em import em_batch
from jaxem._fit.fit import fit, several
from jaxem._fit.lanes import slots_here
from jaxem._fit.loop import Fit, Status, gain_is_small
from jaxem._fit.outcome import EMError, best
from jaxem.families._mixture import Mixture, num_components, whole_rows_only


class LikelihoodRatioTest(NamedTuple):
    """The outcome of `likelihood_ratio_test`."""

    statistic: Float[Array, ""]  # 2 (L(θ̂₁) − L(θ̂₀)), nats twice
    p_value: Float[Array, ""]
    samples: Float[Array, " num_samples"]  # the statistic of data drawn from θ̂₀; NaN where a fit collapsed

    def __repr__(self) -> str:
        if not words.readable(self):
            return words.plain(self)
        samples = np.asarray(self.samples)
        good = samples[np.isfinite(samples)]
        failed = f", {samples.size - good.size} of which collapsed" if good.size < samples.size else ""
        text = f"LikelihoodRatioTest: statistic {words.number(self.statistic)}, p = {words.number(self.p_value)}"
        return (
            f"{text}, of {samples.size} samples{failed}; their 95 % quantile is {words.number(np.quantile(good, 0.95))}"
        )


def likelihood_ratio_test(
    m: Mixture,
    x: Any,
    key: Array,
    K0: int,
    K1: int,
    *,
    num_samples: int = 999,
    starts: int = 10,
    init: Any = "k-means++",
    tol: ArrayLike = 1e-8,
    max_steps: ArrayLike = 1000,
) -> LikelihoodRatioTest:
    """Test K₀ components against K₁ > K₀ by the parametric bootstrap of the likelihood ratio (McLachlan 1987).

    Both are fitted to x from several starts. Then each of `num_samples` data sets, as large as x and drawn from the fit
    of K₀, is fitted by both: K₀ from the θ that it was drawn from; K₁ from its own fit to x, and from that θ with more
    components at rows drawn by k-means++, the better of the two. All are lanes of one compiled program.

    Args:
        m: a mixture of `jaxem.families`, without a prior: the test is of maxima of the likelihood.
        x: the data, (N, D), or (N,) for D = 1.
        key: a key of `jax.random`; the same gives the same numbers.
        K0, K1: how many components, and how many more.
        num_samples: how many data sets; p is never below 1/(num_samples + 1).
        starts, init: of the two fits to x, as for `jaxem.fit`.
        tol, max_steps: of all fits, as for `jaxem.em`; more components than there are make slow fits, so tol is larger.

    Returns:
        A `LikelihoodRatioTest` of `statistic`, `p_value` and `samples`.

    Raises:
        ValueError: for K₁ ≤ K₀, K₁ > N, a prior, or what `jaxem.fit` refuses.
        EMError: when no start to x converged, or all fits to samples collapsed.

    >>> import jax, jaxem
    >>> from jaxem.families import gaussian
    >>> truth = {"pi": [0.5, 0.5], "mu": [[0.0], [9.0]], "sigma": 1.0}
    >>> x, _ = jaxem.sample(gaussian.isotropic, truth, jax.random.key(0), 60)
    >>> test = jaxem.likelihood_ratio_test(gaussian.isotropic, x, jax.random.key(1), 1, 2, num_samples=19)
    >>> float(test.p_value) == 1 / 20, bool(test.statistic > 50), test.samples.shape
    (True, True, (19,))
    """
    m = whole_rows_only("likelihood_ratio_test", m)
    if m.extras.prior is not None:
        raise ValueError("m: has a prior, and the test is of maxima of the likelihood; pass the model without it")
    of_x, of_starts, of_samples = jax.random.split(random_key(key), 3)
    for name, value in (("K0", K0), ("K1", K1), ("num_samples", num_samples), ("starts", starts)):
        static_count(name, value, 1)
    K0, K1 = int(K0), int(K1)
    if K1 <= K0:
        raise ValueError(f"K1: must be above K0, got {K1} and {K0}; K0 is the hypothesis of fewer components")
    null = ended("K0", fit(m, x, of_x, K0, starts=1 if K0 == 1 else starts, init=init, tol=tol, max_steps=max_steps))
    theta0, data = enter(m, null.theta, x)
    if not is_concrete(data.x):
        raise ValueError("x: is traced, and fits to it must be seen to converge; call the test outside of jit")
    thetas = several(m, x, of_x, K1, int(starts), init, None)
    one_more = nested(m, of_starts, data.x, theta0, K1)
    thetas = jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), dict(thetas), one_more)
    other = ended("K1", best(em_batch(m, thetas, x, tol=tol, max_steps=max_steps)))
    theta1, _ = enter(m, other.theta, x)
    limits = tolerance(tol, data.temperature.dtype), steps("max_steps", max_steps)
    keys = jax.random.split(of_samples, int(num_samples))
    samples = _samples(m, theta0, theta1, data, keys, *limits, slots=slots_here(data.x))
    statistic = 2 * (other.free_energy - null.free_energy)
    good = jnp.sum(jnp.isfinite(samples))
    if not int(good):
        raise EMError(
            f"likelihood_ratio_test: every fit to the {num_samples} samples collapsed; use gaussian.with_floor"
        )
    return LikelihoodRatioTest(statistic, (1 + jnp.sum(samples >= statistic)) / (1 + good), samples)


def ended(name: str, one: Fit) -> Fit:
    """A fit that converged."""
    if int(one.status) != Status.CONVERGED:
        how = Status(int(one.status)).name
        raise EMError(f"likelihood_ratio_test: no start with {name} components converged, the best is {how}; raise "
                      "starts or max_steps, or use gaussian.with_floor")  # fmt: skip
    return one


@partial(compiled, static_argnames="slots")
def _samples(
    m: Mixture, theta0: Theta, theta1: Theta, data: Data, keys: Array, tol: Array, max_steps: Array, slots: int
) -> Array:
    """The statistic of each sample, NaN where a fit of it collapsed."""
    K1, N = num_components(m, theta1), data.x.shape[0]

    def sample(key: Array) -> Array:
        of_rows, of_start = jax.random.split(key)
        x = m.sample(theta0, of_rows, N)[0].astype(data.x.dtype)
        starts = (grown(m, theta0, K1), theta1, nested(m, of_start, x, theta0, K1))
        starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
        fits = lax.map(lambda theta: loop.run(m, theta, data._replace(x=x), tol, max_steps, gain_is_small), starts)
        counts = (fits.status == Status.CONVERGED) | (fits.status == Status.MAX_STEPS)  # all but at rest counts
        F = jnp.where(counts, fits.free_energy, jnp.nan)
        return 2 * (jnp.fmax(F[1], F[2]) - F[0])

    return lax.map(sample, keys, batch_size=slots if slots > 1 else None)


def nested(m: Mixture, key: Array, x: Array, theta: Theta, K1: int) -> Theta:
    """θ's components and others, drawn by k-means++, with a share 1/K₁ each: where to look for a higher maximum."""
    pi, K0 = theta["pi"], num_components(m, theta)
    categories = {theta[name].shape[-1] for name, spec in m.shapes if spec.endswith("C")}
    drawn = inits.kmeans_plus_plus(m, key, x, K1, num_categories=categories.pop() if categories else None)
    new = {
        name: drawn[name].at[:K0].set(theta[name]) if spec.startswith("K") else theta[name]
        for name, spec in m.shapes
        if name != "pi"
    }
    share = jnp.full(K1 - K0, 1 / K1, pi.dtype)
    return new | {"pi": jnp.concatenate([pi[:K0] * K0 / K1, share, pi[K0:] * K0 / K1])}
