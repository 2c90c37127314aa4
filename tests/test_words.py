"""What people read says what is there, and says nothing of what is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

import jaxem
from jaxem import Status
from jaxem.families import bernoulli, gaussian

from cases import CASES, cast, tolerance

ISO, KEY = gaussian.isotropic, jax.random.key(0)
X = CASES[0].x()


@pytest.fixture(scope="module")
def fit():
    return jaxem.fit(gaussian.diagonal, X, KEY, 3, starts=3)


@pytest.mark.parametrize(
    ("m", "name"),
    [
        (gaussian.full, "gaussian.full"),
        (gaussian.EII, "gaussian.isotropic"),
        (gaussian.isotropic.hold("sigma", "pi"), "gaussian.isotropic.hold('pi', 'sigma')"),
        (
            gaussian.with_floor(gaussian.full.hold("pi"), 0.01).hold("mu"),
            "gaussian.with_floor(gaussian.full, 0.01).hold('pi', 'mu')",
        ),
        (jaxem.gradient_m_step(bernoulli.mixture), "jaxem.gradient_m_step(bernoulli.mixture)"),
        (jaxem.from_numpyro(programs.mixture), "jaxem.from_numpyro(programs.mixture)"),
        (
            jaxem.from_numpyro(programs.mixture, closed_form=False).hold("mu"),
            "jaxem.from_numpyro(programs.mixture, closed_form=False).hold('mu')",
        ),
    ],
)
def test_a_model_is_its_name_and_what_is_held(m, name):
    assert repr(m) == name


def test_a_name_makes_no_other_model():
    import dataclasses

    renamed = dataclasses.replace(gaussian.full, name="mine")
    assert renamed == gaussian.full
    assert hash(renamed) == hash(gaussian.full)
    assert repr(renamed) == "mine"


def test_a_fit_says_how_it_ended(fit):
    text = repr(fit)
    assert text.startswith(f"Fit: {Status(int(fit.status)).name} after {int(fit.num_steps)} steps at F = ")
    assert f"{float(fit.free_energy):.8g} nats" in text
    for name in ("pi", "mu", "sigma"):
        assert f"\n  {name} " in text
    one = repr(jaxem.em(ISO, jaxem.inits.random_points(ISO, KEY, X, 2), X, max_steps=0))
    assert "MAX_STEPS after 0 steps" in one
    assert "starts" not in one


def test_lanes_say_how_many_ended_how():
    starts = jaxem.inits.many(ISO, jax.random.split(KEY, 4), X, 2)
    text = repr(jaxem.em_batch(ISO, starts, X, max_steps=1))
    assert text.startswith("Fit of 4 lanes: 4 MAX_STEPS; F from -")
    assert "1 to 1 steps" in text


def test_what_is_traced_is_not_looked_at(fit):
    shown = []

    @jax.jit
    def show(fit):
        shown.append(repr(fit))
        return fit.free_energy

    show(fit)
    jax.vmap(lambda fit: show(fit))(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fit))
    shown.append(repr(jax.eval_shape(lambda: fit)))
    shown.append(repr(jax.tree.map(jnp.shape, fit)))
    assert all(text.startswith("Fit(theta=") for text in shown)


def test_a_certificate_says_what_each_statement_is(fit):
    certificate = jaxem.certify(gaussian.diagonal, fit.theta, X)
    text = repr(certificate)
    assert certificate.holds()
    assert text.startswith("Certificate: holds")
    for name in ("C1", "C2", "C3", "C4", "C5", "C6"):
        assert f"{float(getattr(certificate, name)):.1e}" in next(line for line in text.splitlines() if name in line)
    assert "Fisher" in text
    broken = certificate._replace(C3=cast(0.1), C6=cast(np.nan))
    assert not broken.holds()
    assert repr(broken).startswith("Certificate: does not hold: C3")
    assert "says nothing" in repr(broken)


def test_a_summary_has_the_numbers(fit):
    m = gaussian.diagonal
    found = jaxem.summary(m, fit, X)
    assert found.bic == pytest.approx(float(jaxem.bic(m, fit.theta, X)), rel=tolerance(1e-12, 1e-5))
    assert found.log_likelihood == pytest.approx(float(fit.free_energy), rel=tolerance(1e-12, 1e-5))
    assert found.num_parameters == jaxem.num_parameters(m, fit.theta)
    labels = np.asarray(jaxem.predict(m, fit.theta, X).labels)
    np.testing.assert_array_equal(found.sizes["z"], np.bincount(labels, minlength=3))
    text = repr(found)
    for words in ("gaussian.diagonal on 60 rows and 2 column(s)", "CONVERGED", f"{found.icl:.4f}", "component"):
        assert words in text
    with pytest.raises(ValueError, match=r"^fit: must be the Fit of one start, concrete, got 2 lanes"):
        jaxem.summary(m, jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), fit), X)
    with pytest.raises(ValueError, match=r"^fit: must be the Fit of one start, concrete, got dict"):
        jaxem.summary(m, fit.theta, X)


def test_a_program_is_summarised_by_its_latents():
    case = programs.CASES["mixture"]
    m = jaxem.from_numpyro(case.program)
    fit = jaxem.em(m, m.init(KEY, case.x), case.x, max_steps=2)
    found = jaxem.summary(m, fit, case.x)
    share = np.asarray(jaxem.marginals(m, fit.theta, case.x)["z"]).mean(axis=0)
    np.testing.assert_allclose(found.shares["z"], share, rtol=tolerance(1e-12, 1e-5))
    assert found.sizes["z"].sum() == 5
    assert "jaxem.from_numpyro(programs.mixture) on 5 rows" in repr(found)


def test_dir_shows_what_users_use():
    assert dir(jaxem.inits) == ["from_labels", "hierarchical", "kmeans_plus_plus", "many", "random_points"]
    assert {"full", "with_floor", "ALL"} <= set(dir(gaussian))
    assert "partial" not in dir(gaussian)
    assert {"hold", "program", "parameters"} <= set(dir(gaussian.full))
    assert "recentre" not in dir(gaussian.full)
    assert {"init", "explain", "hold"} <= set(dir(jaxem.from_numpyro(programs.mixture)))
    assert set(dir(jaxem)) >= set(jaxem.__all__)
    for name in ("fit", "select", "summary", "predict", "certify", "save"):
        assert f"jaxem.{name}" in jaxem.__doc__


# ---- answers, row by row


def test_predictions_are_the_tables():
    m, theta = ISO, CASES[0].theta()
    found = jaxem.predict(m, theta, X)
    table = CASES[0].log_joint(theta, X)
    rows = np.logaddexp.reduce(table, axis=1)
    gamma = np.exp(table - rows[:, None])
    np.testing.assert_array_equal(found.labels, table.argmax(axis=1))
    np.testing.assert_allclose(found.log_likelihood, rows, rtol=tolerance(1e-12, 1e-5))
    others = np.sort(gamma, axis=1)[:, :-1].sum(axis=1)  # 1 − max γ, with its digits
    np.testing.assert_allclose(found.uncertainty, others, rtol=tolerance(1e-9, 1e-3))
    assert float(found.log_likelihood.sum()) == pytest.approx(
        float(jaxem.log_likelihood(m, theta, X)), rel=tolerance(1e-12, 1e-5)
    )


def test_a_small_uncertainty_keeps_its_digits():
    theta = cast({"pi": [0.5, 0.5], "mu": [[0.0], [12.0]], "sigma": 1.0})
    found = jaxem.predict(ISO, theta, cast([0.0]))
    assert float(found.uncertainty[0]) == pytest.approx(np.exp(-72.0), rel=1e-5)


def test_a_program_predicts_as_its_family():
    case = programs.CASES["mixture"]
    m = jaxem.from_numpyro(case.program)
    theta = m.init(KEY, case.x)
    family = jaxem.predict(gaussian.spherical, theta, case.x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance(1e-10, 1e-4)),
        jaxem.predict(m, theta, case.x),
        family,
    )
    chain = programs.CASES["gaussian_hmm"]
    m = jaxem.from_numpyro(chain.program)
    with pytest.raises(ValueError, match=r"jaxem\.marginals"):
        jaxem.predict(m, m.init(KEY, chain.x), chain.x)


@pytest.mark.parametrize("case", [case for case in CASES if hasattr(gaussian, case.name)], ids=lambda case: case.name)
def test_covariances_are_the_densities(case):
    """log N(x; μ, Σ) with the Σ that they are."""
    from scipy.stats import multivariate_normal

    theta, x = case.theta(), case.x()
    Sigma = np.asarray(jaxem.covariances(case.m, theta), float)
    assert Sigma.shape == (3, 2, 2)
    table = np.asarray(jaxem.log_joint(case.m, theta, x))
    for k in range(3):
        density = multivariate_normal.logpdf(np.asarray(x), np.asarray(theta["mu"][k]), Sigma[k])
        np.testing.assert_allclose(table[:, k] - np.log(theta["pi"][k]), density, rtol=tolerance(1e-10, 1e-4))


def test_what_has_no_covariances_says_so():
    with pytest.raises(ValueError, match=r"^m: has no covariances"):
        jaxem.covariances(bernoulli.mixture, {"pi": [1.0], "probs": [[0.5]]})
