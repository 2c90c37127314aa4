"""mclust's fourteen models: its numbers where it maximises, better ones where it does not; factors, held or free."""

import json
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_iris

import jaxem
from jaxem import Status
from jaxem._fit import names
from jaxem.families import bernoulli, gaussian
from jaxem.families.gaussian._factors import plain

from cases import EPS, FLOAT, cast, clumps, dirichlet

pytestmark = pytest.mark.takes_turns("name")

ALL = ("EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV")
NINE = ("EEI", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV")
each_model = pytest.mark.parametrize("name", NINE)
IRIS = load_iris().data  # R's, to the bit
# R's mclust 6.0.0: me(name, iris[, 1:4], unmap(start)), to the end
MCLUST = json.loads((Path(__file__).parent / "mclust_iris.json").read_text())
START = np.array([int(label) for label in MCLUST["start"]])


def random_rotation(rng, *shape):
    """Any orthogonal matrices, of either determinant."""
    return np.linalg.qr(rng.normal(size=(*shape, shape[-1])))[0]


def random_theta(name, seed=0, K=3, D=3):
    rng = np.random.default_rng([seed, 3])
    sizes = {"K": K, "D": D}
    theta = {"pi": dirichlet(rng, K), "mu": 1 + rng.normal(size=(K, D))}
    for factor, spec in getattr(gaussian, name).shapes[2:]:
        shape = tuple(sizes[axis] for axis in spec.split())
        if factor == "volume":
            theta[factor] = rng.uniform(0.3, 1.5, shape)
        elif factor == "shape":
            log = rng.normal(size=shape) / 2
            theta[factor] = np.exp(log - log.mean(axis=-1, keepdims=True))
        else:
            rotation = random_rotation(rng, *shape[:-1])
            log = rng.normal(size=shape[:-1]) / 2
            axes = np.exp(log - log.mean(axis=-1, keepdims=True))
            C = (rotation * axes[..., None, :]) @ np.swapaxes(rotation, -1, -2)
            theta[factor] = rotation if factor == "rotation" else (C + np.swapaxes(C, -1, -2)) / 2
    return cast(theta)


def rows(seed=0, N=40, D=3):
    rng = np.random.default_rng([seed, 4])
    return cast(clumps(rng, N, D) * np.array([1.0, 0.5, 2.0])[:D])


# ---- mclust's numbers


@pytest.fixture(scope="module")
def on_iris():
    """name → the fit to iris from mclust's start."""
    found = {}

    def fit(name):
        if name not in found:
            m, x = getattr(gaussian, name), cast(IRIS)
            found[name] = jaxem.em(m, jaxem.inits.from_labels(m, x, START), x, tol=0.0, max_steps=10_000)
        return found[name]

    return fit


@pytest.mark.parametrize("name", [name for name in NINE if name != "VVE"])
def test_mclusts_log_likelihood_and_parameters(on_iris, name):
    """To the end; parameters to the root of that. (The other five: `test_gaussian_families.py`, on Old Faithful.)"""
    fit, expected = jaxem.check(on_iris(name)), MCLUST["models"][name]
    assert float(fit.free_energy) == pytest.approx(expected["loglik"], rel=1e-9)
    Sigma = np.zeros((3, 4, 4))
    Sigma[:, *np.tril_indices(4)] = expected["sigma"]
    found = np.asarray(jaxem.covariances(getattr(gaussian, name), fit.theta))
    np.testing.assert_allclose(np.tril(found), Sigma, atol=3e-6)
    np.testing.assert_allclose(fit.theta["pi"], expected["pro"], atol=3e-6)
    np.testing.assert_allclose(fit.theta["mu"], expected["mean"], atol=3e-6)


def slope(m, theta, x):
    """max |∇L| in nats a row, over coordinates of the free parameters, rotations by a chart about θ's own."""
    u, unravel = ravel_pytree(m.coordinates(theta).unconstrain(theta))
    L = jax.jit(jax.grad(lambda u: jaxem.log_likelihood(m, m.coordinates(theta).constrain(unravel(u)), x)))
    return float(jnp.max(jnp.abs(L(u)))) / len(x)


def as_VVE(model):
    """mclust's end point in our parameters: the eigenvectors that its components share."""
    Sigma = np.zeros((3, 4, 4))
    Sigma[:, *np.tril_indices(4)] = model["sigma"]
    Sigma = Sigma + np.swapaxes(np.tril(Sigma, -1), 1, 2)
    rotation = np.linalg.eigh(Sigma[0])[1]
    axes = np.einsum("dj,kde,ej->kj", rotation, Sigma, rotation)
    volume = np.exp(np.log(axes).mean(1))
    pi = np.array(model["pro"])
    shape = axes / volume[:, None]
    return cast({"pi": pi / pi.sum(), "mu": model["mean"], "volume": volume, "shape": shape, "rotation": rotation})


def test_the_likelihood_of_VVE_has_its_maximum_where_mclust_has_none(on_iris):
    """mclust's rotation forgets 1/λ_k: where it stops there is a slope, and EM from there ends 1.19 nats above."""
    fit, x = jaxem.check(on_iris("VVE")), cast(IRIS)
    theirs = as_VVE(MCLUST["models"]["VVE"])
    assert MCLUST["models"]["VVE"]["loglik"] == pytest.approx(-215.240870339564)
    assert float(jaxem.log_likelihood(gaussian.VVE, theirs, x)) == pytest.approx(-215.24087, rel=1e-7)
    assert float(fit.free_energy) == pytest.approx(-214.0532078, abs=1e-6)
    assert slope(gaussian.VVE, fit.theta, x) < 1e-7
    assert slope(gaussian.VVE, theirs, x) > 0.02
    further = jaxem.em(gaussian.VVE, theirs, x, tol=0.0, max_steps=10_000)
    assert float(further.free_energy) == pytest.approx(float(fit.free_energy), rel=1e-9)


def test_EVE_ends_where_its_likelihood_is_stationary(on_iris):
    assert slope(gaussian.EVE, on_iris("EVE").theta, cast(IRIS)) < 1e-7


@pytest.mark.parametrize("name", ALL)
def test_degrees_of_freedom_are_mclusts(name):
    """Its nVarParams, in D = 4, beside K − 1 + K·D."""
    D, m = 4, getattr(gaussian, name)
    x, turn = cast(np.random.default_rng(0).normal(size=(20, D))), D * (D - 1) // 2
    for K in range(1, 10):
        volume, shape, orientation = (K if letter == "V" else int(letter == "E") for letter in name)
        df = volume + shape * (D - 1) + orientation * turn
        theta = jaxem.inits.random_points(m, jax.random.key(0), x, K)
        assert jaxem.num_parameters(m, theta) == K - 1 + K * D + df


def test_all_are_fourteen_in_mclusts_order():
    assert tuple(getattr(gaussian, name) for name in ALL) == gaussian.ALL
    assert len(set(gaussian.ALL)) == 14
    assert (gaussian.spherical, gaussian.diagonal, gaussian.tied) == (gaussian.VII, gaussian.VVI, gaussian.EEE)


# ---- the density and the M-step


@each_model
def test_the_kernel_is_the_programs_table_and_scipys_density(name):
    m, theta, x = getattr(gaussian, name), random_theta(name), rows()
    Sigma = np.asarray(jaxem.covariances(m, theta), float)
    expected = [
        np.log(pi) + st.multivariate_normal.logpdf(np.asarray(x, float), mu, S)
        for pi, mu, S in zip(*(np.asarray(theta[part], float) for part in ("pi", "mu")), Sigma, strict=True)
    ]
    assert np.allclose(m.table(theta, x), expected, rtol=1e-12)
    assert np.allclose(m.traced_table(theta, x), expected, rtol=1e-12)
    volume = np.exp(np.linalg.slogdet(Sigma)[1] / 3)
    assert np.allclose(volume, np.broadcast_to(theta["volume"], 3), rtol=1e-12)


@pytest.mark.parametrize("name", ["EEI", "VEE", "VVE", "VEV"])  # one of each kind of M-step: compiling is what it costs
def test_certificates_hold_at_a_random_theta(name):
    """By `jax.grad`, with weights and T ≠ 1; C6 of EEI alone: the others are curved exponential families."""
    weights = cast(np.random.default_rng(0).uniform(0, 2, 40))
    m = getattr(gaussian, name)
    certificate = jaxem.certify(m, random_theta(name), rows(), 0.8, weights=weights)
    assert certificate.holds(1e-12), certificate
    assert np.isnan(certificate.C6) == (name != "EEI")


def expected_slope(m, new, statistics, theta):
    """max |∇Q| at an M-step's θ, nats a row, from the statistics alone: Q = −½ Σ N_k (log |Σ_k| + tr Σ_k⁻¹S_k)."""
    N_k, shift, spread = statistics
    if spread.ndim == 2:
        spread = spread[:, :, None] * jnp.eye(3, dtype=spread.dtype)[None]

    def Q(free):
        found = m.coordinates(new).constrain(free)
        move = found["mu"] - theta["mu"]
        cross = shift[:, :, None] * move[:, None, :]
        W = spread - cross - jnp.swapaxes(cross, 1, 2) + N_k[:, None, None] * move[:, :, None] * move[:, None, :]
        Sigma = jaxem.covariances(m, found)
        L = jnp.linalg.cholesky(Sigma)
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(L, axis1=1, axis2=2)), axis=1)
        quadratic = jnp.trace(jnp.linalg.solve(Sigma, W), axis1=1, axis2=2)
        return -jnp.sum(N_k * log_det + quadratic) / 2 / jnp.sum(N_k)

    free = {part: value for part, value in m.coordinates(new).unconstrain(new).items() if part != "pi"}
    value, gradient = jax.jit(jax.value_and_grad(Q))(free)
    return float(value), max(float(jnp.max(jnp.abs(leaf), initial=0)) for leaf in jax.tree.leaves(gradient))


