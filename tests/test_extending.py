"""docs/extending.md is followed to the letter: its blocks run, in order, and what they make is held to the theorems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem

import pages
from cases import FLOAT, tolerance

PAGE = pages.ROOT / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page():
    """The names that the page's blocks define, run where ranks may not be promoted, as all tests are."""
    assert len(pages.blocks(PAGE)) == 5
    return pages.run(PAGE)


@pytest.fixture(scope="module")
def problem(page):
    """(m, θ, x) of the negative binomial."""
    theta = {name: jnp.asarray(page["start"][name], FLOAT) for name in page["start"]}
    return page["negative_binomial"].hold("concentration"), theta, page["counts"].astype(np.int32)


def test_c6_is_optional_and_the_others_hold_to_rounding(problem):
    certificate = jaxem.certify(*problem)
    assert jnp.isnan(certificate.C6)
    assert certificate.holds(tolerance(2e-13, 1e-4))
    assert not jaxem.certify(problem[0], *problem[1:]).holds(0.0)


def test_its_derivatives_are_taken_where_ranks_may_be_promoted(problem):
    """SciPy's and NumPyro's own rules promote ranks; in both modes, and again of the derivative."""
    m, theta, x = problem

    def likelihood(scale):
        return jaxem.log_likelihood(m, theta | {"mean": theta["mean"] * scale}, x)

    reverse, forward = jax.grad(likelihood)(1.1), jax.jvp(likelihood, (1.1,), (1.0,))[1]
    assert reverse == pytest.approx(float(forward), rel=tolerance(1e-10, 1e-3))
    step = 1e-3
    twice = (jax.grad(likelihood)(1.1 + step) - jax.grad(likelihood)(1.1 - step)) / (2 * step)
    assert jax.hessian(likelihood)(1.1) == pytest.approx(float(twice), rel=tolerance(1e-4, 1e-1))


def test_batches_and_a_pickle_serve_it_like_the_others(problem):
    m, theta, x = problem
    whole = jaxem.em(m, theta, x, max_steps=3, tol=0.0)
    streamed = jaxem.em_stream(m, theta, lambda: [x[:4], x[4:]], max_steps=3, tol=0.0)
    assert streamed.free_energy == pytest.approx(float(whole.free_energy), rel=tolerance(1e-12, 1e-5))
