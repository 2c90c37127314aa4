"""The command line that experiments without options of their own share: one line for an error, files all or none."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from _data import DataError
from _results import Claim, as_json, print_claims, provenance, writable_folder, written_together

BUILD = Path(__file__).resolve().parent.parent / "paper_figures" / "build.py"


class Config(NamedTuple):
    """Everything the result depends on."""

    seed: int = 0
    quick: bool = False


class Result(NamedTuple):
    """What `run(config)` returns: numbers for the table, verdicts, and arrays for the figure."""

    summary: dict[str, Any]
    claims: list[Claim]
    arrays: dict[str, np.ndarray]


class OneLineParser(argparse.ArgumentParser):
    """Bad arguments end in exit code 2 with one line."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message}\n")


def parse(name: str, doc: str, arguments: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog=name, description=doc.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results", metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="fewer starts, coarser grids")
    parser.add_argument("--no-plot", action="store_true", help="no PDF and PNG")
    options = parser.parse_args(arguments)
    check_seed(parser, options.seed)
    return options


def check_seed(parser: OneLineParser, seed: int) -> None:
    """What `jax.random.key` tells apart in either precision."""
    if not 0 <= seed < 2**32:
        parser.error(f"--seed: must be in [0, 2^32), got {seed}")


def command(
    name: str,
    doc: str,
    run: Callable[[Config], Result],
    report: Callable[[dict[str, Any]], None],
    arguments: list[str] | None = None,
    *,
    precision: int = 64,
) -> int:
    """Run, report, save NAME.json and NAME.npz, draw; 0 when every claim holds, 1 when one fails, 2 for bad input."""
    options = parse(name, doc, arguments)
    config = Config(options.seed, options.quick)
    try:
        folder = writable_folder(options.out)
    except OSError as error:
        print(f"{name}: --out: cannot write to {options.out}: {error.strerror or error}", file=sys.stderr)
        return 2
    clock = time.perf_counter()
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", precision == 64)
    try:
        result = run(config)
        report(result.summary)
        print_claims(result.claims)
        save(name, config, result, folder, time.perf_counter() - clock)
        if not options.no_plot:
            draw(name, folder)
    except DataError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    finally:
        jax.config.update("jax_enable_x64", before)
    print(f"wrote {folder}/{name}.{{json,npz{'' if options.no_plot else ',pdf,png'}}}")
    return 0 if all(claim.holds for claim in result.claims) else 1


def save(name: str, config: Config, result: Result, folder: Path, seconds: float) -> None:
    """All files or none."""
    document = {
        "config": config._asdict(),
        "summary": result.summary,
        "claims": [claim.as_json() for claim in result.claims],
        "provenance": provenance() | {"seconds": seconds},
    }
    with written_together(folder) as write:
        write(f"{name}.json", lambda path: path.write_text(as_json(document)))
        write(f"{name}.npz", partial(np.savez_compressed, **result.arrays))


def draw(name: str, folder: Path) -> None:
    """The figure of paper_figures/, drawn from the files just saved, as a program of its own."""
    subprocess.run([sys.executable, str(BUILD), name, "--results", str(folder), "--out", str(folder)], check=True)


def leave(code: int) -> None:
    """End the program; a compilation cut short by Ctrl-C can crash the interpreter's own shutdown."""
    sys.stdout.flush()
    if code == 130:
        os._exit(code)
    sys.exit(code)
