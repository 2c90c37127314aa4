"""How the arguments of a program's distributions follow its parameters, found by evaluating it at random numbers.

Let u = L(V) be an argument and V = φ(p) a parameter in one of a few coordinates. Every entry of u *follows one entry*
of V, or none, when with D(x) = L(o + x) − L(o), ∘ entry by entry, and random a, b, c

    D(a ∘ b) ∘ D(c) = D(a) ∘ D(b ∘ c)   and   D((a + b)/2) = (D(a) + D(b))/2

(a row of L with two entries fails the first, what is not straight the second). The origin o is 0, where L must vanish,
but for probabilities ½, as p and 1 − p meet there, and for locations anything.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxem._programs import domains, probe
from jaxem._programs.read import Arguments, Structure, Term, Theta
from jaxem._programs.updates import ITSELF, RULES, Coordinate, arguments_of

Place = tuple[str, str]  # (term, argument)
Found = dict[Place, Any]

Number = np.ndarray | np.floating  # NumPy makes the one of the other where there are no axes
GUISES = {"covariance_matrix": ITSELF, "precision_matrix": Coordinate("inverse"), "scale_tril": Coordinate("cholesky")}
COORDINATES = {
    "square": [ITSELF],
    "odds": [ITSELF, Coordinate("logit")],
    "shares": [ITSELF, Coordinate("log")],
    "scatter": list(GUISES.values()),
}


class Sizes(NamedTuple):
    """Of a program at some shapes."""

    plates: dict[str, dict[str, int]]  # of each term
    entries: int  # of the largest table, over its plates and latents
    width: int  # numbers made for all terms

    @classmethod
    def of(cls, terms: list[Term], structure: Structure) -> "Sizes":
        entries, width = 1, 0
        for term in terms:
            values = [structure.enumerated[name] for name in term.mentioned(structure.enumerated)]
            table = math.prod([*term.plates.values(), *values])
            shape = jnp.broadcast_shapes(term.fn.batch_shape + term.fn.event_shape, jnp.shape(term.value))
            entries, width = max(entries, table), width + max(table, math.prod(shape))
        return cls({term.name: term.plates for term in terms}, entries, width)


class Probe:
    """A program at random stand-ins: what its distributions are given, as a function of θ."""

    def __init__(self, terms_of: Callable, structure: Structure, shapes: Arguments, dtype: Any):
        self.structure, self.dtype, self.rng = structure, dtype, np.random.default_rng(0)
        self.families: dict[str, type] = {}
        self.sizes: dict[Arguments, Sizes] = {}  # by the shapes of the data

        def entries(theta: Theta, data: Arguments) -> tuple[Found, Found, Any]:
            terms, priors = terms_of(theta, data)
            self.families |= {term.name: type(term.fn) for term in terms}
            self.sizes[data.shapes()] = Sizes.of(terms, structure)
            own = {(term.name, name): value for term in priors for name, value in arguments_of(term.fn).items()}
            return places_of(terms), own, probe.violations([*terms, *priors])

        self._evaluate = probe.once(entries)
        self.base = jax.device_get(probe.parameters(structure, dtype, self.rng))
        self.shapes, self.limits = shapes, probe.limits(shapes, structure)
        self.data = next(self.arguments())

    def arguments(self) -> Iterator[Arguments]:
        """Stand-ins for the data, of the widest ranges that the program bears, then of narrower ones."""

        def violations(data: Arguments) -> Any:
            return self._evaluate(self.base, data)[2]

        for first in range(max(4, len(self.limits))):
            yield probe.arguments(self.shapes, violations, self.limits, first)

    def at(self, some: Theta) -> tuple[Found, Found]:
        """What distributions are given, and what the priors of θ are given, at the base with some entries changed."""
        found, priors, _ = self._evaluate(self.base | some, self.data)
        return found, priors

    def given(self, data: Arguments) -> tuple[Found, Found, "Sizes"]:
        """The same at the base, with other data; and how large it is."""
        found, priors, _ = self._evaluate(self.base, data)
        return found, priors, self.sizes[data.shapes()]

    def reached(self, name: str) -> tuple[tuple[Place, ...], tuple[str, ...]]:
        """The places that a parameter enters, and the parameters whose priors it enters."""
        only = self.structure._replace(parameters={name: self.structure.parameters[name]})
        found, priors = self.at({})
        others = [self.at(probe.parameters(only, self.dtype, self.rng)) for _ in range(2)]
        places = [place for place in found if not all(same(found[place], other[place]) for other, _ in others)]
        above = [place[0] for place in priors if not all(same(priors[place], other[place]) for _, other in others)]
        return tuple(places), tuple(dict.fromkeys(above))

    def with_the_digits_of_theta(self, argument: Any) -> np.ndarray:
        """An argument may be of a wider type than θ, but has no more digits."""
        argument = np.asarray(argument)
        return argument.astype(min(argument.dtype, self.dtype, key=lambda dtype: jnp.finfo(dtype).bits))

    # ---- how u follows V

    def origin(self, name: str, form: str) -> Any:
        return {"odds": 0.5, "square": self.base[name]}.get(form, 0)

    def draw(self, name: str, form: str) -> Any:
        """Random x = V − o; products and means of two are of the same kind."""
        value = self.base[name]
        if form == "scatter":
            drawn = probe.covariances(value.shape, self.rng)
        elif form == "odds":
            drawn = self.rng.uniform(-0.4, 0.4, value.shape)
        else:
            drawn = self.rng.uniform(0.5, 2.0, value.shape)
            if form == "square" and domains.is_unbounded(self.structure.parameters[name].constraint):
                drawn = drawn * self.rng.choice([-1, 1], value.shape)
        return np.asarray(drawn, value.dtype)

    def follows(self, some: dict[str, tuple[str, Coordinate]], places: Any) -> bool:
        """Does every entry at these places follow one entry of these parameters, in these forms and coordinates?"""

        def L(V: Theta) -> Found:
            with jax.numpy_rank_promotion("allow"):
                found, _ = self.at({name: np.asarray(some[name][1].inverse(V[name])) for name in some})
            return {place: self.with_the_digits_of_theta(found[place]) for place in places}

        def draw() -> Theta:
            return {name: self.draw(name, form) for name, (form, _) in some.items()}

        def each(function: Callable, *draws: Theta) -> Theta:
            return {name: function(*(x[name] for x in draws)) for name in some}

        origin = {name: self.origin(name, form) for name, (form, _) in some.items()}
        forms = {form for form, _ in some.values()}
        at_origin: Found = dict.fromkeys(places, 0)  # no array, which would be of double precision
        if forms <= {"odds", "square"}:
            at_origin = L(each(lambda x, o: 0 * x + o, draw(), origin))

        def D(x: Theta) -> Found:
            at = L(each(np.add, x, origin))
            return {place: at[place] - at_origin[place] for place in places}

        a, b, c = draw(), draw(), draw()
        ab, bc = D(each(np.multiply, a, b)), D(each(np.multiply, b, c))
        at_a, at_b, at_c, mean = D(a), D(b), D(c), D(each(lambda a, b: (a + b) / 2, a, b))
        return all(
            close(ab[p] * at_c[p], at_a[p] * bc[p])
            and close(mean[p], (at_a[p] + at_b[p]) / 2)
            and ("odds" not in forms or is_or_is_not(at_a[p], at_b[p], ab[p], at_origin[p]))
            for p in places
        ) and ("scatter" not in forms or is_scaled_identity(L(identity(each(np.asarray, a))), places))

    def coordinate(self, name: str, form: str, places: tuple[Place, ...]) -> Coordinate | None:
        """The coordinate of which every entry at these places follows one entry."""
        shape = self.base[name].shape
        if form == "scatter" and (len(shape) < 2 or shape[-1] != shape[-2]):
            return None
        candidates = self.powers(name, places) if form == "power" else COORDINATES[form]
        return next((one for one in candidates if self.follows({name: (form, one)}, places)), None)

    def powers(self, name: str, places: tuple[Place, ...]) -> list[Coordinate]:
        """u = c·p^k or c·e^{kp}: the one exponent, measured, that all entries share."""
        p, found = self.draw(name, "power"), []
        for kind, other, step in (("power", 1.25 * p, np.log(1.25)), ("log", p + 0.25, 0.25)):
            before, after = self.at({name: p})[0], self.at({name: other})[0]
            with np.errstate(all="ignore"):
                each = [np.log(np.asarray(after[place]) / np.asarray(before[place])).ravel() for place in places]
            slopes = np.concatenate(each) / step
            slopes = slopes[np.isfinite(slopes) & (np.abs(slopes) > 1e-3)]
            exponent = round(4 * float(np.median(slopes))) / 4 if slopes.size else 0
            if exponent and np.all(np.abs(slopes - exponent) < 1e-3):
                found.append(Coordinate(kind, exponent))
        return found

    def is_affine(self, names: list[str], places: Any) -> bool:
        """Are these places affine in these parameters together?"""
        o = {name: self.base[name] for name in names}  # 0 may lie outside of what they may be
        a, b = ({name: o[name] + self.draw(name, "square") for name in names} for _ in range(2))
        together = {name: a[name] + 2 * (b[name] - o[name]) for name in names}

        def L(V: Theta) -> Found:
            found, _ = self.at(V)
            return {place: self.with_the_digits_of_theta(found[place]) for place in places}

        at_0, at_a, at_b, at_sum = L(o), L(a), L(b), L(together)
        return all(close(at_sum[p], at_a[p] + 2 * (at_b[p] - at_0[p])) for p in places)


def places_of(terms: list[Term]) -> Found:
    """Every array of the data's terms that a parameter could enter, arguments in the form that Q is known in."""
    found: Found = {}
    for term in terms:
        for name, value in arguments_of(term.fn).items():
            rule = RULES.get((type(term.fn), name))
            found[term.name, name] = rule.canonical(value) if rule else jax.tree.leaves(value)
        found[term.name, "the value"] = jnp.asarray(term.value)
        found[term.name, "the weight"] = [
            jnp.asarray(term.scale),
            jnp.asarray(True if term.mask is None else term.mask),
        ]
    return found


