"""What is claimed of EM's steps at one σ, measured: C1–C15, at the best fit and at a random start."""

from typing import Any, NamedTuple

import _sigma_limits
import jax
import jax.numpy as jnp
import numpy as np

from jaxem import Status, best, certify, convergence_rate, distortion, em_batch, em_path, limits, responsibilities
from jaxem.families import gaussian
from jaxem.families.gaussian import squared_distances

M = gaussian.isotropic.hold("pi", "sigma")  # only the centres move: the sources' setting
TEMPERATURE = 0.37  # for C14: any T other than 0 and 1
LLOYD_STEPS = 64  # the length of the paths compared in C11 and C15; Lloyd stops well before
MAX_STEPS = 5_000  # EM slows down near σ_c
DISTINCT = 1e-3  # centroids nearer than this, in standard deviations of the data, count as one


@jax.jit
def fit_restarts(x: jax.Array, starts: jax.Array, sigma: jax.Array):
    """EM from every start at one σ; tol = 0 stops at the floor of rounding."""
    thetas = jax.vmap(lambda mu: limits.parameters(mu, sigma))(starts)
    fits = em_batch(M, thetas, x, tol=0.0, max_steps=MAX_STEPS)
    return fits, best(fits)


def count_distinct(mu: jax.Array, x: jax.Array) -> jax.Array:
    """Centroids further than DISTINCT standard deviations from every earlier one."""
    unit = jnp.sqrt(jnp.mean(jnp.var(x, axis=0)))
    distance = jnp.sqrt(jnp.sum((mu[:, None] - mu[None]) ** 2, axis=-1))
    return jnp.sum(~jnp.any(jnp.tril(distance < DISTINCT * unit, k=-1), axis=1))


class Place(NamedTuple):
    """Where the claims at one σ are made."""

    fitted: jax.Array  # the centres of the best fit
    start: jax.Array  # a random start, where a statement is for any θ (C1, C3–C6, C15)
    centres: jax.Array  # of k-means
    sigma: jax.Array
    diam: jax.Array  # diam(X)


def certifiers(x: jax.Array) -> list[Any]:
    """All that is claimed at one σ, part by part, each (x, Place) -> dict: to be compiled side by side.

    With few optimisations, as a part takes far longer to compile than to run. Not so in float32, where a table that is
    computed twice may then differ from itself.
    """
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    quickly |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    options = quickly if x.dtype == jnp.float64 else None
    return [jax.jit(part, compiler_options=options) for part in (of_certificates, of_limits, of_rate, of_shadow)]


def of_certificates(x: jax.Array, at: Place) -> dict[str, Any]:
    """C1–C6, at the fit and at the start."""
    thetas = [limits.parameters(mu, at.sigma) for mu in (at.fitted, at.start)]
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), *thetas)
    return {"certificates": jax.lax.map(lambda theta: certify(M, theta, x), both)._asdict()}


def of_rate(x: jax.Array, at: Place) -> dict[str, Any]:
    """C12 and C21: how fast EM is at the fit."""
    theta = limits.parameters(at.fitted, at.sigma)
    rate = convergence_rate(M, theta, x)
    return {
        "spectral_radius": rate.spectral_radius,
        "C12": missing_information_check(x, theta, rate),
        **_sigma_limits.of_rate(x, theta, rate.spectral_radius),
    }


def of_shadow(x: jax.Array, at: Place) -> dict[str, Any]:
    """C17: near k-means' centres."""
    return _sigma_limits.of_shadow(x, at.centres, at.sigma)


def of_limits(x: jax.Array, at: Place) -> dict[str, Any]:
    """C7–C10 and C13–C15: one step, and how far it is from that of k-means."""
    fitted, sigma = at.fitted, at.sigma
    at_fit = limits.parameters(fitted, sigma)
    spectrum, _ = limits.coincident_spectrum(x, at_fit["pi"], sigma)
    soft, hard = responsibilities(M, at_fit, x), responsibilities(M, at_fit, x, temperature=0.0)
    least = jnp.min(limits.gaps(squared_distances(x, fitted)))
    q = limits.scaled_expectation(x, fitted, sigma)
    return {
        "J": distortion(x, fitted),
        "distinct": count_distinct(fitted, x),
        "gamma_gap": jnp.max(jnp.abs(soft - hard)),
        "gamma_gap_bound": (len(fitted) - 1) * jnp.exp(-least / (2 * sigma**2)),
        "C7": limits.assignment_gap(x, fitted, sigma),
        "objective_gap": limits.objective_gap(x, fitted, sigma),
        "C8": limits.objective_bound(x, fitted, sigma),
        "Q": q.Q,
        "scaled_residual": q.residual,
        "C9": q.check,
        "C10": limits.centre_gap(x, fitted, sigma, at.diam),
        "coincident_eigenvalue": spectrum[-1],
        "C13": limits.coincident_bound(x, at_fit["pi"], sigma),
        "C14": limits.temperature_is_variance(x, fitted, sigma, TEMPERATURE),
        "C15": limits.hard_em_is_kmeans(x, at.start, sigma, num_steps=LLOYD_STEPS),
    }


