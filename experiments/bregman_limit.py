"""T → 0 in every exponential family: EM becomes hard clustering with the family's own Bregman divergence.

    python experiments/bregman_limit.py [--seed S] [--out DIR] [--quick] [--no-plot]

The k-means limit is not about Gaussians. With mean m_k, log p(x | m_k) = −D(x, m_k) + terms free of m_k (for σ²I
Gaussians −D/2σ²), so with equal π held EM at temperature T has γ = softmax(−D/T), M-step m_k = Σγx / Σγ, and as T → 0

    r_n = argmin_k D(x_n, m_k),   m_k = mean of the rows with r_n = k,   objective Σ_n min_k D(x_n, m_k)

which is k-means with D for ‖·‖² (Banerjee, Merugu, Dhillon & Ghosh 2005). With ℓ_nk = log p(x_n, z_n = k), Δ_n the gap
of its two largest entries and r one-hot at the largest, at every θ,

    |γ_nk − r_nk| ≤ (K − 1) e^{−Δ_n/T}        0 ≤ F_T(θ, γ) − F_0(θ, r) ≤ T N log K
    ‖m_k(γ) − m_k(r)‖ ≤ diam(φ(X)) Σ_n |γ_nk − r_nk| / N_k

which are `jaxem.limits.hardening`, `cooling` and `means_gap` (proofs: docs/theorems_chains.md); and where T < δ/750, δ
the least Δ_n along the hard path from a start, e^{−Δ/T} is exactly 0 in float64, so EM is Bregman
k-means (C11). Clustering is written here from its definition, with `jaxem.bregman`. The start is the means under random
responsibilities; one that meets a tie on its path is drawn again.

Writes DIR/bregman_limit.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _bregman_families import DIVERGENCES, FAMILIES, NUM_COMPONENTS, Family, with_means
from _claims import worst
from jax import lax

import jaxem
from jaxem import limits
from jaxem.limits import ROUNDING, Bound

from _command import Config, Result, command, leave
from _results import Claim

NUM_POINTS = 300
NUM_STEPS = 40  # of the paths compared; the hard one is at rest well before
DRAWS = 20  # starts tried for an untied one
UNTIED = 1e-9  # a least gap of ℓ below this, in nats, is a tie to rounding


def cluster_means(r: jax.Array, phi: jax.Array, old: jax.Array) -> jax.Array:
    """The mean of φ under weights r (N, K); an empty cluster keeps its own."""
    N_k = jnp.sum(r, axis=0).reshape((-1,) + (1,) * (phi.ndim - 1))
    return jnp.where(N_k > 0, jnp.tensordot(r, phi, axes=(0, 0)) / jnp.where(N_k > 0, N_k, 1), old)


def divergences(family: Family, phi: jax.Array, means: jax.Array) -> jax.Array:
    """D(x_n, m_k), (N, K), by `jaxem.bregman`."""
    return jax.vmap(lambda point: jax.vmap(lambda mean: family.divergence(point, mean))(means))(phi)


class Clustering(NamedTuple):
    """Bregman k-means: a step a row, the start first."""

    means: jax.Array  # (T + 1, K, …)
    objective: jax.Array  # (T + 1,) Σ_n min_k D(x_n, m_k)
    least_gap: jax.Array  # () least Δ_n over all steps, in nats: as ℓ + scale · D is free of k, it is D's


def bregman_kmeans(family: Family, phi: jax.Array, means: jax.Array) -> Clustering:
    """Nearest mean by D, then the mean of each cluster (Banerjee et al. 2005, algorithm 1)."""

    def step(means: jax.Array, _: None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        d = divergences(family, phi, means)
        r = jax.nn.one_hot(jnp.argmin(d, axis=1), len(means), dtype=d.dtype)
        gap = jnp.min(limits.leads(-family.scale * d))
        return cluster_means(r, phi, means), (means, jnp.sum(jnp.min(d, axis=1)), gap)

    _, (path, objective, gaps) = lax.scan(step, means, length=NUM_STEPS + 1)
    return Clustering(path, objective, jnp.min(gaps))


class Iterates(NamedTuple):
    """EM's path at one temperature, the start first."""

    means: jax.Array  # (T + 1, K, …)
    F: jax.Array  # (T,) F_T at each but the last


def iterates(family: Family, theta: dict, x: jax.Array, temperature: jax.Array) -> Iterates:
    """By `jaxem.em_path`."""
    path = jaxem.em_path(family.m, theta, x, num_steps=NUM_STEPS, temperature=temperature)
    parameter = jnp.concatenate([theta[family.name][None], path.theta[family.name]])
    return Iterates(family.mean(parameter), path.after_e)


