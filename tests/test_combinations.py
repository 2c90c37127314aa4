"""Where two options meet: missing cells, noise, priors, floors, holds, lanes, acceleration, derivatives, files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxem
from jaxem import inits
from jaxem.families import gaussian, poisson

M = gaussian.isotropic
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(20, 2)), RNG.normal(size=(20, 2)) + 6])
HOLES = X.copy()
HOLES[::5, 0] = np.nan
HOLES[1::5, 1] = np.nan
THETA = {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [6.0, 6.0]], "sigma": 1.0}
NOISY = gaussian.with_noise(M, 100.0)
WITH_NOISE = THETA | {"pi": [0.45, 0.45, 0.1]}
KEY = jax.random.key(0)
FLOORED = gaussian.with_floor(gaussian.spherical, 0.01)
BOX = THETA | {"pi": [0.45, 0.45, 0.1], "box": [[9.0, 9.0], [-9.0, -9.0]]}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: jaxem.em(FLOORED, THETA | {"sigma": [1.0, 1.0]}, X, accelerate=jaxem.squarem()),
            "^accelerate: .*floor",
        ),
        (
            lambda: jaxem.fit(gaussian.with_noise(FLOORED, 9.0), X, KEY, 2, accelerate=jaxem.anderson()),
            "^accelerate: .*floor",
        ),
        (lambda: gaussian.with_floor(NOISY, 1.0), "^m: has noise already"),
        (lambda: gaussian.with_noise(M.with_missing(), 9.0), "^m: with_noise is for rows without missing cells"),
        (lambda: gaussian.with_prior(M, gaussian.mclust_prior(X, 2)).hold("sigma"), "^hold: 'sigma' has a prior"),
        (lambda: jaxem.em(gaussian.with_noise(M), BOX, X), r"^theta\['box'\]: must be lower corners"),
        (lambda: jaxem.likelihood_ratio_test(M.with_missing(), HOLES, KEY, 1, 2), "^m: likelihood_ratio_test is for"),
        (lambda: jaxem.condition(M.with_missing(), THETA, X, mask=[True, False]), "^mask: is for rows without"),
        (lambda: jaxem.condition(NOISY, WITH_NOISE, X, mask=[True, False]), "^m: .*has noise"),
        (lambda: inits.hierarchical(M, np.zeros((4, 1)), 2), "^num_components: x has fewer than 2 distinct rows"),
        (lambda: jaxem.fit(M, [[1.0, 2.0], [3.0]], KEY, 1), "^x: must be numeric"),
        (
            lambda: jax.jit(lambda x: jaxem.select(x, KEY, models=M, num_components=2).fit.free_energy)(X),
            "^x: is traced, and a selection",
        ),
        (
            lambda: jaxem.standard_errors(M.hold("mu", "sigma"), {"pi": [1.0], "mu": [[0.0, 0.0]], "sigma": 1.0}, X),
            "held",
        ),
    ],
)
def test_what_cannot_meet_says_so_in_one_line(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_the_bootstrap_keeps_noise_last_and_held_entries_where_they_are():
    theta = jaxem.em(NOISY, WITH_NOISE, X).theta
    lanes = jaxem.bootstrap(NOISY, theta, X, KEY, 4)
    assert lanes.theta["mu"].shape == (4, 2, 2)
    assert lanes.theta["pi"].shape == (4, 3)
    held = M.hold("pi")
    near = jaxem.em(held, THETA | {"pi": [0.3, 0.7], "mu": [[0.0, 0.0], [0.3, 0.3]]}, X[:15], max_steps=5000).theta
    lanes = jaxem.bootstrap(held, near, X[:15], KEY, 40)
    assert (np.asarray(lanes.theta["pi"]) == np.array([0.3, 0.7])).all()


def test_starts_and_choices_of_rows_with_missing_cells():
    missing = M.with_missing()
    for start in (inits.hierarchical(missing, X, 2), inits.from_labels(missing, X, np.arange(40) // 20)):
        np.testing.assert_allclose(start["mu"], inits.hierarchical(M, X, 2)["mu"], rtol=1e-12)  # of whole rows the same
    assert jaxem.fit(M, HOLES, KEY, 2, init="hierarchical", missing=True).status == jaxem.Status.CONVERGED
    chosen = jaxem.select(HOLES, KEY, models=M, num_components=(1, 2), starts=2, missing=True)
    assert chosen.fit.theta["mu"].shape == (2, 2)
    counts = np.array([[0.0, 3.0], [np.nan, 1.0], [np.nan, 2.0], [4.0, 5.0], [-7.0, 1.0]])
    fit = jaxem.fit(poisson.mixture, counts, KEY, 1, starts=3, weights=np.array([1.0, 1, 1, 1, 0]), missing=True)
    assert fit.status == jaxem.Status.CONVERGED  # of a row of weight 0 nothing is drawn


def test_missing_cells_keep_their_digits_in_float32_from_a_far_start():
    rows = (1000 + 0.05 * RNG.normal(size=(40, 2))).astype(np.float32)
    rows[0, 0] = np.nan
    start = {
        "pi": np.ones(1, np.float32),
        "mu": np.zeros((1, 2), np.float32),
        "Sigma": np.eye(2, dtype=np.float32)[None],
    }
    fit = jaxem.em(gaussian.full, start, rows, missing=True)
    exact = jaxem.em(gaussian.full, start, rows.astype(float), missing=True)
    assert fit.status == exact.status == jaxem.Status.CONVERGED
    np.testing.assert_allclose(fit.theta["Sigma"], exact.theta["Sigma"], rtol=1e-3, atol=1e-6)


def test_a_fit_of_missing_cells_in_files_and_in_lanes(tmp_path):
    missing = M.with_missing()
    fit = jaxem.em(missing, THETA, HOLES)
    jaxem.save(tmp_path / "fit.npz", missing, fit)
    assert jaxem.load(tmp_path / "fit.npz", missing)[0] == missing
    assert jaxem.bootstrap(missing, fit.theta, HOLES, KEY, 3, kind="parametric").theta["mu"].shape == (3, 2, 2)


def slope(fit_of):
    return jax.grad(lambda x: fit_of(x).theta["mu"][0, 0])(jnp.asarray(X[:, :1]))


THETA_1 = {"pi": [0.5, 0.5], "mu": [[0.0], [6.0]], "sigma": 1.0}
ONE = M.hold("sigma")


def test_a_derivative_is_nan_where_two_components_are_equal_beside_a_third():
    theta = {"pi": [0.3, 0.2, 0.5], "mu": [[0.0], [0.0], [6.0]], "sigma": 1.0}
    grad = jax.grad(lambda x: jaxem.em(ONE, theta, x).theta["pi"][0])(jnp.asarray(X[:, :1]))
    assert np.isnan(grad).all()


def test_a_lane_that_nobody_chose_spoils_no_derivative():
    one = slope(lambda x: jaxem.em(M, THETA_1, x))
    starts = {"pi": jnp.full((2, 2), 0.5), "mu": jnp.array([[[0.0], [6.0]], [[1.0], [1.0]]]), "sigma": jnp.ones(2)}
    np.testing.assert_allclose(slope(lambda x: jaxem.best(jaxem.em_batch(M, starts, x))), one, rtol=1e-9)
    assert np.isnan(slope(lambda x: jaxem.em(M, THETA_1, x, max_steps=1))).all()


def test_many_entries_that_did_not_converge_have_no_derivative_either():
    y = jnp.asarray(RNG.poisson(np.concatenate([np.full((10, 40), 2.0), np.full((10, 40), 9.0)])).astype(float))
    start = {"pi": [0.5, 0.5], "rate": np.concatenate([np.full((1, 40), 4.0), np.full((1, 40), 5.0)])}
    fit = jax.grad(lambda y: jaxem.em(poisson.mixture, start, y, max_steps=1).theta["rate"][0, 0])
    assert np.isnan(fit(y)).all()


def test_the_derivative_of_an_optimisers_m_step_is_that_of_its_maximiser():
    adam = jaxem.gradient_m_step(ONE, optax.adam(0.01), num_steps=20)
    np.testing.assert_allclose(
        slope(lambda x: jaxem.em(adam, THETA_1, x, tol=1e-7)), slope(lambda x: jaxem.em(ONE, THETA_1, x)), rtol=1e-4
    )


def test_the_best_of_a_fit_and_the_best_of_several():
    fits = [jaxem.em(M, THETA, X), jaxem.fit(M, X, KEY, 2, starts=2)]
    assert jaxem.best(fits).status == jaxem.Status.CONVERGED
