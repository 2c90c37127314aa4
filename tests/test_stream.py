"""Batches: the same fit, however the rows come; and stepwise EM."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import jaxem
from jaxem import Status
from jaxem._fit import batches as _batches
from jaxem.families import gaussian

from cases import CASES, EPS, FLOAT, KINDS, cast, tolerance

CASE = CASES[0]
M, THETA = CASE.m, CASE.theta()
SIZES = (9, 31, 1, 19)  # of 60 rows
rounding = tolerance(1e-11, 2e-5)  # of sums that are added in another order, over a few steps
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_kind = pytest.mark.parametrize("case", KINDS, ids=lambda case: case.name)


def split(x, sizes=SIZES):
    """The rows in batches of these sizes."""
    assert sum(sizes) == len(x)
    return np.split(np.asarray(x), np.cumsum(sizes)[:-1])


def same(a, b, tol):
    jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=tol, atol=tol), a, b)


def same_fit(fit, other, tol=rounding):
    same(fit.theta, other.theta, tol)
    same(fit.free_energy, other.free_energy, tol)
    scale = abs(float(other.free_energy))
    assert abs(float(fit.gain - other.gain)) <= tol * scale or float(fit.gain) == float(other.gain)
    assert (int(fit.num_steps), int(fit.status)) == (int(other.num_steps), int(other.status))


def to_the_bit(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# ---- em, to rounding


@each_case
def test_a_stream_of_uneven_weighted_batches_is_em(case):
    """At T = 1, in between, and at T = 0."""
    x, weights = case.x(), np.random.default_rng(0).uniform(0, 2, 60)
    pairs = list(zip(split(x), split(weights), strict=True))
    for temperature in (1.0, 0.5, 0.0):
        fit = jaxem.em_stream(case.m, case.theta(), lambda: iter(pairs), temperature=temperature, max_steps=3, tol=0)
        em = jaxem.em(case.m, case.theta(), x, weights=weights, temperature=temperature, max_steps=3, tol=0)
        same_fit(fit, em)


@each_kind
def test_a_stream_converges_where_em_does(case):
    """The same number of steps; without weights."""
    tol = tolerance(1e-6, 1e-4)
    fit = jaxem.em_stream(case.m, case.theta(), lambda: split(case.x()), tol=tol)
    em = jaxem.em(case.m, case.theta(), case.x(), weights=np.ones(60), tol=tol)
    assert int(fit.status) == Status.CONVERGED
    assert abs(float(fit.free_energy - em.free_energy)) <= 2 * 60 * tol
    if np.float64 == FLOAT:
        assert int(fit.num_steps) == int(em.num_steps)


def test_batches_of_many_chunks_are_em():
    """So large that the E-step is two matrix products a chunk."""
    x = cast(np.random.default_rng(0).normal(size=(40_000, 2)) + 4 * (np.arange(40_000) % 3)[:, None])
    start = jaxem.inits.from_labels(gaussian.full, x, np.arange(40_000) % 5 // 2)
    fit = jaxem.em_stream(gaussian.full, start, lambda: split(x, (12_000, 28_000)), max_steps=2, tol=0)
    # the statistics expand a square whose terms are LIMIT = 256 times their difference at most
    same_fit(fit, jaxem.em(gaussian.full, start, x, max_steps=2, tol=0), tolerance(1e-10, 2e-4))


def far_and_tight():
    """float32 at 1e4, where neighbours are 1e-3 apart; clusters of 0.05 with centres 1,000 apart."""
    rng = np.random.default_rng(0)
    z = rng.integers(0, 3, 600)
    return (1e4 + 1000 * np.eye(3)[z][:, :2] + 0.05 * rng.normal(size=(600, 2))).astype(np.float32), z


@pytest.mark.parametrize("m", [gaussian.diagonal, gaussian.full], ids=["diagonal", "full"])
def test_a_pass_about_the_new_means_runs_where_sums_about_the_old_lost_their_digits(m):
    x, z = far_and_tight()
    centres = np.stack([x[z == k][0] for k in range(3)]) + np.float32([[400, 0], [0, -400], [-400, 0]])
    start = m.guess(jnp.asarray(centres), jnp.asarray(x))
    passes = []
    batches = lambda: passes.append(1) or iter(split(x, (100, 350, 150)))  # noqa: E731
    fit = jaxem.em_stream(m, start, batches, temperature=0.0, max_steps=1, tol=0)
    assert len(passes) == 1 + 2  # the step took two
    same_fit(fit, jaxem.em(m, start, x, temperature=0.0, max_steps=1, tol=0), 1e-4)

    def covariance(fit):
        scale = np.asarray(fit.theta.get("Sigma", fit.theta.get("sigma")), float)
        return scale if scale.ndim == 3 else scale[:, :, None] ** 2 * np.eye(2)

    shape = 1 if m is gaussian.full else np.eye(2)
    truth = np.stack([np.cov(x[z == k].astype(float).T, bias=True) * shape for k in range(3)])
    assert np.abs(covariance(fit) - truth).max() < 1e-3 * truth.max()
    alone = jaxem.em_stream(
        m.but(recentre=None),
        start,
        lambda: split(x, (600,)),
        temperature=0.0,
        max_steps=1,
    )
    assert not np.abs(covariance(alone) - truth).max() < 1e-2 * truth.max()  # so the test has teeth


def test_sums_of_many_batches_keep_their_digits():
    """Kahan: 1,000 batches in float32 move F by an ulp or two, and not by the ulps of 1,000 additions."""
    x = np.random.default_rng(0).normal(size=(1000, 1)).astype(np.float32)
    theta = {"pi": [1.0], "mu": [[0.1]], "sigma": 1.0}
    exact = np.sum(-((x.astype(float) - np.float32(0.1)) ** 2) / 2 - np.log(2 * np.pi) / 2)
    fit = jaxem.em_stream(M, theta, lambda: x, max_steps=0)
    assert abs(float(fit.free_energy) - exact) <= 2 * np.finfo(np.float32).eps * abs(exact)


def test_a_stream_of_rows_on_several_devices_is_em():
    devices = jax.devices("cpu")[:2]
    if len(devices) < 2:
        pytest.skip("one CPU device")
    mesh = Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,))
    fit = jaxem.em_stream(M, THETA, lambda: split(CASE.x()), mesh=mesh, max_steps=3, tol=0)
    assert set(fit.theta["mu"].devices()) == set(devices)
    same_fit(fit, jaxem.em(M, THETA, CASE.x(), weights=np.ones(60), max_steps=3, tol=0))
    online = jaxem.em_online(M, THETA, lambda: split(CASE.x()), mesh=mesh, warm_up=0)
    same(online, jaxem.em_online(M, THETA, lambda: split(CASE.x()), warm_up=0), rounding)


def test_a_stream_ends_as_em_does():
    """A collapse, a fall, no step at all."""
    x, collapsing = np.zeros((5, 2), FLOAT), {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [1.0, 1.0]], "sigma": 1.0}
    fit = jaxem.em_stream(M, collapsing, lambda: split(x, (2, 3)))
    assert int(fit.status) == Status.NONFINITE
    same_fit(fit, jaxem.em(M, collapsing, x))
    assert np.isfinite(fit.free_energy)
    bad = dataclasses.replace(M, update=lambda s, theta, held: theta | {"mu": theta["mu"] + 100})
    fit = jaxem.em_stream(bad, THETA, lambda: split(CASE.x()))
    assert int(fit.status) == Status.DECREASED
    to_the_bit(fit.theta, THETA)
    fit = jaxem.em_stream(M, THETA, lambda: split(CASE.x()), max_steps=0)
    assert (int(fit.status), int(fit.num_steps), float(fit.gain)) == (Status.MAX_STEPS, 0, np.inf)
    to_the_bit(fit.theta, THETA)


def test_two_fits_of_the_same_shapes_are_one_compilation():
    traces = []
    m = dataclasses.replace(M, kernel=lambda theta, x: traces.append(1) or M.kernel(theta, x))
    jaxem.em_stream(m, THETA, lambda: split(CASE.x(), (20, 20, 20)), max_steps=3)
    jaxem.em_online(m, THETA, lambda: split(CASE.x(), (20, 20, 20)), warm_up=1)
    assert len(traces) == 3  # shapes, an E-step, a step of stepwise EM
    theta = THETA | {"sigma": cast(0.7)}
    jaxem.em_stream(m, theta, lambda: split(CASE.x(1), (20, 20, 20)), temperature=0.3, tol=1e-3, max_steps=5)
    jaxem.em_stream(m, theta, lambda: split(CASE.x(1), (20, 20, 15, 5)), max_steps=2)
    jaxem.em_online(m, theta, lambda: split(CASE.x(1), (20, 20, 20)), warm_up=0, exponent=0.9)
    assert len(traces) == 3


# ---- where rows may come from


def test_rows_come_from_files_buffers_lists_and_other_arrays(tmp_path):
    # numbers that float32 has too, so that every source has the same
    x, weights = np.asarray(CASE.x(), float), np.random.default_rng(0).integers(1, 9, 60) / 4
    pairs = list(zip(split(x), split(weights), strict=True))
    fit = jaxem.em_stream(M, THETA, lambda: iter(pairs), max_steps=3, tol=0)
    assert fit.theta["mu"].dtype == FLOAT  # also for float64 without x64

    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

    def aligned(*shape):
        """Memory that JAX may use as it lies."""
        room = np.zeros(8 * int(np.prod(shape)) + 64, np.uint8)
        return room[-room.ctypes.data % 64 :][: 8 * int(np.prod(shape))].view(float).reshape(shape)

    def one_buffer():
        buffer, weight = aligned(31, 2), aligned(31)
        for a, b in pairs:
            buffer[: len(a)], weight[: len(b)] = a, b
            yield buffer[: len(a)], weight[: len(b)]
            buffer[:], weight[:] = np.nan, 7.0

    def read_only_views():
        for buffer, weight in one_buffer():
            view = buffer.view()
            view.flags.writeable = False  # its owner may write all the same
            yield view, weight

    class Tensor:
        """What a library of tensors offers."""

        def __init__(self, values):
            self.values = values

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.values, dtype)

    edges = np.cumsum((0, *SIZES))
    sources = {
        "mapped": lambda: ((mapped[a:b], weights[a:b]) for a, b in itertools.pairwise(edges)),
        "one buffer": one_buffer,
        "read-only views": read_only_views,
        "lists": lambda: [(a.tolist(), b.tolist()) for a, b in pairs],
        "strided": lambda: ((np.repeat(a, 2, axis=1)[:, ::2], b) for a, b in pairs),
        "tensors": lambda: ((Tensor(a), Tensor(b)) for a, b in pairs),
        "JAX's": lambda: ((cast(a), jnp.asarray(b)) for a, b in pairs),
    }
    for name, batches in sources.items():
        again = jaxem.em_stream(M, THETA, batches, max_steps=3, tol=0, prefetch=4)
        jax.tree.map(lambda u, v, name=name: np.testing.assert_array_equal(u, v, name), again, fit)


def test_rows_that_nobody_can_write_are_not_copied(tmp_path):
    """A file mapped for reading, JAX's arrays, bytes; not a mapping for writing, nor an array merely marked."""
    x = np.asarray(CASE.x()).astype(FLOAT)
    np.save(tmp_path / "x.npy", x)
    marked = x.copy()
    marked.flags.writeable = False
    mapped = [np.load(tmp_path / "x.npy", mmap_mode=mode)[:30] for mode in ("r", "c", "r+")]
    as_bytes = np.frombuffer(x.tobytes(), FLOAT).reshape(x.shape)
    read_only_view = np.frombuffer(bytearray(x.tobytes()), FLOAT).reshape(x.shape)[:]
    read_only_view.flags.writeable = False
    for source, kept in (
        (mapped[0], True),
        (np.asarray(jnp.asarray(x)), True),
        (as_bytes, True),
        (mapped[1], False),
        (mapped[2], False),
        (read_only_view, False),
        (marked, False),
        (as_bytes[:, ::-1], False),
    ):
        reader = _batches.Reader(M, THETA, lambda source=source: [source], 1.0, None, 1)
        assert np.shares_memory(reader.checked(source, 0).x, source) == kept
    smaller = reader.checked(mapped[0][:20], 0)  # filled up
    assert len(smaller.x) == 60
    assert not smaller.weights[20:].any()


