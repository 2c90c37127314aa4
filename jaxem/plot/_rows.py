"""Rows and components: which row is whose, which are hard to tell, and the density of them all."""

from typing import Any

import numpy as np

from jaxem._answers.quantities import log_joint, responsibilities
from jaxem.plot._components import HALF, MOST, POINTS, Shown, component_names, limits, log_density, normal_laws, shown
from jaxem.plot._style import BLACK, COLOURS, GREY, PALE, colour, drawing, marker

MASSES = (0.95, 0.75, 0.5, 0.25)  # of the density's regions, from the outermost
MANY = 3_000  # rows from which on points are drawn as a raster


@drawing
def classification(
    m: Any, theta: Any, x: Any, *, columns: Any = None, names: Any = None, labels: Any = None, ax: Any = None
) -> Any:
    """Each row in the colour and shape of its most probable component, argmax_k γ_nk, with the components over them.

    Of a Gaussian component its mean, and the ellipses that hold 50 and 95 % of it, in the columns shown: of a component
    in more columns, its marginal. With one column, the components' densities π_k p(x | k), and the rows below them.

    Args:
        m: the mixture.
        theta: its parameters, or a fit.
        x: the rows, (N, D), or (N,); or a data frame.
        columns: which two columns to show, by number from 0, or by name; the first two by default.
        names: the columns' names, D of them; a data frame's by default.
        labels: the components' names for the legend, K of them.
        ax: axes to draw on; a new figure by default.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[0.0, 0.0], [3.0, 3.0]]), "sigma": 1.0}
    >>> ax = jaxem.plot.classification(gaussian.isotropic, theta, jnp.array([[0.1, 0.2], [2.9, 3.2]]), names=["a", "b"])
    >>> ax.get_xlabel(), len(ax.get_legend().get_texts())
    ('a', 2)
    """
    s = shown(m, theta, x, columns, names)
    component = np.asarray(responsibilities(s.m, s.theta, s.x)).argmax(axis=1)
    labels = component_names(s) if labels is None else list(labels)
    if len(s.columns) == 1:
        curves(ax, s, labels)
        bottom = -0.06 * ax.get_ylim()[1]
        for k in range(len(labels)):
            here = s.points[component == k, 0]
            ax.plot(here, np.full(len(here), bottom), "|", color=colour(k), markersize=5, markeredgewidth=0.5)
        ax.set(xlabel=s.names[0], ylabel="probability" if counts(s) else "density", ylim=(2 * bottom, None))
        legend(ax, "component")
        return
    for k, label in enumerate(labels):
        here = s.points[component == k]
        style = {"markersize": 3, "markeredgecolor": "white", "markeredgewidth": 0.25, "linestyle": "none"}
        ax.plot(*here.T, marker(k), color=colour(k), label=label, rasterized=len(s.x) > MANY, **style)
    outlines(ax, s)
    ax.set(xlabel=s.names[0], ylabel=s.names[1])
    legend(ax, "component")


@drawing
def uncertainty(m: Any, theta: Any, x: Any, *, columns: Any = None, names: Any = None, ax: Any = None) -> Any:
    """How hard each row is to tell: 1 − max_k γ_nk, as the area of its point in the colour of its component.

    In two columns the plane is shaded by the same number, which is of a row that lies there; of more columns only the
    rows' own are known. With one column it is the height of a curve, on which the rows lie.

    Args:
        m: the mixture.
        theta: its parameters, or a fit.
        x: the rows, (N, D), or (N,); or a data frame.
        columns: which two columns to show, by number from 0, or by name; the first two by default.
        names: the columns' names, D of them; a data frame's by default.
        ax: axes to draw on; a new figure by default.

    Returns:
        The axes.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[0.0], [3.0]]), "sigma": 1.0}
    >>> jaxem.plot.uncertainty(gaussian.isotropic, theta, jnp.array([0.1, 1.4, 2.9])).get_ylabel()
    'uncertainty'
    """
    s = shown(m, theta, x, columns, names)
    unsure, component = told(s, s.x)
    if len(s.columns) == 1:
        ax.plot(*curve_of(s, lambda at: told(s, at)[0]), color=GREY, linewidth=1)
        for k in range(len(s.theta["pi"])):
            here = component == k
            ax.plot(s.points[here, 0], unsure[here], marker(k), color=colour(k), markersize=3, markeredgewidth=0)
        ax.set(xlabel=s.names[0], ylabel="uncertainty", ylim=(0, None))
        return
    worst = 1 - 1 / len(s.theta["pi"])  # where all components are equally probable
    outlined = [
        ellipse(mean, covariance, MOST).T for mean, covariance in zip(*(normal_laws(s) or ((), ())), strict=True)
    ]
    seen = np.concatenate([s.points, *outlined])
    ranges = limits(seen[:, 0], 0.04), limits(seen[:, 1], 0.04)
    if s.x.shape[1] == 2:
        at = plane(*ranges)
        order = at if s.columns == (0, 1) else at[..., ::-1]
        field = told(s, order.reshape(-1, 2))[0].reshape(at.shape[:2])
        levels = np.linspace(0.02, 1, 25) * worst
        ax.contourf(at[0, :, 0], at[:, 0, 1], field, levels, cmap="Greys", vmin=0, vmax=1.6 * worst, zorder=0)
    first = np.argsort(unsure)  # the least sure on top
    ax.scatter(
        *s.points[first].T,
        s=area(unsure[first] / worst),
        c=[colour(k) for k in component[first]],
        edgecolors="white",
        linewidths=0.3,
        rasterized=len(s.x) > MANY,
    )
    for part in (0.0, 0.5, 1.0):
        ax.scatter([], [], s=area(part), c=GREY, edgecolors="white", linewidths=0.3, label=f"{part * worst:.2g}")
    outlines(ax, s, faint=True)
    ax.set(xlabel=s.names[0], ylabel=s.names[1], xlim=ranges[0], ylim=ranges[1])
    legend(ax, "uncertainty")


