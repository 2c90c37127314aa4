"""The kernel for NVIDIA GPUs: its sums are those of NumPy, whatever the sizes; a fit by it is the fit by chunks.

Without a GPU Pallas interprets the kernel, and that Triton takes it is asked of the lowering.
"""

import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from scipy.special import logsumexp, softmax

import jaxem
from jaxem._rows import chunks, gpu
from jaxem.families import gaussian

from conftest import AS_A_USER

pytestmark = pytest.mark.takes_turns("*")

EPS32 = float(np.finfo(np.float32).eps)
INTERPRET = jax.default_backend() != "gpu"
sizes = pytest.mark.parametrize(
    ("N", "D", "K"), [(1, 1, 1), (700, 5, 7), (3_001, 33, 20), (128, 16, 16), (9_000, 2, 200)]
)
temperatures = pytest.mark.parametrize(("temperature", "hard"), [(0.0, True), (0.0, False), (0.6, False)])


def problem(N, D, K, *, squares, weighted):
    """ℓ at K of the rows or anywhere, the rows, and their weights, some of them 0; float32."""
    rng = np.random.default_rng(N)
    x = rng.normal(size=(N, D)) + 3
    slope, height = rng.normal(size=(2, K, D)), rng.normal(size=K)
    ell = gpu.Quadratic(
        c=x.mean(axis=0),
        squares=-(height[:, None] ** 2) * np.abs(slope[0]) if squares else None,
        slope=slope[1],
        intercept=height,
        common=np.array([0.3, 0.0 if squares else -0.25]),
    )
    w = np.where(rng.random(N) < 0.1, 0, rng.random(N)) if weighted else None
    return jax.tree.map(jnp.float32, (ell, x, w))


def by_numpy(ell, x, w, temperature):
    """The same sums in float64, and a bound of the float32 rounding of F, Σ|w| max|ℓ|."""
    ell, x, w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (ell, x, w))
    x = x - ell.c
    w = np.ones(len(x)) if w is None else w
    table = x @ ell.slope.T + ell.intercept + (0 if ell.squares is None else x**2 @ ell.squares.T)
    norms = (x**2).sum(axis=1)
    if temperature:
        gamma, value = softmax(table / temperature, axis=1), temperature * logsumexp(table / temperature, axis=1)
    else:
        gamma, value = np.eye(len(ell.intercept))[table.argmax(axis=1)], table.max(axis=1)
    gamma, value = gamma * w[:, None], w * (value + ell.common[0] + ell.common[1] * norms)
    squares = None if ell.squares is None else gamma.T @ x**2
    sums = gpu.KernelSums(gamma.sum(0), gamma.T @ x, squares, w @ norms, value.sum(), np.abs(value).sum())
    return sums, np.abs(gamma).T @ np.abs(x), w @ np.abs(table).max(axis=1)


@sizes
@temperatures
@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_its_sums_are_those_of_numpy(N, D, K, temperature, hard, squares, weighted):
    """γ is as exact as ℓ, whose rounding is that of a sum of D terms; no row is counted twice or lost."""
    ell, x, w = problem(N, D, K, squares=squares, weighted=weighted)
    exact, magnitude, rounding = by_numpy(ell, x, w, temperature)
    for f in (partial(gpu.sums, interpret=INTERPRET), gpu.by_chunks):
        found = f(ell, x, w, jnp.float32(temperature), hard=hard)
        total = N if w is None else float(jnp.sum(w))
        assert abs(float(jnp.sum(found.N_k)) - total) <= 16 * EPS32 * total
        slack = 32 * EPS32 * max(D, 8) * (1 / temperature if temperature else 1)
        assert np.allclose(found.N_k, exact.N_k, rtol=slack, atol=slack)
        assert np.all(np.abs(found.x - exact.x) <= slack * (magnitude + 1))
        assert (
            found.squares is None if not squares else np.allclose(found.squares, exact.squares, rtol=slack, atol=slack)
        )
        assert np.isclose(found.norms, exact.norms, rtol=16 * EPS32)
        assert abs(found.free_energy - exact.free_energy) <= 4 * EPS32 * (rounding + exact.scale) + EPS32
        assert np.isclose(found.scale, exact.scale, rtol=1e-4)


