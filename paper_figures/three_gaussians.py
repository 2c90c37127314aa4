"""500 points from three Gaussians: with labels, without, and with responsibilities for colours (as Bishop 9.5)."""

from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from _style import BLUE, DOUBLE, GREEN, GREY, RED, page, styled

RESULTS = "three_gaussians"

COMPONENTS = np.array([to_rgb(colour) for colour in (BLUE, RED, GREEN)])


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    x, z, gamma = arrays["x"], arrays["z"], arrays["gamma"]
    figure = page(DOUBLE, 2.5)
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    panels = (
        (r"(a) joint: $(x_n, z_n) \sim p(x, z)$", COMPONENTS[z]),
        (r"(b) marginal: $x_n \sim p(x)$", np.broadcast_to(to_rgb(GREY), (len(x), 3))),
        (r"(c) responsibilities: $p(z_n \mid x_n)$", gamma @ COMPONENTS),
    )
    for axis, (title, colours) in zip(axes, panels, strict=True):
        axis.scatter(*x.T, s=5, c=colours, linewidths=0, zorder=3)
        axis.set(
            title=title,
            xlabel="$x_1$",
            aspect="equal",
            xlim=(-0.07, 1),
            ylim=(0, 1),
            xticks=[0, 0.5, 1],
            yticks=[0, 0.5, 1],
        )
    axes[0].set_ylabel("$x_2$")
    return figure
