"""NumPyro's enumerated `scan` without its loop.

A discrete latent that is enumerated takes the same values at every step, so nothing is really carried along: the
body of the scan can be laid out over all times at once, and what does not change with time is kept once. NumPyro
rolls the same body in `lax.scan` and stacks everything. The trace that results is the same but for axes of size 1
where a distribution's argument is constant in time.

Carried values that are not enumerated (a step counter, the last observation) are scanned on their own first. Where
values of latents from further back are carried, as many steps are unrolled before those that are laid out. Where
something else is carried, NumPyro's own scan does the work.
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.distribution import Unit
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from jaxem._programs.eliminate import PREVIOUS
from jaxem._programs.messengers import Freed
from jaxem._programs.structure import MIXTURES, bare

REMEDY = "carry the latents' own values, of as many steps as it takes, and compute in the step what follows from them"


FURTHER = "further"  # a latent's value is carried over more steps than were unrolled
NOWHERE = 24  # axes to the right of one that no latent has: the last that NumPyro counts


class Seen(Messenger):
    """The names of the discrete latents that go by."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        super().__init__()

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and not msg["is_observed"] and msg["fn"].is_discrete:
            self.names.add(msg["name"].replace(PREVIOUS, ""))


class LaidOut(Messenger):
    """Replaces NumPyro's rolling of an enumerated scan; refuses what the elimination does not know."""

    def __init__(self, fn: Any = None, theta: Any = None):
        self.theta = theta
        self.last: dict[int, str] = {}  # axis → variable of the last step, which NumPyro forgets after a scan
        super().__init__(fn)

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "control_flow" or msg["fn"].__name__ != "scan_wrapper":
            return
        if msg["args"][4]:
            raise ValueError("program: scan(reverse=True) is not supported; flip the sequence instead")
        if msg["kwargs"].get("history", 1) > 0:
            msg["fn"] = self.scan(msg["fn"])

    def scan(self, original: Callable) -> Callable:
        def scan_wrapper(f: Any, init: Any, xs: Any, length: Any, reverse: Any, **kwargs: Any) -> Any:
            foreign = [some for _, some in kwargs.get("substitute_stack") or [] if some is not self.theta]
            length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
            order = kwargs.get("history", 1)
            if kwargs.get("rng_key") is None and not foreign:
                found, order = laid_out(f, init, xs, length, kwargs.get("first_available_dim"), order)
                if found is not None:
                    self.last |= found[1]
                    return found[0]
            seen = Seen()
            try:
                with seen:
                    return original(f, init, xs, length, reverse, **kwargs | {"history": order})
            except (TypeError, ValueError) as error:  # the body itself has run: what does not fit is what it carries
                raise ValueError(
                    f"program: the scan at {sorted(seen.names)} carries more than its latents' last values, so a state "
                    f"would depend on all before it; {REMEDY}. JAX says: {str(error).splitlines()[0]}"
                ) from error

        return scan_wrapper


def laid_out(f: Callable, init: Any, xs: Any, length: int, first_available_dim: int | None, order: int) -> Any:
    """(what NumPyro's `scan_enum` returns, ((length, key, carry), (trace, ys)), with the axes of what it carries on;
    how many steps back a latent reaches, `order` or more).

    None for the first where NumPyro must do the work itself.
    """
    while length > order:
        found = laid_out_after(order, f, init, xs, length, first_available_dim)
        if found is not FURTHER:
            return found, order
        order += 1
    return None, order


