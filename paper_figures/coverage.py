"""Coverage of 95 % intervals, parameter by parameter, where the model is right and where it is wrong."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREY, PALE, RED, page, styled

RESULTS = "coverage"

KINDS = {"observed": ("information", BLUE, "o", -0.12), "sandwich": ("sandwich", RED, "D", 0.12)}
TITLES = {"right": "(a) the model is right", "wrong": "(b) the tails are heavier"}


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    figure = page(DOUBLE, 2.3)
    axes = figure.subplots(1, 2, sharey=True)
    names = [rf"${name}$" for name in (r"\pi_0", r"\mu_{00}", r"\mu_{01}", r"\mu_{10}", r"\mu_{11}", r"\sigma")]
    places = np.arange(len(names))
    for axis, (model, title) in zip(axes, TITLES.items(), strict=True):
        axis.axhspan(93, 97, color=PALE, alpha=0.4, linewidth=0)
        axis.axhline(95, color=GREY, linewidth=0.6)
        for kind, (label, colour, marker, shift) in KINDS.items():
            found = 100 * np.array(results["summary"]["coverage"][model][kind])
            axis.plot(places + shift, found, marker, color=colour, markersize=4, label=label)
            for place, value in zip(places, found, strict=True):
                if value < 90:
                    axis.annotate(
                        f"{value:.0f} %", (place + shift, value), xytext=(-6, 0), textcoords="offset points",
                        ha="right", va="center", fontsize=7, color=BLACK,
                    )  # fmt: skip
        axis.set_xticks(places, names)
        axis.set_title(title)
        axis.grid(visible=False, axis="x")
    axes[0].set(ylabel="intervals that hold it (%)", ylim=(74, 100))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure
