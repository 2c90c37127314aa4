"""The bootstrap: each lane is `em` on its own sample, components in θ's order, spread that standard errors predict."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist

import jaxem
from jaxem._fit.bootstrap import Shared, in_order
from jaxem.families import gaussian, poisson

from cases import cast, tolerance

M = gaussian.isotropic
HALVES = np.arange(60) % 2
X = cast(np.random.default_rng(3).normal(size=(60, 1)) + 5.0 * HALVES[:, None])
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def theta():
    return jaxem.check(jaxem.em(M, jaxem.inits.from_labels(M, X, HALVES), X)).theta


@pytest.fixture(scope="module")
def lanes(theta):
    """kind → 200 lanes."""
    kinds = ("nonparametric", "weighted", "parametric")
    return {kind: jaxem.bootstrap(M, theta, X, KEY, 200, kind=kind) for kind in kinds}


def test_a_lane_is_em_on_its_own_sample(theta, lanes):
    key = jax.random.split(KEY, 200)[5]
    counts = np.bincount(np.asarray(jax.random.randint(key, (60,), 0, 60)), minlength=60)
    w = np.asarray(jax.random.exponential(key, (60,), X.dtype))
    other, _ = jaxem.sample(M, theta, key, 60)
    expected = {
        "nonparametric": jaxem.em(M, theta, X, weights=cast(counts.astype(float))),
        "weighted": jaxem.em(M, theta, X, weights=cast(w * 60 / w.sum())),
        "parametric": jaxem.em(M, theta, other),
    }
    assert counts.sum() == 60
    for kind, fit in expected.items():
        for name, value in fit.theta.items():
            np.testing.assert_allclose(lanes[kind].theta[name][5], value, rtol=tolerance(1e-9, 1e-3), err_msg=kind)
        assert float(lanes[kind].free_energy[5]) == pytest.approx(float(fit.free_energy), rel=tolerance(1e-12, 1e-4))


def test_the_spread_is_what_the_information_predicts(theta, lanes):
    """From the model: the observed information's; from the rows, which need not be the model's: the sandwich's.

    Up to 4/√(2·200) of simulation. The two differ in σ by two fifths here.
    """
    observed = jaxem.standard_errors(M, theta, X).standard_errors
    sandwich = jaxem.standard_errors(M, theta, X, kind="sandwich").standard_errors
    assert float(sandwich["sigma"]) > 1.3 * float(observed["sigma"])
    for kind, fits in lanes.items():
        expected = observed if kind == "parametric" else sandwich
        assert (np.asarray(fits.status) == jaxem.Status.CONVERGED).all()
        for name in ("pi", "mu", "sigma"):
            np.testing.assert_allclose(jnp.std(fits.theta[name], axis=0), expected[name], rtol=0.2, err_msg=kind)
    assert "200 CONVERGED" in repr(lanes["weighted"])
    assert "0 ambiguous" in repr(lanes["weighted"])


def test_components_are_in_thetas_order_however_a_lane_names_them():
    """The least of all K! orders, by trying them; ties and lanes half-way between two orders are ambiguous."""
    rng = np.random.default_rng(0)
    for seed in range(20):
        K = 2 + seed % 4
        gamma, other = rng.dirichlet(np.full(K, 0.3), size=(2, 50))
        shared = Shared(gamma.T @ other, (gamma**2).sum(0), (other**2).sum(0))
        cost = {p: ((gamma - other[:, p]) ** 2).sum() for p in itertools.permutations(range(K))}
        order, unclear = in_order(shared)
        assert cost[tuple(order)] == pytest.approx(min(cost.values()))
        p = rng.permutation(K)
        near = (1 - 0.05) * gamma[:, p] + 0.05 / K
        order, clear = in_order(Shared(gamma.T @ near, (gamma**2).sum(0), (near**2).sum(0)))
        assert (p[order] == np.arange(K)).all()
        assert not clear
        assert unclear  # two that have nothing to do with each other
    gamma = rng.dirichlet(np.full(2, 0.3), size=50)
    for share, expected in (
        (0.40, False),
        (0.43, True),
    ):  # of the other order: ambiguous from √2 − 1, where (1 − s)² = 2s²
        near = (1 - share) * gamma + share * gamma[:, ::-1]
        order, unclear = in_order(Shared(gamma.T @ near, (gamma**2).sum(0), (near**2).sum(0)))
        assert (order.tolist(), unclear) == ([0, 1], expected)
    half = np.full((50, 2), 0.5)
    assert in_order(Shared(half.T @ half, (half**2).sum(0), (half**2).sum(0)))[1]
    one = np.ones((50, 1))
    assert in_order(Shared(one.T @ one, one.sum(0), one.sum(0))) == (np.array([0]), False)


def test_one_component_and_a_program_have_a_bootstrap_too(theta):
    x = X[:, 0]

    def program(x):
        mu = numpyro.param("mu", jnp.array([0.0, 5.0]))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    m = jaxem.from_numpyro(program)
    at = jaxem.em(m, m.init(KEY, x), x).theta
    fits = jaxem.bootstrap(m, at, x, KEY, 50)
    errors = jaxem.standard_errors(m, at, x).standard_errors["mu"]
    np.testing.assert_allclose(jnp.std(fits.theta["mu"], axis=0), errors, rtol=0.5)
    assert fits.ambiguous is None
    with pytest.raises(ValueError, match=r'^kind: "parametric" draws from mixtures'):
        jaxem.bootstrap(m, at, x, KEY, 5, kind="parametric")
    counts = jnp.asarray(HALVES)
    one = {"pi": jnp.ones(1), "rate": jnp.full((1, 1), 0.5)}
    fits = jaxem.bootstrap(poisson.mixture, one, counts, KEY, 50, kind="parametric")
    assert not np.any(fits.ambiguous)
    np.testing.assert_allclose(jnp.std(fits.theta["rate"]), np.sqrt(0.5 / 60), rtol=0.4)


def test_bad_input_is_one_line(theta):
    with pytest.raises(ValueError, match=r'^kind: must be one of "nonparametric", "weighted", "parametric", got'):
        jaxem.bootstrap(M, theta, X, KEY, 5, kind="jackknife")
    with pytest.raises(ValueError, match=r"^theta: is no fixed point of EM on these data, a step gains [0-9.]+ nats"):
        jaxem.bootstrap(M, theta | {"mu": theta["mu"] + 1}, X, KEY, 5)
    with pytest.raises(ValueError, match=r"^bootstrap: .*outside of jit"):
        jax.jit(lambda key: jaxem.bootstrap(M, theta, X, key, 5))(KEY)

    def coupled(x):
        s = numpyro.sample("s", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Normal(s + numpyro.param("a", 0.0), 1.0).expand([len(x)]).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r'^kind: "nonparametric": needs a plate of rows'):
        jaxem.bootstrap(jaxem.from_numpyro(coupled), {"a": 0.0}, X[:4, 0], KEY, 5)


@pytest.mark.parametrize("slots", [1, 2])
def test_em_batch_takes_weights_with_a_lane_axis(theta, slots, monkeypatch):
    """As fits of their own; in slots, as on an accelerator, too."""
    monkeypatch.setattr("jaxem._fit.lanes.slots_here", lambda x: slots)
    w = cast(np.random.default_rng(1).integers(0, 3, (3, 60)).astype(float))
    thetas = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), theta)
    fits = jaxem.em_batch(M, thetas, X, weights=w)
    for lane in range(3):
        alone = jaxem.em(M, theta, X, weights=w[lane])
        np.testing.assert_allclose(fits.theta["mu"][lane], alone.theta["mu"], rtol=tolerance(1e-9, 1e-4))
        assert float(fits.free_energy[lane]) == pytest.approx(float(alone.free_energy), rel=tolerance(1e-12, 1e-5))
    with pytest.raises(ValueError, match=r"^weights: must have shape \(60,\), or \(3, 60\)"):
        jaxem.em_batch(M, thetas, X, weights=w[:2])
    with pytest.raises(ValueError, match=r"^weights: of lane 1 sum to 0"):
        jaxem.em_batch(M, thetas, X, weights=w * cast(np.array([[1.0], [0.0], [1.0]])))
