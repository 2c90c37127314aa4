"""Timing: warm up, block, repeat; compile time apart; a process's peak memory. No JAX until it is needed.

A comparison is a dictionary: `name`, `statement`, `setting` (N, D, K, precision, start, devices), `rows` (one per
program: how many iterations it did, the objective it reached, compile seconds, median and quartiles, peak memory) and,
where there are any, `remarks`, `goals`, and a `grid` of cells to show in place of many rows. `finish` prints it and
writes it; `run.py` gathers them.
"""

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the experiments' own modules


class Timing(NamedTuple):
    """Seconds of the repeats, what the call returned, and what the first call cost more than the others."""

    value: Any
    seconds: list[float]
    compile_seconds: float  # first call − median; compilation, caches and page faults

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(low), float(high)

    def as_row(self, scale: float = 1.0) -> dict[str, Any]:
        """Median and quartiles in seconds, times `scale` (1 / steps: per iteration)."""
        low, high = self.quartiles
        return {
            "compile_seconds": self.compile_seconds,
            "median": self.median * scale,
            "q1": low * scale,
            "q3": high * scale,
            "repeats": len(self.seconds),
        }


def measure(f: Callable, *arguments: Any, repeats: int = 7, warm_up: bool = True) -> Timing:
    """Call f(*arguments) once to warm up, then `repeats` times, each until its arrays are ready."""

    def call() -> tuple[Any, float]:
        start = time.perf_counter()
        value = f(*arguments)
        if "jax" in sys.modules:
            sys.modules["jax"].block_until_ready(value)
        return value, time.perf_counter() - start

    first = call()[1] if warm_up else None
    values, seconds = zip(*(call() for _ in range(repeats)), strict=True)
    extra = 0.0 if first is None else max(first - float(np.median(seconds)), 0.0)
    return Timing(values[-1], list(seconds), extra)


PAUSE = 0.1  # seconds before a measurement
BRIEF = 1.0  # seconds of a call that follows others, which are not timed, for SETTLED pauses
SETTLED = 3


def interleaved(
    calls: dict[str, Callable[[], Any]], *, repeats: int, budget: float = np.inf, least: int = 3, pause: float = PAUSE
) -> dict[str, Timing | Exception]:
    """Time several programs in turns (a b c, a b c, …), so that all of them meet the same machine.

    Each call follows a pause, in which the threads of the program before it stop spinning: OpenMP's and OpenBLAS's
    wait for more work in a busy loop, for milliseconds, on the cores that the next program needs. So nothing has to
    be set that forbids it (OMP_WAIT_POLICY), and every program runs as it comes. Cores that rested take up to 0.2
    seconds to come back to speed, so a call of less than BRIEF seconds follows others that are not timed.
    After one call to warm up, a program is repeated as often as `budget` seconds allow, at least `least` and at most
    `repeats` times. What raises, unless it is the first program, is left out; its exception is returned.
    """
    done: dict[str, Timing | Exception] = {}
    first: dict[str, float] = {}
    for index, (name, call) in enumerate(calls.items()):
        try:
            first[name] = measure(call, repeats=1, warm_up=False).median
        except Exception as error:
            if index == 0:
                raise
            done[name] = error
    times = {name: int(np.clip(budget / first[name], min(least, repeats), repeats)) for name in first}
    taken: dict[str, list[float]] = {name: [] for name in first}
    values: dict[str, Any] = {}
    for turn in range(max(times.values())):
        for name in (name for name in first if turn < times[name]):
            time.sleep(pause)
            if min([first[name], *taken[name]]) < BRIEF:
                settle(calls[name], SETTLED * pause)
            values[name], (seconds, *_), _ = measure(calls[name], repeats=1, warm_up=False)
            taken[name].append(seconds)
    for name, seconds in taken.items():
        done[name] = Timing(values[name], seconds, max(first[name] - float(np.median(seconds)), 0.0))
    return {name: done[name] for name in calls}


def settle(call: Callable[[], Any], least: float) -> None:
    """Call it once, and on until so many seconds have passed."""
    end = time.perf_counter() + least
    while measure(call, repeats=1, warm_up=False) and time.perf_counter() < end:
        pass


def compiled(f: Callable, *arguments: Any) -> tuple[Callable, float]:
    """f compiled for these arguments, and the seconds to trace and compile it."""
    import jax

    start = time.perf_counter()
    program = jax.jit(f).lower(*arguments).compile()
    return program, time.perf_counter() - start


