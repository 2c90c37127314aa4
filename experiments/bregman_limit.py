"""T → 0 in every exponential family: EM becomes hard clustering with the family's own Bregman divergence.

    python experiments/bregman_limit.py [--seed S] [--out DIR] [--quick] [--no-plot]

The k-means limit is not about Gaussians. With mean m_k, log p(x | m_k) = −D(x, m_k) + terms free of m_k (for σ²I
Gaussians −D/2σ²), so with equal π held EM at temperature T has γ = softmax(−D/T), M-step m_k = Σγx / Σγ, and as T → 0

    r_n = argmin_k D(x_n, m_k),   m_k = mean of the rows with r_n = k,   objective Σ_n min_k D(x_n, m_k)

which is k-means with D for ‖·‖² (Banerjee, Merugu, Dhillon & Ghosh 2005). With ℓ_nk = log p(x_n, z_n = k), Δ_n the gap
of its two largest entries and r one-hot at the largest, at every θ, by the same arguments as for C7, C8 and C10:

    |γ_nk − r_nk| ≤ (K − 1) e^{−Δ_n/T}        0 ≤ F_T(θ, γ) − F_0(θ, r) ≤ T N log K
    ‖m_k(γ) − m_k(r)‖ ≤ diam(φ(X)) Σ_n |γ_nk − r_nk| / N_k

and where T < δ/750, δ the least Δ_n along the hard path from a start, e^{−Δ/T} is exactly 0 in float64, so EM's
iterates equal those of Bregman k-means (C11). Clustering is written here from its definition, with `jaxem.bregman`.
The start is the means under random responsibilities; one that meets a tie on its path is drawn again.

Writes DIR/bregman_limit.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxem
from jaxem import Mixture, bregman, limits
from jaxem.families import bernoulli, categorical, exponential, gaussian, poisson
from jaxem.limits import ROUNDING, Bound, tightest

from _command import Config, Result, command, leave
from _results import Claim

NUM_POINTS, NUM_COMPONENTS, NUM_FEATURES, NUM_CATEGORIES = 300, 3, 4, 4
NUM_STEPS = 40  # of the paths compared; the hard one is at rest well before
DRAWS = 20  # starts tried for an untied one
UNTIED = 1e-9  # a least gap of ℓ below this, in nats, is a tie to rounding
ONE_HOT = 750.0  # e^{−Δ/T} is 0 in float64 where Δ/T is above 745


class Family(NamedTuple):
    """A mixture with equal weights held, its divergence, and the mean parameters in which M-steps are means."""

    m: Mixture
    name: str  # the parameter beside π
    divergence: Callable[[jax.Array, jax.Array], jax.Array]
    scale: float  # −log p = scale · D + …
    mean: Callable[[jax.Array], jax.Array]  # parameter → mean of φ; its own inverse in each family here
    truth: Callable[[jax.Array], jax.Array]  # key → the parameter that generates the data
    features: Callable[[jax.Array], jax.Array] = lambda x: x.astype(float)  # φ


def probabilities(key: jax.Array) -> jax.Array:
    return jax.random.uniform(key, (NUM_COMPONENTS, 2 * NUM_FEATURES), minval=0.1, maxval=0.9)


def simplices(key: jax.Array) -> jax.Array:
    logits = 1.5 * jax.random.normal(key, (NUM_COMPONENTS, 2 * NUM_FEATURES, NUM_CATEGORIES))
    return jax.nn.softmax(logits, axis=-1)


def rates(key: jax.Array, low: float, high: float) -> jax.Array:
    logs = jax.random.uniform(key, (NUM_COMPONENTS, NUM_FEATURES), minval=np.log(low), maxval=np.log(high))
    return jnp.exp(logs)


def one_hot(x: jax.Array) -> jax.Array:
    return jax.nn.one_hot(x.astype(int), NUM_CATEGORIES, dtype=jnp.result_type(float))


SIGMA = 1.0
FAMILIES = {
    "gaussian": Family(
        gaussian.isotropic.hold("pi", "sigma"),
        "mu",
        bregman.squared_euclidean,
        1 / (2 * SIGMA**2),
        lambda mu: mu,
        lambda key: 1.5 * jax.random.normal(key, (NUM_COMPONENTS, NUM_FEATURES)),
    ),
    "bernoulli": Family(bernoulli.mixture.hold("pi"), "probs", bregman.logistic_loss, 1.0, lambda p: p, probabilities),
    "categorical": Family(
        categorical.mixture.hold("pi"), "probs", bregman.kullback_leibler, 1.0, lambda p: p, simplices, one_hot
    ),
    "poisson": Family(
        poisson.mixture.hold("pi"), "rate", bregman.i_divergence, 1.0, lambda rate: rate, partial(rates, low=1, high=15)
    ),
    "exponential": Family(
        exponential.mixture.hold("pi"),
        "rate",
        bregman.itakura_saito,
        1.0,
        lambda rate: 1 / rate,
        partial(rates, low=0.1, high=10),
    ),
}
DIVERGENCES = {
    "gaussian": "squared Euclidean",
    "bernoulli": "logistic loss",
    "categorical": "Kullback–Leibler",
    "poisson": "I-divergence",
    "exponential": "Itakura–Saito",
}


def with_means(family: Family, means: jax.Array) -> dict[str, jax.Array]:
    """θ with these means, equal weights, and σ where there is one."""
    theta = {"pi": jnp.full(len(means), 1 / len(means)), family.name: family.mean(means)}
    return theta | ({"sigma": jnp.asarray(SIGMA)} if "sigma" in family.m.parameters else {})


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
        gap = jnp.min(row_gaps(-family.scale * d))
        return cluster_means(r, phi, means), (means, jnp.sum(jnp.min(d, axis=1)), gap)

    _, (path, objective, gaps) = lax.scan(step, means, length=NUM_STEPS + 1)
    return Clustering(path, objective, jnp.min(gaps))


def row_gaps(log_joint: jax.Array) -> jax.Array:
    """Δ_n, the gap of the two largest ℓ_nk; ∞ where the second is −∞."""
    largest = lax.top_k(log_joint, 2)[0]
    return largest[:, 0] - largest[:, 1]


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
    table = jaxem.log_joint(family.m, theta, x)
    gamma, r = (jaxem.responsibilities(family.m, theta, x, temperature=t) for t in (temperature, 0.0))
    phi, eps = family.features(x), ROUNDING * float(jnp.finfo(table.dtype).eps)
    finite = jnp.where(jnp.isfinite(table), jnp.abs(table), 0)
    difference = jnp.max(jnp.abs(gamma - r), axis=1)
    theorem = (NUM_COMPONENTS - 1) * jnp.exp(-row_gaps(table) / temperature)
    # an error of eps·|ℓ| in ℓ is one of eps·|ℓ|/T in Δ/T; where that is not small the bound says only γ, r ≤ 1
    loose = jnp.minimum(theorem * jnp.expm1(jnp.minimum(eps * jnp.max(finite, axis=1) / temperature, 50)), 1)
    # F from the row's largest ℓ, so that nothing is lost to |F| as T → 0
    shifted = table - jnp.max(table, axis=1, keepdims=True)
    value = jaxem.free_energy(shifted, gamma, temperature) - jaxem.free_energy(shifted, r, 0.0)
    value = value / (temperature * len(x))
    half = jnp.log(NUM_COMPONENTS) / 2
    N_k, used = jnp.sum(gamma, axis=0), jnp.sum(r, axis=0) > 0
    means = family.mean(theta[family.name])
    soft, hard = cluster_means(gamma, phi, means), cluster_means(r, phi, means)
    distance = jnp.sqrt(jnp.sum((soft - hard).reshape(NUM_COMPONENTS, -1) ** 2, axis=1))
    moved = diam * jnp.sum(jnp.abs(gamma - r), axis=0) / jnp.where(used, N_k, 1)
    return {
        "gamma": tightest(difference, theorem + loose + eps),
        "gamma_mean": jnp.mean(difference),
        "gamma_mean_bound": jnp.mean(jnp.minimum(theorem, 1)),
        "F_value": value,
        "F": Bound(jnp.abs(value - half), half + eps * (1 + half)),
        "means": tightest(jnp.where(used, distance, 0), jnp.where(used, moved, 0) + eps * diam),
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
        last = 0.999 * delta / ONE_HOT
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

    def worst(name: str, statement: str, pick: Callable[[dict], Bound]) -> Claim:
        pairs = [pick(result) for result in measured.values()]
        value, bound = (jnp.concatenate([jnp.ravel(pair[i]) for pair in pairs]) for i in (0, 1))
        pair = tightest(value, bound)
        return Claim(name, statement, float(pair.value), float(pair.bound))

    return [
        worst("D", "ℓ_nk + D(x_n, m_k) is free of k: the divergence is the family's", lambda r: r["divergence"]),
        worst("γ", "|γ − r| ≤ (K − 1) e^{−Δ/T}", lambda r: r["rows"]["gamma"]),
        worst("F", "0 ≤ F_T − F_0 ≤ T N log K, as |v − ½ log K| ≤ ½ log K", lambda r: r["rows"]["F"]),
        worst("m", "M-step: ‖m_k(γ) − m_k(r)‖ ≤ diam(φ(X)) Σ|γ − r|/N_k", lambda r: r["rows"]["means"]),
        worst("C2", "no step of EM lowers F_T, at any T", lambda r: r["falls"]),
        worst("J", "Σ_n min_k D(x_n, m_k) never rises", lambda r: r["rises"]),
        worst("hard", "EM at T = 0 is Bregman k-means, at every step (relative)", lambda r: r["hard"]),
        worst("path", "so is EM at T < δ/750, at every step (relative)", lambda r: r["path"]),
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