@each_model
def test_q_is_stationary_in_the_factors_that_are_not_held(name):
    theta, x = random_theta(name), rows()
    m = getattr(gaussian, name)
    gamma = jaxem.responsibilities(m, theta, x).T
    statistics = m.statistics(theta, x, gamma)
    for held in ((), *((part,) for part in m.parameters[2:])):
        some = m.hold(*held)
        new = jax.jit(some.update, static_argnums=2)(statistics, theta, some.held)
        assert all((new[part] == theta[part]).all() for part in held)
        best, residual = expected_slope(some, new, statistics, theta)
        assert residual < 1e-10, held
        if "rotation" in some.free:  # of the axes in another order Q is stationary too, but less
            other, _ = expected_slope(some, new | {"rotation": new["rotation"][..., ::-1]}, statistics, theta)
            assert other < best, held


@each_model
def test_an_empty_component_keeps_its_own_factors_and_lends_nothing(name):
    m, theta, x = getattr(gaussian, name), random_theta(name), rows()
    gamma = np.asarray(jaxem.responsibilities(m, theta, x).T).copy()
    gamma[1] += gamma[0]
    gamma[0] = 0
    update = jax.jit(m.update, static_argnums=2)
    new = update(m.statistics(theta, x, cast(gamma)), theta, m.held)
    alone = {part: theta[part][1:] if spec.startswith("K") else theta[part] for part, spec in m.shapes}
    other = update(m.statistics(alone, x, cast(gamma[1:])), alone, m.held)
    for part, spec in m.shapes:
        if spec.startswith("K"):
            assert part == "pi" or (new[part][0] == theta[part][0]).all()
            assert np.allclose(new[part][1:], other[part], atol=1e-10), part
        else:
            assert np.allclose(new[part], other[part], atol=1e-10), part


