"""A status tells the truth: what is a fall, what is a collapse, which lane is best, and what rounding leaves open."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem import Status
from jaxem._rows import chunks as _reduce
from jaxem.families import bernoulli, categorical, gaussian, poisson

FLOAT = jnp.zeros(()).dtype
EPS = float(jnp.finfo(FLOAT).eps)


def stacked(make, lanes):
    """θ of many lanes, each from its own generator."""
    every = [make(np.random.default_rng(seed)) for seed in range(lanes)]
    return {name: jnp.stack([jnp.asarray(theta[name], FLOAT) for theta in every]) for name in every[0]}


def weights_of(rng, K=2):
    p = rng.dirichlet(np.full(K, 3.0)).astype(FLOAT)
    return p / p.sum()


# ---- a fall within rounding is none


def counts(rng, size):
    return rng.poisson(1000 * rng.choice([1, 1.1], size=(size, 1)) * np.ones((size, 3))).astype(FLOAT)


CANCELLING = {  # the terms of ℓ are large, or ℓ near 0, so that |F_n| knows nothing of the rounding
    "counts near 1,000": (
        poisson.mixture,
        counts(np.random.default_rng(9), 40),
        lambda r: {"pi": weights_of(r), "rate": 1000 * r.uniform(0.9, 1.2, (2, 3))},
    ),
    "a column of zeros": (
        poisson.mixture,
        counts(np.random.default_rng(9), 40) * np.array([1, 1, 0], FLOAT),
        lambda r: {"pi": weights_of(r), "rate": 1000 * r.uniform(0.9, 1.2, (2, 3))},
    ),
    "certain coins": (
        bernoulli.mixture,
        np.ones((5, 4), FLOAT),
        lambda r: {"pi": weights_of(r), "probs": r.uniform(0.05, 0.95, (2, 4))},
    ),
    "certain categories": (
        categorical.mixture,
        np.ones((5, 4), FLOAT),
        lambda r: {"pi": weights_of(r), "probs": r.dirichlet(np.ones(3), size=(2, 4))},
    ),
    "far from the origin": (
        gaussian.spherical,
        (np.random.default_rng(3).normal(size=(40, 3)) + 1e3 / EPS**0.25).astype(FLOAT),
        lambda r: {"pi": weights_of(r), "mu": r.normal(size=(2, 3)) + 1e3 / EPS**0.25, "sigma": np.ones(2)},
    ),
}


@pytest.mark.parametrize("extreme", [False, True], ids=["plain", "extreme weights"])
@pytest.mark.parametrize("kind", CANCELLING)
def test_no_closed_form_decreases(kind, extreme):
    m, x, make = CANCELLING[kind]
    weights = (10 ** np.random.default_rng(0).uniform(-9, 9, len(x))).astype(FLOAT) if extreme else None
    fits = jaxem.em_batch(m, stacked(make, 30), x, weights=weights)
    allowed = {"CONVERGED", "MAX_STEPS"} | ({"NONFINITE"} if m is gaussian.spherical else set())  # onto a single row
    assert set(Status.counts(fits)) <= allowed


def test_the_noise_of_f_is_the_same_for_chunks_and_a_whole(monkeypatch):
    m, x, make = CANCELLING["counts near 1,000"]
    theta = jax.tree.map(lambda leaf: leaf[0], stacked(make, 1))
    whole = jaxem.em(m, theta, x)
    vmapped = jax.vmap(lambda theta: jaxem.em(m, theta, x))(stacked(make, 2))
    with monkeypatch.context() as patch:
        patch.setattr(_reduce, "TABLE_ENTRIES", 16)
        patch.setattr(_reduce, "FEWEST", 8)
        chunks = jax.jit(lambda theta: jaxem.em(m, theta, x))(theta)
    for fit in (chunks, jax.tree.map(lambda leaf: leaf[0], vmapped)):
        assert fit.status == whole.status == Status.CONVERGED
        assert float(fit.rounding) == pytest.approx(float(whole.rounding), rel=1e-2)
        assert abs(float(fit.free_energy - whole.free_energy)) <= float(fit.rounding) + 1e-9 * len(x)


def test_rounding_says_whether_it_or_tol_ended_the_fit():
    x = np.random.default_rng(0).normal(size=(60, 2)).astype(FLOAT)
    theta = jaxem.inits.random_points(gaussian.full, jax.random.key(0), x, 2)
    fit = jaxem.check(jaxem.em(gaussian.full, theta, x, max_steps=10_000))
    assert (fit.rounding > 1e-10 * len(x)) == (jnp.float32 == FLOAT)
    with_x_shuffled = jaxem.em(gaussian.full, fit.theta, x[::-1], max_steps=0)
    assert abs(float(with_x_shuffled.free_energy - fit.free_energy)) <= float(fit.rounding)


# ---- a plane is a collapse


def sum_column(rng):
    y = rng.normal(size=(60, 2)) + np.repeat([[0.0, 0.0], [3.0, 4.0]], 30, 0)
    return np.c_[y, y.sum(1)]


FLAT = {
    "a sum column": sum_column,
    "a column twice": lambda rng: sum_column(rng)[:, [0, 1, 1]],
    "columns in other units": lambda rng: sum_column(rng) * [1e-3, 1.0, 1e4],
    "fewer rows than columns": lambda rng: np.repeat(300 + 80 * rng.normal(size=(3, 3)), 20, 0),
}


@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e5])
@pytest.mark.parametrize("weight", [None, 1 / 60, 1e6])
@pytest.mark.parametrize("name", ["tied", "full"])
def test_every_start_on_a_plane_ends_in_nonfinite(name, weight, unit):
    m = getattr(gaussian, name)
    for make in FLAT.values():
        x = jnp.asarray(make(np.random.default_rng(0)) * unit, FLOAT)
        starts = jax.vmap(lambda key, x=x: jaxem.inits.random_points(m, key, x, 2))(
            jax.random.split(jax.random.key(0), 6)
        )
        weights = None if weight is None else jnp.full(len(x), weight, FLOAT)
        fits = jaxem.em_batch(m, starts, x, weights=weights)
        assert Status.counts(fits) == {"NONFINITE": 6}
        again = jaxem.em_batch(m, fits.theta, x, weights=weights, max_steps=0)  # θ is accepted, F is its own
        np.testing.assert_allclose(again.free_energy, fits.free_energy, rtol=1e-3)
        with pytest.raises(jaxem.EMError, match="with_floor"):
            jaxem.check(fits)


@pytest.mark.parametrize("name", ["isotropic", "spherical", "diagonal", "full"])
def test_rows_at_one_point_are_a_collapse_wherever_it_lies(name):
    """Also where the mean of equal numbers is off by its last digit, so that no variance is ever exactly 0."""
    m = getattr(gaussian, name)
    for at in (0.0, 0.1, 1234.5):
        x = jnp.full((7, 2), at, FLOAT)
        spread = jnp.asarray([[-1.0, 0.5], [1.0, -0.5], [0.3, 1.0], [0.0, 0.2]], FLOAT)
        theta = m.guess(x[:1] + spread[:1], x + jnp.resize(spread, x.shape))
        assert jaxem.em(m, theta, x).status == Status.NONFINITE


@pytest.mark.parametrize("dependence", [1e-2, 5e-5, 5e-6])
def test_columns_that_are_all_but_collinear_keep_their_nats(dependence):
    """One component, so the maximum is known: N log det of the sample covariance, by differences of the columns."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(500, 1))
        x = np.c_[z, z + np.sqrt(2 * dependence) * rng.normal(size=(500, 1))].astype(FLOAT)
        c = x.astype(float) - x.astype(float).mean(0)
        d = np.c_[c[:, 0], c[:, 1] - c[:, 0]]
        best = -250 * (2 * np.log(2 * np.pi) + np.linalg.slogdet(d.T @ d / 500)[1] + 2)
        fit = jaxem.em(gaussian.full, jaxem.inits.random_points(gaussian.full, jax.random.key(seed), x, 1), x)
        assert fit.status == Status.CONVERGED
        assert abs(float(fit.free_energy) - best) < max(500 * (EPS / dependence) ** 2 * 2, 1e4 * EPS * 500)


