"""k-means++ seeds: their expected J over the best there is, below a guarantee, and jaxem's draws against their law."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREEN, GREY, ORANGE, PALE, RED, lettered, panels, styled

RESULTS = "seeding"


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    summary = results["summary"]
    figure, axes = panels(width, "ab", rows=2.7, narrow_rows=2.5)
    expectations(axes["a"], summary, arrays["ratio"])
    frequencies(axes["b"], summary, arrays)
    lettered(axes)
    return figure


def expectations(axis: Any, summary: dict[str, Any], ratio: np.ndarray) -> None:
    """E J/min J of every data set, by K and kind, and 5(log K + 2)."""
    K = np.arange(1, ratio.shape[1] + 1)
    kinds = summary["kinds"]
    for place, (kind, colour) in enumerate(zip(kinds, (BLUE, GREEN, ORANGE, RED), strict=True)):
        values = ratio[place :: len(kinds)]
        shifts = 0.17 * (place - 1.5) + np.linspace(-0.06, 0.06, len(values))
        axis.plot(K + shifts[:, None], values, "o", color=colour, markersize=1.6, markeredgewidth=0)
        axis.plot([], [], "o", color=colour, label=kind)
    axis.hlines(summary["guarantee"], K - 0.38, K + 0.38, color=BLACK, linewidth=1)
    axis.annotate(r"$5(\log K + 2)$", (1.42, 9.6))
    axis.axhline(1, color=GREY, linewidth=0.6, linestyle=":")
    axis.set(yscale="log", ylim=(0.9, 25), xticks=K, xlabel="$K$", ylabel=r"$\mathrm{E}\,J(\mathrm{seeds})/\min J$")
    axis.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.grid(visible=False, axis="x")
    axis.set_title(f"{summary['num_sets']} data sets, enumerated (C26)")
    axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 0.49))


def frequencies(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The share of draws of every sequence of three seeds, against its probability."""
    probability = arrays["probability"]
    line = np.geomspace(probability.min(), probability.max(), 50)
    error = 2 * np.sqrt(line / summary["num_draws"])
    axis.fill_between(line, np.maximum(line - error, 1e-7), line + error, color=PALE, alpha=0.5, linewidth=0)
    for kind, label, colour in (("greedy", "scikit-learn, greedy", ORANGE), ("plain", "jaxem, one candidate", BLUE)):
        share = arrays[kind] / arrays[kind].sum()
        seen = share > 0
        axis.plot(probability[seen], share[seen], "o", color=colour, markersize=2, label=label)
    axis.set(xscale="log", yscale="log", xlabel="probability of three seeds", ylabel="share of draws")
    axis.set(xlim=(1e-5, 0.1), ylim=(1e-5, 0.4))
    axis.set_title("seven rows, $K = 3$: draws and their law")
    axis.legend(loc="upper left", markerscale=1.6)
