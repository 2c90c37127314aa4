"""EM over several processes: the same call, each process holding its rows; and what happens when one dies.

    python experiments/distributed.py [--seed S] [--out DIR] [--quick]

Starts 1, 2 and 4 processes on the loopback address with JAX's own distributed runtime, one CPU device each, and
unequal shares of the rows. Claims: θ is the same to the bit in all processes of a run, and to rounding whatever their
number; a process that is killed ends the others with an error that says so, within a bounded time; the checkpoint
resumes to the bits of a run that nothing happened to. DISTRIBUTED.md says how to run it on a cluster, and models its
cost; `distributed.json` has the parts that are measured here. Processes share this machine's cores: their times show
what a step costs to coordinate, not how fast a cluster is.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxem
from jaxem.families import gaussian

from _command import Config, Result, command, leave
from _results import Claim

PROCESSES = (1, 2, 4)  # --quick: not the last
PATIENCE = 60.0  # seconds within which the others must have ended once one is killed
STEPS = 8


# ---- a worker: what a process of a cluster runs


def worker(spec: dict[str, Any]) -> None:
    """Join the others, take these rows, fit, print the outcome as one line of JSON."""
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(spec["address"], spec["processes"], spec["index"], heartbeat_timeout_seconds=20)
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    x = np.load(spec["data"], mmap_mode="r")[slice(*spec["rows"])]
    theta = dict(np.load(spec["theta"]))
    try:
        task = {"em": fit_in_memory, "stream": fit_stream, "sum": time_a_sum}[spec["task"]]
        print(json.dumps(task(spec, x, theta, mesh)), flush=True)
    except jaxem.ProcessLost as error:
        print(f"process {spec['index']}: {error}", file=sys.stderr, flush=True)
        os._exit(3)  # the runtime's own shutdown would wait for the process that is gone


def outcome(fit: jaxem.Fit) -> dict[str, Any]:
    theta = {name: np.asarray(value) for name, value in fit.theta.items()}
    return {
        "theta": {name: value.tobytes().hex() for name, value in theta.items()},
        "free_energy": float(fit.free_energy),
        "steps": int(fit.num_steps),
    }


def fit_in_memory(spec: dict[str, Any], x: np.ndarray, theta: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    fit = jaxem.em(gaussian.full, theta, x, tol=0.0, max_steps=STEPS, mesh=mesh)
    clock = time.perf_counter()
    jax.block_until_ready(jaxem.em(gaussian.full, theta, x, tol=0.0, max_steps=STEPS, mesh=mesh))
    return outcome(fit) | {"seconds_per_step": (time.perf_counter() - clock) / STEPS}


def fit_stream(spec: dict[str, Any], x: np.ndarray, theta: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    passes = 0

    def batches():
        nonlocal passes
        passes += 1
        for first in range(0, len(x), spec["batch"]):
            if passes == spec["dies_in_pass"] and first > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield x[first : first + spec["batch"]]

    files = {"checkpoint": spec["checkpoint"], "resume": spec["resume"]}
    return outcome(jaxem.em_stream(gaussian.full, theta, batches, tol=0.0, max_steps=STEPS, mesh=mesh, **files))


def time_a_sum(spec: dict[str, Any], x: np.ndarray, theta: dict[str, np.ndarray], mesh: Any) -> dict[str, Any]:
    """Seconds of one `psum` over all processes, by the number of float64 in it."""
    everywhere = jax.sharding.PartitionSpec("rows")
    found = {}
    for size in spec["sizes"]:
        share = jax.make_array_from_process_local_data(jax.sharding.NamedSharding(mesh, everywhere), np.ones((1, size)))

        def total(share, repeats):
            def again(_, value):
                return jax.lax.psum(value, "rows") / mesh.size

            return jax.lax.fori_loop(0, repeats, again, share)

        added = jax.jit(
            jax.shard_map(total, mesh=mesh, in_specs=(everywhere, jax.sharding.PartitionSpec()), out_specs=everywhere,
                          check_vma=False)
        )  # fmt: skip
        jax.block_until_ready(added(share, 1))
        clock = time.perf_counter()
        jax.block_until_ready(added(share, 50))
        found[size] = (time.perf_counter() - clock) / 50
    return {"seconds": found}


# ---- the parent: what starts them here


class Cluster:
    """Processes on the loopback address, and the rows each holds."""

    def __init__(self, folder: Path, x: np.ndarray, theta: dict[str, np.ndarray]):
        self.folder, self.num_rows = folder, len(x)
        np.save(folder / "x.npy", x)
        np.savez(folder / "theta.npz", **theta)

    def shares(self, processes: int) -> list[tuple[int, int]]:
        """Unequal shares: the i-th is proportional to i + 2."""
        edges = np.cumsum([0, *range(2, processes + 2)])
        edges = np.round(edges / edges[-1] * self.num_rows).astype(int)
        return [(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def run(self, processes: int, task: str, **more: Any) -> tuple[list[dict[str, Any]], list[int], list[str], float]:
        """What each printed, how it ended, what it complained of, and the seconds from a death to the last end."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        shared = {"address": address, "processes": processes, "task": task, "data": str(self.folder / "x.npy"),
                  "theta": str(self.folder / "theta.npz")}  # fmt: skip
        started = []
        for index, rows in enumerate(self.shares(processes)):
            own = {key: value[index] if isinstance(value, list) else value for key, value in more.items()}
            spec = shared | {"index": index, "rows": rows} | own
            command = [sys.executable, __file__, "--worker", json.dumps(spec)]
            log = open(self.folder / f"log_{index}.txt", "w+")  # noqa: SIM115 (closed below)
            started.append((subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True), log))
        died = None
        while any(process.poll() is None for process, _ in started):
            if died is None and any(process.poll() not in (None, 0) for process, _ in started):
                died = time.perf_counter()
            if died is not None and time.perf_counter() - died > 2 * PATIENCE:
                for process, _ in started:
                    process.kill()
            time.sleep(0.05)
        waited = 0.0 if died is None else time.perf_counter() - died
        printed, complaints = [], []
        for process, log in started:
            text = process.communicate()[0]
            log.seek(0)
            complaints.append(log.read())
            log.close()
            printed.append(json.loads(text.splitlines()[-1]) if process.returncode == 0 else {})
        return printed, [process.returncode for process, _ in started], complaints, waited

    def fits(self, processes: int, task: str, **more: Any) -> list[dict[str, Any]]:
        printed, codes, complaints, _ = self.run(processes, task, **more)
        if any(codes):
            raise RuntimeError(f"{task} with {processes} processes ended with {codes}:\n" + "\n".join(complaints))
        return printed


