"""Gradient M-steps: they end where Q is stationary, say when Q has no maximum, and are differentiable in both modes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints
from scipy.optimize import minimize
from scipy.stats import binom, poisson

import jaxem
from jaxem import Status
from jaxem._core.checks import enter as prepare
from jaxem._core.descent import descend
from jaxem._core.newton import columns, newton

from cases import CASES, EPS, FLOAT

DOUBLE = np.dtype(FLOAT).itemsize == 8
positive, simplex, unit = constraints.positive, constraints.simplex, constraints.unit_interval
KEY = jax.random.key(0)
COUNTS = jnp.array([0, 0, 3, 0, 2, 0, 5, 1, 0, 4])
RNG = np.random.default_rng(5)


def fitted(program, x, theta=None, **options):
    m = jaxem.from_numpyro(program, **options)
    return m, jaxem.em(m, m.init(KEY, x) if theta is None else theta, x)


def slope(m, theta, x):
    """max |∂F/∂u| over θ's unconstrained coordinates."""
    theta, data = prepare(m, theta, x)
    gradient = jax.grad(lambda free: m.expect(m.coordinates(theta, data).constrain(free), data).free_energy)
    slopes = gradient(m.coordinates(theta, data).unconstrain(theta))
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes))


# ---- 0·∞ = 0


def zero_inflated(law):
    def program(y):
        gate = numpyro.param("gate", 0.3, constraint=unit)
        level = numpyro.param("level", 0.4, constraint=unit)
        shape = numpyro.param("shape", 2.0, constraint=positive)
        with numpyro.plate("rows", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(1 - gate))
            numpyro.sample("y", law(level, z), obs=y)
            numpyro.sample("w", dist.Gamma(shape, 1.0), obs=1.0 + y)

    return program


@pytest.mark.parametrize(
    ("law", "log_pmf"),
    [
        (lambda level, z: dist.Poisson(5 * level * z), lambda y, level: poisson.logpmf(y, 5 * level)),
        (lambda level, z: dist.Binomial(5, level * z), lambda y, level: binom.logpmf(y, 5, level)),
    ],
    ids=["poisson", "binomial"],
)
def test_what_a_latent_switches_off_has_no_part_in_the_gradient(law, log_pmf):
    """ℓ's slope at rate·0 is 0·∞; the fit is SciPy's optimum, and the parameter beside it moves too."""
    _, fit = fitted(zero_inflated(law), COUNTS)
    y = np.asarray(COUNTS)

    def loss(u):
        gate, level = 1 / (1 + np.exp(-u))
        return -np.log(gate * (y == 0) + (1 - gate) * np.exp(log_pmf(y, level))).sum()

    best = minimize(loss, [0.0, 0.0])
    assert int(fit.status) == Status.CONVERGED
    gate, level = 1 / (1 + np.exp(-best.x))
    assert abs(float(fit.theta["gate"]) - gate) < (1e-4 if DOUBLE else 1e-2)
    assert abs(float(fit.theta["level"]) - level) < (1e-4 if DOUBLE else 1e-2)
    assert float(fit.theta["shape"]) != 2.0


def at_the_edge(x):
    a = numpyro.param("a", jnp.array([2.0, 5.0]), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.3, 0.3, 0.4])))
        first = jnp.concatenate([jnp.ones(1), a])
        numpyro.sample("x", dist.Beta(first[z], jnp.array([1.0, 3.0, 1.5])[z]), obs=x)


def masked(x):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        with handlers.mask(mask=~jnp.isnan(x)):
            numpyro.sample("x", dist.StudentT(4.0, mu[z], 1.0), obs=x)


@pytest.mark.parametrize(
    ("program", "x"),
    [(at_the_edge, [0.0, 0.2, 0.5, 0.7, 0.0, 0.9]), (masked, [np.nan, 1.2, np.nan, 0.3, 2.2, -0.9])],
    ids=["a component with no part in a row", "a masked NaN"],
)
def test_what_counts_for_nothing_has_no_part_in_the_gradient(program, x):
    x = jnp.array(x)
    _, fit = fitted(program, x)
    start = jaxem.from_numpyro(program).init(KEY, x)
    assert int(fit.status) == Status.CONVERGED
    assert all(bool(jnp.all(fit.theta[name] != start[name])) for name in start)


