"""The look of every figure, and figure files whose bytes depend on nothing but the figure.

Sizes are those of the printed page, so that a font of 7 points is 7 points on paper. Colours are told apart with any
colour vision (Okabe & Ito 2008). A figure has two widths: `panels` lays the same panels out for two columns of a page
and for one, and nothing else about them changes.
"""

import io
import logging
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

Inches = float | Sequence[float]
SINGLE, DOUBLE = 3.4, 7.0  # widths of one and of two columns, in inches
DPI = 200
TINY = 1e-17  # zeros are drawn here, at the foot of a logarithmic axis, as open circles

BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PINK, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
GREY, PALE = "#777777", "#bbbbbb"
COLOURS = [BLUE, RED, GREEN, ORANGE, PINK, SKY, YELLOW, BLACK]

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "mathtext.fontset": "cm",
    "image.cmap": "gray",
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,  # TrueType, so that text in the PDF is text
    "svg.hashsalt": "jaxem",
}
logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the dates inside matplotlib's own fonts


def styled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run under STYLE on top of matplotlib's own defaults, whatever the user's matplotlibrc says."""

    @wraps(function)
    def under_style(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.style.context(["default", STYLE]):
            return function(*args, **kwargs)

    return under_style


def page(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. No pyplot: no window, no global state."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(
    width: float, wide: str, narrow: str | None = None, *, rows: Inches = 1.8, narrow_rows: Inches = 1.6
) -> tuple[Figure, dict[str, Axes]]:
    """A figure of this width and its panels by their letters, which `wide` and `narrow` place, as "ab;cd" does.

    Args:
        width: DOUBLE takes `wide`, less takes `narrow`.
        wide: a mosaic, rows apart by ";", a letter a panel, "." nothing; a letter repeated is a larger panel. Rows of
            unequal length are divided each by itself.
        narrow: that of one column; by default the panels are under one another.
        rows, narrow_rows: the height of every row in inches, or of each.

    >>> figure, axes = panels(SINGLE, "ab")
    >>> [axis.get_subplotspec().rowspan.start for axis in axes.values()], figure.get_figheight()
    ([0, 1], 3.2)
    """
    letters = sorted(set(wide) - set(".;"))
    placed, heights = (wide, rows) if width >= DOUBLE else (narrow or ";".join(letters), narrow_rows)
    count = placed.count(";") + 1
    each = [float(heights)] * count if isinstance(heights, (int, float)) else list(heights)
    figure = page(width, round(sum(each), 2))
    grid = [list(row) for row in placed.split(";")]
    equal = len({len(row) for row in grid}) == 1
    axes = figure.subplot_mosaic(grid if equal else [[[row]] for row in grid], height_ratios=each)
    return figure, {letter: axes[letter] for letter in letters}


def lettered(axes: dict[str, Axes]) -> None:
    """(a), (b), … before the titles."""
    for letter, axis in axes.items():
        axis.set_title(f"({letter}) {axis.get_title(loc='left')}")


def share_x(*axes: Axes) -> None:
    """One x-axis for panels under one another: numbers and label at the lowest of each column."""
    place = {axis: axis.get_subplotspec() for axis in axes}
    for axis, at in place.items():
        if any(o.colspan.start == at.colspan.start and o.rowspan.start > at.rowspan.start for o in place.values()):
            axis.set_xlabel("")
            axis.tick_params(labelbottom=False)


def share_y(*axes: Axes, numbers: bool = True) -> None:
    """One y-axis for panels beside one another: its label, and where they are the same its numbers, at the first."""
    place = {axis: axis.get_subplotspec() for axis in axes}
    for axis, at in place.items():
        if any(o.rowspan.start == at.rowspan.start and o.colspan.start < at.colspan.start for o in place.values()):
            axis.set_ylabel("")
            axis.tick_params(labelleft=not numbers)


def floor(values: np.ndarray) -> np.ndarray:
    """For a logarithmic axis: no sign, and TINY for less."""
    return np.maximum(np.abs(values), TINY)


def falling(axis: Axes, x: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """A curve on a logarithmic axis; what is 0 is an open circle at its foot, and named."""
    zero = values == 0
    axis.plot(x[~zero], np.abs(values[~zero]), **style)
    if zero.any():
        marks = {"color": style["color"], "marker": "o", "fillstyle": "none", "linestyle": "none"}
        axis.plot(x[zero], np.full(zero.sum(), TINY), **marks)
        axis.annotate("exactly 0", (x[zero][-1], TINY), xytext=(-2, 4), textcoords="offset points",
                      color=style["color"], ha="right", fontsize=7)  # fmt: skip


def key(figure: Figure, *axes: Axes, columns: int, narrow: int) -> None:
    """One legend below all panels, of what has a label in `axes`, in so many columns by the figure's width."""
    pairs = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    ncols = columns if figure.get_figwidth() >= DOUBLE else narrow
    figure.legend(pairs.values(), pairs.keys(), loc="outside lower center", ncols=ncols)


@styled
def save(figure: Figure, path: Path) -> None:
    """A .pdf or .png without dates and versions, its bytes a function of the figure."""
    if Path(path).suffix == ".pdf":
        figure.savefig(path, metadata={"CreationDate": None})
        return
    raster = io.BytesIO()
    figure.savefig(raster, format="rgba")
    size = tuple(int(inches * DPI) for inches in figure.get_size_inches())
    picture = Image.frombytes("RGBA", size, raster.getvalue()).convert("RGB")
    if not any(axis.images for axis in figure.axes):  # line art: an indexed PNG looks the same at a third of the size
        picture = picture.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    picture.save(path, optimize=True, dpi=(DPI, DPI))


def bare(axis: Any) -> None:
    """An axis that only carries a picture."""
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
