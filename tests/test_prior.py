"""F has log p(θ), L has not; the M-step is the maximum of both, and mclust's where mclust has one."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from jax.flatten_util import ravel_pytree
from test_gaussian_families import old_faithful
from test_mclust import IRIS, START, random_theta, rows

import jaxem
from jaxem import Status
from jaxem.families import bernoulli, gaussian

from cases import cast

TEN = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "EEV", "VEV", "VVV")
each_model = pytest.mark.parametrize("name", TEN)
# R's mclust 6.0.0: me(name, iris[, 1:4], unmap(start), prior = priorControl()), to the end
REFERENCE = json.loads((Path(__file__).parent / "mclust_prior_noise.json").read_text())
WEIGHTY = gaussian.Prior(
    mean=[0.5, 1.0, 0.0], shrinkage=0.7, dof=7.3, scale=[[2.0, 0.3, 0.1], [0.3, 1.0, 0], [0.1, 0, 1.5]]
)


def theta_of(name, seed=0):
    if name in ("EII", "VII", "VVI", "EEE", "VVV"):
        x = rows(seed)
        return jaxem.inits.from_labels(getattr(gaussian, name), x, np.arange(len(x)) % 3)
    return random_theta(name, seed)


def test_the_default_prior_is_mclusts():
    prior = gaussian.mclust_prior(IRIS, 3)
    expected = REFERENCE["prior"]
    assert (prior.shrinkage, prior.dof) == (expected["shrinkage"], expected["dof"])
    np.testing.assert_allclose(prior.mean, expected["mean"], rtol=1e-14)
    np.testing.assert_allclose(prior.scale, expected["scale"], rtol=1e-13)
    few = gaussian.mclust_prior(IRIS[:3], 2)  # as many rows as columns, or fewer
    assert (few.scale == np.diag(np.diag(few.scale))).all()
    assert gaussian.mclust_prior(np.array([0.0, 2.0, 4.0]), 2).scale == [[1.0]]  # 4/2²


@pytest.mark.parametrize("name", [name for name in TEN if name != "EEI"])
def test_mclusts_log_likelihood_and_covariances(name):
    """At its maximum a posteriori, where L is not stationary: so to the digits that mclust's own end has."""
    prior = gaussian.mclust_prior(IRIS, 3)
    if name == "EII":
        prior = prior._replace(scale=0.0)  # which mclust's forgets
    m, x = gaussian.with_prior(getattr(gaussian, name), prior), cast(IRIS)
    fit = jaxem.check(jaxem.em(m, jaxem.inits.from_labels(m, x, START), x, tol=0.0, max_steps=5000))
    expected = REFERENCE[name]
    near = 1e-8 if name not in ("VEI", "VEV") else 5e-8  # whose M-steps mclust ends at 1e-5
    L = fit.free_energy - m.log_prior(fit.theta)
    assert float(L) == pytest.approx(expected["loglik"], rel=near)
    np.testing.assert_allclose(jaxem.covariances(m, fit.theta), expected["sigma"], atol=2e-7)
    np.testing.assert_allclose(fit.theta["mu"], expected["mean"], atol=1e-6)


def test_mclusts_EII_forgets_the_scale_and_its_EEI_the_shrinkage():
    """So that its end is no maximum a posteriori: from there EM climbs, in EEI by more than nats' hundredths."""
    prior, x = gaussian.mclust_prior(IRIS, 3), cast(IRIS)
    m = gaussian.with_prior(gaussian.EEI, prior)
    theirs = REFERENCE["EEI"]
    variance = np.diag(np.array(theirs["sigma"][0]))
    volume = np.exp(np.log(variance).mean())
    theta = {"pi": theirs["pro"], "mu": theirs["mean"], "volume": volume, "shape": variance / volume}
    theta = cast({name: np.array(value) for name, value in theta.items()})
    assert float(jaxem.log_likelihood(m, theta, x)) == pytest.approx(theirs["loglik"], rel=1e-9)
    path = jaxem.em_path(m, theta, x, num_steps=1)
    assert path.after_m[0] > path.after_e[0] + 0.01
    weights = np.array(theirs["pro"]) * len(x)
    np.testing.assert_allclose(weights @ np.array(theirs["mean"]) / len(x), IRIS.mean(0), rtol=1e-6)  # not shrunk


