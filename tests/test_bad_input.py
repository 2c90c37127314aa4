"""Each mistake gets one ValueError that names the argument, what it got, and the remedy."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxem
from jaxem import inits

from cases import CASES, EPS, FLOAT, cast

M = CASES[0].m


@pytest.fixture(autouse=True)
def untyped():
    """A user has no run-time type checker between the mistake and our message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


X = CASES[0].x(N=10)
THETA = CASES[0].theta()


def expect(match, call):
    with pytest.raises(ValueError, match=match):
        call()


BAD_X = {
    "empty": (np.zeros((0, 2)), r"x: is empty, got shape \(0, 2\)"),
    "no columns": (np.zeros((4, 0)), "x: is empty"),
    "rank 3": (np.zeros((2, 2, 2)), r"x: must be \(N, D\)"),
    "rank 0": (np.zeros(()), r"x: must be \(N, D\)"),
    "text": (np.array([["a", "b"]]), "x: must be numeric, got dtype"),
    "objects": (np.array([[None, 1]], dtype=object), "x: must be numeric"),
    "complex": (np.zeros((3, 2), complex), "x: must be"),
    "columns": (np.zeros((10, 3)), r"theta\['mu'\]: has D = 2 .* but x has D = 3"),
}


@pytest.mark.parametrize("name", BAD_X)
def test_x(name):
    x, match = BAD_X[name]
    for call in (
        lambda: jaxem.em(M, THETA, x),
        lambda: jaxem.em_path(M, THETA, x, num_steps=1),
        lambda: jaxem.log_joint(M, THETA, x),
        lambda: jaxem.responsibilities(M, THETA, x),
        lambda: jaxem.log_likelihood(M, THETA, x),
        lambda: jaxem.certify(M, THETA, x),
    ):
        expect(match, call)
    if name != "columns":
        expect(match, lambda: inits.random_points(M, jax.random.key(0), x, 1))
        expect(match, lambda: jaxem.distortion(x, THETA["mu"]))


BAD_THETA = {
    "missing": ({"pi": THETA["pi"], "mu": THETA["mu"]}, r"missing \['sigma'\], unknown \[\]"),
    "unknown": (THETA | {"tau": 1.0}, r"unknown \['tau'\]"),
    "not a dict": ([1, 2, 3], "theta: must be a dict"),
    "K": (THETA | {"pi": cast([0.5, 0.5])}, r"theta\['mu'\]: has K = 3 .* theta\['pi'\] has K = 2"),
    "rank": (THETA | {"sigma": cast([1.0, 1.0, 1.0])}, r"theta\['sigma'\]: must have shape \(\)"),
    "off the simplex": (THETA | {"pi": cast([0.5, 0.4, 0.2])}, r"theta\['pi'\]: must be ≥ 0 and sum to 1"),
    "negative weight": (THETA | {"pi": cast([1.2, -0.2, 0.0])}, r"theta\['pi'\]"),
    "sigma 0": (THETA | {"sigma": 0.0}, r"theta\['sigma'\]: must satisfy"),
    "sigma < 0": (THETA | {"sigma": -1.0}, r"theta\['sigma'\]: must satisfy"),
    "NaN": (THETA | {"sigma": np.nan}, r"theta\['sigma'\]: must be finite"),
    "infinite": (THETA | {"mu": THETA["mu"] * np.inf}, r"theta\['mu'\]: must be finite"),
}


@pytest.mark.parametrize("name", BAD_THETA)
def test_theta(name):
    theta, match = BAD_THETA[name]
    expect(match, lambda: jaxem.em(M, theta, X))
    expect(match, lambda: jaxem.log_likelihood(M, theta, X))
    expect(match, lambda: jaxem.certify(M, theta, X))


def test_no_components():
    theta = {"pi": np.zeros(0), "mu": np.zeros((0, 2)), "sigma": 1.0}
    expect("K = 0", lambda: jaxem.em(M, theta, X))


