"""T → 0 in five exponential families: γ, the free energy and EM's iterates go to Bregman k-means."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, PINK, RED, page, styled

RESULTS = "bregman_limit"

LOOK = {
    "gaussian": (BLUE, "o", r"Gaussian $\sigma^2 I$: squared Euclidean"),
    "bernoulli": (RED, "s", "Bernoulli: logistic loss"),
    "categorical": (GREEN, "^", "categorical: Kullback–Leibler"),
    "poisson": (ORANGE, "D", "Poisson: I-divergence"),
    "exponential": (PINK, "v", "exponential: Itakura–Saito"),
}
TINY = 1e-18  # zeros are drawn here


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    figure = page(DOUBLE, 3.0)
    left, middle, right = figure.subplots(1, 3)
    ceiling = np.log(results["summary"]["num_components"])
    middle.axhspan(0, ceiling, color=GREY, alpha=0.12, linewidth=0)
    middle.text(
        0.96, ceiling - 0.03, r"allowed: $[0, \log K]$", transform=middle.get_yaxis_transform(), ha="right", va="top"
    )
    lines = []
    for family, (colour, marker, label) in LOOK.items():
        column = {name: arrays[f"{family} | {name}"] for name in ("T", "gamma", "gamma bound", "F", "path")}
        points = {"color": colour, "marker": marker, "markevery": 4, "markersize": 3, "linewidth": 1}
        left.plot(column["T"], column["gamma bound"], color=colour, linewidth=0.8, linestyle="--")
        lines += left.plot(column["T"], column["gamma"], label=label, **points)
        middle.plot(column["T"], column["F"], **points)
        path = np.maximum(column["path"], TINY)
        right.plot(column["T"], path, **points)
        right.plot(column["T"][-1], path[-1], marker=marker, color=colour, markersize=4.5)
    left.set(yscale="log", ylim=(1e-6, 2), ylabel=r"mean over $n$ of $\max_k |\gamma_{nk} - r_{nk}|$")
    left.set_title("(a) E-step (dashed: bound)")
    middle.set(ylim=(0, 1.05 * ceiling), ylabel=r"$(F_T - F_0)\,/\,TN$  (nats)")
    middle.set_title("(b) free energy")
    right.set(yscale="log", ylim=(TINY / 10, 10), ylabel="furthest iterates, relative")
    right.set_title("(c) EM to Bregman k-means")
    for axis in (left, middle, right):
        axis.set(xscale="log", xlabel=r"temperature $T$ (nats), cooling $\rightarrow$")
        axis.set_xlim(150, 3e-7 if axis is right else 3e-5)
        axis.set_xticks([1e2, 1, 1e-2, 1e-4, 1e-6][: 5 if axis is right else 4])
        axis.minorticks_off()
    figure.legend(lines, [line.get_label() for line in lines], loc="outside lower center", ncols=3)
    return figure
