"""A mixture: a NumPyro program, and the two maximisers of eq:F it implies.

The program is the one source of truth. Its parameters are `numpyro.param` sites; inside the data plate
it draws one discrete `z` and observes `x`. This file is the only one that opens NumPyro's handlers for
mixtures: it reads the table ℓ off the program's trace (eq:joint), draws samples from it, and asks it for
the constraints of θ. A family adds what makes it fast: a kernel equal to that table, additive statistics,
and the closed-form M-step.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import Distribution, biject_to, constraints

from jaxem._core import checks
from jaxem._core.handlers import all_alone, alone
from jaxem._core.model import Data, Expectation, Model, Norms, Theta, ThetaLike
from jaxem._core.objective import assign, assign_hard, assign_one_hot, row_free_energy, weighted
from jaxem._core.values import settle
from jaxem._rows import gpu
from jaxem._rows.chunks import fits_one_chunk, norms_of_rows, plus, seen_here, sum_over_rows
from jaxem._rows.products import Counts, Products, Sums
from jaxem.families import _enter


def closed_form(m: "Mixture", statistics: Any, theta: Theta, data: Data) -> Theta:
    """The family's own M-step, with statistics taken anew where those at hand lost their digits."""
    if not m.recentres:
        return m.update(statistics, theta, m.held)
    new, reference, lost = m.propose(statistics, theta)

    def again() -> Theta:
        return m.update(m.expect_by_kernel(reference, theta, data).statistics, reference, m.held)

    return lax.cond(lost, again, lambda: new)


class Rows(NamedTuple):
    """What lies along the rows."""

    x: Array
    labels: Array | None
    squares: Array | None  # of `Data.norms`


