"""The fourteen covariance models beside R's mclust and scikit-learn, missing cells, and the choice of model and K.

    python experiments/benchmarks/mclust.py [--seed S] [--out DIR] [--quick] [--devices 1|all]

Fits: N = 100,000, D = 8, K = 8, float32 (mclust and scikit-learn: float64, all they have), the same start (hard labels,
then one M-step) and the same number of iterations, seconds an iteration. mclust's `me` is timed by R's own clock, in
an R process of its own: once, for it compiles nothing. Missing cells: a tenth of the cells of the same rows, at random.
Choice: 14 models × K = 1 … 9 × 5 starts on 1,000 rows beside `Mclust`, which starts once, from a hierarchical
clustering. Where R or its package is absent (Debian: r-cran-mclust) the row says so.
"""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np

from _timing import finish, goal, measure, parser, start_jax

NAMES = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
NEAREST = {"EEI": "diag", "EEE": "tied", "VVI": "diag", "VVV": "full"}  # scikit-learn's
ALTERNATING = ("VEI", "VEE", "VEV", "EVE", "VVE")

ME = """
arguments <- commandArgs(TRUE)
suppressMessages(library(mclust))
size <- as.integer(arguments[2:4])
x <- matrix(readBin(arguments[1], "double", size[1] * size[2]), size[1], byrow = TRUE)
z <- unmap(readBin(arguments[5], "integer", size[1]))
for (name in strsplit(arguments[6], ",")[[1]]) {
  control <- emControl(tol = c(0, sqrt(.Machine$double.eps)), itmax = size[3])  # of EM, of alternations within a step
  seconds <- system.time(found <- me(data = x, modelName = name, z = z, control = control))["elapsed"]
  cat(name, seconds, unlist(attr(found, "info"))[1], format(found$loglik, digits = 15), "\\n")
}
"""
CHOICE = """
arguments <- commandArgs(TRUE)
suppressMessages(library(mclust))
size <- as.integer(arguments[2:4])
x <- matrix(readBin(arguments[1], "double", size[1] * size[2]), size[1], byrow = TRUE)
names <- strsplit(arguments[5], ",")[[1]]
seconds <- system.time(found <- Mclust(x, G = 1:size[3], modelNames = names, verbose = FALSE))["elapsed"]
cat(found$modelName, found$G, format(found$bic, digits = 15), seconds, "\\n")
"""


def rows_of(num_rows: int, num_features: int, num_components: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows about random centres, stretched and turned, and a start: which true component most of them are of."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_components, num_features))
    turned, _ = np.linalg.qr(rng.normal(size=(num_components, num_features, num_features)))
    turned = turned * np.exp(rng.uniform(-1.5, 0.5, size=(num_components, 1, num_features)))  # deviations along axes
    label = np.concatenate([np.arange(num_components), rng.integers(num_components, size=num_rows - num_components)])
    x = centres[label] + np.einsum("nij,nj->ni", turned[label], rng.normal(size=(num_rows, num_features)))
    off = rng.random(num_rows) < 0.2
    return x.astype(np.float32), np.where(off, rng.integers(num_components, size=num_rows), label).astype(np.int32)


def r(script: str, x: np.ndarray, *arguments: Any, labels: np.ndarray | None = None, last: Any = "") -> list[list[str]]:
    """What an R script prints of these rows, by line and word; empty where R or mclust is absent."""
    if which("Rscript") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("x", "labels", "script.R")]
        x.astype(float).tofile(paths[0])
        (np.zeros(0, np.int32) if labels is None else labels).tofile(paths[1])
        paths[2].write_text(script)
        words = [*map(str, arguments), *([str(paths[1]), str(last)] if labels is not None else [])]
        done = subprocess.run(["Rscript", str(paths[2]), str(paths[0]), *words], capture_output=True, text=True)
    if done.returncode and "mclust" not in done.stderr:
        raise RuntimeError(done.stderr)
    return [line.split() for line in done.stdout.splitlines()]


