"""A program's rows: in chunks, weighed, spread and streamed it is the same program, to rounding."""

import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax.sharding import AxisType
from numpyro import distributions as dist
from programs import CASES

import jaxem
from jaxem._core.checks import enter
from jaxem._programs.sums import Product, Repeated, unbroadcast
from jaxem._rows import chunks

pytestmark = pytest.mark.takes_turns("name")

EXACT = 1e-11 if jax.config.jax_enable_x64 else 1e-3  # of sums over as many rows as there are
WHOLE = {"gaussian_hmm", "categorical_hmm", "switch", "factorial_hmm", "emissions_that_are_mixtures", "disguised"}
WHOLE |= {"one_step"}
ROWS = [name for name in CASES if name not in WHOLE]


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of two rows: the last one overlaps its neighbour where their number is odd."""
    monkeypatch.setattr(chunks, "TABLE_ENTRIES", 1)
    monkeypatch.setattr(chunks, "FEWEST", 2)


@functools.cache
def started(name):
    m = jaxem.from_numpyro(CASES[name].program)
    theta = m.init(jax.random.key(0), CASES[name].x)
    return m, *enter(m, theta, CASES[name].x)


def ready(m, theta, data):
    m.plan(data.x, data.temperature.dtype)
    return data


def cut(m, data):
    return data._replace(x=m.by_rows("test", data.x, data.temperature.dtype))


@pytest.mark.parametrize("name", CASES)
def test_a_row_plate_is_found_or_what_stands_against_it_is_named(name):
    m, _, data = started(name)
    found = m.row_plate(data.x, data.temperature.dtype)
    assert (name in WHOLE) == isinstance(found, str), found
    assert found == "'s' is in no plate" if name == "switch" else True


hurried = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("name", ROWS)
def test_a_step_by_chunks_is_a_step_on_whole_tables(name, small_chunks):
    """F, W and θ⁺; of what climbs, whose end depends on the last digits, what it climbs."""
    m, theta, data = started(name)

    @hurried
    def step(theta, data):
        found = m.expect(theta, data)
        if CASES[name].closed:
            return found.free_energy, m.rows.size(data), m.maximize(found.statistics, theta, data).theta
        elsewhere = jax.tree.map(lambda leaf: 1.1 * leaf, theta)
        return found.free_energy, jax.value_and_grad(lambda new: m.objective(new, theta, data))(elsewhere)

    whole, by_rows = (step(theta, ready(m, theta, data)) for data in (data, cut(m, data)))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(by_rows), strict=True):
        np.testing.assert_allclose(other, one, rtol=EXACT, atol=EXACT * (1 + np.abs(one).max()))


def test_a_climb_by_chunks_ends_where_one_on_whole_tables_does(small_chunks):
    """Q's second derivatives are sums over rows as Q is: Newton's method goes the same way, to the same end."""
    m, theta, data = started("gammas")
    ends = []
    for some in (data, cut(m, data)):
        found = jax.jit(m.expect)(theta, ready(m, theta, some))
        new = jax.jit(lambda found, some: m.maximize(found.statistics, theta, some).theta)(found, some)
        ends.append((found.free_energy, *(new[name] for name in sorted(new))))
    for one, other in zip(*ends, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-9 if jax.config.jax_enable_x64 else 1e-3)


# ---- one program for the rest: a covariate, so that a scale takes a second pass, beside one that is moved; priors


def regression(x, y, by):
    pi = numpyro.sample("pi", dist.Dirichlet(jnp.array([2.0, 2.0])))
    mu = numpyro.sample("mu", dist.Normal(0, 10).expand([2]).to_event(1))
    s = numpyro.param("s", jnp.array([1.0, 1.0]), constraint=dist.constraints.positive)
    beta = numpyro.param("beta", jnp.array([[1.0, 0.3], [-1.0, 0.2]]))
    sigma = numpyro.param("sigma", jnp.array([0.5, 0.8]), constraint=dist.constraints.positive)
    with numpyro.plate("rows", len(y)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("u", dist.Normal(mu[z], s[z]), obs=by["u"])
        numpyro.sample("y", dist.Normal(jnp.sum(x * beta[z], axis=-1), sigma[z]), obs=y)


RNG = np.random.default_rng(5)
X = np.stack([np.ones(41), RNG.normal(size=41)], axis=1)
Z = RNG.integers(2, size=41)
ARGS = (X, np.where(Z, 1, -1) + 0.4 * X[:, 1] + 0.3 * RNG.normal(size=41), {"u": 7 + 2 * Z + RNG.normal(size=41)})
M = jaxem.from_numpyro(regression)
THETA = {
    "pi": np.array([0.5, 0.5]),
    "mu": np.array([0.0, 1.0]),
    "s": np.ones(2),
    "beta": np.array([[1.0, 0.3], [-1.0, 0.2]]),
    "sigma": np.array([0.5, 0.8]),
}
STEPS = 4
NEAR = 1e-9 if jax.config.jax_enable_x64 else 2e-4


def taken(index):
    return jax.tree.map(lambda leaf: leaf[index], ARGS)


def fit(x=ARGS, m=M, **options):
    return jaxem.em(m, THETA, x, **{"max_steps": STEPS, "tol": 0.0} | options)


def agree(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=NEAR, atol=NEAR)


@functools.cache
def whole():
    """The fit by whole tables."""
    return fit()


def streamed(sizes=(20, 20, 1), weights=None):
    def batches():
        ends = np.cumsum((0, *sizes))
        for first, last in itertools.pairwise(ends):
            some = jaxem.arguments(*taken(slice(first, last)))
            yield some if weights is None else (some, weights[first:last])

    return batches


def test_explain_tells_the_rows():
    assert M.explain(THETA, ARGS).rows == "the members of plate 'rows'"


def test_weights_count_rows():
    """As often as they say; a row of weight 0 counts for nothing, whatever it holds."""
    weights = RNG.integers(0, 3, 41).astype(float)
    spoiled = jax.tree.map(np.copy, ARGS)
    spoiled[1][weights == 0] = np.nan
    repeated = np.repeat(np.arange(41), weights.astype(int))
    weighed = fit(spoiled, weights=weights)
    several = fit(taken(repeated))
    agree((several.theta, several.free_energy), (weighed.theta, weighed.free_energy))
    agree(
        jaxem.log_likelihood(M, THETA, taken(repeated)),
        jaxem.log_likelihood(M, THETA, spoiled, weights=weights),
    )


def test_a_stream_is_the_fit_in_memory(tmp_path):
    found = jaxem.em_stream(M, THETA, streamed(), tol=0.0, max_steps=STEPS, checkpoint=tmp_path / "fit.npz")
    agree((whole().theta, whole().free_energy), (found.theta, found.free_energy))
    half = jaxem.em_stream(M, THETA, streamed(), tol=0.0, max_steps=2, checkpoint=tmp_path / "half.npz")
    assert int(half.num_steps) == 2
    resumed = jaxem.em_stream(M, THETA, streamed(), tol=0.0, max_steps=STEPS, resume=tmp_path / "half.npz")
    jax.tree.map(np.testing.assert_array_equal, resumed, found)


def test_a_stream_has_weights():
    weights = np.arange(41) % 3.0
    found = jaxem.em_stream(M, THETA, streamed(weights=weights), tol=0.0, max_steps=STEPS)
    weighed = fit(weights=weights)
    agree((weighed.theta, weighed.free_energy), (found.theta, found.free_energy))


def test_a_mesh_does_not_change_the_fit():
    mesh = jax.make_mesh((3,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices("cpu")[:3])
    found = fit(mesh=mesh)
    agree((whole().theta, whole().free_energy), jax.tree.map(np.asarray, (found.theta, found.free_energy)))


def mixture(x):
    pi = numpyro.param("pi", jnp.array([0.5, 0.5]), constraint=dist.constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    sigma = numpyro.param("sigma", jnp.array([1.0, 1.0]), constraint=dist.constraints.positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sigma[z]), obs=x)


def test_stepwise_em_of_a_program_is_that_of_its_family():
    from jaxem.families import gaussian

    x = np.concatenate([RNG.normal(-2, 1, 300), RNG.normal(2, 1, 300)])[RNG.permutation(600)]
    theta = {"pi": np.array([0.5, 0.5]), "mu": np.array([-1.0, 1.0]), "sigma": np.ones(2)}
    found = jaxem.em_online(jaxem.from_numpyro(mixture), theta, lambda: iter(x.reshape(20, 30)))
    of_family = theta | {"mu": theta["mu"][:, None]}
    wanted = jaxem.em_online(gaussian.spherical, of_family, lambda: iter(x.reshape(20, 30, 1)))
    agree(wanted.theta["mu"][:, 0], found.theta["mu"])
    agree((wanted.theta["pi"], wanted.theta["sigma"]), (found.theta["pi"], found.theta["sigma"]))
    agree(wanted.predictive, found.predictive)


# ---- what has no rows says why, in one line


def switched(x):
    s = numpyro.sample("s", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(2.0 * s + numpyro.sample("z", dist.Bernoulli(0.5)), 1.0), obs=x)


def centred(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x - x.mean())


def trend(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(z + 0.1 * jnp.arange(len(x)), 1.0), obs=x)


def shared(x):
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0 + 1 / len(x)), obs=x)


def closure(y):
    with numpyro.plate("rows", 8):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(y * z, 1.0), obs=jnp.arange(8.0))


def fixed_size(x):
    with numpyro.plate("rows", 8):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=x)


def offsets(x):
    w = numpyro.param("w", jnp.zeros(len(x)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(w + z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (switched, "'s' is in no plate"),
        (centred, "the value of 'x' does not follow its own row of plate 'rows' alone"),
        (trend, "loc of 'x' does not follow its own row"),
        (shared, "scale of 'x' does not follow its own row"),
        (closure, "no argument has the 8 rows of plate 'rows' along its leading axis"),
        (fixed_size, "cut along plate 'rows', it raises"),
        (offsets, "its parameters or latents change with the number of rows of plate 'rows'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_program_without_a_row_plate_refuses_weights_and_says_why(program, why):
    x = jnp.linspace(-1.0, 1.0, 8) if program is not closure else jnp.array(1.0)
    m = jaxem.from_numpyro(program)
    theta = m.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="weights: needs a plate of rows") as error:
        jaxem.em(m, theta, x, weights=np.ones(8))
    assert why in str(error.value)
    assert "\n" not in str(error.value)
    if program is not fixed_size:
        assert why in m.explain(theta, x).rows


def test_a_stream_of_a_program_that_climbs_is_refused():
    m = jaxem.from_numpyro(mixture, closed_form=False)
    x = RNG.normal(size=12)
    with pytest.raises(ValueError, match="climbs its gradient"):
        jaxem.em_stream(m, m.init(jax.random.key(0), x), lambda: iter([x]))


def test_the_page_runs():
    page = (Path(__file__).parent.parent / "docs" / "program_rows.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/program_rows.md", "exec"), {})


def test_a_sum_of_products_is_that_of_the_array_they_make():
    pairs = [((3, 5, 1), (3, 5, 2)), ((3, 5), (5,)), ((3, 1), (3, 1)), ((3, 5, 1), (5, 2)), ((2, 3, 5, 1), (3, 1, 2))]
    for pair in pairs:
        u, v = (jnp.asarray(RNG.normal(size=shape)) for shape in pair)
        full = np.broadcast_shapes(*pair)
        for kept in itertools.product([False, True], repeat=len(full)):
            shape = tuple(size if keeps else 1 for size, keeps in zip(full, kept, strict=True))
            with jax.numpy_rank_promotion("allow"):
                product = unbroadcast(jnp.broadcast_to(u * v, full), shape)
            agree(product, unbroadcast(Product(u, v), shape))
            agree(unbroadcast(jnp.broadcast_to(u, full), shape), unbroadcast(Repeated(u, full), shape))
