"""What goes wrong with a stream is told with its place, leaves nothing behind, and loses no pass that was saved."""

import _thread
import dataclasses
import errno
import itertools
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from test_stream import CASE, THETA, M, split, to_the_bit

import jaxem
from jaxem import StreamError
from jaxem._fit import batches as _batches
from jaxem._fit import checkpoint, stream
from jaxem._fit import names as _names
from jaxem.families import bernoulli, exponential, gaussian

from cases import CASES, FLOAT

FULL = next(case for case in CASES if case.name == "full")
STEPS = 5


def refuses(match, call, error=ValueError):
    with pytest.raises(error, match=match) as caught:
        call()
    assert not readers()
    return caught.value


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "jaxem-batches"]


# ---- faults


def spoiled(where, value, batch=2):
    """Batches of 15 rows, in the third of them a value at some rows."""
    parts = [np.array(part) for part in split(CASE.x(), (15, 15, 15, 15))]
    parts[batch][where] = value
    return parts


def test_a_nan_is_told_with_its_batch_and_rows():
    for rows, value in (([4, 7], np.nan), ([4, 7], -np.inf)):
        parts = spoiled((rows, 1), value)
        for fit in (jaxem.em_stream, jaxem.em_online):
            refuses(
                r"batches: batch 2 of pass 1 has NaN or infinity in 2 row\(s\): 4, 7; drop or impute",
                lambda fit=fit, parts=parts: fit(M, THETA, lambda: parts),
            )
    passes = iter([split(CASE.x(), (15,) * 4), spoiled((3, 0), np.nan, batch=0)])
    refuses(r"batch 0 of pass 2 has NaN .* 1 row\(s\): 3;", lambda: jaxem.em_stream(M, THETA, lambda: next(passes)))
    spoiled_array = jnp.asarray(spoiled((3, 0), np.nan, batch=0)[0])  # nobody can write to it: it is not copied
    refuses(r"batch 0 of pass 1 has NaN .* 1 row\(s\): 3;", lambda: jaxem.em_stream(M, THETA, lambda: [spoiled_array]))
    if np.float32 == FLOAT:  # infinite once it is float32
        parts = spoiled((1, 1), 1.0)
        parts = [part.astype(float) * (1e39 if i == 3 else 1) for i, part in enumerate(parts)]
        refuses("batch 3 of pass 1 has NaN or infinity", lambda: jaxem.em_stream(M, THETA, lambda: parts))


def test_an_iterator_that_raises_is_told_with_its_batch():
    def breaks_at(batch):
        yield from split(CASE.x())[:batch]
        raise OSError("the disk is gone")

    for fit in (jaxem.em_stream, jaxem.em_online):
        for index in (0, 1, 3):
            error = refuses(
                f"batches: batch {index} of pass 1 could not be read: OSError: the disk is gone",
                lambda fit=fit, index=index: fit(M, THETA, lambda: breaks_at(index)),
                StreamError,
            )
            assert isinstance(error.__cause__, OSError)
    passes = iter([split(CASE.x()), split(CASE.x()), breaks_at(2)])
    refuses("batch 2 of pass 3 could", lambda: jaxem.em_stream(M, THETA, lambda: next(passes)), StreamError)
    passes = iter([split(CASE.x())])
    refuses("batch 0 of pass 2 could", lambda: jaxem.em_stream(M, THETA, lambda: next(passes)), StreamError)
    refuses("batch 0 of pass 1 could.*NoneType", lambda: jaxem.em_stream(M, THETA, lambda: None), StreamError)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_an_iterator_that_would_end_the_program_may(error):
    """And is not waited for for ever."""

    def leaves():
        yield from split(CASE.x())[:2]
        raise error

    refuses(None, lambda: jaxem.em_stream(M, THETA, leaves), error)


