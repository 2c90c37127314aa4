"""Acceleration: the same fixed point in fewer E-steps, F never falls, and no fit is said to have ended that has not."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from programs import mixture

import jaxem
from jaxem import Status
from jaxem._fit import lanes, loop
from jaxem.families import gaussian, poisson

from cases import EPS, FLOAT, cast, tolerance

DOUBLE = np.float64 == FLOAT
ACCELERATORS = [jaxem.squarem(), jaxem.anderson(5)]
# deaths of women over 80 a day in The Times, 1910–12: Hasselblad 1969, JASA 64; the test problem of Varadhan & Roland
DEATHS = cast(np.arange(10.0))[:, None]
DAYS = cast([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])
TIMES = cast({"pi": np.array([0.3, 0.7]), "rate": np.array([[1.0], [2.5]])})


def overlapping():
    """(θ, x): two unit Gaussians at a distance of 1.2."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 1)) + 1.2 * rng.integers(0, 2, size=(200, 1))
    return cast({"pi": np.array([0.5, 0.5]), "mu": np.array([[-0.5], [2.0]]), "sigma": np.array(1.0)}), cast(x)


@pytest.fixture(scope="module")
def times():
    """accelerator -> its fit of the deaths, to rounding."""
    options = {"weights": DAYS, "tol": 1e-14, "max_steps": 20_000}
    return {a: jaxem.em(poisson.mixture, TIMES, DEATHS, accelerate=a, **options) for a in (None, *ACCELERATORS)}


@pytest.mark.parametrize("accelerate", ACCELERATORS, ids=repr)
def test_a_slow_mixture_of_poissons_in_a_fifth_of_the_steps(times, accelerate):
    """−1989.946 at (0.360, 1.256, 2.663), as published."""
    plain, fast = times[None], times[accelerate]
    assert fast.status == plain.status == Status.CONVERGED
    if DOUBLE:
        assert 5 * int(fast.num_steps) <= int(plain.num_steps)
        assert abs(float(fast.free_energy - plain.free_energy)) <= 1e-8 * abs(float(plain.free_energy))
        assert np.allclose(fast.theta["pi"][0], 0.3599, atol=1e-4)
        assert np.allclose(fast.theta["rate"].ravel(), [1.2561, 2.6634], atol=1e-4)
    assert float(fast.free_energy) >= float(plain.free_energy) - float(plain.rounding + fast.rounding)
    assert float(fast.free_energy) == pytest.approx(-1989.946, abs=tolerance(1e-3, 1e-1))


@pytest.mark.parametrize("accelerate", ACCELERATORS, ids=repr)
def test_two_gaussians_that_overlap_in_a_fifth_of_the_steps(accelerate):
    theta, x = overlapping()
    plain = jaxem.em(gaussian.isotropic, theta, x, max_steps=20_000, tol=tolerance(1e-12, 1e-7))
    fast = jaxem.em(gaussian.isotropic, theta, x, max_steps=20_000, tol=tolerance(1e-12, 1e-7), accelerate=accelerate)
    assert fast.status == Status.CONVERGED
    assert float(fast.free_energy) == pytest.approx(float(plain.free_energy), rel=tolerance(1e-8, 1e-5))
    if DOUBLE:
        assert 5 * int(fast.num_steps) <= int(plain.num_steps)


@pytest.mark.parametrize("accelerate", ACCELERATORS, ids=repr)
@pytest.mark.parametrize("apart", [4.0, 6.0, 12.0])
def test_where_em_is_fast_nothing_is_lost(accelerate, apart):
    """At most 1.2 times the steps, or two more: EM's own gains are what ends a fit."""
    rng = np.random.default_rng(1)
    x = cast(rng.normal(size=(60, 2)) + apart * rng.integers(0, 2, size=(60, 1)))
    theta = cast({"pi": np.array([0.5, 0.5]), "mu": np.array([[1.0, 0.0], [apart - 1.0, apart]]), "sigma": np.ones(())})
    plain, fast = (jaxem.em(gaussian.isotropic, theta, x, accelerate=a) for a in (None, accelerate))
    assert fast.status == Status.CONVERGED
    assert int(fast.num_steps) <= max(1.2 * int(plain.num_steps), int(plain.num_steps) + 2)


