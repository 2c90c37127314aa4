"""All comparisons, one subprocess each; the tables of speed and memory.

    python experiments/benchmarks/run.py [--only SCRIPT …] [--full] [--seed S] [--out DIR] [--quick] [--devices 1|all]

Writes DIR/bench.json and DIR/bench.md, and of cost.py DIR/bench_cost.json with its figure. Targets are reported, never
asserted: exits 1 only if a comparison breaks. Run it on a machine with nothing else to do.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _timing import cores, load, parser, seconds, verdict

HERE = Path(__file__).resolve().parent
LARGE = {"large_em.py": ("full", "diagonal", "spherical", "tied"), "large_kmeans.py": ("D32", "D2", "D128")}
SPREAD = ("memory.py", "streaming.py", "cost.py")  # these, and the large ones, know --devices
PEERS = ("scikit-learn-intelex", "daal", "faiss-cpu", "gmmx", "dynamax")


def commands(options: argparse.Namespace) -> list[list[str]]:
    devices = ["--devices", options.devices]
    large = [
        [script, "--case", case, *devices]
        for script, cases in LARGE.items()
        for case in (cases[:1] if options.quick else cases)
    ]
    small = ["small_fits.py", *["--full"] * options.full, *devices]
    rest = [
        [f"{name}.py"]
        for name in ("devices", "programs", "program_rows", "mclust", "import_time", "first_call", "sweep_cost")
    ]
    every = [small, *large, *([script, *devices] for script in SPREAD), *rest]
    return [command for command in every if not options.only or command[0] in options.only]


def run_all(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Each in its own process, so that none inherits another's caches, threads or peak of memory; by file written."""
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for script, *flags in commands(options):
            shared = ["--seed", str(options.seed), "--out", folder, *["--quick"] * options.quick]
            before = set(Path(folder).glob("bench_*.json"))
            done = subprocess.run([sys.executable, str(HERE / script), *flags, *shared], check=False)
            written = set(Path(folder).glob("bench_*.json")) - before
            if done.returncode != 0 or not written:
                sys.exit(f"run: {script} {' '.join(flags)} ended with {done.returncode}")
            found |= {path.name: load(path) for path in written}
    return found


# ---- the page

HEADER = ["program", "N", "D", "K", "float", "median", "quartiles", "first call", "iterations", "objective", "peak"]


def markdown(found: list[dict[str, Any]], provenance: dict[str, Any]) -> str:
    """One table a comparison, each with its statement, start and targets."""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items() if version)
    text = [
        "# Benchmarks",
        "",
        f"{provenance['cores']} cores, {provenance['platform']}, Python {provenance['python']}; {versions}.",
        "Medians and quartiles of warm calls. First call: what it took beyond a warm one, compilation above all.",
        "Peak: memory beyond the data while fitting (the main job: of the whole process).",
    ]
    for comparison in found:
        setting = comparison.get("setting", {})
        start = f" Start: {setting['start']}." if setting else ""
        start += f" JAX devices: {setting['devices']}." if "devices" in setting else ""
        text += ["", f"## {comparison['name']}", "", f"{comparison['statement']}.{start}", ""]
        rows = [row for row in comparison["rows"] if "grid" not in comparison]
        text += table(comparison.get("grid") or [HEADER, *(cells(row, setting) for row in rows)])
        text += ["", *(f"- {row['program']}: {row['note']}" for row in rows if row.get("note"))]
        text += [f"- {remark}" for remark in comparison.get("remarks", [])]
        text += [f"- **{verdict(goal)}**" for goal in comparison.get("goals", [])]
    return "\n".join(text) + "\n"


def table(cells: list[list[str]]) -> list[str]:
    head, *rest = ["| " + " | ".join(line) + " |" for line in cells]
    return [head, "|" + "---|" * len(cells[0]), *rest]


def cells(row: dict[str, Any], setting: dict[str, Any]) -> list[str]:
    def show(name: str, form: Any) -> str:
        return form(row[name]) if row.get(name) else "–"

    timed = row.get("median") is not None
    return [
        row["program"],
        *(f"{setting[name]:,}" if name in setting else "–" for name in ("N", "D", "K", "precision")),
        seconds(row["median"]) if timed else "–",
        f"{seconds(row['q1'])} – {seconds(row['q3'])}, {row['repeats']}×" if timed else "–",
        show("compile_seconds", lambda s: f"+{s:.2f} s"),
        show("iterations", lambda n: f"{n:.4g}"),
        show("objective", lambda value: f"{value:.9g}"),
        show("memory_mb", lambda mb: f"{mb:.0f} MB"),
    ]


def main(arguments: list[str] | None = None) -> int:
    options = parser("run", __doc__, devices=True)
    options.add_argument("--full", action="store_true", help="time all of scikit-learn's small fits")
    every = argparse.Namespace(devices="1", full=True, quick=True, only=None)
    scripts = sorted({script for script, *_ in commands(every)})
    options.add_argument("--only", nargs="+", choices=scripts, metavar="SCRIPT", help="of all these files")
    options = options.parse_args(arguments)
    by_file = run_all(options)
    found = [comparison for comparisons in by_file.values() for comparison in comparisons]
    import cost_figure
    from _results import as_json, provenance, writable_folder, written_together
    from _style import save

    where = provenance()
    where |= {"cores": cores(), "versions": where["versions"] | {peer: version(peer) for peer in PEERS}}
    costs = by_file.get("bench_cost.json")
    folder = writable_folder(options.out)
    with written_together(folder) as write:
        write("bench.json", lambda path: path.write_text(as_json({"provenance": where, "comparisons": found})))
        write("bench.md", lambda path: path.write_text(markdown(found, where), encoding="utf-8"))
        if costs:
            figure = cost_figure.draw(costs)
            write("bench_cost.json", lambda path: path.write_text(as_json(costs)))
            for ending in ("pdf", "png"):
                write(f"bench_cost.{ending}", lambda path: save(figure, path))
    print(f"wrote {folder}/bench.{{json,md}}" + " and bench_cost.{json,pdf,png}" * bool(costs))
    return 0


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
