"""Baum–Welch becomes segmental k-means: a Gaussian hidden Markov model as σ → 0, and as T → 0.

    python experiments/hmm_sigma_sweep.py [--seed S] [--out DIR] [--quick] [--no-plot]

The program is a chain with fixed transitions A and start, and N(μ_z, σ²) emissions; σ is held, the means are free.
With d_tk = ‖x_t − μ_k‖² and J(z) = Σ_t d_{t z_t},

    log p(x, z) = log p(z) − J(z)/2σ² − (N/2) log 2πσ²,   G_σ = −2σ² log Σ_z p(z) e^{−J(z)/2σ²}

σ → 0. J drowns log p(z): the limit is k-means, whatever A, as A has no zeros. Let r be the nearest means, l = r_t, and

    R_tkl = max over the neighbours' states of p(z with z_t = k) / p(z with z_t = l)

that is max_ij A_ik A_kj / (A_il A_lj) inside the chain. Putting l for k at t maps the paths through k one to one into
those through l, each heavier by e^{(d_tk − d_tl)/2σ²} / R at least. So  γ_tk ≤ R_tkl e^{−(d_tk − d_tl)/2σ²}  (H7),
and the most probable path is at l wherever d_tk − d_tl > 2σ² log R_tkl for every k ≠ l (HV). As the sum over z is at
least its term at r and at most e^{−J/2σ²},  J ≤ G_σ ≤ J + 2σ² log 1/p(r)  (H8); and G_σ = min_q E_q J + 2σ² KL(q‖p),
so  J ≤ Σ γd ≤ G_σ  (H9).

T → 0 at fixed σ. log p(x, z)/T grows as a whole, A with it: the limit is Viterbi's path ẑ and hard EM is segmental
k-means. Let M be the largest log p(x, z), Δ its lead over the second largest, and P = e^{M − L} the posterior of ẑ.
For T ≤ 1, as e^{(ℓ − M)/T} ≤ e^{ℓ − M} e^{−Δ(1/T − 1)} for every other path,

    M ≤ F_T ≤ M + T log(1 + s_T),   s_T = (1/P − 1) e^{−Δ(1/T − 1)},   P_T = e^{(M − F_T)/T}
    P_T e^{−Δ/T} ≤ max_t (1 − γ_{t ẑ_t}) ≤ s_T/(1 + s_T)

so the slope in 1/T is Δ. M, Δ and ẑ come from a 2-best Viterbi in NumPy, segmental k-means from a loop around it.

Writes DIR/hmm_sigma_sweep.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import jaxem
from jaxem.limits import ROUNDING

from _command import Config, Result, command, leave
from _results import Claim
from _table import print_table

Theta = dict[str, Any]
NUM_STATES = 3
STAY = 0.9  # of the diagonal of A
MEANS = np.array([-2.0, 0.0, 2.0])  # the truth, with σ = 1
WARM = 1.0  # the σ of the sweep over T
NUM_STEPS = 64  # length of the paths that are compared; hard EM stops well before
MAX_STEPS = 5_000  # EM slows down near σ_c
UNDERFLOW = 750.0  # e^{−750} is 0 in float64
DISTINCT = 1e-3  # means nearer than this count as one


class Check(NamedTuple):
    """A measured value and the bound it must not exceed."""

    value: float
    bound: float


def tightest(checks: Iterable[Check]) -> Check:
    """The one nearest to its bound, or furthest above it; NaN first."""

    def ratio(check: Check) -> float:
        if np.isnan(check.value):
            return np.inf
        return check.value / check.bound if check.bound > 0 else np.inf if check.value > check.bound else -np.inf

    return max(checks, key=ratio)


def program(x: jax.Array) -> None:
    """The last row of A is the start."""
    A = numpyro.param("A", jnp.asarray(transitions()), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.asarray(MEANS[:, None]))
    sigma = numpyro.param("sigma", 1.0, constraint=constraints.positive)

    def step(before: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        z = numpyro.sample("z", dist.Categorical(A[before]))
        numpyro.sample("x", dist.Normal(mu[z], sigma).to_event(1), obs=x)
        return z, None

    scan(step, len(A) - 1, x)


M = jaxem.from_numpyro(program).hold("A", "sigma")


def transitions(stay: float = STAY) -> np.ndarray:
    """(K + 1, K): every other state equally likely, and a uniform start."""
    off = (1 - stay) / (NUM_STATES - 1)
    A = np.full((NUM_STATES, NUM_STATES), off) + (stay - off) * np.eye(NUM_STATES)
    return np.concatenate([A, np.full((1, NUM_STATES), 1 / NUM_STATES)])


def parameters(mu: Any, sigma: Any, stay: float = STAY) -> Theta:
    return {"A": jnp.asarray(transitions(stay)), "mu": jnp.asarray(mu), "sigma": jnp.asarray(sigma, float)}


def draw_chain(seed: int, num_times: int) -> tuple[np.ndarray, np.ndarray]:
    """x (T, 1) from the program's own law at the truth, and its states."""
    rng, A = np.random.default_rng(seed), transitions()
    z = np.zeros(num_times, int)
    before = NUM_STATES
    for t in range(num_times):
        z[t] = before = rng.choice(NUM_STATES, p=A[before])
    return MEANS[z, None] + WARM * rng.normal(size=(num_times, 1)), z


