"""Reading a NumPyro program: what its sites are, and its log density as factors over every value of its latents.

NumPyro's own handlers do the work: `numpyro.contrib.funsor` gives every value of every discrete latent a
dimension of its own, across plates and along a `scan`. This file turns such a trace into named tables (eq:joint)
and says, in the user's terms, what a program has that EM cannot take.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

from jaxem._arrays import numbers
from jaxem._eliminate import PREVIOUS, Factor, Named
from jaxem._scan import LaidOut
from jaxem._updates import log_prob

Theta = dict[str, Any]


class Parameter(NamedTuple):
    """An entry of θ: a `param` site, or a continuous latent, whose law is then its prior."""

    shape: tuple[int, ...]
    constraint: constraints.Constraint
    prior: type | None  # None for a `param`, or a flat prior


class Structure(NamedTuple):
    """What is static about a program at given shapes of its arguments."""

    parameters: dict[str, Parameter]
    enumerated: dict[str, int]  # discrete latent → number of values
    dropped: frozenset[str]  # `obs_mask`'s unobserved halves, which integrate to one
    first_available_dim: int


class Term(NamedTuple):
    """A site of the enumerated trace: one term of log p(x, z | θ)."""

    name: str
    fn: dist.Distribution  # without the wrappers that plates, masks and to_event put around it
    value: Any
    mask: Any  # None: all of it counts
    scale: Any  # w; 1 where none
    event: int  # how many rightmost axes of fn's log_prob belong to one event (to_event)
    axes: dict[int, str]  # negative axis of the table → variable, plate or time
    plates: dict[str, int]  # plates, times and unnamed dimensions it lives in, with their sizes
    law_of: str | None  # the variable that fn is the law of
    observed: bool
    only: tuple[int, int] | None = None  # (index, size): the table of one value of a last axis that fn does not have

    def per_event(self) -> Array:
        """log p, one entry for each scalar event of fn, masked."""
        value = log_prob(self.fn, self.value)
        if self.mask is None:
            return value
        return jnp.where(self.expand(self.mask), value, 0)

    def table(self) -> Array:
        """log p over variables, plates and times."""
        value = self.per_event()
        value = jnp.sum(value, axis=tuple(range(-self.event, 0))) if self.event else value
        if self.only is None:
            return value
        index, size = self.only
        return jnp.where(jnp.arange(size) == index, value[..., None], 0)

    def weights(self, marginal: Array) -> Array:
        """∂F/∂(per_event) from ∂F/∂(table): the expected number of times that each event was seen."""
        weights = marginal if self.only is None else marginal[..., self.only[0]]
        weights = self.expand(weights)
        return weights if self.mask is None else jnp.where(self.expand(self.mask), weights, 0)

    def expand(self, batch: Any) -> Array:
        """An array over the table's axes, laid against fn's own."""
        return jnp.reshape(batch, jnp.shape(batch) + (1,) * self.event)

    def named(self, array: Any) -> Named:
        """An array over the table's axes, with its axes named and those of size 1 dropped."""
        shape = jnp.shape(array)
        names = [self.axes.get(axis - len(shape), "") for axis in range(len(shape))]
        kept = [axis for axis, size in enumerate(shape) if size > 1]
        return Named(tuple(names[axis] for axis in kept), jnp.reshape(array, [shape[axis] for axis in kept]))

    def draw(self) -> Array:
        """A value that fn could have given, in the shape of the one observed."""
        drawn = self.fn.sample(jax.random.key(0))
        drawn = jnp.broadcast_to(drawn, jnp.broadcast_shapes(drawn.shape, self.value.shape))
        drawn = drawn[(0,) * (drawn.ndim - self.value.ndim)]
        return drawn[tuple(slice(size) for size in self.value.shape)].astype(self.value.dtype)

    def plates_in_order(self) -> list[str]:
        """Its plates and times from left to right."""
        return [self.axes[axis] for axis in sorted(self.axes) if self.axes[axis] in self.plates]

    def events(self, variables: Any) -> Array:
        """The number of scalar log-densities, with masks and weights, at one value of the variables."""
        if self.only is not None:  # one of several laws of the same events: the first counts them
            axes = {axis + 1: label for axis, label in self.axes.items() if axis < -1}
            one = self._replace(only=None, axes=axes, scale=jnp.asarray(self.scale)[..., 0])
            return one.events(variables) if self.only[0] == 0 else jnp.zeros(())
        weights = self.expand(self.scale) * (1 if self.mask is None else self.expand(self.mask))
        shape = jax.eval_shape(self.per_event).shape
        weights = jnp.broadcast_to(weights, jnp.broadcast_shapes(jnp.shape(weights), shape))
        labels = [self.axes.get(axis + self.event, "") for axis in range(-weights.ndim, -self.event)]
        weights = weights[tuple(slice(1) if root(label) in variables else slice(None) for label in labels)]
        repeats = math.prod(size for plate, size in self.plates.items() if plate not in labels)
        return jnp.sum(weights) * repeats

    def factor(self, table: Array) -> Factor:
        scale = self.named(jnp.asarray(self.scale, table.dtype))
        return Factor(self.named(table), frozenset(self.plates), scale, self.law_of)


