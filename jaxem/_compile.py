"""How jaxem's own programs are compiled: for all of a CPU's vector registers.

XLA takes half of AVX-512's by default. Whole ones make a fit of a thousand rows a fifth faster, and a large one up to
a tenth; a machine without them does as it did.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxem._model import being_traced, is_traced

WIDE = {"xla_cpu_prefer_vector_width": 512}  # bits


@functools.cache
def accepted(options: tuple[tuple[str, Any], ...]) -> dict[str, Any] | None:
    """Options of XLA as they are, or None where the one that runs here does not know them."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options))()
    except Exception:  # each version of XLA says it in its own words
        return None
    return dict(options)


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit(f, **options)` so compiled; as part of a caller's program, as that program is."""
    part = jax.jit(f, **options)

    @functools.cache
    def own() -> Callable[..., Any]:  # not before the first call: asking XLA starts it
        return jax.jit(f, compiler_options=accepted(tuple(WIDE.items())), **options)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = is_traced(args, kwargs) or being_traced()
        return (part if inside else own())(*args, **kwargs)

    return call