def laid_out_after(order: int, f: Callable, init: Any, xs: Any, length: int, first_available_dim: int | None) -> Any:
    """The same where so many steps are unrolled first; FURTHER where they are too few."""
    from numpyro.contrib.funsor import config_enumerate, enum, markov
    from numpyro.contrib.funsor import trace as packed_trace

    body, rest = config_enumerate(f), jax.tree.map(lambda x: x[order:], xs)

    def hidden(site: dict) -> bool:
        return not site.get("name", "").startswith(PREVIOUS)

    def unroll(step: int, carry: Any) -> tuple[Any, Any]:
        with handlers.scope(prefix=PREVIOUS * (order - step), divider="", hide_types=["plate"]):
            return body(carry, jax.tree.map(lambda x: x[step], xs))

    carry, unrolled, carries, first = init, list[Any](), list[Any](), list[Any]()
    with handlers.block(), enum(first_available_dim=first_available_dim):
        for step in markov(range(order + 1), history=order):
            if step < order:
                with packed_trace() as trace:
                    carry, y = unroll(step, carry)
                for steps, some in ((unrolled, trace), (carries, carry), (first, y)):
                    steps.append(some)
            else:
                rolled = roll(body, carry, rest, length - order, unrolled, packed_trace)
    if rolled is None or rolled is FURTHER:
        return rolled
    trace, end, ys = rolled
    with handlers.block(hide_fn=hidden), enum(first_available_dim=first_available_dim):
        carry = init
        for step in markov(range(order), history=order):
            carry, _ = unroll(step, carry)  # once more, now for all to see
    named_times(trace, length - order)

    def joined(y: Any, *first: Any) -> Any:
        shape = jnp.shape(first[0])
        return jnp.concatenate([*(jnp.reshape(some, (1, *shape)) for some in first), y.reshape(y.shape[:1] + shape)])

    ys = jax.tree.map(joined, ys, *first)
    sites, prefix, slot = trace, "", (length - 1) % (order + 1)
    if slot < order:  # dimensions alternate from step to step
        end = jax.tree.map(
            lambda a, b: a if jnp.ndim(a) > NOWHERE else jnp.reshape(a, jnp.shape(b)), end, carries[slot]
        )
        sites, prefix = unrolled[slot], PREVIOUS * (order - slot)
    enumerated = [name for name, site in trace.items() if is_enumerated(site)]
    last = {sites[prefix + name]["infer"]["name_to_dim"][prefix + name]: name for name in enumerated}
    return ((length, None, end), (PytreeTrace(trace), ys)), last


