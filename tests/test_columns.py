"""θ fitted to a table with named columns refuses rows whose columns are others, or in another order."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem._core.columns import Named, columns_of
from jaxem.families import gaussian

from cases import FLOAT

ISO, KEY = gaussian.isotropic, jax.random.key(0)
ROWS = np.random.default_rng(0).normal(size=(20, 2)).astype(FLOAT)
THETA = {"pi": [0.5, 0.5], "mu": [[-1.0, 0.0], [1.0, 0.0]], "sigma": 1.0}


class Table:
    """What a data frame is to NumPy, with its columns' names."""

    def __init__(self, rows, columns):
        self.rows, self.columns = np.asarray(rows), columns

    def __array__(self, dtype=None, copy=None):
        return self.rows.astype(dtype) if dtype else self.rows


FRAME = Table(ROWS, ["height", "weight"])
PERMUTED = Table(ROWS[:, ::-1], ["weight", "height"])
FITS = {
    "em": lambda x: jaxem.em(ISO, THETA, x, max_steps=2),
    "em_batch": lambda x: jaxem.best(
        jaxem.em_batch(ISO, {name: np.asarray([value] * 2) for name, value in THETA.items()}, x, max_steps=2)
    ),
    "kmeans": lambda x: jaxem.kmeans(x, np.asarray(THETA["mu"])),
    "fit": lambda x: jaxem.fit(ISO, x, KEY, 2, starts=2, max_steps=2),
    "select": lambda x: jaxem.select(x, KEY, models=ISO, num_components=2, starts=2).fit,
}
ANSWERS = {
    "em": lambda theta, x: jaxem.em(ISO, theta, x, max_steps=0),
    "responsibilities": lambda theta, x: jaxem.responsibilities(ISO, theta, x),
    "predict": lambda theta, x: jaxem.predict(ISO, theta, x),
    "bic": lambda theta, x: jaxem.bic(ISO, theta, x),
    "certify": lambda theta, x: jaxem.certify(ISO, theta, x),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_remembers_the_columns_and_is_otherwise_the_same(name):
    fit, plain = FITS[name](FRAME), FITS[name](ROWS)
    assert fit.theta.columns == ("height", "weight")
    assert type(plain.theta) is dict
    assert sorted(fit.theta) == sorted(plain.theta)
    for entry in plain.theta:
        np.testing.assert_array_equal(fit.theta[entry], plain.theta[entry])


@pytest.mark.parametrize("name", ANSWERS)
def test_permuted_and_missing_columns_are_an_error(name):
    theta = Named({name: jnp.asarray(value, FLOAT) for name, value in THETA.items()}, ("height", "weight"))
    ask = ANSWERS[name]
    ask(theta, FRAME)
    ask(theta, ROWS)  # which has no names
    with pytest.raises(ValueError, match=r"^x: its columns .* in another order, \['weight', 'height'\]; pass x\["):
        ask(theta, PERMUTED)
    with pytest.raises(ValueError, match=r"^x: its columns .* missing \['weight'\], unknown \['age'\]"):
        ask(theta, Table(ROWS, ["height", "age"]))


def test_names_are_the_ones_that_tables_have():
    class Arrow:
        column_names = ("a", "b")

    assert columns_of(Arrow()) == ("a", "b")
    assert columns_of(Table(ROWS, range(2))) is None  # numbers are no names
    assert columns_of(Table(ROWS, None)) is None
    assert columns_of(ROWS) is None


def test_theta_with_names_is_a_dict_and_a_pytree():
    theta = Named({"mu": jnp.ones(2), "a": jnp.zeros(1)}, ("x", "y"))
    assert isinstance(theta, dict)
    assert [path[0].key for path, _ in jax.tree.leaves_with_path(theta)] == ["a", "mu"]
    for copied in (jax.tree.map(lambda leaf: leaf + 0, theta), pickle.loads(pickle.dumps(theta)), copy.deepcopy(theta)):
        assert copied.columns == ("x", "y")
    assert jax.jit(lambda theta: theta | {"mu": theta["mu"] * 2})(theta).columns == ("x", "y")


def test_a_file_keeps_them(tmp_path):
    jaxem.save(tmp_path / "fit.npz", ISO, FITS["em"](FRAME))
    _, fit = jaxem.load(tmp_path / "fit.npz")
    with pytest.raises(ValueError, match="in another order"):
        jaxem.predict(ISO, fit.theta, PERMUTED)


def test_they_head_the_summary():
    fit = FITS["fit"](FRAME)
    assert "mu[height]  mu[weight]" in repr(jaxem.summary(ISO, fit, FRAME))
