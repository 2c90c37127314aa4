"""One call: the best of several starts, for mixtures and programs; a start from the data; what a fit remembers."""

import _thread
import threading

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import programs
import pytest

import jaxem
from jaxem import Status, inits
from jaxem._fit.progress import awaited
from jaxem.families import categorical, gaussian

from cases import CASES, FLOAT, cast, tolerance

ISO, KEY = gaussian.isotropic, jax.random.key(3)
X = CASES[0].x()


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def best():
    return jaxem.fit(ISO, X, KEY, 3, starts=6)


def test_it_is_starts_and_em_batch_and_best(best):
    starts = inits.many(ISO, jax.random.split(KEY, 6), X, 3)
    fits = jaxem.em_batch(ISO, starts, X)
    same(best._replace(ended=None), jaxem.best(fits))
    assert Status.counts(best) == Status.counts(fits)
    assert best.free_energy.dtype == FLOAT


def test_many_starts_are_the_starts_one_by_one():
    keys = jax.random.split(KEY, 4)
    for name, one_by_one in {"k-means++": inits.kmeans_plus_plus, "random": inits.random_points}.items():
        many = inits.many(ISO, keys, X, 3, init=name)
        for lane, key in enumerate(keys):
            one = one_by_one(ISO, key, X, 3)
            jax.tree.map(
                lambda a, b, lane=lane: np.testing.assert_allclose(a[lane], b, rtol=tolerance(1e-12, 1e-5)), many, one
            )


def test_it_says_how_many_starts_ended_how():
    """Rows that coincide: some starts end with a component on a point, where F has no bound."""
    x = cast(np.repeat([[0.0, 0.0], [1.0, 1.0], [5.0, 4.0], [5.5, 4.2]], 4, axis=0))
    fit = jaxem.fit(gaussian.spherical, x, KEY, 3, starts=8)
    counts = Status.counts(fit)
    assert sum(counts.values()) == 8
    assert counts.get("NONFINITE", 0) > 0
    assert f"of 8 starts: {', '.join(f'{n} {status}' for status, n in counts.items())}" in repr(fit)


def test_inside_jit_and_over_keys(best):
    """`vmap` compiles it as a whole, so the last digits may differ."""
    alone = jax.jit(lambda key: jaxem.fit(ISO, X, key, 3, starts=6))(KEY)
    assert float(alone.free_energy) == pytest.approx(float(best.free_energy), rel=tolerance(1e-12, 1e-5))


def test_weights_and_held_entries_and_a_function_as_init():
    m = ISO.hold("sigma")

    def two(m, key, x, num_components):
        return inits.random_points(m, key, x, num_components) | {"sigma": jnp.asarray(0.5, FLOAT)}

    weights = np.where(np.arange(len(X)) < 30, 1.0, 0.0)
    fit = jaxem.fit(m, X, KEY, 2, starts=2, init=two, weights=weights)
    assert float(fit.theta["sigma"]) == 0.5
    half = jaxem.em(m, fit.theta, X[:30], max_steps=0)
    assert float(fit.free_energy) == pytest.approx(float(half.free_energy), rel=tolerance(1e-12, 1e-5))


def test_progress_changes_no_bit(best, capsys):
    same(jaxem.fit(ISO, X, KEY, 3, starts=6, progress=True), best)
    start = inits.random_points(ISO, KEY, X, 3)
    same(jaxem.em(ISO, start, X, progress=True), jaxem.em(ISO, start, X))
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "F=" in shown
    with pytest.raises(ValueError, match=r"^progress: nothing can be shown"):
        jax.jit(lambda x: jaxem.em(ISO, start, x, progress=True))(X)


