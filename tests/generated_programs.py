"""Random programs, held to every assignment of latents: `python tests/generated_programs.py FROM TO` lists faults.

A program is made from its number alone: up to three latents, of several laws, in the plate of the rows, in an outer
one, in both or in none, each by a table of those before it; up to three observed sites of a dozen laws, some masked or
scaled; parameters as `param`s or with priors. The judge is NumPyro's own density (`gallery/oracle.py`).
"""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

if __name__ == "__main__":
    os.environ |= {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

import jaxem

from gallery.oracle import Oracle

PLACES = ((), ("rows",), ("outer",), ("outer", "rows"))
MOST_ASSIGNMENTS = 3000
EXACT = 1e-12  # of F, and …
STATIONARY = 1e-3  # … nats per unit of an unconstrained coordinate, where a fit says CONVERGED
Parent = Callable[[Any], Any]  # a table ↦ its entry at the values of the parents
Number = np.random.Generator


class Latent(NamedTuple):
    name: str
    plates: tuple[str, ...]
    law: str
    size: int
    parents: tuple[int, ...]
    prior: bool


class Observed(NamedTuple):
    name: str
    plates: tuple[str, ...]
    law: str
    parents: tuple[int, ...]
    prior: bool
    masked: bool
    scaled: bool


class Parameters:
    """Tables of numbers, as `param`s that start at random, or drawn from priors."""

    def __init__(self, number: int):
        self.number = number

    def start(self, name: str, make: Callable[[Number], Any]) -> Any:
        return jnp.asarray(make(np.random.default_rng([self.number, *map(ord, name)])))

    def real(self, name: str, shape: tuple[int, ...], prior: bool) -> Any:
        if prior:
            return numpyro.sample(name, dist.Normal(0.0, 2.0).expand(shape).to_event(len(shape)))
        return numpyro.param(name, self.start(name, lambda rng: rng.normal(size=shape)))

    def positive(self, name: str, shape: tuple[int, ...], prior: bool) -> Any:
        if prior:
            return numpyro.sample(name, dist.Gamma(2.0, 1.0).expand(shape).to_event(len(shape)))
        start = self.start(name, lambda rng: rng.uniform(0.5, 2, size=shape))
        return numpyro.param(name, start, constraint=constraints.positive)

    def unit(self, name: str, shape: tuple[int, ...], prior: bool) -> Any:
        if prior:
            return numpyro.sample(name, dist.Beta(2.0, 2.0).expand(shape).to_event(len(shape)))
        start = self.start(name, lambda rng: rng.uniform(0.2, 0.8, size=shape))
        return numpyro.param(name, start, constraint=constraints.unit_interval)

    def simplex(self, name: str, shape: tuple[int, ...], prior: bool) -> Any:
        if prior:
            flat = dist.Dirichlet(jnp.full(shape[-1], 2.0)).expand(shape[:-1])
            return numpyro.sample(name, flat.to_event(len(shape) - 1))
        start = self.start(name, lambda rng: rng.dirichlet(np.full(shape[-1], 3.0), size=shape[:-1]))
        return numpyro.param(name, start, constraint=constraints.simplex)


def latent_law(p: Parameters, one: Latent, shape: tuple[int, ...]) -> Callable[[Parent], Any]:
    """Its parameters, sampled; and its law at its parents' values."""
    name = f"p_{one.name}"
    if one.law in ("Bernoulli", "Binomial"):
        table = p.unit(name, shape, one.prior)
        return lambda at: dist.Bernoulli(at(table)) if one.law == "Bernoulli" else dist.Binomial(2, at(table))
    if one.law == "Bernoulli by logits":
        table = p.real(name, shape, one.prior)
        return lambda at: dist.Bernoulli(logits=at(table))
    if one.law == "Categorical by logits":
        table = p.real(name, (*shape, one.size), one.prior)
        return lambda at: dist.Categorical(logits=at(table))
    table = p.simplex(name, (*shape, one.size), one.prior)
    return lambda at: dist.Categorical(at(table))


def observed_law(p: Parameters, one: Observed, shape: tuple[int, ...], x: Any) -> Callable[[Parent], Any]:
    """Its parameters, sampled; and its law at its parents' values."""
    law, prior, name = one.law, one.prior, one.name
    if law in ("Poisson", "Exponential", "Gamma"):
        rate = p.positive(f"rate_{name}", shape, prior)
        made = {"Poisson": dist.Poisson, "Exponential": dist.Exponential, "Gamma": lambda rate: dist.Gamma(2.0, rate)}
        return lambda at: made[law](at(rate))
    if law == "Bernoulli":
        probs = p.unit(f"probs_{name}", shape, prior)
        return lambda at: dist.Bernoulli(at(probs))
    if law == "Categorical":
        probs = p.simplex(f"probs_{name}", (*shape, 3), prior)
        return lambda at: dist.Categorical(at(probs))
    if law == "MultivariateNormal":
        loc = p.real(f"loc_{name}", (*shape, 2), prior)
        return lambda at: dist.MultivariateNormal(at(loc), jnp.eye(2))
    loc = p.real(f"loc_{name}", shape, prior)
    if law == "Poisson by its logarithm":
        return lambda at: dist.Poisson(jnp.exp(at(loc) + 0.3 * x))
    if law == "regression":
        slope, scale = p.real(f"slope_{name}", shape, prior), p.positive(f"scale_{name}", (), prior)
        return lambda at: dist.Normal(at(loc) + at(slope) * x, scale)
    if law in ("Normal, scales", "Normal, variances"):
        scale = p.positive(f"scale_{name}", shape, prior)
        root = jnp.sqrt if law == "Normal, variances" else jnp.asarray
        return lambda at: dist.Normal(at(loc), root(at(scale)))
    scale = p.positive(f"scale_{name}", (), prior)
    if law == "StudentT":
        return lambda at: dist.StudentT(5.0, at(loc), scale)
    return lambda at: (dist.LogNormal if law == "LogNormal" else dist.Normal)(at(loc), scale)


VALUES: dict[str, Callable[[Number, tuple[int, ...]], Any]] = {
    "Poisson": lambda rng, shape: rng.poisson(2.0, shape),
    "Poisson by its logarithm": lambda rng, shape: rng.poisson(2.0, shape),
    "Bernoulli": lambda rng, shape: rng.integers(0, 2, shape),
    "Categorical": lambda rng, shape: rng.integers(0, 3, shape),
    "Exponential": lambda rng, shape: rng.exponential(size=shape),
    "Gamma": lambda rng, shape: rng.gamma(2.0, size=shape),
    "LogNormal": lambda rng, shape: np.exp(rng.normal(size=shape)),
    "MultivariateNormal": lambda rng, shape: rng.normal(size=(*shape, 2)),
}
REALS = ("Normal", "Normal, scales", "Normal, variances", "StudentT", "regression")
LATENTS = {"Categorical": 3, "Categorical by logits": 3, "Bernoulli": 2, "Bernoulli by logits": 2, "Binomial": 3}


class Made(NamedTuple):
    """A program and its data."""

    program: Callable[[Any], None]
    data: dict[str, Any]
    about: str


def make(number: int) -> Made:
    """The program of this number."""
    rng = np.random.default_rng(number)
    sizes = {"rows": int(rng.integers(2, 4)), "outer": 2}
    places = PLACES if rng.random() < 0.4 else PLACES[:2]

    def place() -> tuple[str, ...]:
        return places[int(rng.choice(len(places), p=[0.1, *[0.9 / (len(places) - 1)] * (len(places) - 1)]))]

    def parents(plates: tuple[str, ...], latents: list[Latent]) -> tuple[int, ...]:
        seen = [i for i, one in enumerate(latents) if set(one.plates) <= set(plates)]
        return tuple(i for i in seen if rng.random() < 0.7)[:2]

    latents: list[Latent] = []
    total = 1
    for i in range(int(rng.integers(1, 4))):
        plates, law = place(), str(rng.choice(list(LATENTS)))
        size = int(rng.integers(2, 4)) if law.startswith("Categorical") else LATENTS[law]
        more = size ** int(np.prod([sizes[plate] for plate in plates]))
        if total * more <= MOST_ASSIGNMENTS:
            total *= more
            latents.append(Latent(f"z{i}", plates, law, size, parents(plates, latents), rng.random() < 0.5))
    observed, data = [], {}
    for i in range(int(rng.integers(1, 4))):
        plates, law = place(), str(rng.choice([*VALUES, *REALS]))
        chances = (bool(rng.random() < 0.5), bool(rng.random() < 0.2), bool(rng.random() < 0.1))
        one = Observed(f"y{i}", plates, law, parents(plates, latents), *chances)
        shape = (sizes["outer"], sizes["rows"] if "rows" in plates else 1) if "outer" in plates else ()
        shape = shape or tuple(sizes[plate] for plate in plates)
        data[one.name] = jnp.asarray(VALUES.get(law, lambda rng, shape: rng.normal(size=shape))(rng, shape))
        data[f"x_{one.name}"] = jnp.asarray(rng.normal(size=shape))
        if one.masked:
            data[f"mask_{one.name}"] = jnp.asarray(rng.random(shape) < 0.7)
        observed.append(one)
    return Made(written(number, sizes, latents, observed), data, str([*latents, *observed]))


def written(number: int, sizes: dict[str, int], latents: list[Latent], observed: list[Observed]) -> Callable:
    """The program, in NumPyro."""

    def program(data: dict[str, Any]) -> None:
        p, z = Parameters(number), []
        shape = {one.name: tuple(latents[j].size for j in one.parents) for one in (*latents, *observed)}
        laws = {one.name: latent_law(p, one, shape[one.name]) for one in latents}
        laws |= {one.name: observed_law(p, one, shape[one.name], data[f"x_{one.name}"]) for one in observed}
        plates = {name: numpyro.plate(name, size, dim=-1 - i) for i, (name, size) in enumerate(sizes.items())}

        def at(one: Latent | Observed) -> Parent:
            values = tuple(z[j] for j in one.parents)
            return lambda table: table[values] if values else table

        for one in (*latents, *observed):
            with contextlib.ExitStack() as around:
                for plate in one.plates:
                    around.enter_context(plates[plate])
                if isinstance(one, Latent):
                    z.append(numpyro.sample(one.name, laws[one.name](at(one))))
                    continue
                if one.masked:
                    around.enter_context(handlers.mask(mask=data[f"mask_{one.name}"]))
                if one.scaled:
                    around.enter_context(handlers.scale(scale=2.0))
                numpyro.sample(one.name, laws[one.name](at(one)), obs=data[one.name])

    return program


def faults(number: int) -> list[str]:
    """What is false about the program of this number."""
    program, data, _ = make(number)
    m, oracle = jaxem.from_numpyro(program), Oracle(program, (data,))
    theta, x, found = oracle.start(), (data,), []
    joint = oracle.joint(theta)
    scale = EXACT * (1 + abs(joint.prior) + np.abs(joint.log_joint).min())
    for temperature in (1.0, 0.5, 0.0):
        F = float(jaxem.em(m, theta, x, temperature=temperature, max_steps=0).free_energy)
        wanted = joint.free_energy(temperature)
        if not abs(F - wanted) <= scale:
            found.append(f"F is {F} and not {wanted} at T = {temperature}")
    marginals, shares = jaxem.marginals(m, theta, x), joint.marginals(1.0)
    found += [
        f"the marginals of {site!r}"
        for site in shares
        if not np.allclose(np.reshape(marginals[site], shares[site].shape), shares[site], atol=1e-11)
    ]
    rise = [float(jaxem.em(m, theta, x, max_steps=steps).free_energy) for steps in (0, 1, 2, 3)]
    if np.diff(rise).min() < -1e-10 * (1 + np.abs(rise).max()):
        found.append(f"F falls: {rise}")
    fit = jaxem.em(m, theta, x, max_steps=400)
    status = jaxem.Status(int(fit.status))
    if status == jaxem.Status.DECREASED:
        found.append("DECREASED")
    if status == jaxem.Status.CONVERGED:
        steep = {name: slope for name, slope in oracle.slopes(fit.theta).items() if slope > STATIONARY}
        found += [f"CONVERGED, and the density rises in {steep}"] if steep else []
    return found + [f"outside of its constraint: {name}" for name in oracle.outside(fit.theta)]


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        print(number, faults(number) or "right", make(number).about, flush=True)