@pytest.mark.parametrize("squares", [False, True])
def test_its_derivatives_are_those_of_the_sums(squares):
    """Forward and reverse, in θ, x and T; γ's own included."""
    ell, x, w = problem(700, 5, 7, squares=squares, weighted=True)
    direction = jax.tree.map(
        lambda leaf: jnp.sin(jnp.arange(leaf.size, dtype=jnp.float32)).reshape(leaf.shape), (ell, x)
    )

    def one_number(ell, x, temperature, f):
        return sum(jnp.vdot(jnp.cos(leaf), leaf) for leaf in jax.tree.leaves(f(ell, x, w, temperature)))

    def kernel(ell, x, w, temperature):
        return gpu.sums(ell, x, w, temperature, False, INTERPRET)

    def plain(ell, x, w, temperature):
        return gpu.by_chunks(ell, x, w, temperature, False)

    at, along = (ell, x, jnp.float32(0.7)), (*direction, jnp.float32(1))
    tangents = [jax.jvp(partial(one_number, f=f), at, along)[1] for f in (kernel, plain)]
    assert np.isclose(*tangents, rtol=1e-6)
    gradients = [jax.grad(partial(one_number, f=f), argnums=(0, 1, 2))(*at) for f in (kernel, plain)]
    assert any(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(gradients[0]))
    for got, expected in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_under_vmap_every_lane_is_its_own():
    ell, x, w = problem(700, 5, 7, squares=True, weighted=True)
    slopes = jnp.stack([ell.slope, 2 * ell.slope, -ell.slope])

    def at(slope):
        return gpu.sums(ell._replace(slope=slope), x, w, jnp.float32(1), False, INTERPRET)

    together = jax.vmap(at)(slopes)
    for lane, slope in enumerate(slopes):
        for got, expected in zip(jax.tree.leaves(together), jax.tree.leaves(at(slope)), strict=True):
            assert np.allclose(got[lane], expected, rtol=1e-5)


@sizes
@temperatures
@pytest.mark.parametrize("lanes", [0, 3])
def test_triton_takes_it(N, D, K, temperature, hard, lanes):
    ell, x, w = problem(N, D, K, squares=True, weighted=True)

    def f(slope):
        return gpu.sums(ell._replace(slope=slope), x, w, jnp.float32(temperature), hard, False)

    slope = jnp.stack([ell.slope] * lanes) if lanes else ell.slope
    lowered = jax.jit(jax.vmap(f) if lanes else f).trace(slope).lower(lowering_platforms=("cuda",))
    assert "triton" in lowered.as_text()


def test_it_is_for_what_fits_in_registers():
    ell, _, _ = problem(300, 32, 64, squares=True, weighted=False)
    assert gpu.fits(ell)
    assert gpu.fits(problem(300, 32, 128, squares=False, weighted=False)[0])
    assert not gpu.fits(problem(300, 32, 128, squares=True, weighted=False)[0])
    assert not gpu.fits(jax.tree.map(lambda leaf: leaf.astype(jnp.float16), ell))


# ---- in a fit


def rows(offset=0.0):
    """20,011 rows of 16 clusters; the first of them as starts. More than one chunk."""
    rng = np.random.default_rng(0)
    mu = offset + 5 * rng.normal(size=(16, 3))
    return (mu[rng.integers(16, size=20_011)] + rng.normal(size=(20_011, 3))).astype(np.float32)


SCALES = {"isotropic": (), "spherical": (16,), "diagonal": (16, 3)}


def start(name, x):
    return {
        "pi": np.full(16, 1 / 16, np.float32),
        "mu": x[:16],
        "sigma": np.full(SCALES[name], 2, np.float32),
    }


def both_ways(monkeypatch, fit):
    """fit() by chunks and by the kernel, which was used."""
    seen = []
    kernel = gpu.kernel
    monkeypatch.setattr(gpu, "kernel", lambda *args, **options: (seen.append(1), kernel(*args, **options))[1])
    found = []
    for interpret in (False, True):
        monkeypatch.setattr(gpu, "INTERPRET", interpret)
        jax.clear_caches()
        assert not seen
        found.append(fit())
    jax.clear_caches()
    assert seen
    return found


