"""k-medoids: NumPy's alternation, local optimality against every set of medoids, and outliers."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status, bregman
from jaxem._fit import kmedoids

from cases import EPS, FLOAT, cast, tolerance


def absolute(x, y):
    return jnp.sum(jnp.abs(x - y))


def lopsided(x, y):
    """Neither symmetric nor a metric: an overshoot costs three times an undershoot."""
    return jnp.sum(jnp.where(x > y, 3 * (x - y), y - x) ** 2)


def mismatches(x, y):
    return jnp.sum(x != y)


DISSIMILARITIES = [bregman.squared_euclidean, absolute, lopsided]
each_dissimilarity = pytest.mark.parametrize("V", DISSIMILARITIES, ids=lambda V: V.__name__)


def whole_numbers(seed=0, N=24, D=2):
    """Sums of whole numbers are exact, so that ties are ties in both precisions."""
    rng = np.random.default_rng(seed)
    return rng.integers(-6, 7, size=(N, D)) + 20 * rng.integers(0, 2, size=(N, 1))


def matrix(V, x):
    """V(x_n, x_j), (N, N)."""
    return np.asarray(jax.vmap(lambda a: jax.vmap(lambda b: V(a, b))(x))(x), float)


def numpy_kmedoids(V, indices, steps=100):
    """The plain alternation on the whole matrix of dissimilarities; J after each E-step."""
    indices, path = np.array(indices), []
    for _ in range(steps):
        labels = V[:, indices].argmin(axis=1)
        path.append(V[:, indices].min(axis=1).sum())
        new = indices.copy()
        for k in range(len(indices)):
            members = np.flatnonzero(labels == k)
            if members.size:
                new[k] = members[V[np.ix_(members, members)].sum(axis=0).argmin()]
        if (new == indices).all():
            break
        indices = new
    return indices, labels, path


@each_dissimilarity
def test_it_is_numpys_alternation(V):
    for seed in range(4):
        x = cast(whole_numbers(seed).astype(float))
        start = np.random.default_rng(seed).choice(len(x), 3, replace=False)
        fit = jaxem.kmedoids(x, x[start], V)
        indices, labels, path = numpy_kmedoids(matrix(V, x), start)
        assert int(fit.status) == Status.CONVERGED
        assert fit.labels.tolist() == labels.tolist()
        assert np.array_equal(fit.medoids, np.asarray(x)[indices])
        assert np.array_equal(np.asarray(x)[fit.indices], fit.medoids)
        assert float(fit.distortion) == path[-1]
        assert int(fit.num_steps) == len(path)


@each_dissimilarity
def test_the_objective_never_rises(V):
    x = cast(whole_numbers(7).astype(float))
    path = [float(jaxem.kmedoids(x, x[:3], V, max_steps=t).distortion) for t in range(6)]
    assert (np.diff(path) <= 0).all()
    assert path[-1] < path[0]


@each_dissimilarity
def test_no_set_of_medoids_is_better_and_no_member_of_a_cluster_is(V):
    """Brute force over every set: a lower bound on J, a fixed point, and reached from some start."""
    x = cast(whole_numbers(3, N=9).astype(float))
    cost, K = matrix(V, x), 2
    J = {s: cost[:, s].min(axis=1).sum() for s in combinations(range(len(x)), K)}
    optimum = min(J, key=J.get)
    starts = x[np.array(list(J))]
    fits = jax.vmap(lambda start: jaxem.kmedoids(x, start, V))(starts)
    assert (np.asarray(fits.status) == Status.CONVERGED).all()
    assert float(fits.distortion.min()) == J[optimum]
    assert float(fits.distortion[list(J).index(optimum)]) == J[optimum]
    for lane in range(len(starts)):
        labels = np.asarray(fits.labels[lane])
        for k, index in enumerate(np.asarray(fits.indices[lane])):
            members = np.flatnonzero(labels == k)
            totals = cost[np.ix_(members, members)].sum(axis=0)
            assert totals[members == index].min(initial=np.inf) == totals.min(initial=np.inf)


def test_chunks_and_vmap_do_not_change_the_answer(monkeypatch):
    x = cast(whole_numbers(5).astype(float))
    starts = x[jnp.array([[0, 1, 2], [5, 9, 11]])]
    whole = jax.vmap(lambda start: jaxem.kmedoids(x, start, absolute))(starts)
    monkeypatch.setattr(kmedoids, "ENTRIES", 7 * x.size)  # chunks of 7 rows: 24 is no multiple of it

    def afresh(a, b):
        return absolute(a, b)

    for lane, start in enumerate(starts):
        fit = jaxem.kmedoids(x, start, afresh)
        assert all(np.array_equal(a[lane], b) for a, b in zip(whole, fit, strict=True))


def test_memory_is_not_quadratic():
    """8,000 rows: the N × N matrix alone would be 256 MB in float32."""
    N = 8000
    x, start = jax.ShapeDtypeStruct((N, 2), jnp.float32), jax.ShapeDtypeStruct((3, 2), jnp.float32)
    memory = kmedoids._run.lower(x, start, absolute, 10).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * N * N / 8


def test_an_outlier_moves_the_mean_not_the_medoid():
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(30, 2)) + 8 * (np.arange(30) % 2)[:, None]
    x = cast(np.vstack([clean, [[1e4, 1e4]]]))
    start = x[:2]
    before = jaxem.kmedoids(x[:-1], start, absolute)
    after = jaxem.kmedoids(x, start, absolute)
    assert np.abs(after.medoids - before.medoids).max() < 1  # at most to the neighbour
    assert after.labels[:-1].tolist() == before.labels.tolist()
    centres = jaxem.kmeans(x[:-1], start).theta["mu"]
    dragged = jaxem.em_path(
        jaxem.families.gaussian.isotropic.hold("pi", "sigma"),
        {"pi": cast([0.5, 0.5]), "mu": centres, "sigma": cast(1.0)},
        x,
        num_steps=1,
        temperature=0.0,
    ).theta["mu"][0]
    assert np.abs(dragged - centres).max() > 100


def test_with_squared_distance_and_a_mean_among_the_rows_it_is_kmeans():
    x = cast([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    medoids, means = jaxem.kmedoids(x, x[:2], bregman.squared_euclidean), jaxem.kmeans(x, x[:2])
    assert np.allclose(medoids.medoids, means.theta["mu"], atol=8 * EPS)
    assert float(medoids.distortion) == pytest.approx(float(jaxem.distortion(x, means.theta["mu"])), rel=8 * EPS)


def test_rows_of_any_kind():
    """Categories with a count of mismatches: integers stay integers."""
    x = np.array([[0, 1, 2], [0, 1, 3], [0, 1, 2], [7, 5, 5], [7, 5, 6], [7, 4, 5]])
    fit = jaxem.kmedoids(x, x[[1, 4]], mismatches)
    assert fit.medoids.tolist() == [[0, 1, 2], [7, 5, 5]]
    assert fit.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert jnp.issubdtype(fit.medoids.dtype, jnp.integer)


def test_starts_off_the_data_ties_and_empty_clusters():
    x = cast([[0.0], [2.0], [4.0], [6.0]])
    fit = jaxem.kmedoids(x, cast([[3.0], [100.0]]), absolute)  # cluster 1 is empty and keeps its point
    assert fit.medoids.tolist() == [[2.0], [100.0]]  # 2 and 4 tie: the lower row
    assert fit.indices.tolist() == [1, -1]
    assert fit.labels.tolist() == [0, 0, 0, 0]
    assert int(fit.status) == Status.CONVERGED
    assigned = jaxem.kmedoids(x, cast([[1.0], [5.0]]), absolute, max_steps=0)
    assert assigned.medoids.tolist() == [[1.0], [5.0]]
    assert assigned.labels.tolist() == [0, 0, 1, 1]
    assert int(assigned.status) == Status.MAX_STEPS


def test_a_nan_dissimilarity_is_nonfinite():
    x = cast([[1.0], [2.0], [-3.0]])
    fit = jaxem.kmedoids(x, x[:1], lambda x, y: jnp.sum(jnp.log(x) * y))
    assert int(fit.status) == Status.NONFINITE


def test_bad_input_is_named():
    x = cast(np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"medoids: must be \(K, D\) with K ≥ 1 and D = 2 as in x, got shape \(2, 3\)"):
        jaxem.kmedoids(x, jnp.ones((2, 3), FLOAT), absolute)
    with pytest.raises(ValueError, match="dissimilarity: must return a scalar"):
        jaxem.kmedoids(x, x[:2], lambda x, y: x - y)
    with pytest.raises(ValueError, match="max_steps"):
        jaxem.kmedoids(x, x[:2], absolute, max_steps=-1)
    with pytest.raises(ValueError, match=r"x: has NaN or infinity in 1 row\(s\): 2"):
        jaxem.kmedoids(x.at[2, 0].set(jnp.nan), x[:2], absolute)


def test_float32_and_float64_agree():
    x = whole_numbers(11).astype(float)
    single = jaxem.kmedoids(jnp.asarray(x, jnp.float32), jnp.asarray(x[:3], jnp.float32), absolute)
    assert single.distortion.dtype == jnp.float32
    _, _, path = numpy_kmedoids(np.abs(x[:, None] - x[None]).sum(-1), [0, 1, 2])
    assert float(single.distortion) == pytest.approx(path[-1], rel=tolerance(1e-6, 1e-6))