def test_one_common_rotation_is_that_of_the_tied_covariance():
    """K = 1: EVE, VVE, EEV, EVV, VEE are all EEE; the planes are Jacobi's, and end at LAPACK's eigenvectors."""
    x = rows()
    S = np.cov(np.asarray(x, float).T, bias=True)
    for name in ("EVE", "VVE", "EEV", "EVV", "VEE"):
        m, theta = getattr(gaussian, name), random_theta(name, K=1)
        new = m.update(m.statistics(theta, x, jnp.ones((1, len(x)), FLOAT)), theta, m.held)
        assert np.allclose(jaxem.covariances(m, new)[0], S, rtol=1e-12, atol=1e-13)


def test_one_feature_has_no_shape():
    x = rows(D=1)
    for name in NINE:
        m, theta = getattr(gaussian, name), random_theta(name, D=1)
        gamma = jaxem.responsibilities(m, theta, x).T
        new = m.update(m.statistics(theta, x, gamma), theta, m.held)
        like = gaussian.spherical if name.startswith("V") else gaussian.isotropic
        sigma = jnp.sqrt(jnp.ones(() if like is gaussian.isotropic else 3, FLOAT))
        theta = {"pi": theta["pi"], "mu": theta["mu"], "sigma": sigma}
        expected = like.update(like.statistics(theta, x, gamma), theta, like.held)["sigma"] ** 2
        assert np.allclose(new["volume"], expected, rtol=1e-12), name


@pytest.mark.parametrize("name", ["VEI", "VVE"])
def test_far_from_the_origin_in_single_precision(name):
    """The same fit at an offset of 1000 within-cluster deviations, to what the offset leaves of x's digits."""
    m, x = getattr(gaussian, name), IRIS.astype(np.float32)
    far = (IRIS + 1000).astype(np.float32)
    near, moved = (jaxem.em(m, jaxem.inits.from_labels(m, rows, START), rows, max_steps=30) for rows in (x, far))
    assert near.free_energy.dtype == np.float32
    assert float(moved.free_energy) == pytest.approx(float(near.free_energy), abs=0.2)
    assert np.allclose(jaxem.covariances(m, moved.theta), jaxem.covariances(m, near.theta), atol=5e-3)


