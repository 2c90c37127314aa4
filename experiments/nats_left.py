"""How many nats has an unfinished fit left? Aitken's extrapolation, its bracket, and Newton's decrement: estimates.

    python experiments/nats_left.py [--seed S] [--out DIR] [--quick] [--no-plot]

With gains g_t = F_t − F_{t−1}, ratios r_t = g_t/g_{t−1} and ρ EM's spectral radius at the end, near a regular maximum

    g_t r_t/(1 − r_t)  ≲  F* − F_t  ≲  g_t ρ²/(1 − ρ²),        F* − F_t ≈ ½∇FᵀI⁻¹∇F                                (C27)

(Aitken's on the left: it under-reports, which stops a fit too early). None of them is a bound; they are tried on EM of
three overlapping clusters, at every step. At σ_c, where two centres part and the rate is 1, Aitken's tends to ⅔ of the
truth. Where a gain is below 100 roundings of F nothing is said. `jaxem.standard_errors(…).nats_left` is the decrement.

Writes DIR/nats_left.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad arguments.
"""

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

M = gaussian.isotropic
HELD = M.hold("pi", "sigma")
NUM_RUNS, NUM_STEPS = 40, 800  # of EM, on as many data sets
LOOKED_AT = np.unique(np.geomspace(2, NUM_STEPS - 1, 40).astype(int))  # steps at which Newton's decrement is taken
PITCHFORK_STEPS = 500
QUADRATIC = (1e-8, 1e-4)  # nats: between them F is nearly quadratic, and more than rounding
THERE = "1e-8 to 1e-4 nats left"
AGREE = 0.05  # of the truth, there
SINGULAR = 0.25  # most of the runs that may end there; with more, too few are left to claim anything of
REGULAR = 0.99  # ρ above it: components coincide or are about to, the information is singular, and C27 says nothing


