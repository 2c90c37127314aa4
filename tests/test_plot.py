"""jaxem.plot: what is drawn is what the model says, on the axes given, and nothing else is touched."""

import re
import sys
from collections import namedtuple
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

import jaxem
from jaxem.families import bernoulli, gaussian, poisson

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.colors import to_hex

from jaxem.plot._components import MOST, log_density, normal_laws, shown
from jaxem.plot._rows import MASSES, area, ellipse, plane, thresholds
from jaxem.plot._style import COLOURS

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(40, 2)), RNG.normal(size=(60, 2)) * [1, 2] + [4, 3]])
THETA = {
    "pi": np.array([0.4, 0.6]),
    "mu": np.array([[0.0, 0.0], [4.0, 3.0]]),
    "Sigma": np.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.5], [0.5, 4.0]]]),
}
LINE = {"pi": np.array([0.4, 0.6]), "mu": np.array([[0.0], [4.0]]), "sigma": np.array([1.0, 1.0])}
RATES = {"pi": np.array([0.4, 0.6]), "rate": np.array([[2.0], [9.0]])}


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def test_classification_draws_each_row_with_its_component():
    ax = jaxem.plot.classification(gaussian.full, THETA, X, names=["a", "b"], labels=["short", "long"])
    labels = np.asarray(jaxem.responsibilities(gaussian.full, THETA, X)).argmax(axis=1)
    for k, line in enumerate(ax.lines[:2]):
        np.testing.assert_array_equal(line.get_xydata(), X[labels == k])
        assert to_hex(line.get_color()).upper() == COLOURS[k]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["short", "long"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")


def test_the_ellipse_holds_what_it_says():
    """Of a million draws, 95 %; of five columns, the marginal of the two shown."""
    theta = THETA | {"mu": np.zeros((1, 2)), "Sigma": THETA["Sigma"][1:]}
    edge = ellipse(theta["mu"][0], theta["Sigma"][0], MOST)
    square = np.einsum("in,ij,jn->n", edge, np.linalg.inv(theta["Sigma"][0]), edge)
    np.testing.assert_allclose(1 - np.exp(-square / 2), 0.95, rtol=1e-6)
    Sigma = np.cov(RNG.normal(size=(5, 50)))
    five = {"pi": np.ones(1), "mu": np.arange(5.0)[None], "Sigma": Sigma}
    means, covariances = normal_laws(shown(gaussian.tied, five, np.zeros((1, 5)), (3, 1), None))
    np.testing.assert_array_equal(means, [[3.0, 1.0]])
    np.testing.assert_array_equal(covariances[0], Sigma[np.ix_([3, 1], [3, 1])])


@pytest.mark.parametrize("shape", [(), (2,), (2, 2)])
def test_every_scale_has_its_ellipses(shape):
    m = {0: gaussian.isotropic, 1: gaussian.spherical, 2: gaussian.diagonal}[len(shape)]
    sigma = np.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape)
    theta = {"pi": THETA["pi"], "mu": THETA["mu"], "sigma": sigma}
    _, covariances = normal_laws(shown(m, theta, X, None, None))
    wide = np.broadcast_to(sigma.reshape(shape + (1,) * (2 - len(shape))), (2, 2))
    np.testing.assert_array_equal(covariances, [np.diag(row**2) for row in wide])


def test_uncertainty_is_the_area_of_the_points():
    ax = jaxem.plot.uncertainty(gaussian.full, THETA, X)
    points = next(c for c in ax.collections if len(c.get_offsets()) == len(X))
    gamma = np.asarray(jaxem.responsibilities(gaussian.full, THETA, X))
    order = [np.flatnonzero((row == X).all(axis=1))[0] for row in points.get_offsets()]
    np.testing.assert_allclose(points.get_sizes(), area(2 * (1 - gamma.max(axis=1)))[order], rtol=1e-9)
    assert (np.diff(points.get_sizes()) >= 0).all()


def test_the_plane_is_shaded_by_the_uncertainty_there_also_with_columns_swapped():
    first, swapped = (jaxem.plot.uncertainty(gaussian.full, THETA, X, columns=c) for c in ((0, 1), (1, 0)))
    levels, back = first.collections[0], swapped.collections[0]
    np.testing.assert_allclose(levels.get_paths()[3].get_extents().size, back.get_paths()[3].get_extents().size[::-1])


def test_the_density_is_the_models_and_its_regions_hold_their_mass(key):
    at = plane((-8.0, 14.0), (-12.0, 18.0))
    field = np.exp(log_density(THETA, *normal_laws(shown(gaussian.full, THETA, X, None, None)), at))
    expected = np.asarray(jaxem.log_joint(gaussian.full, THETA, at[::50, ::50].reshape(-1, 2)))
    np.testing.assert_allclose(np.log(field[::50, ::50]).ravel(), np.logaddexp.reduce(expected, axis=1), rtol=1e-10)
    drawn, _ = jaxem.sample(gaussian.full, THETA, key, 20_000)
    inside = np.exp(np.logaddexp.reduce(np.asarray(jaxem.log_joint(gaussian.full, THETA, drawn)), axis=1))
    for level, mass in zip(thresholds(field), MASSES, strict=True):
        assert np.mean(inside >= level) == pytest.approx(mass, abs=0.015)
    ax = jaxem.plot.density(gaussian.full, THETA, X)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["95 %", "75 %", "50 %", "25 %"]


