"""Rows and lanes over several devices: the same sums, to rounding, wherever the rows lie."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import programs
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxem
from jaxem._fit import lanes as _lanes
from jaxem._fit import loop
from jaxem._rows import chunks
from jaxem._rows import devices as _devices
from jaxem.families import gaussian

from cases import CASES, KINDS, cast, tolerance
from conftest import AS_A_USER

pytestmark = pytest.mark.takes_turns("*")

CASE = CASES[0]
M = CASE.m
each_kind = pytest.mark.parametrize("case", KINDS, ids=lambda c: c.name)
loose = tolerance(1e-9, 1e-3)  # as between any two orders of summation: EM contracts it, tens of steps keep some


def mesh_of(*shape, axis_types=AxisType.Auto):
    devices = np.array(jax.devices("cpu")[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, ("a", "b")[: len(shape)], axis_types=(axis_types,) * len(shape))


def same(fit, other):
    for name, value in fit.theta.items():
        assert np.allclose(value, other.theta[name], rtol=loose, atol=loose, equal_nan=True), name
    assert np.allclose(fit.free_energy, other.free_energy, rtol=loose, equal_nan=True)


@each_kind
@pytest.mark.parametrize("num_rows", [60, 61, 9])  # shares that divide, that do not, and some that are empty
def test_a_mesh_does_not_change_the_fit(case, num_rows):
    theta, x = case.theta(), case.x(N=num_rows)
    weights = cast(np.random.default_rng(0).uniform(0, 2, size=num_rows))
    labels = jnp.where(jnp.arange(num_rows) % 7 == 0, 1, -1)
    arguments = {"weights": weights, "labels": labels, "tol": 0.0, "max_steps": 1}
    alone = jaxem.em(case.m, theta, x, **arguments)
    spread = jaxem.em(case.m, theta, x, **arguments, mesh=mesh_of(4))
    assert spread.theta["pi"].sharding.num_devices == 4
    same(spread, alone)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_every_row_counts_once(temperature):
    """F and N_k of one E-step, with shares that overlap, on meshes of one and two axes."""
    x, theta = CASE.x(N=67), CASE.theta()
    whole = jaxem.em(M, theta, x, temperature=temperature, max_steps=1)
    for mesh in [mesh_of(2), mesh_of(3), mesh_of(2, 2)]:
        fit = jaxem.em(M, theta, x, temperature=temperature, max_steps=1, mesh=mesh)
        same(fit, whole)
        assert float(jnp.sum(fit.theta["pi"])) == pytest.approx(1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["isotropic", "diagonal"])
def test_hard_sums_over_many_chunks_count_every_row_as_it_weighs(name, weighted):
    """A step of hard EM against sums over argmax, in chunks and shares that do not divide."""
    rng = np.random.default_rng(0)
    num_rows, num_components = 20_011, 16
    x = 3 * rng.normal(size=(num_components, 2))[rng.integers(num_components, size=num_rows)]
    x = cast(x + rng.normal(size=x.shape))
    weights = cast(rng.integers(0, 4, size=num_rows)) if weighted else None
    m = getattr(gaussian, name).hold("sigma")
    theta = {"pi": cast(np.full(num_components, 1 / num_components)), "mu": x[:num_components]}
    theta["sigma"] = cast(1.0) if name == "isotropic" else jnp.ones_like(theta["mu"])
    winner = np.asarray(m.table(theta, x)).argmax(axis=0)
    w = np.ones(num_rows) if weights is None else np.asarray(weights, float)
    N_k = np.bincount(winner, w)
    means = np.stack([np.bincount(winner, w * np.asarray(x[:, d], float)) for d in range(2)], axis=1) / N_k[:, None]
    for mesh in [None, mesh_of(2), mesh_of(3)]:
        fit = jaxem.em(m, theta, x, weights=weights, temperature=0.0, max_steps=1, mesh=mesh)
        assert np.allclose(fit.theta["pi"], N_k / N_k.sum(), rtol=tolerance(1e-12, 1e-5))
        assert np.allclose(fit.theta["mu"], means, atol=tolerance(1e-12, 1e-5))
        if name == "isotropic" and not weighted:
            lloyd = jaxem.kmeans(x, theta["mu"], max_steps=1, mesh=mesh)
            assert np.allclose(lloyd.theta["mu"], means, atol=tolerance(1e-12, 1e-5))


@pytest.mark.parametrize("num_features", [1, 2, 9])
@pytest.mark.parametrize("at", [0.0, 1e3])
def test_sums_by_winner_are_those_of_one_hot_assignments(num_features, at):
    """Also of rows far from 0, and of rows that weigh nothing."""
    rng = np.random.default_rng(0)
    num_rows, num_components = 200, 7
    theta = {"mu": cast(at + rng.normal(size=(num_components, num_features))), "sigma": cast(1.0)}
    theta["pi"] = cast(np.full(num_components, 1 / num_components))
    x = cast(at + rng.normal(size=(num_rows, num_features)))
    winner = jnp.asarray(rng.integers(num_components, size=num_rows))
    weights = cast(rng.integers(3, size=num_rows).astype(float))
    gamma = jax.nn.one_hot(winner, num_components, axis=0, dtype=x.dtype) * weights[None]
    expected = gaussian.isotropic.statistics(theta, x, gamma)
    for found, wanted in zip(gaussian.isotropic.numerics.by_winner(theta, x, winner, weights), expected, strict=True):
        assert np.allclose(found, wanted, rtol=tolerance(1e-12, 1e-5), atol=tolerance(1e-12, 1e-4))


@pytest.mark.parametrize("mesh", [None, 2])
def test_kmeans_by_differences_is_lloyds(monkeypatch, mesh):
    """Many centres on a line: an expanded square would not tell them apart, so rows are added to the nearest centre's.

    γ is never made: a statistic of it would raise here.
    """

    def never(*arguments):
        raise AssertionError("γ was made")

    rng = np.random.default_rng(0)
    num_components = 60
    x = cast(np.sort(rng.uniform(size=(9_001, 1)) * 1e3, axis=0))
    kmeans = gaussian.isotropic.hold("pi", "sigma")
    m = kmeans.but(hard=True, statistics=never)
    monkeypatch.setattr(gaussian, "isotropic", replace(gaussian.isotropic, statistics=never))
    mu = np.asarray(x[:: len(x) // num_components][:num_components], float)
    theta = {"pi": cast(np.full(num_components, 1 / num_components)), "mu": cast(mu), "sigma": cast(1.0)}
    _, data = jaxem._core.checks.enter(m, theta, x, temperature=0.0)
    spread = _devices.spread_rows(data, mesh and mesh_of(mesh))
    found = m.expect(theta, spread, theta)
    rows = np.asarray(x, float)
    winner = np.argmin((rows - mu.T) ** 2, axis=1)
    assert np.array_equal(found.statistics.N_k, np.bincount(winner, minlength=num_components))
    square = ((rows - mu[winner]) ** 2).sum()
    assert float(found.statistics.spread) == pytest.approx(square, rel=tolerance(1e-12, 1e-5))
    fit = jaxem.kmeans(x, mu, max_steps=1, mesh=mesh and mesh_of(mesh))
    means = np.bincount(winner, rows[:, 0]) / np.bincount(winner)
    assert np.allclose(fit.theta["mu"][:, 0], means, rtol=tolerance(1e-12, 1e-6))


def test_the_stopping_rule_counts_rows_once():
    """W in tol·W is the number of rows, not that of the rows with their overlap."""
    x, theta = CASE.x(N=9), CASE.theta()
    _, data = jaxem._core.checks.enter(M, theta, x)
    assert float(M.rows.size(_devices.spread_rows(data, mesh_of(4)))) == 9
    weights = jnp.arange(9.0).astype(x.dtype)
    weighted = _devices.spread_rows(data._replace(weights=weights), mesh_of(4))
    assert float(M.rows.size(weighted)) == 36


@pytest.mark.parametrize("num_rows", [5, 4099, 20_011])  # fewer than a chunk; shares and chunks that do not divide
def test_norms_are_those_of_every_row(num_rows):
    """About a point amid the rows that weigh, wherever they lie."""
    rng = np.random.default_rng(0)
    x, weights = cast(3 + rng.normal(size=(num_rows, 7))), cast(rng.uniform(size=num_rows))
    x = x.at[::2].add(1e3)
    weights = weights.at[::2].set(0)
    data = jaxem._core.model.Data(x, weights, cast(1.0))
    for mesh in [None, mesh_of(2), mesh_of(2, 2)]:
        spread = _devices.spread_rows(data, mesh)
        c, squares = chunks.norms_of_rows(spread.x, spread.weights, shards=spread.shards)
        assert np.abs(np.asarray(c) - 3).max() < 2
        expected = ((np.asarray(spread.x, float) - np.asarray(c, float)) ** 2).sum(axis=1)
        assert np.allclose(squares, expected, rtol=tolerance(1e-12, 1e-5))


@each_kind
def test_devices_meet_once_a_pass(case):
    """Their sums are added as one array: XLA's CPU devices wait for each other once for each, hosts send as often."""
    theta, data = jaxem._core.checks.enter(case.m, case.theta(), case.x(N=61))
    spread = _devices.spread_rows(data, mesh_of(2))
    program = jax.jit(lambda theta, data: case.m.expect(theta, data)).lower(theta, spread).compile().as_text()
    added = [line for line in program.splitlines() if " all-reduce(" in line]
    assert added
    assert all(re.search(r"= \w+\[\d*\]\S* all-reduce\(", line) for line in added), added


