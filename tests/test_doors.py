"""Anything that holds numbers goes in unchanged; what would lose some is refused, in one line naming the argument."""

import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import ml_dtypes
import numpy as np
import numpyro
import pytest
import scipy.sparse
from jax.experimental import sparse
from numpyro import distributions as dist
from sklearn.cluster import KMeans

import jaxem
from jaxem import Status, inits
from jaxem._core.arrays import PACKAGE
from jaxem.families import bernoulli, categorical, exponential, gaussian, poisson

from cases import EPS, FLOAT, cast, tolerance

ISO, FULL = gaussian.isotropic, gaussian.full
KEY = jax.random.key(0)
N = 20
X = np.random.default_rng(0).normal(size=(N, 2)).astype(FLOAT) + 4 * (np.arange(N)[:, None] % 2)
X = np.round(X * 8) / 8  # exact in half precision
THETA = {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [4.0, 4.0]], "sigma": 1.0}
THETA_FULL = THETA | {"Sigma": np.stack([np.eye(2)] * 2)}
del THETA_FULL["sigma"]


def mixture_program(x):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", x.shape[0]):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


PROGRAM = jaxem.from_numpyro(mixture_program)


def squared(a, b):
    return jnp.sum((a - b) ** 2)


@pytest.fixture(autouse=True)
def untyped():
    """A user has no run-time type checker between the mistake and our message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def refused(name, call):
    """One line that begins with the argument's name and has a remedy, or at least says what is asked for."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is looked at below)
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    assert name in message[: len(name) + 45], message
    return message


class Frame:
    """What a data frame with columns of several kinds is to NumPy: a table of objects."""

    def __init__(self, table):
        self.table = np.asarray(table, object)

    def __array__(self, dtype=None, copy=None):
        return self.table.astype(dtype) if dtype else self.table


class NAType:
    """pandas.NA."""


def masked(array):
    mask = np.zeros(np.shape(array), bool)
    mask[3] = True
    return np.ma.masked_array(array, mask)


def deleted(array):
    array = jnp.asarray(array)
    array.delete()
    return array


def with_gap(array):
    table = np.asarray(array, object)
    table[3] = NAType()
    return Frame(table)


LOSES = {  # kind: (what makes it of an array, what the message says)
    "masked": (masked, r"masked entries in 1 row\(s\): 3"),
    "a list of masked rows": (lambda a: list(masked(a)), "masked entries"),
    "a frame with gaps": (with_gap, r"gaps in 1 row\(s\): 3"),
    "complex": (lambda a: np.asarray(a) + 1j, "must be real"),
    "complex of JAX": (lambda a: jnp.asarray(a) + 1j, "must be real"),
    "strings": (lambda a: np.asarray(a).astype(str), "must be numeric, got dtype <U"),
    "objects": (lambda a: np.asarray(a, object), "must be numeric, got dtype object"),
    "text in a frame": (lambda a: Frame(np.full(np.shape(a), "a", object)), "must be numeric, got str"),
    "dates": (lambda a: np.full(np.shape(a), np.datetime64("2020")), "must be numeric, got dtype datetime64"),
    "durations": (lambda a: np.full(np.shape(a), np.timedelta64(3, "D")), "must be numeric, got dtype timedelta64"),
    "None": (lambda a: None, "must be numeric, got None"),
    "a dict": (lambda a: {"a": a}, "must be numeric, got dict"),
    "a generator": (lambda a: (row for row in a), "must be numeric, got generator"),
    "ragged": (lambda a: [[1.0, 2.0], [3.0]], "must be numeric"),
    "deleted": (deleted, "deleted"),
    "keys": (lambda a: jax.random.split(KEY, N), "random keys"),
    "sparse": (lambda a: scipy.sparse.csr_matrix(np.atleast_2d(a)), r"sparse .*toarray\(\)"),
    "sparse of JAX": (lambda a: sparse.BCOO.fromdense(jnp.asarray(a)), r"sparse .*todense\(\)"),
}

