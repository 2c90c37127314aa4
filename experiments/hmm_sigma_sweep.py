"""Baum–Welch becomes segmental k-means: a Gaussian hidden Markov model as σ → 0, and as T → 0.

    python experiments/hmm_sigma_sweep.py [--seed S] [--out DIR] [--quick] [--no-plot]

The program is a chain with fixed transitions A and start, and N(μ_z, σ²) emissions; σ is held, the means are free.
With d_tk = ‖x_t − μ_k‖² and J(z) = Σ_t d_{t z_t},

    log p(x, z) = log p(z) − J(z)/2σ² − (N/2) log 2πσ²,   G_σ = −2σ² log Σ_z p(z) e^{−J(z)/2σ²}

σ → 0. J drowns log p(z): the limit is k-means, whatever A, as A has no zeros. The bounds for γ, Viterbi's path, G_σ,
Σγd and the means (H7, HV, H8, H9, H10) are `jaxem.limits.chain_limit`, which here judges jaxem's E- and M-step of the
program.

T → 0 at fixed σ. log p(x, z)/T grows as a whole, A with it: the limit is Viterbi's path ẑ and hard EM is segmental
k-means. Let M be the largest log p(x, z), Δ its lead over the second largest, and P = e^{M − L} the posterior of ẑ.
The slope in 1/T is Δ, by `jaxem.limits.freezing`. ẑ and M come from Viterbi's algorithm in NumPy, Δ from
`jaxem.limits.lead`, segmental k-means and k-means from loops in NumPy.

Proofs: docs/theorems_chains.md. Writes DIR/hmm_sigma_sweep.json, .npz, .pdf and .png. Exits 0 when every claim holds,
1 when one fails, 2 for bad arguments.
"""

from typing import Any

import _hidden_markov as hmm
import jax
import jax.numpy as jnp
import numpy as np
from _claims import worst
from _hidden_markov_walks import EPS, NUM_STEPS, WARM, Walk, walked

import jaxem
from jaxem import limits

from _command import Config, Result, command, leave
from _results import Claim
from _table import print_table

MAX_STEPS = 5_000  # EM slows down near σ_c
DISTINCT = 1e-3  # means nearer than this count as one


# ---- what is measured at one θ


def sigma_row(x: np.ndarray, theta: hmm.Theta, start: hmm.Theta, fits: jaxem.Fit) -> dict[str, Any]:
    """Everything that is claimed at one σ: at the fit, and at a start, the statements being for any θ."""
    (at_fit, largest), (at_start, _) = (sigma_checks(x, theta) for theta in (theta, start))
    fit = jaxem.best(fits)
    row: dict[str, Any] = {
        "sigma": float(theta["sigma"]),
        "F": float(fit.free_energy),
        "steps": int(fit.num_steps),
        "unconverged": int(np.sum(np.asarray(fits.status) != jaxem.Status.CONVERGED)),
        "distinct": 1 + int(np.sum(np.diff(np.sort(np.asarray(theta["mu"]), axis=0)[:, 0]) > DISTINCT)),
        "apart": int(at_fit.apart),
        "undecided": int(at_fit.undecided),
        "gamma_gap_bound": float(at_fit.shares.max()),
        "v": float(at_fit.v),
        "h": float(at_fit.h),
    }
    row |= largest
    for name, field in FIELDS.items():
        for end, found in (("", at_fit), ("_start", at_start)):
            check = getattr(found, field)
            row |= {f"{name}{end}": float(check.value), f"{name}{end}_bound": float(check.bound)}
    return row


FIELDS = {"H7": "assignment", "H8": "objective", "H9": "distances", "H10": "centres", "HV": "path"}


Gaps = dict[str, float]


