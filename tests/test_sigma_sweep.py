"""The main job as a user runs it: files complete or absent, exit codes, one clear line for each mistake."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sigma_sweep

import _data
from conftest import AS_A_USER, PRECISION

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "experiments" / "sigma_sweep.py"
CLAIMS = {"C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "C11", "C12", "C13", "C13b", "C14", "C15"}

# the script runs in its own process and precision: once is enough but for the claims themselves
full_leg_only = pytest.mark.skipif(PRECISION == 32, reason="runs in the float64 leg")


def sweep(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.parametrize("data", ["old_faithful", "iris", "blobs"] if PRECISION == 64 else ["old_faithful"])
def test_every_claim_holds(data, tmp_path):
    options = {"env": AS_A_USER} if data == "old_faithful" else {}  # one of them as optimised as it is for a user
    done = sweep("--data", data, "--quick", "--precision", PRECISION, "--out", tmp_path / "new" / "folder", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {f"sigma_sweep.{end}" for end in ("json", "npz", "pdf", "png")}
    result = json.loads((folder / "sigma_sweep.json").read_text())
    assert set(result) >= {"config", "provenance", "rows", "claims"}
    assert {claim["id"] for claim in result["claims"]} == CLAIMS
    for claim in result["claims"]:
        assert set(claim) == {"id", "statement", "worst", "bound", "holds"}
        assert claim["holds"] == (claim["worst"] <= claim["bound"])
        assert claim["holds"]
    rows = result["rows"]
    sigmas = [row["sigma"] for row in rows]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] > result["summary"]["diameter"] > result["summary"]["critical_sigma"]
    if PRECISION == 64:  # in float32 EM stops at the floor of rounding a little before the centres meet
        assert rows[0]["distinct"] == 1  # one centroid above diam(X) …
    assert rows[-1]["distinct"] == result["config"]["components"]
    assert rows[-1]["gamma_gap"] == 0  # … and exactly one-hot at the last σ
    assert rows[-1]["J"] == pytest.approx(result["summary"]["kmeans_J"], rel=1e-5)
    arrays = np.load(folder / "sigma_sweep.npz")
    assert arrays["mu"].shape == (len(rows), result["config"]["components"], arrays["x"].shape[1])


@full_leg_only
def test_the_same_seed_gives_the_same_bits(tmp_path):
    def bits(name, seed):
        folder = tmp_path / name
        options = ("--quick", "--no-plot", "--seed", seed, "--sigmas", 2, 0.1, 4, "--precision", PRECISION)
        assert sweep(*options, "--out", folder).returncode == 0
        result = json.loads((folder / "sigma_sweep.json").read_text())
        del result["provenance"]
        return result, (folder / "sigma_sweep.npz").read_bytes()

    first, second = bits("first", 3), bits("second", 3)
    assert first == second
    assert [row["sigma"] for row in first[0]["rows"]][:4] == pytest.approx(np.geomspace(2, 0.1, 4))


GOOD = "a,b\n1,2\n3,4\n5,7\n2,2\n0,1\n4,4\n"
BAD_FILES = {
    "word.csv": ("a,b\n1,2\n3,four\n", "line 3: 'four' is not a number"),
    "ragged.csv": ("1,2\n3,4,5\n", "line 2 has 3 columns, line 1 has 2"),
    "nan.csv": ("a,b\n1,2\nnan,4\n", "line 3 has NaN or infinity"),
    "empty.csv": ("", "has no rows of numbers"),
    "header.csv": ("a,b\n", "has no rows of numbers"),
    "two headers.csv": ("a,b\nc,d\n1,2\n", "line 2: 'c' is not a number"),
    "column.csv": ("a\n1\n2\n3\n", "single column"),
    "row.csv": ("1,2\n", "1 row"),
    "constant.csv": ("a,b\n1,2\n3,2\n5,2\n", "column 'b' is constant"),
    "few.csv": ("1,2\n3,4\n", "--components: 3 exceeds the 2 rows"),
    "repeated.csv": ("1,2\n3,4\n1,2\n3,4\n", "--components: 3 exceeds the 2 distinct rows"),
}


@pytest.fixture
def fails(tmp_path, capsys):
    """Run the script's `main` in this process: exit code 2, one line, nothing written."""

    def run(message, *arguments):
        out = tmp_path / "out"
        try:
            code = sigma_sweep.main([*map(str, arguments), "--precision", str(PRECISION), "--out", str(out)])
        except SystemExit as stop:
            code = stop.code
        errors = capsys.readouterr().err
        assert code == 2, errors
        lines = [line for line in errors.splitlines() if line.strip()]
        assert len(lines) == 1, errors
        assert message in lines[0]
        assert not out.exists() or not list(out.iterdir())

    return run


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, tmp_path, fails):
    text, message = BAD_FILES[name]
    path = tmp_path / name
    path.write_text(text)
    fails(message, "--data", path)


