"""The Gaussian families: exact against mclust and scikit-learn, maximal in Q, floored on request, never silent."""

import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

import jaxem
from jaxem import Status
from jaxem.families import gaussian

from cases import CASES, EPS, FLOAT, cast, tolerance
from conftest import PRECISION

GAUSSIAN = [case for case in CASES if hasattr(gaussian, case.name)]
each_family = pytest.mark.parametrize("case", GAUSSIAN, ids=lambda c: c.name)
float64_only = pytest.mark.skipif(PRECISION == 32, reason="a statement to more digits than float32 has")


def old_faithful():
    path = Path(__file__).parents[1] / "experiments" / "data" / "old_faithful.csv"
    return np.loadtxt(path, delimiter=",", skiprows=1)


def scale_of(m):
    return m.parameters[2]


# ---- the density and the maximum of Q


@each_family
def test_the_kernel_is_the_programs_table_and_scipys_density_in_the_far_tails(case):
    """100 standard deviations out, ℓ ≈ −5000 per feature: relative agreement, and no overflow."""
    theta = case.theta()
    x = jnp.concatenate([case.x(N=5), 100 * case.x(N=5, seed=1), -1000 * case.x(N=2, seed=2)])
    kernel, program = case.m.table(theta, x).T, case.m.traced_table(theta, x).T
    expected = case.log_joint(theta, x)
    assert np.allclose(kernel, expected, rtol=tolerance(1e-12, 2e-5))  # eps times Σ's condition number, about 30
    assert np.allclose(program, expected, rtol=tolerance(1e-12, 2e-5))


@each_family
def test_a_component_of_weight_zero_is_impossible(case):
    theta = case.theta() | {"pi": cast(np.array([0.0, 0.4, 0.6]))}
    table = jaxem.log_joint(case.m, theta, case.x())
    assert np.isneginf(table[:, 0]).all()
    assert np.isfinite(table[:, 1:]).all()
    fit = jaxem.em(case.m, theta, case.x(), max_steps=3)
    assert np.isfinite(fit.free_energy)
    assert (fit.theta["mu"][0] == theta["mu"][0]).all()  # empty: F is flat there
    if np.ndim(fit.theta[scale_of(case.m)]) == len(dict(case.m.shapes)[scale_of(case.m)].split()) > 0:
        kept = fit.theta[scale_of(case.m)] == theta[scale_of(case.m)]
        assert kept[0].all() == (dict(case.m.shapes)[scale_of(case.m)][0] == "K")


@each_family
def test_held_means_are_certified_at_a_random_theta(case):
    """C1–C6 by `jax.grad`, away from any fixed point, with μ held, weights and T ≠ 1 (test_certificates: all free)."""
    weights = cast(np.random.default_rng(0).uniform(0, 2, 60))
    certificate = jaxem.certify(case.m.hold("mu"), case.theta(), case.x(), 0.8, weights=weights)
    assert certificate.holds(64 * EPS), certificate
    assert np.isfinite(certificate.C6)


@each_family
def test_the_m_step_is_the_maximum_of_q_by_brute_force(case):
    """SciPy's quasi-Newton climbs Q in unconstrained coordinates and ends where the closed form is, held or not."""
    if PRECISION == 32:
        pytest.skip("the search itself needs float64")
    x, old = case.x(), case.theta()
    gamma = jaxem.responsibilities(case.m, old, x)
    for held in [(), ("mu",)]:
        m = case.m.hold(*held)
        closed = m.update(m.statistics(old, x, gamma.T), old, m.held)
        free, unravel = jax.flatten_util.ravel_pytree(m.coordinates(old).unconstrain(old))

        @jax.jit
        @jax.value_and_grad
        def loss(u, m=m, unravel=unravel):
            return -jnp.sum(gamma.T * m.table(m.coordinates(old).constrain(unravel(u)), x)) / len(x)

        found = minimize(loss, np.asarray(free), jac=True, method="BFGS", options={"gtol": 1e-9})
        climbed = m.coordinates(old).constrain(unravel(jnp.asarray(found.x)))
        for name in m.parameters:
            assert np.allclose(closed[name], climbed[name], atol=1e-6), (held, name)


@each_family
def test_no_random_direction_improves_q(case):
    x, old = case.x(), case.theta()
    gamma = jaxem.responsibilities(case.m, old, x)
    new = case.m.update(case.m.statistics(old, x, gamma.T), old, case.m.held)
    best = jaxem.expected_log_joint(case.m, new, gamma, x)
    top = case.m.coordinates(new).unconstrain(new)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        moved = {name: u + cast(0.1 * rng.normal(size=u.shape)) for name, u in top.items()}
        value = jaxem.expected_log_joint(case.m, case.m.coordinates(new).constrain(moved), gamma, x)
        assert float(value) < float(best) - tolerance(1e-9, 1e-4) * abs(float(best))


