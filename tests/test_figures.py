"""The paper's figures: declared, made from saved results, the same bytes each time, and guarded by the manifest."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import digits
import kmeans_steps
import outliers
import pytest
import segmentation

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "paper_figures"
LARGEST_PNG = 300_000  # bytes; figures are committed


def load_build():
    spec = importlib.util.spec_from_file_location("paper_figures_build", FIGURES / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load_build()
NAMES = build.scripts()
RESULTS = {name: build.declaration(name)["RESULTS"] for name in NAMES}
FIGURES_OF = {experiment: [name for name in NAMES if RESULTS[name] == experiment] for experiment in RESULTS.values()}


def run(script, *arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    environment.pop("JAX_ENABLE_X64", None)
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


# ---- the figures themselves


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_declares_its_results(name):
    declared = build.declaration(name)
    assert (ROOT / "experiments" / f"{declared['RESULTS']}.py").is_file()
    assert all((ROOT / path).is_file() for path in declared["DATA"])
    assert isinstance(declared["CONFIG"], dict)


@pytest.mark.takes_turns("name")
@pytest.mark.parametrize(("name", "experiment"), RESULTS.items())
def test_two_builds_from_one_result_are_the_same_bytes(name, experiment, quick_run, tmp_path):
    """The experiment's own figure and one built from its files; and every claim holds in quick mode."""
    folder = quick_run(experiment)
    figures = {f"{name}.{ending}" for name in FIGURES_OF[experiment] for ending in build.ENDINGS}
    assert {path.name for path in folder.iterdir()} == {f"{experiment}.json", f"{experiment}.npz"} | figures
    assert all(claim["holds"] for claim in json.loads((folder / f"{experiment}.json").read_text())["claims"])
    done = run(FIGURES / "build.py", name, "--results", folder, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pdf, png = ((tmp_path / f"{name}.{ending}").read_bytes() for ending in build.ENDINGS)
    assert (pdf, png) == tuple((folder / f"{name}.{ending}").read_bytes() for ending in build.ENDINGS)
    assert pdf.startswith(b"%PDF")
    assert b"CreationDate" not in pdf
    assert len(png) < LARGEST_PNG


def test_experiments_do_not_import_figures():
    for path in (ROOT / "experiments").rglob("*.py"):
        reached = build.with_imports(path)
        assert not any(FIGURES in other.parents for other in reached), path


# ---- the manifest, on a small tree of its own

EXPERIMENT = """
import json, sys
from pathlib import Path
import numpy as np
import _tiny_part
folder = Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(exist_ok=True)
x = np.loadtxt(Path(__file__).parent / "data" / "tiny.csv")
claims = [{"id": "T", "statement": "", "worst": 0, "bound": 1, "holds": True}]
config = {"seed": 0, "quick": False, "data": "tiny"}
document = {"config": config, "claims": claims, "provenance": {"seconds": _tiny_part.now()}}
(folder / "tiny.json").write_text(json.dumps(document))
np.savez(folder / "tiny.npz", x=x)
with open(folder / "runs.txt", "a") as log:
    log.write("ran\\n")
"""
PART = "import time\n\n\ndef now():\n    return time.time()\n"
FIGURE = """
from _style import SINGLE, page, styled
RESULTS = "tiny"
CONFIG = {"data": "tiny"}
DATA = ("experiments/data/tiny.csv",)
@styled
def draw(results, arrays):
    figure = page(SINGLE, 1)
    figure.subplots().plot(arrays["x"])
    return figure
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tree with one figure, built."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("paper_figures", "experiments/data"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(FIGURES / "build.py", tree / "paper_figures")
    shutil.copy(ROOT / "experiments" / "_style.py", tree / "experiments")
    (tree / "experiments" / "tiny.py").write_text(EXPERIMENT)
    (tree / "experiments" / "_tiny_part.py").write_text(PART)
    (tree / "experiments" / "data" / "tiny.csv").write_text("1\n3\n2\n")
    (tree / "paper_figures" / "tiny.py").write_text(FIGURE)
    done = run(tree / "paper_figures" / "build.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[1/1] tiny: running experiments/tiny.py" in done.stdout
    return tree


@pytest.fixture
def tree(built, tmp_path):
    return Path(shutil.copytree(built, tmp_path / "tree"))


def check(tree):
    done = run(tree / "paper_figures" / "build.py", "--check")
    return done.returncode, done.stderr


def runs(tree):
    return len((tree / "results" / "runs.txt").read_text().splitlines())


def append(path):
    path.write_bytes(path.read_bytes() + b"\n# changed\n")


def test_the_check_passes_on_a_built_tree_and_without_results(tree):
    assert check(tree) == (0, "")
    shutil.rmtree(tree / "results")
    assert check(tree) == (0, "")


TAMPERING = {
    "the script": ("paper_figures/tiny.py", append),
    "the style": ("experiments/_style.py", append),
    "the experiment": ("experiments/tiny.py", append),
    "what the experiment imports": ("experiments/_tiny_part.py", append),
    "the data": ("experiments/data/tiny.csv", append),
    "no data": ("experiments/data/tiny.csv", Path.unlink),
    "the results' numbers": (
        "results/tiny.json",
        lambda path: path.write_text(path.read_text().replace('"bound": 1', '"bound": 2')),
    ),
    "the results' arrays": ("results/tiny.npz", append),
    "the PDF": ("paper_figures/tiny.pdf", append),
    "the PNG": ("paper_figures/tiny.png", append),
    "no PNG": ("paper_figures/tiny.png", Path.unlink),
    "no script": ("paper_figures/tiny.py", Path.unlink),
    "no manifest": ("paper_figures/MANIFEST.json", Path.unlink),
    "another script": ("paper_figures/other.py", lambda path: path.write_text(FIGURE)),
    "another figure": ("paper_figures/other.png", lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_the_check_names_the_culprit(kind, tree):
    path, tamper = TAMPERING[kind]
    tamper(tree / path)
    code, message = check(tree)
    assert code == 1
    assert path.removesuffix(".py") in message or "other: has no entry" in message, message
    assert all(line.startswith("figures-check: ") for line in message.splitlines())


def test_seconds_and_machine_are_no_part_of_the_results(tree):
    path = tree / "results" / "tiny.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"provenance": {"seconds": 0, "machine": "other"}}))
    assert check(tree) == (0, "")


def test_a_second_build_runs_nothing_and_changes_no_byte(tree):
    before = {path.name: path.read_bytes() for path in (tree / "paper_figures").iterdir() if path.is_file()}
    assert run(tree / "paper_figures" / "build.py").returncode == 0
    assert runs(tree) == 1
    assert before == {path.name: path.read_bytes() for path in (tree / "paper_figures").iterdir() if path.is_file()}


def test_a_changed_experiment_is_run_again(tree):
    append(tree / "experiments" / "_tiny_part.py")
    assert run(tree / "paper_figures" / "build.py").returncode == 0
    assert runs(tree) == 2
    assert check(tree) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"holds": true', '"holds": false', "claim T fails"),
        ('"data": "tiny"', '"data": "mine"', "was made with data = 'mine', the figure needs 'tiny'"),
        ('"quick": false', '"quick": true', "was made with quick = True"),
        ("{", "", "is not JSON"),
    ],
)
def test_results_that_the_paper_cannot_use(old, new, message, tree):
    path = tree / "results" / "tiny.json"
    path.write_text(path.read_text().replace(old, new))
    before = (tree / "paper_figures" / "tiny.png").read_bytes()
    done = run(tree / "paper_figures" / "build.py")
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (tree / "paper_figures" / "tiny.png").read_bytes() == before


# ---- the shared command line


@pytest.mark.parametrize("arguments", [("--seed", "-1"), ("--seed", "one"), ("--venus",), ("--out", "file/below")])
def test_bad_arguments_end_in_one_line_and_code_2(arguments, tmp_path, monkeypatch, refuses):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    for experiment in (kmeans_steps, outliers, segmentation, digits):
        refuses(experiment, arguments)
