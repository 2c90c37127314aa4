"""A model by what it is, in words that are the same in every process and wherever jaxem keeps its files.

A family has its public name, `gaussian.full`. Of another mixture, or where one differs from its family (a floor, a
gradient's M-step), the functions are named by their modules, which are then the user's.
"""

import dataclasses
import functools
import re
from typing import Any

from jaxem._core.model import Model
from jaxem.families import (
    bernoulli,
    categorical,
    exponential,
    factor_analysers,
    gamma,
    gaussian,
    negative_binomial,
    poisson,
    student_t,
    von_mises_fisher,
)
from jaxem.families._mixture import Mixture
from jaxem.families._parts import Extras, Numerics

FAMILIES = {
    value.name: value
    for module in (
        gaussian,
        bernoulli,
        categorical,
        poisson,
        exponential,
        gamma,
        negative_binomial,
        student_t,
        von_mises_fisher,
    )
    for value in vars(module).values()
    if isinstance(value, Mixture)
}


def family(name: Any) -> Mixture | None:
    """The family of a name, `factor_analysers.mixture(2)` too; None where there is none."""
    counted = re.fullmatch(r"factor_analysers\.mixture\(([1-9][0-9]*)\)", str(name))
    return factor_analysers.mixture(int(counted[1])) if counted else FAMILIES.get(name)


def description(m: Model) -> Any:
    """Of a model, in JSON's terms: the family it comes from, what is held, and where else it differs."""
    if not isinstance(m, Mixture):
        return identity(m, [])
    own = parts(m)

    def differing(family: Mixture) -> list[str]:
        others = parts(family)
        return [name for name, part in own.items() if part != others[name]]

    factors = [axes.split()[-1] for name, axes in m.shapes if name == "loadings"]
    counted = [family(f"factor_analysers.mixture({Q})") for Q in factors]
    families = [*FAMILIES.values(), *(each for each in counted if each is not None)]
    kin = [each for each in families if (each.program, each.shapes) == (m.program, m.shapes)]
    if kin:
        nearest = min(kin, key=lambda each: len(differing(each)))
        title: str | None = nearest.name
        known = [(part, f"{title}'s {name}") for name, part in parts(nearest).items() if callable(part)]
        others = differing(nearest)
    else:
        title, known = None, []
        others = [name for name, part in own.items() if name not in NOTHING or part != NOTHING[name]]
    rest = {name: identity(own[name], known) for name in others}
    return {"family": title, "held": sorted(m.held)} | rest


def speed(m: Numerics) -> tuple[Any, ...]:
    """What makes its sums fast. What is known of their rounding follows from the M-step, and is not told."""
    return m.products, m.squares, m.by_winner, m.hard


def parts(m: Mixture) -> dict[str, Any]:
    """What makes a mixture, by the names that files have for it, and keep whatever group it is in."""
    own = {name: getattr(m, name) for name in ("program", "shapes", "statistics", "update", "guess", "kernel")}
    return own | {"constant": m.numerics.constant, "fast": speed(m.numerics)} | vars(m.extras)


NOTHING = {"kernel": None, "constant": None, "fast": speed(Numerics())} | vars(Extras())


def identity(value: Any, known: list[tuple[Any, str]]) -> Any:
    """What a value is made of: functions by name, `known` ones by that; partials and frozen dataclasses by parts."""
    for function, name in known if callable(value) else []:
        if value == function:
            return name
    if isinstance(value, Mixture):
        return description(value)
    if isinstance(value, functools.partial):
        return [identity(part, known) for part in (value.func, value.args, value.keywords)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: identity(getattr(value, field.name), known) for field in dataclasses.fields(value)}
        return [type(value).__qualname__, fields]
    if callable(value):
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"{named.__module__}.{named.__qualname__}"
    if isinstance(value, dict):
        return {str(key): identity(entry, known) for key, entry in value.items()}
    if isinstance(value, frozenset | set):
        return sorted(map(str, value))
    if isinstance(value, tuple | list):
        return [identity(entry, known) for entry in value]
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