@each_family
def test_integer_weights_are_repeated_rows(case):
    x, theta = case.x(), case.theta()
    counts = np.random.default_rng(0).integers(0, 4, len(x))
    weighted = jaxem.em(case.m, theta, x, weights=cast(counts.astype(float)), max_steps=5, tol=0)
    repeated = jaxem.em(case.m, theta, jnp.repeat(x, counts, axis=0), max_steps=5, tol=0)
    assert float(weighted.free_energy) == pytest.approx(float(repeated.free_energy), rel=tolerance(1e-12, 1e-5))
    for name in theta:
        assert np.allclose(weighted.theta[name], repeated.theta[name], atol=tolerance(1e-11, 1e-4))


@each_family
def test_covariances_with_mu_held_are_about_the_held_mu(case):
    """Σγ(x − μ)(x − μ)ᵀ / Σγ, by NumPy; its diagonal for σ."""
    x, theta = np.asarray(case.x(), float), case.theta()
    m = case.m.hold("mu")
    gamma = np.asarray(jaxem.responsibilities(m, theta, case.x()), float)
    fit = jaxem.em(m, theta, case.x(), max_steps=1)
    difference = x[:, None] - np.asarray(theta["mu"], float)[None]
    N_k = gamma.sum(0)
    S = np.einsum("nk,nkd,nke->kde", gamma, difference, difference)
    diagonal = np.einsum("kdd->kd", S)
    expected = {
        "isotropic": np.sqrt(diagonal.sum() / x.size),
        "spherical": np.sqrt(diagonal.mean(1) / N_k),
        "diagonal": np.sqrt(diagonal / N_k[:, None]),
        "tied": S.sum(0) / len(x),
        "full": S / N_k[:, None, None],
    }[case.name]
    assert np.allclose(fit.theta[scale_of(m)], expected, rtol=tolerance(1e-12, 1e-5))


@each_family
def test_a_guess_has_equal_weights_and_the_pooled_scale(case):
    x = np.asarray(case.x(), float)
    theta = jaxem.inits.random_points(case.m, jax.random.key(0), case.x(), 3)
    covariance = np.cov(x.T, bias=True)
    expected = {
        "isotropic": np.sqrt(np.diag(covariance).mean()),
        "spherical": np.full(3, np.sqrt(np.diag(covariance).mean())),
        "diagonal": np.tile(x.std(0), (3, 1)),
        "tied": covariance,
        "full": np.tile(covariance, (3, 1, 1)),
    }[case.name]
    assert np.allclose(theta["pi"], 1 / 3)
    assert np.allclose(theta[scale_of(case.m)], expected, rtol=tolerance(1e-12, 1e-4))


# ---- programs that nobody here wrote

MCLUST = {  # R's mclust 6, me(), Old Faithful in raw minutes, from k-means labels
    2: {
        "isotropic": -1709.68137294973,  # EII
        "spherical": -1709.52928217743,  # VII
        "diagonal": -1147.80635253781,  # VVI
        "tied": -1140.18675943708,  # EEE
        "full": -1130.26396018475,  # VVV
    },
    3: {
        "isotropic": -1663.53959975456,
        "spherical": -1637.43441799889,
        "diagonal": -1131.81853484012,
        "tied": -1126.31592782379,
        "full": -1119.21397059454,
    },
}


@each_family
@pytest.mark.parametrize("K", [2, 3])
def test_mclusts_log_likelihoods(case, K):
    """From the k-means labels on to 1e-8 (the float32 leg: to its stopping floor, 8 eps of Σ|F_n| a step)."""
    x = cast(old_faithful())
    labels = KMeans(K, n_init=10, random_state=0).fit_predict(old_faithful())
    start = jaxem.inits.from_labels(case.m, x, jnp.asarray(labels))
    fit = jaxem.check(jaxem.em(case.m, start, x, tol=0.0, max_steps=10_000))
    assert float(fit.free_energy) == pytest.approx(MCLUST[K][case.name], rel=tolerance(1e-8, 1e-3))


