"""C23: balanced EM. F_OT with its duality gap; T → 0 is k-means with prescribed sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

import jaxem
from jaxem import Status
from jaxem._fit.balanced import transport
from jaxem.families import gaussian

from cases import CASES, EPS, cast, clumps, tolerance

M = gaussian.isotropic.hold("sigma")


def problem(seed, N=14, K=3):
    rng = np.random.default_rng(seed)
    table = 3 * rng.normal(size=(K, N))
    table[:, 1] = table[:, 0]  # duplicates
    pi, w = rng.dirichlet(np.full(K, 2.0)), rng.uniform(0.2, 2, N) if seed % 2 else np.ones(N)
    return rng, cast(table), cast(pi), cast(w)


def test_C23_duality():
    """γ has the shares; F_OT lies between the two certificates, which meet; any v is an upper bound; F_OT ≤ F."""
    solve = jax.jit(transport)
    for seed in range(15):
        rng, table, pi, w = problem(seed)
        T = cast(np.asarray([0.3, 1.0, 3.0][seed % 3]))
        gamma, _, above, below = solve(table, pi, w, T, jnp.zeros(3, table.dtype))
        W, scale = float(jnp.sum(w)), float(jnp.sum(w * jnp.max(jnp.abs(table), axis=0)))
        assert np.allclose(jnp.sum(gamma, axis=0), 1, atol=64 * EPS)
        assert np.allclose(gamma @ w, W * pi, atol=256 * EPS * W)
        assert abs(float(above - below)) <= 1e3 * EPS * scale
        free = float(T) * float(w @ jax.nn.logsumexp(table / T, axis=0))
        assert float(below) <= free + 64 * EPS * scale
        for _ in range(5):
            v = rng.normal(size=3)
            any_v = float(T) * float(w @ jax.nn.logsumexp((table + cast(v)[:, None]) / T, axis=0)) - W * float(
                pi @ cast(v)
            )
            assert float(below) <= any_v + 64 * EPS * scale


def test_C23_cold_it_is_the_linear_program():
    """0 ≤ F_OT + cost of the LP ≤ T·W·H(π), for every T."""
    solve = jax.jit(transport)
    for seed in range(6):
        _, table, pi, w = problem(seed)
        K, N = table.shape
        wide, shares, mass = (np.asarray(a, float) for a in (table, pi, w))
        rows = np.kron(np.ones(K), np.eye(N))
        columns = np.kron(np.eye(K), np.ones(N))
        equal = np.concatenate([rows, columns[:-1]])
        values = np.concatenate([mass, mass.sum() * shares[:-1]])
        best = -linprog(-wide.ravel(), A_eq=equal, b_eq=values, bounds=(0, None)).fun
        entropy = -(shares * np.log(shares)).sum() * mass.sum()
        for T in (1.0, 0.1, 0.02):
            gamma, _, above, below = solve(table, pi, w, cast(np.asarray(T)), jnp.zeros(K, table.dtype))
            assert float(above) >= best - 1e-4 * tolerance(1e-4, 1)
            assert float(below) <= best + T * entropy + tolerance(1e-8, 1e-3)
            del gamma


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("isotropic", "bernoulli")], ids=lambda c: c.name
)
def test_C23_a_fixed_point_of_em_with_free_pi_is_one_of_this(case):
    x, theta = case.x(1, N=40), case.theta(1)
    fit = jaxem.em(case.m, theta, x, tol=0.0, max_steps=3000)
    balanced = jaxem.balanced_em(case.m, fit.theta, x, max_steps=3)
    assert float(balanced.free_energy) == pytest.approx(float(fit.free_energy), abs=tolerance(1e-6, 1e-2))
    start = jaxem.balanced_em(case.m, theta, x, max_steps=0)  # elsewhere it is below F
    assert float(start.free_energy + start.duality_gap) <= float(jaxem.log_likelihood(case.m, theta, x)) + tolerance(
        0, 1e-2
    )


def test_balanced_em_rises_and_keeps_the_shares():
    rng = np.random.default_rng(0)
    x = cast(clumps(rng, 30, 2))
    theta = {"pi": cast([0.5, 0.3, 0.2]), "mu": x[:3], "sigma": cast(0.8)}
    run = jax.jit(lambda n, T: jaxem.balanced_em(M, theta, x, max_steps=n, temperature=T))
    values = [float(run(n, 1.0).free_energy) for n in range(6)]
    assert (np.diff(values) >= -1e4 * EPS).all()
    fit = run(500, 1.0)
    assert int(fit.status) == Status.CONVERGED
    assert np.array_equal(fit.theta["pi"], theta["pi"])
    assert np.allclose(jnp.sum(fit.responsibilities, axis=0), 30 * theta["pi"], atol=tolerance(1e-10, 1e-3))
    # breaking the shares breaks the statement: at the same θ the free E-step has other ones, and a larger F
    free = jaxem.responsibilities(M, fit.theta, x)
    assert float(jnp.max(jnp.abs(jnp.sum(free, axis=0) - 30 * theta["pi"]))) > 0.01
    assert float(jaxem.log_likelihood(M, fit.theta, x)) > float(fit.free_energy + fit.duality_gap)


def test_balanced_em_bad_input():
    x = cast(np.arange(4.0)[:, None])
    theta = {"pi": cast([0.5, 0.5]), "mu": cast([[0.0], [1.0]]), "sigma": cast(1.0)}
    with pytest.raises(ValueError, match=r"^temperature: "):
        jaxem.balanced_em(M, theta, x, temperature=0.0)
    with pytest.raises(ValueError, match=r"^theta\['pi'\]: "):
        jaxem.balanced_em(M, theta | {"pi": cast([1.0, 0.0])}, x)
    traced = jax.jit(lambda T: jaxem.balanced_em(M, theta, x, temperature=T).status)(0.0)
    assert int(traced) == Status.NONFINITE
