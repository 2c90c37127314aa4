"""What is shown while a call runs, and how Ctrl-C ends it at once."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

NAP = 0.01  # seconds between two looks at whether a computation is done


@contextlib.contextmanager
def bar(wanted: bool, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """`show(value)` moves a tqdm bar by one step, or several, and writes a value beside it; or does nothing."""
    if not wanted:
        yield lambda value=None, steps=1: None
        return
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ValueError("progress: needs tqdm; pip install tqdm, or leave progress out") from error
    with tqdm(total=total, unit=unit) as shown:

        def show(value: Any = None, steps: int = 1) -> None:
            if value is not None:
                shown.set_postfix_str(f"{float(value):.6g}" if not isinstance(value, str) else value, refresh=False)
            shown.update(steps)

        yield show


def awaited(tree: Any) -> Any:
    """A result once it is there. A signal is served while it is not: Python's wait for JAX would hold it back."""
    leaves: list[Any] = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(NAP)
    return tree
