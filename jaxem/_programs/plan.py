"""Which M-step each parameter of a program gets, found by asking the program (`_programs/follow`).

Where every entry of the arguments that a parameter enters follows one of its entries, eq:update is its maximiser; a
location that is affine in several is a weighted least-squares solve; everything else climbs Q, and so does what a
constraint or a prior takes out of the closed form's reach: by Newton's method where its entries are few, else by its
gradient. Nothing here depends on the user's values: a plan is static, made once for each program and shapes, inside
`jit` too.
"""

from typing import Any, NamedTuple

import numpy as np
from numpyro import distributions as dist

from jaxem._programs import domains
from jaxem._programs.follow import GUISES, Place, Probe
from jaxem._programs.read import Parameter
from jaxem._programs.updates import FLAT, ITSELF, PRIORS, QUADRATIC, RULES, Coordinate

ITERATED = ("newton", "gradient")  # updates that are not closed: a few entries, or many
NEWTON_LIMIT = 64  # entries of the parameters that Newton's method takes together
LEAST_SQUARES_LIMIT = 512  # entries of the parameters that are solved for together


class Update(NamedTuple):
    """How one parameter is updated: by eq:update or least squares at `places`, by Newton's method or by gradient."""

    kind: str  # "selection", "linear", "newton", "gradient"
    places: tuple[Place, ...]
    why: str
    form: str = ""
    coordinate: Coordinate = ITSELF
    last: bool = False  # after those that climb a gradient
    block: int = 0  # parameters of one block are updated at once
    moves: bool = False  # its sums about another location follow from those about one (eq:moved)


Plan = dict[str, Update]
Options = dict[str, list[Update]]  # the ways to update each parameter, the best first and the gradient last


class Planner:
    """The plans of a program at given shapes: the best one that has not been found wanting."""

    def __init__(self, probe: Probe):
        self.probe = probe
        self.options: Options = {name: options_of(name, probe) for name in probe.structure.parameters}

    def drop(self, name: str, reason: str) -> None:
        """Put the next way to update a parameter in the place of the best, and say why."""
        best, *rest = self.options[name]
        if rest[0].kind == "gradient":
            rest = [rest[0]._replace(why=f"{best.why}, but {reason}")]
        self.options[name] = rest

    def plan(self) -> Plan:
        """The best update of each parameter that agrees with those of the others."""
        while self.settle_locations():
            pass
        plan = {name: ways[0] for name, ways in self.options.items()}
        return plan | self.blocks(plan)

    def settle_locations(self) -> bool:
        """Locations that meet in one place are solved for together: was anything to be changed?"""
        now = {name: ways[0] for name, ways in self.options.items()}
        linear = [name for name in now if now[name].kind == "linear"]
        for place, names in meeting(now).items():
            meet = [name for name in names if now[name].form == "square"]
            apart = [name for name in meet if now[name].kind == "selection" and self.options[name][1].kind == "linear"]
            together = not set(meet) & set(linear) and self.follow(now, meet, [place])
            if len(meet) > 1 and apart and not together:
                for name in apart:
                    self.options[name] = self.options[name][1:]
                return True
        size = sum(self.probe.base[name].size for name in linear)
        if size > LEAST_SQUARES_LIMIT:
            reason = f"{size} unknowns are more than least squares takes ({LEAST_SQUARES_LIMIT})"
        elif not self.probe.is_affine(linear, {place for name in linear for place in now[name].places}):
            reason = "not together with the others that it meets there"
        else:
            return False
        for name in linear:
            self.drop(name, reason)
        return True

    def blocks(self, plan: Plan) -> Plan:
        """Selected parameters that meet in one place, and not each in its own entries, are updated one by one."""
        alone: dict[str, int] = {}
        for place, names in meeting(plan).items():
            meet = [name for name in names if plan[name].kind == "selection"]
            if len(meet) > 1 and not self.follow(plan, meet, [place]):
                alone |= {name: 1 + list(plan).index(name) for name in meet}
        return {name: plan[name]._replace(block=block) for name, block in alone.items()}

    def follow(self, plan: Plan, names: list[str], places: list[Place]) -> bool:
        return self.probe.follows({name: (plan[name].form, plan[name].coordinate) for name in names}, places)


def climbing(names: tuple[str, ...], plan: Plan) -> list[str]:
    """What is maximised with these: closed form or not, what shares a distribution with them.

    By turns, a Gamma's shape and rate would take hundreds of M-steps for one.
    """
    shared = {term for name in names for term, _ in plan[name].places}
    return [name for name in plan if name in names or shared & {term for term, _ in plan[name].places}]


def with_newton(plan: Plan, sizes: dict[str, int]) -> Plan:
    """The plan, with what has no closed form updated by Newton's method where its entries are few."""
    unclosed = tuple(name for name, update in plan.items() if update.kind == "gradient")
    few = sum(sizes[name] for name in climbing(unclosed, plan)) <= NEWTON_LIMIT
    return plan | {name: plan[name]._replace(kind="newton") for name in unclosed} if few else plan


