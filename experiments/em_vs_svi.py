"""One NumPyro program, three ways to its maximum likelihood: EM, NumPyro's SVI, and L-BFGS.

    python experiments/em_vs_svi.py [--seed S] [--out DIR] [--quick] [--no-plot]

EM is `jaxem.em` on `jaxem.from_numpyro(program)`. SVI is NumPyro's, `TraceEnum_ELBO` with an empty guide, as every
parameter is a `numpyro.param`; with no latent left for the guide its bound is L itself,

    ELBO(θ) = log Σ_z p(x, z | θ) = L(θ),   so   loss(θ_t) = −L(θ_t)

and its Adam (each of several rates, the best is shown) is gradient ascent on L. Along a `scan` NumPyro 0.22's
`TraceEnum_ELBO` takes time for a plate, and its loss is not −L (the table says by how much); there SVI is given −L by
`numpyro.contrib.funsor.log_density`. L-BFGS climbs that L too, in NumPyro's unconstrained coordinates. All three start
at one θ. Three programs: full covariances on Old Faithful, three overlapping components, and a hidden Markov model. The
start distribution of the last has its maximum at a corner of the simplex, at infinity in unconstrained coordinates.

L* is the highest of the points that EM reaches from the ends of all methods. A method has arrived once
L ≥ L* − 1e-6 |L*|. It is in EM's basin if EM goes on from its end to EM's own optimum, labels apart.

Work is counted in passes over the data, which no machine changes: an E-step, or L with its gradient, of which a line
search takes several a step. Times are those of the processor, which other programs do not lengthen by waiting, for
compiled blocks of steps from the start, compilation apart: each the least of repeats in turns, and no block takes
longer than one of more steps. They depend on the machine, and no claim does.

Writes DIR/em_vs_svi.json, .npz, .pdf and .png. Exits 0 when every claim holds, 1 when one fails, 2 for bad arguments.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from _claims import worst
from _race import Racer, as_row, choose
from _svi_programs import Problem, Theta, numpyro_log_likelihood, problems, trace_enum_error
from _svi_racers import Trace, em_racer, lbfgs_racer, svi_racers

import jaxem
from jaxem.limits import ROUNDING

from _command import Config, Result, command, leave
from _results import Claim

CLOSE = 1e-6  # a method has arrived once L ≥ L* − CLOSE·|L*|
SAME = 1e-5  # two ends of EM whose θ differ by less, labels apart, are one optimum
COMPARED = 12  # points of a path at which L is computed a second way
CHECKPOINTS = 10  # times taken along a path


class Budget(NamedTuple):
    """How long each method may climb, and how often it is timed."""

    em: int = 1_000
    adam: int = 5_000
    lbfgs: int = 300
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    repeats: int = 15


QUICK = Budget(em=300, adam=300, lbfgs=30, rates=(3e-2, 1e-1), repeats=1)


# ---- one problem


def run_problem(problem: Problem, budget: Budget) -> dict[str, Any]:
    """Every method's trace; of the rates the best; steps and seconds to the same height; what the claims need."""
    m = jaxem.from_numpyro(problem.program)
    racers = {"EM": em_racer(problem, budget.em)}
    racers |= svi_racers(problem, budget.rates, budget.adam) | {"L-BFGS": lbfgs_racer(problem, budget.lbfgs)}
    traces = {name: racer.trace for name, racer in racers.items()}
    ends = {name: polished(m, problem, trace, budget.em) for name, trace in traces.items()}
    best_end, top = max(ends.values(), key=lambda end: end[1])
    rows = {name: as_row(name, traces[name].value, top - CLOSE * abs(top), "L_best") for name in racers}
    for name, row in rows.items():
        row |= {"distance": distance(ends[name][0], best_end)}
        row |= {"same_basin": distance(ends[name][0], ends["EM"][0]) <= SAME}
        row |= {"passes": None if row["steps"] is None else int(traces[name].passes[row["steps"]])}
    choose(rows, "SVI", "L_best")
    chosen = {name: row for name, row in rows.items() if row["chosen"]}
    timed = timetable(racers, {name: checkpoints(row) for name, row in chosen.items()}, budget)
    for name, row in chosen.items():
        steps, seconds = timed[name]
        taken = None if row["steps"] is None else float(seconds[steps == row["steps"]][0])
        row |= {"compile_seconds": racers[name].compile_seconds, "seconds": taken}
        row |= {"timed_steps": steps, "timed_seconds": seconds}
    return {
        "rows": list(rows.values()),
        "L_start": float(traces["EM"].value[0]),
        "L_star": top,
        "size": int(problem.x.size),
        "parameters": int(sum(leaf.size for leaf in problem.theta.values())),
        "trace_enum": trace_enum_error(problem, float(traces["EM"].value[0])),
        "checks": checks(m, problem, traces, rows, budget),
        "curves": {name: (top - traces[name].value, traces[name].passes) for name in chosen},
    }


