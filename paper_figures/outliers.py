"""Outliers move a mean and leave a medoid: the plane, the moves against the outliers' distance, and the labels lost."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREEN, ORANGE, PALE, RED, key, lettered, panels, share_x, styled

RESULTS = "outliers"
DATA = ("experiments/data/old_faithful.csv",)

METHODS = {  # name in the results: label, colour, line
    "kmeans": ("k-means", BLUE, "-"),
    "manhattan": ("k-medoids, Manhattan", RED, "-"),
    "euclidean": ("k-medoids, Euclidean", GREEN, (0, (3, 2))),
}
SHOWN = (10, 20, 30, 45)  # distances at which the mean is marked


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    figure, axes = panels(width, "abc", rows=2.9, narrow_rows=(2.4, 1.8, 2.2))
    plane(axes["a"], results["summary"], arrays)
    moves(axes["b"], results["summary"], arrays["distance"])
    labels(axes["c"], results["summary"], arrays["distance"])
    for axis in (axes["b"], axes["c"]):
        axis.set_xscale("log")
        axis.set_xlabel(r"outliers' distance $d$ (std. dev.)")
    lettered(axes)
    share_x(axes["b"], axes["c"])
    key(figure, axes["b"], columns=5, narrow=2)
    return figure


def plane(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The long eruptions' mean follows the outliers out of its cluster, and ends among them; the medoids stay."""
    scale, centre = np.array(summary["scale"]), np.array(summary["centre"])

    def raw(points: np.ndarray) -> np.ndarray:
        return points * scale + centre

    axis.plot(*raw(arrays["x"]).T, "o", color=PALE, markersize=1.8, markeredgewidth=0, zorder=1)
    steps = [int(np.argmin(np.abs(arrays["distance"] - shown))) for shown in SHOWN]
    path = raw(arrays["kmeans"][: steps[-1] + 1, 1])
    axis.plot(*path.T, color=BLUE, linewidth=1, zorder=2)
    for t in steps:
        axis.plot(*raw(arrays["kmeans"][t, 1]), "o", color=BLUE, markersize=4, zorder=3)
    for t in steps[-2:]:
        label = f"$d$ = {arrays['distance'][t]:.0f}"
        axis.annotate(label, raw(arrays["kmeans"][t, 1]), xytext=(6, -2), textcoords="offset points", fontsize=7)
    axis.plot(*raw(arrays["kmeans"][-1, 0]), "o", color=BLUE, markersize=5, fillstyle="none", zorder=3)
    note = "one mean for all,\nonce the other is\nat the outliers"
    axis.annotate(
        note,
        raw(arrays["kmeans"][-1, 0]),
        xytext=(3.6, 66),
        textcoords="data",
        va="top",
        fontsize=7,
        arrowprops={"arrowstyle": "-", "color": BLUE, "linewidth": 0.6, "shrinkB": 3},
    )
    for name, marker, size in (("manhattan", "D", 6), ("euclidean", "s", 3)):
        colour = METHODS[name][1]
        axis.plot(*raw(arrays[name][-1]).T, marker, color=colour, markersize=size, markeredgecolor="white", zorder=6)
    axis.annotate(
        "outliers",
        (0.99, 0.03),
        xycoords="axes fraction",
        xytext=(-30, 9),
        textcoords="offset points",
        ha="right",
        va="center",
        arrowprops={"arrowstyle": "->", "color": BLACK},
    )
    axis.set(xlabel="eruption (min)", ylabel="waiting (min)", xlim=(1.4, 6.9), ylim=(40, 100))
    axis.set_title("one mean leaves, medoids stay")


def moves(axis: Any, summary: dict[str, Any], distance: np.ndarray) -> None:
    """How far a centre went from where it is without outliers; zero has its place on the axis."""
    for name, (label, colour, line) in METHODS.items():
        axis.plot(distance[1:], summary[f"{name}_moved"][1:], linestyle=line, color=colour, label=label, clip_on=False)
    axis.plot(distance[1:], summary["mean_predicted"][1:], ":", color=BLACK, label=r"$m\,d/(n+m)$")
    bound = max(b for row in summary["euclidean_bound"] for b in row if b is not None)
    axis.axhline(bound, color=ORANGE, linewidth=0.9, linestyle="--", label=r"bound $2\,\Sigma V/(n-m)$")
    axis.set_yscale("symlog", linthresh=1e-2, linscale=0.6)
    axis.set(ylim=(-3e-3, None), yticks=[0, 1e-2, 1, 1e2, 1e4], ylabel="move (std. dev.)")
    axis.set_title("means move, medoids do not")


def labels(axis: Any, summary: dict[str, Any], distance: np.ndarray) -> None:
    for name, (_, colour, line) in METHODS.items():
        share = 100 * np.array(summary[f"{name}_relabelled"]) / summary["num_rows"]
        axis.plot(distance[1:], share[1:], linestyle=line, color=colour, clip_on=False)
    axis.set(ylim=(-4, 100), ylabel="eruptions relabelled (%)")
    axis.set_title("and then clusters merge")
