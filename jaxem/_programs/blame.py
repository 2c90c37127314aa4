"""Whose error is it? What a program raises is said in one line that names its arguments."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxem._core.arrays import PACKAGE, first_line, shown
from jaxem._programs.arguments import Arguments


@contextmanager
def blamed_on_the_program(x: Arguments) -> Iterator[None]:
    """What a program cannot do with its arguments, said in one line; jaxem's words, and errors of its own, stay."""
    try:
        yield
    except (TypeError, AttributeError, AssertionError, LookupError, ValueError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        if frame is not None and frame.tb_frame.f_code.co_filename.startswith(PACKAGE):
            raise
        shapes = jax.tree.map(lambda v: v.aval.str_short() if isinstance(v, jax.Array) else v, x.unpack())
        raise ValueError(
            f"program: called with x = {shown(shapes)}, it raises {type(error).__name__}: {first_line(error)}; x must "
            "be its argument, or the tuple of its arguments"
        ) from error
