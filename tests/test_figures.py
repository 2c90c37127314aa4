"""The paper's figures: declared, made from saved results, legible in two widths, the same bytes each time, guarded."""

import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import digits
import kmeans_steps
import numpy as np
import outliers
import pytest
import segmentation
from matplotlib.text import Text

from _style import DOUBLE, DPI, SINGLE, panels

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "paper_figures"
LARGEST_PNG = 300_000  # bytes; figures are committed


SMALLEST = 6  # points
TALLEST = 9.6  # inches of a page
MARGIN = 1.0  # points by which two texts may touch


def load(name):
    """paper_figures/NAME.py, whose name may also be an experiment's."""
    spec = importlib.util.spec_from_file_location(f"paper_figures_{name}", FIGURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = load("build")
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
    """The experiment's own figure and one built from its files; and every claim holds, and every word is legible."""
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
    legible_in_both_widths(name, folder)


def legible_in_both_widths(name, folder):
    """On a page, in letters that can be read, none on another, the panels lettered in the order in which one reads."""
    experiment = RESULTS[name]
    document = json.loads((folder / f"{experiment}.json").read_text())
    with np.load(folder / f"{experiment}.npz") as archive:
        arrays = dict(archive)
    titles = []
    for width in (SINGLE, DOUBLE):
        figure = load(name).draw(document, arrays, width)
        figure.draw_without_rendering()
        assert figure.get_figwidth() == width
        assert figure.get_figheight() <= TALLEST
        assert min(text.get_fontsize() for text in texts(figure)) >= SMALLEST
        boxes = [(text.get_text(), extent(text)) for text in texts(figure)]
        high = np.array([width, figure.get_figheight()]) * 72
        outside = [said for said, (low, top) in boxes if (low < -MARGIN).any() or (top > high + MARGIN).any()]
        assert not outside, (width, outside)
        pairs = itertools.combinations(boxes, 2)
        crossing = [(a, b) for (a, one), (b, other) in pairs if overlap(one, other)]
        assert not crossing, (width, crossing)
        titles.append(lettered_titles(figure, in_order=width == SINGLE))
    assert titles[0] == titles[1]


def texts(figure):
    """All that is written, of the numbers at an axis those that are in view."""
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    numbers, seen = set(), set()
    for axis in figure.axes:
        for line, limits in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
            for tick in (*line.get_major_ticks(), *line.get_minor_ticks()):
                numbers |= {tick.label1, tick.label2}
                if min(limits) <= tick.get_loc() <= max(limits):
                    seen |= {tick.label1, tick.label2}
    return [text for text in found if text not in numbers or text in seen]


def extent(text):
    """(lower left, upper right) in points."""
    box = Text.get_window_extent(text)  # of an annotation its words alone
    return tuple(np.array([box.min, box.max]) * 72 / text.get_figure(root=True).dpi)


def overlap(one, other):
    (a, b), (c, d) = one, other
    return bool((np.minimum(b, d) - np.maximum(a, c) > MARGIN).all())


def lettered_titles(figure, *, in_order):
    """Letter -> title; from (a) on, down or across the page."""
    found = {}
    for axis in figure.axes:
        title = re.match(r"\(([a-z])\) (.+)", axis.get_title(loc="left"), re.DOTALL)
        if title:
            spec = axis.get_subplotspec()
            found[title[1]] = (title[2], spec.rowspan.start, spec.colspan.start)
    letters = sorted(found)
    assert letters == list("abcdefghijklmnopqrstuvwxyz"[: len(letters)])
    if in_order:
        by_rows, by_columns = (sorted(letters, key=lambda a: found[a][1:][::step]) for step in (1, -1))
        assert letters in (by_rows, by_columns)
    return {letter: found[letter][0] for letter in letters}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("ending", "width"), [("", DOUBLE), (build.SINGLE, SINGLE)])
def test_every_figure_is_there_for_two_columns_of_a_page_and_for_one(name, ending, width):
    pdf, png = ((FIGURES / f"{name}{ending}.{kind}").read_bytes() for kind in build.ENDINGS)
    left, low, right, high = map(float, re.search(rb"/MediaBox \[ *([\d. ]+?) *\]", pdf)[1].split())
    assert (left, low, right) == (0, 0, pytest.approx(72 * width))
    assert high <= 72 * TALLEST + 0.01  # a PDF rounds its box
    assert int.from_bytes(png[16:20], "big") == DPI * width  # IHDR
    assert len(png) < LARGEST_PNG


