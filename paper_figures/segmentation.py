"""A photograph in two, three and ten colours by k-means: what each takes to store, and its colours by their share."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import DOUBLE, bare, lettered, panels, styled

RESULTS = "segmentation"


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray], width: float = DOUBLE) -> Figure:
    summary = results["summary"]
    figure, axes = panels(width, "abcd", "ab;cd", rows=1.95, narrow_rows=1.85)
    original, *pictures = axes.values()
    show(original, arrays["original"])
    raw, png = summary["raw_bits"], summary["true_colour_png_bits"]
    original.set_title(f"original: {raw / 1e3:,.0f} kbit\n100 %; as a PNG {100 * png / raw:.1f} %")
    for picture, row in zip(pictures, summary["rows"], strict=True):
        show(picture, arrays[f"picture_{row['K']}"])
        percent = f"{row['percent']:.1f} %; as a PNG {100 * row['png_bits'] / raw:.1f} %"
        picture.set_title(f"$K$ = {row['K']}: {row['bits'] / 1e3:,.0f} kbit\n{percent}")
        shares(picture.inset_axes((0, -0.13, 1, 0.09)), row)
    lettered(axes)
    return figure


def show(axis: Any, pixels: np.ndarray) -> None:
    axis.imshow(pixels, interpolation="none")
    bare(axis)


def shares(axis: Any, row: dict[str, Any]) -> None:
    """The K colours, each as wide as its share of the pixels."""
    left = 0.0
    for colour, share in zip(row["palette"], row["share"], strict=True):
        axis.barh(0, share, left=left, color=np.array(colour) / 255, height=1, linewidth=0)
        left += share
    axis.set(xlim=(0, 1), ylim=(-0.5, 0.5))
    bare(axis)
