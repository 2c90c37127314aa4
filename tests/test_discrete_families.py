"""Bernoulli, categorical, Poisson, Exponential: SciPy at the boundary, NumPy's EM, certificates, starts, supports."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.special import logsumexp

import jaxem
from jaxem import Status, inits
from jaxem.families import bernoulli, categorical, exponential, poisson

from cases import CASES, CATEGORIES, EPS, FLOAT, cast, tolerance

FAMILIES = {case.name: case for case in CASES if case.name in ("bernoulli", "categorical", "poisson", "exponential")}
each_family = pytest.mark.parametrize("case", FAMILIES.values(), ids=FAMILIES)

BOUNDARY = {  # θ with every kind of edge: certain, impossible and ordinary outcomes, and a π of zero
    "bernoulli": {"pi": [0.5, 0.5, 0.0], "probs": [[0.0, 1.0], [1.0, 0.3], [0.5, 0.5]]},
    "categorical": {
        "pi": [0.5, 0.5, 0.0],
        "probs": [[[1, 0, 0, 0], [0.5, 0.5, 0, 0]], [[0, 0.2, 0.3, 0.5], [0, 0, 0, 1]], [[0.25] * 4] * 2],
    },
    "poisson": {"pi": [0.5, 0.5, 0.0], "rate": [[0.0, 2.0], [0.0, 0.0], [1.0, 1.0]]},
    "exponential": {"pi": [0.5, 0.5, 0.0], "rate": [[1e-3, 2.0], [1e3, 1.0], [1.0, 1.0]]},
}
EDGE_ROWS = {
    "bernoulli": [[0, 0], [0, 1], [1, 0], [1, 1]],
    "categorical": [[a, b] for a in range(4) for b in range(4)],
    "poisson": [[0, 0], [0, 3], [2, 0], [1, 1]],
    "exponential": [[0.0, 0.0], [0.0, 3.0], [2.0, 0.0]],
}


def boundary_theta(case):
    return {name: cast(np.array(value, float)) for name, value in BOUNDARY[case.name].items()}


# ---- the table


@each_family
def test_log_joint_at_the_boundary_is_scipys(case):
    """Impossible data −∞, certain data exactly 0, a component of weight 0 −∞; never NaN."""
    theta, x = boundary_theta(case), np.array(EDGE_ROWS[case.name])
    measured = np.asarray(jaxem.log_joint(case.m, theta, x))
    expected = case.log_joint(theta, x)
    assert np.isneginf(expected).any()
    assert np.array_equal(np.isneginf(measured), np.isneginf(expected))
    assert np.allclose(measured, expected, rtol=tolerance(1e-14, 2e-6), atol=EPS)


def test_certain_data_cost_nothing():
    theta = {"pi": cast([1.0]), "probs": cast([[0.0, 1.0, 1.0]])}
    assert jaxem.log_joint(bernoulli.mixture, theta, np.array([[0, 1, 1]])).tolist() == [[0.0]]


@each_family
def test_gradients_at_the_boundary_are_finite(case):
    theta, x = boundary_theta(case), cast(np.array(EDGE_ROWS[case.name]))
    gradient = jax.grad(lambda theta: jnp.sum(jnp.maximum(case.m.table(theta, x), -1e3)))(theta)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_two_categories_are_a_bernoulli():
    case = FAMILIES["bernoulli"]
    theta, x = case.theta(), case.x()
    p = theta["probs"]
    two = {"pi": theta["pi"], "probs": jnp.stack([1 - p, p], axis=-1)}
    fit, other = (jaxem.em(m, t, x, max_steps=20) for m, t in ((bernoulli.mixture, theta), (categorical.mixture, two)))
    assert float(fit.free_energy) == pytest.approx(float(other.free_energy), rel=tolerance(1e-12, 1e-5))
    assert np.allclose(fit.theta["probs"], other.theta["probs"][..., 1], atol=tolerance(1e-10, 1e-3))


def test_bool_integer_and_float_rows_are_the_same_data():
    case = FAMILIES["bernoulli"]
    theta, x = case.theta(), np.asarray(case.x())
    tables = [jaxem.log_joint(case.m, theta, x.astype(dtype)) for dtype in (bool, np.uint8, np.int32, FLOAT)]
    for table in tables[1:]:
        assert np.array_equal(tables[0], table)
    fits = [jaxem.em(case.m, theta, x.astype(dtype), max_steps=3).theta["probs"] for dtype in (bool, FLOAT)]
    assert np.array_equal(*fits)


def test_integer_rows_keep_thetas_precision():
    for name in ("bernoulli", "categorical", "poisson"):
        case = FAMILIES[name]
        theta = {key: value.astype(jnp.float32) for key, value in case.theta().items()}
        fit = jaxem.em(case.m, theta, np.asarray(case.x()), max_steps=1)
        assert {leaf.dtype.name for leaf in fit.theta.values()} == {"float32"}


# ---- Poisson's two forms


def test_poissons_two_forms_agree():
    """⟨η, φ⟩ + h against −I + log p(x|x): the same table on both sides of the switch, and at 0."""
    rng = np.random.default_rng(0)
    x = cast(np.concatenate([rng.poisson(level, (8, 2)) for level in (0, 3, 15, 100, 300)]))
    theta = {"pi": cast([0.2, 0.3, 0.5]), "rate": cast([[1e-3, 40.0], [15.0, 16.0], [290.0, 0.0]])}
    product, divergence = poisson.family.log_joint(theta, x), poisson.log_joint_by_divergence(theta, x)
    assert np.array_equal(np.isneginf(product), np.isneginf(divergence))
    finite = np.isfinite(product)
    # the switch is where the product's rounding reaches 1e-3
    assert np.abs(product - divergence)[finite].max() < tolerance(1e-11, 4e-3)
    by_scipy = FAMILIES["poisson"].log_joint(theta, x).T
    assert np.allclose(divergence[finite], by_scipy[finite], rtol=tolerance(1e-13, 1e-5), atol=tolerance(1e-13, 1e-5))


def test_gradients_of_poissons_two_forms_agree():
    x = cast([[0, 3], [20, 400], [7, 7]])
    theta = {"pi": cast([0.5, 0.5]), "rate": cast([[1.0, 390.0], [7.0, 0.5]])}
    forms = (poisson.family.log_joint, poisson.log_joint_by_divergence)
    a, b = (jax.grad(lambda t, f=f: jnp.sum(f(t, x)))(theta) for f in forms)
    assert np.allclose(a["rate"], b["rate"], rtol=tolerance(1e-11, 1e-4), atol=tolerance(1e-12, 1e-4))


def test_counts_of_a_million_in_float32():
    """The table to 1e-3 nats, where x log λ − λ − log x! is off by a nat; the fit to 0.01 nats a row."""
    rng = np.random.default_rng(1)
    rates = np.array([[1.00e6, 2e6], [1.01e6, 2e6]])
    x = rng.poisson(rates[rng.integers(0, 2, 200)])
    theta = {"pi": np.array([0.4, 0.6]), "rate": rates * [[1.001, 1], [0.999, 1]]}
    single = {name: jnp.asarray(value, jnp.float32) for name, value in theta.items()}
    x32 = jnp.asarray(x, jnp.float32)  # whole numbers below 2²⁴: exact
    rounded = {name: np.asarray(value, float) for name, value in single.items()}
    expected = FAMILIES["poisson"].log_joint(rounded, x)
    own = expected > expected.max(axis=1, keepdims=True) - 30
    measured = np.asarray(jaxem.log_joint(poisson.mixture, single, x32), float)
    assert np.abs(measured - expected)[own].max() < 1e-3
    lost = np.asarray(poisson.family.log_joint(single, x32).T, float)
    assert np.abs(lost - expected)[own].max() > 0.1
    fit = jaxem.em(poisson.mixture, single, x32)
    assert int(fit.status) == Status.CONVERGED
    expected = numpy_em(FAMILIES["poisson"], theta, x, steps=100)
    L = logsumexp(FAMILIES["poisson"].log_joint(expected, x), axis=1).sum()
    assert abs(float(fit.free_energy) - L) / len(x) < 1e-3
    assert np.allclose(fit.theta["rate"], expected["rate"], rtol=1e-5)


# ---- EM


def one_hot(x, num_categories):
    return np.eye(num_categories)[np.asarray(x)]


def numpy_m_step(case, gamma, x):
    """Weighted means, written from the definitions."""
    N_k = gamma.sum(axis=0)
    if case.name == "categorical":
        mean = np.einsum("nk,ndc->kdc", gamma, one_hot(x, CATEGORIES)) / N_k[:, None, None]
    else:
        mean = gamma.T @ np.asarray(x, float) / N_k[:, None]
    name = case.m.parameters[1]
    return {"pi": N_k / N_k.sum(), name: 1 / mean if case.name == "exponential" else mean}


def numpy_em(case, theta, x, steps):
    """EM from SciPy's densities."""
    for _ in range(steps):
        table = case.log_joint(theta, x)
        theta = numpy_m_step(case, np.exp(table - logsumexp(table, axis=1, keepdims=True)), x)
    return theta


