"""Reading a NumPyro program at one θ: its log density as factors over every value of its latents.

NumPyro's own handlers do the work: `numpyro.contrib.funsor` gives every value of every discrete latent a
dimension of its own, across plates and along a `scan`. This file turns such a trace into named tables (eq:joint).
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

from jaxem._core.handlers import alone
from jaxem._programs.arguments import Arguments
from jaxem._programs.eliminate import Factor, Named, root, steps_back
from jaxem._programs.messengers import Freed, Own
from jaxem._programs.scan import LaidOut
from jaxem._programs.structure import MIXTURES, Parameter, Structure, bare, inspect, plain_trace
from jaxem._programs.updates import log_prob

__all__ = [
    "Arguments",
    "Parameter",
    "Structure",
    "Term",
    "Theta",
    "bare",
    "inspect",
    "is_number",
    "plain_trace",
    "root",
    "steps_back",
    "terms_of",
]

Theta = dict[str, Any]


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
    seen: Any = None  # of a latent that is seen where it is masked (obs_mask's half): the value it has there

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
        if self.seen is not None:
            value = jnp.where(self.mask, value, jnp.where(self.value == self.seen, 0, -jnp.inf))
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
        return Named(tuple(names[axis] for axis in kept), array.reshape([shape[axis] for axis in kept]))

    def own_axes(self) -> dict[int, str]:
        """The axes of fn's batch: the table's, without the last where fn has none of its own."""
        return self.axes if self.only is None else {axis + 1: label for axis, label in self.axes.items() if axis < -1}

    def named_mask(self) -> Named:
        """The mask with its axes named."""
        return self._replace(axes=self.own_axes()).named(jnp.asarray(True if self.mask is None else self.mask))

    def mentioned(self, variables: Any) -> list[str]:
        """The variables between whose values its table differs."""
        return [root(label) for label in self.axes.values() if root(label) in variables]

    def plates_in_order(self) -> list[str]:
        """Its plates and times from left to right."""
        return [self.axes[axis] for axis in sorted(self.axes) if self.axes[axis] in self.plates]

    def events(self, variables: Any, rows: str | None = None) -> Array:
        """The number of scalar log-densities, with masks and weights, at one value of the variables.

        Of each member of the plate `rows`, or of any of them.
        """
        if self.only is not None:  # one of several laws of the same events: the first counts them
            one = self._replace(only=None, axes=self.own_axes(), scale=jnp.asarray(self.scale)[..., 0])
            return one.events(variables, rows) if self.only[0] == 0 else jnp.zeros(())
        weights = self.expand(self.scale) * (1 if self.mask is None else self.expand(self.mask))
        shape = jax.eval_shape(self.per_event).shape
        weights = jnp.broadcast_to(weights, jnp.broadcast_shapes(jnp.shape(weights), shape))
        labels = [self.axes.get(axis + self.event, "") for axis in range(-weights.ndim, -self.event)]
        weights = weights[tuple(slice(1) if root(label) in variables else slice(None) for label in labels)]
        repeats = math.prod(size for plate, size in self.plates.items() if plate not in (*labels, rows))
        summed = [axis for axis in range(weights.ndim) if [*labels, *self.event * [""]][axis] != rows]
        return jnp.sum(weights, axis=tuple(summed)) * repeats

    def factor(self, table: Array) -> Factor:
        as_array = np.asarray if is_number(self.scale) else jnp.asarray  # that two can be compared while tracing
        scale = self.named(as_array(self.scale, table.dtype))
        return Factor(self.named(table), frozenset(self.plates), scale, self.law_of)


# ---- the terms


def terms_of(program: Callable[..., Any], structure: Structure, theta: Theta, arguments: Arguments) -> list[Term]:
    """Every sample site at every value of the discrete latents."""
    from numpyro.contrib import funsor  # sets funsor's backend, so not before it is needed

    enumerable = {name: {"enumerate": "parallel"} for name in structure.enumerated}
    model = handlers.substitute(Own(program), data=theta)
    model = handlers.infer_config(model, config_fn=lambda site: enumerable.get(site["name"], {}))
    if structure.dropped:
        model = handlers.seed(model, jax.random.key(0))  # values that nothing depends on
    model = Freed(funsor.enum(model, structure.first_available_dim))
    laid_out = LaidOut(theta=theta)
    args, kwargs = arguments.unpack()
    with alone(), funsor.infer_util.plate_to_enum_plate(), laid_out:
        trace = funsor.trace(model).get_trace(*args, **kwargs)
        terms = [
            term
            for site in trace.values()
            if site["type"] == "sample" and root(site["name"]) not in structure.dropped
            for term in site_terms(site, structure, laid_out.last)
        ]
        return with_halves(terms, structure)


def with_halves(terms: list[Term], structure: Structure) -> list[Term]:
    """The unobserved halves of `obs_mask` with their values where those are seen, which no sum is over."""
    by_name = {term.name: term for term in terms}

    def half(term: Term) -> Term:
        observed = structure.halves.get(root(term.name))
        if observed is None or term.law_of is None or term.mask is None:
            return term
        other = by_name[term.name.replace(root(term.name), observed)]
        rank = max([-axis for axis in term.axes], default=0)
        value = other.named(jnp.asarray(other.value)).along([term.axes.get(axis, "") for axis in range(-rank, 0)])
        return term._replace(seen=value)

    return [half(term) for term in terms] if structure.halves else terms


def is_number(scale: Any) -> bool:
    """Is this weight a number in the program?"""
    return np.ndim(scale) == 0 and not isinstance(scale, jax.core.Tracer)


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
    if isinstance(fn, MIXTURES):
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
    law, size, components = parts(term.fn)
    yield inner._replace(name=f"{term.name}/mixing", fn=law, value=jnp.arange(size), law_of=term.name, observed=False)
    if isinstance(components, dist.Distribution):
        value = jnp.expand_dims(term.value, -1 - term.fn.event_dim)
        fn, mask, event = unwrapped(components, value)
        yield inner._replace(fn=fn, value=value, event=event, mask=both(inner.mask, mask))
        return
    for index, component in enumerate(components):
        fn, mask, event = unwrapped(component, term.value)
        only = inner._replace(name=f"{term.name}/{index}", fn=fn, event=event, only=(index, size))
        yield only._replace(mask=both(None if inner.mask is None else inner.mask[..., 0], mask))


def parts(fn: Any) -> tuple[dist.Distribution, int, Any]:
    """(the law of a mixture's latent, its number of values, its components: one batch of them, or a list)."""
    if isinstance(fn, dist.discrete.ZeroInflatedProbs):  # 1: a zero of the gate's, 0: a draw of the base's
        logits = isinstance(fn, dist.discrete.ZeroInflatedLogits)
        gate = jnp.asarray(fn.gate_logits if logits else fn.gate)[..., None]
        law = dist.BernoulliLogits(gate) if logits else dist.BernoulliProbs(gate)
        return law, 2, [fn.base_dist, dist.Delta(jnp.zeros((), gate.dtype))]
    mixing = fn.mixing_distribution
    if isinstance(mixing, dist.CategoricalProbs):
        law = dist.CategoricalProbs(mixing.probs[..., None, :])
    else:
        law = dist.CategoricalLogits(mixing.logits[..., None, :])
    same = isinstance(fn, dist.MixtureSameFamily)
    return law, fn.mixture_size, fn.component_distribution if same else fn.component_distributions


def both(mask: Any, other: Any) -> Any:
    """Where two masks hold, None standing for everywhere."""
    return other if mask is None else mask if other is None else mask & other
