"""Models are values: equal, and hashed alike, when they are made of the same things.

`functools.partial` and bound methods are equal to themselves alone, and to themselves no longer once they have been
copied. A model made of them would differ from its own deepcopy and from what its pickle gives back, and JAX, which
knows a model by `==`, would compile a fit anew for each.
"""

import dataclasses
import functools
import types
from typing import Any


class Partial(functools.partial):
    """A `functools.partial` that equals another of the same function and arguments.

    >>> def power(x, exponent):
    ...     return x**exponent
    >>> Partial(power, exponent=2) == Partial(power, exponent=2)
    True
    """

    def parts(self) -> tuple:
        keywords = tuple((name, type(value), value) for name, value in sorted(self.keywords.items()))
        return self.func, tuple((type(value), value) for value in self.args), keywords  # 1 == True, but they differ

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Partial) and self.parts() == other.parts()

    def __hash__(self) -> int:
        return hash(self.parts())


def by_value(thing: Any) -> Any:
    """A partial or a bound method as a `Partial`, also inside a NamedTuple; all else as it is, and what has no hash."""
    if isinstance(thing, functools.partial):
        args = map(by_value, thing.args)
        keywords = {name: by_value(value) for name, value in thing.keywords.items()}
        found = Partial(by_value(thing.func), *args, **keywords)
    elif isinstance(thing, types.MethodType) and not isinstance(thing.__self__, type):
        found = Partial(thing.__func__, thing.__self__)
    elif isinstance(thing, tuple) and hasattr(thing, "_fields"):
        return type(thing)(*map(by_value, thing))
    else:
        return thing
    try:
        hash(found)
    except TypeError:  # an array, a list: known by what it is, not by what it holds
        return thing
    return found


def name_of(function: Any) -> str:
    """Of a function, or of whatever else is called: where it was defined, and as what."""
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}".removeprefix("__main__.")


def settle(value: Any) -> None:
    """Every field of a frozen dataclass `by_value`; for its `__post_init__`."""
    for field in dataclasses.fields(value):
        object.__setattr__(value, field.name, by_value(getattr(value, field.name)))