def polished(m: jaxem.Program, problem: Problem, trace: Trace, num_steps: int) -> tuple[Theta, float]:
    """Where EM goes from a method's best point, and L there."""
    best = int(np.nanargmax(trace.value))
    theta = {name: jnp.asarray(leaf[best]) for name, leaf in trace.theta.items()}
    path = jaxem.em_path(m, theta, problem.x, num_steps=num_steps + 1)
    return jax.tree.map(lambda leaf: np.asarray(leaf[-1]), path.theta), float(path.after_m[-1])


def distance(theta: Theta, other: Theta) -> float:
    """‖θ − θ'‖_∞, the components of each in the order of their means."""
    theta, other = in_order(theta), in_order(other)
    return max(float(np.max(np.abs(theta[name] - other[name]))) for name in theta)


def in_order(theta: Theta) -> Theta:
    """Components relabelled by the first coordinate of their means."""
    order = np.argsort(theta["mu"].reshape(len(theta["mu"]), -1)[:, 0])
    with_start = np.append(order, len(order))
    return {name: leaf[with_start][:, order] if name == "A" else leaf[order] for name, leaf in theta.items()}


def checkpoints(row: dict[str, Any]) -> np.ndarray:
    """Numbers of steps after which a climb is timed, the arrival among them."""
    last = row["steps_tried"] if row["steps"] is None else min(2 * row["steps"], row["steps_tried"])
    steps = np.unique(np.round(np.geomspace(1, max(last, 2), CHECKPOINTS)).astype(int))
    return steps if row["steps"] is None else np.union1d(steps, [row["steps"]])


def timetable(
    racers: dict[str, Racer], steps: dict[str, np.ndarray], budget: Budget
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Method -> (steps, CPU seconds from the start): the least of repeats, all blocks of all methods in turns.

    A block of n steps is the beginning of every longer one, so the least time of any that is at least as long bounds
    its own.
    """
    least = {name: np.full(len(each), np.inf) for name, each in steps.items()}
    for _ in range(1 + budget.repeats):  # the first is slower
        for name, each in steps.items():
            for index, n in enumerate(each):
                least[name][index] = min(least[name][index], cpu_seconds(racers[name].race, int(n)))
    return {name: (steps[name], np.minimum.accumulate(found[::-1])[::-1]) for name, found in least.items()}


def cpu_seconds(race: Callable[[int], Any], steps: int) -> float:
    start = time.process_time()
    jax.block_until_ready(race(steps))
    return time.process_time() - start


# ---- the claims


def checks(m: jaxem.Program, problem: Problem, traces: dict, rows: dict, budget: Budget) -> dict[str, tuple]:
    """Each claim's worst value and its bound on this problem; L is compared at points spread over each path."""
    eps = ROUNDING * float(jnp.finfo(problem.x.dtype).eps)
    likelihood = jax.jit(jax.vmap(partial(jaxem.log_likelihood, m, x=problem.x)))
    numpyros = jax.jit(jax.vmap(partial(numpyro_log_likelihood, problem.program, x=problem.x)))

    def along(trace: Trace) -> tuple[np.ndarray, Theta]:
        picked = np.unique(np.geomspace(1, len(trace.value), COMPARED).astype(int)) - 1
        picked = np.resize(picked, COMPARED)  # one shape, one compilation
        return trace.value[picked], jax.tree.map(lambda leaf: jnp.asarray(leaf[picked]), trace.theta)

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.max(np.abs(np.asarray(a) - np.asarray(b)) / (1 + np.abs(b))))

    value = {name: along(trace) for name, trace in traces.items()}
    svi = [apart(own, likelihood(theta)) for name, (own, theta) in value.items() if name.startswith("SVI")]
    density = [apart(numpyros(theta), likelihood(theta)) for _, theta in value.values()]
    path = jaxem.em_path(m, problem.theta, problem.x, num_steps=budget.em + 1)
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    end = traces["EM"].value[-1]
    within = [row for row in rows.values() if row["same_basin"]]
    arrived = [row["distance"] for row in rows.values() if row["steps"] is not None]
    return {
        "start": (float(np.ptp([t.value[0] for t in traces.values()])), eps * (1 + abs(trace[0]))),
        "ELBO": (max(svi), eps),
        "funsor": (max(density), eps),
        "C2": (float(np.max(trace[:-1] - trace[1:])), eps * float(np.abs(trace).max())),
        "top": (max(row["L_best"] for row in within) - end, eps * abs(end)),
        "same": (max(arrived, default=np.nan), SAME),
    }