def test_rows_on_cpu_devices_are_not_copied():
    x = jnp.ones((4096, 4), jnp.float32)
    data = _devices.spread_rows(jaxem._core.model.Data(x, None, jnp.float32(1)), mesh_of(2))
    start = x.unsafe_buffer_pointer()
    found = [shard.data.unsafe_buffer_pointer() - start for shard in data.x.addressable_shards]
    assert found == [0, 2048 * 16]


@pytest.mark.parametrize("spec", [("a",), (("a", "b"),), ("b",)])
def test_rows_that_are_sharded_are_used_as_they_lie(spec):
    x, theta, mesh = CASE.x(N=64), CASE.theta(), mesh_of(2, 2)
    lying = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    spread = _devices.spread_rows(jaxem._core.checks.enter(M, theta, lying)[1], _devices.mesh_for(lying, None))
    assert spread.x is lying
    same(jaxem.em(M, theta, lying, max_steps=3), jaxem.em(M, theta, x, max_steps=3))
    other = jaxem.em(M, theta, lying, max_steps=3, mesh=mesh_of(3))  # unless another mesh is asked for
    assert other.free_energy.sharding.num_devices == 3


def test_inside_jit_vmap_and_jvp():
    x, theta, mesh = CASE.x(N=61), CASE.theta(), mesh_of(2)

    def value(sigma, x, mesh=None):
        return jaxem.em(M.hold("sigma"), theta | {"sigma": sigma}, x, mesh=mesh).free_energy

    sigmas = cast(np.linspace(0.5, 2, 3))
    alone = jax.vmap(value, in_axes=(0, None))(sigmas, x)
    assert np.allclose(jax.jit(jax.vmap(lambda s: value(s, x, mesh)))(sigmas), alone, rtol=loose)
    assert np.allclose(jax.jit(lambda x: value(sigmas[1], x, mesh))(x), alone[1], rtol=loose)
    one, other = (
        jax.jvp(lambda s, on=on: value(s, x, on), (sigmas[0],), (jnp.ones_like(sigmas[0]),)) for on in (mesh, None)
    )
    assert np.allclose(one, other, rtol=tolerance(1e-8, 1e-2))


