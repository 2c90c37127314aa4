"""What the main job costs: wall time and peak memory of `sigma_sweep.py`, compilation included.

python experiments/benchmarks/sweep_cost.py [--out DIR] [--quick]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import Timing, finish, goal, parser

SWEEP = Path(__file__).resolve().parents[1] / "sigma_sweep.py"


def run_once(flags: list[str]) -> tuple[float, float]:
    """Seconds and peak resident MB of one run. This process must stay small: the child's peak counts its fork."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        child = subprocess.Popen([sys.executable, str(SWEEP), "--out", folder, *flags], stdout=output, stderr=output)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            output.seek(0)
            sys.exit(f"sweep_cost: sigma_sweep.py ended with {child.returncode}:\n{output.read().decode()[-2000:]}")
    return seconds, usage.ru_maxrss * (1e-6 if sys.platform == "darwin" else 1.024e-3)


def main(arguments: list[str] | None = None) -> int:
    options = parser("sweep_cost", __doc__).parse_args(arguments)
    flags = ["--quick", "--no-plot", "--sigmas", "3", "1", "2"] if options.quick else []
    seconds, megabytes = zip(*(run_once(flags) for _ in range(1 if options.quick else 3)), strict=True)
    timing = Timing(None, list(seconds), 0.0)
    comparison = {
        "name": "main job",
        "statement": f"sigma_sweep.py {' '.join(flags)} in a fresh process, compilation and figure included",
        "rows": [timing.as_row() | {"program": "sigma_sweep.py", "memory_mb": max(megabytes)}],
        "goals": [
            goal("seconds", timing.median, 30, at_least=False),
            goal("peak MB", max(megabytes), 1500, at_least=False),
        ],
    }
    return finish("sweep_cost", [comparison], options)


if __name__ == "__main__":
    sys.exit(main())
