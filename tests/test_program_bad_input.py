"""What EM cannot take of a program: an error that names the site and says what to do."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import programs
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan

import jaxem

X = jnp.array([-1.0, 0.0, 1.0, 2.0])


def no_latent(x):
    mu = numpyro.param("mu", 0.0)
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def continuous_in_the_rows(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z + effect, 1.0), obs=x)


def without_finite_support(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Poisson(3.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shifted_support(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.DiscreteUniform(2, 5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled(x):
    with numpyro.plate("rows", len(x), subsample_size=2) as rows:
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def plates_of_data(x):
    with numpyro.plate("rows", jnp.sum(x > 0).astype(int)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)


def crossed(x):
    """A latent for each row and one for each column that meet in every cell."""
    rows, columns = numpyro.plate("rows", 4, dim=-2), numpyro.plate("columns", 3, dim=-1)
    with rows:
        a = numpyro.sample("a", dist.Bernoulli(0.5))
    with columns:
        b = numpyro.sample("b", dist.Bernoulli(0.5))
    with rows, columns:
        numpyro.sample("x", dist.Normal(a + b, 1.0), obs=jnp.zeros((4, 3)))


def outside_its_plate(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
    with numpyro.plate("others", len(x)):
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def backwards(x):
    def step(before, x):
        z = numpyro.sample("z", dist.Categorical(jnp.array([[0.5, 0.5], [0.2, 0.8]])[before]))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    scan(step, 0, x, reverse=True)


def all_steps_back(x):
    def step(before, x):
        z = numpyro.sample("z", dist.Bernoulli(0.3 + 0.4 * before[0]))
        numpyro.sample("x", dist.Normal(z + 0.1 * before[1], 1.0), obs=x)
        return (z, before[1] + z), None

    scan(step, (jnp.array(0), jnp.array(0)), x)


def continuous_in_a_scan(x):
    def step(before, x):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        level = numpyro.sample("level", dist.Normal(before, 1.0))
        numpyro.sample("x", dist.Normal(level + z, 1.0), obs=x)
        return level, None

    scan(step, 0.0, x)


def numpy_of_data(x):
    with numpyro.plate("rows", len(np.unique(x))):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def list_by_data(x):
    with numpyro.plate("rows", [2, 3][x[0].astype(int)]):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def param_in_a_scan(x):
    def step(before, x):
        pi = numpyro.param("pi", jnp.array([0.5, 0.5]))
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return z, None

    scan(step, 0, x)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (no_latent, ["no enumerable discrete latent", "MixtureSameFamily"]),
        (continuous_in_the_rows, ["'effect'", "'rows'", "'z'"]),
        (without_finite_support, ["'z'", "Poisson", "truncate"]),
        (shifted_support, ["'z'", "2 … 5", "shift"]),
        (subsampled, ["'rows'", "2 of 4", "subsample_size"]),
        (plates_of_data, ["depends on the values", "Python int"]),
        (numpy_of_data, ["NumPy array of an argument", "jax.numpy", "close over"]),
        (list_by_data, ["depends on the values", "Python int"]),
        (backwards, ["reverse", "flip"]),
        (all_steps_back, ["'z'", "as many steps as it takes"]),
        (continuous_in_a_scan, ["'level'", "scan"]),
        (param_in_a_scan, ["'pi'", "scan", "outside"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_program_that_em_cannot_take_is_refused_by_name(program, words):
    m = jaxem.from_numpyro(program)
    with pytest.raises(ValueError, match="program") as error:
        jaxem.em(m, {}, X)
    for word in words:
        assert word in str(error.value)
    assert "it raises" not in str(error.value)  # a refusal of ours is no error of the program


def test_latents_crossed_over_plates_are_refused_rather_than_summed_wrongly():
    m = jaxem.from_numpyro(crossed)
    with pytest.raises(ValueError, match="coupled across the plates"):
        jaxem.em(m, {}, X)


def test_a_latent_used_outside_its_plate_is_refused():
    m = jaxem.from_numpyro(outside_its_plate)
    with pytest.raises(ValueError, match=r"'z'.*outside.*'rows'"):
        jaxem.em(m, {}, X)


def test_an_enumeration_beyond_the_memory_limit_says_how_large_it_would_be():
    m = jaxem.from_numpyro(programs.independent_pair, memory_limit=1000)
    x = jnp.zeros(100)
    with pytest.raises(ValueError, match=r"memory_limit.*raise it") as error:
        jaxem.em(m, m.init(jax.random.key(0), x), x)
    assert "a: 2, b: 3, rows: 100" in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda theta: {k: v for k, v in theta.items() if k != "mu"}, ["missing ['mu']"]),
        (lambda theta: theta | {"nu": 1.0}, ["unknown ['nu']"]),
        (lambda theta: theta | {"pi": jnp.array([0.7, 0.7])}, ["'pi'", "sum to 1"]),
        (lambda theta: theta | {"sigma": jnp.array([1.0, -1.0])}, ["'sigma'", "constraint"]),
        (lambda theta: theta | {"mu": jnp.zeros((3, 2))}, ["'mu'", "(2, 2)", "(3, 2)"]),
        (lambda theta: theta | {"mu": jnp.full((2, 2), jnp.nan)}, ["'mu'", "finite"]),
        (lambda theta: 3.0, ["dict"]),
    ],
)
def test_a_theta_that_does_not_fit_the_program_is_refused(change, words):
    m = jaxem.from_numpyro(programs.mixture)
    x = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match="theta") as error:
        jaxem.em(m, change(m.init(jax.random.key(0), x)), x)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, theta, x: jaxem.em(m, theta, x, weights=jnp.ones(3)), ["weights", "(4,)"]),
        (lambda m, theta, x: jaxem.em(m, theta, x, labels=jnp.zeros(4, int)), ["labels", "obs="]),
        (lambda m, theta, x: jaxem.em(m, theta, x, temperature=-1.0), ["temperature"]),
        (lambda m, theta, x: jaxem.em(m.hold("nope"), theta, x), ["hold", "'nope'"]),
        (lambda m, theta, x: jaxem.sample(m, theta, jax.random.key(0), 3), ["x:", "pass the data"]),
        (lambda m, theta, x: jaxem.gradient_m_step(m), ["gradient_m_step"]),
        (lambda m, theta, x: jaxem.em(m, theta, x.at[1, 0].set(jnp.nan)), ["x: has NaN", "row(s): 1"]),
        (lambda m, theta, x: jaxem.from_numpyro(3), ["program", "int"]),
        (lambda m, theta, x: jaxem.from_numpyro(programs.mixture, num_gradient_steps=0), ["num_gradient_steps"]),
        (
            lambda m, theta, x: jaxem.marginals(jaxem.families.gaussian.full, theta, x),
            ["marginals", "responsibilities"],
        ),
    ],
)
def test_arguments_that_do_not_suit_a_program_are_refused(call, words):
    m = jaxem.from_numpyro(programs.mixture)
    x = jnp.zeros((4, 2))
    with pytest.raises(ValueError, match=r".") as error:
        call(m, m.init(jax.random.key(0), x), x)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["dependent_pair", "gaussian_hmm", "switch"])
def test_a_table_of_rows_and_components_only_where_there_is_one(name):
    m = jaxem.from_numpyro(programs.CASES[name].program)
    theta = m.init(jax.random.key(0), programs.CASES[name].x)
    with pytest.raises(ValueError, match=r"jaxem\.marginals"):
        jaxem.log_joint(m, theta, programs.CASES[name].x)


def test_importing_jaxem_leaves_funsor_alone():
    script = "import sys, jaxem; sys.exit('funsor' in sys.modules or 'numpyro.contrib.funsor' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_users_own_handlers_stay_outside():
    """A program is traced inside jaxem's handlers only: a user's seed and trace around `em` see nothing of it."""
    m = jaxem.from_numpyro(programs.mixture)
    x = jnp.zeros((4, 2))
    theta = m.init(jax.random.key(0), x)
    with handlers.seed(rng_seed=0), handlers.trace() as seen:
        fit = jaxem.em(m, theta, x, max_steps=1)
    assert seen == {}
    assert bool(jnp.isfinite(fit.free_energy))
