"""p(hidden | observed): against the joint density on a grid, SciPy's formulas, and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
from scipy.special import logsumexp

import jaxem
from jaxem.families import gaussian

from cases import CASES, cast, tolerance

GAUSSIAN = [case for case in CASES if hasattr(gaussian, case.name)]
each_family = pytest.mark.parametrize("case", GAUSSIAN, ids=lambda c: c.name)
MASK = np.array([True, False, True])


def covariance(theta, k):
    """Σ_k (D, D) of any family's θ."""
    name, D = ("Sigma" if "Sigma" in theta else "sigma"), theta["mu"].shape[1]
    scale = np.asarray(theta[name], float)
    per_component = scale.ndim == (3 if name == "Sigma" else scale.ndim) and scale.ndim > 0
    scale = scale[k] if per_component else scale
    return scale if name == "Sigma" else np.diag(np.broadcast_to(scale**2, D))


def by_formula(theta, x, mask):
    """π_k(x_o), the components' means and covariances, by Schur complements in NumPy."""
    weights, means, laws = [], [], []
    for k in range(len(theta["pi"])):
        mu, S = np.asarray(theta["mu"][k], float), covariance(theta, k)
        oo, ho, hh = S[np.ix_(mask, mask)], S[np.ix_(~mask, mask)], S[np.ix_(~mask, ~mask)]
        weights.append(np.log(theta["pi"][k]) + st.multivariate_normal.logpdf(x[:, mask], mu[mask], oo))
        means.append(mu[~mask] + (x[:, mask] - mu[mask]) @ np.linalg.solve(oo, ho.T))
        laws.append(hh - ho @ np.linalg.solve(oo, ho.T))
    weights = np.stack([np.reshape(w, -1) for w in weights], axis=1)
    pi = np.exp(weights - logsumexp(weights, axis=1, keepdims=True))
    return pi, np.stack(means), np.stack(laws)


@each_family
@pytest.mark.parametrize("mask", [MASK, ~MASK], ids=["one hidden", "two hidden"])
def test_weights_and_means_are_the_schur_complements(case, mask):
    """Hidden columns are NaN: they are ignored."""
    theta, x = case.theta(D=3), np.asarray(case.x(D=3), float)
    pi, means, _ = by_formula(theta, x, mask)
    blank = cast(np.where(mask, x, np.nan))
    conditional = jaxem.condition(case.m, theta, blank, mask)
    assert np.allclose(conditional.pi, pi, atol=tolerance(1e-12, 1e-5))
    expected = np.einsum("nk,knh->nh", pi, means)
    assert conditional.mean.shape == (60, (~mask).sum())
    assert np.allclose(conditional.mean, expected, atol=tolerance(1e-12, 1e-5))


@each_family
def test_the_mean_is_the_integral_of_the_joint_density(case):
    """∫ x_h p(x_o, x_h) dx_h / ∫ p(x_o, x_h) dx_h on a grid, with SciPy's density: no formula of ours in it."""
    theta = case.theta()
    grid = np.linspace(-12, 12, 4001)
    for observed in (-0.7, 1.3):
        points = np.stack([np.full_like(grid, observed), grid], axis=1)
        density = np.exp(logsumexp(case.log_joint(theta, points), axis=1))
        mean = (grid * density).sum() / density.sum()
        conditional = jaxem.condition(case.m, theta, cast(np.array([[observed, 0.0]])), [True, False])
        assert float(conditional.mean[0, 0]) == pytest.approx(mean, abs=tolerance(1e-9, 1e-5))


@each_family
def test_samples_have_the_conditional_law(case):
    """20,000 copies of a row: mean and covariance of the mixture, within five standard errors."""
    theta, N = case.theta(D=3), 20_000
    x = np.asarray(case.x(D=3, N=1), float)
    mask = ~MASK
    pi, means, laws = by_formula(theta, x, mask)
    conditional = jaxem.condition(case.m, theta, cast(np.tile(x, (N, 1))), mask)
    draws = np.asarray(conditional.sample(jax.random.key(0)), float)
    assert draws.shape == conditional.mean.shape
    mean = np.einsum("k,kh->h", pi[0], means[:, 0])
    second = np.einsum("k,khi->hi", pi[0], laws + np.einsum("kh,ki->khi", means[:, 0], means[:, 0]))
    law = second - np.outer(mean, mean)
    error = 5 * np.sqrt(np.diag(law).max() / N)
    assert np.allclose(draws.mean(0), mean, atol=error)
    assert np.allclose(np.cov(draws.T), law, atol=4 * error * np.sqrt(np.diag(law).max()))
    again = conditional.sample(jax.random.key(0))
    assert (np.asarray(again, float) == draws).all()


def test_it_runs_inside_jit_and_vmap():
    case = GAUSSIAN[-1]
    theta, x = case.theta(), case.x(N=4)
    expected = jaxem.condition(case.m, theta, x, [True, False])
    jitted = jax.jit(lambda theta, x: jaxem.condition(case.m, theta, x, [True, False]))(theta, x)
    assert np.allclose(jitted.mean, expected.mean, atol=tolerance(1e-14, 1e-6))
    thetas = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), theta)
    mapped = jax.vmap(lambda theta: jaxem.condition(case.m, theta, x, [True, False]).pi)(thetas)
    assert np.allclose(mapped[1], expected.pi, atol=tolerance(1e-14, 1e-6))


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([True], "mask: must be 2 bools"),
        (np.array([1, 0]), "mask: must be 2 bools"),
        ([True, True], "every column is observed"),
        ([False, False], "no column is observed"),
    ],
)
def test_bad_masks_are_errors(mask, says):
    case = GAUSSIAN[0]
    with pytest.raises(ValueError, match=says):
        jaxem.condition(case.m, case.theta(), case.x(), mask)


def test_nan_in_an_observed_column_is_an_error():
    case = GAUSSIAN[0]
    x = case.x().at[3, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"x: has NaN or infinity in 1 row\(s\): 3"):
        jaxem.condition(case.m, case.theta(), x, [True, False])
    jaxem.condition(case.m, case.theta(), x, [False, True])
