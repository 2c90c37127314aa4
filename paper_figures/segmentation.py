"""A photograph in two, three and ten colours by k-means: what each takes to store, and its colours by their share."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from _style import DOUBLE, bare, page, styled

RESULTS = "segmentation"


@styled
def draw(results: dict[str, Any], arrays: dict[str, np.ndarray]) -> Figure:
    summary = results["summary"]
    figure = page(DOUBLE, 1.95)
    pictures = figure.subplots(1, 1 + len(summary["rows"]))
    show(pictures[0], arrays["original"])
    raw, png = summary["raw_bits"], summary["true_colour_png_bits"]
    pictures[0].set_title(f"(a) original, {raw:,} bits\n100 %; as a PNG {100 * png / raw:.1f} %")
    for letter, picture, row in zip("bcd", pictures[1:], summary["rows"], strict=True):
        show(picture, arrays[f"picture_{row['K']}"])
        percent = f"{row['percent']:.1f} %; as a PNG {100 * row['png_bits'] / raw:.1f} %"
        picture.set_title(f"({letter}) $K$ = {row['K']}, {row['bits']:,} bits\n{percent}")
        shares(picture.inset_axes((0, -0.13, 1, 0.09)), row)
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
