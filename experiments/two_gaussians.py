"""Two Gaussians, ½N(μ, I) + ½N(−μ, I): EM ends at μ from any start, and k-means at a centre that is too far out.

    python experiments/two_gaussians.py [--seed S] [--out DIR] [--quick] [--no-plot]

EM for ½N(±λ, I), its covariance known and its centres tied as ±λ, is on the *population* the map

    M(λ) = E[x tanh⟨λ, x⟩],    ‖M(λ) − μ‖ ≤ κ ‖λ − μ‖,    κ = exp(−min(‖λ‖², ⟨λ, μ⟩)²/2‖λ‖²),   ⟨λ, μ⟩ > 0     (C22)

(Daskalakis, Tzamos & Zampetakis 2017), certified by quadrature on random pairs (λ, μ) in 1 to 10 dimensions. It says
nothing of EM with two free centres on a sample. k-means' centre is the mean of the folded normal (along μ, σ = 1),

    c = E|x| = σ √(2/π) e^{−μ²/2σ²} + μ(1 − 2Φ(−μ/σ)) > μ                                                          (C25)

held against quadrature. That no other threshold is a fixed point is proved for μ ≤ σ, and looked at on a grid beyond.
On samples `jaxem.kmeans` is held against c and `jaxem.em` against μ within a few standard errors: a band, no bound.

Writes DIR/two_gaussians.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import quad
from scipy.stats import norm

import jaxem
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _results import Claim
from _table import Column, print_table

M = gaussian.isotropic.hold("pi", "sigma")
NUM_PAIRS = 4_000  # (λ, μ) tried, a quarter in each of …
DIMENSIONS = (1, 2, 3, 10)
QUADRATURE = 1e-12  # its error, relative to 1 + ‖μ‖
SHOWN = (0.5, 1.0, 2.0)  # μ of the maps in the figure
STARTS = (0.02, 0.3, 6.0)  # λ_0 of the iterates in the figure, towards μ = 1
NUM_STEPS = 60
SIZES = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # μ of the samples
NUM_ROWS = 200_000
BAND = 4.9  # standard errors: left by chance once in a million


def trapezoids(step: float) -> tuple[np.ndarray, np.ndarray]:
    """(z, w) with ∫ f(z) φ(z) dz = Σ w f(z): exponentially exact in 1/step for an analytic f."""
    z = np.arange(-12.0, 12.0 + step / 2, step)
    return z, norm.pdf(z) * step


def along(size: np.ndarray, mu: np.ndarray, step: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """(E[x tanh λx], E[tanh λx]) over N(μ, 1), for each pair of numbers λ and μ."""
    z, w = trapezoids(step)
    x = mu[:, None] + z
    tanh = np.tanh(size[:, None] * x)
    return (x * tanh) @ w, tanh @ w


def em_map(size: np.ndarray, mu: np.ndarray, step: float = 0.01) -> np.ndarray:
    """M(λ), (P, D): in direction λ the map in one dimension; across it, where λ is 0, a share of μ."""
    length = np.linalg.norm(size, axis=1)
    axis = size / length[:, None]
    part = (mu * axis).sum(axis=1)
    first, share = along(length, part, step)
    return first[:, None] * axis + share[:, None] * (mu - part[:, None] * axis)


def kappa(size: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """C22's factor, (P,)."""
    square = (size**2).sum(axis=1)
    return np.exp(-(np.minimum(square, (size * mu).sum(axis=1)) ** 2) / (2 * square))


def pairs(rng: np.random.Generator, count: int, D: int) -> tuple[np.ndarray, np.ndarray]:
    """λ and μ with ⟨λ, μ⟩ > 0, of lengths from 1e-3 to 8; every third almost equal, every third almost orthogonal."""
    size, mu = rng.normal(size=(2, count, D))
    size[::3] = mu[::3] + 1e-3 * size[::3]
    unit = mu / np.linalg.norm(mu, axis=1, keepdims=True)
    across = size - (size * unit).sum(axis=1, keepdims=True) * unit
    size[1::3] = across[1::3] + 1e-2 * unit[1::3]
    size *= np.where((size * mu).sum(axis=1, keepdims=True) < 0, -1, 1)
    scale = 10 ** rng.uniform(-3, 0.9, size=(2, count, 1))
    scale[1, ::3] = scale[0, ::3]
    mu = scale[1] * mu / np.linalg.norm(mu, axis=1, keepdims=True)
    return scale[0] * size / np.linalg.norm(size, axis=1, keepdims=True), mu


