"""The same program by EM, SVI and L-BFGS: L* − L against passes over the data and against time."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, key, lettered, panels, share_x, share_y, styled

RESULTS = "em_vs_svi"
DATA = ("experiments/data/old_faithful.csv",)

FLOOR = 1e-9  # of |L*|: below it a difference is rounding
MARKERS = {"EM": ("o", BLUE), "SVI": ("s", ORANGE), "L-BFGS": ("^", GREEN)}


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    cases = results["summary"]["cases"]
    above, below = "abcdef"[: len(cases)], "abcdef"[len(cases) : 2 * len(cases)]
    figure, axes = panels(width, f"{above};{below}", rows=(2.2, 2.1), narrow_rows=1.45)
    work, time = [axes[letter] for letter in above], [axes[letter] for letter in below]
    for left, right, (name, case) in zip(work, time, cases.items(), strict=True):
        for row in case["rows"]:
            if row["chosen"]:
                gap, passes = (arrays[f"{name} | {row['method']} | {field}"] for field in ("gap", "passes"))
                curve(left, right, row, np.maximum(gap, 0.1 * FLOOR * abs(case["L_star"])), passes)
        for axis in (left, right):
            decorate(axis, case, results["summary"]["close"] * abs(case["L_star"]))
            axis.set_title(name)
    lettered(axes)
    for group, label in ((work, "passes over the data"), (time, "time (ms)")):
        right = max(axis.get_xlim()[1] for axis in group)
        left = min(axis.get_xlim()[0] for axis in group)
        for axis in group:
            axis.set(xlim=(left, right), xlabel=label, ylabel=r"$L^* - L(\theta_t)$ (nats)")
        share_x(*group)
        share_y(*group, numbers=False)
    key(figure, axes["a"], columns=3, narrow=2)
    return figure


def curve(work: Any, time: Any, row: dict[str, Any], gap: np.ndarray, passes: np.ndarray) -> None:
    """One method: every step against its passes, the timed ones against time; a larger mark where it has arrived."""
    method = row["method"].split(",")[0]
    (marker, colour), label = MARKERS[method], "SVI, Adam at its best rate" if method == "SVI" else method
    steps, milliseconds = np.array(row["timed_steps"]), 1e3 * np.array(row["timed_seconds"])
    shown = slice(0, int(steps[-1]) + 1)
    work.plot(passes[shown], gap[shown], color=colour)
    work.plot([], [], f"{marker}-", color=colour, label=label)
    time.plot(milliseconds, gap[steps], f"{marker}-", color=colour)
    if row["steps"] is not None:
        end = {"marker": marker, "color": colour, "markersize": 4.5, "zorder": 3}
        work.plot(passes[row["steps"]], gap[row["steps"]], **end)
        time.plot(1e3 * row["seconds"], gap[row["steps"]], **end)


def decorate(axis: Any, case: dict[str, Any], close: float) -> None:
    """From the start down to rounding, with the line at which a method has arrived."""
    axis.axhline(close, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
    axis.annotate(
        r"$10^{-6}\,|L^*|$", (0, close), (2, 2), xycoords=axis.get_yaxis_transform(), color=GREY,
        textcoords="offset points", fontsize=7,
    )  # fmt: skip
    axis.set(xscale="log", yscale="log", ylim=(FLOOR * abs(case["L_star"]), 3 * (case["L_star"] - case["L_start"])))
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
