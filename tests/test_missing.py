"""Missing cells: F is the observed-data free energy, by SciPy's marginals and an EM written row by row in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize as so
import scipy.stats as st
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from scipy.special import logsumexp
from test_mclust import NINE, random_theta

import jaxem
from jaxem.families import gaussian, poisson

from cases import CASES, cast

N, D, K = 40, 3, 2
FULL = gaussian.full
FIVE = ("isotropic", "spherical", "diagonal", "tied", "full")
CASE = {case.name: case for case in CASES}
DISCRETE = [CASE[name] for name in ("bernoulli", "categorical", "poisson", "exponential")]
each_discrete = pytest.mark.parametrize("case", DISCRETE, ids=lambda case: case.name)
CLOSE = {"rtol": 1e-11, "atol": 1e-11}  # sums of some hundred terms


def holes(x, seed=0, share=0.3):
    """Cells missing at random, and row 3 without any."""
    x = np.array(x, float)
    x[np.random.default_rng([seed, 9]).random(x.shape) < share] = np.nan
    x[3] = np.nan
    return cast(x)


def theta_of(name):
    return random_theta(name, K=K, D=D) if name in NINE else CASE[name].theta(K=K, D=D)


ROWS = holes(CASE["full"].x(N=N, D=D))
THETA = theta_of("full")
WEIGHTS = np.random.default_rng(5).uniform(0, 2, N)


def observed(row):
    return ~np.isnan(row)


def by_scipy(m, theta, x):
    """(N, K): each row's own marginal density."""
    mu = np.asarray(theta["mu"], float)
    Sigma = np.asarray(theta["Sigma"] if m is FULL else jaxem.covariances(m, theta), float)
    found = np.tile(np.log(np.asarray(theta["pi"], float)), (len(x), 1))
    for n, row in enumerate(np.asarray(x, float)):
        o = observed(row)
        for k in range(len(mu)):
            if o.any():
                found[n, k] += st.multivariate_normal.logpdf(row[o], mu[k][o], Sigma[k][np.ix_(o, o)])
    return found


def by_columns(case, theta, x):
    """(N, K): SciPy's log-density of each observed column."""
    theta = {name: np.asarray(value, float) for name, value in theta.items()}
    found = np.tile(np.log(theta["pi"]), (len(x), 1))
    for d in range(x.shape[1]):
        of_column = {name: value if name == "pi" else value[:, d : d + 1] for name, value in theta.items()}
        seen = observed(np.asarray(x[:, d]))
        whole = np.asarray(x, float)[seen, d : d + 1]
        whole = whole.astype(int) if case.name != "exponential" else whole
        found[seen] += case.log_joint(of_column, whole) - np.log(theta["pi"])
    return found


def softmax(table, T=1.0):
    return np.exp(table / T - logsumexp(table / T, axis=1, keepdims=True))


def em_step(theta, x, w):
    """One step of EM for `full`, row by row and component by component (Ghahramani & Jordan 1994)."""
    mu, Sigma = (np.asarray(theta[name], float) for name in ("mu", "Sigma"))
    gamma = softmax(by_scipy(FULL, theta, x))
    counts, first, second = np.zeros(K), np.zeros((K, D)), np.zeros((K, D, D))
    for n, row in enumerate(np.asarray(x, float)):
        o = observed(row)
        if not o.any():
            continue
        for k in range(K):
            full, rest = row.copy(), np.zeros((D, D))
            regression = Sigma[k][np.ix_(~o, o)] @ np.linalg.inv(Sigma[k][np.ix_(o, o)])
            full[~o] = mu[k][~o] + regression @ (row[o] - mu[k][o])
            rest[np.ix_(~o, ~o)] = Sigma[k][np.ix_(~o, ~o)] - regression @ Sigma[k][np.ix_(o, ~o)]
            r = w[n] * gamma[n, k]
            counts[k] += r
            first[k] += r * full
            second[k] += r * (np.outer(full, full) + rest)
    mu = first / counts[:, None]
    Sigma = second / counts[:, None, None] - mu[:, :, None] * mu[:, None, :]
    return {"pi": counts / counts.sum(), "mu": mu, "Sigma": Sigma}