def test_a_floor_is_reached_where_this_precision_can_hold_it_and_refused_where_not():
    x = sum_column(np.random.default_rng(0)).astype(FLOAT)
    c = x.astype(float) - x.astype(float).mean(0)
    s = np.linalg.svd(c, compute_uv=False) ** 2 / 60
    for floor, status in ((1e-3 if EPS > 1e-10 else 1e-6, Status.CONVERGED), (EPS / 100, Status.NONFINITE)):
        m = gaussian.with_floor(gaussian.full, floor)
        fit = jaxem.em(m, jaxem.inits.random_points(m, jax.random.key(0), x, 1), x)
        assert fit.status == status
        if status == Status.CONVERGED:
            values = np.maximum(s, floor)
            best = -30 * (3 * np.log(2 * np.pi) + np.log(values).sum() + (s / values).sum())
            assert abs(float(fit.free_energy) - best) < 60 * 100 * EPS * s.max() / floor


# ---- what cannot be looked at


@pytest.mark.parametrize("temperature", [np.nan, -1.0, np.inf])
def test_a_traced_temperature_that_is_none_is_nonfinite(temperature):
    m, x = gaussian.isotropic, np.random.default_rng(0).normal(size=(20, 2)).astype(FLOAT)
    theta = {"pi": jnp.full(2, 0.5), "mu": jnp.asarray(x[:2]), "sigma": jnp.ones(())}
    lanes = jnp.asarray([1.0, temperature, 0.0], FLOAT)
    thetas = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), theta)
    by_vmap = jax.vmap(lambda T: jaxem.em(m, theta, x, temperature=T))(lanes)
    by_lanes = jax.jit(lambda T: jaxem.em_batch(m, thetas, x, temperature=T))(lanes)
    for fits in (by_vmap, by_lanes):
        assert [int(status) for status in fits.status] == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    path = jax.jit(lambda T: jaxem.em_path(m, theta, x, num_steps=2, temperature=T))(lanes[1])
    assert not np.isfinite(path.after_e).any()
    with pytest.raises(jaxem.EMError, match="temperature"):
        jaxem.check(by_vmap)


