"""H7–H11, HV, H13: a chain's limit as σ → 0 is k-means, with bounds; every path of short chains is the oracle."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist
from numpyro.contrib.control_flow import scan
from scipy.special import logsumexp

import jaxem
from jaxem import limits

from cases import EPS, FLOAT, cast, tolerance

K, D, N = 3, 2, 6
SIGMAS = np.array([3.0, 1.0, 0.5, 0.2, 0.05])
CHECKS = ("assignment", "path", "objective", "distances", "centres")
PATHS = np.array(list(itertools.product(range(K), repeat=N)))
EVEN = np.full((K, K), 1 / K)
LIMIT = jax.jit(jax.vmap(limits.chain_limit, in_axes=(None, None, 0, None, None)))


def sticky(stay):
    """λI + (1 − λ)11ᵀ/K."""
    return stay * np.eye(K) + (1 - stay) * EVEN


def data(seed=0, num_times=N):
    """x, means near the clumps, A and a start."""
    rng = np.random.default_rng(seed)
    z = np.minimum(np.cumsum(rng.random(num_times) < 0.3) % K, K - 1)
    means = np.array([[-2.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
    A, start = rng.dirichlet(np.ones(K), K), rng.dirichlet(np.ones(K))
    return means[z] + rng.normal(size=(num_times, D)), means + 0.2 * rng.normal(size=(K, D)), A, start


def every_path(x, mu, sigma, A, start):
    """(log p(z) of each path, −J(z)/2σ² of each, d)."""
    d = ((x[:, None] - mu[None]) ** 2).sum(-1)
    with np.errstate(divide="ignore"):
        prior = np.log(start)[PATHS[:, 0]] + np.log(A)[PATHS[:, :-1], PATHS[:, 1:]].sum(1)
    return prior, -d[np.arange(N), PATHS].sum(1) / (2 * sigma**2), d


@pytest.mark.parametrize("zeros", [False, True], ids=["positive", "with zeros"])
@pytest.mark.parametrize("sigma", [2.0, 0.4])
def test_the_step_is_that_of_every_path(sigma, zeros):
    x, mu, A, start = data(3)
    if zeros:
        A = np.where(A.max(1, keepdims=True) / 3 > A, 0, A)
        A = A / A.sum(1, keepdims=True)
        assert (A == 0).any()
    prior, energy, d = every_path(x, mu, sigma, A, start)
    J = d.min(1).sum() / (2 * sigma**2)
    p = np.exp(prior + energy - logsumexp(prior + energy))
    gamma = np.stack([[p[PATHS[:, t] == k].sum() for k in range(K)] for t in range(N)])
    step = limits.chain_step(cast(x), cast(mu), sigma, cast(A), cast(start))
    assert float(step.value) == pytest.approx(logsumexp(prior + energy) + J, abs=tolerance(1e-11, 1e-4))
    assert np.allclose(step.gamma, gamma, atol=tolerance(1e-13, 1e-5))
    assert np.array_equal(step.path, PATHS[np.argmax(prior + energy)])
    assert np.allclose(step.mu, gamma.T @ x / gamma.sum(0)[:, None], atol=tolerance(1e-12, 1e-4))


@pytest.mark.parametrize("sigma", [2.0, 0.4])
@pytest.mark.parametrize("seed", range(4))
def test_the_theorems_of_every_path(seed, sigma):
    """H7, H8, H9 and HV by NumPy alone, and the library's numbers are those."""
    x, mu, A, start = data(seed)
    prior, energy, d = every_path(x, mu, sigma, A, start)
    r, J, L = d.argmin(1), d.min(1).sum(), logsumexp(prior + energy)
    p = np.exp(prior + energy - L)
    gamma = np.stack([[p[PATHS[:, t] == k].sum() for k in range(K)] for t in range(N)])
    log_R = np.asarray(limits.chain_log_ratios(A, start, r), float)
    gap = (d - d.min(1, keepdims=True)) / (2 * sigma**2)
    others = np.exp(np.where(np.eye(K)[r] == 1, -np.inf, log_R - gap))
    assert (gamma[np.arange(N), r] >= 1 - others.sum(1) - 1e-12).all()  # H7
    assert (gamma <= np.where(np.eye(K)[r] == 1, 1, others) + 1e-12).all()
    G, log_r = -2 * sigma**2 * L, prior[(r == PATHS).all(1)][0]
    assert J - 1e-9 <= (gamma * d).sum() <= G + 1e-9  # H9
    assert J - 1e-9 <= G <= J - 2 * sigma**2 * log_r + 1e-9  # H8
    found = limits.chain_limit(cast(x), cast(mu), sigma, cast(A), cast(start))
    assert float(found.v) == pytest.approx((G - J) / (2 * sigma**2 * N), abs=tolerance(1e-11, 1e-4))
    assert float(found.h) == pytest.approx(-log_r / N, abs=tolerance(1e-12, 1e-5))
    best = PATHS[np.argmax(prior + energy)]
    assert int(found.apart) == (best != r).sum()
    assert all(bool(getattr(found, name).holds) for name in CHECKS)
    assert np.allclose(found.shares, np.minimum(others.sum(1), 1), rtol=tolerance(1e-11, 1e-3), atol=1e-30)


