"""Centres as σ falls and rises again on three data sets, the spectra that foretell splits, and the first split."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from _style import BLUE, DOUBLE, GREY, PALE, RED, key, lettered, panels, share_x, share_y, styled

RESULTS = "phase_diagram"
DATA = ("experiments/data/old_faithful.csv",)

NAMES = {"blobs": "blobs", "iris": "iris", "old_faithful": "Old Faithful"}
LABELS = (r"axis 1 ($\sigma_c$)", "spectrum", r"apart ($\sigma_c$)")
COOLING = r"$\sigma/\sigma_c$, cooling $\rightarrow$"
TICKS = (0.25, 0.35, 0.5, 0.7, 1.0)


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    sets = results["summary"]["sets"]
    columns = ["abcdefghi"[place : place + 3] for place in range(0, 3 * len(sets), 3)]
    wide = ";".join(map("".join, zip(*columns, strict=True)))
    figure, axes = panels(width, wide, rows=(2.3, 1.85, 2.4), narrow_rows=(1.05, 1, 1.1) * len(sets))
    for column, (name, found) in zip(columns, sets.items(), strict=True):
        one = {key.split(" | ")[1]: value for key, value in arrays.items() if key.startswith(f"{name} | ")}
        above, middle, below = (axes[letter] for letter in column)
        branches(above, found, one)
        spectra(middle, found, one)
        closely(below, found, one)
        above.set_title(f"{NAMES[name]}, $K = {found['centres']}$")
        middle.set_title("what foretells a split")
        below.set_title("the first split, closely")
        below.set_ylim(-0.05, 1.75)
        share_x(above, middle)
        for axis, label in zip((above, middle, below), LABELS, strict=True):
            axis.set_ylabel(label)
    lettered(axes)
    for row in zip(*columns, strict=True):
        share_y(*(axes[letter] for letter in row), numbers=False)
    key(figure, *(axes[letter] for letter in columns[0]), columns=5, narrow=2)
    return figure


def branches(axis: Any, found: dict[str, Any], one: dict[str, np.ndarray]) -> None:
    """Distinct centres, in units of σ_c: down in colour, up again dashed; the predicted σ's."""
    critical, sigma = found["sigma_c"], one["sigma"] / found["sigma_c"]
    predictions(axis, found, named=True)
    cold = axis.plot(sigma, one["down"] / critical, color=BLUE, linewidth=1.1)
    warm = axis.plot(sigma, one["up"] / critical, color=RED, linewidth=0.8, linestyle=(0, (3, 2)))
    cold[0].set_label("cooling")
    warm[0].set_label("heating again")
    cooling(axis, sigma)
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlabel(COOLING)


def predictions(axis: Any, found: dict[str, Any], named: bool = False) -> None:
    for number, split in enumerate(found["splits"]):
        at = split["predicted"] / found["sigma_c"]
        label = None if number or not named else "predicted split"
        axis.axvline(at, color=GREY, linewidth=0.6, linestyle=":", zorder=1, label=label)


def cooling(axis: Any, sigma: np.ndarray) -> None:
    axis.set(xscale="log", xlim=(sigma.max() * 1.04, sigma.min() / 1.02))
    axis.set_xticks([tick for tick in TICKS if tick >= sigma.min() * 0.97], minor=False)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def spectra(axis: Any, found: dict[str, Any], one: dict[str, np.ndarray]) -> None:
    """λ_max(C_k)/σ² of every cluster that several centres share, which part where it is 1; EM's ρ(J) above them all."""
    sigma = one["sigma"] / found["sigma_c"]
    predictions(axis, found)
    axis.axhline(1, color=GREY, linewidth=0.6, zorder=1)
    axis.plot(sigma, one["radius"], color=PALE, linewidth=2.4, label="EM's spectral radius", zorder=2)
    clusters = axis.plot(sigma, one["pull"], color=BLUE, linewidth=1)
    clusters[0].set_label(r"$\lambda_{\max}(C_k)/\sigma^2$, shared cluster")
    measured = np.array([split["measured"] for split in found["splits"]]) / found["sigma_c"]
    axis.plot(measured, np.ones_like(measured), "o", color=RED, markersize=3.5, label="measured split", zorder=4)
    cooling(axis, sigma)
    axis.set(ylim=(0, 1.08), xlabel="")


def closely(axis: Any, found: dict[str, Any], one: dict[str, np.ndarray]) -> None:
    """Near σ_c: two centres follow C20's law both ways; more jump, and stay apart on the way back."""
    critical, near = found["sigma_c"], one["near"] / found["sigma_c"]

    def reach(way: str) -> np.ndarray:
        return np.ptp(one[way][: len(near)], axis=1) / critical

    axis.axvline(found["jumps_at"], color=RED, linewidth=0.6, linestyle=":", zorder=1, label="jump of the best (C19)")
    fine = np.linspace(near.max(), near.min(), 500)
    law = 2 * found["amplitude"] * np.sqrt(np.maximum(1 - fine**2, 0))
    axis.axvline(1, color=GREY, linewidth=0.6, linestyle=":", zorder=1)
    axis.plot(fine, law, color=PALE, linewidth=2.4, label="law of $K = 2$ (C20)")
    axis.plot(near[::2], reach("pair_down")[::2], "o", color=BLUE, markersize=2.2, label="$K = 2$")
    axis.plot(near, reach("down"), color=BLUE)
    axis.plot(near, reach("up"), color=RED, linestyle=(0, (3, 2)))
    axis.set(xlim=(near.max(), near.min()), xlabel=COOLING)
