"""T → 0 in every family and program: γ, F, M-step and joint assignments harden at the lead of the best, no faster."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from scipy.special import digamma, logsumexp, softmax

import jaxem
from jaxem import limits

from cases import CASES, CATEGORIES, EPS, FLOAT, cast, tolerance

N, K = 40, 3
TEMPERATURES = cast(np.array([3.0, 1.0, 0.3, 0.1, 0.01, 0.0]))


def with_covariance(x, mean):
    return np.concatenate([x - mean, ((x - mean)[:, :, None] * (x - mean)[:, None]).reshape(len(x), -1)], axis=1)


# family -> (φ of its rows, θ -> the mean of φ for each component that the M-step has set)
POOLED = (lambda x: x, lambda theta, x: np.asarray(theta["mu"]))  # σ or Σ is shared: m_k is the mean alone
STATISTICS = {
    "isotropic": POOLED,
    "tied": POOLED,
    "bernoulli": (lambda x: x, lambda theta, x: np.asarray(theta["probs"])),
    "poisson": (lambda x: x, lambda theta, x: np.asarray(theta["rate"])),
    "exponential": (lambda x: x, lambda theta, x: 1 / np.asarray(theta["rate"])),
    "gamma": (
        lambda x: np.column_stack([x, np.log(x)]),
        lambda theta, x: np.column_stack(
            [theta["concentration"] / theta["rate"], digamma(theta["concentration"]) - np.log(theta["rate"])]
        ),
    ),
    "categorical": (
        lambda x: np.eye(CATEGORIES)[x].reshape(len(x), -1),
        lambda theta, x: np.asarray(theta["probs"]).reshape(K, -1),
    ),
    "spherical": (lambda x: np.column_stack([x, (x**2).sum(1)]), lambda theta, x: second_moments(theta, x, "sphere")),
    "diagonal": (lambda x: np.column_stack([x, x**2]), lambda theta, x: second_moments(theta, x, "axes")),
    "full": (
        lambda x: np.column_stack([x, (x[:, :, None] * x[:, None]).reshape(len(x), -1)]),
        lambda theta, x: second_moments(theta, x, "all"),
    ),
}


FLAT = [case for case in CASES if case.name in STATISTICS]  # whose M-step matches means


def second_moments(theta, x, kind):
    """(μ, E xxᵀ, of it what the family has)."""
    mu = np.asarray(theta["mu"])
    if kind == "sphere":
        return np.column_stack([mu, mu.shape[1] * np.asarray(theta["sigma"]) ** 2 + (mu**2).sum(1)])
    if kind == "axes":
        return np.column_stack([mu, np.asarray(theta["sigma"]) ** 2 + mu**2])
    return np.column_stack([mu, (np.asarray(theta["Sigma"]) + mu[:, :, None] * mu[:, None]).reshape(len(mu), -1)])


over_temperature = jax.jit(
    jax.vmap(
        lambda table, phi, weights, T: (
            limits.hardening(table, T),
            limits.cooling(table, T, weights=weights),
            limits.means_gap(table, phi, T, weights=weights),
            limits.cooling_gap(table, T, weights=weights),
        ),
        in_axes=(None, None, None, 0),
    )
)


@pytest.mark.parametrize("case", FLAT, ids=lambda case: case.name)
def test_every_family_hardens_within_its_bounds(case):
    theta, x, phi_of = case.theta(), case.x(N=N), STATISTICS[case.name][0]
    table, phi = jaxem.log_joint(case.m, theta, x), cast(phi_of(np.asarray(x)).astype(float))
    weights = cast(np.random.default_rng(0).uniform(0.2, 2, N))
    hard, cool, means, v = over_temperature(table, phi, weights, TEMPERATURES)
    for check in (hard, cool, means.check, means.rate):
        assert check.value.dtype == FLOAT
        assert bool(jnp.all(check.holds)), check
    assert float(v[0]) > 0.1
    assert float(hard.value[-1]) == float(v[-1]) == 0  # T = 0: γ is r
    assert float(means.rate.bound[-1]) < tolerance(1e-10, 1e-1)
    # by SciPy
    ell, w = case.log_joint(theta, x), np.asarray(weights, float)
    lead = np.diff(np.sort(ell, axis=1)[:, -2:])[:, 0]
    assert np.allclose(limits.leads(table), lead, atol=tolerance(1e-9, 1e-2))
    for T, excess in zip(np.asarray(TEMPERATURES[:4], float), v[:4], strict=True):
        F = w @ (T * logsumexp(ell / T, axis=1)) - w @ ell.max(1)
        assert float(excess) == pytest.approx(F / (T * w.sum()), rel=tolerance(1e-8, 1e-2), abs=tolerance(1e-12, 1e-3))


@pytest.mark.parametrize("case", FLAT, ids=lambda case: case.name)
def test_the_m_step_of_every_family_sets_those_means(case):
    """So `means_gap` is about θ⁺: at T = 1 and at T = 0 its mean parameters are Σγφ/N_k."""
    theta, x = case.theta(), case.x(N=N)
    phi_of, means_of = STATISTICS[case.name]
    phi = phi_of(np.asarray(x)).astype(float)
    measured = []
    for T in (1.0, 0.0):
        gamma = np.asarray(jaxem.responsibilities(case.m, theta, x, T), float)
        new = jaxem.em(case.m, theta, x, temperature=T, max_steps=1).theta
        occupied = gamma.sum(0) > 3  # of a covariance of fewer rows jaxem says NONFINITE
        means = gamma.T @ phi / np.maximum(gamma.sum(0), 1)[:, None]
        assert occupied.any()
        found = means_of(new, x)
        assert np.allclose(found[occupied], means[occupied], rtol=tolerance(1e-9, 1e-3), atol=tolerance(1e-9, 1e-3))
        measured.append(means)
    gap = limits.means_gap(jaxem.log_joint(case.m, theta, x), cast(phi), 1.0)
    furthest = np.linalg.norm(measured[0] - measured[1], axis=1)[gamma.sum(0) > 0]
    assert any(float(gap.check.value) == pytest.approx(each, rel=tolerance(1e-8, 1e-2)) for each in furthest)


def hostile(rng):
    """Ties, near ties, rows that only one component can have, huge and tiny leads."""
    ell = rng.normal(size=(N, K)) * 10.0 ** rng.integers(-6, 4, size=(N, 1))
    ell[0] = ell[1, 0]
    ell[2, :2] = ell[2].max()
    ell[3, 1] = np.nextafter(ell[3, 0], 9.0)
    ell[4, 1:] = -np.inf
    ell[5] -= 1e6
    return ell


def test_hostile_tables():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table, phi, w = cast(hostile(rng)), cast(100 + rng.normal(size=(N, 2))), cast(rng.uniform(0, 1, N))
        hard, cool, means, v = over_temperature(table, phi, w, TEMPERATURES)
        for check in (hard, cool, means.check, means.rate):
            assert bool(jnp.all(check.holds)), (seed, check)
        assert not bool(jnp.any(jnp.isnan(v)))


def test_the_rate_is_the_lead_and_no_faster():
    """−T log max|γ − r| → Δ; and at K = 2 the bound is attained."""
    table = cast(np.array([[0.0, -2.0, -7.0]]))
    for T in (1.0, 0.3, 0.1):
        gap = float(limits.hardening(table, T).value)
        share = np.exp(-2 / T)
        assert share / (1 + share) * (1 - 8 * EPS) <= gap <= 2 * share / (1 + 2 * share)
    check = limits.hardening(table[:, :2], 0.5)
    assert float(check.value) == pytest.approx(float(check.bound), rel=1e-3 if EPS > 1e-10 else 1e-9)


def test_a_small_cluster_moves_by_almost_its_bound():
    """One row against others that lean: the distance is diam·(N − 1)e/(1 + (N − 2)e), the bound diam·Ne/(1 − e)."""
    table = cast(np.concatenate([[[8.0, 0.0]], np.tile([[0.0, 8.0]], (N - 1, 1))]))
    phi, e = cast(np.eye(N)[:, :1]), 1 / (1 + np.exp(8.0))
    gap = limits.means_gap(table, phi, 1.0)
    moved = (N - 1) * e / (1 + (N - 2) * e)
    assert float(gap.check.value) == pytest.approx(moved, rel=tolerance(1e-10, 1e-3))
    assert float(gap.rate.bound) == pytest.approx(N * e / (1 - e), rel=tolerance(1e-9, 1e-2))
    assert moved > 0.95 * float(gap.rate.bound)


def test_the_bounds_can_be_broken():
    """Half the lead in place of the lead, γ of another temperature, means of another φ."""
    rng = np.random.default_rng(0)
    table = cast(rng.normal(size=(N, 2)))
    T, gamma = 0.5, softmax(np.asarray(table, float) / 0.5, axis=1)
    lead = np.asarray(limits.leads(table), float)
    worst = np.abs(gamma - np.eye(2)[gamma.argmax(1)]).max(1)
    assert (worst <= np.exp(-lead / T) / (1 + np.exp(-lead / T)) + 64 * EPS).all()
    assert not (worst <= np.exp(-2 * lead / T)).all()
    phi = cast(rng.normal(size=(N, 2)))
    assert not bool(limits.means_gap(table, phi, T, diam=0.01).check.holds)
    poisoned = table.at[3, 0].set(jnp.nan)
    assert not bool(limits.hardening(poisoned, T).holds)
    assert not bool(limits.cooling(poisoned, T).holds)
    assert not bool(limits.hardening(jnp.full((1, 2), -jnp.inf), T).holds)


def test_one_hot_temperature_makes_em_hard():
    """C11 for any family: below δ/750 along hard EM's path, EM's iterates are hard EM's."""
    case = next(case for case in CASES if case.name == "poisson")
    m, theta, x = case.m.hold("pi"), case.theta(seed=1), case.x(N=N)
    hard = jaxem.em_path(m, theta, x, num_steps=6, temperature=0.0)
    rates = jnp.concatenate([theta["rate"][None], hard.theta["rate"][:-1]])
    leads = [limits.leads(jaxem.log_joint(m, theta | {"rate": rate}, x)) for rate in rates]
    delta = jnp.min(jnp.stack(leads))
    assert float(delta) > 0
    T = 0.99 * limits.one_hot_temperature(delta)
    assert np.array_equal(jaxem.em_path(m, theta, x, num_steps=6, temperature=T).theta["rate"], hard.theta["rate"])
    assert not np.allclose(jaxem.em_path(m, theta, x, num_steps=6).theta["rate"], hard.theta["rate"])