def test_bad_arrays(tmp_path, fails):
    def save(name, array):
        np.save(tmp_path / name, array, allow_pickle=True)
        return "--data", tmp_path / name

    fails("two axes", *save("flat.npy", np.arange(5.0)))
    fails("row 1 has NaN", *save("nan.npy", np.array([[1.0, 2.0], [np.nan, 1.0], [0.0, 1.0]])))
    fails("cannot be read as a NumPy array", *save("object.npy", np.array([{}, 1], dtype=object)))
    (tmp_path / "text.npy").write_text("not an array")
    fails("cannot be read", "--data", tmp_path / "text.npy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "no_such.csv"), "no such file"),
        (("--data", "venus"), "'venus' is none of"),
        (("--components", "1"), "--components: must be at least 2"),
        (("--components", "300"), "--components: 300 exceeds the 272 rows"),
        (("--components", "x"), "--components"),
        (("--sigmas", "1", "-1", "5"), "must be positive"),
        (("--sigmas", "1", "0", "5"), "must be positive"),
        (("--sigmas", "1", "2", "5"), "must decrease"),
        (("--sigmas", "2", "1", "1"), "COUNT must be at least 2"),
        (("--sigmas", "a", "1", "5"), "two numbers and a whole number"),
        (("--sigmas", "nan", "1", "5"), "must be positive and finite"),
        (("--restarts", "0"), "--restarts: must be at least 1"),
        (("--seed", "-1"), "--seed"),
        (("--unknown",), "unrecognized arguments"),
    ],
)
def test_bad_arguments(arguments, message, fails):
    fails(message, *arguments)


def test_bad_arguments_from_the_shell(tmp_path):
    done = sweep("--precision", 16, "--out", tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = sweep("--out", tmp_path / "file" / "below")
    assert done.returncode == 2
    assert "--out: cannot write" in done.stderr


@full_leg_only
def test_ctrl_c_leaves_no_half_written_file(tmp_path):
    """In the middle of a sweep that cannot end by itself: a million values of σ."""
    command = [sys.executable, str(SCRIPT), "--quick", "--sigmas", "3", "0.1", "1000000", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        errors = ""
        while "sigma:" not in errors and (letter := process.stderr.read(1)):  # the progress bar: the sweep has begun
            errors += letter
        while process.poll() is None:  # again: one that arrives in JAX's callback of the collector is dropped there
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                errors += process.communicate(timeout=20)[1]
    assert process.returncode == 130, errors
    assert "interrupted, nothing written" in errors
    assert "Traceback" not in errors or "_xla_gc_callback" in errors
    assert list(tmp_path.iterdir()) == []


@full_leg_only
def test_a_users_csv(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, 2)) + 4 * rng.integers(0, 2, size=(40, 1))
    plain, headed = tmp_path / "plain.csv", tmp_path / "headed.csv"
    np.savetxt(plain, points, delimiter=",")
    np.savetxt(headed, points, delimiter=",", header="one,two", comments="")
    assert np.array_equal(_data.load(str(plain)).x, _data.load(str(headed)).x)
    assert _data.load(str(headed)).columns == ["one", "two"]
    assert np.allclose(_data.load(str(plain)).x.std(axis=0), 1)
    options = ("--quick", "--no-plot", "--components", 2, "--out", tmp_path / "out")
    done = sweep("--data", headed, *options, env=os.environ | {"JAX_ENABLE_X64": "0"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".npz"}
