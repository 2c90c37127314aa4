"""Mixtures of multivariate t: x_n | z_n = k ~ t(ν_k, μ_k, Σ_k), Gaussians with tails; ν → ∞ is `gaussian.full`.

With δ = (x − μ)ᵀ Σ⁻¹ (x − μ), x is Gaussian of covariance Σ/u, of which u ~ Gamma(ν/2, ν/2) is not seen, and given x
E[u] = w = (ν + D)/(ν + δ): rows far out count less. The M-step is ECME's (Liu & Rubin 1994, 1995), in two stages:

    μ = Σγwx / Σγw,   Σ = Σγw(x − μ)(x − μ)ᵀ / Σγw          the surface of the latents u |Σ|^{−1/(ν + D)}
    ν = argmax_ν Σγ log p(x | ν, μ⁺, Σ⁺)                    ℓ itself, by Newton's method: a pass over the rows each turn

Divided by Σγ in the place of Σγw the first would be the surface of u: slower, and both are stationary where ℓ is (Kent,
Tyler & Vardi 1994; Meng & van Dyk 1997). EM's own step for ν, by E[log u], is closed and takes hundreds of steps where
this takes tens; `hold("df")` needs no pass. Rows with no heavier tails than a Gaussian's have their maximum at ν = ∞:
there ν ends at 1/eps, where the law is Gaussian to rounding.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from jaxem._core.model import Data, Theta
from jaxem._core.root import root
from jaxem._rows import engine
from jaxem.bregman import i_divergence_terms, log_defect
from jaxem.families import _exponential_family as ef
from jaxem.families._gamma_function import log_less_digamma, rest, second_of_digamma
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics
from jaxem.families.gaussian import _covariances as covariances
from jaxem.families.gaussian._moments import differences, divide_where_occupied, log_weights, sum_of_squares
from jaxem.families.gaussian._rounding import lifted, rounding_of_covariances, sizes_of_terms

__all__ = ["mixture"]

LEAST = 1e-3  # ν


def program(x: Array | None = None, num_points: int | None = None) -> None:
    """z_n ~ Categorical(π),  x_n | z_n = k ~ t(ν_k, μ_k, Σ_k)."""
    pi = numpyro.param("pi", constraint=constraints.simplex)
    mu = jnp.asarray(numpyro.param("mu", constraint=constraints.real))
    Sigma = jnp.asarray(numpyro.param("Sigma", constraint=constraints.positive_definite))
    df = jnp.asarray(numpyro.param("df", constraint=constraints.positive))
    if x is not None:
        x = jnp.reshape(x, (-1, mu.shape[-1]))
        num_points = x.shape[0]
    factor = jnp.linalg.cholesky(Sigma)
    with numpyro.plate("points", num_points):
        z = numpyro.sample("z", dist.Categorical(pi), infer={"enumerate": "parallel"})
        numpyro.sample("x", dist.MultivariateStudentT(df[z], mu[z], factor[z]), obs=x)


class Sums(NamedTuple):
    """Additive statistics about the means μ_k at which the E-step was done."""

    N_k: Float[Array, " K"]  # Σγ
    weight: Float[Array, " K"]  # Σγw
    shift: Float[Array, "K D"]  # Σγw(x − μ)
    spread: Float[Array, "K D D"]  # Σγw(x − μ)(x − μ)ᵀ


# ---- the table


def squares(theta: Theta, x: Float[Array, "n D"]) -> tuple[Float[Array, "K n"], Float[Array, " K"]]:
    """δ_nk, and log det L_k, of Σ_k = L_k L_kᵀ."""
    inverse, log_det = covariances.whiteners(theta)
    return sum_of_squares(covariances.whitened(inverse, differences(x, theta["mu"]))), log_det


def log_joint(theta: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ_nk = log π_k + c(ν_k) − log det L_k − ½(ν_k + D) log(1 + δ_nk/ν_k)."""
    return table_of(theta, *squares(theta, x))


def table_of(theta: Theta, delta: Float[Array, "K n"], log_det: Float[Array, " K"]) -> Float[Array, "K n"]:
    df, D = theta["df"], theta["mu"].shape[1]
    heights = log_weights(theta["pi"]) + height(df, D) - log_det
    return heights[:, None] - ((df + D) / 2)[:, None] * jnp.log1p(delta / df[:, None])


def height(df: Float[Array, " K"], D: int) -> Float[Array, " K"]:
    """c(ν) = log Γ((ν + D)/2) − log Γ(ν/2) − (D/2) log πν, with its digits at any ν."""
    a, h = df / 2, D / 2
    return (a + h - 1 / 2) * jnp.log1p(h / a) - h + rest(a + h) - rest(a) - h * jnp.log(2 * jnp.pi)


def surface(theta: Theta, old: Theta, x: Float[Array, "n D"]) -> Float[Array, "K n"]:
    """ℓ̂ = ℓ − KL(q_old ‖ q) of the latents v = u |Σ|^{−c}, c = 1/(ν_old + D), given x: Gammas of A and B.

    A = (ν + D)/2,  B = ½(ν + δ) |Σ|^c, so that c log |Σ|/|Σ_old| + log (ν + δ)/(ν_old + δ_old) is log B/B_old.
    """
    (delta, log_det), (before, log_det_before) = squares(theta, x), squares(old, x)
    D, df, df_old = theta["mu"].shape[1], theta["df"][:, None], old["df"][:, None]
    A, A_old = (df + D) / 2, (df_old + D) / 2
    scale = jnp.expm1((log_det - log_det_before)[:, None] / A_old)  # |Σ|^c / |Σ_old|^c − 1
    moved = (df - df_old + delta - before) / (df_old + before)
    t = moved + scale + moved * scale  # B/B_old − 1
    of_shapes = i_divergence_terms(A, A_old) - jnp.log(A / A_old) / 2
    of_shapes = of_shapes + rest(A) - rest(A_old) + (A - A_old) * log_less_digamma(A_old)
    return table_of(theta, delta, log_det) - (of_shapes + A * log_defect(t) + (A_old - A) * t)


