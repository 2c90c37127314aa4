"""One graph for every family, from what NumPyro's inspection of each program returned, and what differs: a table."""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle

from _style import BLACK, DOUBLE, GREY, bare, lettered, panels, styled

RESULTS = "graphical_model"

SYMBOLS = {"pi": r"$\pi$", "theta": r"$\theta$", "z": "$z_n$", "x": "$x_n$"}
GREEK = {"mu": r"\mu", "sigma": r"\sigma", "Sigma": r"\Sigma", "probs": "p", "rate": r"\lambda"}
PLACES = {"pi": (0.0, 1.25), "theta": (0.0, 0.0), "z": (1.25, 1.25), "x": (1.25, 0.0)}
RADIUS = {"pi": 0.07, "theta": 0.07, "z": 0.3, "x": 0.3}
COLUMNS = (0.0, 0.33, 0.645)  # of the table


class Graph(NamedTuple):
    """A family's graph once every parameter but π is called θ."""

    arrows: frozenset[tuple[str, str]]
    plates: frozenset[tuple[str, ...]]
    observed: frozenset[str]


def graph_of(found: dict[str, Any]) -> Graph:
    own = set(found["parameters"]) - {"pi"}
    arrows = {("theta" if a in own else a, b) for a, b in found["arrows"]}
    plates = {tuple(sorted(members)) for members in found["plates"].values()}
    return Graph(frozenset(arrows), frozenset(plates), frozenset(found["observed"]))


def shared(graphs: dict[str, dict[str, Any]]) -> Graph:
    """The graph of all families; a ValueError where one has another."""
    (first, found), *others = graphs.items()
    for name, other in others:
        if graph_of(other) != graph_of(found):
            raise ValueError(f"graphs: {name} has another graph than {first}: {graph_of(other)}; draw it by itself")
    return graph_of(found)


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    graphs = results["summary"]["graphs"]
    figure, axes = panels(width, "abb", "a;b", rows=2.2, narrow_rows=(1.9, 2.1))
    plate_diagram(axes["a"], shared(graphs))
    table(axes["b"], graphs)
    axes["a"].set_title("the graph of every family")
    axes["b"].set_title(r"what $\theta$ and the law of $x_n$ are")
    lettered(axes)
    return figure


def plate_diagram(axis: Any, graph: Graph) -> None:
    """Circles are random, filled where observed; dots are parameters; a plate is repeated for n = 1 … N."""
    for name in sorted({node for arrow in graph.arrows for node in arrow}):
        (x, y), dot = PLACES[name], RADIUS[name] < 0.1
        fill = BLACK if dot else "#b5b5b5" if name in graph.observed else "white"
        axis.add_patch(Circle((x, y), RADIUS[name], facecolor=fill, edgecolor=BLACK, linewidth=0.9, zorder=2))
        axis.text(x - (0.18 if dot else 0), y, SYMBOLS[name], ha="right" if dot else "center", va="center", fontsize=9)
    for a, b in sorted(graph.arrows):
        start, end = (np.array(PLACES[name]) for name in (a, b))
        along = (end - start) / np.linalg.norm(end - start)
        start, end = start + RADIUS[a] * along, end - RADIUS[b] * along
        style = {"arrowstyle": "-|>", "mutation_scale": 9, "color": BLACK, "linewidth": 0.9}
        axis.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
    for members in graph.plates:
        (left, low), (right, high) = (
            reach(np.array([PLACES[name] for name in members])) for reach in (low_of, high_of)
        )
        axis.add_patch(Rectangle((left, low), right - left, high - low, fill=False, linewidth=0.9))
        axis.text(right - 0.07, low + 0.07, "$N$", ha="right", va="bottom", fontsize=8)
    axis.set(xlim=(-0.6, 1.9), ylim=(-0.75, 1.8), aspect="equal")
    bare(axis)


def low_of(places: np.ndarray) -> np.ndarray:
    return places.min(axis=0) - (0.45, 0.6)


def high_of(places: np.ndarray) -> np.ndarray:
    return places.max(axis=0) + 0.45


def table(axis: Any, graphs: dict[str, dict[str, Any]]) -> None:
    """A row a family: its name, NumPyro's distribution of x_n given z_n, and its parameters with their shapes."""
    height = 1 / (len(graphs) + 1)
    rows = [("family", r"$x_n \mid z_n = k$", r"$\theta$ and shapes")]
    rows += [(name, graph["sites"]["x"].removesuffix("Probs"), parameters(graph)) for name, graph in graphs.items()]
    for number, row in enumerate(rows):
        for left, cell in zip(COLUMNS, row, strict=True):
            axis.text(left, 1 - (number + 0.5) * height, cell, va="center", fontsize=7)
    for y, weight in ((1, 0.9), (1 - height, 0.5), (0, 0.9)):
        axis.plot([0, 1], [y, y], color=BLACK if weight > 0.5 else GREY, linewidth=weight, clip_on=False)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    bare(axis)


def parameters(graph: dict[str, Any]) -> str:
    cells = []
    for name, axes in graph["parameters"].items():
        if name != "pi":
            size = r"{\times}".join(axes.split()) or "1"
            cells.append(f"${GREEK[name]}$: ${size}$")
    return ", ".join(cells)