@pytest.mark.parametrize("accelerate", ACCELERATORS, ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_f_never_falls_and_num_steps_counts_e_steps(accelerate, temperature):
    """Stopped after 0, 1, 2, … steps, with weights, T ≠ 1 and a held entry: a path of F."""
    theta, x = overlapping()
    w = cast(np.random.default_rng(2).uniform(0.5, 2, size=200))
    m = gaussian.isotropic.hold("sigma")
    fits = [
        jaxem.em(m, theta, x, weights=w, temperature=temperature, max_steps=n, tol=0.0, accelerate=accelerate)
        for n in range(25)
    ]
    F = np.array([float(fit.free_energy) for fit in fits])
    assert (np.diff(F) >= -8 * EPS * np.abs(F).max() * 8).all()
    assert all(int(fit.num_steps) == n for n, fit in enumerate(fits) if fit.status == Status.MAX_STEPS)
    assert F[-1] - F[0] > 0.01
    assert all(float(fit.theta["sigma"]) == 1 for fit in fits)


@pytest.mark.parametrize("accelerate", ACCELERATORS, ids=repr)
def test_lanes_slots_vmap_and_jit_are_the_loop(accelerate):
    theta, x = overlapping()
    m = gaussian.isotropic.hold("sigma")
    many = {
        "pi": jnp.stack([theta["pi"]] * 3),
        "mu": theta["mu"][None] + cast([0.0, 0.3, -0.4])[:, None, None],
        "sigma": cast([1.0, 1.2, 0.8]),
    }
    temperatures = cast([1.0, 0.8, 0.0])
    fits = jaxem.em_batch(m, many, x, temperature=temperatures, accelerate=accelerate)
    data = m.enter(many, x, None, temperatures, None, batched=True)[1]
    slots = lanes.run_lanes(
        m, many, data, cast(1e-10), jnp.asarray(1000), loop.gain_is_small, slots=2, accelerate=accelerate
    )
    mapped = jax.jit(jax.vmap(lambda theta, T: jaxem.em(m, theta, x, temperature=T, accelerate=accelerate)))(
        many, temperatures
    )
    for other in (slots, mapped):
        if DOUBLE:  # in float32 it is rounding that ends a fit, somewhere along where F is flat
            assert np.allclose(other.theta["mu"], fits.theta["mu"], atol=1e-5)
        assert np.allclose(other.free_energy, fits.free_energy, rtol=tolerance(1e-10, 1e-5))
    assert jaxem.check(fits) is fits


@pytest.mark.skipif(not DOUBLE, reason="compiles long, and says nothing new")
def test_a_program_and_statistics_that_are_summed_again():
    x = cast(np.random.default_rng(3).normal(size=(40, 2)) + np.repeat([0.0, 2.0], 20)[:, None])
    m = jaxem.from_numpyro(mixture)
    theta = m.init(jax.random.key(0), x)
    plain, fast = (jaxem.em(m, theta, x, accelerate=a) for a in (None, jaxem.squarem()))
    assert fast.status == plain.status
    assert float(fast.free_energy) >= float(plain.free_energy) - tolerance(1e-5, 1e-2)
    far = cast(np.random.default_rng(4).normal(size=(60, 2)) + 1e4)  # where the first M-step finds them cancelled
    theta = cast({"pi": np.full(2, 0.5), "mu": np.array([[0.0, 0.0], [1.0, 1.0]]), "Sigma": np.stack([np.eye(2)] * 2)})
    plain, fast = (jaxem.em(gaussian.full, theta, far, accelerate=a, max_steps=60) for a in (None, jaxem.anderson(3)))
    assert float(fast.free_energy) >= float(plain.free_energy) - abs(float(plain.free_energy)) * tolerance(1e-4, 1e-2)


def test_an_accelerator_is_a_value():
    assert jaxem.squarem() == jaxem.squarem() != jaxem.anderson(5)
    assert hash(jaxem.anderson(3)) == hash(pickle.loads(pickle.dumps(jaxem.anderson(3))))
    assert repr(jaxem.anderson()) == "jaxem.anderson(5)"
    theta, x = overlapping()
    inside = jax.jit(jaxem.em)(gaussian.isotropic, theta, x, accelerate=jaxem.squarem(), max_steps=3)
    assert int(inside.num_steps) == 3


def test_what_is_no_accelerator_is_refused_in_one_line():
    theta, x = overlapping()
    for wrong in (optax.adam(0.1), "squarem", 5, True, x):
        with pytest.raises(ValueError, match=r"^accelerate: must be jaxem\.squarem\(\) or .*$"):
            jaxem.em(gaussian.isotropic, theta, x, accelerate=wrong)
    with pytest.raises(ValueError, match=r"call it, jaxem\.squarem\(\)$"):
        jaxem.em_batch(gaussian.isotropic, jax.tree.map(lambda v: v[None], theta), x, accelerate=jaxem.squarem)
    with pytest.raises(ValueError, match=r"^accelerate: kmeans takes none"):
        jaxem.kmeans(x, x[:2], accelerate=jaxem.squarem())
    with pytest.raises(ValueError, match=r"^accelerate: em_stream takes none"):
        jaxem.em_stream(gaussian.isotropic, theta, lambda: iter([np.asarray(x)]), accelerate=jaxem.squarem())
    for wrong in (0, -1, True):
        with pytest.raises(ValueError, match=r"^memory: must be an integer ≥ 1"):
            jaxem.anderson(wrong)