def test_a_narrow_page_puts_panels_under_one_another():
    """Unless it is told how, and the height of a row is its own."""
    figure, axes = panels(SINGLE, "ab;cc", narrow_rows=(1, 2, 1))
    assert list(axes) == ["a", "b", "c"]
    assert tuple(figure.get_size_inches()) == (SINGLE, 4)
    assert [axis.get_subplotspec().rowspan.start for axis in axes.values()] == [0, 1, 2]
    figure, axes = panels(DOUBLE, "ab;cc", rows=1.5)
    assert tuple(figure.get_size_inches()) == (DOUBLE, 3)
    assert list(axes["c"].get_subplotspec().colspan) == [0, 1]


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
rows = [{"steps": 3, "seconds": _tiny_part.now()}]
document = {"config": config, "claims": claims, "rows": rows, "provenance": {"seconds": _tiny_part.now()}}
(folder / "tiny.json").write_text(json.dumps(document))
np.savez(folder / "tiny.npz", x=x)
with open(folder / "runs.txt", "a") as log:
    log.write("ran\\n")
"""
PART = "import time\n\n\ndef now():\n    return time.time()\n"
FIGURE = """
from _style import panels, styled
RESULTS = "tiny"
CONFIG = {"data": "tiny"}
DATA = ("experiments/data/tiny.csv",)
@styled
def draw(results, arrays, width):
    figure, axes = panels(width, "a")
    axes["a"].plot(arrays["x"])
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
    "the PNG of one column": ("paper_figures/tiny_single.png", append),
    "no PDF of one column": ("paper_figures/tiny_single.pdf", Path.unlink),
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
    rows = [{"steps": 3, "seconds": 0}]
    path.write_text(json.dumps(document | {"rows": rows, "provenance": {"seconds": 0, "machine": "other"}}))
    assert check(tree) == (0, "")
    path.write_text(json.dumps(document | {"rows": [{"steps": 4, "seconds": 0}]}))
    assert check(tree)[0] == 1


def picture(tree):
    return {path.name: path.read_bytes() for path in (tree / "paper_figures").iterdir() if path.is_file()}


def test_a_second_build_runs_nothing_and_changes_no_byte(tree):
    before = picture(tree)
    for names in ((), ("tiny",)):  # as the manifest says; and drawn in any case
        done = run(tree / "paper_figures" / "build.py", *names)
        assert done.returncode == 0
        assert ("drawn in" in done.stdout) == bool(names)
        assert "all is as paper_figures/MANIFEST.json says" in done.stdout
        assert runs(tree) == 1
        assert before == picture(tree)


def test_another_run_on_the_same_machine_leaves_a_clean_tree(tree):
    """Only its times differ."""
    before = picture(tree)
    times = json.loads((tree / "results" / "tiny.json").read_text())["rows"]
    shutil.rmtree(tree / "results")
    done = run(tree / "paper_figures" / "build.py")
    assert "all is as paper_figures/MANIFEST.json says" in done.stdout
    assert times != json.loads((tree / "results" / "tiny.json").read_text())["rows"]
    assert before == picture(tree)


def test_elsewhere_the_build_says_what_differs(tree):
    """Another version, another digit; the manifest is then this machine's."""
    path, results = tree / "paper_figures" / "MANIFEST.json", tree / "results" / "tiny.json"
    manifest = json.loads(path.read_text())
    here = manifest["versions"]["matplotlib"]
    path.write_text(json.dumps(manifest | {"versions": manifest["versions"] | {"matplotlib": "1.0"}}))
    results.write_text(results.read_text().replace('"worst": 0', '"worst": 0.5'))
    done = run(tree / "paper_figures" / "build.py")
    assert done.returncode == 0
    assert "differs from the paper_figures/MANIFEST.json that was here" in done.stdout
    assert "tiny: results: tiny.json" in done.stdout
    assert f"matplotlib 1.0 there, {here} here" in done.stdout
    assert "tiny.npz" not in done.stdout.split("differs from")[1]
    assert check(tree) == (0, "")


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