def test_one_dimensional_batches_are_one_column():
    x, theta = np.asarray(CASE.x(D=1)), CASE.theta(D=1)
    fits = [jaxem.em_stream(M, theta, lambda x=x: split(x), max_steps=3) for x in (x, x[:, 0])]
    to_the_bit(*fits)
    same_fit(fits[0], jaxem.em(M, theta, x[:, 0], weights=np.ones(60), max_steps=3))
    weighted = jaxem.em_stream(M, theta, lambda: ((part[:, 0], np.ones(len(part))) for part in split(x)), max_steps=3)
    to_the_bit(weighted, fits[0])


def test_rows_of_weight_zero_count_for_nothing():
    x = np.asarray(CASE.x())
    pairs = [(split(x)[0], np.zeros(9)), *((part, np.ones(len(part))) for part in split(x)[1:])]
    fit = jaxem.em_stream(M, THETA, lambda: pairs, max_steps=3, tol=0)
    same_fit(fit, jaxem.em(M, THETA, x[9:], weights=np.ones(51), max_steps=3, tol=0))
    online = jaxem.em_online(M, THETA, lambda: pairs, warm_up=0)
    assert (online.num_batches, online.num_rows) == (3, 60)
    to_the_bit(online[:3], jaxem.em_online(M, THETA, lambda: split(x)[1:], warm_up=0)[:3])


