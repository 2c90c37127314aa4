"""Generated fits, judged in long double: `python tests/generated.py --all` fits 10,080, and lists every false status.

A problem is made from (family, bits, shape, number) alone, so any one can be looked at again. Rows are clumps,
duplicates, constants, outliers, ties, collinear or tight, in units of 1e-8 … 1e8 and far from the origin; starts are
good, coincident, far or extreme; weights are none, mixed, zero or extreme; T runs from 0 to 1e6. The judge is EM
written out in NumPy.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and "--bits" in sys.argv:
    os.environ["JAX_ENABLE_X64"] = str(int(sys.argv[sys.argv.index("--bits") + 1] == "64"))

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

import jaxem
from jaxem import Status
from jaxem.families import bernoulli, categorical, exponential, gaussian, poisson

LONG = np.longdouble
SCALES, COVARIANCES = ("isotropic", "spherical", "diagonal"), ("tied", "full")
GAUSSIAN = (*SCALES, *COVARIANCES)
OTHERS = {
    "bernoulli": bernoulli.mixture,
    "categorical": categorical.mixture,
    "poisson": poisson.mixture,
    "exponential": exponential.mixture,
}
MODELS = {name: getattr(gaussian, name) for name in GAUSSIAN} | OTHERS
SHAPES = ((17, 2, 3), (5, 3, 2), (130, 4, 2), (40, 1, 4), (200, 3, 5))  # N, K, D; C is 3
TEMPERATURES, CHANCES = (0.0, 1e-6, 0.3, 1.0, 5.0, 1e6), (0.15, 0.1, 0.1, 0.45, 0.1, 0.1)
MAX_STEPS = 300
Theta = dict[str, np.ndarray]


# ---- problems


def real_rows(rng: np.random.Generator, N: int, K: int, D: int, unit: float) -> np.ndarray:
    """Rows of the Gaussian families, in a unit and at an offset."""
    centres = 3 * rng.normal(size=(K, D))
    z = centres[rng.integers(K, size=N)] + rng.normal(size=(N, D))
    kind = rng.choice(["clumps", "duplicates", "constant", "outlier", "ties", "equal", "collinear", "heavy", "tight"])
    if kind == "duplicates":
        z = z[rng.integers(max(1, N // 4), size=N)]
    elif kind == "constant":
        z[:, rng.integers(D)] = rng.normal()
    elif kind == "outlier":
        z[rng.integers(N)] *= 10 ** rng.uniform(2, 6)
    elif kind == "ties":
        z = rng.integers(0, 3, size=(N, D)).astype(float)
    elif kind == "equal":
        z = np.repeat(z[:1], N, 0)
    elif kind == "collinear":
        z = np.outer(rng.normal(size=N), rng.normal(size=D)) + 1e-6 * rng.normal(size=(N, D))
    elif kind == "heavy":
        z = rng.standard_cauchy(size=(N, D))
    elif kind == "tight":
        z = centres[rng.integers(K, size=N)] + 1e-5 * rng.normal(size=(N, D))
    return unit * (z + rng.choice([0, 0, 1e2, 1e4, 1e6]) * rng.normal(size=D).round(2))


def discrete_rows(rng: np.random.Generator, family: str, N: int, D: int, unit: float) -> np.ndarray:
    """Rows of the other families."""
    level = rng.choice([0.2, 1, 5], size=(N, 1)) * np.ones((N, D))
    x = {
        "bernoulli": lambda: (rng.random((N, D)) < rng.choice([0.1, 0.5, 0.9], size=(N, 1))).astype(float),
        "categorical": lambda: rng.integers(0, 3, size=(N, D)).astype(float),
        "poisson": lambda: rng.poisson(unit * level).astype(float),
        "exponential": lambda: rng.exponential(unit * level),
    }[family]()
    kind = rng.choice(["mixed", "duplicates", "constant", "equal", "zeros", "outlier"])
    if kind == "duplicates":
        x = x[rng.integers(max(1, N // 4), size=N)]
    elif kind == "constant":
        x[:, rng.integers(D)] = x[0, 0]
    elif kind == "equal":
        x = np.repeat(x[:1], N, 0)
    elif kind == "zeros":
        x[rng.random(N) < 0.3, rng.integers(D)] = 0
    elif kind == "outlier" and family in ("poisson", "exponential"):
        x[rng.integers(N)] *= 1000
    return x


def problem(family: str, bits: int, shape: int, number: int) -> dict[str, Any]:
    """x, θ, weights and T."""
    rng = np.random.default_rng([list(MODELS).index(family), bits, shape, number])
    (N, K, D), dtype = SHAPES[shape], np.float64 if bits == 64 else np.float32
    unit = 10 ** rng.uniform(*((-2, 6) if family == "poisson" else (-8, 8))) if rng.random() < 0.6 else 1.0
    x = (real_rows(rng, N, K, D, unit) if family in GAUSSIAN else discrete_rows(rng, family, N, D, unit)).astype(dtype)
    theta = start(rng, family, x.astype(float), K, unit)
    weights = {
        "ones": np.ones(N),
        "mixed": rng.uniform(0.1, 3, N),
        "zeros": np.r_[1.0, rng.random(N - 1) < 0.6],
        "extreme": 10 ** rng.uniform(-12, 12, N),
    }[rng.choice(["ones", "ones", "mixed", "zeros", "extreme"])]
    theta = {name: np.asarray(value).astype(dtype) for name, value in theta.items()}
    for name in ("pi", "probs") if family == "categorical" else ("pi",):
        theta[name] = theta[name] / theta[name].sum(-1, keepdims=True)
    return {"x": x, "theta": theta, "w": weights.astype(dtype), "T": float(rng.choice(TEMPERATURES, p=CHANCES))}


def start(rng: np.random.Generator, family: str, x: np.ndarray, K: int, unit: float) -> dict[str, Any]:
    """θ, good or bad."""
    (N, D), kind = x.shape, rng.choice(["random", "points", "coincident", "far", "extreme"])
    sd, spread = x.std(0), 10.0 ** rng.choice([-6, -3, 3, 6]) if kind == "extreme" else 1.0
    sd = np.where(sd > 0, sd, max(1e-3 * unit, 1e-6 * np.abs(x).max()))
    pi = rng.dirichlet(np.full(K, 0.05 if kind == "extreme" else 3.0)) + 1e-12
    mu = x.mean(0) + sd * rng.normal(size=(K, D)) * (10 ** rng.uniform(2, 5) if kind == "far" else 1)
    if kind == "points":
        mu = x[rng.integers(N, size=K)]
    elif kind == "coincident":
        mu = np.repeat(x.mean(0)[None], K, 0)
    pooled = np.sqrt((sd**2).mean()) * spread
    if family in COVARIANCES:
        A = rng.normal(size=(K, D, D))
        Sigma = (A @ A.swapaxes(1, 2) / D + 0.3 * np.eye(D)) * np.outer(sd, sd) * spread**2
        return {"pi": pi, "mu": mu, "Sigma": Sigma[0] if family == "tied" else Sigma}
    if family in GAUSSIAN:
        shape = {"isotropic": (), "spherical": (K,), "diagonal": (K, D)}[family]
        return {
            "pi": pi,
            "mu": mu,
            "sigma": (sd * spread if family == "diagonal" else pooled) * rng.uniform(0.5, 2, shape),
        }
    if family == "bernoulli":
        return {
            "pi": pi,
            "probs": rng.choice([1e-7, 0.5, 1 - 1e-7], size=(K, D)) if spread != 1 else rng.random((K, D)),
        }
    if family == "categorical":
        return {"pi": pi, "probs": rng.dirichlet(np.full(3, 0.1 if spread != 1 else 1.0), size=(K, D)) + 1e-6}
    mean = np.where(x.mean(0) > 0, x.mean(0), 1) * rng.uniform(0.3, 3, (K, D)) * spread
    return {"pi": pi, "rate": 1 / mean if family == "exponential" else mean}


# ---- EM in long double


def factors(theta: Theta) -> tuple[np.ndarray, np.ndarray]:
    """σ (K, D) and L⁻¹ of the correlation matrices (K, D, D); NaN where those are not positive definite."""
    K, D = theta["mu"].shape
    if "sigma" in theta:
        sigma = theta["sigma"].reshape(theta["sigma"].shape + (1,) * (2 - theta["sigma"].ndim))
        return np.broadcast_to(sigma, (K, D)), np.broadcast_to(np.eye(D, dtype=LONG), (K, D, D))
    Sigma = np.broadcast_to(theta["Sigma"], (K, D, D))
    sigma = np.sqrt(np.diagonal(Sigma, axis1=1, axis2=2))
    C = Sigma / sigma[:, :, None] / sigma[:, None]
    L, inverse = np.zeros_like(C), np.zeros_like(C)
    for i in range(D):
        for j in range(i + 1):
            rest = C[:, i, j] - (L[:, i, :j] * L[:, j, :j]).sum(1)
            L[:, i, j] = np.sqrt(rest) if i == j else rest / L[:, j, j]
        inverse[:, i, i] = 1 / L[:, i, i]
        for j in range(i):
            inverse[:, i, j] = -(L[:, i, j:i] * inverse[:, j:i, j]).sum(1) / L[:, i, i]
    return sigma, inverse


def table(family: str, theta: Theta, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ℓ (N, K), and the sum of the sizes of its terms, times what their arithmetic amplifies."""
    log_pi = np.log(theta["pi"])[None]

    def log(n: np.ndarray, p: np.ndarray) -> np.ndarray:
        return np.where(n == 0, 0, n * np.log(np.where(n == 0, 1, p)))

    X = x[:, None]
    if family in GAUSSIAN:
        sigma, inverse = factors(theta)
        white = np.einsum("kde,nke->nkd", inverse, (X - theta["mu"][None]) / sigma[None])
        logs = np.log(sigma) - np.log(np.diagonal(inverse, axis1=1, axis2=2)) + np.log(2 * LONG(np.pi)) / 2
        terms = np.concatenate([-(white**2) / 2, np.broadcast_to(-logs, white.shape)], axis=2)
        amplified = x.shape[1] * (inverse**2).sum((1, 2))[None] / x.shape[1] ** (family in SCALES)
        return log_pi + terms.sum(2), (np.abs(log_pi) + np.abs(terms).sum(2)) * amplified
    if family == "bernoulli":
        terms = [log(X, theta["probs"]), log(1 - X, 1 - theta["probs"])]
    elif family == "categorical":
        hot = (X[..., None] == np.arange(3)).astype(LONG)
        terms = [log(hot, theta["probs"][None]).sum(3)]
    elif family == "poisson":
        terms = [log(X, theta["rate"]), -theta["rate"] + 0 * X, -gammaln(X.astype(float) + 1).astype(LONG)]
    else:
        terms = [np.log(theta["rate"]) + 0 * X, -theta["rate"] * X]
    sizes = sum(np.abs(term).sum(2) for term in terms)
    return log_pi + sum(term.sum(2) for term in terms), np.abs(log_pi) + sizes


