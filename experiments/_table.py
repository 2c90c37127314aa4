"""A table on the terminal."""

from typing import Any

Column = tuple[str, str, str]  # its title, the key of its values, and how one is formatted: width.precision and type


def print_table(columns: list[Column], rows: list[dict[str, Any]]) -> None:
    """A line per row; '·' for NaN.

    >>> print_table([("σ", "sigma", "5.2f"), ("steps", "steps", "3d")], [{"sigma": float("nan"), "steps": 7}])
        σ steps
        ·     7
    """
    widths = [max(len(title), int(spec.split(".")[0].rstrip("d"))) for title, _, spec in columns]

    def line(cells: list[str]) -> str:
        return " ".join(text.rjust(width) for text, width in zip(cells, widths, strict=True))

    print(line([title for title, _, _ in columns]))
    for row in rows:
        print(line(["·" if row[key] != row[key] else format(row[key], spec) for _, key, spec in columns]))
