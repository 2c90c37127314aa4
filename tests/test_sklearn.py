"""jaxem.sklearn: scikit-learn's own checks, its own estimators from the same start, and rows as a set with weights."""

import importlib
import pickle
import re
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import sklearn.cluster
import sklearn.mixture
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import jaxem
import jaxem.sklearn as js

ROOT = Path(__file__).parent.parent
X = load_iris().data
K, D = 3, 4
STARTS = X[[0, 60, 120]]
WHOLE = {"check_sample_weight_equivalence_on_dense_data": "its rows are fractions, neither counts nor categories"}
ESTIMATORS = {
    "GaussianMixture": {},
    "KMeans": {},
    "BernoulliMixture": {},
    "PoissonMixture": WHOLE,
    "CategoricalMixture": WHOLE,
}
SMALL = {
    "GaussianMixture": js.GaussianMixture(K, covariance_type="diag", random_state=0),
    "KMeans": js.KMeans(K, random_state=0),
    "BernoulliMixture": js.BernoulliMixture(2, binarize=3.0, random_state=0),
    "PoissonMixture": js.PoissonMixture(K, random_state=0),
    "CategoricalMixture": js.CategoricalMixture(K, random_state=0),
}


@pytest.mark.takes_turns("name")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_scikit_learns_own_checks_pass(name):
    """All of them, that of weights against repetitions included, which scikit-learn's own k-means fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(getattr(js, name)(), on_skip=None, expected_failed_checks=ESTIMATORS[name])
    assert len(results) > 50
    assert {one["check_name"] for one in results if one["status"] == "xfail"} == set(ESTIMATORS[name])


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_same_steps_as_scikit_learns_mixture(covariance_type):
    spread = {"full": np.stack([np.eye(D)] * K), "tied": np.eye(D), "diag": np.ones((K, D)), "spherical": np.ones(K)}
    parameters = {
        "covariance_type": covariance_type,
        "tol": 0.0,
        "reg_covar": 0.0,
        "max_iter": 15,
        "weights_init": np.full(K, 1 / K),
        "means_init": STARTS,
        "precisions_init": spread[covariance_type],
    }
    ours = js.GaussianMixture(K, **parameters).fit(X)
    theirs = sklearn.mixture.GaussianMixture(K, **parameters).fit(X)
    for name in ("weights_", "means_", "covariances_", "precisions_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-8, atol=1e-10)
    for name in ("score_samples", "predict_proba", "predict", "aic", "bic", "score"):
        np.testing.assert_allclose(getattr(ours, name)(X), getattr(theirs, name)(X), rtol=1e-8, atol=1e-12)
    assert ours.n_iter_ == 15
    assert not ours.converged_
    assert ours.status_ == jaxem.Status.MAX_STEPS
    assert ours.lower_bound_ == pytest.approx(ours.score(X), rel=1e-12)
    assert ours.score(X) * len(X) == pytest.approx(float(jaxem.log_likelihood(ours.model_, ours.theta_, X)), rel=1e-12)


def test_the_same_end_as_scikit_learns_kmeans():
    ours = js.KMeans(K, init=STARTS).fit(X)
    theirs = sklearn.cluster.KMeans(K, init=STARTS, n_init=1, tol=0, algorithm="lloyd").fit(X)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-12)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-9)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
    assert ours.score(X) == pytest.approx(theirs.score(X), rel=1e-12)


def fitted(estimator):
    """What a fit found, as arrays."""
    return {"mu": estimator.cluster_centers_} if isinstance(estimator, js.KMeans) else estimator.theta_


@pytest.mark.parametrize("name", SMALL)
def test_a_fit_is_of_a_set_of_rows_with_weights(name):
    """To the last bit: rows repeated and shuffled, against weights, some of them 0."""
    rows = X if name in ("GaussianMixture", "KMeans", "BernoulliMixture") else np.round(X)
    rng = np.random.default_rng(0)
    w = rng.integers(0, 4, len(rows))
    repeated = rng.permutation(rows.repeat(w, axis=0))
    weighted = clone(SMALL[name]).fit(rows, sample_weight=w)
    again = clone(SMALL[name]).fit(repeated)
    for entry, value in fitted(weighted).items():
        np.testing.assert_array_equal(value, fitted(again)[entry])
    heavier = clone(SMALL[name]).fit(rows, sample_weight=np.where(w == 1, 5, w))
    assert any((value != fitted(heavier)[entry]).any() for entry, value in fitted(weighted).items())


def test_float64_stays_float64_where_jax_has_none():
    with jax.enable_x64(False):
        inside = clone(SMALL["GaussianMixture"]).fit(X)
        assert inside.predict_proba(X).dtype == inside.score_samples(X).dtype == np.float64
        assert inside.sample(3)[0].dtype == np.float64
        assert not jax.config.jax_enable_x64
    np.testing.assert_array_equal(inside.means_, clone(SMALL["GaussianMixture"]).fit(X).means_)


def test_starts_are_lanes_and_the_best_that_converged_is_kept(capsys):
    e = js.GaussianMixture(K, covariance_type="diag", init_params="random", n_init=4, random_state=1, verbose=1).fit(X)
    *starts, kept = capsys.readouterr().out.splitlines()
    values = [float(re.search(r"(-?[\d.]+) nats", line)[1]) for line in starts]
    assert len(values) == 4
    assert len(set(values)) > 1
    assert max(values) == float(re.search(r"(-?[\d.]+) nats", kept)[1]) == pytest.approx(e.lower_bound_, abs=1e-6)
    assert e.converged_


def test_the_floor_is_on_by_default_and_felt_only_where_it_binds():
    flat = X.copy()
    flat[:50] = flat[0]  # a cluster without spread
    e = clone(SMALL["GaussianMixture"]).set_params(reg_covar=1e-3).fit(flat)
    assert e.covariances_.min() == pytest.approx(1e-3, rel=1e-12)
    assert e.converged_
    with pytest.raises(ValueError, match="raise reg_covar"):
        e.set_params(reg_covar=0.0).fit(flat)
    without = clone(SMALL["GaussianMixture"]).set_params(reg_covar=0.0).fit(X)
    np.testing.assert_allclose(clone(SMALL["GaussianMixture"]).fit(X).means_, without.means_, rtol=1e-12)


def test_a_warm_start_goes_on_where_the_last_fit_ended():
    whole = clone(SMALL["GaussianMixture"]).set_params(max_iter=6, tol=0.0)
    parts = clone(whole).set_params(max_iter=2, warm_start=True)
    with pytest.warns(ConvergenceWarning, match="MAX_STEPS"):
        whole.fit(X)
    for _ in range(3):
        with pytest.warns(ConvergenceWarning, match="raise max_steps"):
            parts.fit(X)
    np.testing.assert_array_equal(whole.means_, parts.means_)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_pipelines_searches_and_pickles():
    pipeline = make_pipeline(StandardScaler(), js.GaussianMixture(K, random_state=0))
    search = GridSearchCV(pipeline, {"gaussianmixture__covariance_type": ["diag", "spherical"]}, cv=2).fit(X)
    assert set(search.cv_results_["param_gaussianmixture__covariance_type"]) == {"diag", "spherical"}
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))
    found = again[-1]
    assert found.model_ == search.best_estimator_[-1].model_
    rows, components = found.sample(200)
    assert rows.shape == (200, D)
    np.testing.assert_array_equal(found.get_feature_names_out(), [f"gaussianmixture{k}" for k in range(K)])
    assert np.bincount(components, minlength=K) / 200 == pytest.approx(found.weights_, abs=0.15)


def test_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    e = clone(SMALL["GaussianMixture"]).set_output(transform="pandas").fit(frame)
    assert e.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert e.transform(frame).columns.tolist() == [f"gaussianmixture{k}" for k in range(K)]
    with pytest.raises(ValueError, match="feature names"):
        e.predict(frame[["b", "a", "c", "d"]])


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (js.GaussianMixture(0), "n_components: must be an integer ≥ 1, got 0"),
        (js.GaussianMixture(2, covariance_type="round"), "covariance_type: must be one of 'full', .* got 'round'"),
        (js.GaussianMixture(2, init_params="kmean"), "init_params: must be one of 'kmeans', .* got 'kmean'"),
        (js.GaussianMixture(2, means_init=np.zeros((2, 3))), r"means_init: must be finite, of shape \(2, 4\)"),
        (js.GaussianMixture(2, reg_covar=-1.0), "reg_covar: must be a finite number ≥ 0, got -1.0"),
        (js.GaussianMixture(151), "n_components=151 needs as many distinct rows, and X has 149"),
        (js.KMeans(2, init="best"), "init: must be one of 'k-means\\+\\+', 'random' or centres, got 'best'"),
        (js.PoissonMixture(2), "takes counts 0, 1, 2"),
        (js.BernoulliMixture(2, binarize=None), "takes 0 and 1 only"),
    ],
)
def test_bad_parameters_are_named(estimator, says):
    with pytest.raises(ValueError, match=says):
        estimator.fit(X)


def test_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("jaxem.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "jaxem\[sklearn\]"'):
        importlib.import_module("jaxem.sklearn")


def test_the_pages_blocks_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sklearn.md").read_text(), flags=re.DOTALL):
        exec(compile(block, "docs/sklearn.md", "exec"), names)
