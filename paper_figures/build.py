"""Every figure of the paper from the experiments' results, and the manifest of what each was made from.

    python paper_figures/build.py [NAME ...] [--results DIR]   run and draw what MANIFEST.json does not have, say what
                                                               differs from it, write it; a NAME is drawn in any case
    python paper_figures/build.py --check                      does everything still match MANIFEST.json?
    python paper_figures/build.py NAME --results DIR --out DIR [--single]
                                                               draw some results elsewhere, no manifest

A figure is a script beside this one: `draw(results, arrays, width) -> Figure` from results/NAME.json (a dict) and
NAME.npz (a dict of arrays). It is drawn twice, as NAME for two columns of a page and as NAME_single for one. Literals
declare what it reads:

    RESULTS = "sigma_sweep"              the experiment, experiments/sigma_sweep.py
    CONFIG = {"data": "old_faithful"}    optional: entries of the results' config that the figure of the paper needs,
                                         beside {"seed": 0, "quick": False}
    DATA = ("experiments/data/x.csv",)   optional: data files of the experiment

Two builds from the same results give the same bytes, and two runs of an experiment on one machine the same results,
times apart: keys that end in "seconds" and `provenance` are not compared. An experiment is run when its results are
missing, or when it or its data changed since MANIFEST.json recorded those results. `--check` needs nothing but Python.
"""

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
EXPERIMENTS = ROOT / "experiments"
MANIFEST = HERE / "MANIFEST.json"
STYLE = EXPERIMENTS / "_style.py"
DEFAULTS = {"seed": 0, "quick": False}
SINGLE = "_single"  # what a figure's name ends in where it is one column wide
ENDINGS = ("pdf", "png")
REMEDY = "run: make figures"


class BuildError(Exception):
    """What is wrong with which figure, in one line."""


# ---- what a figure is made from


def scripts() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem != "build" and not path.stem.startswith("_"))


def declaration(name: str) -> dict[str, Any]:
    """RESULTS, CONFIG and DATA of a script, read without running it."""
    found: dict[str, Any] = {"CONFIG": {}, "DATA": ()}
    for node in ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            target = node.targets[0].id
            if target in ("RESULTS", "CONFIG", "DATA"):
                found[target] = ast.literal_eval(node.value)
    if not isinstance(found.get("RESULTS"), str):
        raise BuildError(f'{name}: paper_figures/{name}.py must declare RESULTS = "the name of an experiment"')
    return found


def with_imports(path: Path) -> list[Path]:
    """A script and the modules of experiments/ that it imports, directly or not."""
    found, queue = [], [path]
    while queue:
        path = queue.pop()
        if path not in found:
            found.append(path)
            queue.extend(local_imports(path))
    return found


def local_imports(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            candidate = EXPERIMENTS.joinpath(*name.split(".")).with_suffix(".py")
            if candidate.is_file():
                yield candidate


def sources(name: str) -> dict[str, dict[str, str]]:
    """Path -> sha256 of everything in the repository behind a figure, by kind."""
    declared = declaration(name)
    experiment = EXPERIMENTS / f"{declared['RESULTS']}.py"
    if not experiment.is_file():
        raise BuildError(f"{name}: {relative(experiment)}, its experiment, does not exist")
    data = [ROOT / path for path in declared["DATA"]]
    missing = [relative(path) for path in data if not path.is_file()]
    if missing:
        raise BuildError(f"{name}: input {missing[0]} does not exist")
    drawing = [path for path in with_imports(HERE / f"{name}.py") if path != STYLE]
    running = [path for path in with_imports(experiment) if path != STYLE and path not in drawing]
    return {"script": digests(drawing), "style": digests([STYLE]), "inputs": digests(running + data)}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def digests(paths: list[Path]) -> dict[str, str]:
    return {relative(path): sha256(path.read_bytes()) for path in sorted(paths)}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def result_digests(experiment: str, results: Path) -> dict[str, str] | None:
    """sha256 of NAME.json, `provenance` and times apart, and of NAME.npz; None when one is missing."""
    document, arrays = results / f"{experiment}.json", results / f"{experiment}.npz"
    if not (document.is_file() and arrays.is_file()):
        return None
    content = {name: value for name, value in read(document).items() if name != "provenance"}
    return {
        document.name: sha256(json.dumps(timeless(content), sort_keys=True).encode()),
        arrays.name: sha256(arrays.read_bytes()),
    }


def timeless(value: Any) -> Any:
    """Without the entries that a clock measured: no two runs have the same."""
    if isinstance(value, dict):
        return {key: timeless(entry) for key, entry in value.items() if not key.endswith("seconds")}
    return [timeless(entry) for entry in value] if isinstance(value, list) else value


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise BuildError(f"{path}: is not JSON: {error}") from None


def read_manifest() -> dict[str, Any]:
    return read(MANIFEST) if MANIFEST.is_file() else {"versions": {}, "figures": {}}


# ---- build


def build(names: list[str], results: Path, *, redraw: bool) -> None:
    """The paper's figures and their manifest; without `redraw` what already is as the manifest says stays."""
    recorded = read_manifest()
    entries = {name: entry for name, entry in recorded["figures"].items() if name in scripts()}
    known, news = recorded["versions"] == versions(), []
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] {name}: ", end="", flush=True)
        declared, old, new = declaration(name), entries.get(name, {}), sources(name)
        if must_run(declared["RESULTS"], results, old, new):
            run_experiment(declared["RESULTS"], results)
        document = usable_results(name, declared, results, strict=True)
        new["results"] = result_digests(declared["RESULTS"], results) or {}
        new["figures"] = digests([path for path in files(name, HERE) if path.is_file()])
        if new == old and known and not redraw:
            print("as MANIFEST.json says", flush=True)
            continue
        new["figures"] = digests(draw(name, document, results, HERE))
        news += [f"{name}: {kind}: {path}" for kind, path, _ in changes(old, new)]
        entries[name] = new
        write_manifest(entries)
    say_news(news, recorded["versions"])


