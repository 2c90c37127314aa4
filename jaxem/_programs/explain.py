"""What a program says of its M-step: the update of each parameter, and why."""

from collections.abc import Mapping

from jaxem._programs.arguments import Cut
from jaxem._programs.plan import Plan
from jaxem._programs.structure import Parameter

KINDS = {
    "selection": "closed form",
    "linear": "weighted least squares",
    "newton": "Newton's method",
    "gradient": "gradient",
}


class Explanation(dict[str, str]):
    """What `explain` says of each parameter, and of the rows."""

    rows: str = ""


def explained(plan: Plan, parameters: Mapping[str, Parameter], cut: Cut | str) -> Explanation:
    """Of each parameter how it is updated and why; and where the rows lie, or why there are none.

    Args:
        plan: the updates of those that are free.
        parameters: all of them, by name.
        cut: how the arguments are cut into rows, or why they cannot be.
    """
    found = Explanation(
        (name, f"{KINDS[plan[name].kind]}: {plan[name].why}{estimated(parameter)}" if name in plan else "held")
        for name, parameter in parameters.items()
    )
    found.rows = f"none: {cut}" if isinstance(cut, str) else f"the members of plate {cut.plate!r}"
    return found


def estimated(parameter: Parameter) -> str:
    """What to say of a latent that has a value for each of a group of rows."""
    plates = ", ".join(map(repr, parameter.plates))
    return f"; a point estimate (MAP) for each member of plate {plates}" if plates else ""