def test_a_gradient_that_is_not_finite_is_not_convergence():
    """√|a| has no slope at 0, and no closed form: NONFINITE at the start, θ as it was; with any optimiser."""

    def program(x):
        a = numpyro.param("a", 0.0)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(jnp.sqrt(jnp.abs(a)) + z, 1.0), obs=x)

    for optimizer in (None, optax.adam(0.1)):
        _, fit = fitted(program, jnp.array([0.3, 1.4]), optimizer=optimizer)
        assert int(fit.status) == Status.NONFINITE
        assert float(fit.theta["a"]) == 0.0


# ---- where there is no maximum


def half_a_success(x):
    p = numpyro.sample("p", dist.Beta(0.5, 0.5).expand([2]).to_event(1))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        numpyro.sample("x", dist.Bernoulli(0.999 * p[z] + 0.0005), obs=x)


def few_of_many(x):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.full(3, 0.1)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(jnp.array([-2.0, 2.0, 30.0])[z], 1.0), obs=x)


@pytest.mark.parametrize(
    ("program", "x", "closed_form"),
    [
        (half_a_success, [1.0] * 20, False),
        (half_a_success, [1.0] * 20, True),
        (few_of_many, [-2.0, -1.0, 2.5, 1.5], False),
    ],
    ids=["beta", "beta by Newton", "dirichlet"],
)
def test_a_density_without_a_maximum_does_not_converge(program, x, closed_form):
    """F rises by a fixed number of nats for each unit of an unconstrained coordinate, past what floats can hold."""
    _, fit = fitted(program, jnp.array(x), closed_form=closed_form)
    assert int(fit.status) in (Status.NONFINITE, Status.MAX_STEPS)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(fit.theta))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_maximum_at_a_bound_converges(value):
    """All successes: p → 1, and Q's slope vanishes there. That is a maximum."""

    def program(x):
        p = numpyro.param("p", jnp.array([0.3, 0.6]), constraint=unit)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Bernoulli(p[z]), obs=x)

    _, fit = fitted(program, jnp.full(20, value), closed_form=False)
    assert int(fit.status) == Status.CONVERGED
    np.testing.assert_allclose(fit.theta["p"], value, atol=1e-4)


@pytest.mark.parametrize("optimizer", [None, optax.sgd(0.1)], ids=["l-bfgs", "sgd"])
@pytest.mark.parametrize("pi", [[0.5, 0.5], [1 - 1e-6, 1e-6], [1.0, 0.0]])
def test_no_m_step_lowers_F_at_the_edge_of_the_simplex(optimizer, pi):
    """The θ that comes back has a higher Q than the θ that went in, or is that θ to the bit."""
    m = jaxem.gradient_m_step(CASES[0].m.hold("mu", "sigma"), optimizer, num_steps=30)
    theta, x = CASES[0].theta(), CASES[0].x()
    theta = theta | {"pi": jnp.zeros_like(theta["pi"]).at[:2].set(jnp.array(pi, theta["pi"].dtype))}
    path = jaxem.em_path(m, theta, x, num_steps=4)
    assert bool(jnp.all(path.after_m >= path.after_e - 16 * EPS * jnp.abs(path.after_e)))


# ---- it is solved


def gammas(x):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=simplex)
    shape = numpyro.param("shape", jnp.array([1.0, 5.0]), constraint=positive)
    rate = numpyro.param("rate", jnp.ones(2), constraint=positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Gamma(shape[z], rate[z]), obs=x)


