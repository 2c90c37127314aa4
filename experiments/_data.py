"""The data sets of the experiments, and a user's CSV or NPY, with errors that say which line is wrong."""

import csv
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "data"


class DataError(Exception):
    """Data that cannot be used; the message is one line for the user."""


class DataSet(NamedTuple):
    """Standardised rows and what was taken out of them: x = (raw − centre) / scale."""

    name: str
    columns: list[str]
    x: np.ndarray  # (N, D), each column with mean 0 and standard deviation 1
    centre: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)
    notes: tuple[str, ...] = ()  # what was not taken as it lay there, for the user


class Reading(NamedTuple):
    """How a user's file is to be read."""

    columns: tuple[str, ...] | None = None  # those to keep, by name or by number from 1; None: all
    sep: str = ","
    index: bool = False  # is the first column one, and no data?
    standardise: bool = True


def load(name: str, reading: Reading = Reading()) -> DataSet:  # noqa: B008 (a NamedTuple does not change)
    """`old_faithful`, `iris`, `blobs`, or the path of a .csv or .npy file."""
    notes: list[str] = []
    readers = {"old_faithful": old_faithful, "iris": iris, "blobs": blobs}
    if name in readers:
        columns, raw = readers[name]()
    elif name.endswith(".csv"):
        columns, raw = read_csv(Path(name), notes, reading)
    elif name.endswith(".npy"):
        columns, raw = read_npy(Path(name))
        places = kept(name, columns, reading)
        columns, raw = [columns[i] for i in places], raw[:, places]
    else:
        raise DataError(f"--data: {name!r} is none of {', '.join(readers)} and no .csv or .npy path")
    return standardise(name, columns, raw, reading.standardise)._replace(notes=tuple(notes))


def kept(name: str, columns: list[str], reading: Reading) -> list[int]:
    """The places of the columns that are asked for."""
    places = list(range(int(reading.index), len(columns)))
    if reading.columns is None:
        return places
    found = []
    for wanted in reading.columns:
        if columns.count(wanted) == 1:
            found.append(columns.index(wanted))
        elif wanted.isdigit() and 1 <= int(wanted) <= len(columns):
            found.append(int(wanted) - 1)
        else:
            raise DataError(f"--columns: {wanted!r:.40} is no column of {name}; it has {', '.join(columns):.200}")
    if len(set(found)) < len(found):
        raise DataError(f"--columns: {','.join(reading.columns)} names a column twice")
    return found


def old_faithful() -> tuple[list[str], np.ndarray]:
    """272 eruptions of the Old Faithful geyser: duration and waiting time, in minutes (Azzalini & Bowman 1990)."""
    _, raw = read_csv(FOLDER / "old_faithful.csv", [])
    return ["eruption (min)", "waiting (min)"], raw


def iris() -> tuple[list[str], np.ndarray]:
    """150 irises, four lengths in cm (Fisher 1936)."""
    from sklearn.datasets import load_iris

    bunch = load_iris()
    return list(bunch.feature_names), bunch.data


def blobs() -> tuple[list[str], np.ndarray]:
    """500 points around three centres in the plane."""
    from sklearn.datasets import make_blobs

    points, _ = make_blobs(500, centers=[[-4, 0], [0, 4], [4, -1]], cluster_std=[0.8, 1.0, 1.2], random_state=0)
    return ["first", "second"], points


def read_csv(path: Path, notes: list[str], reading: Reading = Reading()) -> tuple[list[str], np.ndarray]:  # noqa: B008
    """Separated numbers, with or without one header line; what is left out is added to the notes."""
    lines = cells_of(path, reading.sep)
    first, cells = lines[0] if lines else (0, [])
    header = cells if is_header(cells, [line for _, line in lines[1:]], path) else None
    named = header or [f"column {i}" for i in range(1, len(cells) + 1)]
    chosen = reading.index or reading.columns is not None
    places = kept(str(path), named, reading) if chosen else list(range(len(cells)))
    columns = [named[place] for place in places]
    rows = []
    for number, line in lines[1:] if header else lines:
        if len(line) != len(cells):
            raise DataError(f"{path}: line {number} has {len(line)} columns, line {first} has {len(cells)}")
        line = [line[place] for place in places]
        for cell, column in zip(line, columns, strict=True):
            if not is_number(cell):
                raise DataError(f"{path}: line {number}: {cell!r:.40} is not a number ({column}); {remedy(cell)}")
        values = [float(cell) for cell in line]
        if not np.isfinite(values).all():
            raise DataError(f"{path}: line {number} has NaN or infinity; drop or impute it")
        rows.append(values)
    if not rows:
        raise DataError(f"{path}: has no rows of numbers")
    raw = np.array(rows)
    if chosen:
        return columns, raw
    if is_count(raw[:, 0], least=2) and header and re.fullmatch(r"|Unnamed: 0", header[0]):
        notes.append(f"{path}: the first column has no name and counts the rows; it is left out")
        return columns[1:], raw[:, 1:]
    if is_count(raw[:, 0], least=4) and not header:
        raise DataError(f"{path}: the first column counts the rows; leave it out by --index, or give it a name")
    return columns, raw


