"""Coordinate ascent against gradient ascent on the same F(μ, γ): steps and time to the same height.

    python experiments/coordinate_vs_gradient.py [--seed S] [--out DIR] [--quick] [--no-plot]

Equal weights and σ are held; the free variables are the centres μ and the assignment γ, and the objective is eq:F,

    F_T(μ, γ) = Σ_nk γ_nk ℓ_nk(μ) − T Σ_nk γ_nk log γ_nk.

EM maximises it over γ, then over μ, each in closed form. Joint gradient ascent moves both at once, γ = softmax(logits)
row by row, by optax's Adam (each of several rates) and L-BFGS. It is slow where γ is nearly one-hot, as
∂F/∂logit_nk = γ_nk (∂F/∂γ_nk − Σ_j γ_nj ∂F/∂γ_nj) vanishes there, right or wrong. In between, generalised EM takes its
M-step by L-BFGS (`jaxem.gradient_m_step`). All start from the same (μ, γ): μ at random rows, γ at its posterior there.

Let θ* be the highest of the points that EM reaches from the ends of all methods. The theorem is C1:

    F_T(μ, γ) ≤ T Σ_n log Σ_k e^{ℓ_nk(μ)/T} = L_T(μ) ≤ L_T(θ*)

so no path through the space of (μ, γ), however it is climbed, goes higher than EM's fixed point; and since EM is one
step of both blocks, ∇_μ F = 0 and ∇_γ F = 0 there, by `jax.grad`. A method has arrived once F ≥ F* − 1e-8 |F*|, and
then δ = F* − F bounds where it can be: ‖μ − μ*‖ ≤ √(2δ/λ_min(−∇²L_T(θ*))), to leading order. So arriving means
arriving at the same optimum, and the times are times to the same answer.

Writes DIR/coordinate_vs_gradient.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad
arguments. Times vary; everything else is fixed by --seed.
"""

import argparse
import itertools
import sys
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _coordinate_claims import checks, claims
from _coordinate_problems import CLOSE, M, Problem, at_posterior, ceiling, height, problems
from _race import Climb, Racer, as_row, ascent, choose, recorded

import jaxem

from _command import leave, parse
from _results import Claim, as_json, print_claims, provenance, writable_folder, written_together
from benchmarks._timing import compiled, measure

GEM_STEPS = 5  # steps of L-BFGS in one M-step of generalised EM
GEM = jaxem.gradient_m_step(M, num_steps=GEM_STEPS)


class Budget(NamedTuple):
    """How long each method may climb, and how often it is timed."""

    em: int = 2_000
    gem: int = 1_000
    adam: int = 20_000
    lbfgs: int = 20_000
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)  # Adam's
    repeats: int = 7


QUICK = Budget(em=600, gem=200, adam=2_000, lbfgs=400, rates=(1e-2, 1e-1), repeats=2)


class Trace(NamedTuple):
    """What a method did, one entry a step; entry 0 is the start."""

    value: np.ndarray  # F(μ_t, γ_t)
    bound: np.ndarray  # L_T(μ_t), the right side of C1
    evaluations: np.ndarray  # passes over the data up to entry t: E-steps, or F with its gradient
    mu: np.ndarray  # (K, D), where it ended


# ---- joint gradient ascent


def joint_run(
    problem: Problem, rate: jax.Array, target: jax.Array, most: jax.Array, record: jax.Array, optimizer: Any, room: int
) -> tuple[Climb, jax.Array, dict[str, jax.Array]]:
    """Climb until F ≥ target or `most` steps are done. `record`: also evaluate L_T at every step, for C1.

    One program for the trace (target = ∞, recorded) and for the race that is timed.
    """
    initial, step = ascent(partial(height, problem), optimizer(rate), scale=len(problem.x))

    def look(climb: Climb) -> dict[str, jax.Array]:
        bound = jax.lax.cond(record, lambda mu: ceiling(problem, mu), lambda mu: climb.value, climb.point.mu)
        return {"value": climb.value, "bound": bound, "evaluations": climb.evaluations}

    start = initial(at_posterior(problem, problem.theta["mu"]))
    return recorded(step, look, start, most, room, target)


def joint_racers(problem: Problem, optimizer: Any, rates: dict[str, float], num_steps: int) -> dict[str, Racer]:
    """One compilation for all rates."""
    example = (problem, jnp.zeros(()), jnp.asarray(jnp.inf), jnp.asarray(num_steps), jnp.asarray(True))
    run, compile_seconds = compiled(partial(joint_run, optimizer=optimizer, room=num_steps + 1), *example)

    def racer(rate: float) -> Racer:
        end, steps, history = jax.tree.map(np.asarray, run(problem, jnp.asarray(rate), *example[2:]))
        trace = Trace(**{name: values[: steps + 1] for name, values in history.items()}, mu=end.point.mu)

        def race(target: float, steps: int) -> tuple[jax.Array, jax.Array]:
            end, *_ = run(problem, jnp.asarray(rate), jnp.asarray(target), jnp.asarray(steps), jnp.asarray(False))
            return end.value, end.point.mu

        return Racer(trace, race, compile_seconds)

    return {name: racer(rate) for name, rate in rates.items()}


