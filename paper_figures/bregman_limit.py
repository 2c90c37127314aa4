"""T → 0 in five exponential families: γ, the free energy and EM's iterates go to Bregman k-means."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import (
    BLUE,
    DOUBLE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    RED,
    TINY,
    floor,
    key,
    lettered,
    panels,
    share_x,
    styled,
)

RESULTS = "bregman_limit"

LOOK = {
    "gaussian": (BLUE, "o", r"Gaussian $\sigma^2 I$: squared Euclidean"),
    "bernoulli": (RED, "s", "Bernoulli: logistic loss"),
    "categorical": (GREEN, "^", "categorical: Kullback–Leibler"),
    "poisson": (ORANGE, "D", "Poisson: I-divergence"),
    "exponential": (PINK, "v", "exponential: Itakura–Saito"),
}
FOOT = {"linestyle": "none", "fillstyle": "none", "markevery": 1}  # what is exactly 0
LEAST = 1e-12  # of the first panel's axis


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    """Cooling from left to right; at every T where EM ends there."""
    figure, axes = panels(width, "ab;cd", rows=(2.1, 2.5), narrow_rows=(1.7, 1.4, 1.4, 2.7))
    ceiling, warmest = np.log(results["summary"]["num_components"]), 0.0  # at rest
    axes["b"].axhline(1, color=GREY, linewidth=0.8)
    axes["c"].axhspan(0, ceiling, color=GREY, alpha=0.12, linewidth=0)
    for family, (colour, marker, label) in LOOK.items():
        column = {name: arrays[f"{family} | {name}"] for name in ("T", "gamma", "gamma bound", "F", "path")}
        style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1, "markevery": 4}
        seen = column["gamma bound"] > LEAST
        axes["a"].plot(column["T"], column["gamma"], label=label, **style)
        axes["b"].plot(column["T"][seen], column["gamma"][seen] / column["gamma bound"][seen], **style)
        axes["c"].plot(column["T"], column["F"], **style)
        rests = column["path"] == 0
        warmest = max([warmest, *column["T"][rests]])
        axes["d"].plot(column["T"][~rests], column["path"][~rests], **style)
        axes["d"].plot(column["T"][rests], floor(column["path"][rests]), **style | FOOT)
    axes["d"].annotate(
        "exactly 0", (warmest, TINY), xytext=(-5, -3), textcoords="offset points", color=GREY, ha="right"
    )
    axes["c"].annotate(
        r"$0$ to $\log K$, allowed", (0.96, ceiling), xytext=(0, -3), textcoords="offset points",
        xycoords=axes["c"].get_yaxis_transform(), ha="right", va="top",
    )  # fmt: skip
    axes["a"].set(yscale="log", ylim=(LEAST, 3), ylabel=r"distance of $\gamma$")
    axes["a"].set_title(r"E-step: $\gamma$ becomes one-hot")
    axes["b"].set(ylim=(0, 1.1), ylabel="distance/bound")
    axes["b"].set_title(r"the same over its bound $(K - 1)e^{-\Delta/T}$")
    axes["c"].set(ylim=(0, 1.05 * ceiling), ylabel=r"$(F_T - F_0)\,/\,TN$ (nats)")
    axes["c"].set_title("free energy: within its bounds")
    axes["d"].set(yscale="log", ylim=(TINY / 10, 10), ylabel="furthest iterates, relative")
    axes["d"].set_title("EM's path becomes Bregman k-means'")
    for axis in axes.values():
        axis.set(xscale="log", xlabel=r"temperature $T$ (nats), cooling $\rightarrow$", xlim=(150, 5e-7))
        axis.set_xticks([1e2, 1, 1e-2, 1e-4, 1e-6])
        axis.minorticks_off()
    lettered(axes)
    share_x(*axes.values())
    key(figure, axes["a"], columns=3, narrow=1)
    return figure
