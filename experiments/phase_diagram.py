"""Where do centres part as σ falls? Predicted by spectra of covariances, and measured by EM, on three data sets.

    python experiments/phase_diagram.py [--seed S] [--out DIR] [--quick] [--no-plot]

K centres that start together at the mean stay there while σ is large. They part at σ_c = √λ_max(Cov x) (C13), and a
cluster that several of them still share parts again as σ falls below the root of the largest eigenvalue of its own
covariance, C_k = Σ_n γ_nk (x_n − μ_k)(x_n − μ_k)ᵀ/N_k at that σ (Rose 1998): that is where EM's Jacobian J has an
eigenvalue of 1. `jaxem.anneal` walks down in σ from the mean, and up again.

    predicted   EM at rest with the shared centres kept together, σ where σ² = λ_max(C_k)
    measured    EM from the same centres, each moved by 1e-4 σ: the σ at which they end apart; no Jacobian, no spectrum

Two centres part continuously; three and more jump where the third moment along the axis is not 0, for no small fixed
point is stable (C20). Then the mean is not the best at σ_c any more, and the way back is another (hysteresis).
Lindsay's gradient tells it on the way down (C19): at every σ each centre in turn is moved to where D is largest, and EM
from there ends higher (`rival`) as soon as the best has jumped. That the eigenvalues agree is a theorem; that EM from a
kick agrees with them, to 1e-4, is measured, and so is that the way back agrees with the rival while the mean is stable.

Writes DIR/phase_diagram.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxem
from jaxem import limits
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _data import load
from _results import Claim
from _table import Column, print_table

M = gaussian.isotropic.hold("pi", "sigma")
CENTRES = {"blobs": 6, "iris": 4, "old_faithful": 4}  # K; and K = 2 near σ_c
NEAR, QUICK_NEAR = (1.06, 0.97, 60), (1.02, 0.97, 20)  # σ/σ_c, where the first split is looked at closely …
FAR = (0.96, {"blobs": 0.25, "iris": 0.5, "old_faithful": 0.25}, 110)  # … and from there on
TOGETHER = 1e-4  # in σ: nearer centres are one
KICK = 1e-4  # in σ: how far each is moved before EM says whether they part
STEPS, HALVINGS, QUICK_HALVINGS = 800, 13, 9  # of EM from a kick; of a step of the walk, to 2e-6 of σ
AGREE = 1e-4  # of σ, relative; a kick of 1e-4 can overcome a distance from the split of its order
MISSED = 1e-5  # of |L|: next to a jump EM may fall back from where C19 points
SEEN = 1e-3  # beyond σ_c, relative: most of a step of the walk there


def coincident(x: jax.Array, K: int) -> dict[str, jax.Array]:
    """All centres at the mean, equal weights."""
    return {"pi": jnp.full(K, 1 / K), "mu": jnp.tile(jnp.mean(x, axis=0), (K, 1)), "sigma": jnp.ones(())}


def there_and_back(x: jax.Array, K: int, sigmas: np.ndarray) -> tuple[jaxem.Branches, jaxem.Branches]:
    """The walk down from the mean, and up from where it ended, both in the order of `sigmas`."""
    ways = np.concatenate([sigmas, sigmas[::-1]])
    walk = jaxem.anneal(M, coincident(x, K), x, ways, max_steps=5000, rivals=K > 2)
    S = len(sigmas)
    return jax.tree.map(lambda leaf: leaf[:S], walk), jax.tree.map(lambda leaf: leaf[S:][::-1], walk)


def shared(walk: jaxem.Branches) -> np.ndarray:
    """(S, K, K): which centres are one?"""
    mu, sigma = np.asarray(walk.theta["mu"]), np.asarray(walk.sigma)
    return np.sqrt(((mu[:, :, None] - mu[:, None]) ** 2).sum(-1)) < TOGETHER * sigma[:, None, None]


def splits(walk: jaxem.Branches) -> list[tuple[int, np.ndarray]]:
    """(i, centres): they are one at σ_i of the walk down, and not all of them at σ_{i+1}; one cluster for each i."""
    one = shared(walk)
    parted = [np.argwhere(one[i] & ~one[i + 1]) for i in range(len(one) - 1)]
    return [(i, np.flatnonzero(one[i, pairs[0, 0]])) for i, pairs in enumerate(parted) if len(pairs)]


def followed(
    x: jax.Array, walk: jaxem.Branches, i: int, cluster: np.ndarray, key: jax.Array, times: int
) -> dict[str, float]:
    """The split of a cluster between σ_i and σ_{i+1}, by halving: predicted with its centres together, and measured."""
    before = jax.tree.map(lambda leaf: leaf[i], walk.theta)
    kick = KICK * jax.random.normal(key, before["mu"].shape)

    def unstable(sigma: float) -> bool:
        kept = jaxem.em(M, before | {"sigma": sigma}, x, tol=0.0).theta
        return bool(limits.critical_sigmas(M, kept, x)[cluster[0]] > sigma)

    def apart(sigma: float) -> bool:
        """Farther apart at the end than after a quarter of the steps, or than a hundred kicks?"""
        start = before | {"sigma": sigma, "mu": before["mu"] + sigma * kick}
        mu = jaxem.em_path(M, start, x, num_steps=STEPS).theta["mu"][:, cluster]
        reach = jnp.max(jnp.linalg.norm(mu - mu[:, :1], axis=2), axis=1)
        return bool(reach[-1] > jnp.minimum(reach[STEPS // 4], 100 * KICK * sigma))

    high, low = float(walk.sigma[i]), float(walk.sigma[i + 1])
    return {
        "predicted": halved(unstable, high, low, times),
        "measured": halved(apart, high, low, times),
        "radius": float(walk.spectral_radius[i]),
        "radius_of_the_cluster": float((limits.critical_sigmas(M, before, x)[cluster[0]] / high) ** 2),
    }


def halved(true: Callable[[float], bool], high: float, low: float, times: int) -> float:
    """The σ between them below which it is true; NaN where it is not so at both ends."""
    if true(high) or not true(low):
        return float("nan")
    for _ in range(times):
        middle = (high * low) ** 0.5
        high, low = (high, middle) if true(middle) else (middle, low)
    return (high * low) ** 0.5


def explore(name: str, config: Config, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Both walks of a data set, with K centres and, near σ_c, with two; its splits; for the figure, `arrays`."""
    x, K = jnp.asarray(load(name).x), CENTRES[name]
    first = limits.split(x)
    critical, axis, mean = float(first.sigma), np.asarray(first.direction), np.asarray(x.mean(axis=0))
    near = critical * np.linspace(*(QUICK_NEAR if config.quick else NEAR))
    far = critical * np.geomspace(FAR[0], FAR[1][name], FAR[2] // 2 if config.quick else FAR[2])
    times = QUICK_HALVINGS if config.quick else HALVINGS
    sigma = np.concatenate([near, far])
    down, up = there_and_back(x, K, sigma)
    walks = {"down": down, "up": up} | dict(zip(("pair_down", "pair_up"), there_and_back(x, 2, near), strict=True))
    keys = jax.random.split(jax.random.key(config.seed), len(sigma))
    counts = down.num_centres.tolist()
    found = [
        followed(x, down, i, cluster, keys[i], times)
        | {"centres": counts[i : i + 2], "moved": float(down.moved[i + 1])}
        for i, cluster in splits(down)
    ]
    alone = shared(down).sum(axis=2) == 1
    of_clusters = np.asarray(jax.vmap(lambda theta: limits.critical_sigmas(M, theta, x))(down.theta))
    shown = {"sigma": sigma, "near": near, "radius": down.spectral_radius, "count": counts}
    for way, walk in walks.items():
        shown[way] = np.sort((np.asarray(walk.theta["mu"]) - mean) @ axis, axis=1)
    shown["pull"] = np.where(alone, np.nan, (of_clusters / sigma[:, None]) ** 2)
    arrays |= {f"{name} | {key}": np.asarray(value) for key, value in shown.items()}
    metastable = np.asarray((up.num_centres > 1) & (down.num_centres == 1))
    better = metastable & np.asarray(up.free_energy > down.free_energy + 1e-9 * jnp.abs(down.free_energy))
    jumped = np.asarray((down.rival > 0) & (down.num_centres == 1))
    ahead = np.asarray(up.free_energy - down.free_energy)
    scale = np.maximum(np.abs(np.asarray(down.free_energy)), 1)
    unseen = np.where(ahead > 0, ahead - np.asarray(down.rival), -ahead - np.asarray(up.rival)) / scale
    i = int(np.flatnonzero(near < critical)[0])
    law = first.amplitude * np.sqrt(critical**2 - near[i] ** 2)
    return {
        "num_rows": len(x),
        "centres": K,
        "sigma_c": critical,
        "third": float(first.third) / critical**3,
        "amplitude": float(first.amplitude),
        "splits": found,
        "survives_to": float(sigma[metastable].max(initial=0.0) / critical),
        "better_to": float(sigma[better].max(initial=0.0) / critical),
        "jumps_at": float(sigma[jumped].max(initial=0.0) / critical),
        "rival": float(np.asarray(down.rival)[jumped].max(initial=0.0)),
        "unseen": float(unseen[metastable].max(initial=0.0)),
        "unseen_later": float(unseen[~metastable].max(initial=0.0)),
        "law_ratio": float(shown["pair_down"][i, 1] / law),
        "pair_returns": float(np.abs(shown["pair_down"] - shown["pair_up"]).max()),
        "largest_radius": max(float(walk.spectral_radius.max()) for walk in walks.values()),
        "unfinished": sum(int((walk.status != jaxem.Status.CONVERGED).sum()) for walk in walks.values()),
        "miscounted": int(set(np.array(counts)[sigma > critical]) != {1} or counts[-1] != K),
    }


def run(config: Config) -> Result:
    arrays: dict[str, np.ndarray] = {}
    names = ["old_faithful"] if config.quick else list(CENTRES)
    sets = {name: explore(name, config, arrays) for name in names}
    return Result({"sets": sets}, claims(list(sets.values())), arrays)


def over(survives_to: float) -> float:
    """σ_c over it; ∞ where the split survives nowhere."""
    return 1 / survives_to if survives_to else float("inf")


def claims(sets: list[dict[str, Any]]) -> list[Claim]:
    """Agreement, as measured: the first split by C13, others by their clusters; and what C20 foretells."""
    later = [split for found in sets for split in found["splits"][1:]]
    every = [split for found in sets for split in found["splits"]]
    first = [found["sigma_c"] / found["splits"][0]["measured"] - 1 if found["splits"] else np.nan for found in sets]
    others = [split["predicted"] / split["measured"] - 1 for split in later]
    radii = [split["radius"] - split["radius_of_the_cluster"] for split in every]
    unseen = max(s["unseen"] for s in sets)
    back, best, ahead = (max(over(s[key]) for s in sets) for key in ("survives_to", "better_to", "jumps_at"))

    def largest(values: list[float]) -> float:
        return float(np.abs(values).max()) if values else float("nan")  # none was seen: the claim fails

    return [
        Claim("σ_c", "first splits: √λ_max(Cov x) over the σ measured, − 1", largest(first), AGREE),
        Claim("σ_k", f"{len(later)} later ones: √λ_max(C_k) over the σ measured, − 1", largest(others), AGREE),
        Claim("ρ", "before each, EM's ρ(J) less λ_max(C_k)/σ² of the cluster that splits", largest(radii), 1e-8),
        Claim("max", "ρ(J) on every branch: each a local maximum", max(s["largest_radius"] for s in sets), 1.0),
        Claim("count", "data sets without 1 centre above σ_c and K in the end", sum(s["miscounted"] for s in sets), 0),
        Claim("back", "K ≥ 3: σ_c over the σ to which the split survives, rising", back, 1 - SEEN),
        Claim("best", "K ≥ 3: σ_c over a σ where the split has more L than the mean", best, 1 - SEEN),
        Claim("rival", "the mean beside the split: nats of the better less those that C19 found, /|L|", unseen, MISSED),
        Claim("jump", "K ≥ 3: σ_c over the σ from which C19 finds one better than the mean", ahead, 1 - SEEN),
        Claim(
            "pair", "K = 2: the way back is the way there, by its centres", max(s["pair_returns"] for s in sets), 1e-6
        ),
        Claim("end", "σ's at which a walk did not come to rest", sum(s["unfinished"] for s in sets), 0),
    ]


def report(summary: dict[str, Any]) -> None:
    for name, found in summary["sets"].items():
        print(f"\n{name}, N = {found['num_rows']}, K = {found['centres']}: σ_c = {found['sigma_c']:.6f}, ", end="")
        print(f"m₃ = {found['third']:.2f} σ_c³; rising, split up to {found['survives_to']:.4f} σ_c,")
        print(f"and the better up to {found['better_to']:.4f} σ_c; falling, C19 finds a better one from ", end="")
        print(f"{found['jumps_at']:.4f} σ_c on;\nK = 2: amplitude {found['law_ratio']:.4f} of C20's asymptotic law")
        print_table(COLUMNS, [row(split) for split in found["splits"]])
    print()


COLUMNS: list[Column] = [
    ("σ predicted", "predicted", "11.6f"),
    ("σ measured", "measured", "11.6f"),
    ("ratio − 1", "ratio", "9.1e"),
    ("centres", "before", "7d"),
    ("then", "after", "4d"),
    ("moved", "moved", "6.3f"),
]


def row(split: dict[str, Any]) -> dict[str, Any]:
    before, after = split["centres"]
    return split | {"ratio": split["predicted"] / split["measured"] - 1, "before": before, "after": after}


def main(arguments: list[str] | None = None) -> int:
    return command("phase_diagram", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