# ---- coordinate ascent


@partial(jax.jit, static_argnames="num_steps")
def coordinate_path(m: jaxem.Mixture, problem: Problem, num_steps: int) -> jaxem.Path:
    return jaxem.em_path(m, problem.theta, problem.x, num_steps=num_steps, temperature=problem.temperature)


def coordinate_run(problem: Problem, num_steps: jax.Array, m: jaxem.Mixture) -> tuple[jax.Array, jax.Array]:
    """`jaxem.em` for a number of steps."""
    fit = jaxem.em(m, problem.theta, problem.x, temperature=problem.temperature, tol=0.0, max_steps=num_steps)
    return fit.free_energy, fit.theta["mu"]


def coordinate_racer(problem: Problem, m: jaxem.Mixture, num_steps: int, passes: int) -> Racer:
    """Entry t of the trace is F after t M-steps, each of `passes` passes over the data, and an E-step."""
    path = coordinate_path(m, problem, num_steps + 1)
    value = np.asarray(path.after_e)
    trace = Trace(value, value, 1 + passes * np.arange(num_steps + 1), np.asarray(path.theta["mu"][-1]))
    run, compile_seconds = compiled(partial(coordinate_run, m=m), problem, jnp.asarray(num_steps))
    return Racer(trace, lambda target, steps: run(problem, jnp.asarray(steps)), compile_seconds)


# ---- one problem


def run_case(name: str, problem: Problem, budget: Budget) -> dict[str, Any]:
    """Every method on one problem: its trace, its steps and seconds to the target, and what the claims need."""
    racers = {
        "EM": coordinate_racer(problem, M, budget.em, 1),
        f"GEM, {GEM_STEPS} L-BFGS": coordinate_racer(problem, GEM, budget.gem, GEM_STEPS + 1),
        **joint_racers(problem, optax.adam, {f"Adam {rate:g}": rate for rate in budget.rates}, budget.adam),
        **joint_racers(problem, lambda rate: optax.lbfgs(), {"L-BFGS": 0.0}, budget.lbfgs),
    }
    traces = {method: racer.trace for method, racer in racers.items()}
    optimum, top = highest(problem, traces, budget.em)
    target = top - CLOSE * abs(top)
    rows = {method: row_of(method, trace, target) for method, trace in traces.items()}
    choose(rows, "Adam", "F_best")
    for method, row in rows.items():
        if row["chosen"]:
            row |= timed(racers[method], row, target, optimum, budget.repeats)
    return {
        "case": name,
        "N": len(problem.x),
        "D": problem.x.shape[1],
        "K": len(optimum),
        "sigma": float(problem.theta["sigma"]),
        "temperature": float(problem.temperature),
        "F_start": float(traces["EM"].value[0]),
        "F_star": top,
        "target": target,
        "mu_star": np.asarray(optimum),
        "rows": list(rows.values()),
        "checks": checks(problem, traces, rows, optimum, top),
        "traces": traces,
    }


def highest(problem: Problem, traces: dict[str, Trace], num_steps: int) -> tuple[jax.Array, float]:
    """θ* and F* = L_T(θ*): the highest of the points that EM reaches from the ends of all methods."""

    @jax.jit
    def polish(mu: jax.Array) -> tuple[jax.Array, jax.Array]:
        end = coordinate_path(M, problem._replace(theta=problem.theta | {"mu": mu}), num_steps + 1).theta["mu"][-1]
        return end, ceiling(problem, end)

    ends = [polish(jnp.asarray(trace.mu)) for trace in traces.values() if np.isfinite(trace.mu).all()]
    top = max(float(value) for _, value in ends)
    # ends that differ by rounding are one: the first is EM's own
    return next((mu, float(value)) for mu, value in ends if float(value) >= top - 1e-13 * abs(top))


def row_of(method: str, trace: Trace, target: float) -> dict[str, Any]:
    """With the passes over the data that the steps took."""
    row = as_row(method, trace.value, target, "F_best")
    last = -1 if row["steps"] is None else row["steps"]
    return row | {"passes": int(trace.evaluations[last]), "F": None, "distance": None, "quartiles": None}