@pytest.mark.skipif(not INTERPRET, reason="there it is used by itself")
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("how", ["plain", "weights", "mesh", "held"])
def test_a_fit_by_it_is_the_fit_by_chunks(monkeypatch, name, temperature, how):
    x = rows(offset=20.0)
    m = getattr(gaussian, name)
    m = m.hold("pi", "sigma") if how == "held" else m
    weights = np.random.default_rng(1).random(len(x)).astype(np.float32) if how == "weights" else None
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("rows",)) if how == "mesh" else None
    options = {"weights": weights, "mesh": mesh, "temperature": temperature, "tol": 0.0, "max_steps": 4}
    by_chunks, by_kernel = both_ways(monkeypatch, lambda: jaxem.em(m, start(name, x), x, **options))
    assert by_kernel.num_steps == by_chunks.num_steps
    assert np.isclose(by_kernel.free_energy, by_chunks.free_energy, rtol=32 * EPS32)
    slack = 1e-4 if temperature else 0.02  # at T = 0 the winner of a row may differ where two all but tie
    for key, value in by_chunks.theta.items():
        assert np.allclose(by_kernel.theta[key], value, rtol=slack, atol=slack)


@pytest.mark.skipif(not INTERPRET, reason="there it is used by itself")
def test_kmeans_by_it_is_kmeans(monkeypatch):
    x = rows()
    by_chunks, by_kernel = both_ways(monkeypatch, lambda: jaxem.check(jaxem.kmeans(x, x[:16])))
    assert by_kernel.num_steps == by_chunks.num_steps
    assert np.allclose(by_kernel.theta["mu"], by_chunks.theta["mu"], atol=1e-5)
    assert np.isclose(jaxem.distortion(x, by_kernel.theta["mu"]), jaxem.distortion(x, by_chunks.theta["mu"]), rtol=1e-6)


@pytest.mark.skipif(not INTERPRET, reason="there it is what runs")
@pytest.mark.parametrize("name", ["kmeans", "full"])
def test_by_the_chunks_of_a_gpu_a_fit_is_the_same(monkeypatch, name):
    """Other lengths of chunks, and sums by products where a CPU adds row by row."""
    x = rows()

    def fit():
        if name == "kmeans":
            return jaxem.kmeans(x, x[:16], max_steps=3)
        start = {"pi": np.full(16, 1 / 16), "mu": x[:16], "Sigma": np.tile(4 * np.eye(3), (16, 1, 1))}
        return jaxem.em(gaussian.full, start, x, max_steps=3)

    here, cpu = fit(), chunks.chunk_rows(len(x), 16, 4)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(chunks, "ACCELERATOR", 4)
    assert cpu < chunks.chunk_rows(len(x), 16, 4) < len(x)
    jax.clear_caches()
    there = fit()
    jax.clear_caches()
    assert np.isclose(there.free_energy, here.free_energy, rtol=32 * EPS32)
    assert np.allclose(there.theta["mu"], here.theta["mu"], atol=1e-4)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("where", ["slope", "intercept", "x"])
def test_a_nan_is_seen(hard, where):
    """Triton's maximum passes over it."""
    ell, x, w = problem(300, 3, 5, squares=False, weighted=False)
    x = x.at[7, 1].set(jnp.nan) if where == "x" else x
    ell = ell if where == "x" else ell._replace(**{where: getattr(ell, where).at[2].set(jnp.nan)})
    found = gpu.sums(ell, x, w, jnp.float32(not hard), hard, INTERPRET)
    assert jnp.isnan(found.free_energy)


@pytest.mark.parametrize("there", [True, False])
def test_without_triton_a_gpu_goes_by_chunks(monkeypatch, there):
    assert gpu.has_triton()
    monkeypatch.setattr(gpu, "has_triton", lambda: there)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    seen = set()

    def way(name):
        seen.add(name)
        return jnp.zeros(())

    jax.make_jaxpr(lambda: gpu.where_it_runs(lambda interpret: way("kernel"), lambda: way("chunks")))()
    assert seen == ({"kernel", "chunks"} if there else {"chunks"})


def test_a_component_of_no_weight_is_no_nan():
    ell, x, w = problem(300, 3, 5, squares=False, weighted=False)
    ell = ell._replace(intercept=ell.intercept.at[2].set(-jnp.inf))
    for temperature in (0.0, 1.0):
        found = gpu.sums(ell, x, w, jnp.float32(temperature), False, INTERPRET)
        assert found.N_k[2] == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_a_cpu_never_imports_pallas():
    code = """
import sys, jax, jaxem
x = jax.random.normal(jax.random.key(0), (20_000, 3))
jaxem.kmeans(x, x[:16], max_steps=1)
sys.exit("jax.experimental.pallas.triton" in sys.modules)
"""
    environment = AS_A_USER | {"JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0