def logistic(x, y):
    """Regressions of a yes, a count of them, and a category: whose coefficients have a direction that is flat."""
    beta = numpyro.param("beta", jnp.array([[0.5, 0.3], [-0.5, 0.0]]))
    choice = numpyro.param("choice", 0.1 * jnp.arange(12.0).reshape(2, 3, 2) - 0.5)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Bernoulli(0.4))
        u = jnp.sum(x * beta[z], axis=-1)
        numpyro.sample("y", dist.Bernoulli(logits=u), obs=y)
        numpyro.sample("n", dist.Binomial(8, logits=0.5 * u), obs=8 * y // 3)
        numpyro.sample("c", dist.Categorical(logits=jnp.sum(x[..., None, :] * choice[z], -1)), obs=jnp.arange(80) % 3)


GAMMAS = jnp.asarray(np.concatenate([RNG.gamma(2, 1, 60), RNG.gamma(9, 0.8, 90)]))
FEATURES = jnp.asarray(np.column_stack([np.ones(80), RNG.normal(size=80)]))
ANSWERS = jnp.asarray((RNG.random(80) < 0.6).astype(float))


@pytest.mark.parametrize(
    ("program", "x"), [(gammas, GAMMAS), (logistic, (FEATURES, ANSWERS))], ids=["gammas", "logistic"]
)
def test_one_m_step_leaves_nothing_of_the_gradient(program, x):
    """After one M-step ∇Q(·, γ_old) vanishes: a Gamma's shape and rate together, not by turns."""
    m = jaxem.from_numpyro(program)
    theta, data = prepare(m, m.init(KEY, x), x)
    marginals = m.expect(theta, data).statistics
    new = jaxem.em_path(m, theta, x, num_steps=1).theta
    new = jax.tree.map(lambda leaf: leaf[0], new)
    gradient = jax.jit(jax.grad(lambda free: m.energy(marginals, m.coordinates(theta, data).constrain(free), data)))
    before, after = (
        max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient(m.coordinates(at, data).unconstrain(at))))
        for at in (theta, new)
    )
    assert after < (1e-12 if DOUBLE else 1e-4) * before


def by_lbfgs(f, start):
    return descend(lambda u, _: jax.value_and_grad(f)(u), start, 500)


def by_newton(f, start):
    return newton(lambda u, _: jax.value_and_grad(f)(u), lambda u: columns(f, u), start, 100)


@pytest.mark.parametrize(("road", "near"), [(by_lbfgs, (1e-5, 0.2)), (by_newton, (1e-12, 1e-4))])
def test_descent_ends_at_the_minimum_whatever_the_scales(road, near):
    """A quadratic whose curvatures span six orders, and Rosenbrock's valley; Newton's method to rounding."""
    scales = jnp.logspace(-3, 3, 6)
    functions = {
        "quadratic": (lambda u: jnp.sum(scales * (u - 1) ** 2), jnp.zeros(6)),
        "valley": (lambda u: jnp.sum(100 * (u[1:] - u[:-1] ** 2) ** 2 + (1 - u[:-1]) ** 2), jnp.full(3, -1.0)),
    }
    for f, start in functions.values():
        end = jax.jit(lambda start, f=f: road(f, start))(start)
        assert bool(end.done)
        assert not bool(end.walled)
        np.testing.assert_allclose(end.at, 1.0, atol=near[0] if DOUBLE else near[1])


# ---- differentiable


@pytest.mark.skipif(not DOUBLE, reason="finite differences of float32 have two digits")
@pytest.mark.parametrize("closed_form", [True, False])
def test_a_path_is_differentiable_in_both_modes(closed_form):
    """Reverse mode = forward mode = central differences, in θ_0 and in x; by Newton's method and by L-BFGS."""

    def program(x):
        mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
        log_scale = numpyro.param("log_scale", jnp.zeros(2))
        p = numpyro.param("p", 0.4, constraint=unit)
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(p))
            numpyro.sample("x", dist.Normal(mu[z], 0.1 + jnp.exp(log_scale)[z]), obs=x)

    x = jnp.array([-2.0, -1.8, 2.1, 1.9, 0.3, -0.7, 1.2, -3.3])
    m = jaxem.from_numpyro(program, closed_form=closed_form)
    theta = m.init(KEY, x)

    @jax.jit
    def value(theta, x):
        path = jaxem.em_path(m, theta, x, num_steps=2)
        return path.after_m[-1] + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(path.theta))

    direction = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape)), (theta, x))
    reverse = jax.jit(jax.grad(value, (0, 1)))(theta, x)
    along = sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (reverse, direction)), strict=True))
    _, forward = jax.jvp(value, (theta, x), direction)
    assert abs(float(along - forward)) < 1e-10 * (1 + abs(float(forward)))

    def moved(step):
        return value(*jax.tree.map(lambda a, b: a + step * b, (theta, x), direction))

    # each value is of M-steps solved to about √eps
    assert abs(float(moved(1e-3) - moved(-1e-3)) / 2e-3 - float(forward)) < 1e-4 * (1 + abs(float(forward)))
