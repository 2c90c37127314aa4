"""Peak memory of a fit beyond its data: N = 4,194,304, D = 16, K = 256, float32; a process for each program.

    python experiments/benchmarks/memory.py [--seed S] [--out DIR] [--quick] [--devices 1|all]

The peak is the process's own (VmHWM), of the first call and so with its compilation, above what is resident when the
program is imported and the data are loaded. Two iterations: more do not need more.
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
from _timing import cores, finish, parser, peak_beyond, start_jax

CASE = Case(4_194_304, 16, 256, 2)
FAMILIES = ("kmeans", "isotropic", "diagonal")


def child(program: str, family: str, folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """MB of the data and of the peak of one call beyond them, or why there is none."""
    if program.startswith("jaxem"):
        start_jax(options)
    x, mu = np.load(f"{folder}/x.npy"), np.load(f"{folder}/mu.npy")
    try:
        fit = _peers.ALL[program](family, _problems.start(family, mu), x, CASE.num_steps).fit
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


def main(arguments: list[str] | None = None) -> int:
    options = parser("memory", __doc__, devices=True)
    options.add_argument("--child", nargs=3, metavar=("PROGRAM", "FAMILY", "FOLDER"), help="used by the script itself")
    options = options.parse_args(arguments)
    if options.child:
        print(json.dumps(child(*options.child, options)))
        return 0
    case = CASE.tiny() if options.quick else CASE
    with tempfile.TemporaryDirectory() as folder:
        x = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", np.float32, case[:2])
        np.save(f"{folder}/mu.npy", _problems.blobs(case, options.seed, x)[1])
        x.flush()
        families = FAMILIES[:1] if options.quick else FAMILIES
        found = [compare(family, case, folder, options) for family in families]
    return finish("memory", found, options)


if __name__ == "__main__":
    sys.exit(main())
