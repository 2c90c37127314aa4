"""Two legs: float64 (the default) and float32 (JAXEM_TEST_PRECISION=32, `make test-f32`)."""

import os
from pathlib import Path

# one cache of compiled programs for all workers and for the scripts that tests start; compiling is most of the time
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import pytest

PRECISION = int(os.environ.get("JAXEM_TEST_PRECISION", "64"))
jax.config.update("jax_enable_x64", PRECISION == 64)
jax.config.update("jax_numpy_rank_promotion", "raise")  # jaxem's own arithmetic never promotes ranks


# what does not depend on the precision of the arithmetic runs once, in the float64 leg
collect_ignore = (
    []
    if PRECISION == 64
    else [
        "test_bad_input.py",
        "test_bregman.py",
        "test_condition.py",
        "test_experiments_quick.py",
        "test_figures.py",
        "test_float32_gaussian.py",  # casts by itself
        "test_gaussian_families.py",
        "test_general_em.py",
        "test_kmedoids.py",
        "test_lecture_experiments.py",
        "test_package.py",
        "test_readme.py",
    ]
)


@pytest.fixture
def key():
    return jax.random.key(0)
