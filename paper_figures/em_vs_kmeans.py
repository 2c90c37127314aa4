"""EM for full covariances on Old Faithful after L steps (as Bishop 9.8), and its speed against that of k-means."""

from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import MaxNLocator

from _style import BLACK, BLUE, DOUBLE, GREY, RED, lettered, panels, share_x, share_y, styled

RESULTS = "em_vs_kmeans"
DATA = ("experiments/data/old_faithful.csv",)

COMPONENTS = (BLUE, RED)
TINY = 1e-13  # below this a distance is rounding


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    summary = results["summary"]
    narrow = "abc;de.;fff;ggg;hhh"
    figure, axes = panels(width, "abcde;fgh", narrow, rows=(1.85, 2.4), narrow_rows=(1.35, 1.6, 1.8, 1.8, 1.7))
    planes = [axes[letter] for letter in "abcde"]
    for index, (axis, step) in enumerate(zip(planes, (0, *summary["shown"]), strict=True)):
        plane(axis, index, step, summary, arrays)
    distance(axes["f"], summary, arrays)
    objective(axes["g"], summary, arrays)
    steps(axes["h"], arrays)
    lettered(axes)
    share_x(*planes)
    share_y(*planes)
    return figure


def plane(axis: Any, index: int, step: int, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The points in the colours of their responsibilities, and one standard deviation of each component."""
    scale, centre = np.array(summary["scale"]), np.array(summary["centre"])
    x, mu = arrays["x"] * scale + centre, arrays["mu"][index] * scale + centre
    colours = arrays["gamma"][index] @ np.array([to_rgb(colour) for colour in COMPONENTS]) if index else GREY
    axis.scatter(*x.T, s=3, c=colours, linewidths=0, alpha=0.8, zorder=2.5)
    for k, colour in enumerate(COMPONENTS):
        values, vectors = np.linalg.eigh(arrays["Sigma"][index, k] * np.outer(scale, scale))
        width, height = 2 * np.sqrt(values)
        angle = np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0]))
        axis.add_patch(
            Ellipse(mu[k], width, height, angle=angle, fill=False, edgecolor="white", linewidth=2.2, zorder=3)
        )
        axis.add_patch(
            Ellipse(mu[k], width, height, angle=angle, fill=False, edgecolor=colour, linewidth=1.2, zorder=3)
        )
        axis.plot(*mu[k], "o", color=colour, markersize=3.5, markeredgecolor="white", markeredgewidth=0.6, zorder=3)
    axis.set(title=f"$L = {step}$" if index else "start", xlabel="eruption (min)", ylabel="waiting (min)")
    axis.set(xticks=[2, 4], yticks=[40, 60, 80, 100], xlim=(0.4, 6.6), ylim=(40, 102))


def distance(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """‖θ_t − θ*‖ against t, and the slope that the spectral radius gives it."""
    soft, hard = arrays["soft_error"], arrays["hard_error"]
    count, moves = int(np.flatnonzero(soft > TINY).max()) + 1, int(np.flatnonzero(hard > 0).max()) + 1
    first, _ = summary["tail"]
    t = np.arange(first - 3, count + 1)
    radius = summary["spectral_radius"]
    axis.plot(t, 4 * soft[first] * radius ** (t - first), color=BLACK, linewidth=0.9, linestyle="--", zorder=1)
    axis.annotate(
        rf"$\rho^{{\,t}}$, $\rho = {radius:.3f}$",
        (first + 2, 4 * soft[first] * radius**2),
        xytext=(5, 3),
        textcoords="offset points",
    )
    axis.plot(np.arange(count), soft[:count], "o-", color=BLUE, label="EM")
    axis.plot(np.arange(moves), hard[:moves], "s-", color=RED, label="k-means")
    axis.plot([moves - 1, moves], [hard[moves - 1], TINY], color=RED, linestyle=":", linewidth=1)
    axis.annotate("exactly 0", (moves, TINY), xytext=(3, 4), textcoords="offset points", color=RED, fontsize=7)
    axis.set(yscale="log", ylim=(TINY, 30), xlabel="iteration $t$", ylabel=r"$\|\theta_t - \theta^\star\|$ (std. dev.)")
    axis.set_title("distance to the fixed point")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper right")


def objective(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """L* − L and J − J* against t: the square of the distance."""
    gap, excess = arrays["likelihood"][-1] - arrays["likelihood"], arrays["distortion"] - arrays["distortion"][-1]
    gap, excess = (
        gap[: int(np.flatnonzero(gap > 1e-11).max()) + 1],
        excess[: int(np.flatnonzero(excess > 1e-9).max()) + 1],
    )
    first, _ = summary["tail"]
    square = summary["spectral_radius"] ** 2
    t = np.arange(first - 3, len(gap) + 1)
    axis.plot(t, 6 * gap[first] * square ** (t - first), color=BLACK, linewidth=0.9, linestyle="--", zorder=1)
    axis.annotate(r"$\rho^{\,2t}$", (first, 6 * gap[first]), xytext=(5, 2), textcoords="offset points")
    axis.plot(np.arange(len(gap)), gap, "o-", color=BLUE, label=r"EM: $L^\star - L_t$ (nats)")
    axis.plot(np.arange(len(excess)), excess, "s-", color=RED, label=r"k-means: $J_t - J^\star$")
    axis.set(yscale="log", ylim=(1e-11, 1e6), xlabel="iteration $t$", ylabel="to the optimum")
    axis.set_title("distance of the objective")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper right")


def steps(axis: Any, arrays: dict[str, np.ndarray]) -> None:
    """Steps to rest from random starts."""
    soft, hard = arrays["em_steps"][1:], arrays["kmeans_steps"][1:]
    bins = np.arange(0.5, soft.max() + 1.5)
    axis.hist(hard, bins, color=RED, label=f"k-means, median {np.median(hard):g}")
    axis.hist(soft, bins, color=BLUE, alpha=0.8, label=f"EM, median {np.median(soft):g}")
    axis.set(xlabel="iterations to convergence", ylabel=f"of {len(soft)} random starts")
    axis.set_title("from random starts")
    axis.set_axisbelow(True)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(loc="upper right")