def test_the_ratio_is_the_largest_over_all_neighbours():
    _, _, A, start = data(5)
    A[1] = [0.0, 0.5, 0.5]
    A[2, 0], A[2, 1] = 0.0, A[2, 1] + A[2, 0]  # state 0 is left, and entered from itself only
    nearest = np.array([2, 0, 1, 1, 2, 0])
    with np.errstate(divide="ignore"):
        log_A, log_a = np.log(A), np.log(start)
    found = np.asarray(limits.chain_log_ratios(A, start, nearest))
    for t, k in itertools.product(range(N), range(K)):
        before, after = range(K) if t else [None], range(K) if t < N - 1 else [None]
        gains = []
        for i, j in itertools.product(before, after):
            at = [(log_a[z] if i is None else log_A[i, z]) + (0 if j is None else log_A[z, j]) for z in (k, nearest[t])]
            gains.append(-np.inf if at[0] == -np.inf else at[0] - at[1])
        assert found[t, k] == pytest.approx(max(gains), abs=tolerance(1e-12, 1e-5))
    assert not np.isnan(found).any()
    assert np.isposinf(found).any()
    assert np.array_equal(limits.chain_log_ratios(EVEN, None, nearest), np.zeros((N, K)))


def hostile():
    """Ties, duplicates, a state without rows, an offset, near-deterministic and forbidden transitions."""
    x, mu, A, start = data(1, 40)
    x[:10] = x[10]
    x[20] = (mu[0] + mu[1]) / 2  # a tie
    yield x, mu, A, start
    yield x + 1e3, mu + 1e3, sticky(0.999), None
    yield x, mu + np.array([[0, 0], [0, 0], [99, 0]]), A, start
    forbidden = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5]])
    yield x, mu, forbidden, np.array([1.0, 0.0, 0.0])


def test_every_bound_holds_over_sigma():
    for x, mu, A, start in [*(data(seed, 40) for seed in range(10)), *hostile()]:
        start = EVEN[0] if start is None else start
        found = LIMIT(cast(x), cast(mu), cast(SIGMAS), cast(A), cast(start))
        for name in CHECKS:
            check = getattr(found, name)
            assert check.value.shape == SIGMAS.shape
            assert check.value.dtype == FLOAT
            assert bool(jnp.all(check.holds)), (name, check)


def test_as_sigma_falls_the_transitions_lose_their_say():
    x, mu, A, start = data(2, 40)
    found = LIMIT(cast(x), cast(mu), cast(SIGMAS), cast(A), cast(start))
    assert int(found.apart[0]) > 0 == int(found.apart[-1]) == int(found.undecided[-1])
    assert float(found.assignment.value[0]) > 0.1
    assert float(found.v[-1]) > 0.9 * float(found.h[-1])  # γ one-hot: all of 2σ² log 1/p(r) is paid