@each_family
def test_em_is_numpys_em(case):
    theta, x = case.theta(), case.x()
    path = jaxem.em_path(case.m, theta, x, num_steps=5)
    expected = numpy_em(case, theta, np.asarray(x), steps=5)
    for name in theta:
        assert np.allclose(
            path.theta[name][-1], expected[name], rtol=tolerance(1e-11, 1e-4), atol=tolerance(1e-13, 1e-6)
        )


@each_family
def test_certificates_with_weights_annealed_and_where_a_component_is_empty(case):
    """C1–C6 are rounding at any θ; 256 eps for sums over 60 rows. (`test_certificates.py` has the held subsets.)"""
    x = case.x()
    weights = np.random.default_rng(0).uniform(0, 2, len(x))
    empty = {"pi": cast([0.4, 0.6, 0.0])}
    for theta, T in ((case.theta(0), 1.0), (case.theta(1), 0.4), (case.theta(2) | empty, 1.0)):
        certificate = jaxem.certify(case.m, theta, x, T, weights=weights)
        assert bool(certificate.holds(256 * EPS)), certificate
        assert not any(np.isnan(value) for value in certificate)
        assert int(certificate.C4_rows) == len(x)


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson"])
def test_certificates_after_an_m_step_onto_the_boundary(name):
    """Estimates of exactly 0 (and 1) lie at infinity in unconstrained coordinates; the statements still hold there."""
    case = FAMILIES[name]
    x, labels = np.asarray(case.x()).copy(), np.arange(60) % 3
    x[labels == 0, 0] = 0
    x[labels == 1, 0] = {"bernoulli": 1, "categorical": 3, "poisson": 0}[name]
    extra = {"num_categories": CATEGORIES} if name == "categorical" else {}
    theta = inits.from_labels(case.m, x, labels, **extra)
    edge = np.asarray(theta[case.m.parameters[1]])
    assert (edge[0] == 0).any()
    assert (edge[1] == (0 if name == "poisson" else 1)).any()
    theta, weights = cast({key: np.asarray(value) for key, value in theta.items()}), np.ones(len(x))
    for T in (1.0, 0.0):
        certificate = jaxem.certify(case.m, theta, x, T, weights=weights)
        assert bool(certificate.holds(256 * EPS)), certificate
        assert not np.isnan([certificate.C1, certificate.C2, certificate.C3, certificate.C5, certificate.C6]).any()
    again = jaxem.em(case.m, theta, x)  # a fit's θ is a start
    assert int(again.status) == Status.CONVERGED