def contraction(rng: np.random.Generator, count: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """‖M(λ) − μ‖ against κ‖λ − μ‖ on pairs of every dimension."""
    excess, finer, factor, ratio, dimension = [], [], [], [], []
    for D in DIMENSIONS:
        size, mu = pairs(rng, count // len(DIMENSIONS), D)
        moved, unit = em_map(size, mu), 1 + np.linalg.norm(mu, axis=1)
        after, before = (np.linalg.norm(value - mu, axis=1) for value in (moved, size))
        bound = kappa(size, mu)
        excess.append((after - bound * before) / unit)
        finer.append(np.linalg.norm(moved[:50] - em_map(size[:50], mu[:50], 0.005), axis=1) / unit[:50])
        told = bound * before > 1e-9 * unit  # else a ratio is rounding
        factor.append(bound[told])
        ratio.append(after[told] / before[told])
        dimension.append(np.full(told.sum(), D))
    arrays = {"kappa": np.concatenate(factor), "ratio": np.concatenate(ratio), "dimension": np.concatenate(dimension)}
    measured = {
        "num_pairs": sum(map(len, excess)),
        "excess": float(np.concatenate(excess).max()),
        "quadrature": float(np.concatenate(finer).max()),
        "tightest": float((arrays["ratio"] / arrays["kappa"]).max()),
    }
    return measured, arrays


def as_rows(size: float, mu: float) -> float:
    """A step of `jaxem.em` on the nodes of the quadrature as weighted rows, x and −x: it is M(λ) as well."""
    z, w = trapezoids(0.05)
    x = jnp.concatenate([mu + z, -mu - z])
    theta = {"pi": jnp.full(2, 0.5), "mu": jnp.array([[size], [-size]]), "sigma": 1.0}
    return float(jaxem.em(M, theta, x, weights=jnp.tile(w, 2), max_steps=1).theta["mu"][0, 0])


def folded(mu: Any, sigma: Any = 1.0) -> Any:
    """C25: c = E|x|, x ~ N(μ, σ²)."""
    return sigma * np.sqrt(2 / np.pi) * np.exp(-(mu**2) / (2 * sigma**2)) + mu * (1 - 2 * norm.cdf(-mu / sigma))


def right_mean(mu: float, sigma: float) -> float:
    """E[x | x > 0] of the mixture, by adaptive quadrature of its density: 2-means' centre where the boundary is 0."""

    def density(x: float) -> float:
        return math.exp(-(((x - mu) / sigma) ** 2) / 2) + math.exp(-(((x + mu) / sigma) ** 2) / 2)  # but for a factor

    end, options = mu + 12 * sigma, {"epsabs": 1e-13, "epsrel": 1e-13, "limit": 200, "points": [mu]}
    return quad(lambda x: x * density(x), 0, end, **options)[0] / quad(density, 0, end, **options)[0]


def other_thresholds() -> float:
    """The least of [(S + t)/(1 − p) − S/p]/t for t > 0 on a grid of μ/σ: where it is 0 there is another fixed point."""
    t, mu = np.geomspace(1e-3, 50, 400), np.linspace(0, 40, 401)[:, None]

    def part(mu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # P(x > t), E(x − t)₊
        p = norm.sf(t - mu)
        return p, norm.pdf(t - mu) - (t - mu) * p

    (p, S), (q, R) = part(mu), part(-mu)
    p, S = (p + q) / 2, (S + R) / 2
    told = p > 1e-8
    return float((((S + t) / (1 - p) - S / np.where(told, p, 1)) / t)[told].min())


def sample(key: jax.Array, mu: float, num_rows: int) -> dict[str, float]:
    """Half the distance of the two centres by each method on one sample, and its standard error."""
    x, _ = jaxem.sample(M, {"pi": [0.5, 0.5], "mu": [[mu], [-mu]], "sigma": 1.0}, key, num_rows)
    hard = jaxem.kmeans(x, jnp.array([[mu], [-mu]])).theta["mu"]
    start = {"pi": jnp.full(2, 0.5), "mu": hard, "sigma": 1.0}
    fit = jaxem.check(jaxem.em(M, start, x, tol=1e-12, max_steps=5_000))
    V = jaxem.standard_errors(M, fit.theta, x).covariance
    return {
        "mu": mu,
        "c": float(folded(mu)),
        "kmeans": float(hard[0, 0] - hard[1, 0]) / 2,
        "kmeans_error": float(np.sqrt((mu**2 + 1 - folded(mu) ** 2) / num_rows)),  # sd of |x|/√N, to first order
        "em": float(fit.theta["mu"][0, 0] - fit.theta["mu"][1, 0]) / 2,
        "em_error": float(jnp.sqrt(V[0, 0] + V[1, 1] - 2 * V[0, 1])) / 2,
    }


def run(config: Config) -> Result:
    rng, key = np.random.default_rng(config.seed), jax.random.key(config.seed)
    measured, arrays = contraction(rng, NUM_PAIRS // 10 if config.quick else NUM_PAIRS)
    mu = np.ones((len(STARTS), 1))
    path = [np.array(STARTS)[:, None]]
    for _ in range(NUM_STEPS):
        path.append(em_map(path[-1], mu))
    sizes = np.linspace(1e-3, 3.2, 200)
    arrays["path"] = np.stack(path)[:, :, 0]
    arrays["factors"] = np.stack([kappa(size, mu) for size in path])
    arrays["sizes"], arrays["maps"] = sizes, np.stack([along(sizes, np.full_like(sizes, mu))[0] for mu in SHOWN])
    arrays["folded"] = folded(sizes)
    steps = [abs(as_rows(size, mu) - along(np.array([size]), np.array([mu]))[0][0]) for size in STARTS for mu in SHOWN]
    grid = [(mu, sigma) for mu in np.geomspace(0.01, 8, 6 if config.quick else 20) for sigma in (0.3, 1.0, 2.5)]
    off = max(abs(folded(mu, sigma) - right_mean(mu, sigma)) / (mu + sigma) for mu, sigma in grid)
    inside = max((mu - folded(mu, sigma)) / (np.finfo(float).eps * mu) for mu, sigma in grid)
    num_rows = NUM_ROWS // 10 if config.quick else NUM_ROWS
    keys = jax.random.split(key, len(SIZES))
    samples = [sample(k, mu, num_rows) for k, mu in zip(keys, SIZES, strict=True)]
    summary = measured | {
        "shown": SHOWN,
        "starts": STARTS,
        "samples": samples,
        "num_rows": num_rows,
        "other_thresholds": other_thresholds(),
        "end": float(np.abs(arrays["path"][-1] - 1).max()),
    }
    return Result(summary, claims(summary, max(steps), off, inside), arrays)


def claims(summary: dict[str, Any], step: float, off: float, inside: float) -> list[Claim]:
    """C22 by quadrature is certified; of C25 the formula is; the samples agree within a band, the grid is a grid."""
    kmeans, em = (
        max(abs(s[name] - s[truth]) / s[f"{name}_error"] for s in summary["samples"])
        for name, truth in (("kmeans", "c"), ("em", "mu"))
    )
    bias = min((s["kmeans"] - s["mu"]) / s["kmeans_error"] for s in summary["samples"][:4])
    return [
        Claim("C22", f"(‖M(λ) − μ‖ − κ‖λ − μ‖)/(1 + ‖μ‖), {summary['num_pairs']} pairs", summary["excess"], QUADRATURE),
        Claim("quad", "error of the quadrature: half the step, /(1 + ‖μ‖)", summary["quadrature"], QUADRATURE),
        Claim("map", "jaxem's EM step on the nodes as rows, x and −x, is M(λ)", step, QUADRATURE),
        Claim("C25", "c is E[x | x > 0] of the mixture, by quadrature, /(μ + σ)", off, 1e-11),
        Claim("c > μ", "μ − c, in roundings of μ", inside, 2.0),
        Claim("grid", "another fixed point, μ ≤ 40 σ: −least excess on a grid", -summary["other_thresholds"], 0.0),
        Claim("kmeans", "samples: |jaxem.kmeans − c| in standard errors", kmeans, BAND),
        Claim("em", "samples: |jaxem.em − μ| in standard errors", em, BAND),
        Claim("bias", "… and k-means is not at μ ≤ 1.5: standard errors to μ, less", BAND - bias, 0.0),
    ]


def report(summary: dict[str, Any]) -> None:
    print(
        f"\npopulation: {summary['num_pairs']} pairs, tightest ‖M(λ) − μ‖/κ‖λ − μ‖ = {summary['tightest']:.5f}; ",
        end="",
    )
    print(f"from {summary['starts']} to μ = 1 within {summary['end']:.1e} in {NUM_STEPS} steps")
    print(f"samples of {summary['num_rows']} rows, half the distance of two centres:")
    print_table(COLUMNS, summary["samples"])
    print()


COLUMNS: list[Column] = [
    ("μ", "mu", "5.2f"),
    ("EM", "em", "8.5f"),
    ("± s.e.", "em_error", "8.5f"),
    ("c (C25)", "c", "8.5f"),
    ("k-means", "kmeans", "8.5f"),
    ("± s.e.", "kmeans_error", "8.5f"),
]


def main(arguments: list[str] | None = None) -> int:
    return command("two_gaussians", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
