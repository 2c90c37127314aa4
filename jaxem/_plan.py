"""Which M-step each parameter of a program gets, found by asking the program.

A distribution's argument a = f(p) is a *selection* of a parameter when, to the bit,

    f(1) = 1,   f(a·b) = f(a)·f(b)   and   f(a + b) = f(a) + f(b),

for random a, b: then every entry of f(p) is one entry of p, and eq:update is its maximiser. (The product alone would
accept squares and reciprocals.) A location that is affine in p is a weighted least-squares solve. Everything else
climbs its gradient. Nothing here depends on the user's values: probes are random numbers of the same shapes, so a
plan is static, made once for each program and shapes, inside `jit` too.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro.distributions import biject_to, constraints

from jaxem._model import at_once
from jaxem._read import Arguments, Structure, Theta, terms_of
from jaxem._updates import RULES, Rule, arguments_of

Place = tuple[str, str]  # (term, argument)

LEAST_SQUARES_LIMIT = 512  # entries of the parameters that are solved for together


# runs a few times: compiled in a hurry
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Update(NamedTuple):
    """How one parameter is updated: by `rule` at `places`, by least squares at `places`, or by gradient."""

    kind: str  # "selection", "linear", "gradient"
    rule: Rule | None
    places: tuple[Place, ...]
    why: str

    @property
    def closed(self) -> Rule:
        assert self.rule is not None, self.why
        return self.rule


Plan = dict[str, Update]


def surrogate(leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """Random data of the same shape and dtype, inside the support of most things."""
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        return rng.uniform(0.05, 0.95, leaf.shape).astype(leaf.dtype)
    return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)


def surrogate_theta(structure: Structure, dtype: Any, rng: np.random.Generator) -> Theta:
    """A random θ that satisfies its constraints."""

    def entry(shape: tuple[int, ...], constraint: constraints.Constraint) -> Any:
        bijection = biject_to(constraint)
        return bijection(jnp.asarray(rng.normal(size=bijection.inverse_shape(shape)) * 0.3, dtype)).astype(dtype)

    return {
        name: jax.tree.map(
            functools.partial(entry, constraint=parameter.constraint),
            parameter.shape,
            is_leaf=lambda node: isinstance(node, tuple),
        )
        for name, parameter in structure.parameters.items()
    }


def make_plan(program: Callable[..., Any], structure: Structure, arguments: Arguments, dtype: Any) -> Plan:
    """The update of every parameter. `arguments` are used for their shapes alone."""
    rng = np.random.default_rng(0)
    data = jax.tree.map(lambda leaf: surrogate(leaf, rng), arguments)
    families: dict[str, type] = {}

    def entries(theta: Theta, data: Arguments) -> tuple[dict[Place, Any], dict[Place, Any]]:
        """Every array that a parameter could enter: of the data's terms, and of the parameters' priors."""
        found: dict[Place, Any] = {}
        priors: dict[Place, Any] = {}
        for term in terms_of(program, structure, theta, data):
            given = {(term.name, name): value for name, value in arguments_of(term.fn).items()}
            if term.name in structure.parameters:
                priors |= given
                continue
            families[term.name] = type(term.fn)
            found |= given | {(term.name, "the weight"): jnp.asarray(term.scale)}
            if term.observed:
                found[(term.name, "the observed value")] = term.value
        return found, priors

    with at_once(), jax.numpy_rank_promotion("allow"):
        evaluate = once(entries)
        base = surrogate_theta(structure, dtype, rng)
        return _plan(lambda theta: jax.device_get(evaluate(theta, data)), base, structure, families, rng)


def _plan(evaluate: Callable, base: Theta, structure: Structure, families: dict[str, type], rng: Any) -> Plan:
    def draw(like: Any) -> Any:
        return jax.tree.map(lambda leaf: rng.uniform(0.5, 2.0, leaf.shape).astype(leaf.dtype), like)

    base = jax.device_get(base)
    _, priors_at_base = evaluate(base)

    def update_of(name: str) -> Update:
        value = base[name]
        if not isinstance(value, np.ndarray):
            return Update("gradient", None, (), "a tree of arrays")
        a, b = draw(value), draw(value)
        at_a, priors_at_a = evaluate(base | {name: a})
        at_b, _ = evaluate(base | {name: b})
        places = tuple(place for place in at_a if not same(at_a[place], at_b[place]))
        if not places:
            return Update("gradient", None, (), "enters no distribution of the data")
        coupled = [place[0] for place in priors_at_a if not same(priors_at_a[place], priors_at_base[place])]
        if coupled:
            return Update("gradient", None, places, f"is also in the prior of {coupled[0]!r}")
        kind, *others = {(families[term], argument) for term, argument in places}
        where = ", ".join(f"{families[term].__name__}.{argument} of {term!r}" for term, argument in places)
        if others or kind not in RULES:
            return Update("gradient", None, places, f"enters {where}: no closed form is known")
        rule = RULES[kind]
        reason = prior_obstacle(name, rule, structure)
        if reason:
            return Update("gradient", None, places, reason)
        at_one, _ = evaluate(base | {name: np.ones_like(value)})
        at_product, _ = evaluate(base | {name: a * b})
        at_sum, _ = evaluate(base | {name: a + b})
        selects = all(
            same(at_one[p], np.ones_like(at_one[p]))
            and same(at_product[p], at_a[p] * at_b[p])
            and same(at_sum[p], at_a[p] + at_b[p])
            for p in places
        )
        if selects:
            return Update("selection", rule, places, f"selected by {where}")
        if rule.offset and kind[0] is not dist.MultivariateNormal:
            return Update("linear", rule, places, f"linear in {where}")
        return Update("gradient", None, places, f"is transformed in {where}")

    return with_least_squares({name: update_of(name) for name in base}, evaluate, base, draw)


def with_least_squares(plan: Plan, evaluate: Callable, base: Theta, draw: Callable) -> Plan:
    """Candidates for least squares stay so if the locations are affine in all of them together."""
    names = [name for name, update in plan.items() if update.kind == "linear"]
    if not names:
        return plan
    size = sum(base[name].size for name in names)
    zero = base | {name: np.zeros_like(base[name]) for name in names}
    a = {name: draw(base[name]) for name in names}
    b = {name: draw(base[name]) for name in names}
    (at_0, _), (at_a, _), (at_b, _) = evaluate(zero), evaluate(base | a), evaluate(base | b)
    at_sum, _ = evaluate(base | {name: a[name] + 2 * b[name] for name in names})

    def affine(place: Place) -> bool:
        wanted = at_a[place] + 2 * (at_b[place] - at_0[place])
        tolerance = 1e3 * np.finfo(wanted.dtype).eps * (1 + np.abs(wanted).max())
        return bool((np.abs(at_sum[place] - wanted) <= tolerance).all())

    places = {place for name in names for place in plan[name].places}
    if size > LEAST_SQUARES_LIMIT:
        why = f"linear, but {size} unknowns are more than least squares takes ({LEAST_SQUARES_LIMIT})"
    elif not all(affine(place) for place in places):
        why = "is transformed by the location it enters"
    else:
        return plan
    return plan | {name: Update("gradient", None, plan[name].places, why) for name in names}


def prior_obstacle(name: str, rule: Rule, structure: Structure) -> str:
    """Why a parameter's prior rules out the closed form, or nothing."""
    prior, mixed = structure.parameters[name].prior, structure.parameters[name].mixed
    if mixed is not None:
        return f"its prior depends on {mixed!r}"
    if prior is None or prior is rule.prior:
        return ""
    return f"its prior {prior.__name__} is not conjugate"


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, NaN equal to NaN."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in pairs)