def test_certificates_at_a_certainty_that_the_rest_of_the_row_contradicts():
    """p = 1 and x = 0: γ is exactly 0, though 30 other columns speak for that component by more than 1/eps."""
    certain = np.r_[1.0, np.full(30, 0.99)]
    theta = {"pi": cast([0.5, 0.5]), "probs": cast(np.stack([certain, np.full(31, 0.05)]))}
    x = np.vstack([np.r_[0, np.ones(30)], np.ones((3, 31)), np.zeros((3, 31))]).astype(int)
    certificate = jaxem.certify(bernoulli.mixture, theta, x)
    assert bool(certificate.holds(256 * EPS)), certificate


def test_a_certainty_is_not_rounded_to_while_a_row_contradicts_it():
    """Ten rows of ones and one of zeros with γ = 2e-29: at p = 1 that γ would make F −∞ in mid-step, and no maximum."""
    x = np.vstack([np.ones((10, 30)), np.zeros((1, 30))]).astype(int)
    theta = {"pi": cast([0.5, 0.5]), "probs": cast(np.stack([np.full(30, 0.9), np.full(30, 0.1)]))}
    path = jaxem.em_path(bernoulli.mixture, theta, x, num_steps=3)
    trace = np.stack([path.after_e, path.after_m], axis=1).ravel()
    assert np.isfinite(trace).all()
    assert (np.diff(trace) >= -64 * EPS * np.abs(trace).max()).all()
    first, second, _ = np.asarray(path.theta["probs"][:, 0])
    assert (first == np.nextafter(FLOAT(1), FLOAT(0))).all()  # no number between
    assert (second == 1).all()  # by now that γ is exactly 0
    for at in (theta, *({name: leaf[t] for name, leaf in path.theta.items()} for t in range(2))):
        certificate = jaxem.certify(bernoulli.mixture, at, x)
        assert bool(certificate.holds(256 * EPS)), certificate


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "poisson"])
def test_an_outcome_with_any_mass_stays_possible(name):
    """However little Σγ it has, also where Σγ / N_k rounds to 1 or underflows to 0: Q is finite at θ⁺."""
    m, theta = FAMILIES[name].m, FAMILIES[name].theta(K=2)
    x = jnp.array([[1, 0]] * 10 + [[0, 1]])
    for mass in (EPS**2, 2 * np.finfo(FLOAT).tiny):
        gamma = cast(np.array([[1.0, 0.0]] * 10 + [[mass, 1.0]]))
        new = m.update(m.statistics(theta, x, gamma.T), theta, frozenset())
        Q = jnp.sum(jnp.where(gamma.T > 0, gamma.T * m.table(new, x), 0))
        assert np.isfinite(Q)