def scikit_learn(kind: str, theta: dict[str, np.ndarray], x: np.ndarray, steps: int) -> Callable[[], Any]:
    """A fit of so many iterations from θ."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    warnings.simplefilter("ignore", ConvergenceWarning)
    covariances = theta["Sigma"].astype(float)
    precisions = {
        "diag": lambda: 1 / np.diagonal(covariances, axis1=1, axis2=2),
        "tied": lambda: np.linalg.inv(covariances[0]),
        "full": lambda: np.linalg.inv(covariances),
    }[kind]()
    pi = theta["pi"] / theta["pi"].astype(float).sum()
    start = {"weights_init": pi, "means_init": theta["mu"], "precisions_init": precisions}
    mixture = GaussianMixture(len(pi), covariance_type=kind, tol=0.0, reg_covar=0.0, max_iter=steps, **start)
    return lambda: mixture.fit(x.astype(float))


def timed_by_r(seconds: float, repeats: int) -> dict[str, Any]:
    """A row's times, of which R gives the median."""
    return dict.fromkeys(("median", "q1", "q3"), seconds) | {"repeats": repeats}


def model(
    name: str, x: np.ndarray, labels: np.ndarray, steps: int, repeats: int, peer: list[str] | None
) -> dict[str, Any]:
    """One covariance model: jaxem, mclust, and scikit-learn where it has one like it."""
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    m, rows, K = getattr(gaussian, name), jnp.asarray(x), int(labels.max()) + 1
    theta = jaxem.inits.from_labels(m, rows, labels, num_components=K)
    timing = measure(partial(jaxem.em, m, theta, rows, tol=0.0, max_steps=steps), repeats=repeats)
    done = int(timing.value.num_steps)
    ours = timing.as_row(1 / done) | {"program": "jaxem.em", "iterations": done}
    found, goals = [ours | {"objective": float(timing.value.free_energy)}], []
    if peer is None:
        found.append({"program": "mclust me", "note": "skipped: not installed (apt-get install r-cran-mclust)"})
    else:
        _, seconds, iterations, objective = peer
        count = abs(int(float(iterations)))  # mclust's sign says that it did not converge
        each = float(seconds) / max(count, 1)
        row = {"program": "mclust me", "iterations": count, "objective": float(objective)}
        found.append(timed_by_r(each, 1) | row | {"note": "R's clock"})
        goals.append(goal("mclust / jaxem, an iteration", each / ours["median"], 5.0, at_least=True))
    if name in NEAREST:
        whole = {key: np.asarray(value) for key, value in theta.items() if key in ("pi", "mu")}
        whole["Sigma"] = np.asarray(jaxem.covariances(m, theta))
        other = measure(scikit_learn(NEAREST[name], whole, x, steps), repeats=max(1, repeats // 2), warm_up=False)
        row = {"program": f"scikit-learn {NEAREST[name]}", "iterations": other.value.n_iter_}
        row["objective"] = float(other.value.score(x.astype(float)) * len(x))
        found.append(other.as_row(1 / other.value.n_iter_) | row)
        ratio = other.median / other.value.n_iter_ / ours["median"]
        goals.append(goal("scikit-learn / jaxem, an iteration", ratio, 15.0, at_least=True))
    setting = {"N": len(x), "D": x.shape[1], "K": K, "precision": 32, "start": "labels, a fifth of them wrong"}
    return {
        "name": f"mclust {name}",
        "statement": f"an EM iteration of {name}" + ", whose M-step alternates" * (name in ALTERNATING),
        "setting": setting,
        "rows": found,
        "goals": goals,
    }


def missing(x: np.ndarray, labels: np.ndarray, steps: int, repeats: int, seed: int) -> dict[str, Any]:
    """A tenth of the cells missing, beside the same rows whole."""
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    K = int(labels.max()) + 1
    gone = np.random.default_rng(seed).random(x.shape) < 0.1
    rows, holes = jnp.asarray(x), jnp.asarray(np.where(gone, np.nan, x))
    found, goals = [], []
    for name in ("VVI", "EEE", "VVV"):
        m = getattr(gaussian, name)
        theta = jaxem.inits.from_labels(m, rows, labels, num_components=K)
        medians = []
        for what, data, how in (("whole", rows, {}), ("a tenth missing", holes, {"missing": True})):
            timing = measure(partial(jaxem.em, m, theta, data, tol=0.0, max_steps=steps, **how), repeats=repeats)
            done = int(timing.value.num_steps)
            row = {"program": f"{name}, {what}", "iterations": done, "objective": float(timing.value.free_energy)}
            found.append(timing.as_row(1 / done) | row)
            medians.append(timing.median / done)
        goals.append(goal(f"{name}: missing / whole", medians[1] / medians[0], 3.0, at_least=False))
    return {
        "name": "missing cells",
        "statement": "an EM iteration of the observed-data likelihood, cells missing at random",
        "setting": {"N": len(x), "D": x.shape[1], "K": K, "precision": 32, "start": "labels, a fifth of them wrong"},
        "rows": found,
        "goals": goals,
    }


def choice(names: tuple[str, ...], num_rows: int, most: int, starts: int, seed: int) -> dict[str, Any]:
    """`select` over all models and K, compilation apart, beside `Mclust`."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    x, _ = rows_of(num_rows, 3, 4, seed)
    rows = jnp.asarray(x, float)
    models = [getattr(gaussian, name) for name in names]
    run = partial(jaxem.select, rows, jax.random.key(seed), models=models, num_components=range(1, most + 1))
    timing = measure(partial(run, starts=starts), repeats=1)
    chosen = timing.value
    K = chosen.fit.theta["mu"].shape[0]
    criterion = float(jaxem.bic(chosen.m, chosen.fit.theta, rows))
    found = [timing.as_row() | {"program": "jaxem.select", "objective": -criterion, "note": f"{chosen.m.name} {K}"}]
    peer, goals = r(CHOICE, x, num_rows, x.shape[1], most, ",".join(names)), []
    if peer:
        name, G, objective, seconds = peer[-1]
        found.append(
            timed_by_r(float(seconds), 1)
            | {"program": "mclust Mclust", "objective": float(objective), "note": f"{name} {G}"}
        )
        goals.append(goal("Mclust / select", float(seconds) / timing.median, 5.0, at_least=True))
    else:
        found.append({"program": "mclust Mclust", "note": "skipped: not installed (apt-get install r-cran-mclust)"})
    return {
        "name": "choice of model and K",
        "statement": f"{len(names)} models × K = 1 … {most} × {starts} starts, BIC as mclust's; Mclust starts once",
        "setting": {"N": num_rows, "D": 3, "K": most, "precision": 64, "start": "k-means++; Mclust: hierarchical"},
        "rows": found,
        "goals": goals,
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser("mclust", __doc__, devices=True).parse_args(arguments)
    num_rows, num_features, K, steps, repeats = (400, 2, 2, 2, 1) if options.quick else (100_000, 8, 8, 10, 5)
    names = ("EII", "VVV") if options.quick else NAMES
    x, labels = rows_of(num_rows, num_features, K, options.seed)
    printed = r(ME, x, num_rows, num_features, steps, labels=labels + 1, last=",".join(names))
    peers = {line[0]: line for line in printed if len(line) == 4}
    start_jax(options)
    found = [model(name, x, labels, steps, repeats, peers.get(name)) for name in names]
    found.append(missing(x, labels, steps, repeats, options.seed))
    import jax

    jax.config.update("jax_enable_x64", True)
    found.append(choice(names, *((60, 2, 1) if options.quick else (1_000, 9, 5)), options.seed))
    return finish("mclust", found, options)


if __name__ == "__main__":
    sys.exit(main())
