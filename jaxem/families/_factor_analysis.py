"""Factor analysis of one covariance S: Σ = ΛΛᵀ + Ψ, Ψ = diag ψ, of most Gaussian likelihood, rows not being asked.

    f = log det Σ + tr Σ⁻¹S  is least,  −2/N times that likelihood

Given Ψ the best Λ is closed (Lawley 1940; Jöreskog 1967). With Ψ^{−½} S Ψ^{−½} = U diag(λ) Uᵀ, λ falling, and the
*lead* those of the first Q with λ_j > 1, the others being the *tail*,

    Λ = Ψ^{½} U_lead (λ_lead − 1)^{½},    f(ψ) = Σ log ψ_d + Σ_lead (log λ_j + 1) + Σ_tail λ_j

In log ψ its derivatives are closed too, by those of eigenvectors; u_dj of U, c_ij = (λ_i + λ_j)(1 − λ_i)/(λ_j − λ_i),

    g_d  = Σ_tail (1 − λ_j) u_dj²                                                                        (profile)
    H_de = (Σ_tail u_di u_ei)(Σ_tail λ_i u_di u_ei) + Σ_{i in tail, j in lead} c_ij u_di u_ei u_dj u_ej

so that Newton's method ends in some ten turns where EM takes hundreds of passes. It is safeguarded: |H| in the place of
H, no step that raises f, and ψ not below a floor. S comes as a correlation matrix, so that one floor serves all units.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxem.families.gaussian._accuracy import EXACT
from jaxem.families.gaussian._moments import LAPACK_ALONE

MOST = 100  # turns
LONGEST = 2.0  # a step, in log ψ
LEAST = 1e-6  # of a step: where even that part of it raises f, f is at rest to rounding


class Value(NamedTuple):
    """f and its derivatives in log ψ."""

    f: Float[Array, ""]
    g: Float[Array, " D"]
    H: Float[Array, "D D"]


class Search(NamedTuple):
    """How far Newton's method is."""

    at: Float[Array, " D"]  # log ψ
    value: Value
    part: Float[Array, ""]  # of the next step
    done: Bool[Array, ""]
    turns: Int[Array, ""]


def floor(dtype: jnp.dtype) -> float:
    """The least ψ, of the variance: one that f asks to be 0 (a Heywood case) costs about that in nats a row.

    λ goes up to its inverse, so that f is rounded by eps/floor, which is less than the floor: f tells ψ there.
    """
    return float(jnp.finfo(dtype).eps) ** 0.4


