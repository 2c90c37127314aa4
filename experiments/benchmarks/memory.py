"""Peak memory of a fit beyond its data: N = 4,194,304, D = 16, K = 256, float32; a process for each program.

And that it does not grow with the number of steps: N = 1,048,576, D = 16, K = 64.

    python experiments/benchmarks/memory.py [--seed S] [--out DIR] [--quick] [--devices 1|all]

The peak is the process's own (VmHWM), of the first call and so with its compilation, above what is resident when the
program is imported and the data are loaded.
"""

import argparse
import json
import sys
import tempfile
from typing import Any

import numpy as np

import _peers
import _problems
from _problems import Case
from _side_by_side import peak, peak_goal
from _timing import cores, finish, goal, parser, peak_beyond, start_jax

CASE = Case(4_194_304, 16, 256, 2)
FAMILIES = ("kmeans", "isotropic", "diagonal")
LONG, STEPS = Case(1_048_576, 16, 64, 0), (16, 128)


def child(program: str, family: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """MB of the data and of the peak of one call beyond them, or why there is none."""
    if program.startswith("jaxem"):
        start_jax(options)
    x, mu = np.load(f"{folder}/x.npy"), np.load(f"{folder}/mu.npy")
    try:
        fit = _peers.ALL[program](family, _problems.start(family, mu), x, options.steps).fit
    except _peers.Absent as reason:
        return {"beyond": None, "absent": str(reason)}
    return {"data": x.nbytes / 1e6, "beyond": peak_beyond(fit)}


def compare(family: str, case: Case, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """jaxem, and for k-means its peers; a mixture's peers make tables that this machine may not hold."""
    tables = f"not run: one N × K table is {4e-6 * case.num_rows * case.num_components:,.0f} MB, and it makes several"
    rows = []
    for program in _peers.of(family):
        why_not = "not run in --quick" if options.quick else tables if family != "kmeans" else ""
        if rows and why_not:
            rows.append({"program": program, "note": why_not})
            continue
        found = peak(program, family, folder, options)
        note = found.get("absent") or f"beyond the data's {found['data']:.0f} MB"
        rows.append({"program": program, "memory_mb": found["beyond"], "note": note})
    return {
        "name": f"memory, {family}",
        "statement": "peak MB of a fit beyond its data, compilation included, in a process of its own",
        "setting": case.setting("K random rows", 1 if options.devices == "1" else cores()),
        "rows": rows,
        "goals": [peak_goal(rows)],
    }


def growth(family: str, case: Case, steps: tuple[int, int], folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """The peak of a short and of a long fit."""
    program = next(iter(_peers.of(family)))
    rows = []
    for count in steps:
        megabytes = peak(program, family, folder, options, steps=count)["beyond"]
        rows.append({"program": f"{program}, {count} steps", "memory_mb": megabytes})
    more = rows[1]["memory_mb"] - rows[0]["memory_mb"]
    return {
        "name": f"memory of a long fit, {family}",
        "statement": "peak MB of a fit beyond its data, compilation included, in a process of its own",
        "setting": case.setting("K random rows", 1 if options.devices == "1" else cores()),
        "rows": rows,
        "goals": [goal(f"MB more for {steps[1] - steps[0]} steps more", more, 16, at_least=False)],
    }


def write(case: Case, seed: int, folder: str) -> None:
    x = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", np.float32, case[:2])
    np.save(f"{folder}/mu.npy", _problems.blobs(case, seed, x)[1])
    x.flush()


def main(arguments: list[str] | None = None) -> int:
    options = parser("memory", __doc__, devices=True)
    options.add_argument("--child", nargs=3, metavar=("PROGRAM", "FAMILY", "FOLDER"), help="used by the script itself")
    options.add_argument("--steps", type=int, default=CASE.num_steps, help="likewise")
    options = options.parse_args(arguments)
    if options.child:
        print(json.dumps(child(*options.child, options)))
        return 0
    case, long = (CASE.tiny(), LONG.tiny()) if options.quick else (CASE, LONG)
    families = FAMILIES[:1] if options.quick else FAMILIES
    with tempfile.TemporaryDirectory() as folder:
        write(case, options.seed, folder)
        found = [compare(family, case, folder, options) for family in families]
        write(long, options.seed, folder)
        found += [growth(family, long, (1, 2) if options.quick else STEPS, folder, options) for family in families[1:]]
    return finish("memory", found, options)


if __name__ == "__main__":
    sys.exit(main())