def test_an_interrupt_is_heard_while_something_is_computed():
    long = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda i, a: a + jnp.sin(a), jnp.ones(1000)))
    jax.block_until_ready(long(1))
    threading.Timer(0.1, _thread.interrupt_main).start()
    result = long(100_000)  # a second or more
    with pytest.raises(KeyboardInterrupt):
        awaited(result)
    assert not result.is_ready()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"num_components": None}, "^num_components: how many components"),
        ({"num_components": 61}, "^num_components: 61 exceeds the 60 rows"),
        ({"num_components": 2, "starts": 0}, "^starts: must be an integer ≥ 1"),
        ({"num_components": 2, "init": "kmeans"}, '^init: must be one of "k-means\\+\\+", "random"'),
        ({"num_components": 2, "init": "responsibilities"}, "^init: 'responsibilities' is for programs"),
        ({"num_components": 2, "key": 0}, "^key: must be a key of JAX"),
        ({"num_components": 2, "x": np.zeros((9, 2))}, "^num_components: x has fewer than 2 distinct rows"),
        ({"num_components": 2, "m": 3}, "^m: must be a mixture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_names_what_is_wrong(words, match):
    jaxtyping.config.update("jaxtyping_disable", True)  # a user has no type checker before our message
    try:
        with pytest.raises(ValueError, match=match):
            jaxem.fit(**({"m": ISO, "x": X, "key": KEY} | words))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_categories_are_counted_over_all_rows():
    x = np.array([[0, 1], [2, 1], [1, 0], [0, 0]])
    assert jaxem.fit(categorical.mixture, x, KEY, 2, starts=2, max_steps=1).theta["probs"].shape == (2, 2, 3)


# ---- programs


def three_groups(num_rows=60):
    rng = np.random.default_rng(1)
    z = rng.integers(0, 2, num_rows)
    return z, cast(np.where(z[:, None] == 0, [-8.0, 3.0], [9.0, -4.0]) + rng.normal(size=(num_rows, 2)))


def test_a_start_from_the_data_finds_its_groups():
    """One M-step from the labels of k-means++ lies near the truth, wherever the program's own values lie."""
    z, x = three_groups()
    m = jaxem.from_numpyro(programs.mixture)
    for seed in range(4):
        theta = m.init(jax.random.key(seed), x, method="responsibilities")
        order = np.argsort(np.asarray(theta["mu"])[:, 0])
        means = np.stack([np.asarray(x)[z == k].mean(axis=0) for k in range(2)])
        gamma = np.array([[0.9, 0.1], [0.1, 0.9]])  # what `start.py` makes of a label
        shares = gamma * np.bincount(z)[:, None]
        expected = shares.T @ means / shares.sum(axis=0)[:, None]
        np.testing.assert_allclose(np.asarray(theta["mu"])[order], expected, rtol=tolerance(1e-10, 1e-4))


def test_a_chain_starts_from_its_own_labels():
    """Its first step is clustered with the others, and transitions are those of the labels."""
    rng = np.random.default_rng(2)
    z = np.repeat([0, 1, 0, 1, 1, 0], 10)
    y = cast(np.where(z == 0, -5.0, 5.0) + rng.normal(size=60))
    m = jaxem.from_numpyro(programs.CASES["gaussian_hmm"].program)
    theta = m.init(KEY, y, method="responsibilities")
    assert np.abs(np.sort(theta["mu"]) - [-4, 4]).max() < 0.6  # a tenth of the others': 0.9·5 − 0.1·5
    assert (np.diagonal(theta["A"]) > 0.7).all()
    fit = jaxem.fit(m, y, KEY, starts=3)
    assert Status(int(fit.status)) == Status.CONVERGED
    np.testing.assert_array_equal(jaxem.decode(m, fit.theta, y)["z"] == np.argmax(fit.theta["mu"]), z == 1)


@pytest.mark.parametrize("name", ["same_family", "dependent_pair", "latent_class", "with_priors", "half_observed"])
def test_every_kind_of_program_starts_inside_its_constraints(name):
    case = programs.CASES[name]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(KEY, case.x, method="responsibilities")
    own = m.init(KEY, case.x)
    assert jax.tree.map(jnp.shape, theta) == jax.tree.map(jnp.shape, own)
    assert np.isfinite(jaxem.em(m, theta, case.x, max_steps=1).free_energy)  # em refuses a θ out of its bounds
    held = m.hold(*theta)
    same(held.init(KEY, case.x, method="responsibilities"), held.init(jax.random.split(KEY)[0], case.x))


def test_a_program_is_fitted_from_its_own_start_too():
    _, x = three_groups()
    m = jaxem.from_numpyro(programs.mixture)
    fit = jaxem.fit(m, x, KEY, starts=3)
    own = jaxem.em(m, m.init(KEY, x), x)
    assert float(fit.free_energy) >= float(own.free_energy) - tolerance(1e-6, 1e-2)
    assert sum(Status.counts(fit).values()) == 3
    with pytest.raises(ValueError, match=r"^num_components: a program says itself"):
        jaxem.fit(m, x, KEY, 2)
    with pytest.raises(ValueError, match=r"^method: must be"):
        m.init(KEY, x, method="data")
