"""Which M-step a program's parameters get: what the check sees, and that each closed form is a maximiser."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.distributions import biject_to
from numpyro.distributions import constraints as C
from scipy.optimize import minimize

import jaxem
from jaxem import Status
from jaxem._core.checks import enter as prepare
from jaxem._programs import updates
from jaxem._programs.sums import Outer, Product, Repeated

pytestmark = pytest.mark.takes_turns("name")

KEY = jax.random.key(0)
RNG = np.random.default_rng(5)
X = jnp.asarray(np.concatenate([RNG.normal(-2, 0.4, 6), RNG.normal(2, 1.0, 6)]))
COUNTS = jnp.array([0, 1, 1, 2, 8, 9, 9, 4])
U = jnp.asarray(RNG.normal(size=12))
XX = jnp.asarray(RNG.normal(size=(14, 2)) + np.repeat([[-2.0], [2.0]], 7, axis=0))


def rows(law, *names, z=None):
    """A program of one mixture: `law(z, *parameters)` of each row, `names` its parameters' sites."""

    def program(x):
        parameters = [make() for make in names]
        with numpyro.plate("rows", len(x)):
            component = numpyro.sample("z", dist.Bernoulli(0.4) if z is None else z())
            numpyro.sample("x", law(component, *parameters), obs=x)

    return program


def param(name, value, constraint=C.real):
    return lambda: numpyro.param(name, jnp.asarray(value), constraint=constraint)


def latent(name, prior):
    return lambda: numpyro.sample(name, prior)


def stacked(prior, size=2):
    return prior.expand([size]).to_event(1)


def kinds(m, theta, x):
    return {name: why.split(":")[0] for name, why in m.explain(theta, x).items()}


# ---- each closed form is the maximiser of Q over all that its constraint allows


class Case(NamedTuple):
    program: object
    x: object = X
    kind: str = "closed form"


