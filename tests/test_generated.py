"""A few hundred generated fits, and no false status among them (all 10,080: `python tests/generated.py --all`)."""

import generated
import jax.numpy as jnp
import pytest

BITS = 64 if jnp.zeros(()).dtype == jnp.float64 else 32


@pytest.mark.parametrize("family", generated.MODELS)
def test_no_status_is_false(family):
    outcome = generated.judged(family, BITS, 0, range(24))
    assert not [(number, wrong) for number, _, wrong in outcome if wrong]
    assert {"CONVERGED"} <= {status for _, status, _ in outcome}
