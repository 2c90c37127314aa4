"""The programs that are compared, jaxem first: one small function each, all of one form.

Given a family, a start θ, the rows and a number of iterations, each returns a `Program`: what is timed, and how to read
what it returned. None may stop early: every tolerance is 0. What is not installed, or has no such model, is `Absent`.
"""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from shutil import which
from typing import Any, NamedTuple

import numpy as np

Theta = dict[str, Any]


class Outcome(NamedTuple):
    """The iterations that were made, where they led, and what the reader should know."""

    iterations: int
    theta: Theta
    note: str = ""


class Program(NamedTuple):
    """One fit, from data in memory to parameters."""

    fit: Callable[[], Any]
    outcome: Callable[[Any], Outcome]


class Absent(Exception):
    """Why a program is not in the table."""


def need(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise Absent(f"skipped: not installed (pip install {package})")


def as_numpy(tree: Any) -> Any:
    import jax

    return jax.tree.map(np.asarray, tree)


# ---- jaxem


def jaxem_em(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    m = getattr(gaussian, family)
    rows, theta = jax.block_until_ready(jax.tree.map(jnp.asarray, (x, theta)))

    def outcome(fit: jaxem.Fit) -> Outcome:
        note = f"{jaxem.Status(int(fit.status)).name}, its own F {float(fit.free_energy):.9g}"
        return Outcome(int(fit.num_steps), as_numpy(fit.theta), note)

    return Program(lambda: jaxem.em(m, theta, rows, tol=0.0, max_steps=steps), outcome)


def jaxem_kmeans(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    import jax
    import jax.numpy as jnp

    import jaxem

    rows, mu = jax.block_until_ready((jnp.asarray(x), jnp.asarray(theta["mu"])))

    def outcome(fit: jaxem.Fit) -> Outcome:
        return Outcome(int(fit.num_steps), as_numpy(fit.theta), jaxem.Status(int(fit.status)).name)

    return Program(lambda: jaxem.kmeans(rows, mu, max_steps=steps), outcome)


# ---- mixtures

SCIKIT_LEARN = {"full": "full", "diagonal": "diag", "spherical": "spherical", "tied": "tied"}
GMMX = {"full": "full", "diagonal": "diag"}


def scikit_learn_em(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    if family not in SCIKIT_LEARN:
        raise Absent(f"skipped: has no {family} covariances")
    need("sklearn", "scikit-learn")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    warnings.simplefilter("ignore", ConvergenceWarning)
    scale = np.linalg.inv(theta["Sigma"]) if "Sigma" in theta else theta["sigma"] ** -2.0
    arguments = {
        "covariance_type": SCIKIT_LEARN[family],
        "tol": 0.0,
        "reg_covar": 0.0,
        "max_iter": steps,
        "weights_init": theta["pi"],
        "means_init": theta["mu"],
        "precisions_init": scale.astype(np.float32),
    }

    def outcome(fit: GaussianMixture) -> Outcome:
        end = {"pi": fit.weights_, "mu": fit.means_}
        end |= {"Sigma": fit.covariances_} if "Sigma" in theta else {"sigma": np.sqrt(fit.covariances_)}
        return Outcome(int(fit.n_iter_), end, f"stays in {fit.means_.dtype}, {threads()} threads")

    return Program(lambda: GaussianMixture(len(theta["mu"]), **arguments).fit(x), outcome)


def gmmx_em(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    if family not in GMMX:
        raise Absent(f"skipped: has no {family} covariances")
    need("gmmx", "gmmx")
    import jax
    import jax.numpy as jnp
    from gmmx import EMFitter, GaussianMixtureModelJax

    values = theta["Sigma"] if family == "full" else theta["sigma"] ** 2
    rows, *parameters = jax.block_until_ready([jnp.asarray(value) for value in (x, theta["mu"], values, theta["pi"])])
    first = GaussianMixtureModelJax.from_squeezed(*parameters, GMMX[family])
    fitter = EMFitter(max_iter=steps, tol=0.0, reg_covar=0.0)

    def outcome(result: Any) -> Outcome:
        model, k = result.gmm, len(theta["mu"])
        variance = np.asarray(model.covariances.values)[0]
        end = {"pi": np.asarray(model.weights).reshape(k), "mu": np.asarray(model.means)[0, :, :, 0]}
        end |= {"Sigma": variance} if family == "full" else {"sigma": np.sqrt(variance.reshape(k, -1))}
        return Outcome(int(result.n_iter), end, "one E-step fewer")

    return Program(lambda: fitter.fit(rows, first), outcome)


# ---- k-means


def lloyd(kind: Callable[..., Any], theta: Theta, x: np.ndarray, steps: int, note: Callable[[Any], str]) -> Program:
    """scikit-learn's interface to Lloyd's algorithm."""
    from sklearn.exceptions import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)
    mu = theta["mu"]
    arguments = {"algorithm": "lloyd", "n_init": 1, "max_iter": steps, "tol": 0.0}

    def outcome(fit: Any) -> Outcome:
        return Outcome(int(fit.n_iter_), {"mu": np.asarray(fit.cluster_centers_)}, note(fit))

    return Program(lambda: kind(len(mu), init=mu, **arguments).fit(x), outcome)


def scikit_learn_kmeans(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    need("sklearn", "scikit-learn")
    from sklearn.cluster import KMeans

    return lloyd(KMeans, theta, x, steps, lambda fit: f"{threads()} threads")


def onedal_kmeans(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    """oneDAL, behind scikit-learn's name."""
    need("sklearnex", "scikit-learn-intelex")
    from daal4py import num_threads
    from sklearnex.cluster import KMeans

    def note(fit: Any) -> str:
        fell_back = "" if hasattr(fit, "_onedal_estimator") else "FELL BACK to scikit-learn, "
        return f"{fell_back}{num_threads()} threads"

    return lloyd(KMeans, theta, x, steps, note)


def faiss_kmeans(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    """faiss, on every row."""
    need("faiss", "faiss-cpu")
    import faiss

    mu = theta["mu"]
    every_row = {"max_points_per_centroid": 10**9, "min_points_per_centroid": 1}  # it would fit a sample

    def fit() -> Any:
        kmeans = faiss.Kmeans(x.shape[1], len(mu), niter=steps, nredo=1, seed=0, **every_row)
        kmeans.train(x, init_centroids=mu)
        return kmeans

    def outcome(kmeans: Any) -> Outcome:
        return Outcome(len(kmeans.obj), {"mu": kmeans.centroids}, f"{faiss.omp_get_max_threads()} threads")

    return Program(fit, outcome)


def flash_kmeans(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    """flash-kmeans, Triton kernels under torch, whose products are of TF32."""
    need("flash_kmeans", "flash-kmeans")
    from flash_kmeans import batch_kmeans_Euclid

    rows, mu = (tensor[None] for tensor in on_gpu(x, theta["mu"]))

    def fit() -> Any:
        _, centroids, count = batch_kmeans_Euclid(
            rows, len(mu[0]), max_iters=steps, tol=-1.0, init_centroids=mu.clone()
        )
        return centroids[0].cpu().numpy(), count

    return Program(fit, lambda result: Outcome(int(result[1]), {"mu": result[0]}, "products of TF32"))


def fast_pytorch_kmeans(family: str, theta: Theta, x: np.ndarray, steps: int) -> Program:
    need("fast_pytorch_kmeans", "fast-pytorch-kmeans")
    from fast_pytorch_kmeans import KMeans

    rows, mu = on_gpu(x, theta["mu"])

    def fit() -> Any:
        kmeans = KMeans(n_clusters=len(mu), max_iter=steps, tol=-1.0)
        kmeans.fit_predict(rows, centroids=mu.clone())
        return kmeans.centroids.cpu().numpy()

    return Program(fit, lambda centroids: Outcome(steps, {"mu": centroids}, "does not say how many iterations it made"))


def on_gpu(*arrays: np.ndarray) -> list[Any]:
    import torch

    if not torch.cuda.is_available():
        raise Absent("skipped: torch sees no GPU")
    return [torch.from_numpy(np.ascontiguousarray(array)).cuda() for array in arrays]


def threads() -> str:
    """How many the loaded libraries of linear algebra and OpenMP use."""
    from threadpoolctl import threadpool_info

    counts = {pool["num_threads"] for pool in threadpool_info()}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else str(os.cpu_count())


Maker = Callable[[str, Theta, np.ndarray, int], Program]
EM: dict[str, Maker] = {
    "jaxem.em": jaxem_em,
    "scikit-learn GaussianMixture": scikit_learn_em,
    "gmmx EMFitter": gmmx_em,
}
KMEANS: dict[str, Maker] = {
    "jaxem.kmeans": jaxem_kmeans,
    "scikit-learn KMeans": scikit_learn_kmeans,
    "oneDAL KMeans": onedal_kmeans,
    "faiss Kmeans": faiss_kmeans,
}
KMEANS_ON_GPU: dict[str, Maker] = {
    "jaxem.kmeans": jaxem_kmeans,
    "flash-kmeans": flash_kmeans,
    "fast-pytorch-kmeans": fast_pytorch_kmeans,
}
ALL = EM | KMEANS | KMEANS_ON_GPU


def of(family: str) -> dict[str, Maker]:
    """jaxem's first; on a machine with an NVIDIA GPU, its peers there."""
    if family != "kmeans":
        return EM
    return KMEANS_ON_GPU if which("nvidia-smi") else KMEANS