def roll(body: Callable, carry: Any, xs: Any, length: int, unrolled: list[dict], packed_trace: Any) -> Any:
    """(trace, last carry, ys) of the steps after the first, laid out over time."""
    leaves, treedef = jax.tree.flatten(carry)
    values = {id(s["value"]): name for trace in unrolled for name, s in trace.items() if is_enumerated(s)}
    kept: list[Any] = []

    def once(moving: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
        """(the moving part of the next carry, every array of the trace and of y)."""
        supply = iter(moving)
        full = [next(supply) if moves else leaf for leaf, moves in zip(leaves, is_moving, strict=True)]
        with PromotedShapes(), packed_trace() as trace, Freed():
            new, y = body(jax.tree.unflatten(treedef, full), x)
        new = jax.tree.leaves(new)
        arrays, shape = jax.tree.flatten((PytreeTrace(trace), y))
        kept[:] = [new, trace, shape]
        return [value for value, moves in zip(new, is_moving, strict=True) if moves], arrays

    # which leaves of the carry are an enumerated site's values, or never change?
    is_moving = [False] * len(leaves)
    x_0 = jax.tree.map(lambda x: x[0], xs)
    jax.eval_shape(lambda x: once([], x)[1], x_0)
    new, trace, _ = kept
    names = values | {id(site["value"]): name for name, site in trace.items() if is_enumerated(site)}
    for i, (old, after) in enumerate(zip(leaves, new, strict=True)):
        same_site = id(old) in values and names.get(id(after)) == values[id(old)].removeprefix(PREVIOUS)
        is_moving[i] = not (same_site or after is old)
        if is_moving[i] and id(after) in values:
            return FURTHER  # a latent's value from before
    start = [leaf for leaf, moves in zip(leaves, is_moving, strict=True) if moves]
    shapes = [jnp.shape(value) for value, moves in zip(new, is_moving, strict=True) if moves]
    if shapes != [jnp.shape(leaf) for leaf in start]:
        return None  # something enumerated is carried in disguise

    def advance(moving: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
        after = once(moving, x)[0]
        after = [jnp.asarray(new, jnp.result_type(old)) for new, old in zip(after, moving, strict=True)]
        return after, moving

    end_moving, moving = lax.scan(advance, [jnp.asarray(leaf) for leaf in start], xs, length) if start else ([], [])
    first = ([leaf[0] for leaf in moving], x_0)
    closed = jax.make_jaxpr(lambda moving, x: once(moving, x)[1])(*first)
    varies = depends(closed.jaxpr)
    over_time = jax.vmap(lambda moving, x: once(moving, x)[1], axis_size=length)(moving, xs)
    constant = once(*first)[1]
    arrays = [
        many if v else one[None] for many, one, v in zip(over_time, map(jnp.asarray, constant), varies, strict=True)
    ]
    new, _, shape = kept
    pytree_trace, ys = jax.tree.unflatten(shape, arrays)
    ys = jax.tree.map(lambda y: jnp.broadcast_to(y, (length, *y.shape[1:])), ys)
    supply = iter(end_moving)
    end = [next(supply) if moves else lost(value, values) for value, moves in zip(new, is_moving, strict=True)]
    return pytree_trace.trace, jax.tree.unflatten(treedef, end), ys


def lost(value: Any, before: dict[int, str]) -> Any:
    """A latent's value from before the last step on an axis that no one has: what follows the scan cannot have it."""
    return jnp.reshape(value, (-1, *(1,) * NOWHERE)) if id(value) in before else value


def is_enumerated(site: dict) -> bool:
    return site["type"] == "sample" and site["infer"].get("enumerate") == "parallel" and not site["is_observed"]


def depends(jaxpr: Any) -> list[bool]:
    """Which outputs of a jaxpr depend on any of its inputs?"""
    reached = set(map(id, jaxpr.invars))
    for equation in jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached |= set(map(id, equation.outvars))
    return [id(variable) in reached for variable in jaxpr.outvars]


def named_times(trace: dict, length: int) -> None:
    """Put time at the left of every site, and remember how long it is, for what does not change with it."""
    label = None
    for name, site in trace.items():
        if site["type"] != "sample":
            continue
        label = label or f"_time_{name}"
        site["fn"] = promoted(site["fn"])
        batch = jnp.ndim(site["value"]) - site["fn"].event_dim
        missing = len(site["fn"].batch_shape) - batch
        if missing > 0:
            shape = jnp.shape(site["value"])
            site["value"] = jnp.reshape(site["value"], (shape[0], *(1,) * missing, *shape[1:]))
        axis = -max(len(site["fn"].batch_shape), batch)
        site["infer"]["dim_to_name"][axis] = label
        site["infer"]["time"] = (axis, label, length)


def promoted(fn: Any) -> Any:
    """fn with the batch shape that its arrays have, once time was put at their left; of mixtures and factors too."""
    if isinstance(fn, dist.MaskedDistribution | dist.Independent) and isinstance(bare(fn), (*MIXTURES, Unit)):
        event = fn.reinterpreted_batch_ndims if isinstance(fn, dist.Independent) else 0
        base = promoted(fn.base_dist)
        return with_batch(fn, base.batch_shape[: len(base.batch_shape) - event], base_dist=base)
    if isinstance(fn, dist.ExpandedDistribution) and isinstance(bare(fn), (*MIXTURES, Unit)):
        base, rank = promoted(fn.base_dist), len(fn.base_dist.batch_shape)
        times, extra = base.batch_shape[: len(base.batch_shape) - rank], len(fn.batch_shape) - rank
        axes = range(len(times), len(times) + extra)  # what fn adds to its base stands between time and the base's own
        base = promoted(jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axes), base))
        return with_batch(fn, (*times, *fn.batch_shape), base_dist=base)
    if isinstance(fn, Unit):
        return with_batch(fn, jnp.shape(fn.log_factor))
    if isinstance(fn, dist.MixtureSameFamily):
        mixing, parts = promoted(fn._mixing_distribution), promoted(fn._component_distribution)
        shape = jnp.broadcast_shapes(mixing.batch_shape, parts.batch_shape[:-1])
        return with_batch(fn, shape, _mixing_distribution=mixing, _component_distribution=parts)
    if isinstance(fn, dist.MixtureGeneral):
        mixing, several = promoted(fn._mixing_distribution), [promoted(part) for part in fn._component_distributions]
        shape = jnp.broadcast_shapes(mixing.batch_shape, *(part.batch_shape for part in several))
        return with_batch(fn, shape, _mixing_distribution=mixing, _component_distributions=several)
    if isinstance(fn, dist.discrete.ZeroInflatedProbs):
        base = promoted(fn.base_dist)
        return with_batch(fn, jnp.broadcast_shapes(jnp.shape(fn.gate), base.batch_shape), base_dist=base)
    return promote_batch_shape(fn)


def with_batch(fn: Any, shape: tuple[int, ...], **parts: Any) -> Any:
    """A copy of a distribution with this batch shape, and these parts."""
    new = copy.copy(fn)
    vars(new).update(parts, _batch_shape=shape)
    return new


class PromotedShapes(Messenger):
    """Gives a site's distribution as many batch axes as its value, so that time goes to the left of both."""

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["value"] is not None:
            fn = msg["fn"]
            missing = jnp.ndim(msg["value"]) - fn.event_dim - len(fn.batch_shape)
            if missing > 0:
                msg["fn"] = jax.tree.map(lambda leaf: jnp.reshape(leaf, (1,) * missing + jnp.shape(leaf)), fn)
