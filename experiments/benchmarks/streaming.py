"""Streaming from a memory-mapped .npy against EM in memory: diagonal mixtures, float32, the same data, start and steps.

    python experiments/benchmarks/streaming.py [--seed S] [--out DIR] [--quick] [--devices 1|all]

1. Time: `jaxem.em_stream` on batches of the file against `jaxem.em` on the array, in one process, in turns. The file
   was written just before and lies in the system's page cache: what is measured is the reading, checking, copying and
   adding up of batches, not a disk.
2. Memory: the peak of a streamed fit beyond what is resident before it, compilation included, at N and at 4N in a
   process each. Each batch opens the file anew, so that pages which were read are given back with it: a mapping that is
   held for a whole pass counts as resident, though the system may drop it at any time.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import _problems
from _problems import Case
from _timing import cores, finish, goal, interleaved, parser, peak_beyond, start_jax

CASES = {"D = 32, K = 64": Case(2_097_152, 32, 64, 5), "D = 8, K = 8": Case(4_194_304, 8, 8, 5)}
MEMORY = Case(2_097_152, 16, 16, 2)
BATCH_MIB = 16


def batches_of(path: str) -> Callable[[], Iterator[np.ndarray]]:
    """What `em_stream` asks for: a fresh pass over the file at each call."""
    num_rows, num_features = np.load(path, mmap_mode="r").shape
    size = max(1, BATCH_MIB * 2**20 // (4 * num_features))

    def batches() -> Iterator[np.ndarray]:
        for first in range(0, num_rows, size):
            yield np.load(path, mmap_mode="r")[first : first + size]

    return batches


def write(case: Case, seed: int, path: str) -> np.ndarray:
    """The rows into a file, block by block; the first centres."""
    x = np.lib.format.open_memmap(path, "w+", np.float32, case[:2])
    mu = _problems.blobs(case, seed, x)[1]
    x.flush()
    return mu


def fits(case: Case, path: str, mu: np.ndarray) -> dict[str, Callable[[], Any]]:
    """In memory, and streamed."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    theta = jax.tree.map(jnp.asarray, _problems.start("diagonal", mu))
    x = jnp.asarray(np.load(path))
    limits = {"tol": 0.0, "max_steps": case.num_steps}
    return {
        "jaxem.em": lambda: jaxem.em(gaussian.diagonal, theta, x, **limits),
        "jaxem.em_stream": lambda: jaxem.em_stream(gaussian.diagonal, theta, batches_of(path), **limits),
    }


def times(name: str, case: Case, devices: int, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        mu = write(case, options.seed, f"{folder}/x.npy")
        timings = interleaved(fits(case, f"{folder}/x.npy", mu), repeats=1 if options.quick else 7)
    rows, ends = [], []
    for program, timing in timings.items():
        if isinstance(timing, Exception):
            raise timing
        ends.append(float(timing.value.free_energy))
        reached = {"iterations": int(timing.value.num_steps), "objective": ends[-1]}
        rows.append(timing.as_row(1 / case.num_steps) | reached | {"program": program})
    difference = abs(ends[1] - ends[0]) / abs(ends[0])
    return {
        "name": f"streaming, {name}",
        "statement": f"seconds an iteration of diagonal EM, {case.num_steps} iterations, batches of {BATCH_MIB} MiB; "
        "objective: their own F",
        "setting": case.setting("K random rows, σ = 2", devices),
        "rows": rows,
        "remarks": [f"The two F differ by {difference:.1e} of their size."],
        "goals": [goal("streamed / in memory", rows[1]["median"] / rows[0]["median"], 1.3, at_least=False)],
    }


def child(path: str, options: argparse.Namespace) -> float:
    """MB by which a streamed fit peaks beyond what is resident before it."""
    import jax
    import jax.numpy as jnp

    import jaxem
    from jaxem.families import gaussian

    start_jax(options)
    mu = np.load(path.replace("x.npy", "mu.npy"))
    theta = jax.block_until_ready(jax.tree.map(jnp.asarray, _problems.start("diagonal", mu)))
    batches, steps = batches_of(path), MEMORY.num_steps
    return peak_beyond(lambda: jaxem.em_stream(gaussian.diagonal, theta, batches, tol=0.0, max_steps=steps))


def memory(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for times in (1, 4):
        size = case._replace(num_rows=times * case.num_rows)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/x.npy"
            np.save(f"{folder}/mu.npy", write(size, options.seed, path))
            command = [sys.executable, __file__, "--child", path, "--devices", options.devices]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        megabytes = 4e-6 * size.num_rows * size.num_features
        note = f"the file has {megabytes:,.0f} MB"
        peak = float(done.stdout.splitlines()[-1])
        rows.append({"program": f"jaxem.em_stream, N = {size.num_rows:,}", "memory_mb": peak, "note": note})
    growth = (rows[1]["memory_mb"] - rows[0]["memory_mb"]) / (3 * 4e-6 * case.num_rows * case.num_features)
    return {
        "name": "streaming, memory",
        "statement": f"peak MB of a streamed fit, batches of {BATCH_MIB} MiB, compilation included",
        "setting": case.setting("K random rows, σ = 2", 1 if options.devices == "1" else cores()),
        "rows": rows,
        "goals": [goal("growth of the peak / growth of the file", growth, 0.05, at_least=False)],
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser("streaming", __doc__, devices=True)
    options.add_argument("--child", metavar="PATH", help="used by the script itself")
    options = options.parse_args(arguments)
    if options.child:
        print(child(options.child, options))
        return 0
    devices = start_jax(options)
    cases = dict(list(CASES.items())[:1]) if options.quick else CASES
    found = [times(name, case.tiny() if options.quick else case, devices, options) for name, case in cases.items()]
    found.append(memory(MEMORY.tiny() if options.quick else MEMORY, options))
    return finish("streaming", found, options)


if __name__ == "__main__":
    sys.exit(main())
