"""What was saved comes back to the bit, by names alone; what cannot be is refused in one line."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro import distributions as dist

import jaxem
from jaxem.families import bernoulli, categorical, gaussian

from cases import CASES, cast

KEY = jax.random.key(0)
ISO = gaussian.isotropic


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(jnp.result_type, a) == jax.tree.map(jnp.result_type, b)


def program(x):
    mu = numpyro.param("mu", jnp.array([-1.0, 1.0]))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Bernoulli(0.5))
        numpyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)


def other(x):
    return program(x)


@pytest.fixture(scope="module")
def fitted():
    """(x, a fit of it)."""
    x = CASES[0].x()
    return x, jaxem.em(ISO, jaxem.inits.random_points(ISO, KEY, x, 3), x, max_steps=3)


PRIOR = gaussian.Prior((0.1, -0.3), 0.01, 4, 0.7)


@pytest.mark.parametrize(
    "m",
    [
        ISO,
        gaussian.full.hold("pi", "Sigma"),
        gaussian.with_floor(gaussian.diagonal.hold("mu"), 0.015625),
        gaussian.with_prior(ISO.hold("pi"), PRIOR),
        gaussian.with_prior(gaussian.VEV, gaussian.Prior((0.1, 0.3), 0.01, 4, ((2.0, 0.3), (0.3, 1.1)))),
        gaussian.with_noise(gaussian.EEV.hold("mu")),
        gaussian.with_noise(gaussian.with_prior(gaussian.diagonal, PRIOR), volume=1 / 3),
        gaussian.with_noise(gaussian.with_floor(gaussian.full, 0.015625)).hold("pi"),
        bernoulli.mixture,
        categorical.mixture.hold("pi"),
    ],
    ids=repr,
)
def test_a_family_comes_back_by_its_name(tmp_path, fitted, m):
    _, fit = fitted
    jaxem.save(tmp_path / "fit", m, fit)  # the fit need not be of this family for its name to come back
    found, again = jaxem.load(tmp_path / "fit")
    assert found == m
    assert repr(found) == repr(m)
    same(again, fit)
    assert jaxem.load(tmp_path / "fit", m)[0] is m


def test_another_volume_or_prior_is_another_model(tmp_path, fitted):
    _, fit = fitted
    for one, two in (
        (gaussian.with_noise(ISO, volume=2.0), gaussian.with_noise(ISO, volume=3.0)),
        (gaussian.with_prior(ISO, PRIOR), gaussian.with_prior(ISO, PRIOR._replace(dof=5))),
    ):
        jaxem.save(tmp_path / "fit", one, fit)
        with pytest.raises(ValueError, match="holds a fit of"):
            jaxem.load(tmp_path / "fit", two)


def test_lanes_and_the_best_of_them_come_back(tmp_path, fitted):
    x, _ = fitted
    lanes = jaxem.em_batch(ISO, jaxem.inits.many(ISO, jax.random.split(KEY, 3), x, 3), x, max_steps=3)
    best = jaxem.fit(ISO, x, KEY, 3, starts=3, max_steps=3)
    for fit in (lanes, best):
        jaxem.save(tmp_path / "fit.npz", ISO, fit)
        same(jaxem.load(tmp_path / "fit.npz")[1], fit)


def test_a_program_is_named_and_passed(tmp_path):
    x = cast([-1.0, -0.8, 0.7, 1.2])
    m = jaxem.from_numpyro(program)
    fit = jaxem.em(m, m.init(KEY, x), x)
    jaxem.save(str(tmp_path / "p.npz"), m, fit)
    found, again = jaxem.load(tmp_path / "p.npz", m)
    assert found is m
    same(again, fit)
    with pytest.raises(ValueError, match=r"^m: .* holds a fit of a program, .*program.*; pass it, load\(path, m\)"):
        jaxem.load(tmp_path / "p.npz")
    with pytest.raises(ValueError, match=r"^m: .* holds a fit of .*, not of "):
        jaxem.load(tmp_path / "p.npz", jaxem.from_numpyro(other))
    with pytest.raises(ValueError, match=r"^m: must be the model that was saved, got function"):
        jaxem.load(tmp_path / "p.npz", program)


def test_the_file_has_arrays_by_name_and_says_where_it_is_from(tmp_path, fitted):
    jaxem.save(tmp_path / "fit.npz", ISO.hold("pi"), fitted[1])
    with np.load(tmp_path / "fit.npz", allow_pickle=False) as stored:
        assert {"theta/pi", "theta/mu", "theta/sigma", "free_energy", "status", "description"} <= set(stored.files)
        said = json.loads(bytes(stored["description"]))
    assert said["model"]["is"] == {"family": "gaussian.isotropic", "held": ["pi"]}
    assert said["versions"]["jaxem"] == jaxem.__version__
    assert {"saved", "columns", "format"} <= set(said)


def test_a_module_of_dicts_is_saved_by_its_paths(tmp_path, fitted):
    fit = fitted[1]._replace(theta={"net": {"layer": {"w": cast(np.ones((2, 3)))}}, "b": cast(1.0)})
    m = jaxem.from_numpyro(program)
    jaxem.save(tmp_path / "fit.npz", m, fit)
    same(jaxem.load(tmp_path / "fit.npz", m)[1], fit)
    with pytest.raises(ValueError, match=r"^fit: θ\['b'\] is a list"):
        jaxem.save(tmp_path / "fit.npz", m, fit._replace(theta={"b": [1.0]}))


def test_what_is_no_such_file_is_said(tmp_path, fitted):
    with pytest.raises(ValueError, match=r"^path: there is no .*absent"):
        jaxem.load(tmp_path / "absent.npz")
    jaxem.save(tmp_path / "fit.npz", ISO, fitted[1])
    whole = (tmp_path / "fit.npz").read_bytes()
    np.savez(tmp_path / "other.npz", a=1)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"a": 1}))
    for name in ("other", "text", "half", "pickle"):
        with pytest.raises(ValueError, match=r"^path: .* is no file of jaxem.save, or only a part of one"):
            jaxem.load(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match=r"^path: must be the path of a file"):
        jaxem.save(3, ISO, fitted[1])
    with pytest.raises(ValueError, match=r"^path: .* must be a file in a folder that exists"):
        jaxem.save(tmp_path / "no" / "fit.npz", ISO, fitted[1])
    with pytest.raises(ValueError, match=r"^fit: must be a Fit"):
        jaxem.save(tmp_path / "fit.npz", ISO, fitted[1].theta)
    assert (tmp_path / "fit.npz").read_bytes() == whole