@pytest.mark.parametrize("rows_a_leg", [1, 61, 200])
def test_a_fit_in_legs_is_the_fit_in_one_call(monkeypatch, rows_a_leg):
    """One, one and three steps a leg; stopped before the first, at the end of a leg, within one, and by itself."""
    x, theta, mesh = CASE.x(N=61), CASE.theta(), mesh_of(2)
    for max_steps in (0, 1, 3, 5, 1000):
        monkeypatch.setattr(_devices, "ROWS_A_LEG", 10**9)
        whole = jaxem.em(M, theta, x, tol=1e-3, max_steps=max_steps, mesh=mesh)
        monkeypatch.setattr(_devices, "ROWS_A_LEG", rows_a_leg)
        legs = jaxem.em(M, theta, x, tol=1e-3, max_steps=max_steps, mesh=mesh)
        assert all(np.array_equal(*pair) for pair in zip(jax.tree.leaves(whole), jax.tree.leaves(legs), strict=True))
    assert legs.status == jaxem.Status.CONVERGED
    assert legs.num_steps > 3  # several legs


def test_a_fit_in_legs_ends_where_f_falls_or_is_lost(monkeypatch):
    monkeypatch.setattr(_devices, "ROWS_A_LEG", 1)
    x = CASE.x(N=61)
    exact = M.but(recentre=None, scales=(), rounding=None, sizes_of_terms=None)
    worse = replace(exact, update=lambda moments, theta, held: theta | {"sigma": 2 * theta["sigma"]})
    lost = replace(worse, update=lambda moments, theta, held: theta | {"sigma": jnp.nan * theta["sigma"]})
    theta = jaxem.em(M, CASE.theta(), x).theta
    for m, status in [(worse, jaxem.Status.DECREASED), (lost, jaxem.Status.NONFINITE)]:
        fit = jaxem.em(m, theta, x, mesh=mesh_of(2))
        assert fit.status == status
        assert np.array_equal(fit.theta["sigma"], theta["sigma"])