def test_batches_that_change_are_told():
    x = [np.asarray(part) for part in split(CASE.x())]
    cases = {
        r"batch 1 of pass 1 has shape \(4, 3\); the first had 2 columns": [x[0], np.zeros((4, 3), x[0].dtype)],
        r"batch 1 of pass 1 has shape \(0, 2\)": [x[0], x[0][:0]],
        r"batch 0 of pass 1 has shape \(0, 2\)": [x[0][:0], x[0]],
        r"batch 1 of pass 1 has shape \(9, 2, 1\)": [x[0], x[0][:, :, None]],
        "batch 2 of pass 1 is no array of rows of numbers: it must be numeric, got None": [x[0], x[1], None, x[3]],
        r"batch 0 of pass 1 has shape \(\)": [np.float32(3)],
        "batch 1 of pass 1 has dtype float16, the first had": [x[0], x[0].astype(np.float16)],
        "batch 1 of pass 1 is no array of rows": [x[0], [[1.0, 2.0], [3.0]]],
        "batch 0 of pass 1 is no array of rows": [(x[0], np.ones(9), 3)],
        r"batch 1 of pass 1 has weights of shape \(4,\); they must be 9 finite": [x[0], (x[0], np.ones(4))],
        "batch 0 of pass 1 has weights": [(x[0], -np.ones(9))],
        "batch 1 of pass 1 has weights": [x[0], (x[0], np.full(9, np.nan))],
        "batch 0 of pass 1 is no array of rows of numbers: it must be numeric, got dtype": [np.array([["a", "b"]])],
        "weight": [(x[0], np.zeros(9)), (x[1], np.zeros(31))],
    }
    for match, parts in cases.items():
        for fit in (jaxem.em_stream, jaxem.em_online):
            refuses(match, lambda fit=fit, parts=parts: fit(M, THETA, lambda: iter(parts)))
    support = [np.ones((3, 2), np.int32), np.array([[1, 0], [1, 2]], np.int32)]
    m, theta = bernoulli.mixture, next(case for case in CASES if case.name == "bernoulli").theta()
    refuses("batch 1 of pass 1 has 2 in row 1, column 1", lambda: jaxem.em_stream(m, theta, lambda: support))
    support = [-np.ones((3, 2), FLOAT)]
    theta = {"pi": [1.0], "rate": [[1.0, 1.0]]}
    refuses("batch 0 of pass 1", lambda: jaxem.em_stream(exponential.mixture, theta, lambda: support))


def test_every_pass_must_see_the_same_rows():
    once = iter(split(CASE.x()))
    refuses("pass 2 had 0 rows, before 60; it must return a fresh", lambda: jaxem.em_stream(M, THETA, lambda: once))
    passes = itertools.chain([split(CASE.x())], itertools.repeat(split(CASE.x())[1:]))
    refuses("pass 2 had 51 rows, before 60", lambda: jaxem.em_stream(M, THETA, lambda: next(passes)))
    for fit in (jaxem.em_stream, jaxem.em_online):
        refuses("batches: yielded nothing", lambda fit=fit: fit(M, THETA, lambda: iter(())))


def test_arguments():
    jaxtyping.config.update("jaxtyping_disable", True)  # as for a user
    try:
        batches = lambda: split(CASE.x())  # noqa: E731
        for fit in (jaxem.em_stream, jaxem.em_online):
            refuses("batches: must be a function that returns a fresh", lambda fit=fit: fit(M, THETA, batches()))
            refuses("needs an M-step from sums alone", lambda fit=fit: fit(jaxem.gradient_m_step(M), THETA, batches))
            refuses("m: must be a mixture", lambda fit=fit: fit("full", THETA, batches))
            refuses("prefetch: must be an integer ≥ 1", lambda fit=fit: fit(M, THETA, batches, prefetch=0))
            refuses("temperature: must be", lambda fit=fit: fit(M, THETA, batches, temperature=-1.0))
            refuses("temperature: must be a scalar", lambda fit=fit: fit(M, THETA, batches, temperature=[1.0, 0.5]))
            refuses("mesh: must be a", lambda fit=fit: fit(M, THETA, batches, mesh=4))
            refuses(r"theta: missing \['sigma'\]", lambda fit=fit: fit(M, {"pi": [1.0], "mu": [[0, 0]]}, batches))
            refuses("D = 3", lambda fit=fit: fit(M, THETA | {"mu": np.zeros((3, 3))}, batches))
            refuses("must satisfy", lambda fit=fit: fit(M, THETA | {"sigma": -1.0}, batches))
        refuses("tol: must be finite and ≥ 0", lambda: jaxem.em_stream(M, THETA, batches, tol=-1e-3))
        refuses("max_steps: must be an integer ≥ 0", lambda: jaxem.em_stream(M, THETA, batches, max_steps=-1))
        refuses("max_steps: must be an integer", lambda: jaxem.em_stream(M, THETA, batches, max_steps=2.5))
        for exponent in (0.5, 1.01, -1.0, np.nan):
            match = r"exponent: must be in \(0.5, 1\]"
            refuses(match, lambda exponent=exponent: jaxem.em_online(M, THETA, batches, exponent=exponent))
        refuses("warm_up: must be an integer ≥ 0", lambda: jaxem.em_online(M, THETA, batches, warm_up=-1))
        refuses(r"warm_up: θ never moved: 4 batch\(es\)", lambda: jaxem.em_online(M, THETA, batches, warm_up=4))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


# ---- the thread that reads


def endless(asked):
    for index in itertools.count():
        asked.append(index)
        yield np.asarray(CASE.x())[:20] + index