def test_the_bounds_can_be_broken():
    """R = 1, which is the mixture's, is not enough; nor does any other claim survive what it forbids."""
    x, mu, _, _ = data(2, 40)
    A, sigma = sticky(0.9), 0.5
    step = limits.chain_step(cast(x), cast(mu), sigma, cast(A))
    as_mixture = limits.chain_limit(cast(x), cast(mu), sigma, cast(EVEN), step=step)
    assert not bool(as_mixture.assignment.holds)
    assert not bool(as_mixture.path.holds)

    def judged(**wrong):
        return limits.chain_limit(cast(x), cast(mu), sigma, cast(A), step=step._replace(**wrong))

    assert all(bool(getattr(judged(), name).holds) for name in CHECKS)
    assert not bool(judged(mu=step.mu + 9).centres.holds)
    assert not bool(judged(value=step.value * 9).objective.holds)
    assert not bool(judged(value=step.value / 1e3).distances.holds)
    assert not bool(judged(gamma=step.gamma[:, ::-1]).distances.holds)
    assert not bool(judged(value=jnp.asarray(jnp.nan, FLOAT)).objective.holds)


def program(x):
    """The last row of A is the start."""
    A = numpyro.param("A", jnp.full((K + 1, K), 1 / K), constraint=dist.constraints.simplex)
    mu = numpyro.param("mu", jnp.zeros((K, D)))
    sigma = numpyro.param("sigma", 1.0, constraint=dist.constraints.positive)

    def step(before, x):
        z = numpyro.sample("z", dist.Categorical(A[before]))
        numpyro.sample("x", dist.Normal(mu[z], sigma).to_event(1), obs=x)
        return z, None

    scan(step, K, x)


def test_the_step_is_that_of_the_numpyro_program():
    x, mu, A, start = data(4, 40)
    theta = {"A": cast(np.concatenate([A, start[None]])), "mu": cast(mu), "sigma": cast(0.7)}
    m = jaxem.from_numpyro(program).hold("A", "sigma")
    step = limits.chain_step(cast(x), cast(mu), 0.7, cast(A), cast(start))
    assert np.allclose(jaxem.marginals(m, theta, cast(x))["z"], step.gamma, atol=tolerance(1e-12, 1e-4))
    assert np.array_equal(jaxem.decode(m, theta, cast(x))["z"], step.path)
    assert np.allclose(jaxem.em(m, theta, cast(x), max_steps=1).theta["mu"], step.mu, atol=tolerance(1e-12, 1e-4))


@pytest.mark.parametrize("stay", [0.0, 0.9])
def test_H11_below_its_sigma_it_is_kmeans(stay):
    x, mu, _, _ = data(0, 40)
    x, mu, A = cast(x), cast(mu), cast(sticky(stay))
    delta = limits.least_gap(x, mu, num_steps=12)
    sigma = 0.999 * limits.chain_one_hot_sigma(delta, A)
    found = limits.chain_iterates_gap(x, mu, sigma, A, num_steps=12)
    assert bool(found.holds)
    assert float(found.value) == 0  # γ is exactly one-hot
    assert not bool(limits.chain_iterates_gap(x, mu, 1.0, A, num_steps=12).holds)
    if stay == 0:  # R = 1: C11's own σ
        assert float(sigma) == pytest.approx(0.999 * float(limits.one_hot_sigma(delta)), rel=1e-6)


def test_H11_has_no_sigma_where_a_transition_is_forbidden():
    assert float(limits.chain_one_hot_sigma(1.0, [[1.0, 0.0], [0.5, 0.5]])) == 0
    assert float(limits.chain_one_hot_sigma(1.0, [[0.5, 0.5], [0.5, 0.5]], [1.0, 0.0])) == 0  # nor a first state


def test_H11_knows_every_start():
    """The largest R is over all nearest states at the first time, whichever the start favours."""
    x, mu, A = cast([1.0, -1.0, 1.0, -1.0]), cast([[-1.0], [1.0]]), cast(np.full((2, 2), 0.5))
    delta = limits.least_gap(x, mu, num_steps=3)
    for start in (np.array([1 - 1e-30, 1e-30]), np.array([1e-30, 1.0])):
        sigma = 0.99 * limits.chain_one_hot_sigma(delta, A, cast(start))
        found = limits.chain_iterates_gap(x, mu, sigma, A, cast(start), num_steps=3)
        assert float(found.value) == 0
        R = max(float(jnp.max(limits.chain_log_ratios(A, cast(start), np.full(3, state)))) for state in range(2))
        assert abs(R - 30 * np.log(10)) < tolerance(1e-9, 1e-3)
        assert float(sigma) == pytest.approx(0.99 * np.sqrt(4 / 2 / (tolerance(750, 105) + R)), rel=1e-5)


