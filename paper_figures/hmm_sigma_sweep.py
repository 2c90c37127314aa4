"""A hidden Markov model as σ → 0 and as T → 0: Baum–Welch becomes k-means, and segmental k-means."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from _style import BLUE, COLOURS, DOUBLE, GREY, ORANGE, RED, TINY, falling, floor, lettered, panels, share_x, styled

RESULTS = "hmm_sigma_sweep"

GAPS = ("gap", "gap_bound", "lower")


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    """Cooling from left to right."""
    summary = results["summary"]
    column, cooling = columns(summary["rows"]), columns(summary["temperature_rows"])
    rows, narrow_rows = (1.9, 2.05, 2.05, 2.3), (1.55, 1.15, 1.1, 1.1, 1.1, 1.3, 1.7)
    figure, axes = panels(width, "aa;bc;de;fg", rows=rows, narrow_rows=narrow_rows)
    chain(axes["a"], summary, arrays)
    splitting(axes["b"], summary, arrays)
    objective(axes["c"], column)
    e_step(axes["d"], column)
    m_step(axes["e"], column)
    paths(axes["f"], column, summary)
    temperature(axes["g"], cooling, summary)
    lettered(axes)
    swept = [axes[letter] for letter in "bcdef"]
    for axis in swept:
        axis.set(xscale="log", xlim=(1.15 * arrays["sigma"].max(), arrays["sigma"].min() / 1.15))
        axis.axvline(summary["critical_sigma"], color=GREY, linewidth=0.7, linestyle=":")
        axis.set_xlabel(r"$\sigma$ (units of $x$), cooling $\rightarrow$")
    share_x(*swept)
    return figure


def columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def chain(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The series, Viterbi's path through the means, and the points that are not at their nearest mean."""
    x, mu, path = arrays["x"][:, 0], arrays["segment_mu"][:, 0], arrays["segment_path"]
    rank = np.argsort(np.argsort(mu))
    apart = np.abs(x[:, None] - mu[None]).argmin(axis=1) != path
    t = np.arange(len(x))
    axis.step(t, mu[path], color=GREY, linewidth=0.9, where="mid", zorder=1)
    for k, colour in enumerate(COLOURS[: len(mu)]):
        axis.plot(t[rank[path] == k], x[rank[path] == k], "o", color=colour, markersize=2.5)
    axis.plot(
        t[apart], x[apart], "o", color="black", fillstyle="none", markersize=5, markeredgewidth=0.7,
        label=f"another mean is nearer ({apart.sum()} of {len(x)})",
    )  # fmt: skip
    axis.set(xlabel="time $t$", ylabel="$x_t$", xlim=(-2, len(x) + 1))
    axis.set_ylim(x.min() - 0.5, x.max() + 1.8)
    axis.set_title(rf"segmental k-means, $\sigma = {summary['warm_sigma']:g}$ (line: Viterbi's $\hat z$)")
    axis.legend(loc="upper right", borderpad=0)