def test_reading_is_ahead_and_bounded():
    for prefetch in (1, 2, 5):
        asked = []
        reader = _batches.Reader(M, THETA, lambda asked=asked: endless(asked), 1.0, None, prefetch)
        batches = reader.read()
        for consumed in range(1, 5):
            next(batches)
            until = time.monotonic() + 10
            while len(asked) < consumed + prefetch and time.monotonic() < until:
                time.sleep(0.001)
            time.sleep(0.02)  # for a reader that knows no bound
            assert consumed + prefetch <= len(asked) <= consumed + prefetch + 2
        batches.close()
        assert not readers()


def test_the_reader_ends_with_the_fit():
    jaxem.em_stream(M, THETA, lambda: split(CASE.x()), max_steps=2)
    assert not readers()
    jaxem.em_online(M, THETA, lambda: split(CASE.x()), warm_up=0)
    assert not readers()


def test_the_reader_ends_when_the_consumer_is_interrupted(monkeypatch):
    """In the middle of a batch, and, by a signal, while it waits for one."""
    calls, add = [], stream._add

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return add(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stream, "_add", interrupted)
        refuses(None, lambda: jaxem.em_stream(M, THETA, lambda: endless([])), KeyboardInterrupt)

    def ctrl_c():
        for batch in endless([]):
            time.sleep(0.05)  # the consumer waits by now
            _thread.interrupt_main()
            yield batch

    refuses(
        None, lambda: jaxem.em_stream(M, THETA, lambda: itertools.chain(split(CASE.x()), ctrl_c())), KeyboardInterrupt
    )


def test_memory_does_not_grow_with_the_number_of_batches(monkeypatch):
    """137 rows: no other array has as many. Two in flight, one placed, and what the reader holds ahead."""
    seen, copies, checked = [], [], _batches.Reader.checked
    x = np.random.default_rng(0).normal(size=(137, 2)).astype(FLOAT)

    def watched(reader, batch, index):
        rows = checked(reader, batch, index)
        copies.append(weakref.ref(rows.x))
        return rows

    monkeypatch.setattr(_batches.Reader, "checked", watched)

    def batches():
        for _ in range(40):
            on_devices = sum(array.shape[:1] == (137,) for array in jax.live_arrays())
            seen.append((on_devices, sum(ref() is not None for ref in copies)))
            yield x

    jaxem.em_stream(M, THETA, batches, max_steps=1, prefetch=2)
    assert len(seen) == 80
    assert max(on_devices for on_devices, _ in seen) <= 3 * 2  # x and weights
    assert 2 <= max(count for _, count in seen) <= 3 + 3  # ahead, and on devices, where JAX may use a copy as it lies


def test_batches_wait_for_those_before_them(monkeypatch):
    """JAX computes behind Python's back: no more than two batches may be under way."""
    sums, unfinished, add = [], [], stream._add

    def watched(*args):
        unfinished.append(sum(not each.is_ready() for each in sums[:-1]))
        added = add(*args)
        sums.append(added.total.free_energy)
        return added

    monkeypatch.setattr(stream, "_add", watched)
    x, mu = (np.random.default_rng(0).normal(size=(rows, 2)) for rows in (20_000, 32))
    jaxem.em_stream(M, {"pi": np.full(32, 1 / 32), "mu": mu, "sigma": 1.0}, lambda: [x] * 8, max_steps=0)
    assert unfinished == [0] * 8


# ---- the bar


