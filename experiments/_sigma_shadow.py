"""The figure of C17–C21: certified radius against true distance, and what else is proved of EM's fixed points."""

from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from _sigma_figure import name_of
from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, RED, TINY, falling, floor, lettered, panels, styled


@styled
def draw(document: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    """Four panels, cooling from left to right."""
    rows, summary = document["rows"], document["summary"]
    names = ("C17", "C17_bound", "shadow_smallest", "shadow_largest", "shadow_rate", "C21", "rate_bound")
    column = {name: np.array([row[name] for row in rows], float) for name in names}
    column["sigma"] = arrays["sigma"]
    column = {name: values[column["sigma"] >= coldest(column)] for name, values in column.items()}
    laws = {law["kind"]: law for law in document["laws"]}
    figure, axes = panels(width, "ab;cd", rows=2.6, narrow_rows=(2.3, 2, 1.9, 2))
    shadow(axes["a"], column, arrays)
    rates(axes["b"], column)
    mixtures(axes["c"], document["mixtures"])
    pitchfork(axes["d"], laws.get("law"), summary)
    lettered(axes)
    unit = "std. dev." if summary.get("standardised", True) else "units of the data"
    for axis in axes.values():
        axis.set_xlabel(rf"$\sigma$ ({unit}), cooling $\rightarrow$")
    for letter in "ab":
        axes[letter].set_xscale("log")
        axes[letter].set_xlim(2 * summary["critical_sigma"], column["sigma"].min() / 1.15)
        axes[letter].set_ylim(TINY / 3, 30)
    for letter in "abc":
        axis = axes[letter]
        axis.axvline(summary["critical_sigma"], color=GREY, linewidth=0.7, linestyle=":")
        axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    gap = summary["kmeans_gap"]
    title = [
        f"{name_of(document['config']['data'])}, N = {summary['num_rows']}, K = {document['config']['components']}"
    ]
    title += [] if gap is None else [f"k-means' $J$ is proved within {100 * gap:.2g} % of the best"]
    figure.suptitle(("; " if width >= DOUBLE else ";\n").join(title), fontsize=8)
    return figure


def coldest(column) -> float:
    """Down to which σ the upper panels go: a little below where EM's centres are k-means' to the bit."""
    sigma, same = column["sigma"], column["C17"] == 0
    return float(max(sigma.min(), 0.5 * sigma[same].max())) if same.any() else float(sigma.min())


def shadow(axis, column, arrays) -> None:
    """Where EM's fixed point is certified to lie, and where it is."""
    sigma = column["sigma"]
    smallest, largest = column["shadow_smallest"], column["shadow_largest"]
    axis.fill_between(sigma, smallest, largest, color=GREEN, alpha=0.13, linewidth=0)
    axis.plot(sigma, largest, color=GREEN, label="only fixed point within")
    axis.plot(sigma, smallest, color=ORANGE, label="a fixed point within")
    axis.plot(sigma, floor(column["C17_bound"]), color=GREY, label="certified distance")
    falling(axis, sigma, column["C17"], marker="o", color=BLUE, linewidth=0.8, label="true distance")
    axis.axhline(half_margin(arrays["x"], arrays["kmeans_mu"]), color="black", linewidth=0.7, linestyle="--",
                 label="half the least margin")  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylabel("to k-means' centres")
    axis.set_title("certified and true distance")
    axis.legend(loc="lower left", handlelength=1.5, borderaxespad=1.2)


def half_margin(x: np.ndarray, centres: np.ndarray) -> float:
    """To which the largest radius tends: half the least difference between a row's two smallest distances."""
    s = np.sqrt(((x[:, None] - centres[None]) ** 2).sum(2))
    s.sort(axis=1)
    return float((s[:, 1] - s[:, 0]).min() / 2)


def rates(axis, column) -> None:
    """EM's rate, and two bounds of it."""
    axis.plot(column["sigma"], floor(column["shadow_rate"]), color=ORANGE, label="bound in the shadow (C17)")
    axis.plot(column["sigma"], floor(column["rate_bound"]), color=GREY, label="bound of $K^2$ numbers (C21)")
    falling(axis, column["sigma"], column["C21"], marker="o", color=BLUE, linewidth=0.8, label="EM's spectral radius")
    axis.axhline(1, color="black", linewidth=0.7, linestyle="--")
    axis.set_yscale("log")
    axis.set_ylabel("left of the error")
    axis.set_title("the rate, and bounds of it")
    axis.legend(loc="lower left", handlelength=1.5)


def mixtures(axis, found) -> None:
    """What any mixture could gain at the same σ, and what a large one does gain."""
    axis.set_title("no mixture, of any size, gains more")
    axis.set_ylabel("nats above EM's best")
    if not found:
        nothing(axis, "not tried: too many rows")
        return
    sigma, nats, rival = (np.array([at[name] for at in found], float) for name in ("sigma", "nats", "rival"))
    proved = all(at["is_bound"] for at in found)
    label = r"$N\,\log(1 + \sup D/N)$, " + ("proved" if proved else "an estimate")
    axis.plot(sigma, nats, "o-", color=GREY, label=label)
    rival = np.where(rival > 0, rival, np.nan)
    axis.plot(sigma, rival, "o-", color=RED, label="gained by an atom at every row")
    axis.set(xscale="log", yscale="log")
    axis.set_xlim(sigma.max() * 1.15, sigma.min() / 1.15)
    axis.legend(loc="lower right", handlelength=1.5)


def pitchfork(axis, law, summary) -> None:
    """Two centres part at σ_c: measured, and by the law."""
    axis.set_title(r"the split: two centres and the law at $\sigma_c$")
    axis.set_ylabel("distance from the mean")
    if law is None:
        axis.text(
            0.5, 0.5, r"no law: $\lambda_{\max}$ is not simple", transform=axis.transAxes, ha="center", color=GREY
        )
        return
    critical, sigma, measured = summary["critical_sigma"], np.array(law["sigma"]), np.array(law["measured"])
    at = np.linspace(sigma.min(), critical, 200)
    share = np.array(law["share"])
    curve = np.array(law["law"])[0] * np.sqrt((1 - (at / critical) ** 2) / share[0])
    for sign in (1, -1):
        axis.plot(at, sign * curve, color=GREY, label="law (C20)" if sign > 0 else None)
        axis.plot(sigma, sign * measured, "o", color=BLUE, markersize=3.5, label="EM at rest" if sign > 0 else None)
    axis.plot([critical * 1.1, critical], [0, 0], color=BLUE)
    axis.plot([critical, sigma.min()], [0, 0], color=BLUE, linestyle=":", label="unstable")
    axis.set_xlim(critical * 1.1, sigma.min() * 0.98)
    axis.text(0.03, 0.12, r"$a^2 = 3\lambda^2(\sigma_c^2 - \sigma^2)/m_4$", transform=axis.transAxes, color=GREY)
    axis.annotate(r"$\sigma_c$", (critical, 0), xytext=(0, 4), textcoords="offset points", color=GREY, ha="right")
    axis.legend(loc="upper left", handlelength=1, borderaxespad=0)


def nothing(axis, why: str) -> None:
    axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", color=GREY)