def is_or_is_not(at_a: Number, at_b: Number, ab: Number, at_half: Number) -> bool:
    """Is every entry that moves either V or 1 − V?"""
    moves = at_a != 0
    return close(np.abs(ab), np.abs(at_a * at_b)) and close(np.where(moves, at_half, 0.5), np.full(moves.shape, 0.5))


def is_scaled_identity(found: Found, places: Any) -> bool:
    """Is every covariance a multiple of V, whatever the axes?"""
    at = [found[place] for place in places]
    return all(close(u, u[..., :1, :1] * np.eye(u.shape[-1], dtype=u.dtype)) for u in at)


def identity(like: Theta) -> Theta:
    return {name: np.broadcast_to(np.eye(x.shape[-1], dtype=x.dtype), x.shape) for name, x in like.items()}


def same(left: Any, right: Any) -> bool:
    """Equal to the bit, NaN equal to NaN."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f") for a, b in pairs)


def close(left: Any, right: Any) -> bool:
    """Equal to rounding; neither NaN nor infinity is equal to anything."""
    left, right = np.asarray(left), np.asarray(right)
    with np.errstate(invalid="ignore", over="ignore"):
        tolerance = (
            1e3 * np.finfo(left.dtype).eps * np.maximum(np.abs(left).max(initial=0), np.abs(right).max(initial=0))
        )
        return bool(np.isfinite(tolerance) and (np.abs(left - right) <= tolerance).all())
