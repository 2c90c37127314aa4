"""The look of a figure, and the axes that it is drawn on."""

import functools
from collections.abc import Callable
from typing import Any

# Okabe & Ito (2008), without black and with the yellow last; with eight shapes for print in grey
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777", "#B0A000"]
MARKERS = ["o", "^", "s", "D", "v", "P", "X", "<"]
LINES = ["-", (0, (4, 1.5)), (0, (1, 1))]
BLACK, GREY, PALE = "#000000", "#777777", "#bbbbbb"
SIZE = (3.4, 2.6)  # inches: one column
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "legend.handletextpad": 0.4,
    "legend.borderaxespad": 0.2,
    "mathtext.fontset": "cm",
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType, so that text in the PDF is text
}


def drawing(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(..., ax=ax)` on the axes given, in the caller's style; without any on a new figure, in ours."""

    @functools.wraps(function)
    def draw(*args: Any, ax: Any = None, **options: Any) -> Any:
        try:
            import matplotlib
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError('jaxem.plot needs matplotlib: pip install "jaxem[plot]"') from error
        if ax is not None:
            function(*args, ax=ax, **options)
            return ax
        with matplotlib.rc_context(STYLE):
            _, ax = pyplot.subplots(figsize=SIZE, layout="constrained")
            function(*args, ax=ax, **options)
        return ax

    return draw


def colour(k: Any) -> str:
    """Of the k-th component or model."""
    return COLOURS[k % len(COLOURS)]


def marker(k: Any) -> str:
    """Its shape."""
    return MARKERS[k % len(MARKERS)]


def line(k: Any) -> Any:
    """Its line: another one once colours repeat."""
    return LINES[k // len(COLOURS) % len(LINES)]