def left(F: np.ndarray, best: float, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F* − F_t, g_t, Aitken's estimate) at each t; NaN where one of the two gains may be rounding."""
    gain = np.diff(F, prepend=np.nan)
    before = np.roll(gain, 1)
    told = (gain >= 100 * floor) & (before >= 100 * floor)
    gain, ratio = np.where(told, gain, np.nan), np.where(told, gain / np.where(told, before, 1), 0.5)
    return best - F, gain, gain * ratio / (1 - ratio)


def data_sets(rng: np.random.Generator, count: int) -> np.ndarray:
    """(sets, 200, 2): three round clusters of equal size, from nearly one to well apart."""
    corners = np.stack([np.exp(2j * np.pi * k / 3) for k in range(3)]).view(float).reshape(3, 2)
    z = rng.integers(0, 3, size=(count, 200))
    return rng.uniform(1.2, 3.0, size=(count, 1, 1)) * corners[z] + rng.normal(size=(count, 200, 2))


@jax.jit
def fitted(x: jax.Array, mu: jax.Array) -> dict[str, jax.Array]:
    """EM's path on each data set, where it ends, EM's rate there, and Newton's decrement at LOOKED_AT."""

    def one(given: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
        x, mu = given
        theta = {"pi": jnp.full(3, 1 / 3), "mu": mu, "sigma": jnp.ones(())}
        path = jaxem.em_path(M, theta, x, num_steps=NUM_STEPS)
        end = jaxem.em(M, jax.tree.map(lambda leaf: leaf[-1], path.theta), x, tol=0.0, max_steps=20_000)
        there = jax.tree.map(lambda leaf: leaf[LOOKED_AT - 1], path.theta)  # θ_t is entry t − 1
        newton = jax.lax.map(lambda theta: jaxem.standard_errors(M, theta, x).nats_left, there)
        rate = jaxem.convergence_rate(M, end.theta, x).spectral_radius
        found = {"F": path.after_e, "best": end.free_energy, "rounding": end.rounding}
        return found | {"rate": rate, "newton": newton, "status": end.status}

    return jax.lax.map(one, (x, mu))


def estimates(config: Config) -> dict[str, np.ndarray]:
    """By data set and step: nats left, Aitken's estimate and the bracket's upper end; Newton's at LOOKED_AT."""
    x = data_sets(np.random.default_rng(config.seed), NUM_RUNS // 5 if config.quick else NUM_RUNS)
    fits = {name: np.asarray(value) for name, value in fitted(jnp.asarray(x), jnp.asarray(x[:, :3])).items()}
    ends = zip(fits["F"], fits["best"], fits["rounding"], strict=True)
    truth, gain, aitken = map(np.stack, zip(*(left(*values) for values in ends), strict=True))
    fits["rate"] = np.where(fits["rate"] < REGULAR, fits["rate"], np.nan)
    truth = np.where(np.isnan(fits["rate"])[:, None], np.nan, truth)
    square = fits["rate"][:, None] ** 2
    kept = {name: fits[name] for name in ("rate", "newton", "status")}
    return kept | {"truth": truth, "aitken": aitken, "upper": gain * square / (1 - square)}


def pitchfork(x: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """(truth, Aitken's) for two centres with σ held at σ_c, whose maximum is at the mean (C20′)."""
    first, mean = limits.split(x), jnp.mean(x, axis=0)
    theta = {"pi": jnp.full(2, 0.5), "mu": mean + jnp.array([[-0.5], [0.5]]) * first.direction, "sigma": first.sigma}
    best = jaxem.em(HELD, theta | {"mu": jnp.stack([mean, mean])}, x, max_steps=0)
    path = jaxem.em_path(HELD, theta, x, num_steps=PITCHFORK_STEPS)
    truth, _, aitken = left(np.asarray(path.after_e), float(best.free_energy), float(best.rounding))
    return truth, aitken


def run(config: Config) -> Result:
    found = estimates(config)
    pitch_truth, pitch_aitken = pitchfork(jnp.asarray(load("old_faithful").x))
    truth = found["truth"]
    near = np.where((truth > QUADRATIC[0]) & (truth < QUADRATIC[1]), truth, np.nan)
    over = {name: found[name] / near for name in ("aitken", "upper")} | {"newton": found["newton"] / near[:, LOOKED_AT]}
    told = ~np.isnan(near[:, LOOKED_AT])
    summary = {
        "num_runs": len(truth),
        "rates": [float(np.nanmin(found["rate"])), float(np.nanmax(found["rate"]))],
        "singular": int(np.isnan(found["rate"]).sum()),
        "without": int(np.isnan(found["newton"][told]).sum()),
        "over_truth": {name: np.nanquantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist() for name, values in over.items()},
        "pitchfork": float(pitch_aitken[-1] / pitch_truth[-1]),
        "unfinished": int((found["status"] != jaxem.Status.CONVERGED)[~np.isnan(found["rate"])].sum()),
    }
    arrays = found | {"looked_at": LOOKED_AT, "pitch_truth": pitch_truth, "pitch_aitken": pitch_aitken}
    return Result(summary, claims(summary), arrays)


def claims(summary: dict[str, Any]) -> list[Claim]:
    """Of estimates: how near the truth they were, where F is nearly quadratic."""
    (_, *_, aitken), (upper, *_), newton = (summary["over_truth"][name] for name in ("aitken", "upper", "newton"))
    off = max(newton[-1] - 1, 1 - newton[0])
    share = summary["singular"] / summary["num_runs"]
    return [
        Claim("Newton", f"{THERE}: |½∇FᵀI⁻¹∇F over the truth, − 1|", off, AGREE),
        Claim("low", f"{THERE}: Aitken's over the truth", aitken, 1 + AGREE),
        Claim("high", f"{THERE}: the truth over g ρ²/(1 − ρ²)", 1 / upper, 1 + AGREE),
        Claim("⅔", "at σ_c: |Aitken's over the truth, − ⅔|", abs(summary["pitchfork"] - 2 / 3), 5e-3),
        Claim("some", f"{THERE}: θ at which there is no ½∇FᵀI⁻¹∇F", summary["without"], 0),
        Claim("regular", "share of runs that end at ρ ≥ 0.99, of which C27 says nothing", share, SINGULAR),
        Claim("end", "of these runs, those that did not come to rest", summary["unfinished"], 0),
    ]


def report(summary: dict[str, Any]) -> None:
    low, high = summary["rates"]
    print(f"\n{summary['num_runs'] - summary['singular']} runs, ρ = {low:.2f} to {high:.2f}, ", end="")
    print(f"{summary['singular']} more at singular maxima; over the truth, with {THERE}:")
    names = {"aitken": "Aitken's", "upper": "g ρ²/(1 − ρ²)", "newton": "Newton's"}
    for name, (first, low, median, high, last) in summary["over_truth"].items():
        print(
            f"  {names[name]:<14}median {median:.4f}, 90 % in {low:.4f} to {high:.4f}, all in {first:.3f} to {last:.3f}"
        )
    print(f"at σ_c Aitken's is {summary['pitchfork']:.4f} of it after {PITCHFORK_STEPS} steps\n")


def main(arguments: list[str] | None = None) -> int:
    return command("nats_left", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