# ---- every joint assignment of a program's latents


TRANSITIONS = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])


def chain(x):
    mu = numpyro.param("mu", jnp.array([-1.0, 0.0, 1.5]))

    def step(before, x):
        z = numpyro.sample("z", dist.Categorical(jnp.asarray(TRANSITIONS)[before]))
        numpyro.sample("x", dist.Normal(mu[z], 0.8), obs=x)
        return z, None

    scan(step, 1, x)


def two_latents(x):
    """A switch for all rows, and a component for each."""
    mu = numpyro.param("mu", jnp.array([-1.0, 0.0, 1.5]))
    s = numpyro.sample("s", dist.Bernoulli(0.4))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
        numpyro.sample("x", dist.Normal(mu[z] + s, 0.8), obs=x)


def of_chain(x, mu):
    for z in itertools.product(range(3), repeat=len(x)):
        z = np.array(z)
        prior = np.log(TRANSITIONS[np.concatenate([[1], z[:-1]]), z]).sum()
        yield {"z": z}, prior - ((x - mu[z]) ** 2).sum() / (2 * 0.8**2) - len(x) * np.log(0.8 * np.sqrt(2 * np.pi))


def of_two_latents(x, mu):
    for s, *z in itertools.product(range(2), *[range(3)] * len(x)):
        z = np.array(z)
        prior = np.log([0.6, 0.4][s]) + np.log(np.array([0.5, 0.3, 0.2])[z]).sum()
        energy = ((x - mu[z] - s) ** 2).sum() / (2 * 0.8**2) + len(x) * np.log(0.8 * np.sqrt(2 * np.pi))
        yield {"s": np.array(s), "z": z}, prior - energy