def random_start(phi: jax.Array, key: jax.Array) -> jax.Array:
    """Means under random responsibilities: inside the support, untied almost surely."""
    r = jax.nn.softmax(3 * jax.random.normal(key, (len(phi), NUM_COMPONENTS)), axis=1)
    return cluster_means(r, phi, jnp.zeros((NUM_COMPONENTS, *phi.shape[1:])))


# ---- what is measured at one temperature


def gaps_at(family: Family, theta: dict, x: jax.Array, temperature: jax.Array, diam: jax.Array) -> dict[str, Any]:
    """The distance from hard clustering at one θ: γ, F and the M-step, each against its bound."""
    table, phi = jaxem.log_joint(family.m, theta, x), family.features(x)
    gamma, r = (jaxem.responsibilities(family.m, theta, x, temperature=t) for t in (temperature, 0.0))
    theorem = (NUM_COMPONENTS - 1) * jnp.exp(-limits.leads(table) / temperature)
    value, half = limits.cooling_gap(table, temperature), jnp.log(NUM_COMPONENTS) / 2
    return {
        "gamma": limits.hardening(table, temperature),
        "gamma_mean": jnp.mean(jnp.max(jnp.abs(gamma - r), axis=1)),
        "gamma_mean_bound": jnp.mean(jnp.minimum(theorem, 1)),
        "F_value": value,
        "F": Bound(jnp.abs(value - half), half + ROUNDING * jnp.finfo(table.dtype).eps * (1 + half)),
        "means": limits.means_gap(table, phi, temperature, diam=diam).check,
    }


def sweep(family: Family, start: jax.Array, x: jax.Array, temperatures: jax.Array) -> dict[str, Any]:
    """Everything measured for one family, a row per temperature."""
    phi, theta = family.features(x), with_means(family, start)
    flat = phi.reshape(len(phi), -1)
    eps, size, diam = ROUNDING * float(jnp.finfo(flat.dtype).eps), jnp.max(jnp.abs(flat)), limits.diameter(flat)
    clustering = bregman_kmeans(family, phi, start)
    cooling = jnp.append(temperatures, 0.0)
    paths = lax.map(lambda temperature: iterates(family, theta, x, temperature), cooling)
    # at the start, and where EM ended at that T
    means = jnp.concatenate([jnp.broadcast_to(start, paths.means[:-1, -1].shape), paths.means[:-1, -1]])
    rows = lax.map(
        lambda args: gaps_at(family, with_means(family, args[0]), x, args[1], diam), (means, jnp.tile(temperatures, 2))
    )
    distance = jnp.max(jnp.abs(paths.means - clustering.means[None]), axis=tuple(range(2, paths.means.ndim)))
    falls = jnp.max(paths.F[:, :-1] - paths.F[:, 1:], axis=1)
    table = jaxem.log_joint(family.m, with_means(family, clustering.means[1]), x)
    D = divergences(family, phi, clustering.means[1])
    possible = jnp.isfinite(table)
    total = table + family.scale * jnp.where(possible, D, 0)
    spread = jnp.max(total, axis=1) - jnp.min(jnp.where(possible, total, jnp.inf), axis=1)
    agree = jnp.all(possible == jnp.isfinite(D))
    scale = 1 + jnp.max(jnp.where(possible, jnp.abs(table), 0))
    rises = clustering.objective[1:] - clustering.objective[:-1]
    return {
        "rows": rows,
        "distance": distance[:-1] / size,  # (temperatures, steps)
        "divergence": Bound(jnp.where(agree, jnp.max(spread), jnp.inf), eps * scale),
        "hard": Bound(jnp.max(distance[-1]) / size, eps),
        "path": Bound(jnp.max(distance[-2]) / size, eps),
        "falls": Bound(falls, eps * (jnp.max(jnp.abs(paths.F), axis=1) + cooling * len(x) * jnp.log(NUM_COMPONENTS))),
        "rises": Bound(jnp.max(rises), eps * clustering.objective[0]),
        "rest": jnp.argmax(jnp.all(clustering.means == clustering.means[-1:], axis=tuple(range(1, phi.ndim + 1)))),
        "objective": clustering.objective,
    }