@pytest.mark.parametrize("kind", ["all negative", "one negative", "all zero", "a NaN"])
def test_traced_weights_that_are_none_are_nonfinite(kind):
    weights = np.ones(20, FLOAT)
    weights[slice(None) if kind.startswith("all") else 3] = {"all zero": 0.0, "a NaN": np.nan}.get(kind, -1.0)
    m, x = gaussian.isotropic, np.random.default_rng(0).normal(size=(20, 2)).astype(FLOAT)
    theta = {"pi": jnp.full(2, 0.5), "mu": jnp.asarray(x[:2]), "sigma": jnp.ones(())}
    assert jax.jit(lambda w: jaxem.em(m, theta, x, weights=w).status)(weights) == Status.NONFINITE


# ---- the best


def test_the_best_has_converged_where_any_has():
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(FLOAT)
    keys = jax.random.split(jax.random.key(0), 12)
    starts = jax.vmap(lambda key: jaxem.inits.random_points(gaussian.full, key, x, 5))(keys)
    fits = jaxem.em_batch(gaussian.full, starts, x)
    counts = Status.counts(fits)
    assert {"CONVERGED", "NONFINITE"} <= set(counts)
    assert sum(counts.values()) == 12
    best = jaxem.best(fits)
    converged = np.asarray(fits.status) == Status.CONVERGED
    assert float(best.free_energy) == np.asarray(fits.free_energy)[converged].max()
    lanes = [jax.tree.map(lambda leaf, i=i: leaf[i], fits) for i in range(12)]
    assert float(jaxem.best(lanes).free_energy) == float(best.free_energy)
    assert float(jaxem.best(best).free_energy) == float(best.free_energy)
    others = fits._replace(status=jnp.where(converged, Status.MAX_STEPS, fits.status))
    assert float(jaxem.best(others).free_energy) == float(best.free_energy)
    with pytest.raises(ValueError, match="fits: must be"):
        jaxem.best("fits")
    with pytest.raises(ValueError, match="fits: must be"):
        jaxem.best([])


