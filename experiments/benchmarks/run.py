"""All comparisons, one subprocess each; the tables of speed and memory.

    python experiments/benchmarks/run.py [--full] [--seed S] [--out DIR] [--quick]

Writes DIR/bench.json and DIR/bench.md. Targets are reported, never asserted: exits 1 only if a comparison breaks.
Run it on a machine with nothing else to do.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _timing import cores, load, parser, seconds, verdict

HERE = Path(__file__).resolve().parent
LARGE = ("full", "diagonal", "spherical", "tied", "kmeans")


def commands(quick: bool, full: bool) -> list[list[str]]:
    large = [["large_em.py", "--case", case] for case in (("full", "kmeans") if quick else LARGE)]
    rest = [["programs.py"], ["import_time.py"], ["sweep_cost.py"]]
    return [["small_fits.py", *["--full"] * full], *large, *rest]


def run_all(options: Any) -> list[dict[str, Any]]:
    """Each in its own process, so that none inherits another's caches, threads or peak of memory."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for script, *flags in commands(options.quick, options.full):
            shared = ["--seed", str(options.seed), "--out", folder, *["--quick"] * options.quick]
            done = subprocess.run([sys.executable, str(HERE / script), *flags, *shared], check=False)
            written = sorted(Path(folder).glob("bench_*.json"))
            if done.returncode != 0 or not written:
                sys.exit(f"run: {script} {' '.join(flags)} ended with {done.returncode}")
            for path in written:
                found += load(path)
                path.unlink()
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
        text += ["", f"## {comparison['name']}", "", f"{comparison['statement']}.{start}", ""]
        text += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
        text += ["| " + " | ".join(cells(row, setting)) + " |" for row in comparison["rows"]]
        text += ["", *(f"- {row['program']}: {row['note']}" for row in comparison["rows"] if row.get("note"))]
        text += [f"- **{verdict(goal)}**" for goal in comparison.get("goals", [])]
    return "\n".join(text) + "\n"


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
    options = parser("run", __doc__)
    options.add_argument("--full", action="store_true", help="time all of scikit-learn's small fits")
    options = options.parse_args(arguments)
    found = run_all(options)
    from _results import as_json, provenance, writable_folder, written_together

    where = provenance() | {"cores": cores()}
    folder = writable_folder(options.out)
    with written_together(folder) as write:
        write("bench.json", lambda path: path.write_text(as_json({"provenance": where, "comparisons": found})))
        write("bench.md", lambda path: path.write_text(markdown(found, where), encoding="utf-8"))
    print(f"wrote {folder}/bench.{{json,md}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
