"""M-steps by Newton's method end where ∇Q = 0, to rounding, whatever the distribution, and are other people's fits."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro import distributions as dist
from numpyro.distributions import constraints as C
from scipy import stats
from scipy.optimize import minimize

import jaxem
from jaxem._core.checks import enter as prepare
from jaxem._core.newton import columns, newton
from jaxem._programs.plan import NEWTON_LIMIT

from cases import EPS, FLOAT

DOUBLE = np.dtype(FLOAT).itemsize == 8
KEY = jax.random.key(0)
RNG = np.random.default_rng(7)


def param(name, value, constraint=C.positive):
    return numpyro.param(name, jnp.asarray(value, FLOAT), constraint=constraint)


def by_newton(m, theta, x):
    return {name for name, why in m.explain(theta, x).items() if why.startswith("Newton's method")}


# ---- the laws without a closed form, all in one program: one compilation

N = 120
LAWS = {
    "gamma": ("shape", "rate"),
    "weibull": ("w_scale", "w_shape"),
    "beta": ("a", "b"),
    "student": ("df", "loc", "s"),
    "von_mises": ("angle", "kappa"),
    "counts": ("mean", "r"),
}


def draws(seed):
    """Of each law, half of the rows from one component and half from another."""
    rng, half = np.random.default_rng(seed), N // 2
    return {
        "gamma": np.append(rng.gamma(2, 1, half), rng.gamma(30, 0.3, half)),
        "weibull": np.append(rng.weibull(1.5, half), 5 * rng.weibull(6, half)),
        "beta": np.append(rng.beta(2, 6, half), rng.beta(8, 2, half)),
        "student": np.append(rng.standard_t(2, half) - 4, 4 + 0.5 * rng.standard_t(3, half)),
        "von_mises": np.append(rng.vonmises(-1, 3, half), rng.vonmises(1.2, 8, half)),
        "counts": np.append(rng.negative_binomial(3, 0.6, half), rng.negative_binomial(8, 0.3, half)),
    }


def every_law(x):
    pi = param("pi", [0.5, 0.5], C.simplex)
    at = np.array([-1.0, 1.0])  # where the components begin
    p = {name: param(name, 2.0 + at) for name in ("shape", "w_shape", "a", "df", "kappa", "r", "mean")}
    p |= {name: param(name, np.full(2, 1.5)) for name in ("rate", "w_scale", "s")} | {"b": param("b", 2.0 - at)}
    loc, angle = param("loc", 4.0 * at, C.real), param("angle", at, C.real)
    with numpyro.plate("rows", N):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("gamma", dist.Gamma(p["shape"][z], p["rate"][z]), obs=x["gamma"])
        numpyro.sample("weibull", dist.Weibull(p["w_scale"][z], p["w_shape"][z]), obs=x["weibull"])
        numpyro.sample("beta", dist.Beta(p["a"][z], p["b"][z]), obs=x["beta"])
        numpyro.sample("student", dist.StudentT(p["df"][z], loc[z], p["s"][z]), obs=x["student"])
        numpyro.sample("von_mises", dist.VonMises(angle[z], p["kappa"][z]), obs=x["von_mises"])
        numpyro.sample("counts", dist.NegativeBinomial2(p["mean"][z], p["r"][z]), obs=x["counts"])


@pytest.fixture(scope="module")
def laws():
    """K → (m, x, fit): of one component where the other has no share."""
    m = jaxem.from_numpyro(every_law)

    def fitted(K):
        x = {name: jnp.asarray(value, int if name == "counts" else FLOAT) for name, value in draws(3).items()}
        if K == 1:
            x = {name: jnp.tile(value[: N // 2], 2) for name, value in x.items()}
        pi = jnp.array([1.0, 0.0] if K == 1 else [0.5, 0.5], FLOAT)
        return m, x, jaxem.em(m, m.init(KEY, x) | {"pi": pi}, x)

    return {K: fitted(K) for K in (1, 2)}


SCIPY = {
    "gamma": lambda x, a, b: stats.gamma.logpdf(x, a, scale=1 / b),
    "weibull": lambda x, scale, shape: stats.weibull_min.logpdf(x, shape, scale=scale),
    "beta": stats.beta.logpdf,
    "student": stats.t.logpdf,
    "von_mises": lambda x, loc, kappa: stats.vonmises.logpdf(x, kappa, loc),
    "counts": lambda x, mean, r: stats.nbinom.logpmf(x, r, r / (r + mean)),
}


@pytest.mark.takes_turns("law")
@pytest.mark.parametrize("law", LAWS)
def test_one_component_is_the_fit_of_scipy(laws, law):
    """The maximum of SciPy's own log density: by its `fit` where it has one, and by no search around ours beaten."""
    _, x, fit = laws[1]
    assert int(jaxem.check(fit).status) == jaxem.Status.CONVERGED
    ours = np.array([float(fit.theta[name][0]) for name in LAWS[law]])
    x = np.asarray(x[law], float)

    def loss(p):
        with np.errstate(all="ignore"):
            value = -SCIPY[law](x, *p).sum()
        return value if np.isfinite(value) else np.inf

    theirs = minimize(loss, ours * 1.05 + 0.01, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert loss(ours) <= theirs.fun + (1e-10 if DOUBLE else 1e-6) * (1 + abs(theirs.fun))  # the digits of NumPyro's law
    near = 1e-3 if law == "counts" else 1e-5  # NumPyro's log Beta has nine digits, and r is known by few
    np.testing.assert_allclose(ours, theirs.x, rtol=near if DOUBLE else 3e-2, atol=1e-5 if DOUBLE else 1e-2)


def test_the_fits_that_scipy_makes_itself(laws):
    """Parameters of `fit` and of formulas: the mean of a negative binomial, the direction of a von Mises."""
    _, x, fit = laws[1]
    theta, near = {name: float(value[0]) for name, value in fit.theta.items()}, 1e-5 if DOUBLE else 1e-2
    x = {name: np.asarray(value, float) for name, value in x.items()}
    shape, _, scale = stats.gamma.fit(x["gamma"], floc=0)
    np.testing.assert_allclose([theta["shape"], theta["rate"]], [shape, 1 / scale], rtol=near)
    a, b, *_ = stats.beta.fit(x["beta"], floc=0, fscale=1)
    np.testing.assert_allclose([theta["a"], theta["b"]], [a, b], rtol=near)
    kappa, angle, _ = stats.vonmises.fit(x["von_mises"], fscale=1)
    np.testing.assert_allclose([theta["kappa"], theta["angle"]], [kappa, angle], rtol=near)
    exact = 1e-9 if DOUBLE else 1e-3
    assert theta["mean"] == pytest.approx(x["counts"].mean(), rel=exact)
    assert theta["angle"] == pytest.approx(np.angle(np.exp(1j * x["von_mises"]).sum()), rel=exact)


def test_two_components_end_where_nothing_is_left(laws):
    """∇L = 0 at the end, and an M-step from there leaves nothing of ∇Q, though none of these has a closed form."""
    m, x, fit = laws[2]
    theta, data = prepare(m, jaxem.check(fit).theta, x)
    assert by_newton(m, theta, x) == {*theta} - {"pi", "rate"}

    @jax.jit
    def slopes(theta):
        marginals = m.expect(theta, data).statistics
        new = m.maximize(marginals, theta, data).theta
        Q = jax.grad(lambda free: m.energy(marginals, m.coordinates(theta, data).constrain(free), data))
        return Q(m.coordinates(theta, data).unconstrain(theta)), Q(m.coordinates(new, data).unconstrain(new))

    before, after = (max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope)) for slope in slopes(theta))
    assert before < N * (1e-5 if DOUBLE else 1e-2)  # ∇L, by C5; the last rise was under 1e-10 a number
    assert after < N * (1e-13 if DOUBLE else 1e-5)


