"""Draws for ArviZ: what is missing is said in one line, and what is there has its chains."""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxem
from jaxem.families import gaussian

DRAWS = {
    "pi": jnp.full((4, 2), 0.5),
    "mu": jnp.array([[[0.0], [50.0]], [[50.0], [0.0]]] * 2),
    "sigma": jnp.ones(4),
    "log_likelihood": jnp.arange(4.0),
}
X = jnp.array([0.0, 50.0, 1.0])


def test_without_arviz_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r'^jaxem\.to_datatree needs ArviZ 1\.0 or later: pip install "jaxem\[arviz\]"$'):
        jaxem.to_datatree(gaussian.isotropic, DRAWS, X, jax.random.key(0))


def test_what_arviz_gets_has_the_latents_of_each_draw_and_the_chains(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz_base", SimpleNamespace(from_dict=lambda groups: groups))
    found = jaxem.to_datatree(gaussian.isotropic, DRAWS, X, jax.random.key(0), num_chains=2)
    assert set(found) == {"posterior"}
    assert {name: some.shape for name, some in found["posterior"].items()} == {
        "pi": (2, 2, 2), "mu": (2, 2, 2, 1), "sigma": (2, 2), "log_likelihood": (2, 2), "z": (2, 2, 3),
    }  # fmt: skip
    assert found["posterior"]["z"].tolist() == [[[0, 1, 0], [1, 0, 1]]] * 2
    assert found["posterior"]["log_likelihood"].tolist() == [[0.0, 1.0], [2.0, 3.0]]  # chain after chain
    with pytest.raises(ValueError, match=r"^samples\['pi'\]: 4 draws are no multiple of num_chains = 3"):
        jaxem.to_datatree(gaussian.isotropic, DRAWS, X, jax.random.key(0), num_chains=3)


def test_arviz_reads_them():
    pytest.importorskip("arviz_base")
    found = jaxem.to_datatree(gaussian.isotropic, DRAWS, X, jax.random.key(0), num_chains=2)
    z = found["posterior"]["z"]
    assert z.dims[:2] == ("chain", "draw")
    assert np.asarray(z).tolist() == [[[0, 1, 0], [1, 0, 1]]] * 2
