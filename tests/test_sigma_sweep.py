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
CLAIMS |= {"C17", "C18", "C19", "C20", "C21"}
FILES = {f"sigma_sweep.{end}" for end in ("json", "npz", "pdf", "png")} | {"sigma_shadow.pdf", "sigma_shadow.png"}

# the script runs in its own process and precision: once is enough but for the claims themselves
full_leg_only = pytest.mark.skipif(PRECISION == 32, reason="runs in the float64 leg")


def sweep(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.mark.takes_turns("data")
@pytest.mark.parametrize("data", ["iris", "old_faithful", "blobs"] if PRECISION == 64 else ["old_faithful"])
def test_every_claim_holds(data, tmp_path):
    options = {"env": AS_A_USER} if data == "old_faithful" else {}  # one of them as optimised as it is for a user
    done = sweep("--data", data, "--quick", "--precision", PRECISION, "--out", tmp_path / "new" / "folder", **options)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == FILES
    result = json.loads((folder / "sigma_sweep.json").read_text())
    assert set(result) >= {"config", "provenance", "rows", "claims", "laws", "mixtures"}
    rigorous = len(result["summary"]["columns"]) <= 3  # beyond, C19's supremum is an estimate and no claim
    assert {claim["id"] for claim in result["claims"]} == (CLAIMS if rigorous else CLAIMS - {"C19"})
    told = {(law["id"], law["kind"]) for law in result["laws"]}
    assert told == ({("C20", "law")} if rigorous else {("C20", "law"), ("C19", "estimate")})
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
    the_table_fits_a_terminal_and_the_words_say_what_the_numbers_do(done.stdout, rows)


def the_table_fits_a_terminal_and_the_words_say_what_the_numbers_do(printed, rows):
    table = printed.strip("\n").split("\n\n")[0].splitlines()
    assert len(table) == len(rows) + 1
    assert len(table[0].split()) == 7
    assert max(map(len, table)) <= 100
    words = " ".join(printed.split("In words.")[1].split())
    slowest = max(rows, key=lambda row: row["iterations"])
    assert f"EM takes most steps, {slowest['iterations']:,}, at σ = {slowest['sigma']:.3g}" in words
    one_hot = max(row["sigma"] for row in rows if row["gamma_gap"] == 0)
    assert f"to the bit, from σ = {one_hot:.3g}" in words


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
    "text column.csv": ("a,species\n1,red\n3,blue\n", "line 2: 'red' is not a number (species); mend it, or drop"),
    "missing.csv": ("a,b\n1,2\n3,\n", "line 3: '' is not a number (b); it is missing: drop or impute"),
    "missing first.csv": ("1,\n3,4\n5,1\n", "line 1: '' is not a number (column 2); it is missing"),
    "na.csv": ("NA,2\n3,4\n5,1\n", "line 1: 'NA' is not a number (column 1); it is missing"),
    "decimal commas.csv": (
        '"1,5","2"\n"2,5","3"\n"0,5","9"\n',
        "line 1: '1,5' is not a number (column 1); write decimal",
    ),
    "named decimal commas.csv": ('a,b\n"1.000,5",2\n', "line 2: '1.000,5' is not a number (a); write decimal points"),
    "semicolons.csv": ("a;b\n1,5;2\n", "line 1: semicolons between the columns; say --sep ';'"),
    "tabs.csv": ("1\t2\n3\t4\n", "line 1: tabs between the columns"),
    "blanks.csv": ("1 2\n3 4\n", "line 1: blanks between the columns"),
    "underscores.csv": ("a,b\n1_000,2\n", "line 2: '1_000' is not a number (a)"),
    "integer header.csv": ("0,1\n4,2\n3,4\n5,6\n", "the first line, 0,1, may be names or a row; put names above it"),
    "bare index.csv": ("0,1.5\n1,2.5\n2,0.5\n3,1\n", "the first column counts the rows; leave it out by --index"),
    "huge.csv": ("a,b\n1e200,2\n2e200,3\n5e200,1\n", "column 'a' cannot be standardised: the squares"),
    "tiny.csv": ("a,b\n1,2e-200\n2,3e-200\n4,5e-200\n", "column 'b' cannot be standardised: the squares"),
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
    fails("has NaN or infinity (3", *save("long.npy", np.array([[1, 2], [3, 4], [5, 10]], np.longdouble) ** 4000))
    fails("must be numeric, has dtype complex128", *save("complex.npy", np.ones((4, 2), complex)))
    np.savez(tmp_path / "archive.npz", np.ones((4, 2)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    fails("is an archive of several arrays", "--data", tmp_path / "archive.npy")
    for rows in (10**12, 2**62, 2**70):
        with open(tmp_path / "vast.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (rows, 2)})
        fails("cannot be read as a NumPy array", "--data", tmp_path / "vast.npy")
    for name in ("folder.npy", "folder.csv"):
        (tmp_path / name).mkdir()
        fails("is no file", "--data", tmp_path / name)
    for name in ("pipe.npy", "pipe.csv"):
        os.mkfifo(tmp_path / name)
        fails("is no file", "--data", tmp_path / name)
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
        (("--seed", "-1"), "--seed: must be in [0, 2^32)"),
        (("--seed", str(2**32)), "--seed: must be in"),
        (("--seed", str(2**64)), "--seed: must be in"),
        (("--sigmas", "3", "1", "1000000000000"), "COUNT must be at least 2 and at most"),
        (("--sigmas", "1e308", "1", "5"), "MAX and MIN must be between"),
        (("--sigmas", "1", "1e-308", "5"), "MAX and MIN must be between"),
        (("--restarts", "1000000000000"), "--restarts: must be at least 1 and at most"),
        (("--components", str(10**30)), f"--components: {10**30} exceeds the 272 rows"),
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


@pytest.mark.parametrize("first", ["", "Unnamed: 0", '""'])
@pytest.mark.parametrize("start", [0, 1])
def test_an_index_of_pandas_is_no_data_and_that_is_said(first, start, tmp_path):
    path, points = tmp_path / "frame.csv", np.random.default_rng(0).normal(size=(5, 2)).round(3)
    for names in ("one,two", "0,1"):
        lines = [f"{start + i},{a},{b}" for i, (a, b) in enumerate(points)]
        path.write_text("\n".join([f"{first},{names}", *lines]))
        data = _data.load(str(path))
        assert data.columns == names.split(",")
        assert np.allclose(data.x * data.scale + data.centre, points)
        assert len(data.notes) == 1
        assert "counts the rows; it is left out" in data.notes[0]
    path.write_text("\n".join(["0,1", *(f"{a},{b}" for a, b in points)]))  # to_csv(index=False) of unnamed columns
    assert len(_data.load(str(path)).x) == 5
    path.write_text("\n".join([",one", "3,1", "1,2", "9,4"]))  # a column without a name that counts nothing is data
    assert _data.load(str(path)).x.shape == (3, 2)


def test_quoted_cells_and_years_for_names(tmp_path):
    path = tmp_path / "quoted.csv"
    path.write_text('"height, cm","2019"\n "1.5" , 2\n3,"4e0"\n\n5,7\n')
    data = _data.load(str(path))
    assert data.columns == ["height, cm", "2019"]
    assert np.allclose(data.x * data.scale + data.centre, [[1.5, 2], [3, 4], [5, 7]])
    assert not data.notes


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


# ---- how a file is read


GERMAN = "nr;Länge;Breite;Art\n1;1,5;2;rot\n2;2,5;3;blau\n3;0,5;9;rot\n4;1.000,5;1;rot\n"


@full_leg_only
def test_columns_separators_and_indices(tmp_path):
    path = tmp_path / "german.csv"
    path.write_text(GERMAN)
    by_name = _data.Reading(("Länge", "Breite"), ";", standardise=False)
    wanted = [[1.5, 2], [2.5, 3], [0.5, 9], [1000.5, 1]]
    for reading in (by_name, by_name._replace(columns=("2", "3"))):
        data = _data.load(str(path), reading)
        assert data.columns == ["Länge", "Breite"]
        assert data.x.tolist() == wanted
        assert data.scale.tolist() == [1, 1]
    path.write_text("0,1.5,2\n1,2.5,3\n2,0.5,9\n3,4,1\n")
    assert _data.load(str(path), _data.Reading(index=True, standardise=False)).x[:, 0].tolist() == [1.5, 2.5, 0.5, 4]
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(4, 3) ** 2)
    assert _data.load(str(tmp_path / "x.npy"), _data.Reading(("3", "1"), standardise=False)).x[0].tolist() == [4, 0]


@full_leg_only
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--columns", "a,c"), "--columns: 'c' is no column of"),
        (("--columns", "a,1"), "names a column twice"),
        (("--columns", "a,0"), "--columns: '0' is no column"),
        (("--sep", "xx"), "--sep: must be one character"),
        (("--sep", "1"), "--sep: must be one character"),
    ],
)
def test_bad_ways_to_read_a_file(options, message, tmp_path, fails):
    path = tmp_path / "good.csv"
    path.write_text(GOOD)
    fails(message, "--data", path, *options)