@jax.tree_util.register_static
@dataclass(frozen=True)
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
        constant: θ → a term of ℓ that is the same for every row and component, and that the kernel leaves out; so hard
            assignments do not depend on the unit of x. None is 0.
        gradient_form: (θ, ∇L, N_k) → θ⁺, the M-step written as a step along the likelihood's gradient
            (eq:XuJordan), for certificate C6; None where no such form is known.
        products: (θ, the θ about whose means statistics may be, may digits cancel?) → `Products`, the faster E-step for
            data of more than one chunk, used where it is accurate.
        squares: do those take ‖x_n − c‖², which a fit then computes once? Then `products` takes that c too.
        recentre: (θ, θ⁺) → (θ at which the statistics keep their digits, are those at θ too inexact?); None where
            they never are.
        sizes_of_terms: (θ, statistics about θ's means) → Σ γ (sizes of the terms of ℓ), nats: those that cancel inside
            it round F by more than its own size tells. None where none do.
        scale: the name that this is for; where it is held, statistics are never too inexact.
        rounding: (θ, statistics, held) → (the nats by which rounding θ alone can move F, has a component of θ lost
            its digits?); None where that is less than the rounding of F itself.
        condition: (θ, x, mask) → ℓ (K, n) of x[:, mask] alone, and the law of the other columns given those and
            z, a NumPyro distribution of batch shape (K, n) or (K, 1); for `jaxem.condition`.
        check_support: (x, θ) → what is wrong with x's values, or None; numpy arrays, called on concrete x.
        held: names of θ that are never updated; see `hold`.
        hard: is T known to be 0, as in k-means? Otherwise it is data.
        by_winner: (θ, x, argmax_k ℓ (n,), w (n,)) → `statistics` of the γ that says so, times w; None makes that γ.
        maximizer: how the M-step is done: `closed_form`, or what `jaxem.gradient_m_step` puts here.
    """

    program: Callable[..., Any]
    shapes: tuple[tuple[str, str], ...]
    statistics: Callable[[Theta, Array, Array], Any]
    update: Callable[[Any, Theta, frozenset[str]], Theta]
    guess: Callable[..., Theta]
    kernel: Callable[[Theta, Array], Array] | None = None
    constant: Callable[[Theta], Array] | None = None
    gradient_form: Callable[[Theta, Theta, Array, frozenset[str]], Theta] | None = None
    products: Callable[..., Products] | None = None
    squares: bool = False
    recentre: Callable[[Theta, Theta], tuple[Theta, Array]] | None = None
    scale: str = ""
    rounding: Callable[[Theta, Any, frozenset[str]], tuple[Any, Any]] | None = None
    sizes_of_terms: Callable[[Theta, Any], Array] | None = None
    condition: Callable[[Theta, Array, np.ndarray], tuple[Array, Distribution]] | None = None
    check_support: Callable[[np.ndarray, dict[str, np.ndarray]], str | None] | None = None
    held: frozenset[str] = frozenset()
    hard: bool = False
    by_winner: Callable[[Theta, Array, Array, Array], Any] | None = None
    maximizer: Callable[["Mixture", Any, Theta, Data], Theta] = closed_form

    def __post_init__(self) -> None:
        settle(self)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of θ, in the program's order."""
        return tuple(name for name, _ in self.shapes)

    @property
    def free(self) -> tuple[str, ...]:
        """The names of θ that EM updates."""
        return tuple(name for name in self.parameters if name not in self.held)

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
        return replace(self, held=self.held | set(names))

    def enter(
        self, theta: ThetaLike, x: Any, weights: Any, temperature: Any, labels: Any, *, batched: bool
    ) -> tuple[Theta, Data]:
        """θ in x's precision and the data, checked against what the program declares."""
        x, weights = checks.rows_and_weights(x, weights)
        theta = _enter.prepare_theta(self, theta, x, batched=batched)
        _enter.check_support(self, theta, x)
        temperature = checks.prepare_temperature(temperature, theta, batched)
        if weights is not None:
            weights = weights.astype(temperature.dtype)
        if labels is not None:
            labels = checks.prepare_labels(labels, x, theta["pi"].shape[-1], least=-1)
        return theta, Data(x, weights, temperature, labels)

    def divides(self, data: Data) -> bool:
        """Its rows are independent."""
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

    def common(self, theta: Theta) -> Array | float:
        """What that leaves out."""
        return 0.0 if self.kernel is None or self.constant is None else self.constant(theta)

    def sample(self, theta: Theta, key: Array, num_samples: int) -> tuple[Array, Array]:
        """(x, z) drawn from the program at θ."""
        model = handlers.seed(handlers.substitute(self.program, data=theta), key)
        with alone():
            sites = handlers.trace(model).get_trace(None, num_points=num_samples)
        return sites["x"]["value"], sites["z"]["value"]

    def constraint(self, name: str) -> constraints.Constraint:
        """The constraint that the program declares for a parameter."""
        return _constraints(self)[name]

    def unconstrain(self, theta: Theta, data: Data | None = None) -> Theta:
        """θ's free entries in NumPyro's unconstrained coordinates."""
        with jax.numpy_rank_promotion("allow"):  # NumPyro's transforms broadcast freely
            return {name: biject_to(self.constraint(name)).inv(theta[name]) for name in self.free}

    def constrain(self, free: Theta, theta: Theta, data: Data | None = None) -> Theta:
        """The inverse of `unconstrain`; held entries are θ's."""
        with jax.numpy_rank_promotion("allow"):
            return theta | {name: biject_to(self.constraint(name))(u) for name, u in free.items()}

    # ---- the two maximisers of eq:F, and F itself

    @property
    def recentres(self) -> bool:
        """May an M-step need its statistics anew?"""
        return self.recentre is not None and self.maximizer is closed_form and self.scale not in self.held

    def retakes(self, theta: Theta, data: Data) -> bool:
        """Where it does, is that a turn of the loop? With one chunk it is a pass in the M-step, compiled fast."""
        return self.recentres and not fits_one_chunk(data.x.shape[0], theta["pi"].shape[0])

    def propose(self, statistics: Any, about: Theta) -> tuple[Theta, Theta, Array]:
        """θ⁺, the θ about whose means statistics are good for it, and are these not?"""
        assert self.recentre is not None
        new = self.update(statistics, about, self.held)
        return new, *self.recentre(about, new)

    def once(self, theta: Theta, data: Data) -> Data:
        """With ‖x_n − c‖² about a point c amid the rows; not where statistics may be taken about another point."""
        one_chunk = fits_one_chunk(data.x.shape[0], theta["pi"].shape[0])
        if not self.squares or self.recentres or one_chunk or data.norms is not None:
            return data
        return data._replace(norms=Norms(*norms_of_rows(data.x, data.weights, shards=data.shards)))

    def expect(self, theta: Theta, data: Data) -> Expectation:
        """The E-step (eq:E): statistics of γ(θ) and F_T at θ, in one pass over the rows."""
        return self.expect_about(theta, theta, data, anew=False)

    def expect_about(self, about: Theta, theta: Theta, data: Data, anew: Array | bool) -> Expectation:
        """The same; where they are taken anew, statistics are about the means of another θ, and keep their digits."""

        def by_kernel() -> Expectation:
            return self.expect_by_kernel(about, theta, data)

        if self.products is None or fits_one_chunk(data.x.shape[0], theta["pi"].shape[0]):
            return by_kernel()
        is_hard = jnp.asarray(True) if self.hard else data.temperature == 0
        about_c = () if data.norms is None else (data.norms.c,)
        products = self.products(theta, about, jnp.logical_not(anew | is_hard), *about_c)

        def by_products() -> Expectation:
            return self.expect_by_products(products, theta, data)

        if products.accurate is None or products.accurate_when_hard is None:
            return by_products()
        may = jnp.logical_not(anew)  # squares are expanded about the products' own centre

        def nothing() -> Expectation:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(by_products))

        tried = lax.cond(may & (products.accurate | is_hard), by_products, nothing)
        accurate = jnp.where(is_hard, products.accurate_when_hard(tried.statistics), products.accurate)
        return lax.cond(may & accurate, lambda: tried, by_kernel)

    def expect_by_kernel(self, reference: Theta, theta: Theta, data: Data) -> Expectation:
        """The E-step at θ by differences, its statistics about the means of another θ."""

        def chunk(rows: Rows, weights: Array) -> Expectation:
            here, about = seen_here((theta, reference))
            table = exclude(self.relative_table(here, rows.x), rows.labels)
            if self.hard and self.by_winner:
                winner, value = assign_hard(table, axis=0)
                statistics = self.by_winner(about, rows.x, winner, weights)
            else:
                gamma, value = assign_one_hot(table, axis=0) if self.hard else assign(table, data.temperature, axis=0)
                statistics = self.statistics(about, rows.x, gamma * weights[None])
            return expectation(statistics, value + common, weights)

        common = self.common(theta)
        return self.sum_over_rows(chunk, theta, data, then=summed)

    def expect_by_products(self, products: Products, theta: Theta, data: Data) -> Expectation:
        """The same sums by products; on an NVIDIA GPU by a kernel that does it all, where there is one."""
        fused = products.fused
        by_chunks = partial(self.expect_by_chunks, products, theta, data)
        if fused is None or data.labels is not None or not gpu.fits(fused.ell):
            return by_chunks()
        counts_all = data.weights is None and data.shards is None

        def all_rows(interpret: bool, rows: Rows, weights: Array) -> Expectation:
            w = None if counts_all else weights
            sums = gpu.sums(fused.ell, rows.x, w, data.temperature, self.hard, interpret)
            return Expectation(products.finish(fused.unpack(sums)), sums.free_energy, sums.scale)

        def in_one(interpret: bool) -> Expectation:
            return self.sum_over_rows(partial(all_rows, interpret), theta, data, whole=True)

        return gpu.where_it_runs(in_one, by_chunks)

    def expect_by_chunks(self, products: Products, theta: Theta, data: Data) -> Expectation:
        """The same sums, chunk by chunk."""

        def chunk(add: Sums, so_far: Expectation | None, rows: Rows, weights: Array) -> Expectation:
            old = None if so_far is None else so_far.statistics
            phi = products.features(rows.x, rows.squares)
            table = exclude(products.table(phi), rows.labels)
            sums, value = add(old, phi, table, Counts(weights, data.weights is None, data.temperature))
            new = expectation(None, value + products.common(phi), weights)
            return plus(so_far and so_far._replace(statistics=None), new)._replace(statistics=sums)

        def finish(total: Expectation) -> Expectation:
            return summed(total)._replace(statistics=products.finish(total.statistics))

        add = products.hard if self.hard and products.hard else products.sums
        f = partial(chunk, add)
        return self.sum_over_rows(f, theta, data, width=products.width, folds=True, then=finish)

    def maximize(self, statistics: Any, theta: Theta, data: Data) -> Theta:
        """The M-step (eq:M): θ⁺ = argmax_θ Σ γ ℓ(θ), held entries as they are."""
        return self.maximizer(self, statistics, theta, data)

    def sizes(self, theta: Theta, expectation: Expectation) -> Any:
        """Σ w (sizes of the terms of ℓ_n), nats."""
        return 0.0 if self.sizes_of_terms is None else self.sizes_of_terms(theta, expectation.statistics)

    def rounding_of_theta(self, theta: Theta, expectation: Expectation) -> tuple[Any, Any]:
        """The nats by which rounding θ alone can move F, and whether θ has lost its digits."""
        return (0.0, False) if self.rounding is None else self.rounding(theta, expectation.statistics, self.held)

    def objective(self, theta: Theta, old: Theta, data: Data) -> Array:
        """F_T(θ, γ(θ_old)): the surface that the M-step climbs."""

        def chunk(rows: Rows, weights: Array) -> Array:
            new, before = seen_here((theta, old))
            gamma, _ = assign(exclude(self.relative_table(before, rows.x), rows.labels), data.temperature, axis=0)
            table = exclude(self.table(new, rows.x), rows.labels)
            value = row_free_energy(table, gamma, data.temperature, axis=0)
            return jnp.sum(weighted(value, weights))

        return self.sum_over_rows(chunk, theta, data)

    def log_prior(self, theta: Theta, data: Data) -> float:
        """A mixture's parameters have no prior."""
        return 0.0

    def sum_over_rows(self, chunk: Callable[..., Any], theta: Theta, data: Data, **options: Any) -> Any:
        """Σ over chunks of the `Rows`, in θ's precision."""
        pi = theta["pi"]
        return sum_over_rows(
            chunk,
            Rows(data.x, data.labels, data.norms and data.norms.squares),
            data.weights,
            num_components=pi.shape[0],
            dtype=pi.dtype,
            shards=data.shards,
            **options,
        )

    def size(self, data: Data) -> Array | int:
        """W: how much data there is, the unit in which a tolerance is stated."""
        if data.weights is None:
            return data.x.shape[0] - (0 if data.shards is None else jnp.sum(data.shards.skip))
        if data.shards is None:
            return jnp.sum(data.weights)
        rows = (data.x[:, 0], None)  # counted like every other sum, each once
        dtype = data.temperature.dtype
        return sum_over_rows(
            lambda _, w: jnp.sum(w), rows, data.weights, num_components=1, dtype=dtype, shards=data.shards
        )