@jax.tree_util.register_pytree_node_class
class Arguments:
    """A program's arguments: arrays and floats are data; ints, bools, strings and None are static."""

    def __init__(self, leaves: tuple[Any, ...], treedef: Any, static: tuple[Any, ...]):
        self.leaves, self.treedef, self.static = leaves, treedef, static

    @classmethod
    def of(cls, x: Any) -> "Arguments":
        leaves, treedef = jax.tree.flatten(x if isinstance(x, tuple) else (x,))
        static = tuple(leaf if is_static(leaf) else None for leaf in leaves)
        data = tuple(None if is_static(leaf) else numbers("x", leaf, rows=True) for leaf in leaves)
        return cls(data, treedef, static)

    def unpack(self) -> tuple:
        pairs = zip(self.leaves, self.static, strict=True)
        return jax.tree.unflatten(self.treedef, [fixed if leaf is None else leaf for leaf, fixed in pairs])

    def arrays(self) -> list[Array]:
        return [leaf for leaf in self.leaves if leaf is not None]

    def cast(self, value: Any) -> Array:
        """A floating number in the precision of the data, where the data have one."""
        value = jnp.asarray(value)
        floating = [leaf.dtype for leaf in self.arrays() if jnp.issubdtype(leaf.dtype, jnp.floating)]
        if not jnp.issubdtype(value.dtype, jnp.floating):
            value = value.astype(float)
        return value.astype(jnp.result_type(*floating)) if floating else value

    def shapes(self) -> "Arguments":
        """The same with shapes for arrays: hashable, and all that a plan may depend on."""
        leaves = (None if v is None else jax.ShapeDtypeStruct(jnp.shape(v), jnp.result_type(v)) for v in self.leaves)
        return Arguments(tuple(leaves), self.treedef, self.static)

    def tree_flatten(self) -> tuple:
        return self.leaves, (self.treedef, self.static)

    @classmethod
    def tree_unflatten(cls, static: tuple, leaves: tuple) -> "Arguments":
        return cls(tuple(leaves), *static)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arguments) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple:
        return self.leaves, self.treedef, self.static


def is_static(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | str | np.integer) or callable(leaf)


# ---- once for all θ: the structure


def plain_trace(program: Callable[..., Any], arguments: Arguments, key: Array) -> dict[str, dict]:
    """The trace of the program as it stands, latents drawn from their laws."""
    model = handlers.seed(program, key)
    with handlers.block(), jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
        return handlers.trace(model).get_trace(*arguments.unpack())


