"""The same program by EM, SVI and L-BFGS: L* − L against steps and against time, a column per problem."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, page, styled

RESULTS = "em_vs_svi"
DATA = ("experiments/data/old_faithful.csv",)

FLOOR = 1e-9  # of |L*|: below it a difference is rounding
MARKERS = {"EM": ("o", BLUE), "SVI": ("s", ORANGE), "L-BFGS": ("^", GREEN)}


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    summary = results["summary"]
    figure = page(DOUBLE, 4.1)
    axes = figure.subplots(2, len(summary["cases"]), squeeze=False, sharey="col")
    for column, (name, case) in enumerate(summary["cases"].items()):
        above, below = axes[:, column]
        above.set_title(f"({'abc'[column]}) {name}")
        for row in case["rows"]:
            if row["chosen"]:
                curve(above, below, name, row, case, arrays)
        close, low = summary["close"] * abs(case["L_star"]), FLOOR * abs(case["L_star"])
        for axis in (above, below):
            axis.axhline(close, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
            axis.set(xscale="log", yscale="log", ylim=(low, 3 * (case["L_star"] - case["L_start"])))
            axis.yaxis.set_major_locator(LogLocator(numticks=6))
            axis.yaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_minor_formatter(NullFormatter())
        above.annotate(
            r"$10^{-6}\,|L^*|$", (0, close), (2, 2), xycoords=above.get_yaxis_transform(), color=GREY,
            textcoords="offset points", fontsize=7,
        )  # fmt: skip
        above.set_xlabel("steps")
        below.set_xlabel("milliseconds")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    for axis in axes[:, 0]:
        axis.set_ylabel(r"$L^* - L(\theta_t)$ (nats)")
    return figure


def curve(above: Any, below: Any, name: str, row: dict, case: dict, arrays: dict[str, np.ndarray]) -> None:
    """One method: every step above, the timed ones below; both end where it is at rest."""
    gap, steps, seconds = (arrays[f"{name} | {row['method']} | {field}"] for field in ("gap", "timed_steps", "seconds"))
    gap = np.maximum(gap, 0.1 * FLOOR * abs(case["L_star"]))
    method = row["method"].split(",")[0]
    marker, colour = MARKERS[method]
    shown = slice(1, int(steps[-1]) + 1)
    arrived = row["steps"] is not None
    above.plot(
        np.arange(len(gap))[shown],
        gap[shown],
        color=colour,
        label=method if method != "SVI" else "SVI, Adam at its best rate",
    )
    below.plot(1e3 * seconds, gap[steps], f"{marker}-", color=colour)
    if arrived:
        above.plot(row["steps"], gap[row["steps"]], marker, color=colour, markersize=4.5, zorder=3)
        below.plot(1e3 * row["seconds"], gap[row["steps"]], marker, color=colour, markersize=4.5, zorder=3)