def cells_of(path: Path, sep: str = ",") -> list[tuple[int, list[str]]]:
    """(number, cells) of every line that is not blank; where no comma parts the columns, it is a decimal point."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: is no file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        reader = csv.reader(lines, delimiter=sep, skipinitialspace=sep != " ")
        found = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if "".join(cells).strip()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as text: {' '.join(str(error).split())}") from None
    if sep != ",":
        return [(number, [with_point(cell) for cell in cells]) for number, cells in found]
    for number, cells in found[:2]:
        for other, name, said in ((";", "semicolons", "';'"), ("\t", "tabs", "tab")):
            if any(other in cell for cell in cells):
                raise DataError(f"{path}: line {number}: {name} between the columns; say --sep {said}")
        if len(cells) == 1 and len(cells[0].split()) > 1 and all(map(is_number, cells[0].split())):
            raise DataError(f"{path}: line {number}: blanks between the columns; write commas")
    return found


def is_header(cells: list[str], others: list[list[str]], path: Path) -> bool:
    """Names of columns? One cell at least is then no number; 0, 1, 2, … are pandas' names, or a row like the others."""
    if any(DECIMAL_COMMA.fullmatch(cell) for cell in cells):
        return False
    words = [cell for cell in cells if not is_number(cell)]
    count = [str(i) for i in range(len(cells))]
    if cells == count and others:
        if any(re.fullmatch(r"[+-]?\d+", cell) for line in others for cell in line[:1]):
            raise DataError(f"{path}: the first line, {','.join(cells):.40}, may be names or a row; put names above it")
        return True
    return any(word.lower() not in MISSING for word in words) or cells == ["", *count[:-1]]


DECIMAL_COMMA = re.compile(r"[+-]?\d[\d.]*,\d+([eE][+-]?\d+)?")
MISSING = {"", "na", "n/a", "nan", "null", "none", "?", "-", "."}


def with_point(cell: str) -> str:
    """A number with a decimal comma, with a decimal point."""
    return cell.replace(".", "").replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell


def remedy(cell: str) -> str:
    """What to do about a cell that is no number."""
    if cell.lower() in MISSING:
        return "it is missing: drop or impute it"
    if DECIMAL_COMMA.fullmatch(cell):
        return "write decimal points, and no commas within numbers"
    return "mend it, or drop the column"


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def is_count(column: np.ndarray, least: int) -> bool:
    """Is it 0, 1, 2, … or 1, 2, 3, …, and as long as that?"""
    return len(column) >= least and column[0] in (0, 1) and bool((np.diff(column) == 1).all())


def read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    """A numeric (N, D) array saved by numpy.save."""
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: is no file")
    try:
        with np.errstate(all="ignore"):  # mapped: a header may promise more than there is
            raw = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # a file can be wrong in many ways
        raise DataError(f"{path}: cannot be read as a NumPy array of numbers, saved whole by numpy.save") from None
    if not isinstance(raw, np.ndarray):
        raise DataError(f"{path}: is an archive of several arrays; save one of them by numpy.save")
    if raw.dtype.kind not in "biuf":
        raise DataError(f"{path}: must be numeric, has dtype {raw.dtype}")
    if raw.ndim != 2:
        raise DataError(f"{path}: must have two axes (N, D), has shape {raw.shape}")
    with np.errstate(over="ignore"):
        raw = np.array(raw, float)
    bad = np.flatnonzero(~np.isfinite(raw).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: row {bad[0]} has NaN or infinity ({bad.size} such rows); drop or impute them")
    return [f"column {i}" for i in range(1, raw.shape[1] + 1)], raw


def standardise(name: str, columns: list[str], raw: np.ndarray, wanted: bool = True) -> DataSet:
    """Mean 0, standard deviation 1 in every column; or as they are."""
    if raw.shape[0] < 2:
        raise DataError(f"{name}: has {raw.shape[0]} row(s); at least two are needed")
    if raw.shape[1] < 2:
        raise DataError(f"{name}: has a single column; at least two are needed")
    with np.errstate(all="ignore"):
        centre, scale = raw.mean(axis=0), raw.std(axis=0)
        x = (raw - centre) / scale
    if not wanted:
        return DataSet(name, columns, raw, np.zeros(raw.shape[1]), np.ones(raw.shape[1]))
    constant = [column for column, low, high in zip(columns, raw.min(0), raw.max(0), strict=True) if low == high]
    if constant:
        raise DataError(f"{name}: column {constant[0]!r} is constant and cannot be standardised; drop it")
    with np.errstate(all="ignore"):
        lost = [column for column, unit in zip(columns, x.std(axis=0), strict=True) if not abs(unit - 1) < 1e-6]
    if lost:
        raise DataError(
            f"{name}: column {lost[0]!r} cannot be standardised: the squares of its numbers overflow or vanish; "
            "choose another unit"
        )
    return DataSet(name, columns, x, centre, scale)
