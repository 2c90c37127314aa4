"""K-means on Old Faithful: nine panels from the start to rest, and J after every half-step (as Bishop 9.1, 9.2)."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import BLACK, BLUE, DOUBLE, GREY, PALE, RED, lettered, panels, share_x, share_y, styled

RESULTS = "kmeans_steps"
DATA = ("experiments/data/old_faithful.csv",)

CLUSTERS = (BLUE, RED)


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    narrow, narrow_rows = "abc;def;ghi;jjj;kkk", (1.2, 1.05, 1.3, 1.7, 1.5)
    figure, axes = panels(width, "abcj;defj;ghik", narrow, rows=(1.6, 1.5, 1.75), narrow_rows=narrow_rows)
    planes = [axes[letter] for letter in "abcdefghi"]
    for number, axis in enumerate(planes):
        panel(axis, number, results, arrays)
    trace(axes["j"], axes["k"], results)
    lettered(axes)
    share_x(*planes)
    share_y(*planes)
    share_x(axes["j"], axes["k"])
    return figure


def panel(axis: Any, number: int, results: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Panel 0 is the start; odd panels follow an E-step, even ones an M-step."""
    scale, centre = np.array(results["summary"]["scale"]), np.array(results["summary"]["centre"])
    x, step = arrays["x"] * scale + centre, (number - 1) // 2
    after_e = number % 2 == 1
    mu = arrays["mu"][0 if number == 0 else step + (not after_e)] * scale + centre
    r = arrays["r"][max(step, 0)]
    for k, colour in enumerate(CLUSTERS):
        rows = x[r == k] if number else x[k :: len(CLUSTERS)]
        axis.plot(*rows.T, "o", color=colour if number else PALE, markersize=1.6, markeredgewidth=0, alpha=0.75)
    if after_e:
        boundary(axis, mu, scale, centre)
    for point, colour in zip(mu, CLUSTERS, strict=True):
        axis.plot(*point, "X", color=colour, markersize=7, markeredgecolor="white", markeredgewidth=0.7, zorder=3)
    title = "start" if number == 0 else f"{'E' if after_e else 'M'}-step {step + 1}"
    axis.set_title(title, color=BLACK if number == 0 else BLUE if after_e else RED)
    everything = np.concatenate([x, arrays["mu"][0] * scale + centre])
    low, high = everything.min(axis=0), everything.max(axis=0)
    pad = 0.06 * (high - low)
    axis.set(xlim=(low[0] - pad[0], high[0] + pad[0]), ylim=(low[1] - pad[1], high[1] + pad[1]))
    axis.set(xticks=[2, 3, 4, 5], yticks=[50, 70, 90])
    axis.set_xlabel("eruption (min)" if number % 3 == 1 else "")
    axis.set_ylabel("waiting (min)" if number // 3 == 1 else "")


def boundary(axis: Any, mu: np.ndarray, scale: np.ndarray, centre: np.ndarray) -> None:
    """Where the two centres are equally near, in the standardised units of the distance."""
    a, b = (mu - centre) / scale
    middle, along = (a + b) / 2, np.array([b[1] - a[1], a[0] - b[0]])
    ends = np.stack([middle - 9 * along, middle + 9 * along]) * scale + centre
    axis.plot(*ends.T, color=GREY, linewidth=0.8, linestyle="--", zorder=2)


def trace(above: Any, below: Any, results: dict[str, Any]) -> None:
    """J against half-steps, E in blue and M in red, and its distance to the end on a logarithmic axis."""
    J = np.array(results["summary"]["J"])
    half = np.arange(1, len(J) + 1)
    excess = J - results["summary"]["J_end"]
    for axis, values in ((above, J), (below, np.where(excess > 1e-9, excess, np.nan))):
        axis.plot(half, values, color=PALE, linewidth=1, zorder=1)
        axis.plot(half[::2], values[::2], "o", color=BLUE, markersize=4, label="after E-step")
        axis.plot(half[1::2], values[1::2], "o", color=RED, markersize=4, label="after M-step")
    above.set(ylabel="$J$ (squared std. dev.)", ylim=(0, None))
    above.set_title(r"$J$ never rises")
    above.legend(loc="upper right")
    below.set(yscale="log", ylabel=r"$J - J_\mathrm{end}$")
    for axis in (above, below):
        axis.set(xlabel="iteration (E, then M)", xticks=half[::2] + 0.5, xlim=(0.5, len(half) + 0.5))
    below.set_xticklabels([f"{t}" for t in range(1, len(half) // 2 + 1)])
    below.set_title(f"at rest after {results['summary']['moves']} steps")
