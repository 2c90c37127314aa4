"""What von Mises–Fisher's law on the sphere of R^D takes of the Bessel functions I_ν, ν = D/2 − 1.

    log p(x | μ, κ) = h(κ) − κ ‖x − μ‖²/2,   h(κ) = κ + log κ^ν / (2π)^{D/2} I_ν(κ),   h′(κ) = 1 − I_{ν+1}(κ)/I_ν(κ)

h is −log of the sphere's area at κ = 0, and grows as ½(D − 1) log κ: neither it nor its derivative, which is the mean
of ‖x − μ‖²/2, has anything large in it, though log I_ν(κ) is near κ. For R = √(m² + κ²) ≥ FAR Debye's expansion is
right to rounding (Abramowitz & Stegun 9.7.7; p = m/R):

    log I_m(κ) = R + m log κ/(m + R) − ½ log 2πR + log Σ_j R^{−j} u_j(p²)

Elsewhere the order is raised to m = ν + M ≥ FAR, and the ratios of neighbours lead down from there (Gautschi 1967):

    I_{j+1}(κ)/I_j(κ) = κ q_j / 2(j + 1),   q_j = 1 / (1 + κ² q_{j+1} / 4(j + 1)(j + 2))
"""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

FAR = 40.0
TERMS = 11  # of Debye's expansion, of which the next is 10⁻¹⁷ there
BEYOND = 30  # orders above m from which ratios come down, so that what is wrong at the start is forgotten


def debye() -> list[list[float]]:
    """The coefficients of u_j in powers of p², of U_j = p^j u_j(p²) and

    U_{j+1} = ½ p²(1 − p²) U_j′ + ⅛ ∫₀ᵖ (1 − 5t²) U_j dt.
    """
    U = {0: Fraction(1)}  # power of p -> coefficient
    found = []
    for j in range(TERMS):
        found.append([float(U.get(j + 2 * i, Fraction(0))) for i in range(j + 1)])
        new: dict[int, Fraction] = {}
        for power, c in U.items():
            for shift, factor in (
                (1, Fraction(power, 2) + Fraction(1, 8 * (power + 1))),
                (3, -Fraction(power, 2) - Fraction(5, 8 * (power + 3))),
            ):
                new[power + shift] = new.get(power + shift, Fraction(0)) + factor * c
        U = new
    return found


U = debye()


def log_series(R: Array, p2: Array) -> Array:
    """log Σ_j R^{−j} u_j(p²)."""
    w, total = 1 / R, jnp.zeros_like(R)
    for coefficients in reversed(U[1:]):
        u = jnp.zeros_like(R)
        for c in reversed(coefficients):
            u = u * p2 + c
        total = w * (u + total)
    return jnp.log1p(total)


def height(kappa: Float[Array, "*shape"], D: int) -> Float[Array, "*shape"]:
    """h(κ), κ ≥ 0, D ≥ 2, with its digits and those of its derivatives."""
    far = kappa >= FAR
    return jnp.where(far, of_large(jnp.where(far, kappa, FAR), D), of_small(jnp.where(far, 0, kappa), D))


def of_large(kappa: Array, D: int) -> Array:
    """By the expansion at ν itself, of which κ and ν log κ drop out."""
    m = D / 2 - 1
    R = jnp.sqrt(m**2 + kappa**2)
    peak = jnp.log(2 * jnp.pi * R) / 2 - D / 2 * math.log(2 * math.pi)
    return m * jnp.log(m + R) - m**2 / (kappa + R) + peak - log_series(R, (m / R) ** 2)


def of_small(kappa: Array, D: int) -> Array:
    """κ + h(0) − log Σ_i (κ²/4)^i Γ(ν + 1)/(i! Γ(ν + 1 + i)); the sum by the expansion at m, and down from there."""
    order = D / 2 - 1
    steps = max(0, math.ceil(FAR - order))
    m = order + steps
    R = jnp.sqrt(m**2 + kappa**2)
    rise = kappa**2 / (R + m)  # R − m
    at_zero = math.log1p(sum(sum(u) / m**j for j, u in enumerate(U) if j))
    log_sum = rise - m * jnp.log1p(rise / (2 * m)) - jnp.log1p(rise / m) / 2 + log_series(R, (m / R) ** 2) - at_zero

    def down(q: Array, j: Array) -> tuple[Array, Array]:
        q = 1 / (1 + kappa**2 * q / (4 * (j + 1) * (j + 2)))
        return q, jnp.log(q)

    orders = order + jnp.arange(steps + BEYOND, dtype=kappa.dtype)[::-1]
    _, logs = lax.scan(down, jnp.ones_like(kappa), orders)
    area = math.log(2) + D / 2 * math.log(math.pi) - math.lgamma(D / 2)
    return kappa - area - (log_sum - jnp.sum(logs[BEYOND:], axis=0))


def spread(kappa: Float[Array, "*shape"], D: int) -> Float[Array, "*shape"]:
    """h′(κ), from 1 at κ = 0 down to about (D − 1)/2κ."""
    return jax.jvp(lambda kappa: height(kappa, D), (kappa,), (jnp.ones_like(kappa),))[1]