DOORS_OF_X = {
    "em": lambda x: jaxem.em(ISO, THETA, x),
    "em_batch": lambda x: jaxem.em_batch(ISO, {k: np.asarray([v, v]) for k, v in THETA.items()}, x),
    "em_path": lambda x: jaxem.em_path(ISO, THETA, x, num_steps=1),
    "em_stream": lambda x: jaxem.em_stream(ISO, THETA, lambda: [x]),
    "em_online": lambda x: jaxem.em_online(ISO, THETA, lambda: [x]),
    "kmeans": lambda x: jaxem.kmeans(x, X[:2]),
    "kmedoids": lambda x: jaxem.kmedoids(x, X[:2], squared),
    "distortion": lambda x: jaxem.distortion(x, X[:2]),
    "log_joint": lambda x: jaxem.log_joint(ISO, THETA, x),
    "certify": lambda x: jaxem.certify(ISO, THETA, x),
    "condition": lambda x: jaxem.condition(FULL, THETA_FULL, x, [True, False]),
    "random_points": lambda x: inits.random_points(ISO, KEY, x, 2),
    "from_labels": lambda x: inits.from_labels(ISO, x, np.arange(N) % 2),
}


@pytest.mark.takes_turns("door")
@pytest.mark.parametrize("door", DOORS_OF_X)
def test_x_loses_nothing_on_the_way_in(door):
    name = "batches" if door in ("em_stream", "em_online") else "x"
    for make, says in LOSES.values():
        message = refused(name, lambda make=make: DOORS_OF_X[door](make(X)))
        assert pytest.RaisesExc(ValueError, match=says).matches(ValueError(message)), message


OTHER_DOORS = {
    "weights": (np.ones(N), lambda v: jaxem.em(ISO, THETA, X, weights=v)),
    "labels": (np.zeros(N, int), lambda v: jaxem.em(ISO, THETA, X, labels=v)),
    "theta['mu']": (X[:4], lambda v: jaxem.em(ISO, {"pi": np.full(4, 0.25), "mu": v, "sigma": 1.0}, X)),
    "mu": (X[:4], lambda v: jaxem.kmeans(X, v)),
    "medoids": (X[:4], lambda v: jaxem.kmedoids(X, v, squared)),
    "gamma": (np.full((N, 2), 0.5), lambda v: jaxem.expected_log_joint(ISO, THETA, v, X)),
    "log_joint": (np.zeros((N, 2)), lambda v: jaxem.free_energy(v, np.full((N, 2), 0.5))),
    "temperature": (np.ones(4), lambda v: jaxem.em(ISO, THETA, X, temperature=v)),
    "tol": (np.ones(4), lambda v: jaxem.em(ISO, THETA, X, tol=v)),
    "exponent": (np.ones(4), lambda v: jaxem.em_online(ISO, THETA, lambda: [X], exponent=v)),
}


@pytest.mark.parametrize("name", OTHER_DOORS)
def test_no_other_argument_does(name):
    good, door = OTHER_DOORS[name]
    for kind, (make, _) in LOSES.items():
        if kind != "None" or name not in ("weights", "labels"):  # which may be absent
            refused(name, lambda make=make: door(make(good)))
    for value in ("a", b"a", object(), {1.0}, print):
        refused(name, lambda value=value: door(value))


def test_nor_the_arguments_and_parameters_of_a_program():
    for kind, (make, _) in LOSES.items():
        if kind not in ("None", "a dict", "a generator", "ragged", "a list of masked rows"):  # those are pytrees
            refused("x", lambda make=make: jaxem.em(PROGRAM, {"mu": [0.0, 1.0]}, make(X[:, 0])))
        refused("theta['mu']", lambda make=make: jaxem.em(PROGRAM, {"mu": make(X[:4, 0])}, X[:, 0]))


ANOTHER_FORM = {
    "lists": lambda a: a.tolist(),
    "a frame": lambda a: Frame(a.tolist()),
    "a frame of several kinds": lambda a: Frame([[np.float64(v) for v in row] for row in a]),
    "masked nowhere": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    "big-endian": lambda a: a.astype(">f8"),
    "big-endian float32": lambda a: a.astype(">f4"),
    "long double": lambda a: a.astype(np.longdouble),
    "half": lambda a: a.astype(np.float16),
    "half of JAX": lambda a: jnp.asarray(a, jnp.float16),
    "bfloat16": lambda a: (a / 8).round().astype(ml_dtypes.bfloat16) * 8,
    "Fortran's order": np.asfortranarray,
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "a matrix": np.matrix,
    "bytes": lambda a: np.abs(a).round().astype(np.uint8),
    "16 bits": lambda a: a.round().astype(">i2"),
    "4 bits": lambda a: a.clip(-8, 7).round().astype(ml_dtypes.int4),
}


