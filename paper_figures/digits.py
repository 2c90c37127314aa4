"""Held-out digits completed from their upper half by a mixture of Bernoullis, and the mixture's components."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import DOUBLE, RED, bare, lettered, panels, styled

RESULTS = "digits"

GAP = 1  # pixels between digits
PAPER, HIDDEN = 0.0, 0.22  # ink of the page between digits, and of what is not shown


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    summary = results["summary"]
    top = arrays["original"][:, :32]
    hidden = np.full_like(top, HIDDEN)
    rows = {
        "held-out digit": arrays["original"],
        "what is observed": np.concatenate([top, hidden], axis=1),
        "conditional mean": np.concatenate([top, arrays["mean"]], axis=1),
        "a sample": np.concatenate([top, arrays["sample"]], axis=1),
    }
    figure, axes = panels(width, "aab", "a;b", rows=2.2, narrow_rows=(1.6, 0.85))
    left, right = axes.values()
    number = len(arrays["original"])
    picture(left, mosaic(np.concatenate(list(rows.values())), number))
    for line in range(1, len(rows)):  # where what is observed ends
        y = line * (8 + GAP) + GAP + 4 - 0.5
        left.plot([-0.5, number * (8 + GAP) + GAP - 0.5], [y, y], color=RED, linewidth=0.7)
    left.set_yticks([line * (8 + GAP) + GAP + 3.5 for line in range(len(rows))], rows)
    left.tick_params(length=0)
    losses = f"{summary['loss_mean']:.2f} nats a hidden pixel, {summary['loss_baseline']:.2f} by its mean"
    left.set_title("lower halves, completed")
    left.set_xlabel(losses)
    order = np.argsort(-arrays["pi"])
    across = 5 if width >= DOUBLE else 10
    picture(right, mosaic(arrays["probs"][order], across))
    right.set_title(f"the {len(order)} components")
    lettered(axes)
    return figure


def mosaic(digits: np.ndarray, across: int) -> np.ndarray:
    """(n, 64) probabilities of ink as one picture, `across` digits to a row."""
    tiles = np.pad(digits.reshape(-1, across, 8, 8), ((0, 0), (0, 0), (GAP, 0), (GAP, 0)), constant_values=np.nan)
    picture = tiles.transpose(0, 2, 1, 3).reshape(-1, across * (8 + GAP))
    return np.pad(picture, ((0, GAP), (0, GAP)), constant_values=np.nan)


def picture(axis: Any, values: np.ndarray) -> None:
    """Ink on paper, with a frame's width of grey between digits."""
    axis.imshow(np.where(np.isnan(values), 0.45, 1 - values), cmap="gray", vmin=0, vmax=1, interpolation="none")
    bare(axis)