def inspect(program: Callable[..., Any], arguments: Arguments) -> Structure:
    """The program's sites, from a trace on shapes alone; a ValueError that names the site EM cannot take."""
    found: list[Structure] = []

    def visit(arguments: Arguments) -> None:
        found.append(structure_of(plain_trace(program, arguments, jax.random.key(0))))

    try:
        jax.eval_shape(visit, arguments)
    except (jax.errors.ConcretizationTypeError, jax.errors.NonConcreteBooleanIndexError) as error:
        raise ValueError(
            "program: its structure (the size of a plate, a branch) depends on the values of its arguments; "
            f"pass what fixes it as a Python int. JAX says: {str(error).splitlines()[0]}"
        ) from error
    return found[0]


def structure_of(trace: dict[str, dict]) -> Structure:
    parameters, enumerated, dropped = {}, {}, set()
    for site in trace.values():
        if site["type"] == "plate" and site["args"][1] is not None and site["args"][0] != site["args"][1]:
            raise ValueError(
                f"program: plate {site['name']!r} subsamples {site['args'][1]} of {site['args'][0]}; "
                "EM needs every row: drop subsample_size"
            )
    latents = [site for site in trace.values() if site["type"] == "sample" and not site["is_observed"]]
    data_plates: dict[str, str] = {}
    for site in trace.values():
        if site["type"] != "sample":
            continue
        fn, name = bare(site["fn"]), site["name"]
        is_mixture = site["is_observed"] and isinstance(fn, dist.MixtureSameFamily | dist.MixtureGeneral)
        if is_unobserved_half(name, trace):
            dropped.add(name)
        elif is_mixture or (not site["is_observed"] and site["fn"].is_discrete):
            enumerated[name] = fn.mixture_size if is_mixture else support_size(site)
            data_plates |= {frame.name: name for frame in site["cond_indep_stack"]}
    for site in latents:
        fn, name = site["fn"], site["name"]
        if name in enumerated or name in dropped:
            continue
        shared = [frame.name for frame in site["cond_indep_stack"] if frame.name in data_plates]
        if shared:
            raise ValueError(
                f"program: the continuous latent {name!r} shares plate {shared[0]!r} with the discrete latent "
                f"{data_plates[shared[0]]!r}, so its E-step is an integral; give it a value for each component instead "
                "of each row, or integrate it out by hand"
            )
        if "_control_flow_done" in site:
            raise ValueError(f"program: the continuous latent {name!r} is inside a scan; make it a parameter outside")
        parameters[name] = Parameter(jnp.shape(site["value"]), concrete(name, fn.support), prior_of(fn))
    for site in trace.values():
        if site["type"] == "param":
            if "_control_flow_done" in site:
                raise ValueError(f"program: the param {site['name']!r} is inside a scan; move it outside")
            constraint = site["kwargs"].get("constraint", constraints.real)
            shape = jax.tree.map(jnp.shape, site["value"])
            parameters[site["name"]] = Parameter(shape, concrete(site["name"], constraint), None)
    if not enumerated:
        raise ValueError(
            "program: has no enumerable discrete latent; EM needs one, e.g. numpyro.sample('z', dist.Categorical(pi)), "
            "or an observed dist.MixtureSameFamily"
        )
    in_order = {name: parameters[name] for name in trace if name in parameters}
    sampled = [site for site in trace.values() if site["type"] == "sample"]
    dims = [-frame.dim for site in sampled for frame in site["cond_indep_stack"] if frame.dim is not None]
    ranks = [len(site["fn"].batch_shape) for site in sampled if "_control_flow_done" not in site]
    return Structure(in_order, enumerated, frozenset(dropped), -max([0, *dims, *ranks]) - 1)


def prior_of(fn: dist.Distribution) -> type | None:
    return None if isinstance(bare(fn), dist.ImproperUniform) else type(bare(fn))