def missing_information_check(x: jax.Array, theta: dict, rate) -> limits.Bound:
    """C12 at a fit that stopped `step` short of its fixed point.

    Off the fixed point the two sides differ by exactly step_k · ∂(log N_k)/∂μ, because Q is quadratic in μ; that
    is the bound. The information matrices' terms are of size spread²/σ² in the units of their result.
    """

    def means(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        at = theta | {"mu": flat.reshape(theta["mu"].shape)}
        statistics = M.statistics(at, x, jax.nn.softmax(M.table(at, x), axis=0))
        return jnp.log(statistics.N_k), M.update(statistics, at, M.held)["mu"]

    flat = theta["mu"].ravel()
    step = jnp.max(jnp.abs(means(flat)[1].ravel() - flat))
    slope = jnp.max(jnp.abs(jax.jacfwd(lambda flat: means(flat)[0])(flat)))
    spread = jnp.max(jnp.sum((x - jnp.mean(x, axis=0)[None]) ** 2, axis=1))
    rounding = limits.ROUNDING * jnp.finfo(x.dtype).eps * (1 + spread / theta["sigma"] ** 2)
    return limits.Bound(jnp.max(jnp.abs(rate.jacobian - rate.missing_information)), step * slope + rounding)


def monotone_check(x: jax.Array, starts: jax.Array, sigma: jax.Array) -> limits.Bound:
    """C2 along whole paths, at σ_c / 2 and from every start: the largest fall of F in any half-step."""

    def fall(mu: jax.Array) -> limits.Bound:
        path = em_path(M, limits.parameters(mu, sigma / 2), x, num_steps=LLOYD_STEPS)
        trace = jnp.stack([path.after_e, path.after_m], axis=1).ravel()
        allowance = limits.ROUNDING * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(trace))
        return limits.Bound(jnp.max(trace[:-1] - trace[1:]), allowance)

    return jax.tree.map(jnp.max, jax.lax.map(fall, starts))


def along_paths(
    x: jax.Array, starts: jax.Array, last: jax.Array, critical: jax.Array, diam: jax.Array
) -> tuple[limits.Bound, limits.Bound, limits.Bound]:
    """From every start: C11's iterates at the last σ, C13's one point above diam(X), and C2 along whole paths."""
    wide = jnp.asarray(1.05, x.dtype) * diam
    iterates = jax.lax.map(lambda mu: limits.iterates_gap(x, mu, last, num_steps=LLOYD_STEPS), starts)
    coincidence = jax.lax.map(lambda mu: limits.coincidence(x, mu, wide), starts)
    return iterates, coincidence, monotone_check(x, starts, critical)


def as_row(sigma: jax.Array, fits: Any, fit: Any, measured: dict[str, Any]) -> dict[str, Any]:
    """One σ as plain numbers."""
    certificates = measured.pop("certificates")
    row: dict[str, Any] = {
        "sigma": float(sigma),
        "free_energy": float(fit.free_energy),
        "status": Status(int(fit.status)).name,
        "unconverged": int(np.sum(np.asarray(fits.status) != Status.CONVERGED)),
        "iterations": int(fit.num_steps),
        "iterations_all": np.asarray(fits.num_steps).tolist(),
    }
    for name, value in measured.items():
        if isinstance(value, limits.Bound):
            row |= {name: float(value.value), f"{name}_bound": float(value.bound)}
        else:
            row[name] = value.item()
    for name, (at_fit, at_start) in certificates.items():
        row |= {name: at_fit.item(), f"{name}_start": at_start.item()}
    return row