def test_pi_may_be_off_the_simplex_by_rounding():
    pi = cast([0.3, 0.3, 0.4])
    jaxem.log_likelihood(M, THETA | {"pi": pi * (1 + 9 * EPS)}, X)
    expect("sum to 1", lambda: jaxem.log_likelihood(M, THETA | {"pi": pi * (1 + 100 * EPS)}, X))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"temperature": -1.0}, "temperature: must be finite and ≥ 0, got -1"),
        ({"temperature": np.nan}, "temperature"),
        ({"temperature": np.ones(3)}, "temperature: must be a scalar"),
        ({"tol": -1e-3}, "tol: must be finite and ≥ 0"),
        ({"max_steps": -1}, "max_steps: must be an integer ≥ 0"),
        ({"max_steps": 2.5}, "max_steps: must be an integer"),
        ({"weights": np.ones(9)}, r"weights: must have shape \(10,\)"),
        ({"weights": -np.ones(10)}, "weights: must be finite and ≥ 0"),
        ({"weights": np.zeros(10)}, "weights: sum to 0"),
        ({"labels": np.zeros(9, int)}, "labels: must be 10 integers"),
        ({"labels": np.zeros(10)}, "labels: must be 10 integers"),
        ({"labels": np.full(10, 3)}, "labels: must lie in -1 … 2"),
        ({"labels": np.full(10, -2)}, "labels: must lie in -1 … 2"),
    ],
)
def test_arguments_of_em(arguments, match):
    expect(match, lambda: jaxem.em(M, THETA, X, **arguments))
    batch = jax.tree.map(lambda leaf: leaf[None], THETA)
    if np.ndim(arguments.get("temperature", 0)) == 0:
        expect(match, lambda: jaxem.em_batch(M, batch, X, **arguments))


def test_a_batch_needs_its_lane_axis():
    expect(r"must have shape \(lanes, K\)", lambda: jaxem.em_batch(M, THETA, X))
    ragged = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), THETA) | {"sigma": cast([1.0, 1.0, 1.0])}
    expect("has lanes = 3", lambda: jaxem.em_batch(M, ragged, X))


def test_rows_that_are_not_finite_are_named():
    x = np.asarray(X).copy()
    x[4, 1] = np.nan
    x[7, 0] = np.inf
    for call in (
        lambda: jaxem.em(M, THETA, x),
        lambda: jaxem.em_path(M, THETA, x, num_steps=2),
        lambda: jaxem.kmeans(x, THETA["mu"]),
        lambda: jaxem.log_likelihood(M, THETA, x),
        lambda: jaxem.responsibilities(M, THETA, x),
        lambda: jaxem.certify(M, THETA, x),
        lambda: jaxem.distortion(x, THETA["mu"]),
        lambda: inits.random_points(M, jax.random.key(0), x, 2),
        lambda: inits.from_labels(M, x, np.arange(10) % 2),
    ):
        expect(r"x: has NaN or infinity in 2 row\(s\): 4, 7; drop or impute", call)


def test_inside_jit_bad_values_become_a_status():
    x = X.at[0, 0].set(jnp.nan)
    fit = jax.jit(jaxem.em)(M, THETA, x)
    assert int(fit.status) == jaxem.Status.NONFINITE
    assert int(fit.num_steps) == 0
    fit = jax.jit(lambda sigma: jaxem.em(M, THETA | {"sigma": sigma}, X))(-1.0)
    assert int(fit.status) in set(jaxem.Status)


def test_inside_jit_bad_shapes_still_raise():
    expect(r"D = 3", lambda: jax.jit(jaxem.em)(M, THETA, np.zeros((4, 3))))


@pytest.mark.parametrize("draw", [inits.random_points, inits.kmeans_plus_plus])
def test_num_components(draw):
    key = jax.random.key(0)
    expect("num_components: must be an integer ≥ 1", lambda: draw(M, key, X, 0))
    expect("num_components: must be an integer", lambda: draw(M, key, X, 1.5))
    expect("num_components: 11 exceeds the 10 rows", lambda: draw(M, key, X, 11))
    expect("must be a Python int", lambda: jax.jit(draw)(M, key, X, 2))