@each_model
def test_the_M_step_is_where_the_gradient_of_Q_and_the_prior_is_zero(name):
    m, theta, x = gaussian.with_prior(getattr(gaussian, name), WEIGHTY), theta_of(name), rows()
    gamma = cast(np.random.default_rng(5).dirichlet(np.ones(3), len(x)).T)

    @jax.jit
    def slope(theta):
        new = m.update(m.statistics(theta, x, gamma), theta, frozenset())
        free, unravel = ravel_pytree(m.coordinates(new).unconstrain(new))

        def objective(u):
            at = m.coordinates(new).constrain(unravel(u))
            return jnp.sum(gamma * m.table(at, x)) + m.log_prior(at)

        return jax.grad(objective)(free), objective(free)

    gradient, value = slope(theta)
    assert np.abs(gradient).max() < 1e-12 * abs(value)


@pytest.mark.parametrize("name", ["VEI", "VVV"])
def test_certificates_hold(name):
    m, theta, x = gaussian.with_prior(getattr(gaussian, name), WEIGHTY), theta_of(name), rows()
    certificate = jaxem.certify(m, theta, x)
    assert certificate.holds(1e-12), certificate
    assert np.isnan(certificate.C6)


def test_F_is_L_and_the_prior_and_never_falls():
    m, theta, x = gaussian.with_prior(gaussian.full, WEIGHTY), theta_of("VVV"), rows()
    path = jaxem.em_path(m, theta, x, num_steps=4)
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    assert (np.diff(trace) > -1e-11).all()
    L = float(jaxem.log_likelihood(m, theta, x))
    assert float(path.after_e[0]) == pytest.approx(L + float(m.log_prior(theta)), rel=1e-14)
    assert float(jaxem.bic(m, theta, x)) == pytest.approx(-2 * L + 29 * np.log(len(x)), rel=1e-13)


@pytest.mark.parametrize("name", ["EII", "VII", "EEI", "VVI", "EEE", "VVV"])
def test_the_prior_is_scipys_density(name):
    """In Σ_k, or in its variances: the Gaussian of μ_k times the inverse gamma or Wishart of what Σ_k is made of."""
    theta = theta_of(name)
    m = gaussian.with_prior(getattr(gaussian, name), WEIGHTY)
    mu, Sigma = np.asarray(theta["mu"]), np.asarray(jaxem.covariances(m, theta))
    Lambda, nu, kappa = np.array(WEIGHTY.scale), WEIGHTY.dof, WEIGHTY.shrinkage
    s = np.trace(Lambda) / 3
    expected = sum(st.multivariate_normal(WEIGHTY.mean, Sigma[k] / kappa).logpdf(mu[k]) for k in range(3))
    own = Sigma[:1] if name[0] == "E" else Sigma
    for one in own:
        if name in ("EEE", "VVV"):
            expected += st.invwishart(nu, Lambda).logpdf(one)
        else:
            variances = np.diag(one) if name in ("EEI", "VVI") else one[:1, 0]
            expected += st.invgamma(nu / 2, scale=s / 2).logpdf(variances).sum()
    assert float(m.log_prior(theta)) == pytest.approx(expected, rel=1e-12)


