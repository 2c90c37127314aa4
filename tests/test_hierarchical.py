"""Ward's start: SciPy's clusters, one M-step, whatever the units; mclust's choice of model and K."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.cluster import hierarchy
from test_gaussian_families import old_faithful

import jaxem
from jaxem._core import ward
from jaxem.families import bernoulli, gaussian

from cases import cast

REFERENCE = json.loads((Path(__file__).parent / "mclust_prior_noise.json").read_text())
FAITHFUL = old_faithful()
X = np.random.default_rng(0).normal(size=(40, 3)) + 4 * (np.arange(40) % 3)[:, None]


@pytest.mark.parametrize("K", [1, 2, 5, 40])
def test_the_clusters_are_scipys(K):
    found, expected = ward.labels_of(X, K), hierarchy.cut_tree(hierarchy.linkage(X, "ward"), K).ravel()
    assert len({*zip(found, expected, strict=True)}) == len(set(found)) == K
    assert (np.diff(np.bincount(found)) <= 0).all()  # the largest first


@pytest.mark.parametrize("name", ["isotropic", "diagonal", "full", "VVE"])
def test_the_start_is_one_M_step_of_clusters_whatever_the_units(name):
    """The three clumps; a column's unit decides nothing where the model does not know it."""
    m = getattr(gaussian, name)
    theta = jaxem.inits.hierarchical(m, X, 3)
    expected = np.stack([X[k::3].mean(0) for k in range(3)])
    np.testing.assert_allclose(np.sort(theta["mu"], axis=0), np.sort(expected, axis=0), atol=0.7)
    labels = ward.labels_of(ward.coordinates(dict(m.shapes), X), 3)
    np.testing.assert_allclose(theta["mu"], jaxem.inits.from_labels(m, X, labels)["mu"], rtol=1e-12)
    unit = np.array([7.0, 7.0, 7.0] if name == "isotropic" else [1e3, 1.0, 1e-3])
    other = jaxem.inits.hierarchical(m, X * unit, 3)
    np.testing.assert_allclose(other["mu"], np.asarray(theta["mu"]) * unit, rtol=1e-9)


def test_a_cluster_of_one_row_has_pooled_scales_and_weights_count():
    x = np.concatenate([X, [[90.0, 90.0, 90.0]]])
    theta = jaxem.inits.hierarchical(gaussian.full, x, 2)
    assert (np.linalg.eigvalsh(theta["Sigma"]) > 0).all()
    np.testing.assert_allclose(theta["mu"][1], x[-1])
    w = np.append(np.ones(40), 0.0)
    without = jaxem.inits.hierarchical(gaussian.full, x, 2, weights=w)
    np.testing.assert_allclose(without["mu"], jaxem.inits.hierarchical(gaussian.full, X, 2)["mu"], rtol=1e-9)
    noisy = jaxem.inits.hierarchical(gaussian.with_noise(gaussian.full), x, 2)
    np.testing.assert_allclose(noisy["pi"][-1], 1 / 3)


@pytest.fixture(scope="module")
def selection():
    models = (gaussian.EEE, gaussian.VVV)
    return jaxem.select(
        cast(FAITHFUL), jax.random.key(0), models=models, num_components=(1, 2, 3), starts=2, init="hierarchical"
    )


def test_mclusts_choice_on_old_faithful(selection):
    """EEE with three components, and its BIC; those of other K no worse than mclust's."""
    names = ["EII", "VII", "EEI", "VEI", "EVI", "VVI", "EEE", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV", "VVV"]
    assert selection.m == gaussian.EEE
    assert len(selection.fit.theta["pi"]) == 3
    for candidate in selection.table:
        name = {gaussian.EEE: "EEE", gaussian.VVV: "VVV"}[candidate.m]
        theirs = -REFERENCE["faithful_bic"][candidate.num_components - 1][names.index(name)]
        assert candidate.value < theirs + 0.01, candidate
    best = min(c.value for c in selection.table)
    assert best == pytest.approx(2314.316, abs=0.05)


def test_fit_starts_by_it_and_then_by_k_means():
    fit = jaxem.fit(gaussian.EEE, cast(FAITHFUL), jax.random.key(0), 2, init="hierarchical", starts=2)
    assert int(np.sum(fit.ended)) == 2
    assert float(fit.free_energy) == pytest.approx(-1140.1867594, rel=1e-8)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: jaxem.inits.hierarchical(gaussian.full, X, 41), "^num_components: 41 exceeds the 40 rows"),
        (lambda: jaxem.inits.hierarchical(gaussian.full, np.zeros((5001, 1)), 2), "^x: has 5001 rows, of which all"),
        (lambda: jax.jit(lambda x: jaxem.inits.hierarchical(gaussian.full, x, 2))(X), "^x: is traced, and SciPy"),
        (lambda: jaxem.fit(gaussian.full, X, jax.random.key(0), 2, init="tree"), r"^init: .*hierarchical"),
        (
            lambda: jaxem.fit(gaussian.VEE, X[:3], jax.random.key(0), 2),
            "^x: has 3 rows and 3 columns, so that every cov",
        ),
    ],
)
def test_what_is_no_start_says_so_in_one_line(call, match):
    with pytest.raises(ValueError, match=match) as found:
        call()
    assert "\n" not in str(found.value)


def test_without_scipy_it_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster", None)
    with pytest.raises(ValueError, match=r"^init: .* needs SciPy; pip install scipy"):
        ward.hierarchy()


def test_zeros_and_ones_start_by_it_too():
    x = (X > 2).astype(int)
    theta = jaxem.inits.hierarchical(bernoulli.mixture, x, 2)
    assert theta["probs"].shape == (2, 3)