def test_the_callers_jax_settings_hold():
    """They belong to a thread: precision, and the device on which arrays are made."""
    wide, x = np.float64 != FLOAT, np.random.default_rng(0).normal(size=(60, 2))
    theta = jax.tree.map(np.asarray, THETA)
    with jax.enable_x64(wide):
        fit = jaxem.em_stream(M, theta, lambda: split(x), max_steps=1)
        assert fit.theta["mu"].dtype == (np.float64 if wide else np.float32)
        em = jaxem.em(M, theta, x, weights=np.ones(60), max_steps=1)
        same(fit.free_energy, em.free_energy, 1e-14 if wide else 1e-6)
    device = jax.devices("cpu")[-1]
    with jax.default_device(device):
        fit = jaxem.em_stream(M, theta, lambda: split(x), max_steps=1)
        assert fit.theta["mu"].devices() == {device}


# ---- stepwise EM (eq:stepwise)


@each_kind
def test_one_batch_of_everything_is_one_step_of_em(case):
    fit = jaxem.em_online(case.m, case.theta(), lambda: [case.x()], warm_up=0)
    em = jaxem.em(case.m, case.theta(), case.x(), max_steps=1, tol=0)
    same(fit.theta, em.theta, rounding)
    start = jaxem.em(case.m, case.theta(), case.x(), max_steps=0)
    assert float(fit.predictive) * 60 == pytest.approx(float(start.free_energy), rel=64 * EPS)
    assert (fit.num_batches, fit.num_rows) == (1, 60)


