"""C16: the gain of an EM step is three KL divergences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

import jaxem
from jaxem import limits
from jaxem.families import gaussian, poisson

from cases import CASES, EPS, cast, tolerance


def one_step(case, seed=0):
    rng = np.random.default_rng(seed)
    x = case.x(seed, N=30)
    x = jnp.concatenate([x, x[:6], x[:1], x[:1]])  # duplicates
    theta = case.theta(seed)
    theta = theta | {"pi": cast([1e-3, 0.4, 0.599])}  # a small component
    return theta, x, cast(rng.uniform(0, 2, len(x)) * (rng.uniform(size=len(x)) > 0.1))


FLAT = [case for case in CASES if any(case.m.program == m.program for m, _ in jaxem._answers.gain.FLAT)]


@pytest.mark.parametrize("case", FLAT, ids=lambda case: case.name)
def test_C16_the_gain_is_three_divergences(case):
    theta, x, w = one_step(case)
    for temperature in (1.0, 0.3, 2.5, 0.0):
        check = limits.gain_identity(case.m, theta, x, temperature, weights=w)
        assert bool(check.holds), (temperature, check)
        parts = jaxem.gain(case.m, theta, x, temperature, weights=w)
        assert all(float(part) >= 0 for part in parts)
        step = jaxem.em(case.m, theta, x, temperature=temperature, weights=w, max_steps=1)
        assert float(parts.total) == pytest.approx(float(step.gain), rel=tolerance(1e-9, 2e-3), abs=1e4 * EPS)


@pytest.mark.parametrize("held", [("pi",), ("mu",), ("Sigma",), ("mu", "pi"), ("pi", "mu", "Sigma")], ids="-".join)
def test_C16_with_entries_held(held):
    case = next(case for case in CASES if case.name == "tied")
    theta, x, w = one_step(case, 3)
    m = case.m.hold(*held)
    assert bool(limits.gain_identity(m, theta, x, weights=w).holds)
    parts = jaxem.gain(m, theta, x, weights=w)
    if "pi" in held:
        assert float(parts.weights) == 0


def test_C16_by_numpy():
    """The isotropic identity from its formulas alone, no line of jaxem's in it."""
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(25, 2)), rng.uniform(0.2, 2, 25)
    pi, mu, sigma, T = np.array([0.3, 0.7]), rng.normal(size=(2, 2)), 0.8, 0.7

    def table(pi, mu, sigma):
        d = ((x[:, None] - mu[None]) ** 2).sum(-1)
        return np.log(pi) - d / (2 * sigma**2) - np.log(2 * np.pi * sigma**2)

    old = table(pi, mu, sigma)
    gamma = softmax(old / T, axis=1)
    N_k = w @ gamma
    new_pi, new_mu = N_k / w.sum(), (gamma * w[:, None]).T @ x / N_k[:, None]
    spread = (gamma * w[:, None] * ((x[:, None] - new_mu[None]) ** 2).sum(-1)).sum()
    new_sigma = np.sqrt(spread / (2 * w.sum()))
    new = table(new_pi, new_mu, new_sigma)
    rise = T * w @ (logsumexp(new / T, axis=1) - logsumexp(old / T, axis=1))
    ratio = new_sigma**2 / sigma**2
    components = N_k @ (ratio - 1 - np.log(ratio) + ((new_mu - mu) ** 2).sum(1) / (2 * sigma**2))
    weights = w.sum() * (new_pi * np.log(new_pi / pi)).sum()
    posterior = T * w @ (gamma * np.log(gamma / softmax(new / T, axis=1))).sum(1)
    assert components + weights + posterior == pytest.approx(rise, rel=1e-12)
    theta = cast({"pi": pi, "mu": mu, "sigma": sigma})
    parts = jaxem.gain(gaussian.isotropic, theta, cast(x), T, weights=cast(w))
    assert np.allclose(parts, [components, weights, posterior, rise], rtol=tolerance(1e-10, 1e-3))


