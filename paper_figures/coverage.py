"""Coverage of 95 % intervals, parameter by parameter, where the model is right and where it is wrong."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREY, PALE, RED, key, lettered, panels, share_x, share_y, styled

RESULTS = "coverage"

KINDS = {"observed": ("information", BLUE, "o", -0.12), "sandwich": ("sandwich", RED, "D", 0.12)}
TITLES = {"right": "the model is right", "wrong": "the rows have heavier tails than the model"}


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    figure, axes = panels(width, "ab", rows=2.3, narrow_rows=(1.7, 2.1))
    names = [rf"${name}$" for name in (r"\pi_0", r"\mu_{00}", r"\mu_{01}", r"\mu_{10}", r"\mu_{11}", r"\sigma")]
    shares = [
        share for kinds in results["summary"]["coverage"].values() for share in (*kinds["observed"], *kinds["sandwich"])
    ]
    least = min(74, 100 * min(shares) - 4)
    places = np.arange(len(names))
    for axis, (model, title) in zip(axes.values(), TITLES.items(), strict=True):
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
        axis.set(title=title, xlabel="parameter", ylabel="coverage (%)", ylim=(least, 100))
        axis.grid(visible=False, axis="x")
    lettered(axes)
    share_x(*axes.values())
    share_y(*axes.values())
    key(figure, axes["a"], columns=2, narrow=2)
    return figure