def test_a_warm_up_of_all_but_one_equal_batch_is_one_step_of_em():
    """With η_t = 1/t the statistics are the mean of all batches at the same θ."""
    fit = jaxem.em_online(M, THETA, lambda: split(CASE.x(), (12,) * 5), warm_up=4, exponent=1.0)
    same(fit.theta, jaxem.em(M, THETA, CASE.x(), max_steps=1, tol=0).theta, rounding)


def test_single_rows_at_temperature_zero_are_macqueens_kmeans():
    """MacQueen 1967: a row joins the nearest centre, which moves to the mean of its rows."""
    x, m = np.asarray(CASE.x(), float), M.hold("pi", "sigma")
    centres, members = np.asarray(x[:3]).copy(), [[], [], []]
    for row in x:
        k = int(np.argmin(((row - centres) ** 2).sum(1)))
        members[k].append(row)
        centres[k] = np.mean(members[k], axis=0)
    theta = {"pi": np.full(3, 1 / 3), "mu": x[:3], "sigma": 1.0}
    fit = jaxem.em_online(m, theta, lambda: x.reshape(60, 1, 2), temperature=0.0, exponent=1.0, warm_up=0)
    same(fit.theta["mu"], centres, tolerance(1e-11, 1e-5))
    assert (fit.num_batches, fit.num_rows) == (60, 60)