# ---- coordinates, starts, what is refused


@each_model
def test_coordinates_of_the_factors_are_a_chart(name):
    """There and back is nothing; and whatever the coordinates are, the factors are what they should be."""
    m, theta = getattr(gaussian, name), random_theta(name)
    of = m.coordinates(theta)
    back = of.constrain(of.unconstrain(theta))
    for part in m.parameters:
        assert np.allclose(back[part], theta[part], atol=100 * EPS), part
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda u: u + cast(rng.normal(size=u.shape)), of.unconstrain(theta))
    there = of.constrain(moved)
    for part in m.parameters[2:]:
        assert np.all(m.constraint(part)(np.asarray(there[part]))), part
        again = of.unconstrain(there)[part]
        assert np.allclose(again, moved[part], atol=1e-10), part


@each_model
def test_a_start_has_the_pooled_covariance(name):
    m, x = getattr(gaussian, name), rows()
    theta = jaxem.inits.kmeans_plus_plus(m, jax.random.key(0), x, 2)
    S = np.cov(np.asarray(x, float).T, bias=True)
    expected = np.diag(np.diag(S)) if name.endswith("I") else S
    for Sigma in jaxem.covariances(m, theta):
        assert np.allclose(Sigma, expected, rtol=1e-10, atol=1e-12)


def test_a_wrong_factor_is_named():
    x = rows()
    for part, value, words in [
        ("shape", np.full((3, 3), 2.0), "product 1"),
        ("rotation", np.ones((3, 3)), "orthogonal"),
        ("volume", np.zeros(3), "Positive"),
    ]:
        with pytest.raises(ValueError, match=rf"^theta\['{part}'\]: must satisfy .*{words}"):
            jaxem.log_likelihood(gaussian.VVE, random_theta("VVE") | {part: cast(value)}, x)
    with pytest.raises(ValueError, match=r"^theta\['correlation'\]: must satisfy .*determinant 1"):
        jaxem.log_likelihood(gaussian.VEE, random_theta("VEE") | {"correlation": cast(2 * np.eye(3))}, x)
    with pytest.raises(ValueError, match=r"^hold: 'sigma' is not a parameter"):
        gaussian.VVE.hold("sigma")


def test_no_floor_under_what_is_shared():
    with pytest.raises(ValueError, match=r"^m: gaussian\.VEI has factors that components share"):
        gaussian.with_floor(gaussian.VEI, 0.1)
    with pytest.raises(ValueError, match="no sigma or Sigma"):
        gaussian.with_floor(bernoulli.mixture, 0.1)


@pytest.mark.parametrize("name", ["VEI", "EVV"])
def test_a_collapse_is_nonfinite(name):
    """A point of its own: λ_k or det W_k is 0."""
    x = cast(np.concatenate([np.random.default_rng(0).normal(size=(20, 2)), [[50.0, 50.0]]]))
    m = getattr(gaussian, name)
    fit = jaxem.em(m, m.guess(x[jnp.array([0, 20])], x), x)
    assert fit.status == Status.NONFINITE
    assert all(np.isfinite(value).all() for value in fit.theta.values())


@each_model
def test_a_model_is_its_name_in_every_process(name):
    m = getattr(gaussian, name)
    assert repr(m) == f"gaussian.{name}"
    assert names.description(m) == {"family": f"gaussian.{name}", "held": []}
    assert pickle.loads(pickle.dumps(m)) == m


def test_a_hidden_column_given_the_others_is_that_of_the_same_covariances():
    theta, x, mask = random_theta("VVE"), rows(), np.array([True, False, True])
    found = jaxem.condition(gaussian.VVE, theta, x, mask)
    expected = jaxem.condition(gaussian.full, plain(theta), x, mask)
    assert np.allclose(found.mean, expected.mean, rtol=1e-12)
    assert np.allclose(found.pi, expected.pi, atol=1e-12)


def test_select_takes_them():
    x = cast(IRIS[50:, 2:])
    found = jaxem.select(x, jax.random.key(0), models=(gaussian.EEI, gaussian.EEV), num_components=2, starts=2)
    assert found.m in (gaussian.EEI, gaussian.EEV)
    assert np.isfinite([candidate.value for candidate in found.table]).all()
