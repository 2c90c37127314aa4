"""500 points from three Gaussians: with labels, without, and with responsibilities for colours (as Bishop 9.5)."""

from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from _style import BLUE, DOUBLE, GREEN, GREY, RED, lettered, panels, share_x, share_y, styled

RESULTS = "three_gaussians"

COMPONENTS = np.array([to_rgb(colour) for colour in (BLUE, RED, GREEN)])


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    x, z, gamma = arrays["x"], arrays["z"], arrays["gamma"]
    figure, axes = panels(width, "abc", "ab;c.", rows=2.5, narrow_rows=(1.75, 1.9))
    shown = (
        ("joint $p(x, z)$", COMPONENTS[z], z),
        ("marginal $p(x)$", np.broadcast_to(to_rgb(GREY), (len(x), 3)), np.zeros_like(z)),
        (r"posterior $p(z \mid x)$", gamma @ COMPONENTS, np.zeros_like(z)),
    )
    for axis, (title, colours, kind) in zip(axes.values(), shown, strict=True):
        for k, marker in enumerate("o^s"):
            axis.scatter(*x[kind == k].T, s=6, c=colours[kind == k], marker=marker, linewidths=0, zorder=3)
        axis.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal", xlim=(-0.07, 1), ylim=(0, 1))
        axis.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    lettered(axes)
    share_x(*axes.values())
    share_y(*axes.values())
    return figure
