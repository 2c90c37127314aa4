"""The data sets of the experiments, and a user's CSV or NPY, with errors that say which line is wrong."""

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


def load(name: str) -> DataSet:
    """`old_faithful`, `iris`, `blobs`, or the path of a .csv or .npy file."""
    readers = {"old_faithful": old_faithful, "iris": iris, "blobs": blobs}
    if name in readers:
        columns, raw = readers[name]()
    elif name.endswith((".csv", ".npy")):
        columns, raw = read_csv(Path(name)) if name.endswith(".csv") else read_npy(Path(name))
    else:
        raise DataError(f"--data: {name!r} is none of {', '.join(readers)} and no .csv or .npy path")
    return standardise(name, columns, raw)


def old_faithful() -> tuple[list[str], np.ndarray]:
    """272 eruptions of the Old Faithful geyser: duration and waiting time, in minutes (Azzalini & Bowman 1990)."""
    _, raw = read_csv(FOLDER / "old_faithful.csv")
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


def read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    """Comma-separated numbers, with or without one header line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text: {error}") from None
    header: list[str] | None = None
    rows: list[list[float]] = []
    width = first = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        cells = [cell.strip().strip('"') for cell in line.split(",")]
        try:
            values = [float(cell) for cell in cells]
        except ValueError:
            if header is None and not rows:
                header, width, first = cells, len(cells), number
                continue
            bad = next(cell for cell in cells if not _is_number(cell))
            raise DataError(f"{path}: line {number}: {bad!r} is not a number") from None
        if width and len(values) != width:
            raise DataError(f"{path}: line {number} has {len(values)} columns, line {first} has {width}")
        if not np.isfinite(values).all():
            raise DataError(f"{path}: line {number} has NaN or infinity; drop or impute it")
        width, first = len(values), first or number
        rows.append(values)
    if not rows:
        raise DataError(f"{path}: has no rows of numbers")
    return header or [f"column {i}" for i in range(1, width + 1)], np.array(rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    """A numeric (N, D) array saved by numpy.save."""
    try:
        raw = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array: {error}") from None
    if raw.dtype.kind not in "biuf":
        raise DataError(f"{path}: must be numeric, has dtype {raw.dtype}")
    if raw.ndim != 2:
        raise DataError(f"{path}: must have two axes (N, D), has shape {raw.shape}")
    bad = np.flatnonzero(~np.isfinite(raw).all(axis=1))
    if bad.size:
        raise DataError(f"{path}: row {bad[0]} has NaN or infinity ({bad.size} such rows); drop or impute them")
    return [f"column {i}" for i in range(1, raw.shape[1] + 1)], raw.astype(float)


def standardise(name: str, columns: list[str], raw: np.ndarray) -> DataSet:
    """Mean 0, standard deviation 1 in every column."""
    if raw.shape[0] < 2:
        raise DataError(f"{name}: has {raw.shape[0]} row(s); at least two are needed")
    if raw.shape[1] < 2:
        raise DataError(f"{name}: has a single column; at least two are needed")
    centre, scale = raw.mean(axis=0), raw.std(axis=0)
    constant = [column for column, low, high in zip(columns, raw.min(0), raw.max(0), strict=True) if low == high]
    if constant:
        raise DataError(f"{name}: column {constant[0]!r} is constant and cannot be standardised; drop it")
    return DataSet(name, columns, (raw - centre) / scale, centre, scale)