@pytest.mark.parametrize("kind", ANOTHER_FORM)
def test_the_same_numbers_in_another_form_give_the_same_answer(kind):
    x = ANOTHER_FORM[kind](X)
    plain = Frame.__array__(x).astype(float) if isinstance(x, Frame) else np.asarray(x).astype(float)
    expected = jaxem.log_likelihood(ISO, THETA, cast(plain))
    assert float(jaxem.log_likelihood(ISO, THETA, x)) == pytest.approx(float(expected), rel=tolerance(1e-6, 1e-5))
    first = next(iter(jaxem.em_stream(ISO, THETA, lambda: [x], max_steps=0).theta.values()))
    assert first.dtype in (np.float32, FLOAT)  # half precision is stored, not computed in
    assert float(jaxem.distortion(x, x[:2] if isinstance(x, list) else plain[:2])) == pytest.approx(
        float(jaxem.distortion(cast(plain), cast(plain[:2]))), rel=1e-5
    )


def test_half_precision_does_not_overflow():
    x = (X * 300).astype(np.float16)
    assert float(jaxem.distortion(x, x[:2])) == pytest.approx(float(jaxem.distortion(x.astype(float), x[:2])), rel=1e-5)
    assert jaxem.kmeans(x, x[:2]).theta["mu"].dtype == jnp.float32


def test_what_float32_cannot_hold_is_told_where_jax_has_no_float64():
    with jax.enable_x64(False), warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("ignore", UserWarning)
        stamps = 1_600_000_000_000 + np.arange(N)[:, None] * 1001
        for call in (jaxem.kmeans, jaxem.distortion, partial(jaxem.kmedoids, dissimilarity=squared)):
            refused("x: has integers that fit neither int32 nor", lambda call=call: call(stamps, stamps[:2]))
            refused("x: has numbers that do not fit float32 in 20", lambda call=call: call(X + 1e40, X[:2]))
            refused("x: has numbers too small for float32", lambda call=call: call(X * 1e-60, X[:2]))
        refused("batches: batch 0 of pass 1 has numbers that do not", lambda: DOORS_OF_X["em_stream"](X + 1e40))
        refused("batches: batch 0 of pass 1 has integers", lambda: DOORS_OF_X["em_stream"](stamps * [[1, 1]]))
        refused("theta['sigma']", lambda: jaxem.em(ISO, THETA | {"sigma": 1e-60}, X))
        refused("labels", lambda: jaxem.em(ISO, THETA, X, labels=np.full(N, 2**32)))  # 0 in 32 bits
        counts = np.array([[5_000_000_000], [3_000_000_000]])  # exact in float32
        theta = inits.from_labels(poisson.mixture, counts, [0, 1])
        assert np.allclose(theta["rate"].ravel(), [5e9, 3e9], rtol=1e-6)
        few = np.full((N, 2), 2**40)
        few[::2] = 0
        assert float(jaxem.distortion(few, [[0.0, 0.0], [2.0**40, 2.0**40]])) == 0