def meeting(plan: Plan) -> dict[Place, list[str]]:
    """Which parameters with a closed form enter each place?"""
    found: dict[Place, list[str]] = {}
    for name, update in plan.items():
        for place in update.places if update.kind not in ITERATED else ():
            found.setdefault(place, []).append(name)
    return found


def options_of(name: str, probe: Probe) -> list[Update]:
    """The ways to update one parameter, the best first, and last the gradient with the reason for it."""
    if not isinstance(probe.base[name], np.ndarray) or not probe.base[name].size:
        return [Update("gradient", (), "a tree of arrays, or empty")]
    places, above = probe.reached(name)
    if not places:
        why = f"enters no distribution but the prior of {above[0]!r}" if above else "moved no distribution when it was"
        return [Update("gradient", (), why)]
    parameter = probe.structure.parameters[name]
    if parameter.mixed is not None:
        return [Update("gradient", places, f"its prior depends on {parameter.mixed!r}")]
    rules = [RULES.get((probe.families[term], argument)) for term, argument in places]
    forms = {rule.form if rule else "" for rule in rules}
    if forms <= {"odds", "shares"} and is_probability(parameter):
        forms = {"odds"}  # of a Categorical, too, where its probabilities are p and 1 − p
    form = forms.pop()
    if above or forms or not form:
        why = (
            f"is also in the prior of {above[0]!r}"
            if above
            else f"enters {where(places, probe)}, for which there is no rule"
        )
        return [Update("gradient", places, why)]
    found, obstacles = [], []
    coordinate = probe.coordinate(name, form, places)
    if coordinate is not None:
        selected = f"selected by {where(places, probe, coordinate)}{within_bounds(parameter, form, coordinate)}"
        last = any(rule is not None and rule.last for rule in rules)
        weighs = form == "square" and any(probe.families[term] is dist.MultivariateNormal for term, _ in places)
        obstacles.append(
            obstacle(parameter, form, coordinate, FLAT if weighs else {*FLAT, *conjugate(form, coordinate)})
        )
        moves = all(rule is not None and rule.moved is not None for rule in rules)
        found.append(Update("selection", places, selected, form, coordinate, last, moves=moves))
    if form == "square" and probe.is_affine([name], places):
        obstacles.append(obstacle(parameter, "linear", ITSELF, QUADRATIC))
        found.append(Update("linear", places, f"linear in {where(places, probe)}", form))
    found = [update for update, against in zip(found, obstacles, strict=True) if not against]
    reason = next((against for against in obstacles if against), f"is transformed in {where(places, probe)}")
    return [*found, Update("gradient", places, reason)]


def where(places: tuple[Place, ...], probe: Probe, coordinate: Coordinate = ITSELF) -> str:
    guise = next((guise for guise, one in GUISES.items() if one == coordinate), "")

    def named(term: str, argument: str) -> str:
        family: Any = probe.families[term]
        shown = guise if guise and argument == "covariance_matrix" else argument
        known = shown in family.arg_constraints or shown.startswith("the ") or (family, argument) in RULES
        return f"{family.__name__}{'.' + shown if known else ''} of {term!r}"  # what it keeps to itself has no name

    return ", ".join(dict.fromkeys(named(*place) for place in places))


# ---- what stands between a parameter and its closed form


def is_probability(parameter: Parameter) -> bool:
    return domains.kind(parameter.constraint) == "interval" and not domains.is_unbounded(parameter.constraint)


def conjugate(form: str, coordinate: Coordinate) -> set[type]:
    return {prior for (some, prior, one) in PRIORS if some == form and one == coordinate}


def obstacle(parameter: Parameter, form: str, coordinate: Coordinate, priors: Any) -> str:
    """Why the constraint or the prior of a parameter rules out its closed form, or nothing."""
    constraint, kind = parameter.constraint, domains.kind(parameter.constraint)
    if form == "linear" or (form == "shares" and coordinate.name == "log"):
        kept = domains.is_unbounded(constraint)
    elif form == "shares":
        kept = kind == "simplex"
    elif form == "scatter":
        kept = kind == ("cholesky" if coordinate.name == "cholesky" else "covariance")
    else:
        kept = kind == "interval"
    if not kept:
        return f"its closed form does not keep the constraint {domains.base(constraint)}"
    prior = parameter.prior
    return "" if prior is None or prior in priors else f"its prior {prior.__name__} is not conjugate"


def within_bounds(parameter: Parameter, form: str, coordinate: Coordinate) -> str:
    """Where the constraint is narrower than what the closed form would keep anyway."""
    bounds = domains.interval(parameter.constraint)
    natural = {"power": (0.0, np.inf), "odds": (0.0, 1.0)}.get(form, (-np.inf, np.inf))
    natural = (-np.inf, np.inf) if coordinate.name in ("log", "logit") else natural
    return ", within its bounds" if bounds and domains.is_narrower(bounds, natural) else ""
