"""Any NumPyro program with enumerable discrete latents as a model: what `em` and the rest ask of it.

The E-step is the gradient of F_T in the program's factors (`_programs/joint`), the posterior marginals. The M-step
maximises Q(θ) = log p(θ) + Σ ⟨marginal, log p of the site⟩, each parameter by the closed form that `_programs/plan`
found for it, by Newton's method or by gradient. Where the program has a plate of rows both are sums over chunks of it
(`_programs/rows`).
"""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from numpyro.distributions import biject_to

from jaxem._core.arrays import count, random_key, shown, switch
from jaxem._core.climb import check_optimizer
from jaxem._core.model import Coordinates, Data, Expectation, Model, Rows, Step, Theta, ThetaLike
from jaxem._core.objective import weighted
from jaxem._core.values import name_of, settle
from jaxem._programs import rows, start, trials
from jaxem._programs.arguments import Cut
from jaxem._programs.blame import blamed_on_the_program
from jaxem._programs.enter import enter
from jaxem._programs.explain import Explanation, explained
from jaxem._programs.joint import Joint, dtype_of, is_shape, log_prior
from jaxem._programs.m_step import stages
from jaxem._programs.plan import Plan, with_newton
from jaxem._programs.read import Arguments, Parameter
from jaxem._programs.row_plate import is_small

REMEDIES = {
    "weights": "; put numpyro.handlers.scale(scale=weights) in the program",
    "mesh": "; em_batch spreads such a program's fits, lane by lane",
    "batches": "; use em on data in memory",
}


