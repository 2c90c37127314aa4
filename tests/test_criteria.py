"""df, AIC, BIC and ICL are mclust's with the sign turned; what is chosen converged, and is the least of its table."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from test_gaussian_families import old_faithful

import jaxem
from jaxem import Status
from jaxem.families import bernoulli, categorical, gaussian, poisson

from cases import CASES, EPS, FLOAT, cast, tolerance

FAITHFUL = old_faithful()
LABELS = (FAITHFUL[:, 0] > 3).astype(int)

# R mclust 6.0.0 on its `faithful`: me(…, z = unmap(eruptions > 3)) to the end: (df, loglik, BIC, ICL)
MCLUST = {
    "EII": (6, -1709.6813729497, -3452.9975582972, -3455.7985717938),
    "VII": (7, -1709.5292821774, -3458.2991788189, -3460.8767474787),
    "VVI": (9, -1147.8063525378, -2346.0649236723, -2346.1608386559),
    "EEE": (8, -1140.1867594371, -2325.2199354045, -2326.7093903814),
    "VVV": (11, -1130.2639601847, -2322.1917430987, -2322.7046807504),
}
# its nMclustParams(…, d = 4, G), G = 1 … 9
DF_OF_FOUR_COLUMNS = {
    "EII": (5, 10, 15, 20, 25, 30, 35, 40, 45),
    "VII": (5, 11, 17, 23, 29, 35, 41, 47, 53),
    "VVI": (8, 17, 26, 35, 44, 53, 62, 71, 80),
    "EEE": (14, 19, 24, 29, 34, 39, 44, 49, 54),
    "VVV": (14, 29, 44, 59, 74, 89, 104, 119, 134),
}
# its mclustBIC(faithful, 1:4), from hierarchical clusterings
BIC = {
    "EII": (-4024.72147937, -3452.99845243, -3377.70134401, -3230.26363859),
    "VII": (-4024.72147937, -3458.30498589, -3336.59795441, -3242.82596717),
    "VVI": (-3055.83486150, -2346.06492395, -2342.36580920, -2343.48614372),
    "EEE": (-2607.62250044, -2325.21993718, -2314.31629567, -2331.22256139),
    "VVV": (-2607.62250044, -2322.19195930, -2349.69625558, -2351.49322934),
}
each_model = pytest.mark.parametrize("name", MCLUST)


@each_model
def test_criteria_are_mclusts_with_the_sign_turned(name):
    m, x = getattr(gaussian, name), cast(FAITHFUL)
    theta = jaxem.em(m, jaxem.inits.from_labels(m, x, LABELS), x, max_steps=5000).theta
    df, likelihood, bic, icl = MCLUST[name]
    assert jaxem.num_parameters(m, theta) == df
    near = {"rel": tolerance(1e-9, 1e-4)}  # of the fit: EM's own tolerance is 1e-10 a row
    assert float(jaxem.bic(m, theta, x)) == pytest.approx(-bic, **near)
    assert float(jaxem.icl(m, theta, x)) == pytest.approx(-icl, rel=tolerance(1e-7, 1e-3))  # first order in θ
    assert float(jaxem.aic(m, theta, x)) == pytest.approx(-2 * likelihood + 2 * df, **near)


@each_model
def test_degrees_of_freedom_are_mclusts(name):
    m, x = getattr(gaussian, name), cast(np.random.default_rng(0).normal(size=(20, 4)))
    counts = [jaxem.num_parameters(m, inits(m, x, K)) for K in range(1, 10)]
    assert counts == list(DF_OF_FOUR_COLUMNS[name])


def inits(m, x, K):
    return jaxem.inits.random_points(m, jax.random.key(0), x, K)


def test_names_of_mclust_are_names_of_the_same():
    assert gaussian.EII is gaussian.isotropic
    assert gaussian.VVV is gaussian.full


@pytest.mark.parametrize(
    ("m", "df"),
    [
        (gaussian.full.hold("pi"), 3 * 2 + 3 * 3),
        (gaussian.full.hold("pi", "mu", "Sigma"), 0),
        (gaussian.with_floor(gaussian.diagonal, 0.1), 2 + 6 + 6),
        (bernoulli.mixture, 2 + 6),
        (poisson.mixture, 2 + 6),
        (categorical.mixture, 2 + 3 * 2 * 3),  # of four categories
    ],
    ids=repr,
)
def test_what_is_held_and_the_last_of_a_simplex_are_not_counted(m, df):
    case = next(case for case in CASES if case.m.shapes == m.shapes)
    assert jaxem.num_parameters(m, case.theta()) == df


def test_a_row_of_weight_two_counts_twice():
    m, x = gaussian.diagonal, CASES[0].x()
    theta = inits(m, x, 3)
    weights = np.array([2.0] * 10 + [0.0] * 10 + [1.0] * 40)
    twice = np.repeat(np.asarray(x), weights.astype(int), axis=0)
    for criterion in (jaxem.aic, jaxem.bic, jaxem.icl):
        one, other = criterion(m, theta, x, weights=weights), criterion(m, theta, cast(twice))
        assert float(one) == pytest.approx(float(other), rel=tolerance(1e-12, 1e-5))


def mixture(x):
    pi = numpyro.param("pi", jnp.array([0.4, 0.6]), constraint=dist.constraints.simplex)
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    sigma = numpyro.param("sigma", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(pi))
        numpyro.sample("x", dist.Normal(mu[z], sigma), obs=x)


def test_a_program_has_the_criteria_of_the_family_that_it_is():
    x = CASES[0].x()[:, 0]
    m, theta = jaxem.from_numpyro(mixture), cast({"pi": [0.4, 0.6], "mu": [-1.0, 1.0], "sigma": 1.5})
    family, same = gaussian.isotropic, theta | {"mu": theta["mu"][:, None]}
    assert jaxem.num_parameters(m, theta, x) == jaxem.num_parameters(family, same) == 4
    for criterion in (jaxem.aic, jaxem.bic, jaxem.icl):
        near = pytest.approx(float(criterion(family, same, x)), rel=tolerance(1e-12, 1e-5))
        assert float(criterion(m, theta, x)) == near
    with pytest.raises(ValueError, match=r"^x: a program's own trace"):
        jaxem.num_parameters(m, theta)


def walk(y):
    A = numpyro.param("A", jnp.array([[0.9, 0.1], [0.3, 0.7]]), constraint=dist.constraints.simplex)
    mu = numpyro.sample("mu", dist.Normal(0, 3).expand([2]).to_event(1))

    def step(before, y):
        z = numpyro.sample("z", dist.Categorical(A[before]))
        numpyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)
        return z, None

    scan(step, 0, y)


def test_of_a_chain_every_step_is_a_row():
    y = cast([0.1, 2.0, 1.9, 0.0, 0.2])
    m = jaxem.from_numpyro(walk)
    theta = m.init(jax.random.key(0), y)
    df = jaxem.num_parameters(m, theta, y)
    likelihood = float(jaxem.log_likelihood(m, theta, y))
    assert float(jaxem.bic(m, theta, y)) == pytest.approx(df * np.log(5) - 2 * likelihood, rel=tolerance(1e-12, 1e-5))
    path = jaxem.em(m, theta, y, temperature=0.0, max_steps=0).free_energy
    prior = jaxem.em(m, theta, y, max_steps=0).free_energy - likelihood
    assert float(jaxem.icl(m, theta, y)) == pytest.approx(
        df * np.log(5) - 2 * float(path - prior), rel=tolerance(1e-12, 1e-5)
    )


# ---- selection


FIVE = tuple(getattr(gaussian, name) for name in MCLUST)


@pytest.fixture(scope="module")
def selection():
    return jaxem.select(cast(FAITHFUL), jax.random.key(0), models=FIVE, num_components=range(1, 4), starts=4)


def test_no_criterion_is_worse_than_mclusts(selection):
    """Several starts find its maxima, or better ones."""
    for candidate in selection.table:
        names = {m: name for name, m in zip(MCLUST, FIVE, strict=True)}
        mclusts = -BIC[names[candidate.m]][candidate.num_components - 1]
        assert candidate.value <= mclusts + tolerance(1e-3, 0.5), candidate
        if candidate.num_components == 1:
            assert candidate.value == pytest.approx(mclusts, rel=tolerance(1e-9, 1e-5))


def test_a_padded_fit_is_the_fit(selection):
    """π_k = 0 takes no row: the candidates that shared a program are those fitted each with its own K."""
    x = cast(FAITHFUL)
    for candidate in (selection.table[1], selection.table[-1]):
        m, K = candidate.m, candidate.num_components
        first = jaxem.inits.many(m, jax.random.split(jax.random.key(0), 4), x, 3)
        theta = {name: value[:, :K] if dict(m.shapes)[name].startswith("K") else value for name, value in first.items()}
        alone = jaxem.best(jaxem.em_batch(m, theta | {"pi": jnp.full((4, K), 1 / K, x.dtype)}, x))
        assert candidate.log_likelihood == pytest.approx(float(alone.free_energy), rel=4096 * EPS)


def test_the_least_of_the_table_is_chosen_and_its_fit_is_it(selection):
    table = selection.table
    least = min(table, key=lambda candidate: candidate.value)
    assert selection.m is least.m
    assert selection.fit.theta["pi"].shape == (least.num_components,)
    assert Status(int(selection.fit.status)) == Status.CONVERGED == least.status
    bic = float(jaxem.bic(selection.m, selection.fit.theta, cast(FAITHFUL)))
    assert bic == pytest.approx(least.value, rel=tolerance(1e-12, 1e-5))
    assert table.best is least
    assert least.num_parameters == jaxem.num_parameters(selection.m, selection.fit.theta)


def test_the_table_is_models_by_components_with_the_best_marked(selection):
    lines = repr(selection.table).splitlines()
    assert lines[0].split() == ["K", "isotropic", "spherical", "diagonal", "tied", "full"]
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    assert sum(line.count("*") for line in lines[1:4]) == 1
    assert f"{selection.table.best.value:.2f}" in repr(selection.table)
    assert repr(selection).startswith(f"Selection: {selection.m!r} with")


def test_a_candidate_of_which_no_start_converged_is_counted_and_never_chosen():
    x = cast(np.repeat([[0.0, 0.0], [1.0, 1.0], [5.0, 4.0]], [5, 5, 5], axis=0))  # a component a point: F has no bound
    models = (gaussian.isotropic, gaussian.full)
    found = jaxem.select(x, jax.random.key(0), models=models, num_components=(1, 3), starts=2)
    failed = [c for c in found.table if not np.isfinite(c.value)]
    assert {(c.m, c.num_components) for c in failed} >= {(gaussian.full, 3)}
    assert all(c.failed == sum(c.counts.values()) for c in failed)
    assert found.table.best.num_components == 1
    assert "– (2)" in repr(found.table)
    with pytest.raises(jaxem.EMError, match="no start of any candidate converged"):
        jaxem.select(x, jax.random.key(0), models=gaussian.full, num_components=3, starts=2)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ({"criterion": "BIC"}, "^criterion: must be one of"),
        ({"num_components": ()}, "^num_components: is empty"),
        ({"num_components": 0}, "^num_components: must be an integer ≥ 1"),
        ({"num_components": (1, 2.5)}, "^num_components: must be an integer"),
        ({"models": ()}, "^models: is empty"),
        ({"models": 3}, "^models: must be mixtures of"),
        ({"models": jaxem.from_numpyro(mixture)}, "^select: is for mixtures"),
        ({"starts": 0}, "^starts: must be an integer ≥ 1"),
    ],
)
def test_select_names_what_is_wrong(words, match):
    with pytest.raises(ValueError, match=match):
        jaxem.select(cast(FAITHFUL), jax.random.key(0), **words)


def test_floats_are_floats(selection):
    assert selection.fit.free_energy.dtype == FLOAT
