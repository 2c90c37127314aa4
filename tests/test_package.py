"""The package's manners: one direction of imports, no side effect, tags of equations, honest metadata."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxem
from jaxem._core.model import Model

import turns

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxem"

# Imports go one way: a room may import from those on floors before its own, and on its own floor without a cycle.
LAYERS = [
    {"_version", "_core", "bregman"},
    {"_rows", "_programs"},
    {"families"},
    {"_fit", "_answers", "inits"},
    {"limits", "plot", "sklearn"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imported_parts(path):
    """The jaxem modules that a file imports, as their first name under the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "jaxem":
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("jaxem."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for other in imported_parts(path):
        if other != own:
            assert RANK[other] <= RANK[own], f"{own} imports {other}"
    for line in path.read_text().splitlines():
        assert not re.match(r"\s*(from|import) (experiments|paper_figures|_data|_results)\b", line)


def imports_within_a_layer():
    edges = {}
    for path in modules():
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        edges.setdefault(own, set()).update(other for other in imported_parts(path) if other != own)
    return edges


def test_no_cycle_of_imports():
    edges, done = imports_within_a_layer(), set()

    def visit(name, above):
        assert name not in above, f"cycle through {name}"
        if name not in done:
            for other in edges.get(name, ()):
                visit(other, above | {name})
            done.add(name)

    for name in edges:
        visit(name, frozenset())


def test_families_know_nothing_of_programs():
    """Nor does what they import; above them fits, answers and starts do, and what is built on those."""
    edges = imports_within_a_layer()
    below, found = {"families"}, set()
    while below - found:
        room = (below - found).pop()
        found.add(room)
        below |= edges.get(room, set())
    assert found == {"families", "_rows", "_core", "bregman"}
    assert {room for room, others in edges.items() if "_programs" in others} <= {"_fit", "_answers", "inits", "limits"}


def test_the_seam_is_narrow():
    """What a family is made of, and what a fit asks of a model, can be told on one hand or two."""
    assert len(dataclasses.fields(jaxem.Mixture)) <= 10
    things = {name: thing for name, thing in vars(Model).items() if not name.startswith("__")}
    asked = {name for name, thing in things.items() if callable(thing) or isinstance(thing, property)}
    assert len(asked) <= 6
    for kind in (jaxem.Mixture, jaxem.Program):
        assert [name for name in asked if getattr(kind, name) is things[name]] == [], kind


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_a_file_fits_in_the_head():
    """No file over 400 lines and eight at most outside of a room; an experiment has 300."""
    assert {str(path.relative_to(ROOT)): lines(path) for path in PACKAGE.rglob("*.py") if lines(path) > 400} == {}
    assert len([*PACKAGE.glob("*.py")]) <= 8
    experiments = (ROOT / "experiments").rglob("*.py")
    assert {str(path.relative_to(ROOT)): lines(path) for path in experiments if lines(path) > 300} == {}


def test_importing_changes_nothing_and_starts_no_backend():
    program = """
import os, jax, numpyro
before = (dict(jax.config.values), dict(os.environ))
import jaxem
from jaxem.families import gaussian
assert dict(jax.config.values) == before[0], "jax.config changed"
assert dict(os.environ) == before[1], "the environment changed"
from jax._src import xla_bridge
assert not xla_bridge._backends, "a backend was started"
import sys
assert "numpyro.contrib.funsor" not in sys.modules, "funsor's backend was set"
assert not {"matplotlib", "sklearn"} & set(sys.modules), "an extra was imported"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_has_a_docstring_with_an_example():
    for name in jaxem.__all__:
        thing = getattr(jaxem, name)
        assert thing.__doc__, name
        if callable(thing) and not isinstance(thing, type):
            assert ">>>" in thing.__doc__, f"{name} has no example"


def test_all_is_what_is_public():
    public = {name for name in vars(jaxem) if not name.startswith("_")}
    public -= {"jaxtyping", "sklearn"}  # the tests' type hook, and what only `import jaxem.sklearn` brings
    assert public == set(jaxem.__all__)


def test_the_version_is_the_changelogs_and_the_citations():
    assert f"## {jaxem.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {jaxem.__version__}" in (ROOT / "CITATION.cff").read_text()


def test_constraints_are_pins_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line), line


def test_turns_come_past_everything():
    """Each leg takes a sixth of what a statement is made of, the two legs others, and the other turns the rest."""
    names = [f"family {i}" for i in range(12)]
    parts = [turns.taken(names, "a statement", str(turn)) for turn in range(turns.ROUND)]
    assert [len(part) for part in parts] == [2] * 6
    assert set.union(*parts) == set(names) == turns.taken(names, "a statement", "all")
    assert {frozenset(turns.taken(names, f"statement {i}", "0")) for i in range(99)} == set(map(frozenset, parts))
    assert turns.taken(names[: turns.FEW], "a statement", "2") == set(names[: turns.FEW])


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process has all")
def test_what_shares_compiled_programs_goes_to_one_worker(request):
    """pytest 9.2 loses the groups that pytest-xdist 3.8 deals out: everything is then compiled by every worker."""
    assert request.node.nodeid.endswith("@test_package.py")