def sigma_checks(x: np.ndarray, theta: hmm.Theta, transitions: Any = None) -> tuple[limits.ChainLimit, Gaps]:
    """H7–H10 and HV at one θ; L, γ, the M-step and Viterbi's path are those of jaxem's program.

    Beside them the largest |γ − r|, and how far the mean that moves furthest does, with H10's largest bound.
    `transitions`: the A of which the statements are made, where it is another than θ's.
    """
    A, mu, sigma = (theta[name] for name in ("A", "mu", "sigma"))
    step, gamma = jaxem.em_path(hmm.M, theta, x, num_steps=NUM_STEPS), jaxem.marginals(hmm.M, theta, x)["z"]
    d, L = hmm.squared(x, np.asarray(mu)), step.after_e[0]
    value = L + len(x) / 2 * jnp.log(2 * jnp.pi * sigma**2) + d.min(axis=1).sum() / (2 * sigma**2)
    rounding = EPS * (1 + jnp.abs(L))  # an error of eps·|ℓ| in ℓ is a relative error in e^ℓ
    judged = limits.ChainStep(value, gamma, jaxem.decode(hmm.M, theta, x)["z"], step.theta["mu"][0], rounding)
    A = A if transitions is None else transitions
    found = limits.chain_limit(x, mu, sigma, A[:-1], A[-1], step=judged)
    return found, gaps(x, np.asarray(gamma), d.argmin(axis=1), np.asarray(judged.mu))


def gaps(x: np.ndarray, gamma: np.ndarray, nearest: np.ndarray, mu: np.ndarray) -> Gaps:
    """max|γ − r|, and max_k of ‖μ_k(γ) − μ_k(r)‖ and of its bound, over k that are somebody's nearest."""
    r = np.eye(hmm.NUM_STATES)[nearest]
    used, apart, diameter = r.sum(axis=0) > 0, np.abs(gamma - r), float(limits.diameter(x))
    moved = np.linalg.norm(mu - hmm.means(x, nearest, mu), axis=1)
    bound = diameter * apart.sum(axis=0) / gamma.sum(axis=0) + EPS * (diameter + np.abs(x).max())
    return {
        "gamma_gap": float(apart.max()),
        "means_gap": float(moved[used].max()),
        "means_gap_bound": float(bound[used].max()),
    }


def temperature_rows(x: np.ndarray, theta: hmm.Theta, best: limits.Lead, temperatures: np.ndarray) -> list[dict]:
    """F_T and the marginals on their way to Viterbi's path, at one θ."""
    hard, rows = hmm.means(x, np.asarray(best.assignment["z"]), np.asarray(theta["mu"])), []
    for T in temperatures:
        step = jaxem.em_path(hmm.M, theta, x, num_steps=NUM_STEPS, temperature=T)
        found = limits.freezing(hmm.M, theta, x, T, best=best)
        row = {"T": float(T), "mu": float(np.max(np.abs(np.asarray(step.theta["mu"][0]) - hard)))}
        for name, check in zip(("fall", "rise", "gap", "lower"), found, strict=True):
            row |= {name: float(check.value), f"{name}_bound": float(check.bound)}
        rows.append(row)
    return rows


# ---- the sweep


