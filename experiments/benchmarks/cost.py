"""Cost of an iteration against N, D and K: k-means and diagonal EM, float32, with the peers' curves.

    python experiments/benchmarks/cost.py [--seed S] [--out DIR] [--quick] [--devices 1|all]

One of N, D, K is swept, the other two are held at BASE. An iteration is the whole call over its iterations, STEPS of
them, as in `large_kmeans.py` and `large_em.py`. Linear in N: seconds a row at each N, relative to their median over
all N; jaxem's are measured once more for that, at all N in turns, so that they meet the same machine. A peer whose
call took longer than LONGEST seconds, or whose tables would fill a third of the machine's memory, is left out from
there on. Objectives are of the first SCORED rows.

`cost_figure.py` draws DIR/bench_cost.json.
"""

import argparse
import os
import sys
from typing import Any

import numpy as np

import _peers
import _problems
import _side_by_side
from _problems import Case
from _timing import finish, goal, interleaved, parser, seconds, start_jax

BASE = {"N": 262_144, "D": 16, "K": 64}
SWEEPS = {
    "N": [100_000, 316_228, 1_000_000, 3_162_278, 10_000_000],
    "D": [2, 4, 8, 16, 32, 64, 128],
    "K": [2, 4, 8, 16, 32, 64, 128, 256],
}
STEPS = {"kmeans": 20, "diagonal": 5}
NAMES = {"kmeans": "k-means", "diagonal": "diagonal EM"}
LONGEST = 20.0
SCORED = 16_384
TABLES = {  # floats that a peer makes at once, as multiples of N, for D and K
    "scikit-learn GaussianMixture": lambda d, k: 4 * k + 2 * d,
    "gmmx EMFitter": lambda d, k: 2 * k * d,
}


def memory_bytes() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def point(family: str, case: Case, programs: list[str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every program at one size."""
    # nearly one Gaussian: no iteration reaches a fixed point early
    x, mu = _problems.blobs(case, options.seed, spread=0.3)
    limits = {"repeats": 1, "pause": 0.0} if options.quick else {"repeats": 7, "budget": 5.0, "least": 2}
    return _side_by_side.rows(family, x, mu, case.num_steps, only=tuple(programs), scored=SCORED, **limits)


def sweep(family: str, axis: str, options: argparse.Namespace, devices: int) -> dict[str, Any]:
    """All programs along one axis."""
    base = {"N": 2_000, "D": 3, "K": 4} if options.quick else BASE
    values = [base[axis], 2 * base[axis]] if options.quick else SWEEPS[axis]
    programs, rows, remarks = list(_peers.of(family)), [], []
    for value in values:
        print(f"cost: {NAMES[family]}, {axis} = {value:,}", file=sys.stderr)  # all of it takes a quarter of an hour
        size = base | {axis: value}
        case = Case(size["N"], size["D"], size["K"], 2 if options.quick else STEPS[family])
        for name in programs[1:]:
            if 4 * case.num_rows * TABLES.get(name, lambda d, k: d)(size["D"], size["K"]) > memory_bytes() / 3:
                programs.remove(name)
                remarks.append(f"{name}: left out from {axis} = {value:,}, where its tables would fill the memory.")
        for row in point(family, case, programs, options):
            name = row["program"]
            rows.append(row | {"program": f"{name}, {axis} = {value:,}", "curve": name, "at": value})
            if row.get("median") is None:
                programs.remove(name)
                remarks.append(f"{name}: {row['note']}.")
            elif name != programs[0] and row["median"] * case.num_steps > LONGEST:
                programs.remove(name)
                remarks.append(f"{name}: left out after {axis} = {value:,}, where its call took over {LONGEST:g} s.")
    rows = [row for row in rows if row.get("median")]
    others = {name: base[name] for name in base if name != axis}
    held = ", ".join(f"{name} = {value:,}" for name, value in others.items())
    found = {
        "name": f"cost, {NAMES[family]} against {axis}",
        "statement": f"seconds an iteration of {NAMES[family]} at {held}, {case.num_steps} iterations",
        "setting": others | {"precision": 32, "start": "K random rows, the same in all", "devices": devices},
        "family": family,
        "axis": axis,
        "rows": rows,
        "grid": grid(axis, rows),
        "remarks": remarks,
        "goals": [],
    }
    return found if axis != "N" else with_linearity(found, in_turns(family, values, base, case.num_steps, options))


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Median seconds by program and value."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(row["curve"], {})[row["at"]] = row["median"]
    return found


def grid(axis: str, rows: list[dict[str, Any]]) -> list[list[str]]:
    """A line per value and a column per program."""
    found = curves(rows)
    values = sorted({row["at"] for row in rows})
    lines = [[f"{v:,}", *(seconds(curve[v]) if v in curve else "–" for curve in found.values())] for v in values]
    return [[axis, *found], *lines]


def in_turns(
    family: str, values: list[int], base: dict[str, int], num_steps: int, options: argparse.Namespace
) -> dict[int, float]:
    """jaxem's seconds an iteration of the first N rows of one data set, N after N, over and over."""
    x, mu = _problems.blobs(Case(max(values), base["D"], base["K"], num_steps), options.seed, spread=0.3)
    theta, (make, *_) = _problems.start(family, mu), _peers.of(family).values()
    calls = {f"{n}": make(family, theta, x[:n], num_steps).fit for n in values}
    limits = {"repeats": 1, "pause": 0.0} if options.quick else {"repeats": 25, "budget": 30.0, "least": 5}
    timings = interleaved(calls, **limits)
    return {n: timings[f"{n}"].median / num_steps for n in values}


def with_linearity(found: dict[str, Any], ours: dict[int, float]) -> dict[str, Any]:
    """Seconds a row, relative to their median: how far the farthest is from 1."""
    farthest = {}
    for name, curve in ({"jaxem, in turns": ours} | curves(found["rows"])).items():
        per_row = np.array([median / n for n, median in curve.items()])
        farthest[name] = float(np.max(np.abs(per_row / np.median(per_row) - 1)))
        nanoseconds = ", ".join(f"{1e9 * value:.3g}" for value in per_row)
        found["remarks"].append(f"{name}: {nanoseconds} ns a row; farthest from their median {farthest[name]:.0%}.")
    what = "jaxem's seconds a row, in turns, farthest from their median"
    found["goals"] = [goal(what, next(iter(farthest.values())), 0.15, at_least=False)]
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser("cost", __doc__, devices=True).parse_args(arguments)
    devices = start_jax(options)
    families = {"kmeans": ("N", "K"), "diagonal": ("N",)} if options.quick else dict.fromkeys(STEPS, SWEEPS)
    found = [sweep(family, axis, options, devices) for family, axes in families.items() for axis in axes]
    return finish("cost", found, options)


if __name__ == "__main__":
    sys.exit(main())