def is_unobserved_half(name: str, trace: dict[str, dict]) -> bool:
    stem = name.removesuffix("_unobserved")
    return stem != name and f"{stem}_observed" in trace


def support_size(site: dict) -> int:
    """The number of values of a discrete latent, which must be 0, 1, … for NumPyro to enumerate it."""
    name, fn = site["name"], site["fn"]
    if not fn.has_enumerate_support:
        raise ValueError(
            f"program: the discrete latent {name!r} ({type(bare(fn)).__name__}) has no finite support to enumerate; "
            "truncate it to a Categorical"
        )
    if fn.event_dim:
        raise ValueError(f"program: the discrete latent {name!r} has event_dim {fn.event_dim}; use a plate")
    with jax.ensure_compile_time_eval():
        support = np.asarray(bare(fn).enumerate_support(expand=False)).reshape(-1)
    if not np.array_equal(support, np.arange(support.size)):
        raise ValueError(
            f"program: the discrete latent {name!r} takes the values {support[0]} … {support[-1]}; NumPyro enumerates "
            "0, 1, 2, …: shift it"
        )
    return int(support.size)


def concrete(name: str, constraint: constraints.Constraint) -> constraints.Constraint:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(constraint)):
        raise ValueError(f"program: the support of {name!r} is computed in the program; write its bounds as numbers")
    return constraint


def bare(fn: dist.Distribution) -> dist.Distribution:
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


# ---- at one θ: the terms


def terms_of(program: Callable[..., Any], structure: Structure, theta: Theta, arguments: Arguments) -> list[Term]:
    """Every sample site at every value of the discrete latents."""
    from numpyro.contrib import funsor  # sets funsor's backend, so not before it is needed

    enumerable = {name: {"enumerate": "parallel"} for name in structure.enumerated}
    model = handlers.substitute(program, data=theta)
    model = handlers.infer_config(model, config_fn=lambda site: enumerable.get(site["name"], {}))
    if structure.dropped:
        model = handlers.seed(model, jax.random.key(0))  # values that nothing depends on
    laid_out = LaidOut(theta=theta)
    with handlers.block(), jax.numpy_rank_promotion("allow"), funsor.infer_util.plate_to_enum_plate(), laid_out:
        trace = funsor.trace(funsor.enum(model, structure.first_available_dim)).get_trace(*arguments.unpack())
        return [
            term
            for site in trace.values()
            if site["type"] == "sample" and root(site["name"]) not in structure.dropped
            for term in site_terms(site, structure, laid_out.last)
        ]


def root(name: str) -> str:
    """The name of a scan's site without its `_PREV_`."""
    return name.removeprefix(PREVIOUS)


def site_terms(site: dict, structure: Structure, last: dict[int, str]) -> Iterator[Term]:
    fn, value, name = site["fn"], jnp.asarray(site["value"]), site["name"]
    shape = jnp.broadcast_shapes(fn.batch_shape, jnp.shape(value)[: jnp.ndim(value) - fn.event_dim])
    labels = site["infer"]["dim_to_name"]
    axes = {axis: label for axis, label in labels.items() if shape[axis] > 1}
    for axis, label in axes.items():
        if label.startswith("_pyro_dim_"):
            axes[axis] = unnamed(name, axis, shape[axis], structure, last)
    plates = {frame.name: frame.size for frame in site["cond_indep_stack"]}
    axes |= {frame.dim: frame.name for frame in site["cond_indep_stack"]}
    plates |= {label: shape[axis] for axis, label in axes.items() if root(label) not in structure.enumerated}
    if "time" in site["infer"]:  # of size 1 in what does not change with it
        axis, label, length = site["infer"]["time"]
        axes, plates = axes | {axis: label}, plates | {label: length}
    fn, mask, event = unwrapped(fn, value)
    if mask is not None and jnp.issubdtype(value.dtype, jnp.floating):
        present = jnp.reshape(mask, jnp.shape(mask) + (1,) * (event + fn.event_dim))
        value = jnp.where(present | jnp.isfinite(value), value, 0.5)  # what is masked may be NaN
    scale = 1 if site["scale"] is None else site["scale"]
    common = Term(name, fn, value, mask, scale, event, axes, plates, None, site["is_observed"])
    if isinstance(fn, dist.MixtureSameFamily | dist.MixtureGeneral):
        yield from mixture_terms(common)
    else:
        yield common._replace(law_of=name if root(name) in structure.enumerated else None)


