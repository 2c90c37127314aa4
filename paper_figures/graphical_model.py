"""The plate diagram of every family, laid out by daft from what NumPyro's inspection of its program returned."""

from typing import Any

import daft
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from _style import DOUBLE, styled

RESULTS = "graphical_model"

SYMBOLS = {"pi": r"$\pi$", "mu": r"$\mu$", "sigma": r"$\sigma$", "Sigma": r"$\Sigma$", "probs": "$p$"}
SYMBOLS |= {"rate": r"$\lambda$", "z": "$z_n$", "x": "$x_n$"}
COLUMNS = 5
STRIDE = (2.75, 3.5)  # from one diagram to the next, in daft's units
UNIT = 2.54 * DOUBLE / (COLUMNS * STRIDE[0])  # centimetres in a unit


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    graphs = results["summary"]["graphs"]
    pgm = diagrams(graphs)
    pgm.render()
    figure = pgm.figure
    plt.close(figure)  # out of pyplot's list; the figure itself lives on
    return figure


def diagrams(graphs: dict[str, dict[str, Any]]) -> daft.PGM:
    """All of them in one picture, row by row; the nodes of a family are 'family/name'."""
    rows = -(-len(graphs) // COLUMNS)
    pgm = daft.PGM(
        shape=(COLUMNS * STRIDE[0], rows * STRIDE[1]),
        origin=(0, 0),
        grid_unit=UNIT,
        node_unit=0.62 * UNIT,
        line_width=0.8,
        observed_style="shaded",
    )
    for number, (family, graph) in enumerate(graphs.items()):
        row, column = divmod(number, COLUMNS)
        left = STRIDE[0] * (column + (COLUMNS - min(COLUMNS, len(graphs) - row * COLUMNS)) / 2)
        diagram(pgm, family, graph, left, STRIDE[1] * (rows - 1 - row))
    return pgm


def diagram(pgm: daft.PGM, family: str, graph: dict[str, Any], left: float, bottom: float) -> None:
    """Latent above observed in their plate; a parameter beside the site it enters, from the top down."""
    parents = {child: [a for a, b in graph["arrows"] if b == child] for child in graph["sites"]}
    order = sorted(graph["sites"], key=lambda site: (site in graph["observed"], len(parents[site])))
    height = {site: bottom + 2.2 - 1.25 * level for level, site in enumerate(order)}
    plate_left, middle = left + 1.05, left + 1.65
    for plate, members in graph["plates"].items():
        low, high = min(height[site] for site in members) - 0.62, max(height[site] for site in members) + 0.5
        pgm.add_plate((plate_left, low, 1.25, high - low), label=None)
        pgm.add_text(plate_left + 0.98, low + 0.06, "$N$" if plate == "points" else plate, fontsize=7.5)
    for site in order:
        pgm.add_node(f"{family}/{site}", SYMBOLS[site], middle, height[site], observed=site in graph["observed"])
        own = [name for name in parents[site] if name in graph["parameters"]]
        for index, name in enumerate(sorted(own, key=list(graph["parameters"]).index)):
            y = height[site] + 0.72 * ((len(own) - 1) / 2 - index)
            pgm.add_node(f"{family}/{name}", "", left + 0.62, y, fixed=True)
            size = r" \times ".join(graph["parameters"][name].split())
            pgm.add_text(left + 0.1, y + 0.02, SYMBOLS[name], fontsize=8.5)
            pgm.add_text(left + 0.1, y - 0.3, f"${size}$" if size else "scalar", fontsize=6.5)
    for a, b in graph["arrows"]:
        pgm.add_edge(
            f"{family}/{a}", f"{family}/{b}", plot_params={"head_width": 0.1 * UNIT, "head_length": 0.16 * UNIT}
        )
    pgm.add_text(left + 0.1, bottom + 2.92, family, fontsize=8)
    law = graph["sites"]["x"].removesuffix("Probs")
    pgm.add_text(left + 0.1, bottom + 0.02, rf"$x_n \mid z_n \sim$ {law}", fontsize=6.5)