def start_jax(options: argparse.Namespace) -> int:
    """Start JAX on a device per core, or on one with --devices 1; how many there are."""
    import jax

    import jaxem

    if options.devices == "all":
        jaxem.use_all_cores()
    return jax.device_count()


def rss_megabytes(peak: bool) -> float:
    """This process's resident memory now, or its peak, in MB (10⁶ bytes)."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux: the peak is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1e-6 if sys.platform == "darwin" else 1.024e-3)
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1.024e-3


def peak_beyond(f: Callable[[], Any]) -> float:
    """MB by which this process's memory peaks during f() above what is resident before, once that is at rest.

    JAX copies an array, and frees what it copied from, some time after the call that asked for it.
    """
    before = rss_megabytes(peak=False)
    for _ in range(20):
        time.sleep(0.2)
        last, before = before, rss_megabytes(peak=False)
        if abs(last - before) < 1:
            break
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
    except OSError:
        before = rss_megabytes(peak=True)  # elsewhere: measure from the old peak
    measure(f, repeats=1, warm_up=False)
    return rss_megabytes(peak=True) - before


# ---- what every script here shares


def parser(name: str, description: str, devices: bool = False) -> argparse.ArgumentParser:
    """--out, --seed, --quick, and where asked for --devices; bad arguments end in exit code 2 with one line."""

    class OneLineParser(argparse.ArgumentParser):
        def error(self, message: str):
            self.exit(2, f"{name}: {message}\n")

    options = OneLineParser(description=description.split("\n")[0])
    options.add_argument("--out", default="results", metavar="DIR")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="tiny sizes, for the tests: the times mean nothing")
    if devices:
        options.add_argument(
            "--devices", choices=("1", "all"), default="all", help="JAX's CPU devices: all, one a core"
        )
    return options


def finish(name: str, comparisons: list[dict[str, Any]], options: argparse.Namespace) -> int:
    """Print the comparisons, write DIR/bench_NAME.json, complete or absent."""
    for comparison in comparisons:
        print("\n".join(lines(comparison)))
    from _results import as_json, writable_folder, written_together

    try:
        folder = writable_folder(options.out)
    except OSError as error:
        print(f"{name}: --out: cannot write to {options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    with written_together(folder) as write:
        write(f"bench_{name}.json", lambda path: path.write_text(as_json(comparisons)))
    print(f"wrote {folder}/bench_{name}.json")
    return 0


def lines(comparison: dict[str, Any]) -> list[str]:
    """A comparison as text."""
    text = [f"\n{comparison['name']}: {comparison['statement']}"]
    grid = comparison.get("grid", [])
    widths = [max(len(cell) for cell in column) + 2 for column in zip(*grid, strict=True)]
    text += ["  " + "".join(map(str.ljust, cells, widths)).rstrip() for cells in grid]
    for row in [] if grid else comparison["rows"]:
        cells = [f"  {row['program']:<34}"]
        if row.get("median") is not None:
            cells.append(f"{seconds(row['median'])} ({seconds(row['q1'])}–{seconds(row['q3'])})")
        if row.get("compile_seconds"):
            cells.append(f"first call +{row['compile_seconds']:.2f} s")
        if row.get("iterations") is not None:
            cells.append(f"{row['iterations']:g} iterations")
        if row.get("objective") is not None:
            cells.append(f"objective {row['objective']:.9g}")
        if row.get("memory_mb") is not None:
            cells.append(f"{row['memory_mb']:.0f} MB")
        if row.get("note"):
            cells.append(row["note"])
        text.append("; ".join(cells))
    text += [f"  {remark}" for remark in comparison.get("remarks", [])]
    text += [f"  {verdict(goal)}" for goal in comparison.get("goals", [])]
    return text


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def goal(what: str, value: float, limit: float, *, at_least: bool) -> dict[str, Any]:
    """A target and whether this run met it. Recorded, never asserted: a time depends on the machine."""
    met = bool(value >= limit if at_least else value <= limit)
    return {"what": what, "value": float(value), "limit": limit, "at_least": at_least, "met": met}


def verdict(goal: dict[str, Any]) -> str:
    sign = "≥" if goal["at_least"] else "≤"
    outcome = "met" if goal["met"] else "MISSED"
    return f"{goal['what']}: {goal['value']:.4g} (target {sign} {goal['limit']:g}: {outcome})"


def load(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