@pytest.mark.parametrize(("program", "brute"), [(chain, of_chain), (two_latents, of_two_latents)])
def test_the_lead_of_a_program_is_that_of_every_assignment(program, brute):
    m, mu = jaxem.from_numpyro(program), np.array([-1.0, 0.0, 1.5])
    freeze = jax.jit(
        jax.vmap(lambda x, T, best: limits.freezing(m, {"mu": mu}, x, T, best=best), in_axes=(None, 0, None))
    )
    for seed in range(4):
        x = np.random.default_rng(seed).normal(size=5)
        assignments, ell = zip(*brute(x, mu), strict=True)
        order, ell = np.argsort(ell)[::-1], np.array(ell)
        best = limits.lead(m, {"mu": cast(mu)}, cast(x))
        for name, value in assignments[order[0]].items():
            assert np.array_equal(best.assignment[name], value)
        assert float(best.value) == pytest.approx(ell[order[0]], abs=tolerance(1e-12, 1e-5))
        assert float(best.lead) == pytest.approx(ell[order[0]] - ell[order[1]], abs=tolerance(1e-12, 1e-4))
        Ts = cast(np.array([1.0, 0.5, 0.2, 0.05]))
        found = freeze(cast(x), Ts, best)
        for check in found:
            assert bool(jnp.all(check.holds)), found
        F = [T * logsumexp(ell / T) - ell.max() for T in np.asarray(Ts, float)]
        assert np.allclose(found.above.value, F, atol=tolerance(1e-11, 1e-4))
        # no faster than Δ, no slower: each of the two is broken by another lead
        assert not bool(jnp.all(freeze(cast(x), Ts, best._replace(lead=best.lead + 20)).above.holds))
        assert not bool(jnp.all(freeze(cast(x), Ts, best._replace(lead=best.lead - 0.5)).slope.holds))
        assert not bool(jnp.all(freeze(cast(x), Ts, best._replace(value=best.value + 0.1)).below.holds))


