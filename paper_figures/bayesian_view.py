"""Posterior marginals on Old Faithful: NUTS, and the Laplace approximation around jaxem's MAP."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from _style import BLACK, BLUE, DOUBLE, PALE, RED, lettered, panels, styled

RESULTS = "bayesian_view"
DATA = ("experiments/data/old_faithful.csv",)

ORDER = ("p", *(f"{name} {k} {feature}" for k in (0, 1) for name in ("mu", "sigma") for feature in (0, 1)))
NAMES = {"mu": r"mean $\mu$", "sigma": r"std. dev. $\sigma$"}
REACH = 4.2  # standard deviations shown


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    """One panel a parameter, in minutes: the short eruptions' in a row, or a column, beside the long ones'."""
    summary = results["summary"]
    rows = {row["name"]: (row, index) for index, row in enumerate(summary["rows"])}
    samples = arrays["samples"].reshape(-1, arrays["samples"].shape[-1])
    figure, axes = panels(width, "abcde;.fghi", "a.;bf;cg;dh;ei", rows=1.75, narrow_rows=1.35)
    for axis, name in zip(axes.values(), ORDER, strict=True):
        row, index = rows[name]
        offset, scale, title, label = units(name, summary)
        marginal(axis, samples[:, index] * scale + offset, row["mode"] * scale + offset, row["SE"] * scale)
        axis.axvline((row["mode"] + row["shift"]) * scale + offset, color=RED, linewidth=1, linestyle="--", label=DELTA)
        axis.set(title=title, xlabel=label)
    lettered(axes)
    handles, labels = axes["a"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower left" if width >= DOUBLE else "upper right", borderaxespad=1)
    return figure


DELTA = r"$\hat\theta + \delta$, predicted mean"


def units(name: str, summary: dict[str, Any]) -> tuple[float, float, str, str]:
    """(offset, scale, title, label) from standardised data to minutes."""
    symbol, *index = name.split()
    if not index:
        return 0.0, 1.0, "share $p$", "of long eruptions"
    component, feature = map(int, index)
    offset = summary["centre"][feature] if symbol == "mu" else 0.0
    title = f"{NAMES[symbol]}, {('short', 'long')[component]}"
    return offset, summary["scale"][feature], title, summary["columns"][feature]


def marginal(axis: Any, draws: np.ndarray, mode: float, error: float) -> None:
    """Histogram, normal density, MAP."""
    grid = np.linspace(mode - REACH * error, mode + REACH * error, 200)
    normal = np.exp(-(((grid - mode) / error) ** 2) / 2) / (error * np.sqrt(2 * np.pi))
    axis.hist(draws, np.linspace(grid[0], grid[-1], 43), density=True, color=PALE, label="NUTS")
    axis.plot(grid, normal, color=BLUE, label="Laplace")
    axis.axvline(mode, color=BLACK, linewidth=1, label=r"MAP $\hat\theta$")
    axis.set(xlim=(grid[0], grid[-1]), yticks=[])
    axis.spines["left"].set_visible(False)
    axis.grid(visible=False)
    axis.xaxis.set_major_locator(MaxNLocator(3))
