"""On an NVIDIA GPU: is the kernel right inside whole fits, and how fast are they, beside what runs there too?

    python experiments/benchmarks/gpu.py [--only NAME ...] [--seconds S] [--seed S] [--out DIR] [--quick]

Case after case, the most valuable first, in processes of their own: one that fails, or says nothing for PATIENCE
seconds because XLA's autotuner still compiles, costs only itself. A finding is a line of JSON, printed and written to
DIR/gpu.jsonl as it is made, so that a run which is cut off keeps what it had; no case starts after S seconds.

Settings of XLA: `plain` (its defaults), `untuned` (without its autotuner), `x64` (untuned, and float64 is float64).

Seconds an iteration: `whole` is a call over its iterations; `slope`, (t(4n) − t(n)) / 3n, is what one more costs, and
`fixed` what a call costs whatever their number.
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import large_kmeans

import _gpu_cases
from _timing import parser

UNTUNED = "--xla_gpu_autotune_level=0"
SETTINGS = {
    "plain": {},
    "untuned": {"XLA_FLAGS": UNTUNED},
    "x64": {"XLA_FLAGS": UNTUNED, "JAX_ENABLE_X64": "1"},
}
PATIENCE = 60.0
KMEANS = tuple(f"kmeans {name}" for name in large_kmeans.CASES)
EM = tuple(f"em {family}" for family in ("isotropic", "spherical", "diagonal", "tied", "full"))
PLAN = (
    ("x64", ("exact",)),
    ("plain", (*KMEANS, *EM, "lanes", "program", "machine", "kernel")),
    ("plain", tuple(f"{name}, four times the rows" for name in EM)),
    ("untuned", ("gmmx diagonal", "gmmx full")),  # tuned, it had not compiled after a minute
)
Finding = dict[str, Any]


def say(**finding: Any) -> None:
    print(json.dumps(finding), flush=True)


def work(names: list[str], quick: bool, seed: int) -> None:
    """The cases of one process; a line that ends each."""
    for name in names:
        start = time.perf_counter()
        try:
            for finding in _gpu_cases.findings(name, quick, seed):
                say(case=name, **finding)
        except Exception as error:
            say(case=name, failed=f"{type(error).__name__}: {error}"[:300])
        say(case=name, ended=time.perf_counter() - start)


def lines_of(process: subprocess.Popen) -> "queue.Queue[str | None]":
    """Its lines as they come, then None."""
    found: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in process.stdout:
            found.put(line)
        found.put(None)

    threading.Thread(target=read, daemon=True).start()
    return found


def run(setting: str, names: list[str], flags: list[str], end: float, emit: Callable[[Finding], None]) -> None:
    """Those cases in one process, and the rest in another when one was killed."""
    while names and time.monotonic() < end:
        command = [sys.executable, __file__, *flags, "--worker", *names]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | SETTINGS[setting]
        ) as process:
            lines, reason = lines_of(process), ""
            while names:
                try:
                    line = lines.get(timeout=max(min(PATIENCE, end - time.monotonic()), 1))
                except queue.Empty:
                    reason = "said nothing for too long" if time.monotonic() < end else "time is up"
                    break
                if line is None:
                    reason = f"its process ended with {process.wait()}"
                    break
                if line.startswith("{"):
                    finding = json.loads(line)
                    emit({"xla": setting} | finding)
                    names = names[1:] if "ended" in finding else names
            if names:
                process.kill()
                emit({"xla": setting, "case": names[0], "failed": reason})
                names = names[1:]


def main(arguments: list[str] | None = None) -> int:
    options = parser("gpu", __doc__)
    options.add_argument("--only", nargs="+", metavar="NAME", help="of these settings and cases, e.g. untuned kernel")
    options.add_argument("--seconds", type=float, default=1e9, help="no case starts later")
    options.add_argument("--worker", nargs="+", metavar="CASE", help="run these here")
    options = options.parse_args(arguments)
    if options.worker:
        work(options.worker, options.quick, options.seed)
        return 0
    end = time.monotonic() + options.seconds
    Path(options.out).mkdir(parents=True, exist_ok=True)
    with (Path(options.out) / "gpu.jsonl").open("a") as file:

        def emit(finding: Finding) -> None:
            print(text := json.dumps(finding), flush=True)
            print(text, file=file, flush=True)

        only = set(options.only or [])
        settings = only & set(SETTINGS) or set(SETTINGS)
        wanted = only - set(SETTINGS)
        flags = ["--seed", str(options.seed), *["--quick"] * options.quick]
        for setting, names in PLAN:
            if setting in settings:
                run(setting, [name for name in names if not wanted or name in wanted], flags, end, emit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