def test_a_warning_says_that_float64_rows_become_float32():
    with jax.enable_x64(False):
        with pytest.warns(UserWarning, match="x: float64 becomes float32") as caught:
            jaxem.distortion(X.astype(np.float64), X[:2])
        assert len(caught) == 1
        assert str(Path(jaxem.__file__).parent) == PACKAGE  # it is at the line that called a file of these
        assert not caught[0].filename.startswith(PACKAGE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for x in (X.astype(np.float32), X.tolist(), X.astype(int)):
                jaxem.distortion(x, X[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jaxem.distortion(cast(X), X[:2])


# ---- rows of weight 0


FAMILIES = {
    "isotropic": (ISO, X),
    "full": (FULL, X),
    "bernoulli": (bernoulli.mixture, (X > 2).astype(FLOAT)),
    "categorical": (categorical.mixture, np.abs(X).round().clip(0, 3).astype(FLOAT)),
    "poisson": (poisson.mixture, np.abs(X).round()),
    "exponential": (exponential.mixture, np.abs(X) + 0.125),
}
WHATEVER = [np.nan, np.inf, -999.5, 1e30, 1e300]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_of_weight_zero_counts_for_nothing_whatever_it_holds(name):
    m, x = FAMILIES[name]
    w = np.random.default_rng(1).integers(1, 4, N).astype(FLOAT)
    more = {"num_categories": 4} if name == "categorical" else {}
    labels = np.arange(N) % 2
    theta = inits.from_labels(m, cast(x), labels, weights=w, **more)
    full_x = np.concatenate([x[:1], x, x[:1]]).astype(float)
    full_w = np.concatenate([[0], w, [0]])
    em = jax.jit(partial(jaxem.em, m, max_steps=3))
    expected = em(theta, cast(full_x), weights=cast(full_w))
    for value in WHATEVER:
        full_x[0] = full_x[-1] = value
        held = np.ma.masked_array(full_x, np.arange(N + 2)[:, None] * np.ones(2) % (N + 1) == 0)
        for given in (full_x, jnp.asarray(full_x, FLOAT), held):
            fit = jaxem.em(m, theta, given, weights=full_w, max_steps=3)
            assert jnp.allclose(fit.free_energy, expected.free_energy, rtol=64 * EPS, atol=64 * EPS), value
        traced = em(theta, jnp.asarray(full_x, FLOAT), weights=cast(full_w))
        assert jnp.allclose(traced.free_energy, expected.free_energy, rtol=64 * EPS, atol=64 * EPS), value
        again = inits.from_labels(m, full_x, np.arange(-1, N + 1) % 2, weights=full_w, **more)
        assert all(np.allclose(again[key], theta[key], rtol=1e-5) for key in theta), value
    drawn = inits.random_points(m, KEY, full_x, 2, weights=full_w, **more)
    assert all(np.isfinite(leaf).all() for leaf in drawn.values())


def test_nor_does_it_in_streams_paths_and_answers():
    w = np.where(np.arange(N) == 5, 0.0, 1.0)
    bad = X.astype(float).copy()
    bad[5] = np.inf
    rest = np.delete(X, 5, axis=0)
    same = partial(np.allclose, rtol=1e-5)
    assert same(jaxem.distortion(bad, X[:2], w), jaxem.distortion(rest, X[:2]))
    assert same(jaxem.log_likelihood(ISO, THETA, bad, weights=w), jaxem.log_likelihood(ISO, THETA, rest))
    assert same(
        jaxem.em_path(ISO, THETA, bad, num_steps=2, weights=w).after_m,
        jaxem.em_path(ISO, THETA, rest, num_steps=2).after_m,
    )
    assert same(jaxem.kmeans(bad, X[:2], weights=w).theta["mu"], jaxem.kmeans(rest, X[:2]).theta["mu"])
    batches = [(bad[:8], w[:8]), (bad[5:6], w[5:6]), (bad[8:], w[8:])]
    streamed = jaxem.em_stream(ISO, THETA, lambda: batches, max_steps=2)
    assert same(streamed.free_energy, jaxem.em(ISO, THETA, rest, max_steps=2).free_energy)
    bad[4] = np.nan
    refused("x: has NaN or infinity in 1 row(s): 4", lambda: jaxem.em(ISO, THETA, bad, weights=w))


def test_a_weight_is_a_number_of_rows():
    w = np.random.default_rng(2).integers(0, 4, N)
    repeated = np.repeat(X, w, axis=0)
    for m, x in FAMILIES.values():
        more = {"num_categories": 4} if m is categorical.mixture else {}
        one, other = (
            inits.from_labels(m, x, np.zeros(N, int), weights=w, **more),
            inits.from_labels(m, np.repeat(x, w, axis=0), np.zeros(w.sum(), int), **more),
        )
        assert all(np.allclose(one[key], other[key], rtol=1e-5) for key in one)
        held = m.hold(*(name for name in m.parameters if name != "pi"))  # what a start pools
        one, other = (
            inits.from_labels(held, x, np.zeros(N, int), weights=w, **more),
            inits.from_labels(held, np.repeat(x, w, axis=0), np.zeros(w.sum(), int), **more),
        )
        assert all(np.allclose(one[key], other[key], rtol=1e-4) for key in one if key in ("sigma", "Sigma"))
    fit, expected = jaxem.kmeans(X, X[:2], weights=w), jaxem.kmeans(repeated, X[:2])
    assert np.allclose(fit.theta["mu"], expected.theta["mu"], rtol=1e-5)
    assert np.allclose(jaxem.distortion(X, X[:2], w), jaxem.distortion(repeated, X[:2]), rtol=1e-5)


def test_centres_are_drawn_in_proportion_to_weight():
    x = cast([[0.0], [1.0], [3.0]])
    w = np.array([1.0, 2.0, 0.0])
    keys = jax.random.split(KEY, 2000)
    first = jax.vmap(lambda key: inits.random_points(ISO, key, x, 1, weights=w)["mu"][0, 0])(keys)
    assert np.mean(first == 1) == pytest.approx(2 / 3, abs=0.05)
    w = np.array([1e6, 1.0, 1.0])  # from 0, d = 1 and 9
    second = jax.vmap(lambda key: inits.kmeans_plus_plus(ISO, key, x, 2, weights=w)["mu"][1, 0])(keys)
    assert np.mean(second == 3) == pytest.approx(0.9, abs=0.03)
    refused("num_components", lambda: inits.random_points(ISO, KEY, x, 3, weights=[1, 1, 0]))
    refused("labels", lambda: inits.from_labels(ISO, x, [0, 0, 1], weights=[1, 1, 0]))


# ---- k-means


def test_two_light_rows_far_away_take_no_centre():
    x = np.array([1, 1, 5, 5, 100, 100.0])[:, None]
    w = 10.0 ** np.array([8, 8, 8, 8, -8, -8])
    start = inits.kmeans_plus_plus(ISO, KEY, cast(x), 2, weights=w)
    fit = jaxem.kmeans(cast(x), start["mu"], weights=w)
    assert np.allclose(np.sort(np.asarray(fit.theta["mu"]).ravel()), [1, 5], rtol=1e-6)
    expected = KMeans(2, n_init=10, random_state=0).fit(x, sample_weight=w)
    assert float(jaxem.distortion(cast(x), fit.theta["mu"], w)) == pytest.approx(expected.inertia_, rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_empty_clusters_are_relocated_as_in_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 2)) + 5 * rng.integers(0, 4, (60, 1))
    w = rng.choice([0.0, 1.0, 2.0, 3.0], 60)
    mu = np.concatenate([x[:3], x[:2] + 1000])
    kept, fit = (jaxem.kmeans(cast(x), cast(mu), weights=w, empty=empty) for empty in ("keep", "relocate"))
    expected = KMeans(5, init=mu, n_init=1, tol=0, algorithm="lloyd").fit(x[w > 0], sample_weight=w[w > 0])
    assert np.abs(np.asarray(kept.theta["mu"])).max() > 900
    assert fit.status == Status.CONVERGED
    assert np.allclose(fit.theta["mu"], expected.cluster_centers_, rtol=tolerance(1e-12, 1e-4))
    lanes = jax.vmap(lambda mu: jaxem.kmeans(cast(x), mu, weights=w, empty="relocate"))(cast(np.stack([mu, mu])))
    assert np.allclose(lanes.theta["mu"], fit.theta["mu"][None], rtol=tolerance(1e-12, 1e-4))


def test_nothing_is_relocated_where_no_row_is_off_its_centre():
    fit = jaxem.kmeans(np.ones((3, 1)), [[1.0], [7.0], [8.0]], empty="relocate")
    assert fit.theta["mu"].ravel().tolist() == [1.0, 7.0, 8.0]
    assert fit.status == Status.CONVERGED
    fit = jaxem.kmeans([[0.0], [1.0]], [[0.0], [8.0], [9.0]], empty="relocate")  # more clusters than rows
    assert sorted(fit.theta["mu"].ravel().tolist())[:2] == [0.0, 1.0]


def test_a_tolerance_ends_kmeans_sooner():
    x = np.random.default_rng(0).uniform(size=(400, 2))
    exact, loose = (jaxem.kmeans(cast(x), cast(x[:6]), tol=tol) for tol in (0.0, 1e-3))
    assert loose.num_steps < exact.num_steps
    assert loose.status == Status.CONVERGED
    refused("tol", lambda: jaxem.kmeans(x, x[:6], tol=-1.0))
    refused("empty", lambda: jaxem.kmeans(x, x[:6], empty="drop"))


# ---- θ, starts, scalars, keys


@pytest.mark.skipif(FLOAT is np.float32, reason="has no finer precision")
@pytest.mark.parametrize("K", [1, 7])
def test_a_theta_of_coarser_precision_serves_finer_rows(K):
    pi = np.random.default_rng(K).dirichlet(np.ones(K)).astype(np.float32)
    theta = {"pi": pi * np.float32(1 + 3e-7), "mu": X[:K].astype(np.float32), "sigma": np.float32(1)}
    exact = {name: np.asarray(value, float) for name, value in theta.items()}
    exact["pi"] = exact["pi"] / exact["pi"].sum()
    for call in (
        lambda theta: jaxem.log_likelihood(ISO, theta, X),
        lambda theta: jax.jit(lambda theta: jaxem.log_likelihood(ISO, theta, X))(jax.tree.map(jnp.asarray, theta)),
        lambda theta: jaxem.em_path(ISO, theta, X, num_steps=1).after_e[0],
    ):
        assert float(call(theta)) == pytest.approx(float(call(exact)), rel=1e-14)
    refused("theta['pi']", lambda: jaxem.log_likelihood(ISO, theta | {"pi": pi * 1.001}, X))
    probs = np.random.default_rng(0).dirichlet(np.ones(4), (2, 2)).astype(np.float32)
    theta = {"pi": np.full(2, 0.5, np.float32), "probs": probs}
    assert np.isfinite(jaxem.log_likelihood(categorical.mixture, theta, np.ones((3, 2))))


@pytest.mark.parametrize("name", ["isotropic", "spherical", "diagonal", "tied", "full"])
def test_a_start_has_a_scale_where_a_column_has_none(name):
    m = getattr(gaussian, name)
    x = np.column_stack([X, np.full(N, 7.0)])
    for rows in (x, x * 1e6, x * 1e-6, x * [1, 1, 0], 0 * x, 0 * x + 3):
        theta = inits.random_points(m, KEY, cast(rows), 1)
        fit = jaxem.em(m, theta, cast(rows))  # admissible, whatever becomes of it
        assert fit.status in (Status.CONVERGED, Status.NONFINITE)


COUNTS = ["5", None, 1.0, np.nan, [1, 2], -1, 1j, {}]
STATIC = {
    "num_steps": lambda v: jaxem.em_path(ISO, THETA, X, num_steps=v),
    "num_samples": lambda v: jaxem.sample(ISO, THETA, KEY, v),
    "num_components": lambda v: inits.random_points(ISO, KEY, X, v),
    "max_steps": lambda v: jaxem.em_stream(ISO, THETA, lambda: [X], max_steps=v),
    "prefetch": lambda v: jaxem.em_stream(ISO, THETA, lambda: [X], prefetch=v),
    "warm_up": lambda v: jaxem.em_online(ISO, THETA, lambda: [X], warm_up=v),
    "num_gradient_steps": lambda v: jaxem.from_numpyro(mixture_program, num_gradient_steps=v),
    "memory_limit": lambda v: jaxem.from_numpyro(mixture_program, memory_limit=v),
}


@pytest.mark.parametrize("name", STATIC)
def test_counts_are_whole_numbers(name):
    for value in COUNTS:
        refused(name, lambda value=value: STATIC[name](value))


def test_a_limit_of_steps_may_be_any_whole_number():
    for value in COUNTS:
        refused("max_steps", lambda value=value: jaxem.em(ISO, THETA, X, max_steps=value))
    refused("max_steps", lambda: jax.jit(lambda n: jaxem.em(ISO, THETA, X, max_steps=n))(1.5))
    expected = jaxem.kmeans(X, X[:2])
    for value in (2**31, 2**40, 10**30, np.uint64(2**64 - 1), np.int64(1000)):
        assert jaxem.kmeans(X, X[:2], max_steps=value).num_steps == expected.num_steps


@pytest.mark.parametrize("value", [0, None, 1.0, "0", np.ones(2), np.zeros(3, np.uint32), np.random.default_rng(0)])
def test_a_key_is_a_key(value):
    for call in (
        lambda: inits.random_points(ISO, value, X, 2),
        lambda: inits.kmeans_plus_plus(ISO, value, X, 2),
        lambda: jaxem.sample(ISO, THETA, value, 5),
        lambda: PROGRAM.init(value, X[:, 0]),
        lambda: jaxem.condition(FULL, THETA_FULL, X, [True, False]).sample(value),
    ):
        assert "jax.random.key(0)" in refused("key", call)


def test_one_key_and_the_old_kind_are_taken():
    assert "vmap" in refused("key", lambda: jaxem.sample(ISO, THETA, jax.random.split(KEY), 5))
    old, new = (jaxem.sample(ISO, THETA, key, 5)[0] for key in (jax.random.PRNGKey(0), KEY))
    assert (old == new).all()


@pytest.mark.parametrize("m", [None, "isotropic", gaussian, mixture_program, jaxem.Mixture, PROGRAM])
def test_a_model_is_a_model(m):
    for call in (
        lambda: inits.random_points(m, KEY, X, 2),
        lambda: inits.from_labels(m, X, np.arange(N) % 2),
        lambda: jaxem.condition(m, THETA, X, [True, False]),
        lambda: gaussian.with_floor(m, 1.0),
        *([] if m is PROGRAM else [lambda: jaxem.sample(m, THETA, KEY, 3)]),
        *([] if m is PROGRAM else [lambda: jaxem.em_stream(m, THETA, lambda: [X])]),
    ):
        assert "mixture" in refused("", call)


def test_no_lanes_is_told():
    thetas = {"pi": np.zeros((0, 2)), "mu": np.zeros((0, 2, 2)), "sigma": np.zeros(0)}
    refused("theta: has no lanes", lambda: jaxem.em_batch(ISO, thetas, X))


# ---- the doors that had no check


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_blame_x_as_fits_do(value):
    x = X.copy()
    x[3, 0] = value
    says = r"x: has NaN or infinity in 1 row(s): 3"
    for call in (
        lambda: jaxem.log_joint(ISO, THETA, x),
        lambda: jaxem.responsibilities(ISO, THETA, x),
        lambda: jaxem.responsibilities(ISO, THETA, x, temperature=0.0),
        lambda: jaxem.condition(FULL, THETA_FULL, x, [True, False]),
    ):
        refused(says, call)
    assert np.isfinite(jaxem.condition(FULL, THETA_FULL, x, [False, True]).pi).all()  # hidden there


def test_rows_that_are_impossible_under_every_component_are_told():
    theta = {"pi": [0.5, 0.5], "probs": [[0.0, 0.5], [0.0, 0.2]]}
    with pytest.warns(UserWarning, match=r"x: 1 row\(s\) have probability 0 under every component.*: 1;"):
        gamma = jaxem.responsibilities(bernoulli.mixture, theta, cast([[0.0, 1.0], [1.0, 0.0]]))
    assert gamma[1].tolist() == [0.5, 0.5]


def test_free_energy_asks_what_it_is_given():
    table, gamma = np.zeros((3, 2)), np.full((3, 2), 0.5)
    for temperature in (-1.0, np.nan, [1.0, 1.0], "a"):
        refused("temperature", lambda temperature=temperature: jaxem.free_energy(table, gamma, temperature))
    for wrong in (-gamma, gamma[:1], gamma.T, gamma * np.nan):
        refused("gamma", lambda wrong=wrong: jaxem.free_energy(table, wrong))
    refused("weights", lambda: jaxem.free_energy(table, gamma, weights=np.ones(2)))
    assert jax.jit(jaxem.free_energy)(table, gamma) == pytest.approx(3 * np.log(2))


def test_centres_are_finite():
    for value in (np.nan, np.inf):
        refused("mu", lambda value=value: jaxem.distortion(X, X[:2] * value))
        refused("mu", lambda value=value: jaxem.kmeans(X, X[:2] * value))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, ">u2", bool])