# ---- regressions: iteratively reweighted least squares


def regressions(x, y):
    pi = param("pi", [0.5, 0.5], C.simplex)
    beta = param("beta", [[1.8, -0.1], [1.2, 0.05]], C.real)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("y", dist.Poisson(jnp.exp(beta[z, 0] + beta[z, 1] * x)), obs=y)


def test_poisson_regressions_are_flexmixs():
    """R's flexmix on NPreg, `FLXMRglm(family = "poisson")`: its log-likelihood, coefficients and shares."""
    reference = json.loads((Path(__file__).parent / "flexmix_npreg.json").read_text())
    x = jnp.asarray(reference["x"], FLOAT), jnp.asarray(reference["yp"])
    m, wanted = jaxem.from_numpyro(regressions), reference["poisson"]
    fit = jaxem.check(jaxem.em(m, m.init(KEY, x), x))
    assert by_newton(m, fit.theta, x) == {"beta"}
    assert float(fit.free_energy) == pytest.approx(wanted["loglik"], abs=1e-6 if DOUBLE else 1e-3)
    near = {"rtol": 0, "atol": 2e-3 if DOUBLE else 1e-2}  # theirs stops at a rise of 1e-6
    np.testing.assert_allclose(fit.theta["beta"], np.transpose(wanted["par"]), **near)
    np.testing.assert_allclose(fit.theta["pi"], wanted["prior"], **near)


# ---- priors


