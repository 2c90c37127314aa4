"""How good are k-means++ seeds? Their expected J, enumerated, against the best there is; and jaxem's draws.

    python experiments/seeding.py [--seed S] [--out DIR] [--quick] [--no-plot]

K seeds are drawn from the rows, the first ∝ w_n, each next ∝ w_n min_k d_nk, one candidate a step. Then

    E J(seeds) ≤ 5(log K + 2) · min J,    and for K = 1 it is 2 min J exactly                                      (C26)

which is a theorem of others (Makarychev, Reddy & Shan 2020), not proved here. On small data sets both sides are
enumerated: every sequence of seeds, and every partition. The frequencies of `jaxem.inits.kmeans_plus_plus` are held
against the exact law; scikit-learn takes the best of several candidates, which is another law and not covered. It is
about an expectation: of one run there is Markov's inequality, and `jaxem.optimality_gap` (C18).

Writes DIR/seeding.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad arguments.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from sklearn.cluster import kmeans_plusplus

from jaxem import inits
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _results import Claim

MOST = 4  # centres
GUARANTEE = 5 * (np.log(np.arange(1, MOST + 1)) + 2)
KINDS = ("normal", "clusters", "equal rows", "weights")
NUM_SETS = 220
NUM_DRAWS = 20_000
UNLIKELY = 6.0  # −log₁₀ p of a statement about draws
BAND = 4.9  # standard errors: left by chance once in a million


def small_set(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """5 to 7 rows in one to three dimensions: normal, in clusters, some of them equal, or of very unequal weights."""
    N, D = rng.integers(5, 8), rng.integers(1, 4)
    x, w = rng.normal(size=(N, D)), np.ones(N)
    if kind == "clusters":
        x += 30 * rng.normal(size=(3, D))[rng.integers(0, 3, N)]
    if kind == "equal rows":
        x[N // 2 :] = x[: N - N // 2]
    if kind == "weights":
        w = 10 ** rng.uniform(-3, 3, N)
    return x, w


def squares(x: np.ndarray) -> np.ndarray:
    return ((x[:, None] - x[None]) ** 2).sum(axis=-1)


def law_of_seeds(x: np.ndarray, w: np.ndarray, K: int) -> dict[tuple[int, ...], tuple[float, float]]:
    """Every sequence of K seeds -> (its probability, J of these seeds); shorter where no row is left to draw."""
    d = squares(x)

    def grow(seeds: tuple[int, ...], probability: float, nearest: np.ndarray) -> None:
        total = float(w @ nearest) if seeds else float(w.sum())
        if len(seeds) == K or total == 0:
            found[seeds] = (probability, total if seeds else np.inf)
            return
        for n in np.flatnonzero(w * nearest if seeds else w):
            share = w[n] * (nearest[n] if seeds else 1) / total
            grow((*seeds, int(n)), probability * share, np.minimum(nearest, d[n]))

    found: dict[tuple[int, ...], tuple[float, float]] = {}
    grow((), 1.0, np.full(len(x), np.inf))
    return found


def least(x: np.ndarray, w: np.ndarray, K: int) -> float:
    """min J, of all partitions into at most K clusters: Σ_nm w_n w_m d_nm over twice a cluster's weight, summed."""
    labels = np.array(list(itertools.product(range(K), repeat=len(x) - 1)))
    labels = np.concatenate([np.zeros((len(labels), 1), int), labels], axis=1)
    counted = (labels[:, None] == np.arange(K)[None, :, None]) * w  # (partitions, K, N)
    weight = counted.sum(axis=2)
    cost = ((counted @ squares(x)) * counted).sum(axis=2) / np.where(weight > 0, 2 * weight, 1)
    return float(cost.sum(axis=1).min())


def expectations(rng: np.random.Generator, count: int) -> tuple[np.ndarray, float]:
    """E J of the seeds over min J, (sets, K = 1 … 4), NaN where min J is 0; and the allowance for rounding."""
    ratio, rounding = np.full((count, MOST), np.nan), 0.0
    for i in range(count):
        x, w = small_set(rng, KINDS[i % len(KINDS)])
        for K in range(1, MOST + 1):
            best = least(x, w, K)
            if best > 1e-9 * (w @ squares(x)).max():
                ratio[i, K - 1] = sum(p * J for p, J in law_of_seeds(x, w, K).values()) / best
                rounding = max(rounding, 8 * len(x) * K * np.finfo(float).eps)
    return ratio, rounding


