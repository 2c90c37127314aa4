"""Two legs: float64 (the default) and float32 (JAXEM_TEST_PRECISION=32, `make test-f32`)."""

import os

import jax
import pytest

PRECISION = int(os.environ.get("JAXEM_TEST_PRECISION", "64"))
jax.config.update("jax_enable_x64", PRECISION == 64)
jax.config.update("jax_numpy_rank_promotion", "raise")  # jaxem's own arithmetic never promotes ranks


@pytest.fixture
def key():
    return jax.random.key(0)
