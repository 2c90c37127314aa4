"""What does not depend on the unit of x does not, as far as single precision has numbers for the answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.families import gaussian

ROWS = np.r_[np.random.default_rng(0).normal(0, 1, (40, 2)), np.random.default_rng(1).normal(8, 1, (40, 2))]


@pytest.mark.parametrize("power", [-90, -70, -64, -20, 0, 20, 50])
def test_lloyds_centres_and_starts_come_in_the_unit_of_the_rows(power):
    """In powers of two, to the bit; also where a square of x is 0 or overflows."""
    x = jnp.asarray(ROWS, jnp.float32)
    rows = x * jnp.float32(2.0**power)
    for draw in (jaxem.inits.kmeans_plus_plus, jaxem.inits.random_points):
        start, wanted = (draw(gaussian.isotropic, jax.random.key(0), data, 2) for data in (rows, x))
        for name in ("mu", "sigma"):
            np.testing.assert_array_equal(start[name] / jnp.float32(2.0**power), wanted[name])
    fit, wanted = jaxem.kmeans(rows, start["mu"]), jaxem.kmeans(x, start["mu"] / jnp.float32(2.0**power))
    np.testing.assert_array_equal(fit.theta["mu"] / jnp.float32(2.0**power), wanted.theta["mu"])
    assert (fit.status, fit.num_steps) == (wanted.status, wanted.num_steps)


def test_what_has_no_number_is_refused_by_name():
    x = jnp.asarray(ROWS, jnp.float32)
    with pytest.raises(ValueError, match="x: J, in squared units of x, does not fit float32"):
        jaxem.kmeans(x * 2.0**70, x[::40] * 2.0**70)
    for power in (-90, 90):
        with pytest.raises(ValueError, match="x: its Sigma does not fit float32"):
            jaxem.inits.random_points(gaussian.full, jax.random.key(0), x * jnp.float32(2.0**power), 2)
