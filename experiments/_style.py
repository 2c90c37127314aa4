"""The look of every figure, and figure files whose bytes depend on nothing but the figure.

Sizes are those of the printed page, so that a font of 7 points is 7 points on paper. Colours are told apart with any
colour vision (Okabe & Ito 2008).
"""

import io
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure
from PIL import Image

SINGLE, DOUBLE = 3.4, 7.0  # widths of one and of two columns, in inches
DPI = 200

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
