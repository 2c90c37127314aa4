"""The algorithm: monotone, the same however it is transformed, and honest about how it ended."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans

import jaxem
from jaxem import Status
from jaxem.families import gaussian

from cases import CASES, EPS, FLOAT, KINDS, afresh, cast, tolerance

CASE = CASES[0]
M = CASE.m
each_kind = pytest.mark.parametrize("case", KINDS, ids=lambda c: c.name)
loose = tolerance(1e-9, 1e-3)  # EM contracts rounding, so a few hundred eps are left after tens of steps


def same(a, b, tol=loose):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tol, atol=tol), a, b)


@each_kind
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_every_half_step_raises_the_free_energy(case, temperature):
    """C2, along a path, at any temperature."""
    # enough rows that no component collapses onto a few of them, even as T falls
    path = jaxem.em_path(case.m, case.theta(), case.x(N=300), num_steps=15, temperature=temperature)
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    assert (np.diff(trace) >= -64 * EPS * np.abs(trace).max()).all()
    assert trace[-1] > trace[0]


@each_kind
def test_the_path_is_em_step_by_step(case):
    theta, x = case.theta(), case.x()
    path = jaxem.em_path(case.m, theta, x, num_steps=3)
    for t in range(3):
        fit = jaxem.em(case.m, theta, x, max_steps=t, tol=0)
        assert float(path.after_e[t]) == pytest.approx(float(fit.free_energy), rel=64 * EPS)
        step = jaxem.em(case.m, theta, x, max_steps=t + 1, tol=0)
        same(jax.tree.map(lambda leaf, t=t: leaf[t], path.theta), step.theta)
        gamma = jaxem.responsibilities(case.m, fit.theta, x)
        between = jaxem.free_energy(jaxem.log_joint(case.m, step.theta, x), gamma)
        assert float(path.after_m[t]) == pytest.approx(float(between), rel=tolerance(1e-11, 1e-4))


@each_kind
def test_every_field_of_a_fit_describes_its_theta(case):
    """F is the F of the θ that is returned, not of the one before it."""
    x = case.x()
    for max_steps in (0, 1, 7):
        fit = jaxem.em(case.m, case.theta(), x, max_steps=max_steps)
        assert int(fit.num_steps) == max_steps or int(fit.status) == Status.CONVERGED
        assert float(fit.free_energy) == pytest.approx(float(jaxem.log_likelihood(case.m, fit.theta, x)), rel=64 * EPS)
    before = jaxem.em(case.m, case.theta(), x, max_steps=6, tol=0)
    assert float(fit.gain) == pytest.approx(
        float(fit.free_energy - before.free_energy), abs=64 * EPS * abs(float(fit.free_energy))
    )
    assert np.isinf(jaxem.em(case.m, case.theta(), x, max_steps=0).gain)


def test_the_fit_agrees_with_scikit_learns():
    """σ² free and shared, π free: no scikit-learn twin; its `spherical` with K = 1 component is one."""
    from sklearn.mixture import GaussianMixture

    x = np.asarray(CASE.x(N=200), float)
    theta = {"pi": [1.0], "mu": x[:1], "sigma": 1.0}
    fit = jaxem.em(M, theta, cast(x), max_steps=3)
    peer = GaussianMixture(1, covariance_type="spherical", reg_covar=0).fit(x)
    assert float(fit.theta["sigma"]) ** 2 == pytest.approx(peer.covariances_[0], rel=tolerance(1e-10, 1e-4))
    assert float(fit.free_energy) / 200 == pytest.approx(peer.score(x), rel=tolerance(1e-10, 1e-4))


# ---- transformations


def thetas(count):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(CASE.theta(seed) for seed in range(count)))


def test_vmap_is_the_loop_is_em_batch():
    x, many = CASE.x(), thetas(4)
    loop = [jaxem.em(M, jax.tree.map(lambda leaf, i=i: leaf[i], many), x) for i in range(4)]
    loop = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
    for fits in (
        jax.vmap(jaxem.em, in_axes=(None, 0, None))(M, many, x),
        jax.vmap(lambda theta: jaxem.em(M, theta, x))(many),
        jax.jit(jaxem.em_batch)(M, many, x),
        jaxem.em_batch(M, many, x),
    ):
        same(fits.theta, loop.theta)
        same(fits.free_energy, loop.free_energy)
        if np.float64 == FLOAT:
            assert fits.num_steps.tolist() == loop.num_steps.tolist()
    assert float(jaxem.best(loop).free_energy) == float(loop.free_energy.max())


def test_vmap_over_one_entry_of_theta_x_temperature_and_weights():
    x, theta = CASE.x(), CASE.theta()
    sigmas, temperatures = cast([0.5, 1.0, 2.0]), cast([0.0, 0.5, 1.0])
    m = M.hold("sigma")
    over_sigma = jax.vmap(jaxem.em, in_axes=(None, {"pi": None, "mu": None, "sigma": 0}, None))
    direct = over_sigma(m, theta | {"sigma": sigmas}, x)
    through = jax.vmap(lambda sigma: jaxem.em(m, theta | {"sigma": sigma}, x))(sigmas)
    same(direct, through)
    for i, sigma in enumerate(sigmas):
        same(direct.theta["mu"][i], jaxem.em(m, theta | {"sigma": sigma}, x).theta["mu"])

    direct = jax.vmap(jaxem.em, in_axes=(None, None, None))(m, theta, x, temperature=temperatures)
    through = jax.vmap(lambda T: jaxem.em(m, theta, x, temperature=T))(temperatures)
    same(direct, through)
    same(direct.theta["mu"][0], jaxem.em(m, theta, x, temperature=0.0).theta["mu"])

    xs = jnp.stack([x, x[::-1] + 1])
    direct = jax.vmap(jaxem.em, in_axes=(None, None, 0))(m, theta, xs)
    same(direct.theta["mu"][1], jaxem.em(m, theta, xs[1]).theta["mu"])

    weights = jnp.stack([jnp.ones(len(x), FLOAT), jnp.arange(len(x), dtype=FLOAT)])
    direct = jax.vmap(lambda w: jaxem.em(m, theta, x, weights=w))(weights)
    same(direct.theta["mu"][1], jaxem.em(m, theta, x, weights=weights[1]).theta["mu"])


def test_one_compilation_serves_every_sigma_temperature_tol_and_step_count():
    x, theta = CASE.x(), CASE.theta()
    traces = []
    program = dataclasses.replace(M.hold("sigma"), kernel=lambda theta, x: traces.append(1) or M.kernel(theta, x))
    jaxem.em(program, theta, x)
    count = len(traces)
    for sigma in np.geomspace(3, 0.1, 20):
        jaxem.em(
            program, theta | {"sigma": sigma}, x, temperature=sigma / 3, tol=1e-6 * sigma, max_steps=int(50 / sigma)
        )
    assert len(traces) == count


def test_em_inside_jit_and_the_lanes_temperature():
    x, many = CASE.x(), thetas(3)
    temperatures = cast([0.0, 0.5, 1.0])
    fits = jaxem.em_batch(M.hold("sigma"), many, x, temperature=temperatures)
    inside = jax.jit(lambda x: jaxem.em_batch(M.hold("sigma"), many, x, temperature=temperatures))(x)
    same(fits, inside)
    lane = jaxem.em(M.hold("sigma"), jax.tree.map(lambda leaf: leaf[0], many), x, temperature=0.0)
    same(jax.tree.map(lambda leaf: leaf[0], fits), lane)


def test_the_path_is_reverse_differentiable_and_em_forward():
    x, theta = CASE.x(), CASE.theta()

    def end_of_path(sigma, x):
        return jaxem.em_path(M.hold("sigma"), theta | {"sigma": sigma}, x, num_steps=4).after_m[-1]

    sigma = jnp.asarray(0.8, FLOAT)
    reverse, in_x = jax.grad(end_of_path, argnums=(0, 1))(sigma, x)
    forward = jax.jacfwd(end_of_path)(sigma, x)
    assert float(reverse) == pytest.approx(float(forward), rel=tolerance(1e-10, 1e-3))
    assert in_x.shape == x.shape
    if np.float64 == FLOAT:
        h = 1e-6
        difference = (end_of_path(sigma + h, x) - end_of_path(sigma - h, x)) / (2 * h)
        assert float(reverse) == pytest.approx(float(difference), rel=1e-6)

    def fitted(sigma):
        return jaxem.em(M.hold("sigma"), theta | {"sigma": sigma}, x, tol=1e-12).free_energy

    # envelope theorem: at the optimum dL/dσ is the partial derivative
    total = jax.jvp(fitted, (sigma,), (jnp.ones_like(sigma),))[1]
    at = jaxem.em(M.hold("sigma"), theta | {"sigma": sigma}, x, tol=1e-12).theta
    partial = jax.grad(lambda sigma: jaxem.log_likelihood(M, at | {"sigma": sigma}, x))(sigma)
    assert float(total) == pytest.approx(float(partial), rel=tolerance(1e-4, 1e-2))


def test_reverse_mode_through_chunks(monkeypatch):
    x, theta = CASE.x(N=600), CASE.theta()

    def loss(mu, m=M):
        return jaxem.em_path(m, theta | {"mu": mu}, x, num_steps=2).after_m[-1]

    whole = jax.grad(loss)(theta["mu"])
    monkeypatch.setattr("jaxem._rows.chunks.FEWEST", 16)
    monkeypatch.setattr("jaxem._rows.chunks.TABLE_ENTRIES", 3)
    same(jax.grad(loss)(theta["mu"], afresh(M)), whole, tolerance(1e-10, 1e-2))


# ---- equivariance


def test_translation_rotation_and_scale():
    x, theta = CASE.x(), CASE.theta()
    rotation = cast(np.linalg.qr(np.random.default_rng(0).normal(size=(2, 2)))[0])
    shift, scale = cast([3.0, -1.0])[None], 2.0
    fit = jaxem.em(M, theta, x, max_steps=10)
    moved = {"pi": theta["pi"], "mu": scale * theta["mu"] @ rotation + shift, "sigma": scale * theta["sigma"]}
    other = jaxem.em(M, moved, scale * x @ rotation + shift, max_steps=10)
    same(other.theta["mu"], scale * fit.theta["mu"] @ rotation + shift)
    same(other.theta["sigma"], scale * fit.theta["sigma"])
    jacobian = x.size * np.log(scale)
    assert float(other.free_energy) == pytest.approx(float(fit.free_energy) - jacobian, rel=tolerance(1e-11, 1e-4))


def test_one_dimensional_data_is_one_column():
    x = CASE.x(D=1)
    theta = CASE.theta(D=1)
    same(jaxem.em(M, theta, x[:, 0]), jaxem.em(M, theta, x), 0)
    assert jaxem.responsibilities(M, theta, x[:, 0]).shape == (len(x), 3)


# ---- how a fit ends


def test_converged_means_the_gain_is_below_the_tolerance():
    x = CASE.x()
    for tol in (1e-2, 1e-5):
        fit = jaxem.em(M, CASE.theta(), x, tol=tol)
        assert int(fit.status) == Status.CONVERGED
        floor = 8 * EPS * abs(float(fit.free_energy)) * 1.5
        assert abs(float(fit.gain)) <= max(tol * len(x), floor)
        before = jaxem.em(M, CASE.theta(), x, tol=0, max_steps=int(fit.num_steps) - 1)
        assert abs(float(before.gain)) > tol * len(x)
    assert int(jaxem.em(M, CASE.theta(), x, tol=0).status) == Status.CONVERGED  # the floor of rounding is kept


def test_max_steps_is_a_status():
    fit = jaxem.em(M, CASE.theta(), CASE.x(), max_steps=2)
    assert (int(fit.status), int(fit.num_steps)) == (Status.MAX_STEPS, 2)
    with pytest.raises(jaxem.EMError, match=r"MAX_STEPS.*raise max_steps"):
        jaxem.check(fit)


def test_an_m_step_that_does_not_maximise_is_caught_and_undone():
    def overshoot(moments, theta, held):
        new = M.update(moments, theta, held)
        return new | {"mu": theta["mu"] + 3 * (new["mu"] - theta["mu"])}

    bad = dataclasses.replace(M.hold("pi", "sigma"), update=overshoot)
    fit = jaxem.em(bad, CASE.theta(), CASE.x())
    assert int(fit.status) == Status.DECREASED
    assert float(fit.free_energy) == pytest.approx(float(jaxem.log_likelihood(M, fit.theta, CASE.x())), rel=64 * EPS)
    with pytest.raises(jaxem.EMError, match="DECREASED"):
        jaxem.check(fit)


def test_a_collapse_is_nonfinite_and_keeps_the_last_finite_theta():
    x = jnp.zeros((5, 2), FLOAT)  # all rows equal: σ → 0 and F → ∞
    theta = {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [1.0, 1.0]], "sigma": 1.0}
    fit = jaxem.em(M, theta, x)
    assert int(fit.status) == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.theta))
    assert np.isfinite(fit.free_energy)
    with pytest.raises(jaxem.EMError, match=r"NONFINITE.*collapsed"):
        jaxem.check(fit)


def test_check_names_the_lanes():
    many = thetas(3)
    many = many | {"mu": many["mu"].at[1].set(0)}  # coincident: converges at once
    fits = jaxem.em_batch(M, many, CASE.x(), max_steps=3)
    with pytest.raises(jaxem.EMError, match=r"MAX_STEPS in lane\(s\) 0, 2"):
        jaxem.check(fits)
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(jaxem.check)(fits)


def test_an_empty_component_keeps_its_mean():
    x = CASE.x()
    theta = CASE.theta() | {"mu": cast([[0.0, 0.0], [1.0, 1.0], [1e4, 1e4]])}
    fit = jaxem.em(M, theta, x, max_steps=3)
    assert fit.theta["mu"][2].tolist() == [1e4, 1e4]
    assert float(fit.theta["pi"][2]) == 0
    assert np.isfinite(fit.free_energy)


def test_best_ignores_lanes_that_are_nan():
    fits = jaxem.em_batch(M, thetas(3), CASE.x(), max_steps=1)
    spoiled = fits._replace(free_energy=fits.free_energy.at[0].set(jnp.nan))
    assert np.isfinite(jaxem.best(spoiled).free_energy)


def test_a_missing_row_of_weight_zero_counts_for_nothing():
    x = CASE.x()
    weights = jnp.ones(len(x), FLOAT).at[3].set(0)
    dropped = jnp.delete(x, 3, axis=0)
    same(jaxem.em(M, CASE.theta(), x, weights=weights).theta, jaxem.em(M, CASE.theta(), dropped).theta)


# ---- k-means


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_is_lloyds(seed):
    """scikit-learn's Lloyd from the same centres: same centres, same distortion."""
    x = CASE.x(N=200)
    mu = jaxem.inits.random_points(M, jax.random.key(seed), x, 4)["mu"]
    fit = jaxem.kmeans(x, mu)
    assert int(fit.status) == Status.CONVERGED
    peer = KMeans(4, init=np.asarray(mu), n_init=1, algorithm="lloyd", tol=0).fit(np.asarray(x))
    assert np.allclose(fit.theta["mu"], peer.cluster_centers_, atol=tolerance(1e-12, 1e-5))
    assert float(jaxem.distortion(x, fit.theta["mu"])) == pytest.approx(peer.inertia_, rel=tolerance(1e-12, 1e-5))


