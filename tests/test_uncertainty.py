"""Standard errors: the inverse of a numerical Hessian of SciPy's likelihood, Louis' identity, EM's own Jacobian, R."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax.flatten_util import ravel_pytree
from numpyro import distributions as dist
from numpyro.distributions import constraints

import jaxem
from jaxem._answers.uncertainty import _uncertainty
from jaxem._core.checks import enter
from jaxem.families import bernoulli, gaussian

from cases import CASES, cast, tolerance

BY_NAME = {case.name: case for case in CASES}
X = cast(np.random.default_rng(3).normal(size=(60, 2)) + 3.0 * (np.arange(60) % 2)[:, None])
HALVES = np.arange(60) % 2
# 4 answers: of fewer than 3, two Bernoulli components are not identified
ANSWERS = cast(np.random.default_rng(0).binomial(1, np.where(HALVES[:, None] == 1, 0.75, 0.25), (60, 4)))


def fitted(m, x=X, labels=HALVES, **options):
    start = jaxem.inits.from_labels(m, x, labels)
    return jaxem.check(jaxem.em(m, start, x, tol=tolerance(1e-14, 1e-9), max_steps=5000, **options)).theta


@pytest.fixture(scope="module")
def spherical():
    """A fit that several tests ask about, and its errors."""
    theta = fitted(gaussian.spherical)
    return theta, jaxem.standard_errors(gaussian.spherical, theta, X)


def anywhere(theta):
    """What is found at a θ that is no maximum, as inside of `jit`; compiled once for all tests."""
    return _uncertainty(gaussian.spherical, *enter(gaussian.spherical, theta, X), sandwich=False)


def numerical_hessian(f, v, step=1e-4):
    """By central differences."""
    P = len(v)
    shifts = np.eye(P) * step * np.maximum(np.abs(v), 0.1)
    found = np.empty((P, P))
    for i in range(P):
        for j in range(P):
            a, b = shifts[i], shifts[j]
            found[i, j] = (f(v + a + b) - f(v + a - b) - f(v - a + b) + f(v - a - b)) / (4 * a[i] * b[j])
    return found


def minimal(name):
    """(θ → numbers without redundancy, and back), by NumPy: π_1, the means or probabilities, the scales."""
    lower = np.tril_indices(2)

    def there(theta):
        theta = {key: np.asarray(value, float) for key, value in theta.items()}
        rest = [theta[key].ravel() for key in ("mu", "sigma", "probs") if key in theta]
        if "Sigma" in theta:
            rest += [S[lower] for S in theta["Sigma"]]
        return np.concatenate([theta["pi"][:1], *rest])

    def back(v):
        theta = {"pi": np.array([v[0], 1 - v[0]])}
        if name == "bernoulli":
            return theta | {"probs": v[1:].reshape(2, 4)}
        theta |= {"mu": v[1:5].reshape(2, 2)}
        if name == "full":
            S = np.zeros((2, 2, 2))
            for k in range(2):
                S[k][lower] = v[5 + 3 * k : 8 + 3 * k]
                S[k] = S[k] + np.tril(S[k], -1).T
            return theta | {"Sigma": S}
        return theta | {"sigma": v[5:]}

    return there, back


@pytest.mark.parametrize("name", ["spherical", "full", "bernoulli"])
def test_they_are_those_of_a_numerical_hessian_in_any_coordinates(name, spherical):
    """At a maximum the inverse Hessian is a tensor: SciPy's likelihood in the test's own coordinates, differenced."""
    case = BY_NAME[name]
    x = X if name != "bernoulli" else ANSWERS
    theta = spherical[0] if name == "spherical" else fitted(case.m, x)
    found = spherical[1] if name == "spherical" else jaxem.standard_errors(case.m, theta, x)
    there, back = minimal(name)

    def likelihood(v):
        return np.logaddexp.reduce(case.log_joint(back(v), x), axis=1).sum()

    expected = np.sqrt(np.diag(np.linalg.inv(-numerical_hessian(likelihood, there(theta)))))
    np.testing.assert_allclose(there(found.standard_errors), expected, rtol=tolerance(1e-5, 2e-2))
    first = [ravel_pytree({key: jnp.full_like(value, key == "pi") for key, value in theta.items()})[0] > 0]
    of_pi = np.asarray(found.covariance)[np.ix_(*first * 2)]
    np.testing.assert_allclose(of_pi.sum(axis=0), 0, atol=tolerance(1e-14, 1e-6))  # on its simplex


def test_the_observed_information_is_louis_at_every_theta():
    """E[−∇²ℓ_c | x] − Σ_n Var[s_c | x_n], no fixed point needed: C28."""
    m, theta = gaussian.spherical, BY_NAME["spherical"].theta(1, K=2)
    information = anywhere(theta).information
    gamma = jaxem.responsibilities(m, theta, X)
    free, unravel = ravel_pytree(m.coordinates(theta).unconstrain(theta))

    @jax.jit
    def louis(free):
        def complete(u):
            return m.table(m.coordinates(theta).constrain(unravel(u)), X).T  # (N, K)

        s = jax.jacfwd(complete)(free)  # (N, K, P)
        mean = jnp.einsum("nk,nkp->np", gamma, s)
        variance = jnp.einsum("nk,nkp,nkq->pq", gamma, s, s) - mean.T @ mean
        return -jnp.einsum("nk,nkpq->pq", gamma, jax.jacfwd(jax.jacfwd(complete))(free)) - variance

    expected = louis(free)
    scale = float(jnp.max(jnp.abs(expected)))
    np.testing.assert_allclose(information, expected, rtol=0, atol=tolerance(1e-10, 1e-3) * scale)


def test_at_a_fixed_point_it_is_I_c_times_one_minus_EMs_jacobian(spherical):
    """I (I − J)⁻¹ = I_c is symmetric there, and the least eigenvalue is 1 − ρ(J): C12 and C28."""
    theta, found = spherical
    rate = jaxem.convergence_rate(gaussian.spherical, theta, X)
    P = found.information.shape[0]
    complete = np.asarray(found.information) @ np.linalg.inv(np.eye(P) - np.asarray(rate.jacobian))
    slack = tolerance(1e-6, 1e-2) * np.abs(complete).max()  # what tol leaves of the fixed point
    np.testing.assert_allclose(complete, complete.T, rtol=0, atol=slack)
    assert float(found.least_eigenvalue) == pytest.approx(1 - float(rate.spectral_radius), abs=tolerance(1e-6, 1e-3))
    assert float(found.nats_left) < tolerance(1e-9, 1e-4)


def test_what_is_held_is_known(spherical):
    theta, free = spherical
    m = gaussian.spherical.hold("pi", "sigma")
    found = jaxem.standard_errors(m, theta, X)
    assert not np.any(found.standard_errors["pi"]) and not np.any(found.standard_errors["sigma"])  # noqa: PT018
    inverse = np.linalg.inv(np.asarray(free.information)[:4, :4])  # of mu, the first by name
    np.testing.assert_allclose(
        np.ravel(found.standard_errors["mu"]), np.sqrt(np.diag(inverse)), rtol=tolerance(1e-7, 1e-2)
    )


def test_a_row_of_weight_two_is_two_rows():
    m, kind = gaussian.isotropic, "sandwich"  # in which the observed information is, twice
    w = cast(1.0 + np.arange(60) % 3)
    theta = fitted(m, weights=w)
    found = jaxem.standard_errors(m, theta, X, kind=kind, weights=w)
    repeated = jaxem.standard_errors(m, theta, jnp.repeat(X, np.asarray(w, int), axis=0), kind=kind)
    np.testing.assert_allclose(found.covariance, repeated.covariance, rtol=tolerance(1e-8, 1e-2), atol=1e-6)


def program(x):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
    mu = numpyro.param("mu", jnp.zeros((2, 2)))
    sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z][..., None]).to_event(1), obs=x)


def test_a_program_has_those_of_its_family_and_the_sandwich_is_its_formula(spherical):
    theta, found = spherical
    m = jaxem.from_numpyro(program)
    same = jaxem.standard_errors(m, theta, X)
    np.testing.assert_allclose(same.covariance, found.covariance, rtol=tolerance(1e-8, 1e-2), atol=1e-6)
    robust = jaxem.standard_errors(gaussian.spherical, theta, X, kind="sandwich")
    again = jaxem.standard_errors(m, theta, X, kind="sandwich")
    np.testing.assert_allclose(again.covariance, robust.covariance, rtol=tolerance(1e-8, 1e-2), atol=1e-6)

    def row(theta, x):
        return jaxem.log_likelihood(gaussian.spherical, theta, x[None])

    per_row = jax.vmap(jax.grad(row), in_axes=(None, 0))(theta, X)  # in θ itself, off the simplex too
    scores = np.asarray(jax.vmap(lambda s: ravel_pytree(s)[0])(per_row))
    bread = np.asarray(found.covariance)  # G I⁻¹ Gᵀ: it projects what is off the simplex
    expected = bread @ (scores.T @ scores) @ bread
    np.testing.assert_allclose(robust.covariance, expected, rtol=tolerance(1e-7, 2e-2), atol=1e-6)


def test_they_are_flexmixs_on_its_regressions():
    """`refit` of R's flexmix on NPreg: coefficients, log σ and the logit of the share, by optim's numerical Hessian."""
    reference = json.loads((Path(__file__).parent / "flexmix_npreg.json").read_text())
    t, y = cast(np.array(reference["x"])), cast(np.array(reference["yn"]))
    features = jnp.stack([jnp.ones_like(t), t, t**2], axis=1)

    def regressions(features, y):
        pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=constraints.simplex)
        beta = numpyro.param("beta", jnp.zeros((2, 3)))
        sigma = numpyro.param("sigma", jnp.ones(2), constraint=constraints.positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Categorical(pi))
            numpyro.sample("y", dist.Normal(jnp.sum(features * beta[z], axis=-1), sigma[z]), obs=y)

    m = jaxem.from_numpyro(regressions)
    par = np.array(reference["par"])
    start = cast({"pi": np.array(reference["prior"]), "beta": par[:3].T, "sigma": par[3]})
    fit = jaxem.check(jaxem.em(m, start, (features, y)))
    assert reference["loglik"] < float(fit.free_energy) < reference["loglik"] + 0.02  # its EM divides σ² by N_k − 3/2
    found = jaxem.standard_errors(m, fit.theta, (features, y))
    theirs = np.sqrt(np.diag(reference["vcov"]))
    errors = found.standard_errors
    np.testing.assert_allclose(np.ravel(errors["beta"]), theirs[[0, 1, 2, 4, 5, 6]], rtol=2e-2)
    np.testing.assert_allclose(errors["sigma"] / fit.theta["sigma"], theirs[[3, 7]], rtol=2e-2)
    p = float(fit.theta["pi"][0])
    assert float(errors["pi"][0]) / (p * (1 - p)) == pytest.approx(theirs[8], rel=2e-2)


def test_with_a_prior_they_are_laplaces():
    """A normal mean with a normal prior: 1/(N/σ² + 1/τ²)."""

    def normal(x):
        mu = numpyro.sample("mu", dist.Normal(0.0, 0.5))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("z", dist.Bernoulli(0.5))  # about which nothing says anything
            numpyro.sample("x", dist.Normal(mu, 2.0), obs=x)

    m, x = jaxem.from_numpyro(normal), X[:9, 0]
    fit = jaxem.em(m, m.init(jax.random.key(0), x), x)
    found = jaxem.standard_errors(m, fit.theta, x)
    assert float(found.standard_errors["mu"]) == pytest.approx((9 / 4 + 4) ** -0.5, rel=tolerance(1e-9, 1e-5))
    with pytest.raises(ValueError, match=r"^standard_errors: every parameter is held"):
        jaxem.standard_errors(m.hold("mu"), fit.theta, x)


def test_singular_points_have_none_and_say_so(spherical):
    m, theta = gaussian.spherical, spherical[0]
    deviation = jnp.sqrt(jnp.mean((X - jnp.mean(X, axis=0)[None]) ** 2))
    equal = {"pi": jnp.full(2, 0.5), "mu": jnp.mean(X, axis=0)[None].repeat(2, 0), "sigma": deviation.repeat(2)}
    with pytest.warns(UserWarning, match=r"information is singular there \(least eigenvalue -"):  # a saddle
        found = jaxem.standard_errors(m, equal, X)
    assert float(found.least_eigenvalue) < 0
    assert all(np.isnan(error).all() for error in found.standard_errors.values())
    critical = equal | {"sigma": jaxem.limits.critical_sigma(X).repeat(2)}  # σ_c: the means are about to part
    with pytest.warns(UserWarning, match="information is singular"):
        found = jaxem.standard_errors(m.hold("pi", "sigma"), critical, X)
    assert abs(float(found.least_eigenvalue)) < tolerance(1e-12, 1e-5)
    edge = equal | {"pi": cast(np.array([1.0, 0.0])), "mu": equal["mu"] + cast(np.array([[0.0], [9.0]]))}
    with pytest.warns(UserWarning, match="edge"):
        found = jaxem.standard_errors(m, edge, X)
    assert np.isnan(found.least_eigenvalue)
    off = theta | {"mu": theta["mu"] + 0.3}
    with pytest.raises(ValueError, match=r"^theta: is no maximum .* nats below"):
        jaxem.standard_errors(m, off, X)
    far = anywhere(off)
    assert float(far.nats_left) > 0.02
    assert np.isnan(far.standard_errors["mu"]).all()


def test_bad_input_is_one_line(spherical):
    theta = spherical[0]
    with pytest.raises(ValueError, match=r'^kind: must be one of "observed", "sandwich", got'):
        jaxem.standard_errors(gaussian.spherical, theta, X, kind="robust")
    with pytest.raises(ValueError, match=r"^standard_errors: every parameter is held"):
        jaxem.standard_errors(bernoulli.mixture.hold("pi", "probs"), {"pi": [1.0], "probs": [[0.5]]}, [[0], [1]])

    def chain(y):
        numpyro.param("a", 0.0)
        s = numpyro.sample("s", dist.Bernoulli(0.4))
        with numpyro.plate("rows", len(y)):
            numpyro.sample("y", dist.Normal(s + numpyro.param("a", 0.0), 1.0), obs=y)

    with pytest.raises(ValueError, match=r'^kind: "sandwich": needs a plate of rows'):
        jaxem.standard_errors(jaxem.from_numpyro(chain), {"a": 0.0}, X[:5, 0], kind="sandwich")
