"""A hidden Markov model as σ → 0 and as T → 0: Baum–Welch becomes k-means, and segmental k-means."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from _style import BLUE, COLOURS, DOUBLE, GREY, ORANGE, RED, page, styled

RESULTS = "hmm_sigma_sweep"

GAPS = ("gap", "gap_bound", "lower")
TINY = 1e-17  # zeros are drawn here, at the foot of a logarithmic axis


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    """Cooling from left to right."""
    summary = results["summary"]
    column, cooling = columns(summary["rows"]), columns(summary["temperature_rows"])
    figure = page(DOUBLE, 8.6)
    top, rest = figure.subfigures(2, 1, height_ratios=(1, 3.6))
    chain(top.subplots(), summary, arrays)
    axes = rest.subplots(3, 2)
    splitting(axes[0, 0], summary, arrays)
    objective(axes[0, 1], column)
    e_step(axes[1, 0], column)
    m_step(axes[1, 1], column)
    paths(axes[2, 0], column, summary)
    temperature(axes[2, 1], cooling, summary)
    for axis in axes.ravel()[:5]:
        axis.set(xscale="log", xlim=(1.15 * arrays["sigma"].max(), arrays["sigma"].min() / 1.15))
        axis.axvline(summary["critical_sigma"], color=GREY, linewidth=0.7, linestyle=":")
        axis.set_xlabel(r"$\sigma$, cooling $\rightarrow$")
    return figure


def columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    return {name: np.array([row[name] for row in rows], float) for name in rows[0]}


def floor(values: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(values), TINY)


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
    axis.set_title(rf"(a) segmental k-means at $\sigma = {summary['warm_sigma']:g}$: Viterbi's path $\hat z$ (line)")
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
    axis.set_title(r"(b) means split at $\sigma_c$, end at k-means' (dashed)")


def objective(axis: Any, column: dict[str, np.ndarray]) -> None:
    axis.fill_between(column["sigma"], 0, column["h"], color=BLUE, alpha=0.08, linewidth=0)
    axis.plot(column["sigma"], column["h"], color=GREY, label=r"bound $h = \frac{1}{N}\log\,1/p(r)$")
    axis.plot(column["sigma"], column["v"], "o-", color=BLUE, label=r"$v = (G_\sigma - J)\,/\,2\sigma^2 N$")
    axis.set(ylabel="nats per point", ylim=(-0.05 * column["h"].max(), 1.05 * column["h"].max()))
    axis.set_title(r"(c) $J \leq G_\sigma \leq J + 2\sigma^2 \log\,1/p(r)$")
    axis.legend(loc="lower right")


def e_step(axis: Any, column: dict[str, np.ndarray]) -> None:
    bound, value = floor(column["gamma_gap_bound"]), floor(column["gamma_gap"])
    axis.plot(column["sigma"], bound, color=GREY, label=r"bound $\sum_k R_k\,e^{-\Delta_k/2\sigma^2}$")
    axis.plot(column["sigma"], value, "o-", color=BLUE, label=r"$\max|\gamma - r|$")
    logarithmic(axis)
    axis.set(ylabel="difference in marginals")
    axis.set_title("(d) E-step: marginals become the nearest mean")


def m_step(axis: Any, column: dict[str, np.ndarray]) -> None:
    axis.plot(
        column["sigma"],
        floor(column["H10_bound"]),
        color=GREY,
        label=r"bound diam$(X)\,\Sigma|\gamma - r|\,/\,N_k$ + rounding",
    )
    axis.plot(column["sigma"], floor(column["H10"]), "o-", color=BLUE, label=r"$\|\mu_k(\gamma) - \mu_k(r)\|$")
    logarithmic(axis)
    axis.set(ylabel="distance of means")
    axis.set_title("(e) M-step: its means become k-means'")


def paths(axis: Any, column: dict[str, np.ndarray], summary: dict[str, Any]) -> None:
    """How often the transitions decide, and how often they may."""
    share = 100 / summary["num_times"]
    apart = column["distinct"] == column["distinct"].max()  # means that coincide are equally near
    sigma = column["sigma"][apart]
    axis.plot(sigma, share * column["undecided"][apart], color=GREY, label=r"$\Delta \leq 2\sigma^2\log R$: it may")
    axis.plot(sigma, share * column["apart"][apart], "o-", color=ORANGE, label=r"$\hat z_t \neq r_t$: it does")
    axis.set(ylabel="% of points", ylim=(-4, 104))
    axis.set_title(r"(f) Viterbi: where $A$ overrules the nearest mean")
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
    axis.set_ylabel("difference in marginals")
    axis.set_title(rf"(g) $T \to 0$, $\sigma = {summary['warm_sigma']:g}$: slope $\Delta = {summary['lead']:.3f}$")
    axis.legend(loc="upper right", borderpad=0.2)


def logarithmic(axis: Any) -> None:
    axis.set(yscale="log", ylim=(TINY / 3, 300))
    axis.legend(loc="lower left", handlelength=1.5)
