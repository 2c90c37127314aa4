"""The model is a NumPyro program: NumPyro's own tools run on it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, log_likelihood
from numpyro.infer.util import log_density

import jaxem
from jaxem.families import gaussian

from cases import CASES, cast, tolerance

CASE = CASES[0]


def within(case):
    return tolerance(1e-11 * case.numpyro, 1e-4)


@pytest.fixture(autouse=True)
def promote():
    """NumPyro's distributions broadcast over ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_numpyros_own_enumeration_gives_the_same_log_likelihood(case):
    from numpyro.contrib.funsor import config_enumerate, enum
    from numpyro.contrib.funsor import log_density as enumerated

    theta, x = case.theta(), case.x()
    model = enum(config_enumerate(case.m.program), first_available_dim=-2)  # one plate, at dimension −1
    value, _ = enumerated(model, (x,), {}, theta)
    assert float(value) == pytest.approx(float(jaxem.log_likelihood(case.m, theta, x)), rel=within(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_numpyros_log_density_of_a_labelled_sample_is_the_joint(case):
    theta = case.theta()
    with jax.numpy_rank_promotion("raise"):
        x, z = jaxem.sample(case.m, theta, jax.random.key(0), 20)
        table = jaxem.log_joint(case.m, theta, x)
    value, _ = log_density(case.m.program, (x,), {}, theta | {"z": z})
    assert float(value) == pytest.approx(float(table[jnp.arange(20), z].sum()), rel=within(case))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_program_has_one_plate_and_two_sites(case):
    model = handlers.seed(handlers.substitute(case.m.program, data=case.theta()), jax.random.key(0))
    sites = handlers.trace(model).get_trace(None, num_points=7)
    assert {name for name, site in sites.items() if site["type"] == "sample"} == {"z", "x"}
    assert {name for name, site in sites.items() if site["type"] == "param"} == set(case.m.parameters)
    assert sites["x"]["cond_indep_stack"][0].size == 7


def test_nuts_on_the_lifted_program_agrees_with_em():
    """Lift the parameters to priors, marginalise z, run NUTS: the posterior of μ sits on EM's optimum."""
    rng = np.random.default_rng(0)
    x = cast(np.concatenate([rng.normal(-2, 0.5, size=(60, 1)), rng.normal(2, 0.5, size=(40, 1))]))

    lifted = handlers.lift(
        gaussian.isotropic.program,
        prior={
            "mu": dist.Normal(jnp.array([[-1.0], [1.0]]), 3).to_event(2),
            "sigma": dist.HalfNormal(2),
            "pi": dist.Dirichlet(jnp.ones(2)),
        },
    )
    mcmc = MCMC(NUTS(lifted), num_warmup=150, num_samples=150, progress_bar=False)
    mcmc.run(jax.random.key(0), x)
    draws = mcmc.get_samples()
    with jax.numpy_rank_promotion("raise"):
        fit = jaxem.em(gaussian.isotropic, {"pi": [0.5, 0.5], "mu": [[-1.0], [1.0]], "sigma": 1.0}, x)
    for name in fit.theta:
        mean, deviation = np.asarray(draws[name]).mean(0), np.asarray(draws[name]).std(0)
        assert (np.abs(mean - fit.theta[name]) < deviation).all(), name


def test_predictive_log_likelihood_runs_on_the_program():
    theta, x = CASE.theta(), CASE.x()
    samples = {name: value[None] for name, value in theta.items()} | {"z": jnp.zeros((1, len(x)), int)}
    rows = log_likelihood(CASE.m.program, samples, x)["x"][0]
    with jax.numpy_rank_promotion("raise"):
        expected = jaxem.log_joint(CASE.m, theta, x)[:, 0] - jnp.log(theta["pi"][0])
    assert np.allclose(rows, expected, rtol=tolerance(1e-11, 1e-4))