def expectation(statistics: Any, value: Float[Array, " n"], weights: Float[Array, " n"]) -> Expectation:
    """A chunk's outcome. F is kept row by row: chunks add as vectors, and `summed` adds the rows of that once."""
    value = weighted(value, weights)
    return Expectation(statistics, value, jnp.abs(value))


def summed(total: Expectation) -> Expectation:
    """The sum over rows of what `expectation` kept."""
    return total._replace(free_energy=jnp.sum(total.free_energy), scale=jnp.sum(total.scale))


def exclude(table: Float[Array, "K n"], labels: Array | None) -> Float[Array, "K n"]:
    """−∞ for the components that a row's known label excludes: then eq:E gives that row its label."""
    if labels is None:
        return table
    component = jnp.arange(table.shape[0])[:, None]
    excluded = (labels[None] >= 0) & (labels[None] != component)
    return jnp.where(excluded, -jnp.inf, table)


@functools.cache
def _constraints(m: Mixture) -> dict[str, constraints.Constraint]:
    """Each parameter's constraint, from a trace of the program on shapes alone."""
    found: dict[str, constraints.Constraint] = {}
    sizes = {"K": 2, "D": 2, "C": 2}

    def visit() -> None:
        theta = {name: jnp.ones([sizes[axis] for axis in spec.split()]) for name, spec in m.shapes}
        model = handlers.seed(handlers.substitute(m.program, data=theta), jax.random.key(0))
        with alone():
            sites = handlers.trace(model).get_trace(None, num_points=2)
        for name in m.parameters:
            found[name] = sites[name]["kwargs"].get("constraint", constraints.real)

    jax.eval_shape(visit)
    return found


def mixture_only(what: str, m: Any) -> Mixture:
    """A ValueError where a program, or no model at all, stands in for a mixture."""
    if isinstance(m, Mixture):
        return m
    if isinstance(m, Model):
        raise ValueError(f"{what}: is for mixtures of jaxem.families; a program has m.init, jaxem.marginals and decode")
    raise ValueError(f"m: must be a mixture of jaxem.families or jaxem.from_numpyro(program), got {type(m).__name__}")
