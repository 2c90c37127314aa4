"""The time of `import jaxem` against `import numpyro`, each in fresh interpreters, alternating.

python experiments/benchmarks/import_time.py [--out DIR] [--quick]
"""

import subprocess
import sys

from _timing import Timing, finish, goal, parser

PROGRAM = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_seconds(module: str) -> float:
    """Seconds of the import alone, in an interpreter that has imported nothing else."""
    command = [sys.executable, "-P", "-c", PROGRAM.format(module)]  # -P: not the working directory's jaxem
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(arguments: list[str] | None = None) -> int:
    options = parser("import_time", __doc__).parse_args(arguments)
    modules, repeats = ("numpyro", "jaxem"), 1 if options.quick else 11
    rounds = [{module: import_seconds(module) for module in modules} for _ in range(repeats + 1)]
    rounds = rounds[1:]  # the first fills the disk's caches
    timings = {module: Timing(None, [times[module] for times in rounds], 0.0) for module in modules}
    ratio = timings["jaxem"].median / timings["numpyro"].median
    comparison = {
        "name": "import",
        "statement": f"median of {repeats} fresh interpreters each, alternating",
        "rows": [timing.as_row() | {"program": f"import {module}"} for module, timing in timings.items()],
        "goals": [goal("import jaxem / import numpyro", ratio, 1.3, at_least=False)],
    }
    return finish("import_time", [comparison], options)


if __name__ == "__main__":
    sys.exit(main())