@drawing
def density(m: Any, theta: Any, x: Any, *, columns: Any = None, names: Any = None, ax: Any = None) -> Any:
    """The density of the mixture, Σ_k π_k p(x | k), over the rows.

    In two columns of a Gaussian mixture, the smallest regions that hold 25, 50, 75 and 95 % of it; of more columns,
    those of its marginal. With one column, the rows' histogram, the density, and its components.

    Args:
        m: the mixture; with more than one column of a Gaussian family.
        theta: its parameters, or a fit.
        x: the rows, (N, D), or (N,); or a data frame.
        columns: which two columns to show, by number from 0, or by name; the first two by default.
        names: the columns' names, D of them; a data frame's by default.
        ax: axes to draw on; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: for more than one column of another family.

    >>> import matplotlib; matplotlib.use("agg")
    >>> import jax.numpy as jnp, jaxem
    >>> from jaxem.families import gaussian
    >>> theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[0.0, 0.0], [3.0, 3.0]]), "sigma": 1.0}
    >>> ax = jaxem.plot.density(gaussian.isotropic, theta, jnp.array([[0.1, 0.2], [2.9, 3.2]]))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['95 %', '75 %', '50 %', '25 %']
    """
    s = shown(m, theta, x, columns, names)
    if len(s.columns) == 1:
        at = curves(ax, s, [f"component {name}" for name in component_names(s)], filled=False)
        if not counts(s):
            bins = int(np.clip(np.sqrt(len(s.x)), 5, 60))
            ax.hist(s.points[:, 0], bins, density=True, color=PALE, alpha=0.5, zorder=0)
        else:
            values, frequency = np.unique(s.points[:, 0], return_counts=True)
            ax.bar(values, frequency / len(s.x), width=0.9, color=PALE, alpha=0.5, zorder=0)
        ax.plot(at, total(s, at), "o-" if counts(s) else "-", color=BLACK, markersize=2.5, label="mixture")
        ax.set(xlabel=s.names[0], ylabel="probability" if counts(s) else "density", ylim=(0, None))
        legend(ax, None)
        return
    laws = normal_laws(s)
    if laws is None:
        raise ValueError("m: the density of two columns is drawn of a Gaussian family only; pass one column of x")
    reach = 3 * np.sqrt(np.einsum("kdd->kd", laws[1]))
    corners = np.concatenate([s.points, laws[0] - reach, laws[0] + reach])
    at = plane(limits(corners[:, 0], 0.02), limits(corners[:, 1], 0.02))
    field = np.exp(log_density(s.theta, *laws, at))
    levels = thresholds(field)
    shades = ["#dce9f3", "#b3d0e5", "#7fb0d3", "#3f89bd"]
    edges = [*levels, max(field.max(), levels[-1]) * 1.001]
    ax.contourf(at[0, :, 0], at[:, 0, 1], field, edges, colors=shades, zorder=0)
    ax.contour(at[0, :, 0], at[:, 0, 1], field, levels, colors=COLOURS[0], linewidths=0.6, zorder=1)
    ax.plot(*s.points.T, "o", color=BLACK, markersize=1.6, markeredgewidth=0, alpha=0.6, rasterized=len(s.x) > MANY)
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=shade, label=f"{mass:.0%}".replace("%", " %"))
        for shade, mass in zip(shades, MASSES, strict=True)
    ]
    inside = at[field >= levels[0]]
    everything = np.concatenate([inside, s.points])
    ax.set(xlim=limits(everything[:, 0], 0.04), ylim=limits(everything[:, 1], 0.04))
    ax.set(xlabel=s.names[0], ylabel=s.names[1])
    legend(ax, "mass within", handles=handles)