def by_component(f: Callable[..., Array], *of_components: Array) -> Array:
    """f of each component, few enough at a time for LAPACK to do them where asked (`in_small_batches`)."""
    K, D = of_components[0].shape[:2]
    at_a_time = max(1, LAPACK_ALONE // (25 * D**3))
    if at_a_time >= K:
        return jax.vmap(f)(*of_components)
    return lax.map(lambda arguments: f(*arguments), of_components, batch_size=at_a_time)


def parts(S: Float[Array, "D D"], log_psi: Float[Array, " D"], Q: int) -> tuple[Array, Array, Bool[Array, " D"]]:
    """λ (D,), rising, U (D, D), and which are the lead: of the last Q."""
    scale = jnp.exp(-log_psi / 2)
    eigenvalues, U = jnp.linalg.eigh(S * scale[:, None] * scale[None])
    D = S.shape[0]
    return eigenvalues, U, (jnp.arange(D) >= D - Q) & (eigenvalues > 1)


def best_loadings(S: Float[Array, "D D"], log_psi: Float[Array, " D"], Q: int) -> Float[Array, "D Q"]:
    """Λ given ψ, canonical: ΛᵀΨ⁻¹Λ is diagonal and falls, and of each column the largest entry is positive."""
    eigenvalues, U, lead = parts(S, log_psi, Q)
    length = jnp.where(lead, jnp.sqrt(jnp.where(lead, eigenvalues - 1, 1)), 0)
    columns = (jnp.exp(log_psi / 2)[:, None] * U * length[None])[:, ::-1][:, :Q]
    largest = jnp.take_along_axis(columns, jnp.argmax(jnp.abs(columns), axis=0)[None], axis=0)
    return columns * jnp.where(largest < 0, -1, 1)


def slope(S: Float[Array, "D D"], log_psi: Float[Array, " D"], Q: int) -> Float[Array, " D"]:
    """g of (profile)."""
    eigenvalues, U, lead = parts(S, log_psi, Q)
    return jnp.sum(U**2 * jnp.where(lead, 0, 1 - eigenvalues)[None], axis=1)


def profile(S: Float[Array, "D D"], log_psi: Float[Array, " D"], Q: int) -> Value:
    """f at the best Λ, (profile)."""
    eigenvalues, U, lead = parts(S, log_psi, Q)
    f = jnp.sum(log_psi) + jnp.sum(jnp.where(lead, jnp.log(jnp.where(lead, eigenvalues, 1)) + 1, eigenvalues))
    g = jnp.sum(U**2 * jnp.where(lead, 0, 1 - eigenvalues)[None], axis=1)

    def between(weights: Float[Array, " D"]) -> Float[Array, "D D"]:
        return jnp.matmul(U * weights[None], U.T, precision=EXACT)

    tail = jnp.where(lead, 0, jnp.ones_like(eigenvalues))
    H = between(tail) * between(tail * eigenvalues)
    for j in range(max(0, len(S) - Q), len(S)):
        apart = jnp.maximum(eigenvalues[j] - eigenvalues, jnp.finfo(S.dtype).eps * jnp.abs(eigenvalues[j]))
        c = (eigenvalues + eigenvalues[j]) * (1 - eigenvalues) / jnp.where(lead, 1, apart)
        H = H + jnp.where(lead[j], between(tail * c) * U[:, j][:, None] * U[:, j][None], 0)
    return Value(f, g, H)


def given_loadings(S: Float[Array, "D D"], log_psi: Float[Array, " D"], loadings: Float[Array, "D Q"]) -> Value:
    """f at a Λ that is held: with P = Σ⁻¹,  g = ψ diag(P − PSP),  H_de = δ_de g_d + ψ_d ψ_e P_de (2 PSP − P)_de."""
    psi = jnp.exp(log_psi)
    Sigma = jnp.matmul(loadings, loadings.T, precision=EXACT) + jnp.diag(psi)
    factor = jnp.linalg.cholesky(Sigma)
    white = lax.linalg.triangular_solve(factor, jnp.eye(len(S), dtype=S.dtype), left_side=True, lower=True)
    P = jnp.matmul(white.T, white, precision=EXACT)
    PSP = jnp.matmul(P, jnp.matmul(S, P, precision=EXACT), precision=EXACT)
    f = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + jnp.sum(P * S)
    g = psi * jnp.diagonal(P - PSP)
    return Value(f, g, jnp.diag(g) + psi[:, None] * psi[None] * P * (2 * PSP - P))


def pull(g: Float[Array, " D"], log_psi: Float[Array, " D"], low: Float[Array, " D"]) -> Float[Array, ""]:
    """The largest entry of g, but for those whose ψ is held up by its floor."""
    return jnp.max(jnp.where((log_psi <= low) & (g > 0), 0, jnp.abs(g)))


def newton(value: Value, log_psi: Float[Array, " D"], low: Float[Array, " D"]) -> Float[Array, "D D"]:
    """|H|⁻¹ among the log ψ that are free to move, those not held up by their floor."""
    free = ~((log_psi <= low) & (value.g > 0))
    both = free[:, None] & free[None]
    H = jnp.where(both, value.H, jnp.eye(len(free), dtype=value.H.dtype))
    curvatures, V = jnp.linalg.eigh(H)
    curvatures = jnp.maximum(jnp.abs(curvatures), float(jnp.finfo(H.dtype).eps) ** 0.5)
    return jnp.where(both, jnp.matmul(V / curvatures[None], V.T, precision=EXACT), 0)


def minimum(
    valued: Callable[[Array], Value], start: Float[Array, " D"], low: Float[Array, " D"]
) -> tuple[Float[Array, " D"], Float[Array, "D D"]]:
    """log ψ ≥ low where f is least, never above f(start) but for rounding; and |H|⁻¹ there."""
    eps = float(jnp.finfo(start.dtype).eps)

    def turn(search: Search) -> Search:
        at, value = search.at, search.value
        step = -jnp.sum(newton(value, at, low) * value.g[None], axis=1)
        step = step * jnp.minimum(1, LONGEST / jnp.maximum(jnp.max(jnp.abs(step)), LONGEST))
        new = jnp.maximum(at + search.part * step, low)
        found = valued(new)
        before, after = pull(value.g, at, low), pull(found.g, new, low)
        near = -jnp.sum(step * value.g) < eps**0.75  # f no longer tells a step from its rounding, but g does
        falls = jnp.where(near, after < before, found.f <= value.f + 4 * eps * (len(at) + jnp.abs(value.f)))
        at, value = jax.tree.map(lambda new, old: jnp.where(falls, new, old), (new, found), (at, value))
        part = jnp.where(falls, 1, search.part / 4)
        return Search(at, value, part, near & ~(after < before / 4), search.turns + 1)

    first = Search(start, valued(start), jnp.ones((), start.dtype), jnp.zeros((), bool), jnp.zeros((), jnp.int32))
    goes_on = lambda s: ~s.done & (s.part > LEAST) & (s.turns < MOST)  # noqa: E731
    last = lax.while_loop(goes_on, turn, first)
    return last.at, newton(last.value, last.at, low)


def analyse(S: Float[Array, "D D"], log_psi: Float[Array, " D"], low: Float[Array, " D"], Q: int) -> Float[Array, " D"]:
    """log ψ of the maximum, from one below it; its derivative in S is the maximum's, −H⁻¹ ∂g/∂S."""
    still, start, low = lax.stop_gradient((S, log_psi, low))
    at, inverse = minimum(lambda log_psi: profile(still, log_psi, Q), start, low)
    at, inverse = lax.stop_gradient((at, inverse))
    return at + zero_with_slope(-jnp.matmul(inverse, slope(S, at, Q), precision=EXACT))


def analyse_given(
    S: Float[Array, "D D"], log_psi: Float[Array, " D"], low: Float[Array, " D"], loadings: Float[Array, "D Q"]
) -> Float[Array, " D"]:
    """The same at a Λ that is held."""
    still, start, low, there = lax.stop_gradient((S, log_psi, low, loadings))
    at, inverse = minimum(lambda log_psi: given_loadings(still, log_psi, there), start, low)
    at, inverse = lax.stop_gradient((at, inverse))
    return at + zero_with_slope(-jnp.matmul(inverse, given_loadings(S, at, loadings).g, precision=EXACT))


def zero_with_slope(value: Array) -> Array:
    """0, with value's derivatives."""
    return value - lax.stop_gradient(value)
