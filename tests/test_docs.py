"""The documentation is true: blocks run, links lead somewhere, every public name has an entry, every page is listed."""

import importlib.util
import inspect
import re
from collections import Counter
from types import ModuleType

import jax
import pytest

import jaxem

import pages

# test_readme.py, as a newcomer; the others in the tests of their names, which go on with what the pages define
ELSEWHERE = {"README.md", *(f"docs/{name}.md" for name in ("extending", "plots", "program_rows", "sklearn"))}
RUN = {pages.name_of(page): page for page in pages.PAGES if pages.blocks(page)}


@pytest.mark.takes_turns("name")
@pytest.mark.parametrize("name", [name for name in RUN if name not in ELSEWHERE])
def test_the_blocks_of_a_page_run(name, tmp_path, monkeypatch):
    (tmp_path / "experiments").symlink_to(pages.ROOT / "experiments")  # their data, as in a clone
    monkeypatch.chdir(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # as users have it; jaxem's own arithmetic is held to more by other tests
        pages.run(RUN[name])


def test_those_that_run_elsewhere_are_there():
    assert set(RUN) >= ELSEWHERE


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name_of)
def test_links_lead_to_files_of_the_repository(page):
    for target in pages.links(page):
        assert (page.parent / target).exists(), target


def public(module, name):
    """(public name, what it is) under a module: modules are opened, and everything else is itself."""
    for each in module.__all__:
        thing = getattr(module, each)
        if isinstance(thing, ModuleType):
            yield from public(thing, f"{name}.{each}")
        elif not isinstance(thing, tuple):  # gaussian.ALL: what is in it has names of its own
            yield f"{name}.{each}", thing


def test_every_public_name_has_one_entry_in_the_reference():
    """What has two names, as `gaussian.full` is mclust's VVV, has an entry under one of them."""
    names = dict(public(jaxem, "jaxem"))
    found = [e for page in pages.PAGES for e in re.findall(r"^::: (\S+)", pages.text(page), flags=re.MULTILINE)]
    assert set(found) <= set(names), set(found) - set(names)
    entries = Counter(id(names[entry]) for entry in found)
    assert [name for name, thing in names.items() if entries[id(thing)] != 1] == []


def test_a_docstring_tells_what_each_argument_is():
    """Of every public function, in a section of its own, so that nobody need read another's."""
    untold = {}
    for name, thing in public(jaxem, "jaxem"):
        function = inspect.unwrap(thing)
        if inspect.isfunction(function):
            told = (function.__doc__ or "").partition("Args:")[2]
            named = [each for each in inspect.signature(function).parameters if each != "self"]
            if missing := [each for each in named if not re.search(rf"\b{each}\b", told)]:
                untold[name] = missing
    assert untold == {}


def test_every_page_is_in_the_sites_navigation():
    """And nothing else: pages from elsewhere under the names that docs/_site.py gives them."""
    config = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- .*?(\S+\.md)$", config.split("\nnav:\n")[1], flags=re.MULTILINE)
    hook = (pages.ROOT / "docs" / "_site.py").read_text(encoding="utf-8")
    placed = re.findall(r'"[\w/]+\.md": "(\w+\.md)"', hook)
    own = [page.relative_to(pages.ROOT / "docs").as_posix() for page in (pages.ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(own + placed)


def test_the_page_of_equations_has_the_tags_of_the_code():
    """A tag such as eq:E stands at the line that implements it and in docs/equations.md."""
    code = {tag for path in (pages.ROOT / "jaxem").rglob("*.py") for tag in re.findall(r"eq:(\w+)", path.read_text())}
    assert code == set(re.findall(r"eq:(\w+)", pages.text(pages.ROOT / "docs" / "equations.md")))


def test_symbols_are_set_in_prose_and_never_in_code():
    spec = importlib.util.spec_from_file_location("_symbols", pages.ROOT / "docs" / "_symbols.py")
    symbols = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(symbols)
    code = "<pre>γ_nk</pre><a href='x_1'><code>e^{x}</code></a>"
    html = "<p>Σ_{k≠l} γ_nk ≤ (K − 1) e^{−(d_nk − d_nl)/2σ²}, argmax_k</p>" + code
    assert symbols.on_page_content(html) == (
        "<p>Σ<sub>k≠l</sub> γ<sub>nk</sub> ≤ (K − 1) e<sup>−(d<sub>nk</sub> − d<sub>nl</sub>)/2σ²</sup>, "
        "argmax<sub>k</sub></p>" + code
    )
    assert symbols.typeset("μ_k(γ), 2σ_c²") == "μ<sub>k</sub>(γ), 2σ<sub>c</sub>²"
    names = "em_vs_svi, num_steps, from_numpyro, C4_rows"
    assert symbols.typeset(names) == names