def step_by_columns(case, theta, x, w):
    """One step of EM for independent columns: means of what is observed, by weights times γ."""
    seen = observed(np.asarray(x))
    r = w[:, None] * softmax(by_columns(case, theta, x)) * seen.any(axis=1)[:, None]
    values, mass = np.where(seen, np.asarray(x, float), 0), r.T @ seen
    (name,) = set(theta) - {"pi"}
    if case.name == "categorical":
        hot = (values[:, :, None] == np.arange(4)) * seen[:, :, None]
        expected = np.einsum("nk,ndc->kdc", r, hot) / mass[:, :, None]
    else:
        mean = r.T @ values / mass
        expected = 1 / mean if case.name == "exponential" else mean
    return {"pi": r.sum(0) / r.sum(), name: expected}


def masked_log_likelihood(m, theta, x):
    """The other formula, differentiable: N(x̃; 0, Σ̃), Σ̃ = MΣM + I − M, of which (2π)^{−h/2} is the missing's."""
    Sigma = jaxem.covariances(m, theta)

    def of_row(row):
        M = jnp.isfinite(row)
        z = jnp.where(M[None], jnp.nan_to_num(row)[None] - theta["mu"], 0)
        masked = jnp.where(M[:, None] & M[None], Sigma, jnp.eye(len(row))[None])
        squares = jnp.sum(z * jnp.linalg.solve(masked, z[:, :, None])[:, :, 0], axis=1)
        constant = jnp.sum(M) * jnp.log(2 * jnp.pi)
        return jax.nn.logsumexp(jnp.log(theta["pi"]) - (squares + jnp.linalg.slogdet(masked)[1] + constant) / 2)

    with jax.numpy_rank_promotion("allow"):
        return jnp.sum(jax.vmap(of_row)(x))


# ---- the likelihood


@pytest.mark.parametrize("name", [*FIVE, *NINE])
def test_the_table_of_a_gaussian_is_scipys_marginals(name):
    """All fourteen; a row with nothing observed has log π."""
    m, theta = getattr(gaussian, name), theta_of(name)
    np.testing.assert_allclose(jaxem.log_joint(m, theta, ROWS, missing=True), by_scipy(m, theta, ROWS), **CLOSE)


def test_more_features_than_are_spelled_out():
    theta, x = CASE["full"].theta(K=K, D=9), holes(CASE["full"].x(N=12, D=9))
    np.testing.assert_allclose(jaxem.log_joint(FULL, theta, x, missing=True), by_scipy(FULL, theta, x), **CLOSE)


@each_discrete
def test_the_table_of_independent_columns_drops_terms(case):
    theta, x = case.theta(K=K, D=D), holes(case.x(N=N, D=D))
    np.testing.assert_allclose(jaxem.log_joint(case.m, theta, x, missing=True), by_columns(case, theta, x), **CLOSE)


def test_the_likelihood_is_the_sum_over_rows_with_something():
    table = by_scipy(FULL, THETA, ROWS)
    value = jaxem.log_likelihood(FULL, THETA, ROWS, weights=WEIGHTS, missing=True)
    assert float(value) == pytest.approx(np.sum(WEIGHTS * logsumexp(table, axis=1)), rel=1e-12)
    gamma = jaxem.responsibilities(FULL, THETA, ROWS, missing=True)
    np.testing.assert_allclose(gamma, softmax(table), **CLOSE)
    np.testing.assert_allclose(gamma[3], THETA["pi"], rtol=1e-14)
    Q = jaxem.expected_log_joint(FULL, THETA, gamma, ROWS, missing=True)
    assert float(Q) == pytest.approx(np.sum((softmax(table) * table)[np.arange(N) != 3]), rel=1e-12)


