"""What is static about a program: its parameters, its enumerated latents, and what EM cannot take, in the user's terms.

Found once for the shapes of its arguments, from traces of the program as it stands on shapes alone. Names decide
nothing here: where it matters what a latent is for, a trace with a batch of its values says what they reach.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from jaxem._core.arrays import first_line
from jaxem._core.handlers import alone
from jaxem._programs.arguments import Arguments
from jaxem._programs.messengers import Own, Unobserved

MIXTURES = (dist.MixtureSameFamily, dist.MixtureGeneral, dist.discrete.ZeroInflatedProbs)


class Parameter(NamedTuple):
    """An entry of θ: a `param` site, or a continuous latent, whose law is then its prior."""

    shape: tuple[int, ...]
    constraint: constraints.Constraint
    prior: type | None  # None for a `param`, or a flat prior
    plates: tuple[str, ...] = ()  # of a latent that has a value for each of a group of rows
    mixed: str | None = None  # a discrete latent on which the prior depends: the prior is then a factor of the data


class Structure(NamedTuple):
    """What is static about a program at given shapes of its arguments."""

    parameters: dict[str, Parameter]
    enumerated: dict[str, int]  # discrete latent → number of values
    dropped: frozenset[str]  # `obs_mask`'s unobserved halves that nothing depends on: they integrate to one
    halves: dict[str, str]  # an enumerated one → the observed half, its value where that is seen
    first_available_dim: int
    common: dict[str, int]  # the plates that hold every discrete latent and all that is observed, outermost first
    apart: str  # where there are none, which sites are in no plate together


def bare(fn: dist.Distribution) -> dist.Distribution:
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


# ---- traces of the program as it stands


def plain_trace(
    program: Callable[..., Any], arguments: Arguments, key: Array, values: dict[str, Any] | None = None
) -> dict[str, dict]:
    """The trace of the program as it stands: latents as given, else drawn from their laws."""
    model = handlers.substitute(handlers.seed(Own(program), key), data=values or {})
    model = handlers.substitute(model, substitute_fn=drawn)
    args, kwargs = arguments.unpack()
    with alone():
        return handlers.trace(model).get_trace(*args, **kwargs)


def simulated(program: Callable[..., Any], arguments: Arguments, theta: dict[str, Any], key: Array) -> dict[str, Any]:
    """A draw of every site of the program at θ, of what it observes too; the arguments say how many."""
    model = handlers.seed(handlers.substitute(Own(Unobserved(program)), data=theta), key)
    args, kwargs = arguments.unpack()
    with alone():
        trace = handlers.trace(model).get_trace(*args, **kwargs)
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and name not in theta and not isinstance(site["fn"], dist.Unit)
    }


def drawn(site: dict) -> Any:
    """A value for a latent: a draw from its law; from one that cannot be drawn from, e.g. ImproperUniform, what ±2 of
    NumPyro's unconstrained coordinates hold."""
    if site["type"] != "sample" or site["value"] is not None or site["is_observed"]:
        return None
    fn, key, shape = site["fn"], site["kwargs"]["rng_key"], tuple(site["kwargs"].get("sample_shape", ()))
    try:
        return fn(rng_key=key, sample_shape=shape)
    except NotImplementedError:
        bijection = biject_to(fn.support)
        free = bijection.inverse_shape(shape + fn.shape())
        return bijection(jax.random.uniform(key, free, minval=-2, maxval=2))


class Site(NamedTuple):
    """A sample site of a plain trace, as the structure needs it."""

    name: str
    fn: dist.Distribution
    value: Any
    observed: bool
    plates: tuple[str, ...]
    scanned: bool

    @classmethod
    def of(cls, site: dict) -> "Site":
        plates = tuple(frame.name for frame in site["cond_indep_stack"])
        return cls(site["name"], site["fn"], site["value"], site["is_observed"], plates, in_scan(site))

    @property
    def is_mixture(self) -> bool:
        return self.observed and isinstance(bare(self.fn), MIXTURES)


def in_scan(site: dict) -> bool:
    return "_scan_current_index" in site.get("infer", {})