def test_a_prior_at_any_temperature_with_weights_and_held_shares():
    m, x = gaussian.with_prior(gaussian.full.hold("pi"), WEIGHTY), rows()
    theta = theta_of("VVV")
    w = cast(np.arange(len(x)) % 3 * 1.0)
    twice = np.repeat(np.asarray(x), np.asarray(w, int), axis=0)
    twice = jaxem.em(m, theta, twice, temperature=0.5, max_steps=3)
    weighted = jaxem.em(m, theta, x, temperature=0.5, weights=w, max_steps=3)
    assert float(weighted.free_energy) == pytest.approx(float(twice.free_energy), rel=1e-12)
    assert (weighted.theta["pi"] == theta["pi"]).all()


def test_a_stream_counts_the_prior_once():
    m, x, theta = gaussian.with_prior(gaussian.full, WEIGHTY), rows(), theta_of("VVV")
    whole = jaxem.em(m, theta, x, max_steps=2)
    parts = jaxem.em_stream(m, theta, lambda: iter(np.asarray(x).reshape(4, 10, 3)), max_steps=2)
    assert float(parts.free_energy) == pytest.approx(float(whole.free_energy), rel=1e-12)


def test_with_a_prior_nothing_collapses():
    """Three equal rows, fewer rows than columns, a component without rows: each has a maximum."""
    x = cast(np.array([[0.0, 0.0, 0.0]] * 3 + [[1.0, 2.0, 3.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0]]))
    m = gaussian.with_prior(gaussian.full, gaussian.mclust_prior(x, 2))
    theta = jaxem.inits.from_labels(m, x, np.array([0, 0, 0, 1, 1, 1]))
    fit = jaxem.check(jaxem.em(m, theta, x))
    assert (np.linalg.eigvalsh(fit.theta["Sigma"]) > 1e-4).all()
    empty = jaxem.em(m, theta | {"pi": cast(np.array([1.0, 0.0]))}, x)
    assert empty.status == Status.CONVERGED
    np.testing.assert_allclose(empty.theta["mu"][1], x.mean(0), atol=1e-12)  # the prior's mode
    few = gaussian.with_prior(gaussian.full, gaussian.mclust_prior(x[3:], 2))  # as many rows as columns
    start = jaxem.inits.random_points(few, jax.random.key(0), x[3:], 2)
    assert jaxem.em(few, start, x[3:]).status == Status.CONVERGED


