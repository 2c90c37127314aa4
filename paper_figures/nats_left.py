"""Estimates of what an unfinished fit has left, over the truth, and Aitken's at σ_c, where it tends to two thirds."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREEN, ORANGE, RED, lettered, panels, share_x, share_y, styled

RESULTS = "nats_left"
DATA = ("experiments/data/old_faithful.csv",)

ENDS = (1e-9, 3e2)  # nats


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    figure, axes = panels(width, "abc", rows=2.5, narrow_rows=(1.6, 1.6, 1.85))
    truth, at = arrays["truth"], arrays["looked_at"]
    shown = (
        ("Aitken's", r"$g\,r/(1-r)$", truth, arrays["aitken"], BLUE),
        ("the bracket's upper end", r"$g\,\rho^2/(1-\rho^2)$", truth, arrays["upper"], ORANGE),
        ("Newton's decrement", r"$\frac{1}{2}\nabla F^\top I^{-1}\nabla F$", truth[:, at], arrays["newton"], GREEN),
    )
    for axis, (title, formula, left, estimate, colour) in zip(axes.values(), shown, strict=True):
        for one, other in zip(left, estimate, strict=True):
            told = (one > ENDS[0]) & (other > 0)
            axis.plot(one[told], other[told] / one[told], color=colour, linewidth=0.6, alpha=0.7)
        axis.axhline(1, color=BLACK, linewidth=0.8, zorder=1.5)
        axis.set(xscale="log", yscale="log", xlim=ENDS[::-1], ylim=(0.03, 30))
        axis.set(title=title, xlabel="nats left", ylabel="estimate/truth")
        axis.annotate(formula, (0.97, 0.06), xycoords="axes fraction", ha="right")
        axis.set_xticks([1e2, 1e-1, 1e-4, 1e-7])
    axes["a"].plot(arrays["pitch_truth"], arrays["pitch_aitken"] / arrays["pitch_truth"], color=RED, linewidth=1.6)
    axes["a"].annotate(r"at $\sigma_c$: $\to\frac{2}{3}$", (3e-3, 0.16), color=RED)
    lettered(axes)
    share_x(*axes.values())
    share_y(*axes.values())
    return figure
