"""How long one waits the first time: CPU seconds of first calls in fresh interpreters, imports apart.

    python experiments/benchmarks/first_call.py [--seed S] [--out DIR] [--quick]

300 rows of two columns, two Gaussians with full covariances, float64: `em`, then other rows, a new N, a new K, and
`certify`; the same where JAX's persistent cache of compiled programs is kept (`JAX_COMPILATION_CACHE_DIR`); beside it
scikit-learn's `GaussianMixture`; and `select` over five models × K = 1 … 9 × 10 starts, by the clock, on all cores.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _timing import Timing, finish, goal, parser

FITS = """
import json, sys, time
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
import jaxem
from jaxem.families import gaussian

rng, found = np.random.default_rng(int(sys.argv[1])), {}

def rows(N):
    return rng.normal(size=(N, 2)) + 4 * (rng.random((N, 1)) < 0.5)

def start(x, K):
    return {"pi": np.full(K, 1 / K), "mu": x[:K], "Sigma": np.tile(np.eye(2), (K, 1, 1))}

def timed(name, call):
    clock = time.process_time()
    value = jax.block_until_ready(call())
    found[name] = time.process_time() - clock
    return value

x, other, more = rows(300), rows(300), rows(310)
fit = timed("em", lambda: jaxem.em(gaussian.full, start(x, 2), x))
timed("em, other rows", lambda: jaxem.em(gaussian.full, start(other, 2), other))
timed("em, a new N", lambda: jaxem.em(gaussian.full, start(more, 2), more))
timed("em, a new K", lambda: jaxem.em(gaussian.full, start(x, 3), x))
timed("certify", lambda: jaxem.certify(gaussian.full, fit.theta, x))
print(json.dumps(found | {"objective": float(fit.free_energy)}))
"""
SCIKIT_LEARN = """
import json, sys, time
import numpy as np
from sklearn.mixture import GaussianMixture

rng = np.random.default_rng(int(sys.argv[1]))
x = rng.normal(size=(300, 2)) + 4 * (rng.random((300, 1)) < 0.5)
clock = time.process_time()
m = GaussianMixture(2, means_init=x[:2], random_state=0).fit(x)
print(json.dumps({"fit": time.process_time() - clock, "objective": m.score(x) * 300}))
"""
SELECT = """
import json, sys, time
import numpy as np
import jax
jax.config.update("jax_enable_x64", True)
import jaxem
from jaxem.families import gaussian

jaxem.use_all_cores()
rng, most = np.random.default_rng(int(sys.argv[1])), int(sys.argv[2])
x = rng.normal(size=(300, 2)) + 4 * (rng.random((300, 1)) < 0.5)
models = [gaussian.isotropic, gaussian.spherical, gaussian.diagonal, gaussian.tied, gaussian.full]
clock = time.perf_counter()
chosen = jaxem.select(x, jax.random.key(0), models=models[-most:], num_components=range(1, 10))
print(json.dumps({"select": time.perf_counter() - clock, "objective": float(chosen.fit.free_energy)}))
"""
LIMITS = {"em": 1.5, "em, a new N": 0.05, "em, a new K": 1.0, "certify": 3.0}  # CPU seconds
CACHED = {"em": 0.5}


def asked(program: str, *arguments: Any, cache: Path | None = None) -> dict[str, float]:
    """What a program prints in an interpreter of its own, with or without a cache of compiled programs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def rows_of(program: str, found: list[dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each stage of the runs of one program."""
    return [
        Timing(None, [one[stage] for one in found], 0.0).as_row()
        | {"program": f"{program}: {stage}", "objective": found[0]["objective"]}
        for stage in found[0]
        if stage != "objective"
    ]


def main(arguments: list[str] | None = None) -> int:
    options = parser("first_call", __doc__).parse_args(arguments)
    repeats, models = (1, 1) if options.quick else (3, 5)
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        cold = [asked(FITS, options.seed) for _ in range(repeats)]
        asked(FITS, options.seed, cache=cache)
        warm = [asked(FITS, options.seed, cache=cache) for _ in range(repeats)]
        peer = [asked(SCIKIT_LEARN, options.seed) for _ in range(repeats)]
        chosen = [asked(SELECT, options.seed, models, cache=cache) for _ in range(2)]
    goals = [
        goal(f"{kind}{stage}, CPU s", statistics.median(one[stage] for one in found), limit, at_least=False)
        for kind, found, limits in (("", cold, LIMITS), ("cached, ", warm, CACHED))
        for stage, limit in limits.items()
    ]
    goals += [
        goal(f"{kind}select, s", one["select"], limit, at_least=False)
        for kind, one, limit in zip(("", "cached, "), chosen, (40.0, 8.0), strict=True)
    ]
    setting = {"N": 300, "D": 2, "K": 2, "precision": 64}
    comparison = {
        "name": "first calls",
        "statement": f"CPU seconds in fresh interpreters, median of {repeats}; select: seconds of the clock, once",
        "setting": setting,
        "rows": [
            *rows_of("jaxem", cold),
            *rows_of("jaxem, cached", warm),
            *rows_of("scikit-learn", peer),
            *rows_of("jaxem", chosen[:1]),
            *rows_of("jaxem, cached", chosen[1:]),
        ],
        "goals": goals,
    }
    return finish("first_call", [comparison], options)


if __name__ == "__main__":
    sys.exit(main())