def e_step(family: str, theta: Theta, p: dict[str, Any]) -> tuple[np.ndarray, LONG, LONG]:
    """wγ, F, and how large its terms are."""
    ell, sizes = table(family, theta, p["x"].astype(LONG))
    w, T = p["w"].astype(LONG)[:, None], LONG(p["T"])
    peak = ell.max(1, keepdims=True)
    gamma = (
        np.exp((ell - peak) / T) if T > 0 else (np.arange(ell.shape[1])[None] == ell.argmax(1)[:, None]).astype(LONG)
    )
    total = gamma.sum(1, keepdims=True)
    gamma, rows = gamma / total, peak + (T * np.log(total) if T > 0 else 0)
    used = np.where(gamma > 0, gamma * np.where(gamma > 0, sizes, 0), 0).sum(1, keepdims=True)
    counts = w > 0
    return w * gamma, np.where(counts, w * rows, 0).sum(), np.where(counts, w * (used + np.abs(rows)), 0).sum()


def m_step(family: str, theta: Theta, p: dict[str, Any], gamma: np.ndarray) -> Theta:
    """θ⁺ of wγ."""
    x, N_k = p["x"].astype(LONG), gamma.sum(0)
    there, safe = N_k > 0, np.where(N_k > 0, N_k, 1)
    new = {"pi": N_k / N_k.sum()}

    def where(value: np.ndarray, name: str) -> np.ndarray:
        return np.where(there.reshape((-1,) + (1,) * (value.ndim - 1)), value, theta[name])

    if family in GAUSSIAN:
        c = x.mean(0)
        new["mu"] = mu = where(c + gamma.T @ (x - c) / safe[:, None], "mu")
        d = x[:, None] - mu[None]
        if family in COVARIANCES:
            S = np.einsum("nk,nkd,nke->kde", gamma, d, d)
            return new | {
                "Sigma": S.sum(0) / N_k.sum() if family == "tied" else where(S / safe[:, None, None], "Sigma")
            }
        S = np.einsum("nk,nkd->kd", gamma, d**2)
        if family == "isotropic":
            return new | {"sigma": np.sqrt(S.sum() / N_k.sum() / x.shape[1])}
        return new | {
            "sigma": where(np.sqrt(S.mean(1) / safe if family == "spherical" else S / safe[:, None]), "sigma")
        }
    if family == "categorical":
        counts = np.einsum("nk,ndc->kdc", gamma, (x[:, :, None] == np.arange(3)).astype(LONG))
        return new | {"probs": where(counts / np.maximum(counts.sum(2, keepdims=True), LONG(1e-4000)), "probs")}
    mean = gamma.T @ x / safe[:, None]
    name = "probs" if family == "bernoulli" else "rate"
    return new | {name: where(1 / mean if family == "exponential" else mean, name)}