def inspect(program: Callable[..., Any], arguments: Arguments) -> Structure:
    """The program's sites, from traces on shapes alone; a ValueError that names the site EM cannot take."""
    found: list[Structure] = []

    def visit(arguments: Arguments, key: Array) -> None:
        def trace(values: dict[str, Any] | None = None) -> dict[str, dict]:
            with jax.ensure_compile_time_eval():  # what is constant in the program is a number here
                return plain_trace(program, arguments, key, values)

        found.append(structure_of(trace(), trace))

    try:
        jax.eval_shape(visit, arguments, jax.random.key(0))
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            "program: it makes a NumPy array of an argument, or of a parameter, which has no values yet; use jax.numpy "
            f"in it, and close over what fixes its structure. JAX says: {first_line(error)}"
        ) from error
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise ValueError(
            "program: its structure (the size of a plate, a branch) depends on the values of its arguments; "
            f"pass what fixes it as a Python int. JAX says: {first_line(error)}"
        ) from error
    return found[0]


def dependents(trace: Callable[..., dict[str, dict]], latent: Site) -> set[str]:
    """The sample sites that a latent's value reaches, in their laws or what they observe: those that a batch of its
    values makes a batch."""
    reached: set[str] = set()

    def visit(value: Array) -> None:
        batch = type(value)  # vmap's own kind of tracer
        for name, site in trace({latent.name: value}).items():
            leaves = jax.tree.leaves((site["fn"], site["value"])) if site["type"] == "sample" else []
            if name != latent.name and any(isinstance(leaf, batch) for leaf in leaves):
                reached.add(name)

    jax.vmap(visit)(jnp.stack([latent.value, latent.value]))
    return reached


# ---- what the sites are


def structure_of(found: dict[str, dict], trace: Callable[..., dict[str, dict]]) -> Structure:
    """The structure of a program with this trace; `trace` makes another one with given values of its latents."""
    check_plates(found)
    sites = {name: Site.of(site) for name, site in found.items() if site["type"] == "sample"}
    check_branches(found)
    enumerated: dict[str, int] = {}
    dropped: set[str] = set()
    halves: dict[str, str] = {}
    for site in sites.values():
        stem = stem_of_half(site, found)
        if stem and not dependents(trace, site):
            dropped.add(site.name)
        elif site.is_mixture or (not site.observed and site.fn.is_discrete):
            enumerated[site.name] = mixture_size(bare(site.fn)) if site.is_mixture else support_size(site)
            if stem:
                halves[site.name] = f"{stem}_observed"
    parameters: dict[str, Parameter] = {}
    for name, message in found.items():
        if message["type"] == "param":
            if "_control_flow_done" in message:
                raise ValueError(f"program: the param {name!r} is inside a scan or a branch; move it outside")
            constraint = message["kwargs"].get("constraint", constraints.real)
            parameters[name] = Parameter(jax.tree.map(jnp.shape, message["value"]), concrete(name, constraint), None)
        elif name in sites and not sites[name].observed and name not in enumerated and name not in dropped:
            refuse_missing(stem_of_half(sites[name], found), sites[name], trace)
            parameters[name] = parameter_of(sites[name], sites, enumerated, trace)
    if not enumerated:
        raise ValueError(
            "program: has no enumerable discrete latent; EM needs one, e.g. numpyro.sample('z', dist.Categorical(pi)), "
            "or an observed dist.MixtureSameFamily"
        )
    dims = [-f.dim for name in sites for f in found[name]["cond_indep_stack"] if f.dim is not None]
    ranks = [batch_rank(site) for site in sites.values() if not site.scanned]
    common, apart = common_plates([site for site in sites.values() if site.observed or site.name in enumerated], found)
    return Structure(parameters, enumerated, frozenset(dropped), halves, -max([0, *dims, *ranks]) - 1, common, apart)


def common_plates(members: list[Site], found: dict[str, dict]) -> tuple[dict[str, int], str]:
    """The plates that hold all of these sites, outermost first, with their sizes; where there are none, why not."""
    inside = min(members, key=lambda site: len(site.plates))
    if not inside.plates:
        return {}, f"{inside.name!r} is in no plate"
    for site in members:
        if not set(site.plates) & set(inside.plates):
            return {}, f"{site.name!r} is outside of plate {inside.plates[-1]!r}"
    shared = set(inside.plates).intersection(*(site.plates for site in members))
    sizes = {frame.name: frame.size for frame in found[inside.name]["cond_indep_stack"]}
    if not shared:
        return {}, "no plate holds all that is observed and every discrete latent"
    return {plate: sizes[plate] for plate in reversed(inside.plates) if plate in shared}, ""


