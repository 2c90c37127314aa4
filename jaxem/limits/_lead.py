"""T → 0 in every program with discrete latents: its posterior hardens at the lead of the best joint assignment.

Let ℓ(z) = log p(x, z | θ) over the assignments z of *all* of a program's discrete latents, F_T = T log Σ_z e^{ℓ(z)/T},
L = F_1, M the largest ℓ, attained at ẑ, Δ its lead over the second, P = e^{M − L} the posterior of ẑ. For 0 < T ≤ 1

    M ≤ F_T ≤ M + T log(1 + s_T),                                  s_T = (1/P − 1) e^{−Δ(1/T − 1)}
    P_T e^{−Δ/T} ≤ max over sites t of (1 − γ_{t ẑ_t}) ≤ s_T/(1 + s_T),      P_T = e^{(M − F_T)/T}

So the slope in 1/T is Δ, no more and no less: EM at T → 0 is hard EM, of a chain segmental k-means. The proof is in
docs/theorems_chains.md. Δ is M less the largest F_0 that is left when one latent may not have its value in ẑ.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxem._answers.posterior import offset_partition, refuse_impossible, weighted_marginals, with_first_steps
from jaxem._core.arrays import scalar, shown
from jaxem._core.checks import enter
from jaxem._core.model import Data, Model, Theta, ThetaLike
from jaxem._core.tracing import is_concrete
from jaxem._programs.program import Program, program_only
from jaxem._programs.read import is_number
from jaxem._rows.chunks import side_by_side
from jaxem.limits._bound import ROUNDING, Bound


class Lead(NamedTuple):
    """The most probable joint assignment of a program's discrete latents, and how far ahead it is."""

    assignment: dict[str, Array]  # ẑ, as `jaxem.decode` gives it
    value: Float[Array, ""]  # M = log p(x, ẑ | θ), nats
    lead: Float[Array, ""]  # Δ, nats: 0 at a tie, ∞ where nothing else is possible


class Freezing(NamedTuple):
    """F_T and the marginals at one T, against what M, Δ and L alone allow."""

    below: Bound  # M − F_T against 0
    above: Bound  # F_T − M against T log(1 + s_T)
    gap: Bound  # max_t (1 − γ_{t ẑ_t}) against s_T/(1 + s_T)
    slope: Bound  # P_T e^{−Δ/T} against max_t (1 − γ_{t ẑ_t})


def lead(m: Model, theta: ThetaLike, x: Any) -> Lead:
    """ẑ, M = log p(x, ẑ | θ) and Δ, its lead over the second best joint assignment, of any program.

    Exact, by as many maximisations as there are latent values, side by side: for a chain of N times O(N²K²).

    Args:
        m: from `jaxem.from_numpyro`, without weights of its sites (handlers.scale).
        theta: its parameters.
        x: the data.

    Raises:
        ValueError: for a mixture, whose rows have leads of their own (`limits.leads`), for a weighed program, and where
            x is impossible.

    >>> import jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> from numpyro.contrib.control_flow import scan
    >>> def chain(y):
    ...     def step(before, y):
    ...         z = numpyro.sample("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.1, 0.9]])[before]))
    ...         numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[z], 1.0), obs=y)
    ...         return z, None
    ...     scan(step, 0, y)
    >>> best = jaxem.limits.lead(jaxem.from_numpyro(chain), {}, jnp.array([-1.0, 0.1, -1.0, 2.0, 2.0]))
    >>> best.assignment["z"].tolist(), f"{best.lead:.3f}"                          # the second best is 0, 1, 1, 1, 1
    ([0, 0, 0, 1, 1], '1.800')
    """
    program = program_only("lead", m)
    theta, data = enter(program, theta, x, temperature=0.0)
    found = _lead(program, theta, data)
    refuse_impossible("lead", data, found.value)
    return found