def test_kmeans_of_many_rows_is_lloyds_and_stops():
    """More rows than a chunk: the matrix-product E-step, and data far from the origin."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(70_000, 3)) + 8 * rng.integers(0, 4, size=(70_000, 1)) + np.array([[100.0, -50.0, 0.0]])
    x = cast(x)
    fit = jaxem.kmeans(x, x[:4])
    assert int(fit.status) == Status.CONVERGED
    peer = KMeans(4, init=np.asarray(x[:4]), n_init=1, algorithm="lloyd", tol=0).fit(np.asarray(x))
    assert np.allclose(fit.theta["mu"], peer.cluster_centers_, atol=tolerance(1e-9, 1e-3))
    assert float(jaxem.distortion(x, fit.theta["mu"])) == pytest.approx(peer.inertia_, rel=tolerance(1e-12, 1e-5))


def test_kmeans_is_em_at_temperature_zero():
    x = CASE.x()
    mu = x[:3]
    fit = jaxem.em(
        gaussian.isotropic.hold("pi", "sigma"), {"pi": np.full(3, 1 / 3), "mu": mu, "sigma": 1.0}, x, temperature=0.0
    )
    same(fit.theta["mu"], jaxem.kmeans(x, mu).theta["mu"])


def test_kmeans_inside_jit_and_vmap():
    x = CASE.x()
    starts = jnp.stack([x[:3], x[3:6]])
    fits = jax.jit(jax.vmap(lambda mu: jaxem.kmeans(x, mu)))(starts)
    for i in range(2):
        same(fits.theta["mu"][i], jaxem.kmeans(x, starts[i]).theta["mu"])


def test_distortion_in_chunks_is_the_sum_of_least_distances():
    x = cast(np.random.default_rng(0).normal(size=(70_001, 2)))
    mu = x[:3]
    expected = ((np.asarray(x, float)[:, None] - np.asarray(mu, float)[None]) ** 2).sum(-1).min(1).sum()
    assert float(jaxem.distortion(x, mu)) == pytest.approx(expected, rel=tolerance(1e-12, 1e-5))


# ---- float32 far from the origin


def test_float32_far_from_the_origin():
    """Offset 1e4, clusters of size 1: within 0.01 nats a point of the float64 fit of the same numbers."""
    rng = np.random.default_rng(0)
    x = (1e4 + rng.normal(size=(300, 2)) + 6 * rng.integers(0, 2, size=(300, 1))).astype(np.float32)
    theta = {"pi": [0.5, 0.5], "mu": x[[0, 1]], "sigma": 2.0}
    fit = jaxem.em(M, theta, x)
    assert fit.free_energy.dtype == jnp.float32
    reference = jaxem.em(M, theta, x.astype(FLOAT))
    theta = jax.tree.map(lambda leaf: leaf.astype(FLOAT), fit.theta)
    theta["pi"] /= theta["pi"].sum()  # its sum is 1 in float32
    L = float(jaxem.log_likelihood(M, theta, x.astype(FLOAT)))
    assert abs(L - float(reference.free_energy)) / 300 < 0.01