def run(config: Config) -> Result:
    """σ from above the first split to one-hot γ, then T from 1 to one-hot γ."""
    num_times, restarts = (60, 2) if config.quick else (200, 8)
    x, z = hmm.draw_chain(config.seed, num_times)
    rng = np.random.default_rng([config.seed, 1])
    starts = np.stack([rng.choice(x, hmm.NUM_STATES, replace=False) for _ in range(restarts)])
    A = hmm.transitions()
    critical = float(limits.chain_critical_sigma(x, A[:-1]))
    least = min(float(limits.least_gap(x, mu, num_steps=NUM_STEPS)) for mu in starts)
    last = 0.999 * float(limits.chain_one_hot_sigma(least, A[:-1], A[-1]))
    sigmas = np.append(np.geomspace(2 * critical, 4 * last, 6 if config.quick else 40), last)
    rows, centres = [], []
    for index, sigma in enumerate(sigmas):
        thetas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(hmm.parameters(mu, sigma) for mu in starts))
        fits = jaxem.em_batch(hmm.M, thetas, x, tol=0.0, max_steps=MAX_STEPS)
        theta = jaxem.best(fits).theta
        rows.append(sigma_row(x, theta, hmm.parameters(starts[index % restarts], sigma), fits))
        centres.append(np.asarray(theta["mu"]))
    walks = [walked(x, hmm.parameters(mu, last), hmm.parameters(mu, WARM)) for mu in starts]
    warm = max((walk.theta for walk in walks), key=lambda theta: hmm.viterbi(x, theta)[1])
    best = hmm.best_path(x, warm)
    path, visible = np.asarray(best.assignment["z"]), float(best.lead) / 45  # e^{−45} is rounding
    coldest = min(walk.coldest for walk in walks)
    temperatures = np.append(np.geomspace(1, visible, 6 if config.quick else 40), coldest)
    ratios = [limits.chain_log_ratios(A[:-1], A[-1], np.full(3, state)) for state in range(hmm.NUM_STATES)]
    summary = {
        "num_times": num_times,
        "stay": hmm.STAY,
        "critical_sigma": critical,
        "last_sigma": last,
        "least_gap": least,
        "log_ratio": float(np.max(ratios)),
        "warm_sigma": WARM,
        "lead": float(best.lead),
        "apart": int(np.sum(path != hmm.squared(x, np.asarray(warm["mu"])).argmin(axis=1))),
        "rows": rows,
        "temperature_rows": temperature_rows(x, warm, best, temperatures),
    }
    arrays = {
        "x": x,
        "z": z,
        "sigma": sigmas,
        "mu": np.stack(centres),
        "kmeans_mu": hmm.lloyd(x, centres[-1], NUM_STEPS)[-1],
        "segment_mu": np.asarray(warm["mu"]),
        "segment_path": path,
    }
    return Result(summary, claims(x, starts, summary, walks), arrays)


# ---- the claims


