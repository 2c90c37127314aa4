"""EM of Gaussian mixtures on 262,144 rows, float32: time an iteration against scikit-learn and gmmx; peak memory.

    python experiments/benchmarks/large_em.py [--case full|diagonal|spherical|tied] [--seed S] [--out DIR] [--quick]
           [--devices 1|all]

Same data, same start, same number of iterations, none stopped by a tolerance (`_side_by_side.py`). The final
log-likelihoods are evaluated by one function, in float64, for all programs.
"""

import argparse
import sys
from typing import Any

import _problems
import _roofline
import _side_by_side
from _problems import Case
from _timing import finish, goal, parser, start_jax

CASES = {
    "full": Case(262_144, 16, 16, 10),
    "diagonal": Case(262_144, 32, 64, 10),
    "spherical": Case(262_144, 32, 64, 10),
    "tied": Case(262_144, 32, 64, 3),
}
SCIKIT_LEARN, GMMX = "scikit-learn GaussianMixture", "gmmx EMFitter"
TARGETS = {  # how many times as fast, and what to aim at
    "full": {SCIKIT_LEARN: (15, ", aim at 20"), GMMX: (10, "")},
    "diagonal": {SCIKIT_LEARN: (10, ", aim at 20"), GMMX: (1, "")},
    "spherical": {SCIKIT_LEARN: (1, "")},
    "tied": {SCIKIT_LEARN: (30, "")},
}


def compare(family: str, case: Case, options: argparse.Namespace, devices: int) -> dict[str, Any]:
    x, mu = _problems.data(case, options.seed)
    limits = {"repeats": 1} if options.quick else {"repeats": 7, "budget": 30.0}
    table = _side_by_side.rows(family, x, mu, case.num_steps, **limits)
    if not options.quick:
        table = _side_by_side.with_memory(table, family, x, mu, options)
    ours, peers = _side_by_side.speeds(table)
    goals = []
    for name, seconds in peers.items():
        least, aim = TARGETS[family][name]
        goals.append(goal(f"{name} / jaxem{aim}", seconds / ours, least, at_least=True))
    remarks = _roofline.remarks(family, case, ours, _roofline.machine(options.quick))
    statement = "seconds an iteration of EM"
    return _side_by_side.comparison(f"large, {family}", family, case, statement, devices, table, goals, remarks)


def main(arguments: list[str] | None = None) -> int:
    options = parser("large_em", __doc__, devices=True)
    options.add_argument("--case", choices=CASES, help="one of them; all by default")
    options = options.parse_args(arguments)
    devices = start_jax(options)
    chosen = [options.case] if options.case else list(CASES)
    cases = {family: CASES[family].tiny() if options.quick else CASES[family] for family in chosen}
    done = [compare(family, case, options, devices) for family, case in cases.items()]
    return finish(f"large_em_{options.case}" if options.case else "large_em", done, options)


if __name__ == "__main__":
    sys.exit(main())