NEWTON = "Newton's method"
TWO, POSITIVE, HALF = [-1.0, 1.0], [1.0, 2.0], [0.3, 0.6]
mean = rows(lambda z, mu: dist.Normal(mu[z], 1.0), param("p", TWO))
BINARY = jnp.asarray(np.asarray(X) > -1.9, float)
CASES = {
    # what a constraint allows
    "mean, positive": Case(
        rows(lambda z, p: dist.Normal(p[z], jnp.array([1.0, 0.5])[z]), param("p", POSITIVE, C.positive))
    ),
    "mean, interval": Case(rows(lambda z, p: dist.Normal(p[z], 1.0), param("p", [0.1, 0.4], C.interval(-0.5, 0.5)))),
    "mean, less than": Case(rows(lambda z, p: dist.Normal(p[z], 1.0), param("p", [-1.0, 0.4], C.less_than(0.5)))),
    "scale, floor": Case(
        rows(lambda z, s: dist.Normal(4.0 * z - 2, s[z]), param("p", [2.0, 2.0], C.greater_than(0.7)))
    ),
    "scale, its own floors": Case(
        rows(
            lambda z, s: dist.Laplace(4.0 * z - 2, s[z]), param("p", [2.0, 2.0], C.greater_than(jnp.array([0.9, 0.1])))
        )
    ),
    "rate, interval": Case(rows(lambda z, r: dist.Poisson(r[z]), param("p", [1.0, 3.0], C.interval(0.5, 4.0))), COUNTS),
    "probability, cap": Case(
        rows(lambda z, p: dist.Binomial(10, p[z]), param("p", [0.1, 0.4], C.interval(0.0, 0.5))), COUNTS
    ),
    "mean, ordered": Case(rows(lambda z, p: dist.Normal(p[z], 1.0), param("p", TWO, C.ordered_vector)), X, NEWTON),
    "mean, zero sum": Case(rows(lambda z, p: dist.Normal(p[z], 1.0), param("p", TWO, C.zero_sum(1))), X, NEWTON),
    "probability, simplex": Case(
        rows(lambda z, p: dist.Binomial(10, p[z]), param("p", [0.3, 0.7], C.simplex)), COUNTS, NEWTON
    ),
    "covariance, correlation": Case(
        rows(
            lambda z, R: dist.MultivariateNormal(4.0 * z[..., None] - 2, covariance_matrix=R[z]),
            param("p", jnp.stack([jnp.eye(2)] * 2), C.corr_matrix),
        ),
        XX,
        NEWTON,
    ),
    "slope, positive, selected": Case(rows(lambda z, b: dist.Normal(b[z] * U, 1.0), param("p", POSITIVE, C.positive))),
    "slopes, ordered": Case(
        rows(lambda z, b: dist.Normal(b[z] * U, 1.0), param("p", TWO, C.ordered_vector)), X, NEWTON
    ),
    # what a program does to its parameter
    "exposure": Case(
        rows(lambda z, r: dist.Poisson(jnp.arange(1.0, 9.0) * r[z]), param("p", [0.1, 3.0], C.positive)), COUNTS
    ),
    "log scale": Case(rows(lambda z, s: dist.Normal(4.0 * z - 2, jnp.exp(s)[z]), param("p", [0.0, 0.3]))),
    "log rate": Case(rows(lambda z, r: dist.Poisson(jnp.exp(r[z])), param("p", [0.0, 1.0])), COUNTS),
    "variance": Case(rows(lambda z, v: dist.Normal(4.0 * z - 2, jnp.sqrt(v[z])), param("p", POSITIVE, C.positive))),
    "precision": Case(
        rows(lambda z, t: dist.Normal(4.0 * z - 2, 1 / jnp.sqrt(t[z])), param("p", POSITIVE, C.positive))
    ),
    "mean waiting time": Case(
        rows(lambda z, t: dist.Exponential(1 / t[z]), param("p", POSITIVE, C.positive)), jnp.abs(X)
    ),
    "1 − p": Case(rows(lambda z, p: dist.Bernoulli(1 - p[z]), param("p", HALF, C.unit_interval)), BINARY),
    "z p": Case(rows(lambda z, p: dist.Bernoulli(0.9 * (1 - z) + z * p), param("p", 0.4, C.unit_interval)), BINARY),
    "[1 − p, p]": Case(
        rows(lambda z, p: dist.Categorical(jnp.stack([1 - p[z], p[z]], -1)), param("p", HALF, C.unit_interval)),
        BINARY.astype(int),
    ),
    "logits": Case(rows(lambda z, p: dist.Bernoulli(logits=p[z]), param("p", [0.3, -0.6])), BINARY),
    "log odds of categories": Case(
        rows(lambda z, p: dist.Categorical(logits=p[z]), param("p", [[0.3, -0.6, 0.0], [0.0, 0.5, 0.1]])), COUNTS % 3
    ),
    "no closed form": Case(rows(lambda z, p: dist.Normal(jnp.sin(p[z]), 1.0), param("p", TWO)), X, NEWTON),
    "a jitter": Case(
        rows(lambda z, s: dist.Normal(4.0 * z - 2, s[z] + 0.1), param("p", POSITIVE, C.positive)), X, NEWTON
    ),
    # conjugate priors
    "Gamma on a precision": Case(
        rows(lambda z, t: dist.Normal(4.0 * z - 2, t[z] ** -0.5), latent("p", stacked(dist.Gamma(2.0, 3.0))))
    ),
    "InverseGamma on a variance": Case(
        rows(lambda z, v: dist.Normal(4.0 * z - 2, jnp.sqrt(v[z])), latent("p", stacked(dist.InverseGamma(2.0, 3.0))))
    ),
    "Exponential on a rate": Case(
        rows(lambda z, r: dist.Poisson(r[z]), latent("p", stacked(dist.Exponential(0.7)))), COUNTS
    ),
    "Uniform on a mean": Case(rows(lambda z, p: dist.Normal(p[z], 1.0), latent("p", stacked(dist.Uniform(-1.0, 1.0))))),
    "Beta": Case(rows(lambda z, p: dist.Bernoulli(1 - p[z]), latent("p", stacked(dist.Beta(2.0, 5.0)))), BINARY),
    "Normal on a vector": Case(
        rows(
            lambda z, p: dist.MultivariateNormal(p[z], jnp.eye(2)),
            latent("p", dist.Normal(0.0, 0.3).expand([2, 2]).to_event(2)),
        ),
        XX,
        "weighted least squares",
    ),
    "MultivariateNormal on a vector": Case(
        rows(
            lambda z, p: dist.MultivariateNormal(p[z], jnp.eye(2)),
            latent("p", dist.MultivariateNormal(jnp.ones(2), 0.1 * jnp.eye(2)).expand([2]).to_event(1)),
        ),
        XX,
        "weighted least squares",
    ),
    "LogNormal on a scale": Case(
        rows(lambda z, s: dist.Normal(4.0 * z - 2, s[z]), latent("p", stacked(dist.LogNormal(0.0, 1.0)))),
        X,
        NEWTON,
    ),
    # linear locations of a multivariate normal
    "slopes of vectors": Case(
        rows(
            lambda z, W: dist.MultivariateNormal((W[z] @ XX[..., None])[..., 0], jnp.array([[1.0, 0.5], [0.5, 2.0]])),
            param("p", jnp.stack([jnp.eye(2), -jnp.eye(2)])),
        ),
        XX[::-1],
        "weighted least squares",
    ),
    "a vector tied over unlike covariances": Case(
        rows(
            lambda z, p: dist.MultivariateNormal(
                p, (1.0 + 3 * z)[..., None, None] * jnp.array([[1.0, 0.5], [0.5, 2.0]])
            ),
            param("p", TWO),
        ),
        XX,
        "weighted least squares",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_closed_form_is_the_maximiser_of_Q_under_its_constraint(name):
    """Against L-BFGS on Q in NumPyro's unconstrained coordinates, by SciPy, from θ and from θ⁺."""
    case = CASES[name]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(KEY, case.x)
    assert kinds(m, theta, case.x)["p"] == case.kind, m.explain(theta, case.x)
    theta, data = prepare(m, theta, case.x)
    constraint = m.structure(data.x).parameters["p"].constraint
    bijection = biject_to(constraint)

    @jax.jit
    def step(theta):
        marginals = m.expect(theta, data).statistics
        return marginals, m.maximize(marginals, theta, data).theta

    @jax.jit
    @jax.value_and_grad
    def Q(u, marginals):
        return -m.energy(marginals, theta | {"p": bijection(u)}, data)

    marginals, new = step(theta)
    at_new = float(-m.energy(marginals, new, data))
    start = bijection.inv(theta["p"])

    def flat(u):
        value, slope = Q(jnp.reshape(u, start.shape), marginals)
        return float(value), np.asarray(slope).ravel()

    best = minimize(
        flat, np.asarray(start).ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-12, "ftol": 0}
    )
    assert at_new <= best.fun + 1e-9 * (1 + abs(best.fun)), (new, bijection(jnp.reshape(best.x, start.shape)))
    assert at_new >= best.fun - 1e-6 * (1 + abs(best.fun))  # a search ends near a bound, not on it
    assert bool(jnp.all(constraint(new["p"])))  # and what a fit returns may be given back
    jaxem.em(m, new, case.x, max_steps=0)


# ---- what the check sees


def hmm(y, guise="covariance_matrix"):
    """Full covariances in a scan, whose first step stands apart."""
    D = y.shape[-1]
    A = numpyro.param("A", jnp.array([[0.8, 0.2], [0.3, 0.7]]), constraint=C.simplex)
    mu = numpyro.param("mu", jnp.stack([-jnp.ones(D), jnp.ones(D)]))
    constraint = C.lower_cholesky if guise == "scale_tril" else C.positive_definite
    S = numpyro.param("S", jnp.stack([jnp.eye(D)] * 2), constraint=constraint)

    def step(z, y):
        z = numpyro.sample("z", dist.Categorical(A[z]))
        numpyro.sample("y", dist.MultivariateNormal(mu[z], **{guise: S[z]}), obs=y)
        return z, None

    scan(step, 0, y)


@pytest.mark.parametrize("D", [2, 4])
def test_an_hmm_has_one_em_path_in_every_guise_of_its_covariances(D):
    y = jnp.asarray(np.random.default_rng(D).normal(size=(40, D)) + 2.0 * (np.arange(40) // 8 % 2)[:, None])
    m, paths = jaxem.from_numpyro(hmm), []

    @jax.jit
    def step(theta, data):
        now = m.expect(theta, data)
        return m.maximize(now.statistics, theta, data).theta, now.free_energy

    for guise in ("covariance_matrix", "precision_matrix", "scale_tril"):
        theta = m.init(KEY, (y, guise))
        assert f"{guise} of '_PREV_y', MultivariateNormal.{guise} of 'y'" in m.explain(theta, (y, guise))["S"]
        theta, data = prepare(m, theta, (y, guise))
        paths.append([])
        for _ in range(4):
            theta, free_energy = step(theta, data)
            paths[-1].append(float(free_energy))
    np.testing.assert_allclose(paths[1:], [paths[0]] * 2, rtol=1e-10)


def one_entry_wrong(sums):
    """A rule that is right but for one entry of one numerator."""

    def wrong(fn, x, gamma):
        above, below = sums(fn, x, gamma)
        if isinstance(above, Outer):
            return above._replace(u=above.u * jnp.array([1.0, 1.01])), below
        if isinstance(above, Product):
            above = above.u * above.v
        elif isinstance(above, Repeated):
            above = jnp.broadcast_to(above.u, above.shape)
        return above * jnp.where(jnp.arange(above.shape[-1]) == above.shape[-1] - 1, 1.01, 1), below

    return wrong


@pytest.mark.parametrize(
    ("place", "program", "x"),
    [
        ((dist.MultivariateNormal, "covariance_matrix"), hmm, XX),
        ((dist.CategoricalProbs, "probs"), hmm, XX),
        ((dist.Poisson, "rate"), rows(lambda z, r: dist.Poisson(r[z]), param("S", POSITIVE, C.positive)), COUNTS),
    ],
    ids=["covariance", "transitions", "rate"],
)
def test_a_rule_with_one_entry_wrong_is_not_used(place, program, x, monkeypatch):
    rule = updates.RULES[place]
    monkeypatch.setitem(updates.RULES, place, rule._replace(sums=one_entry_wrong(rule.sums)))
    m = jaxem.from_numpyro(lambda x: program(x))
    assert any("leaves ∇Q" in why for why in m.explain(m.init(KEY, x), x).values())


# ---- priors: at the edge of their support, and as often as they count


def categories(y, alpha):
    with numpyro.plate("components", 2):
        p = numpyro.sample("p", dist.Dirichlet(alpha * jnp.ones(3)))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Categorical(p[z]), obs=y)


def coins(y, alpha):
    p = numpyro.sample("p", stacked(dist.Beta(alpha, alpha)))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Binomial(3, p[z]), obs=y)


def waits(y, alpha):
    r = numpyro.sample("p", stacked(dist.Gamma(alpha, 2.0)))
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("y", dist.Poisson(r[z]), obs=y)


@pytest.mark.parametrize("program", [categories, coins, waits])
def test_a_flat_prior_takes_a_count_of_zero_and_one_below_has_no_maximum(program):
    """0·log 0 = 0 in priors, too; a density that grows without bound is never CONVERGED."""
    m, y = jaxem.from_numpyro(program), jnp.zeros(6, int)
    theta = {"p": jnp.array([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2]]) if program is categories else jnp.array([0.3, 0.6])}
    flat, poles = (jaxem.em(m, theta, (y, alpha), max_steps=300) for alpha in (1.0, 0.5))
    assert int(flat.status) == Status.CONVERGED
    assert np.isfinite(float(flat.free_energy))
    assert int(poles.status) != Status.CONVERGED