@each_family
def test_an_empty_component_keeps_its_parameters(case):
    theta, x = case.theta(), case.x()
    gamma = jnp.zeros((3, len(x)), FLOAT).at[0].set(1)
    new = case.m.update(case.m.statistics(theta, x, gamma), theta, frozenset())
    name = case.m.parameters[1]
    assert np.array_equal(new[name][1:], theta[name][1:])
    assert new["pi"].tolist() == [1.0, 0.0, 0.0]


@each_family
def test_parameters_are_recovered(case):
    """From draws of a separated mixture: within 5 standard errors of the complete-data estimate."""
    K, D, N = 3, 6, 1500
    rng = np.random.default_rng(3)
    name = case.m.parameters[1]
    truth = {"pi": np.array([0.2, 0.3, 0.5])}
    levels = np.array([0.1, 0.5, 0.9])
    if case.name == "categorical":
        truth[name] = np.repeat(
            st.binom.pmf(np.arange(CATEGORIES), CATEGORIES - 1, levels[:, None])[:, None], D, axis=1
        )
    else:
        values = {"bernoulli": levels, "poisson": [1.0, 6.0, 15.0], "exponential": [0.1, 1.0, 10.0]}[case.name]
        truth[name] = np.repeat(np.array(values)[:, None], D, axis=1)
    z = rng.choice(K, N, p=truth["pi"])
    draw = {
        "bernoulli": lambda p: rng.binomial(1, p),
        "categorical": lambda p: rng.binomial(CATEGORIES - 1, np.repeat(levels[z][:, None], D, axis=1)),
        "poisson": rng.poisson,
        "exponential": lambda rate: rng.exponential(1 / rate),
    }[case.name]
    x = cast(draw(truth[name][z]))
    keys = jax.random.split(jax.random.key(0), 4)
    start = jax.vmap(
        lambda key: inits.kmeans_plus_plus(
            case.m, key, x, K, num_categories=CATEGORIES if case.name == "categorical" else None
        )
    )(keys)
    fit = jaxem.best(jaxem.em_batch(case.m, cast({k: np.asarray(v) for k, v in start.items()}), x))
    assert int(fit.status) == Status.CONVERGED
    order = np.argsort(np.asarray(fit.theta["pi"]))
    assert np.abs(fit.theta["pi"][order] - truth["pi"]).max() < 5 * np.sqrt(0.25 / N)
    error = np.asarray(fit.theta[name])[order] - truth[name]
    scale = truth[name] if case.name == "exponential" else 0.5 if case.name != "poisson" else np.sqrt(truth[name])
    # a component has ≥ 0.2 N rows, and up to half its information is missing
    assert np.abs(error / scale).max() < 5 * np.sqrt(2 / (0.2 * N))