def test_models_with_priors_are_values(tmp_path):
    one, other = (gaussian.with_prior(gaussian.VEV, WEIGHTY) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != gaussian.with_prior(gaussian.VEV, WEIGHTY._replace(dof=8))
    assert repr(one) == "gaussian.with_prior(gaussian.VEV, dof=7.3, shrinkage=0.7)"
    theta, x = theta_of("VEV"), rows()
    fit = jaxem.em(one, theta, x, max_steps=2)
    jaxem.save(tmp_path / "fit.npz", one, fit)
    again, _ = jaxem.load(tmp_path / "fit.npz", other)
    assert again == one
    with pytest.raises(ValueError, match=r"another|not of"):
        jaxem.load(tmp_path / "fit.npz", gaussian.VEV)


@pytest.mark.parametrize("name", ["VEE", "EVE", "VVE", "EVV"])
def test_models_without_a_prior_in_mclust_are_refused_by_name(name):
    with pytest.raises(ValueError, match=rf"^m: a conjugate prior is for .*got gaussian.{name}$"):
        gaussian.with_prior(getattr(gaussian, name), WEIGHTY)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: gaussian.with_prior(gaussian.full.hold("Sigma"), WEIGHTY),
            "^m: holds 'Sigma', and a prior of what is",
        ),
        (lambda: gaussian.with_prior(gaussian.VEI.hold("shape", "mu"), WEIGHTY), "^m: holds 'mu', 'shape'"),
        (lambda: gaussian.with_prior(bernoulli.mixture, WEIGHTY), "^m: a conjugate prior is for"),
        (
            lambda: gaussian.with_prior(gaussian.with_floor(gaussian.full, 1.0), WEIGHTY),
            "^m: a conjugate prior .*floor",
        ),
        (lambda: gaussian.with_prior(gaussian.with_prior(gaussian.full, WEIGHTY), WEIGHTY), "^m: a conjugate prior"),
        (lambda: gaussian.with_prior(gaussian.full, 3.0), "^prior: must be a Prior of mean"),
        (lambda: gaussian.with_prior(gaussian.full, {"mean": 0.0}), "^prior: must have mean, shrinkage"),
        (lambda: gaussian.with_prior(gaussian.full, WEIGHTY._replace(shrinkage=-1)), "^prior.shrinkage: must be a num"),
        (lambda: gaussian.with_prior(gaussian.full, WEIGHTY._replace(dof=np.inf)), "^prior.dof: must be finite"),
        (
            lambda: gaussian.with_prior(gaussian.full, WEIGHTY._replace(scale=np.eye(2))),
            "^prior.scale: must be a number",
        ),
        (
            lambda: gaussian.with_prior(gaussian.full, WEIGHTY._replace(scale=-1.0)),
            "^prior.scale: must be positive def",
        ),
        (lambda: gaussian.mclust_prior([[1.0, 2.0]], 1), "^x: has 1 row, and a prior takes the covariance"),
        (lambda: gaussian.mclust_prior([[1.0], [np.nan]], 1), "^x: has NaN or infinity"),
        (lambda: gaussian.mclust_prior([1.0, 2.0], 0), "^K: must be an integer ≥ 1"),
        (lambda: jax.jit(lambda x: gaussian.mclust_prior(x, 1).dof)(jnp.ones(3)), "^x: is traced"),
        (
            lambda: jaxem.balanced_em(gaussian.with_prior(gaussian.full, WEIGHTY), theta_of("VVV"), rows()),
            "^m: has a pr",
        ),
        (
            lambda: jaxem.em(
                gaussian.with_prior(gaussian.spherical, WEIGHTY),
                {"pi": jnp.ones(1), "mu": jnp.zeros((1, 2)), "sigma": jnp.ones(1)},
                jnp.ones((3, 2)),
            ),
            "^m: its prior is of D = 3 columns, and x has 2",
        ),
        (
            lambda: jaxem.em_online(
                gaussian.with_prior(gaussian.full, WEIGHTY), theta_of("VVV"), lambda: iter([rows()])
            ),
            "^m: its prior has a weight",
        ),
    ],
)
def test_what_is_no_prior_says_so_in_one_line(call, match):
    with pytest.raises(ValueError, match=match) as found:
        call()
    assert "\n" not in str(found.value)


def test_select_under_a_prior_of_each_K():
    """R's mclust 6.0.0: mclustBIC(faithful, 1:3, c("EEE", "VVV"), prior = priorControl()); it stops 1e-5 from the end.

    With one component there is nothing to iterate, and the numbers agree in all digits that R printed. For VVV, 3 its
    one start, hierarchical, ends at a lower maximum.
    """
    x, key, of_prior = cast(old_faithful()), jax.random.key(0), {"prior": gaussian.mclust_prior}
    EEE, VVV = (2607.79814235, 2325.36830626, 2314.54924233), (2607.79814235, 2322.68611937, 2351.66540989)
    found = jaxem.select(x, key, models=(gaussian.EEE, gaussian.VVV), num_components=(1, 2, 3), starts=4, **of_prior)
    assert repr(found.table).splitlines()[0].count("with_prior") == 2  # columns, not six
    for candidate, value in zip(found.table, (*EEE, *VVV), strict=True):
        within = 1e-11 if candidate.num_components == 1 else 1e-4
        assert candidate.value < (1 + within) * value
        assert candidate.value > (1 - within) * value or (candidate.num_components, value) == (3, VVV[2])
    assert len(found.fit.theta["pi"]) == 3
    given = jaxem.select(x, key, models=gaussian.EEE, num_components=3, starts=4, prior=gaussian.mclust_prior(x, 3))
    assert given.m == found.m
    assert given.fit.free_energy == found.fit.free_energy