# ---- the fit


@pytest.fixture(scope="module")
def path():
    return jaxem.em_path(FULL.with_missing(), THETA, ROWS, num_steps=6, weights=WEIGHTS)


def test_steps_are_those_of_an_em_written_row_by_row(path):
    theta = THETA
    for t in range(6):
        theta = em_step(theta, ROWS, WEIGHTS)
        for name, value in theta.items():
            np.testing.assert_allclose(path.theta[name][t], value, **CLOSE)


def test_neither_half_step_lowers_F(path):
    """Between them F has what is missing as a latent too: it is at most F after the E-step."""
    path = jax.tree.map(lambda leaf: np.asarray(leaf, float), path)
    slack = 1e-12
    assert (path.after_m >= path.after_e - slack).all()
    assert (path.after_e[1:] >= path.after_m[:-1] - slack).all()


@pytest.mark.parametrize("name", ["full", "VEI"])
def test_a_fit_is_stationary_in_the_observed_data_likelihood(name):
    """By `jax.grad` of the masked density, over the free coordinates."""
    m = getattr(gaussian, name)
    theta = theta_of(name)
    fit = jaxem.check(jaxem.em(m, theta, ROWS, tol=1e-13, max_steps=20_000, missing=True))

    @jax.jit
    def value_and_slope(theta):
        of = m.coordinates(theta)
        u, unravel = ravel_pytree(of.unconstrain(theta))
        return jax.value_and_grad(lambda u: masked_log_likelihood(m, of.constrain(unravel(u)), ROWS))(u)

    value, slope = value_and_slope(fit.theta)
    assert float(fit.free_energy) == pytest.approx(float(value), rel=1e-11)
    assert float(value_and_slope(theta)[0]) < float(value)
    assert float(jnp.max(jnp.abs(slope))) < 1e-3  # the root of what tol leaves
    assert float(jnp.max(jnp.abs(value_and_slope(theta)[1]))) > 1


def test_one_gaussian_is_the_optimum_of_scipys_marginals():
    """No EM in it: quasi-Newton on mean and Cholesky factor."""
    x = np.asarray(ROWS, float)[:25, :2]
    lower = np.tril_indices(2)

    def unpack(u):
        L = np.zeros((2, 2))
        L[lower] = u[2:]
        return {"pi": np.ones(1), "mu": u[None, :2], "Sigma": (L @ L.T)[None]}

    best = so.minimize(lambda u: -np.sum(by_scipy(FULL, unpack(u), x)), [0.0, 0.0, 1.0, 0.0, 1.0], tol=1e-9)
    start = cast(unpack(np.array([0.5, 0.5, 1.0, 0.3, 2.0])))
    fit = jaxem.check(jaxem.em(FULL, start, cast(x), missing=True, tol=1e-13))
    assert float(fit.free_energy) == pytest.approx(-best.fun, abs=1e-7)
    for name, value in unpack(best.x).items():
        np.testing.assert_allclose(fit.theta[name], value, atol=1e-4)


@each_discrete
def test_a_step_of_independent_columns_is_a_weighted_mean_of_what_is_observed(case):
    theta, x = case.theta(K=K, D=D), holes(case.x(N=N, D=D))
    fit = jaxem.em(case.m, theta, x, weights=WEIGHTS, max_steps=1, missing=True)
    for name, value in step_by_columns(case, theta, x, WEIGHTS).items():
        np.testing.assert_allclose(fit.theta[name], value, **CLOSE)
    table, seen = by_columns(case, theta, x), observed(np.asarray(x))
    fit = jaxem.em(case.m, theta, x, weights=WEIGHTS, max_steps=0, missing=True)
    F = np.sum((WEIGHTS * logsumexp(table, axis=1))[seen.any(axis=1)])
    assert float(fit.free_energy) == pytest.approx(F, rel=1e-12)