def switched(x, scale, seen):
    with handlers.mask(mask=seen), handlers.scale(scale=scale):
        pi = numpyro.sample("pi", dist.Dirichlet(jnp.array([9.0, 2.0])))
        mu = numpyro.sample("mu", stacked(dist.Normal(1.0, 0.5)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


@pytest.mark.parametrize(("scale", "seen"), [(1.0, False), (2.5, True)])
def test_the_mask_and_the_scale_of_a_prior_hold_for_its_pseudo_counts(scale, seen):
    m, theta = jaxem.from_numpyro(switched), {"pi": jnp.array([0.3, 0.7]), "mu": jnp.array([-1.0, 1.0])}
    x = (X, scale, jnp.array(seen))
    assert "Newton" not in str(m.explain(theta, x))
    gamma = np.asarray(jaxem.marginals(m, theta, x)["z"])
    new = jax.tree.map(lambda leaf: np.asarray(leaf[0]), jaxem.em_path(m, theta, x, num_steps=1).theta)
    weight = scale * seen
    counts = gamma.sum(0) + weight * np.array([8.0, 1.0])
    np.testing.assert_allclose(new["pi"], counts / counts.sum(), rtol=1e-12)
    means = (gamma.T @ np.asarray(X) + weight * 4.0) / (gamma.sum(0) + weight * 4.0)
    np.testing.assert_allclose(new["mu"], means, rtol=1e-12)


# ---- one component, and what explain says


def one_component(x, K):
    pi = numpyro.sample("pi", dist.Dirichlet(2 * jnp.ones(K)))
    mu = numpyro.param("mu", jnp.arange(float(K)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def test_one_component_is_a_mixture_too():
    m = jaxem.from_numpyro(one_component)
    x, theta = (X, 1), {"pi": jnp.ones(1), "mu": jnp.zeros(1)}
    fit = jaxem.check(jaxem.em(m, theta, x))
    np.testing.assert_allclose(fit.theta["mu"], [X.mean()])
    assert bool(jaxem.certify(m, theta, x).holds(1e-12))
    assert float(jaxem.convergence_rate(m, fit.theta, x).spectral_radius) < 1e-12
    held = m.hold("mu")  # nothing is left that could move
    assert float(jaxem.convergence_rate(held, fit.theta, x).spectral_radius) == 0


def every_form(x):
    """Shares, odds, a power, a square and a scatter."""
    pi = numpyro.param("pi", jnp.array([0.4, 0.6]), constraint=C.simplex)
    p = numpyro.param("p", jnp.array(HALF), constraint=C.unit_interval)
    rate = numpyro.param("rate", jnp.array(POSITIVE), constraint=C.positive)
    mu = numpyro.param("mu", jnp.zeros((2, 2)))
    S = numpyro.param("S", jnp.stack([jnp.eye(2)] * 2), constraint=C.positive_definite)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.MultivariateNormal(mu[z], S[z]), obs=x)
        numpyro.sample("b", dist.Bernoulli(p[z]), obs=jnp.arange(len(x)) % 2)
        numpyro.sample("n", dist.Poisson(rate[z]), obs=jnp.arange(len(x)) % 3)


def test_the_plan_is_the_same_in_both_precisions():
    """What is equal to rounding is so to the rounding of θ."""
    m = jaxem.from_numpyro(every_form)
    theta = m.init(KEY, XX)
    double = m.explain(theta, XX)
    assert "Newton" not in str(double)
    for x in (XX, XX.astype(jnp.float32)):  # θ alone in single precision, and the data too
        assert m.explain(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), theta), x) == double


@pytest.mark.parametrize("of", [lambda a: jnp.log(a) ** 3, lambda a: 1 / a], ids=["log³", "1/a"])
def test_what_has_a_pole_at_zero_is_not_linear(of):
    """Infinity is as close to a number as to another: an affine map is found about a θ that may be."""
    m = jaxem.from_numpyro(rows(lambda z, a: dist.Normal(of(a) + z, 1.0), param("a", 2.0, C.positive)))
    assert m.explain({"a": jnp.array(2.0)}, X) == {"a": "Newton's method: is transformed in Normal.loc of 'x'"}


def test_explain_tells_no_falsehood():
    def program(x):
        scale = numpyro.sample("scale", dist.Gamma(2.0, 2.0))
        mu = numpyro.sample("mu", dist.Normal(0.0, scale))
        slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
        mean = numpyro.param("mean", 2.0, constraint=C.positive)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(jax.nn.sigmoid(slope * U)))
            numpyro.sample("x", dist.Normal(mu + z, 1.0), obs=x)
            numpyro.sample("y", dist.NegativeBinomial2(mean, 1.5), obs=jnp.ones(len(x), int))

    m = jaxem.from_numpyro(program)
    why = m.explain(m.init(KEY, X), X)
    assert why["scale"] == "Newton's method: enters no distribution but the prior of 'mu'"
    assert "is transformed" in why["slope"]  # and not that its prior is in the way
    assert "NegativeBinomial2" in why["mean"]