def splitting(axis: Any, summary: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    mu = np.sort(arrays["mu"][:, :, 0], axis=1)
    for k in range(mu.shape[1]):
        axis.plot(arrays["sigma"], mu[:, k], "o-", color=COLOURS[k])
    for value in arrays["kmeans_mu"][:, 0]:
        axis.axhline(value, color="black", linewidth=0.7, linestyle="--", zorder=1)
    axis.annotate(
        r"$\sigma_c$", (summary["critical_sigma"], 0.03), (3, 0), xycoords=axis.get_xaxis_transform(), color=GREY,
        textcoords="offset points",
    )  # fmt: skip
    axis.set_ylabel(r"means $\mu_k$")
    axis.set_title("means split, and end at k-means' (dashed)")


def objective(axis: Any, column: dict[str, np.ndarray]) -> None:
    axis.fill_between(column["sigma"], 0, column["h"], color=BLUE, alpha=0.08, linewidth=0)
    axis.plot(column["sigma"], column["h"], color=GREY, label=r"bound $h = \frac{1}{N}\log\,1/p(r)$")
    axis.plot(column["sigma"], column["v"], "o-", color=BLUE, label=r"$v = (G_\sigma - J)\,/\,2\sigma^2 N$")
    axis.set(ylabel="nats per point", ylim=(-0.05 * column["h"].max(), 1.05 * column["h"].max()))
    axis.set_title(r"$J \leq G_\sigma \leq J + 2\sigma^2 \log\,1/p(r)$")
    axis.legend(loc="lower right")


def e_step(axis: Any, column: dict[str, np.ndarray]) -> None:
    bound = column["gamma_gap_bound"]
    axis.plot(column["sigma"], bound, color=GREY, label=r"bound $\sum_k R_k\,e^{-\Delta_k/2\sigma^2}$")
    falling(axis, column["sigma"], column["gamma_gap"], marker="o", color=BLUE, label=r"$\max|\gamma - r|$")
    logarithmic(axis)
    axis.set(ylabel="probability")
    axis.set_title(r"E-step: $\gamma$ becomes the nearest mean $r$")


def m_step(axis: Any, column: dict[str, np.ndarray]) -> None:
    """The mean that moves furthest; its bound is the largest too."""
    label = r"$\max_k\,\|\mu_k(\gamma) - \mu_k(r)\|$"
    axis.plot(column["sigma"], floor(column["means_gap_bound"]), color=GREY, label="bound (H10)")
    falling(axis, column["sigma"], column["means_gap"], marker="o", color=BLUE, label=label)
    logarithmic(axis)
    axis.set(ylabel="units of $x$")
    axis.set_title(r"M-step: means of $\gamma$ become those of $r$")


def paths(axis: Any, column: dict[str, np.ndarray], summary: dict[str, Any]) -> None:
    """How often the transitions decide, and how often they may."""
    share = 100 / summary["num_times"]
    apart = column["distinct"] == column["distinct"].max()  # means that coincide are equally near
    sigma = column["sigma"][apart]
    axis.plot(sigma, share * column["undecided"][apart], color=GREY, label=r"$\Delta \leq 2\sigma^2\log R$: it may")
    axis.plot(sigma, share * column["apart"][apart], "o-", color=ORANGE, label=r"$\hat z_t \neq r_t$: it does")
    axis.set(ylabel="times (%)", ylim=(-4, 104))
    axis.set_title(r"Viterbi: $A$ against the nearest mean")
    axis.legend(loc="upper right", borderpad=0.2)


def temperature(axis: Any, cooling: dict[str, np.ndarray], summary: dict[str, Any]) -> None:
    """1/T from left to right: the logarithm is a line of slope −Δ."""
    shown = slice(0, -1)  # the last is too cold for anything to be seen
    inverse, gap, upper, lower = (values[shown] for values in (1 / cooling["T"], *(cooling[name] for name in GAPS)))
    above = upper > 1e-12  # below it the bound is its allowance for rounding
    axis.fill_between(inverse, lower, upper, where=above, color=RED, alpha=0.1, linewidth=0)
    axis.plot(inverse[above], upper[above], color=GREY, label=r"$s_T\,/\,(1 + s_T)$")
    axis.plot(inverse, lower, color=GREY, linestyle="--", label=r"$P_T\,e^{-\Delta/T}$")
    axis.plot(inverse[gap > TINY], gap[gap > TINY], "o", color=RED, label=r"$\max_t\,(1 - \gamma_{t \hat z_t})$")
    axis.set(yscale="log", ylim=(TINY, 30), xlabel=r"$1/T$, cooling $\rightarrow$", xlim=(0, inverse[-1]))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_ylabel("probability")
    axis.set_title(rf"$T \to 0$, $\sigma = {summary['warm_sigma']:g}$: slope $\Delta = {summary['lead']:.3f}$")
    axis.legend(loc="upper right", borderpad=0.2)


def logarithmic(axis: Any) -> None:
    axis.set(yscale="log", ylim=(TINY / 3, 300))
    axis.legend(loc="upper right", handlelength=1.5, borderaxespad=0)