# ---- the judge


def has_no_digits(theta: Theta, eps: float, counts: Any = True) -> bool:
    """Is a component that counts beyond what its precision holds: a point, a plane, or infinite?"""
    if not all(np.isfinite(value).all() for value in theta.values()):
        return True
    if "mu" not in theta:
        return False
    (sigma, inverse), D = factors(theta), theta["mu"].shape[1]
    v = (inverse**2).sum(1)
    digits = (eps * theta["mu"] / sigma) ** 2 * v
    fine = (v.sum(1) * eps * D < 1 / 32) & (digits.sum(1) < 1 / 8) & np.all(sigma > 1e-18, axis=1)
    return bool(np.any(~fine & counts))


def faults(family: str, p: dict[str, Any], fit: Any) -> list[str]:
    """What is false about a fit."""
    with np.errstate(all="ignore"):
        return list(_faults(family, p, fit))


def _faults(family: str, p: dict[str, Any], fit: Any):
    eps = float(np.finfo(p["x"].dtype).eps)
    status, F = Status(int(fit.status)), float(fit.free_energy)
    theta = {name: np.asarray(value).astype(LONG) for name, value in fit.theta.items()}
    gamma, exact, sizes = e_step(family, theta, p)
    W = float(p["w"].astype(LONG).sum())
    noise = float(32 * eps * (sizes + p["x"].shape[1] * W))
    if family in GAUSSIAN and np.isfinite(float(exact)) and np.isfinite(F) and abs(F - float(exact)) > noise:
        yield f"{status.name}: F is {F:.9g} and not {float(exact):.9g} ± {noise:.1e}"
    if not all(np.isfinite(value).all() for value in theta.values()):
        yield f"{status.name}: θ is not finite"
        return
    if status == Status.DECREASED:
        yield f"DECREASED by {float(fit.gain):.3g}, rounding {float(fit.rounding):.1e}: the M-step is exact"
    new = m_step(family, theta, p, gamma)
    if status == Status.CONVERGED:
        gain = float(e_step(family, new, p)[1] - exact)
        allowed = 100 * max(1e-10 * W, 8 * eps * abs(F)) + 4 * noise + 2 * float(fit.rounding)
        if not np.isfinite(gain) and not has_no_digits(new, eps):
            yield "CONVERGED, and F is not finite"
        elif gain > allowed:
            yield f"CONVERGED, and an exact step gains {gain:.3g} of {allowed:.1e} nats"
        counts = gamma.sum(0) > eps**2 * gamma.sum()  # F does not depend on the others, to any digit
        if "mu" in theta and np.isfinite(float(exact)) and has_no_digits(theta, eps / 64, counts):
            yield "CONVERGED at a θ without digits"
    if status == Status.MAX_STEPS and float(fit.gain) == 0:
        yield "MAX_STEPS at gain 0"
    if status == Status.NONFINITE and np.isfinite(float(exact)):
        for _ in range(MAX_STEPS):
            if has_no_digits(new, eps) or not np.isfinite(float(exact)):
                return
            gamma, exact, _ = e_step(family, new, p)
            new = m_step(family, new, p, gamma)
        yield "NONFINITE, and long double goes on without collapse"