def test_the_bar_shows_passes_and_f(capsys, monkeypatch):
    jaxem.em_stream(M, THETA, lambda: split(CASE.x()), max_steps=3, tol=0, progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "3/3" in printed.err
    assert "F = -" in printed.err
    jaxem.em_stream(M, THETA, lambda: split(CASE.x()), max_steps=1)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    refuses(
        "progress: needs tqdm; pip install tqdm", lambda: jaxem.em_stream(M, THETA, lambda: [CASE.x()], progress=True)
    )


def test_a_collapse_of_stepwise_em_is_told_with_its_batch():
    collapsing = {"pi": [0.5, 0.5], "mu": [[0.0, 0.0], [1.0, 1.0]], "sigma": 1.0}
    parts = [np.zeros((4, 2), FLOAT)] * 60
    refuses(
        r"batches: at batch \d+ F or θ is not finite: a component collapsed",
        lambda: jaxem.em_online(M, collapsing, lambda: parts, exponent=1.0, warm_up=0),
        StreamError,
    )


# ---- checkpoints


def parts():
    """Small batches before large ones: what fills them up must be the same after `resume`."""
    return split(FULL.x(N=600), (90, 310, 10, 190))


def fit(batches=parts, **options):
    return jaxem.em_stream(FULL.m, FULL.theta(), batches, **({"max_steps": STEPS, "tol": 0.0} | options))


@pytest.fixture(scope="module")
def whole():
    """The fit that nothing interrupts."""
    return fit()


def steps_in(path):
    """The number of steps in a checkpoint that can be read."""
    return int(fit(resume=path, max_steps=0).num_steps)


def drafts(folder):
    return [path for path in folder.iterdir() if path.suffix == ".part"]


def test_a_fit_resumed_after_any_pass_ends_in_the_same_bits(tmp_path, whole):
    path = tmp_path / "fit.npz"
    for steps in range(STEPS + 1):
        path.unlink(missing_ok=True)
        to_the_bit(fit(checkpoint=path, max_steps=0).theta, FULL.theta())
        part = fit(checkpoint=path, max_steps=steps)
        assert int(part.num_steps) == steps
        to_the_bit(fit(resume=path, max_steps=steps), part)
        to_the_bit(fit(resume=str(path), checkpoint=str(path)), whole)
        to_the_bit(fit(resume=path), whole)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.npz"]


def test_a_checkpoint_is_written_after_each_pass_and_kept_on_disk(tmp_path, monkeypatch):
    """The draft is forced to disk before it is renamed, and the renaming after."""
    path, found, calls = tmp_path / "fit.npz", [], []
    fsync, rename = os.fsync, os.replace

    def batches():
        found.append(steps_in(path) if path.exists() else None)
        return parts()

    monkeypatch.setattr(os, "fsync", lambda file: calls.append(os.path.isdir(f"/dev/fd/{file}")) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("rename") or rename(a, b))
    fit(batches, checkpoint=path)
    assert found == [None, *range(STEPS)]
    assert calls == [False, "rename", True] * (STEPS + 1)


def test_a_resumed_fit_knows_its_statistics_temperature_weights_and_second_passes(tmp_path):
    """Weighted pairs in float32 at T = 0, where a step takes two passes; another start than the first; counts."""
    rng = np.random.default_rng(0)
    x = (np.array([[-1, 0], [1, 0.5], [0, 1]])[rng.integers(0, 3, 60)] + 1e-4 * rng.normal(size=(60, 2))).astype("f4")
    pairs = list(zip(split(x), split(rng.uniform(0.5, 2, 60)), strict=True))
    start = gaussian.diagonal.guess(jnp.asarray([[-1.5, 0], [1.5, 0.5], [0, 1.5]], jnp.float32), jnp.asarray(x))
    passes = []

    def run(theta=start, **options):
        batches = lambda: passes.append(1) or iter(pairs)  # noqa: E731
        return jaxem.em_stream(gaussian.diagonal, theta, batches, temperature=0.0, **({"max_steps": 2} | options))

    straight = run()
    assert len(passes) > 3
    run(checkpoint=tmp_path / "fit", max_steps=1)
    other = jax.tree.map(lambda leaf: leaf[::-1], start)
    to_the_bit(run(other, resume=tmp_path / "fit"), straight)
    case = next(case for case in CASES if case.name == "poisson")
    poisson = lambda **options: jaxem.em_stream(case.m, case.theta(), lambda: split(case.x()), tol=0.0, **options)  # noqa: E731
    poisson(max_steps=2, checkpoint=tmp_path / "fit")
    to_the_bit(poisson(max_steps=4, resume=tmp_path / "fit"), poisson(max_steps=4))


def test_a_fit_that_has_ended_is_returned_as_it_is(tmp_path):
    path, passes = tmp_path / "fit", []
    done = fit(checkpoint=path, max_steps=500, tol=1e-3)
    assert int(done.status) == jaxem.Status.CONVERGED
    again = fit(lambda: passes.append(1) or parts(), resume=path, max_steps=500, tol=1e-3)
    to_the_bit(again, done)
    assert len(passes) == 1  # to look at its first batch


def breaks_in_pass(number, break_now):
    """Batches of which the third of a pass is this."""
    passes = itertools.count(1)

    def batches():
        current = next(passes)
        for index, part in enumerate(parts()):
            if current == number and index == 2:
                break_now()
            yield part

    return batches


def raising(error):
    raise error


@pytest.mark.parametrize(
    ("break_now", "error"),
    [(lambda: raising(OSError("unplugged")), StreamError), (lambda: raising(KeyboardInterrupt()), KeyboardInterrupt)],
    ids=["error", "interrupt"],
)
def test_the_last_checkpoint_survives_what_breaks_a_pass(break_now, error, tmp_path, whole):
    path = tmp_path / "fit.npz"
    refuses(None, lambda: fit(breaks_in_pass(3, break_now), checkpoint=path), error)
    assert steps_in(path) == 1
    assert not drafts(tmp_path)
    to_the_bit(fit(resume=path), whole)


KILLED = """
import sys
sys.path[:0] = sys.argv[3:]
import test_checkpoint
test_checkpoint.be_killed(*sys.argv[1:3])
"""


def be_killed(how, path):
    """In a process of its own: kill −9 in the middle of pass 3, or while its checkpoint waits to be renamed."""

    def now(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if how == "in the pass":
        fit(breaks_in_pass(3, now), checkpoint=path)
    rename, calls = os.replace, itertools.count(1)
    os.replace = lambda *paths: now() if next(calls) == 3 else rename(*paths)
    fit(checkpoint=path)


@pytest.mark.parametrize("how", ["in the pass", "before the renaming"])
def test_a_fit_killed_in_its_third_pass_resumes_to_the_same_bits(how, tmp_path, whole):
    path, here = tmp_path / "fit.npz", Path(__file__).parent
    command = [sys.executable, "-c", KILLED, how, str(path), str(here), str(here.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(drafts(tmp_path)) == (how == "before the renaming")
    assert steps_in(path) == 1
    to_the_bit(fit(resume=path, checkpoint=path), whole)
    assert not drafts(tmp_path)  # the killed one's is swept away
    to_the_bit(fit(resume=path), whole)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, whole):
    """The system itself refuses to write more: a file of this process may have 500 bytes."""
    path, limits = tmp_path / "fit.npz", resource.getrlimit(resource.RLIMIT_FSIZE)

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))

    try:
        error = refuses(
            f"checkpoint: cannot write {path}: File too large; the last complete one is still there",
            lambda: fit(breaks_in_pass(3, full), checkpoint=path),
            OSError,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.errno == errno.EFBIG
    assert steps_in(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.npz"]
    to_the_bit(fit(resume=path), whole)


@pytest.mark.parametrize("name", ["replace", "fsync"])
def test_whatever_stops_the_writing_leaves_no_draft(name, tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    fit(checkpoint=path, max_steps=1)
    before = path.read_bytes()
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_, error=error: raising(error))
            refuses(None, lambda: fit(checkpoint=path, resume=path, max_steps=2), type(error))
        assert path.read_bytes() == before
        assert not drafts(tmp_path)


def test_a_damaged_checkpoint_is_told_and_never_used(tmp_path):
    """Cut anywhere, or any byte changed: refused, or (in bytes that mean nothing) read to the bit."""
    path = tmp_path / "fit.npz"
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.int32(7)}
    checkpoint.save(path, tree, {"it": "is"})
    good, refused, read = path.read_bytes(), [], []

    def load(damaged):
        path.write_bytes(damaged)
        try:
            arrays, description = checkpoint.load(path, tree, {"it": "is"})
        except ValueError as error:
            refused.append(str(error))
            return
        read.append(damaged)
        to_the_bit(arrays, tree)
        assert [leaf.dtype for leaf in jax.tree.leaves(arrays)] == [np.float64, np.int32]
        assert description["it"] == "is"

    for length in range(0, len(good), 7):
        load(good[:length])
    assert not read
    for place in range(len(good)):
        load(good[:place] + bytes([good[place] ^ (1, 0xFF)[place % 2]]) + good[place + 1 :])
    assert len(read) < len(good) / 3  # times, versions, attributes
    assert all(message.startswith(f"resume: {path} ") for message in refused)

    many = {"a": np.arange(2000.0)}
    checkpoint.save(path, many, {})
    path.write_bytes(path.read_bytes().replace(b"<f8", b"<f4"))  # half of the bytes, as other numbers
    refuses("fit.npz is no checkpoint", lambda: checkpoint.load(path, many, {}))
    fit(checkpoint=path)
    good = path.read_bytes()
    for damaged in (good[: len(good) // 2], good[:-1], b"", good.replace(b"descr", b"drces")):
        path.write_bytes(damaged)
        refuses("fit.npz is no checkpoint, or only a part of one", lambda: fit(resume=path))


def test_what_is_no_checkpoint_is_told(tmp_path):
    refuses(r"resume: there is no .*nothing; leave resume out to start", lambda: fit(resume=tmp_path / "nothing"))
    refuses("is no checkpoint", lambda: fit(resume=tmp_path))
    np.save(tmp_path / "array.npy", np.zeros(3))
    refuses("is no checkpoint", lambda: fit(resume=tmp_path / "array.npy"))
    np.savez(tmp_path / "arrays.npz", np.zeros(3))
    refuses("is no checkpoint", lambda: fit(resume=tmp_path / "arrays.npz"))
    text = np.frombuffer(json.dumps({"format": 0}).encode(), np.uint8)
    np.savez(tmp_path / "old.npz", description=text)
    refuses("has format 0, this jaxem reads 2; start afresh", lambda: fit(resume=tmp_path / "old.npz"))
    passes, match = [], "checkpoint: .* must be a file in a folder that exists"
    for path in (tmp_path, tmp_path / "no" / "fit"):
        refuses(match, lambda path=path: fit(lambda: passes.append(1) or parts(), checkpoint=path))
    assert not passes  # told before any work is done


def test_a_checkpoint_of_another_fit_is_told(tmp_path):
    """Another family, held set, floor, temperature, precision, K, first batch, weights, later batch."""
    path, x = tmp_path / "fit.npz", np.asarray(CASE.x())
    spherical, diagonal, floor = gaussian.spherical, gaussian.diagonal, gaussian.with_floor
    theta = THETA | {"sigma": jnp.ones(3)}
    four = {"pi": np.full(4, 0.25), "mu": np.zeros((4, 2)), "sigma": np.ones(4)}

    def run(m=spherical, theta=theta, batches=lambda: split(x), **options):
        return jaxem.em_stream(m, theta, batches, **({"max_steps": 1, "tol": 0.0} | options))

    run(checkpoint=path)
    cases = {
        "its model's family is gaussian.spherical, here it is gaussian.diagonal": {
            "m": diagonal,
            "theta": theta | {"sigma": np.ones((3, 2))},
        },
        r"its model's held is \[\], here it is \['pi', 'sigma'\]": {"m": spherical.hold("sigma", "pi")},
        "its model's gradient_form .*Floored": {"m": floor(spherical, 0.01)},
        "its temperature is 1.0, here it is 0.5": {"temperature": 0.5},
        "its precision is float64, here it is float32": {"batches": lambda: split(x.astype(np.float32))},
        r"its theta's mu is \(3, 2\), here it is \(4, 2\)": {"theta": four},
        "its first batch is .* here": {"batches": lambda: split(x + 1)},
        "its first batch is": {"batches": lambda: [(part, np.full(len(part), 2.0)) for part in split(x)]},
    }
    for match, other in cases.items():
        refuses(match, lambda other=other: run(resume=path, **other))
    # the same first batch, and fewer rows: told when they have been read
    refuses("pass 1 had 40 rows, before 60", lambda: run(resume=path, batches=lambda: split(x)[:2], max_steps=2))
    run(floor(spherical, 0.01), checkpoint=path)
    refuses("variance is 0.01, here it is 0.02", lambda: run(floor(spherical, 0.02), resume=path))
    run(floor(spherical, 0.01), resume=path, batches=lambda: [(part, np.ones(len(part))) for part in split(x)])


# ---- where a checkpoint may lie


TREE = {"a": np.arange(6.0)}


def special_files(folder):
    """Things that are no files, by name."""
    os.mkfifo(folder / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(folder / "socket"))
    server.close()
    os.symlink(folder / "pipe", folder / "link to a pipe")
    os.symlink(folder / "loop", folder / "loop")
    os.symlink("/dev/null", folder / "link to a device")
    (folder / "folder").mkdir()
    return [Path("/dev/null"), *(path for path in folder.iterdir())]


def test_only_a_file_is_ever_replaced_or_read(tmp_path):
    for path in special_files(tmp_path):
        before = os.lstat(path)
        refuses(f"checkpoint: {path} ", lambda path=path: fit(lambda: raising(AssertionError), checkpoint=path))
        refuses(f"resume: {path} ", lambda path=path: fit(resume=path))
        refuses(f"checkpoint: cannot write {path}", lambda path=path: checkpoint.save(path, TREE, {}), OSError)
        assert (before.st_mode, before.st_ino) == (os.lstat(path).st_mode, os.lstat(path).st_ino)
    assert not drafts(tmp_path)


def test_a_read_only_file_stays(tmp_path):
    path = tmp_path / "kept.npz"
    path.write_bytes(b"dear")
    path.chmod(0o444)
    os.symlink(path, tmp_path / "link")
    for name in (path, tmp_path / "link"):
        refuses("is read-only; make it writable", lambda name=name: fit(checkpoint=name))
        refuses("read-only", lambda name=name: checkpoint.save(name, TREE, {}), OSError)
    assert path.read_bytes() == b"dear"


def test_a_link_is_written_through(tmp_path):
    """Also one whose file is not there yet, in another folder."""
    (tmp_path / "scratch").mkdir()
    link, target = tmp_path / "fit.npz", tmp_path / "scratch" / "fit.npz"
    os.symlink(Path("scratch") / "fit.npz", link)
    for _ in range(2):
        checkpoint.save(checkpoint.check_path(link), TREE, {})
        assert link.is_symlink()
        to_the_bit(checkpoint.load(target, TREE, {})[0], TREE)
    assert [entry.name for entry in target.parent.iterdir()] == ["fit.npz"]


def test_a_checkpoint_has_the_mode_of_a_file_and_keeps_its_own(tmp_path):
    path, other = tmp_path / "fit.npz", tmp_path / "other"
    other.write_bytes(b"")
    for mode in (other.stat().st_mode, 0o100600, 0o100664):
        if path.exists():
            path.chmod(mode)
        checkpoint.save(path, TREE, {})
        assert path.stat().st_mode == mode


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, "a" * 250 + ".npz", ".npz", "a b\n.npz", "[a]*?"])
def test_a_name_may_be_as_long_as_names_may_be(name, tmp_path):
    path = tmp_path / name
    for _ in range(2):
        checkpoint.save(checkpoint.check_path(path), TREE, {})
    to_the_bit(checkpoint.load(path, TREE, {})[0], TREE)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_no_path_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user
    for wrong in (b"fit.npz", 3, 3.0, True, ["fit"], {"fit": 1}, "fit\0.npz", "", np.array("fit"), open):
        for name in ("checkpoint", "resume"):
            error = refuses(f"{name}: must be the path of a file", lambda name=name, wrong=wrong: fit(**{name: wrong}))
            assert "\n" not in str(error)
    refuses("checkpoint: .* File name too long; choose another", lambda: fit(checkpoint=tmp_path / ("a" * 256)))
    refuses("resume: .* cannot be read: File name too long", lambda: fit(resume=tmp_path / ("a" * 256)))
    (tmp_path / "file").write_text("")
    refuses("checkpoint: .* in a folder that exists", lambda: fit(checkpoint=tmp_path / "file" / "fit"))
    refuses("resume: .* cannot be read: Not a directory", lambda: fit(resume=tmp_path / "file" / "fit"))


# ---- several writers


def test_threads_and_processes_may_share_a_checkpoint(tmp_path):
    """What is read is always one of them whole, and nothing is left behind."""
    path, errors, ended = tmp_path / "fit.npz", [], []
    trees = [{"a": np.full(20_000, float(i))} for i in range(6)]
    checkpoint.save(path, trees[0], {})

    def write(tree):
        try:
            for _ in range(15):
                checkpoint.save(checkpoint.check_path(path), tree, {})
        except BaseException as error:
            errors.append(error)
        ended.append(tree)

    threads = [threading.Thread(target=write, args=(tree,)) for tree in trees]
    for thread in threads:
        thread.start()
    while len(ended) < len(trees):
        found, _ = checkpoint.load(path, trees[0], {})
        assert (found["a"] == found["a"][0]).all()
    assert not errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["fit.npz"]


def test_drafts_that_nobody_writes_are_swept_and_others_left(tmp_path):
    path = tmp_path / "fit.npz"
    stale, other = tmp_path / f".fit.npz.{'0' * 16}.part", tmp_path / f".fit.npz.old.{'0' * 16}.part"
    for name in (stale, other, tmp_path / ".fit.npz.part", tmp_path / "fit.npz.part"):
        name.write_bytes(b"")
    with checkpoint.draft_of(path) as (draft, _):
        checkpoint.check_path(path)
        assert draft.exists()
        assert not stale.exists()
        assert other.exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        ".fit.npz.old." + "0" * 16 + ".part",
        ".fit.npz.part",
        "fit.npz.part",
    ]


# ---- what a file says


def forged(path, description=(), **leaves):
    """A checkpoint with other arrays, or another description."""
    with np.load(path) as stored:
        arrays = dict(stored)
    if isinstance(description, dict):
        told = json.loads(bytes(arrays["description"]))
        told = {name: value for name, value in (told | description).items() if value is not None}
    else:
        told = description
    if description != ():
        arrays["description"] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    np.savez(path.with_name("forged.npz"), **(arrays | leaves))
    return path.with_name("forged.npz")


def test_a_forged_checkpoint_is_told_in_one_line(tmp_path):
    path = tmp_path / "fit.npz"
    state = jax.tree.leaves(fit(checkpoint=path, max_steps=2))
    with np.load(path) as stored:
        leaves = {name: stored[name] for name in stored.files if name != "description"}
    assert len(leaves) > len(state)
    passes, errors = [], []

    def refused(match, description=(), **changes):
        wrong = forged(path, description, **changes)
        errors.append(refuses(match, lambda: fit(lambda: passes.append(1) or parts(), resume=wrong)))

    idle, status, steps = [name for name, leaf in leaves.items() if leaf.dtype == np.int32][::-1]
    for name, leaf in leaves.items():
        kinds = ("f4", "i8") if name != "leaf_0" else ("f4", "c16", "U3", ">f8", "M8[s]", "?", "f2")
        for dtype in kinds:
            refused("other shapes or dtypes", **{name: np.zeros(leaf.shape, dtype)})
        refused("other shapes or dtypes|is no checkpoint", **{name: np.zeros((1, *leaf.shape), leaf.dtype)})
        if leaf.dtype == np.float64:
            for bad in (np.nan, np.inf):
                changed = leaf.copy()
                changed.flat[-1] = bad
                if name != list(leaves)[-7]:  # the scale of rounding, of which no fit asks that
                    refused("has NaN or infinity in", **{name: changed})
    for value in (77, -1, 4, 2**31 - 1):
        refused(f"has status {value} after 2 steps", **{status: np.int32(value)})
    refused("has status 1 after -1 steps", **{steps: np.int32(-1)})
    refused("has status 1 after 2 steps", **{idle: np.int32(-1)})
    for value in (None, "x", 1.5, True, [3], -1, {}):
        for name in ("rows", "capacity", "all batches"):
            if value in (None, True) or name == "rows":
                refused("says it was made with", {name: value})
    for value in ([1, 2], "text", 3, None, True):
        refused("is no checkpoint", value)
    for value in ("a\nb", "x" * 10**5, None, [[]], {"family": {}}):
        refused("belongs to another fit", {"model": value})
        refused("belongs to another fit", {"temperature": value})
    refused("has format", {"format": "2\n"})
    refused("has format 1, this jaxem reads 2; start afresh", {"format": 1})
    assert len(passes) == len(errors)  # each read its first batch, and none a pass
    assert all("\n" not in str(error) and len(str(error)) < 900 for error in errors)
    for unreadable in (b"x", pickle.dumps({"a": 1}), b"\x93NUMPY", b"PK\x03\x04"):
        path.write_bytes(unreadable)
        assert "pickle" not in str(refuses("is no checkpoint", lambda: fit(resume=path)))


def test_a_stream_that_was_changed_after_its_first_batch_is_told(tmp_path):
    """Whichever row it is; and a checkpoint that is refused is not overwritten."""
    path, x = tmp_path / "fit.npz", np.asarray(FULL.x(N=600))
    fit(checkpoint=path, max_steps=2)
    before = path.read_bytes()
    for row in (90, 333, 599):
        other = x.copy()
        other[row, 1] += 1
        batches = lambda other=other: split(other, (90, 310, 10, 190))  # noqa: E731
        refuses("rows or weights are not those", lambda batches=batches: fit(batches, resume=path, checkpoint=path))
    weights = [np.ones(90), np.ones(310), np.ones(10), np.full(190, 2.0)]
    refuses("rows or weights", lambda: fit(lambda: zip(parts(), weights, strict=True), resume=path, checkpoint=path))
    assert path.read_bytes() == before
    again = fit(resume=path, checkpoint=path, max_steps=3)
    to_the_bit(fit(resume=path, max_steps=3), again)


def test_a_model_is_known_by_its_public_name():
    """The same in every process, and wherever jaxem keeps its files; what a user wrote by the user's own names."""
    assert set(_names.FAMILIES) >= {f"gaussian.{name}" for name in ("isotropic", "spherical", "full")}
    assert _names.description(gaussian.full.hold("pi")) == {"family": "gaussian.full", "held": ["pi"]}
    floored = gaussian.with_floor(gaussian.full, 0.5)
    names = {"function": ["gaussian.full's update", [], {"lifts": False}], "scale": "Sigma", "variance": 0.5}
    assert _names.description(floored)["update"] == ["Floored", names]
    made = [case.m for case in CASES] + [floored, jaxem.gradient_m_step(gaussian.full)]
    texts = [json.dumps(_names.description(m)) for m in made]
    assert len(set(texts)) == len(texts)
    assert not any("jaxem." in text or "0x" in text for text in texts)


def test_a_users_model_is_known_by_what_it_is_made_of():
    class Rule:
        def __call__(self, theta, x, gamma):
            return x

    def described(**changes):
        return json.dumps(_names.description(gaussian.full.but(**changes)))

    assert "Rule" in described(statistics=Rule())
    assert "0x" not in described(statistics=Rule())
    own = described(program=lambda x, num_points=None: None)
    assert "test_checkpoint.test_a_users_model" in own
    first, second = (dataclasses.replace(bernoulli.family, name=name) for name in "ab")
    assert described(update=first.update) != described(update=second.update)
    assert described(maximizer=lambda m, statistics, theta, data: theta) != described()
