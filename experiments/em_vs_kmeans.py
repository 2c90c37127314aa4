"""EM for full covariances against k-means from the same start: the same answer, at different speeds, and why.

    python experiments/em_vs_kmeans.py [--seed S] [--out DIR] [--quick] [--no-plot]

The slides' example: Old Faithful, standardised, K = 2, "much slower convergence compared to K-means clustering".
Both start from the slides' two centres; EM with unit covariances and equal weights. EM is a map θ⁺ = M(θ), and near
its fixed point θ* the error is multiplied by the Jacobian of M, the fraction of missing information (C12),

    θ_{t+1} − θ* = (I − I_c⁻¹ I_obs)(θ_t − θ*) + …,   ‖θ_t − θ*‖ ~ ρ^t,   L(θ*) − L(θ_t) ~ ρ^{2t}

with ρ its spectral radius, in unconstrained coordinates. k-means' map is locally constant: assignments do not change
with small changes of the centres, so ρ = 0, and the error is exactly 0 after finitely many steps. From random starts
the two are compared as well.

Writes DIR/em_vs_kmeans.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import jaxem
from jaxem.families import gaussian
from jaxem.limits import ROUNDING

from _command import Config, Result, command, leave
from _data import load
from _results import Claim

EM = gaussian.full
KMEANS = gaussian.isotropic.hold("pi", "sigma")
CENTRES = np.array([[-1.5, 1.0], [1.5, -1.0]])  # the slides' start, read off their figure
SHOWN = (1, 2, 5, 20)  # the slides' L
NUM_STEPS = 200  # length of the traced paths; both are at rest well before
TAIL = (1e-8, 1e-4)  # errors between these are small enough to be linear, and large against rounding
GAP_TAIL = (1e-10, 1e-5)  # the same for L* − L, in nats
AGREE = 1e-3  # a slope measured on the tail is the spectral radius within this


def start(mu: jax.Array) -> dict[str, jax.Array]:
    """Equal weights, unit covariances (the data's own scale) around these centres."""
    num_components, num_features = mu.shape
    identity = jnp.broadcast_to(jnp.eye(num_features), (num_components, num_features, num_features))
    return {"pi": jnp.full(num_components, 1 / num_components), "mu": mu, "Sigma": identity}


def hard_start(mu: jax.Array) -> dict[str, jax.Array]:
    """k-means' θ."""
    return {"pi": jnp.full(len(mu), 1 / len(mu)), "mu": mu, "sigma": jnp.ones(())}


def with_start(path: jaxem.Path, theta: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """θ_0, θ_1, … along a leading axis."""
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), theta, path.theta)


def errors(m: jaxem.Mixture, thetas: dict[str, jax.Array]) -> np.ndarray:
    """‖θ_t − θ*‖ in unconstrained coordinates, θ* the last."""

    def coordinates(theta: dict[str, jax.Array]) -> jax.Array:
        return ravel_pytree(m.coordinates(theta).unconstrain(theta))[0]

    u = jax.jit(jax.vmap(coordinates))(thetas)
    return np.asarray(jnp.linalg.norm(u - u[-1:], axis=1))


def slope(values: np.ndarray, low: float, high: float) -> tuple[float, int, int]:
    """The factor per step, by least squares on log values between `low` and `high`; its first and last step."""
    inside = np.flatnonzero((values < high) & (values > low))
    if len(inside) < 3:
        return float("nan"), 0, 0
    rate = np.polyfit(inside, np.log(values[inside]), 1)[0]
    return float(np.exp(rate)), int(inside[0]), int(inside[-1])


def run(config: Config) -> Result:
    """Both from the slides' start, then from random ones."""
    data = load("old_faithful")
    x, mu = jnp.asarray(data.x), jnp.asarray(CENTRES)
    soft_path = jaxem.em_path(EM, start(mu), x, num_steps=NUM_STEPS)
    hard_path = jaxem.em_path(KMEANS, hard_start(mu), x, num_steps=NUM_STEPS, temperature=0.0)
    soft, hard = with_start(soft_path, start(mu)), with_start(hard_path, hard_start(mu))
    soft_end, hard_end = (jax.tree.map(lambda leaf: leaf[-1], thetas) for thetas in (soft, hard))
    soft_rate = jaxem.convergence_rate(EM, soft_end, x)
    hard_rate = jaxem.convergence_rate(KMEANS, hard_end, x, temperature=0.0)
    soft_error, hard_error = errors(EM, soft), errors(KMEANS, hard)
    likelihood = np.append(soft_path.after_e, jaxem.log_likelihood(EM, soft_end, x))
    distortions = np.asarray(jax.jit(jax.vmap(lambda mu: jaxem.distortion(x, mu)))(hard["mu"]))
    gamma = jax.vmap(lambda theta: jaxem.responsibilities(EM, theta, x))(
        jax.tree.map(lambda leaf: leaf[np.array((0, *SHOWN))], soft)
    )
    rate, first, last = slope(soft_error, *TAIL)
    gap_rate, *_ = slope(likelihood[-1] - likelihood[:-1], *GAP_TAIL)
    walks = many_starts(x, mu, config)
    summary = {
        "columns": data.columns,
        "centre": data.centre,
        "scale": data.scale,
        "shown": SHOWN,
        "spectral_radius": float(soft_rate.spectral_radius),
        "spectral_radius_kmeans": float(hard_rate.spectral_radius),
        "measured_rate": rate,
        "measured_rate_of_L": gap_rate,
        "tail": [first, last],
        "em_steps": int(walks["em_steps"][0]),
        "kmeans_steps": int(walks["kmeans_steps"][0]),
        "log_likelihood": float(likelihood[-1]),
        "distortion": float(distortions[-1]),
        "agreement": float(np.mean(np.asarray(gamma[-1]).argmax(axis=1) == hard_labels(x, hard_end["mu"]))),
    }
    arrays = {
        "x": x,
        "gamma": gamma,
        "soft_error": soft_error,
        "hard_error": hard_error,
        "likelihood": likelihood,
        "distortion": distortions,
        "labels": hard_labels(x, hard_end["mu"]),
        "kmeans_mu": hard["mu"],
        **{name: leaf[np.array((0, *SHOWN))] for name, leaf in soft.items()},
        **walks,
    }
    arrays = jax.tree.map(np.asarray, arrays)
    return Result(summary, claims(summary, arrays, soft_path, soft_rate), arrays)