def test_a_step_is_certified():
    """C1–C6 with weights, a temperature and π held; C3 of the surface that completed rows make, C6 by Xu & Jordan."""
    theta, x = CASE["full"].theta(K=K, D=2), ROWS[:, :2]
    certificate = jaxem.certify(FULL.hold("pi"), theta, x, 0.7, weights=WEIGHTS, missing=True)
    assert bool(certificate.holds(1e-12)), certificate
    assert bool(jnp.isfinite(jnp.stack(certificate[:6])).all())


def test_many_starts_by_one_call():
    fit = jaxem.check(jaxem.fit(FULL, ROWS, jax.random.key(0), K, starts=4, tol=1e-10, missing=True))
    value = np.sum(logsumexp(by_scipy(FULL, fit.theta, ROWS), axis=1))
    assert float(fit.free_energy) == pytest.approx(value, rel=1e-10)


# ---- the same, however rows are summed


def test_nothing_missing_is_the_same_fit_to_the_bit():
    """Since it is that fit: x is looked at."""
    x = CASE["full"].x(N=N, D=D)
    plain, asked = (jaxem.em(FULL, THETA, x, max_steps=5, **option) for option in ({}, {"missing": True}))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), plain, asked))
    traced = jax.jit(lambda x: jaxem.em(FULL, THETA, x, max_steps=5, missing=True))(x)
    np.testing.assert_allclose(traced.theta["Sigma"], plain.theta["Sigma"], **CLOSE)


@pytest.mark.parametrize("name", ["full", "poisson"])
def test_chunks_of_rows_add_to_the_same(name, monkeypatch):
    monkeypatch.setattr("jaxem._rows.chunks.TABLE_ENTRIES", 1)  # 64 rows a chunk
    case, size = CASE[name], 150
    theta, x, w = case.theta(K=K, D=D), holes(case.x(N=size, D=D)), np.resize(WEIGHTS, size)
    fit = jaxem.em(case.m, theta, x, weights=w, max_steps=1, missing=True)
    expected = em_step(theta, x, w) if name == "full" else step_by_columns(case, theta, x, w)
    for entry, value in expected.items():
        np.testing.assert_allclose(fit.theta[entry], value, **CLOSE)
    log_joint = by_scipy(case.m, expected, x) if name == "full" else by_columns(case, expected, x)
    F = np.sum((w * logsumexp(log_joint, axis=1))[observed(np.asarray(x)).any(axis=1)])
    assert float(fit.free_energy) == pytest.approx(F, rel=1e-11)


def test_single_precision_far_from_the_origin():
    """Differences are taken first, so that all but the digits of the rows themselves are kept."""
    x = np.asarray(ROWS, np.float32) + np.float32(1000)
    theta = {name: np.asarray(value, np.float32) for name, value in THETA.items()} | {"pi": np.full(K, 0.5, np.float32)}
    theta["mu"] += 1000
    fit = jaxem.em(FULL, theta, x, max_steps=3, missing=True)
    theta = {name: value.astype(float) for name, value in theta.items()}
    exact = jaxem.em(FULL, theta, x.astype(float), max_steps=3, missing=True)
    assert fit.free_energy.dtype == np.float32
    assert float(fit.free_energy) == pytest.approx(float(exact.free_energy), rel=1e-5)
    np.testing.assert_allclose(fit.theta["Sigma"], exact.theta["Sigma"], atol=2e-3)


def test_rows_are_dealt_out_unless_they_lie_on_several_devices():
    """Each device has its share of every number of missing cells, fewest first; what is sharded is used as it lies."""
    m, x = FULL.with_missing(), holes(CASE["full"].x(N=40, D=D))
    _, data = m.enter(THETA, x, None, 1.0, None, batched=False)
    missing = np.asarray(m.rows.dealt(data, 2).x[:, D:]).sum(axis=1).reshape(2, 20)
    assert (np.diff(missing, axis=1) >= 0).all()
    assert np.abs(missing[0] - missing[1]).max() <= 1
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",), axis_types=(AxisType.Auto,))
    sharded = data._replace(x=jax.device_put(data.x, NamedSharding(mesh, PartitionSpec("rows"))))
    assert m.rows.dealt(sharded, 2) is sharded