def check_where_theta_lies(m, theta, x):
    """Here, on the mesh, as that of a fit does and of each leg, and there inside a program."""
    mesh = mesh_of(2)
    alone = jaxem.em(m, theta, x, max_steps=0)
    lying = jax.device_put(theta, NamedSharding(mesh, PartitionSpec()))
    same(jaxem.em(m, lying, x, max_steps=0, mesh=mesh), alone)
    same(jax.jit(lambda theta, x: jaxem.em(m, theta, x, max_steps=0, mesh=mesh))(lying, x), alone)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_theta_that_lies_on_the_mesh(case):
    check_where_theta_lies(case.m, case.theta(), case.x(N=61))


def test_many_covariances_that_lie_on_the_mesh():
    """So many of so many features are whitened in batches."""
    rng = np.random.default_rng(0)
    theta = {"pi": cast(np.full(3, 1 / 3)), "mu": cast(rng.normal(size=(3, 60))), "Sigma": cast([np.eye(60)] * 3)}
    for m in (gaussian.full, jaxem.gradient_m_step(gaussian.full, optax.sgd(1e-3), num_steps=1)):
        check_where_theta_lies(m, theta, cast(rng.normal(size=(65, 60))))


def test_centres_that_lie_on_the_mesh():
    """Those of k-means by differences are gathered."""
    x, mesh = cast(np.random.default_rng(0).normal(size=(61, 2))), mesh_of(2)
    lying = jax.device_put(x[:5], NamedSharding(mesh, PartitionSpec()))
    inside = jax.jit(lambda x, mu: jaxem.kmeans(x, mu, max_steps=3, mesh=mesh))(x, lying)
    same(inside, jaxem.kmeans(x, x[:5], max_steps=3))