# ---- hidden columns


def test_hidden_pixels_given_the_others():
    """p(x_h | x_o) by Bayes' rule on the 2^D table of SciPy's joint probabilities; draws have that mean."""
    case, D = FAMILIES["bernoulli"], 4
    theta, mask = case.theta(D=D), np.array([True, False, True, False])
    every = np.array(list(np.ndindex(*(2,) * D)))
    joint = np.exp(logsumexp(case.log_joint(theta, every), axis=1))
    x = np.array([[0, 9, 0, 9], [0, 9, 1, 9], [1, 9, 1, 9]])  # hidden entries are ignored, whatever they are
    conditional = jaxem.condition(case.m, theta, x, mask)
    for row, mean in zip(x, np.asarray(conditional.mean), strict=True):
        matches = (every[:, mask] == row[mask]).all(axis=1)
        expected = joint[matches] @ every[matches][:, ~mask] / joint[matches].sum()
        assert np.allclose(mean, expected, rtol=tolerance(1e-12, 1e-5))
    draws = np.stack([conditional.sample(key) for key in jax.random.split(jax.random.key(0), 400)])
    assert set(np.unique(draws)) <= {0, 1}
    assert np.abs(draws.mean(axis=0) - conditional.mean).max() < 5 * np.sqrt(0.25 / 400)


# ---- how it ends


def test_an_exponential_collapse_is_nonfinite():
    """A component on rows of 0: λ → ∞. The status says so, θ is the last finite one."""
    x = cast([[0.0], [0.0], [1e3], [2e3]])
    theta = {"pi": cast([0.5, 0.5]), "rate": cast([[1e3], [1e-3]])}
    fit = jaxem.em(exponential.mixture, theta, x)
    assert int(fit.status) == Status.NONFINITE
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fit.theta))
    with pytest.raises(jaxem.EMError, match="collapsed"):
        jaxem.check(fit)


