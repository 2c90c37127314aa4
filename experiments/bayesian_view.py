"""One program, two views of its posterior: MAP with Laplace's errors by jaxem, draws by NumPyro's NUTS.

    python experiments/bayesian_view.py [--seed S] [--out DIR] [--quick] [--no-plot]

Old Faithful, standardised: two Gaussians with diagonal covariances, and priors on the weight p, the means μ and the
standard deviations σ. `jaxem.from_numpyro` makes EM climb log p(x, θ); NUTS samples p(θ | x). Both sum z out.

Everything is in the program's own coordinates θ = (p, μ, σ), where F has no Jacobian, so θ̂ is the mode of the density
whose marginals are drawn. With H = −∇² log p(x, θ̂) Laplace's errors are SE_i = √(H⁻¹)_ii, and the next term of the
expansion in 1/N moves the posterior mean off the mode by

    δ = −½ H⁻¹ ∇ log det H,   |δ_i| = O(1/N)   against   SE_i = O(1/√N)

ε = max |δ_i|/SE_i is the size of one order of that expansion. So, up to the Monte Carlo error (4 standard errors, from
the effective sample size), mean and θ̂ + δ may differ by ε² SE, and the standard deviation and SE by ε SE.

Writes DIR/bayesian_view.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.funsor import config_enumerate, enum, log_density
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, init_to_value

import jaxem
from jaxem.limits import ROUNDING

from _command import Config, Result, command, leave
from _data import load
from _results import Claim

SIGMAS = 4  # of Monte Carlo error that a mean may be off
MAX_STEPS = 2_000


class Sampling(NamedTuple):
    chains: int = 4
    warmup: int = 500
    samples: int = 2_000
    r_hat: float = 1.01  # Vehtari et al. 2021
    effective: float = 400.0


QUICK = Sampling(2, 150, 200, 1.1, 50.0)


def program(x: jax.Array) -> None:
    """Weak priors on the scale of standardised data."""
    p = numpyro.sample("p", dist.Beta(2.0, 2.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0).expand([2, 2]).to_event(2))
    sigma = numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2, 2]).to_event(2))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(p))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]).to_event(1), obs=x)


class Laplace(NamedTuple):
    """NumPyro's log density at θ̂, its derivatives, and the shift of the mean."""

    value: jax.Array
    gradient: jax.Array
    precision: jax.Array  # H
    shift: jax.Array  # δ


def laplace(x: jax.Array, theta: dict[str, jax.Array]) -> Laplace:
    """By `jax.grad` of `log_density`, thrice."""
    flat, unravel = ravel_pytree(theta)
    model = handlers.seed(enum(config_enumerate(program), first_available_dim=-2), jax.random.key(0))

    def density(flat: jax.Array) -> jax.Array:
        return log_density(model, (x,), {}, unravel(flat))[0]

    def volume(flat: jax.Array) -> tuple[jax.Array, jax.Array]:
        H = -jax.hessian(density)(flat)
        return jnp.linalg.slogdet(H)[1], H

    @jax.jit
    def at(flat: jax.Array) -> Laplace:
        slope, H = jax.grad(volume, has_aux=True)(flat)
        return Laplace(density(flat), jax.grad(density)(flat), H, -jnp.linalg.solve(H, slope) / 2)

    return at(flat)


def draws(x: jax.Array, theta: dict[str, jax.Array], seed: int, sampling: Sampling) -> tuple[np.ndarray, int]:
    """NUTS from θ̂, so that the labels are EM's: (chains, samples, parameters), and how many diverged."""
    mcmc = MCMC(
        NUTS(config_enumerate(program), init_strategy=init_to_value(values=theta)),
        num_warmup=sampling.warmup,
        num_samples=sampling.samples,
        num_chains=sampling.chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(seed), x, extra_fields=("diverging",))
    found = mcmc.get_samples(group_by_chain=True)
    leaves = [np.asarray(found[name]).reshape(sampling.chains, sampling.samples, -1) for name in sorted(theta)]
    return np.concatenate(leaves, axis=-1), int(np.sum(mcmc.get_extra_fields()["diverging"]))


def names_of(theta: dict[str, jax.Array]) -> list[str]:
    """A name for each entry of θ as `ravel_pytree` lays it out: by name, rows first."""
    names = []
    for name in sorted(theta):
        shape = np.shape(theta[name])
        names += [" ".join([name, *map(str, index)]) for index in np.ndindex(shape)]
    return names