STATEMENTS = {
    "start": "all methods start at the same L",
    "ELBO": "SVI's loss is −L: |loss + L|/(1 + |L|) along every path of every rate",
    "funsor": "jaxem.log_likelihood is NumPyro's enumerated log_density: the same, along every path",
    "C2": "EM: L never falls, at either half-step (nats)",
    "top": "no method in EM's basin ends above EM: L − L_EM",
    "same": "who arrives is at one optimum: EM goes on from there to θ*, ‖θ − θ*‖_∞",
}


def claims(cases: dict[str, dict[str, Any]]) -> list[Claim]:
    """Over the problems, the value nearest to its bound, or furthest above it."""

    return [worst(name, STATEMENTS[name], [case["checks"][name] for case in cases.values()]) for name in STATEMENTS]


def run(config: Config) -> Result:
    """Every method on every problem."""
    budget = QUICK if config.quick else Budget()
    cases = {name: run_problem(problem, budget) for name, problem in problems(config).items()}
    kept = ("rows", "L_start", "L_star", "size", "parameters", "trace_enum")
    shown = {name: {key: case[key] for key in kept} for name, case in cases.items()}
    summary = {"close": CLOSE, "repeats": budget.repeats, "cases": shown}
    arrays = {
        f"{name} | {method} | {field}": values
        for name, case in cases.items()
        for method, curve in case["curves"].items()
        for field, values in zip(("gap", "passes"), curve, strict=True)
    }
    return Result(summary, claims(cases), arrays)


def report(summary: dict[str, Any]) -> None:
    """Steps, passes over the data and seconds to the same L."""
    for name, case in summary["cases"].items():
        print(f"\n{name}: {case['size']} numbers, {case['parameters']} in θ; ", end="")
        print(f"from L = {case['L_start']:.4f} to L* = {case['L_star']:.9f}; ", end="")
        print(f"TraceEnum_ELBO at the start is off by {case['trace_enum']:.1e} |L|")
        print(f"{'method':<16}{'steps':>9}{'passes':>9}{'CPU ms':>10}{'compile s':>11}{'L reached':>18}")
        for row in case["rows"]:
            steps = f"> {row['steps_tried']}" if row["steps"] is None else str(row["steps"])
            passes = "–" if row["passes"] is None else str(row["passes"])
            milliseconds = "–" if row["seconds"] is None else f"{1e3 * row['seconds']:.2f}"
            compiling = "–" if row["compile_seconds"] is None else f"{row['compile_seconds']:.2f}"
            basin = "" if row["same_basin"] else "   another basin"
            print(
                f"{row['method']:<16}{steps:>9}{passes:>9}{milliseconds:>10}{compiling:>11}{row['L_best']:>18.9f}{basin}"
            )
    print()


def main(arguments: list[str] | None = None) -> int:
    return command("em_vs_svi", __doc__, run, report, arguments)


if __name__ == "__main__":
    leave(main())
