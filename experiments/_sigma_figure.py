"""The figure of the σ-sweep: one page that shows EM becoming k-means."""

from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from _style import (
    BLUE,
    COLOURS,
    DOUBLE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    TINY,
    falling,
    floor,
    lettered,
    panels,
    share_x,
    styled,
)

SHORT = {"b": "first axis", "c": "difference", "d": "distance", "e": "objective", "f": "nats; $J$", "g": "EM's steps",
         "h": "residual"}  # y-axes of low panels  # fmt: skip
MANY = 5_000  # points that a PDF draws one by one


@styled
def draw(document: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    """Eight panels, cooling from left to right."""
    rows, summary = document["rows"], document["summary"]
    column = {
        name: np.array([row[name] for row in rows], float)
        for name in rows[0]
        if name != "status" and not isinstance(rows[0][name], list)
    }
    column["sigma"] = arrays["sigma"]
    figure, axes = panels(
        width, "ab;cd;ef;gh", rows=(2.3, 1.95, 1.95, 2.3), narrow_rows=(1.6, 1.05, 1.1, 1.1, 1.15, 1.1, 1.2, 1.3)
    )
    plane(axes["a"], arrays, summary)
    splitting(axes["b"], arrays, summary)
    e_step(axes["c"], column)
    m_step(axes["d"], column)
    objectives(axes["e"], column, summary, int(document["config"]["components"]))
    divergence(axes["f"], column)
    speed(axes["g"], column, summary)
    residuals(axes["h"], column, document)
    lettered(axes)
    for letter, label in SHORT.items() if width < DOUBLE else ():
        axes[letter].set_ylabel(label)
    cooled = [axis for letter, axis in axes.items() if letter != "a"]
    unit = "standard deviations of the data" if summary.get("standardised", True) else "units of the data"
    for axis in cooled:
        axis.set_xscale("log")
        axis.set_xlim(arrays["sigma"].max() * 1.15, arrays["sigma"].min() / 1.15)
        axis.axvline(summary["critical_sigma"], color=GREY, linewidth=0.7, linestyle=":")
        axis.set_xlabel(rf"$\sigma$ ({unit}), cooling $\rightarrow$")
    share_x(*cooled)
    held = sum(claim["holds"] for claim in document["claims"])
    title = (
        r"EM for $\sigma^2 I$ Gaussians becomes k-means as $\sigma \to 0$:",
        f"{name_of(document['config']['data'])}, N = {summary['num_rows']}, K = {document['config']['components']}; "
        f"{held} of {len(document['claims'])} claims hold",
    )
    figure.suptitle((" " if width >= DOUBLE else "\n").join(title), fontsize=8)
    return figure


def name_of(source: str) -> str:
    names = {"old_faithful": "Old Faithful", "iris": "iris", "blobs": "blobs"}
    return names.get(source, source.replace("\\", "/").split("/")[-1])


def plane(axis, arrays, summary) -> None:
    """The data, each centre's path as σ falls, and k-means."""
    x, mu, end = arrays["x"], follow(arrays["mu"]), arrays["kmeans_mu"]
    scale, centre = np.array(summary["scale"]), np.array(summary["centre"])

    def raw(points):
        return points * scale + centre

    axis.scatter(*raw(x)[:, :2].T, s=4, color="#bbbbbb", linewidths=0, zorder=1, rasterized=len(x) > MANY)
    for k in range(mu.shape[1]):
        axis.plot(*raw(mu[:, k])[:, :2].T, "o-", color=COLOURS[k % len(COLOURS)], markersize=2, linewidth=0.9)
    axis.plot(*raw(end)[:, :2].T, "x", color="black", markersize=7, markeredgewidth=1.4, label="k-means")
    axis.plot(*centre[:2], "s", color="black", markersize=4, fillstyle="none", label=r"mean $\bar x$")
    axis.set_xlabel(summary["columns"][0])
    axis.set_ylabel(summary["columns"][1])
    axis.set_title("EM's centres go from the mean to k-means")
    axis.legend(loc="upper left")


def follow(mu: np.ndarray) -> np.ndarray:
    """Relabel each σ's centres to continue the previous ones (from cold to hot, nearest in total)."""
    from scipy.optimize import linear_sum_assignment

    paths = [mu[-1]]
    for centres in mu[-2::-1]:
        cost = ((paths[-1][:, None] - centres[None]) ** 2).sum(-1)
        paths.append(centres[linear_sum_assignment(cost)[1]])
    return np.stack(paths[::-1])


def splitting(axis, arrays, summary) -> None:
    """Bifurcation along the first principal axis."""
    x, mu = arrays["x"], follow(arrays["mu"])
    _, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    first = vectors[:, -1] * np.sign(vectors[:, -1].sum() or 1)
    for k in range(mu.shape[1]):
        axis.plot(arrays["sigma"], mu[:, k] @ first, "o-", color=COLOURS[k % len(COLOURS)])
    for value in arrays["kmeans_mu"] @ first:
        axis.axhline(value, color="black", linewidth=0.7, linestyle="--")
    axis.annotate(
        r"$\sigma_c = \sqrt{\lambda_{\max}}$",
        (summary["critical_sigma"], 0.48),
        xycoords=("data", "axes fraction"),
        xytext=(4, 0),
        textcoords="offset points",
        color=GREY,
    )
    axis.set_ylabel("first principal coordinate")
    axis.set_title(r"They split at $\sigma_c$ (dashed: k-means)")


def e_step(axis, column) -> None:
    axis.plot(column["sigma"], floor(column["gamma_gap_bound"]), color=GREY, label="bound (C7)")
    falling(axis, column["sigma"], column["gamma_gap"], marker="o", color=BLUE, label=r"$\max|\gamma - r|$")
    logarithmic(axis)
    axis.set_title(r"E-step: $\gamma$ becomes the nearest centre $r$")
    axis.set_ylabel("difference in assignment")
    axis.legend(loc="lower left", handlelength=1.5)


def m_step(axis, column) -> None:
    label = "bound (C10)"  # diam(X) Σ|γ − r|/N_k
    axis.plot(column["sigma"], floor(column["C10_bound"]), color=GREY, label=label)
    falling(axis, column["sigma"], column["C10"], marker="o", color=BLUE, label=r"$\|\mu_k(\gamma) - \mu_k(r)\|$")
    logarithmic(axis)
    axis.set_title(r"M-step: means of $\gamma$ become those of $r$")
    axis.set_ylabel("distance of centres")
    axis.legend(loc="lower left", handlelength=1.5)


def objectives(axis, column, summary, num_components: int) -> None:
    """G_σ = J + 2σ²N v in its band, falling to k-means' J."""
    sigma, J = column["sigma"], column["J"]
    room = 2 * sigma**2 * summary["num_rows"]
    axis.fill_between(
        sigma, J, J + room * np.log(num_components), color=BLUE, alpha=0.12, linewidth=0,
        label="allowed",
    )  # fmt: skip
    axis.plot(sigma, J + room * column["objective_gap"], "o-", color=BLUE, label=r"$G_\sigma$")
    axis.plot(sigma, J, color=ORANGE, label=r"$J$ at EM's centres")
    axis.axhline(summary["kmeans_J"], color="black", linewidth=0.7, linestyle="--", label=r"k-means' $J$")
    axis.set_yscale("log")
    axis.set_title(r"Objective: $G_\sigma$ falls to k-means' $J$")
    axis.set_ylabel("squared units of the data")
    axis.legend(loc="upper right", ncols=2, handlelength=1.5, columnspacing=1, borderaxespad=0)


def divergence(axis, column) -> None:
    axis.plot(column["sigma"], np.abs(column["Q"]), "s-", color=RED, label="$|Q|$")
    axis.plot(column["sigma"], floor(column["scaled_residual"]), "o-", color=BLUE, label=r"$|2\sigma^2(Q - C) + J|$")
    axis.set_yscale("log")
    axis.set_title(r"$Q$ has no limit; $2\sigma^2(Q - C) \to -J$ has")
    axis.set_ylabel(r"nats, and units of $J$")
    axis.legend(loc="lower left", borderaxespad=0.2)


def speed(axis, column, summary) -> None:
    axis.plot(column["sigma"], column["iterations"], "o-", color=BLUE, label="EM steps")
    steps = summary["kmeans_steps"]
    axis.axhspan(min(steps), max(steps), color=GREY, alpha=0.25, linewidth=0, label="k-means steps")
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%d"))
    axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axis.set_ylim(1, 8 * max(column["iterations"].max(), *steps))
    axis.set_ylabel("steps to convergence", color=BLUE)
    slowest = column["sigma"][column["iterations"].argmax()]
    where = r"$\sigma_c$" if abs(np.log(slowest / summary["critical_sigma"])) < 0.2 else rf"$\sigma = {slowest:.2g}$"
    as_fast = column["iterations"][-1] <= 2 * max(summary["kmeans_steps"])
    axis.set_title(f"EM: slowest at {where}" + (", ends as fast as k-means" if as_fast else ""))
    twin = axis.twinx()
    twin.spines["right"].set_visible(True)
    twin.plot(column["sigma"], column["spectral_radius"], "s-", color=RED, markersize=2, linewidth=0.8)
    twin.set_ylabel("spectral radius", color=RED)
    twin.set_ylim(0, 1.05)
    twin.grid(visible=False)
    axis.legend(loc="upper right", ncols=2, borderaxespad=0)


def residuals(axis, column, document) -> None:
    labels = {
        "C3": r"$\nabla_\theta F = 0$ (M-step)",
        "C4": r"$\nabla_\gamma F = 0$ (E-step)",
        "C5": r"$\nabla L = \nabla Q$ (Fisher)",
        "C6": "Xu–Jordan",
    }
    for (name, label), color in zip(labels.items(), (BLUE, RED, GREEN, ORANGE), strict=True):
        axis.plot(column["sigma"], np.maximum(column[name], TINY / 10), "o", color=color, label=f"{name}: {label}")
    allowed = next(claim["bound"] for claim in document["claims"] if claim["id"] == "C3")
    axis.axhline(allowed, color=GREY)
    axis.set_yscale("log")
    axis.set_ylim(TINY / 30, allowed * 1e4)
    axis.set_title("residuals by jax.grad (line: allowed)")
    axis.set_ylabel("residual / scale of its terms")
    axis.legend(loc="upper left", ncols=2, columnspacing=0.5, handletextpad=0, borderaxespad=0)


def logarithmic(axis) -> None:
    axis.set_yscale("log")
    axis.set_ylim(TINY / 3, 30)