def drawn(config: Config) -> dict[str, np.ndarray]:
    """How often each sequence of three seeds is drawn by jaxem and by scikit-learn's greedy version, and its law."""
    rng = np.random.default_rng(config.seed)
    x, w = rng.normal(size=(7, 2)) + 4 * rng.integers(0, 3, size=(7, 1)), rng.uniform(0.5, 2, 7)
    law = law_of_seeds(x, w, 3)
    place = {seeds: i for i, seeds in enumerate(law)}
    count = NUM_DRAWS // 10 if config.quick else NUM_DRAWS
    keys = jax.random.split(jax.random.key(config.seed), count)
    mu = inits.many(gaussian.isotropic, keys, jnp.asarray(x), 3, weights=jnp.asarray(w))["mu"]
    rows = np.asarray(jnp.argmin(jnp.sum((mu[:, :, None] - x) ** 2, axis=-1), axis=-1))
    greedy = [kmeans_plusplus(x, 3, sample_weight=w, random_state=i)[1] for i in range(count // 10)]

    def counts(draws: Any) -> np.ndarray:
        return np.bincount([place[tuple(map(int, seeds))] for seeds in draws], minlength=len(law))

    probability, cost = np.array(list(law.values())).T
    return {"probability": probability, "cost": cost, "plain": counts(rows), "greedy": counts(greedy)}


def surprise(counts: np.ndarray, probability: np.ndarray) -> float:
    """−log₁₀ p of Pearson's test, outcomes expected fewer than five times pooled."""
    expected = counts.sum() * probability
    rare = expected < 5
    seen, wanted = ([*values[~rare], values[rare].sum()] for values in (counts, expected))
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    statistic = np.sum((np.array(seen) - wanted) ** 2 / wanted)
    return min(float(-scipy.stats.chi2.logsf(statistic, len(wanted) - 1) / np.log(10)), 999.0)


def run(config: Config) -> Result:
    ratio, rounding = expectations(np.random.default_rng(config.seed), NUM_SETS // 10 if config.quick else NUM_SETS)
    draws = drawn(config)
    count, mean = draws["plain"].sum(), draws["probability"] @ draws["cost"]
    summary = {
        "num_sets": len(ratio),
        "kinds": KINDS,
        "worst_ratio": np.nanmax(ratio, axis=0).tolist(),
        "guarantee": GUARANTEE.tolist(),
        "num_draws": int(count),
        "mean": {
            "law": float(mean),
            "plain": float(draws["plain"] @ draws["cost"] / count),
            "greedy": float(draws["greedy"] @ draws["cost"] / draws["greedy"].sum()),
        },
        "standard_error": float(np.sqrt(draws["probability"] @ (draws["cost"] - mean) ** 2 / count)),
        "surprise": {kind: surprise(draws[kind], draws["probability"]) for kind in ("plain", "greedy")},
    }
    return Result(summary, claims(summary, ratio, rounding), draws | {"ratio": ratio})


def claims(summary: dict[str, Any], ratio: np.ndarray, rounding: float) -> list[Claim]:
    """The theorem is seen to be obeyed; the draws agree with their law, as far as draws can."""
    surprises, mean, sets = summary["surprise"], summary["mean"], len(ratio)
    off = abs(mean["plain"] - mean["law"]) / summary["standard_error"]
    largest, one = float(np.nanmax(ratio / GUARANTEE)), float(np.nanmax(np.abs(ratio[:, 0] / 2 - 1)))
    return [
        Claim("C26", f"E J over 5(log K + 2) min J, {sets} data sets, K ≤ {MOST}", largest, 1 + rounding),
        Claim("K = 1", "E J over 2 min J, less 1", one, rounding),
        Claim(
            "law", f"jaxem's {summary['num_draws']} draws are of the exact law: −log₁₀ p", surprises["plain"], UNLIKELY
        ),
        Claim("mean", "and their mean J is its, in standard errors", off, BAND),
        Claim("other", "scikit-learn's are not: 6 + log₁₀ p", UNLIKELY - surprises["greedy"], 0.0),
    ]


def report(summary: dict[str, Any]) -> None:
    print(f"\n{summary['num_sets']} small data sets, E J/min J at most ", end="")
    worst = zip(summary["worst_ratio"], summary["guarantee"], strict=True)
    print(", ".join(f"{ratio:.2f} (K = {K}: {bound:.1f})" for K, (ratio, bound) in enumerate(worst, start=1)))
    mean = summary["mean"]
    print(
        f"of one, E J = {mean['law']:.3f}: jaxem's draws {mean['plain']:.3f} ± {summary['standard_error']:.3f}, ",
        end="",
    )
    print(f"scikit-learn's, greedy, {mean['greedy']:.3f}\n")


def main(arguments: list[str] | None = None) -> int:
    return command("seeding", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
