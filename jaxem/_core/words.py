"""What people read: numbers, arrays and tables in a few characters. Nothing that is traced is looked at."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxem._core.tracing import is_concrete


def readable(*tree: Any) -> bool:
    """Is every leaf an array that can be looked at here?"""
    leaves = jax.tree.leaves(tree)
    return is_concrete(leaves) and all(isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves)


def plain(value: tuple) -> str:
    """A NamedTuple as Python shows it."""
    pairs = zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
    return f"{type(value).__name__}({', '.join(f'{name}={entry!r}' for name, entry in pairs)})"


def number(value: Any, digits: int = 6) -> str:
    """A number with so many digits."""
    return f"{float(value):.{digits}g}"


def shape(value: Any) -> str:
    return str(np.shape(value))


def entry(value: Any, width: int = 60) -> str:
    """An array in one line, its middle left out where it is long."""
    array = np.asarray(value)
    text = np.array2string(array, precision=4, threshold=16, edgeitems=2, suppress_small=True, separator=" ")
    text = " ".join(text.split()).replace("[ ", "[")
    return text if len(text) <= width else f"{text[: width - 2]} …"


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of columns; the first `left` of them are words, the others numbers, which end where they end."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=False))
        ).rstrip()
        for row in rows
    ]


def entries(theta: Any) -> list[str]:
    """θ, a line for each of its names, those of fewer axes first: shape and values."""
    rows = []
    for name, value in sorted(theta.items(), key=lambda item: max(map(np.ndim, jax.tree.leaves(item[1])), default=0)):
        leaves = jax.tree.leaves(value)
        one = len(leaves) == 1
        rows.append([name, shape(leaves[0]) if one else "", entry(leaves[0]) if one else f"{len(leaves)} arrays"])
    return table(rows, left=3) if rows else []


def counted(counts: dict[str, int]) -> str:
    """{"CONVERGED": 9, "NONFINITE": 1} as "9 CONVERGED, 1 NONFINITE"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())
