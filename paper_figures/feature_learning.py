"""Features that a mixture fits, learned through EM's fixed point; what the gradient costs; and σ, tuned by it."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import LogLocator, NullFormatter

from _style import BLACK, BLUE, COLOURS, DOUBLE, GREEN, GREY, ORANGE, PALE, RED, bare, lettered, panels, styled

RESULTS = "feature_learning"

SHOWN = 700  # rows
REACH = (-2.1, 2.1)
EVERY = 10  # steps between two looks at the densities
LEVELS = np.array([-4.0, -3.0, -2.0, -1.0, 0.0])  # of log p, nats


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    summary = results["summary"]
    figure, axes = panels(width, "abcd;efgh", "ab;cd;ef;gh", rows=1.85, narrow_rows=1.7)
    density(axes["a"], "raw rows", "raw", summary, arrays)
    gaussians(axes["b"], arrays)
    density(axes["c"], "density learned", "learned", summary, arrays)
    learning(axes["d"], summary, arrays)
    error(axes["e"], summary)
    cost(axes["f"], summary, np.array(summary["bytes"]) / 1e6, r"memory of $\nabla V$", "MB")
    axes["f"].set_ylim(0)
    cost(axes["g"], summary, 1e3 * np.array(summary["seconds"]), r"time of $\nabla V$", "ms")
    axes["g"].set(yscale="log")
    axes["g"].yaxis.set_minor_formatter(NullFormatter())
    axes["g"].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes["g"].yaxis.set_major_formatter("{x:g}")
    sigma(axes["h"], summary, arrays)
    lettered(axes)
    return figure


def density(axis: Any, title: str, name: str, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Held-out rows in the colours of their arms, on the contours of log p."""
    side = arrays["side"]
    axis.contour(side, side, arrays[f"plane_{name}"], LEVELS, colors=GREY, linewidths=0.5, linestyles="solid")
    rows(axis, arrays["x"], arrays["arm"])
    told = f"{summary[name]:.2f} nats, {100 * summary['accuracy'][name]:.1f} % right"
    axis.set(title=title, xlabel=told.replace("-", "\N{MINUS SIGN}"), xlim=REACH, ylim=REACH)
    axis.set_box_aspect(1)


def rows(axis: Any, x: np.ndarray, arm: np.ndarray) -> None:
    bare(axis)
    for k in np.unique(arm):
        axis.plot(*x[:SHOWN][arm[:SHOWN] == k].T, ".", color=COLOURS[k], markersize=1.5, markeredgewidth=0)


def gaussians(axis: Any, arrays: dict[str, np.ndarray]) -> None:
    """The features, and two standard deviations of every component."""
    rows(axis, arrays["z"], arrays["arm"])
    for mean in arrays["mu_learned"]:
        axis.add_patch(Circle(mean, 2 * arrays["sigma_learned"], fill=False, color=BLACK, linewidth=0.7, zorder=3))
    low, high = np.quantile(arrays["z"], [0.005, 0.995], axis=0)
    middle, reach = (low + high) / 2, 0.6 * np.max(high - low)
    axis.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    axis.set(title="features", xlabel=r"$f_w(x)$; circles: $2\sigma$")
    axis.set_box_aspect(1)


def learning(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    for part, colour in (("train", PALE), ("validation", ORANGE), ("test", BLUE)):
        axis.plot(EVERY * np.arange(len(arrays[part])), arrays[part], color=colour, linewidth=1, label=part)
    axis.axhline(summary["raw"], color=GREY, linestyle="--", linewidth=0.8)
    axis.annotate("raw, test", (0.98, summary["raw"]), (0, -8), xycoords=axis.get_yaxis_transform(), color=GREY,
                  textcoords="offset points", ha="right", fontsize=7)  # fmt: skip
    axis.set(title="learning", xlabel="steps of Adam", ylabel="nats a row")
    axis.set_ylim(summary["raw"] - 0.15)
    axis.legend(loc="center right", handlelength=1)


def error(axis: Any, summary: dict[str, Any]) -> None:
    """Relative to ‖∇V‖; the implicit gradient is what it is measured from, and is held to differences."""
    steps, off = summary["unrolled"], summary["error"][1:]
    axis.plot(steps, off, "o-", color=RED)
    for height, name, colour, up in (
        (summary["frozen"], r"$\theta^*$ held fast", GREEN, -9),
        (summary["differences"], "differences", GREY, 3),
    ):
        axis.axhline(height, color=colour, linestyle="--", linewidth=0.8)
        axis.annotate(name, (0.98, height), (0, up), xycoords=axis.get_yaxis_transform(), color=colour,
                      textcoords="offset points", fontsize=7, ha="right")  # fmt: skip
    axis.set(title="off the implicit", xscale="log", yscale="log", xlabel="steps unrolled", ylabel="relative error")
    ticks(axis, steps)


def cost(axis: Any, summary: dict[str, Any], values: np.ndarray, title: str, unit: str) -> None:
    steps = summary["unrolled"]
    axis.plot(steps, values[1:], "o-", color=RED, label="unrolled")
    axis.axhline(values[0], color=BLUE, label="implicit")
    axis.set(title=title, xscale="log", xlabel="steps unrolled", ylabel=unit)
    ticks(axis, steps)
    axis.legend(loc="upper left", handlelength=1.2)


def ticks(axis: Any, steps: list[int]) -> None:
    axis.set_xticks(steps[::2], [str(n) for n in steps[::2]])
    axis.set_xticks([], minor=True)


def sigma(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """V on the grid, and the secant rule's way up."""
    path = arrays["sigma_path"]
    axis.plot(np.exp(arrays["sigma_grid"]), arrays["sigma_on_grid"], color=PALE, linewidth=2.4, label="grid")
    axis.plot(np.exp(path[:, 0]), path[:, 1], "o-", color=BLUE, linewidth=0.7, label="by gradient")
    axis.axvline(summary["sigma"], color=GREY, linestyle=":", linewidth=0.8)
    axis.set(title=r"$\sigma$, held out", xlabel=r"$\sigma$", ylabel="nats a row")
    axis.legend(loc="lower right", handlelength=1.2)
