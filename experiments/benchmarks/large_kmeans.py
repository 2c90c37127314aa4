"""k-means at three sizes, float32: time an iteration against scikit-learn, oneDAL and faiss; peak memory.

    python experiments/benchmarks/large_kmeans.py [--case D32|D2|D128] [--seed S] [--out DIR] [--quick]
           [--devices 1|all]

Lloyd's algorithm from the same centres, the same number of iterations, none stopped by a tolerance
(`_side_by_side.py`). The distortions of the final centres are evaluated by one function, in float64, for all programs.
"""

import argparse
import sys
from typing import Any

import _problems
import _roofline
import _side_by_side
from _problems import Case
from _timing import finish, goal, parser, start_jax

CASES = {  # and how many times as fast as the fastest peer
    "D32": (Case(1_048_576, 32, 64, 10), 1.8, ""),
    "D2": (Case(1_048_576, 2, 16, 20), 2.0, ""),
    "D128": (Case(262_144, 128, 256, 10), 1.0, ", aim at 1.3"),
}


def compare(name: str, case: Case, least: float, aim: str, options: argparse.Namespace, devices: int) -> dict[str, Any]:
    x, mu = _problems.data(case, options.seed)
    limits = {"repeats": 1} if options.quick else {"repeats": 9, "budget": 30.0}
    table = _side_by_side.rows("kmeans", x, mu, case.num_steps, **limits)
    if not options.quick:
        table = _side_by_side.with_memory(table, "kmeans", x, mu, options)
    ours, peers = _side_by_side.speeds(table)
    goals = []
    if peers:
        fastest = min(peers, key=lambda name: peers[name])
        goals.append(goal(f"the fastest peer ({fastest}) / jaxem{aim}", peers[fastest] / ours, least, at_least=True))
    remarks = _roofline.remarks("kmeans", case, ours, _roofline.machine(options.quick))
    statement = "seconds an iteration of Lloyd's algorithm"
    return _side_by_side.comparison(f"large k-means, {name}", "kmeans", case, statement, devices, table, goals, remarks)


def main(arguments: list[str] | None = None) -> int:
    options = parser("large_kmeans", __doc__, devices=True)
    options.add_argument("--case", choices=CASES, help="one of them; all by default")
    options = options.parse_args(arguments)
    devices = start_jax(options)
    done = []
    for name in [options.case] if options.case else CASES:
        case, least, aim = CASES[name]
        done.append(compare(name, case.tiny() if options.quick else case, least, aim, options, devices))
    return finish(f"large_kmeans_{options.case}" if options.case else "large_kmeans", done, options)


if __name__ == "__main__":
    sys.exit(main())
