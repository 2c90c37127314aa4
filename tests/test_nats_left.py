"""C27 as a stopping rule: at its end a fit has about as many nats left as were asked for, or makes no claim of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import mixture

import jaxem
from jaxem import Status, limits
from jaxem._fit import lanes, loop
from jaxem.families import gaussian, poisson

ISO = gaussian.isotropic
HELD = ISO.hold("pi", "sigma")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 1)) + 1.6 * RNG.integers(0, 2, size=(60, 1))  # two unit Gaussians that overlap: EM is slow
THETA = {"pi": np.array([0.5, 0.5]), "mu": np.array([[-0.5], [2.0]]), "sigma": np.array(1.0)}
W = RNG.uniform(0.5, 2, size=60)
# deaths of women over 80 a day in The Times, 1910–12 (Hasselblad 1969): EM takes thousands of steps
DEATHS, DAYS = np.arange(10.0)[:, None], np.array([162.0, 267, 271, 185, 111, 61, 27, 8, 3, 1])
TIMES = {"pi": np.array([0.3, 0.7]), "rate": np.array([[1.0], [2.5]])}
PAIR = RNG.normal(size=(40, 2)) + np.repeat([0.0, 2.0], 20)[:, None]
PROGRAM = jaxem.from_numpyro(mixture)
PROBLEMS = {
    "isotropic": (ISO, THETA, X, {}),
    "weights, T, a held entry": (ISO.hold("pi"), THETA, X, {"weights": W, "temperature": 0.8}),
    "poisson": (poisson.mixture, TIMES, DEATHS, {"weights": DAYS}),
    "a program": (PROGRAM, None, PAIR, {}),
}
MOST = 20_000  # steps


def problem(name):
    m, theta, x, options = PROBLEMS[name]
    return m, m.init(jax.random.key(0), x) if theta is None else theta, x, options | {"max_steps": MOST}


@pytest.fixture(scope="module")
def ends():
    """name -> F at the maximum that plain EM tends to: from where it stops, to rounding."""
    found = {}

    def end(name):
        if name not in found:
            m, theta, x, options = problem(name)
            fit = jaxem.em(m, theta, x, **options, tol=jaxem.nats_left(0.0))  # the same program
            assert fit.status == Status.CONVERGED
            found[name] = float(fit.free_energy)
        return found[name]

    return end


@pytest.mark.parametrize("name", PROBLEMS)
def test_at_the_stop_about_so_much_is_left(name, ends):
    """No more than was asked for, by the decrement's accuracy; and where steps are short, not much less."""
    m, theta, x, options = problem(name)
    for nats in (1e-2, 1e-5):
        fit = jaxem.em(m, theta, x, **options, tol=jaxem.nats_left(nats))
        left = ends(name) - float(fit.free_energy)
        assert fit.status == Status.CONVERGED
        assert left + float(fit.gain) > nats / 20  # a look that finds no estimate waits for half the gain
        assert left <= 1.1 * nats
    assert left + float(fit.gain) > 0.7 * nats  # near the end the next look is where the last one says


def test_a_tolerance_of_gains_stops_a_slow_fit_too_early_and_a_fast_one_too_late(ends):
    m, theta, x, options = problem("poisson")
    nats, size = 1e-2, DAYS.sum()
    early = jaxem.em(m, theta, x, **options, tol=nats / size)  # a step that gains less
    asked = jaxem.em(m, theta, x, **options, tol=jaxem.nats_left(nats))
    assert early.status == asked.status == Status.CONVERGED
    assert ends("poisson") - float(early.free_energy) > 5 * nats
    apart = RNG.normal(size=(60, 1)) + 8.0 * np.repeat([0.0, 1.0], 30)[:, None]
    late = jaxem.em(ISO, THETA, apart)
    asked = jaxem.em(ISO, THETA, apart, tol=jaxem.nats_left(nats))
    assert float(late.free_energy - asked.free_energy) <= 1.1 * nats
    assert int(asked.num_steps) < int(late.num_steps)