# ---- the M-step


def statistics(theta: Theta, x: Float[Array, "n D"], gamma: Float[Array, "K n"]) -> Sums:
    """Σγ, Σγw, Σγw(x − μ_k), Σγw(x − μ_k)(x − μ_k)ᵀ."""
    df, difference = theta["df"][:, None], differences(x, theta["mu"])
    inverse, _ = covariances.whiteners(theta)
    delta = sum_of_squares(covariances.whitened(inverse, difference))
    counted = gamma * ((df + x.shape[1]) / (df + delta))
    weighted = counted[:, None] * difference
    spread = covariances.products_of(weighted, difference)
    return Sums(jnp.sum(gamma, axis=1), jnp.sum(counted, axis=1), jnp.sum(weighted, axis=2), spread)


def scatter(sums: Sums, theta: Theta, held: frozenset[str]) -> Float[Array, "K D D"]:
    """Σγw(x − μ_k⁺)(x − μ_k⁺)ᵀ, expanded about the old mean."""
    spread = sums.spread
    if "mu" not in held:
        spread = spread - covariances.outer(sums.shift, divide_where_occupied(sums.shift, sums.weight))
    return (spread + jnp.swapaxes(spread, 1, 2)) / 2


def update(sums: Sums, theta: Theta, held: frozenset[str]) -> Theta:
    """The first stage: π, μ and Σ; ν stays."""
    N_k = sums.N_k
    theta = ef.with_weights(theta, N_k, held)
    if "Sigma" not in held:
        new = divide_where_occupied(lifted(scatter(sums, theta, held)), sums.weight)
        theta = theta | {"Sigma": ef.keep_where_empty(N_k, new, theta["Sigma"])}
    if "mu" not in held:
        theta = theta | {"mu": theta["mu"] + divide_where_occupied(sums.shift, sums.weight)}
    return theta


@dataclass(frozen=True)
class BothStages:
    """`Extras.maximizer`: `update`, and then ν where ℓ is highest under γ(θ_old)."""

    last: frozenset[str] = frozenset({"df"})

    def __call__(self, m: Mixture, sums: Sums, old: Theta, data: Data) -> Theta:
        """θ⁺; ν by Newton's method in y = 1/ν, from eps to 1/LEAST."""
        theta = m.update(sums, old, m.held)
        if "df" in m.held:
            return theta
        D = theta["mu"].shape[1]

        def slope(y: Float[Array, " K"]) -> Float[Array, " K"]:
            """dQ/dy."""

            def of_rows(x: Array, gamma: Array, theta: Theta, y: Array) -> Array:
                return jnp.sum(gamma * slope_of_rows(squares(theta, x)[0], y[:, None], D), axis=1)

            of_heights = sums.N_k * slope_of_height(y, D)
            return of_heights + engine.sums_under(m, of_rows, old, data, theta, y)

        start = 1 / theta["df"]
        low = jnp.full_like(start, jnp.finfo(start.dtype).eps)
        y = root(slope, start, low, jnp.full_like(start, 1 / LEAST))
        return theta | {"df": ef.keep_where_empty(sums.N_k, 1 / y, theta["df"])}


def slope_of_height(y: Array, D: int) -> Array:
    """dc/dy = −2a² [ψ(a + h) − ψ(a) − h/a], a = 1/2y, h = D/2: finite as y → 0, where the bracket cancels."""
    a, h = 1 / (2 * y), D / 2
    of_digammas = h / (2 * (1 + h / a)) + a**2 * (second_of_digamma(a) - second_of_digamma(a + h))
    return 2 * (a**2 * log_defect(h / a) - of_digammas)


def slope_of_rows(delta: Array, y: Array, D: int) -> Array:
    """d/dy of −(a + h) log(1 + d/a), d = δ/2: −2 [a² h(d/a) − d(d − h)/(1 + d/a)]."""
    a, d, t = 1 / (2 * y), delta / 2, delta * y
    return 2 * (d * (d - D / 2) / (1 + t) - a**2 * log_defect(t))


# ---- the start, the family


def guess(centres: Float[Array, "K D"], x: Float[Array, "N D"], weights: Float[Array, " N"] | None = None) -> Theta:
    """That of `gaussian.full`, with ν = 10."""
    theta = covariances.guess(centres, x, weights, is_tied=False)
    return theta | {"df": jnp.full_like(theta["pi"], 10)}


mixture = Mixture(
    name="student_t.mixture",
    program=program,
    shapes=(("pi", "K"), ("mu", "K D"), ("Sigma", "K D D"), ("df", "K")),
    kernel=log_joint,
    statistics=statistics,
    update=update,
    guess=guess,
    numerics=Numerics(
        scales=("Sigma",),
        rounding=partial(rounding_of_covariances, inflation=covariances.inflation, scatter=scatter),
        sizes_of_terms=partial(sizes_of_terms, inflation=covariances.inflation),
    ),
    extras=Extras(surface=surface, maximizer=BothStages()),
)
