"""Is a fixed point still the best of its K? What Lindsay's gradient proposes in its place.

Where several fixed points are stable, the best of them changes from one to another as σ falls: a jump of the best,
which a branch that is followed does not see. D(a), the slope of L towards a component of mean a (C19), does: while
D ≤ 0 everywhere no mixture at all is better, and where sup D > 0 its maximiser a is where a component is missing. So
each centre in turn is put there,

    μ_k ← a = argmax D,     then EM to its fixed point,      k = 1 … K,

and the best end, where it is above the branch, is the rival. a is found by ascent from rows: where D = −W + Σ u_n,
u_n = w_n f(x_n|a)/p(x_n|θ), the mean Σ u_n x_n / Σ u_n is no lower (it is EM's own step in a mean).
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxem._core.model import Data, Theta
from jaxem._core.objective import assign
from jaxem.families.gaussian import isotropic, squared_distances
from jaxem.limits._fixed_point import fixed_point, likelihood

CLIMBERS = 64  # rows, the highest in D, from which means climb
CLIMB = 100  # steps of a climb


def rival(theta: Theta, data: Data, mu: Array, tol: Array, max_steps: Array) -> Float[Array, ""]:
    """Nats by which the best of those K ends is above L(μ); 0 where none is, to rounding."""
    here = theta | {"mu": mu}
    proposed = summit(here, data)
    K = mu.shape[0]

    def end(k: Array) -> Array:
        moved = jnp.where((jnp.arange(K) == k)[:, None], proposed[None], mu)
        found, _, _ = fixed_point(here, data, moved, tol, max_steps)
        return likelihood(here, data, found)

    here_now = likelihood(here, data, mu)
    above = jnp.max(lax.map(end, jnp.arange(K))) - here_now
    rounding = 64 * jnp.finfo(above.dtype).eps * (jnp.abs(here_now) + data.x.shape[0])
    return jnp.where(above > rounding, above, jnp.where(jnp.isnan(above), jnp.nan, 0))


def summit(theta: Theta, data: Data) -> Float[Array, " D"]:
    """The a of the highest D that ascents from rows find."""
    x = data.x
    w = jnp.ones_like(x[:, 0]) if data.weights is None else data.weights
    _, log_p = assign(isotropic.table(theta, x), 1.0, axis=0)
    counts = w > 0
    base = jnp.where(counts, jnp.log(jnp.where(counts, w, 1)) - jnp.where(counts, log_p, 0), -jnp.inf)

    def exponents(at: Array) -> Array:
        return base[None] - squared_distances(x, at) / (2 * theta["sigma"] ** 2)

    # all rows as starts, a chunk at a time; D's order is that of log Σ u
    heights = lax.map(lambda row: jax.nn.logsumexp(exponents(row[None])[0]), x, batch_size=CLIMBERS)
    _, best = lax.top_k(heights, min(CLIMBERS, x.shape[0]))
    ends = lax.fori_loop(0, CLIMB, lambda _, at: jax.nn.softmax(exponents(at), axis=1) @ x, x[best])
    return ends[jnp.argmax(jax.nn.logsumexp(exponents(ends), axis=1))]