@float64_only
@pytest.mark.parametrize(
    ("name", "theirs"), [("spherical", "spherical"), ("diagonal", "diag"), ("tied", "tied"), ("full", "full")]
)
def test_scikit_learns_parameters(name, theirs):
    """The same start, no ridge, run to the end: the same optimum and the same parameters to 1e-5."""
    m, x, K = getattr(gaussian, name), old_faithful(), 3
    start = jaxem.inits.from_labels(m, x, jnp.asarray(KMeans(K, n_init=10, random_state=0).fit_predict(x)))
    fit = jaxem.check(jaxem.em(m, start, x, tol=0.0, max_steps=10_000))
    scale = np.asarray(start[scale_of(m)])
    precision = np.linalg.inv(scale) if scale_of(m) == "Sigma" else scale**-2.0
    other = GaussianMixture(
        K,
        covariance_type=theirs,
        reg_covar=0,
        tol=0,
        max_iter=500,
        weights_init=np.asarray(start["pi"]),
        means_init=np.asarray(start["mu"]),
        precisions_init=precision,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tol=0: it never calls itself converged
        other.fit(x)
    assert float(fit.free_energy) == pytest.approx(other.score(x) * len(x), rel=1e-10)
    assert np.allclose(fit.theta["pi"], other.weights_, rtol=1e-5)
    assert np.allclose(fit.theta["mu"], other.means_, rtol=1e-5)
    variance = fit.theta[scale_of(m)] if scale_of(m) == "Sigma" else fit.theta["sigma"] ** 2
    assert np.allclose(variance, other.covariances_, rtol=1e-5)


def test_the_families_are_nested():
    """EII ⊂ VII ⊂ VVI ⊂ VVV and EII ⊂ EEE ⊂ VVV: from one θ they agree, and a wider family's M-step is no worse."""
    case = GAUSSIAN[0]
    theta, x = case.theta(), case.x()
    variance, eye = theta["sigma"] ** 2, jnp.eye(2, dtype=FLOAT)
    scales = {
        "isotropic": {"sigma": theta["sigma"]},
        "spherical": {"sigma": jnp.full(3, theta["sigma"])},
        "diagonal": {"sigma": jnp.full((3, 2), theta["sigma"])},
        "tied": {"Sigma": variance * eye},
        "full": {"Sigma": jnp.tile(variance * eye, (3, 1, 1))},
    }
    common = {"pi": theta["pi"], "mu": theta["mu"]}
    F, Q = {}, {}
    for name, scale in scales.items():
        m = getattr(gaussian, name)
        path = jaxem.em_path(m, common | scale, x, num_steps=1)
        F[name], Q[name] = float(path.after_e[0]), float(path.after_m[0])
    assert np.ptp(list(F.values())) < 1e3 * EPS * abs(F["full"])
    assert Q["isotropic"] <= Q["spherical"] <= Q["diagonal"] <= Q["full"]
    assert Q["isotropic"] <= Q["tied"] <= Q["full"]


# ---- collapse, floor, bad starts


def one_point_apart():
    """A lone far point: a component of its own collapses onto it."""
    return cast(np.concatenate([np.random.default_rng(0).normal(size=(20, 2)), [[50.0, 50.0]]]))


@pytest.mark.parametrize("name", ["spherical", "diagonal", "full"])
def test_a_collapse_ends_in_nonfinite_and_a_floor_prevents_it(name):
    m, x = getattr(gaussian, name), one_point_apart()
    start = m.guess(x[jnp.array([0, 20])], x)
    fit = jaxem.em(m, start, x)
    assert fit.status == Status.NONFINITE
    assert all(np.isfinite(value).all() for value in fit.theta.values())  # the last finite θ
    assert np.isfinite(fit.free_energy)
    with pytest.raises(jaxem.EMError, match="collapsed"):
        jaxem.check(fit)
    floored = jaxem.check(jaxem.em(gaussian.with_floor(m, 0.25), start, x))
    lone = floored.theta[scale_of(m)][1]
    expected = 0.25 * np.eye(2) if name == "full" else 0.5
    assert np.allclose(lone, expected, atol=tolerance(1e-12, 1e-5))


@each_family
def test_the_floored_m_step_maximises_q_under_the_floor(case):
    """Against random covariances that obey the floor; where it does not bind nothing changes."""
    x, old = case.x(), case.theta()
    scale = scale_of(case.m)
    gamma = jaxem.responsibilities(case.m, old, x)
    free = case.m.update(case.m.statistics(old, x, gamma.T), old, frozenset())
    values = free[scale] ** 2 if scale == "sigma" else np.linalg.eigvalsh(np.asarray(free[scale], float))
    floor = float(np.mean(values))  # binds in some directions
    m = gaussian.with_floor(case.m, floor)
    new = m.update(m.statistics(old, x, gamma.T), old, frozenset())
    best = float(jaxem.expected_log_joint(m, new, gamma, x))
    slack = tolerance(1e-12, 1e-5) * abs(best)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        if scale == "sigma":
            rival = np.maximum(np.asarray(new["sigma"]) * np.exp(0.2 * rng.normal(size=new["sigma"].shape)), floor**0.5)
        else:
            tilt = np.eye(2) + 0.2 * rng.normal(size=new["Sigma"].shape)
            moved = tilt @ np.asarray(new["Sigma"], float) @ np.swapaxes(tilt, -1, -2)
            values, vectors = np.linalg.eigh(moved)
            rival = np.einsum("...de,...e,...fe->...df", vectors, np.maximum(values, floor), vectors)
        assert float(jaxem.expected_log_joint(m, new | {scale: cast(rival)}, gamma, x)) <= best + slack
    low = gaussian.with_floor(case.m, 1e-6)
    same = low.update(low.statistics(old, x, gamma.T), old, frozenset())
    assert all((same[name] == free[name]).all() for name in free)
    kept = gaussian.with_floor(case.m.hold(scale), 100.0)
    assert (jaxem.em(kept, old, x, max_steps=2).theta[scale] == old[scale]).all()


def test_bad_floors_and_singular_starts_are_errors():
    with pytest.raises(ValueError, match="variance: must be a finite number > 0"):
        gaussian.with_floor(gaussian.full, 0.0)
    with pytest.raises(ValueError, match="no sigma or Sigma"):
        gaussian.with_floor(jaxem.families.bernoulli.mixture, 0.1)
    for case in GAUSSIAN:
        theta, scale = case.theta(), scale_of(case.m)
        singular = theta | {scale: theta[scale] * 0}
        with pytest.raises(ValueError, match=scale):
            jaxem.em(case.m, singular, case.x())
    rank_one = np.ones((2, 2))
    with pytest.raises(ValueError, match="Sigma"):
        jaxem.em(gaussian.tied, GAUSSIAN[3].theta() | {"Sigma": cast(rank_one)}, GAUSSIAN[3].x())


# ---- inside JAX


@each_family
def test_vmap_and_em_batch_are_the_loop(case):
    x = case.x()
    starts = [case.theta(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    loop = [float(jaxem.em(case.m, theta, x, max_steps=4).free_energy) for theta in starts]
    batch = jaxem.em_batch(case.m, stacked, x, max_steps=4).free_energy
    mapped = jax.vmap(lambda theta: jaxem.em(case.m, theta, x, max_steps=4))(stacked).free_energy
    assert np.allclose(batch, loop, rtol=tolerance(1e-12, 1e-5))
    assert np.allclose(mapped, loop, rtol=tolerance(1e-12, 1e-5))


@each_family
def test_samples_have_the_models_moments(case):
    theta = case.theta()
    x, z = jaxem.sample(case.m, theta, jax.random.key(0), 20_000)
    for k in range(3):
        rows = np.asarray(x[z == k], float)
        scale = np.asarray(theta[scale_of(case.m)], float)
        scale = scale[k] if dict(case.m.shapes)[scale_of(case.m)].startswith("K") else scale
        covariance = scale if scale.ndim == 2 else np.diag(np.broadcast_to(scale**2, 2))
        error = 5 * np.sqrt(np.max(covariance) / len(rows))  # five standard errors
        assert np.allclose(rows.mean(0), theta["mu"][k], atol=error)
        assert np.allclose(np.cov(rows.T), covariance, atol=2 * error * np.sqrt(np.max(covariance)))


@pytest.mark.parametrize("num_features", [1, 3, 11])
@pytest.mark.parametrize("name", ["isotropic", "spherical", "diagonal"])
def test_large_tables_by_differences_are_the_programs(name, num_features):
    """Of more entries than are spelled out feature by feature."""
    rng = np.random.default_rng(0)
    num_rows, num_components = 700, 30
    m = getattr(gaussian, name)
    theta = {"pi": rng.dirichlet(np.ones(num_components)), "mu": rng.normal(size=(num_components, num_features))}
    sizes = {"isotropic": (), "spherical": num_components, "diagonal": (num_components, num_features)}
    theta = jax.tree.map(jnp.asarray, theta | {"sigma": rng.uniform(0.5, 2, size=sizes[name])})
    x = jnp.asarray(rng.normal(size=(num_rows, num_features)))
    np.testing.assert_allclose(m.table(theta, x), m.traced_table(theta, x), rtol=1e-12)
