"""Generated fits, judged in long double: `python tests/generated.py --all` fits 15,680, and lists every false status.

A problem is made from (family, bits, shape, number) alone, so any one can be looked at again. Rows are clumps,
duplicates, constants, outliers, ties, collinear or tight, in units of 1e-8 … 1e8 and far from the origin; starts are
good, coincident, far or extreme; weights are none, mixed, zero or extreme; T runs from 0 to 1e6. The judge is EM
written out in NumPy (`long_double.py`).
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
from long_double import ANALYSERS, COVARIANCES, GAUSSIAN, LONG, WITH_MATRICES, Theta, e_step, factors, m_step

import jaxem
from jaxem import Status
from jaxem.families import (
    bernoulli,
    categorical,
    exponential,
    factor_analysers,
    gamma,
    gaussian,
    negative_binomial,
    poisson,
    student_t,
    von_mises_fisher,
)

OTHERS = {
    "bernoulli": bernoulli.mixture,
    "categorical": categorical.mixture,
    "poisson": poisson.mixture,
    "exponential": exponential.mixture,
    "gamma": gamma.mixture,
    "negative_binomial": negative_binomial.mixture,
    "student_t": student_t.mixture,
    "von_mises_fisher": von_mises_fisher.mixture,
    ANALYSERS: factor_analysers.mixture(1),
}
REAL = (*WITH_MATRICES, "von_mises_fisher")
COUNTS = ("poisson", "negative_binomial")
HELD_TO_F = (*REAL, "gamma", "negative_binomial")  # those whose sizes of terms are those of their kernel
MODELS = {name: getattr(gaussian, name) for name in GAUSSIAN} | OTHERS
SHAPES = ((17, 2, 3), (5, 3, 2), (130, 4, 2), (40, 1, 4), (200, 3, 5))  # N, K, D; C is 3
TEMPERATURES, CHANCES = (0.0, 1e-6, 0.3, 1.0, 5.0, 1e6), (0.15, 0.1, 0.1, 0.45, 0.1, 0.1)
MAX_STEPS = 300


# ---- problems


def real_rows(rng: np.random.Generator, N: int, K: int, D: int, unit: float) -> np.ndarray:
    """Rows of real numbers, in a unit and at an offset."""
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


def other_rows(rng: np.random.Generator, family: str, N: int, D: int, unit: float) -> np.ndarray:
    """Rows of the other families."""
    level = rng.choice([0.2, 1, 5], size=(N, 1)) * np.ones((N, D))

    def about_one(concentration: float) -> np.ndarray:
        return rng.gamma(concentration, size=(N, D)) / concentration

    x = {
        "bernoulli": lambda: (rng.random((N, D)) < rng.choice([0.1, 0.5, 0.9], size=(N, 1))).astype(float),
        "categorical": lambda: rng.integers(0, 3, size=(N, D)).astype(float),
        "poisson": lambda: rng.poisson(unit * level).astype(float),
        "exponential": lambda: rng.exponential(unit * level),
        "gamma": lambda: unit * level * rng.gamma(shape := 10 ** rng.uniform(-0.5, 4), size=(N, D)) / shape,
        "negative_binomial": lambda: rng.poisson(
            unit * level * rng.gamma(r := 10 ** rng.uniform(-1, 3), 1 / r, (N, D))
        ),
    }[family]().astype(float)
    kind = rng.choice(["mixed", "duplicates", "constant", "equal", "zeros", "outlier"])
    if kind == "duplicates":
        x = x[rng.integers(max(1, N // 4), size=N)]
    elif kind == "constant":
        x[:, rng.integers(D)] = x[0, 0]
    elif kind == "equal":
        x = np.repeat(x[:1], N, 0)
    elif kind == "zeros" and family != "gamma":
        x[rng.random(N) < 0.3, rng.integers(D)] = 0
    elif kind == "outlier" and family not in ("bernoulli", "categorical"):
        x[rng.integers(N)] *= 1000
    return x


def directions(x: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero is the first axis."""
    x = np.where((x == 0).all(-1, keepdims=True), np.eye(x.shape[-1], dtype=x.dtype)[0], x)
    x = x / np.abs(x).max(-1, keepdims=True)
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def problem(family: str, bits: int, shape: int, number: int) -> dict[str, Any]:
    """x, θ, weights and T."""
    rng = np.random.default_rng([list(MODELS).index(family), bits, shape, number])
    (N, K, D), dtype = SHAPES[shape], np.float64 if bits == 64 else np.float32
    unit = 10 ** rng.uniform(*((-2, 6) if family in COUNTS else (-8, 8))) if rng.random() < 0.6 else 1.0
    x = (real_rows(rng, N, K, D, unit) if family in REAL else other_rows(rng, family, N, D, unit)).astype(dtype)
    x = directions(x) if family == "von_mises_fisher" else x
    theta = start(rng, family, x.astype(float), K, unit)
    weights = {
        "ones": np.ones(N),
        "mixed": rng.uniform(0.1, 3, N),
        "zeros": np.r_[1.0, rng.random(N - 1) < 0.6],
        "extreme": 10 ** rng.uniform(-12, 12, N),
    }[rng.choice(["ones", "ones", "mixed", "zeros", "extreme"])]
    theta = {name: np.asarray(value).astype(dtype) for name, value in theta.items()}
    if family == "von_mises_fisher":
        theta["mu"] = directions(theta["mu"])
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
    if family == "von_mises_fisher":
        return {"pi": pi, "mu": mu, "kappa": 10 ** rng.uniform(-1, 3, K) * spread}
    if family == ANALYSERS:
        loadings, sigma = rng.normal(size=(K, D)) * sd * spread, rng.uniform(0.3, 1, (K, D)) * sd * spread
        return {"pi": pi, "mu": mu, "loadings": loadings[:, :, None], "sigma": sigma}
    if family in (*COVARIANCES, "student_t"):
        A = rng.normal(size=(K, D, D))
        Sigma = (A @ A.swapaxes(1, 2) / D + 0.3 * np.eye(D)) * np.outer(sd, sd) * spread**2
        tails = {"df": 10 ** rng.uniform(-1, 2, K)} if family == "student_t" else {}
        return {"pi": pi, "mu": mu, "Sigma": Sigma[0] if family == "tied" else Sigma} | tails
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
    if family in ("gamma", "negative_binomial"):
        concentration = 10 ** rng.uniform(-1, 3, (K, D)) * spread
        more = {"rate": concentration / mean} if family == "gamma" else {"mean": mean}
        return {"pi": pi, "concentration": concentration} | more
    return {"pi": pi, "rate": 1 / mean if family == "exponential" else mean}