def test_kmedoids_of_small_integers_does_not_wrap(dtype):
    x = np.array([[0], [5], [120], [127]]).astype(dtype)
    if dtype in (np.uint8, np.uint16):
        x = x * dtype(2)
    fit, expected = (jaxem.kmedoids(v, v[[0, 3]], lambda a, b: jnp.sum((a - b) ** 2)) for v in (x, x.astype(float)))
    assert fit.medoids.dtype == np.dtype(dtype).newbyteorder("=")
    assert (np.asarray(fit.medoids, float) == np.asarray(expected.medoids)).all()
    assert float(fit.distortion) == float(expected.distortion)


def test_a_dissimilarity_that_looks_up_a_table_gets_whole_numbers():
    table = jnp.array([[0.0, 1.0, 9.0], [1.0, 0.0, 9.0], [9.0, 9.0, 0.0]])
    fit = jaxem.kmedoids(np.array([0, 1, 0, 2], np.uint8), np.array([[0], [2]]), lambda a, b: table[a[0], b[0]])
    assert fit.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    "V",
    [
        None,
        "euclidean",
        lambda a: jnp.sum(a),
        lambda a, b: 1.0 if a[0] > b[0] else 0.0,
        lambda a, b: np.linalg.norm(np.asarray(a) - np.asarray(b)),
        lambda a, b: jnp.sum(a - b) + 1j,
        lambda a, b: (jnp.sum(a), 1),
        lambda a, b: a - b,
        lambda a, b: None,
    ],
)
def test_a_dissimilarity_is_a_jax_function_of_two_points(V):
    refused("dissimilarity", lambda: jaxem.kmedoids(X, X[:2], V))


