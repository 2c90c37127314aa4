"""The σ-sweep's command line."""

import argparse

import numpy as np

from _command import OneLineParser, check_seed
from _data import Reading

MOST_SIGMAS = 10_000_000  # of a grid, and …
MOST_RESTARTS = 100_000  # … of starts, that memory holds


def parse(doc: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="sigma_sweep", description=doc.split("\n")[0])
    parser.add_argument("--data", default="old_faithful", help="old_faithful, iris, blobs, or a .csv or .npy path")
    parser.add_argument("--components", type=int, help="K ≥ 2; default 2 for Old Faithful, 3 otherwise")
    parser.add_argument("--sigmas", nargs=3, metavar=("MAX", "MIN", "COUNT"), help="a geometric grid of σ")
    parser.add_argument("--restarts", type=int, help="random starts at each σ (default 8; with --quick 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", type=int, choices=(32, 64), default=64)
    parser.add_argument("--out", default="results", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="8 values of σ, 2 restarts")
    parser.add_argument("--no-plot", action="store_true", help="no PDF and PNG")
    parser.add_argument("--columns", metavar="A,B,…", help="of a file: names, or numbers from 1")
    parser.add_argument("--sep", default=",", help="of a CSV: what stands between its columns")
    parser.add_argument("--index", action="store_true", help="of a file: its first column is an index, and left out")
    parser.add_argument("--no-standardise", action="store_true", help="take the columns in their own units")
    parser.add_argument("--full", action="store_true", help="all columns of the table")
    options = parser.parse_args(arguments)
    if options.components is None:
        options.components = 2 if options.data == "old_faithful" else 3
    if options.components < 2:
        parser.error(f"--components: must be at least 2, got {options.components}")
    if options.restarts is None:
        options.restarts = 2 if options.quick else 8
    if not 1 <= options.restarts <= MOST_RESTARTS:
        parser.error(f"--restarts: must be at least 1 and at most {MOST_RESTARTS}, got {options.restarts}")
    check_seed(parser, options.seed)
    sep = {"tab": "\t", "\\t": "\t"}.get(options.sep, options.sep)
    if len(sep) != 1 or sep in '"\n\r.' or sep.isalnum():
        parser.error(f"--sep: must be one character that no number has, like ';' or 'tab', got {options.sep!r}")
    wanted = tuple(name.strip() for name in options.columns.split(",")) if options.columns is not None else None
    options.reading = Reading(wanted, sep, options.index, not options.no_standardise)
    if options.sigmas:
        options.sigmas = parse_sigmas(parser, options.sigmas, options.precision)
    return options


def parse_sigmas(parser: OneLineParser, words: list[str], precision: int) -> tuple[float, float, int]:
    try:
        top, bottom, count = float(words[0]), float(words[1]), int(words[2])
    except ValueError:
        parser.error(f"--sigmas: wants two numbers and a whole number, got {' '.join(words)}")
    if not (np.isfinite([top, bottom]).all() and bottom > 0):
        parser.error(f"--sigmas: MAX and MIN must be positive and finite, got {words[0]} {words[1]}")
    if not top > bottom:
        parser.error(f"--sigmas: must decrease from MAX to MIN, got {words[0]} {words[1]}")
    if not 2 <= count <= MOST_SIGMAS:
        parser.error(f"--sigmas: COUNT must be at least 2 and at most {MOST_SIGMAS}, got {count}")
    edge = {32: 1e-15, 64: 1e-100}[precision]  # σ² and what is divided by it stay numbers
    if not (edge <= bottom and top <= 1 / edge):
        parser.error(f"--sigmas: MAX and MIN must be between {edge} and {1 / edge:g}, got {words[0]} {words[1]}")
    return top, bottom, count