def run(config: Config) -> Result:
    """The MAP, its Laplace approximation, and NUTS."""
    sampling = QUICK if config.quick else Sampling()
    data = load("old_faithful")
    x = jnp.asarray(data.x)
    m = jaxem.from_numpyro(program)
    start = {"p": 0.5, "mu": jnp.array([[-1.0, -1.0], [1.0, 1.0]]), "sigma": jnp.ones((2, 2))}
    fit = jaxem.em(m, start, x, tol=0.0, max_steps=MAX_STEPS)
    at = jax.tree.map(np.asarray, laplace(x, fit.theta))
    samples, diverged = draws(x, fit.theta, config.seed, sampling)
    flat = samples.reshape(-1, samples.shape[-1])
    names, mode = names_of(fit.theta), np.asarray(ravel_pytree(fit.theta)[0])
    error = np.sqrt(np.diag(np.linalg.inv(at.precision)))
    effective = effective_sample_size(samples)
    rows = [
        dict(zip(("name", "mode", "SE", "shift", "mean", "sd", "n_eff", "r_hat"), row, strict=True))
        for row in zip(
            names, mode, error, at.shift, flat.mean(0), flat.std(0), effective, split_gelman_rubin(samples), strict=True
        )
    ]
    left = names.index("mu 0 0"), names.index("mu 1 0")
    summary = {
        "rows": rows,
        "updates": m.explain(fit.theta, x),
        "columns": data.columns,
        "centre": data.centre,
        "scale": data.scale,
        "free_energy": float(fit.free_energy),
        "log_density": float(at.value),
        "decrement": float(at.gradient @ np.linalg.solve(at.precision, at.gradient) / 2),
        "least_curvature": float(np.linalg.eigvalsh(at.precision).min()),
        "status": jaxem.Status(int(fit.status)).name,
        "steps": int(fit.num_steps),
        "draws": len(flat),
        "diverged": diverged,
        "switched": int(np.sum(flat[:, left[0]] >= flat[:, left[1]])),
    }
    return Result(summary, claims(summary, sampling), {"samples": samples, "precision": at.precision})


def claims(summary: dict[str, Any], sampling: Sampling) -> list[Claim]:
    """The verdicts; a claim on every parameter is reported at the one nearest to its bound."""
    names = ("mode", "SE", "shift", "mean", "sd", "n_eff", "r_hat")
    mode, error, shift, mean, sd, effective, r_hat = (np.array([row[n] for row in summary["rows"]]) for n in names)
    order = float(np.max(np.abs(shift) / error))  # ε
    monte_carlo = SIGMAS * sd / np.sqrt(effective) / error
    rounding = ROUNDING * float(np.finfo(float).eps) * (1 + abs(summary["free_energy"]))

    def worst(name: str, statement: str, values: np.ndarray, bounds: np.ndarray) -> Claim:
        at = int(np.argmax(values / bounds))
        return Claim(name, statement, float(values[at]), float(bounds[at]))

    return [
        Claim(
            "F",
            "|F − log p(x, θ̂)|, NumPyro's own enumerated log_density",
            abs(summary["free_energy"] - summary["log_density"]),
            rounding,
        ),
        Claim("MAP", "∇ log p(x, θ̂) = 0: ½ ∇ᵀH⁻¹∇ (nats below the maximum)", summary["decrement"], rounding),
        Claim("max", "θ̂ is a maximum: −λ_min(H)", -summary["least_curvature"], 0.0),
        worst("r_hat", "NUTS has mixed: r_hat", r_hat, np.full_like(r_hat, sampling.r_hat)),
        worst("n_eff", f"{sampling.effective:g} / effective sample size", sampling.effective / effective, 1 + 0 * sd),
        Claim("NUTS", "divergent transitions", float(summary["diverged"]), 0.0),
        Claim("labels", "draws in which the components changed places", float(summary["switched"]), 0.0),
        worst("mode", "|mean − θ̂| / SE: O(1/N) against O(1/√N)", np.abs(mean - mode) / error, 1 + 0 * sd),
        worst(
            "mean",
            f"|mean − θ̂ − δ| / SE ≤ ε² + {SIGMAS} Monte Carlo errors, ε = {order:.3f}",
            np.abs(mean - mode - shift) / error,
            order**2 + monte_carlo,
        ),
        worst(
            "SE",
            f"|sd/SE − 1| ≤ ε + {SIGMAS} Monte Carlo errors",
            np.abs(sd / error - 1),
            order + SIGMAS * sd / error / np.sqrt(2 * effective),
        ),
    ]


def report(summary: dict[str, Any]) -> None:
    """A row per parameter."""
    print(f"\nMAP in {summary['steps']} steps of EM, log p(x, θ̂) = {summary['log_density']:.6f}; ", end="")
    print(f"{summary['draws']} draws by NUTS")
    for name, update in summary["updates"].items():
        print(f"  {name}: {update}")
    print(f"{'':10}{'MAP':>10}{'mean':>10}{'(mean−MAP)/SE':>15}{'δ/SE':>8}{'SE':>9}{'sd':>9}{'n_eff':>8}{'r_hat':>8}")
    for row in summary["rows"]:
        apart, shift = (row["mean"] - row["mode"]) / row["SE"], row["shift"] / row["SE"]
        print(f"{row['name']:10}{row['mode']:>10.4f}{row['mean']:>10.4f}{apart:>15.3f}{shift:>8.3f}", end="")
        print(f"{row['SE']:>9.4f}{row['sd']:>9.4f}{row['n_eff']:>8.0f}{row['r_hat']:>8.4f}")
    print()


def main(arguments: list[str] | None = None) -> int:
    return command("bayesian_view", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
