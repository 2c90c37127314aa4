"""A number over K, and a number over steps."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxem._fit.loop import Status
from jaxem._fit.path import Path
from jaxem.plot._style import BLACK, COLOURS, GREY, PALE, colour, drawing, line, marker

SHORT = 40  # steps up to which each half of one is marked
ROUNDING = 8  # of F, in units of its precision


@drawing
def criterion(table: Any, *, name: str | None = None, ax: Any = None) -> Any:
    """A criterion of model choice over the number of components, a line for each model; the least is ringed.

    Smaller is better, as jaxem has it. A fit that did not converge is hollow, and never the best; one without a value
    is left out.

    Args:
        table: what `jaxem.select` returns, or its table; or any rows with the entries `model` (or `m`),
            `num_components`, `value` and, if there is one, `status`: dicts, tuples with names, a data frame, a dict of
            columns.
        name: of the criterion, for the axis; the table's own by default.
        ax: axes to draw on; a new figure by default.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jaxem
    >>> rows = [{"model": "full", "num_components": K, "value": (K - 2) ** 2} for K in (1, 2, 3)]
    >>> ax = jaxem.plot.criterion(rows, name="BIC")
    >>> ax.get_ylabel(), ax.texts[0].get_text()
    ('BIC (nats)', 'full, K = 2')
    """
    table = table if isinstance(table, Mapping) else getattr(table, "table", table)
    name = str(name or getattr(table, "criterion", "criterion"))
    name = name.upper() if name in ("bic", "aic", "icl") else name
    rows = [entries(row) for row in rows_of(table)]
    models = list(dict.fromkeys(row[0] for row in rows))
    best: Any = None
    for k, model in enumerate(models):
        mine = sorted((row[1:] for row in rows if row[0] == model and np.isfinite(row[2])), key=lambda row: row[0])
        if not mine:
            continue
        components, values, converged = (np.array(column) for column in zip(*mine, strict=True))
        ax.plot(components, values, color=colour(k), linestyle=line(k), linewidth=0.9, zorder=2)
        for at, fill in ((converged, colour(k)), (~converged, "white")):
            points = {"color": colour(k), "markerfacecolor": fill, "markersize": 3.5, "markeredgewidth": 0.8}
            ax.plot(components[at], values[at], marker(k), linestyle="none", zorder=3, **points)
        ax.plot(
            [], [], marker=marker(k), color=colour(k), linestyle=line(k), markersize=3.5, linewidth=0.9, label=model
        )
        if converged.any():
            least = np.argmin(np.where(converged, values, np.inf))
            if best is None or values[least] < best[2]:
                best = (model, components[least], values[least])
    if any(np.isfinite(value) and not converged for *_, value, converged in rows):
        style = {"markerfacecolor": "white", "markersize": 3.5, "markeredgewidth": 0.8, "linestyle": "none"}
        ax.plot([], [], "o", color=GREY, label="not converged", **style)
    if best is None:
        raise ValueError("table: has no converged row with a finite value; look at its statuses")
    ax.plot(*best[1:], "o", color=BLACK, markersize=9, fillstyle="none", markeredgewidth=0.8, zorder=4)
    told = f"{best[0]}, K = {best[1]}"
    ax.annotate(told, best[1:], (0, -9), textcoords="offset points", ha="center", va="top", fontsize="small")
    ax.margins(y=0.2)  # room for what it says
    ax.set(xlabel="number of components $K$", ylabel=f"{name} (nats)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(ncols=1 + (len(models) > 7), handlelength=2.2, labelspacing=0.3, columnspacing=1.2)


@drawing
def trace(path: Any, *, gap: bool = False, ax: Any = None) -> Any:
    """F over the steps of a fit, which never falls: after each E-step, and after each M-step.

    Args:
        path: what `jaxem.em_path` returns, with a leading lane axis or without; lanes are drawn pale, the one that
            ends highest dark. Or F itself, one value a step.
        gap: draw how far F is below the last value of the best lane, on a logarithmic axis, where EM's linear
            convergence is a straight line.
        ax: axes to draw on; a new figure by default.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[0.0], [3.0]]), "sigma": 1.0}
    >>> path = jaxem.em_path(gaussian.isotropic, theta, jnp.array([0.1, 0.4, 2.0, 2.9]), num_steps=5)
    >>> ax = jaxem.plot.trace(path)
    >>> ax.get_xlabel(), len(ax.lines[0].get_xdata())
    ('step', 10)
    """
    halves = [path.after_e, path.after_m] if isinstance(path, Path) else [path]
    values = [np.atleast_2d(np.asarray(half, float)) for half in halves]
    if values[0].ndim != 2 or not values[0].shape[1]:
        raise ValueError(f"path: must be of em_path, or F by steps, (T,) or (lanes, T); got shape {values[0].shape}")
    given = np.asarray(halves[0]).dtype
    kept = given if given in (np.float32, np.float64) else np.float64
    lanes, num_steps = values[0].shape
    steps = np.arange(num_steps)[:, None] + np.arange(len(values))[None] / len(values)
    F = np.stack(values, axis=-1).reshape(lanes, -1)
    last = np.where(np.isfinite(F[:, -1]), F[:, -1], -np.inf)
    best = int(np.argmax(last))
    drawn = F
    if gap:
        drawn = F.max(initial=-np.inf, where=np.isfinite(F)) - F
        drawn = np.where(drawn > ROUNDING * np.finfo(kept).eps * np.abs(F).max(), drawn, np.nan)  # the rest is noise
    for lane in (*(lane for lane in range(lanes) if lane != best), best):
        is_best = lane == best
        style = {"color": COLOURS[0] if is_best else PALE, "linewidth": 1.2 if is_best else 0.7}
        ax.plot(steps.ravel(), drawn[lane], **style, zorder=2 + is_best)
    if num_steps <= SHORT and len(values) == 2:
        for half, (fill, label) in enumerate(((COLOURS[0], "after E"), ("white", "after M"))):
            points = {"color": COLOURS[0], "markerfacecolor": fill, "markersize": 3, "markeredgewidth": 0.8}
            ax.plot(steps[:, half], drawn[best, half::2], "o", linestyle="none", label=label, zorder=4, **points)
        ax.legend()
    if gap:
        ax.set_yscale("log")
    ax.set(xlabel="step", ylabel="$F^* - F$ (nats)" if gap else "$F$ (nats)")
    ax.xaxis.get_major_locator().set_params(integer=True)


def rows_of(table: Any) -> list[Any]:
    """The rows of a table that may be kept by columns."""
    if isinstance(table, Mapping) or hasattr(table, "columns"):
        names = list(table) if isinstance(table, Mapping) else [str(name) for name in table.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*(table[name] for name in names), strict=True)]
    return list(table)


def entries(row: Any) -> tuple[str, int, float, bool]:
    """(model, K, value, converged) of a row."""
    model = entry(row, "model", "m")
    status = entry(row, "status", default=Status.CONVERGED)
    converged = bool(status == (Status.CONVERGED.name if isinstance(status, str) else Status.CONVERGED))
    K, value = entry(row, "num_components"), entry(row, "value")
    return str(model).removeprefix("gaussian."), int(K), float(value), converged


def entry(row: Any, *names: str, default: Any = None) -> Any:
    """What a row has under one of these names."""
    for name in names:
        if isinstance(row, Mapping) and name in row:
            return row[name]
        if not isinstance(row, Mapping) and hasattr(row, name):
            return getattr(row, name)
    if default is None:
        raise ValueError(f"table: a row has no {' or '.join(map(repr, names))}: {row!r:.80}")
    return default
