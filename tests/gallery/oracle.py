"""The oracle: NumPyro's own density of a program at every assignment of its discrete latents."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import log_density
from scipy.special import logsumexp, softmax


class Latents(NamedTuple):
    """The discrete latents of a program: every joint assignment of them."""

    assignments: dict[str, np.ndarray]  # site → (assignments, *shape)
    sizes: dict[str, int]
    counted: dict[str, np.ndarray]  # site → (*shape): False where it is masked, and so is all that hangs on it


class Joint(NamedTuple):
    """log p(x, z, θ) at every assignment, split into the prior of θ and the rest."""

    latents: Latents
    prior: float  # log p(θ), the part that no assignment changes
    log_joint: np.ndarray  # (assignments,): log p(x, z | θ)

    def free_energy(self, temperature: float) -> float:
        """F_T = log p(θ) + T log Σ_z e^{log p(x, z | θ)/T}; at T = 0 the maximum."""
        if temperature == 0:
            return self.prior + float(self.log_joint.max())
        return self.prior + temperature * float(logsumexp(self.log_joint / temperature))

    def marginals(self, temperature: float) -> dict[str, np.ndarray]:
        """The share of the assignments in which a site has each of its values."""
        share = softmax(self.log_joint / temperature)
        sizes = self.latents.sizes
        return {
            site: np.stack([np.tensordot(share, values == k, 1) for k in range(sizes[site])], axis=-1)
            for site, values in self.latents.assignments.items()
        }


class Oracle:
    """One program on its data; every question is one compiled function of θ."""

    def __init__(self, program: Any, args: tuple, theta: Any = None):
        self.program, self.args = program, args
        self.given = theta or {}  # where a prior cannot be drawn from
        self.at_all = jax.jit(self._at_all)

    @functools.cached_property
    def trace(self) -> dict[str, Any]:
        """The program as it stands, its latents drawn from their laws."""
        with jax.numpy_rank_promotion("allow"):  # NumPyro's distributions broadcast freely
            program = handlers.seed(handlers.substitute(self.program, data=self.given), 0)
            return handlers.trace(program).get_trace(*self.args)

    def start(self) -> dict[str, Any]:
        """A θ: what the program starts its params with, and a draw of its continuous latents."""

        def is_free(site: dict[str, Any]) -> bool:
            latent = site["type"] == "sample" and not site["is_observed"] and not site["fn"].is_discrete
            return site["type"] == "param" or latent

        return {name: jnp.asarray(site["value"]) for name, site in self.trace.items() if is_free(site)}

    @functools.cached_property
    def latents(self) -> Latents:
        """Every assignment; it does not depend on θ."""
        sites = {
            name: site
            for name, site in self.trace.items()
            if site["type"] == "sample" and not site["is_observed"] and site["fn"].is_discrete
        }
        sizes = {name: int(site["fn"].enumerate_support(expand=False).shape[0]) for name, site in sites.items()}
        masked = {name: self.is_masked(site) for name, site in sites.items()}
        counted = {name: np.ones_like(mask) for name, mask in masked.items()}
        if any(mask.any() for mask in masked.values()):
            silent = self.silent(self.every(sizes, counted), sizes)
            counted = {name: ~(mask & silent[name]) for name, mask in masked.items()}
        return Latents(self.every(sizes, counted), sizes, counted)

    def every(self, sizes: dict[str, int], counted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The joint assignments of what counts, in lexicographic order; the rest at 0."""
        ranges = [range(sizes[name] if one else 1) for name in counted for one in counted[name].ravel()]
        every = np.array(list(itertools.product(*ranges)), dtype=int)
        assert len(every) <= 5000, len(every)
        assignments, start = {}, 0
        for name, one in counted.items():
            assignments[name] = every[:, start : start + one.size].reshape(-1, *one.shape)
            start += one.size
        return assignments

    def is_masked(self, site: dict[str, Any]) -> np.ndarray:
        """Where the law of a latent is masked."""
        shape, fn = np.shape(site["value"]), site["fn"]
        masked = isinstance(fn, dist.MaskedDistribution)
        return np.broadcast_to(~np.asarray(fn._mask, bool), shape) if masked else np.zeros(shape, bool)

    def silent(self, assignments: dict[str, np.ndarray], sizes: dict[str, int]) -> dict[str, np.ndarray]:
        """Where the density is the same for every value of a latent, whatever the others."""
        with jax.numpy_rank_promotion("allow"):
            total, _ = jax.device_get(self.at_all(self.start(), assignments))
        places = [name for name, values in assignments.items() for _ in values[0].ravel()]
        grid = np.asarray(total, float).reshape([sizes[name] for name in places])
        same = np.array([not np.ptp(np.nan_to_num(grid), axis=axis).any() for axis in range(grid.ndim)], bool)
        found, start = {}, 0
        for name, values in assignments.items():
            found[name] = same[start : start + values[0].size].reshape(values.shape[1:])
            start += values[0].size
        return found

    def _at_all(self, theta: dict[str, Any], assignments: dict[str, Any]) -> tuple[Any, Any]:
        """(log density, that of θ's own sites) at every assignment."""

        def at(values: dict[str, Any]) -> tuple[Any, Any]:
            total, trace = log_density(self.program, self.args, {}, theta | values)
            own = {name: trace[name] for name in theta if trace[name]["type"] == "sample"}
            return total, {name: log_prob(site) for name, site in own.items()}

        def log_prob(site: dict[str, Any]) -> Any:
            return (1 if site["scale"] is None else site["scale"]) * site["fn"].log_prob(site["value"])

        total, own = jax.vmap(at)(assignments)
        return total, {name: jnp.sum(value.reshape(len(total), -1), axis=1) for name, value in own.items()}

    def joint(self, theta: dict[str, Any]) -> Joint:
        """Every assignment, at one θ."""
        _ = self.latents  # outside of the compiled function
        with jax.numpy_rank_promotion("allow"):
            total, own = jax.device_get(self.at_all(theta, self.latents.assignments))
        prior = sum(float(value[0]) for value in own.values() if np.ptp(value) == 0)  # others are factors of the data
        return Joint(self.latents, prior, np.asarray(total, float) - prior)

    def log_density(self, theta: dict[str, Any]) -> float:
        """log p(x, θ), the latents summed out."""
        return self.joint(theta).free_energy(1.0)

    # ---- is it at a maximum?

    def outside(self, theta: dict[str, Any]) -> list[str]:
        """The entries of θ that do not satisfy their constraint: no coordinate leads back to them."""
        with jax.numpy_rank_promotion("allow"):
            there = {name: biject_to(constraint) for name, constraint in self.constraints(theta).items()}
            back = {name: bijection(bijection.inv(theta[name])) for name, bijection in there.items()}
        return [name for name in theta if not np.allclose(back[name], theta[name], rtol=1e-4, atol=1e-5)]

    def slopes(self, theta: dict[str, Any], step: float = 1e-5) -> dict[str, float]:
        """How steeply log p(x, θ) still rises, either way in one of NumPyro's unconstrained coordinates.

        0 at a maximum, at a kink too; a coordinate at its edge is left out.
        """
        found, here = {}, self.log_density(theta)
        for name, constraint in self.constraints(theta).items():
            with jax.numpy_rank_promotion("allow"):
                bijection = biject_to(constraint)
                u = np.asarray(bijection.inv(theta[name]))
                away = [u + sign * step * unit.reshape(u.shape) for unit in np.eye(u.size) for sign in (1, -1)
                        if abs(u.ravel()[unit.argmax()]) < 30]  # fmt: skip
                beside = [bijection(jnp.asarray(moved)) for moved in away]
            rises = [self.log_density(theta | {name: value}) - here for value in beside]
            found[name] = max([0.0, *rises]) / step
        return found

    def constraints(self, theta: dict[str, Any]) -> dict[str, Any]:
        """Where each entry of θ may lie."""

        def of(site: dict[str, Any]) -> Any:
            return (
                site["fn"].support if site["type"] == "sample" else site["kwargs"].get("constraint", constraints.real)
            )

        return {name: of(self.trace[name]) for name in theta}
