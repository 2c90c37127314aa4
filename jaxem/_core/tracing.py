"""What is being traced, and how jaxem's own programs are compiled: for all of a CPU's vector registers, for a GPU's
library of products, and quickly where little is to be done.

XLA takes half of AVX-512's by default. Whole ones make a fit of a thousand rows a fifth faster, and a large one up to
a tenth; a machine without them does as it did. On a GPU it tries Triton's products beside cuBLAS's, which takes seconds
to compile, or minutes, and is no faster (experiments/GPU.md). XLA's younger way to make a CPU's loops takes twice as
long to compile: for large data they are a tenth faster, a fit of hundreds of rows is as fast without.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np

OPTIONS = {"xla_cpu_prefer_vector_width": 512, "xla_gpu_enable_triton_gemm": False}
QUICKLY = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
LITTLE = 2**17  # numbers in all arguments: of fewer, most of the time goes into compiling


@functools.cache
def accepted(options: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those options that the XLA which runs here knows."""
    all_of_them = dict(options)
    if are_known(all_of_them):
        return all_of_them
    return {name: value for name, value in options if are_known({name: value})}


def are_known(options: dict[str, Any]) -> bool:
    """Does XLA take these options?"""
    try:
        jax.jit(lambda: 0, compiler_options=options)()
    except Exception:  # each version of XLA says it in its own words
        return False
    return True


def compiled(f: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit(f, **options)` so compiled; as part of a caller's program, as that program is."""
    part = jax.jit(f, **options)

    @functools.cache
    def own(quickly: bool) -> Callable[..., Any]:  # not before the first call: asking XLA starts it
        known = accepted(tuple((OPTIONS | QUICKLY if quickly else OPTIONS).items()))
        return jax.jit(f, compiler_options=known, **options)

    @functools.wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = jax.tree.leaves((args, kwargs))
        if is_traced(leaves) or being_traced():
            return part(*args, **kwargs)
        return own(sum(getattr(leaf, "size", 1) for leaf in leaves) <= LITTLE)(*args, **kwargs)

    return call


def is_traced(*values: Any) -> bool:
    """True when some leaf is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def is_concrete(*values: Any) -> bool:
    """True when every leaf can be read here: none is a tracer, or lies on another process's devices."""

    def elsewhere(leaf: Any) -> bool:
        return isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)

    return not is_traced(values) and not any(elsewhere(leaf) for leaf in jax.tree.leaves(values))


_anything = jax.jit(lambda: np.float32(0))  # a call of it takes 3 µs, `jnp.zeros` 30


def being_traced() -> bool:
    """Are we inside someone's `jit`, or what else is compiled as a whole?"""
    return is_traced(_anything())


def at_once() -> AbstractContextManager:
    """Where JAX runs what it is given, also while something around it is being traced."""
    return jax.ensure_compile_time_eval() if being_traced() else nullcontext()