def unnamed(site: str, axis: int, size: int, structure: Structure, last: dict[int, str]) -> str:
    """A dimension that NumPyro has no name for: the last step of a scan, or rows without a plate."""
    if axis > structure.first_available_dim:
        return f"{axis}[{size}]"
    if structure.enumerated.get(last.get(axis, "")) != size:
        raise ValueError(
            f"program: {site!r} depends on a discrete latent in a way that NumPyro loses track of; "
            "observe it inside the scan, or in the plate of the latent"
        )
    return last[axis]


def unwrapped(fn: dist.Distribution, value: Any) -> tuple[dist.Distribution, Any, int]:
    """(fn without Masked, Expanded and Independent, the mask, how many axes Independent had claimed)."""
    mask, event = None, 0
    while True:
        if isinstance(fn, dist.MaskedDistribution) and not event:
            mask = fn._mask if mask is None else mask & fn._mask
        elif isinstance(fn, dist.Independent):
            event += fn.reinterpreted_batch_ndims
        elif isinstance(fn, dist.ExpandedDistribution):
            base = fn.base_dist
            seen = jnp.broadcast_shapes(base.batch_shape, jnp.shape(value)[: jnp.ndim(value) - base.event_dim])
            if event and seen[-event:] != fn.batch_shape[-event:]:
                return fn, mask, event  # an event's size must survive; a plate's is known
        else:
            return fn, mask, event
        fn = fn.base_dist


def mixture_terms(term: Term) -> Iterator[Term]:
    """A marginal mixture as the latent that it sums over, named as its site, and its components."""
    events = [f"{term.name}_event_{i}" for i in range(-term.event, 0)]  # to_event: every scalar has its own component
    shape = jnp.broadcast_shapes(term.fn.batch_shape, jnp.shape(term.value)[: jnp.ndim(term.value) - term.fn.event_dim])
    batch = {axis - 1 - term.event: label for axis, label in term.axes.items()}
    inner = term._replace(
        mask=None if term.mask is None else term.expand(term.mask)[..., None],
        scale=term.expand(term.scale)[..., None],
        event=0,
        axes=batch | {i - 1 - term.event: label for i, label in enumerate(events)} | {-1: term.name},
        plates=term.plates | dict(zip(events, shape[len(shape) - term.event :], strict=True)),
    )
    mixing, size, event_dim = term.fn.mixing_distribution, term.fn.mixture_size, term.fn.event_dim
    if isinstance(mixing, dist.CategoricalProbs):
        law = dist.CategoricalProbs(mixing.probs[..., None, :])
    else:
        law = dist.CategoricalLogits(mixing.logits[..., None, :])
    yield inner._replace(
        name=f"{term.name}/mixing", fn=law, value=jnp.arange(size), law_of=term.name, observed=False, mask=None
    )
    if isinstance(term.fn, dist.MixtureSameFamily):
        value = jnp.expand_dims(term.value, -1 - event_dim)
        fn, _, event = unwrapped(term.fn.component_distribution, value)
        yield inner._replace(fn=fn, value=value, event=event)
        return
    for index, component in enumerate(term.fn.component_distributions):
        fn, _, event = unwrapped(component, term.value)
        only = inner._replace(name=f"{term.name}/{index}", fn=fn, event=event, only=(index, size))
        yield only._replace(mask=None if only.mask is None else only.mask[..., 0])