@pytest.mark.parametrize(
    ("m", "theta"), [(gaussian.spherical, LINE), (poisson.mixture, RATES)], ids=["normal", "counts"]
)
def test_one_column_is_a_curve(m, theta):
    x = np.concatenate([RNG.poisson(2, 40), RNG.poisson(9, 60)]).astype(float)
    for draw in (jaxem.plot.classification, jaxem.plot.uncertainty, jaxem.plot.density):
        ax = draw(m, theta, x, names=["count"])
        assert ax.get_xlabel() == "count"
    at, values = ax.lines[-1].get_data()
    table = np.asarray(jaxem.log_joint(m, theta, at))
    np.testing.assert_allclose(values, np.exp(table).sum(axis=1), rtol=1e-10)


ROWS = [
    {"model": model, "num_components": K, "value": value, "status": status}
    for model, K, value, status in [
        ("VVV", 1, 9.0, "CONVERGED"),
        ("VVV", 2, 4.0, "CONVERGED"),
        ("VVV", 3, 1.0, "MAX_STEPS"),
        ("EII", 1, 8.0, "CONVERGED"),
        ("EII", 2, np.nan, "NONFINITE"),
        ("EII", 3, 7.0, "CONVERGED"),
    ]
]
Row = namedtuple("Row", ["m", "num_components", "value", "status"])  # as `jaxem.select` has them


class Table(tuple):
    criterion = "bic"


@pytest.mark.parametrize(
    "table",
    [
        ROWS,
        {name: [row[name] for row in ROWS] for name in ROWS[0]},
        namedtuple("Selection", ["m", "fit", "table"])(
            None,
            None,
            Table(Row(r["model"], r["num_components"], r["value"], jaxem.Status[r["status"]]) for r in ROWS),
        ),
    ],
    ids=["rows", "columns", "selection"],
)
def test_the_least_that_converged_is_named(table):
    ax = jaxem.plot.criterion(table, name=None if hasattr(table, "table") else "BIC")
    assert ax.texts[0].get_text() == "VVV, K = 2"
    assert ax.get_ylabel() == "BIC (nats)"
    assert ax.get_legend().get_texts()[-1].get_text() == "not converged"
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert [line.get_xydata().tolist() for line in hollow] == [[[3.0, 1.0]]]
    with pytest.raises(ValueError, match="no converged row"):
        jaxem.plot.criterion([row for row in ROWS if row["status"] != "CONVERGED"])
    with pytest.raises(ValueError, match="a row has no 'value'"):
        jaxem.plot.criterion([{"model": "VVV", "num_components": 1}])


def test_a_trace_is_the_paths_halves_and_lanes_are_told_apart():
    path = jaxem.em_path(gaussian.full, THETA, X, num_steps=4)
    both = np.stack([path.after_e, path.after_m], axis=-1).ravel()
    np.testing.assert_array_equal(jaxem.plot.trace(path).lines[0].get_ydata(), both)
    lanes = jaxem.Path(None, *(jnp.stack([half, half - 3]) for half in path[1:]))
    pale, dark = jaxem.plot.trace(lanes, gap=True).lines[:2]
    np.testing.assert_allclose(dark.get_ydata()[:-1], both[-1] - both[:-1], rtol=1e-12)
    np.testing.assert_allclose(pale.get_ydata(), both[-1] - both + 3, rtol=1e-12)
    assert to_hex(dark.get_color()).upper() == COLOURS[0]


def test_it_draws_on_the_axes_given_and_leaves_the_callers_style():
    before = dict(matplotlib.rcParams)
    figure, ax = pyplot.subplots()
    assert jaxem.plot.classification(gaussian.full, THETA, X, ax=ax) is ax
    assert pyplot.get_fignums() == [figure.number]
    assert jaxem.plot.trace([1.0, 2.0]).figure is not figure
    assert dict(matplotlib.rcParams) == before


def test_bad_arguments_are_named(monkeypatch):
    with pytest.raises(ValueError, match="columns: must be two of the 2 of x"):
        jaxem.plot.classification(gaussian.full, THETA, X, columns=(0, 5))
    with pytest.raises(ValueError, match="names: must be 2, one per column of x, got 1"):
        jaxem.plot.density(gaussian.full, THETA, X, names=["a"])
    probs = {"pi": np.ones(1), "probs": np.full((1, 2), 0.5)}
    with pytest.raises(ValueError, match="Gaussian family only"):
        jaxem.plot.density(bernoulli.mixture, probs, np.eye(2))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "jaxem\[plot\]"'):
        jaxem.plot.trace([1.0, 2.0])


def test_the_pages_blocks_run(tmp_path, monkeypatch):
    names = {"__name__": "docs.plots"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAXEM_DATA", str(ROOT / "experiments" / "data"))
    with matplotlib.rc_context():
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plots.md").read_text(), flags=re.DOTALL):
            exec(compile(block, "docs/plots.md", "exec"), names)
    assert len(list(tmp_path.glob("*.png"))) == 1