@pytest.mark.parametrize("stay", [0.0, 0.8, -0.3])
def test_H13_the_spectrum_at_the_coincident_point(stay):
    x, _, _, _ = data(7, 40)
    lag = np.abs(np.subtract.outer(np.arange(40), np.arange(40)))
    centred = x - x.mean(0)
    C = np.linalg.eigvalsh(centred.T @ np.where(lag == 0, 1.0, stay ** np.maximum(lag, 1)) @ centred / 40)
    wanted = np.sort(np.concatenate([np.zeros(D), np.repeat(C / 0.7**2, K - 1)]))
    measured, theorem = limits.chain_spectrum(cast(x), 0.7, cast(sticky(stay)))
    assert np.allclose(theorem, wanted, atol=tolerance(1e-12, 1e-4))
    assert np.allclose(measured, wanted, atol=tolerance(1e-11, 1e-3))
    assert bool(limits.chain_spectrum_bound(cast(x), 0.7, cast(sticky(stay))).holds)
    critical = float(limits.chain_critical_sigma(cast(x), cast(sticky(stay))))
    assert critical == pytest.approx(np.sqrt(C[-1]), rel=tolerance(1e-12, 1e-5))
    if stay == 0:
        assert critical == pytest.approx(float(limits.critical_sigma(cast(x))), rel=64 * EPS)


def test_what_makes_no_sense_is_said_in_one_line():
    x, mu, A, start = data()
    for arguments, words in [
        ((x, mu, 1.0, A[:2]), "transitions: must have shape"),
        ((x, mu, 1.0, 2 * A), "transitions: must be ≥ 0 and sum to 1"),
        ((x, mu, 1.0, A, start[:2]), "start: must have shape"),
        ((x, mu, 1.0, A, -start), "start: must be ≥ 0"),
        ((x[:1], mu, 1.0, A), "x: must have at least two rows"),
        ((x, mu[:, :1], 1.0, A), "mu"),
        ((x, mu, -1.0, A), "sigma"),
    ]:
        with pytest.raises(ValueError, match=words):
            limits.chain_limit(*arguments)
    step = limits.chain_step(x, mu, 1.0, A)
    with pytest.raises(ValueError, match=r"step\.gamma: must have shape"):
        limits.chain_limit(x, mu, 1.0, A, step=step._replace(gamma=step.gamma.T))
    with pytest.raises(ValueError, match="transitions: must be λI"):
        limits.chain_spectrum_bound(x, 1.0, A)
    traced = jax.jit(limits.chain_limit)(cast(x), cast(mu), 1.0, cast(2 * A))
    assert not any(bool(getattr(traced, name).holds) for name in CHECKS)  # inside jit nobody can look
    assert not bool(jax.jit(limits.chain_spectrum_bound)(cast(x), 1.0, cast(A)).holds)
    found = LIMIT(cast(x), cast(mu), cast([-1.0, 0.0, np.nan, np.inf, 1.0]), cast(A), cast(start))
    for name in CHECKS:
        assert getattr(found, name).holds.tolist() == [False] * 4 + [True]
    for sigma in (-1.0, 0.0, np.nan):
        for check in (ITERATES(cast(x), cast(mu), sigma, cast(A)), SPECTRUM(cast(x), sigma, cast(EVEN))):
            assert not bool(check.holds)