@jax.tree_util.register_static
@dataclass(frozen=True, repr=False)
class Program(Joint, Model):
    """A NumPyro program as a model for `em`; made by `from_numpyro`. Hashable, and a pytree without leaves.

    Attributes:
        program: the program, as it is.
        held: names of θ that are never updated; see `hold`.
        optimizer: for parameters without a closed form; None climbs by Newton's method, or by L-BFGS.
        num_gradient_steps: its steps in one M-step, or the most evaluations of ∇Q.
        memory_limit: bytes that one enumerated table may take.
        closed_form: look for closed-form M-steps; if not, every parameter climbs its gradient.
    """

    program: Any
    held: frozenset[str] = frozenset()
    optimizer: optax.GradientTransformation | None = None
    num_gradient_steps: int = 100
    memory_limit: int = 2**31
    closed_form: bool = True

    def __post_init__(self) -> None:
        settle(self)

    def __repr__(self) -> str:
        """Its function, what is held, and the options that are not the default."""
        defaults = {field.name: field.default for field in fields(self) if field.name not in ("program", "held")}
        given = {name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]}
        optimizer = {"optimizer": "…"} if given.pop("optimizer", None) is not None else {}
        options = "".join(f", {name}={value}" for name, value in (optimizer | given).items())
        held = f".hold({', '.join(map(repr, sorted(self.held)))})" if self.held else ""
        return f"jaxem.from_numpyro({name_of(self.program)}{options}){held}"

    def __dir__(self) -> list[str]:
        """What its users use; all else there is, is how it is fitted."""
        return ["explain", "held", "hold", "init", "program"]

    def hold(self, *names: str) -> "Program":
        """The same program with these entries of θ never updated; names are checked when a θ is given."""
        return replace(self, held=self.held | set(names))

    # ---- what its arguments let it do

    def plan(self, x: Arguments, dtype: Any) -> Plan:
        """The update of every free parameter at these shapes."""
        with blamed_on_the_program(x):
            plan = trials.verified_plan(self.program, x.planned(), jnp.dtype(dtype))
        if not self.closed_form:
            plan = {name: update._replace(kind="gradient", why="closed_form=False") for name, update in plan.items()}
        plan = {name: update for name, update in plan.items() if name not in self.held}
        iterates = self.closed_form and self.optimizer is None
        iterates = iterates and any(update.kind == "gradient" for update in plan.values())
        if not iterates or not trials.is_smooth(self.program, x.planned(), jnp.dtype(dtype)):
            return plan
        shapes = {name: parameter.shape for name, parameter in self.structure(x).parameters.items()}
        sizes = {name: sum(map(math.prod, jax.tree.leaves(shapes[name], is_leaf=is_shape))) for name in plan}
        return with_newton(plan, sizes)

    def by_rows(self, what: str, x: Arguments, dtype: Any) -> Arguments:
        """The arguments, cut along the row plate; a ValueError that says `what` needs one, and why there is none."""
        if x.cut is not None:
            return x
        found = self.row_plate(x, dtype)
        if isinstance(found, str):
            needs = f"{what}: needs a plate of rows with all latents and data in it, and here {found}"
            raise ValueError(needs + REMEDIES.get(what, ""))
        return x.by(found)

    def row_plate(self, x: Arguments, dtype: Any) -> Cut | str:
        """How the arguments are cut into rows, or why they cannot be."""
        with blamed_on_the_program(x):
            return trials.row_plate(self.program, x.by(None).shapes(), jnp.dtype(dtype))

    def explain(self, theta: Any, x: Any) -> Explanation:
        """Which update each parameter gets, and why; its `rows` tells the plate of rows, or why there is none.

        With one the fit can be chunked, weighed, spread over devices and streamed.

        Args:
            theta: gives the precision.
            x: as in `em`.

        >>> import jax, jax.numpy as jnp, jaxem, numpyro
        >>> from numpyro import distributions as dist
        >>> def program(x):
        ...     rate = numpyro.param("rate", jnp.array([1.0, 5.0]), constraint=dist.constraints.positive)
        ...     with numpyro.plate("rows", len(x)):
        ...         z = numpyro.sample("z", dist.Bernoulli(0.3))
        ...         numpyro.sample("x", dist.Poisson(rate[z]), obs=x)
        >>> m, x = jaxem.from_numpyro(program), jnp.array([0, 1, 5])
        >>> m.explain(m.init(jax.random.key(0), x), x)
        {'rate': "closed form: selected by Poisson.rate of 'x'"}
        >>> m.explain(m.init(jax.random.key(0), x), x).rows
        "the members of plate 'rows'"
        """
        if not hasattr(theta, "keys"):
            raise ValueError(f"theta: must be a dict of the program's parameters, got {type(theta).__name__}")
        arguments = Arguments.of(x)
        dtype = dtype_of(jax.tree.map(arguments.cast, dict(theta)))
        cut = self.row_plate(arguments, dtype)
        plan = self.plan(self.by_rows_if_large(arguments, dtype), dtype)
        return explained(plan, self.structure(arguments).parameters, cut)

    def by_rows_if_large(self, x: Arguments, dtype: Any) -> Arguments:
        """The arguments, cut where that is worth it and can be."""
        if x.cut is not None or is_small(self.structure(x), x):
            return x
        cut = self.row_plate(x, dtype)
        return x if isinstance(cut, str) else x.by(cut)

    def init(self, key: Array, x: Any, method: Any = "program") -> Theta:
        """A start: the program's own initial values of its params, and a draw from the priors of its latents.

        With method="responsibilities" a start from the data: the observed numbers that a discrete latent enters are
        assigned to the nearest of a few of their rows, drawn as k-means++ draws them (a latent without such numbers
        gets labels at random), and one M-step is made of that (`_programs/start.py`). What the M-step would move out
        of its bounds, and what is held, stays at the program's own.

        Args:
            key: a key of `jax.random`; other keys give other starts.
            x: the program's argument, or the tuple of its arguments.
            method: "program" or "responsibilities".

        >>> import jax, jaxem, numpyro
        >>> from numpyro import distributions as dist
        >>> def program(x):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
        ...     with numpyro.plate("rows", len(x)):
        ...         z = numpyro.sample("z", dist.Bernoulli(0.3))
        ...         numpyro.sample("x", dist.Normal(mu[z], 1), obs=x)
        >>> jaxem.from_numpyro(program).init(jax.random.key(0), jax.numpy.zeros(5))["mu"].shape
        (2,)
        """
        if method not in ("program", "responsibilities"):
            raise ValueError(f'method: must be "program" or "responsibilities", got {shown(method)}')
        key, arguments = random_key(key), Arguments.of(x)
        if method == "program":
            return start.own_values(self, key, arguments)
        shapes = jax.tree.leaves(jax.eval_shape(start.own_values, self, key, arguments))
        self.plan(arguments, jnp.result_type(*shapes) if shapes else float)
        return start.from_arguments(self, key, arguments)

    # ---- the two maximisers of eq:F, and F itself

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
        """θ in the precision of the program's arguments, and those, checked against its traces, and the plan made."""
        theta, data = enter(self, theta, x, weights, temperature, labels, batched)
        if plans:
            self.plan(data.x, dtype_of(theta))
        return theta, data

    def expect(self, theta: Theta, data: Data, centre: Theta | None = None, again: Array | bool = True) -> Expectation:
        """The E-step: F_T (eq:partition), with what the M-step needs of it: sums over rows, or whole tables."""
        if data.x.cut is not None:
            return rows.expect(self, theta, theta if centre is None else centre, data)
        return self.expect_whole(theta, data)

    def expect_whole(self, theta: Theta, data: Data) -> Expectation:
        """The E-step: F_T, and its gradient in every site's table."""
        here, priors = self.posterior(theta, data)
        prior = log_prior(priors, data.temperature.dtype)
        value = jnp.sum(weighted(here.free_energy, data.weights))
        return Expectation(here.statistics, value + prior, here.scale + jnp.abs(prior))

    def objective(self, theta: Theta, old: Theta, data: Data) -> Array:
        """F_T(θ, γ(θ_old)) = F_T(θ_old) + Q(θ) − Q(θ_old)."""
        if data.x.cut is not None:
            return rows.objective(self, theta, old, data)
        before = self.expect(old, data)
        marginals = before.statistics
        return before.free_energy + self.energy(marginals, theta, data) - self.energy(marginals, old, data)

    def maximize(self, statistics: Any, theta: Theta, data: Data) -> Step:
        """The M-step, block by block (eq:block)."""
        if data.x.cut is not None:
            return Step(rows.maximize(self, statistics, theta, data))
        return Step(stages(self, self.plan(data.x, dtype_of(theta)), statistics, theta, data)[-1][1])

    def coordinates(self, theta: Theta, data: Data) -> Coordinates:
        """NumPyro's unconstrained coordinates of the free entries."""
        parameters = self.structure(data.x).parameters

        def unconstrain(at: Theta) -> Theta:
            return {
                name: map_constraint(parameters[name], at[name], inverse=True) for name in at if name not in self.held
            }

        def constrain(free: Theta) -> Theta:
            return theta | {name: map_constraint(parameters[name], u) for name, u in free.items()}

        return Coordinates(unconstrain, constrain)

    @property
    def rows(self) -> "ProgramRows":
        """Those of its row plate, where it has one."""
        return ProgramRows(self)