@pytest.mark.parametrize("name", ["full", "poisson"])
def test_rows_may_lie_on_several_devices(name):
    case = CASE[name]
    theta, x = case.theta(K=K, D=D), holes(case.x(N=N, D=D))
    mesh = Mesh(np.array(jax.devices()[:2]), ("rows",), axis_types=(AxisType.Auto,))
    alone = jaxem.em(case.m, theta, x, max_steps=3, missing=True)
    spread = jaxem.em(case.m, theta, x, max_steps=3, mesh=mesh, missing=True)
    for entry, value in alone.theta.items():
        np.testing.assert_allclose(spread.theta[entry], value, **CLOSE)


def test_a_row_with_nothing_observed_counts_nothing_and_gaps_are_nan():
    """At any temperature; in W too. Masked entries, None and NaN are one."""
    without = jaxem.em(FULL, THETA, np.delete(ROWS, 3, axis=0), temperature=2.0, max_steps=5, missing=True)
    masked = np.ma.masked_invalid(np.asarray(ROWS))
    nones = [[None if np.isnan(cell) else float(cell) for cell in row] for row in ROWS]
    for x in (ROWS, masked, nones):
        fit = jaxem.em(FULL, THETA, x, temperature=2.0, max_steps=5, missing=True)
        assert float(fit.free_energy) == pytest.approx(float(without.free_energy), rel=1e-13)
        np.testing.assert_allclose(fit.theta["mu"], without.theta["mu"], **CLOSE)


# ---- what is never observed, and what is refused


@pytest.mark.parametrize("name", ["poisson", "diagonal"])
def test_a_column_never_observed_keeps_its_parameters(name):
    case = CASE[name]
    theta, x = case.theta(K=K, D=D), holes(case.x(N=N, D=D)).at[:, 1].set(jnp.nan)
    with pytest.warns(UserWarning, match=r"x: nothing is observed in column\(s\) 1; given the others they stay"):
        fit = jaxem.em(case.m, theta, x, max_steps=4, missing=True)
    for entry in set(theta) - {"pi"}:
        np.testing.assert_allclose(fit.theta[entry][:, 1], theta[entry][:, 1], rtol=1e-14)
        assert not np.allclose(fit.theta[entry][:, 0], theta[entry][:, 0])


def test_by_default_nan_is_an_error_that_names_the_remedy():
    for call in (
        lambda: jaxem.em(FULL, THETA, ROWS),
        lambda: jaxem.em(poisson.mixture, CASE["poisson"].theta(K=K, D=D), ROWS),
        lambda: jaxem.em(FULL, THETA, np.ma.masked_invalid(np.asarray(ROWS))),
        lambda: jaxem.fit(FULL, ROWS, jax.random.key(0), K),
    ):
        with pytest.raises(ValueError, match=r"^x: has .* row.*missing=True"):
            call()


