"""A mixture: a NumPyro program, and the two maximisers of eq:F it implies.

The program is the one source of truth. Its parameters are `numpyro.param` sites; inside the data plate
it draws one discrete `z` and observes `x`. This file reads the table ℓ off the program's trace (eq:joint) and
draws samples from it; `_enter` asks it for the constraints of θ. A family adds what makes it fast: a kernel
equal to that table, additive statistics, and the closed-form M-step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from jaxem._core import checks
from jaxem._core.handlers import all_alone, alone
from jaxem._core.model import Coordinates, Data, Expectation, Model, Step, Theta, ThetaLike
from jaxem._core.values import name_of, settle
from jaxem._rows import engine
from jaxem.families import _enter
from jaxem.families._parts import Extras, Numerics

M = TypeVar("M", bound="Mixture")


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Mixture(Model):
    """A mixture model: a NumPyro program with closed-form EM. Hashable, and a pytree without leaves.

    Being static, it passes through `jax.jit` and `jax.vmap` as an ordinary argument. K and D come from θ. It equals
    whatever is made of the same functions, so its deepcopy and what its pickle gives back run what it has compiled.

    Attributes:
        program: `program(x, num_points=None)`, with the parameters as `numpyro.param` sites, and sample
            sites `z` and `x` in one plate. Substitute θ into it to sample or draw it, or lift its
            parameters to priors and hand it to `numpyro.infer`.
        shapes: the sites of θ and their shapes in terms of K and D, e.g. `(("pi", "K"), ("mu", "K D"))`.
        statistics: (θ, x (n, D), γ (K, n)) → sums over the rows, any pytree. May refer to θ.
        update: (statistics, θ, held) → θ, the M-step (eq:M); held names must come back unchanged.
        guess: (centres (K, D), x (N, D)) → θ, the start that `jaxem.inits` builds on centres; `weights` (N,) come by
            name, where there are some. A family with an axis C in `shapes` takes its size as a third argument.
        kernel: (θ, x) → ℓ (K, n), equal to the table of the program's trace; None reads the trace.
        numerics: the same E-step faster, and what is known of its rounding: `jaxem.families.Numerics`.
        extras: what else it can do, from checking x to rows with missing cells: `jaxem.families.Extras`.
        held: names of θ that are never updated; see `hold`.
        name: what its repr says, e.g. "gaussian.full"; mixtures that differ by no more are equal.
    """

    program: Callable[..., Any]
    shapes: tuple[tuple[str, str], ...]
    statistics: Callable[[Theta, Array, Array], Any]
    update: Callable[[Any, Theta, frozenset[str]], Theta]
    guess: Callable[..., Theta]
    kernel: Callable[[Theta, Array], Array] | None = None
    numerics: Numerics = Numerics()  # noqa: RUF009 (it does not change)
    extras: Extras = Extras()  # noqa: RUF009
    held: frozenset[str] = frozenset()
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        settle(self)

    def __repr__(self) -> str:
        """Its name and what is held, as one would write it.

        >>> from jaxem.families import gaussian
        >>> gaussian.isotropic.hold("sigma", "pi")
        gaussian.isotropic.hold('pi', 'sigma')
        """
        name = self.name or f"Mixture(program={name_of(self.program)})"
        of_data = "2 D"  # a box, which is held whatever one asks for
        held = ", ".join(repr(name) for name, spec in self.shapes if name in self.held and spec != of_data)
        return f"{name}.hold({held})" if held else name

    def __dir__(self) -> list[str]:
        """What its users use; all else there is, is how it is fitted fast."""
        return ["free", "held", "hold", "name", "parameters", "program", "shapes", "with_missing"]

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of θ, in the program's order."""
        return tuple(name for name, _ in self.shapes)

    @property
    def free(self) -> tuple[str, ...]:
        """The names of θ that EM updates."""
        return tuple(name for name in self.parameters if name not in self.held)

    @property
    def has_noise(self) -> bool:
        """Is the last entry of π that of noise, which has no entry of its own in the rest of θ?"""
        return dict(self.shapes).get("pi") == "K+1"

    def hold(self, *names: str) -> "Mixture":
        """The same mixture with these entries of θ never updated.

        >>> from jaxem.families import gaussian
        >>> gaussian.isotropic.hold("pi", "sigma").free
        ('mu',)
        """
        unknown = [name for name in names if name not in self.parameters]
        if unknown:
            raise ValueError(
                f"hold: {', '.join(map(repr, unknown))} is not a parameter of this mixture; "
                f"choose from {', '.join(map(repr, self.parameters))}"
            )
        late = set(names) - self.held - {"pi"}
        if self.extras.prior is not None and late:
            raise ValueError(
                f"hold: {', '.join(map(repr, sorted(late)))} has a prior, and one of what is held decides nothing; "
                "leave out the hold, or the prior"
            )
        return replace(self, held=self.held | set(names))

    def but(self: M, **parts: Any) -> M:
        """The same mixture, but for these of its parts, by their names in it, in `Numerics` or in `Extras`.

        >>> from jaxem.families import gaussian
        >>> gaussian.isotropic.but(gradient_form=None).extras.gradient_form is None
        True
        """
        for group in ("numerics", "extras"):
            own = getattr(self, group)
            inner = {each.name: parts.pop(each.name) for each in fields(own) if each.name in parts}
            parts |= {group: replace(own, **inner)} if inner else {}
        return replace(self, **parts)

    def with_missing(self) -> "Mixture":
        """The same mixture for rows with missing cells: NaN is missing at random, and F the observed-data free energy.

        `jaxem.em(m, theta, x, missing=True)` is `jaxem.em(m.with_missing(), theta, x)` wherever x has a NaN. What takes
        a mixture and has no `missing=` of its own, like `jaxem.bic`, takes this.

        >>> import jax.numpy as jnp, jaxem
        >>> from jaxem.families import gaussian
        >>> m, theta = gaussian.isotropic.with_missing(), {"pi": [1.0], "mu": [[0.0, 0.0]], "sigma": 1.0}
        >>> m, f"{jaxem.bic(m, theta, jnp.array([[0.0, jnp.nan], [0.0, 0.0]])):.3f}"  # 3 log 2π + 3 log 2
        (gaussian.isotropic.with_missing(), '7.593')
        """
        if self.extras.missing is None:
            raise ValueError(
                f"missing: {self!r} does not say what its rows with missing cells are; drop or impute them"
            )
        return self.extras.missing(self)

    def enter(
        self,
        theta: ThetaLike,
        x: Any,
        weights: Any,
        temperature: Any,
        labels: Any,
        *,
        batched: bool,
        plans: bool = False,
    ) -> tuple[Theta, Data]:
        """θ in x's precision and the data, checked against what the program declares."""
        x, weights = checks.rows_and_weights(x, weights)
        if self.extras.complete is not None and isinstance(theta, Mapping):
            theta = self.extras.complete(dict(theta), x, weights, batched)
        theta = _enter.prepare_theta(self, theta, x, batched=batched)
        _enter.check_support(self, theta, x)
        temperature = checks.prepare_temperature(temperature, theta, batched)
        if weights is not None:
            weights = weights.astype(temperature.dtype)
        if labels is not None:
            labels = checks.prepare_labels(labels, x, theta["pi"].shape[-1], least=-1)
        return theta, Data(x, weights, temperature, labels)

    @property
    def takes_whole_rows(self) -> bool:
        """Is every cell of its rows observed?"""
        return True

    # ---- the program, read

    def traced_table(self, theta: Theta, x: Array) -> Float[Array, "K n"]:
        """ℓ read off the program's trace: every value of z at once, against the data plate (eq:joint)."""

        def log_joint(theta: Theta, x: Array) -> Array:
            num_components = jnp.shape(theta["pi"])[0]
            z = jnp.arange(num_components)[:, None]
            model = handlers.substitute(self.program, data=theta | {"z": z})
            with alone():
                sites = handlers.trace(model).get_trace(x)
            terms = [
                site["fn"].log_prob(site["value"])
                for site in sites.values()
                if site["type"] == "sample" and site["cond_indep_stack"]
            ]
            return jnp.broadcast_to(sum(terms), (num_components, x.shape[0]))

        return all_alone(log_joint)(theta, x)

    def table(self, theta: Theta, x: Array) -> Float[Array, "K n"]:
        """ℓ_nk, component-major: the kernel's where there is one, else the program's."""
        return self.relative_table(theta, x) + self.common(theta)

    def relative_table(self, theta: Theta, x: Array) -> Float[Array, "K n"]:
        """ℓ less what is common to all its entries: what assignments are made of."""
        return (self.kernel or self.traced_table)(theta, x)

    def climbed(self, theta: Theta, old: Theta, x: Array) -> Float[Array, "K n"]:
        """The table that the M-step climbs from θ_old, under γ(θ_old): ℓ, unless it has a surface of its own."""
        return self.table(theta, x) if self.extras.surface is None else self.extras.surface(theta, old, x)

    @property
    def last(self) -> frozenset[str]:
        """The free names that its M-step sets by passes over the rows, after the others."""
        return getattr(self.extras.maximizer, "last", frozenset()) - self.held

    @property
    def asks_rows(self) -> bool:
        """Does its M-step need the rows, and not their statistics alone?"""
        return self.extras.maximizer is not None and (not hasattr(self.extras.maximizer, "last") or bool(self.last))

    def stages(self, old: Theta, new: Theta) -> list[tuple["Mixture", Theta]]:
        """What an M-step has done, in turn: it with the others held, whose `climbed` it climbed, and θ after that."""
        if not self.last:
            return [(self, new)]
        others = (name for name in self.free if name not in self.last)
        first = (self.hold(*self.last), new | {name: old[name] for name in self.last})
        return [first, (self.hold(*others).but(surface=None), new)]

    def common(self, theta: Theta) -> Array | float:
        """What that leaves out."""
        return 0.0 if self.kernel is None or self.numerics.constant is None else self.numerics.constant(theta)

    def sample(self, theta: Theta, key: Array, num_samples: int) -> tuple[Array, Array]:
        """(x, z) drawn from the program at θ."""
        model = handlers.seed(handlers.substitute(self.program, data=theta), key)
        with alone():
            sites = handlers.trace(model).get_trace(None, num_points=num_samples)
        return sites["x"]["value"], sites["z"]["value"]

    def constraint(self, name: str) -> constraints.Constraint:
        """The constraint that the program declares for a parameter."""
        return _enter.constraints_of(self)[name]

    def chart(self, name: str, origin: Theta) -> Transform:
        """From NumPyro's unconstrained coordinates to a parameter; about `origin`, if none has all of its values."""
        constraint = self.constraint(name)
        about = getattr(constraint, "chart_about", None)
        return biject_to(constraint) if about is None else about(origin[name])

    def coordinates(self, theta: Theta, data: Data | None = None) -> Coordinates:
        """NumPyro's unconstrained coordinates of the free entries; those that are about a θ, about this one."""

        def unconstrain(at: Theta) -> Theta:
            with jax.numpy_rank_promotion("allow"):  # NumPyro's transforms broadcast freely
                return {name: self.chart(name, theta).inv(at[name]) for name in self.free}

        def constrain(free: Theta) -> Theta:
            with jax.numpy_rank_promotion("allow"):
                return theta | {name: self.chart(name, theta)(u) for name, u in free.items()}

        return Coordinates(unconstrain, constrain)

    # ---- the two maximisers of eq:F, and F itself

    @property
    def recentres(self) -> bool:  # type: ignore[override]
        """May an M-step find its statistics cancelled?"""
        moves = not self.held.issuperset(self.numerics.scales)
        return self.numerics.recentre is not None and self.extras.maximizer is None and moves

    @property
    def rows(self) -> engine.MixtureRows:
        """Independent, of one weight each."""
        return engine.MixtureRows(self)

    def expect(self, theta: Theta, data: Data, centre: Theta | None = None, again: Array | bool = True) -> Expectation:
        """The E-step (eq:E): statistics of γ(θ) and F_T at θ, in one pass over the rows."""
        return self.with_log_prior(theta, self.sums(theta, data, centre, again))

    def sums(self, theta: Theta, data: Data, centre: Theta | None = None, again: Array | bool = True) -> Expectation:
        """Its sums over rows alone: those of batches add."""
        return engine.expect(self, theta, data, centre, again)

    def with_log_prior(self, theta: Theta, total: Expectation) -> Expectation:
        """The sums over all rows, and log p(θ)."""
        if self.extras.prior is None:
            return total
        value = self.extras.prior(theta)
        return total._replace(free_energy=total.free_energy + value, scale=total.scale + jnp.abs(value))

    def maximize(self, statistics: Any, theta: Theta, data: Data) -> Step:
        """The M-step (eq:M): θ⁺ = argmax_θ Σ γ ℓ(θ), held entries as they are."""
        if self.extras.maximizer is not None:
            return Step(self.extras.maximizer(self, statistics, theta, data))
        new = self.update(statistics, theta, self.held)
        if not self.recentres or self.numerics.recentre is None:
            return Step(new)
        centre, cancelled = self.numerics.recentre(theta, new)
        return Step(new, cancelled, centre)

    def objective(self, theta: Theta, old: Theta, data: Data) -> Array:
        """F_T(θ, γ(θ_old)): the surface that the M-step climbs."""
        return engine.objective(self, theta, old, data) + self.log_prior(theta, data)

    def log_prior(self, theta: Theta, data: Data | None = None) -> Array | float:
        """log p(θ), the part of F_T that no temperature divides."""
        return 0.0 if self.extras.prior is None else self.extras.prior(theta)


def num_components(m: Mixture, theta: Theta) -> int:
    """K of one θ, without noise."""
    return theta["pi"].shape[0] - m.has_noise


def mixture_only(what: str, m: Any) -> Mixture:
    """A ValueError where a program, or no model at all, stands in for a mixture."""
    model = checks.a_model(m)
    if isinstance(model, Mixture):
        return model
    raise ValueError(f"{what}: is for mixtures of jaxem.families; a program has m.init, jaxem.marginals and decode")


def whole_rows_only(what: str, m: Any) -> Mixture:
    """The same, and where its rows may have missing cells."""
    mixture = mixture_only(what, m)
    if mixture.takes_whole_rows:
        return mixture
    raise ValueError(
        f"m: {what} is for rows without missing cells, got {mixture!r}; drop or impute them (jaxem.impute)"
    )
