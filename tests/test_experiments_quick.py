"""The comparisons run end to end at tiny sizes, write what they promise, and say so by their exit codes. No times."""

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
BENCHMARKS = EXPERIMENTS / "benchmarks"


def run(script: Path, *flags: str) -> subprocess.CompletedProcess:
    # one thread of BLAS: the processes of a parallel test run share the cores
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(script), *flags], capture_output=True, text=True, env=environment)


def read(path: Path):
    return json.loads(path.read_text())


def test_coordinate_vs_gradient_certifies_and_writes_all_files(tmp_path):
    done = run(EXPERIMENTS / "coordinate_vs_gradient.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        f"coordinate_vs_gradient.{ending}" for ending in ("json", "npz", "pdf", "png")
    }
    document = read(tmp_path / "coordinate_vs_gradient.json")
    assert {claim["id"] for claim in document["claims"]} == {
        "start", "C1", "top", "EM", "grad_mu", "grad_gamma", "same"
    }  # fmt: skip
    assert all(claim["holds"] for claim in document["claims"])
    (case,) = document["cases"]
    arrays = np.load(tmp_path / "coordinate_vs_gradient.npz")
    for row in case["rows"]:
        value = arrays[f"{case['case']} | {row['method']} | value"]
        np.testing.assert_allclose(value[0], case["F_start"], rtol=1e-12)  # one start for all: rounding only
        assert (row["steps"] is None) == (value < case["target"]).all()
        if row["steps"] is not None:
            assert value[row["steps"]] >= case["target"] > value[: row["steps"]].max()


@pytest.mark.parametrize("script", [EXPERIMENTS / "coordinate_vs_gradient.py", BENCHMARKS / "import_time.py"])
def test_bad_arguments_end_in_one_line_and_code_2(script):
    done = run(script, "--seed", "one")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(script.stem)


SCRIPTS = sorted({path.name for path in BENCHMARKS.glob("[!_]*.py")} - {"run.py", "gpu.py", "cost_figure.py"})
JUDGED = {"cost.py", "devices.py", "large_em.py", "large_kmeans.py", "programs.py", "small_fits.py", "streaming.py"}


@pytest.mark.takes_turns("script")
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_comparison_has_its_table(script, tmp_path):
    """A benchmark at its tiny size, every lane of the small fits: the document, the page, and what their rows say."""
    done = run(BENCHMARKS / "run.py", "--quick", "--full", "--only", script, "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = {f"bench_cost.{ending}" for ending in ("json", "pdf", "png")} if script == "cost.py" else set()
    assert {path.name for path in tmp_path.iterdir()} == {"bench.json", "bench.md"} | figures
    page, found = (tmp_path / "bench.md").read_text(encoding="utf-8"), read(tmp_path / "bench.json")["comparisons"]
    comparisons = {comparison["name"]: comparison for comparison in found}
    assert len(comparisons) == len(found) > 0
    judged = False
    for name, comparison in comparisons.items():
        judges = [judge for start, judge in JUDGES.items() if name.startswith(start)]
        judged |= bool(judges)
        for judge in judges:
            judge(comparison)
        assert f"## {name}\n" in page
        labels = [row["program"] for row in comparison["rows"]]
        if "grid" in comparison:  # a line per size, where there is a row per size and program
            labels = [f"{row['at']:,}" for row in comparison["rows"]]
        assert all(f"| {label} |" in page for label in labels)
        assert all({"value", "limit", "met"} <= goal.keys() for goal in comparison["goals"])
    assert judged == (script in JUDGED)


def ends_at_one_objective(comparison):
    """Same start, same number of iterations: the same answer, to float32; what is not installed is a line."""
    for row in comparison["rows"]:
        assert row.get("objective") is not None or "skipped" in row["note"]
    fits = [row for row in comparison["rows"] if row.get("objective") is not None]
    assert len({row["iterations"] for row in fits}) == 1
    for size in {row.get("at") for row in fits}:
        objectives = [row["objective"] for row in fits if row.get("at") == size]
        assert len(objectives) >= 2
        np.testing.assert_allclose(objectives, objectives[0], rtol=1e-4)


def agrees_with_scikit_learn(comparison):
    """Same model, starts and tolerance; scikit-learn sees a gain one M-step later, hence the slack."""
    ours, theirs = comparison["rows"]
    assert abs(ours["iterations"] - theirs["iterations"]) <= 2
    np.testing.assert_allclose(ours["objective"], theirs["objective"], rtol=1e-6)


def ends_where_its_family_does(comparison):
    """float32 sums of 2,000 rows in another order: 1e-4 relative."""
    family, program = comparison["rows"]
    assert family["iterations"] == program["iterations"]
    np.testing.assert_allclose(program["objective"], family["objective"], rtol=1e-4)


JUDGES = {
    "large": ends_at_one_objective,
    "cost": ends_at_one_objective,
    "devices": ends_at_one_objective,
    "streaming, D": ends_at_one_objective,
    "small fits, spherical": agrees_with_scikit_learn,
    "program_spherical": ends_where_its_family_does,
    "program_full": ends_where_its_family_does,
}


def test_every_script_is_run(monkeypatch):
    """Each file of benchmarks/ that is a command is one of `run.commands`, and each of those writes a comparison."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    options = argparse.Namespace(devices="1", full=True, quick=False, only=None)
    commands = {command[0] for command in importlib.import_module("run").commands(options)}
    assert commands == set(SCRIPTS)


def test_a_missing_or_failing_peer_is_a_line(monkeypatch):
    """Of four programs one is not installed and one raises: two rows are timed, and all four are there."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    peers, side_by_side = importlib.import_module("_peers"), importlib.import_module("_side_by_side")

    def broken(family, theta, x, steps):
        return peers.Program(lambda: 1 / 0, None)

    def absent(family, theta, x, steps):
        return peers.need("no_such_module", "no-such-package")

    ours = {"jaxem.kmeans": peers.jaxem_kmeans, "scikit-learn KMeans": peers.scikit_learn_kmeans}
    monkeypatch.setattr(peers, "KMEANS", ours | {"absent": absent, "broken": broken})
    x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    rows = side_by_side.rows("kmeans", x, x[:3], 2, repeats=1, pause=0.0)
    assert [row["program"] for row in rows] == ["jaxem.kmeans", "scikit-learn KMeans", "absent", "broken"]
    assert rows[2]["note"] == "skipped: not installed (pip install no-such-package)"
    assert rows[3]["note"] == "failed: ZeroDivisionError: division by zero"
    assert set(side_by_side.speeds(rows)[1]) == {"scikit-learn KMeans"}
