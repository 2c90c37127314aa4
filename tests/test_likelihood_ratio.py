"""The bootstrap of the likelihood ratio: one compilation, exact under the hypothesis, and sure where it is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem._answers import likelihood_ratio
from jaxem.families import bernoulli, gaussian

from cases import cast

RNG = np.random.default_rng(7)
ONE = cast(RNG.normal(size=(40, 1)))
TWO = cast(RNG.normal(size=(40, 1)) + 6 * (np.arange(40) % 2)[:, None])
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def tests():
    """Of one clump and of two, by one compiled program."""
    traced = likelihood_ratio._samples
    return [
        jaxem.likelihood_ratio_test(gaussian.isotropic, x, KEY, 1, 2, num_samples=19, starts=2) for x in (ONE, TWO)
    ], traced


def test_two_clumps_are_found_and_one_is_not_split(tests):
    (one, two), _ = tests
    assert float(two.p_value) == 1 / 20  # the least there is
    assert float(one.p_value) > 0.1
    assert (np.asarray(one.samples) > -1e-6).all()  # K₁ is never worse than K₀, from which it starts as well
    assert "p = 0.05" in repr(two)


def test_the_statistic_is_twice_the_difference_of_log_likelihoods(tests):
    (_, two), _ = tests
    fits = [jaxem.fit(gaussian.isotropic, TWO, KEY, K, starts=4) for K in (1, 2)]
    assert float(two.statistic) == pytest.approx(2 * float(fits[1].free_energy - fits[0].free_energy), rel=1e-5)


def test_p_is_of_the_samples_and_the_key_decides(tests):
    (one, _), _ = tests
    assert float(one.p_value) == pytest.approx((1 + np.sum(np.asarray(one.samples) >= float(one.statistic))) / 20)
    again = jaxem.likelihood_ratio_test(gaussian.isotropic, ONE, KEY, 1, 2, num_samples=19, starts=2)
    np.testing.assert_array_equal(again.samples, one.samples)


def test_a_sample_of_one_component_is_scipys_by_hand(tests):
    """The first sample, drawn again, and both of its fits by `em`."""
    (one, _), _ = tests
    of_samples = jax.random.split(KEY, 3)[2]
    of_rows, _ = jax.random.split(jax.random.split(of_samples, 19)[0])
    null = {"pi": jnp.ones(1), "mu": jnp.mean(ONE, axis=0, keepdims=True), "sigma": jnp.std(ONE)}
    x, _ = jaxem.sample(gaussian.isotropic, null, of_rows, 40)
    L0 = float(jaxem.log_likelihood(gaussian.isotropic, {**null, "mu": x.mean(0)[None], "sigma": x.std()}, x))
    best = jaxem.fit(gaussian.isotropic, x, KEY, 2, starts=10)
    found = float(one.samples[0])
    assert -1e-6 <= found <= 2 * (float(best.free_energy) - L0) + 1e-4


def test_noise_and_discrete_families():
    m = gaussian.with_noise(gaussian.isotropic, 50.0)
    test = jaxem.likelihood_ratio_test(m, TWO, KEY, 1, 2, num_samples=3, starts=2)
    assert float(test.statistic) > 0
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (30, 3)))
    test = jaxem.likelihood_ratio_test(bernoulli.mixture, x, KEY, 1, 2, num_samples=3, starts=1)
    assert test.samples.shape == (3,)


PRIOR = gaussian.Prior(0.0, 0.1, 3, 1.0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jaxem.likelihood_ratio_test(gaussian.full, ONE, KEY, 2, 2), "^K1: must be above K0"),
        (lambda: jaxem.likelihood_ratio_test(gaussian.full, ONE, KEY, 0, 2), "^K0: "),
        (
            lambda: jaxem.likelihood_ratio_test(gaussian.full, ONE, KEY, 1, 41),
            "^num_components: 41 exceeds the 40 rows",
        ),
        (lambda: jaxem.likelihood_ratio_test(gaussian.full, ONE, KEY, 1, 2, num_samples=0), "^num_samples: "),
        (
            lambda: jaxem.likelihood_ratio_test(gaussian.with_prior(gaussian.full, PRIOR), ONE, KEY, 1, 2),
            "^m: has a prior",
        ),
    ],
)
def test_what_is_no_test_says_so_in_one_line(call, match):
    with pytest.raises(ValueError, match=match) as found:
        call()
    assert "\n" not in str(found.value)
