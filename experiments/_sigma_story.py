"""The σ-sweep on a terminal: a table that fits it, and what the numbers say, in words."""

import textwrap
from typing import Any

from _table import print_table

COLUMNS = [
    ("σ", "sigma", "8.3g"),
    ("F", "free_energy", "10.5g"),
    ("steps", "iterations", "5d"),
    ("centres", "distinct", "7d"),
    ("ρ(EM)", "spectral_radius", "8.1e"),
    ("max|γ−r|", "gamma_gap", "8.1e"),
    ("‖μγ−μr‖", "C10", "8.1e"),
]
SYMBOLS = """σ: held, in units of the data. F: the free energy of the best start's fit, here log p(x | μ), nats.
steps: of EM, to rest. centres: how many are distinct. ρ(EM): what a step leaves of its error, C12.
γ: the posterior, r: the nearest centre's one-hot. μγ, μr: the means under each. Bounds: --full."""
MORE = [
    ("λ₁/σ²", "coincident_eigenvalue", "7.1e"),
    ("≤ C7", "gamma_gap_bound", "7.1e"),
    ("C8 v", "objective_gap", "6.4f"),
    ("Q", "Q", "8.1e"),
    ("C9 → 0", "scaled_residual", "8.1e"),
    ("≤ C10", "C10_bound", "7.1e"),
    ("C3", "C3", "5.0e"),
    ("C4", "C4", "5.0e"),
    ("C5", "C5", "5.0e"),
    ("C6", "C6", "5.0e"),
    ("‖μ−μ*‖", "C17", "7.1e"),
    ("≤ C17", "C17_bound", "7.1e"),
    ("≤ C21", "C21_bound", "7.1e"),
]
MORE_SYMBOLS = """λ₁/σ²: the largest eigenvalue of EM at μ_k = x̄, C13. v = (G_σ − J)/2σ²N, from 0 to log K.
Q: E[log p(x, z)] under γ, which diverges; C9 = 2σ²(Q − C) + J does not. ≤ C7, ≤ C10: bounds of |γ−r|
and of ‖μγ−μr‖. C3 … C6: residuals by jax.grad; '·': every row is one-hot. μ: where EM from
k-means' centres μ* ends; ≤ C17: how near that is certified to be, '·': not at this σ. ≤ C21: the bound of ρ(EM)."""
WIDTH = 100


def print_rows(rows: list[dict[str, Any]], *, full: bool = False) -> None:
    """The table, and what its columns are."""
    print_table([*COLUMNS, *MORE] if full else COLUMNS, rows)
    print("\n" + SYMBOLS + ("\n" + MORE_SYMBOLS if full else ""))


def in_words(result: dict[str, Any]) -> str:
    """What the E-step did, the M-step, the objective and the speed, and at which σ."""
    rows, summary = result["rows"], result["summary"]
    first, last = rows[0], rows[-1]
    parted = next((row["sigma"] for row in rows if row["distinct"] > 1), None)
    hot = min((row["sigma"] for row in rows if row["distinct"] == 1), default=None)
    sharp = first_from(rows, "gamma_gap", 1e-3)
    one_hot = first_from(rows, "gamma_gap", 0.0)
    means = first_from(rows, "C10", 0.0)
    slowest = max(rows, key=lambda row: row["iterations"])
    steps = summary["kmeans_steps"]
    unit = "in standard deviations" if summary["standardised"] else "in units of the data"
    K = result["config"]["components"]
    sentences = [
        f"In words. {summary['num_rows']:,} rows, {summary['num_features']} features, {unit}; "
        f"diam(X) = {summary['diameter']:.4g}.",
        f"Hot: down to σ = {hot:.3g} all {K} centres lie at one point, the mean; theory lets them part below "
        f"σ_c = {summary['critical_sigma']:.4g}, and at σ = {parted:.3g} they have."
        if hot is not None and parted is not None
        else f"The centres are {first['distinct']} at the first σ; theory lets them part below "
        f"σ_c = {summary['critical_sigma']:.4g}.",
        f"E-step: the posterior is within 0.001 of the nearest centre's one-hot from σ = {sharp:.3g} on"
        + (f", and equal to it, to the bit, from σ = {one_hot:.3g}." if one_hot else ".")
        if sharp
        else f"E-step: at the last σ the posterior is still {last['gamma_gap']:.2g} away from one-hot.",
        f"M-step: its means are those of the nearest rows, to the bit, from σ = {means:.3g}; at the last σ EM steps as "
        "Lloyd's algorithm does."
        if means
        else f"M-step: at the last σ its means are {last['C10']:.2g} from those of the nearest rows.",
        f"Objective: Q itself goes to {last['Q']:.2g}, so it has no limit; rescaled, 2σ²(Q − C) ends at "
        f"{last['scaled_residual'] - last['J']:.6g}, which is −J, and J = {last['J']:.6g} is k-means' own, "
        f"{summary['kmeans_J']:.6g}.",
        f"Speed: EM takes most steps, {slowest['iterations']:,}, at σ = {slowest['sigma']:.3g}, and "
        f"{last['iterations']} at the last, beside k-means' {span(steps)}.",
        shadow(rows),
        f"The last σ, {summary['last_sigma']:.3g}, is that at which γ must be one-hot all along Lloyd's path from "
        f"every start (least gap {summary['least_gap']:.2e}; {summary['starts_redrawn']} tied start(s) drawn again).",
    ]
    return textwrap.fill(" ".join(sentences), WIDTH)


def shadow(rows: list[dict[str, Any]]) -> str:
    """At the largest σ at which EM's fixed point near k-means' is certified, or that there is none."""
    row = next((row for row in rows if row["shadow_largest"] > 0), None)
    if row is None:
        return "Shadow: at no σ is EM certified to have just one fixed point near k-means' centres."
    return (
        f"Shadow: at σ = {row['sigma']:.3g} EM is certified to have just one fixed point within "
        f"{row['shadow_largest']:.2g} of k-means' centres, no farther from them than {row['C17_bound']:.2g}; "
        f"the true distance is {row['C17']:.2g}."
    )


def first_from(rows: list[dict[str, Any]], name: str, most: float) -> float | None:
    """The largest σ of the sweep from which on a column stays at most that."""
    found = None
    for row in reversed(rows):
        if not row[name] <= most:
            break
        found = row["sigma"]
    return found


def span(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"