BAD = [
    ("bernoulli", [[0, 1], [1, 0.5]], r"has 0.5 in row 1, column 1; .*binarise"),
    ("bernoulli", [[0, 2], [1, 1]], r"has 2 in row 0, column 1"),
    ("poisson", [[0, 1], [3, -2]], r"has -2 in row 1, column 1; .*counts"),
    ("poisson", [[0, 1], [2.5, 2]], r"has 2.5 in row 1, column 0"),
    ("categorical", [[0, 1], [4, 1]], r"has 4 in row 1, column 0; .*C = 4 .*0 … 3.*renumber"),
    ("categorical", [[-1, 1], [3, 1]], r"has -1 in row 0, column 0"),
    ("categorical", [[0, 1], [3, 1.5]], r"has 1.5 in row 1, column 1"),
    ("exponential", [[0.0, 1.0], [0.5, -0.5]], r"has -0.5 in row 1, column 1; .*≥ 0"),
    ("bernoulli", [[0, np.nan], [1, 1]], r"has NaN or infinity in 1 row\(s\), first in row 0; drop or impute"),
    ("poisson", [[0, 1], [1, np.inf]], r"has NaN or infinity in 1 row\(s\), first in row 1"),
    ("categorical", [[0, np.nan], [1, 1]], r"has NaN or infinity"),
    ("exponential", [[0, 1], [np.nan, 1]], r"has NaN or infinity"),
]


@pytest.mark.parametrize(("name", "x", "message"), BAD)
def test_values_outside_the_support_are_named(name, x, message):
    case = FAMILIES[name]
    with pytest.raises(ValueError, match=f"^x: {message}"):
        jaxem.em(case.m, case.theta(), np.array(x))


@pytest.mark.parametrize(("name", "x", "message"), BAD)
def test_values_outside_the_support_are_impossible_where_x_is_traced(name, x, message):
    """Inside jit nothing can raise: F is −∞ (or NaN for NaN), and the status NONFINITE."""
    case = FAMILIES[name]
    fit = jax.jit(partial(jaxem.em, case.m, case.theta(), max_steps=3))(cast(np.array(x)))
    assert int(fit.status) == Status.NONFINITE


# ---- starts


@each_family
@pytest.mark.parametrize("init", [inits.random_points, inits.kmeans_plus_plus])
def test_starts_are_halfway_to_the_overall_mean_and_inside(case, init):
    x = np.asarray(case.x()).copy()
    x[:, 1] = 0 if case.name != "exponential" else x[:, 1]  # a constant column: half-way alone would be on the edge
    K, name = 2, case.m.parameters[1]
    theta = init(case.m, jax.random.key(0), x, K)
    assert np.allclose(theta["pi"], 1 / K)
    value = np.asarray(theta[name], float)
    if case.name == "categorical":
        C = int(x.max()) + 1
        assert value.shape == (K, 2, C)
        assert np.allclose(value.sum(-1), 1, atol=4 * EPS)
        assert (value > 0).all()
        frequencies = one_hot(x[:, 0], C).mean(axis=0)
        candidates = (np.eye(C) + frequencies) / 2
        used = frequencies > 0
    else:
        assert (value > 0).all()
        assert case.name != "bernoulli" or (value < 1).all()
        mean = 1 / value[:, 0] if case.name == "exponential" else value[:, 0]
        candidates, value = (np.unique(x[:, 0]) + x[:, 0].mean()) / 2, mean[:, None, None]
        candidates, used = candidates[:, None], np.array([True])
    # each component's first column is half-way between some row's and the mean
    distances = np.abs(value[:, 0][:, None] - candidates[None])[..., used].max(-1)
    assert distances.min(axis=1).max() < tolerance(1e-12, 1e-5) * (1 + np.abs(candidates).max())
    fit = jaxem.em(case.m, theta, x, max_steps=2)
    assert np.isfinite(fit.free_energy)


@each_family
def test_starts_vmap_over_keys_inside_jit(case):
    x = case.x(N=20)
    extra = {"num_categories": CATEGORIES} if case.name == "categorical" else {}
    keys = jax.random.split(jax.random.key(0), 3)

    def start(key, x):
        return inits.kmeans_plus_plus(case.m, key, x, 2, **extra)

    batched = jax.jit(jax.vmap(start, in_axes=(0, None)))(keys, x)
    for lane, key in enumerate(keys):
        alone = start(key, x)
        assert all(np.allclose(batched[name][lane], alone[name], rtol=8 * EPS) for name in alone)