def timed(racer: Racer, row: dict, target: float, optimum: jax.Array, repeats: int) -> dict[str, Any]:
    """Compiled seconds from the common start to the target, or to the end of the budget."""
    steps = row["steps_tried"] if row["steps"] is None else row["steps"]
    # who missed is timed once, for the figure's axis only
    timing = measure(racer.race, target, steps, repeats=1 if row["steps"] is None else repeats)
    value, mu = timing.value
    return {
        "F": float(value),
        "distance": distance(np.asarray(mu), np.asarray(optimum)),
        "compile_seconds": racer.compile_seconds,
        "seconds": timing.median,
        "quartiles": timing.quartiles,
    }


def distance(mu: np.ndarray, other: np.ndarray) -> float:
    """‖μ − μ*‖, components matched."""
    orders = itertools.permutations(range(len(mu)))
    return min(float(np.linalg.norm(mu[list(order)] - other)) for order in orders)


# ---- the command line


def report(case: dict[str, Any]) -> None:
    """Steps, passes over the data and seconds to the same F."""
    print(
        f"\n{case['case']}: N = {case['N']}, D = {case['D']}, K = {case['K']}, σ = {case['sigma']:g} held; from "
        f"F = {case['F_start']:.6f} to F* = {case['F_star']:.9f}, target F* − {CLOSE:g}|F*| = {case['target']:.9f}"
    )
    print(f"{'method':<16}{'steps':>14}{'passes':>9}{'ms':>9}{'quartiles':>17}{'compile s':>11}{'F reached':>18}")
    for row in case["rows"]:
        missed = row["steps"] is None
        steps = f"> {row['steps_tried']}" if missed else str(row["steps"])
        reached = row["F_best"] if missed or row["F"] is None else row["F"]
        cells = f"{row['method']:<16}{steps:>14}{'–' if missed else row['passes']:>9}"
        if row["seconds"] is not None:
            low, high = (1e3 * q for q in row["quartiles"])
            cells += f"{1e3 * row['seconds']:>9.2f}{f'{low:.2f}–{high:.2f}':>17}{row['compile_seconds']:>11.2f}"
        else:
            cells += " " * 37
        print(f"{cells}{reached:>18.9f}{'   missed' if missed else ''}")


def run(seed: int, quick: bool) -> list[dict[str, Any]]:
    wanted = problems(seed, quick)
    if quick:
        wanted = dict(list(wanted.items())[2:3])
    cases = []
    for name, problem in wanted.items():
        cases.append(run_case(name, problem, QUICK if quick else Budget()))
        report(cases[-1])
    return cases


def main(arguments: list[str] | None = None) -> int:
    options = parse("coordinate_vs_gradient", __doc__, arguments)
    jax.config.update("jax_enable_x64", True)
    clock = time.perf_counter()
    try:
        folder = writable_folder(options.out)
    except OSError as error:
        reason = error.strerror or error
        print(f"coordinate_vs_gradient: --out: cannot write to {options.out}: {reason}", file=sys.stderr)
        return 2
    try:
        cases = run(options.seed, options.quick)
        verdicts = claims(cases)
        print("\nevery method from the same start; seconds are warm medians, compilation apart\n")
        print_claims(verdicts)
        save(cases, verdicts, options, folder, time.perf_counter() - clock)
    except KeyboardInterrupt:
        print("\ncoordinate_vs_gradient: interrupted, nothing written", file=sys.stderr)
        return 130
    print(f"wrote {folder}/coordinate_vs_gradient.{{json,npz{'' if options.no_plot else ',pdf,png'}}}")
    return 0 if all(claim.holds for claim in verdicts) else 1


def save(cases: list[dict], verdicts: list[Claim], options: argparse.Namespace, folder: Any, seconds: float) -> None:
    """All files or none."""
    document = {
        "config": {"seed": options.seed, "quick": options.quick, "close": CLOSE, "gem_steps": GEM_STEPS},
        "cases": [{name: case[name] for name in case if name not in ("traces", "checks")} for case in cases],
        "claims": [claim.as_json() for claim in verdicts],
        "provenance": provenance() | {"seconds": seconds},
    }
    arrays = {
        f"{case['case']} | {method} | {field}": value
        for case in cases
        for method, trace in case["traces"].items()
        for field, value in trace._asdict().items()
    }
    with written_together(folder) as write:
        write("coordinate_vs_gradient.json", lambda path: path.write_text(as_json(document)))
        write("coordinate_vs_gradient.npz", lambda path: np.savez_compressed(path, **arrays))
        if not options.no_plot:
            from _coordinate_figure import draw

            import _style

            figure = draw(cases, GEM_STEPS)
            for ending in ("pdf", "png"):
                write(f"coordinate_vs_gradient.{ending}", partial(_style.save, figure))


if __name__ == "__main__":
    leave(main())