def claims(x: np.ndarray, starts: np.ndarray, summary: dict[str, Any], walks: list[Walk]) -> list[Claim]:
    """The verdicts. A bound that varies with σ or T is reported where value / bound is largest."""
    rows, cooling = summary["rows"], summary["temperature_rows"]

    def swept(name: str, statement: str) -> Claim:
        keys = (name, f"{name}_start")
        return worst(name, statement, [(row[key], row[f"{key}_bound"]) for row in rows for key in keys])

    def cooled(name: str, statement: str, key: str) -> Claim:
        return worst(name, statement, [(row[key], row[f"{key}_bound"]) for row in cooling])

    theta = hmm.parameters(starts[0], WARM)
    even = theta | {"A": jnp.full_like(theta["A"], 1 / hmm.NUM_STATES)}
    scaled = -hmm.squared(x, starts[0]) / (2 * WARM**2)
    mixture = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    viterbi = [np.sum(np.asarray(jaxem.decode(hmm.M, w.theta, x)["z"]) != hmm.viterbi(x, w.theta)[0]) for w in walks]
    split = summary["critical_sigma"] ** 2 / WARM**2
    spectrum = hmm.coincident_spectrum(x, WARM) - np.array([0.0] + (hmm.NUM_STATES - 1) * [split])
    return [
        worst("C2", "neither half-step of EM lowers F, at T = 1 and T = 0", [fall for w in walks for fall in w.falls]),
        swept("H7", "σ → 0, E-step: |γ − r| ≤ Σ_k R_kl exp(−Δ_k/2σ²), r the nearest mean"),
        swept("H8", "J ≤ G_σ ≤ J + 2σ² log 1/p(r), as |v − h/2| ≤ h/2, per time"),
        swept("H9", "J ≤ Σγd ≤ G_σ, as |e − v/2| ≤ v/2"),
        swept("H10", "M-step: ‖μ_k(γ) − μ_k(r)‖ ≤ diam(X) Σ|γ − r|/N_k"),
        swept("HV", "times at which Viterbi's path is not the nearest mean although Δ > 2σ² log R"),
        worst("H11", "iterates: at the last σ EM = hard EM = k-means in NumPy", [c for w in walks for c in w.lloyd]),
        Claim(
            "H13",
            "at μ_k = x̄ EM's spectrum is {0, σ_c²/σ²}, σ_c² = Σ λ^|t−s| x̃_t x̃_s/N",
            float(np.max(np.abs(spectrum))),
            EPS * (1 + split) * len(x),
        ),
        Claim(
            "even",
            "A uniform: the marginals are the mixture's γ",
            float(np.max(np.abs(jaxem.marginals(hmm.M, even, x)["z"] - mixture))),
            EPS * (1 + float(np.abs(scaled).sum())),
        ),
        Claim("path", "jaxem.decode differs from Viterbi in NumPy (times)", float(max(viterbi)), 0.0),
        cooled("F_T", "T → 0: F_T ≤ M + T log(1 + s_T), M from Viterbi in NumPy", "rise"),
        cooled("M", "T → 0: M ≤ F_T", "fall"),
        cooled("γ_T", "T → 0: |γ_T − ẑ| ≤ s_T/(1 + s_T), s_T = (1/P − 1) exp(−Δ(1/T − 1))", "gap"),
        cooled("slope", "T → 0: exp(−Δ/T) P_T(ẑ) ≤ |γ_T − ẑ|, so the slope is Δ", "lower"),
        worst("hard", "iterates: hard EM = segmental k-means in NumPy", [w.segmental for w in walks]),
        worst("cold", "iterates: EM at the least T = hard EM", [w.cold for w in walks]),
        Claim("end", "fits at any σ that did not converge", float(sum(row["unconverged"] for row in rows)), 0.0),
    ]


COLUMNS = [
    ("σ", "sigma", "8.3g"),
    ("F", "F", "10.4g"),
    ("steps", "steps", "5d"),
    ("means", "distinct", "5d"),
    ("|γ−r|", "gamma_gap", "8.1e"),
    ("≤ H7", "gamma_gap_bound", "8.1e"),
    ("v", "v", "7.4f"),
    ("≤ h", "h", "7.4f"),
    ("|μγ−μr|", "H10", "8.1e"),
    ("≤ H10", "H10_bound", "8.1e"),
    ("ẑ ≠ r", "apart", "5d"),
    ("open", "undecided", "5d"),
]
T_COLUMNS = [
    ("T", "T", "8.3g"),
    ("F_T−M", "rise", "9.2e"),
    ("≤", "rise_bound", "9.2e"),
    ("≥", "lower", "9.2e"),
    ("|γ_T−ẑ|", "gap", "9.2e"),
    ("≤", "gap_bound", "9.2e"),
    ("|μ_T−μ_ẑ|", "mu", "9.2e"),
]


def report(summary: dict[str, Any]) -> None:
    """A row per σ, then a row per T."""
    print("\nv = (G_σ − J)/2σ²N, from 0 to h; ẑ ≠ r: times at which Viterbi's path is not the nearest mean, ", end="")
    print("open: times at which A may decide")
    print_table(COLUMNS, summary["rows"])
    print(
        f"\nat σ = {summary['warm_sigma']:g}: M the largest log p(x, z), Δ = {summary['lead']:.4g} to the second; ",
        end="",
    )
    print(f"Viterbi's path and the nearest means differ at {summary['apart']} of {summary['num_times']} times")
    print_table(T_COLUMNS, summary["temperature_rows"])
    print(f"\nσ_c = {summary['critical_sigma']:.4g}, last σ = {summary['last_sigma']:.3g}\n")


def main(arguments: list[str] | None = None) -> int:
    return command("hmm_sigma_sweep", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