ITERATES = jax.jit(lambda x, mu, sigma, A: limits.chain_iterates_gap(x, mu, sigma, A, num_steps=2))
SPECTRUM = jax.jit(limits.chain_spectrum_bound)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda A: limits.chain_critical_sigma([1.0, np.nan, 2.0], A), "x: has NaN or infinity in 1 row"),
        (lambda A: limits.chain_critical_sigma(np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0]), A), "x: has masked"),
        (lambda A: limits.chain_critical_sigma("rows", A), "x: must be numeric"),
        (lambda A: limits.chain_critical_sigma(1.0, A), "x: must be"),
        (lambda A: limits.chain_critical_sigma([1.0, 2.0], 0.5), "transitions: must be \\(K, K\\)"),
        (lambda A: limits.chain_limit([[1.0], [np.inf]], [[0.0], [1.0]], 1.0, A), "x: has NaN or infinity"),
        (lambda A: limits.chain_log_ratios(0.5, None, [0]), "transitions: must be \\(K, K\\)"),
        (
            lambda A: limits.chain_log_ratios([[0.5, 0.5]], None, [0]),
            "transitions: must be \\(K, K\\), got shape \\(1, 2",
        ),
        (lambda A: limits.chain_log_ratios(A, None, [0, 5, 1]), "nearest: must lie in 0 … 1"),
        (lambda A: limits.chain_log_ratios(A, None, [0.0, 1.0]), "nearest: must be integers"),
        (lambda A: limits.chain_one_hot_sigma(-1.0, A), "delta: must be ≥ 0"),
        (lambda A: limits.chain_one_hot_sigma(np.nan, A), "delta: must be ≥ 0"),
        (lambda A: limits.chain_one_hot_sigma(1.0, A, [1.0]), "start: must have shape"),
    ],
)
def test_what_is_wrong_is_called_by_its_name(call, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        call([[0.9, 0.1], [0.1, 0.9]])


def test_a_state_that_no_path_visits_says_nothing_of_its_mean():
    """It is nearest to some, but A and a forbid it: N_k = 0, and H10's bound is ∞."""
    x, A = cast(np.append(np.ones(3), 4.0)[:, None]), cast([[0.0, 1.0], [0.0, 1.0]])
    for mu in ([[1.0], [5.0]], [[1.0], [3.0]]):
        found = limits.chain_limit(x, cast(mu), 0.5, A, cast([0.0, 1.0]))
        assert all(bool(getattr(found, name).holds) for name in CHECKS), found
    assert bool(limits.chain_limit(x[:3], cast([[1.0], [5.0]]), 0.5, A, cast([0.0, 1.0])).centres.holds)


def test_the_gradient_of_v_where_transitions_are_forbidden():
    x, A = cast(np.random.default_rng(0).normal(size=(30, 1))), cast([[0.9, 0.1], [0.0, 1.0]])

    def v(sigma):
        return limits.chain_limit(x, cast([[-1.0], [1.0]]), sigma, A).v

    sigma, step = cast(tolerance(0.03, 0.1)), tolerance(1e-7, 1e-3)  # so cold that the passes are on logarithms
    measured = float(v(sigma + step) - v(sigma - step)) / (2 * step)
    assert float(jax.grad(v)(sigma)) == pytest.approx(measured, rel=tolerance(1e-6, 1e-1))
    assert float(jax.jacfwd(v)(sigma)) == pytest.approx(measured, rel=tolerance(1e-6, 1e-1))


def test_H13_a_chain_that_never_moves_has_no_sigma():
    """A = I: C is (Σ x̃)(Σ x̃)ᵀ/N, 0 but for rounding, of either sign."""
    for x in np.random.default_rng(0).normal(size=(12, 3)):
        assert 0 <= float(limits.chain_critical_sigma(cast(x), cast(np.eye(2)))) < tolerance(1e-6, 1e-2)


def test_H13_does_not_mind_where_the_rows_lie():
    x = np.random.default_rng(0).normal(size=(200, 2))
    far = cast(x + tolerance(1e12, 1e6))
    near = np.asarray(far, float) - np.asarray(far, float).mean(0)  # what the offset left of them
    assert bool(limits.chain_spectrum_bound(far, 1.0, cast(sticky(0.5))).holds)
    found = limits.chain_spectrum(far, 1.0, cast(sticky(0.5)))
    assert np.allclose(found, limits.chain_spectrum(cast(near), 1.0, cast(sticky(0.5))), atol=tolerance(1e-10, 1e-3))


def test_one_state():
    x = cast([[1.0, 2.0], [0.0, 1.0]])
    found = limits.chain_limit(x, cast([[0.0, 0.0]]), 1.0, cast([[1.0]]))
    assert all(bool(getattr(found, name).holds) for name in CHECKS)
    assert float(found.v) == float(found.h) == 0