def test_C16_keeps_its_digits_where_the_difference_of_F_is_noise():
    """The linear rate of EM is seen in the gains down to where F's own differences are rounding."""
    rng = np.random.default_rng(0)
    x = cast(np.concatenate([rng.normal(size=(40, 1)) - 2, rng.normal(size=(40, 1)) + 2]))
    m = gaussian.isotropic.hold("sigma", "pi")
    theta = {"pi": cast([0.5, 0.5]), "mu": cast([[-1.0], [1.0]]), "sigma": cast(1.0)}
    path = jaxem.em_path(m, theta, x, num_steps=tolerance(40, 12))
    totals = np.asarray(jax.vmap(lambda mu: jaxem.gain(m, theta | {"mu": mu}, x).total)(path.theta["mu"]))
    clear = totals > tolerance(1e-24, 1e-9)
    assert clear.sum() >= 4
    ratios = totals[1:][clear[1:]] / totals[:-1][clear[1:]]
    assert totals[clear].min() < 1e-3 * 8 * EPS * abs(float(path.after_m[-1]))  # below what F can show
    assert np.ptp(ratios[-3:]) < tolerance(1e-2, 0.1) * ratios[-1]


@pytest.mark.parametrize("family", [gaussian.spherical, gaussian.full], ids=["scales", "covariances"])
def test_C16_under_a_floor_is_a_lower_bound(family):
    rng = np.random.default_rng(5)
    x = cast(np.concatenate([rng.normal(size=(20, 2)), np.zeros((6, 2))]))  # duplicates collapse
    scale = {"sigma": jnp.ones(2)} if family is gaussian.spherical else {"Sigma": jnp.stack([jnp.eye(2)] * 2)}
    theta = {"pi": cast([0.7, 0.3]), "mu": cast([[1.0, 1.0], [0.0, 0.0]])} | {k: cast(v) for k, v in scale.items()}
    m = gaussian.with_floor(family, 0.8)
    total = jaxem.gain(m, theta, x).total
    rise = jaxem.em(m, theta, x, max_steps=1).gain
    assert bool(limits.gain_identity(m, theta, x).holds)
    assert float(total) < float(rise) - 1e-3 or family is gaussian.full  # it binds here, and the bound is strict
    loose = gaussian.with_floor(family, 1e-4)
    wide = theta | {"mu": cast([[0.0, 0.0], [1.0, 1.0]])}
    assert float(jaxem.gain(loose, wide, x).total) == pytest.approx(
        float(jaxem.em(loose, wide, x, max_steps=1).gain), rel=tolerance(1e-9, 1e-3)
    )


def test_C16_is_broken_by_a_wrong_m_step():
    """The identity is one of exact M-steps: half the variance is rejected, and so is a foreign update."""
    case = CASES[0]
    theta, x, w = one_step(case)

    def half(statistics, theta, held):
        new = gaussian.isotropic.update(statistics, theta, held)
        return new | {"sigma": new["sigma"] / 2}

    with pytest.raises(ValueError, match=r"^m: .*flat"):
        jaxem.gain(replace(gaussian.isotropic, update=half), theta, x)
    honest = limits.gain_identity(gaussian.isotropic, theta, x, weights=w)
    moved = theta | {"mu": theta["mu"] + 0.1}
    wrong = float(jaxem.gain(gaussian.isotropic, moved, x, weights=w).total)
    right = float(jaxem.gain(gaussian.isotropic, theta, x, weights=w).total)
    assert abs(wrong - right) > float(honest.bound)


def test_C16_an_empty_component_and_a_certain_row_count_nothing():
    theta = {"pi": cast([0.5, 0.5]), "rate": cast([[1.0], [0.0]])}  # the second can say 0 only
    x = cast(np.array([[0.0], [0.0], [3.0], [4.0]]))
    assert bool(limits.gain_identity(poisson.mixture, theta, x).holds)
    far = {"pi": cast([0.5, 0.5]), "mu": cast([[0.0], [1e6]]), "sigma": cast(1.0)}
    parts = jaxem.gain(gaussian.isotropic, far, x)
    assert np.isfinite(float(parts.total))
    assert bool(limits.gain_identity(gaussian.isotropic, far, x).holds)


def test_gain_in_jit_and_vmap_and_what_it_refuses():
    x = CASES[0].x()
    theta = CASES[0].theta()
    sigmas = cast([0.5, 1.0, 2.0])
    batch = jax.jit(jax.vmap(lambda sigma: jaxem.gain(gaussian.isotropic, theta | {"sigma": sigma}, x)))(sigmas)
    one = jaxem.gain(gaussian.isotropic, theta | {"sigma": sigmas[1]}, x)
    assert np.allclose(batch.total[1], one.total, rtol=tolerance(1e-12, 1e-4))
    with pytest.raises(ValueError, match="flat"):
        jaxem.gain(jaxem.gradient_m_step(gaussian.isotropic), theta, x)
    with pytest.raises(ValueError, match="temperature"):
        jaxem.gain(gaussian.isotropic, theta, x, -1.0)