def test_kmeans_on_a_mesh():
    x = CASE.x(N=121)
    alone, spread = jaxem.kmeans(x, x[:5]), jaxem.kmeans(x, x[:5], mesh=mesh_of(4))
    assert spread.status == alone.status == jaxem.Status.CONVERGED
    assert np.allclose(spread.theta["mu"], alone.theta["mu"], rtol=loose, atol=loose)


@pytest.mark.parametrize("lanes", [3, 4, 7])
def test_lanes_on_a_mesh(lanes):
    """Fewer lanes than devices: rows are spread; else lanes are, and every lane has its own T."""
    x = CASE.x()
    thetas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(CASE.theta(seed) for seed in range(lanes)))
    temperature = cast(np.linspace(0.5, 1, lanes))
    alone = jaxem.em_batch(M, thetas, x, temperature=temperature, max_steps=20)
    spread = jaxem.em_batch(M, thetas, x, temperature=temperature, max_steps=20, mesh=mesh_of(4))
    assert spread.free_energy.shape == (lanes,)
    same(spread, alone)
    if lanes >= 4:
        assert spread.num_steps.tolist() == alone.num_steps.tolist()  # a lane is computed whole, as it would be alone


@each_kind
@pytest.mark.parametrize("slots", [2, 3, 9])
def test_slots_do_not_change_a_lane(case, slots):
    """Lanes that take turns in slots end as they would alone: θ, F, gain, steps and status, the broken lane too."""
    lanes = 5
    thetas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(case.theta(seed) for seed in range(lanes)))
    data = jaxem._core.checks.enter(case.m, thetas, case.x(), batched=True)[1]
    data = data._replace(temperature=cast([1.0, 0.5, 1.0, 0.0, 0.7]))
    if "sigma" in thetas:
        thetas["sigma"] = thetas["sigma"].at[2].set(jnp.nan)  # ends where it starts
    arguments = (data, cast(1e-6), jnp.asarray(15), loop.gain_is_small)
    alone = _lanes.run_lanes(case.m, thetas, *arguments)
    shared = _lanes.run_lanes(case.m, thetas, *arguments, slots=slots)
    spread = _lanes.run_lanes(case.m, thetas, *arguments, mesh_of(2), slots=slots)
    for other in (shared, spread):
        same(other, alone)
        assert other.status.tolist() == alone.status.tolist()
        assert np.abs(other.num_steps - np.asarray(alone.num_steps)).max() <= tolerance(0, 2)


def test_no_steps_in_slots():
    thetas = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(CASE.theta(seed) for seed in range(3)))
    data = jaxem._core.checks.enter(M, thetas, CASE.x(), batched=True)[1]
    fits = _lanes.run_lanes(M, thetas, data, cast(0.0), jnp.asarray(0), loop.gain_is_small, slots=2)
    assert fits.num_steps.tolist() == [0, 0, 0]
    assert np.isfinite(fits.free_energy).all()
    jax.tree.map(np.testing.assert_array_equal, fits.theta, thetas)


