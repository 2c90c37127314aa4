"""The names of a table's columns, remembered by the θ that was fitted to it.

Numbers do not know which column they are of: a data frame with its columns in another order has the same shape, and
every answer about it would be wrong. So θ fitted to a table with names carries them, and rows with other names, or
the same in another order, are refused wherever that θ meets them.
"""

from collections.abc import Iterable
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class Named(dict):
    """θ that knows the columns of the table it was fitted to; otherwise a dict, and a pytree like one.

    >>> theta = Named({"mu": 1.0}, ("height", "weight"))
    >>> theta, theta.columns, (theta | {"mu": 2.0}).columns
    ({'mu': 1.0}, ('height', 'weight'), ('height', 'weight'))
    """

    columns: tuple[str, ...] = ()

    def __init__(self, theta: Any = (), columns: tuple[str, ...] = ()):
        super().__init__(theta)
        self.columns = columns

    def __or__(self, other: Any) -> "Named":
        return Named(dict(self) | other, self.columns)

    def tree_flatten_with_keys(self) -> tuple[Iterable[Any], Any]:
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], (names, self.columns)

    @classmethod
    def tree_unflatten(cls, aux: Any, entries: Iterable[Any]) -> "Named":
        names, columns = aux
        return cls(zip(names, entries, strict=True), columns)


def columns_of(x: Any) -> tuple[str, ...] | None:
    """The names of a table's columns, of pandas, polars or Arrow; None where x has none, or they are numbers."""
    found = getattr(x, "columns", getattr(x, "column_names", None))
    try:
        names = tuple(found) if found is not None else ()
    except TypeError:
        return None
    return names if names and all(isinstance(name, str) for name in names) else None


def remember(theta: Any, x: Any, start: Any = None) -> Any:
    """θ with the columns of the x it was fitted to, or else those that its start knew."""
    columns = columns_of(x) or getattr(start, "columns", None)
    return Named(theta, columns) if columns else theta


def agree(theta: Any, x: Any) -> None:
    """A ValueError where x has names, and others than those that θ was fitted to, or in another order."""
    known, here = getattr(theta, "columns", None), columns_of(x)
    if not known or here is None or known == here:
        return
    missing = [name for name in known if name not in here]
    unknown = [name for name in here if name not in known]
    what = f"missing {missing}, unknown {unknown}" if missing or unknown else f"in another order, {list(here)}"
    raise ValueError(f"x: its columns are not those that theta was fitted to: {what}; pass x[{list(known)}]")