def run(config: Config) -> Result:
    """Every family: data, an untied start, the sweep of T down to where EM is Bregman k-means."""
    count = 10 if config.quick else 55
    summary, measured, arrays = {}, {}, {}
    for index, (name, family) in enumerate(FAMILIES.items()):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), index), 3)
        x, _ = jaxem.sample(family.m, with_means(family, family.truth(keys[0])), keys[1], NUM_POINTS)
        starts, deltas = random_starts(family, x, keys[2])
        chosen = int(np.argmax(np.asarray(deltas) > UNTIED))  # the first that is untied
        start, delta = starts[chosen], float(deltas[chosen])
        last = 0.999 * float(limits.one_hot_temperature(delta))
        temperatures = np.geomspace(100.0, 1e-7, count)
        temperatures = np.append(temperatures[temperatures > last * (1 + 1e-9)], last)
        result = jax.tree.map(np.asarray, jax.jit(partial(sweep, family))(start, x, jnp.asarray(temperatures)))
        measured[name] = result
        furthest = result["distance"].max(axis=1)
        summary[name] = {
            "divergence": DIVERGENCES[name],
            "least_gap": delta,
            "last_temperature": last,
            "starts_redrawn": chosen,
            "steps_to_rest": int(result["rest"]),
            "objective": float(result["objective"][-1]),
            "iterates_equal_from": equal_from(temperatures, furthest),
        }
        at_end = {
            key: result["rows"][key][len(temperatures) :] for key in ("gamma_mean", "gamma_mean_bound", "F_value")
        }
        arrays |= {
            f"{name} | T": temperatures,
            f"{name} | gamma": at_end["gamma_mean"],
            f"{name} | gamma bound": at_end["gamma_mean_bound"],
            f"{name} | F": at_end["F_value"],
            f"{name} | end": result["distance"][:, -1],
            f"{name} | path": furthest,
        }
    return Result({"families": summary, "num_components": NUM_COMPONENTS}, claims(measured), arrays)


def random_starts(family: Family, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means under random responsibilities, inside the support; and the least gap along hard clustering's path."""
    phi = family.features(x)

    @jax.jit
    def draw(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        starts = jax.vmap(partial(random_start, phi))(keys)
        return starts, lax.map(lambda start: bregman_kmeans(family, phi, start).least_gap, starts)

    return draw(jax.random.split(key, DRAWS))


def equal_from(temperatures: np.ndarray, distance: np.ndarray) -> float:
    """The largest T of the grid from which on, down to the last, every iterate is that of Bregman k-means."""
    differs = np.flatnonzero(distance > ROUNDING * np.finfo(float).eps)
    return float(temperatures[differs.max() + 1] if differs.size else temperatures[0])


def claims(measured: dict[str, Any]) -> list[Claim]:
    """The verdicts: over families and temperatures, the pair nearest to a violation."""

    found = measured.values()
    return [
        worst("D", "ℓ_nk + D(x_n, m_k) is free of k: the divergence is the family's", [r["divergence"] for r in found]),
        worst("γ", "|γ − r| ≤ (K − 1) e^{−Δ/T}", [r["rows"]["gamma"] for r in found]),
        worst("F", "0 ≤ F_T − F_0 ≤ T N log K, as |v − ½ log K| ≤ ½ log K", [r["rows"]["F"] for r in found]),
        worst("m", "M-step: ‖m_k(γ) − m_k(r)‖ ≤ diam(φ(X)) Σ|γ − r|/N_k", [r["rows"]["means"] for r in found]),
        worst("C2", "no step of EM lowers F_T, at any T", [r["falls"] for r in found]),
        worst("J", "Σ_n min_k D(x_n, m_k) never rises", [r["rises"] for r in found]),
        worst("hard", "EM at T = 0 is Bregman k-means, at every step (relative)", [r["hard"] for r in found]),
        worst("path", "so is EM at T < δ/750, at every step (relative)", [r["path"] for r in found]),
    ]


def report(summary: dict[str, Any]) -> None:
    print(f"\n{'family':12} {'divergence':18} {'δ':>8} {'last T':>8} {'steps':>5} {'ΣD':>10}   equal iterates from T")
    for name, row in summary["families"].items():
        print(
            f"{name:12} {row['divergence']:18} {row['least_gap']:8.1e} {row['last_temperature']:8.1e} "
            f"{row['steps_to_rest']:5d} {row['objective']:10.4f}   {row['iterates_equal_from']:.1e}"
        )
    print()


def main(arguments: list[str] | None = None) -> int:
    return command("bregman_limit", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