def theta_of(printed: dict[str, Any]) -> np.ndarray:
    return np.concatenate([np.frombuffer(bytes.fromhex(text)) for text in printed["theta"].values()])


def differing(fits: list[dict[str, Any]], other: dict[str, Any]) -> int:
    """How many of these fits are not those bits."""
    return sum(fit["theta"] != other["theta"] or fit["free_energy"] != other["free_energy"] for fit in fits)


def run(config: Config) -> Result:
    rng = np.random.default_rng(config.seed)
    N, D, K = (4_001, 3, 3) if config.quick else (200_001, 8, 8)
    x = rng.normal(size=(N, D)) + 3 * rng.normal(size=(K, D))[rng.integers(K, size=N)]
    theta = {"pi": np.full(K, 1 / K), "mu": x[:K].copy(), "Sigma": np.tile(4 * np.eye(D), (K, 1, 1))}
    with tempfile.TemporaryDirectory() as folder:
        return measure(Cluster(Path(folder), x, theta), Path(folder), N, D, K, config.quick)


def measure(cluster: Cluster, folder: Path, N: int, D: int, K: int, quick: bool) -> Result:
    counts = PROCESSES[:-1] if quick else PROCESSES
    fits = {count: cluster.fits(count, "em") for count in counts}
    one = fits[1][0]
    scale = 1 + np.abs(theta_of(one))
    bits = sum(differing(found, found[0]) for found in fits.values())
    rounding = max(float(np.max(np.abs(theta_of(found[0]) - theta_of(one)) / scale)) for found in fits.values())

    stream = {"batch": N // 7, "dies_in_pass": 0, "checkpoint": None, "resume": None}
    whole = cluster.fits(2, "stream", **stream)
    checkpoint = str(folder / "fit.npz")
    _, codes, complaints, waited = cluster.run(
        2, "stream", **stream | {"checkpoint": checkpoint, "dies_in_pass": [0, 5]}
    )
    resumed = cluster.fits(2, "stream", **stream | {"resume": checkpoint})
    silent = int(codes[0] != 3 or "one of them has ended" not in complaints[0])
    streamed = float(np.max(np.abs(theta_of(whole[0]) - theta_of(one)) / scale))

    statistics = K * (1 + D + D * D) + 2  # N_k, shift, spread, F and its scale
    sizes = (64, statistics, 4_096, 65_536)
    sums = {} if quick else {count: cluster.fits(count, "sum", sizes=sizes)[0]["seconds"] for count in counts[1:]}
    bound = 1e-10  # eps·√N and a few steps of EM, which does not amplify it
    claims = [
        Claim("bits", "fits that differ by a bit between processes of a run", bits, 0),
        Claim("one", f"θ of {counts[1:]} processes against one, relative", rounding, bound),
        Claim("stream", "θ from batches in two processes against one in memory, relative", streamed, bound),
        Claim("lost", "seconds from a SIGKILL of one process to the end of the other", waited, PATIENCE),
        Claim("said", "survivors that ended without saying that a process is lost", silent, 0),
        Claim("resume", "fits resumed from the checkpoint that differ by a bit", differing(resumed, whole[0]), 0),
    ]  # fmt: skip
    summary = {
        "num_rows": N, "num_features": D, "num_components": K,
        "bytes_per_step": 8 * statistics,
        "seconds_per_step": {count: max(fit["seconds_per_step"] for fit in found) for count, found in fits.items()},
        "seconds_per_sum": sums,
        "message": next((line for line in complaints[0].splitlines() if "processes failed" in line), ""),
    }  # fmt: skip
    arrays = {"theta": np.stack([theta_of(found[0]) for found in fits.values()]), "processes": np.array(counts)}
    return Result(summary, claims, arrays)


def report(summary: dict[str, Any]) -> None:
    N, D, K = (summary[name] for name in ("num_rows", "num_features", "num_components"))
    print(f"\nfull covariances, N={N:,} D={D} K={K}, float64; {summary['bytes_per_step']:,} bytes summed a step")
    for count, seconds in summary["seconds_per_step"].items():
        sums = summary["seconds_per_sum"].get(count, {})
        alone = "; ".join(f"{int(size):,} numbers {1e3 * value:.3g} ms" for size, value in sums.items())
        print(f"  {count} process(es): {1e3 * seconds:7.1f} ms a step{'; a sum alone: ' * bool(alone)}{alone}")
    print(f"  the survivor said: {summary['message']}\n")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--worker"]:
        worker(json.loads(arguments[1]))
        return 0
    return command("distributed", __doc__, run, report, [*arguments, "--no-plot"])


if __name__ == "__main__":
    leave(main())