@jax.jit
def _lead(m: Program, theta: Theta, data: Data) -> Lead:
    for term in m.terms(theta, data.x)[0]:
        if not (is_number(term.scale) and float(term.scale) == 1):
            raise ValueError(
                f"lead: the site {term.name!r} is weighed (handlers.scale, or a plate's subsample), so that F_T is not "
                "T log Σ e^{ℓ/T}; take the weight out"
            )
    partition, zeros, _ = offset_partition(m, theta, data)
    value, best = jax.value_and_grad(partition)(zeros)
    flat, unravel = ravel_pytree(zeros)
    count = sum(table.size // table.shape[-1] for table in jax.tree.leaves(zeros))  # one value for each latent
    (chosen,) = jnp.nonzero(ravel_pytree(best)[0] > 0.5, size=count)
    without = side_by_side(lambda index: partition(unravel(flat.at[index].set(-jnp.inf))), chosen, times=flat.size)
    assignment = {name: jnp.argmax(table, axis=-1) for name, table in with_first_steps(best).items()}
    return Lead(assignment, value, value - jnp.max(without))


def freezing(m: Model, theta: ThetaLike, x: Any, temperature: Any, *, best: Lead | None = None) -> Freezing:
    """T → 0 in a program: F_T and the marginals against what M, Δ and L allow, for 0 < T ≤ 1.

        M ≤ F_T ≤ M + T log(1 + s_T),   P_T e^{−Δ/T} ≤ max_t (1 − γ_{t ẑ_t}) ≤ s_T/(1 + s_T)

    s_T = (1/P − 1) e^{−Δ(1/T − 1)}, P = e^{M − L}, P_T = e^{(M − F_T)/T}. F is without the priors of θ. Each bound has
    64·eps·(1 + |L| + |M| + number of latents)/T for rounding, in nats or relative; T times that L − M has, of which 1/P
    is made.

    Args:
        m: from `jaxem.from_numpyro`, without weights of its sites.
        theta: its parameters.
        x: the data.
        temperature: T in (0, 1].
        best: ẑ, M and Δ where they are known, whoever found them; `limits.lead` when None.

    Raises:
        ValueError: for what `limits.lead` refuses, a T outside, and a `best` of other latents than the program's.

    >>> import jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> def program(x):
    ...     with numpyro.plate("rows", len(x)):
    ...         z = numpyro.sample("z", dist.Bernoulli(0.3))
    ...         numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)
    >>> found = jaxem.limits.freezing(jaxem.from_numpyro(program), {}, jnp.array([0.0, 1.5, 3.0]), 0.2)
    >>> [bool(check.holds) for check in found]
    [True, True, True, True]
    """
    program = program_only("freezing", m)
    best = lead(program, theta, x) if best is None else best
    theta, data = enter(program, theta, x, temperature=temperature)
    T = scalar("temperature", temperature, data.temperature.dtype, "use a T in (0, 1]")
    if is_concrete(T) and not 0 < float(np.asarray(T)) <= 1:
        raise ValueError(f"temperature: must be in (0, 1], got {shown(T)}; at T = 0 there is `jaxem.decode`")
    return _freezing(program, theta, data, best)


@jax.jit
def _freezing(m: Program, theta: Theta, data: Data, best: Lead) -> Freezing:
    T = jnp.where((data.temperature > 0) & (data.temperature <= 1), data.temperature, jnp.nan)
    tables, _, F = weighted_marginals(m, theta, data)
    partition, zeros, _ = offset_partition(m, theta, data._replace(temperature=jnp.ones_like(T)))
    L = partition(zeros)
    M = best.value.astype(F.dtype)
    tables = with_first_steps(tables)
    _same_latents(best.assignment, tables)
    gammas = [jnp.take_along_axis(tables[name], z[..., None], axis=-1) for name, z in best.assignment.items()]
    gap = jnp.max(jnp.concatenate([1 - gamma.ravel() for gamma in gammas]))
    count = sum(gamma.size for gamma in gammas)
    rounding = ROUNDING * jnp.finfo(F.dtype).eps * (1 + jnp.abs(L) + jnp.abs(M) + count) / T
    # log(1/P − 1) + Δ − Δ/T, in logarithms throughout: s may be e^|L|. Of L − M no more is known than L's rounding
    above = jnp.maximum(L - M, 0) + T * rounding
    log_odds = above + jnp.log(-jnp.expm1(-above))
    log_s = jnp.where(jnp.isposinf(best.lead) & (T < 1), -jnp.inf, log_odds - _times(best.lead, 1 / T - 1))
    at_least = jnp.exp(-(best.lead + (F - M)) / T)
    loose = ROUNDING * jnp.finfo(F.dtype).eps
    return Freezing(
        Bound(M - F, T * rounding),
        Bound(F - M, T * (jnp.logaddexp(0, log_s) * (1 + rounding) + rounding)),
        Bound(gap, jax.nn.sigmoid(log_s) * (1 + rounding) + loose),
        Bound(at_least, gap * (1 + rounding) + loose),
    )


def _same_latents(assignment: dict[str, Array], tables: dict[str, Array]) -> None:
    """A ValueError where ẑ is another program's, or of other data."""
    wanted = {name: table.shape[:-1] for name, table in tables.items()}
    got = {name: jnp.shape(z) for name, z in assignment.items()}
    if got != wanted:
        raise ValueError(
            f"best: its assignment must have a value for each latent, of shapes {wanted}, got {got}; take it from "
            "`limits.lead` of this program and these data, or leave it out"
        )


def _times(lead: Array, factor: Array) -> Array:
    """Δ(1/T − 1), with ∞·0 = 0."""
    return jnp.where(factor == 0, 0, lead * jnp.where(factor == 0, 1, factor))
