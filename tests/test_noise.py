"""A uniform component: mclust's fits with Vinv, the program as the oracle, a box that θ carries."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mclust import random_theta, rows

import jaxem
from jaxem.families import bernoulli, gaussian

from cases import cast

# R's mclust 6.0.0: me(name, x, z, Vinv = hypvol(x, TRUE)), to the end
REFERENCE = json.loads((Path(__file__).parent / "mclust_prior_noise.json").read_text())
X = np.array(REFERENCE["noise_x"])
LABELS = np.array([int(label) for label in REFERENCE["noise_labels"]])
V = 1 / REFERENCE["noise_VVV"]["Vinv"]
BOX = np.stack([X.min(0), X.max(0)])


@pytest.mark.parametrize("name", ["EII", "VVI", "EEE", "VVV"])
def test_mclusts_log_likelihood_and_parameters(name):
    m, x, expected = gaussian.with_noise(getattr(gaussian, name), V), cast(X), REFERENCE[f"noise_{name}"]
    start = jaxem.inits.from_labels(m, x, LABELS, 2)
    np.testing.assert_allclose(start["pi"], np.bincount(LABELS) / len(X), rtol=1e-14)
    fit = jaxem.check(jaxem.em(m, start, x, tol=0.0, max_steps=5000))
    assert float(fit.free_energy) == pytest.approx(expected["loglik"], rel=1e-11)
    np.testing.assert_allclose(fit.theta["pi"], expected["pro"], atol=2e-6)
    np.testing.assert_allclose(fit.theta["mu"], expected["mean"], atol=2e-4)


@pytest.fixture(scope="module")
def fitted():
    """(m, fit), the box that of the data."""
    m = gaussian.with_noise(gaussian.full)
    return m, jaxem.check(jaxem.fit(m, cast(X), jax.random.key(0), 2, starts=3))


def test_without_a_volume_it_is_the_box_of_the_data_and_theta_has_it(fitted):
    m, fit = fitted
    assert m.parameters == ("pi", "mu", "Sigma", "box")
    assert m.free == ("pi", "mu", "Sigma")
    np.testing.assert_array_equal(fit.theta["box"], BOX)
    assert float(fit.free_energy) == pytest.approx(REFERENCE["noise_VVV"]["loglik"], rel=1e-9)
    without = {name: value for name, value in fit.theta.items() if name != "box"}
    gamma = jaxem.responsibilities(m, fit.theta, X)
    np.testing.assert_array_equal(jaxem.responsibilities(m, without, X), gamma)  # filled in from the rows of the call
    np.testing.assert_array_equal(jax.jit(partial(jaxem.responsibilities, m))(without, cast(X)), gamma)
    np.testing.assert_allclose(jaxem.responsibilities(m, fit.theta, X[:9]), gamma[:9], rtol=1e-12)  # V is θ's
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), without)
    fits = jaxem.em_batch(m, lanes, X, max_steps=1)
    assert fits.theta["box"].shape == (2, 2, 2)


def test_rows_of_weight_zero_are_in_no_box():
    m, w = gaussian.with_noise(gaussian.isotropic), cast((np.arange(len(X)) > 5) * 1.0)
    assert (
        jaxem.inits.kmeans_plus_plus(m, jax.random.key(0), X, 2, weights=w)["box"]
        == np.stack([X[6:].min(0), X[6:].max(0)])
    ).all()
    theta = {"pi": cast(np.full(3, 1 / 3)), "mu": cast(X[:2]), "sigma": 1.0}
    np.testing.assert_array_equal(
        jaxem.em(m, theta, X, weights=w, max_steps=0).theta["box"], [X[6:].min(0), X[6:].max(0)]
    )


def test_criteria_count_the_share_of_noise_and_no_volume(fitted):
    m, fit = fitted
    assert jaxem.num_parameters(m, fit.theta) == 2 + 4 + 6
    assert jaxem.num_parameters(gaussian.with_noise(gaussian.EEI, V), theta_of("EEI")) == 3 + 9 + 3
    expected = -2 * float(fit.free_energy) + 12 * np.log(len(X))
    assert float(jaxem.bic(m, fit.theta, X)) == pytest.approx(expected, rel=1e-12)


def theta_of(name, box=False):
    theta = random_theta(name)
    more = {"box": cast(np.array([[-3.0] * 3, [4.0] * 3]))} if box else {}
    return theta | {"pi": jnp.append(theta["pi"] * 0.8, 0.2)} | more


@pytest.mark.parametrize(("name", "volume"), [("VVE", None), ("EEE", 20.0)])
def test_the_program_is_the_oracle(name, volume):
    m = gaussian.with_noise(getattr(gaussian, name), volume)
    theta, x = theta_of(name if name != "EEE" else "EEI", box=volume is None), rows()
    if name == "EEE":
        theta = {"pi": theta["pi"], "mu": theta["mu"], "Sigma": cast(np.diag([1.0, 2.0, 0.5]))}
    np.testing.assert_allclose(m.table(theta, x), m.traced_table(theta, x), rtol=1e-12)
    np.testing.assert_allclose(m.table(theta, x)[-1], np.log(0.2) - np.log(volume or 7.0**3), rtol=1e-14)


def test_certificates_hold():
    m = gaussian.with_noise(gaussian.isotropic)
    certificate = jaxem.certify(m, cast({"pi": np.array([0.3, 0.5, 0.2]), "mu": X[:2], "sigma": 5.0}), cast(X))
    assert certificate.holds(1e-12), certificate
    assert int(certificate.C4_rows) == len(X)


def test_large_offsets_many_rows_and_noise_that_takes_all():
    """By differences, whatever the number of rows; a share of 1 leaves the Gaussians where they are."""
    x = cast(np.tile(X, (120, 1)) + 1e4)
    m = gaussian.with_noise(gaussian.tied, V)
    near = {"pi": np.array([0.3, 0.5, 0.2]), "mu": X[LABELS < 2][:2], "Sigma": np.cov(X.T)}
    one = jaxem.em(m, cast(near | {"mu": near["mu"] + 1e4}), x, max_steps=2)
    other = jaxem.em(m, cast(near), cast(X), max_steps=2)
    assert float(one.free_energy) == pytest.approx(120 * float(other.free_energy), rel=1e-9)
    all_noise = jaxem.em(m, cast(near | {"pi": np.array([0.0, 0.0, 1.0])}), cast(X), max_steps=1)
    np.testing.assert_allclose(all_noise.theta["mu"], near["mu"])
    assert float(all_noise.free_energy) == pytest.approx(-len(X) * np.log(V), rel=1e-12)


def test_samples_are_of_the_box_and_of_the_components(fitted):
    m, fit = fitted
    x, z = jaxem.sample(m, fit.theta, jax.random.key(1), 4000)
    np.testing.assert_allclose(np.bincount(z) / 4000, fit.theta["pi"], atol=0.03)
    noise = np.asarray(x[z == 2])
    assert ((noise >= BOX[0]) & (noise <= BOX[1])).all()
    np.testing.assert_allclose(noise.mean(0), BOX.mean(0), rtol=0.05)
    np.testing.assert_allclose(x[z == 0].mean(0), fit.theta["mu"][0], rtol=0.05)
    given = {name: value for name, value in fit.theta.items() if name != "box"}
    x, z = jaxem.sample(gaussian.with_noise(gaussian.full, V), given, jax.random.key(1), 4000)
    sides = np.ptp(np.asarray(x[z == 2]), axis=0)
    assert np.prod(sides) == pytest.approx(V, rel=0.05)  # a box of that volume, as the components lie
    assert sides[1] > 5 * sides[0]


def test_noise_beside_a_prior_and_held_factors():
    prior = gaussian.mclust_prior(X, 2)
    m = gaussian.with_noise(gaussian.with_prior(gaussian.full, prior), V)
    x = cast(X)
    theta = jaxem.inits.from_labels(m, x, LABELS, 2)
    fit = jaxem.check(jaxem.em(m, theta, x))
    bare = dict(fit.theta) | {"pi": fit.theta["pi"][:2]}
    L = float(jaxem.log_likelihood(m, fit.theta, x))
    assert float(fit.free_energy) - L == pytest.approx(float(gaussian.with_prior(gaussian.full, prior).log_prior(bare)))
    held = gaussian.with_noise(gaussian.EEI.hold("shape"), V)
    assert held.held == {"shape"}
    kept = jaxem.em(held, theta2 := jaxem.inits.from_labels(held, x, LABELS, 2), x, max_steps=3)
    np.testing.assert_array_equal(kept.theta["shape"], theta2["shape"])


def test_select_and_summary_and_predict_know_noise(fitted):
    m, fit = fitted
    found = jaxem.select(X, jax.random.key(0), models=(gaussian.full, m), num_components=(1, 2), starts=2)
    assert found.m == m
    assert found.fit.theta["pi"].shape == (3,)
    assert "noise" in repr(jaxem.summary(m, fit, X))
    assert set(np.unique(jaxem.predict(m, fit.theta, X).labels)) == {0, 1, 2}
    assert repr(m) == "gaussian.with_noise(gaussian.full)"
    assert m == gaussian.with_noise(gaussian.full)
    assert hash(m) == hash(gaussian.with_noise(gaussian.full))


def test_starts_without_labelled_noise_give_it_a_share():
    m = gaussian.with_noise(gaussian.isotropic, 10.0)
    theta = jaxem.inits.from_labels(m, np.array([0.0, 1.0, 5.0, 6.0]), np.array([0, 0, 1, 1]), 2)
    np.testing.assert_allclose(theta["pi"], np.full(3, 1 / 3), rtol=1e-12)


THETA = {"pi": np.full(2, 0.5), "mu": np.zeros((1, 1)), "sigma": np.ones(())}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gaussian.with_noise(gaussian.full, -1.0), "^volume: must be a finite number > 0, .*got -1.0$"),
        (lambda: gaussian.with_noise(gaussian.full, np.inf), "^volume: must be a finite number > 0"),
        (lambda: gaussian.with_noise(gaussian.full, "box"), "^volume: must be"),
        (lambda: gaussian.with_noise(bernoulli.mixture), "^m: must be a family of jaxem.families.gaussian"),
        (lambda: gaussian.with_noise(gaussian.with_noise(gaussian.full)), "^m: has noise already"),
        (lambda: jaxem.em(gaussian.with_noise(gaussian.isotropic), THETA, np.ones(5)), "^x: has no spread in column 0"),
        (lambda: jaxem.em(gaussian.with_noise(gaussian.isotropic, 1.0), THETA | {"pi": np.ones(1)}, np.ones(5)), "K"),
        (
            lambda: jaxem.inits.from_labels(gaussian.with_noise(gaussian.full), X, LABELS),
            "^num_components: must be given",
        ),
        (
            lambda: jaxem.condition(gaussian.with_noise(gaussian.full, V), theta_of("EEI"), X, [True, False]),
            "^m: .*has noise",
        ),
        (lambda: jaxem.sample(gaussian.with_noise(gaussian.isotropic), THETA, jax.random.key(0), 3), "box"),
    ],
)
def test_what_is_no_noise_says_so_in_one_line(call, match):
    with pytest.raises(ValueError, match=match) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_stream_needs_the_box():
    m = gaussian.with_noise(gaussian.isotropic)
    with pytest.raises(ValueError, match=r"^theta: has no 'box'"):
        jaxem.em_stream(m, THETA, lambda: iter([np.arange(3.0), np.arange(9.0)]), max_steps=1)