def test_stepwise_em_is_cappe_and_moulines():
    """Raw moments of two components in one dimension, by NumPy; uneven batches, weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=300) + 3 * rng.integers(0, 2, 300)
    weights = rng.uniform(0.1, 2, 300)
    sizes, exponent, warm_up = (40, 70, 10, 90, 60, 30), 0.7, 2
    pi, mu, sigma = np.array([0.4, 0.6]), np.array([-0.5, 2.5]), np.array([1.0, 1.5])
    theta = {"pi": pi, "mu": mu[:, None], "sigma": sigma}
    pairs = list(zip(split(x, sizes), split(weights, sizes), strict=True))
    s, total = 0, 0.0
    for t, (batch, w) in enumerate(pairs, start=1):
        joint = pi * np.exp(-((batch[:, None] - mu) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)
        total += w @ np.log(joint.sum(axis=1))
        gamma = joint / joint.sum(axis=1, keepdims=True) * (w / w.sum())[:, None]
        mean = np.stack([gamma.sum(0), batch @ gamma, batch**2 @ gamma])
        s = s + t**-exponent * (mean - s)  # eq:stepwise
        if t > warm_up:
            pi, mu, sigma = s[0], s[1] / s[0], np.sqrt(s[2] / s[0] - (s[1] / s[0]) ** 2)
    fit = jaxem.em_online(
        gaussian.spherical, cast(theta), lambda: cast_pairs(pairs), exponent=exponent, warm_up=warm_up
    )
    tol = tolerance(1e-11, 1e-4)
    same(fit.theta, {"pi": pi, "mu": mu[:, None], "sigma": sigma}, tol)
    assert float(fit.predictive) == pytest.approx(total / weights.sum(), rel=tol)


def cast_pairs(pairs):
    return [(part.astype(FLOAT), w) for part, w in pairs]


def test_predictive_is_the_mean_log_likelihood_of_batches_not_yet_seen():
    parts = split(CASE.x())
    fits = [jaxem.em_online(M, THETA, lambda t=t: parts[:t], warm_up=0) for t in range(1, 5)]
    seen = [THETA, *(fit.theta for fit in fits)]
    before = [float(jaxem.log_likelihood(M, theta, part)) for theta, part in zip(seen[:4], parts, strict=True)]
    for t, fit in enumerate(fits, start=1):
        assert float(fit.predictive) == pytest.approx(sum(before[:t]) / sum(SIZES[:t]), rel=tolerance(1e-11, 1e-5))


def test_one_pass_over_many_rows_comes_within_a_thousandth_nat_a_row_of_em():
    """500 batches; with p = 19 parameters and statistics that remember some 2·500^0.6 of them, p/2n is 6e-4."""
    rng = np.random.default_rng(0)
    centres = 5 * rng.normal(size=(4, 2))
    x = (rng.normal(size=(100_000, 2)) + centres[rng.integers(0, 4, 100_000)]).astype(FLOAT)
    start = gaussian.diagonal.guess(cast(centres + rng.normal(size=(4, 2))), jnp.asarray(x[:1000]))
    online = jaxem.em_online(gaussian.diagonal, start, lambda: x.reshape(500, 200, 2))
    L, best, first = (
        float(jaxem.em(gaussian.diagonal, theta, x, tol=1e-5, max_steps=steps).free_energy) / len(x)
        for theta, steps in ((online.theta, 0), (start, 100), (start, 0))
    )
    assert first + 0.5 < best
    assert best - 1e-3 < L < best + 1e-5


def test_batches_begin_where_xla_takes_them_as_they_lie():
    for shape in [(7, 3), (1,), (64, 16)]:
        for dtype in (np.float32, np.float64):
            array = _batches.aligned(shape, np.dtype(dtype))
            assert array.shape == shape
            assert array.dtype == dtype
            assert array.ctypes.data % 64 == 0
            array[:] = 1


def test_weights_of_one_and_no_weights_are_the_same_to_the_bit():
    """Batches without weights share theirs, but for those that are filled up."""
    x = np.asarray(CASE.x(N=60))
    for sizes in [(20, 20, 20), (20, 25, 15), (9, 31, 1, 19)]:
        parts = split(x, sizes)
        without = jaxem.em_stream(M, THETA, lambda parts=parts: parts, max_steps=2)
        ones = jaxem.em_stream(
            M, THETA, lambda parts=parts: [(part, np.ones(len(part))) for part in parts], max_steps=2
        )
        to_the_bit(without, ones)