def hard_labels(x: jax.Array, mu: jax.Array) -> np.ndarray:
    """The nearest centre."""
    return np.asarray(jaxem.responsibilities(KMEANS, hard_start(mu), x, temperature=0.0)).argmax(axis=1)


def many_starts(x: jax.Array, mu: jax.Array, config: Config) -> dict[str, jax.Array]:
    """Steps of both from the slides' start (lane 0), then from random rows as centres."""
    keys = jax.random.split(jax.random.key(config.seed), 5 if config.quick else 50)
    random = jax.jit(jax.vmap(lambda key: jaxem.inits.random_points(KMEANS, key, x, 2)["mu"]))(keys)
    starts = jnp.concatenate([mu[None], random])
    fits = jaxem.em_batch(EM, jax.vmap(start)(starts), x)
    lloyd = jax.jit(lambda starts: jax.lax.map(lambda mu: jaxem.kmeans(x, mu), starts))(starts)
    return {"em_steps": fits.num_steps, "em_status": fits.status, "kmeans_steps": lloyd.num_steps}


def claims(summary: dict[str, Any], arrays: dict[str, Any], path: jaxem.Path, rate: jaxem.Rate) -> list[Claim]:
    """The verdicts."""
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    rho = summary["spectral_radius"]
    tail = f"steps {summary['tail'][0]}–{summary['tail'][1]}"
    ratio = arrays["kmeans_steps"] / arrays["em_steps"]
    mismatch = float(jnp.max(jnp.abs(rate.jacobian - rate.missing_information)))
    eps = ROUNDING * float(np.finfo(trace.dtype).eps)
    unfinished = int(np.sum(arrays["em_status"] != jaxem.Status.CONVERGED))
    fewer = 1 - float(np.finfo(float).eps)  # the largest number below 1: strictly fewer steps
    return [
        Claim("C2", "EM: L never falls, at either half-step (nats)", fall(trace), eps * float(np.abs(trace).max())),
        Claim("J", "k-means: J never rises", fall(-arrays["distortion"]), eps * float(arrays["distortion"][0])),
        Claim("C12", "∂M/∂θ = I − I_c⁻¹ I_obs at the fit, by jax.jacfwd and jax.hessian", mismatch, 1e-8),
        Claim("rate", f"|measured rate − ρ|, ρ = {rho:.6f}, {tail}", abs(summary["measured_rate"] - rho), AGREE),
        Claim("rateL", "|measured rate of L* − L, − ρ²|", abs(summary["measured_rate_of_L"] - rho**2), AGREE),
        Claim("rest", "EM's traced path is at rest: its last move", float(arrays["soft_error"][-2]), 1e-12),
        Claim("ρ = 0", "k-means: the spectral radius of its map", summary["spectral_radius_kmeans"], eps),
        Claim(
            "finite",
            f"k-means: its error after {summary['kmeans_steps']} steps",
            float(np.max(arrays["hard_error"][summary["kmeans_steps"] :])),
            0.0,
        ),
        Claim("fewer", "k-means' steps / EM's, the slides' start", float(ratio[0]), fewer),
        Claim("random", f"the same, the worst of {len(ratio) - 1} random starts", float(ratio[1:].max()), fewer),
        Claim("end", "starts from which EM did not converge", unfinished, 0),
    ]


def fall(trace: np.ndarray) -> float:
    """The largest fall from one entry to the next."""
    return float(np.max(np.asarray(trace)[:-1] - np.asarray(trace)[1:]))


def report(summary: dict[str, Any]) -> None:
    print(f"\nfrom the same start: EM {summary['em_steps']} steps, k-means {summary['kmeans_steps']}; ", end="")
    print(f"{summary['agreement']:.1%} of the points end in the same cluster")
    first, last = summary["tail"]
    print(f"EM's error shrinks by {summary['measured_rate']:.6f} a step (steps {first}–{last}); ", end="")
    print(f"spectral radius {summary['spectral_radius']:.6f}, k-means' {summary['spectral_radius_kmeans']:g}\n")


def main(arguments: list[str] | None = None) -> int:
    return command("em_vs_kmeans", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