def say_news(news: list[str], before: dict[str, str]) -> None:
    """What differs from the manifest that was there."""
    now = versions()
    news += [
        f"{part} {before.get(part, 'unknown')} there, {now[part]} here" for part in now if before.get(part) != now[part]
    ]
    if not news:
        print(f"all is as {relative(MANIFEST)} says")
    elif before:
        print(f"differs from the {relative(MANIFEST)} that was here, which is written anew:")
        print("\n".join(f"  {line}" for line in news))


def elsewhere(names: list[str], results: Path, out: Path, *, single: bool) -> None:
    """Some results drawn into another folder."""
    for name in names:
        print(f"{name}: ", end="", flush=True)
        draw(name, usable_results(name, declaration(name), results, strict=False), results, out, widths=(single,))


def must_run(experiment: str, results: Path, entry: dict[str, Any], behind: dict[str, Any]) -> bool:
    """Missing, or known to come from an earlier version of the experiment or its data."""
    present = result_digests(experiment, results)
    return present is None or bool(entry and entry["results"] == present and entry["inputs"] != behind["inputs"])


def run_experiment(experiment: str, results: Path) -> None:
    print(f"running experiments/{experiment}.py … ", end="", flush=True)
    clock = time.perf_counter()
    command = [sys.executable, str(EXPERIMENTS / f"{experiment}.py"), "--out", str(results), "--no-plot"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    if done.returncode:
        print(done.stdout[-4000:] + done.stderr[-4000:])
        raise BuildError(f"experiments/{experiment}.py ended with code {done.returncode}")
    print(f"{time.perf_counter() - clock:.1f} s, ", end="", flush=True)


def usable_results(name: str, declared: dict[str, Any], results: Path, *, strict: bool) -> dict[str, Any]:
    """The results' JSON; for the paper (`strict`) of the right configuration and with every claim holding."""
    path = results / f"{declared['RESULTS']}.json"
    if result_digests(declared["RESULTS"], results) is None:
        raise BuildError(f"{name}: {path.with_suffix('')}.{{json,npz}}: missing")
    document = read(path)
    arrays = path.with_suffix(".npz")
    if document.get("provenance", {}).get("files", {}).get(arrays.name) not in (None, sha256(arrays.read_bytes())):
        raise BuildError(
            f"{name}: {path} and {arrays.name} are of two runs: run experiments/{declared['RESULTS']}.py anew"
        )
    if strict:
        for key, wanted in (DEFAULTS | declared["CONFIG"]).items():
            if document["config"].get(key, wanted) != wanted:
                raise BuildError(
                    f"{name}: {path} was made with {key} = {document['config'][key]!r}, the figure needs {wanted!r}: "
                    "move it away, or name another folder with --results"
                )
        for claim in document["claims"]:
            if not claim["holds"]:
                raise BuildError(f"{name}: claim {claim['id']} fails in {path}")
    return document


def draw(
    name: str, document: dict[str, Any], results: Path, folder: Path, widths: tuple[bool, ...] = (False, True)
) -> list[Path]:
    """folder/NAME and folder/NAME_single, each as .pdf and .png, all or none; `widths`: is it one column?"""
    sys.path[:0] = [path for path in (str(EXPERIMENTS),) if path not in sys.path]
    import numpy as np

    import _style

    clock = time.perf_counter()
    spec = importlib.util.spec_from_file_location(f"paper_figure_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    with np.load((results / declaration(name)["RESULTS"]).with_suffix(".npz")) as archive:
        arrays = dict(archive)
    made = [path for single in widths for path in files(name, folder, (single,))]
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        for single in widths:
            figure = script.draw(document, arrays, _style.SINGLE if single else _style.DOUBLE)
            for path in files(name, Path(partial), (single,)):
                _style.save(figure, path)
        for path in made:
            os.replace(Path(partial) / path.name, path)
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e3:.0f} kB" for path in made)
    print(f"drawn in {time.perf_counter() - clock:.1f} s: {sizes}", flush=True)
    return made


def files(name: str, folder: Path, widths: tuple[bool, ...] = (False, True)) -> list[Path]:
    """What a figure is written to."""
    return [folder / f"{name}{SINGLE if single else ''}.{ending}" for single in widths for ending in ENDINGS]


def versions() -> dict[str, str]:
    """Of what decides the bytes of a figure, and the last digits of a result."""
    packages = {package: importlib.metadata.version(package) for package in ("matplotlib", "numpy", "pillow", "jax")}
    return packages | {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}


def write_manifest(entries: dict[str, Any]) -> None:
    content = {"versions": versions(), "figures": dict(sorted(entries.items()))}
    partial = MANIFEST.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, MANIFEST)


