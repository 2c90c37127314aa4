"""EM and k-means on 262,144 rows, float32: time an iteration against scikit-learn and gmmx; peak memory.

    python experiments/benchmarks/large_em.py [--case full|diagonal|spherical|tied|kmeans] [--seed S]
           [--out DIR] [--quick]

Same data, same start, same number of iterations: n M-steps and n + 1 E-steps in jaxem and in scikit-learn (gmmx does
one E-step fewer), none stopped by a tolerance. An iteration is the whole call over n, so that it pays for its checks of
the data. The final log-likelihoods (k-means: distortions) are evaluated by one function, in float64, for all programs.

Memory is measured in a process of its own: the peak of one `em` call, compilation included, above what is resident
once the data are loaded.
"""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from _timing import finish, goal, measure, parser, rss_megabytes


class Case(NamedTuple):
    """One family at one size; sizes of --quick in `tiny`."""

    num_rows: int
    num_features: int
    num_components: int
    num_steps: int
    repeats: int
    peer_repeats: int

    def tiny(self) -> "Case":
        return Case(2_000, 3, 4, 2, 1, 1)


CASES = {
    "full": Case(262_144, 16, 16, 10, 5, 3),
    "diagonal": Case(262_144, 32, 64, 10, 5, 2),
    "spherical": Case(262_144, 32, 64, 10, 5, 2),
    "tied": Case(262_144, 32, 64, 3, 5, 1),
    "kmeans": Case(262_144, 32, 64, 10, 5, 3),
}
SCIKIT_LEARN = {"full": "full", "diagonal": "diag", "spherical": "spherical", "tied": "tied"}
GMMX = {"full": "full", "diagonal": "diag"}