def test_an_accelerated_fit_stops_by_it_too(ends):
    m, theta, x, options = problem("poisson")
    fit = jaxem.em(m, theta, x, **options, tol=jaxem.nats_left(1e-4), accelerate=jaxem.squarem())
    assert fit.status == Status.CONVERGED
    assert ends("poisson") - float(fit.free_energy) <= 1.1e-4
    assert int(fit.num_steps) < 300


def test_the_ordinary_tolerance_does_not_end_what_has_more_left(ends):
    """Known to have more left than asked for, a fit goes on, whatever a step gains."""
    m, theta, x, options = problem("isotropic")
    fit = jaxem.em(m, theta, x, **options, tol=jaxem.nats_left(1e-7, tol=1e-6))
    assert float(fit.gain) < 1e-6 * len(x) / 10
    assert ends("isotropic") - float(fit.free_energy) <= 1.1e-7


def test_where_the_information_is_singular_it_claims_nothing():
    """At σ_c F falls off as a quartic, and Newton's step is wrong of it by a third; near a saddle there is none."""
    x = np.concatenate([X, -X])
    first, mean = limits.split(x), x.mean(axis=0)
    mu = mean + np.array([[-0.3], [0.3]]) * np.asarray(first.direction)
    critical = {"pi": np.full(2, 0.5), "mu": mu, "sigma": np.asarray(first.sigma)}
    for tol in (0.1, jaxem.nats_left(0.1, tol=0.0), jaxem.nats_left(0.1, tol=0.1)):
        fit = jaxem.em(HELD, critical, x, tol=tol, max_steps=200)
        asked = isinstance(tol, float) or tol.tol > 0
        assert fit.status == (Status.CONVERGED if asked else Status.MAX_STEPS)
    saddle = critical | {"mu": mean + np.array([[-1e-6], [1e-6]]), "sigma": 0.6 * critical["sigma"]}
    fit = jaxem.em(HELD, saddle, x, tol=jaxem.nats_left(0.1, tol=0.0), max_steps=5)
    assert fit.status == Status.MAX_STEPS
    end = jaxem.em(HELD, saddle, x, tol=jaxem.nats_left(0.1, tol=0.0))
    assert end.status == Status.CONVERGED
    assert float(end.free_energy - fit.free_energy) > 1  # it left the saddle
    equal = critical | {"mu": np.stack([mean, mean])}  # I has a zero, and EM rests: rounding ends it, as always
    assert jaxem.em(HELD, equal, x, tol=jaxem.nats_left(0.1)).status == Status.CONVERGED


def test_hard_em_ends_as_always():
    theta = THETA | {"pi": np.full(2, 0.5)}
    plain, asked = (jaxem.em(HELD, theta, X, temperature=0.0, tol=tol) for tol in (1e-10, jaxem.nats_left(1.0)))
    assert (int(plain.num_steps), int(plain.status)) == (int(asked.num_steps), int(asked.status))


def test_lanes_slots_vmap_and_jit_are_the_loop():
    """And the nats may be traced."""
    many = {"pi": np.full((3, 2), 0.5), "mu": THETA["mu"] + np.array([0.0, 0.3, -0.4])[:, None, None]}
    many["sigma"] = np.array([1.0, 1.2, 0.8])
    m, nats = ISO.hold("pi"), jaxem.nats_left(1e-3)
    single = [jaxem.em(m, {name: v[i] for name, v in many.items()}, X, tol=nats) for i in range(3)]
    fits = jaxem.em_batch(m, many, X, tol=nats)
    theta, data = m.enter(many, X, None, 1.0, None, batched=True)
    tol = jax.tree.map(jnp.asarray, nats)
    slots = lanes.run_lanes(m, theta, data, tol, jnp.asarray(1000), loop.gain_is_small, slots=2)
    mapped = jax.jit(jax.vmap(lambda theta, n: jaxem.em(m, theta, X, tol=jaxem.nats_left(n)), (0, None)))(many, 1e-3)
    for found in (fits, slots, mapped):
        assert jaxem.check(found) is found
        assert found.num_steps.tolist() == [int(fit.num_steps) for fit in single]
        assert np.allclose(found.free_energy, [fit.free_energy for fit in single], rtol=1e-12)