fit_one = jax.jit(
    lambda m, theta, x, w, T: jaxem.em(m, theta, x, weights=w, temperature=T, max_steps=MAX_STEPS), static_argnums=0
)


def judged(family: str, bits: int, shape: int, numbers: range) -> list[tuple[int, str, list[str]]]:
    """(number, status, what is false) of each fit; one compilation for all."""
    outcome = []
    for number in numbers:
        p = problem(family, bits, shape, number)
        dtype = p["x"].dtype
        fit = fit_one(MODELS[family], p["theta"], p["x"], p["w"], jnp.asarray(p["T"], dtype))
        outcome.append((number, Status(int(fit.status)).name, faults(family, p, jax.device_get(fit))))
    return outcome


def main() -> None:
    """All fits of one precision after the other, each (family, shape) a line; those in the file are not done again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="112 fits a family, shape and precision: 10,080")
    parser.add_argument("--bits", type=int, choices=(32, 64))
    parser.add_argument("--out", default="generated.jsonl")
    arguments = parser.parse_args()
    if arguments.bits is None:
        for bits in (64, 32):  # x64 is chosen before JAX starts
            extra = ["--all"] if arguments.all else []
            os.spawnv(
                os.P_WAIT,
                sys.executable,
                [sys.executable, __file__, "--bits", str(bits), "--out", arguments.out, *extra],
            )
        lines = [json.loads(line) for line in Path(arguments.out).read_text().splitlines()]
        false = [(line["of"], entry) for line in lines for entry in line["false"]]
        print(f"{sum(line['fits'] for line in lines)} fits, {len(false)} false", *false, sep="\n")
        sys.exit(bool(false))
    done = []
    if Path(arguments.out).exists():
        done = [json.loads(line)["of"] for line in Path(arguments.out).read_text().splitlines()]
    for family in MODELS:
        for shape in range(len(SHAPES)):
            of = [family, arguments.bits, shape]
            if of in done:
                continue
            outcome = judged(*of, range(112 if arguments.all else 12))
            false = [(number, *wrong) for number, _, wrong in outcome if wrong]
            ends = [status for _, status, _ in outcome]
            line = {"of": of, "fits": len(ends), "ends": {end: ends.count(end) for end in set(ends)}, "false": false}
            with open(arguments.out, "a") as file:
                file.write(json.dumps(line) + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