# ---- what they share


def told(s: Shown, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """1 − max_k γ, as Σ of the others, so that small ones keep their digits; and argmax_k γ."""
    gamma = np.asarray(responsibilities(s.m, s.theta, at.astype(s.x.dtype)))
    component = gamma.argmax(axis=1)
    return np.sum(gamma, axis=1, where=np.arange(gamma.shape[1]) != component[:, None]), component


def area(part: Any) -> Any:
    """Of a point, in square points of print."""
    return 4 + 46 * part


def plane(horizontal: tuple[float, float], vertical: tuple[float, float]) -> np.ndarray:
    """A grid, (POINTS, POINTS, 2)."""
    return np.stack(np.meshgrid(np.linspace(*horizontal, POINTS), np.linspace(*vertical, POINTS)), axis=-1)


def thresholds(field: np.ndarray) -> np.ndarray:
    """The densities above which the masses lie."""
    falling = np.sort(field.ravel())[::-1]
    mass = np.cumsum(falling) / np.sum(falling)
    return falling[np.searchsorted(mass, MASSES)]


def counts(s: Shown) -> bool:
    """Does the family take whole numbers only?"""
    return s.m.extras.check_support is not None and bool(s.m.extras.check_support(np.full((1, 1), 0.5), s.theta))


def curve_of(s: Shown, function: Any) -> tuple[np.ndarray, np.ndarray]:
    """(points, its values there), along the one column."""
    low, high = limits(s.points)
    low = low if normal_laws(s) else max(low, 0.0)
    at = np.arange(np.floor(s.points.min()), s.points.max() + 1) if counts(s) else np.linspace(low, high, 2 * POINTS)
    return at, np.asarray(function(at[:, None]))


def total(s: Shown, at: np.ndarray) -> np.ndarray:
    """Σ_k π_k p(at | k)."""
    return np.exp(np.logaddexp.reduce(np.asarray(log_joint(s.m, s.theta, at[:, None].astype(s.x.dtype))), axis=1))


def curves(ax: Any, s: Shown, labels: list[str], filled: bool = True) -> np.ndarray:
    """Each component's density; returns where."""
    at, parts = curve_of(s, lambda at: np.exp(np.asarray(log_joint(s.m, s.theta, at.astype(s.x.dtype)))))
    for k in range(parts.shape[1]):
        style = {"color": colour(k), "linewidth": 1, "label": labels[k]}
        ax.plot(at, parts[:, k], "o-" if counts(s) else "-", markersize=2.5, **style)
        if filled and not counts(s):
            ax.fill_between(at, parts[:, k], color=colour(k), alpha=0.12, linewidth=0)
    return at


def outlines(ax: Any, s: Shown, faint: bool = False) -> None:
    """Of each Gaussian its mean, and the ellipses that hold half and most of it."""
    laws = normal_laws(s)
    if laws is None:
        return
    for k, (mean, covariance) in enumerate(zip(*laws, strict=True)):
        shade = GREY if faint else colour(k)
        for radius, width in ((HALF, 1.0), (MOST, 0.6)) if not faint else ((MOST, 0.5),):
            ax.plot(*ellipse(mean, covariance, radius), color=shade, linewidth=width, zorder=3)
        if not faint:
            ax.plot(*mean, "+", color=BLACK, markersize=6, markeredgewidth=1, zorder=4)


def ellipse(mean: np.ndarray, covariance: np.ndarray, radius: float) -> np.ndarray:
    """The points so many standard deviations from the mean, (2, 121)."""
    angle = np.linspace(0, 2 * np.pi, 121)
    values, vectors = np.linalg.eigh(covariance)
    circle = np.sqrt(np.maximum(values, 0))[:, None] * np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + radius * vectors @ circle


def legend(ax: Any, title: str | None, **options: Any) -> None:
    """Where it covers least."""
    frame = {"frameon": True, "facecolor": "white", "edgecolor": "none", "framealpha": 0.75} | options
    ax.legend(
        title=title, title_fontsize="small", fontsize="small", loc="best", handlelength=1.2, labelspacing=0.3, **frame
    )
