"""Two Gaussians: EM's map and its contraction to μ from any start, and the centre that k-means has instead."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREEN, GREY, ORANGE, PALE, RED, lettered, panels, styled

RESULTS = "two_gaussians"

COLOURS = (BLUE, GREEN, ORANGE)


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    summary = results["summary"]
    figure, axes = panels(width, "ab;cd", rows=2.45, narrow_rows=(1.9, 1.9, 2.4, 1.9))
    maps(axes["a"], summary, arrays)
    iterates(axes["b"], summary, arrays)
    contraction(axes["c"], arrays)
    centres(axes["d"], summary, arrays)
    lettered(axes)
    return figure


def maps(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """M(λ) in one dimension, and its fixed point μ."""
    sizes = arrays["sizes"]
    axis.plot(sizes, sizes, color=GREY, linewidth=0.8)
    for colour, mu, values in zip(COLOURS, summary["shown"], arrays["maps"], strict=True):
        axis.plot(sizes, values, color=colour, label=rf"$\mu = {mu:g}$")
        axis.plot(mu, mu, "o", color=colour, markersize=4, zorder=4)
    axis.set(xlabel=r"$\lambda$", ylabel=r"$M(\lambda)$", xlim=(0, 3.2), ylim=(0, 3.2))
    axis.set_title("EM's map on the population")
    axis.legend(loc="upper left")


def iterates(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """|λ_t − μ| from three starts, and C22's factors multiplied."""
    error = np.abs(arrays["path"] - 1)
    steps = np.arange(len(error))
    for colour, start, values, factors in zip(COLOURS, summary["starts"], error.T, arrays["factors"].T, strict=True):
        bound = values[0] * np.concatenate([[1], np.cumprod(factors)[:-1]])
        axis.plot(steps, bound, color=colour, linewidth=0.8, linestyle=(0, (3, 2)))
        seen = values > 1e-12
        axis.plot(steps[seen], values[seen], "o-", color=colour, label=rf"$\lambda_0 = {start:g}$")
    axis.plot([], [], color=BLACK, linewidth=0.8, linestyle=(0, (3, 2)), label=r"bound $\prod\kappa$")
    axis.set(yscale="log", ylim=(1e-12, 1e2), xlabel="step $t$", ylabel=r"$|\lambda_t - \mu|$")
    axis.set_title(r"from any start to $\mu = 1$ (C22)")
    axis.legend(loc="upper right")


def contraction(axis: Any, arrays: dict[str, np.ndarray]) -> None:
    """‖M(λ) − μ‖/‖λ − μ‖ against κ: nothing above the diagonal."""
    kappa, ratio = 1 - arrays["kappa"], 1 - arrays["ratio"]
    for D, colour in zip(sorted(set(arrays["dimension"].tolist())), (BLUE, GREEN, ORANGE, RED), strict=True):
        chosen = arrays["dimension"] == D
        axis.plot(kappa[chosen], ratio[chosen], ".", color=colour, markersize=1.8, label=f"$D = {D}$", rasterized=True)
    line = np.geomspace(1e-6, 1, 2)
    axis.plot(line, line, color=BLACK, linewidth=0.8, zorder=4)
    axis.set(xscale="log", yscale="log", xlim=(1e-6, 1.5), ylim=(1e-6, 1.5))
    axis.set(xlabel=r"$1 - \kappa$", ylabel=r"$1 - \|M(\lambda)-\mu\|/\|\lambda-\mu\|$")
    axis.set_title("no pair contracts less than C22 says")
    axis.legend(loc="lower right", markerscale=3)


def centres(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """What each method ends at, less μ, on samples, with 95 % intervals; C25's curve and 0."""
    mu = np.array([one["mu"] for one in summary["samples"]])
    sizes, excess = arrays["sizes"], arrays["folded"] - arrays["sizes"]
    axis.plot(sizes, excess, color=PALE, linewidth=2.4, label=r"$c - \mu$ (C25)", zorder=1)
    axis.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    for name, label, colour, marker in (("kmeans", "k-means", RED, "s"), ("em", "EM", BLUE, "o")):
        found = np.array([one[name] for one in summary["samples"]]) - mu
        error = 1.96 * np.array([one[f"{name}_error"] for one in summary["samples"]])
        style = {"color": colour, "markersize": 3.5, "linestyle": "none", "capsize": 1.5, "linewidth": 0.8}
        axis.errorbar(mu, found, error, marker=marker, label=f"{label}, {summary['num_rows']:,} rows", **style)
    axis.set(xlim=(0, 3.2), ylim=(-0.06, 0.85), xlabel=r"$\mu$ (standard deviations)", ylabel=r"centre $-\ \mu$")
    axis.set_title("k-means ends too far out, EM does not")
    axis.legend(loc="upper right")
