"""Two legs: float64 (the default) and float32 (JAXEM_TEST_PRECISION=32, `make test-f32`)."""

import contextlib
import ctypes
import functools
import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import annotations  # noqa: F401  before jaxem is imported
import turns
import xla_flags

# compiling is most of the time. One cache of compiled programs for all workers and for the scripts that tests start …
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# … no lines of Python in what is compiled, which nobody reads here …
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# … and less optimisation of what runs once: a quarter of the time
os.environ.setdefault("XLA_FLAGS", xla_flags.known())
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest

# a trace makes thousands of small objects that live on: look through them for garbage less often
gc.set_threshold(200_000, 20, 100)

# a job that a shell started in the background ignores Ctrl-C, and so do its children: tests that send it would wait
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
AS_A_USER = {
    name: value for name, value in os.environ.items() if name not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS")
}
PRECISION = int(os.environ.get("JAXEM_TEST_PRECISION", "64"))
jax.config.update("jax_enable_x64", PRECISION == 64)
jax.config.update("jax_num_cpu_devices", 4)  # for tests/test_devices.py; all else runs on the first
jax.config.update("jax_numpy_rank_promotion", "raise")  # jaxem's own arithmetic never promotes ranks


# what does not depend on the precision of the arithmetic runs once, in the float64 leg
collect_ignore = (
    []
    if PRECISION == 64
    else [
        "test_bad_input.py",
        "test_beyond_experiments.py",
        "test_bregman.py",
        "test_checkpoint.py",
        "test_climb.py",
        "test_columns.py",
        "test_combinations.py",  # casts by itself
        "test_compile.py",
        "test_condition.py",
        "test_copies.py",
        "test_datatree.py",
        "test_devices.py",
        "test_distributed.py",
        "test_docs.py",
        "test_experiments_quick.py",
        "test_extending.py",
        "test_figures.py",
        "test_feature_learning.py",
        "test_files.py",
        "test_filter.py",
        "test_float32_gaussian.py",  # casts by itself
        "test_forecast.py",
        "test_gaussian_families.py",
        "test_general_em.py",
        "test_hierarchical.py",
        "test_kmedoids.py",
        "test_latents.py",
        "test_lecture_experiments.py",
        "test_likelihood_ratio.py",
        "test_mclust.py",  # casts by itself
        "test_missing.py",  # casts by itself
        "test_nats_left.py",  # casts by itself
        "test_newton.py",
        "test_noise.py",
        "test_numpyro.py",
        "test_package.py",
        "test_plan.py",
        "test_plot.py",
        "test_prior.py",
        "test_program_bad_input.py",
        "test_program_experiments.py",
        "test_program_peers.py",  # casts by itself
        "test_programs.py",
        "test_ragged.py",
        "test_reading.py",
        "test_readme.py",
        "test_results.py",
        "test_second_order.py",
        "test_sigma_limits.py",
        "test_sklearn.py",  # float64 by itself
        "test_threads.py",
    ]
)


@pytest.fixture(autouse=True)
def chunks_of_a_cpu(monkeypatch):
    """What tests say of data of many chunks holds on any device."""
    monkeypatch.setattr("jaxem._rows.chunks.ACCELERATOR", 1)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def old_faithful():
    """(x, mu): its standardised rows and their two k-means centres."""
    import jaxem

    x = np.loadtxt(ROOT / "experiments" / "data" / "old_faithful.csv", delimiter=",", skiprows=1)
    x = (x - x.mean(0)) / x.std(0)
    x = jax.numpy.asarray(x, np.float64 if PRECISION == 64 else np.float32)
    return x, jaxem.kmeans(x, x[:2]).theta["mu"]


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """A family, an experiment, a file: what shares compiled programs or results goes to one worker (loadgroup).

    Examples, like the README's, run once, in the float64 leg; of a statement about every family, some: turns.py.
    """
    asked_for = any("::" in argument for argument in config.args)  # a test that is named runs
    left = [] if asked_for else turns.out_of_turn(items)
    left += [item for item in items if PRECISION == 32 and isinstance(item, pytest.DoctestItem)]
    config.hook.pytest_deselected(items=left)
    gone = set(left)
    items[:] = [item for item in items if item not in gone]
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        group = (
            getattr(values.get("case"), "name", None)
            or values.get("experiment")
            or values.get("name")
            or item.path.name
        )
        item.add_marker(pytest.mark.xdist_group(group))


MOST_MEMORY = 2 * 2**30  # bytes that a process of the tests may keep from one file to the next


def in_memory():
    """Bytes of this process; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """Compiled programs are kept while a file may share them; without this a process grows to 7 GB."""
    if nextitem is not None and nextitem.path != item.path and in_memory() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc keeps what is freed, unless asked
            ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory):
    """experiment -> the folder of its files, run once in quick mode with its figure; exit code 0: every claim holds."""

    @functools.cache
    def run(experiment):
        folder = tmp_path_factory.mktemp(experiment)
        # one thread of BLAS: the processes of a parallel test run share the cores
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "experiments" / f"{experiment}.py"), "--quick", "--out", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return folder

    return run


@pytest.fixture(scope="session")
def measured(quick_run):
    """(experiment, the ids of its claims) -> (summary, arrays) of its quick run, every claim within its bound."""

    def read(experiment, claims):
        folder = quick_run(experiment)
        document = json.loads((folder / f"{experiment}.json").read_text(encoding="utf-8"))
        assert document["config"] == {"seed": 0, "quick": True}
        assert {claim["id"] for claim in document["claims"]} == claims
        for claim in document["claims"]:
            assert claim["holds"], claim
            assert claim["worst"] <= claim["bound"] < np.inf
        with np.load(folder / f"{experiment}.npz") as arrays:
            return document["summary"], dict(arrays)

    return read


@pytest.fixture
def refuses(capsys):
    """(experiment's module, arguments): it ends with code 2 and one line, which begins with its name."""

    def check(module, arguments):
        try:
            code = module.main(list(arguments))
        except SystemExit as stop:
            code = stop.code
        errors = capsys.readouterr().err
        assert code == 2, errors
        assert errors.startswith(f"{module.__name__}: ")
        assert errors.count("\n") == 1

    return check
