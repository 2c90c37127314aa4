"""What comes in is held to its annotation: functions of modules and of classes, not functions made inside of them.

A function inside another is made anew at each call of that one, and so would its check be: a tenth of the float64 leg.
What comes into it came through a door that is checked.
"""

from functools import partial
from typing import Any

import jaxtyping

everywhere = jaxtyping.jaxtyped


def at_doors(f: Any = None, *, typechecker: Any = None) -> Any:
    """`jaxtyping.jaxtyped`, which the import hook puts on every function; one inside another is left as it is."""
    if f is None:
        return partial(at_doors, typechecker=typechecker)
    inside = "<locals>" in getattr(f, "__qualname__", "")
    return f if inside else everywhere(f, typechecker=typechecker)


jaxtyping.jaxtyped = at_doors
