"""All devices against one: k-means and full-covariance EM, float32, the same data; a process per number of devices.

    python experiments/benchmarks/devices.py [--seed S] [--out DIR] [--quick]

JAX's number of CPU devices is fixed when it starts, hence the processes, which alternate: one, all, one, all. One
device is not one core: XLA spreads some operations of one device, large matrix products above all, over threads on all
cores. So a process that may use one core only is shown too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

import _peers
import _problems
from _problems import Case
from _timing import Timing, cores, finish, goal, measure, parser, start_jax

CASES = {"kmeans": Case(1_048_576, 32, 64, 10), "full": Case(262_144, 16, 16, 10)}
TARGET = 1.8  # for two; in proportion for more
HOW = {"one device": ("1",), "one device, one core": ("1", "--one-core"), "all devices": ("all",)}


def child(family: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """The seconds of a fit's repeats with this process's devices, and where it led."""
    if options.one_core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    devices = start_jax(options)
    case = CASES[family].tiny() if options.quick else CASES[family]
    x, mu = np.load(f"{folder}/x.npy"), np.load(f"{folder}/mu.npy")
    make = next(iter(_peers.of(family).values()))
    program = make(family, _problems.start(family, mu), x, case.num_steps)
    timing = measure(program.fit, repeats=1 if options.quick else 7)
    end = program.outcome(timing.value)
    return {
        "devices": devices,
        "seconds": timing.seconds,
        "compile_seconds": timing.compile_seconds,
        "iterations": end.iterations,
        "objective": _problems.objective(family, x, end.theta),
    }


def run(family: str, how: tuple[str, ...], folder: str, quick: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", family, folder, "--devices", *how, *["--quick"] * quick]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(family: str, case: Case, options: argparse.Namespace) -> dict[str, Any]:
    chosen = {label: how for label, how in HOW.items() if not (options.quick and "--one-core" in how)}
    with tempfile.TemporaryDirectory() as folder:
        x, mu = _problems.data(case, options.seed)
        np.save(f"{folder}/x.npy", x)
        np.save(f"{folder}/mu.npy", mu)
        rounds = [
            {label: run(family, how, folder, options.quick) for label, how in chosen.items()}
            for _ in range(1 if options.quick else 2)
        ]
    rows = []
    for label in chosen:
        runs = [found[label] for found in rounds]
        first = min(found["compile_seconds"] for found in runs)
        timing = Timing(None, [seconds for found in runs for seconds in found["seconds"]], first)
        last = runs[-1]
        told = f"{last['devices']} device(s), {len(runs)} process(es)"
        reached = {name: last[name] for name in ("iterations", "objective")}
        rows.append(timing.as_row(1 / case.num_steps) | {"program": f"jaxem, {label}", "note": told} | reached)
    ratio = rows[0]["median"] / rows[-1]["median"]
    least = TARGET * last["devices"] / 2
    return {
        "name": f"devices, {family}",
        "statement": f"seconds an iteration, {case.num_steps} iterations, one device against all",
        "setting": case.setting("K random rows, the same in all", cores()),
        "rows": rows,
        "goals": [goal(f"one device / {last['devices']} devices", ratio, least, at_least=True)],
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser("devices", __doc__, devices=True)
    options.add_argument("--one-core", action="store_true", help="used by the script itself")
    options.add_argument("--child", nargs=2, metavar=("FAMILY", "FOLDER"), help="used by the script itself")
    options = options.parse_args(arguments)
    if options.child:
        print(json.dumps(child(*options.child, options)))
        return 0
    cases = {"kmeans": CASES["kmeans"].tiny()} if options.quick else CASES
    return finish("devices", [compare(family, case, options) for family, case in cases.items()], options)


if __name__ == "__main__":
    sys.exit(main())