# ---- NumPy's own: two best paths, segmental k-means, the ratio R


class Best(NamedTuple):
    """The most probable path, its log p(x, z), and its lead over the second."""

    path: np.ndarray
    value: float
    lead: float


def two_best(log_start: np.ndarray, log_A: np.ndarray, log_emission: np.ndarray) -> Best:
    """Viterbi with two survivors at each state."""
    num_states = len(log_start)
    score = np.stack([log_start + log_emission[0], np.full(num_states, -np.inf)], axis=1)  # (K, 2)
    back = []
    for emission in log_emission[1:]:
        candidates = (score[:, :, None] + log_A[:, None, :]).reshape(-1, num_states)  # (K·2, K)
        order = np.argsort(-candidates, axis=0, kind="stable")[:2]
        score = np.take_along_axis(candidates, order, axis=0).T + emission[:, None]
        back.append(order)
    last = np.argsort(-score.ravel(), kind="stable")[:2]
    value, second = score.ravel()[last]
    at = int(last[0])
    path = [at // 2]
    for order in back[::-1]:
        at = int(order[at % 2, at // 2])
        path.append(at // 2)
    return Best(np.array(path[::-1]), float(value), float(value - second))


def best_path(x: np.ndarray, theta: Theta) -> Best:
    A, mu, sigma = (np.asarray(theta[name]) for name in ("A", "mu", "sigma"))
    emission = -squared(x, mu) / (2 * sigma**2) - x.shape[1] / 2 * np.log(2 * np.pi * sigma**2)
    return two_best(np.log(A[-1]), np.log(A[:-1]), emission)


def squared(x: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """d (T, K)."""
    return ((x[:, None] - mu[None]) ** 2).sum(axis=-1)


def means(x: np.ndarray, path: np.ndarray, mu: np.ndarray) -> np.ndarray:
    """The mean of each state's points; a state without points keeps its own."""
    return np.stack([x[path == k].mean(axis=0) if np.any(path == k) else mu[k] for k in range(len(mu))])


def segmental_kmeans(x: np.ndarray, theta: Theta, num_steps: int) -> tuple[np.ndarray, list[Best]]:
    """μ after every step of: Viterbi's path, then the means of its segments. And the paths."""
    mus, paths = [], []
    for _ in range(num_steps):
        paths.append(best_path(x, theta))
        theta = theta | {"mu": means(x, paths[-1].path, np.asarray(theta["mu"]))}
        mus.append(theta["mu"])
    return np.stack(mus), paths


def lloyd(x: np.ndarray, mu: np.ndarray, num_steps: int) -> tuple[np.ndarray, float]:
    """μ after every step of k-means, and the least gap between a point's two nearest means on the way."""
    mus, least = [], np.inf
    for _ in range(num_steps):
        d = squared(x, mu)
        least = min(least, float(np.min(np.diff(np.sort(d, axis=1)[:, :2], axis=1))))
        mu = means(x, d.argmin(axis=1), mu)
        mus.append(mu)
    return np.stack(mus), least


def log_ratios(A: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """log R (T, K): the most that p(z) can gain by z_t = k in place of r_t, over all neighbours."""
    log_A, log_start = np.log(A[:-1]), np.log(A[-1])
    into = np.max(log_A[:, :, None] - log_A[:, None, :], axis=0)  # (k, l): max_i A_ik / A_il
    out = np.max(log_A[:, None, :] - log_A[None, :, :], axis=2)  # (k, l): max_j A_kj / A_lj
    ratio = (into + out)[:, nearest].T
    ratio[0] = log_start - log_start[nearest[0]] + out[:, nearest[0]]
    ratio[-1] = into[:, nearest[-1]]
    return ratio


# ---- one σ, one T


def log_prior(A: np.ndarray, path: np.ndarray) -> float:
    """log p(z)."""
    return float(np.log(A[-1][path[0]]) + np.log(A[path[:-1], path[1:]]).sum())


def sigma_row(x: np.ndarray, theta: Theta, start: Theta, fits: jaxem.Fit) -> dict[str, Any]:
    """Everything that is claimed at one σ: at the fit, and at a start, the statements being for any θ."""
    at_fit, at_start = (sigma_checks(x, theta) for theta in (theta, start))
    fit = jaxem.best(fits)
    mu = np.sort(np.asarray(theta["mu"]), axis=0)
    row: dict[str, Any] = {
        "sigma": float(theta["sigma"]),
        "F": float(fit.free_energy),
        "steps": int(fit.num_steps),
        "unconverged": int(np.sum(np.asarray(fits.status) != jaxem.Status.CONVERGED)),
        "distinct": 1 + int(np.sum(np.diff(mu[:, 0]) > DISTINCT)),
        "apart": at_fit["apart"],
        "undecided": at_fit["undecided"],
        "gamma_gap": at_fit["gamma_gap"],
        "gamma_gap_bound": at_fit["gamma_gap_bound"],
        "v": at_fit["v"],
        "h": at_fit["h"],
    }
    for name in ("H7", "H8", "H9", "H10", "HV"):
        row |= {name: at_fit[name].value, f"{name}_bound": at_fit[name].bound}
        row |= {f"{name}_start": at_start[name].value, f"{name}_start_bound": at_start[name].bound}
    return row


def sigma_checks(x: np.ndarray, theta: Theta) -> dict[str, Any]:
    """H7–H10 and HV at one θ; L, γ, the M-step and Viterbi's path are jaxem's, the bounds are NumPy's."""
    gamma = np.asarray(jaxem.marginals(M, theta, x)["z"])
    viterbi = np.asarray(jaxem.decode(M, theta, x)["z"])
    step = jaxem.em_path(M, theta, x, num_steps=NUM_STEPS)
    A, mu, sigma = (np.asarray(theta[name]) for name in ("A", "mu", "sigma"))
    num_times = len(x)
    d, variance = squared(x, mu), float(sigma) ** 2
    nearest = d.argmin(axis=1)
    r = np.eye(NUM_STATES)[nearest]
    gap = (d - d.min(axis=1, keepdims=True)) / (2 * variance)  # (d_tk − d_tl)/2σ²
    ratio = log_ratios(A, nearest)
    L, J = float(step.after_e[0]), float(d.min(axis=1).sum())
    eps = ROUNDING * np.finfo(float).eps
    rounding = eps * (1 + abs(L))  # an error of eps·|ℓ| in ℓ is a relative error in e^ℓ

    others = np.where(r == 1, 0, np.exp(ratio - gap)).sum(axis=1)
    apart = np.abs(gamma - r).max(axis=1)
    v = (-L - num_times / 2 * np.log(2 * np.pi * variance) - J / (2 * variance)) / num_times
    h = -log_prior(A, nearest) / num_times
    excess = (gamma * (d - d.min(axis=1, keepdims=True))).sum() / (2 * variance * num_times)  # (Σγd − J)/2σ²N
    decided = np.all((r == 1) | (gap > ratio * (1 + eps) + eps), axis=1)
    hard, N_k = means(x, nearest, mu), gamma.sum(axis=0)
    used = r.sum(axis=0) > 0
    moved = np.linalg.norm(np.asarray(step.theta["mu"][0]) - hard, axis=1)
    spread = 2 * rounding * (gamma * (1 - gamma)).sum(axis=0)  # what an error of `rounding` in log γ does to Σγ
    allowed = np.ptp(x) * (np.abs(gamma - r).sum(axis=0) + spread) / N_k + eps * np.abs(x).max()
    return {
        "v": v,
        "h": h,
        "apart": int(np.sum(viterbi != nearest)),
        "undecided": int(np.sum(~decided)),
        "gamma_gap": float(apart.max()),
        "gamma_gap_bound": float(np.minimum(others, 1).max()),
        "H7": tightest(map(Check, apart, np.minimum(others, 1) * (1 + rounding) + eps)),
        "H8": Check(abs(v - h / 2), h / 2 + rounding / num_times),
        "H9": Check(abs(excess - v / 2), v / 2 + rounding / num_times),
        "H10": tightest(map(Check, moved[used], allowed[used])),
        "HV": Check(float(np.sum(viterbi[decided] != nearest[decided])), 0.0),
    }


def temperature_rows(x: np.ndarray, theta: Theta, temperatures: np.ndarray) -> list[dict[str, Any]]:
    """F_T and the marginals on their way to Viterbi's path, at one θ."""
    best = best_path(x, theta)
    L = float(jaxem.em_path(M, theta, x, num_steps=NUM_STEPS).after_e[0])
    log_odds = np.log(np.expm1(L - best.value))  # log (1/P − 1)
    eps = ROUNDING * np.finfo(float).eps
    rows = []
    for T in temperatures:
        gamma = np.asarray(jaxem.marginals(M, theta, x, T)["z"])
        step = jaxem.em_path(M, theta, x, num_steps=NUM_STEPS, temperature=T)
        rise = float(step.after_e[0]) - best.value
        s = float(np.exp(np.minimum(log_odds - best.lead * (1 / T - 1), 700)))
        rounding = eps * (1 + abs(L)) / T
        short = float(np.max(1 - gamma[np.arange(len(x)), best.path]))
        lower = float(np.exp(-(best.lead + rise) / T))
        hard = means(x, best.path, np.asarray(theta["mu"]))
        rows.append(
            {
                "T": float(T),
                "rise": rise,
                "rise_bound": T * (np.log1p(s) * (1 + rounding) + rounding),
                "fall": -rise,
                "fall_bound": T * rounding,
                "gap": short,
                "gap_bound": s / (1 + s) * (1 + rounding) + eps,
                "lower": lower,
                "lower_bound": short * (1 + rounding) + eps,
                "mu": float(np.max(np.abs(np.asarray(step.theta["mu"][0]) - hard))),
            }
        )
    return rows


# ---- the sweep


def run(config: Config) -> Result:
    """σ from above the first split to one-hot γ, then T from 1 to one-hot γ."""
    num_times, restarts = (60, 2) if config.quick else (200, 8)
    x, z = draw_chain(config.seed, num_times)
    rng = np.random.default_rng([config.seed, 1])
    starts = np.stack([rng.choice(x, NUM_STATES, replace=False) for _ in range(restarts)])
    critical = critical_sigma(x)
    least = min(lloyd(x, mu, NUM_STEPS)[1] for mu in starts)
    log_R = float(log_ratios(transitions(), np.tile(np.arange(NUM_STATES), 3)).max())
    last = 0.999 * np.sqrt(least / (2 * (UNDERFLOW + log_R)))
    sigmas = np.append(np.geomspace(2 * critical, 4 * last, 6 if config.quick else 40), last)
    rows, centres = [], []
    for index, sigma in enumerate(sigmas):
        thetas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(parameters(mu, sigma) for mu in starts))
        fits = jaxem.em_batch(M, thetas, x, tol=0.0, max_steps=MAX_STEPS)
        theta = jaxem.best(fits).theta
        rows.append(sigma_row(x, theta, parameters(starts[index % restarts], sigma), fits))
        centres.append(np.asarray(theta["mu"]))
    walks = [walked(x, parameters(mu, last), parameters(mu, WARM)) for mu in starts]
    warm = max((walk.theta for walk in walks), key=lambda theta: best_path(x, theta).value)
    best = best_path(x, warm)
    coldest = min(walk.coldest for walk in walks)
    visible = best.lead / 45  # e^{−45} is rounding
    temperatures = np.append(np.geomspace(1, visible, 6 if config.quick else 40), coldest)
    cooling = temperature_rows(x, warm, temperatures)
    summary = {
        "num_times": num_times,
        "stay": STAY,
        "critical_sigma": critical,
        "last_sigma": last,
        "least_gap": least,
        "log_ratio": log_R,
        "warm_sigma": WARM,
        "lead": best.lead,
        "apart": int(np.sum(best.path != squared(x, np.asarray(warm["mu"])).argmin(axis=1))),
        "rows": rows,
        "temperature_rows": cooling,
    }
    arrays = {
        "x": x,
        "z": z,
        "sigma": sigmas,
        "mu": np.stack(centres),
        "kmeans_mu": lloyd(x, centres[-1], NUM_STEPS)[0][-1],
        "segment_mu": np.asarray(warm["mu"]),
        "segment_path": best.path,
    }
    return Result(summary, claims(x, starts, summary, walks), arrays)


class Walk(NamedTuple):
    """From one start: the largest differences between iterates, and where hard EM ends."""

    theta: Theta  # hard EM's end at σ = WARM
    lloyd: tuple[Check, Check]  # at the last σ: EM and hard EM against k-means
    segmental: Check  # at σ = WARM: hard EM against segmental k-means
    cold: Check  # there, at the least T: EM against hard EM
    coldest: float
    falls: tuple[Check, Check]  # of F in any half-step, at T = 1 and T = 0


def walked(x: np.ndarray, small: Theta, warm: Theta) -> Walk:
    """C11 for chains: iterate by iterate."""

    def path(theta: Theta, temperature: float) -> jaxem.Path:
        return jaxem.em_path(M, theta, x, num_steps=NUM_STEPS, temperature=temperature)

    def apart(a: jaxem.Path, mu: Any) -> Check:
        """‖μ − μ'‖ over the iterates: γ is one-hot, so the means differ by the rounding of their sums."""
        scale = float(np.abs(x).max())
        return Check(float(np.max(np.abs(a.theta["mu"] - mu))), ROUNDING * float(np.finfo(float).eps) * scale)

    kmeans, _ = lloyd(x, np.asarray(small["mu"]), NUM_STEPS)
    hard = path(warm, 0.0)
    segmental, paths = segmental_kmeans(x, warm, NUM_STEPS)
    thetas = [warm, *({**warm, "mu": mu} for mu in segmental[:-1])]
    coldest = min(least_temperature(x, theta, best) for theta, best in zip(thetas, paths, strict=True))
    return Walk(
        warm | {"mu": hard.theta["mu"][-1]},
        (apart(path(small, 1.0), kmeans), apart(path(small, 0.0), kmeans)),
        apart(hard, segmental),
        apart(path(warm, coldest), hard.theta["mu"]),
        coldest,
        (fall(path(warm, 1.0)), fall(hard)),
    )


def least_temperature(x: np.ndarray, theta: Theta, best: Best) -> float:
    """T at which s_T underflows; log(1/P − 1) ≤ T log K, the number of paths."""
    return best.lead / (UNDERFLOW + best.lead + len(x) * np.log(NUM_STATES))


def fall(path: jaxem.Path) -> Check:
    """C2: the largest fall of F in any half-step."""
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    return Check(float(np.max(trace[:-1] - trace[1:])), ROUNDING * np.finfo(float).eps * float(np.abs(trace).max()))


# ---- the coincident point


def critical_sigma(x: np.ndarray) -> float:
    """σ_c² = Σ_ts λ^{|t − s|} x̃_t x̃_s / N, λ the second eigenvalue of A; λ = 0 gives the mixture's variance."""
    centred = x[:, 0] - x.mean()
    lag = np.abs(np.subtract.outer(np.arange(len(x)), np.arange(len(x))))
    second = np.sort(np.linalg.eigvals(transitions()[:-1]).real)[-2]
    return float(np.sqrt(centred @ second**lag @ centred / len(x)))


def coincident_spectrum(x: np.ndarray, sigma: float) -> np.ndarray:
    """Eigenvalues of EM's Jacobian in μ at μ_k = x̄, by `jax.jacfwd`, ascending."""

    def em_map(mu: jax.Array) -> jax.Array:
        theta = parameters(mu[:, None], sigma)
        return jaxem.em_path(M, theta, x, num_steps=NUM_STEPS).theta["mu"][0, :, 0]

    jacobian = jax.jit(jax.jacfwd(em_map))(jnp.full(NUM_STATES, x.mean()))
    return np.sort(np.linalg.eigvals(np.asarray(jacobian)).real)


# ---- the claims


def claims(x: np.ndarray, starts: np.ndarray, summary: dict[str, Any], walks: list[Walk]) -> list[Claim]:
    """The verdicts. A bound that varies with σ or T is reported where value / bound is largest."""
    eps = ROUNDING * float(np.finfo(float).eps)
    rows, cooling = summary["rows"], summary["temperature_rows"]

    def worst(name: str, statement: str, checks: list[Check]) -> Claim:
        value, bound = tightest(checks)
        return Claim(name, statement, float(value), float(bound))

    def swept(name: str, statement: str) -> Claim:
        keys = (name, f"{name}_start")
        return worst(name, statement, [Check(row[key], row[f"{key}_bound"]) for row in rows for key in keys])

    def cooled(name: str, statement: str, key: str) -> Claim:
        return worst(name, statement, [Check(row[key], row[f"{key}_bound"]) for row in cooling])

    theta = parameters(starts[0], WARM)
    even = theta | {"A": jnp.full_like(theta["A"], 1 / NUM_STATES)}
    scaled = -squared(x, starts[0]) / (2 * WARM**2)
    mixture = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
    best = [(best_path(x, w.theta), w.theta) for w in walks]
    viterbi = [np.sum(np.asarray(jaxem.decode(M, theta, x)["z"]) != found.path) for found, theta in best]
    split = summary["critical_sigma"] ** 2 / WARM**2
    spectrum = coincident_spectrum(x, WARM) - np.array([0.0] + (NUM_STATES - 1) * [split])
    return [
        worst("C2", "neither half-step of EM lowers F, at T = 1 and T = 0", [fall for w in walks for fall in w.falls]),
        swept("H7", "σ → 0, E-step: |γ − r| ≤ Σ_k R_kl exp(−Δ_k/2σ²), r the nearest mean"),
        swept("H8", "J ≤ G_σ ≤ J + 2σ² log 1/p(r), as |v − h/2| ≤ h/2, per time"),
        swept("H9", "J ≤ Σγd ≤ G_σ, as |e − v/2| ≤ v/2"),
        swept("H10", "M-step: ‖μ_k(γ) − μ_k(r)‖ ≤ diam(X) Σ|γ − r|/N_k"),
        swept("HV", "times at which Viterbi's path is not the nearest mean although Δ > 2σ² log R"),
        worst(
            "H11",
            "iterates: at the last σ EM = hard EM = k-means in NumPy",
            [check for w in walks for check in w.lloyd],
        ),
        Claim(
            "H13",
            "at μ_k = x̄ EM's spectrum is {0, σ_c²/σ²}, σ_c² = Σ λ^|t−s| x̃_t x̃_s/N",
            float(np.max(np.abs(spectrum))),
            eps * (1 + split) * len(x),
        ),
        Claim(
            "even",
            "A uniform: the marginals are the mixture's γ",
            float(np.max(np.abs(jaxem.marginals(M, even, x)["z"] - mixture))),
            eps * (1 + float(np.abs(scaled).sum())),
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