def test_a_tie_has_no_lead_and_its_bounds_hold():
    def tied(x):
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)

    m, x = jaxem.from_numpyro(tied), cast(np.array([1.0, 2.5]))
    best = limits.lead(m, {}, x)
    assert float(best.lead) == 0
    assert all(bool(check.holds) for check in limits.freezing(m, {}, x, 0.01, best=best))


def two_at(distance):
    """Rows of N(0, 1) or N(distance, 1), even odds."""

    def program(x):
        with numpyro.plate("rows", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(distance * z, 1.0), obs=x)

    return jaxem.from_numpyro(program)


def test_of_many_assignments_alike_the_bounds_hold():
    """s_T is e^{many nats}, more than a float holds: every row is a tie, and F_T − M all of T·N log 2."""
    for num_rows in (600, 4000):
        found = limits.freezing(two_at(2.0), {}, jnp.ones(num_rows, FLOAT), 1.0)
        assert float(found.above.value) == pytest.approx(num_rows * np.log(2), rel=tolerance(1e-9, 1e-4))
        assert all(bool(check.holds) for check in found), found
        assert float(found.above.bound) < float(found.above.value) * tolerance(1.001, 2)


def test_what_rounding_hides_of_the_posterior_is_allowed():
    """One row of 400 is in doubt, by as much as the digits that L and M have in common do not show."""
    m, rng = two_at(12.0), np.random.default_rng(0)
    for _ in range(6):
        x = 0.3 * rng.normal(size=400)
        x[7] = 6 - tolerance(31, 10) / 12
        found = limits.freezing(m, {}, cast(x), 1.0)
        assert float(found.gap.value) > 100 * EPS
        assert all(bool(check.holds) for check in found), found


def test_rows_of_weight_0_are_not_looked_at():
    table, phi, w = np.array([[0.0, -3.0], [-2.0, 0.0]]), np.array([0.0, 1.0]), np.array([1.0, 1.0])
    wanted = limits.means_gap(cast(table), cast(phi), 0.5)
    for row, feature in [([-np.inf, -np.inf], 2.0), ([np.nan, 0.0], 2.0), ([-1.0, 0.0], np.inf), ([0.0, 0.0], np.nan)]:
        longer = cast(np.concatenate([[row], table])), cast(np.append(feature, phi)), 0.5
        found = limits.means_gap(*longer, weights=cast(np.append(0.0, w)))
        assert np.array_equal(jax.tree.leaves(found), jax.tree.leaves(wanted))
        assert bool(limits.cooling(longer[0], 0.5, weights=cast(np.append(0.0, w))).holds)
        assert not bool(limits.means_gap(*longer).rate.holds) or np.isfinite([*row, feature]).all()


def test_what_makes_no_sense_is_said_in_one_line():
    best = limits.lead(two_at(2.0), {}, jnp.zeros(3, FLOAT))
    other = best._replace(assignment={"s": best.assignment["z"]})
    table = jnp.zeros((4, 2))
    m, theta = jaxem.from_numpyro(chain), {"mu": [0.0, 1.0, 2.0]}
    for call, words in [
        (lambda: limits.hardening(table[0], 1.0), "log_joint: must be"),
        (lambda: limits.hardening(table, -1.0), "temperature: must be"),
        (lambda: limits.cooling(table, 1.0, weights=[1.0]), "weights: must have shape"),
        (lambda: limits.cooling(table, 1.0, weights=[1.0, -1.0, 1.0, 1.0]), "weights: must be finite and ≥ 0"),
        (lambda: limits.means_gap(table, jnp.zeros((3, 1)), 1.0), "features: must be"),
        (lambda: limits.means_gap(table, table, 1.0, diam=-1.0), "diam: must be"),
        (lambda: limits.lead(CASES[0].m, CASES[0].theta(), CASES[0].x()), "lead: is for"),
        (
            lambda: limits.freezing(m, theta, jnp.zeros(3), 2.0),
            "in \\(0, 1\\]",
        ),
        (lambda: limits.freezing(two_at(2.0), {}, jnp.zeros(4, FLOAT), 0.5, best=best), "best: its assignment must"),
        (lambda: limits.freezing(two_at(2.0), {}, jnp.zeros(3, FLOAT), 0.5, best=other), "best: its assignment must"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()

    def weighed(x):
        with handlers.scale(scale=2.0):
            two_latents(x)

    with pytest.raises(ValueError, match="is weighed"):
        limits.lead(jaxem.from_numpyro(weighed), theta, jnp.array([0.0, 1.0]))