def test_a_look_is_taken_where_one_is_due_only(monkeypatch):
    """Under vmap too, where a `cond` would look at every step: a loop of no turn."""
    looks = []
    real = jaxem._fit.nats_left.decrement

    def counted(*args):
        jax.debug.callback(lambda: looks.append(1))
        return real(*args)

    monkeypatch.setattr("jaxem._fit.nats_left.decrement", counted)
    starts = {name: np.stack([v, v]) for name, v in THETA.items()}
    fits = jax.vmap(lambda theta: jaxem.em(ISO, theta, X, tol=jaxem.nats_left(1.5e-4)))(starts)
    jax.block_until_ready(fits)
    jax.effects_barrier()
    assert 1 <= len(looks) <= 2 * 6 < int(fits.num_steps[0])


def test_single_precision_stops_by_it_too(ends):
    single = {name: np.float32(v) for name, v in THETA.items()}
    fit = jaxem.em(ISO, single, X.astype(np.float32), tol=jaxem.nats_left(1e-2))
    assert fit.free_energy.dtype == np.float32
    assert fit.status == Status.CONVERGED
    assert abs(ends("isotropic") - float(fit.free_energy)) <= 1.1e-2 + float(fit.rounding)


def test_what_it_cannot_be_asked_of_is_refused_in_one_line():
    for wrong in (-1.0, np.nan, [1.0, 2.0], "few"):
        with pytest.raises(ValueError, match=r"^nats, of tol=jaxem\.nats_left: must be .*$"):
            jaxem.em(ISO, THETA, X, tol=jaxem.nats_left(wrong))
    with pytest.raises(ValueError, match=r"^tol: must be finite and ≥ 0"):
        jaxem.em(ISO, THETA, X, tol=jaxem.nats_left(0.1, tol=-1.0))
    with pytest.raises(ValueError, match=r"jaxem\.nats_left\(0\.01\)$"):
        jaxem.em(ISO, THETA, X, tol=jaxem.nats_left)
    with pytest.raises(ValueError, match=r"^tol: jaxem\.nats_left does not know the floor"):
        jaxem.em(gaussian.with_floor(ISO, 0.1), THETA, X, tol=jaxem.nats_left(0.1))
    wide = {"pi": np.full(2, 0.5), "mu": np.zeros((2, 600)), "sigma": 1.0}
    with pytest.raises(ValueError, match=r"^tol: .* this fit has 1202, and at most 1024"):
        jaxem.em(ISO, wide, np.zeros((3, 600)), tol=jaxem.nats_left(0.1))
    with pytest.raises(ValueError, match=r"^tol: kmeans takes a number"):
        jaxem.kmeans(X, X[:2], tol=jaxem.nats_left(0.1))
    with pytest.raises(ValueError, match=r"^tol: em_stream takes a number"):
        jaxem.em_stream(ISO, THETA, lambda: iter([X]), tol=jaxem.nats_left(0.1))
    assert repr(jaxem.nats_left(0.1)) == "jaxem.nats_left(0.1, tol=1e-10)"


def test_a_fit_of_several_starts_takes_it(key):
    fit = jaxem.fit(ISO.hold("pi"), X, key, 2, starts=3, tol=jaxem.nats_left(1e-3))
    assert fit.status == Status.CONVERGED
    everything = jaxem.em(HELD.hold("mu"), THETA, X, tol=jaxem.nats_left(1e-3))  # nothing is free: nothing is left
    assert everything.status == Status.CONVERGED