@dataclass(frozen=True)
class ProgramRows(Rows):
    """The rows of a program: where its arguments are cut along a plate."""

    m: Program

    def divided(self, what: str, data: Data) -> Data:
        """The data with the arguments cut, and the plan made; a ValueError where there is no plate of rows."""
        data = data._replace(x=self.m.by_rows(what, data.x, data.temperature.dtype))
        self.m.plan(data.x, data.temperature.dtype)
        return data

    def size(self, data: Data) -> Array:
        """W: the number of observed scalar log-densities, each with its weight."""
        if data.x.cut is not None:
            return rows.size(self.m, data)
        return jax.jit(self.m.events)(data.x)  # jit: θ of ones need not satisfy what NumPyro validates outside


def map_constraint(parameter: Parameter, value: Any, inverse: bool = False) -> Any:
    """A parameter through the bijection of its constraint."""
    bijection = biject_to(parameter.constraint)
    bijection = bijection.inv if inverse else bijection
    with jax.numpy_rank_promotion("allow"):  # NumPyro's transforms broadcast, and some know JAX's own precision only
        return jax.tree.map(lambda leaf: bijection(leaf.astype(float)).astype(leaf.dtype), value)


def from_numpyro(
    program: Any,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_gradient_steps: int = 100,
    memory_limit: int = 2**31,
    closed_form: bool = True,
) -> Program:
    """Any NumPyro program with enumerable discrete latents as a model for `em`, unchanged.

    θ is every `numpyro.param` site, and every continuous latent, whose prior then makes the fit a maximum a
    posteriori. Discrete latents are summed out: by plates, along `scan`, and those that a `MixtureSameFamily` or
    `MixtureGeneral` already sums. The E-step is exact; `explain` says how the M-step updates each parameter: by a
    closed form of which every entry of ∇Q was seen to vanish, at random stand-ins for the data; by Newton's method, to
    where ∇Q = 0, all that share a distribution together; or, where those have more than 64 entries, by the gradient.

    A floor under a scale or a rate is a constraint, which closed forms keep:
    `numpyro.param("sigma", 1.0, constraint=constraints.greater_than(1e-3))`. Covariances have none.

    A continuous latent with a value for each of a group of rows is an entry of θ like any other, its point estimate;
    one for each row is refused.

    Args:
        program: the program. `x` in `em` and the rest is its argument, a tuple of its arguments, or
            `jaxem.arguments(…, name=…)` where it has keywords. Arrays and floats, in any pytree, are data; all else
            (ints, bools, strings, functions, a Namespace of options) is static.
        optimizer: an optax `GradientTransformation` for parameters without a closed form; when absent they climb, by
            Newton's method or L-BFGS, to where Q is stationary.
        num_gradient_steps: the optimiser's steps in one M-step, ≥ 1; without one, the most evaluations of ∇Q.
        memory_limit: bytes that one enumerated table may take, before a ValueError says how large it would be.
        closed_form: look for closed-form M-steps.

    >>> import jax, jax.numpy as jnp, jaxem, numpyro
    >>> from numpyro import distributions as dist
    >>> def program(x):
    ...     pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=dist.constraints.simplex)
    ...     mu = numpyro.param("mu", jnp.array([-0.5, 0.5]))
    ...     with numpyro.plate("rows", len(x)):
    ...         z = numpyro.sample("z", dist.Categorical(pi))
    ...         numpyro.sample("x", dist.Normal(mu[z], 0.2), obs=x)
    >>> x = jnp.array([-1.2, -1.0, -0.8, 0.9, 1.1])
    >>> m = jaxem.from_numpyro(program)
    >>> fit = jaxem.em(m, m.init(jax.random.key(0), x), x)
    >>> jaxem.check(fit).theta["mu"].round(1).tolist()
    [-1.0, 1.0]
    """
    if not callable(program):
        raise ValueError(f"program: must be a NumPyro program, a function, got {type(program).__name__}")
    count("num_gradient_steps", num_gradient_steps, 1)
    count("memory_limit", memory_limit, 0)
    check_optimizer(optimizer)
    closed_form = switch("closed_form", closed_form)
    return Program(program, frozenset(), optimizer, num_gradient_steps, memory_limit, closed_form)


def program_only(what: str, m: Any) -> Program:
    """A ValueError where something else stands in for a program."""
    if isinstance(m, Program):
        return m
    if isinstance(m, Model):
        raise ValueError(f"{what}: is for jaxem.from_numpyro(program); a mixture has jaxem.responsibilities")
    raise ValueError(f"m: must be jaxem.from_numpyro(program), got {type(m).__name__}")
