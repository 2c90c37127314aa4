"""Posterior marginals on Old Faithful: NUTS, and the Laplace approximation around jaxem's MAP."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from _style import BLACK, BLUE, DOUBLE, PALE, RED, page, styled

RESULTS = "bayesian_view"
DATA = ("experiments/data/old_faithful.csv",)

ORDER = ("p", "mu 0 0", "mu 1 0", "mu 0 1", "mu 1 1", "sigma 0 0", "sigma 1 0", "sigma 0 1", "sigma 1 1")
SYMBOLS = {"p": "p", "mu": r"\mu", "sigma": r"\sigma"}
REACH = 4.2  # standard deviations shown


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    """One panel a parameter, in minutes."""
    summary = results["summary"]
    rows = {row["name"]: (row, index) for index, row in enumerate(summary["rows"])}
    samples = arrays["samples"].reshape(-1, arrays["samples"].shape[-1])
    figure = page(DOUBLE, 5.2)
    axes = figure.subplots(3, 3)
    for axis, name, letter in zip(axes.ravel(), ORDER, "abcdefghi", strict=True):
        row, index = rows[name]
        offset, scale, label = units(name, summary)
        marginal(axis, samples[:, index] * scale + offset, row["mode"] * scale + offset, row["SE"] * scale)
        axis.axvline((row["mode"] + row["shift"]) * scale + offset, color=RED, linewidth=1, linestyle="--", label=DELTA)
        axis.set_title(f"({letter}) {label}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


DELTA = r"$\hat\theta + \delta$, the mean predicted"


def units(name: str, summary: dict[str, Any]) -> tuple[float, float, str]:
    """(offset, scale, label) from standardised data to minutes."""
    symbol, *index = name.split()
    if not index:
        return 0.0, 1.0, "$p$, weight of long eruptions"
    component, feature = map(int, index)
    offset = summary["centre"][feature] if symbol == "mu" else 0.0
    label = f"${SYMBOLS[symbol]}$, {('short', 'long')[component]}: {summary['columns'][feature]}"
    return offset, summary["scale"][feature], label


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
    axis.xaxis.set_major_locator(MaxNLocator(4))