def data(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping clusters of different shapes, and K of its rows as first centres; float32."""
    rng = np.random.default_rng(seed)
    n, d, k = case[:3]
    shapes = rng.normal(size=(k, d, d)).astype(np.float32) / np.sqrt(d) + np.eye(d, dtype=np.float32)
    centres = 1.5 * rng.normal(size=(k, d)).astype(np.float32)
    z = rng.integers(k, size=n)
    x = rng.normal(size=(n, d)).astype(np.float32)
    for j in range(k):
        x[z == j] = x[z == j] @ shapes[j].T + centres[j]
    return x, x[rng.choice(n, k, replace=False)]


def start(name: str, mu: np.ndarray) -> dict[str, np.ndarray]:
    """π = 1/K, the centres, and Σ_k = 4 I in the family's own shape."""
    k, d = mu.shape
    theta = {"pi": np.full(k, 1 / k, np.float32), "mu": mu}
    eye = np.eye(d, dtype=np.float32)
    scale = {
        "full": {"Sigma": np.tile(4 * eye, (k, 1, 1))},
        "tied": {"Sigma": 4 * eye},
        "diagonal": {"sigma": np.full((k, d), 2, np.float32)},
        "spherical": {"sigma": np.full(k, 2, np.float32)},
    }
    return theta | scale[name]


# ---- one number for the outcome of every program


def covariances(name: str, theta: dict[str, Any]) -> np.ndarray:
    """Σ_k, (K, D, D), float64."""
    k, d = theta["mu"].shape
    if name in ("full", "tied"):
        return np.broadcast_to(np.asarray(theta["Sigma"], float), (k, d, d))
    sigma = np.asarray(theta["sigma"], float)
    return np.broadcast_to(sigma.reshape(k, -1), (k, d))[:, :, None] ** 2 * np.eye(d)


def log_likelihood(x: np.ndarray, pi: np.ndarray, mu: np.ndarray, Sigma: np.ndarray) -> float:
    """Σ_n log Σ_k π_k N(x_n; μ_k, Σ_k), by NumPy in float64, chunk by chunk."""
    from scipy.linalg import solve_triangular
    from scipy.special import logsumexp

    d = x.shape[1]
    factors = np.linalg.cholesky(Sigma)
    whiten = [solve_triangular(factor, np.eye(d), lower=True).T for factor in factors]
    offset = np.log(np.asarray(pi, float)) - np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(1)
    total = 0.0
    for rows in np.array_split(x.astype(float), max(1, len(x) // 16_384)):
        quadratic = np.stack([(((rows - m) @ w) ** 2).sum(1) for m, w in zip(mu.astype(float), whiten, strict=True)])
        total += logsumexp(offset[:, None] - quadratic / 2, axis=0).sum()
    return float(total - len(x) * d / 2 * np.log(2 * np.pi))


def distortion(x: np.ndarray, mu: np.ndarray) -> float:
    """J in float64, by NumPy; expanded squares lose nothing that matters in float64 at data near the origin."""
    mu, total = mu.astype(float), 0.0
    for rows in np.array_split(x.astype(float), max(1, len(x) // 16_384)):
        total += np.min((rows**2).sum(1)[:, None] - 2 * rows @ mu.T + (mu**2).sum(1), axis=1).sum()
    return float(total)


# ---- the programs


def jaxem_em(name: str, case: Case, x: np.ndarray, mu: np.ndarray) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    rows, theta = jnp.asarray(x), jax.tree.map(jnp.asarray, start(name, mu))
    m = getattr(gaussian, name)
    timing = measure(lambda: jaxem.em(m, theta, rows, tol=0.0, max_steps=case.num_steps), repeats=case.repeats)
    fit = timing.value
    end = jax.tree.map(np.asarray, fit.theta)
    return timing.as_row(1 / case.num_steps) | {
        "program": "jaxem.em",
        "iterations": int(fit.num_steps),
        "objective": log_likelihood(x, end["pi"], end["mu"], covariances(name, end)),
        "note": f"{jaxem.Status(int(fit.status)).name}, its own F {float(fit.free_energy):.9g}",
    }


def scikit_learn_em(name: str, case: Case, x: np.ndarray, mu: np.ndarray) -> dict[str, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    warnings.simplefilter("ignore", ConvergenceWarning)
    theta = start(name, mu)
    precisions = {"Sigma": lambda s: np.linalg.inv(s), "sigma": lambda s: s**-2.0}
    (key,) = theta.keys() & precisions.keys()
    k = len(mu)
    arguments = {
        "covariance_type": SCIKIT_LEARN[name],
        "tol": 0.0,
        "reg_covar": 0.0,
        "max_iter": case.num_steps,
        "weights_init": theta["pi"],
        "means_init": mu,
        "precisions_init": precisions[key](theta[key]).astype(np.float32),
    }
    timing = measure(
        lambda: GaussianMixture(k, **arguments).fit(x), repeats=case.peer_repeats, warm_up=case.peer_repeats > 1
    )
    fit = timing.value
    scale = fit.covariances_ if key == "Sigma" else np.sqrt(fit.covariances_)
    end = {"pi": fit.weights_, "mu": fit.means_, key: scale}
    return timing.as_row(1 / case.num_steps) | {
        "program": f"scikit-learn GaussianMixture({SCIKIT_LEARN[name]})",
        "compile_seconds": 0.0,
        "iterations": int(fit.n_iter_),
        "objective": log_likelihood(x, fit.weights_, fit.means_, covariances(name, end)),
        "note": f"stays in {fit.means_.dtype}",
    }


def gmmx_em(name: str, case: Case, x: np.ndarray, mu: np.ndarray) -> dict[str, Any]:
    """gmmx 0.7, or the line that says why it is not in the table."""
    if name not in GMMX:
        return {"program": "gmmx", "note": f"skipped: has no {name} covariances"}
    if find_spec("gmmx") is None:
        return {"program": "gmmx", "note": "skipped: not installed (pip install gmmx)"}
    import jax
    import jax.numpy as jnp
    from gmmx import EMFitter, GaussianMixtureModelJax

    theta = start(name, mu)
    values = theta["Sigma"] if name == "full" else theta["sigma"] ** 2
    kind = GMMX[name]
    rows = jnp.asarray(x)
    first = GaussianMixtureModelJax.from_squeezed(jnp.asarray(mu), jnp.asarray(values), jnp.asarray(theta["pi"]), kind)
    fitter = EMFitter(max_iter=case.num_steps, tol=0.0, reg_covar=0.0)
    timing = measure(lambda: jax.block_until_ready(fitter.fit(rows, first)), repeats=case.peer_repeats)
    model, k = timing.value.gmm, len(mu)
    variance = np.asarray(model.covariances.values)[0]
    end = {"mu": np.asarray(model.means)[0, :, :, 0]}
    end |= {"Sigma": variance} if name == "full" else {"sigma": np.sqrt(variance.reshape(k, -1))}
    pi = np.asarray(model.weights).reshape(k)
    return timing.as_row(1 / case.num_steps) | {
        "program": f"gmmx EMFitter({kind})",
        "iterations": int(timing.value.n_iter),
        "objective": log_likelihood(x, pi, end["mu"], covariances(name, end)),
        "note": "one E-step fewer",
    }


def jaxem_kmeans(case: Case, x: np.ndarray, mu: np.ndarray) -> dict[str, Any]:
    import jax.numpy as jnp

    import jaxem

    rows, centres = jnp.asarray(x), jnp.asarray(mu)
    timing = measure(lambda: jaxem.kmeans(rows, centres, max_steps=case.num_steps), repeats=case.repeats)
    fit = timing.value
    return timing.as_row(1 / case.num_steps) | {
        "program": "jaxem.kmeans",
        "iterations": int(fit.num_steps),
        "objective": distortion(x, np.asarray(fit.theta["mu"])),
    }


def scikit_learn_kmeans(case: Case, x: np.ndarray, mu: np.ndarray) -> dict[str, Any]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)
    arguments = {"algorithm": "lloyd", "n_init": 1, "init": mu, "max_iter": case.num_steps, "tol": 0.0}
    timing = measure(lambda: KMeans(len(mu), **arguments).fit(x), repeats=case.peer_repeats)
    fit = timing.value
    return timing.as_row(1 / case.num_steps) | {
        "program": "scikit-learn KMeans(lloyd)",
        "compile_seconds": 0.0,
        "iterations": int(fit.n_iter_),
        "objective": distortion(x, fit.cluster_centers_),
    }


# ---- memory, in a process of its own


def memory_child(name: str, case: Case, path: str) -> None:
    """Print the MB of the data and of the peak above what is resident with the data loaded."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    stored = np.load(path)
    x = jax.block_until_ready(jnp.asarray(stored["x"]))
    theta = jax.block_until_ready(jax.tree.map(jnp.asarray, start("full" if name == "kmeans" else name, stored["mu"])))
    size = x.nbytes / 1e6
    before = rss_megabytes(peak=False)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    except OSError:
        before = rss_megabytes(peak=True)  # elsewhere: measure from the old peak
    if name == "kmeans":
        fit = jaxem.kmeans(x, theta["mu"], max_steps=case.num_steps)
    else:
        fit = jaxem.em(getattr(gaussian, name), theta, x, tol=0.0, max_steps=case.num_steps)
    jax.block_until_ready(fit)
    print(json.dumps({"data": size, "beyond": rss_megabytes(peak=True) - before}))


def memory(name: str, case: Case, x: np.ndarray, mu: np.ndarray, quick: bool) -> dict[str, float]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/data.npz"
        np.savez(path, x=x, mu=mu)
        command = [sys.executable, __file__, "--case", name, "--memory", path, *["--quick"] * quick]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


# ---- the comparison


def compare(name: str, case: Case, seed: int, quick: bool) -> dict[str, Any]:
    x, mu = data(case, seed)
    beyond = memory(name, case, x, mu, quick)
    if name == "kmeans":
        rows = [jaxem_kmeans(case, x, mu), scikit_learn_kmeans(case, x, mu)]
        objective, unit = "distortion", "iteration of Lloyd's algorithm"
    else:
        rows = [fit(name, case, x, mu) for fit in (jaxem_em, scikit_learn_em, gmmx_em)]
        objective, unit = "log-likelihood", "iteration of EM"
    rows[0]["memory_mb"] = beyond["beyond"]
    timed = [row for row in rows[1:] if row.get("median")]
    goals = [goal(f"{row['program']} / jaxem", row["median"] / rows[0]["median"], 1.0, at_least=True) for row in timed]
    goals.append(goal(f"peak MB beyond the data's {beyond['data']:.0f}", beyond["beyond"], 300, at_least=False))
    return {
        "name": f"large, {name}",
        "statement": f"seconds an {unit}, {case.num_steps} iterations from the same start; objective: {objective}",
        "setting": {
            "N": case.num_rows,
            "D": case.num_features,
            "K": case.num_components,
            "precision": 32,
            "start": "random rows, same in all" + ("" if name == "kmeans" else ", Σ = 4I, π = 1/K"),
        },
        "rows": rows,
        "goals": goals,
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser("large_em", __doc__)
    options.add_argument("--case", choices=CASES, help="one of them; all by default")
    options.add_argument(
        "--memory", metavar="DATA", help="measure memory only, on this file; used by the script itself"
    )
    options = options.parse_args(arguments)
    cases = {name: case.tiny() if options.quick else case for name, case in CASES.items()}
    if options.memory:
        memory_child(options.case, cases[options.case], options.memory)
        return 0
    chosen = [options.case] if options.case else list(cases)
    done = [compare(name, cases[name], options.seed, options.quick) for name in chosen]
    return finish(f"large_em_{options.case}" if options.case else "large_em", done, options)


if __name__ == "__main__":
    sys.exit(main())