def test_labels():
    expect("labels: must be 10 integers", lambda: inits.from_labels(M, X, np.zeros(9, int)))
    expect("labels: must lie in 0 … 1, got 0 … 4", lambda: inits.from_labels(M, X, np.arange(10) % 5, 2))
    expect("labels: must lie in 0", lambda: inits.from_labels(M, X, np.arange(10) % 3 - 1))
    expect("num_components", lambda: jax.jit(lambda z: inits.from_labels(M, X, z))(np.arange(10) % 2))


def test_hold_names():
    expect("'tau' is not a parameter of this mixture; choose from 'pi', 'mu', 'sigma'", lambda: M.hold("tau"))


def test_other_arguments():
    expect("num_steps: must be an integer ≥ 1", lambda: jaxem.em_path(M, THETA, X, num_steps=0))
    expect("num_steps", lambda: jax.jit(lambda n: jaxem.em_path(M, THETA, X, num_steps=n))(2))
    expect(r"mu: must be \(K, D\)", lambda: jaxem.kmeans(X, X[0]))
    expect("D = 3", lambda: jaxem.kmeans(X, np.zeros((2, 3))))
    expect(r"mu: must be \(K, D\)", lambda: jaxem.distortion(X, np.zeros((2, 3))))
    expect(
        r"gamma: must have shape \(N, K\) = \(10, 3\)", lambda: jaxem.expected_log_joint(M, THETA, np.ones((10, 2)), X)
    )
    expect("num_samples", lambda: jaxem.sample(M, THETA, jax.random.key(0), 0))
    expect("num_steps", lambda: jaxem.gradient_m_step(M, num_steps=0))
    for other in (None, THETA):
        expect("fit: must be what em", lambda other=other: jaxem.check(other))


FIT = jaxem.em(M, THETA, X, max_steps=1)
WRONG = [None, "a", {}, 1j, ["a"], len, np.ones((2, 2)), object()]
SWITCHED = {
    "progress: must be True or False": [
        lambda value: jaxem.em(M, THETA, X, progress=value),
        lambda value: jaxem.em_batch(M, {name: leaf[None] for name, leaf in THETA.items()}, X, progress=value),
        lambda value: jaxem.fit(M, X, jax.random.key(0), 2, progress=value),
        lambda value: jaxem.select(X, jax.random.key(0), models=M, progress=value),
        lambda value: jaxem.em_stream(M, THETA, lambda: [X], progress=value),
    ],
    "closed_form: must be True or False": [lambda value: jaxem.from_numpyro(len, closed_form=value)],
    'empty: must be one of "keep", "relocate"': [lambda value: jaxem.kmeans(X, X[:2], empty=value)],
    "criterion: must be one of": [lambda value: jaxem.select(X, jax.random.key(0), criterion=value)],
    "models: ": [lambda value: jaxem.select(X, jax.random.key(0), models=value)],
    "fits: must be": [jaxem.Status.counts, jaxem.best],
    "gamma: ": [lambda value: jaxem.e_step_residual(np.zeros((3, 2)), value)],
    "log_joint: |gamma: ": [lambda value: jaxem.e_step_residual(value, np.full((3, 2), 0.5))],
    "mu: ": [lambda value: jaxem.limits.parameters(value if np.ndim(value) < 2 else np.ones(2), 1.0)],
}


@pytest.mark.parametrize("match", SWITCHED)
def test_whatever_is_no_value_of_an_argument_is_refused_by_its_name(match):
    for call in SWITCHED[match]:
        for value in WRONG:
            expect(match, lambda call=call, value=value: call(value))


def test_an_init_is_a_word_or_a_function():
    for value in (None, "k-medians", {}, np.ones((2, 2))):
        expect("init: must be one of", lambda value=value: jaxem.fit(M, X, jax.random.key(0), 2, init=value))


def test_integers_and_lists_are_taken():
    fit = jaxem.em(M, {"pi": [0.5, 0.5], "mu": [[0, 0], [1, 1]], "sigma": 1}, np.array([[0, 0], [1, 2], [3, 1]]))
    assert jnp.issubdtype(fit.theta["mu"].dtype, jnp.floating)
    assert fit.theta["mu"].dtype == jnp.result_type(float)
    assert FLOAT in (np.float32, np.float64)