def test_a_path_that_no_memory_holds_is_refused():
    x = np.zeros((3, 1), FLOAT)
    theta = {"pi": [1.0], "mu": [[0.0]], "sigma": 1.0}
    with pytest.raises(ValueError, match="num_steps: must be at most"):
        jaxem.em_path(gaussian.isotropic, theta, x, num_steps=2_000_000_000)


# ---- CONVERGED is a rest, and a collapse is one of rows


@pytest.mark.skipif(EPS > 1e-10, reason="in single precision gains below tol are noise")
def test_a_fit_on_its_way_out_of_a_saddle_has_not_converged():
    """σ is right after one step, the means still together: the next gain is below tol, but those after it are not."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(60, 2)) + np.repeat([[-4.0, 0.0], [4.0, 0.0]], 30, axis=0)
    mu = x.mean(0) + 1e-5 * np.array([[-1, 0], [1, 0]])
    fit = jaxem.em(gaussian.isotropic, {"pi": np.full(2, 0.5), "mu": mu, "sigma": np.asarray(9.0)}, x)
    good = jaxem.em(gaussian.isotropic, {"pi": np.full(2, 0.5), "mu": x[[0, -1]], "sigma": np.asarray(1.0)}, x)
    assert int(fit.status) == Status.CONVERGED
    np.testing.assert_allclose(fit.free_energy, good.free_energy, rtol=1e-10)


@pytest.mark.parametrize("name", ["spherical", "diagonal", "full"])
def test_squares_of_next_to_no_rows_that_underflow_are_no_collapse(name):
    """N_k σ² has no digits in this precision: the component keeps its scale, and the fit goes on."""
    tiny = float(jnp.finfo(FLOAT).tiny)
    x = (np.random.default_rng(0).normal(size=(30, 2)) * tiny**0.25).astype(FLOAT)
    own = np.eye(2) if name == "full" else np.ones(2 if name == "diagonal" else ())
    scale, start = ("Sigma" if name == "full" else "sigma"), np.stack([own, own]).astype(FLOAT)
    theta = {"pi": np.array([1, tiny**0.7], FLOAT), "mu": np.zeros((2, 2), FLOAT), scale: start}
    fit = jaxem.em(getattr(gaussian, name), theta, x)
    assert int(fit.status) == Status.CONVERGED
    np.testing.assert_array_equal(fit.theta[scale][1], own)
    assert bool(jnp.all(fit.theta[scale][0] < 1))


# ---- a share too small for this arithmetic, which computes with 0 for it, is no 0


def test_a_subnormal_share_is_the_least_that_there_is():
    x, tiny = np.array([[0], [0], [1]], FLOAT), float(jnp.finfo(FLOAT).tiny)
    theta = {"pi": np.array([1, tiny / 4], FLOAT), "probs": np.array([[0], [1]], FLOAT)}
    start = jaxem.em(bernoulli.mixture, theta, x, max_steps=0)
    np.testing.assert_allclose(start.free_energy, np.log(tiny), rtol=1e-5)  # what row 2 alone costs
    # the M-step makes such a share itself, of a row that weighs next to nothing and that no other component explains
    w = np.array([1, 1, tiny], FLOAT) * FLOAT.type(tiny**-0.25)
    fit = jaxem.em(bernoulli.mixture, theta | {"pi": np.array([0.5, 0.5], FLOAT)}, x, weights=w)
    assert int(fit.status) == Status.CONVERGED
    assert float(fit.theta["pi"][1]) >= tiny