def test_categories_are_names_not_numbers():
    """k-means++ counts features that differ: renaming the categories renames the start, for the same key."""
    x = np.asarray(FAMILIES["categorical"].x(D=4))
    names = np.array([2, 0, 3, 1])
    m, C = categorical.mixture, CATEGORIES
    for seed in range(5):
        key = jax.random.key(seed)
        plain, renamed = (inits.kmeans_plus_plus(m, key, data, 3, num_categories=C)["probs"] for data in (x, names[x]))
        assert np.allclose(plain, np.asarray(renamed)[..., names], atol=4 * EPS)


@each_family
def test_from_labels_is_the_complete_data_maximum(case):
    x = case.x()
    labels = np.arange(len(x)) % 3
    theta = inits.from_labels(case.m, x, labels, **({"num_categories": 4} if case.name == "categorical" else {}))
    expected = numpy_m_step(case, np.eye(3)[labels], x)
    for name in theta:
        assert np.allclose(theta[name], expected[name], rtol=tolerance(1e-13, 1e-5), atol=EPS)


def test_categories_come_from_a_concrete_x_or_an_argument():
    x, m, key = np.array([[0, 2], [1, 0], [2, 1]]), categorical.mixture, jax.random.key(0)
    assert inits.random_points(m, key, x, 2)["probs"].shape == (2, 2, 3)
    assert inits.random_points(m, key, x, 2, num_categories=5)["probs"].shape == (2, 2, 5)
    assert inits.from_labels(m, x, np.array([0, 1, 1]), num_categories=5)["probs"].shape == (2, 2, 5)
    with pytest.raises(ValueError, match="num_categories: must be given where x is traced"):
        jax.jit(lambda x: inits.random_points(m, key, x, 2))(x)
    with pytest.raises(ValueError, match="num_categories: this mixture has no categories"):
        inits.random_points(bernoulli.mixture, key, x > 0, 2, num_categories=2)
    with pytest.raises(ValueError, match=r"has 2\.0 in row 0, column 1.*C = 2.*num_categories="):
        inits.random_points(m, key, x, 2, num_categories=2)
    with pytest.raises(ValueError, match="num_categories"):
        inits.random_points(m, key, x, 2, num_categories=0)


def test_starts_check_the_support():
    for name, x in (("bernoulli", [[0.5], [1]]), ("poisson", [[-1], [2]]), ("exponential", [[-1.0], [2.0]])):
        m = FAMILIES[name].m
        with pytest.raises(ValueError, match=r"^x: has"):
            inits.random_points(m, jax.random.key(0), np.array(x), 2)
        with pytest.raises(ValueError, match=r"^x: has"):
            inits.from_labels(m, np.array(x), np.array([0, 1]))


def test_an_empty_class_is_an_error_that_names_it():
    x = np.array([[0], [1], [1]])
    with pytest.raises(ValueError, match="labels: no row has class 1 of 0 … 2; renumber"):
        inits.from_labels(bernoulli.mixture, x, np.array([0, 2, 2]))
    with pytest.raises(ValueError, match=r"labels: no row has class 1, 2 of 0 … 2; .*lower num_components"):
        inits.from_labels(bernoulli.mixture, x, np.array([0, 0, 0]), 3)
    with pytest.raises(ValueError, match="labels: must lie in 0 … 1"):
        inits.from_labels(bernoulli.mixture, x, np.array([0, 2, 2]), 2)
    traced = jax.jit(lambda labels: inits.from_labels(bernoulli.mixture, x, labels, 3))(np.array([0, 2, 2]))
    assert np.isfinite(traced["probs"]).all()  # inside jit the empty class stays at the overall mean


def test_singular_labels_are_an_error():
    x = np.array([[0.0], [0.0], [1.0], [2.0]])
    with pytest.raises(ValueError, match=r"labels: .*no maximum in 'rate'.*merge"):
        inits.from_labels(exponential.mixture, x, np.array([0, 0, 1, 1]))
