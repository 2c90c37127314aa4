"""K-means in half-steps: neither ever raises J, on Old Faithful, K = 2, from opposite corners.

    python experiments/kmeans_steps.py [--seed S] [--out DIR] [--quick] [--no-plot]

With r the nearest centre of each row and J = Σ_n ‖x_n − μ_{r_n}‖², Lloyd's algorithm alternates

    E-step:  r_n = argmin_k ‖x_n − μ_k‖²                 lowers J over r with μ fixed
    M-step:  μ_k = mean of the rows with r_n = k         lowers J over μ with r fixed

so J falls until neither moves (Bishop 2006, figures 9.1 and 9.2). It is coordinate ascent on F_T at T = 0: with
π = 1/K and σ = 1 held, F_0 = C − J/2, C = −N log K − (ND/2) log 2π. `jaxem.em_path` at T = 0 gives both half-steps;
here J is recomputed from x, r and μ by the formula above, and must agree. scikit-learn's KMeans, from the same
start, must end at the same centres. The same is asked of random starts (--seed).

Writes DIR/kmeans_steps.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _data import load
from _results import Claim

M = gaussian.isotropic.hold("pi", "sigma")
CORNERS = ((-1.5, 1.0), (1.5, -1.0))  # standard deviations: the corners that the data do not visit
NUM_STEPS = 20  # Lloyd rests well before; the claim is about the steps to rest
FEW = 10  # iterations, for "converges in few" from the corners


def half_steps(x: jax.Array, mu: jax.Array) -> dict[str, jax.Array]:
    """NUM_STEPS of Lloyd: μ_0 … μ_T, the assignments at each, and J after each half-step by its definition."""
    path = jaxem.em_path(M, limits.parameters(mu, 1.0), x, num_steps=NUM_STEPS, temperature=0.0)
    centres = jnp.concatenate([mu[None], path.theta["mu"]])  # (T + 1, K, D)

    def r_of(mu: jax.Array) -> jax.Array:
        return jaxem.responsibilities(M, limits.parameters(mu, 1.0), x, temperature=0.0)

    r = jax.vmap(r_of)(centres)  # (T + 1, N, K)

    def J_of(r: jax.Array, mu: jax.Array) -> jax.Array:
        return jnp.sum(r * jnp.sum((x[:, None] - mu[None]) ** 2, axis=-1))

    J = jnp.stack([jax.vmap(J_of)(r[:-1], centres[:-1]), jax.vmap(J_of)(r[:-1], centres[1:])], axis=1)
    return {
        "mu": centres,
        "r": jnp.argmax(r, axis=-1).astype(jnp.int8),
        "J": J,  # (T, 2): after E, after M
        "F": jnp.stack([path.after_e, path.after_m], axis=1),
    }


def run(config: Config) -> Result:
    data = load("old_faithful")
    x = jnp.asarray(data.x)
    corners = jnp.asarray(CORNERS)
    keys = jax.random.split(jax.random.key(config.seed), 3 if config.quick else 30)
    random = jax.vmap(lambda key: jaxem.inits.random_points(M, key, x, 2)["mu"])(keys)
    starts = jnp.concatenate([corners[None], random])
    walks = jax.tree.map(np.asarray, jax.jit(jax.vmap(half_steps, in_axes=(None, 0)))(x, starts))
    fits = [jaxem.check(jaxem.kmeans(x, mu)) for mu in starts]
    peers = [KMeans(2, init=np.asarray(mu), n_init=1, algorithm="lloyd", tol=0.0).fit(data.x) for mu in starts]
    steps = [int(fit.num_steps) for fit in fits]
    walk = {name: leaf[0] for name, leaf in walks.items()}
    J, moves = walk["J"], steps[0] - 1  # the last step finds nothing to move
    return Result(
        summary={
            "columns": data.columns,
            "centre": data.centre,
            "scale": data.scale,
            "num_rows": len(data.x),
            "steps": steps[0],
            "moves": moves,
            "J": J[: steps[0]].ravel(),
            "J_start": J[0, 0],
            "J_end": J[-1, 1],
            "scikit_learn_J": peers[0].inertia_,
            "scikit_learn_steps": peers[0].n_iter_,
            "steps_random_starts": steps[1:],
        },
        claims=claims(x, walks, fits, peers, steps),
        arrays={"x": data.x, "mu": walk["mu"], "r": walk["r"], "J": J},
    )


def claims(x: jax.Array, walks: dict, fits: list, peers: list, steps: list[int]) -> list[Claim]:
    N, D = x.shape
    C = -N * np.log(2) - N * D / 2 * np.log(2 * np.pi)
    trace = walks["J"].reshape(len(steps), -1)
    largest, eps = trace.max(), limits.ROUNDING * float(jnp.finfo(x.dtype).eps)
    spread = float(jnp.max(jnp.abs(x)))
    ends = np.stack([np.asarray(fit.theta["mu"]) for fit in fits])
    theirs = np.stack([peer.cluster_centers_ for peer in peers])
    labels = np.stack([peer.labels_ for peer in peers])
    return [
        Claim("fall", "J never rises, in any half-step of any start", float(np.diff(trace).max()), eps * largest),
        Claim(
            "F_0",
            "J = 2(C − F_0) at every half-step: k-means is EM's path at T = 0",
            float(np.abs(2 * (C - walks["F"]) - walks["J"]).max()),
            eps * (abs(2 * C) + largest),
        ),
        Claim("rest", "em_path and kmeans rest at the same centres", _gap(ends, walks["mu"][:, -1]), eps * spread),
        Claim("peer", "scikit-learn's KMeans ends at the same centres", _gap(ends, theirs), eps * spread),
        Claim("labels", "… and at the same labels (rows that differ)", float(np.sum(labels != walks["r"][:, -1])), 0.0),
        Claim("few", "iterations to rest from the corners, the last of which moves nothing", float(steps[0]), FEW),
    ]


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max())


def report(summary: dict[str, Any]) -> None:
    print("\nstep      J after E      J after M")
    for t, (e, m) in enumerate(np.reshape(summary["J"], (-1, 2)), start=1):
        print(f"{t:4d} {e:14.4f} {m:14.4f}")
    print(f"\nscikit-learn: J = {summary['scikit_learn_J']:.4f} in {summary['scikit_learn_steps']} iterations")
    random = summary["steps_random_starts"]
    print(f"{len(random)} random starts rest in {min(random)}–{max(random)} iterations\n")


def main(arguments: list[str] | None = None) -> int:
    return command("kmeans_steps", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
