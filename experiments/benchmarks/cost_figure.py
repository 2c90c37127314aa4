"""Cost of an iteration against N, D and K, from the bench_cost.json that `cost.py` wrote: a PDF and a PNG beside it.

    python experiments/benchmarks/cost_figure.py [--out DIR]

`make bench` draws it too. It is not one of `paper_figures/`, whose files are reproduced to the byte: timings never are.
"""

import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from _timing import load, parser  # which puts experiments/ on the path

# isort: split
from _style import BLUE, DOUBLE, GREEN, GREY, ORANGE, PINK, RED, page, save, styled

MARKS = {  # curve: (label, colour, marker)
    "jaxem": ("jaxem", BLUE, "o"),
    "scikit-learn": ("scikit-learn", RED, "s"),
    "oneDAL": ("oneDAL", GREEN, "^"),
    "faiss": ("faiss", ORANGE, "D"),
    "gmmx": ("gmmx", PINK, "v"),
}


def kind(curve: str) -> str:
    """Which of MARKS a program is."""
    return next(name for name in MARKS if curve.startswith(name))


@styled
def draw(found: list[dict[str, Any]]) -> Figure:
    """A row of panels for each family, a column for each of N, D and K."""
    families = list(dict.fromkeys(comparison["family"] for comparison in found))
    axes_names = [axis for axis in "NDK" if any(comparison["axis"] == axis for comparison in found)]
    figure = page(DOUBLE, 0.4 + 2.0 * len(families))
    panels = figure.subplots(len(families), len(axes_names), squeeze=False, sharey="row")
    for panel in panels.flat:
        panel.set_visible(False)
    for comparison in found:
        row, column = families.index(comparison["family"]), axes_names.index(comparison["axis"])
        curves(panels[row, column], comparison, "abcdef"[row * len(axes_names) + column])
    for panel in panels[:, 0]:
        panel.set_ylabel("seconds an iteration")
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    ordered = [label for label, _, _ in MARKS.values() if label in handles]
    ordered += [label for label in handles if label not in ordered]
    figure.legend([handles[label] for label in ordered], ordered, loc="outside upper center", ncols=len(ordered))
    return figure


def curves(panel: Any, comparison: dict[str, Any], letter: str) -> None:
    """Medians with the quartiles as bars, and a line of slope 1 below them."""
    panel.set_visible(True)
    axis = comparison["axis"]
    family = comparison["name"].removeprefix("cost, ").split(" against")[0]
    held = ", ".join(f"${name} = {thousands(comparison['setting'][name])}$" for name in "NDK" if name != axis)
    panel.set_title(f"({letter}) {family}, {held}")
    by_curve: dict[str, list[dict[str, Any]]] = {}
    for row in comparison["rows"]:
        by_curve.setdefault(row["curve"], []).append(row)
    for curve, rows in by_curve.items():
        label, colour, marker = MARKS[kind(curve)]
        at, medians = [row["at"] for row in rows], [row["median"] for row in rows]
        spread = [[row["median"] - row["q1"] for row in rows], [row["q3"] - row["median"] for row in rows]]
        ours = label == "jaxem"
        panel.errorbar(
            at, medians, yerr=spread, label=label, color=colour, marker=marker, markersize=3.2, elinewidth=0.7,
            linewidth=1.8 if ours else 1.0, zorder=3 if ours else 2,
        )  # fmt: skip
    rows = next(iter(by_curve.values()))
    ends = [rows[0]["at"], rows[-1]["at"]]
    low = 0.4 * min(row["median"] * ends[0] / row["at"] for row in rows)
    guide = [low, low * ends[1] / ends[0]]
    panel.plot(ends, guide, color=GREY, linewidth=0.8, linestyle="--", label="slope 1", zorder=1)
    panel.set(xscale="log", yscale="log", xlabel=f"${axis}$")
    if axis != "N":
        panel.set_xscale("log", base=2)
        panel.set_xticks([row["at"] for row in rows], [str(row["at"]) for row in rows])
        panel.minorticks_off()
    panel.yaxis.set_major_locator(LogLocator(numticks=8))
    panel.yaxis.set_minor_formatter(NullFormatter())


def thousands(number: int) -> str:
    return f"{number:,}".replace(",", "{,}")


def main(arguments: list[str] | None = None) -> int:
    options = parser("cost_figure", __doc__).parse_args(arguments)
    path = Path(options.out) / "bench_cost.json"
    try:
        found = load(path)
    except OSError as error:
        print(f"cost_figure: {path}: {error.strerror}; cost.py writes it", file=sys.stderr)
        return 2
    figure = draw(found)
    for ending in ("pdf", "png"):
        save(figure, path.with_suffix(f".{ending}"))
    print(f"wrote {path.with_suffix('')}.{{pdf,png}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