def test_a_normal_inverse_gamma_prior_has_its_mode():
    """μ | v ~ Normal(m, v/κ) and v ~ InverseGamma(α, β), of one component: the mode of the posterior is known."""
    kappa, m0, alpha, beta = 0.5, 1.0, 3.0, 2.0

    def program(x):
        v = numpyro.sample("v", dist.InverseGamma(alpha, beta))
        mu = numpyro.sample("mu", dist.Normal(m0, jnp.sqrt(v / kappa)))
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Categorical(jnp.ones(1)))
            numpyro.sample("x", dist.Normal(mu + 0.0 * z, jnp.sqrt(v)), obs=x)

    x = jnp.asarray(RNG.normal(3, 2, 40), FLOAT)
    m = jaxem.from_numpyro(program)
    theta = m.init(KEY, x)
    assert m.explain(theta, x)["v"] == "Newton's method: is also in the prior of 'mu'"
    fit = jaxem.check(jaxem.em(m, theta, x))
    values = np.asarray(x, float)
    mu = (kappa * m0 + values.sum()) / (kappa + len(values))
    squares = ((values - mu) ** 2).sum() + kappa * (mu - m0) ** 2
    np.testing.assert_allclose(fit.theta["mu"], mu, rtol=1e-9 if DOUBLE else 1e-4)
    np.testing.assert_allclose(
        fit.theta["v"], (beta + squares / 2) / (alpha + 1 + (len(values) + 1) / 2), rtol=1e-9 if DOUBLE else 1e-4
    )


# ---- what takes another road, and says so


def with_one_derivative(u):
    """JAX does not know how the slope of an incomplete gamma function in its first argument bends."""
    return jax.scipy.special.gammainc(jnp.exp(u), 1.5)


def test_what_has_no_second_derivative_or_too_many_climbs_its_gradient():
    """A function that JAX knows a first derivative of; more entries than Newton's method takes; an optimiser."""

    def program(x, of, size):
        u = param("u", np.zeros(size), C.real)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.4))
            numpyro.sample("x", dist.Gamma(1.0 + of(jnp.sum(u)) + z, 1.0), obs=x)

    x, m = jnp.asarray(RNG.gamma(3, 1, 30), FLOAT), jaxem.from_numpyro(program)
    for of, size, kind in (
        (jnp.exp, NEWTON_LIMIT, "Newton's method"),
        (jnp.exp, NEWTON_LIMIT + 1, "gradient"),
        (with_one_derivative, 1, "gradient"),
    ):
        theta = {"u": jnp.zeros(size, FLOAT)}
        assert m.explain(theta, (x, of, size))["u"].startswith(kind)
    stepped = jaxem.from_numpyro(program, optimizer=optax.adam(0.1))
    assert stepped.explain(theta, (x, jnp.exp, 1))["u"].startswith("gradient")
    jaxem.check(jaxem.em(m, theta, (x, with_one_derivative, 1)))


# ---- the road itself


def test_newton_turns_from_a_saddle_and_takes_no_step_that_does_not_fall():
    """(u² − 1)² from where it bends down; log cosh, whose full steps go ever further; e^u − 100 u from below."""
    for f, start, end in (
        (lambda u: jnp.sum((u**2 - 1) ** 2), 0.1, 1.0),
        (lambda u: jnp.sum(jnp.logaddexp(u, -u)), 3.0, 0.0),
        (lambda u: jnp.sum(jnp.exp(u) - 100 * u), 0.0, np.log(100)),
    ):
        start = jnp.full(2, start, FLOAT)
        found = jax.jit(
            lambda start, f=f: newton(lambda u, _: jax.value_and_grad(f)(u), lambda u: columns(f, u), start, 50)
        )(start)
        assert bool(found.done)
        assert int(found.turns) < 15
        np.testing.assert_allclose(found.at, end, atol=1e-12 if DOUBLE else 1e-5)


def test_newton_is_the_same_in_any_unit():
    """Coordinates in units that differ by 1e12 meet the same values on the way."""

    def road(units):
        f = lambda u: jnp.sum(jnp.cosh(u / units - 1) + 0.1 * (u / units) ** 4) + jnp.prod(u / units)  # noqa: E731
        start = jnp.full(2, 3.0, FLOAT) * units
        slopes = lambda u, _: jax.value_and_grad(f)(u)  # noqa: E731
        return newton(slopes, lambda u: columns(f, u), start, 50)

    one, other = (jax.jit(road)(jnp.asarray(units, FLOAT)) for units in ([1.0, 1.0], [2.0**-20, 2.0**20]))
    assert int(one.turns) == int(other.turns)
    np.testing.assert_allclose(one.value, other.value, rtol=4 * EPS)
