"""The same data, start and number of iterations to every program, and a row of the table from each.

An iteration is the whole call over their number, so that it pays for its checks of the data. n iterations are n M-steps
and n + 1 E-steps in jaxem and scikit-learn, and one E-step fewer in gmmx and faiss.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import _peers
import _problems
from _problems import Case
from _timing import Timing, goal, interleaved

MEMORY = Path(__file__).with_name("memory.py")
LIMIT = 256  # MB that a fit may need beyond its data


def rows(
    family: str,
    x: np.ndarray,
    mu: np.ndarray,
    num_steps: int,
    *,
    only: tuple[str, ...] = (),
    scored: int = 0,
    **limits: Any,
) -> list[dict[str, Any]]:
    """A row per program, jaxem's first; `scored`: the rows that the objective is of, all by default."""
    theta, table, programs = _problems.start(family, mu), {}, {}
    for name, make in _peers.of(family).items():
        if only and name not in only:
            continue
        try:
            programs[name] = make(family, theta, x, num_steps)
        except _peers.Absent as reason:
            table[name] = {"program": name, "note": str(reason)}
    timings = interleaved({name: program.fit for name, program in programs.items()}, **limits)
    judged = x[: scored or len(x)]
    for name, timing in timings.items():
        table[name] = {"program": name} | row(family, judged, num_steps, programs[name], timing)
    return [table[name] for name in _peers.of(family) if name in table]


def row(
    family: str, x: np.ndarray, num_steps: int, program: _peers.Program, timing: Timing | Exception
) -> dict[str, Any]:
    """Seconds an iteration, how many there were, and where they led."""
    if isinstance(timing, Exception):
        return {"note": f"failed: {type(timing).__name__}: {timing}"}
    end = program.outcome(timing.value)
    note = end.note if end.iterations == num_steps else f"STOPPED after {end.iterations} iterations; {end.note}"
    return timing.as_row(1 / end.iterations) | {
        "iterations": end.iterations,
        "objective": _problems.objective(family, x, end.theta),
        "note": note,
    }


def speeds(table: list[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Seconds of an iteration of jaxem, and of those of its peers that ran."""
    return table[0]["median"], {row["program"]: row["median"] for row in table[1:] if row.get("median")}


def with_memory(
    table: list[dict[str, Any]], family: str, x: np.ndarray, mu: np.ndarray, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The same rows with the peak memory of two iterations of each program that ran."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/x.npy", x)
        np.save(f"{folder}/mu.npy", mu)
        for row in table:
            if row.get("median"):
                row["memory_mb"] = peak(row["program"], family, folder, options)["beyond"]
    return table


def peak(program: str, family: str, folder: str, options: argparse.Namespace, steps: int = 2) -> dict[str, Any]:
    """From a process of its own: MB of the data in this folder, and of a fit's peak beyond; or why there is none."""
    command = [sys.executable, str(MEMORY), "--child", program, family, folder]
    command += ["--devices", options.devices, "--steps", str(steps)]
    done = subprocess.run(command, check=program.startswith("jaxem"), stdout=subprocess.PIPE, text=True)
    if done.returncode:  # a peer's: killed for want of memory, say
        return {"beyond": None, "absent": f"its process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def peak_goal(table: list[dict[str, Any]]) -> dict[str, Any]:
    return goal("jaxem's peak MB beyond the data", table[0]["memory_mb"], LIMIT, at_least=False)


def comparison(
    name: str, family: str, case: Case, statement: str, devices: int, table: list[dict], goals: list, remarks: list
) -> dict[str, Any]:
    start = "K random rows, the same in all" + ("" if family == "kmeans" else "; Σ = 4I, π = 1/K")
    what = "distortion" if family == "kmeans" else "log-likelihood"
    return {
        "name": name,
        "statement": f"{statement}; {case.num_steps} iterations; objective: {what}",
        "setting": case.setting(start, devices),
        "rows": table,
        "remarks": remarks,
        "goals": [*goals, *([peak_goal(table)] if "memory_mb" in table[0] else [])],
    }