def batch_rank(site: Site) -> int:
    return max(len(site.fn.batch_shape), jnp.ndim(site.value) - site.fn.event_dim)


def check_plates(found: dict[str, dict]) -> None:
    for site in found.values():
        if site["type"] == "plate" and site["args"][1] is not None and site["args"][0] != site["args"][1]:
            raise ValueError(
                f"program: plate {site['name']!r} subsamples {site['args'][1]} of {site['args'][0]}; "
                "EM needs every row: drop subsample_size"
            )


def check_branches(found: dict[str, dict]) -> None:
    for name, site in found.items():
        if site["type"] == "sample" and "_control_flow_done" in site and not in_scan(site):
            raise ValueError(
                f"program: the site {name!r} is inside control_flow.cond, which NumPyro does not enumerate; "
                "use a Python `if`, or compute both and choose with jnp.where"
            )


def stem_of_half(site: Site, found: dict[str, dict]) -> str | None:
    """The name of the site that `obs_mask` split, of whose halves this is the unobserved one.

    `numpyro.sample(stem, fn, obs, obs_mask=…)` makes an observed site, an unobserved one, and `stem` of both.
    """
    stem = site.name.removesuffix("_unobserved")
    observed, both = found.get(f"{stem}_observed", {}), found.get(stem, {})
    made = observed.get("is_observed") and both.get("type") == "deterministic" and not site.observed
    return stem if stem != site.name and made else None


def refuse_missing(stem: str | None, site: Site, trace: Callable[..., dict[str, dict]]) -> None:
    """The values of a continuous site that `obs_mask` hides are no parameters where each row, or step, has its own."""
    if stem and (site.scanned or site.plates):
        where = f"of plate {site.plates[-1]!r}" if site.plates else "of a scan"
        others = ", ".join(map(repr, sorted(dependents(trace, site) - {f"{stem}_observed"})))
        raise ValueError(
            f"program: {others or repr(stem)} depends on the values of {stem!r} that obs_mask hides, one for each row "
            f"{where}, so the E-step is an integral; fill them in beforehand, or drop those rows"
        )


def parameter_of(
    site: Site, sites: dict[str, Site], enumerated: dict[str, int], trace: Callable[..., dict[str, dict]]
) -> Parameter:
    """A continuous latent as an entry of θ: one for all, or one for each of a group of rows; not one for each row."""
    name = site.name
    if site.scanned:
        raise ValueError(
            f"program: the continuous latent {name!r} is inside a scan; make it a parameter outside: sample its value "
            "for every step before the scan, in a plate of time, and give them to the scan among its xs"
        )
    group: tuple[str, ...] = ()
    reached = dependents(trace, site) if site.plates else set()
    if site.plates and not reached:
        raise ValueError(
            f"program: nothing depends on the continuous latent {name!r} of plate {site.plates[-1]!r}: is its obs= "
            "missing? if not, leave it out"
        )
    together = [other for other in enumerated if set(site.plates) & set(sites[other].plates)]
    if together:
        inside = [sites[o] for o in reached if sites[o].observed and set(site.plates) <= set(sites[o].plates)]
        if inside and all(set(other.plates) == set(site.plates) and not other.scanned for other in inside):
            raise ValueError(
                f"program: the continuous latent {name!r} has a value for each row of plate {site.plates[-1]!r}, as "
                f"the discrete latent {together[0]!r} has, so its E-step is an integral; give it a value for each "
                "component or group of rows instead, or integrate it out by hand"
            )
        group = site.plates
    prior = None if isinstance(bare(site.fn), dist.ImproperUniform) else type(bare(site.fn))
    return Parameter(jnp.shape(site.value), concrete(name, site.fn.support), prior, group)


def mixture_size(fn: Any) -> int:
    return 2 if isinstance(fn, dist.discrete.ZeroInflatedProbs) else fn.mixture_size


def support_size(site: Site) -> int:
    """The number of values of a discrete latent, which must be 0, 1, … for NumPyro to enumerate it."""
    name, fn = site.name, site.fn
    if not fn.has_enumerate_support:
        raise ValueError(
            f"program: the discrete latent {name!r} ({type(bare(fn)).__name__}) has no finite support to enumerate; "
            "truncate it to a Categorical, or, if it is data, give its obs="
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
        raise ValueError(
            f"program: the support of {name!r} is computed from parameters or data; write its bounds as numbers, or "
            "sample it within fixed bounds and scale it"
        )
    return constraint