def test_a_users_own_error_stays_its_own():
    def broken(*_):
        raise RuntimeError("my own bug")

    for call in (lambda: jaxem.kmedoids(X, X[:2], broken), lambda: jaxem.em(jaxem.from_numpyro(broken), {}, X)):
        with pytest.raises(RuntimeError, match="my own bug"):
            call()


@pytest.mark.parametrize("x", [None, "abc", (X, X), X, X[:0, 0]], ids=["None", "text", "two", "2-d", "empty"])
def test_arguments_that_a_program_cannot_take_are_said_to_be_so(x):
    assert "x = (" in refused("program", lambda: jaxem.em(PROGRAM, {"mu": [0.0, 1.0]}, x))


def test_a_programs_theta_may_be_lists():
    lists, arrays = (jaxem.em(PROGRAM, {"mu": mu}, X[:, 0]) for mu in ([-1, 1], cast([-1.0, 1.0])))
    assert lists.free_energy == arrays.free_energy
    refused("theta", lambda: jaxem.em(PROGRAM, None, X[:, 0]))
    refused("theta", lambda: PROGRAM.explain(None, X[:, 0]))


@pytest.mark.parametrize("optimizer", ["adam", 0.1, print])
def test_an_optimizer_is_one_of_optax(optimizer):
    refused("optimizer", lambda: jaxem.from_numpyro(mixture_program, optimizer=optimizer))
    refused("optimizer", lambda: jaxem.gradient_m_step(ISO, optimizer))


def test_strict_promotion_of_dtypes_is_possible():
    with jax.numpy_dtype_promotion("strict"):
        theta, x = cast({name: np.asarray(value) for name, value in THETA.items()}), cast(X)
        assert jaxem.certify(ISO, theta, x).holds(tolerance(1e-10, 1e-4))
        assert jaxem.em(ISO, theta, x, weights=cast(np.ones(N))).status == Status.CONVERGED
        assert jaxem.kmeans(x, x[:2]).status == Status.CONVERGED
        inits.kmeans_plus_plus(ISO, KEY, x, 2, weights=cast(np.ones(N)))