def _program(x=None):
    pass


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: jaxem.em(FULL, THETA, ROWS.at[0, 0].set(-jnp.inf), missing=True), r"x: has infinity in 1 row\(s\): 0"),
        (lambda: jaxem.em(FULL, THETA, jnp.full((4, D), jnp.nan), missing=True), "x: every cell is NaN"),
        (lambda: jaxem.em(jaxem.from_numpyro(_program), {}, ROWS, missing=True), "missing: is for mixtures.*mask"),
        (lambda: jaxem.em(poisson.mixture, CASE["poisson"].theta(K=K, D=D), -abs(ROWS), missing=True), "x: has -"),
        (lambda: jaxem.em_stream(FULL.with_missing(), THETA, lambda: [ROWS]), "em_stream is for rows without missing"),
        (lambda: jaxem.gain(FULL.with_missing(), THETA, ROWS), "gain is for rows without missing"),
        (
            lambda: jaxem.inits.from_labels(FULL.with_missing(), ROWS, np.zeros(N, int)),
            "x: has NaN or infinity in",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_it_is_a_model_and_a_value():
    m = FULL.hold("pi").with_missing()
    assert repr(m) == "gaussian.full.with_missing().hold('pi')"
    assert m == FULL.hold("pi").with_missing() == m.with_missing()
    assert hash(m) == hash(FULL.hold("pi").with_missing())
    assert m != FULL.hold("pi")


# ---- completing rows


def test_condition_and_impute_row_by_row():
    """Mean and covariance of 20,000 draws of a row within five standard errors of Schur's; what is observed stays."""
    row = np.array([0.4, np.nan, np.nan])
    x, S = cast(np.stack([row, [1.0, 2.0, 3.0]])), 20_000
    conditional = jaxem.condition(FULL, THETA, x)
    masked = jaxem.condition(FULL, THETA, x[:1], observed(row))
    np.testing.assert_allclose(conditional.pi[0], masked.pi[0], **CLOSE)
    np.testing.assert_allclose(conditional.mean[0], [0.4, *masked.mean[0]], **CLOSE)
    np.testing.assert_array_equal(conditional.mean[1], x[1])
    draws = np.asarray(jaxem.impute(FULL, THETA, x, jax.random.key(0), S), float)
    assert draws.shape == (S, 2, D)
    assert (draws[:, 1] == np.asarray(x[1])).all()
    assert (draws[:, 0, 0] == float(x[0, 0])).all()
    error = 5 * draws[:, 0, 1:].std(axis=0) / np.sqrt(S)
    assert (np.abs(draws[:, 0, 1:].mean(axis=0) - np.asarray(masked.mean[0])) < error).all()
    one = {"pi": np.ones(1), "mu": np.asarray(THETA["mu"])[:1], "Sigma": np.asarray(THETA["Sigma"])[:1]}
    one_draws = np.asarray(jaxem.impute(FULL, cast(one), x, jax.random.key(1), S), float)[:, 0, 1:]
    Sigma = one["Sigma"][0].astype(float)
    law = Sigma[1:, 1:] - np.outer(Sigma[1:, 0], Sigma[1:, 0]) / Sigma[0, 0]
    assert np.allclose(np.cov(one_draws.T), law, atol=8 * np.abs(law).max() / np.sqrt(S))


@each_discrete
def test_draws_of_independent_columns_follow_the_component(case):
    """Two components far apart: what is observed says which, and the rest is drawn from that one."""
    theta, x = case.theta(K=K, D=D), np.array(case.x(N=1, D=D), float)
    x[0, 2] = np.nan
    theta = theta | {"pi": cast([1.0, 0.0])}
    draws = np.asarray(jaxem.impute(case.m, theta, cast(x), jax.random.key(0), 4_000), float)
    assert (draws[:, 0, :2] == x[0, :2]).all()
    (name,) = set(theta) - {"pi"}
    value = np.asarray(theta[name], float)[0, 2]
    expected = {"exponential": lambda: 1 / value, "categorical": lambda: value @ np.arange(4)}.get(
        case.name, lambda: value
    )
    assert draws[:, 0, 2].mean() == pytest.approx(expected(), abs=5 * draws[:, 0, 2].std() / np.sqrt(4_000))


def test_what_a_fit_puts_in_order_stays_beside_its_weights_and_labels():
    """Rows are summed by how many cells they miss: weights, lanes' own too, and labels are still of their rows."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, D)) + 3 * (np.arange(200) % 2)[:, None]
    x = cast(np.where(rng.random(x.shape) < 0.3, np.nan, x))
    W, labels = cast(rng.exponential(size=(2, 200))), np.where(rng.random(200) < 0.2, np.arange(200) % 2, -1)
    lanes = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), THETA)
    batch = jaxem.em_batch(FULL, lanes, x, weights=W, missing=True, max_steps=4)
    for lane, w in enumerate(W):
        alone = jaxem.em(FULL, THETA, x, weights=w, missing=True, max_steps=4)
        assert float(batch.free_energy[lane]) == pytest.approx(float(alone.free_energy), rel=1e-12)
    shuffled = rng.permutation(200)
    one = jaxem.em(FULL, THETA, x, weights=W[0], labels=labels, missing=True, max_steps=4)
    two = jaxem.em(FULL, THETA, x[shuffled], weights=W[0][shuffled], labels=labels[shuffled], missing=True, max_steps=4)
    assert float(one.free_energy) == pytest.approx(float(two.free_energy), rel=1e-12)


@pytest.mark.parametrize("name", ["full", "tied"])
def test_many_chunks_have_a_derivative_both_ways(name):
    """F's gradient by chunks is that of the table at once, and the certificates hold at a random θ."""
    theta = CASE[name].theta(K=K, D=D)
    rng = np.random.default_rng(6)
    x = rng.normal(size=(8_000, D))
    x = cast(np.where((rng.random(x.shape) < 0.2) & (np.arange(D) > 0), np.nan, x))
    m = CASE[name].m.with_missing()

    def by_chunks(theta):
        return jaxem.log_likelihood(m, theta, x)

    def at_once(theta):
        return jnp.sum(jax.nn.logsumexp(jaxem.log_joint(m, theta, x), axis=1))

    gradient, expected = jax.grad(by_chunks)(theta), jax.grad(at_once)(theta)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-7), gradient, expected)
    assert jaxem.certify(m, theta, x).holds(1e-9).all()


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0])
def test_a_shared_covariance_completes_each_row_once(temperature, monkeypatch):
    """About one point for all components, the sums are those about every mean: rows that miss none to all but one."""
    case, rng = CASE["tied"], np.random.default_rng(3)
    theta, x = case.theta(K=K, D=D), np.asarray(case.x(N=300, D=D))
    order = np.argsort(rng.random(x.shape), axis=1)
    x = np.where(order < rng.integers(0, D, (300, 1)), np.nan, x)
    options = {"weights": rng.random(300), "temperature": temperature, "max_steps": 3, "tol": 0.0, "missing": True}
    at_once = jaxem.em(case.m, theta, x, **options)
    monkeypatch.setattr("jaxem._rows.chunks.TABLE_ENTRIES", 1)
    jax.clear_caches()
    by_chunks = jaxem.em(case.m, theta, x, **options)
    assert float(by_chunks.free_energy) == pytest.approx(float(at_once.free_energy), rel=1e-12)
    for entry, value in at_once.theta.items():
        np.testing.assert_allclose(by_chunks.theta[entry], value, **CLOSE)


@pytest.mark.parametrize("size", [6, 12])
def test_columns_that_are_nearly_collinear_keep_their_digits_in_float32(size):
    """Errors of E[x | observed] in deviations: as of a triangular solve, the root of the condition number in eps."""
    rng = np.random.default_rng(size)
    base, slack = rng.normal(size=(400, 1)), 10.0 ** -(size / 4)
    x = base + slack * rng.normal(size=(400, size))
    Sigma = np.cov(x, rowvar=False)
    theta = {"pi": np.ones(1), "mu": x.mean(0, keepdims=True), "Sigma": Sigma[None]}
    holes = np.where(rng.random(x.shape) < 0.3, np.nan, x)
    one, two = (jax.tree.map(partial(jnp.asarray, dtype=bits), (theta, holes)) for bits in (jnp.float32, jnp.float64))
    error = np.abs(jaxem.condition(FULL, *one).mean - jaxem.condition(FULL, *two).mean).max() / x.std()
    assert error < 8 * np.finfo(np.float32).eps * np.sqrt(np.linalg.cond(Sigma)) * size