def test_a_gpu_has_room_for_so_many_lanes(monkeypatch):
    """Fewer the more rows each has; a CPU runs one after another."""
    few, many = np.zeros((1_000, 2), np.float32), np.zeros((3 * _lanes.ROWS, 1), np.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert _lanes.slots_here(few) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _lanes.slots_here(few) == _lanes.MANY
    assert _lanes.slots_here((np.float32(0), np.zeros(_lanes.ROWS // 8))) == 8
    assert _lanes.slots_here(many) == 1


def test_a_program_spreads_its_lanes_and_its_rows():
    m, x = jaxem.from_numpyro(programs.mixture), CASE.x()
    theta = m.init(jax.random.key(0), x)
    thetas = {name: jnp.stack([value, value, value]) for name, value in theta.items()}
    thetas["mu"] = thetas["mu"] + cast(np.linspace(0, 1, 3))[:, None, None]
    alone, spread = (jaxem.em_batch(m, thetas, x, max_steps=2, mesh=mesh) for mesh in (None, mesh_of(2)))
    same(spread, alone)
    alone, spread = (jaxem.em(m, theta, x, max_steps=2, mesh=mesh) for mesh in (None, mesh_of(2)))
    same(spread, alone)


def test_what_a_mesh_must_be():
    x, theta = CASE.x(), CASE.theta()
    jaxtyping.config.update("jaxtyping_disable", True)  # a user's call is not type-checked
    try:
        with pytest.raises(ValueError, match=r"mesh: must be a jax\.sharding\.Mesh, got int"):
            jaxem.em(M, theta, x, mesh=2)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    with pytest.raises(ValueError, match="mesh: has Explicit axes"):
        jaxem.em(M, theta, x, mesh=mesh_of(2, axis_types=AxisType.Explicit))
    mesh = mesh_of(2)
    by_feature = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "a")))
    with pytest.raises(ValueError, match="x: is sharded along its features"):
        jaxem.em(M, theta, by_feature)


def test_bad_rows_are_named_on_a_mesh():
    x = CASE.x(N=61).at[42, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=r"x: has NaN or infinity in 1 row\(s\): 42"):
        jaxem.em(M, CASE.theta(), x, mesh=mesh_of(4))


AFTERWARDS = """
import jax
{before}
import jaxem
from jaxem.families import gaussian
jaxem.use_all_cores()
jaxem.use_all_cores()  # once more is no error
import jax.numpy as jnp, os
assert jax.device_count() == len(os.sched_getaffinity(0))
x = jax.random.normal(jax.random.key(0), (1000, 2))
fit = jaxem.em(gaussian.isotropic, jaxem.inits.random_points(gaussian.isotropic, jax.random.key(1), x, 3), x)
assert fit.free_energy.sharding.num_devices == jax.device_count()
assert jaxem.kmeans(x, x[:3]).free_energy.sharding.num_devices == jax.device_count()
committed = jax.device_put(x, jax.devices()[0])
assert jaxem.kmeans(committed, x[:3]).free_energy.sharding.num_devices == 1
assert jax.jit(lambda x: jaxem.kmeans(x, x[:3]))(x).free_energy.sharding.num_devices == 1
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="counts cores as Linux does")
@pytest.mark.parametrize("before", ["", "jax.devices()"])
def test_use_all_cores_before_the_backend_starts_and_after(before):
    done = subprocess.run(
        [sys.executable, "-c", AFTERWARDS.format(before=before)], capture_output=True, text=True, env=AS_A_USER
    )
    if before and len(os.sched_getaffinity(0)) > 1:
        assert "use_all_cores: JAX has already started with 1 CPU device" in done.stderr
        assert "call it before the first JAX computation" in done.stderr
    else:
        assert done.stdout == "done\n", done.stderr


def test_matrices_of_many_components_do_not_wait_for_each_other():
    """So many that jaxlib shares their factorisations out among the threads that all devices wait on."""
    code = """
import jax, jaxem, numpy as np
from jaxem.families import gaussian
jax.config.update("jax_num_cpu_devices", 4)
mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
x = np.random.default_rng(0).normal(size=(2_000, 16))
for K, m in ((64, gaussian.full), (16, gaussian.with_floor(gaussian.full, 0.5))):
    theta = {"pi": np.full(K, 1 / K), "mu": x[:K], "Sigma": np.tile(4 * np.eye(16), (K, 1, 1))}
    fits = [jaxem.em(m, theta, x, max_steps=2, tol=0.0, mesh=where) for where in (None, mesh)]
    assert np.isclose(*(fit.free_energy for fit in fits), rtol=1e-5)
"""
    subprocess.run([sys.executable, "-c", code], env=AS_A_USER | {"JAX_PLATFORMS": "cpu"}, timeout=120, check=True)
