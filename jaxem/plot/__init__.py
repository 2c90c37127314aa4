"""Figures of a fit, one call each, as a paper would print them: `pip install "jaxem[plot]"`.

    classification   which component each row belongs to, and the components
    uncertainty      which rows are hard to tell
    density          the mixture's density, in regions of stated probability
    criterion        BIC, AIC or ICL over K, for several models
    trace            F over the steps of a fit

Each draws on `ax`, or on a new figure of one column's width (3.4 inches), and returns the axes: title, limits and
labels are yours to change. On axes of yours the fonts are yours; `with matplotlib.rc_context(jaxem.plot.STYLE):` around
a figure gives it the same look. matplotlib is imported at the first call. Colours are told apart by
any colour vision.
"""

from jaxem.plot._curves import criterion, trace
from jaxem.plot._rows import classification, density, uncertainty
from jaxem.plot._style import STYLE

__all__ = ["STYLE", "classification", "criterion", "density", "trace", "uncertainty"]
