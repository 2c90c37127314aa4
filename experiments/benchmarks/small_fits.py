"""2,048 small fits at once: `jaxem.em_batch` against a loop of scikit-learn's GaussianMixture.

    python experiments/benchmarks/small_fits.py [--full] [--seed S] [--out DIR] [--quick] [--devices 1|all]

64 values of σ times 32 starts, N = 1,000, D = 2, K = 3, float64, tol 1e-8, same data and starts, one process. Both
stop at a gain of tol nats per row: scikit-learn compares tol with the change of the *mean* log-likelihood, jaxem with
gain / W. scikit-learn runs with reg_covar = 0 and all of its starting values given, so it has no k-means to pay for.

Every device takes a share of the lanes.

1. The sources' model, π and σ held, against the nearest that scikit-learn has, which fits π and σ_k as well.
2. Like for like: `gaussian.spherical`, everything free, the same model, starts and tolerance in both.

scikit-learn's loop takes minutes: a random subset, two starts at each σ, is timed and scaled up, unless --full.
"""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem.families import gaussian

from _timing import Timing, finish, goal, measure, parser, start_jax

K, TOL, MAX_STEPS = 3, 1e-8, 100_000


def data(key: jax.Array, num_points: int) -> jax.Array:
    """Three unit Gaussians of equal weight in the plane, centres on a circle of radius 1.5."""
    angle = 2 * jnp.pi * jnp.arange(K) / K
    mu = 1.5 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    theta = {"pi": jnp.full(K, 1 / K), "mu": mu, "sigma": jnp.ones(())}
    return jaxem.sample(gaussian.isotropic, theta, key, num_points)[0]


def starts(key: jax.Array, x: jax.Array, num_sigmas: int, num_starts: int) -> dict[str, jax.Array]:
    """Every σ with every start, σ-major: lane = (index of σ)·num_starts + index of start."""
    keys = jax.random.split(key, num_starts)
    mu = jax.vmap(lambda key: jaxem.inits.random_points(gaussian.isotropic, key, x, K)["mu"])(keys)
    lanes = num_sigmas * num_starts
    sigma = jnp.repeat(jnp.geomspace(3.0, 0.3, num_sigmas), num_starts)
    return {"pi": jnp.full((lanes, K), 1 / K), "mu": jnp.tile(mu, (num_sigmas, 1, 1)), "sigma": sigma}


def scikit_learn(x: np.ndarray, thetas: dict[str, np.ndarray], lanes: np.ndarray) -> Callable[[], Any]:
    """A loop of fits from these lanes' starts; returns iterations and Σ log p of each."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    def loop() -> list[GaussianMixture]:
        return [
            GaussianMixture(
                K,
                covariance_type="spherical",
                tol=TOL,
                reg_covar=0.0,
                max_iter=MAX_STEPS,
                weights_init=thetas["pi"][lane],
                means_init=thetas["mu"][lane],
                precisions_init=np.broadcast_to(thetas["sigma"][lane], K) ** -2.0,
            ).fit(x)
            for lane in lanes
        ]

    warnings.simplefilter("ignore", ConvergenceWarning)
    return loop


def jaxem_row(program: str, timing: Timing, lanes: np.ndarray) -> dict[str, Any]:
    fits = timing.value
    failed = int(jnp.sum(fits.status != jaxem.Status.CONVERGED))
    return timing.as_row() | {
        "program": program,
        "iterations": float(jnp.mean(fits.num_steps)),
        "objective": float(jnp.mean(fits.free_energy)),
        "objective_on_subset": float(jnp.mean(fits.free_energy[lanes])),
        "iterations_on_subset": float(jnp.mean(fits.num_steps[lanes])),
        "note": f"means over {len(fits.status):,} fits, longest {int(jnp.max(fits.num_steps))}, "
        f"{failed} not converged; on the lanes that scikit-learn ran: {float(jnp.mean(fits.num_steps[lanes])):.1f} "
        f"iterations, objective {float(jnp.mean(fits.free_energy[lanes])):.9g}",
    }


def compare(
    x: jax.Array, thetas: dict[str, jax.Array], lanes: np.ndarray, repeats: int, devices: int
) -> list[dict[str, Any]]:
    total = len(thetas["sigma"])
    loop = scikit_learn(np.asarray(x), jax.tree.map(np.asarray, thetas), lanes)
    peer = measure(loop, repeats=1, warm_up=False)
    scale = total / len(lanes)
    share = "all fits timed" if scale == 1 else f"{len(lanes)} random fits, 2 at each σ, timed: seconds × {scale:g}"
    peer_row = peer.as_row(scale) | {
        "program": "scikit-learn GaussianMixture, loop",
        "iterations": float(np.mean([fit.n_iter_ for fit in peer.value])),
        "objective": float(np.mean([fit.score(np.asarray(x)) * len(x) for fit in peer.value])),
        "note": f"fits π, μ, σ_k; {share}; {sum(not fit.converged_ for fit in peer.value)} not converged",
    }
    setting = {"N": len(x), "D": x.shape[1], "K": K, "precision": 64, "devices": devices}
    setting["start"] = "random rows, same in both, σ swept"
    unit = f"seconds for {total:,} fits; tol {TOL:g} nats per row; objective: mean Σ log p"

    def comparison(name: str, statement: str, m: jaxem.Mixture, start: dict, least: float, label: str) -> dict:
        timing = measure(lambda: jaxem.em_batch(m, start, x, tol=TOL, max_steps=MAX_STEPS), repeats=repeats)
        ours = jaxem_row(label, timing, lanes)
        ratio = peer_row["median"] / ours["median"]
        per_iteration = ratio * ours["iterations"] / peer_row["iterations"]
        return {
            "name": name,
            "statement": f"{statement}; {unit}",
            "setting": setting,
            "rows": [ours, peer_row],
            "remarks": [
                f"Iterations a fit: jaxem {ours['iterations']:.4g}, scikit-learn {peer_row['iterations']:.4g}; "
                f"scikit-learn / jaxem per iteration {per_iteration:.3g}."
            ],
            "goals": [goal("scikit-learn / jaxem", ratio, least, at_least=True)],
        }

    held = gaussian.isotropic.hold("pi", "sigma")
    free = thetas | {"sigma": jnp.tile(thetas["sigma"][:, None], (1, K))}
    return [
        comparison(
            "small fits, isotropic, π and σ held",
            "scikit-learn cannot hold π and σ: it fits more and iterates more",
            held, thetas, 200, "jaxem.em_batch isotropic, held",
        ),
        comparison(
            "small fits, spherical, all free",
            "the same model, starts and tolerance in both",
            gaussian.spherical, free, 25, "jaxem.em_batch spherical",
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    options = parser("small_fits", __doc__, devices=True)
    options.add_argument("--full", action="store_true", help="time all of scikit-learn's fits (minutes)")
    options = options.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    devices = start_jax(options)
    num_points, num_sigmas, num_starts = (100, 4, 2) if options.quick else (1_000, 64, 32)
    draw, start = jax.random.split(jax.random.key(options.seed))
    x = data(draw, num_points)
    thetas = starts(start, x, num_sigmas, num_starts)
    rng = np.random.default_rng(options.seed)
    some = [rng.choice(num_starts, 2, replace=False) + i * num_starts for i in range(num_sigmas)]
    lanes = np.arange(num_sigmas * num_starts) if options.full else np.concatenate(some)
    return finish("small_fits", compare(x, thetas, lanes, 1 if options.quick else 5, devices), options)


if __name__ == "__main__":
    sys.exit(main())
