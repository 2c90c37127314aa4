"""Tracing a program alone: the one door to NumPyro's handlers.

NumPyro keeps its handlers in one list for the whole process, and enumeration puts its own `numpyro.plate` in the place
of the other for a while. Two threads that trace at once would see each other's sites. So there is one lock, and what
traces a program holds it: while a program runs and no longer, for nothing that it waits for may need the lock. What a
thread waits for in JAX while it holds the lock, a cache that another is filling, is filled without it: the functions
that a program calls know nothing of jaxem.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
from numpyro import handlers

_LOCK = threading.RLock()  # a program may call jaxem itself


@contextmanager
def alone() -> Iterator[None]:
    """Where a program is traced: by one thread, unseen by handlers around it, promoting what NumPyro promotes."""
    promoted = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
    with _LOCK, handlers.block(), promoted[0], promoted[1]:
        yield


def all_alone(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of arrays, run `alone`, and its derivatives of every order too.

    JAX asks for the derivatives of what stands in a loop when the loop is differentiated, long after `alone` has ended;
    NumPyro's and SciPy's rules for them promote ranks as their functions do.
    """

    @jax.custom_jvp
    def run(*args: Any) -> Any:
        with alone():
            return f(*args)

    @run.defjvp
    def derivative(primals: tuple, tangents: tuple) -> Any:
        slope = all_alone(lambda at, along: jax.jvp(f, at, along)[1])  # apart from f: in reverse mode f alone is known
        return all_alone(f)(*primals), slope(primals, tangents)

    return run
