"""The verdicts of the σ-sweep on EM's steps, C1–C15, and how a verdict comes from what was measured."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxem import limits

from _results import Claim


def tested(name: str, statement: str, pairs: Any) -> Claim:
    """Of values and their bounds, those where value / bound is largest."""
    worst = limits.tightest(jnp.atleast_1d(pairs.value), jnp.atleast_1d(pairs.bound))
    return Claim(name, statement, float(worst.value), float(worst.bound))


def bounded(name: str, statement: str, rows: list[dict]) -> Claim:
    """A column of the sweep against the column of its bounds."""
    values, bounds = (jnp.array([row[key] for row in rows]) for key in (name, f"{name}_bound"))
    return tested(name, statement, limits.Bound(values, bounds))


def claims(
    rows: list[dict], eps: float, num_rows: int, temperature: float, iterates: Any, coincidence: Any, monotone: Any
) -> list[Claim]:
    """C1–C15."""

    def residual(name: str, statement: str) -> Claim:
        values = [row[key] for row in rows for key in (name, f"{name}_start") if np.isfinite(row[key])]
        return Claim(name, statement, max(values, default=float("nan")), limits.ROUNDING * eps)

    speaking = sum(row["C4_rows"] + row["C4_rows_start"] for row in rows)
    silent = 2 * len(rows) * num_rows - speaking
    return [
        residual("C1", "F ≤ T Σ log Σ e^{ℓ/T}: equality at the posterior, T Σ KL short of it elsewhere"),
        tested("C2", "neither half-step of EM lowers F", monotone),
        residual("C3", "M-step: ∇F = 0 at μ_k = Σγx/N_k, by jax.grad"),
        residual(
            "C4", f"E-step: ∂F/∂γ equal over each row, by jax.grad ({speaking:,} rows; {silent:,} one-hot, silent)"
        ),
        residual("C5", "Fisher: ∇L = ∇Q at every θ"),
        residual("C6", "Xu–Jordan: μ⁺ − μ = (σ²/N_k) ∇L at every θ"),
        bounded("C7", "E-step: |γ − r| ≤ (K − 1) exp(−Δ/2σ²)", rows),
        bounded("C8", "J ≤ G_σ ≤ J + 2σ²N log K, as |v − ½ log K| ≤ ½ log K", rows),
        bounded("C9", "|2σ²(Q − C) + J| ≤ 2σ²N(K − 1)/e, while Q diverges", rows),
        bounded("C10", "M-step: ‖μ_k(γ) − μ_k(r)‖ ≤ diam(X) Σ|γ − r|/N_k", rows),
        tested("C11", "iterates: at the last σ EM's centres equal Lloyd's at every step", iterates),
        bounded("C12", "rate: EM's Jacobian = I − I_c⁻¹ I_obs, the missing information", rows),
        bounded("C13", "at μ_k = x̄ EM's spectrum is {0, λ_i/σ²}: it splits at σ_c = √λ_max", rows),
        tested("C13b", "at σ > diam(X) EM ends with all centres at x̄", coincidence),
        bounded("C14", f"temperature T at σ² is temperature 1 at Tσ² (T = {temperature})", rows),
        bounded("C15", "hard EM is k-means at any σ", rows),
    ]
