"""How jaxem's own programs are compiled: for all of a CPU's vector registers, and for a GPU's library of products.

XLA takes half of AVX-512's by default. Whole ones make a fit of a thousand rows a fifth faster, and a large one up to
a tenth; a machine without them does as it did. On a GPU it tries Triton's products beside cuBLAS's, which takes seconds
to compile, or minutes, and is no faster (experiments/GPU.md).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxem._model import being_traced, is_traced

OPTIONS = {"xla_cpu_prefer_vector_width": 512, "xla_gpu_enable_triton_gemm": False}


@functools.cache
def accepted(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those options that the XLA which runs here knows."""
    return {name: value for name, value in options if is_known(name, value)}


def is_known(name: str, value: Any) -> bool:
    """Does XLA take this option?"""
    try:
        jax.jit(lambda: 0, compiler_options={name: value})()
    except Exception:  # each version of XLA says it in its own words
        return False
    return True


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit(f, **options)` so compiled; as part of a caller's program, as that program is."""
    part = jax.jit(f, **options)

    @functools.cache
    def own() -> Callable[..., Any]:  # not before the first call: asking XLA starts it
        return jax.jit(f, compiler_options=accepted(tuple(OPTIONS.items())), **options)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        inside = is_traced(args, kwargs) or being_traced()
        return (part if inside else own())(*args, **kwargs)

    return call