# ---- check


def check(results: Path) -> list[str]:
    """What does not match the manifest, a line each."""
    if not MANIFEST.is_file():
        return [f"{relative(MANIFEST)} is missing; {REMEDY}"]
    entries, names = read_manifest()["figures"], scripts()
    wrong = [f"{name}: has no entry in MANIFEST.json; {REMEDY}" for name in names if name not in entries]
    wrong += [f"{name}: script: paper_figures/{name}.py is missing; {REMEDY}" for name in entries if name not in names]
    for name in names:
        if name in entries:
            wrong += differences(name, entries[name], results)
    known = {path for entry in entries.values() for path in entry["figures"]}
    drawn = {relative(path) for ending in ENDINGS for path in HERE.glob(f"*.{ending}")}
    return wrong + [f"{path}: no figure of MANIFEST.json has this file" for path in sorted(drawn - known)]


def differences(name: str, entry: dict[str, Any], results: Path) -> Iterator[str]:
    try:
        now = sources(name)
        made_from = result_digests(declaration(name)["RESULTS"], results)
    except (BuildError, SyntaxError) as error:
        yield str(error)
        return
    now["figures"] = digests([path for path in files(name, HERE) if path.is_file()])
    now["results"] = entry["results"] if made_from is None else made_from
    for kind, path, what in changes(entry, now):
        shown = f"{results / path}" if kind == "results" else path
        yield f"{name}: {kind}: {shown} {what}; {REMEDY}"


def changes(old: dict[str, dict[str, str]], new: dict[str, dict[str, str]]) -> Iterator[tuple[str, str, str]]:
    """(kind, path, how) of every digest in which the second entry is not the first."""
    for kind, found in new.items():
        recorded = old.get(kind, {})
        for path in sorted(recorded.keys() | found.keys()):
            if path not in found:
                yield kind, path, "is missing"
            elif path not in recorded:
                yield kind, path, "is not in MANIFEST.json"
            elif recorded[path] != found[path]:
                yield kind, path, "does not match MANIFEST.json"


# ---- the command line


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures to draw (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR", help="default: results/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="draw into this folder, leave MANIFEST.json alone")
    parser.add_argument("--single", action="store_true", help="with --out: one column wide, 3.4 inches")
    parser.add_argument("--check", action="store_true", help="compare everything with MANIFEST.json, draw nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in scripts()]
    if unknown:
        parser.error(f"no figure {unknown[0]!r}; there are {', '.join(scripts())}")
    if options.check:
        wrong = check(options.results)
        for line in wrong:
            print(f"figures-check: {line}", file=sys.stderr)
        if not wrong:
            print(f"figures-check: {len(scripts())} figures match MANIFEST.json")
        return 1 if wrong else 0
    try:
        if options.out is None:
            build(options.names or scripts(), options.results, redraw=bool(options.names))
        else:
            elsewhere(options.names or scripts(), options.results, options.out, single=options.single)
    except BuildError as error:
        print(f"\nbuild: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
