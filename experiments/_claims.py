"""A claim over many measurements: the pair nearest to a violation speaks for all."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from _results import Claim


def worst(name: str, statement: str, checks: Iterable[tuple[Any, Any]]) -> Claim:
    """Of (value, bound) pairs, of numbers or arrays: the largest value / bound, NaN first; a bound may be 0 or ∞.

    >>> worst("A", "all below", [(1.0, 2.0), ([3.0, 9.0], [9.0, 10.0])])
    Claim(id='A', statement='all below', worst=9.0, bound=10.0)
    >>> worst("B", "none", [(0.0, 0.0), (1.0, 0.0)]).holds
    False
    >>> worst("C", "what says nothing hides nothing", [(np.inf, np.inf), (2.0, 1.0)]).holds
    False
    """
    pairs = [np.broadcast_arrays(np.asarray(value, float), np.asarray(bound, float)) for value, bound in checks]
    value, bound = (np.concatenate([np.ravel(pair[side]) for pair in pairs]) for side in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(bound > 0, value / bound, np.where(value > bound, np.inf, -np.inf))
    ratio = np.where(np.isnan(ratio), -np.inf, ratio)  # ∞ below ∞
    unknown = np.isnan(value) | np.isnan(bound)
    furthest = int(np.argmax(np.where(unknown, np.nan, ratio)))  # argmax takes a NaN for the largest
    return Claim(name, statement, float(value[furthest]), float(bound[furthest]))