# ---- the judge


def has_no_digits(theta: Theta, eps: float, counts: Any = True) -> bool:
    """Is a component that counts beyond what its precision holds: a point, a plane, or infinite?"""
    if not all(np.isfinite(value).all() for value in theta.values()):
        return True
    concentration = theta.get("kappa", theta.get("concentration") if "rate" in theta else None)
    if concentration is not None:  # how wide a component is: 1/√κ, and of its mean 1/√α
        fine = concentration < 1 / (16 * eps) ** 2
        return bool(np.any(~(fine if fine.ndim == 1 else fine.all(1)) & counts))
    if "mu" not in theta:
        return False
    (sigma, inverse), D = factors(theta), theta["mu"].shape[1]
    v = (inverse**2).sum(1)
    digits = (eps * theta["mu"] / sigma) ** 2 * v
    fine = (v.sum(1) * eps * D < 1 / 32) & (digits.sum(1) < 1 / 8) & np.all(sigma > 1e-18, axis=1)
    if "loadings" in theta:  # on a line: more than one feature has next to nothing of its own
        fine &= (theta["sigma"] ** 2 <= 4 * eps**0.4 * sigma**2).sum(1) <= 1
    return bool(np.any(~fine & counts))


def as_far_as_seen(new: Theta, theta: Theta, share: np.ndarray, eps: float) -> Theta:
    """θ⁺, but components of a share below eps as they were: what they do, F does not tell at this precision."""
    seen = share > eps * share.sum()

    def kept(name: str, value: np.ndarray) -> np.ndarray:
        each = name != "pi" and value.ndim > 0 and len(value) == len(seen)
        return np.where(seen.reshape(-1, *[1] * (value.ndim - 1)), value, theta[name]) if each else value

    return {name: kept(name, value) for name, value in new.items()}


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
    if family in HELD_TO_F and np.isfinite(float(exact)) and np.isfinite(F) and abs(F - float(exact)) > noise:
        yield f"{status.name}: F is {F:.9g} and not {float(exact):.9g} ± {noise:.1e}"
    if not all(np.isfinite(value).all() for value in theta.values()):
        yield f"{status.name}: θ is not finite"
        return
    if status == Status.DECREASED:
        yield f"DECREASED by {float(fit.gain):.3g}, rounding {float(fit.rounding):.1e}: the M-step is exact"
    new = m_step(family, theta, p, gamma)
    if status == Status.CONVERGED:
        gain = float(e_step(family, as_far_as_seen(new, theta, gamma.sum(0), eps), p)[1] - exact)
        allowed = 100 * max(1e-10 * W, 8 * eps * abs(F)) + 4 * noise + 2 * float(fit.rounding)
        if not np.isfinite(gain) and not has_no_digits(new, eps):
            yield "CONVERGED, and F is not finite"
        elif gain > allowed:
            yield f"CONVERGED, and an exact step gains {gain:.3g} of {allowed:.1e} nats"
        counts = gamma.sum(0) > eps**2 * gamma.sum()  # F does not depend on the others, to any digit
        if np.isfinite(float(exact)) and has_no_digits(theta, eps / 64, counts):
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
